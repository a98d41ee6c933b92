//! The first block of a tier's device: whose it is.
//!
//! ```text
//!  0       8         12        16       24     40         44         48       112      176         4092   4096
//!  | magic | version | zeros   | size   | id   | node len | tier len | node   | tier   | zeros …   | crc  |
//! ```
//! Little-endian. Node and tier stand in places of 64 bytes, filled up with zeros. `crc` is CRC-32C of all before it,
//! the zeros included, so that a block that is torn or written over in part is known for it. A block is written whole
//! or not at all.

use crate::WireError;
use drover_base::NodeId;
use drover_base::units::BLOCK_BYTES;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a label.
pub const LABEL_BYTES: usize = BLOCK_BYTES as usize;

const MAGIC: [u8; 8] = *b"DRVRTIER";

/// Longest name of a node or tier.
const NAME_BYTES: usize = 64;

/// Versions of the label.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Version {
    /// The first.
    First = 1,
}

/// Whose a tier's device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierLabel {
    pub node: NodeId,
    pub tier: String,
    /// Chance, drawn when the tier was first used: tells it from one of the same name before or elsewhere.
    pub id: u128,
    /// Bytes for slots, the label aside.
    pub size_bytes: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Block {
    magic: [u8; 8],
    version: U32,
    zeros: [u8; 4],
    size: U64,
    id: [u8; 16],
    node_len: U32,
    tier_len: U32,
    node: [u8; NAME_BYTES],
    tier: [u8; NAME_BYTES],
    rest: [u8; LABEL_BYTES - 180],
    crc: U32,
}

const _: () = assert!(size_of::<Block>() == LABEL_BYTES);

impl TierLabel {
    /// # Panics
    /// When the tier's name has more than 64 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = <Block as zerocopy::FromZeros>::new_zeroed();
        block.magic = MAGIC;
        block.version = (Version::First as u32).into();
        block.size = self.size_bytes.into();
        block.id = self.id.to_le_bytes();
        block.node_len = put(&mut block.node, self.node.as_str());
        block.tier_len = put(&mut block.tier, &self.tier);
        block.crc = checksum(block.as_bytes()).into();
        block.as_bytes().to_vec()
    }

    /// `None`: there is no label, and none was there that was damaged since.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let expected = LABEL_BYTES;
        let block = Block::read_from_bytes(bytes).map_err(|_| WireError::HeadLength { expected, got: bytes.len() })?;
        if block.magic != MAGIC {
            return Ok(None);
        }
        let crc = checksum(bytes);
        if crc != block.crc.get() {
            return Err(WireError::Checksum { expected: block.crc.get(), got: crc });
        }
        let (known, version) = (Version::First as u32, block.version.get());
        if version != known {
            let told = |version: u32| u16::try_from(version).unwrap_or(u16::MAX);
            return Err(WireError::Version { expected: told(known), got: told(version) });
        }
        let node = NodeId::new(take(&block.node, block.node_len)?).map_err(|_| WireError::Body("a label's node"))?;
        let tier = take(&block.tier, block.tier_len)?.to_owned();
        Ok(Some(Self { node, tier, id: u128::from_le_bytes(block.id), size_bytes: block.size.get() }))
    }
}

fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(&block[..LABEL_BYTES - 4])
}

fn put(place: &mut [u8; NAME_BYTES], name: &str) -> U32 {
    place[..name.len()].copy_from_slice(name.as_bytes());
    U32::new(name.len() as u32)
}

fn take(place: &[u8; NAME_BYTES], len: U32) -> Result<&str, WireError> {
    let name = place.get(..len.get() as usize).and_then(|name| std::str::from_utf8(name).ok());
    name.ok_or(WireError::Body("a label's name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> TierLabel {
        let longest = "n".repeat(63);
        TierLabel { node: NodeId::new(&longest).unwrap(), tier: "fast".into(), id: 7 << 100, size_bytes: 1 << 40 }
    }

    #[test]
    fn a_label_reads_back() {
        assert_eq!(TierLabel::decode(&label().encode()), Ok(Some(label())));
    }

    #[test]
    fn what_is_no_label_is_none_and_a_damaged_one_an_error() {
        assert_eq!(TierLabel::decode(&[0; LABEL_BYTES]), Ok(None));
        assert_eq!(TierLabel::decode(&[0xff; LABEL_BYTES]), Ok(None));
        let bytes = label().encode();
        for at in 8..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(matches!(TierLabel::decode(&damaged), Err(WireError::Checksum { .. })), "byte {at}");
        }
        assert!(matches!(TierLabel::decode(&bytes[..512]), Err(WireError::HeadLength { .. })));
    }

    #[test]
    fn lengths_and_versions_of_others_are_errors() {
        let changed = |change: fn(&mut Block)| {
            let mut block = Block::read_from_bytes(&label().encode()).unwrap();
            change(&mut block);
            block.crc = checksum(block.as_bytes()).into();
            TierLabel::decode(block.as_bytes())
        };
        assert!(matches!(changed(|block| block.version = 2.into()), Err(WireError::Version { got: 2, .. })));
        assert!(matches!(changed(|block| block.node_len = 65.into()), Err(WireError::Body(_))));
        assert!(matches!(changed(|block| block.tier_len = u32::MAX.into()), Err(WireError::Body(_))));
        assert!(matches!(changed(|block| block.tier[0] = 0xff), Err(WireError::Body(_))));
    }
}
