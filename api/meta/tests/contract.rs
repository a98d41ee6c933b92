//! What every implementation of `MetaStore` must do: one body, run for each.

use drover_meta::{MemoryDisk, MemoryMetaStore, MetaStore, Outcome, RocksMetaStore, Transaction, Version};
use drover_sim::runtime::Sim;
use futures::executor::block_on;
use std::rc::Rc;

fn put(expect: &[(&str, Option<Version>)], puts: &[(&str, &str)], deletes: &[&str]) -> Transaction {
    Transaction {
        expect: expect.iter().map(|(key, version)| ((*key).into(), *version)).collect(),
        puts: puts.iter().map(|(key, value)| ((*key).into(), value.as_bytes().to_vec())).collect(),
        deletes: deletes.iter().map(|key| (*key).into()).collect(),
    }
}

async fn committed(store: &dyn MetaStore, transaction: Transaction) -> Version {
    match store.commit(transaction).await.unwrap() {
        Outcome::Committed(version) => version,
        Outcome::Conflict(key) => panic!("conflict on {key}"),
    }
}

/// The contract, up to what must be there when the store is opened again.
async fn contract(store: &dyn MetaStore) {
    assert_eq!(store.get("a/1").await.unwrap(), None);
    let first = committed(store, put(&[("a/1", None)], &[("a/1", "one"), ("a/2", "two"), ("b/1", "three")], &[])).await;
    let entry = store.get("a/1").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (b"one".as_slice(), first));

    // What exists is not what does not.
    let refused = store.commit(put(&[("a/1", None)], &[("a/3", "x")], &["b/1"])).await.unwrap();
    assert_eq!(refused, Outcome::Conflict("a/1".into()));
    assert_eq!(store.get("a/3").await.unwrap(), None, "a refused transaction changes nothing");
    assert!(store.get("b/1").await.unwrap().is_some());

    // A version that was true once is not true for ever.
    let second = committed(store, put(&[("a/1", Some(first))], &[("a/1", "uno")], &[])).await;
    assert!(second > first);
    assert_eq!(
        store.commit(put(&[("a/1", Some(first))], &[("a/1", "no")], &[])).await.unwrap(),
        Outcome::Conflict("a/1".into())
    );
    assert_eq!(store.get("a/2").await.unwrap().unwrap().version, first, "versions are by key");

    // Several expectations, one of them untrue.
    let mixed = put(&[("a/1", Some(second)), ("a/2", Some(second))], &[("a/1", "no")], &[]);
    assert_eq!(store.commit(mixed).await.unwrap(), Outcome::Conflict("a/2".into()));

    let third = committed(store, put(&[], &[("a/10", "ten"), ("c", "")], &["a/2", "nothing"])).await;
    let keys: Vec<_> = store.scan("a/").await.unwrap().into_iter().map(|entry| (entry.key, entry.version)).collect();
    assert_eq!(keys, [("a/1".into(), second), ("a/10".into(), third)]);
    assert_eq!(store.scan("").await.unwrap().len(), 4);
    assert_eq!(store.get("c").await.unwrap().unwrap().value, b"");

    // Of two that expect the same version, one wins.
    let (one, other) = futures::join!(
        store.commit(put(&[("c", Some(third))], &[("c", "left")], &[])),
        store.commit(put(&[("c", Some(third))], &[("c", "right")], &[])),
    );
    let won = [one.unwrap(), other.unwrap()].into_iter().filter(|outcome| matches!(outcome, Outcome::Committed(_)));
    assert_eq!(won.count(), 1);
}

async fn reopened(store: &dyn MetaStore) {
    let before = store.scan("").await.unwrap();
    assert_eq!(before.len(), 4);
    let last = before.iter().map(|entry| entry.version).max().unwrap();
    assert!(committed(store, put(&[], &[("d", "d")], &[])).await > last, "versions go on growing");
}

#[test]
fn rocksdb() {
    let folder = tempfile::tempdir().unwrap();
    let store = RocksMetaStore::open(folder.path()).unwrap();
    block_on(contract(&store));
    drop(store);
    block_on(reopened(&RocksMetaStore::open(folder.path()).unwrap()));
}

#[test]
fn memory() {
    let sim = Sim::new(1);
    let process = sim.process("control");
    let disk = MemoryDisk::default();
    let store = Rc::new(MemoryMetaStore::open(process.world(), disk.clone()));
    sim.block_on(process.run(async move { contract(&*store).await })).unwrap();
    process.kill();
    let store = MemoryMetaStore::open(process.world(), disk);
    sim.block_on(process.run(async move { reopened(&store).await })).unwrap();
}

#[test]
fn a_crash_decides_by_chance_what_was_under_way_but_keeps_what_was_answered() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..50 {
        let sim = Sim::new(seed);
        let process = sim.process("control");
        let disk = MemoryDisk::default();
        let store = Rc::new(MemoryMetaStore::open(process.world(), disk.clone()));
        let first = store.clone();
        sim.block_on(process.run(async move { committed(&*first, put(&[], &[("a", "a")], &[])).await })).unwrap();
        let _under_way = store.commit(put(&[], &[("b", "b"), ("c", "c")], &[]));
        sim.run_for(std::time::Duration::from_micros(500));
        process.kill();
        let store = MemoryMetaStore::open(process.world(), disk);
        let keys = sim.block_on(process.run(async move { store.scan("").await.unwrap().len() })).unwrap();
        match keys {
            1 => lost += 1,
            3 => kept += 1,
            other => panic!("seed {seed}: {other} keys: torn or lost"),
        }
    }
    assert!(kept > 5 && lost > 5, "{kept} kept, {lost} lost");
}
