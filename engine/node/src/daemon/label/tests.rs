use super::*;
use crate::config::Class;
use drover_disk::loop_device::{LoopDevice, Mounted, format, has_loop_devices};
use drover_runtime::Workers;
use drover_store::meta::Batch;
use drover_store::meta::rocks::RocksMeta;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIZE: u64 = 4 << 20;

fn tier(folder: &Path, name: &str) -> TierConfig {
    TierConfig {
        name: name.into(),
        class: Class::Ssd,
        device: folder.join(format!("{name}.slots")),
        is_block_device: false,
        size_bytes: SIZE,
        sparse: false,
        discards: false,
        overwrite: false,
    }
}

/// What a node of that name with its metadata in `meta` opens.
fn open_as(node: &str, meta: &Path, tiers: &[TierConfig]) -> Result<Vec<String>, TierError> {
    let meta = RocksMeta::open(meta).unwrap();
    let opened = drover_disk::run(async {
        let world = drover_runtime::world(&Workers::start(1).unwrap(), None);
        let opened = open_tiers(&world, &NodeId::new(node).unwrap(), &*meta.handle(), tiers).await;
        opened.map(|open| open.into_iter().map(|open| open.tier.name).collect())
    });
    meta.close();
    opened.unwrap()
}

/// Two tiers of a node, used before, in folders of their own.
struct Place {
    folder: tempfile::TempDir,
    tiers: Vec<TierConfig>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiers = vec![tier(folder.path(), "fast"), tier(folder.path(), "slow")];
        let place = Self { folder, tiers };
        assert_eq!(place.open().unwrap(), ["fast", "slow"]);
        place
    }

    fn open(&self) -> Result<Vec<String>, TierError> {
        open_as("a", &self.folder.path().join("meta"), &self.tiers)
    }

    fn fast(&self) -> &Path {
        &self.tiers[0].device
    }
}

/// The opening is refused as expected and has changed no byte of either tier.
#[track_caller]
fn refused(place: &Place, expected: fn(&TierError) -> bool) {
    let content = || place.tiers.iter().map(|tier| fs::read(&tier.device).ok()).collect::<Vec<_>>();
    let before = content();
    let error = place.open().unwrap_err();
    assert!(expected(&error), "{error}");
    assert!(content() == before, "{error}: refused, but something was written");
}

#[test]
fn what_was_labelled_opens_again_whatever_the_slots_hold() {
    let place = Place::new();
    let file = File::options().write(true).open(place.fast()).unwrap();
    file.write_all_at(&[7; 100_000], HEADER_BYTES).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE + HEADER_BYTES);
    assert_eq!(place.open().unwrap(), ["fast", "slow"]);
}

/// Two disks change their places: data of one tier would be read as the other's.
#[test]
pub(crate) fn exchanged_tiers_are_refused() {
    let mut place = Place::new();
    let (fast, slow) = (place.tiers[0].device.clone(), place.tiers[1].device.clone());
    place.tiers[0].device = slow.clone();
    place.tiers[1].device = fast.clone();
    refused(&place, |error| matches!(error, TierError::Exchanged { found, .. } if found.contains("slow")));
}

#[test]
fn the_tier_of_another_node_or_another_time_is_refused() {
    let (place, other) = (Place::new(), Place::new());
    fs::copy(other.fast(), place.fast()).unwrap();
    refused(&place, |error| matches!(error, TierError::Exchanged { .. }));
    let elsewhere = tempfile::tempdir().unwrap();
    open_as("b", &elsewhere.path().join("meta"), &[tier(elsewhere.path(), "fast")]).unwrap();
    fs::copy(elsewhere.path().join("fast.slots"), place.fast()).unwrap();
    refused(&place, |error| matches!(error, TierError::Exchanged { found, .. } if found.contains(" of b ")));
}

#[test]
fn a_known_tier_without_its_label_is_refused_even_when_told_to_overwrite() {
    let mut place = Place::new();
    place.tiers[0].overwrite = true;
    let file = File::options().write(true).open(place.fast()).unwrap();
    file.write_all_at(&[0; LABEL_BYTES], 0).unwrap();
    refused(&place, |error| matches!(error, TierError::NoLabel { .. }));
    file.write_all_at(&[9; 2 * LABEL_BYTES], 0).unwrap();
    refused(&place, |error| matches!(error, TierError::NoLabel { .. }));
    fs::remove_file(place.fast()).unwrap();
    refused(&place, |error| matches!(error, TierError::Device { .. }));
    assert!(!place.fast().exists(), "a tier that volumes lie on is not made anew");
}

#[test]
fn a_damaged_label_is_refused() {
    let place = Place::new();
    let file = File::options().write(true).open(place.fast()).unwrap();
    file.write_all_at(&[1], 30).unwrap();
    refused(&place, |error| matches!(error, TierError::BadLabel { .. }));
}

#[test]
fn a_device_that_was_cut_is_refused_and_one_that_grows_is_labelled_anew() {
    let mut place = Place::new();
    let file = File::options().write(true).open(place.fast()).unwrap();
    file.set_len(SIZE).unwrap();
    refused(&place, |error| matches!(error, TierError::Cut { .. }));
    file.set_len(SIZE + HEADER_BYTES).unwrap();
    place.tiers[0].size_bytes = 2 * SIZE;
    place.open().unwrap();
    let label = TierLabel::decode(&fs::read(place.fast()).unwrap()[..LABEL_BYTES]).unwrap().unwrap();
    assert_eq!((label.tier.as_str(), label.size_bytes), ("fast", 2 * SIZE));
    place.open().unwrap();
    place.tiers[0].size_bytes = SIZE;
    refused(&place, |error| matches!(error, TierError::Shrunk { .. }));
}

/// A new tier is pointed at a device that somebody else uses.
#[test]
fn what_is_not_empty_is_not_taken_unless_told_to() {
    let mut place = Place::new();
    let mut added = tier(place.folder.path(), "third");
    let mut content = vec![0; SIZE as usize / 2];
    content[(1 << 20) - 1] = 1;
    fs::write(&added.device, &content).unwrap();
    place.tiers.push(added.clone());
    refused(&place, |error| matches!(error, TierError::NotEmpty { .. }));
    let other = Place::new();
    fs::copy(other.fast(), &added.device).unwrap();
    refused(&place, |error| matches!(error, TierError::Taken { .. }));
    added.overwrite = true;
    place.tiers[2] = added;
    assert_eq!(place.open().unwrap(), ["fast", "slow", "third"]);
    place.tiers[2].overwrite = false;
    assert_eq!(place.open().unwrap(), ["fast", "slow", "third"]);
}

/// Without a checkpoint nothing else tells that the metadata was lost: all slots would count as free.
#[test]
fn tiers_of_a_node_that_lost_its_metadata_are_not_taken_for_new_ones() {
    let place = Place::new();
    fs::remove_dir_all(place.folder.path().join("meta")).unwrap();
    refused(&place, |error| matches!(error, TierError::Unknown { .. }));
}

/// Killed between each two steps of the first start.
#[test]
fn a_first_start_that_was_cut_off_goes_on() {
    for has_label in [false, true] {
        let place = Place::new();
        let meta = RocksMeta::open(place.folder.path().join("meta").as_path()).unwrap();
        drover_runtime::block_on(async {
            let handle = meta.handle();
            let recorded = String::from_utf8(handle.get(tiers::KEY).await.unwrap().unwrap()).unwrap();
            let mut batch = Batch::default();
            batch.put(tiers::KEY.to_vec(), recorded.replace("labelled", "new").into_bytes());
            handle.commit(batch).await.unwrap();
        })
        .unwrap();
        meta.close();
        if !has_label {
            fs::write(place.fast(), vec![0; (SIZE + HEADER_BYTES) as usize]).unwrap();
        }
        assert_eq!(place.open().unwrap(), ["fast", "slow"]);
        fs::write(place.fast(), vec![0; (SIZE + HEADER_BYTES) as usize]).unwrap();
        refused(&place, |error| matches!(error, TierError::NoLabel { .. }));
    }
}

/// Two tiers, the fast one on a block device of `size_bytes` that no node has used before.
fn on_block_device(size_bytes: u64) -> Option<(Place, LoopDevice)> {
    if !has_loop_devices() {
        return None;
    }
    let mut place = Place::new();
    let disk = place.folder.path().join("disk");
    let device = LoopDevice::make(&disk, size_bytes, 512);
    fs::remove_dir_all(place.folder.path().join("meta")).unwrap();
    place.tiers[0] = TierConfig { device: device.path().into(), is_block_device: true, ..place.tiers[0].clone() };
    place.tiers[1].overwrite = true;
    Some((place, device))
}

#[test]
fn a_block_device_is_labelled_once_and_known_again_by_whatever_name() {
    let Some((mut place, device)) = on_block_device(SIZE + HEADER_BYTES + 512) else { return };
    assert_eq!(place.open().unwrap(), ["fast", "slow"]);
    let disk = place.folder.path().join("disk");
    let label = TierLabel::decode(&fs::read(&disk).unwrap()[..LABEL_BYTES]).unwrap().unwrap();
    assert_eq!((label.tier.as_str(), label.size_bytes), ("fast", SIZE));
    drop(device);
    // The next start of the machine may number devices otherwise.
    let _other = LoopDevice::make(&place.folder.path().join("other"), SIZE, 512);
    let device = LoopDevice::over(&disk, &[]).unwrap();
    place.tiers[0].device = device.path().into();
    assert_eq!(place.open().unwrap(), ["fast", "slow"]);
    place.tiers[0].size_bytes += EXTENT_BYTES;
    refused(&place, |error| matches!(error, TierError::Device { error: OpenError::TooSmall { .. }, .. }));
}

#[test]
fn a_block_device_that_somebody_else_has_is_refused_even_when_told_to_overwrite() {
    let Some((mut place, device)) = on_block_device(SIZE + HEADER_BYTES) else { return };
    place.tiers[0].overwrite = true;
    let folder = tempfile::tempdir().unwrap();
    format(device.path());
    let mounted = Mounted::at(folder.path(), device.path()).unwrap();
    refused(&place, |error| matches!(error, TierError::Device { error: OpenError::InUse { .. }, .. }));
    drop(mounted);
    // Twice the same device, by two names.
    let link = place.folder.path().join("link");
    std::os::unix::fs::symlink(device.path(), &link).unwrap();
    place.tiers[1] = TierConfig { device: link, is_block_device: true, ..place.tiers[1].clone() };
    refused(&place, |error| matches!(error, TierError::Device { error: OpenError::InUse { .. }, .. }));
}

#[test]
fn a_block_device_that_is_not_empty_or_another_nodes_or_too_small_is_refused() {
    let Some((mut place, device)) = on_block_device(SIZE + HEADER_BYTES) else { return };
    format(device.path());
    refused(&place, |error| matches!(error, TierError::NotEmpty { .. }));
    place.tiers[0].overwrite = true;
    let elsewhere = tempfile::tempdir().unwrap();
    open_as("b", &elsewhere.path().join("meta"), &place.tiers[..1]).unwrap();
    place.tiers[0].overwrite = false;
    refused(&place, |error| matches!(error, TierError::Taken { found, .. } if found.contains(" of b ")));
    place.tiers[0].overwrite = true;
    place.tiers[0].size_bytes += EXTENT_BYTES;
    refused(&place, |error| matches!(error, TierError::Device { error: OpenError::TooSmall { .. }, .. }));
    place.tiers[0].size_bytes -= EXTENT_BYTES;
    assert_eq!(place.open().unwrap(), ["fast", "slow"]);
}
