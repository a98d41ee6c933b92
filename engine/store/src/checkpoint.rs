//! Checkpoints: the whole of a node's metadata in one file at a second place, for the day it is lost.
//!
//! ```text
//! | magic "DRVRCKPT" | version:u8 | pairs:u64 | pairs × ( key_len:u32 value_len:u32 key value ) | BLAKE3 of all before:32 |
//! ```
//! The count comes before the pairs so that a cut file is told from a short one; the digest is last because
//! it covers everything. Numbers are little-endian. A new checkpoint replaces the old one whole or not at all.

use crate::{
    StoreError,
    meta::{Batch, Meta, Pairs},
};
use drover_base::{LocalFuture, World};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"DRVRCKPT";
const DIGEST_BYTES: usize = 32;
const HEAD_BYTES: usize = 8 + 1 + 8;

/// Versions of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Version {
    /// The first.
    First = 1,
}

/// Pairs that a restore commits at once: some 5 MB of map regions.
const RESTORE_PAIRS_AT_ONCE: usize = 10_000;

/// Where checkpoints are kept: the latest one.
pub trait CheckpointPlace {
    /// Replaces the checkpoint, durably, wholly or not at all.
    fn store(&self, bytes: Vec<u8>) -> LocalFuture<'_, io::Result<()>>;
    /// The checkpoint, if there is one.
    fn load(&self) -> LocalFuture<'_, io::Result<Option<Vec<u8>>>>;
}

/// A checkpoint in a file.
pub struct CheckpointFile {
    world: World,
    path: PathBuf,
}

impl CheckpointFile {
    /// The folder of `path` must exist.
    pub fn new(world: World, path: impl Into<PathBuf>) -> Self {
        Self { world, path: path.into() }
    }
}

impl CheckpointPlace for CheckpointFile {
    fn store(&self, bytes: Vec<u8>) -> LocalFuture<'_, io::Result<()>> {
        let path = self.path.clone();
        Box::pin(self.world.offload(move || replace_file(&path, &bytes)))
    }
    fn load(&self) -> LocalFuture<'_, io::Result<Option<Vec<u8>>>> {
        let path = self.path.clone();
        Box::pin(self.world.offload(move || read_file(&path)))
    }
}

/// Writes beside the file, syncs, renames over it, syncs the folder.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// The file's content; `None` when there is no file.
pub fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes all of `meta`, as of one moment, to `place`.
pub async fn write(meta: &dyn Meta, place: &dyn CheckpointPlace) -> Result<(), StoreError> {
    let bytes = encode(&meta.scan(&[]).await?);
    place.store(bytes).await.map_err(|error| StoreError::Checkpoint { what: error.to_string() })
}

/// Puts a checkpoint's pairs into an empty `meta`. Returns how many there were.
pub async fn restore(meta: &dyn Meta, place: &dyn CheckpointPlace) -> Result<usize, StoreError> {
    let failed = |what: String| StoreError::Checkpoint { what };
    let bytes = place.load().await.map_err(|error| failed(error.to_string()))?;
    let pairs = decode(&bytes.ok_or_else(|| failed("there is none".into()))?)?;
    if !meta.scan(&[]).await?.is_empty() {
        return Err(failed("the metadata to restore into is not empty".into()));
    }
    let count = pairs.len();
    let mut batch = Batch::default();
    for (key, value) in pairs {
        batch.put(key, value);
        if batch.changes.len() == RESTORE_PAIRS_AT_ONCE {
            meta.commit(std::mem::take(&mut batch)).await?;
        }
    }
    if !batch.is_empty() {
        meta.commit(batch).await?;
    }
    Ok(count)
}

pub fn encode(pairs: &Pairs) -> Vec<u8> {
    let payload: usize = pairs.iter().map(|(key, value)| 8 + key.len() + value.len()).sum();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload + DIGEST_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.push(Version::First as u8);
    bytes.extend_from_slice(&(pairs.len() as u64).to_le_bytes());
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB").to_le_bytes();
    for (key, value) in pairs {
        bytes.extend_from_slice(&len(key));
        bytes.extend_from_slice(&len(value));
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(value);
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

pub fn decode(bytes: &[u8]) -> Result<Pairs, StoreError> {
    let bad = |what: &str| StoreError::Checkpoint { what: what.into() };
    let (body, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or_else(|| bad("it is cut short"))?;
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| bad("it is not a checkpoint"))?;
    if blake3::hash(body) != *digest {
        return Err(bad("its digest does not match"));
    }
    let (version, rest) = rest.split_first().ok_or_else(|| bad("it is cut short"))?;
    if *version != Version::First as u8 {
        return Err(StoreError::Newer { what: format!("a checkpoint of version {version}") });
    }
    let (count, mut rest) = rest.split_first_chunk::<8>().ok_or_else(|| bad("it is cut short"))?;
    let mut pairs = Pairs::new();
    for _ in 0..u64::from_le_bytes(*count) {
        let (key_len, after) = rest.split_first_chunk::<4>().ok_or_else(|| bad("a pair is cut short"))?;
        let (value_len, after) = after.split_first_chunk::<4>().ok_or_else(|| bad("a pair is cut short"))?;
        let (key_len, value_len) = (u32::from_le_bytes(*key_len) as usize, u32::from_le_bytes(*value_len) as usize);
        if after.len() < key_len || after.len() - key_len < value_len {
            return Err(bad("a pair is cut short"));
        }
        let (key, after) = after.split_at(key_len);
        let (value, after) = after.split_at(value_len);
        pairs.push((key.to_vec(), value.to_vec()));
        rest = after;
    }
    if rest.is_empty() { Ok(pairs) } else { Err(bad("something follows the last pair")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_and_damage_is_found() {
        let pairs: Pairs = vec![(b"a".to_vec(), vec![]), (b"mm".to_vec(), vec![7; 300])];
        let bytes = encode(&pairs);
        assert_eq!(decode(&bytes), Ok(pairs));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "{at} bytes of it");
        }
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut solo = drover_disk::sim::SoloWorld::new(1);
        let place = CheckpointFile::new(solo.world(), &path);
        solo.run(async move {
            assert_eq!(place.load().await.unwrap(), None);
            for bytes in [vec![1; 100_000], vec![2; 10]] {
                place.store(bytes.clone()).await.unwrap();
                assert_eq!(place.load().await.unwrap(), Some(bytes));
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
