//! The simulated network: connections that deliver whole messages in order, or break.
//!
//! ```text
//!   end 0 ── send ─► waiting (window full) ─► in flight (each with its arrival time) ─► inbox of end 1
//!   end 1 ── … the same in the other pipe … ─► inbox of end 0
//! ```
//!
//! Invariants:
//! - Packets of a pipe arrive in order; a message is never lost while its connection stays open.
//! - A packet that would arrive over a cut link stalls its pipe. The pipe goes on when healed, or the
//!   sender gives up and the connection breaks: what TCP's retransmission does.
//! - How a connection ended travels like a message: the other side learns of it later, over the same link.
//! - No waker and no destructor runs user code while the network is borrowed: wakers only note the task.

mod connection;
mod half;

pub(crate) use half::{connect, listen};

use super::{Generator, Inner, Life, ProcessIndex, generator::digest, nanos};
use connection::{Arrived, Connection, Packet};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    task::Waker,
    time::Duration,
};

/// How the network behaves.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// One-way delay of a message, uniform between the two.
    pub delay: (Duration, Duration),
    /// Chance, in millionths a message, of a delay of up to `spike` on top.
    pub spike_ppm: u64,
    pub spike: Duration,
    /// Chance, in millionths a message, that the connection breaks instead of delivering it.
    pub reset_ppm: u64,
    /// Bytes a second that one pipe carries; `None`: no limit.
    pub bytes_per_second: Option<u64>,
    /// Bytes sent and not yet received by the other side's program, before `send` waits.
    pub window_bytes: u64,
    /// How long a sender retransmits over a cut link before its connection breaks.
    pub give_up: (Duration, Duration),
    /// Chance, in millionths, that a stalled pipe breaks when healed instead of going on.
    pub reset_on_heal_ppm: u64,
    /// How long a connect waits for a cut link.
    pub connect_timeout: Duration,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            delay: (Duration::from_micros(50), Duration::from_micros(500)),
            spike_ppm: 1_000,
            spike: Duration::from_millis(20),
            reset_ppm: 0,
            bytes_per_second: None,
            window_bytes: 4 << 20,
            give_up: (Duration::from_secs(5), Duration::from_secs(30)),
            reset_on_heal_ppm: 250_000,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// Connections that wait to be accepted, at most; further ones are refused.
const BACKLOG_MAX: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

/// One end of one connection; end 0 connected, end 1 accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndId {
    connection: ConnectionId,
    end: usize,
}

impl EndId {
    fn other(self) -> Self {
        Self { end: 1 - self.end, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum NetEvent {
    /// A packet that `from` sent is due at the other end.
    Arrive { from: EndId },
    /// `from` has retransmitted for long enough, if its pipe is still in stall number `stall`.
    GiveUp { from: EndId, stall: u64 },
}

struct ListenerState {
    number: u64,
    life: Life,
    backlog: VecDeque<EndId>,
    waker: Option<Waker>,
}

pub(crate) struct Network {
    pub config: NetConfig,
    random: Generator,
    /// Links that carry nothing, as (from, to).
    blocked: BTreeSet<(ProcessIndex, ProcessIndex)>,
    listeners: BTreeMap<String, ListenerState>,
    connections: BTreeMap<ConnectionId, Connection>,
    next: u64,
}

impl Network {
    pub fn new(random: Generator) -> Self {
        Self {
            config: NetConfig::default(),
            random,
            blocked: BTreeSet::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 1,
        }
    }

    pub fn block(&mut self, from: ProcessIndex, to: ProcessIndex) {
        self.blocked.insert((from, to));
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn delay_nanos(&mut self) -> u64 {
        let (least, most) = self.config.delay;
        let mut delay = self.random.between(nanos(least), nanos(most));
        if self.random.chance_ppm(self.config.spike_ppm) {
            delay += self.random.below(nanos(self.config.spike) + 1);
        }
        delay
    }
}

impl Inner {
    fn schedule_arrival(&self, from: EndId, at: u64) {
        self.timers.borrow_mut().set_net(at, NetEvent::Arrive { from });
    }

    /// Puts what waits at `from` in flight, as far as the window goes.
    fn net_pump(&self, from: EndId) {
        let net = &mut *self.net.borrow_mut();
        loop {
            let delay = net.delay_nanos();
            let Some(connection) = net.connections.get_mut(&from.connection) else { return };
            let Some(at) = connection.launch(from.end, self.now_nanos(), delay, &net.config) else { return };
            self.schedule_arrival(from, at);
        }
    }

    /// Sends the news that `from` has ended; `orderly`: after what is in flight.
    fn net_send_end(&self, net: &mut Network, from: EndId, orderly: bool) {
        let delay = net.delay_nanos();
        if let Some(connection) = net.connections.get_mut(&from.connection) {
            let at = connection.launch_end(from.end, self.now_nanos() + delay, orderly);
            self.schedule_arrival(from, at);
        }
    }

    /// The end fails now; the other one learns of it.
    fn net_break(&self, net: &mut Network, at: EndId, orderly: bool) {
        let keep_inbox = net.random.chance_ppm(500_000);
        let Some(connection) = net.connections.get_mut(&at.connection) else { return };
        if connection.fail(at.end, keep_inbox) {
            self.net_send_end(net, at, orderly);
        }
    }

    pub fn net_event(&self, event: NetEvent) {
        match event {
            NetEvent::Arrive { from } => self.net_arrive(from),
            NetEvent::GiveUp { from, stall } => {
                let net = &mut *self.net.borrow_mut();
                let stalled = |c: &Connection| c.pipes[from.end].stalled == Some(stall);
                if let Some(connection) = net.connections.get_mut(&from.connection).filter(|c| stalled(c)) {
                    // What it stopped retransmitting never arrives.
                    connection.pipes[from.end].abandon();
                    self.net_break(net, from, false);
                }
            }
        }
    }

    fn net_arrive(&self, from: EndId) {
        let net = &mut *self.net.borrow_mut();
        let Some(connection) = net.connections.get_mut(&from.connection) else { return };
        if !connection.pipes[from.end].is_due(self.now_nanos()) {
            return;
        }
        if net.blocked.contains(&connection.link(from.end)) {
            let stall = net.next;
            net.next += 1;
            net.connections.get_mut(&from.connection).expect("just seen").pipes[from.end].stalled = Some(stall);
            let (least, most) = net.config.give_up;
            let give_up = net.random.between(nanos(least), nanos(most));
            self.timers.borrow_mut().set_net(self.now_nanos() + give_up, NetEvent::GiveUp { from, stall });
            return;
        }
        let reset = net.random.chance_ppm(net.config.reset_ppm);
        let packet = connection.pipes[from.end].take_front();
        if let Packet::Message(message) = &packet {
            self.record(&[0x30, from.connection.0, from.end as u64, digest(&message.head), digest(&message.body)]);
            if reset {
                self.net_break(net, from, false);
                self.net_break(net, from.other(), false);
                return;
            }
        }
        match connection.arrive(1 - from.end, packet) {
            Arrived::Taken => {}
            // Nobody is there any more: the sender is told so.
            Arrived::Refused => self.net_send_end(net, from.other(), false),
        }
    }

    /// Unblocks the links that `healed` names; what stalled on them goes on or breaks.
    pub fn net_heal(&self, healed: impl Fn(ProcessIndex, ProcessIndex) -> bool) {
        self.record(&[0x11]);
        let net = &mut *self.net.borrow_mut();
        net.blocked.retain(|(from, to)| !healed(*from, *to));
        let mut stalled = Vec::new();
        for (id, connection) in &net.connections {
            for end in 0..2 {
                if connection.pipes[end].stalled.is_some() && !net.blocked.contains(&connection.link(end)) {
                    stalled.push(EndId { connection: *id, end });
                }
            }
        }
        for from in stalled {
            let delay = net.delay_nanos();
            let breaks = net.random.chance_ppm(net.config.reset_on_heal_ppm);
            let connection = net.connections.get_mut(&from.connection).expect("listed above");
            for at in connection.pipes[from.end].retime(self.now_nanos() + delay) {
                self.schedule_arrival(from, at);
            }
            if breaks {
                self.net_break(net, from, false);
            }
        }
    }

    /// A life has ended: its ends fail and its addresses are free.
    pub fn net_kill(&self, life: Life) {
        let net = &mut *self.net.borrow_mut();
        let mut orphans: Vec<EndId> = Vec::new();
        net.listeners.retain(|_, listener| {
            let keep = listener.life != life;
            if !keep {
                orphans.extend(listener.backlog.drain(..));
            }
            keep
        });
        let mut broken: Vec<EndId> = Vec::new();
        for (id, connection) in &net.connections {
            broken.extend(
                (0..2).filter(|end| connection.ends[*end].life == life).map(|end| EndId { connection: *id, end }),
            );
        }
        for end in broken {
            self.net_break(net, end, false);
        }
        for end in orphans {
            self.net_release(net, end, 2);
        }
    }

    pub fn net_reset(&self, a: ProcessIndex, b: ProcessIndex) {
        self.record(&[0x12, a as u64, b as u64]);
        let net = &mut *self.net.borrow_mut();
        let between: Vec<_> = net
            .connections
            .iter()
            .filter(|(_, connection)| [(a, b), (b, a)].contains(&connection.link(0)))
            .map(|(id, _)| *id)
            .collect();
        for connection in between {
            self.net_break(net, EndId { connection, end: 0 }, false);
            self.net_break(net, EndId { connection, end: 1 }, false);
        }
    }

    /// `halves` of the end's two halves were dropped; with the last the end closes, with both ends the
    /// connection is forgotten.
    fn net_release(&self, net: &mut Network, end: EndId, halves: u8) {
        let Some(connection) = net.connections.get_mut(&end.connection) else { return };
        connection.ends[end.end].halves -= halves;
        if connection.ends[end.end].halves > 0 {
            return;
        }
        if connection.ends[1 - end.end].halves == 0 {
            net.connections.remove(&end.connection);
        } else {
            self.net_break(net, end, true);
        }
    }
}
