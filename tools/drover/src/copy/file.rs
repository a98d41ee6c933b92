//! Raw files and block devices. Reading runs on a thread of its own, beside the requests of the other side.

use super::piece::{Copied, IN_FLIGHT, PIECE_BYTES, Piece, Pieces};
use super::{Progress, is_zero, system};
use crate::failure::Failure;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

type Sender = mpsc::Sender<Result<Piece, Failure>>;

/// Size and pieces of a file or block device. A symbolic link is followed, an image format with a backing file is not
/// understood and so not followed (CVE-2024-32498): every byte is taken as it is.
pub fn read(path: &Path) -> Result<(u64, Pieces), Failure> {
    let mut file = system(File::open(path), "open", path)?;
    if system(file.metadata(), "look at", path)?.is_dir() {
        return Err(Failure::usage(format!("{} is a directory", path.display())));
    }
    let size = system(file.seek(SeekFrom::End(0)), "find the size of", path)?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let path = path.to_owned();
    let thread = std::thread::Builder::new().name("read-file".into());
    system(thread.spawn(move || read_all(&file, &path, size, &sender)), "start a thread for", Path::new("reading"))?;
    let pieces = futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    Ok((size, pieces.boxed_local()))
}

fn read_all(file: &File, path: &Path, size: u64, sender: &Sender) {
    let mut at = 0;
    while at < size {
        let next = match next_piece(file, path, at, size) {
            Ok(next) => next,
            Err(failure) => {
                // The receiver may have given up for a reason of its own.
                let _ = sender.blocking_send(Err(failure));
                return;
            }
        };
        at += next.len();
        if sender.blocking_send(Ok(next)).is_err() {
            return;
        }
    }
}

fn next_piece(file: &File, path: &Path, at: u64, size: u64) -> Result<Piece, Failure> {
    let data = next_data(file, at, size);
    if data > at {
        return Ok(Piece::Zero { offset: at, len: data - at });
    }
    let mut bytes = vec![0; (size - at).min(PIECE_BYTES) as usize];
    system(file.read_exact_at(&mut bytes, at), "read", path)?;
    if is_zero(&bytes) {
        return Ok(Piece::Zero { offset: at, len: bytes.len() as u64 });
    }
    Ok(Piece::Data { offset: at, data: Bytes::from(bytes) })
}

/// Where data may begin, from `at` on; `at` itself where the file does not tell holes.
#[allow(unsafe_code)] // std cannot ask for holes.
fn next_data(file: &File, at: u64, size: u64) -> u64 {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; reads here name their offset, so that the
    // moved position disturbs nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at as i64, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => found.clamp(at, size),
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => size,
        Err(_) => at,
    }
}

/// Writes pieces to a file, which appears under its name only when it is whole and durable.
pub async fn write(path: &Path, size: u64, mut pieces: Pieces, progress: &mut Progress) -> Result<Copied, Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let is_special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    let target = if is_special { path } else { &part };
    let file = if is_special { File::options().write(true).open(path) } else { File::create(target) };
    let file = system(file, "write", target)?;
    let mut copied = Copied { size_bytes: size, data_bytes: 0 };
    let mut done = 0;
    let result: Result<(), Failure> = async {
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
        system(file.sync_all(), "write", target)
    }
    .await;
    if is_special {
        return result.map(|()| copied);
    }
    let result = result.and_then(|()| system(std::fs::rename(target, path), "rename", target));
    if result.is_err()
        && let Err(error) = std::fs::remove_file(target)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %target.display(), "an unfinished file stays behind");
    }
    result.map(|()| copied)
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
