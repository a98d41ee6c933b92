//! Simulated nodes and a control plane of the fewest lines: it records grants, and says what it has recorded.

use crate::nbd::{BlockExport, BlockService, ExportName, ZeroRequest};
use crate::{Common, LocalNode, NodeSettings, NodeStorage};
use drover_base::units::EXTENT_BYTES;
use drover_base::{Epoch, InstanceId, IoError, NodeId, VolumeId, World};
use drover_disk::sim::{SimDevice, SimImage};
use drover_disk::{Buffer, Device};
use drover_sim::runtime::Sim;
use drover_store::meta::memory::{MemoryImage, MemoryMeta};
use drover_store::{Store, StoreConfig, TierClass, TierSpec, Tiers};
use drover_wire::admin::{
    ControlReply, ControlRequest, Export, Grant, IoLimits, NodeAddress, NodeReply, NodeRequest, Refusal,
};
use drover_wire::preamble::{Channel, Preamble};
use drover_wire::rpc::{self, RpcClient};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

pub const SLOTS: u64 = 512;
pub const SIZE: u64 = 16 << 20;
pub const VOLUME: VolumeId = VolumeId(7);
const CONTROL: &str = "control:1";
pub const SECRET: [u8; 32] = [5; 32];

/// One machine: what survives its deaths, and the node that runs on it.
struct Machine {
    device: SimDevice,
    meta: MemoryMeta,
    node: Option<Rc<LocalNode>>,
}

/// What the control plane has recorded, and what it did.
#[derive(Default)]
pub struct Recorded {
    pub grants: BTreeMap<VolumeId, Grant>,
    /// Volumes whose leases it does not renew now.
    pub refuses_renewals: bool,
    /// What it answers who registers, if it lets nobody in.
    pub refusal: Option<Refusal>,
    /// (open, change) of each change of the way back.
    pub way_back: Vec<(bool, u64)>,
    /// How often it was asked who holds a volume.
    pub lookups: u64,
}

#[derive(Clone)]
pub struct Cluster {
    pub sim: Sim,
    machines: Rc<RefCell<BTreeMap<String, Machine>>>,
    pub recorded: Rc<RefCell<Recorded>>,
    starts: Rc<Cell<u64>>,
}

pub fn address(name: &str) -> NodeAddress {
    let node = NodeId::new(name).expect("a name");
    NodeAddress { node, peer: format!("{name}:peer"), migration: format!("{name}:migration") }
}

pub fn grant(epoch: u64, revision: u64, holder: &str, ttl_ms: Option<u64>) -> Grant {
    let limits = IoLimits::default();
    Grant { volume: VOLUME, epoch: Epoch(epoch), revision, holder: address(holder), ttl_ms, leg: None, limits }
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        let cluster = Self {
            sim: Sim::new(seed),
            machines: Rc::default(),
            recorded: Rc::default(),
            starts: Rc::new(Cell::new(0)),
        };
        cluster.sim.set_time_limit(Duration::from_secs(600));
        cluster.start_control();
        cluster
    }

    pub fn start_control(&self) {
        let process = self.sim.process("control");
        let (world, recorded) = (process.world(), self.recorded.clone());
        process.spawn(async move {
            let preamble = Preamble::new(Channel::Control, SECRET);
            let mut listener = world.net.listen(CONTROL).await.expect("the address is free");
            while let Ok(connection) = listener.accept().await {
                let recorded = recorded.clone();
                let handle = move |request| std::future::ready(recorded.borrow_mut().answer(request));
                let serve = rpc::serve::<ControlRequest, ControlReply, _, _>(
                    world.clone(),
                    preamble,
                    connection,
                    |_| None,
                    handle,
                );
                world.spawn(serve).detach();
            }
        });
    }

    pub fn kill_control(&self) {
        self.sim.kill("control");
    }

    /// Starts the node of that name on what its machine has, with another number of shards than the last time, and
    /// exports the volume there as `vol`.
    pub async fn start(&self, name: &str) {
        self.start_exporting(name, false).await;
    }

    /// The same, as if its metadata had been lost and were now restored as of its last moment.
    pub async fn start_restored(&self, name: &str) {
        self.start_exporting(name, true).await;
    }

    async fn start_exporting(&self, name: &str, is_restored: bool) {
        let shards = 1 + ((self.sim.seed() + self.starts.get()) % 3) as u32;
        self.start_from(name, shards, is_restored).await;
        let export = Export { name: "vol".into(), volume: VOLUME, size_bytes: SIZE, workload: None };
        self.ask(name, NodeRequest::SetExport { export }).await;
    }

    /// Starts the node of that name on what its machine has, with so many shards.
    pub async fn start_shards(&self, name: &str, shards: u32) {
        self.start_from(name, shards, false).await;
    }

    async fn start_from(&self, name: &str, shards: u32, is_restored: bool) {
        let process = self.sim.process(name);
        let world = process.world();
        let (image, meta) = match self.machines.borrow_mut().remove(name) {
            Some(machine) => {
                let random = &*world.random;
                (machine.device.crash(random), machine.meta.crash(random))
            }
            None => (SimImage::new(SLOTS * EXTENT_BYTES), MemoryImage::new()),
        };
        let device = SimDevice::from_image(world.clone(), image);
        let meta = MemoryMeta::from_image(world.clone(), meta);
        let machine = Machine { device: device.clone(), meta: meta.clone(), node: None };
        self.machines.borrow_mut().insert(name.into(), machine);
        self.starts.set(self.starts.get() + 1);
        let settings = NodeSettings {
            address: address(name),
            admin: format!("{name}:admin"),
            instance: InstanceId(self.starts.get()),
            secret: SECRET,
            control: Some(CONTROL.into()),
            nbd_unix: None,
            nbd_tcp: None,
        };
        let node = process.run(boot(settings, world, device, meta, shards, is_restored)).await.expect("it lives");
        self.machines.borrow_mut().get_mut(name).expect("just put").node = Some(node);
    }

    /// Power is lost.
    pub fn kill(&self, name: &str) {
        self.sim.kill(name);
        let machine = &mut self.machines.borrow_mut();
        machine.get_mut(name).expect("it was started").node = None;
    }

    /// The next sync of the machine's device fails.
    pub fn fail_sync(&self, name: &str) {
        self.machines.borrow()[name].device.fail_sync_after(0);
    }

    /// Asks as the control plane does, from a process of its own.
    pub async fn request(&self, name: &str, request: NodeRequest) -> NodeReply {
        let process = self.sim.process("admin");
        let world = process.world();
        let client = RpcClient::<NodeRequest, NodeReply>::new(
            world,
            &format!("{name}:admin"),
            Preamble::new(Channel::Admin, SECRET),
        );
        let called = process.run(async move { client.call(&request, Duration::from_secs(60)).await });
        called.await.expect("it lives").expect("a reply")
    }

    /// The same, where nothing but success is expected.
    pub async fn ask(&self, name: &str, request: NodeRequest) -> NodeReply {
        let told = format!("{request:?}");
        let reply = self.request(name, request).await;
        assert!(!matches!(reply, NodeReply::Refused(_)), "{told}: {reply:?}");
        reply
    }

    pub async fn create(&self, name: &str) {
        let (volume, size_bytes, epoch) = (VOLUME, SIZE, Epoch(1));
        self.recorded.borrow_mut().grants.insert(VOLUME, grant(1, 0, name, None));
        self.ask(
            name,
            NodeRequest::CreateVolume { volume, name: "data".into(), size_bytes, epoch, tenant: "shop".into() },
        )
        .await;
    }

    /// Records a grant and tells it to a node.
    pub async fn set_grant(&self, name: &str, grant: Grant) -> NodeReply {
        self.request(name, NodeRequest::SetGrant { grant }).await
    }

    pub fn node(&self, name: &str) -> Rc<LocalNode> {
        self.machines.borrow()[name].node.clone().expect("it runs")
    }

    /// A client attached to that node.
    pub async fn attach(&self, name: &str) -> Client {
        self.attach_to(name, "vol").await
    }

    pub async fn attach_to(&self, name: &str, export: &str) -> Client {
        self.open(name, ExportName { export: export.into(), workload: None }).await
    }

    /// A client that names its workload.
    pub async fn attach_as(&self, name: &str, workload: &str) -> Client {
        self.open(name, ExportName { export: "vol".into(), workload: Some(workload.into()) }).await
    }

    async fn open(&self, name: &str, export: ExportName) -> Client {
        let node = self.node(name);
        let exports: Rc<dyn BlockService> = node.exports();
        let opened = exports.open(&export).await;
        Client { export: opened.expect("it is exported").export, process: self.sim.process(name) }
    }
}

/// A node of so many shards over one device.
async fn boot(
    settings: NodeSettings,
    world: World,
    device: SimDevice,
    meta: MemoryMeta,
    shards: u32,
    is_restored: bool,
) -> Rc<LocalNode> {
    let tiers = Tiers::new(vec![TierSpec { name: "t".into(), class: TierClass::Nvme, slots: SLOTS, discards: false }]);
    let meta: Rc<dyn drover_store::meta::Meta> = Rc::new(meta);
    if is_restored {
        crate::distrust_seats(&*meta).await.expect("records are whole");
    }
    Store::scan_slots(&*meta, &tiers).await.expect("records are whole");
    let common = Common::new(tiers.clone());
    let mut storages = Vec::new();
    for shard in 0..shards {
        let config = StoreConfig { shard, shards, ..StoreConfig::default() };
        let devices: Vec<Rc<dyn Device>> = vec![Rc::new(device.clone())];
        let store = Store::open(config, world.clone(), devices, tiers.clone(), meta.clone()).await.expect("it opens");
        storages.push(NodeStorage { store, meta: meta.clone(), common: common.clone() });
    }
    let node = LocalNode::start(settings, world, common, storages).await.expect("it starts");
    node.serve().await.expect("its addresses are free");
    node
}

impl Recorded {
    fn answer(&mut self, request: ControlRequest) -> ControlReply {
        match request {
            ControlRequest::Register { node } => {
                let concerns = |grant: &&Grant| {
                    let other = grant.leg.as_ref().map(|leg| &leg.other.node);
                    grant.holder.node == node.address.node || other == Some(&node.address.node)
                };
                match (&self.refusal, self.refuses_renewals) {
                    (Some(refusal), _) => ControlReply::Refused(refusal.clone()),
                    (None, true) => ControlReply::Refused(Refusal::Conflict { reason: "not now".into() }),
                    (None, false) => {
                        ControlReply::Registered { grants: self.grants.values().filter(concerns).cloned().collect() }
                    }
                }
            }
            // Another start is registered under the name, or none: over a connection made anew, too.
            ControlRequest::Renew { .. } if self.refusal.is_some() => {
                ControlReply::Refused(Refusal::Conflict { reason: "register first".into() })
            }
            ControlRequest::Renew { node, leases, .. } => {
                let mut renewed = Vec::new();
                let mut changed = Vec::new();
                for (volume, epoch) in leases {
                    let Some(grant) = self.grants.get(&volume) else { continue };
                    let holds = grant.epoch == epoch && grant.holder.node == node;
                    if holds && !self.refuses_renewals {
                        renewed.push(volume);
                    } else if !holds {
                        changed.push(grant.clone());
                    }
                }
                ControlReply::Renewed { renewed, changed }
            }
            ControlRequest::Lookup { volume } => {
                self.lookups += 1;
                match self.grants.get(&volume) {
                    Some(grant) => ControlReply::Grant(Box::new(grant.clone())),
                    None => ControlReply::Refused(Refusal::NotFound { what: volume.to_string() }),
                }
            }
            ControlRequest::CloseWayBack { epoch, change, .. } => self.change_way_back(false, epoch, change),
            ControlRequest::OpenWayBack { epoch, change, .. } => self.change_way_back(true, epoch, change),
            ControlRequest::Event { .. } => ControlReply::Done,
        }
    }

    fn change_way_back(&mut self, open: bool, asked: Epoch, change: u64) -> ControlReply {
        let known = self.grants[&VOLUME].epoch;
        if asked < known {
            return ControlReply::Refused(Refusal::Epoch { asked, known });
        }
        if self.way_back.last().is_some_and(|(_, last)| *last > change) {
            return ControlReply::Refused(Refusal::Conflict { reason: "older".into() });
        }
        if self.way_back.last() != Some(&(open, change)) {
            self.way_back.push((open, change));
        }
        ControlReply::Done
    }
}

/// What a guest sees of an export: whole blocks of one letter.
#[derive(Clone)]
pub struct Client {
    export: Rc<dyn BlockExport>,
    process: drover_sim::runtime::Process,
}

impl Client {
    pub async fn write(&self, block: u64, letter: u8) -> Result<(), IoError> {
        let data = Buffer::from_slice(&[letter; 4096]);
        let request = self.export.clone().write(block * 4096, data, false);
        self.process.run(request).await.expect("it lives")
    }

    pub async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), IoError> {
        let request = self.export.clone().write(offset, Buffer::from_slice(bytes), false);
        self.process.run(request).await.expect("it lives")
    }

    pub async fn zero(&self, block: u64) -> Result<(), IoError> {
        let zero = ZeroRequest { may_unmap: true, fast_only: false, fua: false };
        let request = self.export.clone().write_zeroes(block * 4096, 4096, zero);
        self.process.run(request).await.expect("it lives")
    }

    pub async fn flush(&self) -> Result<(), IoError> {
        self.process.run(self.export.clone().flush()).await.expect("it lives")
    }

    /// The letter that the block is full of.
    pub async fn read(&self, block: u64) -> Result<u8, IoError> {
        let request = self.export.clone().read(block * 4096, 4096);
        let buffer = self.process.run(request).await.expect("it lives")?;
        assert!(buffer.iter().all(|byte| *byte == buffer[0]), "block {block} is torn");
        Ok(buffer[0])
    }
}

/// Runs the case once for each seed, each in a cluster of its own.
pub fn each_seed(seeds: std::ops::Range<u64>, case: impl AsyncFn(Cluster)) {
    for seed in seeds {
        let cluster = Cluster::new(seed);
        cluster.sim.clone().block_on(case(cluster));
    }
}
