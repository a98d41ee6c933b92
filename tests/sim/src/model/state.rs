//! The state of the modelled protocol: control plane, source, destination, the link between them, one client.
//!
//! One block, whose contents are small numbers: 0 at first, then one more with each write. A crash restarts at
//! once; a node that is down for longer is one that takes no step.

use std::ops::{Index, IndexMut};

/// Which of the two nodes; one byte, since millions of states are kept.
pub type Side = u8;
pub const SOURCE: Side = 0;
pub const DESTINATION: Side = 1;

/// One of each node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pair<T>(pub [T; 2]);

impl<T> Index<Side> for Pair<T> {
    type Output = T;
    fn index(&self, side: Side) -> &T {
        &self.0[usize::from(side)]
    }
}

impl<T> IndexMut<Side> for Pair<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        &mut self.0[usize::from(side)]
    }
}

/// What a copy turned into on a bad way: no client wrote it.
pub const GARBAGE: u8 = 7;

/// A set of contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Values(pub u8);

impl Values {
    pub fn only(value: u8) -> Self {
        Self(1 << value)
    }
    pub fn with(self, value: u8) -> Self {
        Self(self.0 | 1 << value)
    }
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    pub fn contains(self, value: u8) -> bool {
        self.0 & 1 << value != 0
    }
    pub fn is_single(self) -> bool {
        self.0.count_ones() == 1
    }
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |value| self.contains(*value))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    Tracking,
    Mirroring,
    Flipping,
    Settling,
    /// The flip back to the source.
    FlippingBack,
    Committing,
    Committed,
    RollingBack,
    RolledBack,
}

/// The control plane. Durable first, then what a restart forgets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Control {
    pub phase: Phase,
    pub epoch: u8,
    pub revision: u8,
    pub holder: Side,
    pub timed: bool,
    pub way_back_open: bool,
    /// Number of the present or last flip attempt.
    pub attempt: u8,

    pub drained: bool,
    pub confirmed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    Holder,
    Mirror,
    /// The volume was dropped here.
    Absent,
}

/// Where the block is on its way to the other side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Block {
    /// Must be sent.
    Dirty,
    Sent,
    /// The other side has answered.
    Applied,
    /// A flush of the other side covers it.
    Clean,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sender {
    pub running: bool,
    pub mirroring: bool,
    pub block: Block,
    /// The other side has another instance than at the last connection.
    pub peer_restarted: bool,
    /// The way back is recorded as closed: answers do not wait for the other side.
    pub alone: bool,
}

impl Sender {
    pub const NONE: Self =
        Self { running: false, mirroring: false, block: Block::Dirty, peer_restarted: false, alone: false };
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    // Durable: the record.
    pub role: Role,
    pub epoch: u8,
    pub revision: u8,
    pub timed: bool,
    // The volume: what a read returns, and what a crash could leave.
    pub value: u8,
    pub after_crash: Values,
    // Forgotten by a restart.
    pub registered: bool,
    /// Its lease clock runs.
    pub clock: bool,
    /// The attempt it has drained for; 0: none.
    pub drained: u8,
    /// Attempts up to this one are over.
    pub ended: u8,
    pub sender: Sender,
    /// As the other side: all that it applied since its start is flushed.
    pub flushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Frame {
    pub value: u8,
    pub epoch: u8,
}

/// The connection of the running sender at `from` to the other node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Link {
    pub up: bool,
    pub from: Side,
    pub frames: [Option<Frame>; 2],
    /// A frame of an earlier connection that the other side has received and not yet looked at.
    pub late: Option<Frame>,
}

impl Link {
    pub const DOWN: Self = Self { up: false, from: SOURCE, frames: [None, None], late: None };

    pub fn is_empty(&self) -> bool {
        self.frames[0].is_none()
    }
    pub fn is_full(&self) -> bool {
        self.frames[1].is_some()
    }
    pub fn push(&mut self, frame: Frame) {
        let free = self.frames.iter_mut().find(|frame| frame.is_none()).expect("the caller looked for room");
        *free = Some(frame);
    }
    pub fn pop(&mut self) -> Option<Frame> {
        let first = self.frames[0].take();
        self.frames.rotate_left(1);
        first
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    Write(u8),
    Flush,
}

/// The client with its gateway.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Client {
    pub writes: u8,
    pub operation: Option<Operation>,
    /// The node where `operation` was carried out and is not yet answered.
    pub carried_out: Option<Side>,
    /// The last acknowledged, unflushed write.
    pub log: Option<u8>,
    /// The node whose present instance has acknowledged, or replayed, the log.
    pub log_of: Option<Side>,
    /// The node where the replay was carried out and is not yet answered.
    pub replayed: Option<Side>,
}

/// What may be read, by what the client was told. Seen by the checker alone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ghost {
    /// What a read may return now.
    pub now: Values,
    /// What it may return after a crash whose losses no gateway makes good.
    pub after_crash: Values,
    /// What it might have returned when the last flush was answered.
    pub base: Values,
    /// A crash was, and no read since has told what it left.
    pub unsure: bool,
    /// Acknowledged writes that this crash may have lost.
    pub maybe_lost: Values,
    /// Writes whose gateway died before it was told; a replay may have covered them up for a while.
    pub orphans: Values,
    /// A crash was, and only the gateway's replay makes good what it lost.
    pub log_covers_loss: bool,
    /// The node lost what it had applied as the other side, and did not get it again.
    pub lost: Pair<bool>,
    /// Garbage was planted: what is read is no longer looked at.
    pub rotten: bool,
}

/// A message of which the network kept a copy; it arrives late.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Late {
    Quiesce {
        node: Side,
        epoch: u8,
        attempt: u8,
    },
    Grant {
        node: Side,
        grant: Grant,
    },
    /// `superseded`: a later way-back message of the holder has been recorded.
    OpenWayBack {
        epoch: u8,
        superseded: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Grant {
    pub epoch: u8,
    pub revision: u8,
    pub holder: Side,
    pub timed: bool,
    pub way_back_open: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub control: Control,
    pub nodes: Pair<Node>,
    pub link: Link,
    pub client: Client,
    pub ghost: Ghost,
    pub late: Option<Late>,
    /// Faults that may still come.
    pub faults: u8,
}

impl State {
    /// The volume is served by the source alone, the destination's empty copy is prepared.
    pub fn start(faults: u8) -> Self {
        let node = |role| Node {
            role,
            epoch: 1,
            revision: 0,
            timed: false,
            value: 0,
            after_crash: Values::only(0),
            registered: true,
            clock: false,
            drained: 0,
            ended: 0,
            sender: Sender::NONE,
            flushed: false,
        };
        Self {
            control: Control {
                phase: Phase::Tracking,
                epoch: 1,
                revision: 0,
                holder: SOURCE,
                timed: false,
                way_back_open: false,
                attempt: 2,
                drained: false,
                confirmed: false,
            },
            nodes: Pair([node(Role::Holder), node(Role::Mirror)]),
            link: Link::DOWN,
            client: Client { writes: 0, operation: None, carried_out: None, log: None, log_of: None, replayed: None },
            ghost: Ghost {
                now: Values::only(0),
                after_crash: Values::only(0),
                base: Values::only(0),
                unsure: false,
                maybe_lost: Values(0),
                orphans: Values(0),
                log_covers_loss: false,
                lost: Pair([false, false]),
                rotten: false,
            },
            late: None,
            faults,
        }
    }
}
