//! One node's volumes.
pub mod meta;
