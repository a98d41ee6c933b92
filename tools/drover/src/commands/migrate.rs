//! Moves of volumes between nodes.

use crate::arguments::{Migrate as Command, MigrateOptions};
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::output::{Output, or_dash, show_ms, table};
use crate::progress::Progress;
use drover_base::text::show_bytes;
use drover_types::{
    Action, CommitPolicy, Migration, MigrationOptions, MigrationPlan, Phase, PlanRequest, RateSource, Slowed,
    StartMigration, TuneMigration, WayBack,
};
use std::time::Duration;

/// Between two looks at a migration that is watched.
const WATCH_EVERY: Duration = Duration::from_millis(250);

pub async fn run(client: &Client, output: Output, command: Command) -> Result<(), Failure> {
    match command {
        Command::Plan(plan) => {
            let options = options(&plan.options)?;
            let request =
                PlanRequest { volume: plan.volume, destination: plan.to, options, link_bytes_per_s: plan.link };
            let plan: MigrationPlan = client.post("/v1/migrations/plan", &request).await?;
            output.show(&plan, show_plan)
        }
        Command::Start(start) => {
            let options = options(&start.options)?;
            let request = StartMigration { volume: start.volume, destination: start.to, options };
            let migration: Migration = client.post("/v1/migrations", &request).await?;
            if start.watch {
                return watch(client, output, &migration.id).await;
            }
            output.show(&migration, |migration| {
                format!("{} started: {} moves to {}", migration.id, migration.volume_name, migration.destination)
            })
        }
        Command::Watch { migration } => watch(client, output, &migration).await,
        Command::Pause { migration } => act(client, output, &migration, Action::Pause).await,
        Command::Resume { migration } => act(client, output, &migration, Action::Resume).await,
        Command::Cutover { migration, accept_coverage } => {
            if accept_coverage {
                let change = TuneMigration { coverage_percent: Some(0), ..TuneMigration::default() };
                let _: Migration = client.patch(&path(&migration), &change).await?;
            }
            act(client, output, &migration, Action::Cutover).await
        }
        Command::Cancel { migration } => act(client, output, &migration, Action::Cancel).await,
        Command::Rollback { migration } => act(client, output, &migration, Action::Rollback).await,
        Command::Commit { migration } => act(client, output, &migration, Action::Commit).await,
        Command::Tune(tune) => {
            let change = TuneMigration {
                throttle_bytes_per_s: tune.throttle,
                coverage_percent: tune.coverage,
                cutover: tune.cutover,
                window: tune.window,
                pause_ms_max: tune.pause_max,
                retention_ms: tune.retention,
                commit: tune.commit,
            };
            if change == TuneMigration::default() {
                return Err(Failure::usage("nothing is to be changed").hint("see `drover migrate tune --help`"));
            }
            let migration: Migration = client.patch(&path(&tune.migration), &change).await?;
            output.show(&migration, show)
        }
        Command::List { all } => {
            let mut migrations = list(client).await?;
            migrations.retain(|migration| all || !migration.phase.is_final());
            output.show(&migrations, |migrations| show_list(migrations))
        }
        Command::Show { migration } => output.show(&get(client, &migration).await?, show),
    }
}

fn path(migration: &str) -> String {
    format!("/v1/migrations/{}", escape(migration))
}

pub async fn list(client: &Client) -> Result<Vec<Migration>, Failure> {
    client.list("/v1/migrations").await
}

pub async fn get(client: &Client, migration: &str) -> Result<Migration, Failure> {
    client.get(&path(migration)).await
}

pub fn action_name(action: Action) -> &'static str {
    match action {
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::Cutover => "cutover",
        Action::Cancel => "cancel",
        Action::Rollback => "rollback",
        Action::Commit => "commit",
    }
}

pub async fn ask(client: &Client, migration: &str, action: Action) -> Result<Migration, Failure> {
    let path = format!("{}/{}", path(migration), action_name(action));
    client.post(&path, &serde_json::json!({})).await
}

async fn act(client: &Client, output: Output, migration: &str, action: Action) -> Result<(), Failure> {
    let migration = ask(client, migration, action).await?;
    output.show(&migration, |migration| {
        format!("{}: {} was asked for; it is {} now", migration.id, action_name(action), migration.phase)
    })
}

/// Checked here first, so that what is wrong is told before anything is sent.
fn options(given: &MigrateOptions) -> Result<MigrationOptions, Failure> {
    let defaults = MigrationOptions::default();
    let options = MigrationOptions {
        throttle_bytes_per_s: given.throttle,
        mirror_at_once: given.mirror_at_once,
        hot_first: given.hot_first,
        dedup: !given.no_dedup,
        coverage_percent: given.coverage.unwrap_or(defaults.coverage_percent),
        cutover: given.cutover,
        window: given.window,
        pause_ms_max: given.pause_max.unwrap_or(defaults.pause_ms_max),
        retention_ms: given.retention.unwrap_or(defaults.retention_ms),
        commit: if given.manual_commit { CommitPolicy::Manual } else { CommitPolicy::Auto },
        peer_deadline_ms: given.peer_deadline.unwrap_or(defaults.peer_deadline_ms),
    };
    options.check()?;
    Ok(options)
}

async fn watch(client: &Client, output: Output, migration: &str) -> Result<(), Failure> {
    // A volume's name may mean another migration later.
    let migration = &get(client, migration).await?.id;
    let mut progress = Progress::new(output, migration);
    let mut phase = None;
    loop {
        let seen = get(client, migration).await?;
        if phase != Some(seen.phase) {
            let reason = seen.waits_for.as_ref().map_or(String::new(), |reason| format!(": waits for {reason}"));
            progress.say(&format!("{}{reason}", seen.phase));
            if output.is_json() {
                output.show_line(&seen, |_| String::new())?;
            }
            phase = Some(seen.phase);
        }
        let eta = seen.eta_s.map_or(String::new(), |eta| format!(", {} left", show_ms(eta * 1000)));
        let rate = format!("{}/s{eta}  {}", show_bytes(seen.rate_bytes_per_s), seen.phase);
        progress.set(seen.bytes_done, seen.bytes_total, &rate);
        if seen.phase.is_final() {
            progress.finish();
            if !output.is_json() {
                output.show(&seen, show)?;
            }
            return finished(&seen);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Who waits for a move wants to know whether the volume moved.
fn finished(migration: &Migration) -> Result<(), Failure> {
    if migration.phase == Phase::Committed {
        return Ok(());
    }
    let Migration { id, volume_name, source, phase, .. } = migration;
    let mut failure = Failure::failed(format!("{id} is {phase}: {volume_name} stays at {source}"));
    match &migration.error {
        Some(error) => {
            failure.cause = Some(error.message.clone());
            failure.hint = error.hint.clone();
        }
        None => failure = failure.hint(format!("drover events --migration {id}")),
    }
    Err(failure)
}

pub fn show_list(migrations: &[Migration]) -> String {
    let rows = migrations.iter().map(|migration| {
        [
            migration.id.clone(),
            migration.volume_name.clone(),
            format!("{} → {}", migration.source, migration.destination),
            if migration.paused { format!("{}, paused", migration.phase) } else { migration.phase.to_string() },
            format!("{:.1} %", f64::from(migration.permille) / 10.0),
            or_dash(migration.eta_s.filter(|eta| *eta > 0).map(|eta| show_ms(eta * 1000))),
        ]
    });
    table(["MIGRATION", "VOLUME", "FROM → TO", "PHASE", "DONE", "LEFT"], rows)
}

fn show_plan(plan: &MigrationPlan) -> String {
    let source = match plan.link_rate {
        RateSource::Given => "as given",
        RateSource::Measured => "as measured before",
        RateSource::Assumed => "assumed",
    };
    let with = match plan.snapshots {
        0 => String::new(),
        count => format!(" with {count} snapshots"),
    };
    let mut text = format!(
        "{} from {} to {}\nto send   {}{with} over {}/s ({source}), while clients write {}/s\nexpected  {} until the flip, pause {}\n\
         space     {} needed, {} free at {}: {}",
        plan.volume,
        plan.source,
        plan.destination,
        show_bytes(plan.bytes_to_send),
        show_bytes(plan.link_bytes_per_s),
        show_bytes(plan.write_bytes_per_s),
        show_ms(plan.duration_ms_expected),
        show_ms(plan.pause_ms_expected),
        show_bytes(plan.space_needed_bytes),
        show_bytes(plan.destination_free_bytes),
        plan.destination,
        if plan.fits { "fits" } else { "DOES NOT FIT" },
    );
    for warning in &plan.warnings {
        text.push_str(&format!("\nwarning   {} ({})", warning.text, warning.code));
    }
    text
}

fn percent(permille: u32) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

pub fn show(migration: &Migration) -> String {
    let way_back = match migration.way_back {
        WayBack::Source => "cancelling loses nothing",
        WayBack::Open => "open: a rollback loses nothing",
        WayBack::Closed => "CLOSED: the source lacks writes; it opens again once they were sent",
        WayBack::None => "none, it is over",
    };
    let receipt = &migration.receipt;
    let mut text = format!(
        "migration  {}\nvolume     {} from {} to {}\nphase      {}{}\nprogress   {} of {}, {} left, {}/s\nway back   {way_back}\n\
         sent       {} of blocks as {} on the wire (held: {}), back {}\nflip       after {}, longest pause {}, {} flips, {} given up\ncommit     after {}",
        migration.id,
        migration.volume_name,
        migration.source,
        migration.destination,
        migration.phase,
        if migration.paused { ", paused" } else { "" },
        show_bytes(migration.bytes_done),
        show_bytes(migration.bytes_total),
        show_bytes(migration.bytes_left),
        show_bytes(migration.rate_bytes_per_s),
        show_bytes(receipt.logical_bytes),
        show_bytes(receipt.wire_bytes),
        show_bytes(receipt.held_bytes),
        show_bytes(receipt.return_wire_bytes),
        or_dash(receipt.flip_ms.map(show_ms)),
        show_ms(receipt.pause_ms_max),
        receipt.flips,
        receipt.flips_given_up,
        or_dash(receipt.commit_ms.map(show_ms)),
    );
    if receipt.deduplicated_bytes > 0 {
        text.push_str(&format!(
            "\nnot sent   {}, which {} had",
            show_bytes(receipt.deduplicated_bytes),
            migration.destination
        ));
    }
    if receipt.snapshots > 0 {
        text.push_str(&format!("\nsnapshots  {} went with it", receipt.snapshots));
    }
    if let (Some(remote), coverage) = (migration.remote_bytes, migration.coverage_permille) {
        let there =
            coverage.map_or(String::new(), |permille| format!("; {} of what is accessed is there", percent(permille)));
        text.push_str(&format!(
            "
remote     {} at {} only{there}",
            show_bytes(remote),
            migration.source
        ));
    }
    if let Some(coverage) = receipt.coverage_permille_at_flip {
        text.push_str(&format!(
            "
hot first  {} were remote at the flip, {} of what was accessed was there; in the first minute {} were local",
            show_bytes(receipt.remote_bytes_at_flip),
            percent(coverage),
            or_dash(receipt.local_permille_60s.map(percent)),
        ));
    }
    if let Some(proof) = &receipt.proof {
        let equal = format!("{} of {} regions equal", proof.regions_equal, proof.regions_total);
        text.push_str(&format!(
            "\nproof      {equal}, {} different, {} thicker",
            proof.regions_different, proof.regions_thicker
        ));
    }
    if let Some(Slowed { free_bytes_per_s, bytes_per_s, .. }) = migration.slowed {
        let (now, before) = (show_bytes(bytes_per_s), show_bytes(free_bytes_per_s));
        text.push_str(&format!("\nclients    slowed to the link: they write {now}/s, before it was {before}/s"));
    }
    if let Some(waits_for) = &migration.waits_for {
        text.push_str(&format!("\nwaits for  {waits_for}"));
    }
    if let Some(error) = &migration.error {
        text.push_str(&format!("\nerror      {}", error.message));
        text.push_str(&error.cause.as_ref().map_or(String::new(), |cause| format!("\n  cause    {cause}")));
        text.push_str(&error.hint.as_ref().map_or(String::new(), |hint| format!("\n  hint     {hint}")));
    }
    if !migration.actions.is_empty() {
        let names: Vec<&str> = migration.actions.iter().map(|action| action_name(*action)).collect();
        text.push_str(&format!("\nyou may    {}", names.join(", ")));
    }
    text
}
