//! Clients that write at random, and what each block may hold by what they were answered.

use crate::side::{Side, VOLUME_BLOCKS};
use drover_base::units::BLOCK_BYTES;
use drover_disk::Buffer;
use drover_sim::runtime::Generator;
use drover_store::{Unfenced, Volume, ZeroMode};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

const CLIENTS: u64 = 6;
/// Each client owns every sixth run of this many blocks: extents are shared, blocks are not.
const STRIPE_BLOCKS: u64 = 4;
/// The blocks of one client that writes large pieces.
const LARGE_FROM: u64 = VOLUME_BLOCKS - 640;

/// What a block of this tag holds: zeros, something that compresses, or noise.
pub fn content_of(tag: u64) -> Vec<u8> {
    let words = BLOCK_BYTES as usize / 8;
    if !tag.is_multiple_of(3) || tag == 0 {
        return tag.to_le_bytes().repeat(words);
    }
    let mut random = Generator::new(tag, "noise");
    (0..words).flat_map(|_| random.next_u64().to_le_bytes()).collect()
}

/// What each block may hold.
#[derive(Default)]
pub struct Model {
    /// What the blocks held before any request that is known of.
    base: RefCell<Vec<u8>>,
    answered: RefCell<BTreeMap<u64, u64>>,
    /// What a request that was not answered may have made of a block.
    asked: RefCell<BTreeMap<u64, u64>>,
    /// Every tag that a block was ever asked to hold.
    ever: RefCell<BTreeMap<u64, BTreeSet<u64>>>,
    tags: Cell<u64>,
    stop: Cell<bool>,
    running: Cell<u64>,
    pub answers: Cell<u64>,
}

impl Model {
    fn tag(&self) -> u64 {
        self.tags.set(self.tags.get() + 1);
        self.tags.get()
    }

    fn begin(&self, first: u64, tags: &[u64]) {
        self.asked.borrow_mut().extend((first..).zip(tags.iter().copied()));
        for (block, tag) in (first..).zip(tags) {
            self.ever.borrow_mut().entry(block).or_default().insert(*tag);
        }
    }

    fn end(&self, first: u64, tags: &[u64]) {
        for (block, tag) in (first..).zip(tags) {
            self.asked.borrow_mut().remove(&block);
            self.answered.borrow_mut().insert(block, *tag);
        }
        self.answers.set(self.answers.get() + 1);
    }

    /// A block that does not hold what it may, in words.
    pub fn difference(&self, content: &[u8], whose: &str) -> Option<String> {
        let (answered, asked) = (self.answered.borrow(), self.asked.borrow());
        for (block, bytes) in content.chunks(BLOCK_BYTES as usize).enumerate() {
            let block = block as u64;
            let (last, next) = (answered.get(&block).copied(), asked.get(&block).copied());
            let is_last = match last {
                Some(tag) => bytes == content_of(tag),
                None => bytes == self.base_of(block),
            };
            if !is_last && next.is_none_or(|tag| bytes != content_of(tag)) {
                return Some(format!("{whose}: block {block} does not hold {last:?} (or {next:?})"));
            }
        }
        None
    }

    /// A block that holds what it never was to hold, in words: after a crash it may be behind what was answered.
    pub fn never_held(&self, content: &[u8], whose: &str) -> Option<String> {
        let ever = self.ever.borrow();
        let held = |block: u64, bytes: &[u8]| {
            let is_tag = |tags: &BTreeSet<u64>| tags.iter().any(|tag| bytes == content_of(*tag));
            bytes == self.base_of(block) || ever.get(&block).is_some_and(is_tag)
        };
        let blocks = content.chunks(BLOCK_BYTES as usize).enumerate();
        let wrong = blocks.map(|(block, bytes)| (block as u64, bytes)).find(|(block, bytes)| !held(*block, bytes));
        wrong.map(|(block, _)| format!("{whose}: block {block} holds what nobody wrote there"))
    }

    /// Reads blocks as a client would. A block that nobody changes meanwhile must hold what was answered last.
    pub async fn read_blocks(&self, volume: &Volume, first: u64, count: u64) -> Result<(), String> {
        let last = |block: u64| match self.asked.borrow().get(&block) {
            Some(_) => None,
            None => Some(self.answered.borrow().get(&block).copied()),
        };
        let before: Vec<_> = (first..first + count).map(last).collect();
        let read = volume.read(&Unfenced, first * BLOCK_BYTES, count * BLOCK_BYTES).await;
        let bytes = read.map_err(|error| format!("blocks {first}+{count}: {error}"))?;
        for ((block, before), bytes) in (first..).zip(before).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            let Some(tag) = before.filter(|_| last(block) == before) else { continue };
            if bytes != tag.map_or_else(|| self.base_of(block), content_of) {
                return Err(format!("block {block} was read without {tag:?}"));
            }
        }
        Ok(())
    }

    fn base_of(&self, block: u64) -> Vec<u8> {
        let base = self.base.borrow();
        let at = (block * BLOCK_BYTES) as usize;
        base.get(at..at + BLOCK_BYTES as usize).map_or_else(|| content_of(0), <[u8]>::to_vec)
    }

    /// A crash took what was not flushed: what is left is what counts.
    pub fn adopt(&self, content: &[u8]) {
        *self.base.borrow_mut() = content.to_vec();
        self.answered.borrow_mut().clear();
        self.asked.borrow_mut().clear();
    }

    /// Nothing that is still being asked will be answered: both outcomes stay possible for good.
    pub fn forget_clients(&self) {
        self.stop.set(true);
        self.running.set(0);
    }

    pub fn start(self: &Rc<Self>, side: &Side) {
        self.stop.set(false);
        for client in 0..=CLIENTS {
            let random = side.sim.generator(&format!("client {client} after {}", self.answers.get()));
            let client = Client { model: self.clone(), volume: side.volume.clone(), random, number: client };
            let world = side.world.clone();
            self.running.set(self.running.get() + 1);
            world.clone().spawn(client.run(world)).detach();
        }
    }

    /// Lets every client end its request.
    pub async fn stop(&self, side: &Side) {
        self.stop.set(true);
        while self.running.get() > 0 {
            side.sim.sleep(Duration::from_micros(200)).await;
        }
    }

    /// Writes here and there, so that about half of the volume holds something.
    pub async fn fill(&self, side: &Side) {
        let mut random = side.sim.generator("fill");
        let mut block = 0;
        while block < VOLUME_BLOCKS {
            let len = random.between(1, 100).min(VOLUME_BLOCKS - block);
            if random.below(2) == 0 {
                let tags: Vec<u64> = (0..len).map(|_| if random.below(8) == 0 { 0 } else { self.tag() }).collect();
                self.write(&side.volume, block, &tags).await;
            }
            block += len;
        }
    }

    async fn write(&self, volume: &Volume, first: u64, tags: &[u64]) {
        let data: Vec<u8> = tags.iter().flat_map(|tag| content_of(*tag)).collect();
        self.begin(first, tags);
        let written = volume.write(&Unfenced, first * BLOCK_BYTES, Buffer::from_slice(&data), false).await;
        if written.is_ok() {
            self.end(first, tags);
        }
    }

    /// One block of a client that nobody else writes meanwhile.
    pub async fn write_block(&self, volume: &Volume, block: u64) {
        let tag = self.tag();
        self.write(volume, block, &[tag]).await;
    }
}

struct Client {
    model: Rc<Model>,
    volume: Rc<Volume>,
    random: Generator,
    number: u64,
}

impl Client {
    async fn run(mut self, world: drover_base::World) {
        while !self.model.stop.get() {
            self.request().await;
            world.sleep(Duration::from_micros(self.random.below(1_500))).await;
        }
        self.model.running.set(self.model.running.get().saturating_sub(1));
    }

    fn own_blocks(&mut self) -> (u64, u64) {
        if self.number == CLIENTS {
            let first = self.random.between(LARGE_FROM, VOLUME_BLOCKS - 1);
            return (first, self.random.between(1, 128).min(VOLUME_BLOCKS - first));
        }
        let stripes = LARGE_FROM / STRIPE_BLOCKS / CLIENTS;
        // Mostly within the first few extents, where clients meet.
        let stripe = if self.random.below(4) == 0 { self.random.below(stripes) } else { self.random.below(12) };
        let within = self.random.below(STRIPE_BLOCKS);
        let first = (stripe * CLIENTS + self.number) * STRIPE_BLOCKS + within;
        (first, self.random.between(1, STRIPE_BLOCKS - within))
    }

    async fn request(&mut self) {
        let (first, count) = self.own_blocks();
        let (offset, len) = (first * BLOCK_BYTES, count * BLOCK_BYTES);
        let model = self.model.clone();
        match self.random.below(20) {
            0..=12 => {
                let tags: Vec<u64> = (0..count).map(|_| model.tag()).collect();
                model.write(&self.volume, first, &tags).await;
            }
            13 => model.write(&self.volume, first, &vec![0; count as usize]).await,
            kind @ 14..=17 => {
                let tags = vec![0; count as usize];
                model.begin(first, &tags);
                let done = if kind < 16 {
                    self.volume.trim(&Unfenced, offset, len, false).await
                } else {
                    let zero = ZeroMode { may_unmap: kind == 16, fast_only: false };
                    self.volume.write_zeroes(&Unfenced, offset, len, zero, false).await
                };
                if done.is_ok() {
                    model.end(first, &tags);
                }
            }
            _ => {
                if self.volume.flush(&Unfenced).await.is_ok() {
                    model.answers.set(model.answers.get() + 1);
                }
            }
        }
    }
}
