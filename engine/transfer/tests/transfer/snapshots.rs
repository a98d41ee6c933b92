//! Volumes with snapshots: all of them arrive, each as it was, whatever happens on the way.

use crate::clients::Model;
use crate::pair::{Pair, options, run_each};
use crate::side::{Side, VOLUME_BYTES};
use crate::wire::Faults;
use drover_base::ByteRange;
use drover_base::units::REGION_BYTES;
use drover_sim::runtime::Sim;
use drover_store::{FrozenLayer, Unfenced};
use drover_transfer::{OnLinkLoss, Start};
use drover_wire::admin::{SendOptions, SendPhase};
use drover_wire::layer::{LayerRequest, LayerSpec};
use drover_wire::peer::{Operation, Payload};
use std::{rc::Rc, time::Duration};

/// What each snapshot is and shows.
type Seen = Vec<(FrozenLayer, Vec<u8>)>;

async fn seen_from(side: &Side, layer: &FrozenLayer) -> Vec<u8> {
    let mut seen = Vec::new();
    for offset in (0..layer.size_bytes).step_by(REGION_BYTES as usize) {
        let range = ByteRange { offset, len: REGION_BYTES.min(layer.size_bytes - offset) };
        seen.extend_from_slice(&side.volume.read_layer(layer, range).await.unwrap());
    }
    seen
}

async fn all_seen(side: &Side) -> Seen {
    let mut seen = Vec::new();
    for layer in side.volume.frozen_snapshots() {
        let content = seen_from(side, &layer).await;
        seen.push((layer, content));
    }
    seen.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    seen
}

/// A side has exactly these snapshots.
async fn check(side: &Side, seen: &Seen) -> Result<(), String> {
    let told = |seen: &Seen| {
        seen.iter().map(|(l, _)| (l.name.clone(), l.created_ms, l.size_bytes, l.on.clone())).collect::<Vec<_>>()
    };
    let there = all_seen(side).await;
    if told(&there) != told(seen) {
        return Err(format!("{}: {:?} instead of {:?}", side.name, told(&there), told(seen)));
    }
    for ((layer, content), (_, there)) in seen.iter().zip(&there) {
        if let Some(at) = content.iter().zip(there).position(|(a, b)| a != b) {
            return Err(format!("{}: snapshot {} differs at byte {at}", side.name, layer.name));
        }
    }
    Ok(())
}

/// Clients write and trim for a while.
async fn some_work(sim: &Sim, side: &Side, model: &Rc<Model>) {
    model.start(side);
    sim.sleep(Duration::from_millis(15)).await;
    model.stop(side).await;
}

/// A chain of snapshots, the head over the last.
async fn with_chain(sim: &Sim) -> (Side, Rc<Model>) {
    let from = Side::new(sim, "source").await;
    let model = Rc::new(Model::default());
    model.fill(&from).await;
    for name in ["one", "two"] {
        from.volume.snapshot(name).await.unwrap();
        some_work(sim, &from, &model).await;
    }
    (from, model)
}

/// Snapshots on two branches whose common layer nobody names any more, and a trim of what all stand on.
async fn with_branches(sim: &Sim) -> (Side, Rc<Model>) {
    let (from, model) = with_chain(sim).await;
    from.volume.rollback("one").await.unwrap();
    model.adopt(&from.content().await);
    some_work(sim, &from, &model).await;
    from.volume.snapshot("three").await.unwrap();
    from.volume.delete_snapshot("one").await.unwrap();
    from.volume.trim(&Unfenced, 0, 2 << 20, false).await.unwrap();
    model.adopt(&from.content().await);
    from.volume.snapshot("four").await.unwrap();
    some_work(sim, &from, &model).await;
    (from, model)
}

/// Nobody writes: what is sent is what the layers hold, each once.
pub async fn quietly(sim: Sim) -> Result<(), String> {
    let (from, model) = with_branches(&sim).await;
    let (seen, usage) = (all_seen(&from).await, from.volume.travel_usage().await);
    let mut pair = Pair::of(&sim, from, model, options()).await;
    let wire = pair.connect();
    pair.until_synced().await;
    let progress = pair.progress();
    assert_eq!((progress.done_bytes, progress.snapshots), (progress.total_bytes, 3));
    assert!(wire.sent().data_bytes <= usage.valid_bytes, "{:?} of {usage:?}", wire.sent().data_bytes);
    assert!(pair.to.volume.usage().used_bytes <= usage.used_bytes);
    pair.drain_and_compare().await?;
    check(&pair.to, &seen).await?;
    check(&pair.from, &seen).await
}

#[test]
fn snapshots_arrive_and_what_they_share_is_sent_once() {
    run_each(0..8, quietly);
}

/// Links break, sides crash, requests are refused, at any moment.
pub async fn interrupted(sim: Sim) -> Result<(), String> {
    let mut random = sim.generator("interruptions");
    let (from, model) = with_branches(&sim).await;
    let seen = all_seen(&from).await;
    let mut pair = Pair::of(&sim, from, model, options()).await;
    pair.model.start(&pair.from);
    for _ in 0..random.between(2, 6) {
        let wire = pair.connect();
        if random.below(2) == 0 {
            wire.set_faults(Faults { refused_ppm: 30_000, flushes_refused_ppm: 30_000 });
        }
        pair.sleep(Duration::from_micros(random.below(40_000))).await;
        match random.below(5) {
            0 | 1 => pair.receiving_side_crashes().await,
            2 => {
                pair.sending_side_crashes(OnLinkLoss::FallBack).await;
                pair.model.adopt(&pair.from.content().await);
                pair.model.start(&pair.from);
            }
            _ => pair.cut_off().await,
        }
    }
    pair.connect();
    pair.until_synced().await;
    pair.drain_and_compare().await?;
    check(&pair.to, &seen).await?;
    check(&pair.from, &seen).await
}

#[test]
fn snapshots_arrive_through_interruptions() {
    run_each(0..40, interrupted);
}

/// Nothing of the head may arrive among the layers.
pub async fn mirrored_at_once(sim: Sim) -> Result<(), String> {
    let (from, model) = with_branches(&sim).await;
    let seen = all_seen(&from).await;
    let hot_first = sim.generator("kind").below(2) == 0;
    let options = SendOptions { mirror_at_once: true, hot_first, ..options() };
    let mut pair = Pair::of(&sim, from, model, options).await;
    pair.model.start(&pair.from);
    pair.sender.begin_mirror();
    pair.connect();
    if hot_first {
        // It may flip as soon as what stays behind is announced: every layer is whole before that.
        pair.until_phase(SendPhase::Synced).await;
        check(&pair.to, &seen).await?;
        pair.until(|progress| progress.remote_bytes == 0).await;
    }
    pair.until_phase(SendPhase::Synced).await;
    pair.drain_and_compare().await?;
    check(&pair.to, &seen).await
}

#[test]
fn layers_come_before_the_head() {
    run_each(0..12, mirrored_at_once);
}

/// The holder proves every snapshot before the other side is let go; what differs there is found.
pub async fn proven(sim: Sim) -> Result<(), String> {
    let (from, model) = with_chain(&sim).await;
    let seen = all_seen(&from).await;
    let mut pair = Pair::of(&sim, from, model, options()).await;
    pair.connect();
    pair.until_synced().await;
    pair.drain(Duration::from_secs(20)).await.unwrap();
    let mut pair = pair.turn(Start::Clean).await;
    pair.connect();
    pair.model.start(&pair.from);
    pair.until_phase(SendPhase::Synced).await;
    pair.sender.begin_proof();
    let progress = pair.until(|progress| progress.phase == SendPhase::Proven).await;
    let proof = progress.proof.unwrap();
    let regions = VOLUME_BYTES.div_ceil(REGION_BYTES);
    assert_eq!((proof.regions_total, proof.regions_different), (regions * 3, 0));
    check(&pair.from, &seen).await?;
    pair.model.stop(&pair.from).await;

    // The same name, time and place, and another content.
    let two = seen.iter().find(|(layer, _)| layer.name == "two").unwrap().0.clone();
    pair.cut_off().await;
    pair.to.volume.delete_snapshot("two").await.unwrap();
    pair.to.volume.snapshot_as("two", two.created_ms).await.unwrap();
    pair.connect();
    let ended = |progress: &drover_wire::admin::SendProgress| {
        let of =
            |proof: &drover_wire::admin::Proof| proof.regions_equal + proof.regions_different == proof.regions_total;
        progress.proof.as_ref().is_some_and(of)
    };
    let proof = pair.until(ended).await.proof.unwrap();
    if proof.regions_different == 0 {
        return Err(format!("a snapshot is not what it was, and {proof:?}"));
    }
    // One is missing.
    pair.cut_off().await;
    pair.to.volume.delete_snapshot("one").await.unwrap();
    pair.connect();
    pair.until(|progress| progress.proof.as_ref().is_some_and(|proof| proof.regions_different > 0)).await;
    assert_ne!(pair.progress().phase, SendPhase::Proven);
    Ok(())
}

#[test]
fn a_snapshot_that_differs_is_found() {
    run_each(0..4, proven);
}

/// One sender left half of layer `a` behind, and the next one begins with `b`, of the same size at the same place.
pub async fn left_half_built(sim: Sim) -> Result<(), String> {
    let pair = Pair::new(&sim, options()).await;
    let spec = |name: &str| LayerSpec { name: name.into(), created_ms: 5, size_bytes: VOLUME_BYTES, on: None };
    let begin = |name| LayerRequest::Begin { layer: spec(name), resumes: false };
    let write =
        Operation::Write { offset: 8192, data: Payload::plain(vec![7; 4096].into()), fua: false, replay: false };
    let sent = [
        Operation::Layer(Box::new(begin("a"))),
        write,
        Operation::Layer(Box::new(begin("b"))),
        Operation::Layer(Box::new(LayerRequest::Freeze(spec("b")))),
    ];
    for (sequence, operation) in (1..).zip(sent) {
        pair.receiver.handle(sequence, operation).await.map_err(|error| error.to_string())?;
    }
    let [(_, content)] = &all_seen(&pair.to).await[..] else { return Err("not one snapshot".into()) };
    if content.iter().all(|byte| *byte == 0) { Ok(()) } else { Err("b shows what was written to a".into()) }
}

#[test]
fn half_a_layer_is_not_taken_for_another() {
    run_each(0..1, left_half_built);
}

/// What no volume has is refused; it does not end the node.
#[test]
fn a_layer_s_digests_are_asked_within_it() {
    run_each(0..1, async |sim| {
        let pair = Pair::new(&sim, options()).await;
        pair.to.volume.snapshot("s").await.unwrap();
        for region in [3, u64::MAX] {
            let asked =
                LayerRequest::Digests { name: "s".into(), region: drover_base::RegionIndex(region), extents: 1 };
            let answer = pair.receiver.handle(1 + region.min(5), Operation::Layer(Box::new(asked))).await;
            assert!(answer.is_err(), "{answer:?}");
        }
        Ok(())
    });
}
