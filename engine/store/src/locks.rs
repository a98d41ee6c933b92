//! Extent locks: overlapping requests of a volume run one after the other, in the order they asked.
//!
//! Invariants
//! - A ticket takes its place in the queues of all its extents in one step. So of two tickets that share
//!   extents, the earlier is ahead in every shared queue, and waiting can form no cycle.
//! - An extent is in the table while somebody holds it. The holder is not in its queue.
//! - `missing` of a waiting ticket counts its extents that others still hold.

use drover_base::{ByteRange, ExtentIndex};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// A fixed hash of an extent's number: its order never depends on the process.
#[derive(Default)]
struct ExtentHasher(u64);

impl Hasher for ExtentHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; the rotation brings the well-mixed high bits to where the table looks.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

type ByExtent<T> = HashMap<u64, T, BuildHasherDefault<ExtentHasher>>;

/// The extent locks of one volume.
#[derive(Default)]
pub struct LockTable {
    held: RefCell<ByExtent<VecDeque<Rc<Waiting>>>>,
}

struct Waiting {
    missing: Cell<u64>,
    waker: Cell<Option<Waker>>,
}

impl LockTable {
    /// Takes a place in the queues of every extent that `range` touches, now.
    pub fn enqueue(self: &Rc<Self>, range: ByteRange) -> LockTicket {
        let extents = extents_of(range);
        let mut waiting: Option<Rc<Waiting>> = None;
        let mut held = self.held.borrow_mut();
        for extent in extents.clone() {
            match held.entry(extent) {
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(VecDeque::new());
                }
                std::collections::hash_map::Entry::Occupied(mut queue) => {
                    let waiting = waiting
                        .get_or_insert_with(|| Rc::new(Waiting { missing: Cell::new(0), waker: Cell::new(None) }));
                    waiting.missing.set(waiting.missing.get() + 1);
                    queue.get_mut().push_back(waiting.clone());
                }
            }
        }
        LockTicket { place: Some(Place { table: self.clone(), extents }), waiting }
    }

    /// The locks of the range if nobody holds any of them. Waits for nobody and lets nobody wait for a wait.
    pub fn try_lock(self: &Rc<Self>, range: ByteRange) -> Option<LockGuard> {
        let extents = extents_of(range);
        let mut held = self.held.borrow_mut();
        if extents.clone().any(|extent| held.contains_key(&extent)) {
            return None;
        }
        held.extend(extents.clone().map(|extent| (extent, VecDeque::new())));
        Some(LockGuard(Rc::new(Place { table: self.clone(), extents })))
    }

    /// Extents that somebody holds.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.held.borrow().len()
    }

    fn release(&self, extent: u64, held: &mut ByExtent<VecDeque<Rc<Waiting>>>) {
        let queue = held.get_mut(&extent).expect("a held extent is in the table");
        let Some(next) = queue.pop_front() else {
            held.remove(&extent);
            return;
        };
        next.missing.set(next.missing.get() - 1);
        if next.missing.get() == 0
            && let Some(waker) = next.waker.take()
        {
            waker.wake();
        }
    }
}

fn extents_of(range: ByteRange) -> std::ops::Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    ExtentIndex::containing(range.offset).0..ExtentIndex::containing(range.end() - 1).0 + 1
}

/// A place in the queues. Completes when it is first in all of them; dropping it gives the place up.
#[must_use = "a ticket that is dropped gives its place up"]
pub struct LockTicket {
    place: Option<Place>,
    waiting: Option<Rc<Waiting>>,
}

impl Future for LockTicket {
    type Output = LockGuard;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<LockGuard> {
        if let Some(waiting) = &self.waiting
            && waiting.missing.get() > 0
        {
            waiting.waker.set(Some(context.waker().clone()));
            return Poll::Pending;
        }
        self.waiting = None;
        Poll::Ready(LockGuard(Rc::new(self.place.take().expect("a ticket is not polled after it completed"))))
    }
}

impl Drop for LockTicket {
    fn drop(&mut self) {
        let (Some(place), Some(waiting)) = (&mut self.place, &self.waiting) else { return };
        let mut held = place.table.held.borrow_mut();
        for extent in std::mem::replace(&mut place.extents, 0..0) {
            let queue = held.get_mut(&extent).expect("a ticket's extents are in the table");
            match queue.iter().position(|other| Rc::ptr_eq(other, waiting)) {
                Some(at) => {
                    queue.remove(at);
                }
                None => place.table.release(extent, &mut held),
            }
        }
    }
}

/// Holds the locks of a run of extents until it and what was started under it are gone.
pub struct LockGuard(Rc<Place>);

struct Place {
    table: Rc<LockTable>,
    extents: std::ops::Range<u64>,
}

impl LockGuard {
    /// Whether every extent that `range` touches is held by this guard, in this table.
    pub fn covers(&self, table: &Rc<LockTable>, range: ByteRange) -> bool {
        let place = &self.0;
        Rc::ptr_eq(&place.table, table)
            && (range.is_empty()
                || place.extents.start <= ExtentIndex::containing(range.offset).0
                    && ExtentIndex::containing(range.end() - 1).0 < place.extents.end)
    }

    /// Another hold on the same locks, for work that outlives its caller's patience.
    pub(crate) fn share(&self) -> LockGuard {
        LockGuard(self.0.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.extents.is_empty() {
            return;
        }
        let mut held = self.table.held.borrow_mut();
        for extent in self.extents.clone() {
            self.table.release(extent, &mut held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::units::EXTENT_BYTES;
    use futures::FutureExt;

    fn extents(first: u64, count: u64) -> ByteRange {
        ByteRange { offset: first * EXTENT_BYTES, len: count * EXTENT_BYTES }
    }

    #[test]
    fn overlapping_tickets_complete_in_the_order_of_asking() {
        let table = Rc::new(LockTable::default());
        let first = table.enqueue(extents(0, 2)).now_or_never().unwrap();
        let mut second = table.enqueue(extents(1, 2));
        let mut third = table.enqueue(extents(2, 1));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none(), "extent 2 is promised to the second");
        let apart = table.enqueue(extents(7, 1)).now_or_never().unwrap();
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = second.now_or_never().unwrap();
        drop(second);
        drop((third.now_or_never().unwrap(), apart));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_ticket_given_up_lets_the_others_pass() {
        let table = Rc::new(LockTable::default());
        let first = table.enqueue(extents(0, 1)).now_or_never().unwrap();
        let second = table.enqueue(extents(0, 3));
        let mut third = table.enqueue(extents(1, 1));
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().is_some());
        drop(first);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn trying_takes_all_or_nothing_and_waits_for_nobody() {
        let table = Rc::new(LockTable::default());
        let first = table.enqueue(extents(2, 1)).now_or_never().unwrap();
        assert!(table.try_lock(extents(0, 3)).is_none());
        let tried = table.try_lock(extents(0, 2)).unwrap();
        assert!(tried.covers(&table, extents(0, 2)));
        let mut waiting = table.enqueue(extents(1, 1));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(table.try_lock(extents(1, 1)).is_none());
        drop(tried);
        drop((first, waiting.now_or_never().unwrap()));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_guard_knows_what_it_holds() {
        let table = Rc::new(LockTable::default());
        let guard = table.enqueue(ByteRange { offset: EXTENT_BYTES - 1, len: 2 }).now_or_never().unwrap();
        assert!(guard.covers(&table, extents(0, 2)));
        assert!(!guard.covers(&table, extents(1, 2)));
        assert!(!guard.covers(&Rc::new(LockTable::default()), extents(0, 1)));
    }
}
