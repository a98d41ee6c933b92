//! Devices of a tier: aligned buffers, the [`Device`] trait, io_uring with O_DIRECT, and a simulated
//! device with fault layers. The only crate that opens tier devices.

mod buffer;
mod device;

pub use buffer::Buffer;
pub use device::{Device, DeviceError};
