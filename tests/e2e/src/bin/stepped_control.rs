//! The control plane with one layer more: its store asks before and after every step of a migration that it persists.
//!
//! `drover-stepped-control CONTROL.TOML SOCKET PATIENCE_MS`: the settings of `drover control`, where the harness listens
//! (`steps.rs` of this package), and how long a cutover or rollback that was asked for and cannot be is waited for. For
//! each step it writes a line, `before` or `after`, the migration's id, and the
//! step's name, and goes on when a line comes back. Meanwhile the rest of the control plane runs as ever.

use drover_base::LocalFuture;
use drover_control::{Control, ControlConfig};
use drover_meta::{Entry, MetaError, MetaStore, Outcome, RocksMetaStore, Transaction};
use drover_runtime::Workers;
use drover_server::ServerConfig;
use drover_types::record::{CleanupTask, MigrationRecord, Stage};
use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc, time::Duration};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const PREFIX: &str = "migration/";

fn main() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, socket, patience_ms] = &arguments[..] else { panic!("usage: CONTROL.TOML SOCKET PATIENCE_MS") };
    let patience = Duration::from_millis(patience_ms.parse().expect("a number of milliseconds"));
    let text = std::fs::read_to_string(config).expect("the settings");
    let settings = Settings::of(&text.parse().expect("the settings are TOML"));
    drover_runtime::block_on(serve(settings, socket, patience)).expect("a runtime");
}

struct Settings {
    data: String,
    token: String,
    secret: [u8; 32],
    ttl: Duration,
    rest: String,
    nodes: String,
}

impl Settings {
    fn of(file: &toml::Table) -> Self {
        let text = |value: &toml::Value| value.as_str().expect("a text").to_owned();
        let content = |key: &str| std::fs::read_to_string(text(&file[key])).expect("a file").trim().to_owned();
        Self {
            data: text(&file["data"]),
            token: content("token"),
            secret: *blake3::hash(content("secret").as_bytes()).as_bytes(),
            ttl: Duration::from_millis(file["lease_ttl_ms"].as_integer().expect("a number") as u64),
            rest: text(&file["listen"]["rest"]),
            nodes: text(&file["listen"]["nodes"]),
        }
    }
}

async fn serve(settings: Settings, socket: &str, patience: Duration) {
    std::fs::create_dir_all(&settings.data).expect("the folder");
    let store = RocksMetaStore::open(&Path::new(&settings.data).join("meta")).expect("the store opens");
    let harness = UnixStream::connect(socket).await.expect("the harness listens");
    let harness = tokio::sync::Mutex::new(BufReader::new(harness));
    let stepped = Stepped(Rc::new(Inner { store, harness, known: RefCell::default() }));
    let world = drover_runtime::world(&Workers::start(1).expect("threads"), None);
    let config = ControlConfig {
        secret: settings.secret,
        ttl: settings.ttl,
        gate_deadline: patience,
        rollback_deadline: patience,
        ..ControlConfig::default()
    };
    let control = Control::start(config, world, Rc::new(stepped)).await.expect("the control plane starts");
    let listen = settings.rest.parse().expect("an address");
    let server = ServerConfig { listen, token: Some(settings.token) };
    let bound = drover_server::bind(server).await.expect("the REST address is free");
    control.serve(&settings.nodes).await.expect("the nodes' address is free");
    bound.serve(control.handle(), std::future::pending()).await.expect("REST is served");
}

/// Asks the harness around every commit that persists a step of a migration.
struct Stepped(Rc<Inner>);

struct Inner {
    store: RocksMetaStore,
    harness: tokio::sync::Mutex<BufReader<UnixStream>>,
    /// As last committed or read.
    known: RefCell<BTreeMap<String, MigrationRecord>>,
}

impl MetaStore for Stepped {
    fn get(&self, key: &str) -> LocalFuture<'_, Result<Option<Entry>, MetaError>> {
        self.0.store.get(key)
    }

    fn scan(&self, prefix: &str) -> LocalFuture<'_, Result<Vec<Entry>, MetaError>> {
        let (inner, scan) = (self.0.clone(), self.0.store.scan(prefix));
        Box::pin(async move {
            let entries = scan.await?;
            let records =
                entries.iter().filter_map(|entry| Some((entry.key.clone(), record(&entry.key, &entry.value)?)));
            inner.known.borrow_mut().extend(records);
            Ok(entries)
        })
    }

    fn commit(&self, transaction: Transaction) -> LocalFuture<'_, Result<Outcome, MetaError>> {
        let inner = self.0.clone();
        Box::pin(async move {
            let put = |(key, value): &(String, Vec<u8>)| Some((key.clone(), record(key, value)?));
            let records: Vec<_> = transaction.puts.iter().filter_map(put).collect();
            let steps: Vec<(String, String)> = {
                let known = inner.known.borrow();
                let step = |(key, new): &(String, MigrationRecord)| (key.clone(), step_name(known.get(key), new));
                records.iter().map(step).collect()
            };
            inner.ask("before", &steps).await;
            let outcome = inner.store.commit(transaction).await;
            inner.known.borrow_mut().extend(records);
            inner.ask("after", &steps).await;
            outcome
        })
    }
}

impl Inner {
    async fn ask(&self, moment: &str, steps: &[(String, String)]) {
        let mut harness = self.harness.lock().await;
        for (key, step) in steps {
            let line = format!("{moment} {} {step}\n", &key[PREFIX.len()..]);
            harness.get_mut().write_all(line.as_bytes()).await.expect("the harness is there");
            harness.read_line(&mut String::new()).await.expect("the harness answers");
        }
    }
}

fn record(key: &str, value: &[u8]) -> Option<MigrationRecord> {
    key.starts_with(PREFIX).then(|| serde_json::from_slice(value).expect("a migration's record"))
}

/// What a change of the record is, in one word, and for a clean-up two more: of each transition another
/// (`tests/steps/every.rs` lists them all).
fn step_name(old: Option<&MigrationRecord>, new: &MigrationRecord) -> String {
    let Some(old) = old else { return "planned".into() };
    if old.generation != new.generation {
        return "start_over".into();
    }
    if old.cleanup.len() > new.cleanup.len() {
        let done = old.cleanup.iter().find(|task| !new.cleanup.contains(task)).expect("one is missing");
        let task = match done.task {
            CleanupTask::Resume { .. } => "resume",
            CleanupTask::Grant => "grant",
            CleanupTask::End { .. } => "end",
        };
        return format!("cleaned_up {} {task}", done.node);
    }
    let name = flip_step(old, new).or_else(|| stage_step(old, new)).unwrap_or_else(|| step_within(old, new));
    name.into()
}

/// An attempt at a flip began or was given up.
fn flip_step(old: &MigrationRecord, new: &MigrationRecord) -> Option<&'static str> {
    let began = old.attempt.is_none() && new.attempt.is_some();
    let given_up = old.attempt.is_some() && new.resume == old.attempt;
    let back = old.stage == Stage::FlippingBack;
    match (began, given_up) {
        (true, _) => Some(if back { "flip_back_began" } else { "flipping" }),
        (_, true) => Some(if back { "flip_back_given_up" } else { "flip_given_up" }),
        _ => None,
    }
}

/// It is in another stage.
fn stage_step(old: &MigrationRecord, new: &MigrationRecord) -> Option<&'static str> {
    (old.stage != new.stage).then_some(match (old.stage, new.stage) {
        (_, Stage::Planned) => "planned",
        (_, Stage::Tracking) => "tracking",
        (_, Stage::Copying) => "copying",
        (_, Stage::Converging) => "converging",
        (_, Stage::Mirroring) => "mirroring",
        (_, Stage::Flipping) => "flipping",
        (Stage::FlippingBack, Stage::Settling) => "rollback_given_up",
        (_, Stage::Settling) => "settling",
        (_, Stage::Committed) if new.way_back_open => "committed",
        (_, Stage::Committed) => "committed_alone",
        (_, Stage::FlippingBack) => "flipping_back",
        (_, Stage::Returning) => "returning",
        (Stage::Settling | Stage::FlippingBack, Stage::CleaningUp) => "taken_over",
        (Stage::Returning, Stage::CleaningUp) => "returned",
        (_, Stage::CleaningUp) => "cancelled",
        (Stage::Planned, Stage::RolledBack) => "never_begun",
        (_, Stage::RolledBack) => "rolled_back",
        (_, Stage::Failed) => "failed",
    })
}

/// It stays in its stage.
fn step_within(old: &MigrationRecord, new: &MigrationRecord) -> &'static str {
    match () {
        () if old.resume.is_some() && new.resume.is_none() => "resumed",
        () if old.pause_pending && !new.pause_pending && new.stage == Stage::Returning => "flipped_back",
        () if old.pause_pending && !new.pause_pending => "flipped",
        () if old.way_back_open && !new.way_back_open => "way_back_closed",
        () if !old.way_back_open && new.way_back_open => "way_back_opened",
        () if !old.proven && new.proven => "proven",
        () if old.proven && !new.proven => "proof_forgotten",
        () if !old.proof_failed && new.proof_failed => "proof_failed",
        () if old.error.is_none() && new.error.is_some() => "copy_lost",
        () if old.options != new.options => "tuned",
        () if !old.paused && new.paused => "paused",
        () if old.paused && !new.paused => "unpaused",
        () if !old.cutover_requested && new.cutover_requested => "cutover",
        () if old.cutover_requested && !new.cutover_requested => "cutover_refused",
        () if !old.commit_requested && new.commit_requested => "commit",
        () if old.slowed.is_none() && new.slowed.is_some() => "slowed",
        () if old.slowed.is_some() && new.slowed.is_none() => "freed",
        () => "noted",
    }
}
