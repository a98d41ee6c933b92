//! An ext4 image with real data: as much of this machine's `/usr` as is wanted.

use super::{Stop, blocking, tool};
use crate::failure::{Context, Failure};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const SOURCE: &str = "/usr";

pub struct Image {
    pub path: PathBuf,
    pub files: u64,
    /// Bytes of those files.
    pub data_bytes: u64,
    pub digest: blake3::Hash,
}

/// Makes the image in `dir`: `size` bytes long, holding at most `data_max` bytes of files.
pub async fn make(dir: &Path, size: u64, data_max: u64, stop: &Stop) -> Result<Image, Failure> {
    let stage = dir.join("usr");
    let (place, own) = (stage.clone(), stop.clone());
    let (files, data_bytes) = blocking(move || stage_files(&place, data_max, &own)).await?;
    let path = dir.join("image.ext4");
    let blocks = (size / 4096).to_string();
    let output = tool("mke2fs", |command| {
        let options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0", "-d"];
        command.args(options).arg(&stage).arg(&path).arg(blocks)
    })
    .await?;
    if !output.status.success() {
        return Err(Failure::failed("mke2fs failed").cause(String::from_utf8_lossy(&output.stderr)));
    }
    let (image, own) = (path.clone(), stop.clone());
    let digest = blocking(move || {
        std::fs::remove_dir_all(&stage).or_fail(|| format!("cannot remove {}", stage.display()))?;
        // Now, so that its writing does not disturb what is measured later.
        let synced = File::open(&image).and_then(|file| file.sync_all());
        synced.or_fail(|| format!("cannot write {}", image.display()))?;
        digest(&image, size, &own)
    });
    Ok(Image { digest: digest.await?, path, files, data_bytes })
}

/// BLAKE3 of the first `len` bytes of a file.
pub fn digest(path: &Path, len: u64, stop: &Stop) -> Result<blake3::Hash, Failure> {
    let file = File::open(path).or_fail(|| format!("cannot open {}", path.display()))?;
    let mut reader = file.take(len);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        stop.check()?;
        let count = reader.read(&mut buffer).or_fail(|| format!("cannot read {}", path.display()))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        total += count as u64;
    }
    if total != len {
        return Err(Failure::failed(format!("{} has {total} bytes, not {len}", path.display())));
    }
    Ok(hasher.finalize())
}

/// Links (or where that cannot be, copies) files into `stage`, breadth first, until `data_max` bytes are there.
fn stage_files(stage: &Path, data_max: u64, stop: &Stop) -> Result<(u64, u64), Failure> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = VecDeque::from([PathBuf::from(SOURCE)]);
    while let Some(folder) = folders.pop_front() {
        let target = stage.join(folder.strip_prefix(SOURCE).expect("found below it"));
        std::fs::create_dir_all(&target).or_fail(|| format!("cannot make {}", target.display()))?;
        // A folder that may not be read is left out: any real data will do.
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            stop.check()?;
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                folders.push_back(path);
            } else if metadata.is_file() && bytes + metadata.size() <= data_max && take(&path, &target) {
                files += 1;
                bytes += metadata.size();
            }
        }
    }
    if bytes == 0 {
        return Err(Failure::failed(format!("no file of {SOURCE} can be read")));
    }
    Ok((files, bytes))
}

fn take(path: &Path, target: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    let target = target.join(name);
    std::fs::hard_link(path, &target).is_ok() || std::fs::copy(path, &target).is_ok()
}
