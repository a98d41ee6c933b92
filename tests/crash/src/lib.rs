//! The store under crashes: one volume on simulated devices, a plain model beside it, and a look at what a
//! loss of power would leave at every sync and commit.
//!
//! A run is a chain of lives. In each, rounds of random concurrent requests go to the volume and the model;
//! at every sync and commit, and at some other moments, the images that a crash could leave are taken, each
//! with the model of that moment. Every such crash point is then opened in a world of its own and compared.
//! One of them becomes the start of the next life. The seed decides everything.

pub mod checks;
pub mod clones;
pub mod content;
pub mod directed;
pub mod layers;
pub mod life;
pub mod model;
pub mod node;
pub mod plan;
pub mod remote;
pub mod shards;
pub mod verify;

/// What a checker found wrong, with enough to find the moment again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding(pub String);

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A [`Finding`] unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::Finding(format!($($message)+)));
        }
    };
}
