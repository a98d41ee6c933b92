//! The volumes of one shard of a node.

use crate::{
    NAME_BYTES_MAX, StoreError, Volume,
    checkpoint::CheckpointPlace,
    chunks,
    discard::{self, DiscardPace},
    entry::SlotAddress,
    env::Env,
    family::Family,
    flush::Scope,
    fsck,
    layer::Layer,
    meta::{Batch, Change, Meta},
    record::{self, FamilyId, LayerRecord, VolumeRecord},
    recovery::{self, StoredFamily},
    slots::Tiers,
    snapshot::{check_size, forget_layer, put_volume},
    stack::Stack,
};
use bytes::Bytes;
use drover_base::{
    LayerId, VolumeId, World,
    ids::is_name,
    limits::ACTIVE_REGIONS_MAX,
    planted::{Bug, is_planted},
    units::EXTENT_BYTES,
};
use drover_disk::Device;
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

/// How a shard's store is set up.
#[derive(Clone)]
pub struct StoreConfig {
    /// This shard's number, below `shards`.
    pub shard: u32,
    /// Shards of the node; see [`home_shard`].
    pub shards: u32,
    /// Where checkpoints go. With one, freed slots wait for the next checkpoint.
    pub checkpoint: Option<Rc<dyn CheckpointPlace>>,
    /// Active regions of a volume above which idle ones are flushed out.
    pub active_regions_max: usize,
    /// How free slots are told to the devices that want it; the first shard does it.
    pub discard_pace: DiscardPace,
    /// Where the index of chunks is kept, apart from metadata: all of it may be lost. `None`: chunks are not indexed.
    pub chunks: Option<Rc<dyn Meta>>,
}

impl Default for StoreConfig {
    /// The only shard, without checkpoints.
    fn default() -> Self {
        Self {
            shard: 0,
            shards: 1,
            checkpoint: None,
            active_regions_max: ACTIVE_REGIONS_MAX,
            discard_pace: DiscardPace::default(),
            chunks: None,
        }
    }
}

/// The shard that a volume belongs to on a node of so many shards: ids are drawn by chance, so volumes are spread; but
/// kin, which may share layers, has one home. It is recorded nowhere, and the number of shards may change between two
/// starts.
pub fn home_shard(volume: VolumeId, shards: u32) -> u32 {
    volume.kin() % shards
}

/// The volumes of one shard.
pub struct Store {
    config: StoreConfig,
    env: Rc<Env>,
    /// Creations, deletions and reopenings take turns.
    turns: Arc<tokio::sync::Mutex<()>>,
}

impl Store {
    /// Marks the slots of all volumes as used. Once for a node, before any of its shards opens.
    pub async fn scan_slots(meta: &dyn Meta, tiers: &Tiers) -> Result<(), StoreError> {
        recovery::scan_slots(meta, tiers).await
    }

    /// Opens this shard's volumes. `devices` stand in the order of the tiers.
    pub async fn open(
        config: StoreConfig,
        world: World,
        devices: Vec<Rc<dyn Device>>,
        tiers: Tiers,
        meta: Rc<dyn Meta>,
    ) -> Result<Rc<Store>, StoreError> {
        check_devices(&devices, &tiers)?;
        if config.checkpoint.is_some() {
            tiers.hold_until_checkpoint();
        }
        let env = Env::new(world, devices, tiers, meta, &config);
        let store = Rc::new(Store { config, env: env.clone(), turns: Arc::default() });
        for stored in recovery::families(&*env.meta).await? {
            if store.is_home_of(stored.volumes[0].id) {
                open_family(&env, &stored).await?;
            }
        }
        if store.is_first() && env.tiers.has_discards() {
            let discards = discard::discard_free(Rc::downgrade(&env), env.world.clone(), store.config.discard_pace);
            env.world.spawn(discards).detach();
        }
        if env.chunks.is_some() {
            env.world.spawn(chunks::index_idle(Rc::downgrade(&env))).detach();
        }
        Ok(store)
    }

    /// Whether the volume, if it is there, belongs to this shard.
    pub fn is_home_of(&self, id: VolumeId) -> bool {
        home_shard(id, self.config.shards) == self.config.shard
    }

    /// Whether this is the shard that does what is to be done once for a node.
    pub fn is_first(&self) -> bool {
        self.config.shard == 0
    }

    /// A volume of zeros. Again with the same arguments: the one that exists.
    pub async fn create_volume(&self, id: VolumeId, name: &str, size_bytes: u64) -> Result<Rc<Volume>, StoreError> {
        if !is_name(name, NAME_BYTES_MAX) {
            return Err(StoreError::BadName { name: name.into() });
        }
        check_size(size_bytes)?;
        if !self.is_home_of(id) {
            return Err(StoreError::OtherShard { volume: id });
        }
        let (env, turns, name) = (self.env.clone(), self.turns.clone(), name.to_string());
        self.env
            .as_task(async move {
                let _turn = turns.lock_owned().await;
                create(&env, id, &name, size_bytes).await
            })
            .await
    }

    /// A volume that holds what the snapshot of another holds: a new head on the snapshot's layer, nothing is copied. Again
    /// with the same arguments: the one that exists.
    pub async fn clone_volume(
        &self,
        origin: VolumeId,
        snapshot: &str,
        id: VolumeId,
        name: &str,
    ) -> Result<Rc<Volume>, StoreError> {
        if !is_name(name, NAME_BYTES_MAX) {
            return Err(StoreError::BadName { name: name.into() });
        }
        if !self.is_home_of(origin) || !id.is_kin_of(origin) {
            return Err(StoreError::OtherShard { volume: id });
        }
        let (env, turns, snapshot, name) =
            (self.env.clone(), self.turns.clone(), snapshot.to_string(), name.to_string());
        self.env
            .as_task(async move {
                let _turn = turns.lock_owned().await;
                let found = |id| env.volumes.borrow().get(&id).cloned();
                let (origin, existing) = (found(origin).ok_or(StoreError::NoVolume { volume: origin }), found(id));
                match existing {
                    Some(volume) => {
                        let is_kin = origin.map_or(true, |origin| Rc::ptr_eq(&volume.family, &origin.family));
                        let is_same = volume.name() == name && is_kin;
                        if is_same { Ok(volume) } else { Err(StoreError::VolumeExists { volume: id }) }
                    }
                    None => origin?.clone_as(&snapshot, id, &name).await,
                }
            })
            .await
    }

    /// Deletes the volume with its snapshots, once its I/O has ended; what clones stand on stays for them. Nothing to do if it is not there.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        let (env, turns) = (self.env.clone(), self.turns.clone());
        self.env
            .as_task(async move {
                let _turn = turns.lock_owned().await;
                let Some(volume) = env.volumes.borrow().get(&id).cloned() else { return Ok(()) };
                // What is durable must be known before its slots are given away. A deletion whose commit failed
                // may have been applied.
                let is_there = match volume.health.check() {
                    Ok(()) => true,
                    Err(_) => match volume.reopen(|| ()).await {
                        Err(StoreError::NoVolume { .. }) => false,
                        result => result.map(|()| true)?,
                    },
                };
                if is_there {
                    volume.delete().await?;
                }
                env.volumes.borrow_mut().remove(&id);
                volume.family.leave(id);
                volume.family.start_merging();
                // Not awaited under the turn: nobody is to wait for hints.
                let forgetting = env.clone();
                env.world.spawn(async move { forgetting.forget_indexed(id).await }).detach();
                Ok(())
            })
            .await
    }

    pub fn volume(&self, id: VolumeId) -> Option<Rc<Volume>> {
        self.env.volumes.borrow().get(&id).cloned()
    }

    /// Ascending by id.
    pub fn volumes(&self) -> Vec<Rc<Volume>> {
        self.env.volumes.borrow().values().cloned().collect()
    }

    /// Opens a volume again from metadata, after poisoning: what was not flushed may be lost. The same
    /// [`Volume`] goes on. Stays poisoned when this fails.
    pub async fn reopen(&self, id: VolumeId) -> Result<(), StoreError> {
        self.reopen_with(id, || ()).await
    }

    /// The same, and runs `inside` in the moment before requests succeed again: whoever relies on what was not
    /// flushed is told by it, and nobody gets an answer in between.
    pub async fn reopen_with(&self, id: VolumeId, inside: impl FnOnce() + 'static) -> Result<(), StoreError> {
        let (env, turns) = (self.env.clone(), self.turns.clone());
        self.env
            .as_task(async move {
                let _turn = turns.lock_owned().await;
                let volume = env.volumes.borrow().get(&id).cloned();
                volume.ok_or(StoreError::NoVolume { volume: id })?.reopen(inside).await
            })
            .await
    }

    /// Whether a commit of metadata failed and none succeeded since.
    pub fn is_poisoned(&self) -> bool {
        self.env.tiers.failure_counts().1 != self.env.meta_mended.get()
    }

    /// Writes a checkpoint of the node's metadata to the configured place; freed slots become usable.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let env = self.env.clone();
        self.env.as_task(async move { env.take_checkpoint().await }).await
    }
}

impl Drop for Store {
    /// The volumes hold what the shard shares, and it holds them.
    fn drop(&mut self) {
        self.env.volumes.take();
    }
}

fn check_devices(devices: &[Rc<dyn Device>], tiers: &Tiers) -> Result<(), StoreError> {
    let slots = tiers.slots();
    if slots.len() != devices.len() {
        return Err(StoreError::Devices { what: format!("{} devices for {} tiers", devices.len(), slots.len()) });
    }
    for (at, (device, slots)) in devices.iter().zip(slots).enumerate() {
        let size = device.size_bytes();
        if size / EXTENT_BYTES < slots {
            return Err(StoreError::Devices { what: format!("device {at} of {size} bytes has no {slots} slots") });
        }
    }
    Ok(())
}

async fn create(env: &Rc<Env>, id: VolumeId, name: &str, size_bytes: u64) -> Result<Rc<Volume>, StoreError> {
    if let Some(volume) = env.volumes.borrow().get(&id) {
        return if volume.name() == name && volume.size_bytes() == size_bytes {
            Ok(volume.clone())
        } else {
            Err(StoreError::VolumeExists { volume: id })
        };
    }
    let head = Rc::new(Layer::new(env.new_layer_id(), None, size_bytes));
    let family = Family::new(env.clone(), FamilyId(head.id.0));
    add_volume(env, family, id, name, vec![head]).await
}

/// Records a new volume and its head, and puts both in.
async fn add_volume(
    env: &Rc<Env>,
    family: Rc<Family>,
    id: VolumeId,
    name: &str,
    chain: Vec<Rc<Layer>>,
) -> Result<Rc<Volume>, StoreError> {
    let head = chain[0].clone();
    let stack = Stack::new(id, name, chain);
    let changes = vec![
        put_volume(&stack.record()),
        Change::Put { key: record::layer_key(head.id), value: family.record(&head).encode() },
    ];
    env.commit(Batch { changes }).await?;
    family.tree.borrow_mut().insert(head);
    let volume = Volume::new(env.clone(), family.clone(), stack, Vec::new(), Bytes::new());
    family.join(&volume);
    env.volumes.borrow_mut().insert(id, volume.clone());
    Ok(volume)
}

/// Puts the volumes of a stored family in.
async fn open_family(env: &Rc<Env>, stored: &StoredFamily) -> Result<(), StoreError> {
    let family = Family::new(env.clone(), stored.id);
    for layer in recovery::load_layers(&*env.meta, stored, &env.tiers).await?.into_values() {
        family.tree.borrow_mut().insert(layer);
    }
    for record in &stored.volumes {
        let stack = Stack::load(record.clone(), &family.tree.borrow());
        let loaded = recovery::load_volume(&*env.meta, record.id, stack.head().size_bytes.get()).await?;
        let volume = Volume::new(env.clone(), family.clone(), stack, loaded.active, loaded.note);
        family.join(&volume);
        env.volumes.borrow_mut().insert(volume.id, volume);
    }
    family.start_merging();
    Ok(())
}

impl Volume {
    /// Makes a volume whose head stands on the snapshot's layer.
    async fn clone_as(&self, snapshot: &str, id: VolumeId, name: &str) -> Result<Rc<Volume>, StoreError> {
        self.health.check()?;
        let _turn = self.family.turn.lock().await;
        let frozen = self.snapshot_layer(snapshot)?;
        // From here on several see it: merges into it that this volume's flushes were to carry must be durable.
        if !is_planted(Bug::CloneWithoutFlush) {
            self.make_durable(Scope::All, None).await?;
        }
        let head = Layer::new(self.env.new_layer_id(), Some(frozen.id), frozen.size_bytes.get());
        let mut chain = vec![Rc::new(head)];
        chain.extend(self.family.tree.borrow().chain(frozen.id));
        add_volume(&self.env, self.family.clone(), id, name, chain).await
    }

    /// Ends all I/O, forgets the volume durably, gives back what no other volume sees.
    async fn delete(&self) -> Result<(), StoreError> {
        let _clients = self.clients.close().await;
        let _turn = self.family.turn.lock().await;
        let _mutations = self.mutations.close().await;
        self.health.check()?;
        // From here on no flush and no activation begins; those under way end before anything is deleted.
        let is_late = is_planted(Bug::FlushedWhileDeleted);
        if !is_late {
            self.health.set_gone();
        }
        self.flushes_end().await;
        self.activations_end().await;
        if is_late {
            self.health.set_gone();
        }
        let mut batch = Batch::default();
        batch.delete(record::volume_key(self.id));
        batch.delete_prefix(record::activity_prefix(self.id));
        batch.delete(record::note_key(self.id));
        let (seen, named) = (self.family.seen_by_others(self.id), self.family.named_by_others(self.id));
        let all: Vec<Rc<Layer>> = self.family.tree.borrow().layers().cloned().collect();
        let stays = |layer: &Rc<Layer>| seen.contains(&layer.id) && !is_planted(Bug::GhostNotKept);
        let (stay, go): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
        batch.changes.extend(go.iter().flat_map(|layer| forget_layer(layer)));
        // What others stand on goes when one of them or none is left.
        let nameless: Vec<_> = stay.into_iter().filter(|layer| !named.contains(&layer.id)).collect();
        for layer in nameless.iter().filter(|layer| !layer.deleting.get()) {
            let record = LayerRecord { deleting: true, ..self.family.record(layer) };
            batch.put(record::layer_key(layer.id), record.encode());
        }
        self.env.commit(batch).await?;
        nameless.iter().for_each(|layer| layer.deleting.set(true));
        self.become_nothing(&go);
        Ok(())
    }

    /// Gives the slots of these layers back, and what waits for a batch: nothing of the volume is stored any more.
    fn become_nothing(&self, layers: &[Rc<Layer>]) {
        let nothing = Layer::new(LayerId(0), None, self.size_bytes());
        *self.stack.borrow_mut() = Stack::new(self.id, &self.name(), vec![Rc::new(nothing)]);
        let mut slots = self.flusher.clear();
        let mut tree = self.family.tree.borrow_mut();
        for layer in layers {
            slots.extend(layer.slot_addresses());
            tree.remove(layer.id);
        }
        self.inflight.retire(slots);
    }

    /// Loads the volume again from metadata. What is read afterwards is durable.
    async fn reopen(&self, inside: impl FnOnce()) -> Result<(), StoreError> {
        self.health.poison();
        let _clients = self.clients.close().await;
        let _turn = self.family.turn.lock().await;
        let _mutations = self.mutations.close().await;
        self.flushes_end().await;
        self.activations_end().await;
        let env = &self.env;
        env.probe_metadata().await?;
        let stored = self.stored_family().await?;
        let layers = recovery::load_layers(&*env.meta, &stored, &env.tiers).await?;
        let Some(record) = stored.volume(self.id) else {
            self.health.set_gone();
            self.take_up(layers, &BTreeSet::new(), None);
            return Err(StoreError::NoVolume { volume: self.id });
        };
        let seen = stored.seen_by(record);
        let mine: Vec<Rc<Layer>> = seen.iter().filter_map(|id| layers.get(id).cloned()).collect();
        let loaded = recovery::load_volume(&*env.meta, self.id, layers[&record.head].size_bytes.get()).await?;
        recovery::store_again(env, &mine, &self.activity.unflushed()).await?;
        self.take_up(layers, &seen, Some(record));
        self.activity.load(loaded.active);
        self.load_note(loaded.note);
        inside();
        self.health.reset();
        drop((_clients, _turn, _mutations));
        self.start_merging();
        Ok(())
    }
}

impl Volume {
    /// The family as it is stored. A clone that could not be recorded for certain, and that nobody was told of, is undone:
    /// its head would stand on what others may merge.
    async fn stored_family(&self) -> Result<StoredFamily, StoreError> {
        let (env, family) = (&self.env, &self.family);
        let stored = recovery::family(&*env.meta, family.id).await?;
        let nothing = || StoredFamily { id: family.id, volumes: Vec::new(), layers: Vec::new() };
        let stored = stored.unwrap_or_else(nothing);
        let strays: Vec<VolumeId> = {
            let known = env.volumes.borrow();
            stored.volumes.iter().map(|volume| volume.id).filter(|id| !known.contains_key(id)).collect()
        };
        if strays.is_empty() {
            return Ok(stored);
        }
        for stray in strays {
            fsck::forget_volume(&*env.meta, stray).await?;
        }
        Ok(recovery::family(&*env.meta, family.id).await?.unwrap_or_else(nothing))
    }

    /// Goes on with what is stored; `None`: nothing of the volume is.
    fn take_up(&self, layers: BTreeMap<LayerId, Rc<Layer>>, seen: &BTreeSet<LayerId>, record: Option<&VolumeRecord>) {
        // Slots that only the memory of before names were never durable, or are no more.
        let durable: BTreeSet<SlotAddress> = layers.values().flat_map(|layer| layer.slot_addresses()).collect();
        let mut slots = self.flusher.clear();
        slots.extend(self.family.take_up(self.id, layers, seen));
        slots.retain(|slot| !durable.contains(slot));
        match record {
            Some(record) => *self.stack.borrow_mut() = Stack::load(record.clone(), &self.family.tree.borrow()),
            None => self.become_nothing(&[]),
        }
        self.family.follow();
        self.inflight.retire(slots);
    }
}

#[cfg(test)]
mod tests;
