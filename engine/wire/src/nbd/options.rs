//! Payloads of options, read without trusting a length in them.

use super::proto::bounds::STRING_BYTES_MAX;
use super::proto::info;

/// The option's payload is shorter or longer than its own lengths say, or a text in it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What `INFO` and `GO` ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InfoRequests {
    pub name: bool,
    pub description: bool,
    pub block_size: bool,
}

/// A cursor over a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take(2)?.try_into().map(u16::from_be_bytes).map_err(|_| Malformed)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }
    /// A text with its 32-bit length in front.
    fn text(&mut self) -> Result<&'a str, Malformed> {
        let len = self.u32()? as usize;
        text(self.take(len)?)
    }
    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// A string of the protocol.
pub(super) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_BYTES_MAX {
        return Err(Malformed);
    }
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

/// The payload of `INFO` and `GO`: `name length u32 | name | count u16 | count × request u16`.
pub(super) fn parse_info(payload: &[u8]) -> Result<(&str, InfoRequests), Malformed> {
    let mut reader = Reader(payload);
    let name = reader.text()?;
    let mut requests = InfoRequests::default();
    for _ in 0..reader.u16()? {
        match reader.u16()? {
            info::NAME => requests.name = true,
            info::DESCRIPTION => requests.description = true,
            info::BLOCK_SIZE => requests.block_size = true,
            _ => {}
        }
    }
    reader.end()?;
    Ok((name, requests))
}

/// Whether queries of `LIST_META_CONTEXT` and `SET_META_CONTEXT` choose `base:allocation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ContextQueries {
    pub count: u32,
    /// `base:allocation` itself is among them.
    pub exact: bool,
    /// `base:` is among them; it matches when listing only.
    pub wildcard: bool,
}

/// The payload of both: `name length u32 | name | count u32 | count × (query length u32 | query)`.
pub(super) fn parse_contexts(payload: &[u8]) -> Result<(&str, ContextQueries), Malformed> {
    let mut reader = Reader(payload);
    let name = reader.text()?;
    let count = reader.u32()?;
    let mut queries = ContextQueries { count, ..Default::default() };
    // A count beyond what the payload holds ends at its end: each query takes four bytes or more.
    for _ in 0..count {
        match reader.text()? {
            super::proto::CONTEXT_NAME => queries.exact = true,
            "base:" => queries.wildcard = true,
            // The protocol asks to ignore what is of another namespace and leaves that without one to us.
            _ => {}
        }
    }
    reader.end()?;
    Ok((name, queries))
}
