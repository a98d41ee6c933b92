//! A tier runs full, and has room again.

use drover_e2e::{BLOCK, Client, Cluster, Layout};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);
const EXTENT: u64 = 64 << 10;
/// Extents that the tier has room for; one of them is the other volume's.
const ROOM: u64 = 128;
/// The server's answer where there is none.
const ENOSPC: u32 = 28;

/// What was told of the tier's space, in order.
fn told(events: &Value) -> Vec<&str> {
    let items = events["items"].as_array().expect("a page of events");
    let of_space = items.iter().filter(|event| event["kind"] == "node.tier_space");
    of_space.map(|event| event["text"].as_str().expect("a text")).collect()
}

fn is_last_told(cluster: &Cluster, wanted: &str) {
    cluster
        .api
        .wait_for("/v1/events?limit=500", SOON, |events| told(events).last().is_some_and(|text| text.contains(wanted)));
}

/// A client of the first node, once that listens: the control plane takes it for up a while after it was killed.
fn attach(cluster: &Cluster, name: &str) -> Client {
    let until = Instant::now() + SOON;
    loop {
        match Client::connect(&cluster.socket(0), name) {
            Ok(client) => return client,
            Err(error) if Instant::now() >= until => panic!("{name} is not served: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// One block of an extent.
fn write(client: &mut Client, extent: u64, byte: u8) -> u32 {
    client.write(extent * EXTENT, &[byte; BLOCK]).expect("the connection lives")
}

fn read(client: &mut Client, extent: u64) -> u8 {
    let block = client.read(extent * EXTENT).expect("the connection lives").expect("no error");
    assert!(block.iter().all(|byte| *byte == block[0]), "extent {extent} is torn");
    block[0]
}

/// Thin volumes promise more than there is. At the end of it writes to new places fail, with the error that says why;
/// all else goes on, discarding makes room at once, people are told of both, and nothing flushed is lost.
#[test]
fn a_full_tier_refuses_only_what_needs_space_until_something_is_discarded() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout {
        nodes: 1,
        folder: folder.path(),
        tier_size: "8MiB",
        lease_ttl_ms: 9000,
        link: None,
        cpus: &[],
        tls: None,
    };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 << 20, 0);
    cluster.create_volume("other", 64 << 20, 0);
    let (mut client, mut other) = (attach(&cluster, "v"), attach(&cluster, "other"));
    assert_eq!((write(&mut other, 0, 1), other.flush().expect("it lives")), (0, 0));

    let mut filled = 0;
    for (share, event) in [(85, "80 % full"), (95, "90 % full"), (100, "is full")] {
        let until = ROOM * share / 100 - 1;
        for extent in filled..until {
            assert_eq!(write(&mut client, extent, 1), 0, "extent {extent}");
        }
        filled = until;
        is_last_told(&cluster, event);
    }
    for turn in 0..3 {
        assert_eq!(write(&mut client, filled, 1), ENOSPC, "turn {turn}: the tier is full");
        assert_eq!(write(&mut other, 1, 1), ENOSPC, "turn {turn}: for the other volume too");
    }
    assert_eq!(write(&mut client, 3, 2), 0, "an overwrite needs no space");
    assert_eq!((write(&mut other, 0, 2), other.flush().expect("it lives")), (0, 0), "the other volume goes on");
    assert_eq!(client.flush().expect("it lives"), 0);
    assert_eq!([3, filled - 1, filled].map(|extent| read(&mut client, extent)), [2, 1, 0]);

    let events = cluster.api.get("/v1/events?limit=500");
    assert_eq!(told(&events).len(), 3, "each is told once: {:?}", told(&events));

    // No flush: whoever needs the room sees to it.
    let half = filled / 2;
    assert_eq!(client.trim(0, (half * EXTENT) as u32).expect("it lives"), 0, "a discard needs no space");
    for extent in filled..filled + half {
        assert_eq!(write(&mut client, extent, 3), 0, "extent {extent} has room again");
    }
    assert_eq!(write(&mut client, filled + half, 3), ENOSPC, "full again");
    assert_eq!(client.flush().expect("it lives"), 0);

    assert_eq!(client.trim(half * EXTENT, ((filled - half) * EXTENT) as u32).expect("it lives"), 0);
    assert_eq!(client.flush().expect("it lives"), 0);
    is_last_told(&cluster, "below 80 % again");

    cluster.nodes[0].kill();
    cluster.nodes[0].start().expect("it starts");
    let (mut client, mut other) = (attach(&cluster, "v"), attach(&cluster, "other"));
    assert_eq!([0, filled - 1, filled, filled + half - 1].map(|extent| read(&mut client, extent)), [0, 0, 3, 3]);
    assert_eq!(read(&mut other, 0), 2);
    assert_eq!(write(&mut client, 0, 4), 0);
}

/// What a volume gave up was free for others of its tier, but the file under a sparse tier only ever grew.
#[test]
fn what_is_discarded_goes_back_to_the_file_system() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout {
        nodes: 1,
        folder: folder.path(),
        tier_size: "8MiB",
        lease_ttl_ms: 9000,
        link: None,
        cpus: &[],
        tls: None,
    };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 64 << 20, 0);
    let mut client = attach(&cluster, "v");
    let taken = |cluster: &Cluster| fs::metadata(cluster.device(0)).expect("its file").blocks() * 512;
    let whole = |client: &mut Client, extent: u64| {
        assert_eq!(client.write(extent * EXTENT, &[1; EXTENT as usize]).expect("the connection lives"), 0);
    };
    for extent in 0..ROOM {
        whole(&mut client, extent);
    }
    assert_eq!(client.flush().expect("it lives"), 0);
    assert!(taken(&cluster) >= ROOM * EXTENT, "the tier is full");

    assert_eq!(client.trim(ROOM / 4 * EXTENT, (ROOM / 2 * EXTENT) as u32).expect("it lives"), 0);
    // Who needs room makes it free; otherwise the next checkpoint would.
    whole(&mut client, ROOM);
    // Half of it, the one written since, and what the file system and the label need.
    let most = (ROOM / 2 + 1 + 4) * EXTENT;
    let until = Instant::now() + SOON;
    while taken(&cluster) > most {
        assert!(Instant::now() < until, "{} bytes are taken, {most} at most are needed", taken(&cluster));
        std::thread::sleep(Duration::from_millis(100));
    }
    let kept = [0, ROOM / 4 - 1, ROOM / 4, ROOM * 3 / 4 - 1, ROOM * 3 / 4, ROOM];
    assert_eq!(kept.map(|extent| read(&mut client, extent)), [1, 1, 0, 0, 1, 1]);
    assert_eq!(client.flush().expect("it lives"), 0);

    cluster.nodes[0].kill();
    cluster.nodes[0].start().expect("it starts");
    let mut client = attach(&cluster, "v");
    assert_eq!(kept.map(|extent| read(&mut client, extent)), [1, 1, 0, 0, 1, 1]);
    for extent in ROOM / 4..ROOM * 3 / 4 - 1 {
        whole(&mut client, extent);
    }
    assert_eq!(kept.map(|extent| read(&mut client, extent)), [1, 1, 1, 0, 1, 1]);
}
