//! A simulated device, and a world of one thread to run it in.

mod device;
mod image;
mod solo;

pub use device::SimDevice;
pub use image::{BlockContent, SimImage};
pub use solo::SoloWorld;

use drover_base::{World, world::Random};
use std::time::Duration;

/// A delay between the two bounds, in nanoseconds.
pub fn delay(world: &World, least_ns: u64, most_ns: u64) -> Duration {
    Duration::from_nanos(least_ns + below(&*world.random, most_ns - least_ns + 1))
}

/// A number below `bound`, which is not zero. The slight bias of the remainder does not matter to tests.
pub fn below(random: &dyn Random, bound: u64) -> u64 {
    random.next_u64() % bound
}
