//! What only block devices have: exclusive use, sectors, a switch for writing, and a discard of their own.
#![allow(unsafe_code)] // Only ioctls ask and do this.

use super::OpenError;
use drover_base::units::BLOCK_BYTES;
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

// Of `linux/fs.h`: `_IO(0x12, …)`.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Takes the block device that is open as `file` for this process alone, as long as the result is open, if blocks can be
/// written to it. File systems, swap, RAID and the like take their devices the same way.
pub(super) fn claim(path: &Path, file: &File) -> Result<File, OpenError> {
    let failed = |error| OpenError::Io { path: path.into(), error };
    let claim = match OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(claim) => claim,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(OpenError::InUse { path: path.into() }),
        Err(error) => return Err(failed(error)),
    };
    if claim.metadata().map_err(failed)?.rdev() != file.metadata().map_err(failed)?.rdev() {
        return Err(OpenError::Replaced { path: path.into() });
    }
    if number(&claim, BLKROGET).map_err(failed)? != 0 {
        return Err(OpenError::ReadOnly { path: path.into() });
    }
    let sector_bytes = number(&claim, BLKSSZGET).map_err(failed)?;
    match u64::from(sector_bytes) <= BLOCK_BYTES {
        true => Ok(claim),
        false => Err(OpenError::LargeSectors { path: path.into(), sector_bytes }),
    }
}

fn number(file: &File, what: libc::Ioctl) -> io::Result<u32> {
    let mut number: libc::c_int = 0;
    // SAFETY: the file is open, and both requests store one int, which lives through the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), what, &raw mut number) } {
        0 => Ok(number.cast_unsigned()),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn discard(claim: &File, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: the file is open, and the request reads two numbers of 64 bits, which live through the call.
    match unsafe { libc::ioctl(claim.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
