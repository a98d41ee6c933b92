//! Drover as real processes, for tests and benches of the whole.

mod api;
mod client;
mod cluster;
mod link;
mod prober;
mod process;
mod random;
mod writer;

pub use api::{Api, Failure};
pub use client::{BLOCK, Client};
pub use cluster::{Cluster, Layout, drover_program, node_name};
pub use link::Link;
pub use prober::{Probe, Prober, Seen};
pub use process::Daemon;
pub use random::Random;
pub use writer::{Area, OnLoss, Writer, Written};
