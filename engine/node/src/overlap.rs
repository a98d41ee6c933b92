//! Keeps requests that change the same bytes from being under way together.

use crate::replay_log::overlap;
use drover_base::ByteRange;
use std::{cell::RefCell, rc::Rc};
use tokio::sync::Notify;

/// The ranges being changed, at most as many as clients have requests in flight.
#[derive(Default)]
pub(crate) struct Changing {
    ranges: RefCell<Vec<(u64, ByteRange)>>,
    left: Notify,
    next: std::cell::Cell<u64>,
}

/// A range being changed, until dropped.
pub(crate) struct Change {
    changing: Rc<Changing>,
    number: u64,
}

impl Changing {
    /// Waits until no change under way overlaps `range`.
    pub async fn settled(&self, range: ByteRange) {
        loop {
            let left = self.left.notified();
            if !self.ranges.borrow().iter().any(|(_, other)| overlap(*other, range)) {
                return;
            }
            left.await;
        }
    }

    /// Waits until no change under way overlaps `range`, then is one itself.
    pub async fn begin(self: &Rc<Self>, range: ByteRange) -> Change {
        self.settled(range).await;
        let number = self.next.get();
        self.next.set(number + 1);
        self.ranges.borrow_mut().push((number, range));
        Change { changing: self.clone(), number }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.changing.ranges.borrow_mut().retain(|(number, _)| *number != self.number);
        self.changing.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn what_overlaps_waits() {
        let changing = Rc::new(Changing::default());
        let range = |offset, len| ByteRange { offset, len };
        let first = changing.begin(range(0, 8192)).now_or_never().unwrap();
        assert!(changing.begin(range(4096, 4096)).now_or_never().is_none());
        let beside = changing.begin(range(8192, 4096)).now_or_never();
        assert!(beside.is_some());
        drop(first);
        assert!(changing.begin(range(4096, 4096)).now_or_never().is_some());
    }
}
