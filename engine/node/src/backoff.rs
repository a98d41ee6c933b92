//! How long to wait before trying again.

use drover_base::World;
use std::time::Duration;

/// Doubles from the least to the most with each wait.
pub(crate) struct Backoff {
    next: Duration,
    least: Duration,
    most: Duration,
}

impl Backoff {
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { next: least, least, most }
    }

    /// For a client's request that looks for the holder.
    pub fn of_requests() -> Self {
        Self::new(Duration::from_millis(5), Duration::from_millis(200))
    }

    /// For a connection that is kept.
    pub fn of_connections() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(1))
    }

    pub fn reset(&mut self) {
        self.next = self.least;
    }

    /// The present wait; the next one is twice as long.
    pub fn take(&mut self) -> Duration {
        let wait = self.next;
        self.next = (self.next * 2).min(self.most);
        wait
    }

    pub async fn wait(&mut self, world: &World) {
        let wait = self.take();
        world.sleep(wait).await;
    }
}
