//! How what a volume stored becomes durable. All ordering rules of flushes stand here.
//!
//! ```text
//! (0) cut     the entries changed since the last cut, with the values of now: bits of completed writes only
//! (1) sync    every device written to since its last sync
//! (2) commit  the cut's values, in one durable batch
//! (3) answer  and let go of the slots that the batch freed
//! ```
//!
//! Invariants
//! - Flushes of a volume run one at a time: a batch with older values never lands on newer ones.
//! - A request that arrives while a flush runs is served by one whose cut is taken later.
//! - A batch that holds a region holds its remote blocks with its entries: one of the two tells of each block.
//! - A batch that holds a region holds the changed entries of *all* layers for it, so a slot that moved from
//!   one layer to another is named by exactly one of them at every crash.
//! - A changed note is committed by the first flush of everything that is cut after the change: it is durable only
//!   where everything that had completed before it was given is.
//! - Slots freed in memory wait with their region for the batch; those of a batch that failed wait in
//!   `limbo` until the volume is reopened.

use crate::{
    Volume,
    entry::SlotAddress,
    env::Env,
    health::Health,
    meta::{Batch, Change},
    outcome::Outcome,
    record,
};
use drover_base::{
    IoError, LayerId, RegionIndex,
    planted::{Bug, is_planted},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// What must be durable before the answer.
#[derive(Clone, Debug)]
pub enum Scope {
    All,
    /// Data of all devices, and the maps of these regions.
    Regions(BTreeSet<RegionIndex>),
}

/// What changed of a region since it was last cut.
#[derive(Default)]
pub struct Dirty {
    layers: Vec<LayerId>,
    freed: Vec<SlotAddress>,
}

/// A change of records that goes into the batch of a flush of everything.
pub struct Structural {
    pub changes: Vec<Change>,
    /// Runs when the batch is durable, before anything else of the volume does.
    pub then: Box<dyn FnOnce()>,
}

struct Request {
    scope: Scope,
    structural: Vec<Structural>,
    done: Outcome<Result<(), IoError>>,
}

/// The flushes of one volume.
#[derive(Default)]
pub struct Flusher {
    dirty: RefCell<BTreeMap<RegionIndex, Dirty>>,
    note_changed: Cell<bool>,
    limbo: RefCell<Vec<SlotAddress>>,
    waiting: RefCell<Option<Request>>,
    running: Cell<bool>,
    idle: RefCell<Outcome<()>>,
}

/// What one flush makes durable.
struct Cut {
    regions: Vec<(RegionIndex, Vec<LayerId>)>,
    changes: Vec<Change>,
    note: Option<Change>,
    freed: Vec<SlotAddress>,
}

impl Flusher {
    /// An entry of the layer in this region changed, or which of its blocks are remote.
    pub fn changed(&self, region: RegionIndex, layer: LayerId) {
        let mut dirty = self.dirty.borrow_mut();
        let layers = &mut dirty.entry(region).or_default().layers;
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }

    /// No entry in memory names the slot any more; durable ones still may.
    pub fn freed(&self, region: RegionIndex, slot: SlotAddress) {
        self.dirty.borrow_mut().entry(region).or_default().freed.push(slot);
    }

    /// Regions whose next batch frees slots.
    fn regions_with_freed(&self) -> BTreeSet<RegionIndex> {
        let dirty = self.dirty.borrow();
        dirty.iter().filter(|(_, dirty)| !dirty.freed.is_empty()).map(|(region, _)| *region).collect()
    }

    /// The volume's note changed: the next flush of everything commits it.
    pub fn note_changed(&self) {
        self.note_changed.set(true);
    }

    /// Whether no flush runs and none would have anything to commit.
    fn is_clean(&self) -> bool {
        !self.running.get() && self.dirty.borrow().is_empty() && !self.note_changed.get()
    }

    /// Takes every slot that waits for a batch, and forgets what was changed.
    pub fn clear(&self) -> Vec<SlotAddress> {
        self.note_changed.set(false);
        let mut slots = self.limbo.take();
        slots.extend(self.dirty.take().into_values().flat_map(|dirty| dirty.freed));
        slots
    }

    fn take(&self, scope: &Scope) -> BTreeMap<RegionIndex, Dirty> {
        let mut dirty = self.dirty.borrow_mut();
        match scope {
            Scope::All => std::mem::take(&mut *dirty),
            Scope::Regions(regions) => {
                regions.iter().filter_map(|region| Some((*region, dirty.remove(region)?))).collect()
            }
        }
    }

    /// Joins the flush that has not begun yet.
    fn request(&self, scope: Scope, structural: Option<Structural>) -> Outcome<Result<(), IoError>> {
        let mut waiting = self.waiting.borrow_mut();
        let request = waiting.get_or_insert_with(|| Request {
            scope: Scope::Regions(BTreeSet::new()),
            structural: Vec::new(),
            done: Outcome::default(),
        });
        match (&mut request.scope, scope) {
            (Scope::Regions(all), Scope::Regions(more)) => all.extend(more),
            (whole, Scope::All) => *whole = Scope::All,
            (Scope::All, _) => {}
        }
        request.structural.extend(structural);
        request.done.clone()
    }
}

impl Volume {
    /// Makes durable what was completed before this call. A structural change forces everything.
    pub(crate) async fn make_durable(&self, scope: Scope, structural: Option<Structural>) -> Result<(), IoError> {
        self.health.check()?;
        let flusher = &self.flusher;
        if structural.is_none() && flusher.is_clean() && !self.health.has_unsynced() {
            return Ok(());
        }
        let scope = if structural.is_some() { Scope::All } else { scope };
        let done = flusher.request(scope, structural);
        if !flusher.running.replace(true) {
            *flusher.idle.borrow_mut() = Outcome::default();
            self.env.world.spawn(self.me().run_flushes()).detach();
        }
        done.wait().await
    }

    /// Makes durable what frees slots that nothing in memory names, and waits for the I/O that may still look at them.
    /// Whether there was anything. No I/O waits here that has resolved to a slot already: it would wait for itself.
    pub(crate) async fn settle_freed(&self) -> bool {
        let regions = self.flusher.regions_with_freed();
        let waits_for_batch = !regions.is_empty() || self.flusher.running.get();
        if waits_for_batch && self.make_durable(Scope::Regions(regions), None).await.is_err() {
            return false;
        }
        let waits_for_io = self.inflight.has_retired();
        self.inflight.released().await;
        waits_for_batch || waits_for_io
    }

    /// Waits until no flush runs. Flushes that are asked for meanwhile are waited for too.
    pub(crate) async fn flushes_end(&self) {
        while self.flusher.running.get() {
            let idle = self.flusher.idle.borrow().clone();
            idle.wait().await;
        }
    }

    async fn run_flushes(self: Rc<Self>) {
        loop {
            let Some(request) = self.flusher.waiting.take() else { break };
            let result = self.run_flush(&request.scope, request.structural).await;
            request.done.set(result);
        }
        self.flusher.running.set(false);
        self.flusher.idle.borrow().set(());
    }

    async fn run_flush(&self, scope: &Scope, structural: Vec<Structural>) -> Result<(), IoError> {
        self.health.check()?;
        let mut cut = self.cut(scope);
        let mark = self.activity.mark();
        let result = self.run_cut(&mut cut, &structural).await;
        if let Err(error) = result {
            self.flusher.limbo.borrow_mut().append(&mut cut.freed);
            return Err(error);
        }
        for change in structural {
            (change.then)();
        }
        self.inflight.retire(cut.freed);
        if matches!(scope, Scope::All) {
            self.activity.flushed(mark);
        }
        Ok(())
    }

    /// Steps (1) and (2).
    async fn run_cut(&self, cut: &mut Cut, structural: &[Structural]) -> Result<(), IoError> {
        if !is_planted(Bug::FlushSkipsSync) {
            sync_devices(&self.env, &self.health).await?;
        }
        if is_planted(Bug::FlushCommitsCurrent) {
            cut.changes = self.encode(&cut.regions);
        }
        let mut batch = Batch { changes: std::mem::take(&mut cut.changes) };
        batch.changes.extend(cut.note.take());
        batch.changes.extend(structural.iter().flat_map(|change| change.changes.iter().cloned()));
        if !batch.is_empty() {
            self.env.commit(batch).await.map_err(|_| IoError::Poisoned)?;
        }
        // Another shard's commit may have failed meanwhile; ours then proves nothing.
        self.health.check()
    }

    /// Step (0): no await from here to the calls of sync.
    fn cut(&self, scope: &Scope) -> Cut {
        let mut cut = Cut { regions: Vec::new(), changes: Vec::new(), note: None, freed: Vec::new() };
        for (region, dirty) in self.flusher.take(scope) {
            cut.regions.push((region, dirty.layers));
            cut.freed.extend(dirty.freed);
        }
        cut.changes = self.encode(&cut.regions);
        if matches!(scope, Scope::All) && self.flusher.note_changed.take() {
            let (key, value) = (record::note_key(self.id), record::encode_note(self.id, &self.note()));
            cut.note = Some(Change::Put { key, value });
        }
        cut
    }

    fn encode(&self, regions: &[(RegionIndex, Vec<LayerId>)]) -> Vec<Change> {
        let tree = self.family.tree.borrow();
        let mut changes = Vec::with_capacity(regions.len());
        for (region, layers) in regions {
            // A layer that is gone took its stored map with it.
            for layer in layers.iter().filter_map(|id| tree.layer(*id)) {
                let key = record::map_key(layer.id, *region);
                let (map, remote) = (layer.map(), layer.remote());
                let remote = remote.region(*region).filter(|_| !is_planted(Bug::RemoteForgotten));
                changes.push(match record::encode_region(layer.id, *region, map.region(*region), remote) {
                    Some(value) => Change::Put { key, value },
                    None => Change::Delete { key },
                });
            }
        }
        changes
    }
}

/// Syncs every device that was written to under this health since its last sync.
pub(crate) async fn sync_devices(env: &Env, health: &Health) -> Result<(), IoError> {
    let devices = health.begin_sync();
    let syncs = devices.iter().map(|device| async move {
        let result = env.devices[usize::from(*device)].sync().await;
        (*device, result)
    });
    let mut failed = false;
    for (device, result) in futures::future::join_all(syncs).await {
        let Err(error) = result else { continue };
        failed = true;
        if is_planted(Bug::SyncFailureForgotten) {
            continue;
        }
        tracing::error!(device, %error, "sync failed; every volume with unsynced writes there is poisoned");
        env.tiers.sync_failed(device);
    }
    health.end_sync()?;
    if failed { Err(IoError::Device) } else { Ok(()) }
}
