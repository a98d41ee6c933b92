//! The time that this process has lived through: what silences and deadlines count.
//!
//! Invariants:
//! - it never runs ahead of any sound clock;
//! - time in which the process could not hear anybody (stopped, overloaded, its machine suspended, its clock set
//!   forward) does not count but for [`STEP_MAX`]: what was sent to it meanwhile may be waiting unread.

use drover_base::planted::{Bug, is_planted};
use drover_base::{Instant, World};
use std::{cell::Cell, rc::Rc, time::Duration};

/// Between two looks at the clock.
pub const TICK: Duration = Duration::from_millis(200);

/// The most that one look at the clock adds.
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
    looked: Cell<Instant>,
    lived: Cell<Duration>,
}

impl Lived {
    pub fn new(world: World) -> Rc<Self> {
        let looked = Cell::new(world.now());
        Rc::new(Self { world, looked, lived: Cell::default() })
    }

    /// Since the start. To be asked every [`TICK`].
    pub fn now(&self) -> Duration {
        let now = self.world.now();
        let gap = now.since(self.looked.replace(now));
        let step = if is_planted(Bug::StandstillCounts) { gap } else { gap.min(STEP_MAX) };
        self.lived.set(self.lived.get() + step);
        self.lived.get()
    }

    pub fn moment(&self) -> Moment {
        Moment { now: self.world.now(), lived: self.now() }
    }
}
