//! The steps of the control plane, and of nodes with it.

use super::super::state::*;
use super::super::{Action, Protocol, Slip};
use super::{Steps, when};

impl Protocol {
    /// M5, M6, M7.
    pub(super) fn way_back_steps(&self, steps: &mut Steps) {
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

    pub(super) fn flip_steps(&self, steps: &mut Steps) {
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

    pub(super) fn migration_steps(&self, steps: &mut Steps) {
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
}

impl Control {
    /// Nothing that the client begins can meet anything new any more.
    pub(super) fn is_decided(&self) -> bool {
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
