//! Nodes under the simulated world: replay across a restart, fencing of sessions, a flip and its way back, leases that
//! run out, several shards.

mod cluster;
mod faults;
mod flip;
mod gateway;
mod groups;
mod leases;
mod limits;
mod making;
mod office;
#[cfg(feature = "planted")]
mod planted;
mod remote;
mod reopening;
mod restored;
mod shards;
mod snapshots;
mod starttls;
mod travel;
mod writers;
