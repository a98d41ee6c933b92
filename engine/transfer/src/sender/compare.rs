//! Comparing the whole volume with another side that may hold some of it already.
//!
//! Invariants
//! - On every link a flush comes first: what is then found equal is durable there, as far as it was not sent by
//!   this sender (which the ledger follows).
//! - A region is open until it was compared on one link; blocks that differ are pending before it closes.

use super::digests::Pair;
use super::{Sender, State, Step};
use drover_base::{Instant, RegionIndex};
use std::{collections::BTreeSet, rc::Rc};

/// Regions under comparison at once: one ends while the next has begun.
const REGIONS_AT_ONCE: usize = 2;

/// Which regions were not compared yet.
#[derive(Default)]
pub struct Compare {
    /// Regions from here on were not begun.
    next: u64,
    total: u64,
    begun: BTreeSet<RegionIndex>,
    again: BTreeSet<RegionIndex>,
    flushed: bool,
}

impl Compare {
    pub fn all(regions: u64) -> Self {
        Self { total: regions, ..Self::default() }
    }

    pub fn is_running(&self) -> bool {
        self.next < self.total || !self.begun.is_empty() || !self.again.is_empty()
    }

    /// The region may still turn out to differ.
    pub fn is_open(&self, region: RegionIndex) -> bool {
        (self.next..self.total).contains(&region.0) || self.begun.contains(&region) || self.again.contains(&region)
    }

    pub fn wants_flush(&self) -> bool {
        self.is_running() && !self.flushed
    }

    /// A flush succeeded; `now`: on the link that stands now.
    pub fn flushed(&mut self, now: bool) {
        self.flushed |= now;
    }

    pub fn link_lost(&mut self) {
        self.flushed = false;
    }

    fn take(&mut self) -> Option<RegionIndex> {
        let region = self.again.pop_first().or_else(|| {
            let region = (self.next < self.total).then_some(RegionIndex(self.next))?;
            self.next += 1;
            Some(region)
        })?;
        self.begun.insert(region);
        Some(region)
    }
}

impl State {
    fn compare_step(&mut self, now: Instant) -> Step<Option<RegionIndex>> {
        if self.stopped || !self.compare.is_running() {
            return Step::Done(None);
        }
        let is_known = !self.scan.is_running() && !self.are_layers_awaited();
        let may_ask = self.link.is_some() && is_known && self.compare.flushed && (self.draining || !self.paused);
        if !may_ask || self.compare.begun.len() >= REGIONS_AT_ONCE {
            return Step::Wait;
        }
        if self.trouble.retry_at() > now {
            return Step::WaitUntil(self.trouble.retry_at());
        }
        self.compare.take().map_or(Step::Wait, |region| Step::Done(Some(region)))
    }

    fn compared(&mut self, pair: &Pair) {
        for (block, differs) in pair.blocks() {
            // Digests of blocks decide; that of the region is only their summary.
            if differs { self.ledger.mark(block) } else { self.ledger.found_equal(block) }
        }
        // Equal content may be held as zeros on one side and as nothing on the other. What the source has
        // allocated must contain what the destination has.
        if self.is_hold_kind() {
            pair.stored_zeros_they_lack().for_each(|block| self.ledger.mark(block));
        } else {
            pair.holes_they_fill().for_each(|block| self.ledger.mark(block));
        }
    }
}

impl Sender {
    pub(super) async fn run_compare(self: Rc<Self>) {
        while let Some(region) = self.until(|state, now| state.compare_step(now)).await {
            self.world.spawn(self.clone().compare_region(region)).detach();
        }
    }

    async fn compare_region(self: Rc<Self>, region: RegionIndex) {
        let pair = self.digests(region).await;
        let mut state = self.state.borrow_mut();
        state.compare.begun.remove(&region);
        match pair {
            Ok(pair) => state.compared(&pair),
            Err(()) => {
                state.compare.again.insert(region);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}
