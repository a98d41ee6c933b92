//! A link in memory: ordered, late by chance, and breakable at any moment.

use drover_base::{ByteRange, Epoch, InstanceId, IoError, LocalFuture, SessionId, World};
use drover_sim::runtime::Generator;
use drover_transfer::{Link, Receiver};
use drover_wire::admin::Position;
use drover_wire::peer::{Answer, Operation, PeerReply, PeerRequest};
use futures::channel::oneshot;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Share of writes and zeros that the other side answers with an error, in millionths.
    pub refused_ppm: u64,
    /// The same for flushes.
    pub flushes_refused_ppm: u64,
}

struct Shared {
    session: u64,
    instance: InstanceId,
    random: RefCell<Generator>,
    faults: Cell<Faults>,
    broken: Cell<bool>,
    /// Nothing is delivered for now.
    held: Cell<bool>,
    /// Bytes a second of writes; 0: as fast as they come.
    bytes_per_s: Cell<u64>,
    ended: Cell<bool>,
    sequence: Cell<u64>,
    queue: RefCell<VecDeque<PeerRequest>>,
    waiting: RefCell<BTreeMap<u64, oneshot::Sender<Result<Answer, IoError>>>>,
    changed: Notify,
    /// Writes, zeros and flushes that went over it.
    pub sent: RefCell<Sent>,
}

/// What went over a link.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    pub writes: u64,
    pub zeros: u64,
    /// Bytes of the writes, as they are applied.
    pub data_bytes: u64,
    /// Ranges of the reads, in their order.
    pub reads: Vec<ByteRange>,
    /// Offsets of the writes, in their order.
    pub order: Vec<u64>,
}

#[derive(Clone)]
pub struct Wire(Rc<Shared>);

impl Wire {
    /// `world`: the receiving side's, whose death stops delivery.
    pub fn new(session: u64, instance: InstanceId, random: Generator, receiver: Rc<Receiver>, world: &World) -> Self {
        let shared = Rc::new(Shared {
            session,
            instance,
            random: RefCell::new(random),
            faults: Cell::default(),
            broken: Cell::new(false),
            held: Cell::new(false),
            bytes_per_s: Cell::new(0),
            ended: Cell::new(false),
            sequence: Cell::new(0),
            queue: RefCell::default(),
            waiting: RefCell::default(),
            changed: Notify::new(),
            sent: RefCell::default(),
        });
        world.spawn(deliver(shared.clone(), receiver, world.clone())).detach();
        Self(shared)
    }

    pub fn set_faults(&self, faults: Faults) {
        self.0.faults.set(faults);
    }

    /// Bytes of the writes that were not delivered yet, as they are applied.
    pub fn queued_bytes(&self) -> u64 {
        let bytes = |request: &PeerRequest| match &request.operation {
            Operation::Write { data, .. } => u64::from(data.raw_len),
            _ => 0,
        };
        self.0.queue.borrow().iter().map(bytes).sum()
    }

    /// Delivers nothing more until it is told to go on.
    pub fn hold(&self, held: bool) {
        self.0.held.set(held);
        self.0.changed.notify_waiters();
    }

    /// Carries no more than this of writes; 0: as much as comes.
    pub fn limit(&self, bytes_per_s: u64) {
        self.0.bytes_per_s.set(bytes_per_s);
    }

    pub fn sent(&self) -> Sent {
        self.0.sent.borrow().clone()
    }

    /// Breaks it: no reply comes any more; of what is on its way some still arrives.
    pub fn cut(&self) {
        self.0.broken.set(true);
        self.0.waiting.borrow_mut().clear();
        let kept = self.0.random.borrow_mut().below(self.0.queue.borrow().len() as u64 + 1);
        self.0.queue.borrow_mut().truncate(kept as usize);
        self.0.changed.notify_waiters();
    }

    /// Waits until nothing more is delivered.
    pub async fn ended(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.ended.get() {
                return;
            }
            changed.await;
        }
    }
}

impl Shared {
    fn some_time(&self, most_us: u64) -> Duration {
        Duration::from_micros(self.random.borrow_mut().below(most_us))
    }

    /// How long the operation occupies the link.
    fn carrying(&self, operation: &Operation) -> Duration {
        match operation {
            Operation::Write { data, .. } if self.bytes_per_s.get() > 0 => {
                Duration::from_secs_f64(data.bytes.len() as f64 / self.bytes_per_s.get() as f64)
            }
            Operation::Assemble(assembly) if self.bytes_per_s.get() > 0 => {
                Duration::from_secs_f64(assembly.data.bytes.len() as f64 / self.bytes_per_s.get() as f64)
            }
            _ => Duration::ZERO,
        }
    }

    fn refuses(&self, operation: &Operation) -> bool {
        let faults = self.faults.get();
        let ppm = match operation {
            Operation::Write { .. }
            | Operation::Zero { .. }
            | Operation::Remote { .. }
            | Operation::Assemble(_)
            | Operation::Layer(_) => faults.refused_ppm,
            Operation::Flush { .. } => faults.flushes_refused_ppm,
            _ => 0,
        };
        ppm > 0 && self.random.borrow_mut().chance_ppm(ppm)
    }

    fn note(&self, operation: &Operation) {
        let mut sent = self.sent.borrow_mut();
        match operation {
            Operation::Write { offset, data, .. } => {
                sent.writes += 1;
                sent.data_bytes += u64::from(data.raw_len);
                sent.order.push(*offset);
            }
            Operation::Assemble(assembly) => {
                sent.writes += 1;
                sent.data_bytes += u64::from(assembly.data.raw_len);
                sent.order.push(assembly.offset);
            }
            Operation::Zero { .. } => sent.zeros += 1,
            Operation::Read { range } => sent.reads.push(*range),
            _ => {}
        }
    }

    async fn next(&self) -> Option<PeerRequest> {
        loop {
            let changed = self.changed.notified();
            let is_held = self.held.get() && !self.broken.get();
            if let Some(request) = self.queue.borrow_mut().pop_front_if(|_| !is_held) {
                return Some(request);
            }
            if self.broken.get() {
                return None;
            }
            changed.await;
        }
    }

    fn reply(&self, sequence: u64, result: Result<Answer, IoError>) {
        let reply = PeerReply { session: SessionId(self.session), sequence, instance: self.instance, result };
        let reply = PeerReply::decode(reply.encode()).expect("it was encoded here");
        if let Some(waiting) = self.waiting.borrow_mut().remove(&reply.sequence) {
            let _ = waiting.send(reply.result);
        }
    }
}

async fn deliver(shared: Rc<Shared>, receiver: Rc<Receiver>, world: World) {
    while let Some(request) = shared.next().await {
        world.sleep(shared.some_time(60) + shared.carrying(&request.operation)).await;
        let sequence = request.sequence;
        let result: LocalFuture<'static, _> = if shared.refuses(&request.operation) {
            Box::pin(std::future::ready(Err(IoError::NoSpace)))
        } else {
            receiver.handle(sequence, request.operation)
        };
        let (shared, timer) = (shared.clone(), world.clone());
        let answering = async move {
            let result = result.await;
            timer.sleep(shared.some_time(200)).await;
            shared.reply(sequence, result);
        };
        world.spawn(answering).detach();
    }
    shared.ended.set(true);
    shared.changed.notify_waiters();
}

impl Link for Wire {
    fn send(&self, operation: Operation) -> LocalFuture<'static, Result<Answer, IoError>> {
        let shared = &self.0;
        if shared.broken.get() {
            return Box::pin(std::future::ready(Err(IoError::Disconnected)));
        }
        shared.note(&operation);
        shared.sequence.set(shared.sequence.get() + 1);
        let sequence = shared.sequence.get();
        let request = PeerRequest { session: SessionId(shared.session), epoch: Epoch(1), sequence, operation };
        let request = PeerRequest::decode(request.encode()).expect("it was encoded here");
        shared.queue.borrow_mut().push_back(request);
        let (tell, told) = oneshot::channel();
        shared.waiting.borrow_mut().insert(sequence, tell);
        shared.changed.notify_waiters();
        Box::pin(async move { told.await.unwrap_or(Err(IoError::Disconnected)) })
    }

    fn instance(&self) -> InstanceId {
        self.0.instance
    }

    fn position(&self) -> Position {
        Position { session: self.0.session, sequence: self.0.sequence.get() }
    }
}
