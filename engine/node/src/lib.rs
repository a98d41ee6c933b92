//! The daemon of a storage node.

mod admin;
mod backoff;
pub mod config;
mod context;
mod control_link;
pub mod daemon;
mod gateway;
mod grants;
mod lease;
mod migration;
pub mod nbd;
mod node;
mod overlap;
mod peer_client;
mod peer_server;
mod replay_log;
mod requests;
mod router;
mod seat;
mod session;
mod space;
#[cfg(test)]
mod tests;

pub use lease::LeaseGuard;
pub use node::{Node, NodeSettings, NodeStorage, StartError, merge_status};
pub use peer_server::volume_of;
pub use router::RoutedExport;
pub use space::Reservations;
