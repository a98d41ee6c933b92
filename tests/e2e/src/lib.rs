//! Drover as real processes, for tests and benches of the whole.

mod api;
mod bulk;
mod client;
mod cluster;
mod ends;
mod fio;
mod link;
mod prober;
mod process;
mod random;
mod roles;
mod steps;
mod writer;

pub use api::{Answer, Api, Failure};
pub use bulk::Bulk;
pub use client::{BLOCK, Client};
pub use cluster::{Cluster, Endpoint, Layout, drover_program, node_name};
pub use ends::Ends;
pub use fio::{Fio, FlushingProxy};
pub use link::Link;
pub use prober::{Probe, Prober, Seen};
pub use process::Daemon;
pub use random::{Random, number};
pub use roles::assert_one_holder_per_epoch;
pub use steps::{At, Moment, Steps};
pub use writer::{Area, OnLoss, Writer, Written};
