//! A family: the volumes that share a tree of layers. A volume begins one; a clone joins that of the volume it was made of.
//!
//! Invariants
//! - A volume *sees* what its head and its snapshots stand on. What several volumes see is in memory as it is durable:
//!   no flush of any of them carries it (see `merge`).
//! - What only one volume sees belongs to that volume: its flushes carry it, and it comes back when it is reopened.
//! - Changes of the tree and steps of merges take turns.
//! - A slot is given back when every I/O of the family that resolved to it has ended: whoever saw it may be reading it.

use crate::{
    Volume,
    entry::SlotAddress,
    env::Env,
    health::Health,
    inflight::Inflight,
    layer::Layer,
    merge::Merger,
    record::{FamilyId, LayerRecord},
    tree::Tree,
};
use drover_base::{LayerId, VolumeId};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::{Rc, Weak},
    sync::Arc,
};

pub struct Family {
    pub id: FamilyId,
    pub env: Rc<Env>,
    members: RefCell<BTreeMap<VolumeId, Weak<Volume>>>,
    pub tree: RefCell<Tree>,
    pub turn: Arc<tokio::sync::Mutex<()>>,
    pub inflight: Rc<Inflight>,
    pub merger: Merger,
    /// Of what merges copy between layers that several volumes see.
    pub health: Health,
}

impl Family {
    pub fn new(env: Rc<Env>, id: FamilyId) -> Rc<Self> {
        let (inflight, health) = (Rc::new(Inflight::new(env.tiers.clone())), Health::new(env.tiers.clone()));
        let (members, tree, turn) = (RefCell::default(), RefCell::default(), Arc::default());
        Rc::new(Self { id, env, members, tree, turn, inflight, merger: Merger::default(), health })
    }

    /// Ascending by id.
    pub fn members(&self) -> Vec<Rc<Volume>> {
        self.members.borrow().values().filter_map(Weak::upgrade).collect()
    }

    pub fn join(&self, volume: &Rc<Volume>) {
        self.members.borrow_mut().insert(volume.id, Rc::downgrade(volume));
    }

    pub fn leave(&self, id: VolumeId) {
        self.members.borrow_mut().remove(&id);
    }

    pub fn layer(&self, id: LayerId) -> Option<Rc<Layer>> {
        self.tree.borrow().layer(id).cloned()
    }

    /// What the volume sees, as its stack in memory says.
    pub fn seen_by(&self, volume: &Volume) -> BTreeSet<LayerId> {
        self.tree.borrow().seen(volume.stack.borrow().names())
    }

    /// What any volume but this one sees.
    pub fn seen_by_others(&self, id: VolumeId) -> BTreeSet<LayerId> {
        self.tree.borrow().seen(self.named_by_others(id))
    }

    /// Layers that any volume but this one has as its head or in a snapshot.
    pub fn named_by_others(&self, id: VolumeId) -> BTreeSet<LayerId> {
        let others = self.members().into_iter().filter(|other| other.id != id);
        others.flat_map(|other| other.stack.borrow().names()).collect()
    }

    /// Puts layers in as they are stored, for a volume that is opened again and sees `seen`, and returns the slots that
    /// memory named before in their place. What only other volumes see is theirs, and stays as it is.
    pub fn take_up(
        &self,
        id: VolumeId,
        stored: BTreeMap<LayerId, Rc<Layer>>,
        seen: &BTreeSet<LayerId>,
    ) -> Vec<SlotAddress> {
        let others = self.named_by_others(id);
        let mut tree = self.tree.borrow_mut();
        let seen_by_others = tree.seen(others.iter().copied());
        let mut slots = Vec::new();
        let had: Vec<Rc<Layer>> = tree.layers().cloned().collect();
        for layer in had.iter().filter(|layer| !seen_by_others.contains(&layer.id)) {
            slots.extend(layer.slot_addresses());
            tree.forget(layer.id);
        }
        for layer in stored.values() {
            match tree.layer(layer.id) {
                // Others look things up by it, too: it stays the same one.
                Some(shared) if seen.contains(&layer.id) => {
                    slots.extend(shared.slot_addresses());
                    shared.take_over(layer);
                }
                Some(_) => {}
                None if seen.contains(&layer.id) || layer.deleting.get() => tree.insert(layer.clone()),
                None => {}
            }
        }
        // A merge that is stored took some out under what stood on them.
        let seen_now = tree.seen(others.iter().chain(seen).copied());
        for layer in had.iter().filter(|layer| !seen_now.contains(&layer.id) && !stored.contains_key(&layer.id)) {
            slots.extend(layer.slot_addresses());
            tree.forget(layer.id);
        }
        slots
    }

    /// Takes a layer out that is no head.
    pub fn remove(&self, id: LayerId) {
        self.tree.borrow_mut().remove(id);
        self.follow();
    }

    /// Lets every volume look things up by the tree of now.
    pub fn follow(&self) {
        for volume in self.members() {
            volume.stack.borrow_mut().follow(&self.tree.borrow());
        }
    }

    pub fn record(&self, layer: &Layer) -> LayerRecord {
        LayerRecord {
            id: layer.id,
            family: self.id,
            parent: layer.parent.get(),
            size_bytes: layer.size_bytes.get(),
            deleting: layer.deleting.get(),
        }
    }
}
