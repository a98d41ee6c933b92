//! Metadata in RocksDB, which is called from a thread of its own.
//!
//! ```text
//!  shards ──► bounded queue ──► thread: every commit that waits becomes one synced batch ──► answers
//! ```
//!
//! Invariants
//! - Requests are carried out in the order in which they were queued, so a read sees the commits before it.
//! - A commit is answered after the sync of the batch that holds it. A synced batch costs the same for one
//!   commit and for a hundred.
//! - After a failed write nothing is known of it: every later commit fails until the store is opened again.
//! - Hints are not stored where room is short: they share a file system with what must never find it full.

use super::{Batch, Change, Meta, MetaError, Pairs};
use drover_base::LocalFuture;
use futures::FutureExt;
use queue::{Queue, Queued};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode, LogLevel, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use std::{
    collections::VecDeque,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};
use tokio::sync::oneshot;

mod queue;

/// Requests queued or being worked on; more wait at their callers. Enough that groups form under load.
const QUEUE_REQUESTS_MAX: usize = 1024;
/// Changes of one group: bounds the memory of its batch and the time until its first commit is answered.
const GROUP_CHANGES_MAX: usize = 16_384;
/// Longest key. It bounds the range that “everything” stands for.
pub const KEY_BYTES_MAX: usize = 1024;
/// Memory of one table being filled; with the cache below, RocksDB stays under 100 MiB.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
const CACHE_BYTES: usize = 32 << 20;
/// Log kept for recovery: bounds how long opening takes after a crash.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// What hints leave free: a tenth of the file system, within these bounds. The lower is what metadata may need while nobody
/// looks, with the tables that are being merged; the upper is plenty on any.
const LEFT_FREE_MIN: u64 = 2 << 30;
const LEFT_FREE_MAX: u64 = 8 << 30;

type Answer<T> = oneshot::Sender<Result<T, MetaError>>;

enum Request {
    Get { key: Vec<u8>, answer: Answer<Option<Vec<u8>>> },
    Scan { prefix: Vec<u8>, answer: Answer<Pairs> },
    Commit { batch: Batch, answer: Answer<()> },
}

/// Of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub free: u64,
    pub total: u64,
}

impl Room {
    fn is_short(&self) -> bool {
        self.free < (self.total / 10).clamp(LEFT_FREE_MIN, LEFT_FREE_MAX)
    }
}

/// Tells the room where hints are stored; `None`: it cannot be told.
type Measure = Box<dyn Fn() -> Option<Room> + Send>;

/// A handle; clones share the store. Dropping the last one closes it.
#[derive(Clone)]
pub struct RocksMeta {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<Queue<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RocksMeta {
    /// Opens the store in the folder `path`, made if absent. Blocks for as long as recovery takes. Fails if
    /// another process has it open.
    pub fn open(path: &Path) -> Result<Self, MetaError> {
        Self::open_as(path, None)
    }

    /// The same for what may be lost: a commit is answered without a sync, and a crash takes the last ones away, whole.
    /// Where `measure` tells of little room, commits that put something fail, until there is more.
    pub fn open_hints(path: &Path, measure: impl Fn() -> Option<Room> + Send + 'static) -> Result<Self, MetaError> {
        Self::open_as(path, Some(Box::new(measure)))
    }

    fn open_as(path: &Path, measure: Option<Measure>) -> Result<Self, MetaError> {
        let db = DB::open(&options(), path).map_err(backend)?;
        let queue = Arc::new(Queue::new(QUEUE_REQUESTS_MAX));
        let worker = Worker { db, hints: measure.map(Hints::new), failure: None, queue: queue.clone() };
        let thread = thread::Builder::new()
            .name("meta".into())
            .spawn(move || worker.run())
            .map_err(|error| MetaError::Backend(format!("no thread for the metadata store: {error}")))?;
        Ok(Self { shared: Arc::new(Shared { queue, thread: Mutex::new(Some(thread)) }) })
    }

    /// The handle as components take it.
    pub fn handle(&self) -> Rc<dyn Meta> {
        Rc::new(self.clone())
    }

    /// Carries out what is queued, closes the store and waits for that; blocks the caller's thread. Later
    /// requests of any clone fail.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Queues the request and awaits its answer.
    fn ask<T: 'static>(&self, request: impl FnOnce(Answer<T>) -> Request) -> LocalFuture<'_, Result<T, MetaError>> {
        let (answer, receiver) = oneshot::channel();
        let mut push = Box::pin(self.shared.queue.push(request(answer)));
        // Polled once at the call, so that requests keep the order of their calls.
        let is_queued = (&mut push).now_or_never().is_some();
        Box::pin(async move {
            if !is_queued {
                push.await;
            }
            receiver.await.unwrap_or_else(|_| Err(MetaError::Backend("the metadata store is closed".into())))
        })
    }
}

impl Shared {
    fn close(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been printed and has failed every request since.
            let _ = thread.join();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl Meta for RocksMeta {
    fn get(&self, key: &[u8]) -> LocalFuture<'_, Result<Option<Vec<u8>>, MetaError>> {
        self.ask(|answer| Request::Get { key: key.to_vec(), answer })
    }

    fn scan(&self, prefix: &[u8]) -> LocalFuture<'_, Result<Pairs, MetaError>> {
        self.ask(|answer| Request::Scan { prefix: prefix.to_vec(), answer })
    }

    fn commit(&self, batch: Batch) -> LocalFuture<'_, Result<(), MetaError>> {
        for change in &batch.changes {
            let (Change::Put { key, .. } | Change::Delete { key } | Change::DeletePrefix { prefix: key }) = change;
            assert!(key.len() <= KEY_BYTES_MAX, "a metadata key of {} bytes", key.len());
        }
        self.ask(|answer| Request::Commit { batch, answer })
    }
}

/// What runs on the thread.
struct Worker {
    db: DB,
    /// What is stored are hints: not synced, and only while there is room.
    hints: Option<Hints>,
    /// Why commits fail from now on.
    failure: Option<MetaError>,
    queue: Arc<Queue<Request>>,
}

struct Hints {
    measure: Measure,
    /// Told when it first happened: the room may stay short for days.
    is_shortage_told: bool,
}

impl Hints {
    fn new(measure: Measure) -> Self {
        Self { measure, is_shortage_told: false }
    }

    fn check_room(&mut self) -> Result<(), MetaError> {
        let Some(room) = (self.measure)().filter(Room::is_short) else { return Ok(()) };
        if !std::mem::replace(&mut self.is_shortage_told, true) {
            tracing::warn!(
                free = room.free,
                total = room.total,
                "the file system has little room: no hints are stored"
            );
        }
        Err(MetaError::Backend(format!("hints leave the last {} bytes free", room.free)))
    }
}

impl Drop for Worker {
    /// Also when the thread panics: whoever waits is told.
    fn drop(&mut self) {
        self.queue.close();
        self.queue.clear();
    }
}

impl Worker {
    fn run(mut self) {
        while let Some(mut waiting) = self.queue.take_all() {
            while let Some(next) = waiting.pop_front() {
                // An answer that nobody waits for any more is dropped.
                match next.item {
                    Request::Get { key, answer } => drop(answer.send(self.db.get(key).map_err(backend))),
                    Request::Scan { prefix, answer } => drop(answer.send(self.scan(&prefix))),
                    Request::Commit { batch, answer } => self.commit_group(batch, answer, &mut waiting),
                }
            }
        }
    }

    fn scan(&self, prefix: &[u8]) -> Result<Pairs, MetaError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end_of(prefix));
        let found = self.db.iterator_opt(IteratorMode::From(prefix, Direction::Forward), options);
        found.map(|pair| pair.map(|(key, value)| (key.into_vec(), value.into_vec())).map_err(backend)).collect()
    }

    /// Commits the batch together with those that wait right behind it.
    fn commit_group(&mut self, batch: Batch, answer: Answer<()>, waiting: &mut VecDeque<Queued<Request>>) {
        if let Err(error) = self.check_room(&batch) {
            // A caller that has gone does not want it.
            let _ = answer.send(Err(error));
            return;
        }
        let mut group = WriteBatch::default();
        let mut answers = vec![answer];
        add(&mut group, batch);
        while group.len() < GROUP_CHANGES_MAX
            && let Some(next) = waiting.pop_front_if(|next| match &next.item {
                Request::Commit { batch, .. } => self.check_room(batch).is_ok(),
                _ => false,
            })
        {
            if let Request::Commit { batch, answer } = next.item {
                add(&mut group, batch);
                answers.push(answer);
            }
        }
        let result = self.write(group);
        for answer in answers {
            // A caller that has gone does not want it.
            let _ = answer.send(result.clone());
        }
    }

    /// What only deletes costs next to nothing, and what it deletes may mislead.
    fn check_room(&mut self, batch: &Batch) -> Result<(), MetaError> {
        let puts = batch.changes.iter().any(|change| matches!(change, Change::Put { .. }));
        match &mut self.hints {
            Some(hints) if puts => hints.check_room(),
            _ => Ok(()),
        }
    }

    fn write(&mut self, group: WriteBatch) -> Result<(), MetaError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let mut options = WriteOptions::default();
        options.set_sync(self.hints.is_none());
        let result = self.db.write_opt(group, &options).map_err(backend);
        self.failure = result.clone().err();
        result
    }
}

fn add(group: &mut WriteBatch, batch: Batch) {
    for change in batch.changes {
        match change {
            Change::Put { key, value } => group.put(key, value),
            Change::Delete { key } => group.delete(key),
            Change::DeletePrefix { prefix } => {
                let end = end_of(&prefix);
                group.delete_range(prefix, end);
            }
        }
    }
}

/// The least key after all those that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let Some(last) = prefix.iter().rposition(|&byte| byte < u8::MAX) else {
        return vec![u8::MAX; KEY_BYTES_MAX + 1];
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end
}

fn options() -> Options {
    let mut tables = BlockBasedOptions::default();
    tables.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&tables);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_max_total_wal_size(LOG_BYTES_MAX);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    // A crash tears at most the log's tail, which was never answered. Damage before it must be told: the
    // default would silently go back to an older state.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options
}

fn backend(error: rocksdb::Error) -> MetaError {
    MetaError::Backend(error.to_string())
}

#[cfg(test)]
mod tests;
