//! Devices of a tier: aligned buffers, the [`Device`] trait, io_uring with O_DIRECT, and a simulated
//! device with fault layers. The only crate that opens tier devices.

mod buffer;
mod device;
pub mod fault;
pub mod loop_device;
mod part;
pub mod sim;
mod uring;

#[cfg(test)]
mod contract;

pub use buffer::Buffer;
pub use device::{DEVICE_REQUEST_BYTES_MAX, Device, DeviceError};
pub use part::Part;
pub use uring::{DeviceHandle, KernelError, OpenError, UringDevice, check_kernel, run};
