//! NBD exports as source and target of a copy.

use super::Progress;
use super::piece::{Copied, IN_FLIGHT, PIECE_BYTES, Piece, Pieces, split};
use crate::failure::{Context, Exit, Failure};
use bytes::Bytes;
use drover_node::nbd::{ClientError, NbdClient, NbdUri};
use futures::{StreamExt, TryStreamExt, stream};
use std::cell::{Cell, RefCell};

/// Bytes asked about in one request for block status.
const STATUS_BYTES: u64 = 1 << 30;

/// Bytes of one request for zeros: its length field has 32 bits, and other servers take long over large ones.
const ZERO_BYTES: u64 = 64 << 20;

/// Connects; the connection runs until every clone of the client is dropped.
pub async fn connect(uri: &NbdUri) -> Result<NbdClient, Failure> {
    let (client, driver) = NbdClient::connect(uri)
        .await
        .map_err(|error| Failure::new(Exit::Unreachable, format!("cannot attach to {uri}")).cause(error))?;
    tokio::task::spawn_local(async move {
        // Requests under way are told of a failure; nobody else has to know.
        let _ = driver.run().await;
    });
    Ok(client)
}

/// Size and pieces of an export.
pub async fn read(client: &NbdClient) -> Result<(u64, Pieces), Failure> {
    let size = client.size_bytes();
    let most = PIECE_BYTES.min(client.payload_bytes_max());
    let client = client.clone();
    let ranges = stream::try_unfold((client.clone(), 0), move |(client, at)| async move {
        if at >= size {
            return Ok::<_, Failure>(None);
        }
        let runs = status(&client, at, size).await?;
        let end = runs.last().map_or(size, |(end, _)| *end);
        Ok(Some((stream::iter(cut(at, &runs, most)), (client, end))))
    });
    let pieces = ranges
        .map_ok(|ranges| ranges.map(Ok::<_, Failure>))
        .try_flatten()
        .map_ok(move |range| fetch(client.clone(), range))
        .try_buffered(IN_FLIGHT)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok::<_, Failure>)))
        .try_flatten();
    Ok((size, pieces.boxed_local()))
}

/// Runs from `at`: where each ends, and whether it is zero. At least one, each longer than nothing.
async fn status(client: &NbdClient, at: u64, size: u64) -> Result<Vec<(u64, bool)>, Failure> {
    let len = (size - at).min(STATUS_BYTES);
    if !client.has_block_status() {
        return Ok(vec![(at + len, false)]);
    }
    let runs = client.block_status(at, len).await.or_fail(|| "cannot ask the export for its holes".into())?;
    let mut end = at;
    let ends = runs.into_iter().map(|(len, status)| {
        end = (end + len).min(size);
        (end, status.zero)
    });
    let ends: Vec<(u64, bool)> = ends.collect();
    if ends.last().is_none_or(|(end, _)| *end <= at) {
        return Err(Failure::failed("the export tells nothing about its holes"));
    }
    Ok(ends)
}

#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    len: u64,
    is_zero: bool,
}

fn cut(from: u64, runs: &[(u64, bool)], most: u64) -> Vec<Range> {
    let mut at = from;
    let mut ranges = Vec::new();
    for (end, is_zero) in runs {
        while at < *end {
            let len = if *is_zero { end - at } else { (end - at).min(most) };
            ranges.push(Range { offset: at, len, is_zero: *is_zero });
            at += len;
        }
    }
    ranges
}

async fn fetch(client: NbdClient, range: Range) -> Result<Vec<Piece>, Failure> {
    let Range { offset, len, is_zero } = range;
    if is_zero {
        return Ok(vec![Piece::Zero { offset, len }]);
    }
    let data = client.read(offset, len).await.or_fail(|| format!("cannot read the export at {offset}"))?;
    Ok(split(offset, Bytes::from(data)))
}

/// Writes pieces and flushes. Where the target `is_fresh`, it reads as zero already.
pub async fn write(
    client: &NbdClient,
    size: u64,
    pieces: Pieces,
    is_fresh: bool,
    progress: &mut Progress,
) -> Result<Copied, Failure> {
    if client.read_only() {
        return Err(Failure::failed("the export is read-only"));
    }
    if size > client.size_bytes() {
        return Err(Failure::failed(format!("the target has {} bytes, the source {size}", client.size_bytes())));
    }
    let (data_bytes, done) = (Cell::new(0), Cell::new(0));
    let progress = RefCell::new(progress);
    pieces
        .try_for_each_concurrent(IN_FLIGHT, async |piece| {
            let len = piece.len();
            let (offset, result) = match piece {
                Piece::Data { offset, data } => {
                    data_bytes.set(data_bytes.get() + len);
                    (offset, client.write(offset, data, false).await)
                }
                Piece::Zero { offset, .. } if is_fresh => (offset, Ok(())),
                Piece::Zero { offset, len } => (offset, zero(client, offset, len).await),
            };
            result.or_fail(|| format!("cannot write the export at {offset}"))?;
            done.set(done.get() + len);
            progress.borrow_mut().set(done.get(), size, "");
            Ok(())
        })
        .await?;
    match client.flush().await {
        // A server without caches offers no flush.
        Err(ClientError::NotOffered(_)) => {}
        result => result.or_fail(|| "cannot flush the export".into())?,
    }
    Ok(Copied { size_bytes: size, data_bytes: data_bytes.get() })
}

async fn zero(client: &NbdClient, offset: u64, len: u64) -> Result<(), ClientError> {
    let mut at = offset;
    while at < offset + len {
        let step = (offset + len - at).min(ZERO_BYTES);
        match client.write_zeroes(at, step, true, false, false).await {
            Err(ClientError::NotOffered(_)) => {
                let step = step.min(PIECE_BYTES);
                client.write(at, Bytes::from(vec![0; step as usize]), false).await?;
                at += step;
            }
            result => {
                result?;
                at += step;
            }
        }
    }
    Ok(())
}
