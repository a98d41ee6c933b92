//! NBD: connections of clients, served by whatever implements [`BlockService`], and a client of our own.
//!
//! ```text
//!  NbdListener ─accept─► handshake() ──► Negotiated ───────────────────────► serve() ─► BlockExport
//!                            │               │                               ▲    requests run concurrently,
//!                         Catalog         detach() ─► Handed ─► attach() ────┘    replies go out in one send
//!                                                       on another shard's thread
//! ```
//!
//! The protocol itself is in `drover_wire::nbd`; this module has the sockets. A connection is one future: it owns
//! its buffers and its running requests, and nothing is spawned for a request.

// The machine's side of a node: clients' sockets and their deadlines. What it serves sees only the world's traits.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod answer;
mod client;
mod connection;
mod handshake;
mod input;
mod memory;
mod output;
mod running;
mod server;
mod service;
mod stream;
mod work;

pub use client::{ClientError, NbdClient, NbdDriver};
pub use connection::{End, SessionError, serve};
pub use drover_wire::nbd::{BlockStatus, ExportFacts, ExportName, NbdAddress, NbdUri, Refusal};
pub use handshake::{Handed, Negotiated, handshake};
pub use memory::{MemoryExport, MemoryService};
pub use server::{Client, ServerSettings, run, serve_here};
pub use service::{BlockExport, BlockService, Catalog, Offer, Opened, ZeroRequest};
pub use stream::{DetachedStream, NbdListener, NbdStream};

#[cfg(test)]
mod tests;
