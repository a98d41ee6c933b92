//! The embedded store: RocksDB on a thread of its own.
//!
//! ```text
//!  key as given                → version, 8 bytes little-endian | value
//!  "\0version"                 → version of the last transaction, 8 bytes little-endian
//! ```
//! Invariants:
//! - one thread owns the database and carries requests out one by one, so that checking what is expected and writing
//!   are one step;
//! - every write batch is synced before it is answered, and holds the version's counter;
//! - after a failed write nothing more is written until the store is opened again: what is on disk is unknown.

use crate::{Entry, MetaError, MetaStore, Outcome, Transaction, Version};
use drover_base::LocalFuture;
use futures::channel::oneshot;
use rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use std::{path::Path, sync::mpsc, thread::JoinHandle};

/// Requests that may wait for the thread. The control plane sends one transaction at a time; reads are few.
const QUEUE_MAX: usize = 256;

const COUNTER: &[u8] = b"\0version";

/// The state is a few megabytes: small write buffers, few files.
const WRITE_BUFFER_BYTES: usize = 4 << 20;

type Reply<T> = oneshot::Sender<Result<T, MetaError>>;

enum Request {
    Get(String, Reply<Option<Entry>>),
    Scan(String, Reply<Vec<Entry>>),
    Commit(Transaction, Reply<Outcome>),
}

/// A handle to the thread; it closes the database when dropped.
pub struct RocksMetaStore {
    requests: Option<mpsc::SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl RocksMetaStore {
    /// Opens or creates the store in the folder.
    pub fn open(folder: &Path) -> Result<Self, MetaError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_keep_log_file_num(2);
        options.set_max_open_files(64);
        let db = DB::open(&options, folder).map_err(backend)?;
        let version = match db.get(COUNTER).map_err(backend)? {
            None => 0,
            Some(bytes) => {
                u64::from_le_bytes(bytes.as_slice().try_into().map_err(|_| MetaError::Corrupt("the version".into()))?)
            }
        };
        let (requests, queue) = mpsc::sync_channel(QUEUE_MAX);
        let owner = Owner { db, version, failed: None };
        let thread = std::thread::Builder::new()
            .name("control-meta".into())
            .spawn(move || owner.run(&queue))
            .map_err(|error| MetaError::Backend(error.to_string()))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    fn ask<T: 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> LocalFuture<'static, Result<T, MetaError>> {
        let (sender, receiver) = oneshot::channel();
        let gone = || MetaError::Backend("the store's thread ended".into());
        let sent = match &self.requests {
            Some(requests) => requests.try_send(request(sender)).map_err(|_| MetaError::Backend("overloaded".into())),
            None => Err(gone()),
        };
        Box::pin(async move {
            sent?;
            receiver.await.unwrap_or_else(|_| Err(gone()))
        })
    }
}

impl Drop for RocksMetaStore {
    fn drop(&mut self) {
        self.requests.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already answered as an error.
            let _ = thread.join();
        }
    }
}

impl MetaStore for RocksMetaStore {
    fn get(&self, key: &str) -> LocalFuture<'_, Result<Option<Entry>, MetaError>> {
        self.ask(|reply| Request::Get(key.into(), reply))
    }
    fn scan(&self, prefix: &str) -> LocalFuture<'_, Result<Vec<Entry>, MetaError>> {
        self.ask(|reply| Request::Scan(prefix.into(), reply))
    }
    fn commit(&self, transaction: Transaction) -> LocalFuture<'_, Result<Outcome, MetaError>> {
        self.ask(|reply| Request::Commit(transaction, reply))
    }
}

struct Owner {
    db: DB,
    version: u64,
    failed: Option<MetaError>,
}

impl Owner {
    fn run(mut self, queue: &mpsc::Receiver<Request>) {
        while let Ok(request) = queue.recv() {
            // Whoever asked may have gone.
            match request {
                Request::Get(key, reply) => drop(reply.send(self.get(&key))),
                Request::Scan(prefix, reply) => drop(reply.send(self.scan(&prefix))),
                Request::Commit(transaction, reply) => drop(reply.send(self.commit(transaction))),
            }
        }
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, MetaError> {
        match self.db.get_pinned(key).map_err(backend)? {
            None => Ok(None),
            Some(bytes) => entry(key.into(), &bytes).map(Some),
        }
    }

    fn scan(&self, prefix: &str) -> Result<Vec<Entry>, MetaError> {
        let mut entries = Vec::new();
        for pair in self.db.iterator(IteratorMode::From(prefix.as_bytes(), Direction::Forward)) {
            let (key, bytes) = pair.map_err(backend)?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            if &*key == COUNTER {
                continue;
            }
            let key = String::from_utf8(key.into_vec()).map_err(|_| MetaError::Corrupt("a key".into()))?;
            entries.push(entry(key, &bytes)?);
        }
        Ok(entries)
    }

    fn commit(&mut self, transaction: Transaction) -> Result<Outcome, MetaError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        for (key, expected) in &transaction.expect {
            if self.get(key)?.map(|entry| entry.version) != *expected {
                return Ok(Outcome::Conflict(key.clone()));
            }
        }
        let version = self.version + 1;
        let mut batch = WriteBatch::default();
        for key in &transaction.deletes {
            batch.delete(key);
        }
        for (key, value) in &transaction.puts {
            let mut bytes = version.to_le_bytes().to_vec();
            bytes.extend_from_slice(value);
            batch.put(key, bytes);
        }
        batch.put(COUNTER, version.to_le_bytes());
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        if let Err(error) = self.db.write_opt(batch, &synced) {
            let error = backend(error);
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.version = version;
        Ok(Outcome::Committed(Version(version)))
    }
}

fn entry(key: String, bytes: &[u8]) -> Result<Entry, MetaError> {
    match bytes.split_first_chunk::<8>() {
        Some((version, value)) => {
            Ok(Entry { key, value: value.to_vec(), version: Version(u64::from_le_bytes(*version)) })
        }
        None => Err(MetaError::Corrupt(key)),
    }
}

fn backend(error: rocksdb::Error) -> MetaError {
    MetaError::Backend(error.into_string())
}
