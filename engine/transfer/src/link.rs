//! What a sender needs of the connection to the other side.

use drover_base::{InstanceId, IoError, LocalFuture};
use drover_wire::admin::Position;
use drover_wire::peer::{Answer, Operation};

/// The ordered stream to the other side, as long as it stands.
///
/// - Operations are put on the stream in the order of the calls, at the call: a reply that nobody polls does not
///   hold its operation back.
/// - Replies may come in any order. When the connection breaks, every reply that has not come is
///   [`IoError::Disconnected`], and so is that of every later call.
/// - Once a later link of the same migration stands, nothing of this one is applied any more.
pub trait Link {
    fn send(&self, operation: Operation) -> LocalFuture<'static, Result<Answer, IoError>>;
    /// Which instance of the other side answers. It must also differ where the volume was opened again there
    /// after having been poisoned: what was not flushed may be lost.
    fn instance(&self) -> InstanceId;
    /// The place of the operation that was put on the stream last.
    fn position(&self) -> Position;
}

/// Why a sender did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("the deadline passed with {dirty_bytes} bytes not yet durable at the other side")]
    Deadline { dirty_bytes: u64 },
    #[error("the sender was stopped")]
    Stopped,
    #[error("the lease does not allow it: {0}")]
    Fenced(IoError),
    #[error("this side's volume could not be flushed: {0}")]
    Local(IoError),
}
