//! The two ends of a migration or mirror: [`Sender`] and [`Receiver`], and the [`Puller`], which brings what a flip did
//! not wait for over the sender's stream. No sockets, and no clock but the world's.
//!
//! The stream between them is a [`Link`]; what travels are the operations of `drover_wire::peer`. Both ends take
//! an extent's place in stream order under its lock, so each extent has one history, the same at both sides.

mod compress;
mod ledger;
mod level;
mod link;
mod pace;
mod puller;
mod rate;
mod receiver;
mod sender;
mod throttle;

pub use compress::{squeeze, unpack};
pub use level::Level;
pub use link::{Link, TransferError};
pub use puller::{Puller, PullerConfig};
pub use receiver::Receiver;
pub use sender::{OnLinkLoss, Ranking, Sender, SenderConfig, Start};
