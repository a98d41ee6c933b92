//! From a request to the export's future that carries it out.

use super::running::Work;
use super::service::{BlockExport, ZeroRequest};
use drover_base::IoError;
use drover_base::limits::REQUEST_BYTES_MAX;
use drover_disk::Buffer;
use drover_wire::nbd::{Command, bounds};
use std::{future::Future, rc::Rc};

/// The work of any request but a write.
pub(super) fn begin(export: &Rc<dyn BlockExport>, command: Command) -> Work {
    let export = export.clone();
    match command {
        Command::Read { offset, len, .. } => Work::Read(export.read(offset, len.into())),
        Command::Flush => Work::Plain(export.flush()),
        Command::Cache { offset, len } => Work::Plain(export.cache(offset, u64::from(len).min(REQUEST_BYTES_MAX))),
        Command::BlockStatus { offset, len, one } => {
            let most = if one { 1 } else { bounds::STATUS_RUNS_MAX };
            Work::Status(export.block_status(offset, len.into(), most))
        }
        Command::Trim { offset, len, fua } if u64::from(len) <= REQUEST_BYTES_MAX => {
            Work::Plain(export.trim(offset, len.into(), fua))
        }
        Command::Trim { offset, len, fua } => {
            Work::Plain(Box::pin(in_pieces(offset, len, fua, export, |export, offset, len| {
                export.trim(offset, len, false)
            })))
        }
        Command::WriteZeroes { offset, len, may_unmap, fast_only, fua } => {
            let zero = ZeroRequest { may_unmap, fast_only, fua };
            if u64::from(len) <= REQUEST_BYTES_MAX {
                return Work::Plain(export.write_zeroes(offset, len.into(), zero));
            }
            let zero = ZeroRequest { fua: false, ..zero };
            Work::Plain(Box::pin(in_pieces(offset, len, fua, export, move |export, offset, len| {
                export.write_zeroes(offset, len, zero)
            })))
        }
        Command::Write { .. } => unreachable!("a write is started with its payload, by `write`"),
    }
}

pub(super) fn write(export: &Rc<dyn BlockExport>, offset: u64, data: Buffer, fua: bool) -> Work {
    Work::Plain(export.clone().write(offset, data, fua))
}

/// A request without payload may be up to 4 GiB long: it is carried out in pieces, one after the other, and one
/// flush stands for their FUA.
async fn in_pieces<F>(
    offset: u64,
    len: u32,
    fua: bool,
    export: Rc<dyn BlockExport>,
    piece: impl Fn(Rc<dyn BlockExport>, u64, u64) -> F,
) -> Result<(), IoError>
where
    F: Future<Output = Result<(), IoError>>,
{
    let end = offset + u64::from(len);
    let mut at = offset;
    while at < end {
        // Pieces end at multiples of their size, so that only the first and the last cut an extent.
        let next = (at / REQUEST_BYTES_MAX + 1) * REQUEST_BYTES_MAX;
        let count = next.min(end) - at;
        piece(export.clone(), at, count).await?;
        at += count;
    }
    if fua { export.flush().await } else { Ok(()) }
}
