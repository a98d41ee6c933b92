//! Memory for device I/O: aligned as O_DIRECT wants it, divisible without copying, kept for reuse.
//!
//! Invariants
//! - A buffer is a range of an allocation, and no byte belongs to two buffers. Buffers are made whole
//!   from a fresh allocation and afterwards only cut, shrunk, or joined by taking both pieces.
//! - All memory is initialised: fresh memory is zeroed, memory from the pool holds older content.
//! - An allocation lives until its last piece is dropped; then the pool of that thread may keep it.

#![allow(unsafe_code)] // Owned memory with an alignment of its own, handed to the kernel.

use bytes::Bytes;
use drover_base::units::BLOCK_BYTES;
use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

mod pool;
#[cfg(test)]
mod tests;

/// Alignment of every allocation; what O_DIRECT asks for on any device.
pub(crate) const ALIGN: usize = BLOCK_BYTES as usize;

/// A block of memory of the pool. Owned by the buffers cut from it.
struct Allocation {
    start: NonNull<u8>,
    /// Zero means nothing was allocated and `start` dangles.
    capacity: usize,
}

// SAFETY: the memory is plain bytes that nobody else points to; `Allocation` itself never reads or writes it.
unsafe impl Send for Allocation {}
// SAFETY: as above; buffers that share an allocation own disjoint ranges of it.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        pool::give(self.start, self.capacity);
    }
}

/// Owned bytes, from an allocation aligned to 4,096.
///
/// Cutting a buffer copies nothing: the pieces are disjoint ranges of one allocation. A buffer may move to
/// another thread; its memory then returns to the pool of the thread that drops the last piece.
pub struct Buffer {
    allocation: Arc<Allocation>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let (mut buffer, is_zero) = Self::take(len);
        if !is_zero {
            buffer.fill(0);
        }
        buffer
    }

    /// `len` bytes to read into. Their content is unspecified, possibly that of an earlier request, so it
    /// must be overwritten before anybody outside sees it.
    pub fn for_read(len: usize) -> Self {
        Self::take(len).0
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::for_read(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// A buffer and whether it is known to hold zeros only.
    fn take(len: usize) -> (Self, bool) {
        let (start, capacity, is_zero) = pool::take(len);
        (Self { allocation: Arc::new(Allocation { start, capacity }), start: 0, len }, is_zero)
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: start + len is within the allocation (kept by every constructor), the memory is
        // initialised, and this buffer alone owns the range.
        unsafe { std::slice::from_raw_parts(self.allocation.start.as_ptr().add(self.start), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.start.as_ptr().add(self.start), self.len) }
    }

    /// Takes off and returns the first `at` bytes; this buffer keeps the rest. Panics if `at > len`.
    pub fn split_to(&mut self, at: usize) -> Buffer {
        assert!(at <= self.len, "a split at {at} of {} bytes", self.len);
        let head = Self { allocation: self.allocation.clone(), start: self.start, len: at };
        self.start += at;
        self.len -= at;
        head
    }

    /// Takes off and returns the bytes from `at`; this buffer keeps those before. Panics if `at > len`.
    pub fn split_off(&mut self, at: usize) -> Buffer {
        assert!(at <= self.len, "a split at {at} of {} bytes", self.len);
        let tail = Self { allocation: self.allocation.clone(), start: self.start + at, len: self.len - at };
        self.len = at;
        tail
    }

    /// Drops the first `count` bytes. Panics if `count > len`.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "an advance by {count} of {} bytes", self.len);
        self.start += count;
        self.len -= count;
    }

    /// Drops the bytes from `len` on; nothing if there are none.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The pieces as one buffer. Free if they are neighbours in one allocation, in order; copies otherwise.
    pub fn join(pieces: Vec<Buffer>) -> Buffer {
        let mut pieces: Vec<Buffer> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        if pieces.is_empty() {
            return Self::zeroed(0);
        }
        let len = pieces.iter().map(|piece| piece.len).sum();
        if pieces.windows(2).all(|pair| pair[0].is_followed_by(&pair[1])) {
            let mut whole = pieces.swap_remove(0);
            whole.len = len;
            return whole;
        }
        let mut whole = Self::for_read(len);
        let mut at = 0;
        for piece in &pieces {
            whole[at..at + piece.len].copy_from_slice(piece);
            at += piece.len;
        }
        whole
    }

    fn is_followed_by(&self, next: &Buffer) -> bool {
        Arc::ptr_eq(&self.allocation, &next.allocation) && self.start + self.len == next.start
    }

    /// Whether the address and the length are multiples of 4,096, as O_DIRECT wants them.
    pub fn is_aligned(&self) -> bool {
        self.start.is_multiple_of(ALIGN) && self.len.is_multiple_of(ALIGN)
    }

    /// The same bytes, shareable and immutable; not copied.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut_slice()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

// SAFETY: the bytes are on the heap and stay where they are while the buffer moves; all are initialised.
unsafe impl tokio_uring::buf::IoBuf for Buffer {
    fn stable_ptr(&self) -> *const u8 {
        self.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len
    }
    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above, and the buffer owns its range alone.
unsafe impl tokio_uring::buf::IoBufMut for Buffer {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.as_mut_ptr()
    }
    // SAFETY: asks nothing of the caller: all of the buffer is initialised from the start, so there is nothing to note.
    unsafe fn set_init(&mut self, _len: usize) {}
}
