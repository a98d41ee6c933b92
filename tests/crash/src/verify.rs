//! A crash point, opened in a world of its own and compared with the model of its moment.

use crate::{
    Finding,
    content::Content,
    ensure,
    life::{CrashPoint, read_all},
    model::{Frozen, Model, Named, region},
    node::{Node, Parts, Setup, VOLUME},
};
use drover_base::units::EXTENT_BYTES;
use drover_sim::runtime::Sim;
use drover_store::{StoreError, Unfenced, Volume, fsck};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// What snapshots were found to hold, by name. It never changes, at whichever crash point one looks.
pub type Fixed = BTreeMap<String, BTreeMap<u64, Content>>;

/// Opens what the crash left and checks all of it. Returns the model to go on with from there.
pub fn verify(seed: u64, setup: &Setup, point: &CrashPoint, fixed: &mut Fixed) -> Result<Model, Finding> {
    let sim = Sim::new(seed);
    let parts = Parts::new(sim.process("node").world(), &point.images);
    sim.block_on(open_and_check(parts, setup, point, fixed))
        .map_err(|finding| Finding(format!("{}: {finding}", point.label)))
}

fn unexpected(error: StoreError) -> Finding {
    Finding(format!("unexpected: {error}"))
}

async fn open_and_check(parts: Parts, setup: &Setup, point: &CrashPoint, fixed: &mut Fixed) -> Result<Model, Finding> {
    let stored = check_stored(&parts, point).await?;
    let node = parts.open(setup, Rc::new(|_| ())).await.map_err(unexpected)?;
    ensure!(node.slots_used() == stored, "maps name {stored:?} slots, {:?} are used", node.slots_used());
    let volume = node.store.volume(VOLUME).ok_or_else(|| Finding("the volume is gone".into()))?;
    let mut model = point.model.clone();
    model.opened_with(volume.size_bytes())?;
    let contents = read_all(&volume, &model.touched()).await?;
    check_contents(&volume, &model, &contents)?;
    volume.merges_done().await;
    ensure!(read_all(&volume, &model.touched()).await? == contents, "a merge changed the content");
    let snapshots = check_snapshots(&volume, &mut model, fixed).await?;
    check_ending(&node, &volume, &model).await?;
    model.recovered(&contents);
    model.snapshots = snapshots;
    Ok(model)
}

/// The offline check finds nothing. Returns how many slots the maps name.
async fn check_stored(parts: &Parts, point: &CrashPoint) -> Result<Vec<u64>, Finding> {
    let report = fsck::check(&parts.meta, &point.images.slots()).await.map_err(|e| unexpected(e.into()))?;
    ensure!(report.problems.is_empty(), "fsck: {:?}", report.problems);
    Ok(report.slots_used)
}

/// Each block holds what a crash may leave; and in a region that is not active, just what was there before.
fn check_contents(volume: &Volume, model: &Model, contents: &BTreeMap<u64, Content>) -> Result<(), Finding> {
    let active: BTreeSet<u64> = volume.active_regions().into_iter().map(|region| region.0).collect();
    for (block, content) in contents {
        model.check_survivor(*block, content)?;
        let history = model.history(*block);
        ensure!(
            history.is_settled(content) || model.is_rolling_back || active.contains(&region(*block)),
            "block {block} is {content:?}, not {:?}, but region {} is not active",
            history.current(),
            region(*block)
        );
    }
    Ok(())
}

/// Snapshots are those that were made and hold, each time one looks, exactly the same.
async fn check_snapshots(
    volume: &Volume,
    model: &mut Model,
    fixed: &mut Fixed,
) -> Result<BTreeMap<String, Named>, Finding> {
    let names: Vec<String> = volume.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    for (name, named) in &model.snapshots {
        let must_be = matches!(named, Named::There(_));
        ensure!(!must_be || names.contains(name), "snapshot {name} is gone");
    }
    let mut snapshots = BTreeMap::new();
    for name in names {
        let named = model.snapshots.get(&name);
        let named = named.ok_or_else(|| Finding(format!("snapshot {name} is there again")))?;
        let frozen = model.frozen(named);
        volume.rollback(&name).await.map_err(unexpected)?;
        model.went_back_to(&name, volume.size_bytes())?;
        let contents = read_all(volume, &model.touched()).await?;
        for (block, content) in &contents {
            let allowed = frozen.get(block).cloned().unwrap_or_else(|| [Content::zero()].into());
            ensure!(allowed.contains(content), "block {block} of snapshot {name} is {content:?}, not {allowed:?}");
        }
        check_fixed(&name, &contents, fixed)?;
        let exact: Frozen = contents.into_iter().map(|(block, content)| (block, [content].into())).collect();
        snapshots.insert(name, Named::There(exact));
    }
    Ok(snapshots)
}

fn check_fixed(name: &str, contents: &BTreeMap<u64, Content>, fixed: &mut Fixed) -> Result<(), Finding> {
    // A block that nothing had touched at an earlier look was zero then.
    let before = fixed.entry(name.into()).or_insert_with(|| contents.clone());
    for (block, content) in contents {
        let known = before.entry(*block).or_insert_with(|| content.clone());
        ensure!(known == content, "block {block} of snapshot {name} was {known:?} and is {content:?}");
    }
    Ok(())
}

/// Deleting all snapshots changes nothing that is read, loses no slot and names none twice; deleting the
/// volume gives all of them back.
async fn check_ending(node: &Node, volume: &Volume, model: &Model) -> Result<(), Finding> {
    let before = read_all(volume, &model.touched()).await?;
    for snapshot in volume.snapshots() {
        volume.delete_snapshot(&snapshot.name).await.map_err(unexpected)?;
    }
    volume.merges_done().await;
    ensure!(read_all(volume, &model.touched()).await? == before, "deleting snapshots changed the content");
    volume.flush(&Unfenced).await.map_err(|error| Finding(format!("flush: {error}")))?;
    let slots: Vec<u64> = node.tiers.usage().iter().map(|tier| tier.slots_total).collect();
    let report = fsck::check(&node.meta, &slots).await.map_err(|e| unexpected(e.into()))?;
    ensure!(report.problems.is_empty(), "fsck after merging: {:?}", report.problems);
    ensure!(report.layers == 1, "{} layers are left", report.layers);
    let named = volume.usage().used_bytes / EXTENT_BYTES;
    let used = node.slots_used();
    ensure!(report.slots_used == used, "maps name {:?} slots, {used:?} are used", report.slots_used);
    ensure!(used.iter().sum::<u64>() == named, "the volume names {named} slots, {used:?} are used");
    node.store.delete_volume(VOLUME).await.map_err(unexpected)?;
    ensure!(node.slots_used() == [0, 0], "{:?} slots are used by nobody", node.slots_used());
    Ok(())
}
