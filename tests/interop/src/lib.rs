//! Other people's NBD clients, run against an export of ours.
//!
//! Each `check_…` takes an NBD URI and has the export to itself while it runs: it writes all over it. So the same
//! checks serve an export in memory, a node, a gateway, and a volume that is being migrated meanwhile.

mod fio;
mod libnbd;
mod nbdinfo;
mod qemu;
mod tool;

pub use fio::{FioVerify, check_fio_verify};
pub use libnbd::{AIO_PARALLEL_BYTES, SYNCH_PARALLEL_BYTES, check_aio_parallel, check_synch_parallel};
pub use nbdinfo::{check_nbdcopy, check_nbdinfo, read_whole};
pub use qemu::{check_qemu_img, check_qemu_io};
pub use tool::{Failure, Tool};

/// What a check comes to.
pub type Check = Result<(), Failure>;
