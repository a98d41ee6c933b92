//! From what a request ended with to its reply.

use super::output::Output;
use super::running::{Ended, Outcome, Ticket};
use drover_base::units::EXTENT_BYTES;
use drover_disk::Buffer;
use drover_wire::nbd::{Command, Errno, reply};

/// Shorter reads are not searched for zeroes.
const HOLE_BYTES_MIN: u32 = 4096;

/// Appends the reply to `output`.
pub(super) fn answer(output: &mut Output, structured: bool, ended: Ended) {
    let Ticket { cookie, command } = ended.ticket;
    let failed = |output: &mut Output, errno: Errno, why: &str| {
        output.append(|out| reply::failed(out, structured, cookie, errno, why));
    };
    match (ended.result, command) {
        (Err(error), _) => failed(output, Errno::of(&error, command.writes()), &error.to_string()),
        (Ok(Outcome::Read(data)), Command::Read { offset, len, in_one }) => {
            if data.len() != len as usize {
                tracing::error!(target: "nbd", len, got = data.len(), "a read returned another length than was asked");
                return failed(output, Errno::Io, "the read returned another length");
            }
            if structured && !in_one && len >= HOLE_BYTES_MIN {
                answer_sparse(output, cookie, offset, data);
            } else {
                output.append(|out| reply::data_header(out, structured, cookie, offset, len, true));
                output.append_data(data);
            }
        }
        (Ok(Outcome::Status(runs)), Command::BlockStatus { len, one, .. }) => {
            let is_told = output.append(|out| reply::block_status(out, cookie, len, one, &runs));
            if !is_told {
                tracing::error!(target: "nbd", "a block status returned no run");
                failed(output, Errno::Io, "the block status has no run");
            }
        }
        (Ok(_), _) => output.append(|out| reply::done(out, cookie)),
    }
}

/// A request of no bytes: nothing to carry out.
pub(super) fn answer_empty(output: &mut Output, structured: bool, ticket: Ticket) {
    let is_read = matches!(ticket.command, Command::Read { .. });
    output.append(|out| match is_read && structured {
        true => reply::empty(out, ticket.cookie),
        false => reply::done(out, ticket.cookie),
    });
}

/// A read's data as chunks: runs of extents that are all zeroes travel as holes.
fn answer_sparse(output: &mut Output, cookie: u64, offset: u64, mut data: Buffer) {
    let mut at = offset;
    while !data.is_empty() {
        let (len, is_hole) = first_run(at, &data);
        let piece = data.split_to(len);
        let is_last = data.is_empty();
        if is_hole {
            output.append(|out| reply::hole(out, cookie, at, len as u32, is_last));
        } else {
            output.append(|out| reply::data_header(out, true, cookie, at, len as u32, is_last));
            output.append_data(piece);
        }
        at += len as u64;
    }
}

/// How many of the first bytes are alike, cut at extents, and whether they are zeroes.
fn first_run(offset: u64, data: &[u8]) -> (usize, bool) {
    let extent_end = |at: usize| {
        let position = offset + at as u64;
        let end = (position / EXTENT_BYTES + 1) * EXTENT_BYTES - offset;
        (end as usize).min(data.len())
    };
    let mut len = extent_end(0);
    let is_hole = is_zero(&data[..len]);
    while len < data.len() {
        let next = extent_end(len);
        if is_zero(&data[len..next]) != is_hole {
            break;
        }
        len = next;
    }
    (len, is_hole)
}

/// Looks at no more than the first bytes of most data.
fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
