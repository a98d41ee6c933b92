//! What a holder knows durably of those who write to a volume through other nodes: the note that the volume bears.
//!
//! ```text
//!  | postcard of the versioned record | CRC-32C of it, 4 bytes little-endian |      nothing: as at first
//! ```

use crate::WireError;
use crate::seat_record::{seal, unseal};
use drover_base::{InstanceId, NodeId, SessionId};
use serde::{Deserialize, Serialize};

/// Terms whose loss is remembered one by one: each takes a restart of the holder after which a gateway stayed away.
const LOST_TERMS_MAX: usize = 16;

/// All clients of one node, for as long as its process lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    pub session: SessionId,
    pub node: NodeId,
    pub instance: InstanceId,
}

/// Who may have been acknowledged writes that are not durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterRecord {
    /// Grows with each change of `writer`. When it grows, everything acknowledged before is durable or given up.
    pub term: u64,
    /// The only one whose gateway keeps writes for replay, in this term.
    pub writer: Option<Writer>,
    /// The holder that gave the volume this note had restarted, and may lack what the writer was acknowledged.
    pub owed: bool,
    /// Ascending: terms that were given up before their writer had replayed.
    lost: Vec<u64>,
    /// The last of those that are not remembered one by one: all up to it count as lost.
    lost_until: u64,
}

#[derive(Serialize, Deserialize)]
enum Versioned {
    /// The first.
    V1(WriterRecord),
}

impl WriterRecord {
    /// The next term, of that writer.
    pub fn next(&self, writer: Option<Writer>) -> Self {
        Self { term: self.term + 1, writer, owed: false, ..self.clone() }
    }

    /// The next term, of nobody, where the present one's writer stayed away.
    pub fn given_up(&self) -> Self {
        let mut next = self.next(None);
        next.lost.push(self.term);
        if next.lost.len() > LOST_TERMS_MAX {
            next.lost_until = next.lost.remove(0);
        }
        next
    }

    pub fn is_lost(&self, term: u64) -> bool {
        term <= self.lost_until || self.lost.contains(&term)
    }

    pub fn encode(&self) -> Vec<u8> {
        seal(&Versioned::V1(self.clone()))
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let Versioned::V1(record) = unseal(bytes, "WriterRecord")?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::limits::NOTE_BYTES_MAX;

    fn writer() -> Writer {
        let longest = "n".repeat(63);
        Writer { session: SessionId(u64::MAX), node: NodeId::new(&longest).unwrap(), instance: InstanceId(u64::MAX) }
    }

    #[test]
    fn records_read_back_and_damage_is_seen() {
        assert_eq!(WriterRecord::decode(&[]), Ok(WriterRecord::default()));
        let record = WriterRecord::default().next(Some(writer()));
        let bytes = record.encode();
        assert_eq!(WriterRecord::decode(&bytes), Ok(record));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(WriterRecord::decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_was_given_up_stays_so_and_the_record_stays_small() {
        let mut record = WriterRecord { term: 1 << 60, ..WriterRecord::default() };
        let mut given_up = Vec::new();
        for _ in 0..3 * LOST_TERMS_MAX {
            record = record.next(Some(writer()));
            given_up.push(record.term);
            record = record.given_up();
            assert!(given_up.iter().all(|term| record.is_lost(*term)));
            assert!(!record.is_lost(record.term));
        }
        assert!(!record.is_lost(record.term - 2), "one that ended in order");
        assert!(record.next(Some(writer())).encode().len() <= NOTE_BYTES_MAX);
    }
}
