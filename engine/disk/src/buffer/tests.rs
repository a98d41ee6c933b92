use super::*;
use proptest::prelude::*;

fn numbered(len: usize) -> Buffer {
    let bytes: Vec<u8> = (0..len).map(|at| ((at * 31) >> 3) as u8 ^ (at >> 11) as u8).collect();
    Buffer::from_slice(&bytes)
}

#[test]
fn a_recycled_buffer_is_zero_when_asked() {
    for len in [1, 4096, 65_536, 262_144, 300_000] {
        let mut buffer = Buffer::for_read(len);
        buffer.fill(0xff);
        drop(buffer);
        assert!(Buffer::zeroed(len).iter().all(|&byte| byte == 0), "{len}");
    }
}

#[test]
fn memory_is_reused() {
    let first = Buffer::for_read(65_536);
    let address = first.as_ptr();
    drop(first);
    assert_eq!(Buffer::for_read(40_000).as_ptr(), address);
}

#[test]
fn buffers_start_aligned() {
    for len in [0, 1, 4096, 5000, 1 << 20] {
        let buffer = Buffer::for_read(len);
        assert_eq!(buffer.as_ptr() as usize % ALIGN, 0);
        assert_eq!(buffer.is_aligned(), len % ALIGN == 0);
    }
    let mut buffer = Buffer::zeroed(8192);
    buffer.advance(512);
    buffer.truncate(4096);
    assert!(!buffer.is_aligned());
}

#[test]
fn neighbours_join_without_a_copy() {
    let mut head = numbered(65_536);
    let address = head.as_ptr();
    let tail = head.split_off(16_384);
    let whole = Buffer::join(vec![head, tail]);
    assert_eq!(whole.as_ptr(), address);
    assert_eq!(whole, numbered(65_536));
}

#[test]
fn strangers_and_pieces_out_of_order_join_by_copy() {
    let mut head = numbered(8192);
    let tail = head.split_off(4096);
    let expected = [&tail[..], &head[..]].concat();
    assert_eq!(Buffer::join(vec![tail, head]).as_slice(), expected);
    let strangers = Buffer::join(vec![Buffer::from_slice(b"ab"), Buffer::zeroed(0), Buffer::from_slice(b"c")]);
    assert_eq!(strangers.as_slice(), b"abc");
    assert!(Buffer::join(Vec::new()).is_empty());
}

#[test]
fn a_dropped_neighbour_is_not_joined_over() {
    let mut head = numbered(12_288);
    let mut tail = head.split_off(4096);
    drop(tail.split_to(4096));
    let expected = [&head[..], &tail[..]].concat();
    assert_eq!(Buffer::join(vec![head, tail]).as_slice(), expected);
}

#[test]
fn bytes_keep_the_memory_and_outlive_the_thread() {
    let buffer = numbered(4096);
    let address = buffer.as_ptr();
    let bytes = std::thread::spawn(move || buffer.into_bytes()).join().unwrap();
    assert_eq!(bytes.as_ptr(), address);
    assert_eq!(bytes, numbered(4096).into_bytes());
}

#[test]
#[should_panic(expected = "a split at 5 of 4 bytes")]
fn a_split_past_the_end_panics() {
    Buffer::zeroed(4).split_to(5);
}

proptest! {
    /// Any sequence of cuts gives the bytes a Vec would give, pieces do not overlap, and joining them
    /// in order gives the whole again at the same address.
    #[test]
    fn cuts_are_disjoint_and_join_again(len in 0usize..20_000, cuts in prop::collection::vec((any::<u16>(), any::<bool>()), 0..12)) {
        let whole = numbered(len);
        let (address, expected) = (whole.as_ptr(), whole.to_vec());
        let mut pieces = vec![whole];
        for (cut, from_front) in cuts {
            let piece = cut as usize % pieces.len();
            let at = cut as usize % (pieces[piece].len() + 1);
            if from_front {
                let head = pieces[piece].split_to(at);
                pieces.insert(piece, head);
            } else {
                let tail = pieces[piece].split_off(at);
                pieces.insert(piece + 1, tail);
            }
        }
        let mut at = 0;
        for piece in &pieces {
            prop_assert_eq!(piece.as_slice(), &expected[at..at + piece.len()]);
            at += piece.len();
        }
        prop_assert_eq!(at, len);
        for (index, piece) in pieces.iter_mut().enumerate() {
            piece.fill(index as u8);
        }
        for (index, piece) in pieces.iter().enumerate() {
            prop_assert!(piece.iter().all(|&byte| byte == index as u8));
        }
        let joined = Buffer::join(pieces);
        prop_assert_eq!(joined.len(), len);
        if len > 0 {
            prop_assert_eq!(joined.as_ptr(), address);
        }
    }

    #[test]
    fn views_shrink_like_slices(len in 0usize..10_000, skip in 0usize..10_000, keep in 0usize..10_000) {
        let skip = skip.min(len);
        let mut buffer = numbered(len);
        let expected = buffer.to_vec();
        buffer.advance(skip);
        buffer.truncate(keep);
        prop_assert_eq!(buffer.as_slice(), &expected[skip..len.min(skip + keep)]);
    }
}
