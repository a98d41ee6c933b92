//! What the clients of an export were served, by the workload they are.
//!
//! A connection's workload is the one its client names (`export@workload`), else the one the export was made with.
//!
//! Invariants
//! - Only what was carried out counts, once, at the node that the client is attached to.
//! - Accounts are bounded: over [`ACCOUNTS_MAX`], those without a connection make room, longest unused first; where
//!   every one has a connection, a new workload is counted with those that gave no name.
//! - Figures only grow as long as their account lives, and end with this start of the node.

use crate::nbd::{BlockExport, BlockStatus, ExportFacts, ZeroRequest};
use drover_base::{IoError, LocalFuture, VolumeId};
use drover_disk::Buffer;
use drover_wire::admin::{Export, WorkloadUsage};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

/// Accounts of a shard: a node's status holds 1,024 names of some 400 bytes for each of them.
const ACCOUNTS_MAX: usize = 1024;

/// Export and workload.
type Name = (String, Option<String>);

#[derive(Default)]
pub(crate) struct Accounts(RefCell<BTreeMap<Name, Rc<Account>>>);

/// The account of one workload at one export.
struct Account {
    volume: VolumeId,
    connections: Cell<u64>,
    /// When its last connection began, counted in connections.
    opened: Cell<u64>,
    read: Count,
    written: Count,
}

#[derive(Default)]
struct Count {
    requests: Cell<u64>,
    bytes: Cell<u64>,
}

impl Count {
    fn add(&self, bytes: u64) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
    }
}

/// A connection's share in its account, open as long as it lives.
struct Share(Rc<Account>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

impl Accounts {
    /// The export as a new connection has it, charged to the connection's workload.
    pub fn charged(&self, export: &Export, named: Option<&str>, inner: Rc<dyn BlockExport>) -> Rc<dyn BlockExport> {
        Rc::new(ChargedExport { inner, share: self.open(export, named) })
    }

    fn open(&self, export: &Export, named: Option<&str>) -> Share {
        let workload = named.map(String::from).or_else(|| export.workload.clone());
        let mut accounts = self.0.borrow_mut();
        let mut name = (export.name.clone(), workload);
        if !accounts.contains_key(&name) && accounts.len() >= ACCOUNTS_MAX && !make_room(&mut accounts) {
            name.1 = None;
        }
        let opened = accounts.values().map(|account| account.opened.get()).max().unwrap_or(0) + 1;
        let account = accounts.entry(name).or_insert_with(|| Account::of(export.volume));
        if account.volume != export.volume {
            // The export's name was given to another volume.
            *account = Account::of(export.volume);
        }
        account.opened.set(opened);
        account.connections.set(account.connections.get() + 1);
        Share(account.clone())
    }

    /// By export and workload.
    pub fn usage(&self) -> Vec<WorkloadUsage> {
        let accounts = self.0.borrow();
        let usage = |((export, workload), account): (&Name, &Rc<Account>)| WorkloadUsage {
            export: export.clone(),
            volume: account.volume,
            workload: workload.clone(),
            connections: account.connections.get(),
            read_requests: account.read.requests.get(),
            read_bytes: account.read.bytes.get(),
            write_requests: account.written.requests.get(),
            written_bytes: account.written.bytes.get(),
        };
        accounts.iter().map(usage).collect()
    }
}

impl Account {
    fn of(volume: VolumeId) -> Rc<Self> {
        let (connections, opened) = Default::default();
        Rc::new(Self { volume, connections, opened, read: Count::default(), written: Count::default() })
    }
}

/// Forgets the account that was opened the longest ago of those without a connection; whether there was one.
fn make_room(accounts: &mut BTreeMap<Name, Rc<Account>>) -> bool {
    let idle = accounts.iter().filter(|(_, account)| account.connections.get() == 0);
    let oldest = idle.min_by_key(|(_, account)| account.opened.get()).map(|(name, _)| name.clone());
    oldest.is_some_and(|name| accounts.remove(&name).is_some())
}

/// An export that counts what it serves.
struct ChargedExport {
    inner: Rc<dyn BlockExport>,
    share: Share,
}

impl BlockExport for ChargedExport {
    fn facts(&self) -> ExportFacts {
        self.inner.facts()
    }

    fn read(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<Buffer, IoError>> {
        Box::pin(async move {
            let read = self.inner.clone().read(offset, len).await?;
            self.share.0.read.add(len);
            Ok(read)
        })
    }

    fn write(self: Rc<Self>, offset: u64, data: Buffer, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            let len = data.len() as u64;
            self.inner.clone().write(offset, data, fua).await?;
            self.share.0.written.add(len);
            Ok(())
        })
    }

    fn write_zeroes(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        zero: ZeroRequest,
    ) -> LocalFuture<'static, Result<(), IoError>> {
        Box::pin(async move {
            self.inner.clone().write_zeroes(offset, len, zero).await?;
            self.share.0.written.add(len);
            Ok(())
        })
    }

    fn trim(self: Rc<Self>, offset: u64, len: u64, fua: bool) -> LocalFuture<'static, Result<(), IoError>> {
        self.inner.clone().trim(offset, len, fua)
    }

    fn flush(self: Rc<Self>) -> LocalFuture<'static, Result<(), IoError>> {
        self.inner.clone().flush()
    }

    fn cache(self: Rc<Self>, offset: u64, len: u64) -> LocalFuture<'static, Result<(), IoError>> {
        self.inner.clone().cache(offset, len)
    }

    fn block_status(
        self: Rc<Self>,
        offset: u64,
        len: u64,
        most: usize,
    ) -> LocalFuture<'static, Result<Vec<(u64, BlockStatus)>, IoError>> {
        self.inner.clone().block_status(offset, len, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(name: &str, workload: Option<&str>) -> Export {
        Export { name: name.into(), volume: VolumeId(1), size_bytes: 1, workload: workload.map(Into::into) }
    }

    fn find(accounts: &Accounts, export: &str, workload: Option<&str>) -> WorkloadUsage {
        let is_it = |usage: &WorkloadUsage| usage.export == export && usage.workload.as_deref() == workload;
        accounts.usage().into_iter().find(is_it).expect("it has an account")
    }

    #[test]
    fn a_connection_is_charged_to_the_name_it_gave_else_to_the_export_s() {
        let accounts = Accounts::default();
        let open = |export_workload, named| accounts.open(&export("v", export_workload), named);
        let (named, plain) = (open(Some("db"), Some("web")), open(Some("db"), None));
        let again = open(Some("db"), Some("web"));
        named.0.written.add(4096);
        again.0.written.add(512);
        plain.0.read.add(100);
        drop(again);
        let web = find(&accounts, "v", Some("web"));
        assert_eq!((web.connections, web.write_requests, web.written_bytes, web.read_bytes), (1, 2, 4608, 0));
        let db = find(&accounts, "v", Some("db"));
        assert_eq!((db.connections, db.read_requests, db.read_bytes, db.written_bytes), (1, 1, 100, 0));
        let other = accounts.open(&export("w", None), None);
        drop((named, plain, other));
        assert_eq!(accounts.usage().iter().map(|usage| usage.connections).sum::<u64>(), 0);
        assert_eq!(find(&accounts, "v", Some("web")).written_bytes, 4608, "figures outlive the connection");
    }

    #[test]
    fn an_export_that_became_another_volume_s_begins_anew() {
        let accounts = Accounts::default();
        let before = accounts.open(&export("v", None), None);
        before.0.written.add(1);
        let _after = accounts.open(&Export { volume: VolumeId(2), ..export("v", None) }, None);
        let usage = find(&accounts, "v", None);
        assert_eq!((usage.volume, usage.connections, usage.written_bytes), (VolumeId(2), 1, 0));
        before.0.written.add(1);
        drop(before);
        assert_eq!(find(&accounts, "v", None), usage);
    }

    /// A client may name as many workloads as it likes.
    #[test]
    fn accounts_are_bounded() {
        let accounts = Accounts::default();
        let mut open: Vec<Share> = Vec::new();
        for number in 0..ACCOUNTS_MAX {
            open.push(accounts.open(&export("v", None), Some(&number.to_string())));
        }
        let charged = accounts.open(&export("v", None), Some("more"));
        charged.0.read.add(7);
        assert_eq!(find(&accounts, "v", None).read_bytes, 7, "counted with those that gave no name");
        drop(open.drain(10..20));
        // The account of those without a name is one more than the bound.
        let (_more, _still_more) =
            (accounts.open(&export("v", None), Some("more")), accounts.open(&export("v", None), Some("still more")));
        let is_gone = |name: &str| accounts.usage().iter().all(|usage| usage.workload.as_deref() != Some(name));
        assert!(!is_gone("more") && is_gone("10") && !is_gone("9"), "the longest unused makes room");
        assert!(accounts.usage().len() <= ACCOUNTS_MAX + 1);
    }
}
