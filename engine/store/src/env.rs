//! What the volumes of a shard share: the world, devices, slots, metadata, and tasks that must end.

use crate::{
    StoreConfig, StoreError, Volume,
    checkpoint::{self, CheckpointPlace},
    chunks::ChunkIndex,
    entry::SlotAddress,
    health::Health,
    meta::{Batch, Meta, MetaError},
    record,
    room::{Attendance, Room},
    slots::{CheckpointTurn, NoRoom, Tiers},
    volume::Run,
};
use drover_base::{IoError, LayerId, LocalFuture, VolumeId, World};
use drover_disk::{Buffer, Device, DeviceError};
use futures::{
    StreamExt,
    channel::{mpsc, oneshot},
    future::join_all,
    stream::FuturesUnordered,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll},
    time::Duration,
};

pub struct Env {
    pub world: World,
    pub devices: Vec<Rc<dyn Device>>,
    pub tiers: Tiers,
    pub meta: Rc<dyn Meta>,
    pub checkpoint: Option<Rc<dyn CheckpointPlace>>,
    pub active_regions_max: usize,
    pub chunks: Option<ChunkIndex>,
    pub volumes: RefCell<BTreeMap<VolumeId, Rc<Volume>>>,
    /// Failed commits that were followed by a good one.
    pub meta_mended: Cell<u64>,
    abandoned: mpsc::UnboundedSender<LocalFuture<'static, ()>>,
    attendance: Attendance,
}

/// How long a write that finds no slot waits for volumes, of its own shard or others, to give back what they have freed:
/// longer than most flushes, and short for who waits for the write to end. A volume whose mirror stands still may take
/// for ever.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);

impl Env {
    pub fn new(
        world: World,
        devices: Vec<Rc<dyn Device>>,
        tiers: Tiers,
        meta: Rc<dyn Meta>,
        config: &StoreConfig,
    ) -> Rc<Self> {
        let (abandoned, arriving) = mpsc::unbounded();
        world.spawn(finish_abandoned(arriving)).detach();
        let meta_mended = Cell::new(tiers.failure_counts().1);
        let (checkpoint, active_regions_max) = (config.checkpoint.clone(), config.active_regions_max);
        let chunks = config.chunks.clone().map(|hints| ChunkIndex::new(world.clone(), hints, &devices));
        let volumes = RefCell::default();
        let attendance = tiers.room().attend();
        let (room, shard) = attendance.room();
        let env = Rc::new(Self {
            world,
            devices,
            tiers,
            meta,
            checkpoint,
            active_regions_max,
            chunks,
            volumes,
            meta_mended,
            abandoned,
            attendance,
        });
        env.world.spawn(give_back(Rc::downgrade(&env), room, shard)).detach();
        env
    }

    /// Runs the future to its end even when the caller stops waiting: a device write that was begun holds
    /// its locks until it is done, whatever became of the request.
    pub fn to_the_end(&self, future: LocalFuture<'static, Result<(), IoError>>) -> ToTheEnd {
        ToTheEnd { future: Some(future), abandoned: self.abandoned.clone() }
    }

    /// Runs the future as a task of its own and hands its output over.
    pub async fn as_task<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let (sender, receiver) = oneshot::channel();
        let task = self.world.spawn(async move {
            // The caller may have gone; the work is done all the same.
            let _ = sender.send(future.await);
        });
        task.detach();
        match receiver.await {
            Ok(output) => output,
            // The shard's tasks were dropped, so nothing goes on; nor does the caller.
            Err(_) => std::future::pending().await,
        }
    }

    /// Fills the buffer with what the run holds.
    pub async fn read_run(&self, run: Run, mut buffer: Buffer) -> Result<Buffer, DeviceError> {
        let Some((device, offset)) = run.at else {
            buffer.fill(0);
            return Ok(buffer);
        };
        let (result, buffer) = self.devices[usize::from(device)].read(offset, buffer).await;
        result.map(|()| buffer)
    }

    /// Writes to a device; until its next sync what was written is at stake for whoever's health it is.
    pub async fn write(&self, health: &Health, device: u8, offset: u64, data: Buffer) -> Result<(), IoError> {
        health.touch(device);
        let (result, _) = self.devices[usize::from(device)].write(offset, data).await;
        health.touch(device);
        result.map_err(|error| {
            tracing::warn!(device, %error, "write failed");
            if !error.is_no_space() {
                return IoError::Device;
            }
            self.tiers.refused_write(device);
            IoError::NoSpace
        })
    }

    /// Commits; a failure poisons every volume of the node.
    pub async fn commit(&self, batch: Batch) -> Result<(), MetaError> {
        let result = self.meta.commit(batch).await;
        if let Err(error) = &result {
            tracing::error!(%error, "metadata commit failed; the store is poisoned");
            self.tiers.meta_failed();
        }
        result
    }

    /// Finds out whether commits work again after one failed.
    pub async fn probe_metadata(&self) -> Result<(), StoreError> {
        let (_, failures) = self.tiers.failure_counts();
        if failures != self.meta_mended.get() {
            let mut probe = Batch::default();
            probe.put(record::probe_key(), record::encode_probe());
            self.commit(probe).await?;
            self.meta_mended.set(failures);
        }
        Ok(())
    }

    /// Takes `count` slots. Where there are too few, what this shard's volumes have given up is made free first, then what
    /// those of other shards have: a client that discards and writes again without a flush in between gets room.
    pub async fn allocate(self: &Rc<Self>, volume: VolumeId, count: usize) -> Result<Vec<SlotAddress>, IoError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut taken = self.allocate_free(volume, count).await;
        if taken == Err(IoError::NoSpace) && self.settle_freed().await {
            taken = self.allocate_free(volume, count).await;
        }
        if taken == Err(IoError::NoSpace) && self.attendance.has_others() {
            // A shard that is that busy gives back later.
            let _ = self.world.timeout(ROOM_PATIENCE, self.attendance.ask_others()).await;
            taken = self.allocate_free(volume, count).await;
        }
        taken
    }

    /// Makes durable what volumes of this shard have freed, and waits for the I/O that may still look at it. Whether
    /// there was anything that came free.
    async fn settle_freed(&self) -> bool {
        let volumes: Vec<Rc<Volume>> = self.volumes.borrow().values().cloned().collect();
        // One that fails tells its own clients; one that is busy gives back later.
        let settled = volumes.iter().map(|volume| self.world.timeout(ROOM_PATIENCE, volume.settle_freed()));
        join_all(settled).await.contains(&Ok(true))
    }

    /// Takes `count` slots, after a discard where that is what keeps them.
    async fn allocate_undisturbed(&self, volume: VolumeId, count: usize) -> Result<Vec<SlotAddress>, NoRoom> {
        loop {
            match self.tiers.allocate(volume, count) {
                Err(room) if room.is_discarding => self.tiers.discards_end().await,
                done => return done,
            }
        }
    }

    /// Takes `count` slots, after a checkpoint where only that gives some back.
    async fn allocate_free(self: &Rc<Self>, volume: VolumeId, count: usize) -> Result<Vec<SlotAddress>, IoError> {
        match self.allocate_undisturbed(volume, count).await {
            Ok(slots) => return Ok(slots),
            Err(room) if room.is_held && self.checkpoint.is_some() => {}
            Err(_) => return Err(IoError::NoSpace),
        }
        let turn = self.tiers.begin_checkpoint().await;
        // Another's checkpoint may have given slots back while this one waited for its turn.
        if let Ok(slots) = self.tiers.allocate(volume, count) {
            return Ok(slots);
        }
        // A task of its own: what is being stored cannot be stopped, and must have ended before the next begins.
        let env = self.clone();
        if let Err(error) = self.as_task(async move { env.write_checkpoint(turn).await }).await {
            tracing::error!(%error, "no checkpoint can be written, so freed slots cannot be used");
            return Err(IoError::NoSpace);
        }
        self.allocate_undisturbed(volume, count).await.map_err(|_| IoError::NoSpace)
    }

    /// Writes a checkpoint to the configured place.
    pub async fn take_checkpoint(&self) -> Result<(), StoreError> {
        let turn = self.tiers.begin_checkpoint().await;
        self.write_checkpoint(turn).await
    }

    async fn write_checkpoint(&self, turn: CheckpointTurn) -> Result<(), StoreError> {
        let Some(place) = &self.checkpoint else {
            return Err(StoreError::Checkpoint { what: "no place is configured".into() });
        };
        checkpoint::write(&*self.meta, &**place).await?;
        turn.done();
        Ok(())
    }

    /// A layer id that this store has not used: chance, since shards must not wait for each other.
    pub fn new_layer_id(&self) -> LayerId {
        loop {
            let id = self.world.random.next_u64();
            if id != 0 {
                return LayerId(id);
            }
        }
    }
}

/// Gives back what the shard's volumes have freed whenever another shard asks for it.
async fn give_back(env: Weak<Env>, room: Room, shard: u64) {
    while let Some(ask) = room.asked(shard).await {
        let Some(env) = env.upgrade() else { return };
        env.settle_freed().await;
        env.attendance.has_seen_to(ask);
    }
}

/// Finishes what its callers gave up on. Ends, dropping what is left, when the shard's tasks are dropped.
async fn finish_abandoned(mut arriving: mpsc::UnboundedReceiver<LocalFuture<'static, ()>>) {
    let mut running = FuturesUnordered::new();
    loop {
        futures::select_biased! {
            future = arriving.next() => match future {
                Some(future) => running.push(future),
                None => break,
            },
            _ = running.select_next_some() => {}
        }
    }
    while running.next().await.is_some() {}
}

/// See [`Env::to_the_end`].
pub struct ToTheEnd {
    future: Option<LocalFuture<'static, Result<(), IoError>>>,
    abandoned: mpsc::UnboundedSender<LocalFuture<'static, ()>>,
}

impl Future for ToTheEnd {
    type Output = Result<(), IoError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), IoError>> {
        let future = self.future.as_mut().expect("not polled after it completed");
        let output = std::task::ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(output)
    }
}

impl Drop for ToTheEnd {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            // Nobody takes it when the shard is being torn down; then it is dropped with the rest.
            let _ = self.abandoned.unbounded_send(Box::pin(async move {
                // The one who asked has gone; the volume itself took note of the outcome.
                let _ = future.await;
            }));
        }
    }
}
