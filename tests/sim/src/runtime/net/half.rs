//! What programs hold: listeners and the halves of connections.

use super::{
    BACKLOG_MAX, Connection, ConnectionId, EndId, Inner, Life, ListenerState, VecDeque,
    connection::{End, EndState},
    nanos,
};
use drover_base::{
    LocalFuture, NodeId,
    world::{self, Listener, Message, MessageReceiver, MessageSender},
};
use std::{
    io,
    rc::{Rc, Weak},
    task::Poll,
    time::Duration,
};

/// How often a connect over a cut link tries again.
const CONNECT_RETRY: Duration = Duration::from_millis(200);

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the simulation has ended")
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke")
}

/// Both halves of `end` as the program gets them.
fn halves(sim: &Weak<Inner>, end: EndId, peer: String) -> world::Connection {
    world::Connection {
        sender: Rc::new(SenderHalf { sim: sim.clone(), end }),
        receiver: Box::new(ReceiverHalf { sim: sim.clone(), end, limit: usize::MAX }),
        peer,
    }
}

enum Attempt {
    Connected(world::Connection),
    Refused,
    /// The link is cut.
    Lost,
}

impl Inner {
    fn try_connect(&self, weak: &Weak<Inner>, life: Life, address: &str) -> Attempt {
        let net = &mut *self.net.borrow_mut();
        let id = ConnectionId(net.number());
        let Some(listener) = net.listeners.get_mut(address) else { return Attempt::Refused };
        let there = listener.life;
        let links = [(life.process, there.process), (there.process, life.process)];
        if links.iter().any(|link| net.blocked.contains(link)) {
            return Attempt::Lost;
        }
        if listener.backlog.len() >= BACKLOG_MAX || !self.is_alive(life) {
            return Attempt::Refused;
        }
        let here = format!("{}:{}", self.processes.borrow()[life.process].name, id.0);
        let connection = Connection::new(End::new(life, here), End::new(there, address.into()));
        net.connections.insert(id, connection);
        listener.backlog.push_back(EndId { connection: id, end: 1 });
        if let Some(waker) = listener.waker.take() {
            waker.wake();
        }
        self.record(&[0x31, id.0]);
        Attempt::Connected(halves(weak, EndId { connection: id, end: 0 }, address.into()))
    }
}

pub(crate) async fn connect(sim: Weak<Inner>, life: Life, address: String) -> io::Result<world::Connection> {
    // The simulator is not kept alive across a wait.
    let wait = |most: Option<u64>| {
        let sim = sim.upgrade().ok_or_else(gone)?;
        let delay = most.unwrap_or_else(|| sim.net.borrow_mut().delay_nanos());
        Ok::<_, io::Error>(sim.sleep_global(sim.now_nanos() + delay))
    };
    let deadline = {
        let sim = sim.upgrade().ok_or_else(gone)?;
        let timeout = nanos(sim.net.borrow().config.connect_timeout);
        sim.now_nanos() + timeout
    };
    wait(None)?.await;
    loop {
        let attempt = sim.upgrade().ok_or_else(gone)?.try_connect(&sim, life, &address);
        match attempt {
            Attempt::Connected(connection) => {
                wait(None)?.await;
                return Ok(connection);
            }
            Attempt::Refused => {
                wait(None)?.await;
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens at {address}")));
            }
            Attempt::Lost => wait(Some(nanos(CONNECT_RETRY)))?.await,
        }
        if sim.upgrade().ok_or_else(gone)?.now_nanos() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")));
        }
    }
}

pub(crate) fn listen(sim: &Weak<Inner>, life: Life, address: &str) -> io::Result<Box<dyn Listener>> {
    let inner = sim.upgrade().ok_or_else(gone)?;
    if !inner.is_alive(life) {
        return Err(gone());
    }
    let net = &mut *inner.net.borrow_mut();
    let number = net.number();
    let address = match address.strip_suffix(":0") {
        Some(host) => format!("{host}:{}", 10_000 + number),
        None => address.to_string(),
    };
    if net.listeners.contains_key(&address) {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{address} is taken")));
    }
    net.listeners.insert(address.clone(), ListenerState { number, life, backlog: VecDeque::new(), waker: None });
    Ok(Box::new(ListenerHandle { sim: sim.clone(), address, number }))
}

struct ListenerHandle {
    sim: Weak<Inner>,
    address: String,
    /// Tells this listener from a later one at the same address.
    number: u64,
}

impl Listener for ListenerHandle {
    fn accept(&mut self) -> LocalFuture<'_, io::Result<world::Connection>> {
        Box::pin(std::future::poll_fn(|context| {
            let Some(sim) = self.sim.upgrade() else { return Poll::Ready(Err(gone())) };
            let net = &mut *sim.net.borrow_mut();
            let Some(listener) = net.listeners.get_mut(&self.address).filter(|l| l.number == self.number) else {
                return Poll::Ready(Err(gone()));
            };
            let Some(end) = listener.backlog.pop_front() else {
                listener.waker = Some(context.waker().clone());
                return Poll::Pending;
            };
            let peer = net.connections.get(&end.connection).map_or_else(String::new, |c| c.ends[0].address.clone());
            Poll::Ready(Ok(halves(&self.sim, end, peer)))
        }))
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

impl Drop for ListenerHandle {
    fn drop(&mut self) {
        let Some(sim) = self.sim.upgrade() else { return };
        let net = &mut *sim.net.borrow_mut();
        if net.listeners.get(&self.address).is_some_and(|listener| listener.number == self.number) {
            let listener = net.listeners.remove(&self.address).expect("just seen");
            for end in listener.backlog {
                sim.net_release(net, end, 2);
            }
        }
    }
}

/// Dropping one half leaves the other at work; dropping both closes the end.
struct SenderHalf {
    sim: Weak<Inner>,
    end: EndId,
}

impl MessageSender for SenderHalf {
    fn send(&self, message: Message) -> LocalFuture<'static, io::Result<()>> {
        let (sim, end) = (self.sim.clone(), self.end);
        // Its place in the order is taken now, not when the future is first polled.
        let ticket = sim.upgrade().and_then(|sim| {
            let ticket = {
                let net = &mut *sim.net.borrow_mut();
                let connection = net.connections.get_mut(&end.connection)?;
                let open = connection.ends[end.end].state == EndState::Open;
                open.then(|| connection.pipes[end.end].enqueue(message))?
            };
            sim.net_pump(end);
            Some(ticket)
        });
        Box::pin(std::future::poll_fn(move |context| {
            let (Some(sim), Some(ticket)) = (sim.upgrade(), ticket) else { return Poll::Ready(Err(broken())) };
            let net = &mut *sim.net.borrow_mut();
            let Some(connection) = net.connections.get_mut(&end.connection) else {
                return Poll::Ready(Err(broken()));
            };
            if connection.pipes[end.end].is_launched(ticket) {
                return Poll::Ready(Ok(()));
            }
            if connection.ends[end.end].state != EndState::Open {
                return Poll::Ready(Err(broken()));
            }
            connection.pipes[end.end].wait(context.waker());
            Poll::Pending
        }))
    }

    fn close(&self) {
        let Some(sim) = self.sim.upgrade() else { return };
        let net = &mut *sim.net.borrow_mut();
        // A close with unread messages resets, as TCP's does; otherwise the other side sees an end.
        let orderly = net.random.chance_ppm(500_000);
        sim.net_break(net, self.end, orderly);
    }
}

impl Drop for SenderHalf {
    fn drop(&mut self) {
        if let Some(sim) = self.sim.upgrade() {
            sim.net_release(&mut sim.net.borrow_mut(), self.end, 1);
        }
    }
}

struct ReceiverHalf {
    sim: Weak<Inner>,
    end: EndId,
    limit: usize,
}

impl MessageReceiver for ReceiverHalf {
    fn receive(&mut self) -> LocalFuture<'_, io::Result<Option<Message>>> {
        let end = self.end;
        Box::pin(std::future::poll_fn(move |context| {
            let Some(sim) = self.sim.upgrade() else { return Poll::Ready(Err(gone())) };
            let message = {
                let net = &mut *sim.net.borrow_mut();
                let Some(connection) = net.connections.get_mut(&end.connection) else {
                    return Poll::Ready(Err(broken()));
                };
                match (connection.take_message(end.end), connection.ends[end.end].state) {
                    (Some(message), _) => message,
                    (None, EndState::PeerClosed) => return Poll::Ready(Ok(None)),
                    (None, EndState::Broken) => return Poll::Ready(Err(broken())),
                    (None, EndState::Open) => {
                        connection.ends[end.end].receiver = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                }
            };
            sim.net_pump(end.other());
            if message.head.len() + message.body.len() > self.limit {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a message over the limit")));
            }
            Poll::Ready(Ok(Some(message)))
        }))
    }

    fn limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    fn may_be(&self, _: &NodeId) -> bool {
        true
    }
}

impl Drop for ReceiverHalf {
    fn drop(&mut self) {
        if let Some(sim) = self.sim.upgrade() {
            sim.net_release(&mut sim.net.borrow_mut(), self.end, 1);
        }
    }
}
