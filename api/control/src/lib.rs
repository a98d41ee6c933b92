//! Decides and records: leases, migrations, volumes and where they are. Never sees a block.
//!
//! ```text
//!   REST ── ControlHandle ──► commands ─┐
//!   nodes ── ControlRequest ──► rpc ────┤──► ledger (store, with a copy in memory) ──► executors ──► nodes (NodeRequest)
//!                                       └──► leases, nodes (what was heard, in memory)
//! ```
//! One thread; time, chance, network and tasks come from the `World`, so the simulator runs this unchanged. What is
//! decided is stored before anything is done about it, and everything that was stored is taken up again after a restart.

pub mod config;
mod control;
mod cordons;
mod drain;
mod exports;
mod groups;
mod handle;
mod idempotency;
mod leases;
mod ledger;
mod limits;
mod lived;
mod metrics;
pub mod migration;
mod migrations;
mod nodes;
mod planner;
mod queries;
mod resize;
mod rpc;
mod schedules;
mod snapshots;
mod table;
mod tenants;
mod volumes;

pub use config::ControlConfig;
pub use control::Control;
pub use handle::ControlHandle;
pub use idempotency::Once;
pub use queries::Tagged;

#[cfg(test)]
mod tests;
