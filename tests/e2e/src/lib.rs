//! Drover as real processes, for tests and benches of the whole.

mod api;
mod cluster;
mod link;
mod prober;
mod process;

pub use api::{Api, Failure};
pub use cluster::{Cluster, Layout, drover_program, node_name};
pub use link::Link;
pub use prober::{Probe, Prober, Seen};
pub use process::Daemon;
