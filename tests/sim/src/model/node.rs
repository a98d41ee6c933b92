//! What a node does: serve, send, apply, drain, adopt a grant, crash.

use super::state::*;
use super::{Protocol, Slip};

impl Protocol {
    /// Whether `node` carries out client I/O now (L1).
    pub fn admits(&self, state: &State, node: Side) -> bool {
        let this = &state.nodes[node];
        this.role == Role::Holder && this.drained == 0 && (self.has(Slip::EpochNotChecked) || self.lease_runs(this))
    }

    pub fn lease_runs(&self, node: &Node) -> bool {
        !node.timed || node.clock
    }

    /// Whether `node` may answer what it carried out (L1): asked again at the end.
    pub fn answers(&self, state: &State, node: Side) -> bool {
        let this = &state.nodes[node];
        self.has(Slip::AckNotFenced) || this.role == Role::Holder && this.drained == 0 && self.lease_runs(this)
    }

    /// Whether the answer need not wait (any more) for the other side (M3, M4).
    pub fn other_side_has_it(&self, state: &State, node: Side, is_flush: bool) -> bool {
        let sender = &state.nodes[node].sender;
        if !sender.running || !sender.mirroring || self.has(Slip::MirrorNotAwaited) {
            return true;
        }
        if node == SOURCE {
            let linked = state.link.up && state.link.from == SOURCE;
            return !linked || is_flush || matches!(sender.block, Block::Applied | Block::Clean);
        }
        let durable = sender.block == Block::Clean;
        sender.alone || durable || !is_flush && sender.block == Block::Applied
    }

    /// A client's write at the holder. `None`: the stream is full, wait.
    pub fn write(&self, state: &mut State, node: Side, value: u8) -> Option<()> {
        let linked = state.link.up && state.link.from == node;
        let this = &mut state.nodes[node];
        if this.sender.running {
            if this.sender.mirroring && linked {
                if state.link.is_full() {
                    return None;
                }
                state.link.push(Frame { value, epoch: this.epoch });
                this.sender.block = Block::Sent;
            } else {
                this.sender.block = Block::Dirty;
            }
        }
        this.value = value;
        this.after_crash = this.after_crash.with(value);
        // Written (again) now: an earlier crash has not lost this one.
        state.ghost.maybe_lost = Values(state.ghost.maybe_lost.0 & !Values::only(value).0);
        Some(())
    }

    /// The connection is gone: whether what was sent arrived is unknown.
    pub fn unlink(&self, state: &mut State) {
        if state.link.up {
            let sender = &mut state.nodes[state.link.from].sender;
            if sender.block == Block::Sent {
                sender.block = Block::Dirty;
            }
        }
        // M10: the next connection would fence and drain it anyway, so the sound protocol has none.
        let late = if self.has(Slip::SessionNotFenced) { state.link.late.or(state.link.frames[0]) } else { None };
        state.link = Link { late, ..Link::DOWN };
    }

    /// A new connection of the sender at `node` (M2, M10, L6). `None`: the other side refuses.
    pub fn link(&self, state: &mut State, node: Side) -> Option<()> {
        let other = state.nodes[1 - node];
        let this = &mut state.nodes[node];
        if !this.sender.running || state.link.up || other.role != Role::Mirror || other.epoch != this.epoch {
            return None;
        }
        this.sender.block = match this.sender.block {
            Block::Applied if this.sender.peer_restarted => Block::Dirty,
            Block::Sent => Block::Dirty,
            block => block,
        };
        this.sender.peer_restarted = false;
        state.link = Link { up: true, from: node, frames: [None, None], late: state.link.late };
        Some(())
    }

    /// The other side looks at the frame in front and answers it. False: refused by its epoch.
    pub fn apply(&self, state: &mut State, frame: Frame, node: Side) -> bool {
        let this = &mut state.nodes[node];
        if this.role != Role::Mirror || this.epoch != frame.epoch {
            return false;
        }
        this.value = frame.value;
        this.after_crash = this.after_crash.with(frame.value);
        this.flushed = false;
        true
    }

    /// A flush of the other side, sent and answered with nothing else under way (M2).
    pub fn flush_other_side(&self, state: &mut State) {
        let from = state.link.from;
        let other = &mut state.nodes[1 - from];
        other.after_crash = Values::only(other.value);
        other.flushed = true;
        if state.nodes[from].sender.block == Block::Applied {
            state.nodes[from].sender.block = Block::Clean;
        }
        if state.nodes[from].sender.block == Block::Clean {
            state.ghost.lost[1 - from] = false;
        }
    }

    /// Everything has arrived, and is durable there (F4).
    pub fn is_synced(&self, state: &State, node: Side) -> bool {
        let sender = &state.nodes[node].sender;
        let clean = sender.block == Block::Clean || self.has(Slip::CleanWithoutFlush) && sender.block == Block::Applied;
        sender.running && sender.mirroring && clean && state.link.up && state.link.from == node && state.link.is_empty()
    }

    /// F2, F3. Whether the node has drained for `attempt`.
    pub fn quiesce(&self, state: &mut State, node: Side, epoch: u8, attempt: u8) -> bool {
        let this = &state.nodes[node];
        if this.drained == attempt {
            return true;
        }
        let busy = [state.client.carried_out, state.client.replayed].contains(&Some(node));
        let refused =
            attempt <= this.ended || attempt < this.drained || this.role != Role::Holder || this.epoch != epoch;
        if refused || busy || !this.timed || !self.is_synced(state, node) {
            return false;
        }
        if !self.has(Slip::CleanWithoutFlush) {
            self.flush_other_side(state);
        }
        let this = &mut state.nodes[node];
        this.drained = attempt;
        if !self.has(Slip::DrainWithoutOwnFlush) {
            this.after_crash = Values::only(this.value);
            state.ghost.lost[node] = false;
        }
        true
    }

    /// F5. Whether the other side has flushed all that was sent; its clock starts (L2).
    pub fn confirm(&self, state: &mut State, node: Side) -> bool {
        let this = &mut state.nodes[node];
        let sure = this.flushed || self.has(Slip::CleanWithoutFlush);
        if sure && this.role == Role::Mirror {
            this.clock = true;
        }
        sure && this.role == Role::Mirror
    }

    /// L5: what is older changes nothing; otherwise fence, persist, act.
    pub fn adopt(&self, state: &mut State, node: Side, grant: Grant) {
        let this = &mut state.nodes[node];
        if this.role == Role::Absent || (grant.epoch, grant.revision) <= (this.epoch, this.revision) {
            return;
        }
        let activated = this.role == Role::Mirror && grant.holder == node;
        if grant.epoch > this.epoch {
            this.drained = 0;
            this.ended = 0;
        }
        this.role = if grant.holder == node { Role::Holder } else { Role::Mirror };
        (this.epoch, this.revision, this.timed) = (grant.epoch, grant.revision, grant.timed);
        if self.has(Slip::GrantStartsClock) {
            this.clock = true;
        }
        let mirrors = this.role == Role::Holder && this.timed;
        if activated {
            // T2
            this.after_crash = Values::only(this.value);
        }
        if activated || !mirrors {
            this.sender = Sender::NONE;
            self.unlink(state);
        }
        if mirrors {
            self.start_return_mirror(state, node, activated, !grant.way_back_open);
        }
    }

    /// The holder after the flip: clean when it has just been activated, else all is compared (M8).
    pub fn start_return_mirror(&self, state: &mut State, node: Side, clean: bool, alone: bool) {
        let this = &mut state.nodes[node];
        if !this.sender.running {
            let block = if clean && !alone { Block::Clean } else { Block::Dirty };
            this.sender = Sender { running: true, mirroring: true, block, alone, ..Sender::NONE };
        }
    }

    /// A crash that leaves `value` of what was not flushed, and a restart at once.
    pub fn crash(&self, state: &mut State, node: Side, value: u8) {
        if state.link.up {
            self.unlink(state);
        }
        state.link.late = None;
        for place in [&mut state.client.carried_out, &mut state.client.replayed] {
            if *place == Some(node) {
                *place = None;
            }
        }
        // Its new instance shows to the gateway and to the other side's sender.
        if state.client.log_of == Some(node) {
            state.client.log_of = None;
        }
        let sender = &mut state.nodes[1 - node].sender;
        sender.peer_restarted = sender.running;
        let could_lose = !state.nodes[node].after_crash.is_single();
        let this = &mut state.nodes[node];
        *this = Node {
            value,
            after_crash: Values::only(value),
            registered: false,
            clock: false,
            drained: 0,
            ended: 0,
            sender: Sender::NONE,
            flushed: false,
            ..*this
        };
        if state.control.holder == node {
            self.losses_show(state);
        } else {
            state.ghost.lost[node] |= could_lose;
        }
    }

    /// What was not flushed may be gone, unless a gateway replays it.
    pub fn losses_show(&self, state: &mut State) {
        if state.client.log.is_none() {
            state.ghost.now = state.ghost.now.and(state.ghost.after_crash);
            state.ghost.unsure = true;
            let sure = state.ghost.base.and(state.ghost.orphans);
            state.ghost.maybe_lost = Values(state.ghost.after_crash.0 & !sure.0);
            state.ghost.log_covers_loss = false;
        } else {
            state.ghost.log_covers_loss = true;
        }
    }
}
