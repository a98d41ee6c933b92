use super::*;
use crate::contract;
use std::{fs, os::unix::fs::MetadataExt, rc::Rc};
use tempfile::tempdir;

mod block_device;

const SIZE: u64 = 1 << 20;

fn in_runtime(test: impl Future<Output = ()>) {
    run(test).unwrap();
}

#[test]
fn it_is_a_device() {
    let folder = tempdir().unwrap();
    in_runtime(async {
        let device = UringDevice::open_or_create(&folder.path().join("device"), contract::SIZE_BYTES).unwrap();
        contract::check(Rc::new(device)).await;
    });
}

/// A file system without O_DIRECT is used all the same, and says so.
#[test]
fn it_is_a_device_through_the_page_cache() {
    let folder = tempdir().unwrap();
    in_runtime(async {
        let path = folder.path().join("device");
        let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.set_len(contract::SIZE_BYTES).unwrap();
        let opened = open::Opened { file, size_bytes: contract::SIZE_BYTES, is_direct: false, claim: None };
        let device = UringDevice::new(&path, opened).unwrap();
        assert!(!device.direct());
        contract::check(Rc::new(device)).await;
    });
}

#[test]
fn content_stays_when_opened_again() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    in_runtime(async {
        let device = UringDevice::open_or_create(&path, SIZE).unwrap();
        device.write(8192, Buffer::from_slice(&[7; 4096])).await.0.unwrap();
        device.sync().await.unwrap();
        drop(device);
        let device = UringDevice::open(&path).unwrap();
        assert_eq!(device.size_bytes(), SIZE);
        assert_eq!(device.read(8192, Buffer::zeroed(4096)).await, (Ok(()), Buffer::from_slice(&[7; 4096])));
    });
}

#[test]
fn two_cannot_have_one_device() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    let first = UringDevice::open_or_create(&path, SIZE).unwrap();
    let second = UringDevice::open_or_create(&path, SIZE);
    assert!(matches!(second, Err(OpenError::Locked { .. })));
    drop(first);
    UringDevice::open(&path).unwrap();
}

/// Each thread has the device with a ring of its own, and it stays locked until the last of them lets go.
#[test]
fn several_threads_share_a_device() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    let first = UringDevice::open_or_create(&path, SIZE).unwrap();
    let handle = first.handle();
    let other = std::thread::spawn(move || {
        in_runtime(async {
            let device = handle.device().unwrap();
            device.write(8192, Buffer::from_slice(&[7; 4096])).await.0.unwrap();
            device.sync().await.unwrap();
        });
        handle
    });
    let handle = other.join().unwrap();
    in_runtime(async {
        assert_eq!(first.read(8192, Buffer::zeroed(4096)).await, (Ok(()), Buffer::from_slice(&[7; 4096])));
        drop(first);
        assert!(matches!(UringDevice::open(&path), Err(OpenError::Locked { .. })));
        fs::rename(&path, folder.path().join("aside")).unwrap();
        fs::write(&path, [0; 4096]).unwrap();
        assert!(matches!(handle.device(), Err(OpenError::Replaced { .. })), "it must be the file that is locked");
        drop(handle);
        UringDevice::open(&folder.path().join("aside")).unwrap();
    });
}

/// A request that nobody waits for keeps the file open, but not locked.
#[test]
fn an_abandoned_request_keeps_no_lock() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    in_runtime(async {
        let device = UringDevice::open_or_create(&path, 64 << 20).unwrap();
        let write = device.write(0, Buffer::zeroed(32 << 20));
        futures::future::select(write, std::pin::pin!(tokio::task::yield_now())).await;
        drop(device);
        UringDevice::open(&path).unwrap();
    });
}

#[test]
fn sizes_grow_and_never_shrink() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    drop(UringDevice::open_or_create(&path, SIZE).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 0, "the file is sparse");
    drop(UringDevice::open_or_create(&path, 2 * SIZE).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * SIZE);
    let shrunk = UringDevice::open_or_create(&path, SIZE);
    assert!(matches!(shrunk, Err(OpenError::WouldShrink { has, wanted, .. }) if has == 2 * SIZE && wanted == SIZE));
    assert!(matches!(UringDevice::open_or_create(&path, 4097), Err(OpenError::UnevenSize { .. })));
    fs::write(&path, [0; 100]).unwrap();
    assert!(matches!(UringDevice::open(&path), Err(OpenError::UnevenSize { size: 100, .. })));
}

/// A node promised room that its file system then did not have.
#[test]
fn the_space_of_a_device_is_there_or_refused_when_it_is_opened() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    drop(UringDevice::open_or_allocate(&path, SIZE).unwrap());
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= SIZE, "it is allocated");
    drop(UringDevice::open_or_create(&path, 2 * SIZE).unwrap());
    drop(UringDevice::open_or_allocate(&path, 3 * SIZE).unwrap());
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 3 * SIZE);
    assert!((2 * SIZE..3 * SIZE).contains(&(metadata.blocks() * 512)), "what was sparse stays so");
    // tmpfs knows at once that so much cannot be.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = memory.path().join("device");
    drop(UringDevice::open_or_allocate(&path, SIZE).unwrap());
    let refused = UringDevice::open_or_allocate(&path, 1 << 44);
    assert!(matches!(refused, Err(OpenError::NoRoom { wanted, .. }) if wanted == (1 << 44) - SIZE));
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE, "it stays as it was");
}

#[test]
fn what_is_no_device_is_refused() {
    let folder = tempdir().unwrap();
    assert!(matches!(UringDevice::open(&folder.path().join("absent")), Err(OpenError::Io { .. })));
    assert!(matches!(UringDevice::open(folder.path()), Err(OpenError::Io { .. })));
    assert!(matches!(UringDevice::open(Path::new("/dev/null")), Err(OpenError::WrongKind { .. })));
}

#[test]
fn a_discard_frees_space() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    in_runtime(async {
        let device = UringDevice::open_or_create(&path, SIZE).unwrap();
        device.write(0, Buffer::from_slice(&[7; 512 << 10])).await.0.unwrap();
        device.sync().await.unwrap();
        let before = fs::metadata(&path).unwrap().blocks();
        device.discard(0, 256 << 10).await.unwrap();
        let after = fs::metadata(&path).unwrap().blocks();
        assert!(before >= 1024 && after <= before - 512, "{before} → {after} units of 512 bytes");
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    });
}

/// A file cut behind our back ends a read with an error, not with an endless loop or old memory.
#[test]
fn a_file_cut_short_is_an_error() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("device");
    in_runtime(async {
        let device = UringDevice::open_or_create(&path, SIZE).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        let (result, buffer) = device.read(4096, Buffer::zeroed(16_384)).await;
        assert_eq!(result, Err(DeviceError::Io { errno: libc::EIO, offset: 4096, len: 16_384 }));
        assert_eq!(buffer.len(), 16_384);
    });
}

/// The operating system's error number reaches the caller.
#[test]
fn errors_keep_their_number() {
    in_runtime(async {
        let read_only = |path: &str| fs::File::open(path).unwrap();
        let opened =
            open::Opened { file: read_only("/proc/self/exe"), size_bytes: 4096, is_direct: false, claim: None };
        let device = UringDevice::new(Path::new("/proc/self/exe"), opened).unwrap();
        let expected = Err(DeviceError::Io { errno: libc::EBADF, offset: 0, len: 4096 });
        assert_eq!(device.write(0, Buffer::zeroed(4096)).await.0, expected);
        assert_eq!(device.discard(0, 4096).await, expected);
        let full = fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let opened = open::Opened { file: full, size_bytes: 4096, is_direct: false, claim: None };
        let device = UringDevice::new(Path::new("/dev/full"), opened).unwrap();
        let (result, _) = device.write(0, Buffer::zeroed(4096)).await;
        assert_eq!(result, Err(DeviceError::Io { errno: libc::ENOSPC, offset: 0, len: 4096 }));
        assert_eq!(device.sync().await, Err(DeviceError::Sync { errno: libc::EINVAL }));
    });
}

/// More requests than the ring has room for.
#[test]
fn many_requests_at_once() {
    let folder = tempdir().unwrap();
    in_runtime(async {
        let device = UringDevice::open_or_create(&folder.path().join("device"), 16 << 20).unwrap();
        let requests = (0..4096u64).map(|at| device.write(at * 4096, Buffer::from_slice(&[at as u8; 4096])));
        assert!(futures::future::join_all(requests).await.iter().all(|(result, _)| result.is_ok()));
        let (result, all) = device.read(0, Buffer::zeroed(16 << 20)).await;
        result.unwrap();
        assert!(all.chunks(4096).enumerate().all(|(at, block)| block == [at as u8; 4096]));
    });
}
