//! Every step of client, nodes, network and control plane.

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

    /// Whether the gateway may pass requests to `node`: nothing must be replayed first (G2).
    pub fn gateway_ready(&self, state: &State, node: Side) -> bool {
        let client = &state.client;
        self.has(Slip::ReplayForgotten)
            || client.log.is_none()
            || client.log_of == Some(node) && client.replayed.is_none()
    }

    /// Whether a read is answered at `node` now: not before the requests in flight were sent there (G2), and not
    /// while a takeover could still undo what it would return (M11).
    pub fn may_read(&self, state: &State, node: Side) -> bool {
        self.admits(state, node)
            && self.gateway_ready(state, node)
            && (state.client.operation.is_none() || state.client.carried_out == Some(node))
            && (self.has(Slip::ReadNotHeld) || self.other_side_has_it(state, node, false))
    }

    fn client_steps(&self, steps: &mut Steps) {
        let client = steps.from.client;
        for node in [SOURCE, DESTINATION] {
            self.request_steps(steps, node);
        }
        // G1, G2: the log dies with its gateway; what was carried out and not answered stays carried out.
        steps.fault(Action::GatewayCrashes, |s| {
            when(client.log.is_some() || client.operation.is_some())?;
            s.client = Client { writes: client.writes, ..State::start(0).client };
            if s.ghost.log_covers_loss {
                self.losses_show(s);
            }
            Some(())
        });
    }

    fn request_steps(&self, steps: &mut Steps, node: Side) {
        let client = steps.from.client;
        let carry_out = |s: &mut State, operation: Operation| {
            when(client.carried_out.is_none() && self.admits(s, node) && self.gateway_ready(s, node))?;
            match operation {
                Operation::Write(value) => self.write(s, node, value)?,
                Operation::Flush => s.nodes[node].after_crash = Values::only(s.nodes[node].value),
            }
            s.client.operation = Some(operation);
            s.client.carried_out = Some(node);
            Some(())
        };
        steps.step(Action::Write(node), |s| {
            when(client.operation.is_none() && client.writes < self.writes && !s.control.is_decided())?;
            s.client.writes += 1;
            let value = s.client.writes;
            s.ghost.now = s.ghost.now.with(value);
            s.ghost.after_crash = s.ghost.after_crash.with(value);
            carry_out(s, Operation::Write(value))
        });
        steps.step(Action::Flush(node), |s| {
            when(client.operation.is_none() && !s.ghost.after_crash.is_single() && !s.control.is_decided())?;
            carry_out(s, Operation::Flush)
        });
        steps.step(Action::Again(node), |s| carry_out(s, client.operation?));
        steps.step(Action::Answer(node), |s| {
            let operation = client.operation?;
            let is_flush = operation == Operation::Flush;
            when(client.carried_out == Some(node) && self.answers(s, node))?;
            when(self.other_side_has_it(s, node, is_flush))?;
            s.client.operation = None;
            s.client.carried_out = None;
            match operation {
                Operation::Write(value) => {
                    s.client.log = Some(value);
                    s.client.log_of = Some(node);
                    s.ghost.now = Values::only(value);
                }
                Operation::Flush => {
                    s.client.log = None;
                    s.client.log_of = None;
                    s.ghost.base = s.ghost.now;
                    s.ghost.after_crash = s.ghost.now;
                }
            }
            Some(())
        });
        // The gateway takes a request back from a node that may not answer it, and asks another.
        steps.step(Action::TakeBack(node), |s| {
            when(client.carried_out == Some(node) && !self.answers(s, node))?;
            s.client.carried_out = None;
            Some(())
        });
        steps.step(Action::Replay(node), |s| {
            when(client.carried_out.is_none() && client.replayed.is_none())?;
            when(self.admits(s, node) && !self.gateway_ready(s, node))?;
            self.write(s, node, client.log?)?;
            s.client.replayed = Some(node);
            Some(())
        });
        steps.step(Action::ReplayAnswered(node), |s| {
            when(client.replayed == Some(node))?;
            s.client.replayed = None;
            if self.answers(s, node) {
                when(self.other_side_has_it(s, node, false))?;
                s.client.log_of = Some(node);
                s.ghost.log_covers_loss = false;
            }
            Some(())
        });
        // A read tells what a crash has left.
        steps.step(Action::Read(node), |s| {
            when(s.ghost.unsure && self.may_read(s, node))?;
            let read = s.nodes[node].value;
            let mut seen = Values::only(read);
            if let Some(Operation::Write(pending)) = client.operation {
                // A write that is not answered may be undone by the replay of what was before it.
                when(read != pending)?;
                seen = seen.with(pending);
            }
            s.ghost.unsure = false;
            s.ghost.now = seen;
            s.ghost.after_crash = s.ghost.base.and(seen);
            Some(())
        });
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
            self.restart_return_mirror(state, !grant.way_back_open);
        }
    }

    fn restart_return_mirror(&self, state: &mut State, alone: bool) {
        let this = &mut state.nodes[DESTINATION];
        if !this.sender.running {
            this.sender = Sender { running: true, mirroring: true, alone, ..Sender::NONE };
        }
    }

    /// M5, M6, M7.
    fn way_back_steps(&self, steps: &mut Steps) {
        let this = steps.from.nodes[DESTINATION];
        let control = steps.from.control;
        let current = control.after_flip() && control.holder == DESTINATION && control.epoch == this.epoch;
        if this.role != Role::Holder || !this.sender.running || !this.registered {
            return;
        }
        steps.step(Action::ClosesWayBack, |s| {
            let client = &s.client;
            let waits = client.replayed == Some(DESTINATION)
                || client.carried_out == Some(DESTINATION)
                    && !self.other_side_has_it(s, DESTINATION, client.operation == Some(Operation::Flush));
            when(!this.sender.alone && !s.link.up && waits)?;
            if !self.has(Slip::WayBackNotRecorded) {
                when(current)?;
                s.control.way_back_open = false;
                s.supersede();
            }
            s.nodes[DESTINATION].sender.alone = true;
            Some(())
        });
        let may_open = self.is_synced(steps.from, DESTINATION) && (this.sender.alone || !control.way_back_open);
        let open = |s: &mut State| {
            when(may_open)?;
            s.nodes[DESTINATION].sender.alone = false;
            s.control.way_back_open |= current;
            s.supersede();
            Some(())
        };
        steps.step(Action::OpensWayBack, open);
        steps.fault(Action::OpenDelayed, |s| {
            open(s)?;
            s.keep_late(Late::OpenWayBack { epoch: this.epoch, superseded: false })
        });
    }

    fn flip_steps(&self, steps: &mut Steps) {
        let control = steps.from.control;
        let (holder, other) = (control.holder, 1 - control.holder);
        let Control { epoch, attempt, .. } = control;
        let flipping = matches!(control.phase, Phase::Flipping | Phase::FlippingBack);
        steps.step(Action::StartsFlip, |s| {
            when(self.is_synced(s, holder))?;
            s.control.phase = match control.phase {
                Phase::Mirroring => Phase::Flipping,
                Phase::Settling if control.way_back_open => Phase::FlippingBack,
                _ => return None,
            };
            s.control.attempt += 1;
            (s.control.drained, s.control.confirmed) = (false, false);
            Some(())
        });
        if flipping {
            steps.step(Action::Quiesces, |s| {
                s.control.drained = self.quiesce(s, holder, epoch, attempt);
                when(s.control.drained)
            });
            steps.fault(Action::QuiesceDelayed, |s| s.keep_late(Late::Quiesce { node: holder, epoch, attempt }));
            steps.step(Action::Confirms, |s| {
                when(control.drained && !control.confirmed)?;
                s.control.confirmed = self.confirm(s, other);
                when(s.control.confirmed)
            });
            steps.step(Action::MovesLease, |s| {
                when(control.drained && control.confirmed || self.has(Slip::FlipWithoutDrain))?;
                let back = control.phase == Phase::FlippingBack;
                s.control.phase = if back { Phase::RollingBack } else { Phase::Settling };
                s.control.move_lease(other, !back);
                Some(())
            });
            let hopeless = self.is_hopeless(steps.from);
            let give_up = |s: &mut State| {
                let back = control.phase == Phase::FlippingBack;
                s.control.phase = if back { Phase::Settling } else { Phase::Mirroring };
                (s.control.drained, s.control.confirmed) = (false, false);
                Some(())
            };
            steps.step(Action::GivesUpFlip, |s| when(hopeless).and_then(|()| give_up(s)));
            steps.fault(Action::FlipTimesOut, give_up);
        }
        // F8: a drained node outside of its attempt is told to go on, whyever it drained.
        steps.step(Action::Resumes, |s| {
            let node = &mut s.nodes[holder];
            when(node.epoch == epoch || self.has(Slip::ResumeWithoutEpoch))?;
            when(node.drained != 0 && !(flipping && node.drained == attempt))?;
            node.ended = node.ended.max(node.drained);
            node.drained = 0;
            Some(())
        });
    }

    /// The attempt cannot come to an end any more: the other side restarted, or the holder did.
    fn is_hopeless(&self, state: &State) -> bool {
        let control = &state.control;
        let holder = &state.nodes[control.holder];
        let sends = holder.sender.running && holder.sender.mirroring;
        if holder.drained == control.attempt { !state.nodes[1 - control.holder].flushed } else { !sends }
    }

    fn migration_steps(&self, steps: &mut Steps) {
        let control = steps.from.control;
        let source = steps.from.nodes[SOURCE];
        let before_flip = matches!(control.phase, Phase::Tracking | Phase::Mirroring);
        steps.step(Action::BeginsSend, |s| {
            when(before_flip && source.role == Role::Holder && source.registered && !source.sender.running)?;
            s.nodes[SOURCE].sender = Sender { running: true, ..Sender::NONE };
            Some(())
        });
        steps.step(Action::RecordsMirroring, |s| {
            when(control.phase == Phase::Tracking && matches!(source.sender.block, Block::Applied | Block::Clean))?;
            s.control.phase = Phase::Mirroring;
            s.control.timed = true;
            s.control.revision += 1;
            Some(())
        });
        steps.step(Action::BeginsMirror, |s| {
            when(control.phase == Phase::Mirroring && source.sender.running)?;
            let node = &mut s.nodes[SOURCE];
            node.sender.mirroring = true;
            if !node.timed {
                (node.timed, node.revision, node.clock) = (true, control.revision, true);
            }
            Some(())
        });
        for node in [SOURCE, DESTINATION] {
            let grant = control.grant();
            steps.step(Action::Tells(node), |s| {
                self.adopt(s, node, grant);
                Some(())
            });
            steps.fault(Action::GrantDelayed(node), |s| {
                when(!s.is_told(node))?;
                s.keep_late(Late::Grant { node, grant })
            });
        }
        // T1
        steps.step(Action::TakesOver, |s| {
            when(control.after_flip() && control.way_back_open)?;
            // The holder has stopped by its clock; the grantor waits longer than that.
            when(!s.nodes[control.holder].clock || self.has(Slip::TakeoverWithoutWait))?;
            s.control.phase = Phase::RollingBack;
            s.control.move_lease(SOURCE, false);
            if s.ghost.lost[SOURCE] {
                self.losses_show(s);
            }
            Some(())
        });
        self.end_steps(steps);
        // L3, F6: a control plane that starts knows what was recorded, and counts leases from now.
        steps.fault(Action::ControlRestarts, |s| {
            (s.control.drained, s.control.confirmed) = (false, false);
            when(*s != State { faults: s.faults, ..*steps.from })
        });
    }

    fn end_steps(&self, steps: &mut Steps) {
        let control = steps.from.control;
        // T5
        steps.step(Action::Cancels, |s| {
            when(matches!(control.phase, Phase::Tracking | Phase::Mirroring))?;
            // At a quiet moment: the source holds all along.
            when(s.client.operation.is_none() && s.link.is_empty())?;
            s.control.phase = Phase::RollingBack;
            s.control.settle_lease();
            Some(())
        });
        // T3
        steps.step(Action::Commits, |s| {
            when(control.phase == Phase::Settling && control.way_back_open)?;
            let proven = self.is_synced(s, DESTINATION) && s.nodes[SOURCE].value == s.nodes[DESTINATION].value;
            when(proven || self.has(Slip::ProofSkipped))?;
            s.control.phase = Phase::Committing;
            s.control.settle_lease();
            Some(())
        });
        // T4
        let (leaver, ends) = match control.phase {
            Phase::Committing => (SOURCE, Phase::Committed),
            Phase::RollingBack => (DESTINATION, Phase::RolledBack),
            _ => return,
        };
        let gone = steps.from.nodes[leaver].role == Role::Absent;
        steps.step(Action::Drops(leaver), |s| {
            when(!gone)?;
            if s.link.up {
                self.unlink(s);
            }
            let node = &mut s.nodes[leaver];
            *node = Node { role: Role::Absent, timed: true, ..State::start(0).nodes[leaver] };
            Some(())
        });
        steps.step(Action::Ends, |s| {
            when(gone && s.is_told(1 - leaver))?;
            s.control.phase = ends;
            Some(())
        });
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

impl Control {
    /// Nothing that the client begins can meet anything new any more.
    fn is_decided(&self) -> bool {
        matches!(self.phase, Phase::Committing | Phase::Committed | Phase::RolledBack)
    }

    /// The destination holds a timed lease; the source mirrors.
    pub fn after_flip(&self) -> bool {
        matches!(self.phase, Phase::Settling | Phase::FlippingBack)
    }

    pub fn grant(&self) -> Grant {
        Grant {
            epoch: self.epoch,
            revision: self.revision,
            holder: self.holder,
            timed: self.timed,
            way_back_open: self.way_back_open,
        }
    }

    /// One durable transaction (F6, T1).
    fn move_lease(&mut self, holder: Side, timed: bool) {
        self.epoch += 1;
        self.revision = 0;
        self.holder = holder;
        self.timed = timed;
        self.way_back_open = true;
        (self.drained, self.confirmed) = (false, false);
    }

    /// The migration is over: no time limit any more.
    fn settle_lease(&mut self) {
        self.timed = false;
        self.revision += 1;
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
