use super::*;
use crate::meta::contract;
use futures::{executor::block_on, future::join_all};
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::tempdir;

fn put(key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.put(key.to_vec(), value.to_vec());
    batch
}

#[test]
fn it_is_a_metadata_store() {
    let folder = tempdir().unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    block_on(contract::check(&meta));
}

#[test]
fn it_is_there_after_closing_and_after_dropping() {
    let folder = tempdir().unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    block_on(meta.commit(put(b"a", b"1"))).unwrap();
    RocksMeta::open(folder.path()).err().expect("a store is opened once");
    let clone = meta.clone();
    meta.close();
    meta.close();
    for meta in [meta, clone] {
        block_on(meta.get(b"a")).expect_err("it is closed");
        block_on(meta.commit(put(b"a", b"2"))).expect_err("it is closed");
    }
    for _ in 0..3 {
        let meta = RocksMeta::open(folder.path()).unwrap();
        assert_eq!(block_on(meta.get(b"a")).unwrap(), Some(b"1".to_vec()));
    }
}

/// More commits than the queue holds wait at their callers; none is lost and their order stays.
#[test]
fn a_full_queue_waits() {
    let folder = tempdir().unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    let commits = (0..3000u32).map(|number| meta.commit(put(b"a", &number.to_be_bytes())));
    assert!(block_on(join_all(commits)).iter().all(Result::is_ok));
    assert_eq!(block_on(meta.get(b"a")).unwrap(), Some(2999u32.to_be_bytes().to_vec()));
}

/// A commit whose caller has gone is carried out all the same.
#[test]
fn a_dropped_commit_is_applied() {
    let folder = tempdir().unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    drop(meta.commit(put(b"a", b"1")));
    assert_eq!(block_on(meta.get(b"a")).unwrap(), Some(b"1".to_vec()));
}

/// A worker that runs on no thread yet.
fn worker(db: DB) -> Worker {
    Worker { db, hints: None, failure: None, queue: Arc::new(Queue::new(16)) }
}

#[test]
fn commits_that_wait_become_one_batch() {
    let folder = tempdir().unwrap();
    let mut worker = worker(DB::open(&options(), folder.path()).unwrap());
    let (queue, mut answers) = (worker.queue.clone(), Vec::new());
    for number in 0..6u8 {
        let (answer, receiver) = oneshot::channel();
        block_on(queue.push(Request::Commit { batch: put(b"a", &[number]), answer }));
        answers.push(receiver);
        if number == 3 {
            let (answer, _) = oneshot::channel();
            block_on(queue.push(Request::Get { key: b"a".to_vec(), answer }));
        }
    }
    let mut waiting = queue.take_all().unwrap();
    let Some(Request::Commit { batch, answer }) = waiting.pop_front().map(|first| first.item) else { panic!() };
    worker.commit_group(batch, answer, &mut waiting);
    assert_eq!(waiting.len(), 3, "a read is not overtaken");
    assert!(answers[..4].iter_mut().all(|answer| answer.try_recv() == Ok(Ok(()))));
    assert!(answers[4..].iter_mut().all(|answer| answer.try_recv().is_err()));
    assert_eq!(worker.scan(b"").unwrap(), vec![(b"a".to_vec(), vec![3])]);
}

#[test]
fn a_failed_write_poisons() {
    let folder = tempdir().unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    block_on(meta.commit(put(b"a", b"1"))).unwrap();
    meta.close();
    // A store opened for reading refuses writes as a failing one does.
    let mut worker = worker(DB::open_for_read_only(&options(), folder.path(), false).unwrap());
    let group = || {
        let mut group = WriteBatch::default();
        add(&mut group, put(b"b", b"2"));
        group
    };
    let failure = worker.write(group()).unwrap_err();
    worker.db = DB::open(&options(), folder.path()).unwrap();
    assert_eq!(worker.write(group()), Err(failure), "it works again, but nobody knows what the failed one left");
    assert_eq!(worker.scan(b"").unwrap(), vec![(b"a".to_vec(), b"1".to_vec())]);
}

/// Damage in the middle of the log is an error, not a silent step back; a torn tail is neither.
#[test]
fn a_damaged_log_is_told_and_a_torn_tail_is_dropped() {
    let folder = tempdir().unwrap();
    let log = |folder: &Path| {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
    };
    let meta = RocksMeta::open(folder.path()).unwrap();
    for number in 0..20u8 {
        block_on(meta.commit(put(&[number], &[number; 5000]))).unwrap();
    }
    let log = log(folder.path());
    let bytes = std::fs::read(&log).unwrap();
    meta.close();
    let mut damaged = bytes.clone();
    damaged[40_000] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    RocksMeta::open(folder.path()).err().expect("damage is told");
    std::fs::write(&log, &bytes[..bytes.len() - 100]).unwrap();
    let meta = RocksMeta::open(folder.path()).unwrap();
    assert_eq!(block_on(meta.scan(b"")).unwrap().len(), 19);
}

#[test]
fn the_end_of_a_prefix_is_the_next_key() {
    for (prefix, end) in [(&b"a"[..], b"b".to_vec()), (b"a\xff", b"b".to_vec()), (b"a\xfe\xff\xff", b"a\xff".to_vec())]
    {
        assert_eq!(end_of(prefix), end);
    }
    assert_eq!(end_of(b"\xff").len(), KEY_BYTES_MAX + 1);
}

#[test]
fn hints_leave_room() {
    const GIB: u64 = 1 << 30;
    for (free, total, expected) in [
        (GIB, 4 * GIB, true),
        (3 * GIB, 4 * GIB, false),
        (3 * GIB, 40 * GIB, true),
        (5 * GIB, 40 * GIB, false),
        (7 * GIB, 10_000 * GIB, true),
        (9 * GIB, 10_000 * GIB, false),
    ] {
        assert_eq!(Room { free, total }.is_short(), expected, "{free} of {total}");
    }
    let folder = tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(0));
    let measured = free.clone();
    let measure = move || Some(Room { free: measured.load(Ordering::Relaxed), total: 4 * GIB });
    let hints = RocksMeta::open_hints(folder.path(), measure).unwrap();
    let commit = |batch| block_on(hints.commit(batch));
    free.store(3 * GIB, Ordering::Relaxed);
    commit(put(b"a", b"1")).unwrap();
    free.store(GIB, Ordering::Relaxed);
    commit(put(b"b", b"1")).expect_err("there is little room");
    let mut deletion = Batch::default();
    deletion.delete(b"a".to_vec());
    commit(deletion).expect("deleting needs none");
    free.store(3 * GIB, Ordering::Relaxed);
    commit(put(b"c", b"1")).expect("there is room again");
    let found = [b"a", b"b", b"c"].map(|key| block_on(hints.get(key)).unwrap().is_some());
    assert_eq!(found, [false, false, true]);
}
