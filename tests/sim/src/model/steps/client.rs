//! The steps of the client and its gateway.

use super::super::state::*;
use super::super::{Action, Protocol, Slip};
use super::{Steps, when};

impl Protocol {
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

    pub(super) fn client_steps(&self, steps: &mut Steps) {
        let client = steps.from.client;
        for node in [SOURCE, DESTINATION] {
            self.request_steps(steps, node);
            self.replay_steps(steps, node);
        }
        // G1, G2: the log dies with its gateway; what was carried out and not answered stays carried out.
        steps.fault(Action::GatewayCrashes, |s| {
            when(client.log.is_some() || client.operation.is_some())?;
            if let Some(Operation::Write(value)) = client.operation {
                s.ghost.orphans = s.ghost.orphans.with(value);
            }
            s.client = Client { writes: client.writes, ..State::start(0).client };
            if s.ghost.log_covers_loss {
                self.losses_show(s);
                // A replay was begun, perhaps: it covers up what the crash left, until the next one.
                s.ghost.maybe_lost = Values(0);
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
    }

    /// G2: what the holder's other instance, or another holder, may not have.
    fn replay_steps(&self, steps: &mut Steps, node: Side) {
        let client = steps.from.client;
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
            // What it lost does not come back; what was written since may be lost by the next one.
            s.ghost.after_crash = Values(s.ghost.after_crash.0 & !s.ghost.maybe_lost.0).and(seen);
            s.ghost.maybe_lost = Values(0);
            Some(())
        });
    }
}
