//! What lies on a node's disks, which may have rotted, or been put there.

use drover_wire::seat_record::{SeatRecord, decode_export, encode_export};
use drover_wire::tier_label::TierLabel;
use drover_wire::writer_record::WriterRecord;

/// The first byte chooses what the rest is.
pub fn values(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => drover_store::hostile::value(rest),
        1 => {
            if let Ok(pairs) = drover_store::checkpoint::decode(rest) {
                assert_eq!(drover_store::checkpoint::decode(&drover_store::checkpoint::encode(&pairs)), Ok(pairs));
            }
        }
        2 => {
            if let Ok(seat) = SeatRecord::decode(rest) {
                assert_eq!(SeatRecord::decode(&seat.encode()).as_ref(), Ok(&seat));
            }
        }
        3 => {
            if let Ok(writer) = WriterRecord::decode(rest) {
                assert_eq!(WriterRecord::decode(&writer.encode()).as_ref(), Ok(&writer));
            }
        }
        4 => {
            if let Ok(export) = decode_export(rest) {
                assert_eq!(decode_export(&encode_export(&export)).as_ref(), Ok(&export));
            }
        }
        _ => {
            if let Ok(Some(label)) = TierLabel::decode(rest) {
                assert_eq!(TierLabel::decode(&label.encode()).as_ref(), Ok(&Some(label)));
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, value: Vec<u8>| [vec![kind], value].concat();
    let mut seeds: Vec<Vec<u8>> = drover_store::hostile::seeds().into_iter().map(|value| of(0, value)).collect();
    let pairs = vec![(b"vol/1".to_vec(), vec![1, 2, 3]), (b"map/1/2".to_vec(), Vec::new())];
    seeds.push(of(1, drover_store::checkpoint::encode(&pairs)));
    seeds.push(of(3, WriterRecord::default().encode()));
    seeds
}
