//! The proof of the snapshots: both sides have the same ones, and each shows the same at both.
//!
//! From the bottom up, of each snapshot the extents are compared of which either side says anything in it; the others are
//! those of the snapshot that it stands on, which was compared before. So all of them are proven by reading what each adds.
//!
//! Invariants
//! - Snapshots are frozen at both sides until the migration ends: they need no place in the stream.
//! - A snapshot counts whole, on one link. A difference counts at once: nothing that is under way explains it.

use super::{Sender, State, Step, Up};
use crate::receiver::specs_of;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::{EXTENTS_PER_REGION, region_count};
use drover_base::{Instant, RegionIndex};
use drover_store::FrozenLayer;
use drover_wire::layer::{LayerAnswer, LayerRequest};
use futures::future::join;
use std::{collections::BTreeMap, rc::Rc};

/// How far the proof of the snapshots is.
pub struct LayerProof {
    layers: Vec<FrozenLayer>,
    /// They are the same ones at both sides, or are counted as different.
    is_listed: bool,
    /// Of the layers, how many were compared.
    next: usize,
}

/// What to compare next.
enum Task {
    List,
    Layer(FrozenLayer),
}

impl LayerProof {
    pub fn of(layers: Vec<FrozenLayer>) -> Self {
        let layers = if is_planted(Bug::LayersNotProven) { Vec::new() } else { layers };
        let is_listed = is_planted(Bug::LayersNotProven);
        Self { layers, is_listed, next: 0 }
    }

    pub fn anew(&self) -> Self {
        Self::of(self.layers.to_vec())
    }

    pub fn regions(&self) -> u64 {
        self.layers.iter().map(|layer| region_count(layer.size_bytes)).sum()
    }

    pub fn has_ended(&self) -> bool {
        self.is_listed && self.next == self.layers.len()
    }

    fn task(&self) -> Option<Task> {
        if !self.is_listed {
            return Some(Task::List);
        }
        self.layers.get(self.next).map(|layer| Task::Layer(layer.clone()))
    }
}

impl State {
    fn layer_proof_step(&mut self, now: Instant) -> Step<Option<(Up, u64, Task)>> {
        if self.stopped {
            return Step::Done(None);
        }
        let up = self.link.clone().filter(|_| self.synced && !self.paused);
        let task = self.proof.as_ref().and_then(|proof| Some((proof.lap, proof.layers.task()?)));
        match (up, task) {
            (Some(_), Some(_)) if self.trouble.retry_at() > now => Step::WaitUntil(self.trouble.retry_at()),
            (Some(up), Some((lap, task))) => Step::Done(Some((up, lap, task))),
            _ => Step::Wait,
        }
    }
}

impl Sender {
    pub(super) async fn run_layer_proof(self: Rc<Self>) {
        while let Some((up, lap, task)) = self.until(|state, now| state.layer_proof_step(now)).await {
            let found = match &task {
                Task::List => self.lists_agree(&up).await.map(u64::from),
                Task::Layer(layer) => self.different_regions(layer, &up).await,
            };
            let mut state = self.state.borrow_mut();
            let proof = state.proof.as_mut().filter(|proof| proof.lap == lap);
            if let (Some(proof), Ok(found)) = (proof, found) {
                match task {
                    Task::List => {
                        // One more region than there are, and different: nothing is proven.
                        proof.figures.regions_total += 1 - found;
                        proof.figures.regions_different += 1 - found;
                        proof.layers.is_listed = true;
                    }
                    Task::Layer(layer) => {
                        proof.figures.regions_equal += region_count(layer.size_bytes) - found;
                        proof.figures.regions_different += found;
                        proof.layers.next += 1;
                    }
                }
            }
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Whether the other side has the same snapshots.
    async fn lists_agree(&self, up: &Up) -> Result<bool, ()> {
        match self.ask(up, LayerRequest::List).await? {
            LayerAnswer::Snapshots(theirs) => Ok(theirs == specs_of(&self.volume.frozen_snapshots())),
            _ => self.wrong_answer(up),
        }
    }

    /// How many regions of a snapshot differ.
    async fn different_regions(&self, layer: &FrozenLayer, up: &Up) -> Result<u64, ()> {
        let (mut from, mut different) = (RegionIndex(0), 0);
        let mut theirs = self.their_region(layer, from, up).await?;
        loop {
            let ours = self.volume.layer_region(layer, from).map_err(|error| self.trouble_here(&error))?;
            if theirs.is_some_and(|theirs| theirs < from) {
                theirs = self.their_region(layer, from, up).await?;
            }
            let Some(region) = ours.into_iter().chain(theirs).min() else { return Ok(different) };
            different += u64::from(!self.is_region_equal(layer, region, up).await?);
            from = RegionIndex(region.0 + 1);
        }
    }

    async fn their_region(&self, layer: &FrozenLayer, from: RegionIndex, up: &Up) -> Result<Option<RegionIndex>, ()> {
        match self.ask(up, LayerRequest::Next { name: layer.name.clone(), from }).await? {
            // Not one that was asked about before, or that there cannot be.
            LayerAnswer::Region(next)
                if next.is_none_or(|next| next >= from && next.0 < region_count(layer.size_bytes)) =>
            {
                Ok(next)
            }
            _ => self.wrong_answer(up),
        }
    }

    async fn is_region_equal(&self, layer: &FrozenLayer, region: RegionIndex, up: &Up) -> Result<bool, ()> {
        let here = |error| self.trouble_here(&error);
        let mut extents = 0;
        for (at, extent) in region.extents().enumerate() {
            let masks = self.volume.layer_masks(layer, extent).map_err(here)?;
            extents |= u64::from(!masks.all().is_empty()) << at;
        }
        let request = LayerRequest::Digests { name: layer.name.clone(), region, extents };
        // Both sides read at once; what only the other side says anything of is read when it has said so.
        let (answer, ours) = join(self.ask(up, request), self.own_digests(layer, region, extents)).await;
        let (LayerAnswer::Digests { extents: told, digests: theirs }, mut ours) = (answer?, ours?) else {
            return self.wrong_answer(up);
        };
        if told & extents != extents {
            return self.wrong_answer(up);
        }
        ours.extend(self.own_digests(layer, region, told & !extents).await?);
        Ok(ours.into_values().eq(theirs))
    }

    /// By the extents' places in the region.
    async fn own_digests(
        &self,
        layer: &FrozenLayer,
        region: RegionIndex,
        extents: u64,
    ) -> Result<BTreeMap<u64, [u8; 32]>, ()> {
        let mut digests = BTreeMap::new();
        for at in (0..EXTENTS_PER_REGION).filter(|at| extents >> at & 1 == 1) {
            let content = self.volume.layer_content(layer, region.extent(at as usize)).await;
            let content = content.map_err(|error| self.trouble_here(&error))?;
            let has_data = content.has_data();
            let hash = move || content.digests().extent;
            digests.insert(at, if has_data { self.world.offload(hash).await } else { hash() });
        }
        Ok(digests)
    }
}
