//! Some fake nodes, a client and the control plane in one simulated world.

use super::fake_node::{Disk, FakeNode, Habits, SECRET, Seat};
use crate::{Control, ControlConfig};
use drover_base::{Epoch, InstanceId, NodeId, VolumeId};
use drover_meta::{MemoryDisk, MemoryMetaStore};
use drover_sim::runtime::{Generator, Sim};
use drover_types::{ApiError, CreateVolume, Migration, MigrationOptions, Phase, StartMigration};
use drover_wire::admin::Role;
use futures::future::{Either, select};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    rc::Rc,
    time::Duration,
};

/// What must hold of what nodes do for clients.
#[derive(Default)]
pub struct Checker {
    /// In the order of their answers.
    acknowledged: RefCell<Vec<u64>>,
    epoch: Cell<u64>,
    /// Who applied last, and how many of the acknowledged it was seen to have: a holder's content only grows.
    applied: RefCell<Option<(InstanceId, Epoch, usize)>>,
    pub violations: RefCell<Vec<String>>,
}

impl Checker {
    fn violation(&self, text: String) {
        let mut violations = self.violations.borrow_mut();
        if violations.len() < 10 {
            violations.push(text);
        }
    }

    /// A node is about to apply a client's write.
    pub fn applies(&self, by: &FakeNode, epoch: Epoch, seat: &Seat) {
        let node = &by.name;
        if epoch.0 < self.epoch.get() {
            self.violation(format!("{node} applies under epoch {epoch} after {}", self.epoch.get()));
        }
        self.epoch.set(self.epoch.get().max(epoch.0));
        let acknowledged = self.acknowledged.borrow();
        let seen = self.applied.borrow().filter(|(instance, of, _)| (*instance, *of) == (by.instance, epoch));
        let unseen = &acknowledged[seen.map_or(0, |(.., count)| count)..];
        let missing = unseen.iter().filter(|number| !seat.content.contains(number)).count();
        self.applied.replace(Some((by.instance, epoch, acknowledged.len())));
        if missing > 0 {
            self.violation(format!("{node} serves under epoch {epoch} and lacks {missing} acknowledged writes"));
        }
    }

    pub fn acknowledged(&self, number: u64, epoch: Epoch) {
        if epoch.0 < self.epoch.get() {
            self.violation(format!("{number} is acknowledged under epoch {epoch} after {}", self.epoch.get()));
        }
        self.acknowledged.borrow_mut().push(number);
    }

    /// A copy of everything needs an empty destination.
    pub fn sends_all(&self, volume: VolumeId, destination: &NodeId, cluster: &Cluster) {
        let disk = cluster.disk(destination);
        if disk.borrow().get(&volume).is_some_and(|seat| !seat.content.is_empty()) {
            self.violation(format!("everything is sent to {destination}, which is not empty, without comparing"));
        }
    }

    /// A node dropped its copy: a sound one must be left at the holder.
    pub fn dropped(&self, volume: VolumeId, cluster: &Cluster) {
        if volume != cluster.volume.get() {
            // Nothing was written to it.
            return;
        }
        let acknowledged = self.acknowledged.borrow();
        let sound = cluster.disks.borrow().values().any(|disk| {
            let disk = disk.borrow();
            disk.get(&volume).is_some_and(|seat| {
                let has_all = acknowledged.iter().all(|number| seat.content.contains(number));
                seat.role == Role::Holder && seat.damaged.is_empty() && has_all
            })
        });
        if !sound {
            self.violation("a copy was dropped and no holder has all that was acknowledged".into());
        }
    }
}

pub struct Cluster {
    pub sim: Sim,
    pub checker: Checker,
    disks: RefCell<BTreeMap<NodeId, Disk>>,
    nodes: RefCell<BTreeMap<NodeId, Rc<FakeNode>>>,
    habits: RefCell<BTreeMap<NodeId, Habits>>,
    /// The nodes do not reach each other.
    pub cut: Cell<bool>,
    pub store: MemoryDisk,
    control: RefCell<Option<Rc<Control>>>,
    pub written: Cell<u64>,
    pub volume: Cell<VolumeId>,
}

pub const TTL: Duration = Duration::from_secs(9);

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a name")
}

impl Cluster {
    /// Nodes a and b, the control plane, and a volume `v` at a that a client writes to.
    pub fn new(seed: u64) -> Rc<Self> {
        let cluster = Rc::new(Self {
            sim: Sim::new(seed),
            checker: Checker::default(),
            disks: RefCell::default(),
            nodes: RefCell::default(),
            habits: RefCell::default(),
            cut: Cell::default(),
            store: MemoryDisk::default(),
            control: RefCell::default(),
            written: Cell::default(),
            volume: Cell::default(),
        });
        cluster.start_control();
        for name in ["a", "b"] {
            cluster.set_habits(name, |habits| habits.free_bytes = 1 << 30);
            cluster.start_node(name);
        }
        cluster.wait("the nodes to register", |control| control.list_nodes().len() == 2);
        let request = CreateVolume { name: "v".into(), size_bytes: 1 << 30, node: "a".into(), tenant: None };
        let volume = cluster.run(|control| async move { control.create_volume(request, None).await });
        cluster.volume.set(volume.unwrap().value.id.parse().unwrap());
        cluster
    }

    pub fn disk(&self, name: &NodeId) -> Disk {
        self.disks.borrow_mut().entry(name.clone()).or_default().clone()
    }

    pub fn habits(&self, name: &NodeId) -> Habits {
        self.habits.borrow().get(name).cloned().unwrap_or_default()
    }

    pub fn set_habits(&self, name: &str, change: impl FnOnce(&mut Habits)) {
        change(self.habits.borrow_mut().entry(node(name)).or_default());
    }

    pub fn loses_a_write(&self, to: &NodeId) -> bool {
        self.habits(to).rots
    }

    pub fn start_node(self: &Rc<Self>, name: &str) {
        let id = node(name);
        let started = FakeNode::start(&id, self.sim.process(name).world(), self.disk(&id), self);
        self.nodes.borrow_mut().insert(id, started);
    }

    /// One more node with room.
    pub fn add_node(self: &Rc<Self>, name: &str) {
        self.set_habits(name, |habits| habits.free_bytes = 1 << 30);
        self.start_node(name);
        self.wait("the node to register", |control| control.show_node(name).is_ok());
    }

    pub fn kill_node(&self, name: &str) {
        self.nodes.borrow_mut().remove(&node(name));
        self.sim.kill(name);
    }

    pub fn restart_node(self: &Rc<Self>, name: &str) {
        self.kill_node(name);
        self.start_node(name);
    }

    /// The other node, if its process runs and the link stands.
    pub fn reachable(&self, from: &NodeId, to: &NodeId) -> Option<Rc<FakeNode>> {
        if self.cut.get() || from == to || self.sim.process(to.as_str()).is_paused() {
            return None;
        }
        self.nodes.borrow().get(to).cloned()
    }

    pub fn start_control(self: &Rc<Self>) {
        let process = self.sim.process("control");
        let (world, store) = (process.world(), self.store.clone());
        let this = Rc::downgrade(self);
        process.spawn(async move {
            let config = ControlConfig { secret: SECRET, ttl: TTL, ..ControlConfig::default() };
            let store = Rc::new(MemoryMetaStore::open(world.clone(), store));
            let control = Control::start(config, world, store).await.expect("the store is sound");
            control.serve("control:1").await.expect("the address is free");
            if let Some(cluster) = this.upgrade() {
                cluster.control.replace(Some(control));
            }
        });
    }

    pub fn kill_control(&self) {
        self.control.replace(None);
        self.sim.kill("control");
    }

    pub fn restart_control(self: &Rc<Self>) {
        self.kill_control();
        self.start_control();
    }

    /// Runs a command in the control plane's process, once it is there.
    pub async fn command<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        command: impl FnOnce(Rc<Control>) -> F,
    ) -> Option<T> {
        let control = loop {
            if let Some(control) = self.control.borrow().clone() {
                break control;
            }
            self.sim.sleep(Duration::from_millis(10)).await;
        };
        self.sim.process("control").run(command(control)).await.ok()
    }

    pub fn run<T: 'static, F: Future<Output = T> + 'static>(&self, command: impl FnOnce(Rc<Control>) -> F) -> T {
        self.sim.block_on(self.command(command)).expect("nobody killed the control plane")
    }

    pub fn look<T>(&self, look: impl FnOnce(&Control) -> T) -> Option<T> {
        self.control.borrow().as_ref().map(|control| look(control))
    }

    /// Lets the world go on until the control plane says yes.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Control) -> bool) {
        let until = self.sim.now() + Duration::from_secs(600);
        while !self.look(&wanted).unwrap_or(false) {
            self.sim.run_for(Duration::from_millis(20));
            if self.sim.now() >= until {
                let told = self.look(|control| self.told(control)).unwrap_or_default();
                panic!("seed {}: waited in vain for {what}\n{told}", self.sim.seed());
            }
        }
    }

    fn told(&self, control: &Control) -> String {
        let events = control.events(0, 10_000, None);
        let last = events.iter().rev().take(40).rev();
        let lines: Vec<String> = last.map(|event| format!("{} {} {}", event.at_ms, event.kind, event.text)).collect();
        let migrations: Vec<_> =
            control.list_migrations(None).unwrap().into_iter().map(|tagged| tagged.value).collect();
        format!("{}\n{migrations:#?}\n{:?}", lines.join("\n"), self.checker.violations.borrow())
    }

    /// A client that writes one number after the other, wherever it is taken.
    pub fn start_client(self: &Rc<Self>) {
        let this = Rc::downgrade(self);
        let sim = self.sim.clone();
        self.sim.process("client").spawn(async move {
            loop {
                sim.sleep(Duration::from_millis(4)).await;
                let Some(cluster) = this.upgrade() else { break };
                let number = cluster.written.get() + 1;
                if cluster.write(number).await {
                    cluster.written.set(number);
                }
            }
        });
    }

    async fn write(&self, number: u64) -> bool {
        let mut nodes: Vec<(NodeId, Rc<FakeNode>)> =
            self.nodes.borrow().iter().map(|(name, node)| (name.clone(), node.clone())).collect();
        // Clients are attached to either node.
        if number.is_multiple_of(2) {
            nodes.reverse();
        }
        for (name, node) in nodes {
            let attempt = Box::pin(self.sim.process(name.as_str()).run(node.write(self.volume.get(), number)));
            let patience = Box::pin(self.sim.sleep(Duration::from_millis(200)));
            if let Either::Left((Ok(Ok(())), _)) = select(attempt, patience).await {
                return true;
            }
        }
        false
    }

    pub fn try_start(&self, destination: &str, options: MigrationOptions) -> Result<Migration, ApiError> {
        let request = StartMigration { volume: "v".into(), destination: destination.into(), options };
        self.run(|control| async move { control.start_migration(request, None).await }).map(|tagged| tagged.value)
    }

    pub fn start(&self, destination: &str, options: MigrationOptions) -> String {
        self.try_start(destination, options).unwrap().id
    }

    pub fn migration(&self, id: &str) -> Migration {
        self.look(|control| control.show_migration(id)).expect("the control plane runs").unwrap().value
    }

    pub fn wait_phase(&self, id: &str, phases: &[Phase]) -> Migration {
        self.wait(&format!("{phases:?}"), |control| {
            let migration = control.show_migration(id).unwrap().value;
            let wrong = migration.phase.is_final() && !phases.contains(&migration.phase);
            assert!(!wrong, "seed {}: it ended {}\n{}", self.sim.seed(), migration.phase, self.told(control));
            phases.contains(&migration.phase)
        });
        self.migration(id)
    }

    /// Waits until the migration is over and nothing of it is left anywhere.
    pub fn wait_clean(&self, id: &str) -> Migration {
        self.wait("the end and the clean-up", |control| {
            let migration = control.show_migration(id).unwrap().value;
            migration.phase.is_final() && migration.cleanup_pending.is_empty()
        });
        self.migration(id)
    }

    /// What must hold in the end: one holder, untimed and alone; the client goes on; nothing was lost on the way.
    pub fn check_end(&self, holder: &str) {
        let before = self.written.get();
        let until = self.sim.now() + Duration::from_secs(60);
        while self.written.get() < before + 20 && self.sim.now() < until {
            self.sim.run_for(Duration::from_millis(20));
        }
        let told = self.look(|control| self.told(control)).unwrap_or_default();
        assert!(self.written.get() >= before + 20, "seed {}: the client stands still\n{told}", self.sim.seed());
        let violations = self.checker.violations.borrow();
        assert!(violations.is_empty(), "seed {}: {violations:#?}\n{told}", self.sim.seed());
        for (name, disk) in self.disks.borrow().iter() {
            let disk = disk.borrow();
            let seat = disk.get(&self.volume.get());
            let role = seat.map(|seat| (seat.role, seat.ttl_ms, seat.leg.is_some()));
            let wanted = (name.as_str() == holder).then_some((Role::Holder, None, false));
            assert_eq!(role, wanted, "seed {}: {name}\n{told}", self.sim.seed());
        }
        let lease = self.look(|control| control.show_lease("v").unwrap()).expect("the control plane runs");
        assert_eq!((lease.holder.as_str(), lease.ttl_ms, lease.migration), (holder, None, None));
    }

    pub fn kinds(&self) -> Vec<String> {
        let events = self.look(|control| control.events(0, 10_000, None)).unwrap_or_default();
        events.into_iter().map(|event| event.kind).collect()
    }

    pub fn generator(&self, purpose: &str) -> Generator {
        self.sim.generator(purpose)
    }
}
