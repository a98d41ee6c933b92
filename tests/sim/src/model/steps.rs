//! Every step of client, nodes, network and control plane.

mod client;
mod control;

use super::state::*;
use super::{Action, Protocol, Slip};

/// Collects the steps of one state.
pub(super) struct Steps<'a> {
    pub from: &'a State,
    pub add: &'a mut dyn FnMut(Action, State, bool),
}

impl Steps<'_> {
    /// A step that `change` makes; `None`: it is not possible here.
    fn step(&mut self, action: Action, change: impl FnOnce(&mut State) -> Option<()>) {
        let mut to = *self.from;
        if change(&mut to).is_none() {
            return;
        }
        to.normalise();
        if to != *self.from {
            (self.add)(action, to, false);
        }
    }

    /// The same, at the cost of a fault.
    fn fault(&mut self, action: Action, change: impl FnOnce(&mut State) -> Option<()>) {
        let mut to = *self.from;
        if to.faults == 0 {
            return;
        }
        to.faults -= 1;
        if change(&mut to).is_some() {
            to.normalise();
            (self.add)(action, to, true);
        }
    }
}

fn when(condition: bool) -> Option<()> {
    condition.then_some(())
}

impl Protocol {
    pub(super) fn all_steps(&self, steps: &mut Steps) {
        self.client_steps(steps);
        self.link_steps(steps);
        for node in [SOURCE, DESTINATION] {
            self.node_steps(steps, node);
        }
        self.way_back_steps(steps);
        self.flip_steps(steps);
        self.migration_steps(steps);
        self.late_steps(steps);
    }

    fn link_steps(&self, steps: &mut Steps) {
        for node in [SOURCE, DESTINATION] {
            steps.step(Action::Link(node), |s| self.link(s, node));
        }
        let Link { up, from, .. } = steps.from.link;
        let other = 1 - from;
        let deliver = |s: &mut State, garbage: bool| {
            let mut frame = s.link.pop()?;
            if garbage {
                frame.value = GARBAGE;
            }
            if !self.apply(s, frame, other) {
                self.unlink(s);
            } else if s.link.is_empty() && s.nodes[from].sender.block == Block::Sent {
                s.nodes[from].sender.block = Block::Applied;
            }
            Some(())
        };
        steps.step(Action::CopyBlock, |s| {
            when(up && s.nodes[from].sender.block == Block::Dirty && !s.link.is_full())?;
            s.link.push(Frame { value: s.nodes[from].value, epoch: s.nodes[from].epoch });
            s.nodes[from].sender.block = Block::Sent;
            Some(())
        });
        steps.step(Action::Deliver, |s| deliver(s, false));
        steps.step(Action::FlushOtherSide, |s| {
            when(up && s.link.is_empty() && matches!(s.nodes[from].sender.block, Block::Applied | Block::Clean))?;
            self.flush_other_side(s);
            Some(())
        });
        steps.fault(Action::LinkBreaks, |s| {
            when(up)?;
            self.unlink(s);
            Some(())
        });
        steps.fault(Action::AnswerLost, |s| {
            deliver(s, false)?;
            when(s.link.up)?;
            self.unlink(s);
            Some(())
        });
        steps.fault(Action::CopyTurnsToGarbage, |s| {
            when(self.garbage && from == SOURCE && !s.ghost.rotten)?;
            deliver(s, true)?;
            s.ghost.rotten = true;
            Some(())
        });
        steps.step(Action::LateFrame, |s| {
            let frame = s.link.late.take()?;
            let receiver = if s.nodes[SOURCE].sender.running { DESTINATION } else { SOURCE };
            when(self.apply(s, frame, receiver))
        });
    }

    fn node_steps(&self, steps: &mut Steps, node: Side) {
        let this = steps.from.nodes[node];
        if this.role == Role::Absent {
            return;
        }
        for value in this.after_crash.iter() {
            steps.fault(Action::Crashes(node), |s| {
                self.crash(s, node, value);
                Some(())
            });
        }
        steps.step(Action::Registers(node), |s| {
            when(!this.registered)?;
            self.register(s, node);
            Some(())
        });
        steps.step(Action::Renews(node), |s| {
            when(this.registered)?;
            let control = &mut s.control;
            let grant = control.grant();
            if control.holder == node && this.role == Role::Holder && control.epoch == this.epoch {
                s.nodes[node].clock = this.timed;
            } else {
                self.adopt(s, node, grant);
            }
            Some(())
        });
        steps.step(Action::LeaseStops(node), |s| {
            // Before the flip nobody else could take over: that the source stops then changes nothing.
            when(s.control.holder == node && s.control.after_flip())?;
            s.nodes[node].clock = false;
            Some(())
        });
    }

    /// F7, M8: what a new instance's registration changes is recorded before it is answered.
    fn register(&self, state: &mut State, node: Side) {
        let control = &mut state.control;
        if control.holder == node {
            if !self.has(Slip::RestartKeepsAttempt) {
                control.drained = false;
                control.confirmed = false;
            }
            if control.after_flip() && !self.has(Slip::RestartKeepsWayBack) {
                control.way_back_open = false;
                // Way-back messages of the instance before count no more (M6).
                state.supersede();
            }
        }
        let control = &state.control;
        let (grant, is_holder) = (control.grant(), control.holder == node);
        self.adopt(state, node, grant);
        let this = &mut state.nodes[node];
        this.registered = true;
        this.clock = is_holder && this.timed;
        if node == DESTINATION && is_holder && this.timed {
            self.start_return_mirror(state, node, false, !grant.way_back_open);
        }
    }

    /// Copies of messages that the network kept.
    fn late_steps(&self, steps: &mut Steps) {
        let Some(late) = steps.from.late else { return };
        steps.step(Action::LateMessage, |s| {
            s.late = None;
            match late {
                Late::Quiesce { node, epoch, attempt } => {
                    self.quiesce(s, node, epoch, attempt);
                }
                Late::Grant { node, grant } => self.adopt(s, node, grant),
                Late::OpenWayBack { epoch, superseded } => {
                    let control = &mut s.control;
                    if control.after_flip()
                        && control.epoch == epoch
                        && (!superseded || self.has(Slip::WayBackNotNumbered))
                    {
                        control.way_back_open = true;
                    }
                }
            }
            Some(())
        });
    }
}

impl State {
    /// The node has recorded the present grant, or is gone.
    fn is_told(&self, node: Side) -> bool {
        let (this, control) = (&self.nodes[node], &self.control);
        this.role == Role::Absent || (this.epoch, this.revision) == (control.epoch, control.revision)
    }

    /// Makes states equal that differ in nothing that matters any more.
    fn normalise(&mut self) {
        for node in &mut self.nodes.0 {
            node.clock &= node.timed || node.role == Role::Mirror;
            node.flushed &= node.role == Role::Mirror;
        }
        if matches!(self.late, Some(Late::Quiesce { .. })) {
            return;
        }
        // Without a late request only "this attempt" and "an earlier one" matter.
        for node in &mut self.nodes.0 {
            node.ended = 0;
            node.drained = match node.drained {
                0 => 0,
                drained => 1 + u8::from(drained == self.control.attempt),
            };
        }
        self.control.attempt = 2;
    }

    fn keep_late(&mut self, late: Late) -> Option<()> {
        when(self.late.is_none())?;
        self.late = Some(late);
        Some(())
    }

    /// A way-back message was recorded: earlier ones count no more (M6).
    fn supersede(&mut self) {
        if let Some(Late::OpenWayBack { superseded, .. }) = &mut self.late {
            *superseded = true;
        }
    }
}
