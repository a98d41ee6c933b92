//! One migration of a volume of its own, hit as its script says, under three writers.
//!
//! One client writes through each node. The third node takes no part in the migration and is never hit: what its
//! client was answered is there. A client of a node that is killed connects again and finds what it had flushed.

use crate::table::{Act, BULK_BYTES, Process, Run};
use drover_e2e::{Api, Area, BLOCK, Bulk, Client, Cluster, Daemon, OnLoss, Random, Steps, Writer};
use serde_json::{Value, json};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;
const BLOCKS: u64 = 64;
/// A block that no writer touches and nobody reads.
const MARK: u64 = 3 * MIB;
/// Far above what any step takes, a takeover and retries of a flip included.
const STEP: Duration = Duration::from_secs(60);
const END: Duration = Duration::from_secs(120);
/// Past a timed lease of `LEASE_TTL_MS` and its drift.
const SLEEP: Duration = Duration::from_millis(2_700);
pub const LEASE_TTL_MS: u64 = 1_500;

pub struct Bench<'a> {
    pub cluster: &'a mut Cluster,
    pub steps: &'a Steps,
    pub random: &'a mut Random,
}

impl Bench<'_> {
    /// Runs it; the phase it ended in.
    pub fn run(&mut self, run: &Run, volume: &str) -> String {
        self.cluster.create_volume(volume, SIZE, 0);
        let mut client = Client::connect(&self.cluster.socket(0), volume).expect("the holder answers");
        let churns = run.script.iter().any(|(_, acts)| acts.contains(&Act::Churn));
        let mut bulk = Bulk::write(&mut client, if churns { BULK_BYTES } else { MIB });
        assert_eq!(client.write(MARK, &mark(volume)).expect("the connection lives"), 0, "the mark");
        let writers = self.writers(run, volume);

        self.steps.want(run.script.iter().map(|(at, _)| at.clone()));
        let starting = self.start(volume, (run.course.options)());
        let asked = self.play(run, volume, &mut bulk, &mut client);
        let migration = starting.join().expect("it starts");
        for asked in asked {
            asked.join().expect("what was asked is granted");
        }
        let path = format!("/v1/migrations/{migration}");
        let is_over = |shown: &Value| {
            let phase = shown["phase"].as_str().unwrap_or_default();
            let is_final = ["committed", "rolled_back", "failed"].contains(&phase);
            is_final && shown["cleanup_pending"].as_array().is_none_or(Vec::is_empty)
        };
        let ended = self.cluster.api.wait_for(&path, END, is_over);
        let phase = ended["phase"].as_str().expect("a phase").to_owned();
        assert!(run.course.ends.contains(&phase.as_str()), "it ended {phase}: {ended:#}");

        for (process, writer) in &writers {
            if process.is_some_and(|process| run.is_killed(process)) {
                writer.wait_checks(1);
            }
            writer.wait_flushes(2);
        }
        let written: Vec<_> = writers.into_iter().map(|(_, writer)| writer.stop()).collect();
        for node in 0..3 {
            written.iter().for_each(|written| written.verify(&self.cluster.socket(node), volume));
            bulk.verify(self.cluster, node, volume);
        }
        self.check_lease(volume, &phase);
        drop(client);
        self.remove(volume);
        phase
    }

    fn writers(&self, run: &Run, volume: &str) -> Vec<(Option<Process>, Writer)> {
        let endpoints = [Some(Process::Source), Some(Process::Destination), None];
        let start = |(node, process): (usize, &Option<Process>)| {
            let area = Area { offset: node as u64 * MIB, blocks: BLOCKS };
            let is_killed = process.is_some_and(|process| run.is_killed(process));
            let on_loss = if is_killed { OnLoss::Reconnect } else { OnLoss::Fail };
            (*process, Writer::start(&self.cluster.socket(node), volume, area, on_loss, node as u64 + 1))
        };
        let writers: Vec<_> = endpoints.iter().enumerate().map(start).collect();
        writers.iter().for_each(|(_, writer)| writer.wait_flushes(2));
        writers
    }

    /// Asks for the migration until it is there, under a key: it starts once, however often it has to be asked for.
    fn start(&self, volume: &str, options: Value) -> thread::JoinHandle<String> {
        let api = self.cluster.api.another();
        let body = json!({ "volume": volume, "destination": "node-2", "options": options });
        let key = format!("move-{volume}");
        thread::spawn(move || {
            let deadline = Instant::now() + STEP;
            loop {
                match api.request_once("/v1/migrations", &body, &key) {
                    Ok(migration) => return migration["id"].as_str().expect("an id").to_owned(),
                    // Only a control plane that dies may keep it from starting.
                    Err(Some(failure)) => panic!("it does not start: {failure:?}"),
                    Err(None) => assert!(Instant::now() < deadline, "it does not start"),
                }
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    fn play(&mut self, run: &Run, volume: &str, bulk: &mut Bulk, client: &mut Client) -> Vec<thread::JoinHandle<()>> {
        let mut asked = Vec::new();
        for _ in &run.script {
            let held = self.steps.wait_held(STEP);
            let (_, acts) = run.script.iter().find(|(at, _)| *at == held).expect("what is held was wanted");
            acts.iter().for_each(|act| self.while_held(*act, volume));
            self.steps.release();
            for act in acts {
                match act {
                    Act::Ask(action) => {
                        asked.push(ask(self.cluster.api.another(), volume, "POST", &format!("/{action}"), json!({})));
                    }
                    Act::Tune => {
                        let auto = json!({ "cutover": "auto" });
                        asked.push(ask(self.cluster.api.another(), volume, "PATCH", "", auto));
                    }
                    Act::Churn => self.churn(volume, bulk, client),
                    act => self.once_released(*act, volume),
                }
            }
        }
        asked
    }

    fn process(&mut self, process: Process) -> &mut Daemon {
        match process {
            Process::Control => &mut self.cluster.control,
            process => &mut self.cluster.nodes[node(process)],
        }
    }

    /// A course may have one down that its case brings back.
    fn bring_back(&mut self, process: Process) {
        let daemon = self.process(process);
        if !daemon.is_running() {
            daemon.start().expect("it starts again");
        }
    }

    fn while_held(&mut self, act: Act, volume: &str) {
        match act {
            Act::Kill(process) | Act::Down(process) => self.process(process).kill(),
            Act::Stop(process) | Act::Sleep(process) => self.process(process).pause(),
            Act::Lose(process) => self.cluster.lose_disks(node(process)),
            Act::Damage(process) => damage(&self.cluster.device(node(process)), &mark(volume)),
            _ => {}
        }
    }

    fn once_released(&mut self, act: Act, volume: &str) {
        match act {
            Act::Kill(process) => {
                thread::sleep(Duration::from_millis(self.random.below(200)));
                self.bring_back(process);
            }
            Act::Up(process) => self.bring_back(process),
            Act::Sleep(process) => {
                thread::sleep(SLEEP);
                self.process(process).resume();
            }
            // A start after a kill has it going already.
            Act::Continue(process) => self.process(process).resume(),
            Act::Release => {
                // The control plane may just be coming back.
                let all = format!("/v1/migrations?volume={volume}");
                self.cluster.api.wait_for(&all, STEP, |_| true);
                let migration = active(&self.cluster.api, volume).expect("it is under way");
                let free = json!({ "throttle_bytes_per_s": 0 });
                self.cluster.api.insist("PATCH", &format!("/v1/migrations/{migration}"), &free, STEP);
            }
            _ => {}
        }
    }

    fn churn(&mut self, volume: &str, bulk: &mut Bulk, client: &mut Client) {
        let deadline = Instant::now() + STEP;
        loop {
            bulk.rewrite(client);
            let seen = self.steps.seen();
            if seen.iter().any(|step| step.ends_with(" converging") || step.ends_with(" mirroring")) {
                return;
            }
            assert!(Instant::now() < deadline, "{volume}: the base is copied for ever; seen: {seen:#?}");
        }
    }

    fn check_lease(&self, volume: &str, phase: &str) {
        let holder = if phase == "committed" { "node-2" } else { "node-1" };
        let lease = self.cluster.api.get(&format!("/v1/leases/{volume}"));
        assert_eq!((&lease["holder"], &lease["ttl_ms"]), (&json!(holder), &Value::Null), "{lease:#}");
    }

    fn remove(&self, volume: &str) {
        for node in 1..=3 {
            let path = format!("/v1/exports/node-{node}/{volume}");
            self.cluster.api.insist("DELETE", &path, &Value::Null, STEP);
        }
        self.cluster.api.insist("DELETE", &format!("/v1/volumes/{volume}"), &Value::Null, STEP);
    }
}

/// The id of the volume's migration.
fn active(api: &Api, volume: &str) -> Option<String> {
    let shown = api.request("GET", &format!("/v1/migrations?volume={volume}"), None).ok()?;
    Some(shown["items"][0]["id"].as_str()?.to_owned())
}

/// Asks until it is granted, or has been already. In a thread: the answer may wait for a step that is held.
fn ask(api: Api, volume: &str, method: &'static str, what: &str, body: Value) -> thread::JoinHandle<()> {
    let (volume, what) = (volume.to_owned(), what.to_owned());
    thread::spawn(move || {
        let deadline = Instant::now() + STEP;
        loop {
            let migration = active(&api, &volume);
            let path = migration.map(|id| format!("/v1/migrations/{id}"));
            let shown = path.as_ref().and_then(|path| api.request("GET", path, None).ok());
            let phase = shown.as_ref().and_then(|shown| shown["phase"].as_str()).unwrap_or_default();
            let is_over = ["rolling_back", "rolled_back", "committed", "failed"].contains(&phase);
            if is_over || (what == "/cutover" && phase == "settling") {
                return;
            }
            let answer = path.map(|path| match method {
                // Once: asked again after its answer was lost, a pause would undo what was asked since.
                "POST" => api.request_once(&format!("{path}{what}"), &body, &format!("{volume}{what}")),
                _ => api.request(method, &format!("{path}{what}"), Some(&body)),
            });
            if let Some(Ok(_)) = answer {
                return;
            }
            assert!(Instant::now() < deadline, "{method} {what} of {volume}, which is {phase:?}: {answer:?}");
            thread::sleep(Duration::from_millis(20));
        }
    })
}

fn node(process: Process) -> usize {
    match process {
        Process::Source => 0,
        Process::Destination => 1,
        Process::Control => panic!("the control plane is no node"),
    }
}

/// A block as no other volume has it.
fn mark(volume: &str) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block.iter_mut().zip(format!("the mark of {volume} ").bytes().cycle()).for_each(|(byte, text)| *byte = text);
    block
}

/// Changes a byte of a block of the device file, wherever it lies.
fn damage(device: &Path, block: &[u8; BLOCK]) {
    let file = File::options().read(true).write(true).open(device).expect("the device file");
    let blocks = file.metadata().expect("its size").len() / BLOCK as u64;
    let mut read = [0; BLOCK];
    let mut is_it = |index: &u64| {
        file.read_exact_at(&mut read, index * BLOCK as u64).expect("it can be read");
        read == *block
    };
    let index = (0..blocks).find(&mut is_it).expect("the mark is on the device");
    file.write_all_at(&[!block[0]], index * BLOCK as u64).expect("it can be written");
    file.sync_all().expect("the byte is on the device");
}
