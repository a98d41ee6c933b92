//! Migrations from the command line: watched, steered, given up, gone back, committed, and their event log followed.

use crate::up::{Running, Up, random_image};
use serde_json::Value;

const DATA_BYTES: usize = 8 << 20;
/// The copy then takes some seconds: long enough to be looked at and steered.
const THROTTLE: &str = "3MB";

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {value:#}"))
}

/// Starts a move that flips and commits only when told to.
fn start(up: &Up, to: &str, more: &[&str]) -> String {
    let steered = ["migrate", "start", "disk", "--to", to, "--cutover", "manual", "--manual-commit"];
    let migration = up.json(&[&steered, more].concat());
    assert_eq!((&migration["volume_name"], &migration["destination"]), (&"disk".into(), &to.into()));
    migration["id"].as_str().unwrap().into()
}

fn has_action(migration: &Value, action: &str) -> bool {
    migration["actions"].as_array().unwrap().iter().any(|known| known == action)
}

fn until_phase(up: &Up, id: &str, phase: &str) -> Value {
    up.until(&["migrate", "show", id], |migration| migration["phase"] == phase)
}

fn until_mirroring_waits(up: &Up, id: &str) {
    let waits = |migration: &Value| migration["phase"] == "mirroring" && migration["needs_you"] == true;
    let migration = up.until(&["migrate", "show", id], waits);
    assert!(has_action(&migration, "cutover"), "{migration:#}");
}

/// Looks again and again while it copies: what is shown must only grow, fit together, and foretell the end.
fn check_progress(up: &Up, id: &str) {
    let (mut done, mut permille, mut rated) = (0, 0, 0);
    while rated < 10 {
        let seen = up.json(&["migrate", "show", id]);
        let phase = seen["phase"].as_str().unwrap();
        assert!(["planned", "tracking", "copying"].contains(&phase), "it was over too soon: {seen:#}");
        let (done_now, total) = (number(&seen, "bytes_done"), number(&seen, "bytes_total"));
        assert!(done <= done_now && done_now <= total && total <= DATA_BYTES as u64, "{done}: {seen:#}");
        let permille_now = number(&seen, "permille");
        assert!(permille <= permille_now && permille_now <= 1000, "{permille}: {seen:#}");
        (done, permille) = (done_now, permille_now);
        let rate = number(&seen, "rate_bytes_per_s");
        // From the second report of the sender on there is a rate, and there stays one.
        assert!(rate > 0 || rated == 0, "{seen:#}");
        if rate > 0 && phase == "copying" {
            rated += 1;
            assert!(number(&seen, "bytes_left") > 0, "{seen:#}");
            assert!((1..3600).contains(&number(&seen, "eta_s")), "{seen:#}");
        }
    }
    assert!(done > 0);
}

/// Pause, resume and tune, seen by the status and by whoever watches.
fn steer(up: &Up, id: &str) {
    let paused = up.json(&["migrate", "pause", id]);
    assert_eq!((&paused["paused"], has_action(&paused, "resume")), (&true.into(), true));
    assert!(paused["eta_s"].is_null(), "what is paused does not end: {paused:#}");
    let status = up.json(&["status"]);
    assert_eq!(status["healthy"], false);
    assert_eq!(status["needs_you"][0]["command"], format!("drover migrate resume {id}"));
    assert_eq!(status["migrations"][0]["id"], id);
    assert!(up.text(&["status"]).contains("paused"));
    assert_eq!(up.json(&["migrate", "resume", id])["paused"], false);

    let tuned = up.json(&["migrate", "tune", id, "--throttle", "0", "--retention", "0", "--pause-max", "900ms"]);
    let options = &tuned["options"];
    assert!(options["throttle_bytes_per_s"].is_null(), "{options}");
    assert_eq!((number(options, "pause_ms_max"), &options["cutover"]), (900, &"manual".into()));
    assert_eq!(up.fails(&["migrate", "tune", id, "--throttle", "1"]).0, 2);
    assert_eq!(up.fails(&["migrate", "tune", id]).0, 2, "nothing to change is no change");
}

/// Moves, seen and steered on the way, and goes back after the flip. Returns its id.
fn there_and_back(up: &Up) -> String {
    let id = start(up, "node-2", &["--throttle", THROTTLE]);
    let mut watch = up.begin(&["migrate", "watch", &id]);
    let mut seen: Vec<Value> = Vec::new();
    while seen.last().is_none_or(|migration| migration["phase"] != "copying") {
        seen.push(watch.next().expect("it is watched to its end"));
    }
    check_progress(up, &id);
    assert_eq!(up.json(&["migrate", "list"])[0]["id"], id.as_str());
    assert_eq!(up.json(&["migrate", "show", "disk"])["id"], id.as_str(), "by its volume's name");
    assert_eq!(up.fails(&["migrate", "show", "nothing"]).0, 4);
    assert_eq!(up.fails(&["migrate", "commit", "mig-0000000000000001"]).0, 4);
    assert_eq!(up.fails(&["snapshot", "create", "disk", "now"]).0, 5, "a migration excludes it");
    steer(up, &id);
    until_mirroring_waits(up, &id);
    let needs = up.json(&["status"])["needs_you"][0].clone();
    assert_eq!(needs["command"], format!("drover migrate cutover {id}"));
    assert_eq!(holder(up), "node-1");
    up.json(&["migrate", "cutover", "disk"]);
    let settling = up.until(&["migrate", "show", &id], |migration| {
        migration["phase"] == "settling" && migration["way_back"] == "open" && has_action(migration, "rollback")
    });
    assert!(number(&settling["receipt"], "flip_ms") > 0, "{settling:#}");
    assert_eq!(holder(up), "node-2");
    assert_eq!(up.fails(&["migrate", "cancel", &id]).0, 5, "after the flip there is nothing to cancel");
    up.json(&["migrate", "rollback", &id]);
    let rolled_back = until_phase(up, &id, "rolled_back");
    assert_eq!((&rolled_back["receipt"]["rolled_back"], number(&rolled_back["receipt"], "flips")), (&true.into(), 2));
    assert_eq!(holder(up), "node-1");
    assert_eq!(up.fails(&["migrate", "pause", &id]).0, 5, "it is over");

    // Who watched saw the phases in order, each once, and that the volume stayed. A short one may go by between two looks.
    let (code, rest) = watch.end();
    assert_eq!(code, 1);
    seen.extend(rest);
    let mut phases: Vec<&str> = seen.iter().map(|migration| migration["phase"].as_str().unwrap()).collect();
    assert_eq!(phases.pop(), Some("rolled_back"));
    let order = ["planned", "tracking", "copying", "converging", "mirroring", "flipping", "settling", "rolling_back"];
    let places: Vec<_> = phases.iter().map(|phase| order.iter().position(|known| known == phase).unwrap()).collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{phases:?}");
    id
}

fn given_up_before_the_flip(up: &Up) {
    let id = start(up, "node-2", &["--throttle", THROTTLE]);
    until_phase(up, &id, "copying");
    let watch = up.begin(&["migrate", "watch", "disk"]);
    up.json(&["migrate", "cancel", "disk"]);
    until_phase(up, &id, "rolled_back");
    assert_eq!((watch.end().0, holder(up)), (1, "node-1".into()));
}

fn there_for_good(up: &Up) {
    let id = start(up, "node-2", &["--retention", "0"]);
    until_mirroring_waits(up, &id);
    up.json(&["migrate", "cutover", &id]);
    up.until(&["migrate", "show", &id], |migration| {
        let proven = migration["phase"] == "settling" && migration["receipt"]["proof"].is_object();
        proven && has_action(migration, "commit")
    });
    let watch = up.begin(&["migrate", "watch", &id]);
    up.json(&["migrate", "commit", &id]);
    let (code, seen) = watch.end();
    let last = seen.last().unwrap();
    assert_eq!((code, &last["phase"], number(last, "permille")), (0, &"committed".into(), 1000));
    assert_eq!(number(last, "bytes_done"), number(last, "bytes_total"));
    let proof = &last["receipt"]["proof"];
    assert_eq!(
        (number(proof, "regions_equal"), number(proof, "regions_different")),
        (number(proof, "regions_total"), 0)
    );
    assert_eq!(holder(up), "node-2");
}

fn holder(up: &Up) -> String {
    up.json(&["volume", "show", "disk"])["volume"]["holder"].as_str().unwrap().into()
}

/// What `follow`, begun before the migration, has printed is the whole log, each event once, in order.
fn check_events(up: &Up, follow: &mut Running, id: &str) {
    let logged = up.lines(&["events"]);
    let followed: Vec<Value> = logged.iter().map(|_| follow.next().unwrap()).collect();
    assert_eq!(followed, logged);
    assert!(followed.is_sorted_by(|a, b| number(a, "id") < number(b, "id")));
    let of_it = up.lines(&["events", "--migration", id]);
    let of_last = up.lines(&["events", "--migration", "disk"]);
    assert!(of_last.iter().any(|event| event["kind"] == "migration.committed"), "{of_last:?}");
    let kinds: Vec<&str> = of_it.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    let mut rest = kinds.iter();
    for kind in [
        "migration.planned",
        "migration.copying",
        "migration.paused",
        "migration.resumed",
        "migration.tuned",
        "migration.mirroring",
        "migration.cutover_requested",
        "migration.flipped",
        "migration.flipping_back",
        "migration.rolled_back",
    ] {
        assert!(rest.any(|known| *known == kind), "{kind} is missing, or out of order: {kinds:?}");
    }
    assert!(of_it.iter().all(|event| event["migration"] == id));
}

#[test]
fn a_migration_is_followed_steered_and_taken_back_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let (source, back) = (folder.path().join("image"), folder.path().join("back"));
    let content = random_image(&source, DATA_BYTES, 1);
    let up = Up::start(&folder.path().join("data"), 2);
    up.json(&["import", source.to_str().unwrap(), "disk", "--node", "node-1"]);
    let mut follow = up.begin(&["events", "--follow"]);
    let id = there_and_back(&up);
    given_up_before_the_flip(&up);
    there_for_good(&up);
    assert_eq!(up.json(&["migrate", "list"]), Value::Array(vec![]));
    assert_eq!(up.json(&["migrate", "list", "--all"]).as_array().unwrap().len(), 3);
    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == content);
    check_events(&up, &mut follow, &id);
    up.stop();
}
