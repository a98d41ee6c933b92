//! A bounded queue from async callers to one thread.
//!
//! Invariants
//! - At most `bound` items are queued or being worked on; each carries its place, which dropping it frees.
//! - Once closed nothing enters any more, so whatever an item would have answered with is dropped: nobody
//!   waits for an answer that cannot come.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An item and its place in the queue.
pub struct Queued<T> {
    pub item: T,
    _place: OwnedSemaphorePermit,
}

struct State<T> {
    items: VecDeque<Queued<T>>,
    is_closed: bool,
}

pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    places: Arc<Semaphore>,
}

impl<T> Queue<T> {
    pub fn new(bound: usize) -> Self {
        Self {
            state: Mutex::new(State { items: VecDeque::new(), is_closed: false }),
            changed: Condvar::new(),
            places: Arc::new(Semaphore::new(bound)),
        }
    }

    /// Queues the item when its turn has come, in the order of first polls. Drops it if the queue is closed.
    pub async fn push(&self, item: T) {
        if let Ok(place) = self.places.clone().acquire_owned().await {
            self.enter(Queued { item, _place: place });
        }
    }

    fn enter(&self, queued: Queued<T>) {
        let mut state = self.lock();
        if !state.is_closed {
            state.items.push_back(queued);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Everything queued, in order; waits until there is something. `None` when closed and empty.
    pub fn take_all(&self) -> Option<VecDeque<Queued<T>>> {
        let mut state = self.lock();
        while state.items.is_empty() {
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Some(mem::take(&mut state.items))
    }

    pub fn close(&self) {
        self.lock().is_closed = true;
        self.places.close();
        self.changed.notify_one();
    }

    /// Drops what is queued.
    pub fn clear(&self) {
        let items = mem::take(&mut self.lock().items);
        drop(items);
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No panic can leave the queue half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{FutureExt, executor::block_on, future::join_all};

    fn items<T: Copy>(taken: &VecDeque<Queued<T>>) -> Vec<T> {
        taken.iter().map(|queued| queued.item).collect()
    }

    #[test]
    fn it_is_bounded_and_keeps_the_order() {
        let queue = Queue::new(2);
        block_on(join_all([queue.push(0), queue.push(1)]));
        let mut waiting = Box::pin(join_all([queue.push(2), queue.push(3)]));
        assert!((&mut waiting).now_or_never().is_none());
        let taken = queue.take_all().unwrap();
        assert_eq!(items(&taken), [0, 1]);
        assert!((&mut waiting).now_or_never().is_none(), "what is being worked on keeps its place");
        drop(taken);
        let mut late = Box::pin(queue.push(4));
        assert!((&mut late).now_or_never().is_none(), "those that wait come first");
        block_on(waiting);
        let taken = queue.take_all().unwrap();
        assert_eq!(items(&taken), [2, 3]);
        drop(taken);
        block_on(late);
        assert_eq!(items(&queue.take_all().unwrap()), [4]);
    }

    /// A caller whose turn has come, but who is not polled until the queue is closed, must hold up nothing.
    #[test]
    fn closing_frees_those_that_wait() {
        let queue = Queue::new(1);
        let item = Arc::new(());
        block_on(queue.push(item.clone()));
        let mut waiting = Box::pin(queue.push(item.clone()));
        assert!((&mut waiting).now_or_never().is_none());
        drop(queue.take_all());
        queue.close();
        assert!(queue.take_all().is_none());
        block_on(waiting);
        block_on(queue.push(item.clone()));
        assert_eq!(Arc::strong_count(&item), 1, "all were dropped");
    }
}
