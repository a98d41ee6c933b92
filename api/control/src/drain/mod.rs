//! Emptying a node: it is cordoned, then every volume it holds moves to others, by ordinary migrations.
//!
//! Invariants:
//! - a drain is a record: a restarted control plane goes on with it, and who watches it only looks;
//! - what is moving is what the migrations say, whoever began them: a move that was begun just before a restart is not
//!   begun again, and one that a person began is waited for like its own;
//! - a drain never ends a migration: neither a deadline nor its cancellation throws away what was sent;
//! - *drained* is said when the node holds no lease, is no side of an unfinished migration, and has no copy left to drop;
//! - one task a drain.

mod carry_out;
mod commands;
mod place;
mod review;
mod view;

pub(crate) use review::give_up;
