//! A tier's device file or block device through io_uring, past the page cache.
//!
//! Invariants
//! - One process has a device open: a file is locked, a block device is taken exclusively, until the last thread's
//!   [`UringDevice`] of it is dropped.
//! - Each thread has an open file of its own: the kernel tells a failure to write back to each of them at its next sync.
//! - A request ends when all its bytes are transferred or one part of it failed; short transfers go on.
//! - The kernel sees aligned memory only; a buffer that is not is copied through one that is.

use crate::{
    Buffer, Device, DeviceError,
    device::{check_range, check_transfer},
};
use drover_base::{LocalFuture, units::BLOCK_BYTES};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_uring::fs::File;

mod block;
mod discard;
mod open;
mod probe;
mod runtime;

pub use open::OpenError;
use open::Space;
pub use probe::{KernelError, check_kernel};
pub use runtime::run;

/// Transfers without progress (interrupted, told to try again, less than a block) until a request fails.
const STALLS_MAX: u32 = 100;

/// A device file of fixed size, or a block device. Requests must be made within [`run`]; the device
/// belongs to its thread.
pub struct UringDevice {
    file: File,
    shared: Arc<Shared>,
}

/// A device that is open, for the other threads that are to use it.
#[derive(Clone)]
pub struct DeviceHandle(Arc<Shared>);

struct Shared {
    opened: open::Opened,
    path: PathBuf,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // An abandoned request may keep the file open for a moment longer, and with it a lock. A block device has none.
        let _ = self.opened.file.unlock();
    }
}

impl DeviceHandle {
    /// The same device for the calling thread.
    pub fn device(&self) -> Result<UringDevice, OpenError> {
        let file = open::open_again(&self.0.path, &self.0.opened)?;
        Ok(UringDevice { file: File::from_std(file), shared: self.0.clone() })
    }
}

impl UringDevice {
    /// Opens the device file at `path`, making it if absent and growing it if shorter than `size_bytes`; it is
    /// sparse. A block device must have at least `size_bytes`, of which only those are used.
    pub fn open_or_create(path: &Path, size_bytes: u64) -> Result<Self, OpenError> {
        Self::new(path, open::open_or_create(path, size_bytes, Space::Sparse)?)
    }

    /// The same, but what a file grows by is allocated: later writes find room, whatever else fills its file system.
    pub fn open_or_allocate(path: &Path, size_bytes: u64) -> Result<Self, OpenError> {
        Self::new(path, open::open_or_create(path, size_bytes, Space::Allocated)?)
    }

    /// Opens what is there, in the size it has; of a block device, in whole blocks.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::new(path, open::open(path)?)
    }

    fn new(path: &Path, opened: open::Opened) -> Result<Self, OpenError> {
        let file = opened.file.try_clone().map_err(|error| OpenError::Io { path: path.into(), error })?;
        let shared = Arc::new(Shared { opened, path: path.into() });
        Ok(Self { file: File::from_std(file), shared })
    }

    /// For the other threads that are to use it.
    pub fn handle(&self) -> DeviceHandle {
        DeviceHandle(self.shared.clone())
    }

    /// Whether requests pass the page cache by. A file system without O_DIRECT is used through the page cache:
    /// as durable after a sync, but slower and with memory used twice.
    pub fn direct(&self) -> bool {
        self.shared.opened.is_direct
    }

    fn size(&self) -> u64 {
        self.shared.opened.size_bytes
    }

    async fn transfer(&self, way: Way, offset: u64, buffer: Buffer) -> (Result<(), DeviceError>, Buffer) {
        if let Err(error) = check_transfer(self.size(), offset, buffer.len()) {
            return (Err(error), buffer);
        }
        if is_aligned(&buffer) {
            return self.transfer_aligned(way, offset, buffer).await;
        }
        let mut buffer = buffer;
        match way {
            Way::Read => {
                let (result, aligned) = self.transfer_aligned(way, offset, Buffer::for_read(buffer.len())).await;
                buffer.copy_from_slice(&aligned);
                (result, buffer)
            }
            Way::Write => (self.transfer_aligned(way, offset, Buffer::from_slice(&buffer)).await.0, buffer),
        }
    }

    async fn transfer_aligned(&self, way: Way, offset: u64, buffer: Buffer) -> (Result<(), DeviceError>, Buffer) {
        let whole = buffer.len();
        let failed = |error: &io::Error| DeviceError::Io { errno: errno(error), offset, len: whole as u64 };
        let (mut done, mut rest, mut stalls) = (Vec::new(), buffer, 0);
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            let at = offset + (whole - rest.len()) as u64;
            let (result, back) = match way {
                Way::Read => self.file.read_at(rest, at).await,
                Way::Write => self.file.write_at(rest, at).submit().await,
            };
            rest = back;
            // O_DIRECT goes on at a block's start only.
            let count = match result {
                Ok(count) => count - count % BLOCK_BYTES as usize,
                Err(error) if is_passing(&error) => 0,
                Err(error) => break Err(failed(&error)),
            };
            if count == rest.len() && done.is_empty() {
                return (Ok(()), rest);
            }
            stalls = if count == 0 { stalls + 1 } else { 0 };
            if stalls > STALLS_MAX {
                break Err(DeviceError::Io { errno: libc::EIO, offset, len: whole as u64 });
            }
            done.push(rest.split_to(count));
        };
        done.push(rest);
        (result, Buffer::join(done))
    }
}

#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

impl Device for UringDevice {
    fn size_bytes(&self) -> u64 {
        self.size()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        Box::pin(self.transfer(Way::Read, offset, buffer))
    }

    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        Box::pin(self.transfer(Way::Write, offset, buffer))
    }

    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        Box::pin(async {
            loop {
                match self.file.sync_data().await {
                    Ok(()) => return Ok(()),
                    // Nothing was synced yet, so nothing can have been lost.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(DeviceError::Sync { errno: errno(&error) }),
                }
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        Box::pin(async move {
            check_range(self.size(), offset, len)?;
            if len == 0 {
                return Ok(());
            }
            for _ in 0..=STALLS_MAX {
                match discard::discard(self, offset, len).await {
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(DeviceError::Io { errno: errno(&error), offset, len }),
                    Ok(()) => return Ok(()),
                }
            }
            Err(DeviceError::Io { errno: libc::EAGAIN, offset, len })
        })
    }
}

fn is_aligned(buffer: &Buffer) -> bool {
    (buffer.as_ptr() as usize).is_multiple_of(BLOCK_BYTES as usize)
}

/// Whether the same request may succeed at once.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
