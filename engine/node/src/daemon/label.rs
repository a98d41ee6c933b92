//! Opens the devices of the tiers, each only if it is the tier's own.
//!
//! ```text
//!  device  | label, 4 KiB | zeros to 64 KiB | slots …
//! ```
//! Orders that must hold
//! - Everything is checked before anything is changed: of one tier that is refused, no other is touched.
//! - A new tier is recorded as new, then labelled, then recorded as labelled. A start that was cut off in between goes on
//!   with the next; from then on the tier is never opened without its label.
//! - What is not known to be the node's own is not written to, unless the settings say so.

use super::tiers::{self, Placed, TierError};
use crate::config::TierConfig;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::EXTENT_BYTES;
use drover_base::{NodeId, World};
use drover_disk::{Buffer, Device, DeviceError, OpenError, UringDevice};
use drover_store::meta::Meta;
use drover_wire::tier_label::{LABEL_BYTES, TierLabel};

/// Bytes before the slots: one extent, so that slots lie as aligned as the device does.
pub const HEADER_BYTES: u64 = EXTENT_BYTES;

/// What must be zero at the start of a device that is taken as empty. Partition tables and file systems begin there.
const EMPTY_BYTES: u64 = 1 << 20;

/// A tier's device, with its header.
pub struct OpenTier {
    pub tier: TierConfig,
    pub device: UringDevice,
}

/// The tiers by device number, open and locked.
pub async fn open_tiers(
    world: &World,
    node: &NodeId,
    meta: &dyn Meta,
    settings: &[TierConfig],
) -> Result<Vec<OpenTier>, TierError> {
    let mut placed = tiers::placed(world, meta, settings).await?;
    let (mut open, mut unlabelled, mut checked) = (Vec::new(), Vec::new(), Vec::new());
    for (index, place) in placed.iter().enumerate() {
        let (has_label, device) = check(node, place).await?;
        if !has_label {
            unlabelled.push(index);
        }
        checked.push(device);
    }
    for (place, checked) in placed.iter().zip(checked) {
        let device = checked.map_or_else(|| open_file(&place.tier), Ok)?;
        open.push(OpenTier { tier: place.tier.clone(), device });
    }
    tiers::record(meta, &placed).await?;
    for index in unlabelled {
        let Placed { tier, id, .. } = &placed[index];
        let label = TierLabel { node: node.clone(), tier: tier.name.clone(), id: *id, size_bytes: tier.size_bytes };
        write_label(&open[index].device, &label).await.map_err(|error| failed(tier, error))?;
        placed[index].is_labelled = true;
    }
    tiers::record(meta, &placed).await?;
    Ok(open)
}

/// Whether the tier's device has its label, with the size it has now; and the device, if it is a block device: it stays
/// taken from here on. Refuses a device that is not the tier's, and one that the tier may not take. Changes nothing.
async fn check(node: &NodeId, place: &Placed) -> Result<(bool, Option<UringDevice>), TierError> {
    let tier = &place.tier;
    let is_there = place.is_labelled || tier.is_block_device || tier.device.exists();
    if !is_there {
        return Ok((false, None));
    }
    let device = UringDevice::open(&tier.device).map_err(|error| not_open(tier, error))?;
    if tier.is_block_device {
        let (has, wanted) = (device.size_bytes(), tier.size_bytes.saturating_add(HEADER_BYTES));
        if has < wanted {
            return Err(not_open(tier, OpenError::TooSmall { path: tier.device.clone(), has, wanted }));
        }
    }
    let has_label = has_label(node, place, &device).await?;
    Ok((has_label, tier.is_block_device.then_some(device)))
}

async fn has_label(node: &NodeId, place: &Placed, device: &UringDevice) -> Result<bool, TierError> {
    let tier = &place.tier;
    let start = start_of(device).await.map_err(|error| failed(tier, error))?;
    let (name, path) = (tier.name.clone(), tier.device.clone());
    let found = match start.get(..LABEL_BYTES).map_or(Ok(None), TierLabel::decode) {
        Ok(found) => found,
        Err(_) if !place.is_labelled && tier.overwrite => None,
        Err(error) => return Err(TierError::BadLabel { name, path, error }),
    };
    let is_own = |label: &TierLabel| label.node == *node && label.tier == tier.name && label.id == place.id;
    if place.is_labelled && is_planted(Bug::LabelNotChecked) {
        return Ok(true);
    }
    if place.is_labelled {
        let label = found.ok_or_else(|| TierError::NoLabel { name: name.clone(), path: path.clone() })?;
        if !is_own(&label) {
            return Err(TierError::Exchanged { name, path, found: show(&label) });
        }
        let (has, recorded) = (device.size_bytes(), place.recorded_bytes.saturating_add(HEADER_BYTES));
        if has < recorded {
            return Err(TierError::Cut { name, path, has, recorded });
        }
        return Ok(label.size_bytes == tier.size_bytes);
    }
    match found {
        _ if tier.overwrite => {}
        // Left by a start that was cut off.
        Some(label) if is_own(&label) => {}
        Some(label) if label.node == *node && label.tier == tier.name => {
            return Err(TierError::Unknown { name, path });
        }
        Some(label) => return Err(TierError::Taken { name, path, found: show(&label) }),
        None if start.iter().all(|byte| *byte == 0) => {}
        None => return Err(TierError::NotEmpty { name, path }),
    }
    Ok(false)
}

fn open_file(tier: &TierConfig) -> Result<UringDevice, TierError> {
    let size_bytes = tier.size_bytes.saturating_add(HEADER_BYTES);
    let opened = match tier.sparse {
        true => UringDevice::open_or_create(&tier.device, size_bytes),
        false => UringDevice::open_or_allocate(&tier.device, size_bytes),
    };
    opened.map_err(|error| not_open(tier, error))
}

async fn start_of(device: &UringDevice) -> Result<Buffer, DeviceError> {
    let len = device.size_bytes().min(EMPTY_BYTES);
    let (result, start) = device.read(0, Buffer::for_read(len as usize)).await;
    result.map(|()| start)
}

/// Writes the label, and zeros behind it, durably.
async fn write_label(device: &UringDevice, label: &TierLabel) -> Result<(), DeviceError> {
    let mut header = Buffer::zeroed(HEADER_BYTES as usize);
    header[..LABEL_BYTES].copy_from_slice(&label.encode());
    device.write(0, header).await.0?;
    device.sync().await
}

fn show(label: &TierLabel) -> String {
    format!("tier {} of {} ({:032x})", label.tier, label.node, label.id)
}

fn not_open(tier: &TierConfig, error: OpenError) -> TierError {
    TierError::Device { name: tier.name.clone(), error }
}

fn failed(tier: &TierConfig, error: DeviceError) -> TierError {
    TierError::Label { name: tier.name.clone(), path: tier.device.clone(), error }
}

#[cfg(test)]
pub(crate) mod tests;
