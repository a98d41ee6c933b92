//! Two stores, a link that comes and goes, clients that write all the while: whatever happens, both sides end equal.

mod back;
mod chunks;
mod clients;
mod copying;
mod hot;
mod links;
mod pair;
#[cfg(feature = "planted")]
mod planted;
mod proving;
mod pulling;
mod receiving;
mod side;
mod snapshots;
mod thin;
mod tuning;
mod wire;
