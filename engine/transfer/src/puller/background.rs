//! What nobody waits for: the hottest regions first, within a window, a throttle and a pause.

use super::{Puller, Ranking, Run, State, Why};
use drover_base::units::{EXTENT_BYTES, EXTENTS_PER_REGION};
use drover_base::{ExtentIndex, Instant, RegionIndex};
use drover_store::Volume;
use futures::future::select;
use std::{pin::pin, rc::Rc};

/// Extents of one pull of the background: 256 KiB.
const RUN_EXTENTS_MAX: u64 = 4;

/// Background bytes under way: 16 ms of a gigabit link, behind which a mirrored write's answer waits.
const WINDOW_BYTES: u64 = 2 << 20;

/// The same while clients wait for what they asked for.
const WINDOW_BYTES_WITH_DEMAND: u64 = RUN_EXTENTS_MAX * EXTENT_BYTES;

/// Regions that are put in order at once; then it is asked again which are hottest.
const PLAN_REGIONS_MAX: usize = 1024;

const _: () = assert!(WINDOW_BYTES_WITH_DEMAND <= WINDOW_BYTES);

/// The regions that come next, and where in the first of them it goes on.
#[derive(Default)]
pub struct Plan {
    /// The next one last.
    regions: Vec<RegionIndex>,
    /// In the region, 0..=64.
    from: u64,
}

/// What the background does next.
enum Next {
    Pull(Run),
    Wait,
    WaitUntil(Instant),
    End,
}

impl Plan {
    fn make(&mut self, volume: &Volume, ranking: &dyn Ranking) {
        let mut from = RegionIndex(0);
        let mut regions = Vec::new();
        while let Some(region) = volume.next_remote_region(from) {
            regions.push((std::cmp::Reverse(ranking.heat_rank(region)), region));
            from = RegionIndex(region.0 + 1);
        }
        regions.sort_unstable();
        regions.truncate(PLAN_REGIONS_MAX);
        self.regions = regions.into_iter().rev().map(|(_, region)| region).collect();
        self.from = 0;
    }
}

impl State {
    fn next_background(&mut self, volume: &Volume, ranking: &dyn Ranking, now: Instant) -> Next {
        if self.stopped || volume.remote_bytes() == 0 {
            return Next::End;
        }
        let window = if self.figures.demand_waits > 0 { WINDOW_BYTES_WITH_DEMAND } else { WINDOW_BYTES };
        if self.paused || self.background_bytes >= window {
            return Next::Wait;
        }
        let ready_at = self.throttle.ready_at(now);
        if ready_at > now {
            return Next::WaitUntil(ready_at);
        }
        if let Some(run) = self.planned(volume, now) {
            return Next::Pull(run);
        }
        self.plan.make(volume, ranking);
        match self.planned(volume, now) {
            Some(run) => Next::Pull(run),
            // All that is left is under way, or failed a moment ago.
            None => {
                self.failed.retain(|extent, _| !volume.remote_mask(*extent).is_empty());
                let retries = self.failed.values().map(|failed| failed.retry_at).filter(|at| *at > now);
                retries.min().map_or(Next::Wait, Next::WaitUntil)
            }
        }
    }

    fn planned(&mut self, volume: &Volume, now: Instant) -> Option<Run> {
        while let Some(region) = self.plan.regions.last() {
            let start = region.0 * EXTENTS_PER_REGION;
            let (from, end) = (ExtentIndex(start + self.plan.from), ExtentIndex(start + EXTENTS_PER_REGION));
            if let Some(run) = self.next_run(volume, from, end, RUN_EXTENTS_MAX, now) {
                self.plan.from = run.first.0 + run.extents - start;
                return Some(run);
            }
            self.plan.regions.pop();
            self.plan.from = 0;
        }
        None
    }
}

impl Puller {
    pub(super) async fn run_background(self: Rc<Self>) {
        loop {
            self.readable().await;
            let changed = self.changed.notified();
            let ranking = &*self.config.ranking;
            let next = self.state.borrow_mut().next_background(&self.volume, ranking, self.world.now());
            match next {
                Next::Pull(run) => self.launch(run, Why::Background),
                Next::Wait => changed.await,
                Next::WaitUntil(at) => drop(select(pin!(changed), self.world.timer.sleep_until(at)).await),
                Next::End => break,
            }
        }
        self.changed.notify_waiters();
        // Accesses are counted for a while after all has come; then nobody asks for anything any more.
        let until = self.state.borrow().first_accesses_until;
        self.world.timer.sleep_until(until).await;
        if !self.state.borrow().stopped && self.volume.remote_bytes() == 0 {
            self.volume.set_origin(None);
        }
    }
}
