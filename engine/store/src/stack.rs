//! A volume's view of its family's layers: which is on top, what it stands on, which snapshots name which.
//!
//! Invariants
//! - The head is a leaf of the tree; no other volume has it, and no snapshot names it.
//! - `chain` is the way from the head down to the bottom, so a lookup is a walk over it.
//! - A layer that no snapshot of any volume names and that is no head is `deleting`.

use crate::{
    layer::Layer,
    record::{SnapshotRecord, VolumeRecord},
    tree::Tree,
};
use drover_base::{LayerId, OperationId, VolumeId};
use std::{collections::BTreeMap, rc::Rc};

/// A snapshot: a frozen layer's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub layer: LayerId,
    pub created_ms: u64,
}

pub struct Stack {
    pub volume: VolumeId,
    pub name: String,
    pub snapshots: BTreeMap<String, Snapshot>,
    /// As recorded.
    pub operations: Vec<OperationId>,
    chain: Vec<Rc<Layer>>,
}

impl Stack {
    /// A new volume: a head, on what is under it.
    pub fn new(volume: VolumeId, name: &str, chain: Vec<Rc<Layer>>) -> Self {
        assert!(!chain.is_empty(), "there is a head");
        Self { volume, name: name.into(), snapshots: BTreeMap::new(), operations: Vec::new(), chain }
    }

    /// The stack of a stored volume, whose head is in the tree.
    pub fn load(volume: VolumeRecord, tree: &Tree) -> Self {
        let snapshots = volume.snapshots.into_iter();
        let snapshots = snapshots.map(|s| (s.name, Snapshot { layer: s.layer, created_ms: s.created_ms }));
        Self {
            snapshots: snapshots.collect(),
            operations: volume.operations,
            ..Self::new(volume.id, &volume.name, tree.chain(volume.head))
        }
    }

    pub fn head(&self) -> &Rc<Layer> {
        &self.chain[0]
    }

    /// The layers a read looks through, top first.
    pub fn chain(&self) -> impl Iterator<Item = &Layer> {
        self.chain.iter().map(|layer| &**layer)
    }

    /// The layers under the head, top first.
    pub fn below(&self) -> impl Iterator<Item = &Layer> {
        self.chain().skip(1)
    }

    /// The head and the layers that snapshots name: whatever they stand on, the volume sees.
    pub fn names(&self) -> Vec<LayerId> {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.layer);
        [self.head().id].into_iter().chain(snapshots).collect()
    }

    /// Puts a head in that is in the tree.
    pub fn set_head(&mut self, head: LayerId, tree: &Tree) {
        self.chain = tree.chain(head);
    }

    /// Looks up by the tree of now. The head of a volume that was deleted is in none.
    pub fn follow(&mut self, tree: &Tree) {
        if tree.layer(self.head().id).is_some() {
            self.set_head(self.head().id, tree);
        }
    }

    pub fn record(&self) -> VolumeRecord {
        let snapshots = self.snapshots.iter();
        let record = |(name, s): (&String, &Snapshot)| SnapshotRecord {
            name: name.clone(),
            layer: s.layer,
            created_ms: s.created_ms,
        };
        VolumeRecord {
            id: self.volume,
            name: self.name.clone(),
            head: self.head().id,
            snapshots: snapshots.map(record).collect(),
            operations: self.operations.clone(),
        }
    }
}
