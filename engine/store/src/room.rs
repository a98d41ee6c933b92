//! Asks the other shards of a node for the slots that their volumes have freed and not yet given back.
//!
//! ```text
//!   ask n ──► each other shard: makes durable what its volumes have freed ──► has seen to n ──► the asker looks again
//! ```
//! Invariants
//! - Asks are counted; a shard that has seen to `n` began to do so after `n` was asked.
//! - A shard that is gone is not waited for.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

/// What the shards of a node share about it. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Room(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    asked: u64,
    /// By shard: the last ask that it has seen to.
    seen_to: BTreeMap<u64, u64>,
    next: u64,
    waiting: Vec<Waker>,
}

/// A shard's part in it, for as long as it lives.
pub(crate) struct Attendance {
    room: Room,
    shard: u64,
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while holding it")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    async fn until<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        poll_fn(|context| {
            let mut state = self.state();
            match look(&state) {
                Some(found) => Poll::Ready(found),
                None => {
                    state.waiting.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// A shard that begins.
    pub fn attend(&self) -> Attendance {
        let mut state = self.state();
        let (shard, asked) = (state.next, state.asked);
        state.next += 1;
        state.seen_to.insert(shard, asked);
        drop(state);
        Attendance { room: self.clone(), shard }
    }

    /// The next ask that the shard has not seen to; `None`: the shard is gone.
    pub async fn asked(&self, shard: u64) -> Option<u64> {
        let look = |state: &State| match state.seen_to.get(&shard) {
            None => Some(None),
            Some(seen_to) => (*seen_to < state.asked).then_some(Some(state.asked)),
        };
        self.until(look).await
    }
}

impl Attendance {
    pub fn room(&self) -> (Room, u64) {
        (self.room.clone(), self.shard)
    }

    pub fn has_seen_to(&self, ask: u64) {
        self.room.change(|state| {
            state.seen_to.insert(self.shard, ask);
        });
    }

    /// Whether there are other shards.
    pub fn has_others(&self) -> bool {
        self.room.state().seen_to.len() > 1
    }

    /// Completes when every other shard has given back what it could.
    pub async fn ask_others(&self) {
        let mut ask = 0;
        self.room.change(|state| {
            state.asked += 1;
            ask = state.asked;
        });
        let all_saw_to_it =
            |state: &State| state.seen_to.iter().all(|(shard, seen_to)| *shard == self.shard || *seen_to >= ask);
        self.room.until(|state| all_saw_to_it(state).then_some(())).await;
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.room.change(|state| {
            state.seen_to.remove(&self.shard);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn an_ask_waits_for_all_others_that_are_there() {
        let room = Room::default();
        let [one, two, three] = std::array::from_fn(|_| room.attend());
        assert!(room.asked(two.shard).now_or_never().is_none());
        let mut ask = Box::pin(one.ask_others());
        assert!(ask.as_mut().now_or_never().is_none());
        assert_eq!(room.asked(two.shard).now_or_never(), Some(Some(1)));
        two.has_seen_to(1);
        assert!(ask.as_mut().now_or_never().is_none());
        let gone = three.shard;
        drop(three);
        assert!(ask.as_mut().now_or_never().is_some());
        assert_eq!(room.asked(gone).now_or_never(), Some(None));
        // What it has seen to before counts for no later ask.
        assert!(one.ask_others().now_or_never().is_none());
    }
}
