//! Requests with one reply each over a connection of messages, any number in flight.
//!
//! A connection begins with the [`crate::preamble`]. A message's head is the id (8 bytes, little-endian) and a postcard payload; there is no body. Invariants:
//! - a client that loses its connection answers every request in flight with `RpcError::Disconnected` — whether the
//!   other side carried it out is then unknown, so requests are idempotent;
//! - it connects again at the next call; no request is sent twice by itself;
//! - no request is read from, and none sent to, who does not know the cluster's secret.

use crate::preamble::Preamble;
use bytes::Bytes;
use drover_base::NodeId;
use drover_base::limits::MESSAGE_HEAD_BYTES_MAX;
use drover_base::world::{Connection, Message, MessageSender, World};
use serde::{Serialize, de::DeserializeOwned};
use std::{cell::RefCell, collections::BTreeMap, future::Future, marker::PhantomData, rc::Rc, time::Duration};

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// Nothing was carried out.
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    /// Whether the request was carried out is unknown.
    #[error("the connection to {address} broke")]
    Disconnected { address: String },
    /// Whether the request was or will be carried out is unknown.
    #[error("{address} did not answer within {after:?}")]
    Deadline { address: String, after: Duration },
    #[error("{address} sent what is not a reply")]
    Protocol { address: String },
}

/// Before the payload stands the number of the request.
const ID_BYTES: usize = 8;
const PAYLOAD_BYTES_MAX: usize = MESSAGE_HEAD_BYTES_MAX - ID_BYTES;

/// Requests that a server runs at once on one connection; more wait unread.
const CONCURRENT_MAX: usize = 256;

type Waiting = Rc<RefCell<BTreeMap<u64, futures::channel::oneshot::Sender<Bytes>>>>;

struct Live {
    sender: Rc<dyn MessageSender>,
    waiting: Waiting,
    next_id: u64,
}

/// Calls one address. `Q` is what it asks, `A` what it is answered.
pub struct RpcClient<Q, A> {
    world: World,
    address: String,
    preamble: Preamble,
    live: Rc<RefCell<Option<Live>>>,
    connecting: Rc<tokio::sync::Mutex<()>>,
    types: PhantomData<fn(Q) -> A>,
}

impl<Q: Serialize, A: DeserializeOwned> RpcClient<Q, A> {
    pub fn new(world: World, address: &str, preamble: Preamble) -> Self {
        let (live, connecting) = (Rc::default(), Rc::default());
        Self { world, address: address.into(), preamble, live, connecting, types: PhantomData }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends the request and waits for its reply, at most `deadline` in all.
    pub async fn call(&self, request: &Q, deadline: Duration) -> Result<A, RpcError> {
        let payload = encode(request);
        let reply = self
            .world
            .timeout(deadline, self.exchange(payload))
            .await
            .map_err(|_| RpcError::Deadline { address: self.address.clone(), after: deadline })??;
        postcard::from_bytes(&reply).map_err(|_| RpcError::Protocol { address: self.address.clone() })
    }

    async fn exchange(&self, payload: Vec<u8>) -> Result<Bytes, RpcError> {
        self.connect().await?;
        let disconnected = || RpcError::Disconnected { address: self.address.clone() };
        let (sent, reply) = {
            let mut live = self.live.borrow_mut();
            let live = live.as_mut().ok_or_else(disconnected)?;
            live.next_id += 1;
            let id = live.next_id;
            let (sender, receiver) = futures::channel::oneshot::channel();
            live.waiting.borrow_mut().insert(id, sender);
            (live.sender.send(envelope(id, &payload)), receiver)
        };
        if sent.await.is_err() {
            self.live.borrow_mut().take();
            return Err(disconnected());
        }
        reply.await.map_err(|_| disconnected())
    }

    async fn connect(&self) -> Result<(), RpcError> {
        let _one = self.connecting.lock().await;
        if self.live.borrow().is_some() {
            return Ok(());
        }
        let failed = |reason: String| RpcError::Connect { address: self.address.clone(), reason };
        let connecting = self.world.net.connect(&self.address);
        let mut connection = connecting.await.map_err(|error| failed(error.to_string()))?;
        self.preamble.open(&self.world, &mut connection).await.map_err(|error| failed(error.to_string()))?;
        let waiting = Waiting::default();
        let sender = connection.sender.clone();
        *self.live.borrow_mut() = Some(Live { sender: sender.clone(), waiting: waiting.clone(), next_id: 0 });
        let live = self.live.clone();
        let receive = async move {
            let mut receiver = connection.receiver;
            while let Ok(Some(message)) = receiver.receive().await {
                let Some((id, payload)) = unseal(&message) else { break };
                if let Some(caller) = waiting.borrow_mut().remove(&id) {
                    // The caller may have given up.
                    let _ = caller.send(payload);
                }
            }
            sender.close();
            let mut live = live.borrow_mut();
            if live.as_ref().is_some_and(|live| Rc::ptr_eq(&live.waiting, &waiting)) {
                live.take();
            }
            waiting.borrow_mut().clear();
        };
        self.world.spawn(receive).detach();
        Ok(())
    }
}

impl<Q, A> Drop for RpcClient<Q, A> {
    fn drop(&mut self) {
        if let Some(live) = self.live.borrow_mut().take() {
            live.sender.close();
        }
    }
}

/// What a request is answered with.
pub trait Reply: Serialize {
    /// In place of a reply of so many bytes, more than a message carries.
    fn too_long(bytes: usize) -> Self;
}

/// Answers a connection's requests with `handle` until it breaks; requests run concurrently. One that names, by `asker`,
/// another node than the other side may be ends the connection.
pub async fn serve<Q, A, H, F>(
    world: World,
    preamble: Preamble,
    mut connection: Connection,
    asker: fn(&Q) -> Option<&NodeId>,
    handle: H,
) where
    Q: DeserializeOwned + 'static,
    A: Reply + 'static,
    H: Fn(Q) -> F + 'static,
    F: Future<Output = A> + 'static,
{
    if let Err(error) = preamble.answer(&world, &mut connection).await {
        tracing::warn!(target: "drover::rpc", peer = connection.peer, %error, "a connection is not served");
        return;
    }
    let Connection { sender, mut receiver, peer } = connection;
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(CONCURRENT_MAX));
    while let Ok(Some(message)) = receiver.receive().await {
        let Some((id, payload)) = unseal(&message) else { break };
        let Ok(request) = postcard::from_bytes::<Q>(&payload) else { break };
        if let Some(node) = asker(&request).filter(|node| !receiver.may_be(node)) {
            tracing::warn!(target: "drover::rpc", peer, %node, "its certificate is not that of the node it says it is");
            break;
        }
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let answer = handle(request);
        let sender = sender.clone();
        let run = async move {
            let mut payload = encode(&answer.await);
            if payload.len() > PAYLOAD_BYTES_MAX {
                payload = encode(&A::too_long(payload.len()));
            }
            // A caller that left learns by its broken connection.
            let _ = sender.send(envelope(id, &payload)).await;
            drop(place);
        };
        world.spawn(run).detach();
    }
    sender.close();
}

fn encode(content: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(content).expect("plain data always encodes")
}

fn envelope(id: u64, payload: &[u8]) -> Message {
    let mut head = Vec::with_capacity(ID_BYTES + payload.len());
    head.extend_from_slice(&id.to_le_bytes());
    head.extend_from_slice(payload);
    assert!(payload.len() <= PAYLOAD_BYTES_MAX, "requests are bounded where they are made");
    Message { head: head.into(), body: Bytes::new() }
}

fn unseal(message: &Message) -> Option<(u64, Bytes)> {
    let id = message.head.first_chunk::<ID_BYTES>()?;
    Some((u64::from_le_bytes(*id), message.head.slice(ID_BYTES..)))
}
