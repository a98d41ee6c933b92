//! The proof that both sides are equal, before one of them is released.
//!
//! Every extent of every region is compared in stream order while the sender is synced. A difference counts when it is
//! seen several times with the sender synced each time: an error of a write explains the first.
//!
//! The snapshots are compared beside it (`layer_proof.rs`): what is proven is all of them and the head.
//!
//! Invariant: figures belong to one link; a new link begins from zero.

use super::layer_proof::LayerProof;
use super::{Sender, State, Step};
use drover_base::RegionIndex;
use drover_base::units::region_count;
use drover_wire::admin::Proof;
use std::rc::Rc;

/// Regions under comparison at once: one ends while the next has begun.
const REGIONS_AT_ONCE: usize = 2;

/// Looks at a region that differs before it counts as different.
const LOOKS_MAX: u32 = 3;

/// How far the proof is.
pub struct ProofRun {
    pub figures: Proof,
    /// Of the head.
    regions: u64,
    next: u64,
    pub layers: LayerProof,
    begun: usize,
    again: Vec<Look>,
    /// Grows with each beginning; what an earlier one still finds is not counted.
    pub lap: u64,
}

/// One look at a region.
#[derive(Clone, Copy)]
struct Look {
    region: RegionIndex,
    number: u32,
    lap: u64,
}

impl ProofRun {
    fn new(regions: u64, layers: LayerProof) -> Self {
        let figures = Proof { regions_total: regions + layers.regions(), ..Proof::default() };
        Self { figures, regions, next: 0, layers, begun: 0, again: Vec::new(), lap: 0 }
    }

    pub fn begin_again(&mut self) {
        *self = Self { lap: self.lap + 1, ..Self::new(self.regions, self.layers.anew()) };
    }

    pub fn is_proven(&self) -> bool {
        self.layers.has_ended()
            && self.figures.regions_equal == self.figures.regions_total
            && self.figures.regions_thicker == 0
    }

    fn has_ended(&self) -> bool {
        self.layers.has_ended()
            && self.figures.regions_equal + self.figures.regions_different == self.figures.regions_total
    }

    fn take(&mut self) -> Option<Look> {
        let look = self.again.pop().or_else(|| {
            let region = (self.next < self.regions).then_some(RegionIndex(self.next))?;
            self.next += 1;
            Some(Look { region, number: 1, lap: self.lap })
        })?;
        self.begun += 1;
        Some(look)
    }
}

impl State {
    fn proof_step(&mut self) -> Step<Option<Look>> {
        if self.stopped {
            return Step::Done(None);
        }
        let may_ask = self.synced && self.link.is_some() && !self.paused;
        match &mut self.proof {
            Some(proof) if may_ask && proof.begun < REGIONS_AT_ONCE => {
                proof.take().map_or(Step::Wait, |look| Step::Done(Some(look)))
            }
            _ => Step::Wait,
        }
    }
}

impl Sender {
    /// Compares every region with the other side, as soon as and as long as the sender is synced. Called again it
    /// changes nothing, unless the last proof found a difference: then it begins again. It does not begin while some of
    /// the volume is at the other side only.
    pub fn begin_proof(&self) {
        if self.volume.remote_bytes() > 0 {
            return;
        }
        let mut state = self.state.borrow_mut();
        match &mut state.proof {
            Some(proof) if proof.has_ended() && !proof.is_proven() => proof.begin_again(),
            Some(_) => {}
            None => {
                let layers = LayerProof::of(self.volume.frozen_snapshots());
                state.proof = Some(ProofRun::new(region_count(self.volume.size_bytes()), layers));
                if let Some(me) = self.me.upgrade() {
                    self.world.spawn(me.clone().run_proof()).detach();
                    self.world.spawn(me.run_layer_proof()).detach();
                }
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    async fn run_proof(self: Rc<Self>) {
        while let Some(look) = self.until(|state, _| state.proof_step()).await {
            self.world.spawn(self.clone().look_at(look)).detach();
        }
    }

    async fn look_at(self: Rc<Self>, look: Look) {
        let pair = self.digests(look.region).await;
        let mut state = self.state.borrow_mut();
        let is_synced = state.synced;
        let Some(proof) = state.proof.as_mut().filter(|proof| proof.lap == look.lap) else { return };
        proof.begun -= 1;
        match pair {
            // A reopening made it so again: it proves nothing until it is here.
            Ok(pair) if pair.is_remote => proof.again.push(look),
            Ok(pair) if pair.is_equal => {
                proof.figures.regions_equal += 1;
                proof.figures.regions_thicker += u64::from(pair.is_thicker_here());
            }
            Ok(_) if is_synced && look.number >= LOOKS_MAX => proof.figures.regions_different += 1,
            Ok(_) => proof.again.push(Look { number: look.number + u32::from(is_synced), ..look }),
            Err(()) => proof.again.push(look),
        }
        drop(state);
        self.changed.notify_waiters();
    }
}
