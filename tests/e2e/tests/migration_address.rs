//! Migrations on an address of their own: what a move sends goes over it, and while it cannot be reached, moves wait or
//! end, and clients go on.

use drover_e2e::{Area, Bulk, Client, Cluster, Layout, OnLoss, Writer, node_name};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const BULK: u64 = 8 * MIB;

/// What stands between an address that is told and the one that is listened at.
#[derive(Clone)]
struct Relay {
    address: String,
    /// Bytes to and fro.
    carried: Arc<AtomicU64>,
    is_closed: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// Has the node tell others of a relay instead of where it listens for migrations, from its next start on.
    fn before(cluster: &Cluster, node: usize) -> Self {
        let path = cluster.folder().join(format!("{}.toml", node_name(node)));
        let mut settings: toml::Table = fs::read_to_string(&path).expect("settings").parse().expect("they are TOML");
        let target = settings["listen"]["migration"].as_str().expect("an address").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let advertise = toml::Table::from_iter([("migration".into(), address.clone().into())]);
        settings.insert("advertise".into(), advertise.into());
        fs::write(&path, settings.to_string()).expect("settings");
        let (carried, is_closed, streams) = Default::default();
        let relay = Self { address, carried, is_closed, streams };
        let accepting = relay.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // One that was given up meanwhile.
                let _ = stream.and_then(|stream| accepting.join(stream, &target));
            }
        });
        relay
    }

    fn join(&self, near: TcpStream, target: &str) -> io::Result<()> {
        if self.is_closed.load(Relaxed) {
            return near.shutdown(Shutdown::Both);
        }
        let far = TcpStream::connect(target)?;
        let mut streams = self.streams.lock().expect("no thread panics");
        for (from, to) in [(&near, &far), (&far, &near)] {
            streams.push(from.try_clone()?);
            let (mut from, mut to, carried) = (from.try_clone()?, to.try_clone()?, self.carried.clone());
            thread::spawn(move || {
                let mut counted = Counted { to: &mut to, carried: &carried };
                // However it ends, both ends learn of it.
                let _ = io::copy(&mut from, &mut counted);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
        Ok(())
    }

    fn carried(&self) -> u64 {
        self.carried.load(Relaxed)
    }

    /// Breaks every connection and takes no other.
    fn close(&self) {
        self.is_closed.store(true, Relaxed);
        for stream in self.streams.lock().expect("no thread panics").drain(..) {
            // It may be over.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn open(&self) {
        self.is_closed.store(false, Relaxed);
    }
}

struct Counted<'a> {
    to: &'a mut TcpStream,
    carried: &'a AtomicU64,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.carried.fetch_add(count as u64, Relaxed);
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Two nodes with a volume `v` at the first, relays before the migration addresses of `relayed`, and a writer through
/// each node.
fn start(folder: &Path, relayed: &[usize]) -> (Cluster, Vec<Relay>, Bulk, Vec<Writer>) {
    let mut cluster = Cluster::start(&Layout::two_nodes(folder));
    let relays: Vec<Relay> = relayed.iter().map(|node| Relay::before(&cluster, *node)).collect();
    for (node, relay) in relayed.iter().zip(&relays) {
        cluster.restart(*node);
        let path = format!("/v1/nodes/{}", node_name(*node));
        cluster.api.wait_for(&path, SOON, |shown| shown["migration_address"] == relay.address);
    }
    cluster.create_volume("v", 16 * MIB, 0);
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    let bulk = Bulk::write(&mut client, BULK);
    let writer = |node: usize| {
        let area = Area { offset: node as u64 * MIB, blocks: 64 };
        Writer::start(&cluster.socket(node), "v", area, OnLoss::Fail, node as u64 + 1)
    };
    let writers: Vec<Writer> = (0..2).map(writer).collect();
    go_on(&writers);
    (cluster, relays, bulk, writers)
}

fn go_on(writers: &[Writer]) {
    writers.iter().for_each(|writer| writer.wait_flushes(3));
}

fn check(cluster: &Cluster, bulk: &Bulk, writers: Vec<Writer>) {
    go_on(&writers);
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    for node in 0..2 {
        written.iter().for_each(|written| written.verify(&cluster.socket(node), "v"));
        bulk.verify(cluster, node, "v");
    }
}

#[test]
fn what_a_move_sends_goes_over_the_migration_addresses() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cluster, relays, bulk, writers) = start(folder.path(), &[0, 1]);
    let [to_source, to_destination] = &relays[..] else { panic!("a relay for each node") };
    assert_eq!((to_source.carried(), to_destination.carried()), (0, 0), "nothing moves yet");
    let id = cluster.api.migrate("v", "node-2", json!({ "commit": "manual" }));
    let path = format!("/v1/migrations/{id}");
    let shown = cluster.api.wait_phase(&id, &["settling"], SOON);
    let sent = shown["receipt"]["wire_bytes"].as_u64().expect("a number");
    assert!(sent >= BULK && to_destination.carried() >= sent, "{sent} sent, {} there", to_destination.carried());
    let before = to_source.carried();
    go_on(&writers);
    assert!(to_source.carried() > before, "the way back is another");
    cluster.api.insist("POST", &format!("{path}/commit"), &json!({}), SOON);
    cluster.api.wait_phase(&id, &["committed"], SOON);
    check(&cluster, &bulk, writers);
}

#[test]
fn while_the_migration_address_cannot_be_reached_clients_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (cluster, relays, bulk, writers) = start(folder.path(), &[1]);
    let relay = &relays[0];
    relay.close();
    let id = cluster.api.migrate("v", "node-2", json!({ "peer_deadline_ms": 3000 }));
    let path = format!("/v1/migrations/{id}");
    let waits = |shown: &Value| shown["waits_for"] == "node-1 to reach node-2 at its migration address";
    cluster.api.wait_for(&path, SOON, waits);
    go_on(&writers);
    let is_over = |shown: &Value| shown["phase"] == "rolled_back" && shown["cleanup_pending"] == json!([]);
    let over = cluster.api.wait_for(&path, SOON, is_over);
    let reason = "node-1 could not reach node-2 at its migration address for 3s";
    assert_eq!(over["error"]["code"], "node_unreachable", "{over:#}");
    assert!(over["error"]["message"].as_str().is_some_and(|message| message.contains(reason)), "{over:#}");
    let events = cluster.api.get(&format!("/v1/events?migration={id}"));
    let is_told = |event: &Value| event["text"].as_str().is_some_and(|text| text.contains(reason));
    assert!(events["items"].as_array().is_some_and(|events| events.iter().any(is_told)), "{events:#}");
    let lease = cluster.api.get("/v1/leases/v");
    assert_eq!((&lease["holder"], &lease["ttl_ms"]), (&json!("node-1"), &Value::Null));
    go_on(&writers);

    // It breaks while every write goes to both sides: these go on at the source, and the move when it is back.
    relay.open();
    let id = cluster.api.migrate("v", "node-2", json!({ "cutover": "manual", "retention_ms": 100 }));
    let path = format!("/v1/migrations/{id}");
    cluster.api.wait_phase(&id, &["mirroring"], SOON);
    relay.close();
    cluster.api.wait_for(&path, SOON, waits);
    go_on(&writers);
    relay.open();
    cluster.api.insist("POST", &format!("{path}/cutover"), &json!({}), SOON);
    cluster.api.wait_phase(&id, &["committed"], SOON);
    check(&cluster, &bulk, writers);
}
