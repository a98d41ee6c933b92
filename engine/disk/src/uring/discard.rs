//! How a range is given back: as a hole of a file, or by the block device's own discard.

use super::{UringDevice, block};
use std::io;

pub(super) async fn discard(device: &UringDevice, offset: u64, len: u64) -> io::Result<()> {
    if device.shared.opened.claim.is_none() {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        return device.file.fallocate(offset, len, mode).await;
    }
    // A hole of a block device is zeroes, which many that discard cannot make. The ring has no request for this one
    // before Linux 6.12, so that it waits on a thread of its own; with the device, which stays open and taken.
    let shared = device.shared.clone();
    let claim = move || shared.opened.claim.as_ref().map_or(Ok(()), |claim| block::discard(claim, offset, len));
    let discarded = tokio::task::spawn_blocking(claim);
    // It is not run when the runtime ends before its turn.
    discarded.await.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ECANCELED)))
}
