//! The control plane in a simulated cluster.

mod cluster;
mod commands;
mod cordons;
mod drains;
mod fake_node;
mod faults;
mod groups;
mod limits;
mod migrations;
mod nodes;
#[cfg(feature = "planted")]
mod planted;
mod schedules;
mod sizes;
mod slowing;
