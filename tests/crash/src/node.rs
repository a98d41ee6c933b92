//! A simulated node of two tiers, with one shard or several, and what is left of it.

use crate::layers::{LateReads, MemoryPlace, ObservedMeta};
use drover_base::{VolumeId, World, units::EXTENT_BYTES, world::Random};
use drover_disk::{
    Device,
    fault::{Event, FailNth, Observe},
    sim::{SimDevice, SimImage},
};
use drover_sim::runtime::Generator;
use drover_store::{
    DiscardPace, Store, StoreConfig, StoreError, TierClass, TierSpec, Tiers,
    checkpoint::CheckpointPlace,
    meta::memory::{MemoryImage, MemoryMeta},
};
use std::{cell::RefCell, rc::Rc, time::Duration};

pub const VOLUME: VolumeId = VolumeId(7);
/// As large as a volume becomes.
pub const VOLUME_BYTES: u64 = 16 << 20;
/// As large as one is made that grows: it ends within an extent.
pub const VOLUME_BYTES_AT_FIRST: u64 = (6 << 20) + 5 * 4096;

/// What is free is discarded while it is still wanted.
pub const EAGER: DiscardPace =
    DiscardPace { look_every: Duration::from_micros(500), pause: Duration::from_micros(100) };

/// What survives a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    pub devices: Vec<SimImage>,
    pub meta: MemoryImage,
}

impl Images {
    /// A node that never ran, with so many slots on its fast and its slow tier.
    pub fn new(slots: [u64; 2]) -> Self {
        let devices = slots.iter().map(|slots| SimImage::new(slots * EXTENT_BYTES)).collect();
        Self { devices, meta: MemoryImage::new() }
    }

    pub fn slots(&self) -> Vec<u64> {
        self.devices.iter().map(|device| device.size_bytes() / EXTENT_BYTES).collect()
    }
}

/// A shard of the running node.
pub struct Node {
    pub world: World,
    pub devices: Vec<SimDevice>,
    pub meta: MemoryMeta,
    pub tiers: Tiers,
    pub store: Rc<Store>,
    /// One layer over each device, to make a request fail.
    pub faults: Vec<Rc<FailNth>>,
}

/// How a node is set up. Runs differ in it.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub slots: [u64; 2],
    pub active_regions_max: usize,
    pub has_checkpoint: bool,
    pub discard_pace: DiscardPace,
}

impl Setup {
    pub fn draw(random: &mut Generator) -> Self {
        Self {
            // Few slots, so that freed ones are soon used again; sometimes too few.
            slots: [random.between(4, 60), random.between(10, 80)],
            active_regions_max: *random.pick(&[1, 2, 3, 4096]),
            has_checkpoint: random.below(3) == 0,
            // The usual pace is too slow for a life of a second.
            discard_pace: *random.pick(&[EAGER, DiscardPace::default()]),
        }
    }
}

/// Told of the moments at which a crash is worth a look.
pub type Observer = Rc<dyn Fn(&'static str)>;

/// A generator where the engine wants chance.
pub struct Chance(pub RefCell<Generator>);

impl Random for Chance {
    fn next_u64(&self) -> u64 {
        self.0.borrow_mut().next_u64()
    }
}

/// The parts of a node before its store is opened: crash images can be taken from them at any time.
#[derive(Clone)]
pub struct Parts {
    pub world: World,
    pub devices: Vec<SimDevice>,
    pub meta: MemoryMeta,
}

impl Parts {
    pub fn new(world: World, images: &Images) -> Self {
        let device = |image: &SimImage| SimDevice::from_image(world.clone(), image.clone());
        let devices = images.devices.iter().map(device).collect();
        Self { devices, meta: MemoryMeta::from_image(world.clone(), images.meta.clone()), world }
    }

    /// What a loss of power would leave now; or, if only the process is killed, what it had submitted.
    pub fn crash_images(&self, random: &dyn Random, is_power_lost: bool) -> Images {
        // Metadata first: on a real machine both stop at one moment, and here nothing runs in between.
        let meta = self.meta.crash_image(random);
        let image = |device: &SimDevice| {
            if is_power_lost { device.crash_image(random) } else { device.killed_image() }
        };
        Images { devices: self.devices.iter().map(image).collect(), meta }
    }

    /// Opens the store. `observer` is told of syncs, commits and finished writes.
    pub async fn open(&self, setup: &Setup, observer: Observer) -> Result<Node, StoreError> {
        let place = || Rc::new(MemoryPlace::new(self.world.clone())) as Rc<dyn CheckpointPlace>;
        let config = StoreConfig {
            checkpoint: setup.has_checkpoint.then(place),
            active_regions_max: setup.active_regions_max,
            discard_pace: setup.discard_pace,
            ..StoreConfig::default()
        };
        self.open_with(config, observer).await
    }

    pub async fn open_with(&self, config: StoreConfig, observer: Observer) -> Result<Node, StoreError> {
        let mut nodes = self.open_shards(config, observer).await?;
        Ok(nodes.pop().expect("a node has a shard"))
    }

    /// The `shards` of the configuration, over the same devices, slots and metadata.
    pub async fn open_shards(&self, config: StoreConfig, observer: Observer) -> Result<Vec<Node>, StoreError> {
        let specs = self.devices.iter().enumerate().map(|(at, device)| TierSpec {
            name: format!("tier-{at}"),
            class: [TierClass::Nvme, TierClass::Hdd][at.min(1)],
            slots: device.size_bytes() / EXTENT_BYTES,
            discards: true,
        });
        let tiers = Tiers::new(specs.collect());
        let meta = Rc::new(ObservedMeta { inner: Rc::new(self.meta.clone()), observer: observer.clone() });
        Store::scan_slots(&*meta, &tiers).await?;
        let mut nodes = Vec::new();
        for shard in 0..config.shards {
            let late = |device: &SimDevice| Rc::new(LateReads::new(self.world.clone(), Rc::new(device.clone())));
            let faults: Vec<_> = self.devices.iter().map(|device| Rc::new(FailNth::new(late(device)))).collect();
            let devices = faults.iter().map(|device| {
                let observer = observer.clone();
                Rc::new(Observe::new(device.clone(), move |event| observer(name(event)))) as Rc<dyn Device>
            });
            let config = StoreConfig { shard, ..config.clone() };
            let (world, meta) = (self.world.clone(), meta.clone());
            let store = Store::open(config, world, devices.collect(), tiers.clone(), meta).await?;
            let Self { world, devices, meta } = self.clone();
            nodes.push(Node { world, devices, meta, tiers: tiers.clone(), store, faults });
        }
        Ok(nodes)
    }
}

fn name(event: Event) -> &'static str {
    match event {
        Event::SyncBegins => "before a sync",
        Event::SyncEnds { .. } => "after a sync",
        Event::WriteEnds { .. } => "after a write",
        Event::DiscardBegins { .. } => "before a discard",
        Event::DiscardEnds { .. } => "after a discard",
    }
}

impl Node {
    /// Slots that are neither free nor held.
    pub fn slots_used(&self) -> Vec<u64> {
        self.tiers.usage().iter().map(|tier| tier.slots_used).collect()
    }
}
