//! Free memory of a thread, by size, so that a request costs no trip to the allocator.
//!
//! Bound: `CLASS_BYTES_MAX` for each of the sizes 4 KiB, 8 KiB … 4 MiB, so 88 MiB a thread at most.
//! Larger memory goes straight to the allocator.

use super::ALIGN;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    cell::RefCell,
    ptr::{self, NonNull},
};

/// Largest size that is kept: a large sequential request of a copy. Fresh memory of that size costs more than its I/O.
const POOLED_BYTES_MAX: usize = 4 << 20;
/// Memory kept of each size: what 2 requests of 4 MiB, or 2,048 of 4 KiB, hold at once.
const CLASS_BYTES_MAX: usize = 8 << 20;
const CLASSES: usize = (POOLED_BYTES_MAX / ALIGN).trailing_zeros() as usize + 1;

const _: () = assert!(CLASS_BYTES_MAX >= POOLED_BYTES_MAX && ALIGN << (CLASSES - 1) == POOLED_BYTES_MAX);

struct Pool([Vec<NonNull<u8>>; CLASSES]);

impl Drop for Pool {
    fn drop(&mut self) {
        for (class, free) in self.0.iter_mut().enumerate() {
            for start in free.drain(..) {
                release(start, ALIGN << class);
            }
        }
    }
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool([const { Vec::new() }; CLASSES])) };
}

/// Memory for `len` bytes: its start, its capacity, and whether it is known to hold zeros only.
pub(super) fn take(len: usize) -> (NonNull<u8>, usize, bool) {
    let capacity = capacity(len);
    if capacity == 0 {
        let dangling = ptr::without_provenance_mut(ALIGN);
        return (NonNull::new(dangling).expect("the alignment is not zero"), 0, true);
    }
    let kept = class(capacity).and_then(|class| POOL.try_with(|pool| pool.borrow_mut().0[class].pop()).ok().flatten());
    match kept {
        Some(start) => (start, capacity, false),
        None => (allocate(capacity), capacity, true),
    }
}

/// Takes back memory that `take` gave.
pub(super) fn give(start: NonNull<u8>, capacity: usize) {
    if capacity == 0 {
        return;
    }
    let is_kept = class(capacity).is_some_and(|class| {
        // A thread that is ending has no pool any more.
        let keep = |pool: &RefCell<Pool>| {
            let free = &mut pool.borrow_mut().0[class];
            let has_room = (free.len() + 1) * capacity <= CLASS_BYTES_MAX;
            if has_room {
                free.push(start);
            }
            has_room
        };
        POOL.try_with(keep).unwrap_or(false)
    });
    if !is_kept {
        release(start, capacity);
    }
}

/// Bytes allocated for a buffer of `len`: a power of two up to the largest pooled size, then whole blocks.
fn capacity(len: usize) -> usize {
    match len {
        0 => 0,
        1..=POOLED_BYTES_MAX => len.next_power_of_two().max(ALIGN),
        _ => len.checked_next_multiple_of(ALIGN).expect("a buffer is smaller than the address space"),
    }
}

fn class(capacity: usize) -> Option<usize> {
    (capacity <= POOLED_BYTES_MAX).then(|| (capacity / ALIGN).trailing_zeros() as usize)
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, ALIGN).expect("a buffer is smaller than the address space")
}

fn allocate(capacity: usize) -> NonNull<u8> {
    let layout = layout(capacity);
    // SAFETY: the layout's size is not zero: `take` returned before for an empty buffer.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

fn release(start: NonNull<u8>, capacity: usize) {
    // SAFETY: `start` came from `allocate` with the same capacity and is not used afterwards.
    unsafe { dealloc(start.as_ptr(), layout(capacity)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded() {
        for capacity in [ALIGN, POOLED_BYTES_MAX] {
            let most = CLASS_BYTES_MAX / capacity;
            let taken: Vec<_> = (0..most + 10).map(|_| take(capacity).0).collect();
            for start in taken {
                give(start, capacity);
            }
            let kept = POOL.with(|pool| pool.borrow().0[class(capacity).unwrap()].len());
            assert_eq!(kept, most);
        }
    }

    #[test]
    fn sizes_round_up() {
        for (len, expected) in [(0, 0), (1, 4096), (4096, 4096), (4097, 8192), (131_073, 262_144), (262_145, 524_288)] {
            assert_eq!(capacity(len), expected, "{len}");
        }
        // Beyond the largest pooled size memory is not doubled.
        assert_eq!(capacity(POOLED_BYTES_MAX), POOLED_BYTES_MAX);
        assert_eq!(capacity(POOLED_BYTES_MAX + 1), POOLED_BYTES_MAX + ALIGN);
        assert_eq!(class(4096), Some(0));
        assert_eq!(class(POOLED_BYTES_MAX), Some(CLASSES - 1));
        assert_eq!(class(POOLED_BYTES_MAX + ALIGN), None);
    }
}
