//! One request of a kind fails, with EIO or an error of choice.

use crate::{Buffer, Device, DeviceError};
use drover_base::{LocalFuture, units::BLOCK_BYTES};
use std::{cell::Cell, rc::Rc};

/// The kinds of request that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
    Discard,
}

/// Fails one request and passes on the others. A failed write has stored its first half; a failed sync or discard has
/// reached nothing.
pub struct FailNth {
    inner: Rc<dyn Device>,
    armed: Cell<Option<(Operation, u64)>>,
    errno: Cell<i32>,
}

impl FailNth {
    /// A layer that fails nothing until it is armed.
    pub fn new(inner: Rc<dyn Device>) -> Self {
        Self { inner, armed: Cell::new(None), errno: Cell::new(libc::EIO) }
    }

    /// After `good` more requests of the kind, one fails. Replaces what was armed before.
    pub fn arm(&self, operation: Operation, good: u64) {
        self.arm_with(operation, good, libc::EIO);
    }

    /// The same with another error number.
    pub fn arm_with(&self, operation: Operation, good: u64, errno: i32) {
        self.armed.set(Some((operation, good)));
        self.errno.set(errno);
    }

    fn strikes(&self, operation: Operation) -> bool {
        match self.armed.get() {
            Some((armed, 0)) if armed == operation => {
                self.armed.set(None);
                true
            }
            Some((armed, good)) if armed == operation => {
                self.armed.set(Some((armed, good - 1)));
                false
            }
            _ => false,
        }
    }
}

impl Device for FailNth {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        if !self.strikes(Operation::Read) {
            return self.inner.read(offset, buffer);
        }
        let error = DeviceError::Io { errno: self.errno.get(), offset, len: buffer.len() as u64 };
        Box::pin(async move { (Err(error), buffer) })
    }

    fn write(&self, offset: u64, mut buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        if !self.strikes(Operation::Write) {
            return self.inner.write(offset, buffer);
        }
        let error = DeviceError::Io { errno: self.errno.get(), offset, len: buffer.len() as u64 };
        let blocks = buffer.len() / BLOCK_BYTES as usize;
        let tail = buffer.split_off(blocks / 2 * BLOCK_BYTES as usize);
        Box::pin(async move {
            let (_, head) = self.inner.write(offset, buffer).await;
            (Err(error), Buffer::join(vec![head, tail]))
        })
    }

    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        if !self.strikes(Operation::Sync) {
            return self.inner.sync();
        }
        let errno = self.errno.get();
        Box::pin(async move { Err(DeviceError::Sync { errno }) })
    }

    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        if !self.strikes(Operation::Discard) {
            return self.inner.discard(offset, len);
        }
        let errno = self.errno.get();
        Box::pin(async move { Err(DeviceError::Io { errno, offset, len }) })
    }
}
