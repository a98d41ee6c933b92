//! Making frames of data: zeros told as zeros, zstd where it pays.
//!
//! Everything here is arithmetic for the worker pool; compressor and decompressor are kept by each of its threads,
//! since making one costs more than a frame.

use crate::level::Level;
use bytes::Bytes;
use drover_base::limits::REQUEST_BYTES_MAX;
use drover_base::{ByteRange, IoError};
use drover_disk::Buffer;
use drover_store::next_stretch;
use drover_wire::peer::Payload;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// A frame must shrink by this fraction, else decompressing it costs more than sending it.
const GAIN_MIN_DIVISOR: usize = 16;

/// Frames from this size on are sampled before they are compressed whole; longer ones hold more than samples tell of.
const SAMPLED_BYTES_MIN: usize = 64 << 10;
const SAMPLED_BYTES_MAX: usize = 512 << 10;
const SAMPLE_BYTES: usize = 4 << 10;

/// Less data than this is packed and unpacked at once rather than by the pool.
pub const POOL_BYTES_MIN: usize = 16 << 10;

/// What one frame carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Data { offset: u64, payload: Payload },
    Zero(ByteRange),
}

impl Piece {
    pub fn range(&self) -> ByteRange {
        match self {
            Self::Data { offset, payload } => ByteRange { offset: *offset, len: u64::from(payload.raw_len) },
            Self::Zero(range) => *range,
        }
    }

    /// Bytes of the frame's body.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::Data { payload, .. } => payload.bytes.len() as u64,
            Self::Zero(_) => 0,
        }
    }
}

/// Makes frames of what stands at `offset`, in ascending order and without gaps.
pub fn pack(offset: u64, data: Buffer, level: Level) -> Vec<Piece> {
    let piece = |(range, part): (ByteRange, Option<Buffer>)| match part {
        None => Piece::Zero(range),
        Some(part) => Piece::Data { offset: range.offset, payload: squeeze(part, level) },
    };
    stretches(offset, data).into_iter().map(piece).collect()
}

/// What stands at `offset` in stretches of data and of zeros (`None`), in ascending order and without gaps.
pub fn stretches(offset: u64, data: Buffer) -> Vec<(ByteRange, Option<Buffer>)> {
    let mut stretches = Vec::new();
    let mut rest = data;
    let mut at = offset;
    while !rest.is_empty() {
        let (is_zero, len) = next_stretch(&rest);
        let part = rest.split_to(len);
        stretches.push((ByteRange { offset: at, len: len as u64 }, Some(part).filter(|_| !is_zero)));
        at += len as u64;
    }
    stretches
}

/// Compressed, if that makes it shorter by enough.
pub fn squeeze(data: Buffer, level: Level) -> Payload {
    match squeezed(&data, level) {
        Some(payload) => payload,
        None => Payload::plain(data.into_bytes()),
    }
}

/// The same for bytes of any length; `None`: they are to be sent as they are.
pub fn squeezed(data: &[u8], level: Level) -> Option<Payload> {
    let number = level.number()?;
    let bytes = TOOLS.with_borrow_mut(|tools| tools.compress(data, number))?;
    Some(Payload { bytes, raw_len: data.len() as u32 })
}

/// The bytes as they were before [`pack`] or [`squeeze`]. An error where they do not decompress to exactly what is stated.
pub fn unpack(payload: &Payload) -> Result<Buffer, IoError> {
    let raw_len = payload.raw_len as usize;
    if raw_len as u64 > REQUEST_BYTES_MAX {
        return Err(IoError::TooLarge { len: raw_len as u64, most: REQUEST_BYTES_MAX });
    }
    if !payload.is_compressed() {
        return Ok(Buffer::from_slice(&payload.bytes));
    }
    let mut raw = Buffer::for_read(raw_len);
    let len = TOOLS.with_borrow_mut(|tools| tools.decompress(&payload.bytes, &mut raw)).ok_or(IoError::Corrupt)?;
    if len != raw_len {
        return Err(IoError::Corrupt);
    }
    Ok(raw)
}

/// What a thread keeps between frames.
#[derive(Default)]
struct Tools {
    /// And the level that it stands at.
    compressor: Option<(Compressor<'static>, i32)>,
    decompressor: Option<Decompressor<'static>>,
    scratch: Vec<u8>,
}

thread_local! {
    static TOOLS: RefCell<Tools> = RefCell::default();
}

impl Tools {
    fn compress(&mut self, data: &[u8], level: i32) -> Option<Bytes> {
        if data.is_empty() {
            return None;
        }
        if (SAMPLED_BYTES_MIN..SAMPLED_BYTES_MAX).contains(&data.len()) {
            let middle = data.len() / 2;
            let shrinks = |tools: &mut Self, sample: &[u8]| tools.shrink(sample, level).is_some();
            if !shrinks(self, &data[middle..middle + SAMPLE_BYTES]) && !shrinks(self, &data[..SAMPLE_BYTES]) {
                return None;
            }
        }
        let len = self.shrink(data, level)?;
        Some(Bytes::copy_from_slice(&self.scratch[..len]))
    }

    /// Compresses into `scratch`, if the result is shorter by enough.
    fn shrink(&mut self, data: &[u8], level: i32) -> Option<usize> {
        match &mut self.compressor {
            Some((_, at)) if *at == level => {}
            Some((compressor, at)) => {
                compressor.set_compression_level(level).ok()?;
                *at = level;
            }
            None => self.compressor = Some((Compressor::new(level).ok()?, level)),
        }
        // Nothing does not become less.
        let most = (data.len() - data.len() / GAIN_MIN_DIVISOR).checked_sub(1)?;
        if self.scratch.len() < most {
            self.scratch.resize(most, 0);
        }
        // An error says that the result would have been longer.
        self.compressor.as_mut()?.0.compress_to_buffer(data, &mut self.scratch[..most]).ok()
    }

    fn decompress(&mut self, data: &[u8], raw: &mut [u8]) -> Option<usize> {
        if self.decompressor.is_none() {
            self.decompressor = Decompressor::new().ok();
        }
        self.decompressor.as_mut()?.decompress_to_buffer(data, raw).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::units::BLOCK_BYTES;

    const BLOCK: usize = BLOCK_BYTES as usize;

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    /// One letter a block: `z` zeros, `t` text, `n` noise.
    fn blocks(letters: &str) -> Vec<u8> {
        let block = |(index, letter)| match letter {
            'z' => vec![0; BLOCK],
            't' => b"so does this; ".iter().copied().cycle().take(BLOCK).collect(),
            _ => noise(BLOCK, index as u64 + 7),
        };
        letters.chars().enumerate().flat_map(block).collect()
    }

    fn shape(letters: &str) -> String {
        let data = blocks(letters);
        let mut back = Vec::new();
        let mut shape = String::new();
        for piece in pack(1 << 20, Buffer::from_slice(&data), Level::Usual) {
            assert_eq!(piece.range().offset, (1 << 20) + back.len() as u64);
            match &piece {
                Piece::Zero(range) => {
                    back.resize(back.len() + range.len as usize, 0);
                    shape += &format!("z{}", range.len as usize / BLOCK);
                }
                Piece::Data { payload, .. } => {
                    back.extend_from_slice(&unpack(payload).unwrap());
                    let kind = if payload.is_compressed() { "c" } else { "r" };
                    shape += &format!("{kind}{}", payload.raw_len as usize / BLOCK);
                }
            }
        }
        assert_eq!(back, data, "{letters}");
        shape
    }

    #[test]
    fn frames_have_the_shape_of_the_data() {
        for (letters, expected) in [
            ("z", "z1"),
            ("t", "c1"),
            ("n", "r1"),
            ("zzt", "c3"),
            ("tzz", "c3"),
            ("zzzzt", "z4c1"),
            ("tzzzz", "c1z4"),
            ("tzzztzzzzzn", "c5z5r1"),
            ("zzzzzzzz", "z8"),
            ("nnnnnnnnnnnnnnnn", "r16"),
        ] {
            assert_eq!(shape(letters), expected, "{letters}");
        }
    }

    #[test]
    fn any_mixture_comes_back() {
        let letters = noise(4000, 3);
        for chunk in letters.chunks(40) {
            let letters: String = chunk.iter().map(|byte| ['z', 'z', 't', 'n'][*byte as usize % 4]).collect();
            shape(&letters);
        }
    }

    /// A peer that asked to read nothing of a remote block stopped the node by an overflow.
    #[test]
    fn nothing_is_squeezed_into_nothing() {
        let payload = squeeze(Buffer::from_slice(&[]), Level::Usual);
        assert_eq!((payload.raw_len, unpack(&payload).map(|raw| raw.len())), (0, Ok(0)));
    }

    /// A peer may state any length: neither more nor less than that may come out.
    #[test]
    fn a_false_length_is_refused() {
        let Piece::Data { payload, .. } = pack(0, Buffer::from_slice(&blocks("tttt")), Level::Usual).remove(0) else {
            panic!()
        };
        for raw_len in [3 * BLOCK as u32, 5 * BLOCK as u32] {
            assert_eq!(unpack(&Payload { raw_len, ..payload.clone() }), Err(IoError::Corrupt));
        }
        let garbage = Payload { bytes: Bytes::from_static(b"not zstd"), raw_len: 4096 };
        assert_eq!(unpack(&garbage), Err(IoError::Corrupt));
        let huge = Payload { bytes: Bytes::from_static(b"x"), raw_len: u32::MAX };
        assert!(matches!(unpack(&huge), Err(IoError::TooLarge { .. })));
    }
}
