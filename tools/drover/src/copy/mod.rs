//! Copies between volumes and what is outside: raw files, block devices, other NBD servers.
//!
//! A read error ends the copy: what could not be read never becomes data (nbdkit and others once copied zeros there,
//! CVE-2022-0485). Holes stay holes.

mod file;
mod nbd;
mod piece;

pub use nbd::connect;

use crate::arguments::{Export, Import};
use crate::client::Client;
use crate::commands::{self, Reach};
use crate::daemons::Signals;
use crate::failure::{Context, Exit, Failure};
use crate::output::{Output, show_ms};
use crate::progress::Progress;
use drover_base::text::show_bytes;
use drover_node::nbd::NbdUri;
use drover_types::Volume;
use futures::StreamExt;
use piece::{Copied, Piece, Pieces};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A place outside: a raw file or device, or an NBD export.
enum Place {
    File(PathBuf),
    Nbd(NbdUri),
}

impl Place {
    fn parse(text: &str) -> Result<Self, Failure> {
        if text.starts_with("nbd:") || text.starts_with("nbd+") || text.starts_with("nbds") {
            let uri = text.parse().map_err(|error| Failure::usage(format!("{text} is not an NBD URI")).cause(error))?;
            return Ok(Self::Nbd(uri));
        }
        Ok(Self::File(PathBuf::from(text.strip_prefix("file://").unwrap_or(text))))
    }
}

/// Copies a source into a volume, which is made if it is not there.
pub async fn import(client: &Client, output: Output, import: &Import) -> Result<(), Failure> {
    let place = Place::parse(&import.source)?;
    let (size, pieces) = match &place {
        Place::File(path) => file::read(path)?,
        Place::Nbd(uri) => nbd::read(&nbd::connect(uri).await?).await?,
    };
    let found = match commands::get_volume(client, &import.volume).await {
        Ok(volume) => Some(volume),
        Err(failure) if failure.exit == Exit::NotFound => None,
        Err(failure) => return Err(failure),
    };
    let is_new = found.is_none();
    let mut signals = Signals::listen()?;
    let volume = match found {
        Some(volume) => overwritable(volume, import, size)?,
        None => {
            let wanted = import.size.unwrap_or(size.next_multiple_of(4096).max(4096));
            if wanted < size {
                return Err(Failure::usage(format!("the source has {}, more than --size", show_bytes(size))));
            }
            let (node, tenant) = (import.node.clone(), import.tenant.clone());
            commands::create_volume(client, &import.volume, wanted, node, tenant).await?
        }
    };
    // What the volume held beyond the source's end goes, too.
    let rest = volume.size_bytes - size;
    let rest = (!is_new && rest > 0).then_some(Ok(Piece::Zero { offset: size, len: rest }));
    let pieces = pieces.chain(futures::stream::iter(rest)).boxed_local();
    let begin = Instant::now();
    let mut progress = Progress::new(output, "import");
    let copied = reached(client, &volume, &mut signals, async |uri| {
        let copied = into_nbd(uri, volume.size_bytes, pieces, is_new, &mut progress).await?;
        Ok(Copied { size_bytes: size, ..copied })
    })
    .await;
    progress.finish();
    if copied.is_err() && is_new {
        commands::remove_volume(client, &volume).await?;
    }
    let copied = copied?;
    output.show(&serde_json::json!({ "volume": volume, "copied": copied }), |_| told(&copied, &volume.name, begin))
}

/// Copies by an export of the volume, which is gone again afterwards if it was made for that, also after Ctrl-C.
async fn reached(
    client: &Client,
    volume: &Volume,
    signals: &mut Signals,
    copy: impl AsyncFnOnce(&NbdUri) -> Result<Copied, Failure>,
) -> Result<Copied, Failure> {
    let reach = Reach::open(client, volume).await?;
    let copied = tokio::select! {
        biased;
        () = signals.stop() => Err(Failure::failed("the copy was broken off")),
        copied = copy(&reach.uri) => copied,
    };
    let closed = reach.close(client).await;
    let copied = copied?;
    closed?;
    Ok(copied)
}

fn overwritable(volume: Volume, import: &Import, size: u64) -> Result<Volume, Failure> {
    if !import.overwrite {
        let message = format!("volume {} is there already", volume.name);
        return Err(Failure::new(Exit::Conflict, message).hint("add --overwrite to replace its content"));
    }
    if import.node.is_some() || import.size.is_some() {
        return Err(Failure::usage("--node and --size are for new volumes"));
    }
    if size > volume.size_bytes {
        let sizes = format!("the source has {}, the volume {}", show_bytes(size), show_bytes(volume.size_bytes));
        return Err(Failure::usage(sizes));
    }
    Ok(volume)
}

/// Writes pieces to an export and flushes it. On a fresh volume zeros need no writing.
pub async fn into_nbd(
    uri: &NbdUri,
    size: u64,
    pieces: Pieces,
    is_zero: bool,
    progress: &mut Progress,
) -> Result<Copied, Failure> {
    let target = nbd::connect(uri).await?;
    nbd::write(&target, size, pieces, is_zero, progress).await
}

/// Copies a raw file into an export known to be empty.
pub async fn file_into_nbd(path: &Path, uri: &NbdUri, progress: &mut Progress) -> Result<Copied, Failure> {
    let (size, pieces) = file::read(path)?;
    into_nbd(uri, size, pieces, true, progress).await
}

/// Copies a volume to a raw file or an NBD export.
pub async fn export(client: &Client, output: Output, export: &Export) -> Result<(), Failure> {
    let place = Place::parse(&export.destination)?;
    if let Place::File(path) = &place
        && path.exists()
        && !export.overwrite
    {
        let message = format!("{} is there already", path.display());
        return Err(Failure::new(Exit::Conflict, message).hint("add --overwrite to replace it"));
    }
    if let Place::Nbd(uri) = &place
        && !export.overwrite
    {
        let message = format!("what {uri} holds would be overwritten");
        return Err(Failure::new(Exit::Conflict, message).hint("add --overwrite if that is wanted"));
    }
    let volume = commands::get_volume(client, &export.volume).await?;
    let mut signals = Signals::listen()?;
    let begin = Instant::now();
    let mut progress = Progress::new(output, "export");
    let copied = reached(client, &volume, &mut signals, async |uri| from_nbd(uri, &place, &mut progress).await).await;
    progress.finish();
    let copied = copied?;
    output
        .show(&serde_json::json!({ "volume": volume, "copied": copied }), |_| told(&copied, &export.destination, begin))
}

async fn from_nbd(uri: &NbdUri, place: &Place, progress: &mut Progress) -> Result<Copied, Failure> {
    let source = nbd::connect(uri).await?;
    let (size, pieces) = nbd::read(&source).await?;
    match place {
        Place::File(path) => file::write(path, size, pieces, progress).await,
        Place::Nbd(uri) => into_nbd(uri, size, pieces, false, progress).await,
    }
}

fn told(copied: &Copied, to: &str, begin: Instant) -> String {
    let took = begin.elapsed();
    let rate = copied.data_bytes as f64 / took.as_secs_f64().max(1e-3);
    format!(
        "{} of data ({} with holes) copied to {to} in {}, {}/s",
        show_bytes(copied.data_bytes),
        show_bytes(copied.size_bytes),
        show_ms(took.as_millis() as u64),
        show_bytes(rate as u64),
    )
}

/// Ends with what was being done, where the system fails.
fn system<T>(result: std::io::Result<T>, doing: &str, path: &Path) -> Result<T, Failure> {
    result.or_fail(|| format!("cannot {doing} {}", path.display()))
}

/// Whether every byte is zero.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
