//! What a tier's device is to the store.

use crate::Buffer;
use drover_base::{LocalFuture, units::BLOCK_BYTES};

/// Largest request of a device; larger work is cut by the caller.
pub const DEVICE_REQUEST_BYTES_MAX: u64 = 64 << 20;

/// Why a device did not carry out a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    #[error("the request {offset}+{len} passes the device's end at {size}")]
    OutOfRange { offset: u64, len: u64, size: u64 },
    /// The operating system's error number.
    #[error("I/O error {errno} at {offset}+{len}")]
    Io { errno: i32, offset: u64, len: u64 },
    /// What was written since the last good sync may be lost.
    #[error("sync failed with error {errno}")]
    Sync { errno: i32 },
}

impl DeviceError {
    /// Whether the file system under the device had no room for a write.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { errno: libc::ENOSPC | libc::EDQUOT, .. })
    }
}

/// A place of fixed size for bytes, in units of `BLOCK_BYTES`.
///
/// - Offsets and buffer lengths are multiples of `BLOCK_BYTES`; a request is at most 64 MiB.
/// - A write of one block is atomic; a longer one may be torn between blocks by a crash.
/// - What a write stored is durable when a sync that began after the write completed has succeeded.
/// - The buffer comes back also on error, its content then undefined for reads.
/// - Dropping a future does not stop its request: the device keeps the buffer until it is done.
pub trait Device {
    fn size_bytes(&self) -> u64;
    /// Fills the whole of `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)>;
    /// Stores the whole of `buffer` at `offset`.
    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)>;
    /// Makes every write that completed before this call durable.
    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>>;
    /// Tells that the range's content is no longer needed; reads of it return anything until written. What is written
    /// there after this completed is stored. A device that cannot do it fails.
    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>>;
}

/// Checks a request against the contract. What only a bug of the caller can cause panics; a range past the
/// end is an error, since it may come from damaged metadata.
pub(crate) fn check_range(size: u64, offset: u64, len: u64) -> Result<(), DeviceError> {
    assert!(
        offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES),
        "the request {offset}+{len} is not made of whole blocks"
    );
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(DeviceError::OutOfRange { offset, len, size }),
    }
}

/// As `check_range`, for requests that carry a buffer.
pub(crate) fn check_transfer(size: u64, offset: u64, len: usize) -> Result<(), DeviceError> {
    let len = len as u64;
    assert!(len <= DEVICE_REQUEST_BYTES_MAX, "a request of {len} bytes is over the bound");
    check_range(size, offset, len)
}
