//! The state of one connection: two ends, two pipes.

use super::{Life, NetConfig, ProcessIndex};
use drover_base::world::Message;
use std::{collections::VecDeque, task::Waker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndState {
    Open,
    /// The other side closed in order; what it had sent before can still be received.
    PeerClosed,
    Broken,
}

pub(super) struct End {
    pub life: Life,
    pub address: String,
    pub state: EndState,
    /// Sender and receiver that the program still holds.
    pub halves: u8,
    inbox: VecDeque<Message>,
    pub receiver: Option<Waker>,
}

#[derive(Debug)]
pub(super) enum Packet {
    Message(Message),
    /// The other side is gone; `orderly` when it closed after its last message.
    End {
        orderly: bool,
    },
}

/// What one end sends, on its way to the other.
#[derive(Default)]
pub(super) struct Pipe {
    /// Sent by the program, but the window is full.
    waiting: VecDeque<Message>,
    flight: VecDeque<(u64, Packet)>,
    /// Bytes in flight or unread in the other end's inbox.
    bytes: u64,
    /// Messages that were ever given to `send`, and those of them that left `waiting`.
    sent: u64,
    launched: u64,
    senders: Vec<Waker>,
    /// When the wire is free again, under a bandwidth limit.
    free_at: u64,
    /// Number of the stall it is in.
    pub stalled: Option<u64>,
}

pub(super) struct Connection {
    pub ends: [End; 2],
    /// `pipes[e]` carries from end `e` to the other.
    pub pipes: [Pipe; 2],
}

pub(super) enum Arrived {
    Taken,
    Refused,
}

fn message_bytes(message: &Message) -> u64 {
    (message.head.len() + message.body.len()) as u64
}

impl End {
    pub fn new(life: Life, address: String) -> Self {
        Self { life, address, state: EndState::Open, halves: 2, inbox: VecDeque::new(), receiver: None }
    }
    fn wake(&mut self) {
        if let Some(waker) = self.receiver.take() {
            waker.wake();
        }
    }
}

impl Pipe {
    fn wake(&mut self) {
        self.senders.drain(..).for_each(Waker::wake);
    }
    pub fn is_due(&self, now: u64) -> bool {
        self.stalled.is_none() && self.flight.front().is_some_and(|(at, _)| *at <= now)
    }
    pub fn take_front(&mut self) -> Packet {
        self.flight.pop_front().expect("the caller saw it is due").1
    }
    /// Ends a stall: everything in flight arrives from `at` on, in order.
    pub fn retime(&mut self, at: u64) -> Vec<u64> {
        self.stalled = None;
        self.flight.iter_mut().for_each(|(old, _)| *old = (*old).max(at));
        self.flight.iter().map(|(at, _)| *at).collect()
    }
    /// What is in flight never arrives; the connection must break now. That the end is gone already is still to be
    /// learned, as by the probes that TCP sends on an idle connection.
    pub fn abandon(&mut self) {
        self.flight.retain_mut(|(_, packet)| match packet {
            Packet::Message(_) => false,
            Packet::End { orderly } => {
                *orderly = false;
                true
            }
        });
    }
    fn push(&mut self, at: u64, packet: Packet) -> u64 {
        // In order: nothing passes what was sent before.
        let at = self.flight.back().map_or(at, |(last, _)| at.max(*last));
        self.flight.push_back((at, packet));
        at
    }
    pub fn enqueue(&mut self, message: Message) -> u64 {
        self.waiting.push_back(message);
        self.sent += 1;
        self.sent - 1
    }
    pub fn is_launched(&self, ticket: u64) -> bool {
        ticket < self.launched
    }
    pub fn wait(&mut self, waker: &Waker) {
        self.senders.push(waker.clone());
    }
}

impl Connection {
    pub fn new(connecting: End, accepting: End) -> Self {
        Self { ends: [connecting, accepting], pipes: [Pipe::default(), Pipe::default()] }
    }

    /// The link over which `end` sends.
    pub fn link(&self, end: usize) -> (ProcessIndex, ProcessIndex) {
        (self.ends[end].life.process, self.ends[1 - end].life.process)
    }

    /// Puts the next waiting message of `end` in flight if the window allows; its arrival time.
    pub fn launch(&mut self, end: usize, now: u64, delay: u64, config: &NetConfig) -> Option<u64> {
        let pipe = &mut self.pipes[end];
        let bytes = message_bytes(pipe.waiting.front()?);
        // The largest message must pass also through a smaller window.
        if pipe.bytes > 0 && pipe.bytes + bytes > config.window_bytes {
            return None;
        }
        let message = pipe.waiting.pop_front().expect("seen above");
        pipe.bytes += bytes;
        pipe.launched += 1;
        pipe.wake();
        if let Some(rate) = config.bytes_per_second {
            pipe.free_at = pipe.free_at.max(now) + bytes * 1_000_000_000 / rate.max(1);
        }
        let at = pipe.free_at.max(now) + delay;
        Some(pipe.push(at, Packet::Message(message)))
    }

    /// Puts the news of the end in flight. Not orderly: it overtakes what would arrive after `at`, which is lost.
    pub fn launch_end(&mut self, end: usize, at: u64, orderly: bool) -> u64 {
        let pipe = &mut self.pipes[end];
        if !orderly {
            pipe.flight.retain(|(arrival, _)| *arrival <= at);
        }
        pipe.push(at, Packet::End { orderly })
    }

    /// The end fails; whether it was alive until now.
    pub fn fail(&mut self, end: usize, keep_inbox: bool) -> bool {
        let this = &mut self.ends[end];
        let was = std::mem::replace(&mut this.state, EndState::Broken);
        if !keep_inbox {
            this.inbox.clear();
        }
        this.wake();
        self.pipes[end].waiting.clear();
        self.pipes[end].wake();
        was == EndState::Open
    }

    pub fn arrive(&mut self, end: usize, packet: Packet) -> Arrived {
        let this = &mut self.ends[end];
        match packet {
            Packet::Message(_) if this.state == EndState::Broken => return Arrived::Refused,
            Packet::Message(message) => this.inbox.push_back(message),
            Packet::End { .. } if this.state != EndState::Open => return Arrived::Taken,
            Packet::End { orderly } => {
                this.state = if orderly { EndState::PeerClosed } else { EndState::Broken };
                self.pipes[end].waiting.clear();
                self.pipes[end].wake();
            }
        }
        self.ends[end].wake();
        Arrived::Taken
    }

    /// The next message in the inbox; its bytes leave the other end's window.
    pub fn take_message(&mut self, end: usize) -> Option<Message> {
        let message = self.ends[end].inbox.pop_front()?;
        let pipe = &mut self.pipes[1 - end];
        pipe.bytes = pipe.bytes.saturating_sub(message_bytes(&message));
        Some(message)
    }
}
