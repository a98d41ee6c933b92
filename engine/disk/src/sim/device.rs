//! A device that loses, tears and reorders as a real one may, driven by a seed.
//!
//! ```text
//!  write ──► in flight ──(each block at its own moment)──► live image ──(sync)──► durable image
//!                │                                            │
//!                └────────── crash: each block by chance ─────┘
//! ```
//!
//! Invariants
//! - `live` is what reads see; it holds every block that has arrived. `durable` is what surely survives.
//! - `unsynced` holds, in order of arrival, the blocks that arrived and that no good sync has covered.
//! - A block arrives between the submission of its write and its completion. Nothing needs a task: what is
//!   due is applied when the device is next looked at, so a write goes on when its future is dropped.
//! - A sync covers what arrived before the call, no more; a crash keeps each other block by chance.

use super::{BlockContent, SimImage, below, delay};
use crate::{
    Buffer, Device, DeviceError,
    device::{check_range, check_transfer},
};
use drover_base::{Instant, LocalFuture, World, units::BLOCK_BYTES, world::Random};
use std::{
    cell::{RefCell, RefMut},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

// Delays of the order of a flash drive's. They differ enough that requests overtake each other.
const READ_NS: (u64, u64) = (20_000, 300_000);
const WRITE_NS: (u64, u64) = (20_000, 600_000);
const SYNC_NS: (u64, u64) = (50_000, 1_000_000);

/// A block's change on its way to the durable image.
struct Change {
    block: u64,
    content: BlockContent,
    /// A failed sync has dropped it: it is seen until the crash but never becomes durable.
    is_lost: bool,
}

struct State {
    live: SimImage,
    durable: SimImage,
    in_flight: BTreeMap<(Instant, u64), Change>,
    unsynced: VecDeque<Change>,
    /// Changes that have arrived, ever; the front of `unsynced` is number `arrived - unsynced.len()`.
    arrived: u64,
    submitted: u64,
    /// Good syncs until the one that fails.
    syncs_until_failure: Option<u64>,
    is_dead: bool,
}

/// A handle; clones share the device.
#[derive(Clone)]
pub struct SimDevice {
    world: World,
    state: Rc<RefCell<State>>,
}

impl SimDevice {
    /// A device never written: every block reads as garbage.
    pub fn new(world: World, size_bytes: u64) -> Self {
        Self::from_image(world, SimImage::new(size_bytes))
    }

    /// A device that holds `image` durably, as after a restart.
    pub fn from_image(world: World, image: SimImage) -> Self {
        let state = State {
            live: image.clone(),
            durable: image,
            in_flight: BTreeMap::new(),
            unsynced: VecDeque::new(),
            arrived: 0,
            submitted: 0,
            syncs_until_failure: None,
            is_dead: false,
        };
        Self { world, state: Rc::new(RefCell::new(state)) }
    }

    /// What a loss of power at this moment could leave: everything synced, and of the other blocks each by
    /// chance, those of writes in flight too. How likely they are kept is itself drawn, so that among many
    /// crashes some keep all and some keep nothing. The device goes on.
    pub fn crash_image(&self, random: &dyn Random) -> SimImage {
        let state = self.settled();
        let mut image = state.durable.clone();
        let (kept, of) = [(0, 1), (1, 8), (1, 2), (7, 8), (1, 1)][below(random, 5) as usize];
        for change in state.unsynced.iter().chain(state.in_flight.values()) {
            if !change.is_lost && below(random, of) < kept {
                image.set(change.block, change.content.clone());
            }
        }
        image
    }

    /// Power is lost: what remains. Every later request of this device and its clones fails with ENODEV.
    pub fn crash(&self, random: &dyn Random) -> SimImage {
        let image = self.crash_image(random);
        let mut state = self.state.borrow_mut();
        state.is_dead = true;
        // Whoever still has the device gets nothing from it, so it need not take up memory.
        let nothing = SimImage::new(state.live.size_bytes());
        (state.live, state.durable) = (nothing.clone(), nothing);
        state.unsynced.clear();
        state.in_flight.clear();
        image
    }

    /// What the device holds when its user is killed but power stays: all that was submitted arrives.
    pub fn killed_image(&self) -> SimImage {
        let state = self.settled();
        let mut image = state.live.clone();
        for change in state.in_flight.values() {
            image.set(change.block, change.content.clone());
        }
        image
    }

    /// What reads would see now.
    pub fn live_image(&self) -> SimImage {
        self.settled().live.clone()
    }

    /// After `good` more syncs one fails, and as in Linux' page cache what it covered is still seen, but half
    /// of it will never become durable, not even by a later sync that succeeds.
    pub fn fail_sync_after(&self, good: u64) {
        self.state.borrow_mut().syncs_until_failure = Some(good);
    }

    /// The state, with everything that is due applied.
    fn settled(&self) -> RefMut<'_, State> {
        let mut state = self.state.borrow_mut();
        state.settle(self.world.now());
        state
    }

    fn submit(&self, changes: impl Iterator<Item = (u64, BlockContent)>) -> Duration {
        let whole = delay(&self.world, WRITE_NS.0, WRITE_NS.1);
        let now = self.world.now();
        let mut state = self.settled();
        for (block, content) in changes {
            let arrival = now + Duration::from_nanos(1 + below(&*self.world.random, whole.as_nanos() as u64));
            let key = (arrival, state.submitted);
            state.submitted += 1;
            state.in_flight.insert(key, Change { block, content, is_lost: false });
        }
        whole
    }

    /// Waits as long as the request takes; fails if power was lost before or meanwhile.
    async fn wait(&self, duration: Duration, offset: u64, len: u64) -> Result<(), DeviceError> {
        let dead = Err(DeviceError::Io { errno: libc::ENODEV, offset, len });
        if self.state.borrow().is_dead {
            return dead;
        }
        self.world.sleep(duration).await;
        if self.state.borrow().is_dead { dead } else { Ok(()) }
    }

    async fn read_now(&self, offset: u64, buffer: &mut Buffer) -> Result<(), DeviceError> {
        check_transfer(self.size_bytes(), offset, buffer.len())?;
        let duration = delay(&self.world, READ_NS.0, READ_NS.1);
        self.wait(duration, offset, buffer.len() as u64).await?;
        self.settled().live.read(offset / BLOCK_BYTES, buffer);
        Ok(())
    }

    async fn write_now(&self, offset: u64, buffer: &Buffer) -> Result<(), DeviceError> {
        check_transfer(self.size_bytes(), offset, buffer.len())?;
        if self.state.borrow().is_dead {
            return Err(DeviceError::Io { errno: libc::ENODEV, offset, len: buffer.len() as u64 });
        }
        let blocks = buffer.chunks_exact(BLOCK_BYTES as usize).map(|bytes| {
            let bytes = <[u8; BLOCK_BYTES as usize]>::try_from(bytes).expect("chunks are whole blocks");
            Some(Rc::new(bytes))
        });
        let duration = self.submit((offset / BLOCK_BYTES..).zip(blocks));
        self.wait(duration, offset, buffer.len() as u64).await
    }

    async fn sync_now(&self, cut: u64) -> Result<(), DeviceError> {
        let duration = delay(&self.world, SYNC_NS.0, SYNC_NS.1);
        self.wait(duration, 0, 0).await.map_err(|_| DeviceError::Sync { errno: libc::ENODEV })?;
        let mut state = self.settled();
        match state.syncs_until_failure {
            Some(0) => {
                state.syncs_until_failure = None;
                state.lose(cut, &*self.world.random);
                return Err(DeviceError::Sync { errno: libc::EIO });
            }
            Some(good) => state.syncs_until_failure = Some(good - 1),
            None => {}
        }
        state.harden(cut);
        Ok(())
    }
}

impl State {
    fn settle(&mut self, now: Instant) {
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > now || self.is_dead {
                return;
            }
            let change = entry.remove();
            self.live.set(change.block, change.content.clone());
            self.unsynced.push_back(change);
            self.arrived += 1;
        }
    }

    /// Unsynced changes that had arrived when `cut` had.
    fn covered(&self, cut: u64) -> usize {
        let first = self.arrived - self.unsynced.len() as u64;
        cut.saturating_sub(first) as usize
    }

    fn harden(&mut self, cut: u64) {
        for change in self.unsynced.drain(..self.covered(cut)).filter(|change| !change.is_lost) {
            self.durable.set(change.block, change.content);
        }
    }

    fn lose(&mut self, cut: u64, random: &dyn Random) {
        let covered = self.covered(cut);
        for change in self.unsynced.iter_mut().take(covered) {
            change.is_lost |= below(random, 2) == 0;
        }
    }
}

impl Device for SimDevice {
    fn size_bytes(&self) -> u64 {
        self.state.borrow().live.size_bytes()
    }

    fn read(&self, offset: u64, mut buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        Box::pin(async move { (self.read_now(offset, &mut buffer).await, buffer) })
    }

    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        Box::pin(async move { (self.write_now(offset, &buffer).await, buffer) })
    }

    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        // The cut is the call's, not the first poll's: the least that a caller may count on.
        let cut = self.settled().arrived;
        Box::pin(self.sync_now(cut))
    }

    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        Box::pin(async move {
            check_range(self.size_bytes(), offset, len)?;
            if self.state.borrow().is_dead {
                return Err(DeviceError::Io { errno: libc::ENODEV, offset, len });
            }
            let first = offset / BLOCK_BYTES;
            let duration = self.submit((first..first + len / BLOCK_BYTES).map(|block| (block, None)));
            self.wait(duration, offset, len).await
        })
    }
}

#[cfg(test)]
mod tests;
