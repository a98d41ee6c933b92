//! What every metadata store must do: one body for all implementations.

use super::{Batch, Meta, Pairs};
use futures::future::join_all;

/// Runs every check on an empty store.
pub async fn check(meta: &dyn Meta) {
    what_was_committed_is_found(meta).await;
    a_batch_applies_in_order(meta).await;
    a_prefix_ends_where_it_should(meta).await;
    commits_apply_in_the_order_of_their_calls(meta).await;
    everything_can_be_deleted(meta).await;
}

fn batch(changes: impl FnOnce(&mut Batch)) -> Batch {
    let mut batch = Batch::default();
    changes(&mut batch);
    batch
}

fn pairs(expected: &[(&[u8], &[u8])]) -> Pairs {
    expected.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

async fn what_was_committed_is_found(meta: &dyn Meta) {
    assert_eq!(meta.get(b"a").await, Ok(None));
    assert_eq!(meta.scan(b"").await, Ok(Pairs::new()));
    let two = batch(|batch| {
        batch.put(b"a".to_vec(), b"one".to_vec());
        batch.put(b"empty".to_vec(), Vec::new());
    });
    assert_eq!(meta.commit(two).await, Ok(()));
    assert_eq!(meta.get(b"a").await, Ok(Some(b"one".to_vec())));
    assert_eq!(meta.get(b"empty").await, Ok(Some(Vec::new())));
    assert_eq!(meta.commit(Batch::default()).await, Ok(()));
    let change = batch(|batch| {
        batch.put(b"a".to_vec(), b"two".to_vec());
        batch.delete(b"empty".to_vec());
        batch.delete(b"never there".to_vec());
    });
    assert_eq!(meta.commit(change).await, Ok(()));
    assert_eq!(meta.scan(b"").await, Ok(pairs(&[(b"a", b"two")])));
}

async fn a_batch_applies_in_order(meta: &dyn Meta) {
    let change = batch(|batch| {
        batch.put(b"o1".to_vec(), b"first".to_vec());
        batch.put(b"o1".to_vec(), b"second".to_vec());
        batch.put(b"o2".to_vec(), b"gone".to_vec());
        batch.delete(b"o2".to_vec());
        batch.put(b"op1".to_vec(), b"gone".to_vec());
        batch.delete_prefix(b"op".to_vec());
        batch.put(b"op2".to_vec(), b"after".to_vec());
    });
    assert_eq!(meta.commit(change).await, Ok(()));
    assert_eq!(meta.scan(b"o").await, Ok(pairs(&[(b"o1", b"second"), (b"op2", b"after")])));
}

async fn a_prefix_ends_where_it_should(meta: &dyn Meta) {
    let keys: [&[u8]; 7] = [b"p", b"p\x00", b"p\xfe\xff", b"p\xff", b"p\xff\xff\x01", b"q", b"\xff\xff"];
    let all = batch(|batch| keys.iter().for_each(|key| batch.put(key.to_vec(), b"x".to_vec())));
    assert_eq!(meta.commit(all).await, Ok(()));
    let found =
        |from: usize, to: usize| -> Pairs { keys[from..to].iter().map(|key| (key.to_vec(), b"x".to_vec())).collect() };
    assert_eq!(meta.scan(b"p").await, Ok(found(0, 5)));
    assert_eq!(meta.scan(b"p\xff").await, Ok(found(3, 5)));
    assert_eq!(meta.scan(b"p\xff\xff").await, Ok(found(4, 5)));
    assert_eq!(meta.scan(b"\xff").await, Ok(found(6, 7)));
    assert_eq!(meta.scan(b"r").await, Ok(Pairs::new()));
    assert_eq!(meta.commit(batch(|batch| batch.delete_prefix(b"p\xff".to_vec()))).await, Ok(()));
    assert_eq!(meta.scan(b"p").await, Ok(found(0, 3)));
    assert_eq!(meta.commit(batch(|batch| batch.delete_prefix(b"\xff".to_vec()))).await, Ok(()));
    assert_eq!(meta.get(b"\xff\xff").await, Ok(None));
    assert_eq!(meta.get(b"q").await, Ok(Some(b"x".to_vec())));
}

async fn commits_apply_in_the_order_of_their_calls(meta: &dyn Meta) {
    let commits = (0..200u16).map(|number| {
        meta.commit(batch(|batch| {
            batch.put(b"s".to_vec(), number.to_be_bytes().to_vec());
            batch.put([b"s", &number.to_be_bytes()[..]].concat(), vec![1; 100]);
        }))
    });
    assert!(join_all(commits).await.iter().all(Result::is_ok));
    assert_eq!(meta.get(b"s").await, Ok(Some(199u16.to_be_bytes().to_vec())));
    let found = meta.scan(b"s").await.unwrap();
    assert_eq!(found.len(), 201);
    assert!(found.is_sorted());
}

async fn everything_can_be_deleted(meta: &dyn Meta) {
    let change = batch(|batch| {
        batch.put(b"\xff\xff\xff".to_vec(), b"x".to_vec());
        batch.delete_prefix(Vec::new());
        batch.put(b"z".to_vec(), b"left".to_vec());
    });
    assert_eq!(meta.commit(change).await, Ok(()));
    assert_eq!(meta.scan(b"").await, Ok(pairs(&[(b"z", b"left")])));
}
