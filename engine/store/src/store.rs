//! The volumes of one shard of a node.

use crate::{
    NAME_BYTES_MAX, StoreError, Volume,
    checkpoint::CheckpointPlace,
    discard::{self, DiscardPace},
    entry::SlotAddress,
    env::Env,
    layer::Layer,
    meta::{Batch, Change, Meta},
    record, recovery,
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
use std::{collections::BTreeSet, rc::Rc, sync::Arc};

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
        }
    }
}

/// The shard that a volume belongs to on a node of so many shards: ids are drawn by chance, so volumes are spread. It is
/// recorded nowhere, and the number of shards may change between two starts.
pub fn home_shard(volume: VolumeId, shards: u32) -> u32 {
    (volume.0 % u64::from(shards)) as u32
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
        let mut layers = recovery::layer_records(&*env.meta).await?;
        for record in recovery::volume_records(&*env.meta).await? {
            if !store.is_home_of(record.id) {
                continue;
            }
            let layers = layers.remove(&record.id).unwrap_or_default();
            let loaded = recovery::load_volume(&*env.meta, record, &layers, &env.tiers).await?;
            let volume = Volume::new(env.clone(), loaded.stack, loaded.active, loaded.note);
            volume.start_merging();
            env.volumes.borrow_mut().insert(volume.id, volume);
        }
        if store.is_first() && env.tiers.has_discards() {
            let discards = discard::discard_free(Rc::downgrade(&env), env.world.clone(), store.config.discard_pace);
            env.world.spawn(discards).detach();
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

    /// Deletes the volume with its snapshots, once its I/O has ended. Nothing to do if it is not there.
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
    let stack = Stack::new(id, name, head.clone());
    let changes = vec![
        put_volume(&stack.record()),
        Change::Put { key: record::layer_key(head.id), value: stack.layer_record(&head).encode() },
    ];
    env.commit(Batch { changes }).await?;
    let volume = Volume::new(env.clone(), stack, Vec::new(), Bytes::new());
    env.volumes.borrow_mut().insert(id, volume.clone());
    Ok(volume)
}

impl Volume {
    /// Ends all I/O, forgets the volume durably, gives its slots back.
    async fn delete(&self) -> Result<(), StoreError> {
        let _clients = self.clients.close().await;
        let _turn = self.tree.lock().await;
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
        for layer in self.stack.borrow().layers() {
            batch.changes.extend(forget_layer(layer));
        }
        self.env.commit(batch).await?;
        self.release_all();
        Ok(())
    }

    /// Gives every slot back: nothing of the volume is stored any more.
    fn release_all(&self) {
        self.inflight.retire(self.take_slots());
        let nothing = Layer::new(LayerId(0), None, self.size_bytes());
        let stack = Stack::new(self.id, &self.name(), Rc::new(nothing));
        *self.stack.borrow_mut() = stack;
    }

    /// Every slot that memory names, in maps or waiting for a batch.
    fn take_slots(&self) -> Vec<SlotAddress> {
        let mut slots = self.flusher.clear();
        slots.extend(self.stack.borrow().layers().flat_map(|layer| layer.slot_addresses()));
        slots
    }

    /// Loads the volume again from metadata. What is read afterwards is durable.
    async fn reopen(&self, inside: impl FnOnce()) -> Result<(), StoreError> {
        self.health.poison();
        let _clients = self.clients.close().await;
        let _turn = self.tree.lock().await;
        let _mutations = self.mutations.close().await;
        self.flushes_end().await;
        self.activations_end().await;
        let env = &self.env;
        env.probe_metadata().await?;
        let layers = recovery::layer_records(&*env.meta).await?.remove(&self.id).unwrap_or_default();
        let value = env.meta.get(&record::volume_key(self.id)).await?;
        let Some(value) = value else {
            self.health.set_gone();
            self.release_all();
            return Err(StoreError::NoVolume { volume: self.id });
        };
        let record = record::VolumeRecord::decode(&record::volume_key(self.id), &value)?;
        let loaded = recovery::load_volume(&*env.meta, record, &layers, &env.tiers).await?;
        recovery::store_again(env, &loaded.stack, &self.activity.unflushed()).await?;
        // Slots that only the memory of before names were never durable, or are no more.
        let durable: BTreeSet<SlotAddress> = loaded.slots.into_iter().collect();
        let mut slots = self.take_slots();
        slots.retain(|slot| !durable.contains(slot));
        self.inflight.retire(slots);
        *self.stack.borrow_mut() = loaded.stack;
        self.activity.load(loaded.active);
        self.load_note(loaded.note);
        inside();
        self.health.reset();
        drop((_clients, _turn, _mutations));
        self.start_merging();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
