//! NBD, without sockets: handshake and requests as machines, for both sides.
//!
//! ```text
//!            server                                   client
//!  ServerHandshake: bytes in, steps out     ClientHandshake: bytes in, done out
//!        │ Terms                                   │ ServerTerms
//!  RequestParser: bytes in, requests out    request(): bytes out
//!  reply::*: bytes out                      ReplyParser: bytes in, answers out
//! ```
//!
//! Every length that the other side names is compared with a constant of [`proto::bounds`] before anything is
//! allocated or skipped for it. What breaks the protocol in a way that loses the stream's framing is a
//! [`Violation`]: the connection has to be closed. Everything else is answered with an error.

mod client;
mod errno;
mod handshake;
mod name;
mod options;
pub mod proto;
pub mod reply;
mod reply_parser;
mod request;
mod uri;

pub use client::{ClientHandshake, ClientStep, HandshakeError, ServerTerms};
pub use errno::Errno;
pub use handshake::{ExportFacts, Refusal, ServerHandshake, Step};
pub use name::{BadExportName, ExportName};
pub use proto::bounds;
pub use reply_parser::{Answer, Expected, Payload, ReplyParser};
pub use request::{Command, Incoming, RequestParser, Terms, encode_disconnect, encode_request};
pub use uri::{BadUri, NbdAddress, NbdUri};

#[cfg(test)]
mod tests;

/// What is known of a range of an export, as `base:allocation` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStatus {
    /// Nothing is allocated; a write there may fail for want of space.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// The other side broke the protocol so that what follows in its stream cannot be understood, or asks for
/// more than it may. Close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the magic number of {0} is wrong")]
    Magic(&'static str),
    #[error("{what} of {len} bytes is longer than {most}")]
    TooLong { what: &'static str, len: u64, most: u64 },
    #[error("{0} does not have the form of the protocol")]
    Form(&'static str),
    #[error("flags {0:#x} were not offered")]
    Flags(u32),
    #[error("more options than a handshake may have")]
    TooManyOptions,
    #[error("a reply to a request that was not made")]
    Unasked,
    #[error("a reply whose content does not fit its request")]
    Unfitting,
}
