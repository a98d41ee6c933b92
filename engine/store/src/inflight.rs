//! When a freed slot has been let go by every I/O that resolved to it.
//!
//! I/Os register in the current generation, at the moment they resolve. Retiring slots closes that
//! generation; when it and all older ones are empty nobody can still be using the slots.
//!
//! Invariants
//! - Generations are in order; only the last one takes new I/Os.
//! - Slots retired with a generation go back to the tiers when no I/O of it or an older one runs.
//! - Slots come here only after the batch that freed them is durable.

use crate::{entry::SlotAddress, outcome::Outcome, slots::Tiers};
use std::{cell::RefCell, collections::VecDeque, rc::Rc};

/// The running I/Os of one volume, by generation.
pub struct Inflight {
    tiers: Tiers,
    generations: RefCell<Generations>,
}

struct Generations {
    /// Number of the first in `queue`.
    first: u64,
    queue: VecDeque<Generation>,
}

#[derive(Default)]
struct Generation {
    running: usize,
    retired: Vec<SlotAddress>,
    /// Set when this one and all older ones are empty.
    released: Outcome<()>,
}

impl Inflight {
    pub fn new(tiers: Tiers) -> Self {
        Self {
            tiers,
            generations: RefCell::new(Generations { first: 0, queue: VecDeque::from([Generation::default()]) }),
        }
    }

    /// Registers an I/O that resolves now.
    pub fn begin(self: &Rc<Self>) -> Running {
        let mut generations = self.generations.borrow_mut();
        let number = generations.first + generations.queue.len() as u64 - 1;
        generations.queue.back_mut().expect("there is always a current generation").running += 1;
        Running { inflight: self.clone(), number }
    }

    /// Gives slots, freed durably, back to the tiers once every I/O that runs now has ended.
    pub fn retire(&self, slots: Vec<SlotAddress>) {
        if slots.is_empty() {
            return;
        }
        let mut generations = self.generations.borrow_mut();
        generations.queue.back_mut().expect("there is always a current generation").retired.extend(slots);
        generations.queue.push_back(Generation::default());
        drop(generations);
        self.release();
    }

    /// Whether retired slots wait for I/Os to end.
    pub fn has_retired(&self) -> bool {
        self.generations.borrow().queue.len() > 1
    }

    /// Waits until what is retired now has gone back to the tiers.
    pub async fn released(&self) {
        let last = {
            let generations = self.generations.borrow();
            // The current generation has none.
            let closed = generations.queue.len() - 1;
            closed.checked_sub(1).map(|at| generations.queue[at].released.clone())
        };
        if let Some(released) = last {
            released.wait().await;
        }
    }

    fn release(&self) {
        let mut generations = self.generations.borrow_mut();
        let mut ended = Vec::new();
        while generations.queue.len() > 1 && generations.queue[0].running == 0 {
            let generation = generations.queue.pop_front().expect("the queue was looked at");
            generations.first += 1;
            self.tiers.free(&generation.retired);
            ended.push(generation.released);
        }
        drop(generations);
        ended.into_iter().for_each(|released| released.set(()));
    }
}

/// An I/O that runs.
pub struct Running {
    inflight: Rc<Inflight>,
    number: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut generations = self.inflight.generations.borrow_mut();
        let at = (self.number - generations.first) as usize;
        let generation = &mut generations.queue[at];
        generation.running -= 1;
        let may_release = at == 0 && generation.running == 0 && generations.queue.len() > 1;
        drop(generations);
        if may_release {
            self.inflight.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{TierClass, TierSpec};

    #[test]
    fn a_slot_waits_for_the_reads_that_resolved_to_it() {
        let tiers = Tiers::new(vec![TierSpec { name: "a".into(), class: TierClass::Nvme, slots: 8, discards: false }]);
        let slots = tiers.allocate(drover_base::VolumeId(1), 2).unwrap();
        let inflight = Rc::new(Inflight::new(tiers.clone()));
        let used = || tiers.usage()[0].slots_used;
        let early = inflight.begin();
        inflight.retire(vec![slots[0]]);
        let late = inflight.begin();
        assert_eq!(used(), 2);
        drop(early);
        assert_eq!(used(), 1, "the late read resolved after the slot was freed");
        inflight.retire(vec![slots[1]]);
        assert_eq!(used(), 1);
        drop(late);
        assert_eq!(used(), 0);
    }
}
