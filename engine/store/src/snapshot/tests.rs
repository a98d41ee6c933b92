use crate::{
    StoreError, Unfenced, fsck,
    testing::{ID, SIZE, SLOTS, bytes, read, run},
};
use drover_base::{
    IoError,
    limits::VOLUME_BYTES_MAX,
    units::{BLOCK_BYTES, REGION_BYTES},
};

const LARGER: u64 = SIZE + 3 * REGION_BYTES + 5 * BLOCK_BYTES;

#[test]
fn a_volume_grows_and_what_is_new_is_zero() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.write(&Unfenced, SIZE - 4096, bytes(4096, 1), false).await.unwrap();
        let past = IoError::OutOfRange { offset: SIZE, len: 4096, size: SIZE };
        assert_eq!(volume.write(&Unfenced, SIZE, bytes(4096, 2), false).await, Err(past));
        volume.grow(LARGER).await.unwrap();
        volume.grow(LARGER).await.unwrap();
        assert_eq!(volume.size_bytes(), LARGER);
        assert_eq!(read(&volume, SIZE, LARGER - SIZE).await, vec![0; (LARGER - SIZE) as usize]);
        volume.write(&Unfenced, LARGER - 4096, bytes(4096, 2), true).await.unwrap();
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!(volume.size_bytes(), LARGER);
        assert_eq!(read(&volume, SIZE - 4096, 8192).await[4096..], [0; 4096]);
        assert_eq!(read(&volume, LARGER - 4096, 4096).await, [2; 4096]);
    });
}

#[test]
fn a_volume_never_shrinks_and_has_a_size_of_whole_blocks() {
    run(|node| async move {
        let volume = node.volume().await;
        let smaller = SIZE - BLOCK_BYTES;
        let shrinks = StoreError::Shrinks { size_bytes: smaller, has_bytes: SIZE };
        assert_eq!(volume.grow(smaller).await, Err(shrinks));
        for size_bytes in [0, SIZE + 1, VOLUME_BYTES_MAX + BLOCK_BYTES] {
            assert_eq!(volume.grow(size_bytes).await, Err(StoreError::BadSize { size_bytes }));
        }
        assert_eq!(volume.size_bytes(), SIZE);
    });
}

/// The size belongs to the layer. What was written past the snapshot's end made regions active, which would be past the
/// end after it: such a node did not start.
#[test]
fn a_rollback_brings_the_size_back() {
    run(|node| async move {
        let volume = node.volume().await;
        volume.snapshot("small").await.unwrap();
        volume.grow(LARGER).await.unwrap();
        volume.write(&Unfenced, LARGER - 4096, bytes(4096, 2), true).await.unwrap();
        volume.snapshot("large").await.unwrap();
        volume.rollback("small").await.unwrap();
        assert_eq!(volume.size_bytes(), SIZE);
        assert!(volume.active_regions().iter().all(|region| region.0 < SIZE / REGION_BYTES));
        assert_eq!(fsck::check(&node.meta, &[SLOTS]).await.unwrap().problems, []);
        let node = node.crashed();
        let volume = node.open().await.volume(ID).unwrap();
        assert_eq!(volume.size_bytes(), SIZE);
        volume.grow(LARGER).await.unwrap();
        assert_eq!(read(&volume, LARGER - 4096, 4096).await, [0; 4096]);
        volume.rollback("large").await.unwrap();
        assert_eq!(read(&volume, LARGER - 4096, 4096).await, [2; 4096]);
    });
}
