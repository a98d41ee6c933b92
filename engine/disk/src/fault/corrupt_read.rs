//! One read returns a flipped bit and no error.

use crate::{Buffer, Device, DeviceError};
use drover_base::LocalFuture;
use std::{cell::Cell, rc::Rc};

/// Flips one bit of one read; what is stored stays as it was.
pub struct CorruptRead {
    inner: Rc<dyn Device>,
    /// Good reads until the bad one, and the bit it flips, counted from the buffer's start and wrapped to its length.
    armed: Cell<Option<(u64, usize)>>,
}

impl CorruptRead {
    /// A layer that corrupts nothing until it is armed.
    pub fn new(inner: Rc<dyn Device>) -> Self {
        Self { inner, armed: Cell::new(None) }
    }

    /// After `good` more reads, one has its bit number `bit` flipped.
    pub fn arm(&self, good: u64, bit: usize) {
        self.armed.set(Some((good, bit)));
    }

    fn strike(&self) -> Option<usize> {
        match self.armed.take() {
            Some((0, bit)) => Some(bit),
            Some((good, bit)) => {
                self.armed.set(Some((good - 1, bit)));
                None
            }
            None => None,
        }
    }
}

impl Device for CorruptRead {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        let Some(bit) = self.strike() else { return self.inner.read(offset, buffer) };
        Box::pin(async move {
            let (result, mut buffer) = self.inner.read(offset, buffer).await;
            if !buffer.is_empty() {
                let bit = bit % (buffer.len() * 8);
                buffer[bit / 8] ^= 1 << (bit % 8);
            }
            (result, buffer)
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
