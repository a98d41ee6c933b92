//! A result that many wait for and one task supplies.

use std::{
    cell::RefCell,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

/// A result to come. Clones wait for the same one.
pub struct Outcome<T>(Rc<RefCell<State<T>>>);

struct State<T> {
    result: Option<T>,
    waiting: Vec<Waker>,
}

impl<T> Clone for Outcome<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Outcome<T> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(State { result: None, waiting: Vec::new() })))
    }
}

impl<T: Clone> Outcome<T> {
    pub fn set(&self, result: T) {
        let mut state = self.0.borrow_mut();
        state.result = Some(result);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
    }

    pub async fn wait(&self) -> T {
        poll_fn(|context| {
            let mut state = self.0.borrow_mut();
            if let Some(result) = &state.result {
                return Poll::Ready(result.clone());
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                state.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
