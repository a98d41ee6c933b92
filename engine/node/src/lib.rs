//! The daemon of a storage node.

pub mod config;
pub mod nbd;
