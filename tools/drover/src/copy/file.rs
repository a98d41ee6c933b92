//! Raw files and block devices. Reading runs on a thread of its own, beside the requests of the other side.

use super::piece::{Copied, IN_FLIGHT, PIECE_BYTES, Piece, Pieces, split};
use super::{Progress, system};
use crate::failure::{Exit, Failure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

type Sender = mpsc::Sender<Result<Piece, Failure>>;

/// Size and pieces of a file or block device. A symbolic link is followed, an image format with a backing file is not
/// understood and so not followed (CVE-2024-32498): every byte is taken as it is.
pub fn read(path: &Path) -> Result<(u64, Pieces), Failure> {
    // Looked at before it is opened: a pipe would wait for its other end.
    let kind = system(std::fs::metadata(path), "open", path).map_err(unusable)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Failure::usage(format!("{} is neither a file nor a block device", path.display())));
    }
    let mut file = system(File::open(path), "open", path).map_err(unusable)?;
    let size = system(file.seek(SeekFrom::End(0)), "find the size of", path)?;
    if size == 0 {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let path = path.to_owned();
    let thread = std::thread::Builder::new().name("read-file".into());
    system(thread.spawn(move || read_all(&file, &path, size, &sender)), "start a thread for", Path::new("reading"))?;
    let pieces = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    Ok((size, pieces.boxed_local()))
}

/// A source that cannot be opened is a wrong argument.
fn unusable(failure: Failure) -> Failure {
    Failure { cause: failure.cause, ..Failure::new(Exit::Usage, failure.message) }
}

fn read_all(file: &File, path: &Path, size: u64, sender: &Sender) {
    let mut at = 0;
    while at < size {
        let pieces = match next_pieces(file, path, at, size) {
            Ok(pieces) => pieces,
            Err(failure) => {
                // The receiver may have given up for a reason of its own.
                let _ = sender.blocking_send(Err(failure));
                return;
            }
        };
        for piece in pieces {
            at += piece.len();
            if sender.blocking_send(Ok(piece)).is_err() {
                return;
            }
        }
    }
}

/// At least one.
fn next_pieces(file: &File, path: &Path, at: u64, size: u64) -> Result<Vec<Piece>, Failure> {
    // A file that does not tell its holes has data everywhere.
    let data = seek(file, at, size, libc::SEEK_DATA).unwrap_or(at);
    if data > at {
        return Ok(vec![Piece::Zero { offset: at, len: data - at }]);
    }
    let hole = seek(file, at, size, libc::SEEK_HOLE).filter(|hole| *hole > at).unwrap_or(size);
    let mut bytes = vec![0; (hole - at).min(PIECE_BYTES) as usize];
    system(file.read_exact_at(&mut bytes, at), "read", path)?;
    Ok(split(at, Bytes::from(bytes)))
}

/// Where data or a hole begins, from `at` on; the end where none does.
#[allow(unsafe_code)] // std cannot ask for holes.
fn seek(file: &File, at: u64, size: u64, what: libc::c_int) -> Option<u64> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; reads here name their offset, so that the
    // moved position disturbs nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as i64, what) };
    match u64::try_from(found) {
        Ok(found) => Some(found.clamp(at, size)),
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => Some(size),
        Err(_) => None,
    }
}

/// A file that is not whole yet. Dropping it removes it, also when the copy is broken off.
struct Part {
    path: PathBuf,
    is_done: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_done
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "an unfinished file stays behind");
        }
    }
}

/// Writes pieces to a file, which appears under its name only when it is whole and durable.
pub async fn write(path: &Path, size: u64, mut pieces: Pieces, progress: &mut Progress) -> Result<Copied, Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let is_special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let mut part = Part { path: PathBuf::from(name), is_done: is_special };
    let target = if is_special { path.to_owned() } else { part.path.clone() };
    let target = target.as_path();
    let file = if is_special { File::options().write(true).open(path) } else { File::create(target) };
    let file = system(file, "write", target)?;
    let mut copied = Copied { size_bytes: size, data_bytes: 0 };
    let mut done = 0;
    if !is_special {
        system(file.set_len(size), "make room in", target)?;
    }
    while let Some(piece) = pieces.try_next().await? {
        done += piece.len();
        match piece {
            Piece::Data { offset, data } => {
                system(file.write_all_at(&data, offset), "write", target)?;
                copied.data_bytes += data.len() as u64;
            }
            Piece::Zero { offset, len } if is_special => write_zeros(&file, target, offset, len)?,
            Piece::Zero { .. } => {}
        }
        progress.set(done, size, "");
    }
    system(file.sync_all(), "write", target)?;
    if !is_special {
        system(std::fs::rename(target, path), "rename", target)?;
        part.is_done = true;
    }
    Ok(copied)
}

/// A device may hold anything where the volume has a hole.
fn write_zeros(file: &File, path: &Path, offset: u64, len: u64) -> Result<(), Failure> {
    let zeros = vec![0; PIECE_BYTES as usize];
    let mut at = offset;
    while at < offset + len {
        let step = (offset + len - at).min(PIECE_BYTES);
        system(file.write_all_at(&zeros[..step as usize], at), "write", path)?;
        at += step;
    }
    Ok(())
}
