//! How a tier's device is opened: its kind, size and lock.

use super::block;
use drover_base::units::BLOCK_BYTES;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process")]
    Locked { path: PathBuf },
    #[error("{path} is in use: it is mounted, swap, part of another device (LVM, RAID), or another process has it")]
    InUse { path: PathBuf },
    #[error("{path} may only be read")]
    ReadOnly { path: PathBuf },
    #[error("{path} has sectors of {sector_bytes} bytes, and blocks of {BLOCK_BYTES} cannot be written to it")]
    LargeSectors { path: PathBuf, sector_bytes: u32 },
    #[error(
        "the file system of {path} has no room for {wanted} bytes more; make room, choose a smaller size, or let the \
         file be sparse"
    )]
    NoRoom { path: PathBuf, wanted: u64 },
    #[error("{path} has {has} bytes and would be cut to {wanted}; a device never shrinks")]
    WouldShrink { path: PathBuf, has: u64, wanted: u64 },
    #[error("{path} has {has} bytes of the {wanted} asked for, and a block device does not grow")]
    TooSmall { path: PathBuf, has: u64, wanted: u64 },
    #[error("the size of {path}, {size} bytes, is not a multiple of {BLOCK_BYTES}")]
    UnevenSize { path: PathBuf, size: u64 },
    #[error("{path} is another file now")]
    Replaced { path: PathBuf },
    #[error("{path} is neither a file nor a block device")]
    WrongKind { path: PathBuf },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

/// A device that is open here alone.
pub(super) struct Opened {
    pub file: File,
    pub size_bytes: u64,
    pub is_direct: bool,
    /// Of a block device: while this is open, nobody else takes it.
    pub claim: Option<File>,
}

pub(super) fn open(path: &Path) -> Result<Opened, OpenError> {
    let opened = open_alone(path, false)?;
    check_even(path, opened.size_bytes)?;
    Ok(opened)
}

/// What becomes of the space of a file that grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// Taken as it is written to.
    Sparse,
    /// Taken now, where the file system can: then a write never finds it full.
    Allocated,
}

pub(super) fn open_or_create(path: &Path, size_bytes: u64, space: Space) -> Result<Opened, OpenError> {
    check_even(path, size_bytes)?;
    let opened = open_alone(path, true)?;
    let (has, wanted) = (opened.size_bytes, size_bytes);
    if opened.claim.is_some() {
        if has < wanted {
            return Err(OpenError::TooSmall { path: path.into(), has, wanted });
        }
    } else if has > wanted {
        return Err(OpenError::WouldShrink { path: path.into(), has, wanted });
    } else if has < wanted {
        grow(path, &opened.file, has, wanted, space)?;
    }
    Ok(Opened { size_bytes, ..opened })
}

/// Another open file of what is open here already.
pub(super) fn open_again(path: &Path, opened: &Opened) -> Result<File, OpenError> {
    let failed = |error| OpenError::Io { path: path.into(), error };
    let flags = if opened.is_direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(failed)?;
    let (one, other) = (opened.file.metadata().map_err(failed)?, file.metadata().map_err(failed)?);
    let is_same = (one.dev(), one.ino(), one.rdev()) == (other.dev(), other.ino(), other.rdev());
    if is_same { Ok(file) } else { Err(OpenError::Replaced { path: path.into() }) }
}

/// Opens with O_DIRECT, or without where the file system refuses that with EINVAL, and sees to it that nobody else does.
fn open_alone(path: &Path, create: bool) -> Result<Opened, OpenError> {
    let failed = |error| OpenError::Io { path: path.into(), error };
    // Volumes' data: a new file is for nobody else to read.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).mode(0o600);
    let open = |flags| options.clone().custom_flags(flags).open(path);
    let (mut file, is_direct) = match open(libc::O_DIRECT) {
        Ok(file) => (file, true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (open(0).map_err(failed)?, false),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.file_type().is_block_device() {
        // No lock: udev takes one for a moment whenever somebody has closed the device, and a claim goes further.
        let claim = Some(block::claim(path, &file)?);
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        // The last block of a partition may be cut off.
        return Ok(Opened { file, size_bytes: bytes - bytes % BLOCK_BYTES, is_direct, claim });
    }
    if !metadata.is_file() {
        return Err(OpenError::WrongKind { path: path.into() });
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: path.into() }),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Of the time of the lock.
    let size_bytes = file.metadata().map_err(failed)?.len();
    Ok(Opened { file, size_bytes, is_direct, claim: None })
}

/// Makes the file longer, and the file's name and size durable. Where there is no room for it, it stays as it was.
fn grow(path: &Path, file: &File, has: u64, wanted: u64, space: Space) -> Result<(), OpenError> {
    let failed = |error| OpenError::Io { path: path.into(), error };
    let grown = match space {
        Space::Sparse => file.set_len(wanted),
        Space::Allocated => match allocate(file, has, wanted - has) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => file.set_len(wanted),
            done => done,
        },
    };
    if let Err(error) = grown {
        // What was allocated before it failed is given back.
        file.set_len(has).map_err(failed)?;
        let is_full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        return Err(if is_full {
            OpenError::NoRoom { path: path.into(), wanted: wanted - has }
        } else {
            failed(error)
        });
    }
    file.sync_all().map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Takes the range's space, and makes the file as long as to its end.
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), offset, len) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

fn check_even(path: &Path, size: u64) -> Result<(), OpenError> {
    if size.is_multiple_of(BLOCK_BYTES) { Ok(()) } else { Err(OpenError::UnevenSize { path: path.into(), size }) }
}
