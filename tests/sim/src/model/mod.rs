//! The durability and lease protocol of a migration: every ordering rule, and a model of it that is searched whole.
//!
//! ```text
//!               gateway ──(requests, replay)──► holder ──(stream: copies, mirror writes, flushes)──► other side
//!                                                 ▲ ▼ Renew, Register, Close/OpenWayBack
//!                                                 control plane: lease record, migration record
//!
//!  Tracking ─► Mirroring ─► Flipping(k) ─► Settling ─────────────► Committing ─► Committed
//!     │           │  ▲        │ give k up     │  ▲ │ ▲ give k up
//!     │           │  └────────┘               │  │ ▼ │
//!     │           │                           │ FlippingBack(k)
//!     └───────────┴──── cancel ───┐           │   │ (flip to the source)
//!                                 ▼           ▼   ▼
//!                            RolledBack ◄─ RollingBack   (forced takeover, from Settling and FlippingBack)
//! ```
//! Before the flip the source holds epoch N: untimed, from Mirroring on timed. The flip gives the destination N+1,
//! timed; the source is then its mirror (the way back). Flip back or takeover give the source N+2. Commit and
//! rollback end with an untimed lease and one copy.
//!
//! What is durable: the control plane's two records; a node's record of the volume (epoch, revision, role, timed);
//! what was flushed. Everything else is forgotten by a restart, which shows as a new *instance*.
//!
//! # Lease
//! - **L1** A node serves only as holder by its durable record, and under a timed lease only while its own lease clock
//!   runs. Asked when it carries out a request (after the locks) and again before it answers; reads included.
//! - **L2** The clock runs from the *sending* of a Register or Renew that was answered, from the receipt of BeginMirror,
//!   and after a flip from the *first* receipt of the ConfirmPosition of that position in this instance. A grant starts
//!   no clock. A restart stops it.
//! - **L3** The grantor waits TTL and drift after the later of the lease's move and the last renewal's receipt. A control
//!   plane that starts counts every timed lease as renewed at its start.
//! - **L4** "Timed" is durable at the source before it answers BeginMirror; the flip comes after that answer. A new
//!   migration begins only after the holder has answered the grant that ended the last one.
//! - **L5** A grant that is not newer by (epoch, revision) changes nothing. A newer one: fence and drain what runs under
//!   the old one (own I/O of a holder, frames being applied by a mirror), record, then act, then answer.
//! - **L6** Frames and the first message of a connection name the epoch; a mirror takes those of exactly its own. A higher
//!   one is refused as "not yet", a lower one as fenced.
//!
//! # Flip
//! - **F1** Record Flipping(k), then Quiesce(k).
//! - **F2** The holder: stop admitting, drain, send the last, flush *both* sides (its own volume too, the other side even if
//!   all was clean), then answer Drained(position).
//! - **F3** It may go on by itself only before it has decided to answer Drained. Then only ResumeHolder or a newer epoch
//!   ends it: not a lost answer, not a renewal, not a new connection.
//! - **F4** Quiesce is refused unless this instance's sender is synced.
//! - **F5** The other side confirms only what it applied *and* flushed in this instance.
//! - **F6** Drained, confirmed, then one durable transaction: lease (N+1, timed), phase, way back open. Its conditions: still
//!   Flipping(k), lease as before, holder's instance the one that drained; all asked within one life of the control plane.
//! - **F7** The Register of a new instance of the holder voids the attempt, before it is answered.
//! - **F8** Giving up is recorded before ResumeHolder(epoch, k). It is obeyed only at exactly that epoch of the node's record,
//!   and ends k and all before it. Whoever is found drained outside of an attempt is told the grant, then resumed.
//! - **F9** After the move both nodes are told until they answer. The return mirror starts clean.
//! - **F10** Requests queued at the old holder are answered Moved after its record is durable; only their gateway sends
//!   them again.
//!
//! # Mirror
//! - **M1** Copies and mirror writes of an extent go through one ordered stream; the copier clears dirty before it reads.
//! - **M2** Clean is what a flush of the other side covers in the instance that applied it. Another instance there: all since
//!   the last such flush is dirty again.
//! - **M3** Before the flip, a broken link: mark dirty, answer locally.
//! - **M4** After the flip, with the way back open: a write is answered when the other side has it, a flush when all it covers is
//!   durable there, resent if need be.
//! - **M5** Otherwise CloseWayBack is recorded and answered first. Refused: nothing is released; the grant decides.
//! - **M6** Way-back messages carry (instance, number); older ones than the record's change nothing, and the Register of a new
//!   instance ends those of the one before. The holder counts the way back as open from the *sending* of Open.
//! - **M7** Open only when synced, and mirroring goes on.
//! - **M8** A holder that restarted while settling serves nothing, reads included, before the way back is recorded as closed (the
//!   other side may have what it lost): the control plane records it with the Register. Its mirror starts by comparing, and
//!   only what was active: what a comparison overwrites, the proof of T3 no longer compares with the original.
//! - **M9** A source that restarted before the flip compares; no Drained before that is done.
//! - **M10** A new connection of a session fences and drains the old one.
//! - **M11** A read waits while the other side lacks the last write of what it reads, under M4.
//!
//! # Hot first
//! - **H1** What the other side lacks at a flip is announced on the stream while it is pending here; what is put there about a
//!   block later takes that back. With the link, or another instance of the other side, nothing counts as announced.
//! - **H2** Drained needs every pending block announced, and the flush of F2 after that.
//! - **H3** What is remote is read by nobody and sent by nobody; a comparison leaves it out.
//! - **H4** What is fetched is read in stream order, so behind every mirrored write before it; it is stored where it is still
//!   remote, and goes to no mirror.
//! - **H5** Nothing is proven while anything is remote.
//!
//! # Ends
//! - **T1** Takeover: one transaction, way back open, L3 over: lease (N+2, source, untimed).
//! - **T2** The source then does L5 (frames not yet answered may be dropped: nobody acknowledged them) and flushes before it
//!   serves: what is read after the loss of the destination must not change with a crash of the source.
//! - **T3** Commit: one transaction, settling, way back open, contents proven equal since it was last opened. Only then is the
//!   source dropped.
//! - **T4** A drop is refused by a holder whose epoch is not older than the drop's.
//! - **T5** Rollback before the flip: recorded; lease untimed (next revision); sender stopped; destination dropped. Never
//!   during an attempt.
//!
//! # Gateway
//! - **G1** The log keeps each acknowledged write until a flush sent after its answer succeeded.
//! - **G2** On a connection to another (node, instance) than the log's, or when the volume becomes local: replay in order, then the
//!   requests in flight in order, only then anything new.
//! - **G3** Moved(flushed): entries of the old epoch need no replay.
//! - **G4** The holder orders overlapping requests as they came.
//! - **G5** Replay is sound for one writing session a volume only.
//! - **G6** A new connection of a session fences and drains the old one.
//!
//! # The model
//! One block, whose contents are numbers; one client behind one gateway that may die; writes, flushes and reads in any
//! order with: crashes (each lost or kept what was not flushed), broken links, lost answers, delayed copies of Quiesce,
//! grants and OpenWayBack, restarts of the control plane, leases that run out. Not reaching a node is taking no step.
//! Time is an order: the holder's clock stops before the grantor's wait is over. A node's crash includes its restart.
//! Not modelled: H1 to H5, G3 (the gateway always replays), G5 (one gateway), G6, F10, L4's second half, sizes.
//!
//! Checked in every reachable state: never do two nodes serve; a read returns what a disk with a volatile cache may
//! return, and where the gateway survived no acknowledged write is lost; the source is not dropped while the
//! destination holds what nobody wrote; an end can be reached without a further fault. For each rule in [`Slip`],
//! leaving it out breaks one of these. The test searches two writes and two faults; two writes and three faults hold
//! too (25 million states, eight minutes).

mod node;
mod search;
mod state;
mod steps;
#[cfg(test)]
mod tests;

pub use search::{Failure, Model, Outcome, Step, search};
pub use state::State;

use state::*;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slip {
    /// F2, F6: the lease moves without asking the source.
    FlipWithoutDrain,
    /// L3.
    TakeoverWithoutWait,
    /// M5: the holder goes on alone without a word.
    WayBackNotRecorded,
    /// T3.
    ProofSkipped,
    /// M2, F5: answered counts as durable.
    CleanWithoutFlush,
    /// M4.
    MirrorNotAwaited,
    /// L1, when carrying out.
    EpochNotChecked,
    /// L1, before answering.
    AckNotFenced,
    /// M10.
    SessionNotFenced,
    /// G2.
    ReplayForgotten,
    /// F2: only the other side is flushed.
    DrainWithoutOwnFlush,
    /// L2.
    GrantStartsClock,
    /// F7.
    RestartKeepsAttempt,
    /// M8.
    RestartKeepsWayBack,
    /// M6.
    WayBackNotNumbered,
    /// F8.
    ResumeWithoutEpoch,
    /// M11.
    ReadNotHeld,
}

/// One step; numbers are nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(Side),
    Flush(Side),
    Again(Side),
    Answer(Side),
    TakeBack(Side),
    Replay(Side),
    ReplayAnswered(Side),
    Read(Side),
    GatewayCrashes,
    Link(Side),
    CopyBlock,
    Deliver,
    FlushOtherSide,
    LinkBreaks,
    AnswerLost,
    CopyTurnsToGarbage,
    LateFrame,
    Crashes(Side),
    Registers(Side),
    Renews(Side),
    LeaseStops(Side),
    ClosesWayBack,
    OpensWayBack,
    OpenDelayed,
    StartsFlip,
    Quiesces,
    QuiesceDelayed,
    Confirms,
    MovesLease,
    GivesUpFlip,
    FlipTimesOut,
    Resumes,
    BeginsSend,
    RecordsMirroring,
    BeginsMirror,
    Tells(Side),
    GrantDelayed(Side),
    TakesOver,
    Cancels,
    Commits,
    Drops(Side),
    Ends,
    ControlRestarts,
    LateMessage,
}

/// The protocol, possibly with one rule left out, within bounds.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    pub slip: Option<Slip>,
    pub writes: u8,
    pub faults: u8,
    /// Whether a copy may turn into garbage on its way.
    pub garbage: bool,
}

impl Protocol {
    fn has(&self, slip: Slip) -> bool {
        self.slip == Some(slip)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn start(&self) -> State {
        State::start(self.faults)
    }

    fn steps(&self, state: &State, add: &mut dyn FnMut(Step<Action, State>)) {
        let mut add = |action, to, is_fault| add(Step { action, to, is_fault });
        self.all_steps(&mut steps::Steps { from: state, add: &mut add });
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let serving = |node| self.admits(state, node);
        if serving(SOURCE) && serving(DESTINATION) {
            return Some("two nodes serve at once");
        }
        for node in [SOURCE, DESTINATION] {
            let reads = self.may_read(state, node) && !state.ghost.rotten;
            if reads && !state.ghost.now.contains(state.nodes[node].value) {
                return Some("a read returns what it must not");
            }
        }
        if state.control.phase == Phase::Committing && state.nodes[DESTINATION].value == GARBAGE {
            return Some("committed although the contents differ");
        }
        None
    }

    fn is_end(&self, state: &State) -> bool {
        let over = matches!(state.control.phase, Phase::Committed | Phase::RolledBack);
        over && state.client.operation.is_none() && self.admits(state, state.control.holder)
    }
}
