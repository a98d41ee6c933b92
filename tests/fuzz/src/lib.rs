//! What comes from strangers and from disks, as functions of any bytes.
//!
//! Each target takes bytes apart as production does, with the same code, and checks what must hold of all of them: no
//! panic, no allocation beyond [`ALLOCATED_BYTES_MAX`] at once, and what was understood encodes to what decodes to the
//! same. `corpus/TARGET` holds inputs: some written by `tests/corpus.rs` from good values, and whatever broke a target
//! once, small. `tests/corpus.rs` runs all of them, and many that are changed by a seed; `make soak` goes on with that for ten
//! minutes a target.

mod allocator;
mod control;
mod nbd;
mod peers;
mod stored;

pub use allocator::{Counting, peak_of};

/// Bytes that one input may have allocated at once: a message's body at its largest, what it is unpacked to, and slack.
/// Lengths are declared with 32 and 64 bits; one that was trusted is far beyond it.
pub const ALLOCATED_BYTES_MAX: usize = 3 * drover_base::limits::REQUEST_BYTES_MAX as usize;

/// Name, function, and inputs made of good values.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 7] = [
    Target { name: "nbd_server", run: nbd::server, seeds: nbd::server_seeds },
    Target { name: "nbd_client", run: nbd::client, seeds: nbd::client_seeds },
    Target { name: "peer_frames", run: peers::frames, seeds: peers::frame_seeds },
    Target { name: "migration_payloads", run: peers::payloads, seeds: peers::payload_seeds },
    Target { name: "control_messages", run: control::messages, seeds: control::message_seeds },
    Target { name: "rest_bodies", run: control::bodies, seeds: control::body_seeds },
    Target { name: "stored_values", run: stored::values, seeds: stored::seeds },
];

pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("{name} is none of the targets"))
}
