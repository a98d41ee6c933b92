//! What connections serve.

use drover_base::{IoError, LocalFuture};
use drover_disk::Buffer;
use drover_wire::nbd::{BlockStatus, ExportFacts, ExportName, Refusal};
use std::rc::Rc;
use tokio::sync::watch;

/// What clients are told of a node's exports before they have chosen one.
pub trait Catalog {
    fn facts(&self, name: &ExportName) -> Result<ExportFacts, Refusal>;
    /// Name and description of each.
    fn list(&self) -> Vec<(String, String)>;
}

/// The exports of a shard. Implemented by the router.
pub trait BlockService {
    /// The export of that name, for one connection.
    fn open(&self, name: &ExportName) -> LocalFuture<'_, Result<Opened, Refusal>>;
}

/// That an export is there for clients; dropped, it is withdrawn.
pub struct Offer(watch::Sender<()>);

impl Default for Offer {
    fn default() -> Self {
        Self(watch::channel(()).0)
    }
}

impl Offer {
    /// Completes when it is withdrawn, from whichever thread.
    pub fn withdrawn(&self) -> LocalFuture<'static, ()> {
        let mut offered = self.0.subscribe();
        // Nothing is ever sent: the wait ends with the sender.
        Box::pin(async move { while offered.changed().await.is_ok() {} })
    }
}

/// An export as one connection has it.
pub struct Opened {
    pub export: Rc<dyn BlockExport>,
    /// Completes when it is no longer offered: its clients are then sent away.
    pub withdrawn: LocalFuture<'static, ()>,
}

/// One export, for one connection.
///
/// - Ranges lie within the size that `facts` told when the connection was made, and are not empty.
/// - Requests run concurrently and in no order; what was answered before a flush began is durable when the
///   flush is answered, whichever connection it came by.
/// - The futures own what they need, so that a connection keeps them without borrowing the export. A future
///   that was polled is polled to its end, unless the whole connection is dropped.
pub trait BlockExport {
    fn facts(&self) -> ExportFacts;
    /// `len` bytes; at most `REQUEST_BYTES_MAX`, as for `write`.
    fn read(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<Buffer, IoError>>;
    fn write(self: Rc<Self>, offset: u64, data: Buffer, fua: bool) -> LocalFuture<'static, Result<(), IoError>>;
    /// At most `REQUEST_BYTES_MAX` bytes, as for `trim` and `cache`; larger requests come in pieces.
    fn write_zeroes(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        zero: ZeroRequest,
    ) -> LocalFuture<'static, Result<(), IoError>>;
    fn trim(self: Rc<Self>, offset: u64, len: u64, fua: bool) -> LocalFuture<'static, Result<(), IoError>>;
    fn flush(self: Rc<Self>) -> LocalFuture<'static, Result<(), IoError>>;
    /// A hint that the range will be read.
    fn cache(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<(), IoError>>;
    /// Consecutive runs from `offset`: at least one, at most `most`, within `len` together. Any `len`.
    fn block_status(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>>;
}

/// How zeroes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroRequest {
    /// The range may become a hole.
    pub may_unmap: bool,
    /// Fail with `NotFast`, changing nothing, where it would take as long as writing.
    pub fast_only: bool,
    pub fua: bool,
}
