//! Working out what is to be sent: which blocks hold data when the sender starts.
//!
//! Tracking begins at once, behind the barrier; the volume's map is looked through afterwards, a slice at a time, while
//! clients are served. At that time a block holds data if it did at the start and was not trimmed since, or if it was
//! written since, which marked it anyway.
//!
//! Of a head that stands on layers which are sent before it, what it adds to them is the work: data, and blocks that it hides.
//!
//! Invariant: as long as a region was not looked at it is neither clean nor sent, and the sender is not synced.

use super::{Sender, Start, State};
use drover_base::RegionIndex;
use drover_base::units::region_count;
use drover_store::Volume;
use std::future::poll_fn;
use std::{rc::Rc, task::Poll};

/// Regions looked at before others have their turn: 4,096 extents, some 0.2 ms where they are full.
const SLICE_REGIONS: u64 = 64;

/// Which regions were not looked at yet.
#[derive(Default)]
pub struct Scan {
    next: u64,
    total: u64,
}

impl Scan {
    pub fn of(volume: &Volume, start: Start) -> Self {
        let total = if start == Start::Clean { 0 } else { region_count(volume.size_bytes()) };
        Self { next: 0, total }
    }

    pub fn is_running(&self) -> bool {
        self.next < self.total
    }

    /// The region may hold blocks that are to be sent and are not marked yet.
    pub fn is_open(&self, region: RegionIndex) -> bool {
        (self.next..self.total).contains(&region.0)
    }
}

impl State {
    fn scan_slice(&mut self, volume: &Volume, is_pending: bool) {
        let end = self.scan.total.min(self.scan.next + SLICE_REGIONS);
        if self.layers.is_open() {
            self.scan_over_layers(volume, end, is_pending);
            self.scan.next = end;
            return;
        }
        for region in (self.scan.next..end).map(RegionIndex).filter(|region| volume.region_has_data(*region)) {
            let inside = region.extents().take_while(|extent| extent.offset() < volume.size_bytes());
            // What is only at the other side is no work.
            let held = |extent| volume.data_mask(extent).without(volume.remote_mask(extent));
            inside.for_each(|extent| self.ledger.begin_with(extent, held(extent), is_pending));
        }
        self.scan.next = end;
    }

    fn scan_over_layers(&mut self, volume: &Volume, end: u64, is_pending: bool) {
        const HERE: &str = "what the head stands on stays for as long as its volume migrates";
        let on = self.layers.head_on.clone();
        let mut from = RegionIndex(self.scan.next);
        while let Some(region) = volume.head_region(on.as_ref(), from).expect(HERE).filter(|region| region.0 < end) {
            for extent in region.extents().take_while(|extent| extent.offset() < volume.size_bytes()) {
                let masks = volume.head_masks(on.as_ref(), extent).expect(HERE);
                self.ledger.begin_with(extent, masks.all().without(volume.remote_mask(extent)), is_pending);
            }
            from = RegionIndex(region.0 + 1);
        }
    }
}

impl Sender {
    pub(super) async fn run_scan(self: Rc<Self>) {
        let is_pending = self.config.start == Start::AllData;
        loop {
            {
                let mut state = self.state.borrow_mut();
                if state.stopped {
                    return;
                }
                state.scan_slice(&self.volume, is_pending);
                if !state.scan.is_running() {
                    break;
                }
            }
            give_way().await;
        }
        self.changed.notify_waiters();
    }
}

/// Lets every other task that can run do so first.
pub(super) async fn give_way() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
