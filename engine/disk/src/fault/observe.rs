//! Tells a closure of what a device does, at the moments where a crash test wants to look.

use crate::{Buffer, Device, DeviceError};
use drover_base::LocalFuture;
use std::rc::Rc;

/// A moment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sync was asked for and has not begun.
    SyncBegins,
    /// A sync has ended and is not yet answered.
    SyncEnds { is_ok: bool },
    /// A write has ended and is not yet answered.
    WriteEnds { offset: u64, len: u64, is_ok: bool },
    /// A discard was asked for and has not begun.
    DiscardBegins { offset: u64, len: u64 },
    /// A discard has ended and is not yet answered.
    DiscardEnds { offset: u64, len: u64, is_ok: bool },
}

/// Calls the observer at every [`Event`] and changes nothing.
pub struct Observe {
    inner: Rc<dyn Device>,
    observer: Box<dyn Fn(Event)>,
}

impl Observe {
    pub fn new(inner: Rc<dyn Device>, observer: impl Fn(Event) + 'static) -> Self {
        Self { inner, observer: Box::new(observer) }
    }
}

impl Device for Observe {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        self.inner.read(offset, buffer)
    }

    fn write(&self, offset: u64, buffer: Buffer) -> LocalFuture<'_, (Result<(), DeviceError>, Buffer)> {
        Box::pin(async move {
            let (result, buffer) = self.inner.write(offset, buffer).await;
            (self.observer)(Event::WriteEnds { offset, len: buffer.len() as u64, is_ok: result.is_ok() });
            (result, buffer)
        })
    }

    fn sync(&self) -> LocalFuture<'_, Result<(), DeviceError>> {
        (self.observer)(Event::SyncBegins);
        let sync = self.inner.sync();
        Box::pin(async move {
            let result = sync.await;
            (self.observer)(Event::SyncEnds { is_ok: result.is_ok() });
            result
        })
    }

    fn discard(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<(), DeviceError>> {
        (self.observer)(Event::DiscardBegins { offset, len });
        let discard = self.inner.discard(offset, len);
        Box::pin(async move {
            let result = discard.await;
            (self.observer)(Event::DiscardEnds { offset, len, is_ok: result.is_ok() });
            result
        })
    }
}
