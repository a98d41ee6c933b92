//! A word to threads that the test is over, also when it fails: whoever waits for them would wait for ever.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Says it when dropped.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
