//! What a stream says of a volume's frozen layers: how they are built at the other side, and how both sides compare them.
//!
//! A layer is built by `Begin`, then writes and zeros of what it adds to the one it stands on, then `Freeze`; the next frame
//! is sent when the answer has come. `Head` comes when all of them are there: what follows is the volume's head.

use crate::WireError;
use drover_base::{RegionIndex, ids::is_name, limits::SNAPSHOTS_MAX};
use serde::{Deserialize, Serialize};

/// As of a snapshot.
const NAME_BYTES_MAX: usize = 63;

/// A frozen layer, told without its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerSpec {
    pub name: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    pub size_bytes: u64,
    /// The layer that it stands on.
    pub on: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerRequest {
    /// What is written from here on belongs to this layer. `resumes`: the sender itself began it on an earlier link, and
    /// knows how much of it has come; otherwise what is there of a layer that was begun goes.
    Begin { layer: LayerSpec, resumes: bool },
    /// All of it is there: it is frozen, durably.
    Freeze(LayerSpec),
    /// What is written from here on belongs to the head.
    Head { on: Option<String>, size_bytes: u64 },
    /// Which snapshots are there?
    List,
    /// The next region, from this one on, of which the snapshot says anything.
    Next { name: String, from: RegionIndex },
    /// Digests of extents of the region as seen from the snapshot: of those in the mask, and of those of which the snapshot
    /// says anything there.
    Digests { name: String, region: RegionIndex, extents: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerAnswer {
    /// It is there, and frozen.
    Have,
    /// It is being built. `is_new`: nothing of it is there.
    Begun {
        is_new: bool,
    },
    /// Ascending by name.
    Snapshots(Vec<LayerSpec>),
    Region(Option<RegionIndex>),
    /// A digest for each extent of the mask, ascending.
    Digests {
        extents: u64,
        digests: Vec<[u8; 32]>,
    },
}

impl LayerSpec {
    fn is_sound(&self) -> bool {
        is_layer_name(&self.name) && self.on.as_deref().is_none_or(is_layer_name)
    }
}

fn is_layer_name(name: &str) -> bool {
    is_name(name, NAME_BYTES_MAX)
}

impl LayerRequest {
    /// Whether it changes what the volume is made of.
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Begin { .. } | Self::Freeze(_) | Self::Head { .. })
    }

    pub(crate) fn checked(self) -> Result<Self, WireError> {
        let is_sound = match &self {
            Self::Begin { layer, .. } | Self::Freeze(layer) => layer.is_sound(),
            Self::Head { on, .. } => on.as_deref().is_none_or(is_layer_name),
            Self::List => true,
            Self::Next { name, .. } | Self::Digests { name, .. } => is_layer_name(name),
        };
        if is_sound { Ok(self) } else { Err(WireError::Body("a layer's name")) }
    }
}

impl LayerAnswer {
    pub(crate) fn checked(self) -> Result<Self, WireError> {
        let is_sound = match &self {
            Self::Snapshots(specs) => specs.len() <= SNAPSHOTS_MAX && specs.iter().all(LayerSpec::is_sound),
            Self::Digests { extents, digests } => digests.len() == extents.count_ones() as usize,
            Self::Have | Self::Begun { .. } | Self::Region(_) => true,
        };
        if is_sound { Ok(self) } else { Err(WireError::Body("an answer about layers")) }
    }
}
