use super::*;
use crate::{
    TierClass, TierSpec, Unfenced,
    meta::memory::{MemoryImage, MemoryMeta},
};
use drover_base::IoError;
use drover_disk::{
    Buffer,
    sim::{SimDevice, SimImage, SoloWorld},
};
use std::future::Future;

const SLOTS: u64 = 64;
const ID: VolumeId = VolumeId(1);
const SIZE: u64 = 16 << 20;

/// A node of one tier and one shard.
#[derive(Clone)]
struct Node {
    world: World,
    device: SimDevice,
    meta: MemoryMeta,
    tiers: Tiers,
}

impl Node {
    fn new(world: World) -> Self {
        Self::from_images(world, SimImage::new(SLOTS * EXTENT_BYTES), MemoryImage::new())
    }

    fn from_images(world: World, device: SimImage, meta: MemoryImage) -> Self {
        let tiers = Tiers::new(vec![TierSpec { name: "a".into(), class: TierClass::Nvme, slots: SLOTS }]);
        let device = SimDevice::from_image(world.clone(), device);
        Self { device, meta: MemoryMeta::from_image(world.clone(), meta), world, tiers }
    }

    async fn open(&self) -> Rc<Store> {
        Store::scan_slots(&self.meta, &self.tiers).await.unwrap();
        let devices: Vec<Rc<dyn Device>> = vec![Rc::new(self.device.clone())];
        let (world, tiers, meta) = (self.world.clone(), self.tiers.clone(), Rc::new(self.meta.clone()));
        Store::open(StoreConfig::default(), world, devices, tiers, meta).await.unwrap()
    }

    /// The node after a loss of power.
    fn crashed(&self) -> Self {
        let random = &*self.world.random;
        Self::from_images(self.world.clone(), self.device.crash(random), self.meta.crash(random))
    }

    fn used(&self) -> u64 {
        self.tiers.usage()[0].slots_used
    }
}

fn run<F: Future<Output = ()> + 'static>(test: impl Fn(Node) -> F) {
    for seed in 1..=8 {
        let mut solo = SoloWorld::new(seed);
        let node = Node::new(solo.world());
        solo.run(test(node));
    }
}

fn bytes(len: usize, byte: u8) -> Buffer {
    Buffer::from_slice(&vec![byte; len])
}

async fn read(volume: &Volume, offset: u64, len: u64) -> Vec<u8> {
    volume.read(&Unfenced, offset, len).await.unwrap().to_vec()
}

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
