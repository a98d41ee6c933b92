//! How a range is given back: as a hole of a file, or by the block device's own discard.
#![allow(unsafe_code)] // Only an ioctl discards on a block device.

use super::{Shared, UringDevice};
use std::{io, os::fd::AsRawFd, sync::Arc};

/// `_IO(0x12, 119)` of `linux/fs.h`.
const BLKDISCARD: libc::Ioctl = 0x1277;

pub(super) async fn discard(device: &UringDevice, offset: u64, len: u64) -> io::Result<()> {
    if !device.shared.opened.is_block_device {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        return device.file.fallocate(offset, len, mode).await;
    }
    // A hole of a block device is zeroes, which many that discard cannot make. The ring has no request for this one
    // before Linux 6.12, so that it waits on a thread of its own; with the device, which stays open and locked.
    let shared = device.shared.clone();
    let discarded = tokio::task::spawn_blocking(move || discard_blocks(&shared, offset, len));
    // It is not run when the runtime ends before its turn.
    discarded.await.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ECANCELED)))
}

fn discard_blocks(shared: &Arc<Shared>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the file is open, and the request reads two numbers of 64 bits, which live through the call.
    match unsafe { libc::ioctl(shared.opened.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
