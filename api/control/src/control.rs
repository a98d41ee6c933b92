//! The control plane as a whole: what it is made of and what runs in it.

use crate::config::{ControlConfig, STATUS_EVERY};
use crate::idempotency::{Holding, UnderWay};
use crate::leases::Renewals;
use crate::ledger::Ledger;
use crate::lived::{Lived, TICK};
use crate::migration::executor::Executor;
use crate::nodes::Nodes;
use crate::table::{Changes, NewEvent};
use drover_base::{MigrationId, NodeId, VolumeId, World};
use drover_meta::{MetaError, MetaStore};
use drover_types::ApiError;
use drover_types::record::MigrationRecord;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    rc::Rc,
};

/// A running control plane. It lives as long as its tasks; dropping the `Rc` does not stop it.
pub struct Control {
    pub(crate) world: World,
    pub(crate) config: ControlConfig,
    pub(crate) ledger: Rc<Ledger>,
    pub(crate) nodes: Nodes,
    pub(crate) renewals: Renewals,
    pub(crate) lived: Rc<Lived>,
    pub(crate) under_way: UnderWay,
    /// Volumes that a task is creating, deleting or making larger.
    pub(crate) volume_tasks: RefCell<BTreeSet<VolumeId>>,
    /// Nodes whose drain a task carries out.
    pub(crate) drain_tasks: RefCell<BTreeSet<NodeId>>,
    executors: RefCell<BTreeMap<MigrationId, Rc<Executor>>>,
}

impl Control {
    /// Reads the store and takes up everything that was under way. Nodes reach it after [`Control::serve`].
    pub async fn start(config: ControlConfig, world: World, store: Rc<dyn MetaStore>) -> Result<Rc<Self>, MetaError> {
        let ledger = Ledger::open(world.clone(), store).await?;
        let lived = Lived::new(world.clone());
        let control = Rc::new(Self {
            ledger,
            nodes: Nodes::new(world.clone(), lived.clone(), config.secret),
            renewals: Renewals::new(lived.clone()),
            lived,
            under_way: UnderWay::default(),
            volume_tasks: RefCell::default(),
            drain_tasks: RefCell::default(),
            executors: RefCell::default(),
            config,
            world,
        });
        let started = NewEvent::info("control.started", "the control plane started");
        // A store that fails now is told by every later request.
        let _ = control.tell(started).await;
        control.spawn_ticks();
        control.spawn_polls();
        control.spawn_schedules();
        control.take_up();
        Ok(control)
    }

    /// Lets nodes connect at `address`; returns the address with its real port.
    pub async fn serve(self: &Rc<Self>, address: &str) -> io::Result<String> {
        let mut listener = self.world.net.listen(address).await?;
        let bound = listener.address();
        let this = self.clone();
        self.world
            .spawn(async move {
                loop {
                    match listener.accept().await {
                        Ok(connection) => this.world.spawn(crate::rpc::serve(this.clone(), connection)).detach(),
                        Err(error) => {
                            tracing::warn!(%error, "a node could not connect");
                            this.world.sleep(TICK).await;
                        }
                    }
                }
            })
            .detach();
        Ok(bound)
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// Whether it can decide: its store answers.
    pub fn is_ready(&self) -> bool {
        self.ledger.is_sure()
    }

    fn spawn_ticks(self: &Rc<Self>) {
        let this = self.clone();
        self.world
            .spawn(async move {
                loop {
                    this.lived.tick();
                    this.world.sleep(TICK).await;
                }
            })
            .detach();
    }

    fn spawn_polls(self: &Rc<Self>) {
        let this = self.clone();
        self.world
            .spawn(async move {
                loop {
                    let due: Vec<(NodeId, String)> = {
                        let state = this.ledger.state();
                        let nodes = state.nodes.values().map(|kept| &kept.record);
                        nodes
                            .filter(|node| this.nodes.status_is_old(&node.node))
                            .map(|node| (node.node.clone(), node.admin.clone()))
                            .collect()
                    };
                    let polls = due.iter().map(|(node, admin)| this.nodes.poll(node, admin));
                    for (result, (node, _)) in futures::future::join_all(polls).await.iter().zip(&due) {
                        if let Err(error) = result {
                            tracing::debug!(%node, %error, "no status");
                        }
                    }
                    this.settle_limits().await;
                    this.world.sleep(STATUS_EVERY).await;
                }
            })
            .detach();
    }

    fn take_up(self: &Rc<Self>) {
        let (migrations, volumes, drains) = {
            let state = self.ledger.state();
            let migrations = state.migrations.values().map(|kept| &kept.record);
            let unfinished = migrations.filter(|record| !record.stage.is_final() || !record.cleanup.is_empty());
            let volumes = state.volumes.values().map(|kept| &kept.record);
            let unsettled = volumes.filter(|record| record.is_unsettled()).map(|record| record.volume);
            let drains: Vec<NodeId> = state.drains.keys().cloned().collect();
            (unfinished.cloned().collect::<Vec<_>>(), unsettled.collect::<Vec<_>>(), drains)
        };
        for record in migrations {
            self.execute(&record);
        }
        for volume in volumes {
            self.settle_volume(volume);
        }
        let groups: Vec<_> = self.ledger.state().groups.values().map(|kept| kept.record.clone()).collect();
        for group in groups {
            drop(self.undo_group(group));
        }
        for node in drains {
            self.carry_out_drain(node);
        }
    }

    /// Starts the migration's executor, if none runs.
    pub(crate) fn execute(self: &Rc<Self>, record: &MigrationRecord) {
        let id = record.migration;
        if self.executors.borrow().contains_key(&id) {
            return;
        }
        let executor = Executor::new(self.clone(), record);
        self.executors.borrow_mut().insert(id, executor.clone());
        let this = self.clone();
        self.world
            .spawn(async move {
                executor.run().await;
                this.executors.borrow_mut().remove(&id);
            })
            .detach();
    }

    pub(crate) fn executor(&self, id: MigrationId) -> Option<Rc<Executor>> {
        self.executors.borrow().get(&id).cloned()
    }

    /// Lets every executor look at what changed.
    pub(crate) fn wake_executors(&self) {
        for executor in self.executors.borrow().values() {
            executor.wake();
        }
    }

    /// Records the end of what a request had a node do: that it happened, and that its repetition is one.
    pub(crate) async fn tell_once(&self, holding: &Holding, made: &str, told: NewEvent) -> Result<(), ApiError> {
        self.ledger
            .commit(|state, changes| {
                holding.remember(state, changes, made);
                changes.event(told);
                Ok(())
            })
            .await
    }

    /// Records an event by itself.
    pub(crate) async fn tell(&self, event: NewEvent) -> Result<(), crate::ledger::StoreFailed> {
        self.ledger
            .commit(|_, changes: &mut Changes| {
                changes.event(event);
                Ok(())
            })
            .await
    }
}
