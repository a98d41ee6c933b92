//! Source, destination and control plane are killed at random times, for a moment or for longer than a timed lease,
//! while a volume moves to and fro under load; some moves are cancelled, some rolled back.
//!
//! Afterwards every migration has ended, nothing flushed is lost, nothing acknowledged is lost where the client's
//! connection survived, and no two nodes ever held the volume under one epoch.
//!
//! 50 kills, times `DROVER_SOAK`; `DROVER_SEED` says when and whom.

use drover_e2e::{
    Api, Area, Cluster, Ends, Layout, OnLoss, Random, Writer, assert_one_holder_per_epoch, node_name, number,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const KILLS: u64 = 50;
const LEASE_TTL_MS: u64 = 1_500;
/// Past the lease and its drift.
const LONG_MS: u64 = 2_700;
/// Far above what a migration takes with every deadline of the control plane in it.
const END: Duration = Duration::from_secs(180);
const BLOCKS: u64 = 128;

#[test]
fn kills_at_random_times_lose_nothing_and_every_migration_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout {
        nodes: 3,
        folder: folder.path(),
        tier_size: "1GiB",
        lease_ttl_ms: LEASE_TTL_MS,
        link: None,
        cpus: &[],
        tls: None,
    };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 * MIB, 0);
    let (kills, seed) = (KILLS * number("DROVER_SOAK", 1), number("DROVER_SEED", 1));
    println!("seed {seed}, {kills} kills");
    let filler = Writer::start(&cluster.socket(0), "v", Area { offset: 8 * MIB, blocks: 8192 }, OnLoss::Fail, seed);
    filler.wait_flushes(300);
    let filled = filler.stop();
    // The third node takes no part and is never hit.
    let losses = [OnLoss::Reconnect, OnLoss::Reconnect, OnLoss::Fail];
    let writers: Vec<_> = losses
        .iter()
        .enumerate()
        .map(|(node, on_loss)| {
            let area = Area { offset: node as u64 * 2 * MIB, blocks: BLOCKS };
            Writer::start(&cluster.socket(node), "v", area, *on_loss, seed + node as u64)
        })
        .collect();

    let is_over = AtomicBool::new(false);
    let mut phases = BTreeMap::new();
    let ends = thread::scope(|scope| {
        let api = cluster.api.another();
        let is_over = &is_over;
        let mover = scope.spawn(move || move_about(&api, is_over, Random::new(seed + 100)));
        let over = Ends(is_over);
        let mut random = Random::new(seed);
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(random.below(1_200)));
            assert!(!mover.is_finished(), "the migrations came to a halt");
            let phase = phase_now(&cluster.api);
            *phases.entry(phase).or_insert(0u64) += 1;
            kill_one(&mut cluster, &mut random);
        }
        drop(over);
        mover.join().expect("every migration ends")
    });
    println!("killed in {phases:?}; ended {ends:?}");
    let under_way = kills - phases.get("none").copied().unwrap_or_default();
    assert!(under_way * 2 >= kills, "most kills hit no migration: {phases:?}");
    assert!(ends.len() == 2, "the migrations no longer reach both ends: {ends:?}");

    writers.iter().for_each(|writer| writer.wait_flushes(3));
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    for node in 0..3 {
        written.iter().chain([&filled]).for_each(|written| written.verify(&cluster.socket(node), "v"));
    }
    assert_one_holder_per_epoch(&cluster);
}

fn kill_one(cluster: &mut Cluster, random: &mut Random) {
    let victim = match random.below(3) {
        2 => &mut cluster.control,
        node => &mut cluster.nodes[node as usize],
    };
    let away_ms = if random.below(5) == 0 { LONG_MS } else { random.below(300) };
    victim.kill();
    thread::sleep(Duration::from_millis(away_ms));
    victim.start().expect("it starts again");
}

/// The phase of the migration that is under way, or `none`.
fn phase_now(api: &Api) -> String {
    let shown = api.request("GET", "/v1/migrations?volume=v", None).unwrap_or_default();
    let mut phases = shown["items"].as_array().into_iter().flatten().filter_map(|item| item["phase"].as_str());
    let is_under_way = |phase: &&str| !["committed", "rolled_back", "failed"].contains(phase);
    phases.rfind(is_under_way).unwrap_or("none").into()
}

/// Moves the volume to where it is not, again and again; how often the moves ended how.
fn move_about(api: &Api, is_over: &AtomicBool, mut random: Random) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    let mut count = 0;
    while !is_over.load(Relaxed) {
        count += 1;
        let wish = random.below(4);
        let options = json!({
            "retention_ms": random.below(500),
            "commit": if wish == 1 { "manual" } else { "auto" },
            "cutover": if wish == 2 { "manual" } else { "auto" },
            "mirror_at_once": random.below(2) == 0,
        });
        let id = start(api, &options, &format!("move-{count}"));
        let patience = Duration::from_millis(random.below(1_000));
        *ends.entry(see_through(api, &id, wish, patience)).or_insert(0) += 1;
    }
    ends
}

/// Asks for the same under one key until it is there: an answer may be lost.
fn start(api: &Api, options: &Value, key: &str) -> String {
    let holder = api.wait_for("/v1/leases/v", END, |_| true)["holder"].clone();
    let to = usize::from(holder == node_name(0));
    let body = json!({ "volume": "v", "destination": node_name(to), "options": options });
    let deadline = Instant::now() + END;
    loop {
        match api.request_once("/v1/migrations", &body, key) {
            Ok(migration) => return migration["id"].as_str().expect("an id").into(),
            // A node is away.
            Err(error) => assert!(Instant::now() < deadline, "it cannot be started: {error:?}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Asks for what is wished for until it has ended; how.
fn see_through(api: &Api, id: &str, wish: u64, patience: Duration) -> String {
    let begin = Instant::now();
    let path = format!("/v1/migrations/{id}");
    loop {
        let shown = api.request("GET", &path, None).unwrap_or_default();
        let phase = shown["phase"].as_str().unwrap_or_default().to_owned();
        if ["committed", "rolled_back"].contains(&phase.as_str()) {
            return phase;
        }
        assert_ne!(phase, "failed", "both sides lived on: {shown:#}");
        assert!(begin.elapsed() < END, "it does not end: {shown:#}");
        let action = match (wish, phase.as_str()) {
            (1, "settling") => Some("rollback"),
            (2, "copying" | "converging" | "mirroring") => Some("cancel"),
            _ => None,
        };
        if let Some(action) = action.filter(|_| begin.elapsed() > patience) {
            // Refused where it has moved on; the next look tells.
            let _ = api.request("POST", &format!("{path}/{action}"), Some(&json!({})));
        }
        thread::sleep(Duration::from_millis(20));
    }
}
