//! What the control plane knows for sure: its store, with a copy in memory.
//!
//! Invariants:
//! - changes are decided, stored and applied one after the other: a decision sees everything that was decided before;
//! - the copy in memory changes only when the store has answered *committed*;
//! - after a failed commit nothing is read or decided until everything was read from the store again: whether it was
//!   applied is unknown;
//! - code that reads [`Ledger::state`] right after `commit` or `quiet` returned, without waiting in between, sees a state
//!   that no commit under way is about to change.

use crate::table::{Changes, State};
use drover_base::World;
use drover_meta::{MetaError, MetaStore, Outcome, Version};
use drover_types::{ApiError, ErrorCode};
use std::{
    cell::{Cell, Ref, RefCell},
    rc::Rc,
    time::Duration,
};

/// Between attempts to read a store that failed.
const RELOAD_EVERY: Duration = Duration::from_millis(500);

/// The store failed; nothing can be decided until it was read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane's store failed")]
pub struct StoreFailed;

impl From<StoreFailed> for ApiError {
    fn from(failed: StoreFailed) -> Self {
        ApiError::new(ErrorCode::Unavailable, failed.to_string())
            .hint("it is read again by itself; if that goes on, look at the control plane's disk and log")
    }
}

pub struct Ledger {
    world: World,
    store: Rc<dyn MetaStore>,
    state: RefCell<State>,
    order: tokio::sync::Mutex<()>,
    unsure: Cell<bool>,
    last_event: tokio::sync::watch::Sender<u64>,
}

impl Ledger {
    /// Reads everything.
    pub async fn open(world: World, store: Rc<dyn MetaStore>) -> Result<Rc<Self>, MetaError> {
        let state = State::load(&*store).await?;
        let last_event = tokio::sync::watch::Sender::new(state.last_event());
        let state = RefCell::new(state);
        Ok(Rc::new(Self {
            world,
            store,
            state,
            order: tokio::sync::Mutex::default(),
            unsure: Cell::default(),
            last_event,
        }))
    }

    /// The copy in memory. Not to be held across a wait.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// Tells of every new event's id.
    pub fn watch_events(&self) -> tokio::sync::watch::Receiver<u64> {
        self.last_event.subscribe()
    }

    /// Whether the state can be relied on.
    pub fn is_sure(&self) -> bool {
        !self.unsure.get()
    }

    /// Waits for commits under way.
    pub async fn quiet(&self) -> Result<(), StoreFailed> {
        drop(self.order.lock().await);
        if self.unsure.get() { Err(StoreFailed) } else { Ok(()) }
    }

    /// Decides on the present state, and stores what was decided, all of it or nothing. No changes: nothing is stored.
    pub async fn commit<T, E: From<StoreFailed>>(
        self: &Rc<Self>,
        decide: impl FnOnce(&State, &mut Changes) -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = self.order.lock().await;
        if self.unsure.get() {
            return Err(StoreFailed.into());
        }
        let (decision, transaction, apply) = {
            let state = self.state.borrow();
            let mut changes = Changes::new(self.world.clock.wall_ms());
            let decision = decide(&state, &mut changes)?;
            let (transaction, apply) = changes.finish(&state);
            (decision, transaction, apply)
        };
        if transaction.puts.is_empty() && transaction.deletes.is_empty() {
            return Ok(decision);
        }
        match self.store.commit(transaction).await {
            Ok(Outcome::Committed(version)) => {
                self.applied(version, apply);
                Ok(decision)
            }
            Ok(Outcome::Conflict(key)) => {
                tracing::error!(key, "the store was changed by someone else");
                Err(self.lose_certainty().into())
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed");
                Err(self.lose_certainty().into())
            }
        }
    }

    fn applied(&self, version: Version, apply: crate::table::Apply) {
        let mut state = self.state.borrow_mut();
        apply(&mut state, version);
        let last = state.last_event();
        drop(state);
        self.last_event.send_if_modified(|known| std::mem::replace(known, last) != last);
    }

    fn lose_certainty(self: &Rc<Self>) -> StoreFailed {
        self.unsure.set(true);
        let this = self.clone();
        self.world
            .spawn(async move {
                let _turn = this.order.lock().await;
                loop {
                    match State::load(&*this.store).await {
                        Ok(state) => {
                            *this.state.borrow_mut() = state;
                            this.unsure.set(false);
                            return;
                        }
                        Err(error) => tracing::error!(%error, "cannot read the store"),
                    }
                    this.world.sleep(RELOAD_EVERY).await;
                }
            })
            .detach();
        StoreFailed
    }
}
