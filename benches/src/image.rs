//! An ext4 image with real data: up to 4 GB of this machine's `/usr`.

use crate::{Done, run_to_end};
use std::{
    collections::{BTreeSet, VecDeque},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

const SOURCE: &str = "/usr";
/// Bytes of files that the image holds at most.
const DATA_BYTES_MAX: u64 = 4_000_000_000;

/// Makes a sparse image of `size` bytes in `folder`.
pub fn make(folder: &Path, size: u64) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let (stage, image) = (folder.join("usr"), folder.join("usr.raw"));
    stage_files(&stage)?;
    fs::File::create(&image)?.set_len(size)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0", "-d"]).arg(&stage).arg(&image);
    run_to_end(&mut mke2fs)?;
    fs::remove_dir_all(&stage)?;
    // Now, so that its writing does not disturb what is measured later.
    fs::File::open(&image)?.sync_all()?;
    Ok(image)
}

/// Links, or where that cannot be copies, files into `stage`, breadth first.
fn stage_files(stage: &Path) -> Done {
    let mut bytes = 0;
    // A file of several names is one in the image, too.
    let mut counted = BTreeSet::new();
    let mut folders = VecDeque::from([PathBuf::from(SOURCE)]);
    while let Some(folder) = folders.pop_front() {
        let target = stage.join(folder.strip_prefix(SOURCE)?);
        fs::create_dir_all(&target)?;
        let mut paths = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                folders.push_back(path);
                continue;
            }
            let inode = (metadata.dev(), metadata.ino());
            let size = if counted.contains(&inode) { 0 } else { metadata.size() };
            if metadata.is_file() && bytes + size <= DATA_BYTES_MAX {
                counted.insert(inode);
                let name = path.file_name().ok_or("a file without a name")?;
                if fs::hard_link(&path, target.join(name)).is_err() {
                    fs::copy(&path, target.join(name))?;
                }
                bytes += size;
            }
        }
    }
    Ok(())
}
