//! A node of one volume: its device, metadata and store; a crash takes what was not flushed, by chance.

use drover_base::units::{BLOCK_BYTES, EXTENT_BYTES};
use drover_base::{InstanceId, LocalFuture, VolumeId, World};
use drover_disk::fault::FailNth;
use drover_disk::sim::{SimDevice, SimImage};
use drover_disk::{Buffer, Device, DeviceError};
use drover_sim::runtime::Sim;
use drover_store::meta::memory::{MemoryImage, MemoryMeta};
use drover_store::{Store, StoreConfig, TierClass, TierSpec, Tiers, Volume};
use std::{cell::RefCell, rc::Rc};

/// Two regions, then some extents of one and a bit of an extent.
pub const VOLUME_BYTES: u64 = 8 * (1 << 20) + 5 * EXTENT_BYTES + 2 * BLOCK_BYTES;
pub const VOLUME_BLOCKS: u64 = VOLUME_BYTES / BLOCK_BYTES;

const VOLUME: VolumeId = VolumeId(7);
/// No such device.
const ENODEV: i32 = 19;
const DEVICE_BYTES: u64 = 40 << 20;

pub struct Side {
    pub sim: Sim,
    pub name: &'static str,
    pub world: World,
    pub instance: InstanceId,
    pub volume: Rc<Volume>,
    pub device: SimDevice,
    pub faults: Rc<FailNth>,
    socket: Rc<Socket>,
    meta: MemoryMeta,
    _store: Rc<Store>,
}

impl Drop for Side {
    fn drop(&mut self) {
        // Volume and sender hold each other.
        self.volume.set_tap(None);
        // What a store of one test keeps is no load on the next.
        self.socket.0.take();
    }
}

/// Where the device is plugged in.
struct Socket(RefCell<Option<SimDevice>>);

impl Socket {
    fn device(&self) -> Result<SimDevice, DeviceError> {
        self.0.borrow().clone().ok_or(DeviceError::Io { errno: ENODEV, offset: 0, len: 0 })
    }
}

impl Device for Socket {
    fn size_bytes(&self) -> u64 {
        DEVICE_BYTES
    }
    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        match self.device() {
            Ok(device) => Box::pin(async move { device.read(offset, buffer).await }),
            Err(error) => Box::pin(async move { (Err(error), buffer) }),
        }
    }
    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        match self.device() {
            Ok(device) => Box::pin(async move { device.write(offset, buffer).await }),
            Err(error) => Box::pin(async move { (Err(error), buffer) }),
        }
    }
    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        match self.device() {
            Ok(device) => Box::pin(async move { device.sync().await }),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }
    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        match self.device() {
            Ok(device) => Box::pin(async move { device.discard(offset, len).await }),
            Err(error) => Box::pin(async move { Err(error) }),
        }
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
        let socket = Rc::new(Socket(RefCell::new(Some(device.clone()))));
        let faults = Rc::new(FailNth::new(socket.clone()));
        let slots = DEVICE_BYTES / EXTENT_BYTES;
        let tiers = Tiers::new(vec![TierSpec { name: "fast".into(), class: TierClass::Nvme, slots }]);
        Store::scan_slots(&meta, &tiers).await.unwrap();
        let devices: Vec<Rc<dyn Device>> = vec![faults.clone()];
        let store =
            Store::open(StoreConfig::default(), world.clone(), devices, tiers, Rc::new(meta.clone())).await.unwrap();
        let volume = store.create_volume(VOLUME, "vol", VOLUME_BYTES).await.unwrap();
        Self {
            sim: sim.clone(),
            name,
            world,
            instance: InstanceId(instance),
            volume,
            device,
            faults,
            socket,
            meta,
            _store: store,
        }
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
