//! Nodes are emptied, whatever happens meanwhile.

use super::cluster::{Cluster, node};
use super::migrations::take_snapshot;
use crate::config::{DRAIN_FAILURES_MAX, DRAIN_TARGET_MOVES_MAX};
use crate::{Control, Once};
use drover_types::{
    Action, ApiError, CommitPolicy, CreateExport, CreateVolume, Drain, DrainNode, DrainState, ErrorCode,
    MigrationOptions, Phase, StartMigration,
};
use std::{collections::BTreeMap, rc::Rc, time::Duration};

/// Nodes a, b and c; a holds `v`, which a client writes to, and so many others.
fn cluster(seed: u64, others: usize) -> Rc<Cluster> {
    let cluster = Cluster::new(seed);
    cluster.add_node("c");
    for index in 0..others {
        create(&cluster, &format!("w{index}"), "a").unwrap();
    }
    cluster.start_client();
    // Until each node has reported what it holds.
    cluster.sim.run_for(Duration::from_secs(5));
    cluster
}

fn create(cluster: &Rc<Cluster>, name: &str, node: &str) -> Result<(), ApiError> {
    let request = CreateVolume { name: name.into(), size_bytes: 1 << 20, node: node.into(), tenant: None };
    cluster.run(|control| async move { control.create_volume(request, None).await }).map(|_| ())
}

fn ask(cluster: &Rc<Cluster>, name: &'static str, request: DrainNode) -> Result<Drain, ApiError> {
    let asked = cluster.run(|control| async move { control.drain_node(name, request, None, None).await });
    asked.map(|tagged| tagged.value)
}

fn drain(cluster: &Rc<Cluster>) -> Drain {
    ask(cluster, "a", DrainNode::default()).unwrap()
}

fn shown(control: &Control) -> Drain {
    control.show_drain("a").unwrap().value
}

fn look(cluster: &Cluster) -> Drain {
    cluster.look(shown).expect("the control plane runs")
}

fn wait_drained(cluster: &Rc<Cluster>) -> Drain {
    cluster.wait("a to be drained", |control| {
        control.show_drain("a").is_ok_and(|drain| drain.value.state == DrainState::Drained)
    });
    look(cluster)
}

/// Until every node has been told of every end.
fn wait_clean(cluster: &Rc<Cluster>) {
    cluster.wait("the clean-up", |control| {
        let migrations = control.list_migrations(None).unwrap();
        migrations.iter().all(|migration| migration.value.cleanup_pending.is_empty())
    });
}

fn holder(cluster: &Cluster, name: &str) -> String {
    cluster.look(|control| control.show_volume(name).unwrap().value.holder).unwrap()
}

/// Nothing of any volume is left there, and the client has lost nothing.
fn check_empty(cluster: &Rc<Cluster>) {
    let kept = cluster.disk(&node("a")).borrow().len();
    assert_eq!(kept, 0, "seed {}: copies are left at a", cluster.sim.seed());
    let held = cluster.look(|control| control.show_node("a").unwrap().value.volumes_held);
    assert_eq!(held, Some(0));
    cluster.check_end(&holder(cluster, "v"));
}

/// Unfinished migrations by their destinations, those that wait for a person aside.
fn under_way(control: &Control) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for migration in control.list_migrations(None).unwrap().into_iter().map(|tagged| tagged.value) {
        if !migration.phase.is_final() && !migration.needs_you {
            *count.entry(migration.destination).or_default() += 1;
        }
    }
    count
}

#[test]
fn a_node_is_drained_to_zero_a_few_moves_at_a_time() {
    for (seed, parallel) in [(0, None), (1, Some(1)), (2, Some(16))] {
        let cluster = cluster(seed, 7);
        let request = CreateExport { volume: "v".into(), node: "a".into(), name: None, workload: None };
        cluster.run(|control| async move { control.create_export(request, None).await }).unwrap();
        let begun = ask(&cluster, "a", DrainNode { parallel, ..DrainNode::default() }).unwrap();
        assert_eq!((begun.state, begun.volumes_left, begun.exports), (DrainState::Running, 8, vec!["v".to_owned()]));
        let refused = create(&cluster, "new", "a").unwrap_err();
        assert_eq!(refused.code, ErrorCode::NodeCordoned, "volumes that are made meanwhile go elsewhere");
        let most = parallel.unwrap_or(2) as usize;
        cluster.wait("a to be drained", |control| {
            let (drain, moves) = (shown(control), under_way(control));
            assert!(moves.values().sum::<usize>() <= most, "{moves:?}");
            assert!(moves.values().all(|count| *count <= DRAIN_TARGET_MOVES_MAX), "{moves:?}");
            assert!(drain.volumes_moved + drain.volumes_left >= 8 && drain.volumes_left <= 8, "{drain:?}");
            drain.state == DrainState::Drained
        });
        let drained = look(&cluster);
        assert_eq!((drained.volumes_left, drained.volumes_moved, drained.bytes_left), (0, 8, 0), "{drained:?}");
        check_empty(&cluster);
        let holders: Vec<String> = (0..7).map(|index| holder(&cluster, &format!("w{index}"))).collect();
        let spread =
            parallel == Some(1) || holders.iter().any(|name| name == "b") && holders.iter().any(|name| name == "c");
        assert!(spread, "{holders:?}");
        assert_eq!(look(&cluster).exports, ["v"], "it goes on as a gateway");
    }
}

/// longhorn#7713: an evacuation that was under way when something died was stuck, or began anew and again.
#[test]
fn a_drain_goes_on_over_restarts_and_moves_each_volume_once() {
    for seed in 0..15 {
        let cluster = cluster(seed, 4);
        drain(&cluster);
        let mut chance = cluster.generator("restarts");
        for _ in 0..4 {
            cluster.sim.run_for(Duration::from_millis(chance.below(6_000)));
            match chance.below(3) {
                0 => cluster.restart_node("b"),
                _ => cluster.restart_control(),
            }
        }
        wait_drained(&cluster);
        check_empty(&cluster);
        let kinds = cluster.kinds();
        let begun = kinds.iter().filter(|kind| *kind == "migration.planned").count();
        let failed = kinds.iter().filter(|kind| *kind == "node.drain_failed").count();
        assert_eq!(begun, 5 + failed, "seed {seed}: {kinds:?}");
        assert_eq!(kinds.iter().filter(|kind| *kind == "node.drained").count(), 1, "seed {seed}");
    }
}

#[test]
fn a_target_that_dies_for_good_is_replaced() {
    let cluster = cluster(3, 4);
    drain(&cluster);
    cluster.wait("a move to b", |control| under_way(control).contains_key("b"));
    cluster.kill_node("b");
    // As long as a migration waits for its destination to return.
    cluster.sim.run_for(Duration::from_secs(600));
    wait_drained(&cluster);
    let ended = cluster.look(|control| control.list_volumes(None).iter().all(|volume| volume.value.holder != "a"));
    assert_eq!(ended, Some(true));
    cluster.start_node("b");
    wait_clean(&cluster);
    check_empty(&cluster);
    assert!(cluster.kinds().contains(&"node.drain_failed".to_owned()));
}

/// A flip to a node that dies at once is undone, which is a failure of the move and nobody's wish.
#[test]
fn a_target_that_dies_after_the_flip_is_replaced() {
    let cluster = cluster(4, 0);
    let only_b = DrainNode { to: Some(vec!["b".into()]), ..DrainNode::default() };
    ask(&cluster, "a", only_b).unwrap();
    cluster
        .wait("the flip", |control| shown(control).moves.first().is_some_and(|moving| moving.phase == Phase::Settling));
    cluster.kill_node("b");
    cluster.wait("the way back", |control| shown(control).waiting.first().is_some_and(|waiting| waiting.failures == 1));
    let drain = look(&cluster);
    assert_eq!((drain.state, drain.waiting[0].error.is_some()), (DrainState::Running, true), "{drain:?}");
    let wider = DrainNode { to: Some(vec!["b".into(), "c".into()]), ..DrainNode::default() };
    ask(&cluster, "a", wider).unwrap();
    wait_drained(&cluster);
    assert_eq!(holder(&cluster, "v"), "c");
    cluster.start_node("b");
    wait_clean(&cluster);
    check_empty(&cluster);
}

/// harvester#8285, kubevirt#17544: an evacuation that could not go on told nobody why.
#[test]
fn what_no_node_takes_is_told_and_all_the_rest_is_moved() {
    let cluster = cluster(5, 3);
    cluster.sim.run_for(Duration::from_secs(5));
    for name in ["b", "c"] {
        cluster.set_habits(name, |habits| habits.free_bytes = 1000);
    }
    cluster.sim.run_for(Duration::from_secs(5));
    drain(&cluster);
    cluster.wait("the rest to be moved", |control| shown(control).volumes_moved == 3);
    cluster.sim.run_for(Duration::from_secs(60));
    let stuck = look(&cluster);
    assert_eq!((stuck.volumes_left, stuck.moves.len(), stuck.needs_you, stuck.eta_s), (1, 0, true, None), "{stuck:?}");
    let waiting = &stuck.waiting[0];
    assert_eq!((waiting.volume_name.as_str(), waiting.failures), ("v", 0));
    let why = waiting.error.as_ref().unwrap();
    assert_eq!(why.code, ErrorCode::NoSpace);
    assert!(why.cause.as_ref().is_some_and(|cause| cause.contains("1000 bytes free")), "{why:?}");
    assert_eq!(cluster.kinds().iter().filter(|kind| *kind == "node.drain_waits").count(), 1, "told once");
    cluster.set_habits("c", |habits| habits.free_bytes = 1 << 30);
    wait_drained(&cluster);
    assert_eq!(holder(&cluster, "v"), "c");
    check_empty(&cluster);
}

#[test]
fn without_any_target_a_drain_waits_for_one() {
    let cluster = cluster(6, 0);
    cluster.kill_node("b");
    cluster.kill_node("c");
    cluster.sim.run_for(Duration::from_secs(15));
    drain(&cluster);
    cluster.wait("what it waits for", |control| shown(control).needs_you);
    assert_eq!(look(&cluster).waiting[0].error.as_ref().unwrap().code, ErrorCode::NodeUnreachable);
    cluster.start_node("c");
    wait_drained(&cluster);
    check_empty(&cluster);
}

/// The snapshots of a volume went with the copy that they were in, so such volumes waited for a person.
#[test]
fn a_volume_with_snapshots_moves_with_them() {
    let cluster = cluster(7, 1);
    take_snapshot(&cluster);
    cluster.sim.run_for(Duration::from_secs(5));
    drain(&cluster);
    wait_drained(&cluster);
    assert!(!look(&cluster).needs_you);
    check_empty(&cluster);
}

#[test]
fn a_cancelled_drain_begins_nothing_and_throws_nothing_away() {
    let cluster = cluster(8, 6);
    drain(&cluster);
    cluster.wait("two moves", |control| shown(control).moves.len() == 2);
    let cancelled = cluster.run(|control| async move { control.cancel_drain("a", None, None).await }).unwrap().value;
    assert_eq!((cancelled.state, cancelled.moves.len()), (DrainState::Cancelled, 2));
    cluster.wait("their ends", |control| shown(control).moves.is_empty());
    cluster.sim.run_for(Duration::from_secs(20));
    let rest = look(&cluster);
    assert_eq!((rest.state, rest.volumes_left, rest.volumes_moved), (DrainState::Cancelled, 5, 2), "{rest:?}");
    assert_eq!(create(&cluster, "new", "a").unwrap_err().code, ErrorCode::NodeCordoned);
    cluster.restart_control();
    cluster.wait("the control plane", |control| control.show_drain("a").is_ok());
    cluster.sim.run_for(Duration::from_secs(20));
    assert_eq!(look(&cluster).volumes_left, 5, "nor after a restart");
    drain(&cluster);
    assert_eq!(wait_drained(&cluster).volumes_moved, 7);
    check_empty(&cluster);
}

#[test]
fn a_drain_that_is_late_begins_nothing_more() {
    let cluster = cluster(9, 6);
    let late = DrainNode { deadline_ms: Some(1_000), parallel: Some(1), ..DrainNode::default() };
    ask(&cluster, "a", late).unwrap();
    cluster.wait("the deadline", |control| shown(control).state == DrainState::DeadlinePassed);
    cluster.wait("the move under way", |control| shown(control).moves.is_empty());
    cluster.sim.run_for(Duration::from_secs(20));
    let rest = look(&cluster);
    assert_eq!((rest.volumes_moved, rest.volumes_left, rest.parallel), (1, 6, 1), "{rest:?}");
    let again = drain(&cluster);
    assert_eq!((again.state, again.deadline_at_ms, again.parallel), (DrainState::Running, None, 1));
    wait_drained(&cluster);
    check_empty(&cluster);
}

/// kubevirt#14367: a move that somebody cancelled was begun again at once, and again.
#[test]
fn a_move_that_a_person_takes_back_is_not_begun_again_by_itself() {
    let cluster = cluster(10, 0);
    drain(&cluster);
    cluster.wait("the move", |control| shown(control).moves.len() == 1);
    cluster.run(|control| async move { control.act("v", Action::Cancel, None, None).await }).unwrap();
    cluster.wait("its end", |control| shown(control).moves.is_empty());
    cluster.sim.run_for(Duration::from_secs(1_000));
    let rest = look(&cluster);
    assert!(rest.needs_you && rest.waiting[0].next_try_ms.is_none(), "{rest:?}");
    assert_eq!(cluster.kinds().iter().filter(|kind| *kind == "migration.planned").count(), 1);
    drain(&cluster);
    wait_drained(&cluster);
    check_empty(&cluster);
}

/// Tried with growing pauses, then told: neither for ever nor at once.
#[test]
fn a_volume_whose_moves_fail_again_and_again_waits_for_a_person() {
    let cluster = cluster(11, 0);
    for name in ["b", "c"] {
        cluster.set_habits(name, |habits| habits.takes_nothing = true);
    }
    drain(&cluster);
    cluster.sim.run_for(Duration::from_secs(600));
    let rest = look(&cluster);
    assert!(rest.moves.is_empty(), "{rest:?} {:?}", cluster.kinds());
    assert_eq!((rest.waiting[0].failures, rest.needs_you), (DRAIN_FAILURES_MAX, true), "{rest:?}");
    let begun = cluster.kinds().iter().filter(|kind| *kind == "migration.planned").count();
    assert_eq!(begun, DRAIN_FAILURES_MAX as usize);
    assert!(cluster.kinds().contains(&"node.drain_given_up".to_owned()));
    for name in ["b", "c"] {
        cluster.set_habits(name, |habits| habits.takes_nothing = false);
    }
    drain(&cluster);
    wait_drained(&cluster);
    check_empty(&cluster);
}

/// A move that waits for somebody kept its place among those that go on at once, and nothing else moved.
#[test]
fn a_move_that_waits_for_a_person_does_not_hold_up_the_others() {
    let cluster = cluster(12, 4);
    for name in ["b", "c"] {
        cluster.set_habits(name, |habits| habits.rots = true);
    }
    ask(&cluster, "a", DrainNode { parallel: Some(1), ..DrainNode::default() }).unwrap();
    cluster.wait("all others", |control| shown(control).volumes_moved == 4);
    let rest = look(&cluster);
    assert!(rest.needs_you && rest.moves.len() == 1 && rest.moves[0].needs_you, "{rest:?}");
    assert_eq!(rest.state, DrainState::Running);
}

#[test]
fn what_comes_to_the_node_arrives_first_and_leaves_then() {
    let cluster = cluster(13, 1);
    create(&cluster, "coming", "b").unwrap();
    cluster.sim.run_for(Duration::from_secs(3));
    let options = MigrationOptions { commit: CommitPolicy::Manual, ..MigrationOptions::default() };
    let request = StartMigration { volume: "coming".into(), destination: "a".into(), options };
    cluster.run(|control| async move { control.start_migration(request, None).await }).unwrap();
    drain(&cluster);
    cluster.wait("the others", |control| shown(control).volumes_moved == 2);
    cluster.sim.run_for(Duration::from_secs(20));
    let waits = look(&cluster);
    assert_eq!((waits.state, waits.volumes_left, waits.needs_you), (DrainState::Running, 1, true), "{waits:?}");
    cluster.run(|control| async move { control.act("coming", Action::Commit, None, None).await }).unwrap();
    wait_drained(&cluster);
    check_empty(&cluster);
}

#[test]
fn uncordoning_ends_a_drain_and_leaves_moves_under_way_alone() {
    let cluster = cluster(14, 4);
    drain(&cluster);
    cluster.wait("two moves", |control| shown(control).moves.len() == 2);
    let node = cluster.run(|control| async move { control.uncordon_node("a", None, None).await }).unwrap().value;
    assert!(node.cordon.is_none() && node.drain.is_none());
    let gone = cluster.look(|control| control.show_drain("a").map(|_| ())).unwrap();
    assert_eq!(gone.unwrap_err().code, ErrorCode::DrainNotFound);
    cluster.wait("their ends", |control| under_way(control).is_empty());
    cluster.sim.run_for(Duration::from_secs(20));
    assert_eq!(cluster.look(|control| control.show_node("a").unwrap().value.volumes_held), Some(3));
    create(&cluster, "new", "a").unwrap();
}

#[test]
fn a_drain_is_checked_whole_and_asked_once() {
    let cluster = cluster(15, 0);
    let with = |change: fn(&mut DrainNode)| {
        let mut request = DrainNode::default();
        change(&mut request);
        ask(&cluster, "a", request).map(|_| ()).unwrap_err().code
    };
    assert_eq!(with(|request| request.parallel = Some(0)), ErrorCode::InvalidField);
    assert_eq!(with(|request| request.parallel = Some(17)), ErrorCode::InvalidField);
    assert_eq!(with(|request| request.deadline_ms = Some(1)), ErrorCode::InvalidField);
    assert_eq!(with(|request| request.throttle_bytes_per_s = Some(1)), ErrorCode::InvalidField);
    assert_eq!(with(|request| request.to = Some(vec![])), ErrorCode::InvalidField);
    assert_eq!(with(|request| request.to = Some(vec!["z".into()])), ErrorCode::NodeNotFound);
    assert_eq!(with(|request| request.to = Some(vec!["b".into(), "a".into()])), ErrorCode::SameNode);
    cluster.run(|control| async move { control.cordon_node("b", Default::default(), None, None).await }).unwrap();
    assert_eq!(with(|request| request.to = Some(vec!["b".into()])), ErrorCode::NodeCordoned);
    assert!(
        cluster.look(|control| control.show_node("a").unwrap().value.cordon.is_none()).unwrap(),
        "nothing was done"
    );
    let once = Once { key: "k".into(), fingerprint: "f".into() };
    let asked = |once| {
        cluster.run(|control| async move { control.drain_node("a", DrainNode::default(), None, Some(once)).await })
    };
    asked(once.clone()).unwrap();
    cluster.run(|control| async move { control.cancel_drain("a", None, None).await }).unwrap();
    assert_eq!(asked(once).unwrap().value.state, DrainState::Cancelled, "the same request begins nothing anew");
    let version = cluster.look(|control| control.show_drain("a").unwrap().version).unwrap();
    let stale = cluster.run(|control| async move { control.cancel_drain("a", Some(version + 1), None).await });
    assert_eq!(stale.unwrap_err().code, ErrorCode::PreconditionFailed);
}

#[test]
fn nothing_is_left_when_a_node_is_called_drained() {
    assert!((0..5).all(|seed| !is_drained_with_copies(seed)));
}

/// Whether a is called drained while something of a volume is there.
pub fn is_drained_with_copies(seed: u64) -> bool {
    let cluster = cluster(seed, 1);
    drain(&cluster);
    loop {
        cluster.sim.run_for(Duration::from_millis(20));
        if look(&cluster).state == DrainState::Drained {
            return !cluster.disk(&node("a")).borrow().is_empty();
        }
    }
}
