//! What is wrong with bytes that came from elsewhere.

/// A message that is not what the protocol allows. The connection it came on is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a frame's head has {got} bytes, not {expected}")]
    HeadLength { expected: usize, got: usize },
    #[error("a frame begins with {got:#010x}, not {expected:#010x}")]
    Magic { expected: u32, got: u32 },
    #[error("protocol version {got} is not spoken here (only {expected})")]
    Version { expected: u16, got: u16 },
    #[error("frame kind {0} is not known")]
    Kind(u16),
    #[error("a body of {len} bytes passes the limit of {most}")]
    BodyTooLarge { len: u64, most: u64 },
    #[error("a body's checksum is {got:#010x}, not {expected:#010x}")]
    Checksum { expected: u32, got: u32 },
    #[error("a body does not decode as {0}")]
    Body(&'static str),
    #[error("the range {offset}+{len} is not one")]
    Range { offset: u64, len: u64 },
}
