//! The storage of a simulated node, which outlives its process.
//!
//! Invariants: what one life left is taken when it is killed, and handed to the next; the devices and metadata of a
//! life that is over fail every request. Images are taken only after the process's tasks are gone.

use crate::runtime::{Generator, Process};
use drover_base::world::Random;
use drover_disk::{
    Device,
    sim::{SimDevice, SimImage},
};
use drover_store::meta::{
    Meta,
    memory::{MemoryImage, MemoryMeta},
};
use std::{cell::RefCell, rc::Rc};

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is killed; the machine goes on, and every write that was submitted arrives.
    Killed,
    /// The machine loses power: each block that was not synced is kept or lost by chance.
    PowerLost,
}

/// What a node keeps: its devices and its metadata.
pub struct Storage {
    process: Process,
    chance: Chance,
    state: RefCell<State>,
}

enum State {
    /// Nobody has it open.
    Closed {
        images: Vec<SimImage>,
        meta: MemoryImage,
    },
    Open {
        devices: Vec<SimDevice>,
        meta: MemoryMeta,
    },
}

/// An open storage, of one life of the process.
pub struct Opened {
    pub devices: Vec<Rc<dyn Device>>,
    pub meta: Rc<dyn Meta>,
    /// The same devices and metadata, to make them fail.
    pub sim_devices: Vec<SimDevice>,
    pub sim_meta: MemoryMeta,
}

struct Chance(RefCell<Generator>);

impl Random for Chance {
    fn next_u64(&self) -> u64 {
        self.0.borrow_mut().next_u64()
    }
}

impl Storage {
    /// Devices of these sizes, never written, and no metadata. What crashes leave is drawn from the seed.
    pub fn new(process: &Process, device_bytes: &[u64]) -> Self {
        let images = device_bytes.iter().map(|size| SimImage::new(*size)).collect();
        let purpose = format!("crashes of {}", process.name());
        Self {
            process: process.clone(),
            chance: Chance(RefCell::new(process.sim().generator(&purpose))),
            state: RefCell::new(State::Closed { images, meta: MemoryImage::new() }),
        }
    }

    /// Opens it for the process's present life.
    ///
    /// # Panics
    /// When it is open: a process is killed before it is started again.
    pub fn open(&self) -> Opened {
        let world = self.process.world();
        let mut state = self.state.borrow_mut();
        let State::Closed { images, meta } = &mut *state else { panic!("the storage is open") };
        let images = std::mem::take(images);
        let devices: Vec<_> = images.into_iter().map(|image| SimDevice::from_image(world.clone(), image)).collect();
        let meta = MemoryMeta::from_image(world, std::mem::take(meta));
        *state = State::Open { devices: devices.clone(), meta: meta.clone() };
        Opened {
            devices: devices.iter().map(|device| Rc::new(device.clone()) as Rc<dyn Device>).collect(),
            meta: Rc::new(meta.clone()),
            sim_devices: devices,
            sim_meta: meta,
        }
    }

    /// Kills the process, and keeps what its end leaves for the next [`Storage::open`].
    pub fn kill(&self, end: End) {
        self.process.kill();
        let mut state = self.state.borrow_mut();
        let State::Open { devices, meta } = &*state else { return };
        let images = devices
            .iter()
            .map(|device| {
                let killed = device.killed_image();
                let crashed = device.crash(&self.chance);
                if end == End::Killed { killed } else { crashed }
            })
            .collect();
        let meta = meta.crash(&self.chance);
        *state = State::Closed { images, meta };
    }

    /// Lets one bit of a written block of a closed device rot. Whether there was such a block.
    pub fn rot(&self, device: usize, block: u64, bit: u64) -> bool {
        match &mut *self.state.borrow_mut() {
            State::Closed { images, .. } => images[device].rot(block, bit),
            State::Open { .. } => panic!("the storage is open"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Sim;
    use drover_base::units::BLOCK_BYTES;
    use drover_disk::Buffer;
    use drover_store::meta::Batch;
    use std::time::Duration;

    fn block_of(byte: u8) -> Buffer {
        let mut buffer = Buffer::for_read(BLOCK_BYTES as usize);
        buffer.fill(byte);
        buffer
    }

    async fn first_byte(device: &Rc<dyn Device>, block: u64) -> u8 {
        let (result, buffer) = device.read(block * BLOCK_BYTES, block_of(0)).await;
        result.unwrap();
        buffer[0]
    }

    /// Two synced blocks, then one that is not; what the next life finds of the last, and whether its commit survived.
    fn kept(seed: u64, end: End) -> (bool, bool) {
        let sim = Sim::new(seed);
        let node = sim.process("node");
        let storage = Storage::new(&node, &[16 * BLOCK_BYTES]);
        sim.block_on(async {
            let Opened { devices, meta, .. } = storage.open();
            let work = node.run(async move {
                let device = &devices[0];
                device.write(0, block_of(1)).await.0.unwrap();
                device.sync().await.unwrap();
                let mut batch = Batch::default();
                batch.put(b"key".to_vec(), b"value".to_vec());
                meta.commit(batch).await.unwrap();
                device.write(BLOCK_BYTES, block_of(2)).await.0.unwrap();
                let mut batch = Batch::default();
                batch.put(b"late".to_vec(), vec![]);
                let _ = meta.commit(batch).await;
                std::future::pending::<()>().await;
            });
            sim.sleep(Duration::from_millis(6)).await;
            storage.kill(end);
            assert!(work.await.is_err());
            let Opened { devices, meta, .. } = storage.open();
            assert_eq!(first_byte(&devices[0], 0).await, 1, "what was synced is there");
            assert_eq!(meta.get(b"key").await.unwrap(), Some(b"value".to_vec()));
            (first_byte(&devices[0], 1).await == 2, meta.get(b"late").await.unwrap().is_some())
        })
    }

    #[test]
    fn power_loss_keeps_or_loses_what_was_not_synced() {
        let found: Vec<_> = (0..60).map(|seed| kept(seed, End::PowerLost)).collect();
        assert!(found.iter().any(|(block, _)| *block) && found.iter().any(|(block, _)| !*block));
        assert_eq!(found, (0..60).map(|seed| kept(seed, End::PowerLost)).collect::<Vec<_>>());
    }

    #[test]
    fn a_kill_loses_nothing_that_was_submitted() {
        assert!((0..60).all(|seed| kept(seed, End::Killed).0));
    }

    #[test]
    fn a_life_that_is_over_reaches_no_device() {
        let sim = Sim::new(1);
        let node = sim.process("node");
        let storage = Storage::new(&node, &[16 * BLOCK_BYTES]);
        let old = storage.open();
        storage.kill(End::PowerLost);
        let new = storage.open();
        sim.block_on(async {
            assert!(old.devices[0].write(0, block_of(9)).await.0.is_err());
            assert!(old.meta.commit(Batch::default()).await.is_err());
            assert_ne!(first_byte(&new.devices[0], 0).await, 9);
        });
    }
}
