//! The time that this process has lived through: what silences and deadlines count.
//!
//! Invariants:
//! - it never runs ahead of any sound clock;
//! - time in which the process could not hear anybody (stopped, overloaded, its machine suspended, its clock set
//!   forward) does not count but for [`STEP_MAX`]: what was sent to it meanwhile may be waiting unread;
//! - only its own timer moves it on: whoever asks in between sees it grow by no more than that.

use drover_base::planted::{Bug, is_planted};
use drover_base::{Instant, World};
use std::{cell::Cell, rc::Rc, time::Duration};

/// Between two ticks.
pub const TICK: Duration = Duration::from_millis(200);

/// The most that one tick adds.
const STEP_MAX: Duration = Duration::from_millis(800);

const _: () = assert!(STEP_MAX.as_millis() > TICK.as_millis());

/// A moment: what waits and figures go by, and what deadlines go by.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub lived: Duration,
}

pub struct Lived {
    world: World,
    ticked: Cell<Instant>,
    /// At the last tick.
    lived: Cell<Duration>,
}

impl Lived {
    pub fn new(world: World) -> Rc<Self> {
        let ticked = Cell::new(world.now());
        Rc::new(Self { world, ticked, lived: Cell::default() })
    }

    /// To be called every [`TICK`].
    pub fn tick(&self) {
        let now = self.world.now();
        self.lived.set(self.lived_at(now));
        self.ticked.set(now);
    }

    fn lived_at(&self, now: Instant) -> Duration {
        let gap = now.since(self.ticked.get());
        self.lived.get() + if is_planted(Bug::StandstillCounts) { gap } else { gap.min(STEP_MAX) }
    }

    /// Since the start.
    pub fn now(&self) -> Duration {
        self.lived_at(self.world.now())
    }

    pub fn moment(&self) -> Moment {
        Moment { now: self.world.now(), lived: self.now() }
    }
}
