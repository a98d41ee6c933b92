//! What nodes ask.
//!
//! Every answer is made of a state that no commit under way is about to change (see the ledger): a node is never told of
//! a lease while the lease is moving.

use crate::Control;
use crate::config::RPC_DEADLINE;
use crate::leases::{grant, grants_of, volumes_of};
use crate::ledger::StoreFailed;
use crate::table::{Changes, NewEvent, State};
use drover_base::planted::{Bug, is_planted};
use drover_base::world::Connection;
use drover_base::{Epoch, InstanceId, MigrationId, NodeId, VolumeId};
use drover_types::Health;
use drover_types::record::{MigrationRecord, NodeRecord, Stage};
use drover_wire::admin::{ControlReply, ControlRequest, Export, NodeRegistration, NodeRequest, Refusal};
use drover_wire::preamble::{Channel, Preamble};
use std::rc::Rc;

/// Text of an event that a node may send.
const EVENT_TEXT_MAX: usize = 1_000;
const EVENT_KIND_MAX: usize = 40;
/// Leases that one renewal may name.
const RENEWAL_MAX: usize = 65_536;
/// Length of an address that a node may register.
const ADDRESS_MAX: usize = 512;

/// Why a node's request was not carried out.
enum Refused {
    By(Refusal),
    Store(StoreFailed),
}

impl From<StoreFailed> for Refused {
    fn from(failed: StoreFailed) -> Self {
        Self::Store(failed)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::By(refusal)
    }
}

fn conflict(reason: &str) -> Refused {
    Refused::By(Refusal::Conflict { reason: reason.into() })
}

pub async fn serve(control: Rc<Control>, connection: Connection) {
    let world = control.world.clone();
    let preamble = Preamble::new(Channel::Control, control.config.secret);
    drover_wire::rpc::serve(world, preamble, connection, ControlRequest::asker, move |request: ControlRequest| {
        let control = control.clone();
        async move {
            match answer(&control, request).await {
                Ok(reply) => reply,
                Err(Refused::By(refusal)) => ControlReply::Refused(refusal),
                Err(Refused::Store(failed)) => ControlReply::Refused(Refusal::Failed { reason: failed.to_string() }),
            }
        }
    })
    .await;
}

async fn answer(control: &Rc<Control>, request: ControlRequest) -> Result<ControlReply, Refused> {
    match request {
        ControlRequest::Register { node } => register(control, node).await,
        ControlRequest::Renew { node, instance, leases } => renew(control, &node, instance, &leases).await,
        ControlRequest::Lookup { volume } => {
            control.ledger.quiet().await?;
            let state = control.ledger.state();
            // Who asks is not said; the grant is as its holder knows it.
            let found = state.lease(volume).and_then(|lease| grant(&state, volume, &lease.holder));
            let found = found.ok_or_else(|| Refusal::NotFound { what: volume.to_string() })?;
            Ok(ControlReply::Grant(Box::new(found)))
        }
        ControlRequest::CloseWayBack { volume, migration, epoch, instance, change } => {
            set_way_back(control, Word { volume, migration, epoch, instance, change, open: false }).await
        }
        ControlRequest::OpenWayBack { volume, migration, epoch, instance, change } => {
            set_way_back(control, Word { volume, migration, epoch, instance, change, open: true }).await
        }
        ControlRequest::Event { node, kind, volume, text } => {
            if kind.len() > EVENT_KIND_MAX || text.len() > EVENT_TEXT_MAX {
                return Err(Refusal::Invalid { reason: "the event is too long".into() }.into());
            }
            control.nodes.heard(&node);
            control
                .ledger
                .commit(|state, changes| {
                    state.node(&node).ok_or_else(|| conflict("register first"))?;
                    let running = volume.and_then(|volume| state.active_migration(volume));
                    changes.reported(&node, &kind, volume, running.map(|record| record.migration), text);
                    Ok::<_, Refused>(())
                })
                .await?;
            Ok(ControlReply::Done)
        }
    }
}

async fn register(control: &Rc<Control>, node: NodeRegistration) -> Result<ControlReply, Refused> {
    let addresses = [
        Some(&node.admin),
        Some(&node.address.peer),
        Some(&node.address.migration),
        node.nbd_unix.as_ref(),
        node.nbd_tcp.as_ref(),
    ];
    if addresses.into_iter().flatten().any(|address| address.len() > ADDRESS_MAX) {
        return Err(Refusal::Invalid { reason: "an address is too long".into() }.into());
    }
    let record = NodeRecord {
        node: node.address.node,
        instance: node.instance,
        admin: node.admin,
        peer: node.address.peer,
        migration: node.address.migration,
        nbd_unix: node.nbd_unix,
        nbd_tcp: node.nbd_tcp,
    };
    let name = record.node.clone();
    control
        .ledger
        .commit(|state, changes| {
            check_name(control, state, &record)?;
            note_registration(state, changes, record);
            Ok::<_, Refused>(())
        })
        .await?;
    // Nothing waits from here on: the state is that of the commit.
    control.nodes.heard(&name);
    let state = control.ledger.state();
    for volume in volumes_of(&state, &name) {
        if state.lease(volume).is_some_and(|lease| lease.holder == name) {
            control.renewals.renewed(volume);
        }
    }
    let grants = grants_of(&state, &name);
    drop(state);
    control.wake_executors();
    restore_exports(control, &name);
    Ok(ControlReply::Registered { grants })
}

/// Two processes of one name would both serve what the name holds. One that starts again where it was is let in at once: two
/// cannot listen there. Elsewhere the one before has to have fallen silent, also for this process; and only while it is
/// heard of is the name certainly taken.
fn check_name(control: &Control, state: &State, record: &NodeRecord) -> Result<(), Refusal> {
    let Some(known) = state.node(&record.node) else { return Ok(()) };
    if known.instance == record.instance || known.admin == record.admin {
        return Ok(());
    }
    let NodeRecord { node, admin, instance, .. } = known.clone();
    match control.nodes.health(&record.node) {
        Health::Down => Ok(()),
        Health::Up => Err(Refusal::Taken { node, admin, instance }),
        Health::Unknown => {
            Err(Refusal::Conflict { reason: format!("{node} was at {admin} before, and may yet be heard of there") })
        }
    }
}

/// Records the node where it is new or changed. A new start of a node voids what rested on the one before.
pub(crate) fn note_registration(state: &State, changes: &mut Changes, record: NodeRecord) {
    let known = state.node(&record.node);
    if known == Some(&record) {
        return;
    }
    if known.is_none_or(|known| known.instance != record.instance) {
        let text = format!("{} is there ({})", record.node, record.instance);
        changes.event(NewEvent::info("node.registered", text).node(&record.node));
        for migration in state.migrations.values().map(|kept| &kept.record) {
            distrust(state, changes, migration, &record.node);
        }
    }
    changes.put(record);
}

/// A side of a migration restarted after the flip: what it had not synced may be gone. A restarted holder may lack
/// writes that the other side has, so the way back closes before the holder hears of its lease; it opens again by a
/// resync.
fn distrust(state: &State, changes: &mut Changes, migration: &MigrationRecord, node: &NodeId) {
    let after_flip = matches!(migration.stage, Stage::Settling | Stage::FlippingBack | Stage::Returning);
    let takes_part = migration.source == *node || migration.destination == *node;
    if !after_flip || !takes_part {
        return;
    }
    let mut migration = migration.clone();
    migration.proven = false;
    let holds = state.lease(migration.volume).is_some_and(|lease| lease.holder == *node);
    if holds {
        migration.receipt.compared_after_flip |= migration.destination == *node;
        migration.way_back_change = None;
        if std::mem::replace(&mut migration.way_back_open, false) {
            let text = format!("{node} restarted: the way back is closed until both sides were compared");
            changes.event(event(&migration, NewEvent::warning("migration.way_back_closed", text)));
        }
    }
    changes.put(migration);
}

fn event(migration: &MigrationRecord, event: NewEvent) -> NewEvent {
    event.volume(migration.volume).migration(migration.migration)
}

/// Sends the node its exports, and takes back those that it has from before it was forgotten: it may have lost some, and
/// known of more than are recorded.
fn restore_exports(control: &Rc<Control>, node: &NodeId) {
    let (admin, exports) = {
        let state = control.ledger.state();
        let Some(record) = state.node(node) else { return };
        let exports: Vec<Export> = state
            .exports
            .values()
            .filter(|kept| kept.record.node == *node)
            .filter_map(|kept| crate::exports::wire_export(&state, &kept.record))
            .collect();
        (record.admin.clone(), exports)
    };
    let (this, node) = (control.clone(), node.clone());
    control
        .world
        .spawn(async move {
            for export in exports {
                let name = export.name.clone();
                let request = NodeRequest::SetExport { export };
                if let Err(error) = this.nodes.call(&node, &admin, &request, RPC_DEADLINE).await {
                    tracing::warn!(%node, name, %error, "an export was not restored; the next registration tries again");
                }
            }
            take_back_exports(&this, &node, &admin).await;
        })
        .detach();
}

/// What is recorded comes before what is served, so an export that the node reports and nobody has recorded is of before.
async fn take_back_exports(control: &Control, node: &NodeId, admin: &str) {
    let Ok(status) = control.nodes.poll(node, admin).await else { return };
    for Export { name, .. } in &status.exports {
        if control.ledger.state().exports.contains_key(&(node.clone(), name.clone())) {
            continue;
        }
        let request = NodeRequest::RemoveExport { name: name.clone() };
        if let Err(error) = control.nodes.call(node, admin, &request, RPC_DEADLINE).await {
            tracing::warn!(%node, name, %error, "an export was not taken back; the next registration tries again");
        }
    }
}

async fn renew(
    control: &Rc<Control>,
    node: &NodeId,
    instance: InstanceId,
    leases: &[(VolumeId, Epoch)],
) -> Result<ControlReply, Refused> {
    if leases.len() > RENEWAL_MAX {
        return Err(Refusal::Invalid { reason: "a renewal names too many leases".into() }.into());
    }
    control.ledger.quiet().await?;
    let state = control.ledger.state();
    if state.node(node).is_none_or(|known| known.instance != instance) {
        return Err(conflict("register first"));
    }
    control.nodes.heard(node);
    let (mut renewed, mut changed) = (Vec::new(), Vec::new());
    for (volume, epoch) in leases {
        let held = state.lease(*volume).is_some_and(|lease| lease.holder == *node && lease.epoch == *epoch);
        if held || is_planted(Bug::EpochNotChecked) {
            control.renewals.renewed(*volume);
            renewed.push(*volume);
        } else if let Some(grant) = grant(&state, *volume, node) {
            changed.push(grant);
        }
    }
    Ok(ControlReply::Renewed { renewed, changed })
}

/// What the holder says of the way back.
struct Word {
    volume: VolumeId,
    migration: MigrationId,
    epoch: Epoch,
    instance: InstanceId,
    change: u64,
    open: bool,
}

async fn set_way_back(control: &Rc<Control>, word: Word) -> Result<ControlReply, Refused> {
    if is_planted(Bug::WayBackNotRecorded) && !word.open {
        return Ok(ControlReply::Done);
    }
    control.ledger.commit(|state, changes| note_way_back(state, changes, &word)).await?;
    if let Some(executor) = control.executor(word.migration) {
        executor.wake();
    }
    Ok(ControlReply::Done)
}

fn note_way_back(state: &State, changes: &mut Changes, word: &Word) -> Result<(), Refused> {
    let lease = state.lease(word.volume).ok_or_else(|| Refusal::NotFound { what: word.volume.to_string() })?;
    if lease.epoch != word.epoch {
        return Err(Refusal::Epoch { asked: word.epoch, known: lease.epoch }.into());
    }
    let of_leg = lease.leg.as_ref().is_some_and(|leg| leg.migration == word.migration);
    let migration =
        state.migration(word.migration).filter(|_| of_leg).ok_or_else(|| conflict("the migration is over"))?;
    if migration.stage.is_before_flip() {
        return Err(conflict("the volume has not flipped"));
    }
    if state.node(&lease.holder).is_none_or(|holder| holder.instance != word.instance) {
        return Err(conflict("another start of the holder is registered"));
    }
    let last = migration.way_back_change.filter(|(instance, _)| *instance == word.instance).map(|(_, change)| change);
    match last {
        Some(last) if word.change < last => return Err(conflict("a later word about the way back was heard")),
        // The same word again.
        Some(last) if word.change == last && migration.way_back_open == word.open => return Ok(()),
        Some(last) if word.change == last => return Err(conflict("another word of the same number was heard")),
        _ => {}
    }
    let mut migration = migration.clone();
    migration.way_back_change = Some((word.instance, word.change));
    if migration.way_back_open != word.open {
        migration.way_back_open = word.open;
        migration.proven = false;
        let told = if word.open {
            let text = "the other side has everything again: the way back is open";
            NewEvent::info("migration.way_back_opened", text)
        } else {
            let text =
                format!("{} goes on alone: the way back is closed until the other side has everything", lease.holder);
            NewEvent::warning("migration.way_back_closed", text)
        };
        changes.event(event(&migration, told));
    }
    changes.put(migration);
    Ok(())
}
