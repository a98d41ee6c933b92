use super::super::check;
use super::*;
use drover_base::VolumeId;
use drover_store::checkpoint;
use drover_store::meta::rocks::RocksMeta;
use drover_store::meta::{Batch, Meta};
use drover_store::{Store, StoreConfig, Tiers};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

fn config(folder: &Path) -> NodeConfig {
    let place = folder.display();
    let text = format!(
        "id = \"node-1\"\ncontrol = \"127.0.0.1:7601\"\nmeta = \"{place}/meta\"\ncheckpoint = \"{place}/second\"\n\
         [listen]\nadmin = \"127.0.0.1:0\"\npeer = \"127.0.0.1:0\"\nnbd_unix = \"{place}/nbd.sock\"\n"
    );
    NodeConfig::parse(&text).unwrap()
}

/// A node with one volume in its checkpoint and two in its metadata, which is damaged.
fn damaged(folder: &Path) -> NodeConfig {
    let config = config(folder);
    fs::create_dir(folder.join("second")).unwrap();
    let made = drover_runtime::block_on(async {
        let world = drover_runtime::world(&Workers::start(1).unwrap(), None);
        let meta = RocksMeta::open(&config.meta).unwrap();
        let handle: Rc<dyn Meta> = meta.handle();
        let store = Store::open(StoreConfig::default(), world.clone(), vec![], Tiers::new(vec![]), handle.clone());
        let store = store.await.unwrap();
        store.create_volume(VolumeId(1), "one", 1 << 20).await.unwrap();
        let place = CheckpointFile::new(world, folder.join("second").join(CHECKPOINT_FILE));
        checkpoint::write(&*handle, &place).await.unwrap();
        store.create_volume(VolumeId(2), "two", 1 << 20).await.unwrap();
        let mut damage = Batch::default();
        damage.put(b"v-damage".to_vec(), vec![1]);
        handle.commit(damage).await.unwrap();
        drop((store, handle));
        meta.close();
    });
    made.unwrap();
    config
}

/// Volumes of the node, if its metadata is sound.
fn volumes(config: &NodeConfig) -> (u64, bool) {
    let report = check(config).unwrap().report;
    (report.volumes, report.problems.is_empty())
}

const OLD: (u64, bool) = (2, false);
const NEW: (u64, bool) = (1, true);

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// What lies beside the metadata.
fn beside_meta(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("meta.") && name != "meta.lock").collect();
    names.sort();
    names
}

/// The old metadata was moved away first and the new one made in its place: cut off in between, the node started with a
/// part of its volumes, and wrote over the slots of the others.
#[test]
fn a_restore_that_is_cut_off_leaves_the_old_metadata_or_the_new() {
    let (folder, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = folder.path().join("node");
    fs::create_dir(&node).unwrap();
    let node_config = damaged(&node);
    assert_eq!(volumes(&node_config), OLD);
    let mut steps = Vec::new();
    let restored = restore_told(&node_config, |step| {
        copy(&node, &images.path().join(format!("{step:?}")));
        steps.push(step);
    });
    assert_eq!(volumes(&node_config), NEW);
    let aside = restored.unwrap().moved_to.unwrap();
    assert_eq!(steps, [Step::Begun, Step::Loaded, Step::SetBack, Step::InPlace, Step::MovedAside]);
    for step in steps {
        let image = images.path().join(format!("{step:?}"));
        let config = config(&image);
        let is_done = matches!(step, Step::InPlace | Step::MovedAside);
        assert_eq!(volumes(&config), if is_done { NEW } else { OLD }, "cut off after {step:?}");
        // Asked again, it is done or goes on to the end.
        match restore(&config) {
            Err(DaemonError::Sound { .. }) if is_done => {}
            Ok(_) if !is_done => {}
            other => panic!("after {step:?}: {:?}", other.map(|checked| checked.moved_to)),
        }
        assert_eq!(volumes(&config), NEW, "again after {step:?}");
        let [old] = &beside_meta(&image)[..] else { panic!("after {step:?}: {:?}", beside_meta(&image)) };
        assert!(old.starts_with("meta.before-restore-"), "{old}");
        let old = RocksMeta::open(&image.join(old)).unwrap();
        let damage = drover_runtime::block_on(async { old.get(b"v-damage").await.unwrap() });
        assert_eq!(damage.unwrap(), Some(vec![1]), "what was there before is kept");
        assert!(!config.meta.join(MARK).exists());
    }
    assert!(aside.exists());
}

#[test]
fn a_restore_without_a_good_checkpoint_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = damaged(folder.path());
    let file = folder.path().join("second").join(CHECKPOINT_FILE);
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert!(matches!(restore(&config), Err(DaemonError::Store(_))));
    assert_eq!((volumes(&config), beside_meta(folder.path())), (OLD, vec![]));
    fs::remove_file(&file).unwrap();
    assert!(matches!(restore(&config), Err(DaemonError::Store(_))));
    assert_eq!((volumes(&config), beside_meta(folder.path())), (OLD, vec![]));
}

/// There is nothing to exchange with.
#[test]
fn lost_metadata_comes_back_in_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let config = damaged(folder.path());
    fs::remove_dir_all(&config.meta).unwrap();
    let mut seen = Vec::new();
    restore_told(&config, |step| seen.push((step, config.meta.exists()))).unwrap();
    let steps = [Step::Begun, Step::Loaded, Step::SetBack].map(|step| (step, false));
    assert_eq!(seen, [&steps[..], &[(Step::MovedAside, true)]].concat());
    assert_eq!((volumes(&config), beside_meta(folder.path())), (NEW, vec![]));
    let mode = fs::metadata(&config.meta).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "it is for nobody else to read");
}
