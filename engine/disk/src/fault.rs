//! Layers over a device that make it misbehave or watch it, for tests.

mod corrupt_read;
mod fail_nth;
mod observe;

pub use corrupt_read::CorruptRead;
pub use fail_nth::{FailNth, Operation};
pub use observe::{Event, Observe};

#[cfg(test)]
mod tests;
