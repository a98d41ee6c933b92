//! An export in memory: what tests serve, and the ceiling that measurements are compared with.

use super::service::{BlockExport, BlockService, Catalog, Offer, Opened, ZeroRequest};
use drover_base::units::BLOCK_BYTES;
use drover_base::{IoError, LocalFuture};
use drover_disk::Buffer;
use drover_wire::nbd::{BlockStatus, ExportFacts, ExportName, Refusal};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::ready,
    ops::Range,
    rc::Rc,
};

/// Bytes in memory. Blocks that were never written, or were trimmed or zeroed, are holes.
pub struct MemoryExport {
    name: String,
    read_only: bool,
    bytes: RefCell<Vec<u8>>,
    /// Which blocks hold data.
    is_data: RefCell<Vec<bool>>,
    /// Every request fails with it, when set.
    fault: RefCell<Option<IoError>>,
    flushes: Cell<u64>,
}

impl MemoryExport {
    pub fn new(name: &str, size_bytes: u64) -> Rc<Self> {
        Self::build(name, size_bytes, false)
    }

    pub fn read_only(name: &str, size_bytes: u64) -> Rc<Self> {
        Self::build(name, size_bytes, true)
    }

    fn build(name: &str, size_bytes: u64, read_only: bool) -> Rc<Self> {
        Rc::new(Self {
            name: name.into(),
            read_only,
            bytes: RefCell::new(vec![0; size_bytes as usize]),
            is_data: RefCell::new(vec![false; size_bytes.div_ceil(BLOCK_BYTES) as usize]),
            fault: RefCell::new(None),
            flushes: Cell::new(0),
        })
    }

    /// From now on every request fails with this error, or none does.
    pub fn set_fault(&self, fault: Option<IoError>) {
        *self.fault.borrow_mut() = fault;
    }

    /// How often a flush, or FUA, was asked for.
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    fn range(&self, offset: u64, len: u64) -> Result<Range<usize>, IoError> {
        if let Some(fault) = &*self.fault.borrow() {
            return Err(fault.clone());
        }
        let size = self.bytes.borrow().len() as u64;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset as usize..end as usize),
            _ => Err(IoError::OutOfRange { offset, len, size }),
        }
    }

    fn note_fua(&self, fua: bool) {
        self.flushes.update(|count| count + u64::from(fua));
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let range = self.range(offset, data.len() as u64)?;
        let blocks = range.start / BLOCK_BYTES as usize..range.end.div_ceil(BLOCK_BYTES as usize);
        self.bytes.borrow_mut()[range].copy_from_slice(data);
        self.is_data.borrow_mut()[blocks].fill(true);
        Ok(())
    }

    fn clear(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let range = self.range(offset, len)?;
        let blocks = range.start.div_ceil(BLOCK_BYTES as usize)..range.end / BLOCK_BYTES as usize;
        self.bytes.borrow_mut()[range].fill(0);
        if blocks.start < blocks.end {
            self.is_data.borrow_mut()[blocks].fill(false);
        }
        Ok(())
    }

    fn runs(&self, offset: u64, len: u64, most: usize) -> Result<Vec<(u64, BlockStatus)>, IoError> {
        let range = self.range(offset, len)?;
        let is_data = self.is_data.borrow();
        let mut runs: Vec<(u64, BlockStatus)> = Vec::new();
        let mut at = range.start as u64;
        while at < range.end as u64 {
            let hole = !is_data[(at / BLOCK_BYTES) as usize];
            let status = BlockStatus { hole, zero: hole };
            let next = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(range.end as u64);
            let count = runs.len();
            match runs.last_mut() {
                Some(last) if last.1 == status => last.0 += next - at,
                _ if count == most => break,
                _ => runs.push((next - at, status)),
            }
            at = next;
        }
        Ok(runs)
    }
}

impl BlockExport for MemoryExport {
    fn facts(&self) -> ExportFacts {
        ExportFacts {
            name: self.name.clone(),
            description: "memory".into(),
            size_bytes: self.bytes.borrow().len() as u64,
            read_only: self.read_only,
        }
    }

    fn read(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<Buffer, IoError>> {
        let data = self.range(offset, len).map(|range| Buffer::from_slice(&self.bytes.borrow()[range]));
        Box::pin(ready(data))
    }

    fn write(self: Rc<Self>, offset: u64, data: Buffer, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        self.note_fua(fua);
        Box::pin(ready(self.store(offset, &data)))
    }

    fn write_zeroes(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        zero: ZeroRequest,
    ) -> LocalFuture<'static, Result<(), IoError>> {
        if zero.fast_only && !zero.may_unmap {
            return Box::pin(ready(Err(IoError::NotFast)));
        }
        self.note_fua(zero.fua);
        let done = if zero.may_unmap {
            self.clear(offset, len)
        } else {
            self.range(offset, len).and_then(|range| self.store(offset, &vec![0; range.len()]))
        };
        Box::pin(ready(done))
    }

    fn trim(self: Rc<Self>, offset: u64, len: u64, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        self.note_fua(fua);
        Box::pin(ready(self.clear(offset, len)))
    }

    fn flush(self: Rc<Self>) -> LocalFuture<'static, Result<(), IoError>> {
        self.note_fua(true);
        Box::pin(ready(self.range(0, 0).map(|_| ())))
    }

    fn cache(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(ready(self.range(offset, len).map(|_| ())))
    }

    fn block_status(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>> {
        Box::pin(ready(self.runs(offset, len, most)))
    }
}

type Offered = (Rc<dyn BlockExport>, Offer);

/// Exports by name.
#[derive(Default)]
pub struct MemoryService {
    exports: RefCell<BTreeMap<String, Offered>>,
    /// Every name that was asked for, in order.
    asked: RefCell<Vec<ExportName>>,
}

impl MemoryService {
    pub fn new(exports: impl IntoIterator<Item = Rc<dyn BlockExport>>) -> Rc<Self> {
        let service = Self::default();
        for export in exports {
            service.exports.borrow_mut().insert(export.facts().name, (export, Offer::default()));
        }
        Rc::new(service)
    }

    /// Offers it no more.
    pub fn withdraw(&self, name: &str) {
        self.exports.borrow_mut().remove(name);
    }

    pub fn asked(&self) -> Vec<ExportName> {
        self.asked.borrow().clone()
    }
}

impl BlockService for MemoryService {
    fn open(&self, name: &ExportName) -> LocalFuture<'_, Result<Opened, Refusal>> {
        self.asked.borrow_mut().push(name.clone());
        let opened = self
            .exports
            .borrow()
            .get(&name.export)
            .map(|(export, offer)| Opened { export: export.clone(), withdrawn: offer.withdrawn() });
        Box::pin(ready(opened.ok_or(Refusal::Unknown)))
    }
}

impl Catalog for MemoryService {
    fn facts(&self, name: &ExportName) -> Result<ExportFacts, Refusal> {
        self.exports.borrow().get(&name.export).map(|(export, _)| export.facts()).ok_or(Refusal::Unknown)
    }

    fn list(&self) -> Vec<(String, String)> {
        let facts = |(export, _): &Offered| export.facts();
        self.exports.borrow().values().map(facts).map(|facts| (facts.name, facts.description)).collect()
    }
}
