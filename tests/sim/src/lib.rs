//! The deterministic world: everything that a cluster needs to run on one thread from one seed.
//!
//! - [`runtime`]: virtual time, a seeded scheduler, processes that can be killed or paused, and a
//!   network that can be cut; implements the traits of `drover_base::world`.

pub mod model;
pub mod runtime;
