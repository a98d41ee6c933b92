//! A storage node: volumes under their leases, exports of any volume, both sides of a migration.
//!
//! | to change | go to |
//! |---|---|
//! | where a client's request goes, how long it is held | `router`, `gateway` (with `replay_log`, `overlap`) |
//! | who may apply writes, and until when | `lease`, `seat` |
//! | what becomes of a grant: holder, mirror, fenced | `grants` |
//! | what the control plane asks | `admin` (volumes, exports), `requests` (migrations), `space` |
//! | the link of a migration, the way back | `migration`, `peer_client` |
//! | what other nodes may do here | `peer_server`, `session` |
//! | which shard is concerned, what shards share | `shards` |
//! | registration, renewals | `membership` |
//! | look-ups, changes of the way back, events | `control_link` |
//! | what a restored node may believe | `restored` |
//! | what clients used, by workload | `accounts` |
//! | NBD | `nbd` |
//! | the process: settings, devices, sockets | `daemon`, `config` |
//!
//! All but `daemon`, `config` and the sockets of `nbd` see only the world's traits, and run in the simulator as they are.

mod accounts;
mod admin;
mod backoff;
pub mod config;
mod context;
mod control_link;
pub mod daemon;
mod gateway;
mod grants;
mod holds;
mod lease;
mod limiter;
mod membership;
mod migration;
pub mod nbd;
mod node;
mod overlap;
mod peer_client;
mod peer_server;
mod replay_log;
mod requests;
mod restored;
mod router;
mod seat;
mod session;
mod shards;
mod space;
#[cfg(test)]
mod tests;
mod writers;

pub use lease::LeaseGuard;
pub use membership::Office;
pub use node::{Node, NodeSettings, NodeStorage, StartError};
pub use restored::{RestoredError, distrust_seats};
pub use router::RoutedExport;
pub use shards::{Arriving, Common, Confirmed, Exports, Held, LocalNode, Shard, Shards};
