//! Finds sequential scans among a volume's reads.

use drover_base::ByteRange;

/// Scans that are followed at once; the one that has not gone on for longest makes room.
const STREAMS_MAX: usize = 8;

/// Bytes read in a row before a stream counts as a scan: more than a file's readahead, less than a region.
const SCAN_BYTES: u64 = 2 << 20;

/// A read this far beyond a stream's end still continues it: requests in flight overtake each other.
const GAP_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy)]
struct Stream {
    end: u64,
    bytes: u64,
}

/// Most recently continued first.
#[derive(Default)]
pub struct Streams(Vec<Stream>);

impl Streams {
    /// Whether this read goes on with a scan. Notes it either way.
    pub fn is_scan(&mut self, range: ByteRange) -> bool {
        let continues = |stream: &Stream| {
            range.offset.abs_diff(stream.end) <= GAP_BYTES && range.end() > stream.end.saturating_sub(GAP_BYTES)
        };
        let stream = match self.0.iter().position(continues) {
            Some(at) => {
                let stream = self.0.remove(at);
                // Reading the same again and again is no scan: only new ground counts.
                let gained = range.end().saturating_sub(stream.end);
                Stream { end: stream.end.max(range.end()), bytes: stream.bytes + gained }
            }
            None => Stream { end: range.end(), bytes: range.len },
        };
        self.0.truncate(STREAMS_MAX - 1);
        self.0.insert(0, stream);
        stream.bytes > SCAN_BYTES && range.end() == stream.end
    }
}
