//! Frozen layers at the receiving side: built by what comes on the stream, and told of by digests.
//!
//! Invariants
//! - A layer has a name here only once the sender has said that all of it has come, and then it is durable with it.
//! - What is built changes when everything that came before on the stream has ended; the sender sends the next frame when
//!   that is answered.
//! - What is there of a layer whose sender is gone may be another layer's: it goes before anything is built.
//! - A layer that is there under another time, size or place is an error: nothing is built over it.

use super::Receiver;
use drover_base::planted::{Bug, is_planted};
use drover_base::units::{EXTENTS_PER_REGION, region_count};
use drover_base::{IoError, RegionIndex};
use drover_store::{FrozenLayer, StoreError};
use drover_wire::layer::{LayerAnswer, LayerRequest, LayerSpec};
use drover_wire::peer::Answer;
use std::rc::Rc;

/// The layer as it is told.
pub fn spec_of(layer: &FrozenLayer) -> LayerSpec {
    LayerSpec {
        name: layer.name.clone(),
        created_ms: layer.created_ms,
        size_bytes: layer.size_bytes,
        on: layer.on.clone(),
    }
}

/// The snapshots of a side, as both compare them.
pub fn specs_of(layers: &[FrozenLayer]) -> Vec<LayerSpec> {
    let mut specs: Vec<LayerSpec> = layers.iter().map(spec_of).collect();
    specs.sort();
    specs
}

fn failed(error: StoreError) -> IoError {
    match error {
        StoreError::Io(error) => error,
        // What the sender says of its layers contradicts itself, or what is here.
        _ => IoError::Corrupt,
    }
}

impl Receiver {
    pub(super) async fn layer(self: Rc<Self>, sequence: u64, request: LayerRequest) -> Result<Answer, IoError> {
        if request.is_change() {
            self.ended_before(sequence).await;
        }
        self.fence.check()?;
        let answer = match request {
            LayerRequest::Begin { layer, resumes } => self.begin_layer(&layer, resumes).await?,
            LayerRequest::Freeze(spec) => self.freeze_layer(&spec).await?,
            LayerRequest::Head { on, size_bytes } => {
                let is_new = self.volume.restack(on.as_deref(), size_bytes).await.map_err(failed)?;
                LayerAnswer::Begun { is_new }
            }
            LayerRequest::List => LayerAnswer::Snapshots(specs_of(&self.volume.frozen_snapshots())),
            LayerRequest::Next { name, from } => {
                LayerAnswer::Region(self.volume.layer_region(&self.snapshot(&name)?, from)?)
            }
            LayerRequest::Digests { name, region, extents } => self.layer_digests(&name, region, extents).await?,
        };
        self.fence.check()?;
        Ok(Answer::Layer(Box::new(answer)))
    }

    async fn begin_layer(&self, spec: &LayerSpec, resumes: bool) -> Result<LayerAnswer, IoError> {
        match self.volume.built_layer(&spec.name) {
            Some(built) if spec_of(&built) == *spec => Ok(LayerAnswer::Have),
            Some(_) => Err(IoError::Corrupt),
            None => {
                let (on, size_bytes) = (spec.on.as_deref(), spec.size_bytes);
                let is_new = match resumes || is_planted(Bug::LayerOfAnotherKept) {
                    true => self.volume.restack(on, size_bytes).await.map_err(failed)?,
                    false => self.volume.stack_anew(on, size_bytes).await.map(|()| true).map_err(failed)?,
                };
                Ok(LayerAnswer::Begun { is_new })
            }
        }
    }

    async fn freeze_layer(&self, spec: &LayerSpec) -> Result<LayerAnswer, IoError> {
        if !self.volume.is_stacked(spec.on.as_deref(), spec.size_bytes) {
            return Err(IoError::Corrupt);
        }
        self.volume.snapshot_as(&spec.name, spec.created_ms).await.map_err(failed)?;
        Ok(LayerAnswer::Have)
    }

    fn snapshot(&self, name: &str) -> Result<FrozenLayer, IoError> {
        self.volume.frozen_snapshots().into_iter().find(|layer| layer.name == name).ok_or(IoError::Corrupt)
    }

    async fn layer_digests(&self, name: &str, region: RegionIndex, extents: u64) -> Result<LayerAnswer, IoError> {
        let layer = self.snapshot(name)?;
        if region.0 >= region_count(layer.size_bytes) {
            return Err(IoError::Corrupt);
        }
        let mut asked = extents;
        for (at, extent) in region.extents().enumerate() {
            let is_said = !self.volume.layer_masks(&layer, extent)?.all().is_empty();
            asked |= u64::from(is_said) << at;
        }
        let mut digests = Vec::with_capacity(asked.count_ones() as usize);
        for extent in (0..EXTENTS_PER_REGION).filter(|at| asked >> at & 1 == 1).map(|at| region.extent(at as usize)) {
            let content = self.volume.layer_content(&layer, extent).await?;
            let has_data = content.has_data();
            let hash = move || content.digests().extent;
            digests.push(if has_data { self.world.offload(hash).await } else { hash() });
        }
        Ok(LayerAnswer::Digests { extents: asked, digests })
    }
}
