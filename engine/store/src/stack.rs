//! A volume's layers: which is on top, what stands on what, which snapshots name which.
//!
//! Invariants
//! - The layers form a tree by their parents; the head is a leaf and is named by no snapshot.
//! - `chain` is the way from the head down to the bottom, so a lookup is a walk over it.
//! - A layer that no snapshot names and that is not the head is `deleting`.

use crate::{
    StoreError,
    layer::Layer,
    record::{LayerRecord, SnapshotRecord, VolumeRecord},
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
    layers: BTreeMap<LayerId, Rc<Layer>>,
    chain: Vec<Rc<Layer>>,
}

impl Stack {
    /// A new volume: one empty layer.
    pub fn new(volume: VolumeId, name: &str, head: Rc<Layer>) -> Self {
        Self {
            volume,
            name: name.into(),
            snapshots: BTreeMap::new(),
            operations: Vec::new(),
            layers: BTreeMap::from([(head.id, head.clone())]),
            chain: vec![head],
        }
    }

    /// The stack of a stored volume; its layers' maps are empty yet.
    pub fn load(volume: VolumeRecord, layers: &[LayerRecord]) -> Result<Self, StoreError> {
        check_tree(&volume, layers)?;
        let open = |record: &LayerRecord| {
            let layer = Layer::new(record.id, record.parent, record.size_bytes);
            layer.deleting.set(record.deleting);
            (record.id, Rc::new(layer))
        };
        let layers: BTreeMap<LayerId, Rc<Layer>> = layers.iter().map(open).collect();
        let snapshots = volume.snapshots.into_iter();
        let snapshots = snapshots.map(|s| (s.name, Snapshot { layer: s.layer, created_ms: s.created_ms }));
        let mut stack = Self {
            volume: volume.id,
            name: volume.name,
            snapshots: snapshots.collect(),
            operations: volume.operations,
            layers,
            chain: Vec::new(),
        };
        stack.build_chain(volume.head);
        Ok(stack)
    }

    fn build_chain(&mut self, head: LayerId) {
        self.chain.clear();
        let mut next = Some(head);
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)) {
            next = layer.parent.get();
            self.chain.push(layer.clone());
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

    /// All layers, also those of snapshots beside the chain.
    pub fn layers(&self) -> impl Iterator<Item = &Rc<Layer>> {
        self.layers.values()
    }

    pub fn layer(&self, id: LayerId) -> Option<&Rc<Layer>> {
        self.layers.get(&id)
    }

    /// The layers that stand on `parent`.
    pub fn children(&self, parent: LayerId) -> Vec<Rc<Layer>> {
        self.layers.values().filter(|layer| layer.parent.get() == Some(parent)).cloned().collect()
    }

    /// Puts a new head in; the old one stays.
    pub fn set_head(&mut self, head: Rc<Layer>) {
        let id = head.id;
        self.layers.insert(id, head);
        self.build_chain(id);
    }

    /// Takes out a layer that is not the head. What stood on it stands on its parent.
    pub fn remove(&mut self, id: LayerId) {
        assert_ne!(self.head().id, id, "the head stays");
        let Some(layer) = self.layers.remove(&id) else { return };
        for child in self.children(id) {
            child.parent.set(layer.parent.get());
        }
        self.build_chain(self.head().id);
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

    pub fn layer_record(&self, layer: &Layer) -> LayerRecord {
        LayerRecord {
            id: layer.id,
            volume: self.volume,
            parent: layer.parent.get(),
            size_bytes: layer.size_bytes.get(),
            deleting: layer.deleting.get(),
        }
    }
}

/// Whether what is stored is a tree with the head as a leaf.
pub fn check_tree(volume: &VolumeRecord, layers: &[LayerRecord]) -> Result<(), StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { what: format!("{}: {what}", volume.id) };
    let parents: BTreeMap<LayerId, Option<LayerId>> = layers.iter().map(|l| (l.id, l.parent)).collect();
    for layer in layers {
        let mut at = layer.id;
        let mut steps = 0;
        while let Some(parent) = parents.get(&at).ok_or_else(|| corrupt(format!("{at} is missing")))? {
            at = *parent;
            steps += 1;
            if steps > layers.len() {
                return Err(corrupt(format!("{} stands on itself", layer.id)));
            }
        }
    }
    let head = volume.head;
    if !parents.contains_key(&head) {
        return Err(corrupt(format!("the head {head} is missing")));
    }
    if parents.values().any(|parent| *parent == Some(head)) {
        return Err(corrupt(format!("a layer stands on the head {head}")));
    }
    for snapshot in &volume.snapshots {
        if !parents.contains_key(&snapshot.layer) || snapshot.layer == head {
            return Err(corrupt(format!("snapshot {:?} names {}", snapshot.name, snapshot.layer)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: u64, parent: Option<u64>) -> LayerRecord {
        let parent = parent.map(LayerId);
        LayerRecord { id: LayerId(id), volume: VolumeId(1), parent, size_bytes: 4096, deleting: false }
    }

    fn volume(head: u64, snapshots: &[(&str, u64)]) -> VolumeRecord {
        let snapshot = |(name, layer): &(&str, u64)| SnapshotRecord {
            name: (*name).into(),
            layer: LayerId(*layer),
            created_ms: 0,
        };
        VolumeRecord {
            id: VolumeId(1),
            name: "v".into(),
            head: LayerId(head),
            snapshots: snapshots.iter().map(snapshot).collect(),
            operations: Vec::new(),
        }
    }

    #[test]
    fn the_chain_goes_from_the_head_to_the_bottom() {
        let layers = [layer(1, None), layer(2, Some(1)), layer(3, Some(2)), layer(4, Some(1))];
        let mut stack = Stack::load(volume(4, &[("a", 1), ("b", 3), ("c", 2)]), &layers).unwrap();
        let chain = |stack: &Stack| stack.chain().map(|layer| layer.id.0).collect::<Vec<_>>();
        assert_eq!(chain(&stack), [4, 1]);
        assert_eq!(stack.children(LayerId(1)).len(), 2);
        stack.remove(LayerId(1));
        assert_eq!(chain(&stack), [4]);
        assert_eq!(stack.layer(LayerId(2)).unwrap().parent.get(), None);
    }

    #[test]
    fn what_is_not_a_tree_is_refused() {
        let cases: [(&[LayerRecord], VolumeRecord); 5] = [
            (&[layer(1, Some(1))], volume(1, &[])),
            (&[layer(1, Some(2)), layer(2, Some(1)), layer(3, None)], volume(3, &[])),
            (&[layer(1, Some(9))], volume(1, &[])),
            (&[layer(1, None), layer(2, Some(1))], volume(1, &[])),
            (&[layer(1, None)], volume(1, &[("s", 2)])),
        ];
        for (layers, volume) in cases {
            assert!(matches!(check_tree(&volume, layers), Err(StoreError::Corrupt { .. })), "{layers:?}");
        }
    }
}
