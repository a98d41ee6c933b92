//! Damage that nobody told Drover of: one byte of the destination's device file.

use crate::failure::{Context, Failure};
use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = BLOCK_BYTES as usize;

/// Different byte values from which a block counts as one of its kind.
const DISTINCT_BYTES: usize = 200;

/// Finds a block of the image in the device file and flips a byte of it, wherever it lies there. Returns its number
/// in the image.
pub fn flip_a_byte(image: &Path, slots: &Path) -> Result<u64, Failure> {
    let open = |path: &Path| {
        File::options().read(true).write(true).open(path).or_fail(|| format!("cannot open {}", path.display()))
    };
    let (image, slots) = (open(image)?, open(slots)?);
    let size = |file: &File| file.metadata().map(|metadata| metadata.len()).or_fail(|| "cannot find a size".into());
    let (number, block) = choose(&image, size(&image)?)?;
    // A block keeps its place within its extent, whichever slot that lies in.
    let in_extent = number * BLOCK_BYTES % EXTENT_BYTES;
    let mut flipped = 0;
    let mut at = in_extent;
    let end = size(&slots)?;
    let mut found = vec![0; BLOCK];
    while at + BLOCK_BYTES <= end {
        slots.read_exact_at(&mut found, at).or_fail(|| "cannot read the device file".into())?;
        if found == block {
            let byte = [found[BLOCK / 2] ^ 1];
            slots.write_all_at(&byte, at + BLOCK_BYTES / 2).or_fail(|| "cannot write the device file".into())?;
            flipped += 1;
        }
        at += EXTENT_BYTES;
    }
    slots.sync_all().or_fail(|| "cannot write the device file".into())?;
    if flipped == 0 {
        return Err(Failure::failed("the block chosen for sabotage is not in the device file"));
    }
    Ok(number)
}

/// A block of the image, sought from its first quarter on, that hardly occurs twice.
fn choose(image: &File, size: u64) -> Result<(u64, Vec<u8>), Failure> {
    let blocks = size / BLOCK_BYTES;
    let mut block = vec![0; BLOCK];
    for number in (0..blocks).map(|number| (number + blocks / 4) % blocks) {
        image.read_exact_at(&mut block, number * BLOCK_BYTES).or_fail(|| "cannot read the image".into())?;
        if block.iter().collect::<BTreeSet<_>>().len() >= DISTINCT_BYTES {
            return Ok((number, block));
        }
    }
    Err(Failure::failed("the image has no block that can be told from others"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_of_the_chosen_block_is_flipped_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let (image, slots) = (folder.path().join("image"), folder.path().join("slots"));
        let block: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
        let mut content = vec![0; 64 * BLOCK];
        content[37 * BLOCK..38 * BLOCK].copy_from_slice(&block);
        std::fs::write(&image, &content).unwrap();
        // In the device file the extent lies in another slot, with the block in its old place within.
        let mut device = vec![0; 1 << 20];
        let at = 9 * EXTENT_BYTES as usize + 37 % 16 * BLOCK;
        device[at..at + BLOCK].copy_from_slice(&block);
        std::fs::write(&slots, &device).unwrap();
        assert_eq!(flip_a_byte(&image, &slots).unwrap(), 37);
        let damaged = std::fs::read(&slots).unwrap();
        let differing: Vec<usize> = (0..device.len()).filter(|at| device[*at] != damaged[*at]).collect();
        assert_eq!(differing, [at + BLOCK / 2]);
    }
}
