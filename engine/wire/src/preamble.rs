//! What every connection between processes of a cluster begins with: both sides show that they know its secret.
//!
//! ```text
//!  who connects                                       who listens
//!     opening (nonce a)              ───────────►
//!                                    ◄───────────     challenge (nonce b, proof "listener" over a, b)
//!     answer (proof "connector" over a, b) ──────►
//!     requests                       ───────────►     served from here on
//! ```
//! A step, little-endian, is the head of a message without a body:
//! ```text
//!  0       4         6         7      8        40       72
//!  | magic | version | channel | step | nonce  | proof  |     nonce and proof are zeros where a step has none
//! ```
//! Invariants
//! - The secret is never sent. A proof is BLAKE3, keyed by it, of the first 8 bytes of the step that carries it, a and b.
//! - No proof can be used twice: each side adds a new nonce. None can be sent back: the step is part of it, and the two
//!   sides prove in different steps. None serves on another channel.
//! - Who connects proves nothing to a listener that has not proven itself.
//! - Until it is done, nothing is read from the connection but steps, each bounded by its one length, and it ends by
//!   [`PREAMBLE_DEADLINE`].
//!
//! It tells who is there, not what is sent: where the connection below is not TLS, what follows is neither encrypted nor
//! signed.

use crate::WireError;
use bytes::Bytes;
use drover_base::limits::PREAMBLE_DEADLINE;
use drover_base::planted::{Bug, is_planted};
use drover_base::world::{Connection, Message, World};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `DRVA`.
const MAGIC: u32 = 0x4156_5244;

/// Version 1: the first.
const VERSION: u16 = 1;

const NONCE_BYTES: usize = 32;

type Nonce = [u8; NONCE_BYTES];
type Proof = [u8; blake3::OUT_LEN];

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// A node tells the control plane.
    Control = 1,
    /// The control plane asks a node.
    Admin = 2,
    /// A node talks to another.
    Peer = 3,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Opening = 1,
    Challenge = 2,
    Answer = 3,
}

/// Why a connection did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreambleError {
    #[error("the other side closed it, as one does that has another secret")]
    Closed,
    #[error("the two sides' secrets differ")]
    Secret,
    #[error("the other side did not show the secret within {PREAMBLE_DEADLINE:?}")]
    Deadline,
    #[error("the other side sent more than a step of the preamble")]
    TooLong,
    #[error("the other side began otherwise than members of a cluster do: {0}")]
    Wire(#[from] WireError),
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Kind {
    magic: U32,
    version: U16,
    channel: u8,
    step: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Frame {
    kind: Kind,
    nonce: Nonce,
    proof: Proof,
}

const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES == 72);

/// The preamble of one channel, with the secret that both sides have to know.
#[derive(Clone, Copy)]
pub struct Preamble {
    channel: Channel,
    /// BLAKE3 of the cluster's secret; zeros where none is set.
    secret: [u8; 32],
}

impl Preamble {
    pub fn new(channel: Channel, secret: [u8; 32]) -> Self {
        Self { channel, secret }
    }

    /// The side that connects. When it fails the connection is closed.
    pub async fn open(&self, world: &World, connection: &mut Connection) -> Result<(), PreambleError> {
        let steps = async |connection: &mut Connection| {
            let own = nonce(world);
            self.send(connection, Step::Opening, own, [0; 32]).await?;
            let challenge = self.receive(connection, Step::Challenge).await?;
            self.check(Step::Challenge, &own, &challenge.nonce, challenge.proof)?;
            self.send(connection, Step::Answer, [0; 32], self.proof(Step::Answer, &own, &challenge.nonce)).await
        };
        bounded(world, connection, steps).await
    }

    /// The side that listens. When it fails the connection is closed.
    pub async fn answer(&self, world: &World, connection: &mut Connection) -> Result<(), PreambleError> {
        let steps = async |connection: &mut Connection| {
            let opening = self.receive(connection, Step::Opening).await?;
            let own = nonce(world);
            let proof = self.proof(Step::Challenge, &opening.nonce, &own);
            self.send(connection, Step::Challenge, own, proof).await?;
            let answer = self.receive(connection, Step::Answer).await?;
            self.check(Step::Answer, &opening.nonce, &own, answer.proof)
        };
        bounded(world, connection, steps).await
    }

    fn kind(&self, step: Step) -> Kind {
        Kind { magic: MAGIC.into(), version: VERSION.into(), channel: self.channel as u8, step: step as u8 }
    }

    /// `a` is the connecting side's nonce, `b` the listening side's.
    fn proof(&self, step: Step, a: &Nonce, b: &Nonce) -> Proof {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        hasher.update(self.kind(step).as_bytes()).update(a).update(b);
        *hasher.finalize().as_bytes()
    }

    fn check(&self, step: Step, a: &Nonce, b: &Nonce, shown: Proof) -> Result<(), PreambleError> {
        // These compare in a time that does not tell where they differ.
        let expected = blake3::Hash::from_bytes(self.proof(step, a, b));
        if expected != blake3::Hash::from_bytes(shown) && !is_planted(Bug::SecretNotChecked) {
            return Err(PreambleError::Secret);
        }
        Ok(())
    }

    async fn send(&self, to: &Connection, step: Step, nonce: Nonce, proof: Proof) -> Result<(), PreambleError> {
        let frame = Frame { kind: self.kind(step), nonce, proof };
        let message = Message { head: Bytes::copy_from_slice(frame.as_bytes()), body: Bytes::new() };
        to.sender.send(message).await.map_err(|_| PreambleError::Closed)
    }

    async fn receive(&self, from: &mut Connection, step: Step) -> Result<Frame, PreambleError> {
        let message = match from.receiver.receive().await {
            Ok(Some(message)) => message,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(PreambleError::TooLong),
            Ok(None) | Err(_) => return Err(PreambleError::Closed),
        };
        Ok(self.decode(&message, step)?)
    }

    fn decode(&self, message: &Message, step: Step) -> Result<Frame, WireError> {
        let head = &message.head;
        let frame = Frame::read_from_bytes(head)
            .map_err(|_| WireError::HeadLength { expected: FRAME_BYTES, got: head.len() })?;
        if !message.body.is_empty() {
            return Err(WireError::BodyTooLarge { len: message.body.len() as u64, most: 0 });
        }
        let kind = frame.kind;
        if kind.magic.get() != MAGIC {
            return Err(WireError::Magic { expected: MAGIC, got: kind.magic.get() });
        }
        if kind.version.get() != VERSION {
            return Err(WireError::Version { expected: VERSION, got: kind.version.get() });
        }
        if kind.channel != self.channel as u8 || kind.step != step as u8 {
            return Err(WireError::Kind(u16::from_be_bytes([kind.channel, kind.step])));
        }
        Ok(frame)
    }
}

fn nonce(world: &World) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&world.random.next_u64().to_le_bytes());
    }
    nonce
}

/// Takes the steps within the deadline and the bound on lengths.
async fn bounded(
    world: &World,
    connection: &mut Connection,
    steps: impl AsyncFnOnce(&mut Connection) -> Result<(), PreambleError>,
) -> Result<(), PreambleError> {
    connection.receiver.limit(FRAME_BYTES);
    let taken = world.timeout(PREAMBLE_DEADLINE, steps(connection)).await.unwrap_or(Err(PreambleError::Deadline));
    match taken {
        Ok(()) => connection.receiver.limit(usize::MAX),
        Err(_) => connection.sender.close(),
    }
    taken
}

#[cfg(test)]
mod tests;
