//! A device without its first bytes, which belong to somebody else.

use crate::{
    Buffer, Device, DeviceError,
    device::{check_range, check_transfer},
};
use drover_base::{LocalFuture, units::BLOCK_BYTES};
use std::{future::ready, rc::Rc};

/// The rest of `whole` behind its first `skipped_bytes`. Its offsets begin there; those in errors of I/O are the whole's.
pub struct Part {
    whole: Rc<dyn Device>,
    skipped_bytes: u64,
}

impl Part {
    /// `skipped_bytes` is a multiple of `BLOCK_BYTES` and no more than the device has.
    pub fn behind(whole: Rc<dyn Device>, skipped_bytes: u64) -> Self {
        assert!(skipped_bytes.is_multiple_of(BLOCK_BYTES) && skipped_bytes <= whole.size_bytes());
        Self { whole, skipped_bytes }
    }
}

impl Device for Part {
    fn size_bytes(&self) -> u64 {
        self.whole.size_bytes() - self.skipped_bytes
    }

    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        if let Err(error) = check_transfer(self.size_bytes(), offset, buffer.len()) {
            return Box::pin(ready((Err(error), buffer)));
        }
        self.whole.read(self.skipped_bytes + offset, buffer)
    }

    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        if let Err(error) = check_transfer(self.size_bytes(), offset, buffer.len()) {
            return Box::pin(ready((Err(error), buffer)));
        }
        self.whole.write(self.skipped_bytes + offset, buffer)
    }

    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        self.whole.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        match check_range(self.size_bytes(), offset, len) {
            Ok(()) => self.whole.discard(self.skipped_bytes + offset, len),
            Err(error) => Box::pin(ready(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contract, sim::SimDevice, sim::SoloWorld};

    const SKIPPED: u64 = 16 * BLOCK_BYTES;

    #[test]
    fn it_is_a_device() {
        let mut solo = SoloWorld::new(3);
        let whole = SimDevice::new(solo.world(), contract::SIZE_BYTES + SKIPPED);
        solo.run(contract::check(Rc::new(Part::behind(Rc::new(whole), SKIPPED))));
    }

    #[test]
    fn what_was_skipped_is_left_alone() {
        let mut solo = SoloWorld::new(4);
        let whole: Rc<dyn Device> = Rc::new(SimDevice::new(solo.world(), 2 * SKIPPED));
        solo.run(async move {
            let label = || Buffer::from_slice(&[7; SKIPPED as usize]);
            whole.write(0, label()).await.0.unwrap();
            let part = Part::behind(whole.clone(), SKIPPED);
            part.write(0, Buffer::from_slice(&[9; SKIPPED as usize])).await.0.unwrap();
            part.discard(0, BLOCK_BYTES).await.unwrap();
            assert_eq!(whole.read(0, Buffer::for_read(SKIPPED as usize)).await, (Ok(()), label()));
            let (_, first) = whole.read(SKIPPED + BLOCK_BYTES, Buffer::for_read(BLOCK_BYTES as usize)).await;
            assert_eq!(first, Buffer::from_slice(&[9; BLOCK_BYTES as usize]));
        });
    }
}
