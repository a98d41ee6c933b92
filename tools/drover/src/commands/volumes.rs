//! Volumes.

use super::{confirm, exports, nodes, show_done};
use crate::arguments::Volume as Command;
use crate::client::{Client, escape};
use crate::failure::{Exit, Failure};
use crate::output::{Output, or_dash, table};
use drover_base::text::show_bytes;
use drover_types::{ChangeVolume, CloneVolume, CreateVolume, Export, Merge, Volume, VolumeLimits, VolumeState};
use std::time::Duration;

/// How long a new volume may take to be ready before the command leaves it to go on by itself.
const READY_DEADLINE: Duration = Duration::from_secs(60);

pub async fn run(client: &Client, output: Output, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { name, size, node, tenant } => {
            let volume = create(client, &name, size, node, tenant).await?;
            output.show(&volume, |volume| {
                format!("volume {} of {} made on {}", volume.name, show_bytes(volume.size_bytes), volume.holder)
            })
        }
        Command::List { tenant } => {
            let mut volumes = list(client).await?;
            volumes.retain(|volume| tenant.as_ref().is_none_or(|tenant| volume.tenant == *tenant));
            output.show(&volumes, |volumes| show_volumes(volumes))
        }
        Command::Limit(limit) => {
            let limits = VolumeLimits { iops: limit.iops, bytes_per_s: limit.bandwidth, burst_ms: limit.burst };
            limits.check()?;
            let change = ChangeVolume { limits: Some(limits), ..ChangeVolume::default() };
            let volume: Volume = client.patch(&path(&limit.volume), &change).await?;
            output.show(&volume, |volume| format!("volume {} has {}", volume.name, show_limits(&volume.limits)))
        }
        Command::Show { volume } => {
            let volume = get(client, &volume).await?;
            let exports = exports::of(client, &volume).await?;
            let shown = serde_json::json!({ "volume": volume, "exports": exports });
            output.show(&shown, |_| show_volume(&volume, &exports))
        }
        Command::Clone { snapshot, name } => {
            let Some((volume, snapshot)) = snapshot.split_once('@') else {
                return Err(Failure::usage(format!("{snapshot:?} names no snapshot")).hint("write VOLUME@SNAPSHOT"));
            };
            let path = format!("{}/snapshots/{}/clone", path(volume), escape(snapshot));
            let made: Volume = client.post(&path, &CloneVolume { name }).await?;
            output.show(&made, |made| format!("volume {} made of {volume}@{snapshot}", made.name))
        }
        Command::Resize { volume, size } => {
            check_size(size)?;
            let change = ChangeVolume { size_bytes: Some(size), ..ChangeVolume::default() };
            let volume: Volume = client.patch(&path(&volume), &change).await?;
            output.show(&volume, |volume| format!("volume {} has {}", volume.name, show_bytes(volume.size_bytes)))
        }
        Command::Delete { volume, yes } => {
            let found = get(client, &volume).await?;
            confirm(&format!("Volume {} ({}) and its data will be removed. Go on?", found.name, found.id), yes)?;
            remove(client, &found).await?;
            show_done(output, &format!("volume {} deleted", found.name))
        }
        Command::Reopen { volume } => {
            let path = format!("{}/reopen", path(&volume));
            let volume: Volume = client.post(&path, &serde_json::json!({})).await?;
            output.show(&volume, |volume| format!("volume {} is open again", volume.name))
        }
        Command::Attach(attach) => exports::attach(client, output, &attach).await,
        Command::Detach { volume, node } => exports::detach(client, output, &volume, node.as_deref()).await,
    }
}

fn path(volume: &str) -> String {
    format!("/v1/volumes/{}", escape(volume))
}

/// In the order of their names.
pub async fn list(client: &Client) -> Result<Vec<Volume>, Failure> {
    let mut volumes: Vec<Volume> = client.list("/v1/volumes").await?;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

/// By id or name.
pub async fn get(client: &Client, volume: &str) -> Result<Volume, Failure> {
    client.get(&path(volume)).await
}

pub async fn remove(client: &Client, volume: &Volume) -> Result<(), Failure> {
    client.delete(&path(&volume.id)).await
}

/// Makes a volume and waits until it can be used.
pub async fn create(
    client: &Client,
    name: &str,
    size_bytes: u64,
    node: Option<String>,
    tenant: Option<String>,
) -> Result<Volume, Failure> {
    if !drover_base::ids::is_name(name, 63) {
        return Err(Failure::usage(format!("{name:?} is not a name"))
            .hint("1 to 63 of a-z 0-9 - . that begin and end with a letter or digit"));
    }
    check_size(size_bytes)?;
    let node = match node {
        Some(node) => node,
        None => nodes::roomiest(client).await?,
    };
    let request = CreateVolume { name: name.into(), size_bytes, node, tenant };
    let mut volume: Volume = client.post("/v1/volumes", &request).await?;
    let begin = std::time::Instant::now();
    while volume.state == VolumeState::Creating {
        if begin.elapsed() > READY_DEADLINE {
            return Err(Failure::new(Exit::Unknown, format!("volume {name} is not ready yet; it goes on by itself"))
                .hint(format!("drover volume show {name}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        volume = get(client, &volume.id).await?;
    }
    Ok(volume)
}

fn check_size(size_bytes: u64) -> Result<(), Failure> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(4096) {
        return Err(Failure::usage(format!("{size_bytes} bytes are no size of a volume")).hint("a multiple of 4096"));
    }
    Ok(())
}

pub fn show_volumes(volumes: &[Volume]) -> String {
    let rows = volumes.iter().map(|volume| {
        [
            volume.name.clone(),
            show_bytes(volume.size_bytes),
            or_dash(volume.used_bytes.map(show_bytes)),
            or_dash(volume.valid_bytes.map(show_bytes)),
            volume.holder.clone(),
            show_state(volume),
        ]
    });
    table(["VOLUME", "SIZE", "USED", "VALID", "HOLDER", "STATE"], rows)
}

fn show_state(volume: &Volume) -> String {
    match (volume.state, volume.poisoned, &volume.migration) {
        (VolumeState::Creating, ..) => "being made".into(),
        (VolumeState::Deleting, ..) => "being deleted".into(),
        (VolumeState::Ready, true, _) => "poisoned".into(),
        (VolumeState::Ready, false, Some(migration)) => format!("in {migration}"),
        (VolumeState::Ready, false, None) => "ready".into(),
    }
}

fn show_limits(limits: &VolumeLimits) -> String {
    let requests = limits.iops.map(|iops| format!("at most {iops} requests a second"));
    let bytes = limits.bytes_per_s.map(|bytes| format!("at most {} a second", show_bytes(bytes)));
    let given: Vec<String> = requests.into_iter().chain(bytes).collect();
    if given.is_empty() { "no limits".into() } else { given.join(", ") }
}

fn show_volume(volume: &Volume, exports: &[Export]) -> String {
    let mut text = format!(
        "volume   {} ({})\nsize     {}\nused     {}, of it valid {}\nholder   {} under epoch {}\nstate    {}\n",
        volume.name,
        volume.id,
        show_bytes(volume.size_bytes),
        or_dash(volume.used_bytes.map(show_bytes)),
        or_dash(volume.valid_bytes.map(show_bytes)),
        volume.holder,
        volume.epoch,
        show_state(volume),
    );
    if let Some(of) = &volume.origin {
        text.push_str(&format!("clone    of {}@{}\n", of.volume_name, of.snapshot));
    }
    if let Some(shared) = volume.shared_bytes {
        text.push_str(&format!("shared   {} of what is used, with other volumes\n", show_bytes(shared)));
    }
    if let Some(remote) = volume.remote_bytes {
        text.push_str(&format!("remote   {} yet to fetch from where it was\n", show_bytes(remote)));
    }
    if let Some(Merge { snapshots, bytes_left }) = volume.merge {
        let left = show_bytes(bytes_left);
        text.push_str(&format!("merging  {snapshots} deleted snapshots, {left} left\n"));
    }
    text.push_str(&format!("tenant   {}\nlimits   {}\n", volume.tenant, show_limits(&volume.limits)));
    if let (Some(requests @ 1..), Some(waited)) = (volume.limited_requests, volume.limited_ms) {
        let waited = crate::output::show_ms(waited);
        text.push_str(&format!("waited   {requests} requests for its limits, {waited} in all\n"));
    }
    for export in exports {
        text.push_str(&format!("served   by {} as {}: {}\n", export.node, export.name, export.uris.join(" ")));
    }
    text
}
