//! Whether this kernel lets us use io_uring, asked once at start.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Why devices cannot be used on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this kernel's io_uring is absent or too old; Linux 5.19 or later is needed")]
    TooOld,
    /// By the sysctl kernel.io_uring_disabled, or by a container's seccomp profile.
    #[error("io_uring is forbidden here: see the sysctl kernel.io_uring_disabled and the container's seccomp profile")]
    Forbidden,
    #[error("this kernel's io_uring does not know the operation {0}")]
    Operation(&'static str),
    #[error("io_uring could not be set up: {0}")]
    Io(io::Error),
}

/// Checks that the kernel offers every operation that devices use.
pub fn check_kernel() -> Result<(), KernelError> {
    let ring: IoUring = IoUring::builder().setup_coop_taskrun().build(2).map_err(KernelError::of)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(KernelError::of)?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("fallocate", opcode::Fallocate::CODE),
    ];
    match needed.into_iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(KernelError::Operation(name)),
        None => Ok(()),
    }
}

impl KernelError {
    /// Of the error that setting up a ring ended with.
    pub(super) fn of(error: io::Error) -> Self {
        match error.raw_os_error() {
            // EINVAL: a flag it does not know.
            Some(libc::ENOSYS | libc::EINVAL) => Self::TooOld,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            _ => Self::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_will_do() {
        check_kernel().unwrap();
    }

    #[test]
    fn a_refusal_says_what_to_look_at() {
        for (errno, expected) in [(libc::ENOSYS, "5.19"), (libc::EPERM, "seccomp"), (libc::ENOMEM, "set up")] {
            let text = KernelError::of(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
