//! A node of one volume: its device, metadata and store; a crash takes what was not flushed, by chance.

use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{InstanceId, VolumeId, World};
use drover_disk::fault::FailNth;
use drover_disk::sim::{SimDevice, SimImage};
use drover_disk::{Buffer, Device};
use drover_sim::runtime::Sim;
use drover_store::meta::memory::{MemoryImage, MemoryMeta};
use drover_store::{ChunkScope, Store, StoreConfig, TierClass, TierSpec, Tiers, Unfenced, Volume};
use std::{rc::Rc, time::Duration};

/// Two regions, then some extents of one and a bit of an extent.
pub const VOLUME_BYTES: u64 = 8 * (1 << 20) + 5 * EXTENT_BYTES + 2 * BLOCK_BYTES;
pub const VOLUME_BLOCKS: u64 = VOLUME_BYTES / BLOCK_BYTES;

const VOLUME: VolumeId = VolumeId(7);
const DEVICE_BYTES: u64 = 40 << 20;

pub struct Side {
    pub sim: Sim,
    pub name: &'static str,
    pub world: World,
    pub instance: InstanceId,
    pub volume: Rc<Volume>,
    pub device: SimDevice,
    pub faults: Rc<FailNth>,
    meta: MemoryMeta,
    pub store: Rc<Store>,
}

impl Drop for Side {
    fn drop(&mut self) {
        // Volume and sender hold each other.
        self.volume.set_tap(None);
        self.volume.set_origin(None);
    }
}

impl Side {
    pub async fn new(sim: &Sim, name: &'static str) -> Self {
        Self::open(sim, name, SimImage::new(DEVICE_BYTES), MemoryImage::new(), 1).await
    }

    async fn open(sim: &Sim, name: &'static str, image: SimImage, meta: MemoryImage, instance: u64) -> Self {
        let world = sim.process(name).world();
        let device = SimDevice::from_image(world.clone(), image);
        let meta = MemoryMeta::from_image(world.clone(), meta);
        let faults = Rc::new(FailNth::new(Rc::new(device.clone())));
        let slots = DEVICE_BYTES / EXTENT_BYTES;
        let tiers = Tiers::new(vec![TierSpec { name: "fast".into(), class: TierClass::Nvme, slots, discards: false }]);
        Store::scan_slots(&meta, &tiers).await.unwrap();
        let devices: Vec<Rc<dyn Device>> = vec![faults.clone()];
        let hints = MemoryMeta::from_image(world.clone(), MemoryImage::new());
        let config = StoreConfig { chunks: Some(Rc::new(hints)), ..StoreConfig::default() };
        let store = Store::open(config, world.clone(), devices, tiers, Rc::new(meta.clone())).await.unwrap();
        let volume = store.create_volume(VOLUME, "vol", VOLUME_BYTES).await.unwrap();
        volume.set_scope(Some(ChunkScope::of_tenant("tenant")));
        Self { sim: sim.clone(), name, world, instance: InstanceId(instance), volume, device, faults, meta, store }
    }

    /// Another volume of the node, of some tenant, that holds `content` at `offset`, and has stood still for long enough to be
    /// indexed.
    pub async fn with_copy(&self, tenant: &str, offset: u64, content: &[u8]) -> Rc<Volume> {
        let copy = self.store.create_volume(VolumeId(8), "copy", VOLUME_BYTES).await.unwrap();
        copy.set_scope(Some(ChunkScope::of_tenant(tenant)));
        for (at, part) in content.chunks(100_000).enumerate() {
            let offset = offset + at as u64 * 100_000;
            copy.write(&Unfenced, offset, Buffer::from_slice(part), false).await.unwrap();
        }
        copy.flush(&Unfenced).await.unwrap();
        self.sim.sleep(Duration::from_secs(30)).await;
        assert!(copy.indexed_bytes() >= content.len() as u64);
        copy
    }

    /// Power is lost and comes back.
    pub async fn crash(&mut self) {
        let random = self.world.random.clone();
        let image = self.device.crash(&*random);
        let meta = self.meta.crash(&*random);
        self.sim.kill(self.name);
        *self = Self::open(&self.sim, self.name, image, meta, self.instance.0 + 1).await;
    }

    /// What a client reads, whole. Nobody may be writing.
    pub async fn content(&self) -> Vec<u8> {
        let mut content = Vec::new();
        while (content.len() as u64) < VOLUME_BYTES {
            let at = content.len() as u64;
            let len = (1 << 20).min(VOLUME_BYTES - at);
            let range = drover_base::ByteRange { offset: at, len };
            let guard = self.volume.enqueue(range).await;
            content.extend_from_slice(&self.volume.read_locked(&guard, range).await.unwrap());
        }
        content
    }
}
