//! A gate that counts who is inside, so that it can be closed and waited empty.
//!
//! A volume has two: one for client requests (closed for a barrier, a flip, a snapshot), one for whatever
//! changes a map or writes to a slot, whoever asked (closed while the stack of layers changes).
//!
//! Invariants
//! - While the gate is closed nobody enters; who is inside may finish.
//! - At most one closes at a time; the others wait in line.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Poll, Waker},
};

/// A gate.
#[derive(Default)]
pub struct Gate {
    closed: Cell<bool>,
    inside: Cell<usize>,
    entering: RefCell<Vec<Waker>>,
    emptied: Cell<Option<Waker>>,
    closing: Arc<tokio::sync::Mutex<()>>,
}

impl Gate {
    /// Waits until the gate is open, then counts as inside until the result is dropped.
    pub async fn enter(self: &Rc<Self>) -> Inside {
        if self.closed.get() {
            poll_fn(|context| {
                if !self.closed.get() {
                    return Poll::Ready(());
                }
                self.entering.borrow_mut().push(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
        self.inside.set(self.inside.get() + 1);
        Inside(self.clone())
    }

    /// Closes the gate and waits until nobody is inside. It opens again when the result is dropped, also
    /// when this is dropped while it waits.
    pub async fn close(self: &Rc<Self>) -> Closed {
        let turn = self.closing.clone().lock_owned().await;
        self.closed.set(true);
        let closed = Closed { gate: self.clone(), _turn: turn };
        poll_fn(|context| {
            if self.inside.get() == 0 {
                return Poll::Ready(());
            }
            self.emptied.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
        closed
    }
}

/// Somebody is inside a gate.
pub struct Inside(Rc<Gate>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
        if self.0.inside.get() == 0
            && let Some(waker) = self.0.emptied.take()
        {
            waker.wake();
        }
    }
}

/// Keeps a gate closed.
pub struct Closed {
    gate: Rc<Gate>,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.gate.closed.set(false);
        for waker in self.gate.entering.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn closing_waits_for_those_inside_and_holds_the_others() {
        let gate = Rc::new(Gate::default());
        let inside = gate.enter().now_or_never().unwrap();
        let mut closing = Box::pin(gate.close());
        assert!((&mut closing).now_or_never().is_none());
        let mut late = Box::pin(gate.enter());
        assert!((&mut late).now_or_never().is_none());
        drop(inside);
        let closed = closing.now_or_never().unwrap();
        assert!((&mut late).now_or_never().is_none());
        drop(closed);
        assert!(late.now_or_never().is_some());
    }

    #[test]
    fn giving_up_to_close_opens_again() {
        let gate = Rc::new(Gate::default());
        let _inside = gate.enter().now_or_never().unwrap();
        let mut closing = Box::pin(gate.close());
        assert!((&mut closing).now_or_never().is_none());
        drop(closing);
        assert!(gate.enter().now_or_never().is_some());
    }

    #[test]
    fn two_that_close_take_turns() {
        let gate = Rc::new(Gate::default());
        let first = gate.close().now_or_never().unwrap();
        let mut second = Box::pin(gate.close());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!(gate.enter().now_or_never().is_none());
        drop(second);
        assert!(gate.enter().now_or_never().is_some());
    }
}
