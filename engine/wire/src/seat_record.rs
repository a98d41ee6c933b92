//! What a node remembers of a volume across its restarts, and of its exports.
//!
//! ```text
//!  | postcard of the versioned record | CRC-32C of it, 4 bytes little-endian |
//! ```
//! The version is the enum's tag, the first byte; a record of an unknown version is an error, never a guess.

use crate::WireError;
use crate::admin::{Export, IoLimits, Leg, NodeAddress, Role};
use drover_base::{Epoch, MigrationId};
use serde::{Deserialize, Serialize};

/// Which way the data of a seat's leg goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegDirection {
    /// Before the flip, from the holder to the destination: begun by `BeginSend` or `PrepareReceive`.
    Forward,
    /// After a flip, from the holder back to the side that held before.
    Return,
}

/// What a node is to a volume. Durable before the node acts on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatRecord {
    pub epoch: Epoch,
    /// Of the last grant adopted within the epoch.
    pub revision: u64,
    pub holder: NodeAddress,
    pub role: Role,
    /// Time to live of a timed lease; `None`: no limit.
    pub ttl_ms: Option<u64>,
    pub leg: Option<Leg>,
    pub direction: LegDirection,
    /// Name of the snapshot that the migration of `leg` froze here.
    pub base_snapshot: Option<String>,
    /// Space promised to the migration that fills the volume.
    pub reserve_bytes: u64,
    /// The last migration that ended here; requests about it come late.
    pub ended: Option<MigrationId>,
    /// As last heard of: they hold also where the control plane is away.
    pub limits: IoLimits,
    /// Whose the volume is; empty: not known, of a volume that was made before it was told.
    pub tenant: String,
}

/// What [`Seat::V1`] held.
#[derive(Serialize, Deserialize)]
struct FirstSeatRecord {
    epoch: Epoch,
    revision: u64,
    holder: NodeAddress,
    role: Role,
    ttl_ms: Option<u64>,
    leg: Option<Leg>,
    direction: LegDirection,
    base_snapshot: Option<String>,
    reserve_bytes: u64,
    ended: Option<MigrationId>,
}

#[derive(Serialize, Deserialize)]
enum Seat {
    /// The first: a volume had no limits.
    V1(FirstSeatRecord),
    /// With limits, which follow the fields of the first.
    V2((FirstSeatRecord, IoLimits)),
    /// With a tenant.
    V3(SeatRecord),
}

impl From<FirstSeatRecord> for SeatRecord {
    fn from(first: FirstSeatRecord) -> Self {
        Self {
            epoch: first.epoch,
            revision: first.revision,
            holder: first.holder,
            role: first.role,
            ttl_ms: first.ttl_ms,
            leg: first.leg,
            direction: first.direction,
            base_snapshot: first.base_snapshot,
            reserve_bytes: first.reserve_bytes,
            ended: first.ended,
            limits: IoLimits::default(),
            tenant: String::new(),
        }
    }
}

#[derive(Serialize, Deserialize)]
enum Exported {
    /// The first.
    V1(Export),
}

impl SeatRecord {
    pub fn encode(&self) -> Vec<u8> {
        seal(&Seat::V3(self.clone()))
    }
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        match unseal(bytes, "SeatRecord")? {
            Seat::V1(first) => Ok(first.into()),
            Seat::V2((first, limits)) => Ok(Self { limits, ..first.into() }),
            Seat::V3(record) => Ok(record),
        }
    }
}

pub fn encode_export(export: &Export) -> Vec<u8> {
    seal(&Exported::V1(export.clone()))
}

pub fn decode_export(bytes: &[u8]) -> Result<Export, WireError> {
    let Exported::V1(export) = unseal(bytes, "Export")?;
    Ok(export)
}

pub(crate) fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(value).expect("plain data always encodes");
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

pub(crate) fn unseal<T: for<'a> Deserialize<'a>>(bytes: &[u8], what: &'static str) -> Result<T, WireError> {
    let (body, crc) = bytes.split_last_chunk::<4>().ok_or(WireError::Body(what))?;
    let (expected, got) = (u32::from_le_bytes(*crc), crc32c::crc32c(body));
    if expected != got {
        return Err(WireError::Checksum { expected, got });
    }
    postcard::from_bytes(body).map_err(|_| WireError::Body(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::{Generation, NodeId, VolumeId};

    fn address(name: &str) -> NodeAddress {
        NodeAddress { node: NodeId::new(name).unwrap(), peer: format!("{name}:1"), migration: format!("{name}:2") }
    }

    #[test]
    fn records_read_back_and_damage_is_seen() {
        let record = SeatRecord {
            epoch: Epoch(4),
            revision: 2,
            holder: address("a"),
            role: Role::Mirror,
            ttl_ms: Some(9_000),
            leg: Some(Leg {
                migration: MigrationId(3),
                generation: Generation(1),
                other: address("a"),
                way_back_open: true,
            }),
            direction: LegDirection::Return,
            base_snapshot: Some("drover-3".into()),
            reserve_bytes: 1 << 30,
            ended: None,
            limits: IoLimits { revision: 3, iops: Some(500), bytes_per_s: None, burst_ms: 2_000 },
            tenant: "shop".into(),
        };
        let bytes = record.encode();
        assert_eq!(SeatRecord::decode(&bytes), Ok(record));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SeatRecord::decode(&damaged).is_err(), "bit {bit}");
        }
        assert!(SeatRecord::decode(&bytes[..3]).is_err());
    }

    /// A node that was started with the next version would have lost what it is to its volumes.
    #[test]
    fn records_of_earlier_versions_lack_what_came_later() {
        let first = || FirstSeatRecord {
            epoch: Epoch(4),
            revision: 2,
            holder: address("a"),
            role: Role::Holder,
            ttl_ms: None,
            leg: None,
            direction: LegDirection::Return,
            base_snapshot: None,
            reserve_bytes: 7,
            ended: Some(MigrationId(3)),
        };
        let record = SeatRecord::decode(&seal(&Seat::V1(first()))).unwrap();
        assert_eq!((record.epoch, record.reserve_bytes, record.ended), (Epoch(4), 7, Some(MigrationId(3))));
        assert_eq!((record.limits, &record.tenant[..]), (IoLimits::default(), ""));
        let limits = IoLimits { revision: 2, iops: Some(9), ..IoLimits::default() };
        let second = SeatRecord::decode(&seal(&Seat::V2((first(), limits)))).unwrap();
        assert_eq!(second, SeatRecord { limits, ..record });
    }

    #[test]
    fn exports_read_back() {
        let export = Export { name: "vol".into(), volume: VolumeId(5), size_bytes: 1 << 20, workload: None };
        assert_eq!(decode_export(&encode_export(&export)), Ok(export));
    }
}
