//! Layers over devices and metadata: slow reads, the moments at which a crash is looked at, and a place in
//! memory for checkpoints.

use drover_base::{LocalFuture, World};
use drover_disk::{Buffer, Device, DeviceError};
use drover_store::{
    checkpoint::CheckpointPlace,
    meta::{Batch, Meta, MetaError, Pairs},
};
use std::{cell::RefCell, io, rc::Rc, time::Duration};

/// A device some of whose reads are fetched late, so that what they were to read could be gone by then.
pub struct LateReads {
    inner: Rc<dyn Device>,
    world: World,
}

/// Longer than a write, a sync and a commit together can take.
const LATE: Duration = Duration::from_millis(8);

impl LateReads {
    pub fn new(world: World, inner: Rc<dyn Device>) -> Self {
        Self { inner, world }
    }
}

impl Device for LateReads {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        let chance = self.world.random.next_u64();
        if !chance.is_multiple_of(4) {
            return self.inner.read(offset, buffer);
        }
        let late = self.world.sleep(Duration::from_nanos(chance / 4 % LATE.as_nanos() as u64));
        Box::pin(async move {
            late.await;
            self.inner.read(offset, buffer).await
        })
    }
    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        self.inner.write(offset, buffer)
    }
    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        self.inner.sync()
    }
    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        self.inner.discard(offset, len)
    }
}

/// Tells a closure before each commit, while it is in flight, and after it, before the answer.
pub struct ObservedMeta {
    pub inner: Rc<dyn Meta>,
    pub observer: Rc<dyn Fn(&'static str)>,
}

impl Meta for ObservedMeta {
    fn get(&self, key: &[u8]) -> LocalFuture<'_, Result<Option<Vec<u8>>, MetaError>> {
        self.inner.get(key)
    }
    fn scan(&self, prefix: &[u8]) -> LocalFuture<'_, Result<Pairs, MetaError>> {
        self.inner.scan(prefix)
    }
    fn commit(&self, batch: Batch) -> LocalFuture<'_, Result<(), MetaError>> {
        (self.observer)("before a commit");
        let commit = self.inner.commit(batch);
        (self.observer)("in a commit");
        Box::pin(async move {
            let result = commit.await;
            (self.observer)("after a commit");
            result
        })
    }
}

/// The latest checkpoint, in memory; storing it takes a while.
pub struct MemoryPlace {
    world: World,
    bytes: RefCell<Option<Vec<u8>>>,
}

impl MemoryPlace {
    pub fn new(world: World) -> Self {
        Self { world, bytes: RefCell::default() }
    }
}

impl CheckpointPlace for MemoryPlace {
    fn store(&self, bytes: Vec<u8>) -> LocalFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.world.sleep(Duration::from_millis(3)).await;
            *self.bytes.borrow_mut() = Some(bytes);
            Ok(())
        })
    }
    fn load(&self) -> LocalFuture<'_, io::Result<Option<Vec<u8>>>> {
        Box::pin(async move { Ok(self.bytes.borrow().clone()) })
    }
}
