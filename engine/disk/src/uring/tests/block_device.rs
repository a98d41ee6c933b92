//! With the kernel's loop driver: what only block devices have (sectors, exclusive use, a size of their own).

use super::*;
use crate::loop_device::{LoopDevice, Mounted, format, has_loop_devices};

/// The sectors of nearly all disks.
const SECTORS: [u32; 2] = [512, 4096];

/// A new device of that size over the file `disk` in a folder of its own.
struct Place {
    folder: tempfile::TempDir,
    device: LoopDevice,
}

impl Place {
    fn new(size_bytes: u64, sector_bytes: u32) -> Self {
        let folder = tempdir().unwrap();
        let device = LoopDevice::make(&folder.path().join("disk"), size_bytes, sector_bytes);
        Self { folder, device }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn path(&self) -> &Path {
        self.device.path()
    }

    /// Opening is refused with that text, which names the device, and no byte changes.
    #[track_caller]
    fn refuses(&self, expected: &str) {
        let before = fs::read(self.file()).unwrap();
        for opened in [UringDevice::open(self.path()), UringDevice::open_or_create(self.path(), SIZE)] {
            let text = opened.map(|_| "it was opened".to_owned()).unwrap_or_else(|error| error.to_string());
            assert!(text.contains(expected) && text.contains(self.path().to_str().unwrap()), "{text}");
        }
        assert!(fs::read(self.file()).unwrap() == before, "refused, but something was written");
    }
}

#[test]
fn a_block_device_is_a_device_whatever_its_sectors() {
    if !has_loop_devices() {
        return;
    }
    for sectors in SECTORS {
        let place = Place::new(contract::SIZE_BYTES, sectors);
        in_runtime(async {
            let device = UringDevice::open(place.path()).unwrap();
            assert!(device.direct() && device.size_bytes() == contract::SIZE_BYTES);
            contract::check(Rc::new(device)).await;
            // A part of it is a device, too.
            let device = UringDevice::open_or_create(place.path(), SIZE).unwrap();
            assert_eq!(device.size_bytes(), SIZE);
            let past = device.write(SIZE, Buffer::zeroed(4096)).await.0;
            assert_eq!(past, Err(DeviceError::OutOfRange { offset: SIZE, len: 4096, size: SIZE }));
        });
    }
}

#[test]
fn content_of_a_block_device_is_durable() {
    if !has_loop_devices() {
        return;
    }
    for sectors in SECTORS {
        let place = Place::new(SIZE, sectors);
        let file = place.file();
        in_runtime(async {
            let device = UringDevice::open(place.path()).unwrap();
            device.write(8192, Buffer::from_slice(&[7; 4096])).await.0.unwrap();
            device.sync().await.unwrap();
        });
        assert!(fs::read(&file).unwrap()[8192..12_288] == [7; 4096], "it is in the file below");
        drop(place.device);
        let device = LoopDevice::over(&file, &["--sector-size", &sectors.to_string()]).unwrap();
        in_runtime(async {
            let device = UringDevice::open(device.path()).unwrap();
            assert_eq!(device.read(8192, Buffer::zeroed(4096)).await, (Ok(()), Buffer::from_slice(&[7; 4096])));
        });
    }
}

/// What threads share: each has an open file of its own, and one of them discards.
#[test]
fn a_discard_of_a_block_device_reaches_what_is_below() {
    if !has_loop_devices() {
        return;
    }
    for sectors in SECTORS {
        let place = Place::new(SIZE, sectors);
        let taken = || fs::metadata(place.file()).unwrap().blocks() * 512;
        in_runtime(async {
            let device = UringDevice::open(place.path()).unwrap();
            let other = device.handle().device().unwrap();
            device.write(0, Buffer::from_slice(&[7; 512 << 10])).await.0.unwrap();
            device.sync().await.unwrap();
            let before = taken();
            other.discard(64 << 10, 256 << 10).await.unwrap();
            assert!(before >= 512 << 10 && taken() <= before - (256 << 10), "{before} → {} bytes", taken());
            let expected = |byte| (Ok(()), Buffer::from_slice(&[byte; 4096]));
            assert_eq!(device.read((64 << 10) - 4096, Buffer::zeroed(4096)).await, expected(7));
            assert_eq!(device.read(64 << 10, Buffer::from_slice(&[1; 4096])).await, expected(0));
            assert_eq!(device.read(320 << 10, Buffer::zeroed(4096)).await, expected(7));
        });
    }
}

/// Data went over a mounted file system: the lock that Drover takes is one that only Drover looks at.
#[test]
fn a_device_that_is_mounted_is_refused() {
    if !has_loop_devices() {
        return;
    }
    let place = Place::new(8 << 20, 512);
    let folder = tempdir().unwrap();
    format(place.path());
    let mounted = Mounted::at(folder.path(), place.path()).unwrap();
    place.refuses("in use");
    drop(mounted);
    // The kernel writes what it has yet to, and lets go.
    let free = || UringDevice::open(place.path()).is_ok();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !free() {
        assert!(std::time::Instant::now() < until, "it is in use for ever");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// And nobody mounts one that is open here, or opens it a second time, also by another name.
#[test]
fn two_cannot_have_one_block_device() {
    if !has_loop_devices() {
        return;
    }
    let place = Place::new(8 << 20, 512);
    format(place.path());
    let other_name = place.folder.path().join("link");
    std::os::unix::fs::symlink(place.path(), &other_name).unwrap();
    let opened = run(async {
        let device = UringDevice::open(place.path()).unwrap();
        // A request that nobody waits for keeps a file open, but not the device in use.
        let write = device.write(4 << 20, Buffer::zeroed(4 << 20));
        futures::future::select(write, std::pin::pin!(tokio::task::yield_now())).await;
        device.handle()
    });
    let handle = opened.unwrap();
    place.refuses("in use");
    assert!(UringDevice::open(&other_name).is_err());
    assert!(Mounted::at(place.folder.path(), place.path()).is_err());
    in_runtime(async { assert!(handle.device().is_ok(), "for another thread") });
    drop(handle);
    UringDevice::open(&other_name).unwrap();
}

/// A partition of 512-byte sectors seldom ends on a block's boundary: what is over is not used.
#[test]
fn a_device_of_uneven_size_is_used_up_to_its_last_whole_block() {
    if !has_loop_devices() {
        return;
    }
    let place = Place::new(SIZE + 3 * 512, 512);
    let device = UringDevice::open(place.path()).unwrap();
    assert_eq!(device.size_bytes(), SIZE);
    drop(device);
    assert_eq!(UringDevice::open_or_create(place.path(), SIZE).unwrap().size_bytes(), SIZE);
    let more = UringDevice::open_or_create(place.path(), SIZE + 4096);
    assert!(matches!(more, Err(OpenError::TooSmall { has: SIZE, wanted, .. }) if wanted == SIZE + 4096));
}

#[test]
fn a_device_that_cannot_be_written_to_in_blocks_is_refused() {
    if !has_loop_devices() {
        return;
    }
    let folder = tempdir().unwrap();
    let file = folder.path().join("disk");
    fs::write(&file, vec![0; 2 * SIZE as usize]).unwrap();
    let over = |arguments: &[&str]| {
        LoopDevice::over(&file, arguments).map(|device| Place { folder: tempdir().unwrap(), device })
    };
    let refused = |place: Place, expected: &str| {
        let text =
            UringDevice::open(place.path()).map(|_| "it was opened".to_owned()).unwrap_or_else(|e| e.to_string());
        assert!(text.contains(expected) && text.contains(place.path().to_str().unwrap()), "{text}");
    };
    refused(over(&["--read-only"]).unwrap(), "may only be read");
    match over(&["--sector-size", "16384"]) {
        Ok(place) => refused(place, "sectors of 16384 bytes"),
        // Kernels before 6.15 have none.
        Err(text) => assert!(text.contains("nvalid argument"), "{text}"),
    }
}
