//! The error numbers of the protocol.

use drover_base::IoError;

/// Why a request failed, as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    Shutdown = 108,
}

impl Errno {
    /// A number that the protocol does not name counts as `Invalid`, as it asks clients to do.
    pub fn from_wire(number: u32) -> Self {
        match number {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// The number for `error` of a request; `writes` tells whether it was one that stores bytes, since
    /// the protocol asks for another number when such a request passes the export's end.
    pub fn of(error: &IoError, writes: bool) -> Self {
        match error {
            IoError::OutOfRange { .. } if writes => Self::NoSpace,
            IoError::OutOfRange { .. } => Self::Invalid,
            IoError::TooLarge { .. } => Self::Overflow,
            IoError::NoSpace => Self::NoSpace,
            IoError::NotFast => Self::NotSupported,
            // The router retries these; one that arrives here ran out of time.
            IoError::Fenced { .. } | IoError::Moved { .. } | IoError::NotHere | IoError::Disconnected => Self::Io,
            IoError::Poisoned | IoError::Device | IoError::Corrupt => Self::Io,
            IoError::TimedOut | IoError::WritesLost | IoError::Remote => Self::Io,
        }
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Perm => "operation not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "cannot allocate memory",
            Self::Invalid => "invalid argument",
            Self::NoSpace => "no space left on device",
            Self::Overflow => "value too large",
            Self::NotSupported => "operation not supported",
            Self::Shutdown => "the server is shutting down",
        })
    }
}
