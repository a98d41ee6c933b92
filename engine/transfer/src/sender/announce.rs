//! Hot first: the other side is told which blocks stay behind if it takes over now, and how much of what is accessed it
//! has.
//!
//! ```text
//!  pending ──► announced (on the stream) ──► a flush covers it: synced ──► drained: what is announced stays behind
//!     ▲              │ sent by the copier, mirrored, zeroed: not announced any more
//!     └──────────────┘ the link breaks, an announcement fails: nothing counts as announced
//! ```
//! Invariants
//! - A block is announced in the moment in which it is pending: what was put on the stream about it before is older, what is
//!   put there later takes it out of `announced`. So what the other side counts as remote is what was last said of it.
//! - Synced and drained need every pending block announced, and a flush of the other side after that.

use super::{Sender, State, Step};
use drover_base::{ExtentIndex, Instant, IoError, RegionIndex};
use drover_wire::peer::{Answer, Operation};
use std::{rc::Rc, time::Duration};

/// Announcements unanswered at once, 200 bytes each: little beside the window of the stream.
const ANNOUNCED_AT_ONCE_MAX: usize = 256;

/// Wait after all that is pending was looked at in vain.
const SWEEP_DISTANCE: Duration = Duration::from_millis(50);

/// Blocks accessed, decayed, from which on the counts say what is hot: a megabyte. Below it a single read would.
const ACCESSES_MIN: f32 = 256.0;

/// How long a coverage that was worked out is good for: it takes a few milliseconds.
const COVERAGE_AGE_MAX: Duration = Duration::from_millis(500);

/// How a volume's parts rank by what clients did with them.
pub trait Ranking {
    /// How much a region is written: where it is much, what is sent early is sent twice.
    fn write_rank(&self, region: RegionIndex) -> u64;
    /// How much a region is accessed: where it is much, it is wanted early.
    fn heat_rank(&self, region: RegionIndex) -> u64;
    /// The extents that are accessed most, hottest first, with their counts; and what all of them count together.
    fn hot_extents(&self) -> (Vec<(ExtentIndex, f32)>, f32);
}

/// What was announced, and what it covers.
#[derive(Default)]
pub struct Announcer {
    /// Regions from this one on are announced next.
    from: u64,
    unanswered: usize,
    /// All was looked at since something was announced: what is owed are holes, which the copier sends.
    pub swept: bool,
    coverage: Option<(Instant, u32)>,
}

impl Announcer {
    pub fn is_idle(&self) -> bool {
        self.unanswered == 0
    }
}

impl State {
    /// Whether there is something to announce now. False: never again.
    fn announcing(&self, now: Instant) -> Step<bool> {
        if self.stopped {
            return Step::Done(false);
        }
        let may_announce = self.mirror && self.link.is_some() && !self.is_working_out() && !self.drained;
        if !may_announce || self.is_failed() || self.ledger.owes_nothing() {
            return Step::Wait;
        }
        if self.announcer.unanswered >= ANNOUNCED_AT_ONCE_MAX {
            return Step::Wait;
        }
        match self.trouble.retry_at() {
            at if at > now => Step::WaitUntil(at),
            _ => Step::Done(true),
        }
    }

    /// In thousandths.
    fn work_out_coverage(&self, ranking: &dyn Ranking) -> u32 {
        let pending = self.ledger.pending();
        let (hot, total) = ranking.hot_extents();
        let (missing, whole) = if total >= ACCESSES_MIN {
            let blocks = |extent| f32::from(pending.get(extent).count() as u16) / 16.0;
            let named: f32 = hot.iter().map(|(_, heat)| heat).sum();
            let unnamed = if pending.is_empty() { 0.0 } else { (total - named).max(0.0) };
            (hot.iter().map(|(extent, heat)| heat * blocks(*extent)).sum::<f32>() + unnamed, total)
        } else {
            (pending.bytes() as f32, self.ledger.initial_bytes().max(1) as f32)
        };
        ((1.0 - missing / whole).clamp(0.0, 1.0) * 1000.0) as u32
    }

    /// Share of the accesses whose blocks the other side has, in thousandths; `None`: nobody asks for it.
    pub fn coverage_permille(&mut self, ranking: &dyn Ranking, now: Instant) -> Option<u32> {
        if !self.copy.is_hot_first() {
            return None;
        }
        Some(match self.announcer.coverage {
            _ if self.is_working_out() => 0,
            _ if self.ledger.pending().is_empty() => 1000,
            Some((at, coverage)) if now.since(at) < COVERAGE_AGE_MAX => coverage,
            _ => self.announcer.coverage.insert((now, self.work_out_coverage(ranking))).1,
        })
    }
}

impl Sender {
    pub(super) async fn run_announcer(self: Rc<Self>) {
        while self.until(|state, now| state.announcing(now)).await {
            self.announce_some();
            if self.state.borrow().announcer.swept {
                self.changed.notify_waiters();
                self.world.sleep(SWEEP_DISTANCE).await;
            }
        }
    }

    fn announce_some(self: &Rc<Self>) {
        loop {
            let mut state = self.state.borrow_mut();
            let Some(up) = state.link.clone() else { return };
            if state.announcer.unanswered >= ANNOUNCED_AT_ONCE_MAX {
                return;
            }
            let from = RegionIndex(state.announcer.from);
            let Some((region, masks)) = state.ledger.announce_next(from, |extent| self.volume.data_mask(extent)) else {
                state.announcer.swept = std::mem::take(&mut state.announcer.from) == 0;
                return;
            };
            state.announcer.from = region.0 + 1;
            state.announcer.unanswered += 1;
            state.announcer.swept = false;
            drop(state);
            let reply = self.put(&up, Operation::Remote { region, masks: Box::new(masks) });
            let me = self.clone();
            let answered = async move {
                let error = match reply.await {
                    Ok(Answer::Done) => None,
                    Ok(_) => Some(IoError::Corrupt),
                    Err(error) => Some(error),
                };
                me.announced(up.number, error);
            };
            self.world.spawn(answered).detach();
        }
    }

    fn announced(&self, link: u64, error: Option<IoError>) {
        let mut state = self.state.borrow_mut();
        state.announcer.unanswered -= 1;
        if let Some(error) = error {
            let is_current = state.link.as_ref().is_some_and(|up| up.number == link);
            if is_current {
                state.ledger.forget_announced();
            }
            drop(state);
            self.failed_on(link, &error);
        } else {
            drop(state);
            self.changed.notify_waiters();
        }
    }
}
