//! What a client will want next, from what it has just accessed: the next extent of a stream at its own distance.
//!
//! A stream goes on where an access follows the last one at the same distance as that one its predecessor; first it is
//! taken to go on with the neighbour. Each step that comes true doubles what is read ahead. The streams followed longest
//! ago are forgotten.

use drover_base::ExtentIndex;
use std::collections::VecDeque;

/// Streams that are followed at once: a handful of readers, and room for chance accesses between theirs.
const STREAMS_MAX: usize = 16;

/// Extents read ahead of a stream at most: 1 MiB, 8 ms of a gigabit link.
pub const AHEAD_EXTENTS_MAX: u64 = 16;

/// A step larger than this is another stream's.
const STEP_EXTENTS_MAX: u64 = 256;

#[derive(Clone, Copy, Debug)]
struct Stream {
    last: u64,
    step: i64,
    /// Steps in a row that came true.
    hits: u32,
}

impl Stream {
    fn at(&self, steps: u64) -> Option<u64> {
        self.last.checked_add_signed(self.step.checked_mul(i64::try_from(steps).ok()?)?)
    }
}

/// The streams of one volume, the one followed last at the end.
#[derive(Debug, Default)]
pub struct Streams(VecDeque<Stream>);

impl Streams {
    /// An access of extents `first..=last`. Returns what is likely next, nearest first.
    pub fn accessed(&mut self, first: ExtentIndex, last: ExtentIndex) -> Vec<ExtentIndex> {
        let (first, last) = (first.0, last.0);
        let goes_on = |stream: &Stream| stream.at(1) == Some(first) || stream.step == 1 && stream.last == first;
        let known = self.0.iter().rposition(|stream| stream.last == last);
        if let Some(at) = known.or_else(|| self.0.iter().rposition(goes_on)) {
            let mut stream = self.0.remove(at).expect("it was found there");
            let is_step = stream.last != last;
            stream.last = last;
            stream.hits = (stream.hits + u32::from(is_step)).min(u64::BITS);
            self.0.push_back(stream);
            return if is_step { ahead(&stream) } else { Vec::new() };
        }
        let near = |stream: &Stream| stream.last.abs_diff(first) <= STEP_EXTENTS_MAX && stream.hits == 0;
        let stream = match self.0.iter().rposition(near) {
            Some(at) => {
                let before = self.0.remove(at).expect("it was found there");
                Stream { last, step: first as i64 - before.last as i64, hits: 0 }
            }
            None => Stream { last, step: 1, hits: 0 },
        };
        if self.0.len() == STREAMS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(stream);
        Vec::new()
    }
}

fn ahead(stream: &Stream) -> Vec<ExtentIndex> {
    let count = 1u64.checked_shl(stream.hits).unwrap_or(u64::MAX).min(AHEAD_EXTENTS_MAX);
    (1..=count).filter_map(|steps| stream.at(steps)).map(ExtentIndex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(streams: &mut Streams, extent: u64) -> Vec<u64> {
        streams.accessed(ExtentIndex(extent), ExtentIndex(extent)).into_iter().map(|extent| extent.0).collect()
    }

    #[test]
    fn a_sequence_is_read_ahead_twice_as_far_at_each_step() {
        let mut streams = Streams::default();
        assert_eq!(next(&mut streams, 10), []);
        assert_eq!(next(&mut streams, 10), [], "still the same extent");
        assert_eq!(next(&mut streams, 11), [12, 13]);
        assert_eq!(next(&mut streams, 12), [13, 14, 15, 16]);
        for extent in 13..40 {
            assert!(next(&mut streams, extent).len() as u64 <= AHEAD_EXTENTS_MAX);
        }
        assert_eq!(next(&mut streams, 40), (41..57).collect::<Vec<_>>());
    }

    #[test]
    fn a_stride_and_a_way_back_are_followed_once_they_repeat() {
        let mut streams = Streams::default();
        assert_eq!(next(&mut streams, 100), []);
        assert_eq!(next(&mut streams, 104), []);
        assert_eq!(next(&mut streams, 108), [112, 116]);
        let mut streams = Streams::default();
        assert_eq!([next(&mut streams, 3), next(&mut streams, 2)], [[0; 0]; 2]);
        assert_eq!(next(&mut streams, 1), [0], "nothing is before the start");
    }

    #[test]
    fn several_streams_are_told_apart_and_chance_is_forgotten() {
        let mut streams = Streams::default();
        for step in 0..3 {
            next(&mut streams, 1_000 + step);
            next(&mut streams, 9_000 + step);
        }
        assert_eq!(next(&mut streams, 1_003).first(), Some(&1_004));
        assert_eq!(next(&mut streams, 9_003).first(), Some(&9_004));
        for chance in 0..100 {
            assert_eq!(next(&mut streams, 100_000 + chance * 1_000), []);
        }
        assert_eq!(streams.0.len(), STREAMS_MAX);
        assert_eq!(next(&mut streams, 1_004), [], "its stream was pushed out");
    }
}
