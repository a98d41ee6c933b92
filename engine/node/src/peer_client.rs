//! A connection to another node about one volume: the preamble, `Hello`, then requests by sequence, answered in any order.
//!
//! Invariants
//! - Requests stand on the connection in the order of the calls of [`PeerClient::request`].
//! - A connection belongs to one instance of the other side; a reply of another one breaks it.
//! - Once broken it stays broken: every request in flight, and each later one, answers `Disconnected`. Whether the
//!   other side carried it out is then unknown.

use crate::context::Context;
use drover_base::world::{Clock, MessageReceiver, MessageSender};
use drover_base::{Epoch, InstanceId, Instant, IoError, LocalFuture, SessionId, VolumeId};
use drover_wire::WireError;
use drover_wire::peer::{Answer, Hello, Operation, PeerReply, PeerRequest, Purpose, Welcome};
use drover_wire::preamble::{Channel, Preamble};
use futures::channel::oneshot;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// How long connecting, the preamble and `Hello` may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection to {address}")]
    Unreachable { address: String },
    /// The other side said why; `instance` is the one that said it.
    #[error("{address} refused: {error}")]
    Refused { address: String, instance: InstanceId, error: IoError },
}

/// What a connection is to be about.
pub(crate) struct Introduction<'a> {
    pub address: &'a str,
    pub volume: VolumeId,
    pub purpose: Purpose,
    pub session: SessionId,
    /// As in `PeerRequest::epoch`; of a gateway that does not know any: zero.
    pub epoch: Epoch,
    /// Number of the session's last request; counted on over its connections.
    pub sequence: Rc<Cell<u64>>,
}

struct Live {
    sender: Rc<dyn MessageSender>,
    clock: Rc<dyn Clock>,
    instance: InstanceId,
    session: SessionId,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Result<Answer, IoError>>>>,
    broken: Cell<bool>,
    broke: Notify,
    /// When a message last arrived, or the first request was sent after all had been answered.
    heard: Cell<Instant>,
}

pub(crate) struct PeerClient {
    live: Rc<Live>,
    sequence: Rc<Cell<u64>>,
    welcome: Welcome,
}

impl PeerClient {
    pub async fn connect(context: &Context, to: Introduction<'_>) -> Result<Rc<Self>, ConnectError> {
        let unreachable = || ConnectError::Unreachable { address: to.address.into() };
        let world = &context.world;
        let deadline = world.now() + CONNECT_DEADLINE;
        let connecting = world.net.connect(to.address);
        let mut connection =
            world.timeout_at(deadline, connecting).await.map_err(|_| unreachable())?.map_err(|_| unreachable())?;
        let preamble = Preamble::new(Channel::Peer, context.secret);
        let opened = world.timeout_at(deadline, preamble.open(world, &mut connection)).await;
        if let Ok(Err(error)) = &opened {
            tracing::warn!(target: "drover::peer", peer = connection.peer, %error, "no connection");
        }
        if !matches!(opened, Ok(Ok(()))) {
            connection.sender.close();
            return Err(unreachable());
        }
        let mut receiver = connection.receiver;
        let (sender, peer) = (connection.sender, connection.peer);
        let greeting = async {
            to.sequence.set(to.sequence.get() + 1);
            let hello = Hello {
                volume: to.volume,
                from: context.address.node.clone(),
                instance: context.instance,
                purpose: to.purpose,
            };
            let request = PeerRequest {
                session: to.session,
                epoch: to.epoch,
                sequence: to.sequence.get(),
                operation: Operation::Hello(hello),
            };
            sender.send(request.encode()).await.ok()?;
            PeerReply::decode(receiver.receive().await.ok()??).ok()
        };
        let Ok(Some(reply)) = world.timeout_at(deadline, greeting).await else {
            sender.close();
            return Err(unreachable());
        };
        let instance = reply.instance;
        let welcome = match reply.result {
            Ok(Answer::Welcome(welcome)) => welcome,
            Ok(_) => {
                sender.close();
                return Err(unreachable());
            }
            Err(error) => {
                sender.close();
                return Err(ConnectError::Refused { address: to.address.into(), instance, error });
            }
        };
        let live = Rc::new(Live {
            sender,
            clock: world.clock.clone(),
            instance,
            session: to.session,
            waiting: RefCell::default(),
            broken: Cell::new(false),
            broke: Notify::new(),
            heard: Cell::new(world.now()),
        });
        world.spawn(receive(live.clone(), receiver, peer)).detach();
        Ok(Rc::new(Self { live, sequence: to.sequence, welcome }))
    }

    pub fn welcome(&self) -> Welcome {
        self.welcome
    }

    /// The start of the other side that answers here.
    pub fn instance(&self) -> InstanceId {
        self.live.instance
    }

    /// Puts the request on the connection before it returns; the future gives the answer.
    pub fn request(&self, epoch: Epoch, operation: Operation) -> LocalFuture<'static, Result<Answer, IoError>> {
        let live = self.live.clone();
        if live.broken.get() {
            return Box::pin(std::future::ready(Err(IoError::Disconnected)));
        }
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let (sender, answer) = oneshot::channel();
        if live.waiting.borrow().is_empty() {
            live.heard.set(live.clock.now());
        }
        live.waiting.borrow_mut().insert(sequence, sender);
        let request = PeerRequest { session: live.session, epoch, sequence, operation };
        let sent = live.sender.send(request.encode());
        Box::pin(async move {
            if sent.await.is_err() {
                live.break_off();
            }
            answer.await.unwrap_or(Err(IoError::Disconnected))
        })
    }

    pub fn is_broken(&self) -> bool {
        self.live.broken.get()
    }

    /// Since when the other side has been silent although it owes an answer; `None`: it owes none.
    pub fn silent_since(&self) -> Option<Instant> {
        (!self.live.waiting.borrow().is_empty()).then(|| self.live.heard.get())
    }

    pub fn close(&self) {
        self.live.break_off();
    }

    /// Completes when the connection is broken.
    pub async fn broken(&self) {
        let broke = self.live.broke.notified();
        if !self.live.broken.get() {
            broke.await;
        }
    }
}

impl Drop for PeerClient {
    fn drop(&mut self) {
        self.live.break_off();
    }
}

impl Live {
    fn break_off(&self) {
        if !self.broken.replace(true) {
            self.sender.close();
            // Dropped outside of the borrow: a dropped sender wakes its caller.
            let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
            drop(waiting);
            self.broke.notify_waiters();
        }
    }

    fn take(&self, reply: PeerReply) -> Result<(), &'static str> {
        if reply.session != self.session {
            return Err("a reply of another session");
        }
        if reply.instance != self.instance {
            return Err("the other side's instance changed");
        }
        self.heard.set(self.clock.now());
        let caller = self.waiting.borrow_mut().remove(&reply.sequence).ok_or("a reply to no request")?;
        // The caller may have given up.
        let _ = caller.send(reply.result);
        Ok(())
    }
}

async fn receive(live: Rc<Live>, mut receiver: Box<dyn MessageReceiver>, peer: String) {
    while let Ok(Some(message)) = receiver.receive().await {
        let taken = match PeerReply::decode(message) {
            Ok(reply) => live.take(reply),
            Err(WireError::Checksum { .. }) => Err("a reply with a wrong checksum"),
            Err(_) => Err("not a reply"),
        };
        if let Err(reason) = taken {
            tracing::warn!(target: "drover::peer", peer, reason, "the connection is given up");
            break;
        }
        if live.broken.get() {
            break;
        }
    }
    live.break_off();
}
