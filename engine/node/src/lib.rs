//! The daemon of a storage node.

pub mod nbd;
