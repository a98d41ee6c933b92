//! A tier on a block device, with real nodes: the kernel's loop driver over a file.

use drover_disk::loop_device::{LoopDevice, Mounted, format, has_loop_devices};
use drover_e2e::{BLOCK, Client, Cluster, Daemon, Layout, drover_program};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);
const EXTENT: u64 = 64 << 10;
/// Extents of the tier.
const ROOM: u64 = 128;
/// Of the device: the tier, its label, and what is over.
const DEVICE_BYTES: u64 = (ROOM + 1) * EXTENT + 4096;

fn attach(cluster: &Cluster) -> Client {
    let until = Instant::now() + SOON;
    loop {
        match Client::connect(&cluster.socket(0), "v") {
            Ok(client) => return client,
            Err(error) if Instant::now() >= until => panic!("it is not served: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The settings with their tier on the device.
fn on_device(settings: &str, folder: &Path, device: &Path) -> String {
    let on_folder = format!("path = \"{}/tier-0\"", folder.display());
    assert!(settings.contains(&on_folder));
    let settings = settings.replace(&on_folder, &format!("path = \"{}\"", device.display()));
    settings.replace("sparse = true", "discard = true")
}

/// What a node with these settings says when it refuses to start; no byte of the disk changes.
fn refusal(settings: &str, folder: &Path, disk: &Path) -> String {
    let before = fs::read(disk).expect("the disk");
    let (config, log) = (folder.join("refused.toml"), folder.join("refused.log"));
    fs::write(&config, settings).expect("settings");
    let _ = fs::remove_file(&log);
    let mut node =
        Daemon::new("node", &drover_program(), &["node", "--config", config.to_str().expect("a path")], &log);
    node.start().expect("it starts");
    let until = Instant::now() + SOON;
    while node.is_running() {
        assert!(Instant::now() < until, "it serves: {}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fs::read(disk).expect("the disk") == before, "refused, but something was written: {}", node.log());
    node.log()
}

/// Written, flushed, read again after kill -9 and after a stop; what is trimmed is given back to what is below.
#[test]
fn a_volume_lives_on_a_block_device() {
    if !has_loop_devices() {
        return;
    }
    for sectors in [512, 4096] {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = folder.path().join("disk");
        let device = LoopDevice::make(&disk, DEVICE_BYTES, sectors);
        let taken = || fs::metadata(&disk).expect("its file").blocks() * 512;
        let layout = Layout {
            nodes: 1,
            folder: folder.path(),
            tier_size: "8MiB",
            lease_ttl_ms: 9000,
            link: None,
            cpus: &[],
            tls: None,
        };
        let set = |settings: String| on_device(&settings, folder.path(), device.path());
        let mut cluster = Cluster::start_set(&layout, set);
        cluster.create_volume("v", 64 << 20, 0);
        let mut client = attach(&cluster);
        for extent in 0..ROOM {
            let written = client.write(extent * EXTENT, &[1 + extent as u8; EXTENT as usize]);
            assert_eq!(written.expect("it lives"), 0, "extent {extent}");
        }
        assert_eq!(client.flush().expect("it lives"), 0);
        let full = taken();
        assert!(full >= ROOM * EXTENT, "{full} bytes are taken");
        let check = |client: &mut Client, extents: std::ops::Range<u64>| {
            for extent in extents {
                let block = client.read(extent * EXTENT + BLOCK as u64).expect("it lives").expect("no error");
                assert!(block == [1 + extent as u8; BLOCK], "extent {extent} with sectors of {sectors}");
            }
        };
        cluster.nodes[0].kill();
        cluster.nodes[0].start().expect("it starts");
        let mut client = attach(&cluster);
        check(&mut client, 0..ROOM);

        assert_eq!(client.trim(0, (ROOM / 2 * EXTENT) as u32).expect("it lives"), 0);
        // It makes the room free that it needs; otherwise the next checkpoint would.
        assert_eq!(client.write(ROOM * EXTENT, &[7; EXTENT as usize]).expect("it lives"), 0);
        let most = full - (ROOM / 2 - 2) * EXTENT;
        let until = Instant::now() + SOON;
        while taken() > most {
            assert!(Instant::now() < until, "{} bytes are taken, {most} at most are needed", taken());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(client.flush().expect("it lives"), 0);
        drop(client);
        cluster.restart(0);
        let mut client = attach(&cluster);
        check(&mut client, ROOM / 2..ROOM);
        assert!(client.read(0).expect("it lives").expect("no error") == [0; BLOCK]);
        assert!(client.read(ROOM * EXTENT).expect("it lives").expect("no error") == [7; BLOCK]);
    }
}

/// The same settings at ports that the kernel chooses.
fn elsewhere(settings: &str) -> String {
    let line = |line: &str| match line.split_once(" = ") {
        Some((name @ ("admin" | "peer" | "migration"), _)) => format!("{name} = \"127.0.0.1:0\"\n"),
        _ => format!("{line}\n"),
    };
    settings.lines().map(line).collect()
}

/// Each says which device, and why; and the node that has it goes on.
#[test]
fn a_block_device_that_is_not_the_tiers_own_is_refused() {
    if !has_loop_devices() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk");
    let device = LoopDevice::make(&disk, DEVICE_BYTES, 512);
    let layout = Layout {
        nodes: 1,
        folder: folder.path(),
        tier_size: "8MiB",
        lease_ttl_ms: 9000,
        link: None,
        cpus: &[],
        tls: None,
    };
    let set = |settings: String| on_device(&settings, folder.path(), device.path());
    let mut cluster = Cluster::start_set(&layout, set);
    let own = fs::read_to_string(folder.path().join("node-1.toml")).expect("its settings");
    let other = elsewhere(&own.replace("node-1", "node-2"));
    let name = device.path().display().to_string();
    let refused = |settings: &str, expected: &str| {
        let text = refusal(settings, folder.path(), &disk);
        assert!(text.contains(expected) && text.contains(&name), "{text}");
    };
    cluster.create_volume("v", 64 << 20, 0);
    let mut client = attach(&cluster);
    assert_eq!(client.write(0, &[1; BLOCK]).expect("it lives"), 0);
    assert_eq!(client.flush().expect("it lives"), 0);
    refused(&other, "in use");
    assert!(Mounted::at(folder.path(), device.path()).is_err(), "nobody mounts it");
    assert!(client.read(0).expect("it lives").expect("no error") == [1; BLOCK]);
    drop(client);
    assert!(cluster.nodes[0].terminate().expect("it ends").success());

    refused(&other, "tier fast of node-1");
    refused(&own.replace("8MiB", "16MiB"), "a block device does not grow");
    format(device.path());
    refused(&own, "does not bear the label");
    refused(&other, "is not empty");
    let at = tempfile::tempdir().expect("a folder");
    let _mounted = Mounted::at(at.path(), device.path()).expect("it can be mounted");
    refused(&other.replace("discard = true", "overwrite = true"), "mounted");
}
