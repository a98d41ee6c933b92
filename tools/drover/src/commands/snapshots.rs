//! Snapshots of a volume.

use super::{confirm, show_done};
use crate::arguments::{Snapshot as Command, SnapshotSchedule, time_ms};
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::output::{Output, table};
use drover_base::text::show_bytes;
use drover_types::{CreateGroupSnapshot, CreateSnapshot, GroupSnapshot, Keep, Schedule, Snapshot, VolumeSchedule, utc};

pub async fn run(client: &Client, output: Output, command: Command) -> Result<(), Failure> {
    let path = |volume: &str| format!("/v1/volumes/{}/snapshots", escape(volume));
    match command {
        Command::Create { volume, name } => {
            let made: serde_json::Value = client.post(&path(&volume), &CreateSnapshot { name: name.clone() }).await?;
            output.show(&made, |_| format!("snapshot {name} of {volume} made"))
        }
        Command::List { volume } => {
            let snapshots: Vec<Snapshot> = client.list(&path(&volume)).await?;
            output.show(&snapshots, |snapshots| {
                let rows = snapshots
                    .iter()
                    .map(|snapshot| [snapshot.name.clone(), utc(snapshot.created_ms), show_bytes(snapshot.used_bytes)]);
                table(["SNAPSHOT", "MADE (UTC)", "USED"], rows)
            })
        }
        Command::Delete { volume, name } => {
            client.delete(&format!("{}/{}", path(&volume), escape(&name))).await?;
            let text = format!(
                "snapshot {name} of {volume} deleted; its space comes back in the background (drover volume show {volume})"
            );
            show_done(output, &text)
        }
        Command::Group { name, volumes } => {
            let request = CreateGroupSnapshot { name, volumes };
            let made: GroupSnapshot = client.post("/v1/snapshots", &request).await?;
            output.show(&made, |made| {
                format!("snapshot {} of {} made at one moment", made.name, request.volumes.join(", "))
            })
        }
        Command::Schedule(command) => schedule(client, output, command).await,
        Command::Rollback { volume, name, yes } => {
            confirm(&format!("What was written to {volume} since {name} will be lost. Go on?"), yes)?;
            let path = format!("{}/{}/rollback", path(&volume), escape(&name));
            let _: serde_json::Value = client.post(&path, &serde_json::json!({})).await?;
            show_done(output, &format!("{volume} is as it was at {name}"))
        }
    }
}

async fn schedule(client: &Client, output: Output, command: SnapshotSchedule) -> Result<(), Failure> {
    let path = |volume: &str| format!("/v1/volumes/{}/schedule", escape(volume));
    match command {
        SnapshotSchedule::Set { volume, every, at, keep } => {
            let every_s = whole_seconds(every)?;
            let keep = keep.iter().map(|rule| rule_of(rule, every_s)).collect::<Result<_, _>>()?;
            let schedule = Schedule { every_s, at_s: whole_seconds(at)?, keep };
            output.show(&client.put(&path(&volume), &schedule).await?, show_schedule)
        }
        SnapshotSchedule::Show { volume } => output.show(&client.get(&path(&volume)).await?, show_schedule),
        SnapshotSchedule::Clear { volume } => {
            client.delete(&path(&volume)).await?;
            show_done(output, &format!("{volume} gets no more snapshots by the clock"))
        }
    }
}

fn whole_seconds(ms: u64) -> Result<u64, Failure> {
    match ms % 1000 {
        0 => Ok(ms / 1000),
        _ => Err(Failure::usage(format!("{ms} ms are no whole seconds"))),
    }
}

/// `24`: so many of the schedule's own periods. `7x24h`: of others.
fn rule_of(text: &str, every_s: u64) -> Result<Keep, Failure> {
    let (count, every_s) = match text.split_once('x') {
        None => (text, every_s),
        Some((count, time)) => (count, whole_seconds(time_ms(time).map_err(Failure::usage)?)?),
    };
    let no_rule = || Failure::usage(format!("{text:?} does not say how many stay")).hint("such as 24, or 7x24h");
    Ok(Keep { every_s, count: count.parse().map_err(|_| no_rule())? })
}

fn show_schedule(shown: &VolumeSchedule) -> String {
    let Schedule { every_s, at_s, keep } = &shown.schedule;
    let rules: Vec<String> = keep.iter().map(|rule| format!("{} of {} s each", rule.count, rule.every_s)).collect();
    let next = utc(shown.next_ms);
    let made = shown.made.len();
    format!(
        "every    {every_s} s, {at_s} s after\nkept     {}\nnext     {next} UTC\nmade     {made}\n",
        rules.join(", ")
    )
}
