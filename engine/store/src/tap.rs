//! Who else has a say in a volume's I/O: the fence in front of it and the tap beside it.

use bytes::Bytes;
use drover_base::{ByteRange, IoError, LocalFuture};

/// May this be applied, or acknowledged, now? Asked when the locks are held, before submission, and again
/// before the answer.
pub trait Fence {
    fn check(&self) -> Result<(), IoError>;
    /// Completes when who asked has gone: what waits for another node need not. Pending for ever where nobody can tell.
    fn gone(&self) -> LocalFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// No fence: always may.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unfenced;

impl Fence for Unfenced {
    fn check(&self) -> Result<(), IoError> {
        Ok(())
    }
}

/// A change of a volume's content, block-aligned: a smaller write was completed from what was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapChange {
    Write {
        offset: u64,
        data: Bytes,
    },
    /// The range reads as zero afterwards. A trim is a zero that may unmap.
    Zero {
        offset: u64,
        len: u64,
        may_unmap: bool,
    },
}

/// Sees every client change of a volume while its extents are locked; a migration's sender installs it.
pub trait Tap {
    /// Called with the locks of all touched extents held, before the local write is submitted. The future, if
    /// any, runs beside the local write, under the locks, and the request is answered when both are done; its
    /// error becomes the request's.
    fn change(&self, change: &TapChange) -> Option<LocalFuture<'static, Result<(), IoError>>>;
    /// The local write of the range failed: what is stored there is unknown.
    fn failed(&self, range: ByteRange);
    /// Called when a client's flush begins; the future runs beside the local flush.
    fn flush(&self) -> Option<LocalFuture<'static, Result<(), IoError>>>;
}
