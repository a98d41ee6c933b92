//! What travels: NBD, frames between nodes, requests of the control plane. Codecs only — no sockets are opened here.

pub mod admin;
mod error;
pub mod layer;
pub mod nbd;
pub mod peer;
pub mod preamble;
pub mod rpc;
pub mod seat_record;
pub mod tier_label;
pub mod writer_record;

pub use error::WireError;
