//! The commands against a running cluster of real processes.

mod arguments;
mod attach;
mod clones;
mod copies;
mod migrations;
mod nodes;
mod snapshots;
mod up;
mod volumes;
