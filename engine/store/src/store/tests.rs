use super::*;
use crate::{
    Unfenced,
    testing::{ID, SIZE, bytes, read, run},
};
use drover_base::{IoError, LocalFuture};
use futures::{FutureExt, channel::oneshot};
use std::{cell::RefCell, io};

#[test]
fn what_was_flushed_is_there_after_a_crash() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 1000, bytes(200_000, 7), false).await.unwrap();
        volume.flush(&Unfenced).await.unwrap();
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!((volume.name().as_str(), volume.size_bytes()), ("web", SIZE));
        assert_eq!(read(&volume, 1000, 200_000).await, vec![7; 200_000]);
        assert_eq!(read(&volume, 0, 1000).await, vec![0; 1000]);
        assert_eq!(read(&volume, 201_000, 100_000).await, vec![0; 100_000]);
        assert_eq!(node.used(), 4);
    });
}

#[test]
fn fua_makes_its_own_range_durable() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 0, bytes(4096, 1), true).await.unwrap();
        volume.write(&Unfenced, 0, bytes(100, 2), true).await.unwrap();
        let volume = node.crashed().open().await.volume(ID).unwrap();
        assert_eq!(read(&volume, 0, 101).await, [vec![2; 100], vec![1]].concat());
    });
}

#[test]
fn requests_outside_the_volume_are_refused() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        assert!(matches!(volume.read(&Unfenced, SIZE, 1).await, Err(IoError::OutOfRange { .. })));
        assert!(matches!(volume.read(&Unfenced, u64::MAX, 2).await, Err(IoError::OutOfRange { .. })));
        assert!(matches!(volume.read(&Unfenced, 0, 33 << 20).await, Err(IoError::TooLarge { .. })));
        assert_eq!(read(&volume, SIZE, 0).await, vec![]);
    });
}

#[test]
fn a_volume_is_created_once_and_deleted_wholly() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 0, bytes(70_000, 1), false).await.unwrap();
        assert!(Rc::ptr_eq(&volume, &store.create_volume(ID, "web", SIZE).await.unwrap()));
        assert!(matches!(store.create_volume(ID, "db", SIZE).await, Err(StoreError::VolumeExists { .. })));
        assert!(matches!(store.create_volume(VolumeId(2), "x", 5).await, Err(StoreError::BadSize { .. })));
        assert!(matches!(store.create_volume(VolumeId(2), "X", SIZE).await, Err(StoreError::BadName { .. })));
        assert_eq!(node.used(), 2);
        store.delete_volume(ID).await.unwrap();
        store.delete_volume(ID).await.unwrap();
        assert_eq!(node.used(), 0);
        assert_eq!(volume.write(&Unfenced, 0, bytes(1, 1), false).await, Err(IoError::NotHere));
        let node = node.crashed();
        assert!(node.open().await.volumes().is_empty());
        assert!(node.meta.scan(&[]).await.unwrap().is_empty());
    });
}

/// A flush began while a deletion waited for something else, and put its part of the map after all was deleted.
#[test]
fn nothing_of_a_deleted_volume_is_stored_by_a_flush_that_began_meanwhile() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 0, bytes(65_536, 1), true).await.unwrap();
        volume.trim(&Unfenced, 0, 65_536, false).await.unwrap();
        volume.write(&Unfenced, 1 << 20, bytes(65_536, 2), false).await.unwrap();
        // Its client goes; that the region becomes active is under way.
        assert!(volume.write(&Unfenced, 8 << 20, bytes(4096, 3), false).now_or_never().is_none());
        let world = node.world.clone();
        let late = async {
            world.sleep(std::time::Duration::from_nanos(1)).await;
            // As another volume has it that finds no room.
            volume.settle_freed().await
        };
        let (deleted, _) = futures::join!(store.delete_volume(ID), late);
        deleted.unwrap();
        assert_eq!(node.used(), 0);
        assert!(node.meta.scan(&[]).await.unwrap().is_empty());
    });
}

#[cfg(feature = "planted")]
#[test]
fn a_planted_flush_during_a_deletion_is_caught() {
    use drover_base::planted::{Bug, plant};
    plant(Some(Bug::FlushedWhileDeleted));
    let outcome = std::panic::catch_unwind(nothing_of_a_deleted_volume_is_stored_by_a_flush_that_began_meanwhile);
    plant(None);
    assert!(outcome.is_err());
}

#[test]
fn a_shard_has_the_volumes_whose_number_is_its_own() {
    run(|node| async move {
        let shard = |shard| StoreConfig { shard, shards: 2, ..StoreConfig::default() };
        let even = node.open_shard(shard(0)).await.unwrap();
        let odd = node.open_shard(shard(1)).await.unwrap();
        assert!(matches!(even.create_volume(ID, "web", SIZE).await, Err(StoreError::OtherShard { .. })));
        odd.create_volume(ID, "web", SIZE).await.unwrap();
        even.create_volume(VolumeId(2), "db", SIZE).await.unwrap();
        let again = node.open_shard(shard(1)).await.unwrap();
        assert_eq!(again.volumes().iter().map(|volume| volume.id()).collect::<Vec<_>>(), [ID]);
    });
}

#[test]
fn a_failed_commit_poisons_every_volume_until_commits_work() {
    run(|node| async move {
        let store = node.open().await;
        let web = store.create_volume(ID, "web", SIZE).await.unwrap();
        let other = store.create_volume(VolumeId(2), "db", SIZE).await.unwrap();
        node.meta.fail_commit_after(0);
        assert_eq!(web.write(&Unfenced, 0, bytes(4096, 1), true).await, Err(IoError::Poisoned));
        assert!(store.is_poisoned() && web.is_poisoned() && other.is_poisoned());
        assert_eq!(other.read(&Unfenced, 0, 1).await, Err(IoError::Poisoned));
        assert!(store.reopen(ID).await.is_err(), "commits fail still");
        assert!(web.is_poisoned());
        assert!(store.create_volume(VolumeId(3), "x", SIZE).await.is_err());
    });
}

#[test]
fn reopening_goes_back_to_what_was_flushed_and_frees_the_rest() {
    run(|node| async move {
        let store = node.open().await;
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        volume.write(&Unfenced, 0, bytes(65_536, 1), true).await.unwrap();
        volume.write(&Unfenced, 1 << 20, bytes(65_536, 2), false).await.unwrap();
        volume.trim(&Unfenced, 0, 65_536, false).await.unwrap();
        assert_eq!(node.used(), 2);
        store.reopen(ID).await.unwrap();
        assert_eq!(read(&volume, 0, 65_536).await, vec![1; 65_536], "the trim was not flushed");
        assert_eq!(read(&volume, 1 << 20, 65_536).await, vec![0; 65_536], "nor was the second write");
        assert_eq!(node.used(), 1);
        volume.write(&Unfenced, 1 << 20, bytes(65_536, 3), true).await.unwrap();
        assert_eq!(node.used(), 2);
    });
}

#[test]
fn devices_must_match_the_tiers() {
    run(|node| async move {
        let opened = Store::open(
            StoreConfig::default(),
            node.world.clone(),
            vec![],
            node.tiers.clone(),
            Rc::new(node.meta.clone()),
        );
        assert!(matches!(opened.await, Err(StoreError::Devices { .. })));
    });
}

/// Where each storing waits to be let go.
#[derive(Default)]
struct SlowPlace(RefCell<Vec<oneshot::Sender<()>>>);

impl CheckpointPlace for SlowPlace {
    fn store(&self, _bytes: Vec<u8>) -> LocalFuture<'_, io::Result<()>> {
        let (go, going) = oneshot::channel();
        self.0.borrow_mut().push(go);
        Box::pin(async move { going.await.map_err(|_| io::Error::other("given up")) })
    }
    fn load(&self) -> LocalFuture<'_, io::Result<Option<Vec<u8>>>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// A write that needed a checkpoint for its slots was given up while that was being stored, and the next one began to
/// store a newer one beside it. The older could end last and lie in the newer one's place: after a restore from it maps
/// would name slots that hold other volumes' bytes by then.
#[test]
fn a_checkpoint_whose_writer_went_away_is_ended_before_the_next_begins() {
    run(|node| async move {
        let place = Rc::new(SlowPlace::default());
        let config = StoreConfig { checkpoint: Some(place.clone()), ..StoreConfig::default() };
        Store::scan_slots(&node.meta, &node.tiers).await.unwrap();
        let store = node.open_shard(config).await.unwrap();
        let volume = store.create_volume(ID, "web", SIZE).await.unwrap();
        let is_storing = async {
            while place.0.borrow().is_empty() {
                node.world.sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let write = volume.write(&Unfenced, 0, bytes(4096, 1), false).boxed_local();
        futures::future::select(write, is_storing.boxed_local()).await;
        let mut next = volume.write(&Unfenced, 65_536, bytes(4096, 2), false).boxed_local();
        let soon = node.world.sleep(std::time::Duration::from_millis(50)).boxed_local();
        futures::future::select(&mut next, soon).await;
        assert_eq!(place.0.borrow().len(), 1, "two are being stored at once");
        let go = place.0.borrow_mut().remove(0);
        go.send(()).unwrap();
        next.await.unwrap();
        assert!(place.0.borrow().is_empty(), "the first one gave all slots back");
    });
}
