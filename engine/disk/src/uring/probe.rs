//! Whether this kernel lets us use io_uring, asked once at start.

use io_uring::{IoUring, Probe, opcode};
use std::io;

/// Why devices cannot be used on this kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this kernel has no io_uring; Linux 5.6 or later is needed")]
    Absent,
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
    let ring = IoUring::new(2).map_err(explain)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(explain)?;
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

fn explain(error: io::Error) -> KernelError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => KernelError::Absent,
        Some(libc::EPERM | libc::EACCES) => KernelError::Forbidden,
        _ => KernelError::Io(error),
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
        for (errno, expected) in [(libc::ENOSYS, "5.6"), (libc::EPERM, "seccomp"), (libc::ENOMEM, "set up")] {
            let text = explain(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
