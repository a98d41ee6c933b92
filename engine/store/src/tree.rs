//! Layers by their parents, and what can be seen from where. Pure: a forest in memory, or as stored.
//!
//! ```text
//!              ┌── 3   head of one volume
//!    1 ◄── 2 ◄─┤           2 is frozen, a snapshot names it
//!              └── 4   head of its clone
//! ```

use crate::{
    StoreError,
    layer::Layer,
    record::{LayerRecord, VolumeRecord},
};
use drover_base::{LayerId, VolumeId};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// The layers of a family, in memory.
#[derive(Default)]
pub struct Tree {
    layers: BTreeMap<LayerId, Rc<Layer>>,
}

impl Tree {
    pub fn layer(&self, id: LayerId) -> Option<&Rc<Layer>> {
        self.layers.get(&id)
    }

    /// Ascending by id.
    pub fn layers(&self) -> impl Iterator<Item = &Rc<Layer>> {
        self.layers.values()
    }

    pub fn insert(&mut self, layer: Rc<Layer>) {
        self.layers.insert(layer.id, layer);
    }

    /// Takes a layer out. What stood on it stands on its parent.
    pub fn remove(&mut self, id: LayerId) {
        let Some(layer) = self.layers.remove(&id) else { return };
        for child in self.layers.values().filter(|child| child.parent.get() == Some(id)) {
            child.parent.set(layer.parent.get());
        }
    }

    /// Takes a layer out on which nothing that stays stands.
    pub fn forget(&mut self, id: LayerId) {
        self.layers.remove(&id);
    }

    /// The way from a layer down to the bottom, itself first.
    pub fn chain(&self, from: LayerId) -> Vec<Rc<Layer>> {
        let mut chain = Vec::new();
        let mut next = Some(from);
        while let Some(layer) = next.and_then(|id| self.layers.get(&id)) {
            next = layer.parent.get();
            chain.push(layer.clone());
        }
        chain
    }

    /// The layers that stand on each.
    pub fn children(&self) -> BTreeMap<LayerId, Vec<Rc<Layer>>> {
        let mut children: BTreeMap<LayerId, Vec<Rc<Layer>>> = BTreeMap::new();
        for layer in self.layers.values() {
            if let Some(parent) = layer.parent.get() {
                children.entry(parent).or_default().push(layer.clone());
            }
        }
        children
    }

    /// These layers and what they stand on.
    pub fn seen(&self, from: impl IntoIterator<Item = LayerId>) -> BTreeSet<LayerId> {
        seen(|id| self.layers.get(&id).and_then(|layer| layer.parent.get()), from)
    }
}

/// These layers and what they stand on.
fn seen(parent: impl Fn(LayerId) -> Option<LayerId>, from: impl IntoIterator<Item = LayerId>) -> BTreeSet<LayerId> {
    let mut all = BTreeSet::new();
    for id in from {
        let mut next = Some(id);
        // Where another way has passed, the rest is known.
        while let Some(id) = next.filter(|id| all.insert(*id)) {
            next = parent(id);
        }
    }
    all
}

/// What the volume's head and its snapshots stand on, as stored.
pub fn seen_by(volume: &VolumeRecord, layers: &[LayerRecord]) -> BTreeSet<LayerId> {
    let parents: BTreeMap<LayerId, Option<LayerId>> = layers.iter().map(|layer| (layer.id, layer.parent)).collect();
    seen(|id| parents.get(&id).copied().flatten(), volume.names())
}

/// Whether what is stored of a family is a forest, with every head as a leaf of its own.
pub fn check_family(volumes: &[VolumeRecord], layers: &[LayerRecord]) -> Result<(), StoreError> {
    let first = volumes.first().map_or(VolumeId(0), |volume| volume.id);
    let corrupt = |what: String| StoreError::Corrupt { what: format!("{first}: {what}") };
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
    let parents_of_some: BTreeSet<LayerId> = parents.values().flatten().copied().collect();
    let mut heads = BTreeSet::new();
    for volume in volumes {
        let corrupt = |what: String| StoreError::Corrupt { what: format!("{}: {what}", volume.id) };
        let head = volume.head;
        if !parents.contains_key(&head) {
            return Err(corrupt(format!("the head {head} is missing")));
        }
        if parents_of_some.contains(&head) {
            return Err(corrupt(format!("a layer stands on the head {head}")));
        }
        if !heads.insert(head) {
            return Err(corrupt(format!("{head} is the head of another volume, too")));
        }
        if !volume.id.is_kin_of(first) {
            return Err(corrupt(format!("it shares layers with {first} and has another home")));
        }
    }
    for volume in volumes {
        for snapshot in &volume.snapshots {
            if !parents.contains_key(&snapshot.layer) || heads.contains(&snapshot.layer) {
                let what = format!("{}: snapshot {:?} names {}", volume.id, snapshot.name, snapshot.layer);
                return Err(StoreError::Corrupt { what });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FamilyId, SnapshotRecord};

    fn layer(id: u64, parent: Option<u64>) -> LayerRecord {
        let parent = parent.map(LayerId);
        LayerRecord { id: LayerId(id), family: FamilyId(1), parent, size_bytes: 4096, deleting: false }
    }

    fn volume(id: u64, head: u64, snapshots: &[(&str, u64)]) -> VolumeRecord {
        let snapshot = |(name, layer): &(&str, u64)| SnapshotRecord {
            name: (*name).into(),
            layer: LayerId(*layer),
            created_ms: 0,
        };
        VolumeRecord {
            id: VolumeId(id),
            name: "v".into(),
            head: LayerId(head),
            snapshots: snapshots.iter().map(snapshot).collect(),
            operations: Vec::new(),
        }
    }

    #[test]
    fn chains_go_to_the_bottom_and_what_is_seen_is_all_of_them() {
        let mut tree = Tree::default();
        for record in [layer(1, None), layer(2, Some(1)), layer(3, Some(2)), layer(4, Some(2))] {
            tree.insert(Rc::new(Layer::new(record.id, record.parent, record.size_bytes)));
        }
        let chain = |tree: &Tree, from| tree.chain(LayerId(from)).iter().map(|layer| layer.id.0).collect::<Vec<_>>();
        assert_eq!(chain(&tree, 4), [4, 2, 1]);
        assert_eq!(tree.children()[&LayerId(2)].len(), 2);
        assert_eq!(tree.seen([LayerId(4), LayerId(2)]), [1, 2, 4].map(LayerId).into());
        tree.remove(LayerId(2));
        assert_eq!((chain(&tree, 4), chain(&tree, 3)), (vec![4, 1], vec![3, 1]));
        tree.remove(LayerId(1));
        assert_eq!(tree.layer(LayerId(3)).unwrap().parent.get(), None);
    }

    #[test]
    fn what_is_no_family_is_refused() {
        const KIN: u64 = 1 << 32 | 1;
        let sound = [layer(1, None), layer(2, Some(1)), layer(3, Some(1))];
        check_family(&[volume(1, 2, &[("s", 1)]), volume(KIN, 3, &[])], &sound).unwrap();
        let cases: [(&[LayerRecord], &[VolumeRecord]); 8] = [
            (&[layer(1, Some(1))], &[volume(1, 1, &[])]),
            (&[layer(1, Some(2)), layer(2, Some(1)), layer(3, None)], &[volume(1, 3, &[])]),
            (&[layer(1, Some(9))], &[volume(1, 1, &[])]),
            (&[layer(1, None), layer(2, Some(1))], &[volume(1, 1, &[])]),
            (&[layer(1, None)], &[volume(1, 1, &[("s", 2)])]),
            (&sound, &[volume(1, 2, &[]), volume(KIN, 2, &[])]),
            (&sound, &[volume(1, 2, &[("s", 3)]), volume(KIN, 3, &[])]),
            (&sound, &[volume(1, 2, &[]), volume(KIN + 1, 3, &[])]),
        ];
        for (layers, volumes) in cases {
            assert!(matches!(check_family(volumes, layers), Err(StoreError::Corrupt { .. })), "{layers:?} {volumes:?}");
        }
    }
}
