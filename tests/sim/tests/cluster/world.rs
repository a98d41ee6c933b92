//! The processes: nodes `a` and `b`, the node `gateway` without tiers, and the control plane; where the volume is written
//! by many, another such node, `far`. Clients live and die with the node that they are attached to.
//!
//! Invariants: a node's storage outlives its process; a process that is `busy` is down or paused by a fault, and is left
//! to that fault until it has brought it back.

use crate::met::{Fault, Met};
use drover_base::units::EXTENT_BYTES;
use drover_base::{InstanceId, NodeId, VolumeId, World};
use drover_control::{Control, ControlConfig};
use drover_meta::{MemoryDisk, MemoryMetaStore};
use drover_node::{Common, LocalNode, NodeSettings, NodeStorage};
use drover_sim::runtime::Sim;
use drover_sim::storage::{End, Opened, Storage};
use drover_store::{Store, StoreConfig, TierClass, TierSpec, Tiers};
use drover_types::{CreateExport, CreateVolume, Phase};
use drover_wire::admin::{NodeAddress, Role};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    rc::Rc,
    time::Duration,
};

pub const SIZE: u64 = 16 << 20;
/// All nodes there may be, in the order of their clients' numbers.
pub const NODES: [&str; 4] = ["a", "b", "gateway", "far"];

/// Who takes part.
pub struct Cast {
    pub nodes: &'static [&'static str],
    pub processes: &'static [&'static str],
    /// Nodes with clients, and how many each has.
    pub clients: &'static [(&'static str, usize)],
}

/// One program, anywhere: what migrations are for.
pub const ONE: Cast =
    Cast { nodes: &["a", "b", "gateway"], processes: &["a", "b", "gateway", "control"], clients: &[("gateway", 4)] };

/// Clients that share the volume.
pub const MANY: Cast = Cast {
    nodes: &NODES,
    processes: &["a", "b", "gateway", "far", "control"],
    clients: &[("a", 1), ("b", 1), ("gateway", 3), ("far", 3)],
};

pub const VOLUME_NAME: &str = "v";
/// The name under which a node exports the volume.
pub fn export_of(node: &str) -> String {
    format!("vol-{node}")
}

const CONTROL: &str = "control:1";
const SECRET: [u8; 32] = [5; 32];
const SLOTS: u64 = 1024;

struct Machine {
    storage: Storage,
    slots: u64,
    node: Option<Rc<LocalNode>>,
}

pub struct Cluster {
    pub sim: Sim,
    machines: RefCell<BTreeMap<String, Machine>>,
    disk: MemoryDisk,
    control: RefCell<Option<Rc<Control>>>,
    starts: Cell<u64>,
    pub busy: RefCell<BTreeSet<String>>,
    /// When a fault kept a node from being heard by the control plane, or heard from: from, to.
    absences: RefCell<Vec<(String, Duration, Duration)>>,
    pub cast: Cast,
    /// The migration, and where it was last seen.
    migration: RefCell<Option<String>>,
    last_phase: Cell<Phase>,
    pub met: RefCell<Met>,
    tells: bool,
}

impl Cluster {
    /// All processes run, and the volume is at `a`, exported at each node that has clients.
    pub async fn start(sim: Sim, cast: Cast, tells: bool) -> Rc<Self> {
        let machine = |name: &str, slots: u64| {
            let sizes: &[u64] = if slots > 0 { &[slots * EXTENT_BYTES] } else { &[] };
            (name.to_owned(), Machine { storage: Storage::new(&sim.process(name), sizes), slots, node: None })
        };
        let slots = |name| if matches!(name, "a" | "b") { SLOTS } else { 0 };
        let machines = cast.nodes.iter().map(|name| machine(name, slots(*name)));
        let cluster = Rc::new(Self {
            sim: sim.clone(),
            machines: RefCell::new(machines.collect()),
            disk: MemoryDisk::default(),
            control: RefCell::default(),
            starts: Cell::default(),
            busy: RefCell::default(),
            absences: RefCell::default(),
            cast,
            migration: RefCell::default(),
            last_phase: Cell::new(Phase::Planned),
            met: RefCell::default(),
            tells,
        });
        cluster.start_control().await;
        for name in cluster.cast.nodes {
            cluster.start_node(name).await;
        }
        let count = cluster.cast.nodes.len();
        while cluster.command(|control| async move { control.list_nodes().len() }).await != Some(count) {
            sim.sleep(Duration::from_millis(10)).await;
        }
        let volume = CreateVolume { name: VOLUME_NAME.into(), size_bytes: SIZE, node: "a".into(), tenant: None };
        let made = cluster.command(|control| async move { control.create_volume(volume, None).await }).await;
        let volume = made.expect("it lives").expect("there is room").value.id;
        for (node, _) in cluster.cast.clients {
            let (volume, name) = (volume.clone(), Some(export_of(node)));
            let export = CreateExport { volume, node: (*node).into(), name, workload: None };
            let made = cluster.command(|control| async move { control.create_export(export, None).await }).await;
            made.expect("it lives").expect("the name is free");
        }
        cluster
    }

    /// From now on the control plane does not hear the node, for so long.
    pub fn note_absence(&self, name: &str, lasts: Duration) {
        let now = self.sim.now();
        self.absences.borrow_mut().push((name.into(), now, now + lasts));
    }

    /// How long the node was not to be heard between two moments.
    pub fn absent_between(&self, name: &str, from: Duration, to: Duration) -> Duration {
        let absences = self.absences.borrow();
        let mut spans: Vec<_> =
            absences.iter().filter(|(of, ..)| of == name).map(|(_, since, until)| (*since, *until)).collect();
        spans.sort();
        let (mut total, mut seen) = (Duration::ZERO, from);
        for (since, until) in spans {
            let (since, until) = (since.max(seen), until.min(to));
            total += until.saturating_sub(since);
            seen = seen.max(until);
        }
        total
    }

    /// Tells the reader of a single seed's run.
    pub fn tell(&self, text: &str) {
        if self.tells {
            println!("{:>12.6} {text}", self.sim.now().as_secs_f64());
        }
    }

    pub async fn start_node(&self, name: &str) {
        let process = self.sim.process(name);
        self.starts.set(self.starts.get() + 1);
        let settings = NodeSettings {
            address: NodeAddress {
                node: NodeId::new(name).expect("a name"),
                peer: format!("{name}:peer"),
                migration: format!("{name}:migration"),
            },
            admin: format!("{name}:admin"),
            instance: InstanceId(self.starts.get()),
            secret: SECRET,
            control: Some(CONTROL.into()),
            nbd_unix: None,
            nbd_tcp: None,
        };
        // Each start has another number of shards, so that the volume changes its home.
        let shards = 1 + ((self.sim.seed() + self.starts.get()) % 3) as u32;
        let (opened, slots) = {
            let machine = &self.machines.borrow()[name];
            (machine.storage.open(), machine.slots)
        };
        let node =
            process.run(boot(settings, process.world(), opened, slots, shards)).await.expect("nobody kills it yet");
        self.machines.borrow_mut().get_mut(name).expect("it is one of the nodes").node = Some(node);
    }

    pub fn kill_node(&self, name: &str, end: End) {
        let mut machines = self.machines.borrow_mut();
        let machine = machines.get_mut(name).expect("it is one of the nodes");
        machine.storage.kill(end);
        machine.node = None;
    }

    pub fn node(&self, name: &str) -> Option<Rc<LocalNode>> {
        self.machines.borrow()[name].node.clone()
    }

    pub async fn start_control(&self) {
        let process = self.sim.process("control");
        let (world, disk) = (process.world(), self.disk.clone());
        let start = async move {
            let config = ControlConfig { secret: SECRET, ..ControlConfig::default() };
            let store = Rc::new(MemoryMetaStore::open(world.clone(), disk));
            let control = Control::start(config, world, store).await.expect("the store is sound");
            control.serve(CONTROL).await.expect("the address is free");
            control
        };
        let control = process.run(start).await.expect("nobody kills it yet");
        self.control.replace(Some(control));
    }

    pub fn kill_control(&self) {
        self.control.replace(None);
        self.sim.kill("control");
    }

    /// Runs a command in the control plane's process; `None`: it is down, or died meanwhile.
    pub async fn command<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        command: impl FnOnce(Rc<Control>) -> F,
    ) -> Option<T> {
        let control = self.control.borrow().clone()?;
        self.sim.process("control").run(command(control)).await.ok()
    }

    /// Who says of itself that it holds the volume, and under which epoch.
    pub fn holders(&self) -> Vec<(String, VolumeId, u64)> {
        let machines = self.machines.borrow();
        let running = machines.iter().filter_map(|(name, machine)| Some((name, machine.node.as_ref()?)));
        running
            .flat_map(|(name, node)| node.status().volumes.into_iter().map(move |volume| (name.clone(), volume)))
            .filter(|(_, volume)| volume.role == Role::Holder)
            .map(|(name, volume)| (name, volume.volume, volume.epoch.0))
            .collect()
    }

    /// From now on phases are those of this migration.
    pub fn follow(&self, migration: &str) {
        *self.migration.borrow_mut() = Some(migration.into());
    }

    /// Where the migration stands, or stood when the control plane was last up.
    pub fn phase(&self) -> Phase {
        if let (Some(control), Some(migration)) = (&*self.control.borrow(), &*self.migration.borrow())
            && let Ok(seen) = control.show_migration(migration)
        {
            self.last_phase.set(seen.value.phase);
        }
        self.last_phase.get()
    }

    /// A fault begins.
    pub fn note_fault(&self, fault: Fault) {
        self.met.borrow_mut().note(self.phase(), fault);
    }

    /// Whether the control plane says that a lease was taken over.
    pub fn is_taken_over(&self) -> bool {
        let control = self.control.borrow();
        let events = control.as_ref().map(|control| control.events(0, 10_000, None)).unwrap_or_default();
        events.iter().any(|event| event.kind == "migration.taken_over")
    }

    /// What the control plane says happened.
    pub fn told(&self) -> String {
        let control = self.control.borrow();
        let Some(control) = control.as_ref() else { return "the control plane is down".into() };
        let events = control.events(0, 10_000, None);
        let last = events.iter().rev().take(40).rev();
        let lines: Vec<String> = last.map(|event| format!("{} {} {}", event.at_ms, event.kind, event.text)).collect();
        let migrations = control.list_migrations(None).unwrap_or_default();
        let migrations: Vec<_> = migrations.into_iter().map(|tagged| tagged.value).collect();
        format!("{}\n{migrations:#?}", lines.join("\n"))
    }
}

/// A node of so many shards over the same devices.
async fn boot(settings: NodeSettings, world: World, opened: Opened, slots: u64, shards: u32) -> Rc<LocalNode> {
    let tier = (slots > 0).then(|| TierSpec { name: "t".into(), class: TierClass::Nvme, slots, discards: true });
    let tiers = Tiers::new(tier.into_iter().collect());
    let (devices, meta) = (opened.devices, opened.meta);
    Store::scan_slots(&*meta, &tiers).await.expect("records are whole");
    let common = Common::new(tiers.clone());
    let mut storages = Vec::new();
    for shard in 0..shards {
        let config = StoreConfig { shard, shards, ..StoreConfig::default() };
        let opening = Store::open(config, world.clone(), devices.clone(), tiers.clone(), meta.clone());
        let store = opening.await.expect("it opens");
        storages.push(NodeStorage { store, meta: meta.clone(), common: common.clone() });
    }
    let node = LocalNode::start(settings, world, common, storages).await.expect("it starts");
    node.serve().await.expect("its addresses are free");
    node
}
