//! A simulated node for the tests of this crate.

use crate::{
    Store, StoreConfig, StoreError, TierClass, TierSpec, Tiers, Unfenced, Volume,
    meta::memory::{MemoryImage, MemoryMeta},
};
use drover_base::{VolumeId, World, units::EXTENT_BYTES};
use drover_disk::{
    Buffer, Device,
    sim::{SimDevice, SimImage, SoloWorld},
};
use std::{future::Future, rc::Rc};

pub const SLOTS: u64 = 64;
pub const ID: VolumeId = VolumeId(1);
pub const SIZE: u64 = 16 << 20;

/// A node of one tier and one shard.
#[derive(Clone)]
pub struct Node {
    pub world: World,
    pub device: SimDevice,
    pub meta: MemoryMeta,
    pub tiers: Tiers,
}

impl Node {
    fn new(world: World, slots: u64) -> Self {
        Self::from_images(world, slots, SimImage::new(slots * EXTENT_BYTES), MemoryImage::new())
    }

    fn from_images(world: World, slots: u64, device: SimImage, meta: MemoryImage) -> Self {
        let tiers = Tiers::new(vec![TierSpec { name: "a".into(), class: TierClass::Nvme, slots, discards: false }]);
        let device = SimDevice::from_image(world.clone(), device);
        Self { device, meta: MemoryMeta::from_image(world.clone(), meta), world, tiers }
    }

    pub async fn open(&self) -> Rc<Store> {
        Store::scan_slots(&self.meta, &self.tiers).await.unwrap();
        self.open_shard(StoreConfig::default()).await.unwrap()
    }

    pub async fn open_shard(&self, config: StoreConfig) -> Result<Rc<Store>, StoreError> {
        let devices: Vec<Rc<dyn Device>> = vec![Rc::new(self.device.clone())];
        let (world, tiers, meta) = (self.world.clone(), self.tiers.clone(), Rc::new(self.meta.clone()));
        Store::open(config, world, devices, tiers, meta).await
    }

    /// With a volume of [`SIZE`].
    pub async fn volume(&self) -> Rc<Volume> {
        self.open().await.create_volume(ID, "web", SIZE).await.unwrap()
    }

    /// The node after a loss of power.
    pub fn crashed(&self) -> Self {
        let random = &*self.world.random;
        let slots = self.tiers.usage()[0].slots_total;
        Self::from_images(self.world.clone(), slots, self.device.crash(random), self.meta.crash(random))
    }

    pub fn used(&self) -> u64 {
        self.tiers.usage()[0].slots_used
    }
}

/// Runs a test under several seeds.
pub fn run<F: Future<Output = ()> + 'static>(test: impl Fn(Node) -> F) {
    (1..=8).for_each(|seed| run_with(seed, SLOTS, &test));
}

/// Runs it once, on a tier of so many slots.
pub fn run_with<F: Future<Output = ()> + 'static>(seed: u64, slots: u64, test: impl Fn(Node) -> F) {
    let mut solo = SoloWorld::new(seed);
    let node = Node::new(solo.world(), slots);
    solo.run(test(node));
}

pub fn bytes(len: usize, byte: u8) -> Buffer {
    Buffer::from_slice(&vec![byte; len])
}

pub async fn read(volume: &Volume, offset: u64, len: u64) -> Vec<u8> {
    volume.read(&Unfenced, offset, len).await.unwrap().to_vec()
}
