//! Serves peer connections: I/O that gateways forward, and the streams of migrations.
//!
//! Invariants
//! - A connection is about the one volume its `Hello` named, on that volume's shard, and is read from only after its
//!   preamble has shown the cluster's secret.
//! - Bytes and requests in flight are bounded per connection; what passes the bound stays unread.
//! - A gateway's request is applied only under the epoch it was sent for, by the present holder. One that waited for
//!   the end of a flip and finds the volume moved is answered `Moved`; it is not forwarded from here.
//! - A stream's frame is applied only in role Mirror, under exactly the recorded epoch, for a migration and a
//!   generation that is not older than the recorded one; frames take their places in the order they came.

use crate::limiter::Client;
use crate::node::Node;
use crate::seat::Seat;
use crate::session::{Attended, SessionFence, SessionKey};
use crate::writers::Way;
use drover_base::limits::{CONNECTION_BYTES_IN_FLIGHT_MAX, CONNECTION_REQUESTS_IN_FLIGHT_MAX};
use drover_base::planted::{Bug, is_planted};
use drover_base::units::EXTENT_BYTES;
use drover_base::world::{Connection, Message, MessageReceiver, MessageSender};
use drover_base::{Epoch, Generation, InstanceId, IoError, MigrationId, SessionId, World};
use drover_store::Fence;
use drover_transfer::Receiver;
use drover_wire::layer::LayerRequest;
use drover_wire::peer::{Answer, Hello, LogOrigin, LogVerdict, Operation, PeerReply, PeerRequest, Purpose, Welcome};
use drover_wire::seat_record::LegDirection;
use drover_wire::writer_record::Writer;
use futures::future::{Either, select};
use std::{pin::pin, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a new connection may take to say what it is about.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long the stream of a new holder may wait for this node to be told of its lease: that is done right after the
/// holder was told.
const GRANT_PATIENCE: Duration = Duration::from_secs(1);

/// How long who was refused may take to close the connection, as a sign that it knows: a close from here takes back what
/// is not on its way yet.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);

/// Room is counted in KiB, so that the semaphore's numbers fit; each request takes at least this much.
const ROOM_UNIT: u64 = 1 << 10;
const ROOM_MAX: usize = (CONNECTION_BYTES_IN_FLIGHT_MAX / ROOM_UNIT) as usize;

/// What a chunk of an offer costs until it is answered: its name, and looking it up.
const OFFERED_CHUNK_BYTES: u64 = 512;

/// The first message of a connection, if it is a `Hello`.
pub(crate) fn hello_of(first: Message) -> Option<PeerRequest> {
    let request = PeerRequest::decode(first).ok()?;
    matches!(request.operation, Operation::Hello(_)).then_some(request)
}

/// Serves a connection whose `Hello` was read, until it ends.
pub(crate) async fn serve(node: &Rc<Node>, hello: PeerRequest, mut connection: Connection) {
    let Operation::Hello(introduction) = &hello.operation else {
        connection.sender.close();
        return;
    };
    let sender = connection.sender.clone();
    let Some(seat) = node.seat(introduction.volume) else {
        refuse(node.world(), &mut connection, &hello, node.instance(), IoError::NotHere).await;
        return;
    };
    match introduction.purpose {
        Purpose::Gateway { log } => {
            let session = hello.session;
            let writer = Writer { session, node: introduction.from.clone(), instance: introduction.instance };
            serve_gateway(seat, hello, (Rc::new(writer), log), connection).await;
        }
        Purpose::Mirror { migration, generation } => {
            let stream = Stream { migration, generation, session: hello.session, epoch: hello.epoch };
            serve_mirror(seat, hello, stream, connection).await;
        }
    }
    sender.close();
}

async fn refuse(world: &World, connection: &mut Connection, hello: &PeerRequest, instance: InstanceId, error: IoError) {
    let reply = PeerReply { session: hello.session, sequence: hello.sequence, instance, result: Err(error) };
    // The other side may have gone; then nobody wants the answer.
    if connection.sender.send(reply.encode()).await.is_ok() {
        let _ = world.timeout(REFUSAL_PATIENCE, connection.receiver.receive()).await;
    }
    connection.sender.close();
}

/// A connection's bounds and its way back.
struct Served {
    seat: Rc<Seat>,
    connection: Rc<Attended>,
    sender: Rc<dyn MessageSender>,
    session: SessionId,
    instance: InstanceId,
    room: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

/// What a request in flight holds.
struct Held {
    _room: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Served {
    fn new(seat: Rc<Seat>, connection: Rc<Attended>, sender: Rc<dyn MessageSender>, session: SessionId) -> Rc<Self> {
        let instance = seat.instance();
        let room = Arc::new(Semaphore::new(ROOM_MAX));
        let places = Arc::new(Semaphore::new(CONNECTION_REQUESTS_IN_FLIGHT_MAX));
        Rc::new(Self { seat, connection, sender, session, instance, room, places })
    }

    /// The next request, once there is room for it; `None` when the connection ends or breaks the protocol.
    async fn next(&self, receiver: &mut Box<dyn MessageReceiver>) -> Option<(PeerRequest, Held)> {
        let place = self.places.clone().acquire_owned().await.ok()?;
        let message = receiver.receive().await.ok()??;
        let request = PeerRequest::decode(message)
            .inspect_err(|error| {
                tracing::warn!(target: "drover::peer", volume = %self.seat.id(), %error, "not a request");
            })
            .ok()?;
        if request.session != self.session || matches!(request.operation, Operation::Hello(_)) {
            return None;
        }
        let units = bytes_of(&request.operation).div_ceil(ROOM_UNIT).clamp(1, ROOM_MAX as u64);
        let room = self.room.clone().acquire_many_owned(units as u32).await.ok()?;
        Some((request, Held { _room: room, _place: place }))
    }

    async fn reply(&self, sequence: u64, result: Result<Answer, IoError>) {
        let reply = PeerReply { session: self.session, sequence, instance: self.instance, result };
        // Whoever asked learns by the broken connection.
        let _ = self.sender.send(reply.encode()).await;
    }
}

/// Bytes that a request keeps in memory until it is answered.
fn bytes_of(operation: &Operation) -> u64 {
    match operation {
        Operation::Read { range } => range.len,
        Operation::Write { data, .. } => u64::from(data.raw_len),
        // What is put together, whatever of it was sent.
        Operation::Assemble(assembly) => assembly.range().len,
        Operation::Digests { .. } => EXTENT_BYTES,
        Operation::Offer { chunks } => chunks.len() as u64 * OFFERED_CHUNK_BYTES,
        Operation::Layer(request) => match **request {
            // Extent by extent.
            LayerRequest::Digests { .. } => EXTENT_BYTES,
            _ => ROOM_UNIT,
        },
        Operation::Zero { .. }
        | Operation::Trim { .. }
        | Operation::Flush { .. }
        | Operation::BlockStatus { .. }
        | Operation::Remote { .. }
        | Operation::Hello(_) => ROOM_UNIT,
    }
}

async fn serve_gateway(
    seat: Rc<Seat>,
    hello: PeerRequest,
    (who, log): (Rc<Writer>, Option<LogOrigin>),
    mut connection: Connection,
) {
    let world = &seat.context.world;
    let epoch = seat.lease().epoch();
    let error = match () {
        () if !seat.is_holder() => Some(seat.elsewhere()),
        // It knows of a later epoch: this node was not told yet, and must not serve.
        () if hello.epoch > epoch => Some(IoError::Fenced { epoch }),
        () => None,
    };
    if let Some(error) = error {
        refuse(world, &mut connection, &hello, seat.instance(), error).await;
        return;
    }
    let key = SessionKey::Gateway(hello.session);
    let sender = connection.sender.clone();
    let Some(attended) = seat.sessions.enter(key, sender.clone()).await else { return };
    let log = match seat.greet(&who, log).await {
        Ok(log) => log,
        Err(error) => {
            refuse(world, &mut connection, &hello, seat.instance(), seat.told(error)).await;
            seat.sessions.leave(key, &attended).await;
            return;
        }
    };
    let served = Served::new(seat.clone(), attended.clone(), sender, hello.session);
    let welcome = Welcome { size_bytes: seat.volume.size_bytes(), epoch, log };
    served.reply(hello.sequence, Ok(Answer::Welcome(welcome))).await;
    while let Some((request, held)) = served.next(&mut connection.receiver).await {
        if !attended.is_open() && !is_planted(Bug::SessionNotFenced) {
            break;
        }
        let (served, who, running) = (served.clone(), who.clone(), attended.begin());
        let answer = async move {
            let result = gateway_request(&served, &who, request.epoch, request.operation).await;
            served.reply(request.sequence, result).await;
            drop((held, running));
        };
        world.spawn(answer).detach();
    }
    seat.sessions.leave(key, &attended).await;
}

async fn gateway_request(
    served: &Served,
    who: &Rc<Writer>,
    epoch: Epoch,
    operation: Operation,
) -> Result<Answer, IoError> {
    let seat = &served.seat;
    // A request of a connection that was fenced meanwhile must not keep the newer one waiting.
    select(pin!(seat.admitted()), pin!(served.connection.closed())).await;
    let lease = seat.lease();
    if !is_planted(Bug::EpochNotChecked) {
        if !seat.is_holder() {
            return Err(seat.elsewhere());
        }
        if epoch != lease.epoch() {
            return Err(IoError::Fenced { epoch: lease.epoch() });
        }
    }
    let fence = SessionFence { connection: served.connection.clone(), inner: lease };
    let way = if is_replay(&operation) { Way::Replay } else { Way::Kept };
    if way != Way::Replay {
        match select(pin!(seat.settled(who, &fence)), pin!(served.connection.closed())).await {
            Either::Left((settled, _)) => settled.map_err(|error| seat.told(error))?,
            Either::Right(_) => return Err(IoError::Disconnected),
        }
    }
    if let Some(bytes) = cost(&operation).filter(|_| way != Way::Replay && seat.limiter.is_on()) {
        let admitted = pin!(seat.limiter.admit(Client::Gateway(who.session), bytes));
        select(admitted, pin!(served.connection.closed())).await;
    }
    seat.perform(who, way, &fence, operation).await.map_err(|error| seat.told(error))
}

/// What a client's request takes of the volume's limits, in bytes; `None`: nothing at all.
pub(crate) fn cost(operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Read { range } => Some(range.len),
        Operation::Write { data, .. } => Some(data.bytes.len() as u64),
        // Their bytes do not travel.
        Operation::Zero { .. } | Operation::Trim { .. } => Some(0),
        _ => None,
    }
}

fn is_replay(operation: &Operation) -> bool {
    match operation {
        Operation::Write { replay, .. } | Operation::Zero { replay, .. } | Operation::Trim { replay, .. } => *replay,
        _ => false,
    }
}

/// The stream that a `Hello` announced.
#[derive(Clone, Copy)]
struct Stream {
    migration: MigrationId,
    generation: Generation,
    session: SessionId,
    epoch: Epoch,
}

/// May frames of a stream be applied? As long as the seat mirrors for it under its epoch.
struct MirrorFence {
    seat: Rc<Seat>,
    epoch: Epoch,
}

impl Fence for MirrorFence {
    fn check(&self) -> Result<(), IoError> {
        let known = self.seat.mirrors_under();
        if known == Some(self.epoch) || is_planted(Bug::EpochNotChecked) {
            Ok(())
        } else {
            Err(IoError::Fenced { epoch: self.seat.record_view().epoch })
        }
    }
}

impl Stream {
    /// Whether the seat takes it now.
    fn is_taken_by(&self, seat: &Seat) -> Result<(), IoError> {
        let record = seat.record_view();
        let fenced = IoError::Fenced { epoch: record.epoch };
        let leg = record.leg.as_ref().ok_or(IoError::NotHere)?;
        let matches = leg.migration == self.migration && leg.generation <= self.generation;
        if matches && seat.mirrors_under() == Some(self.epoch) { Ok(()) } else { Err(fenced) }
    }

    /// Waits a little where the seat is about to take it: a holder whose stream is refused tries again later, and its
    /// clients' writes wait for that.
    async fn is_taken_soon_by(&self, seat: &Seat) -> Result<(), IoError> {
        let taken = async {
            loop {
                let changed = seat.changed();
                let taken = self.is_taken_by(seat);
                let is_early = self.epoch > seat.record_view().epoch || seat.is_changing_role();
                if taken.is_ok() || !is_early {
                    return taken;
                }
                changed.await;
            }
        };
        let world = &seat.context.world;
        world.timeout(GRANT_PATIENCE, taken).await.unwrap_or_else(|_| self.is_taken_by(seat))
    }
}

async fn serve_mirror(seat: Rc<Seat>, hello: PeerRequest, stream: Stream, mut connection: Connection) {
    let (world, sender) = (&seat.context.world, connection.sender.clone());
    if let Err(error) = stream.is_taken_soon_by(&seat).await {
        refuse(world, &mut connection, &hello, seat.instance(), error).await;
        return;
    }
    let Some(attended) = seat.sessions.enter(SessionKey::Mirror, sender.clone()).await else { return };
    // The seat may have changed while the older connection drained.
    if let Err(error) = stream.is_taken_by(&seat) {
        refuse(world, &mut connection, &hello, seat.instance(), error).await;
        seat.sessions.leave(SessionKey::Mirror, &attended).await;
        return;
    }
    let mirror = Rc::new(MirrorFence { seat: seat.clone(), epoch: stream.epoch });
    let fence: Rc<dyn Fence> = Rc::new(SessionFence { connection: attended.clone(), inner: mirror });
    let applier = Receiver::new(seat.context.world.clone(), seat.volume.clone(), fence);
    seat.receive_by(stream.session, applier.clone());
    let served = Served::new(seat.clone(), attended.clone(), sender, hello.session);
    let log = LogVerdict::Applied;
    let welcome = Welcome { size_bytes: seat.volume.size_bytes(), epoch: stream.epoch, log };
    served.reply(hello.sequence, Ok(Answer::Welcome(welcome))).await;
    while let Some((request, held)) = served.next(&mut connection.receiver).await {
        if !attended.is_open() && !is_planted(Bug::SessionNotFenced) {
            break;
        }
        if request.epoch != stream.epoch {
            served.reply(request.sequence, Err(IoError::Fenced { epoch: stream.epoch })).await;
            break;
        }
        // Who takes over is built by who holds it, never the other way round.
        let is_forward = seat.record_view().direction == LegDirection::Forward;
        if !is_forward && matches!(&request.operation, Operation::Layer(request) if request.is_change()) {
            served.reply(request.sequence, Err(IoError::Corrupt)).await;
            break;
        }
        // Its place in the order is taken here, before the next frame is read.
        let applied = applier.handle(request.sequence, request.operation);
        let (served, running) = (served.clone(), attended.begin());
        let answer = async move {
            let result = applied.await;
            served.reply(request.sequence, result).await;
            drop((held, running));
        };
        world.spawn(answer).detach();
    }
    seat.sessions.leave(SessionKey::Mirror, &attended).await;
}

/// The volume that a `Hello` is about.
pub(crate) fn volume_of(hello: &PeerRequest) -> Option<drover_base::VolumeId> {
    match &hello.operation {
        Operation::Hello(Hello { volume, .. }) => Some(*volume),
        _ => None,
    }
}

/// Who says `Hello`.
pub(crate) fn node_of(hello: &PeerRequest) -> Option<&drover_base::NodeId> {
    match &hello.operation {
        Operation::Hello(Hello { from, .. }) => Some(from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_base::VolumeId;
    use drover_wire::peer::{CHUNKS_MAX, ChunkName};

    #[test]
    fn an_offer_takes_the_room_of_its_chunks() {
        let chunk = ChunkName { digest: [0; 32], len: 1 << 16 };
        let room = |count| bytes_of(&Operation::Offer { chunks: vec![chunk; count] });
        assert_eq!(room(CHUNKS_MAX), CHUNKS_MAX as u64 * 512);
        // Less than a unit still takes one.
        assert!(room(0) < ROOM_UNIT && room(3) > ROOM_UNIT);
    }

    /// Over real sockets a close took back the refusal that was queued before it: gateways never learned from the old
    /// holder where the volume had gone, and what had been flushed there.
    #[test]
    fn who_is_refused_learns_why() {
        drover_runtime::block_on(async {
            let world = drover_runtime::world(&drover_runtime::Workers::start(1).unwrap(), None);
            let mut listener = world.net.listen("127.0.0.1:0").await.unwrap();
            let address = listener.address();
            let (accepted, connected) = futures::join!(listener.accept(), world.net.connect(&address));
            let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
            let hello = Hello {
                volume: VolumeId(1),
                from: drover_base::NodeId::new("g").unwrap(),
                instance: InstanceId(1),
                purpose: Purpose::Gateway { log: None },
            };
            let hello =
                PeerRequest { session: SessionId(1), epoch: Epoch(1), sequence: 1, operation: Operation::Hello(hello) };
            let told = async {
                let reply = connected.receiver.receive().await.unwrap().expect("it is told");
                connected.sender.close();
                PeerReply::decode(reply).unwrap().result
            };
            let refused = refuse(&world, &mut accepted, &hello, InstanceId(2), IoError::NotHere);
            assert_eq!(futures::join!(told, refused).0, Err(IoError::NotHere));
        })
        .unwrap();
    }
}
