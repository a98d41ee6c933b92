//! Names of things. Each is its own type, so that one cannot be passed for another.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:016x}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                text.strip_prefix($prefix)
                    .filter(|digits| digits.len() == 16)
                    .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                    .map(Self)
                    .ok_or_else(|| BadId { expected: concat!($prefix, "<16 hex digits>"), text: text.into() })
            }
        }
    };
}

number!(
    /// A volume, for life; its name may be shown instead but is not trusted.
    VolumeId, "vol-");
number!(
    /// A layer of a volume, unique within a node's store.
    LayerId, "layer-");
number!(
    /// One move of a volume from one node to another.
    MigrationId, "mig-");
number!(
    /// One start of a node. A changed instance means: what was not flushed may be lost.
    InstanceId, "inst-");
number!(
    /// A gateway's or sender's session with a node; outlives its connections.
    SessionId, "sess-");

number!(
    /// One change that is asked of a node and must not happen twice, however often it is asked.
    OperationId, "op-");

impl VolumeId {
    /// What a volume and its clones have in common. It decides which shard is their home.
    pub fn kin(self) -> u32 {
        self.0 as u32
    }

    /// Whether the two may share layers.
    pub fn is_kin_of(self, other: Self) -> bool {
        self.kin() == other.kin()
    }

    /// The id of a clone of `origin`, from a number drawn by chance.
    pub fn kin_of(origin: Self, chance: u64) -> Self {
        Self(chance << 32 | u64::from(origin.kin()))
    }
}

/// The number under which one node may apply a volume's writes. It only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("an epoch does not wrap"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which attempt at a migration a report belongs to; a report of an older one changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

/// A node's name: 1 to 63 of `a-z 0-9 - .`, beginning and ending with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    pub fn new(name: &str) -> Result<Self, BadId> {
        if is_name(name, 63) {
            Ok(Self(name.into()))
        } else {
            Err(BadId { expected: "1 to 63 of a-z 0-9 - ., ending in a letter or digit", text: name.into() })
        }
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = BadId;
    fn try_from(name: String) -> Result<Self, BadId> {
        Self::new(&name)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether `name` is a name of nodes, volumes and snapshots: `a-z 0-9 - .`, no longer than
/// `most` bytes, beginning and ending with a letter or digit.
pub fn is_name(name: &str, most: usize) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= most
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(b))
}

/// A text that is not the id it was taken for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not of the form {expected}")]
pub struct BadId {
    pub expected: &'static str,
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back() {
        let id = VolumeId(0x1234_5678_9abc_def0);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("vol-12".parse::<VolumeId>().is_err());
        assert!("mig-123456789abcdef0".parse::<VolumeId>().is_err());
    }

    #[test]
    fn names_are_bounded() {
        for good in ["a", "node-1", "rack.2-node"] {
            assert!(NodeId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a b", "../a", &"a".repeat(64)] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
    }
}
