//! A cluster whose processes speak TLS: who is let in to its volumes, and that they move.

use drover_e2e::{Area, Bulk, Client, Cluster, Layout, OnLoss, Writer, drover_program, node_name};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn drover_tls(arguments: &[&str], dir: &Path, more: &[&str]) {
    let mut drover = Command::new(drover_program());
    let made = drover.arg("tls").args(arguments).arg(dir).args(more).output().expect("drover runs");
    assert!(made.status.success(), "{arguments:?} {more:?}: {made:?}");
}

/// Certificates of one authority and of another, as folders that libnbd and QEMU take.
struct Clients {
    good: PathBuf,
    others: PathBuf,
    expired: PathBuf,
    /// A node's, where a client's is expected.
    node: PathBuf,
    none: PathBuf,
}

impl Clients {
    /// Besides makes the authority in `tls`.
    fn make(folder: &Path, tls: &Path) -> Self {
        let other = folder.join("other");
        for dir in [tls, &other] {
            drover_tls(&["init"], dir, &[]);
            drover_tls(&["issue"], dir, &["client", "alice"]);
        }
        let good = tls.join("client-alice");
        let (others, expired, node, none) =
            (folder.join("others"), folder.join("expired"), folder.join("node"), folder.join("none"));
        for made in [&others, &expired, &node, &none] {
            fs::create_dir(made).expect("a folder");
            fs::copy(tls.join("ca-cert.pem"), made.join("ca-cert.pem")).expect("the authority");
        }
        for file in ["client-cert.pem", "client-key.pem"] {
            fs::copy(other.join("client-alice").join(file), others.join(file)).expect("a file");
        }
        drover_tls(&["issue"], tls, &["node", "spare", "--host", "localhost"]);
        for (from, to) in [("server-cert.pem", "client-cert.pem"), ("server-key.pem", "client-key.pem")] {
            fs::copy(tls.join("node-spare").join(from), node.join(to)).expect("a file");
        }
        expire(tls, &expired);
        Self { good, others, expired, node, none }
    }
}

/// A client's certificate of the authority that was good until a minute ago.
fn expire(tls: &Path, into: &Path) {
    let ca_key = KeyPair::from_pem(&fs::read_to_string(tls.join("ca-key.pem")).expect("a key")).expect("a key");
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "Drover cluster authority");
    let mut params = CertificateParams::new(vec!["client.drover.internal".into()]).expect("a name");
    params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("it signs");
    fs::write(into.join("client-cert.pem"), certificate.pem()).expect("a file");
    fs::write(into.join("client-key.pem"), key.serialize_pem()).expect("a file");
}

fn succeeds(command: &mut Command) -> bool {
    let output = command.stdin(Stdio::null()).output().expect("it runs");
    if !output.status.success() {
        println!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn nbdinfo(uri: &str) -> bool {
    succeeds(Command::new("timeout").args(["20", "nbdinfo", "--size", uri]))
}

fn qemu_img(port: &str, certificates: Option<&Path>) -> bool {
    let mut image = format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=v");
    let mut command = Command::new("timeout");
    command.args(["20", "qemu-img", "info", "--image-opts"]);
    if let Some(folder) = certificates {
        let object = format!("tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir={}", folder.display());
        command.args(["--object", &object]);
        image.push_str(",tls-creds=tls");
    }
    succeeds(command.arg(image))
}

fn start(folder: &Path, tls: &Path) -> (Cluster, Vec<String>) {
    let set = |settings: String| settings.replace("nbd_unix", "nbd_tcp = \"127.0.0.1:0\"\nnbd_unix");
    let cluster = Cluster::start_set(&Layout { tls: Some(tls), ..Layout::two_nodes(folder) }, set);
    cluster.create_volume("v", SIZE, 0);
    let ports = (0..2).map(|node| {
        let export = cluster.api.get(&format!("/v1/exports/{}/v", node_name(node)));
        let uris = export["uris"].as_array().expect("addresses");
        let mut port =
            uris.iter().filter_map(|uri| uri.as_str()?.strip_prefix("nbds://127.0.0.1:")?.strip_suffix("/v"));
        port.next().unwrap_or_else(|| panic!("no address with TLS: {export:#}")).to_owned()
    });
    let ports = ports.collect();
    (cluster, ports)
}

#[test]
fn volumes_are_for_clients_with_a_good_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let tls = folder.path().join("tls");
    let clients = Clients::make(folder.path(), &tls);
    let (cluster, ports) = start(folder.path(), &tls);
    let port = &ports[0];
    let uri = |port: &str, folder: &Path| format!("nbds://127.0.0.1:{port}/v?tls-certificates={}", folder.display());
    let cases = [
        ("a good one", &clients.good, true),
        ("another authority's", &clients.others, false),
        ("an expired one", &clients.expired, false),
        ("a node's", &clients.node, false),
        ("none", &clients.none, false),
    ];
    for (name, folder, is_good) in cases {
        assert_eq!(nbdinfo(&uri(port, folder)), is_good, "nbdinfo with {name}");
        assert_eq!(qemu_img(port, Some(folder)), is_good, "qemu-img with {name}");
    }
    assert!(!nbdinfo(&format!("nbd://127.0.0.1:{port}/v")), "nbdinfo without TLS");
    assert!(!succeeds(Command::new("timeout").args(["20", "nbdinfo", "--list", &format!("nbd://127.0.0.1:{port}")])));
    assert!(!qemu_img(port, None), "qemu-img without TLS");
    let socket = cluster.socket(0).display().to_string();
    let plain = format!("nbds+unix:///v?socket={socket}&tls-certificates={}", clients.good.display());
    assert!(!nbdinfo(&plain), "with TLS where there is none");
    // By the holder and through a gateway.
    for port in &ports {
        let uri = uri(port, &clients.good);
        drover_interop::check_nbdinfo(&uri).expect("nbdinfo");
        drover_interop::check_nbdcopy(&uri).expect("nbdcopy");
    }
    // Our own client.
    let copied = cluster.drover(&["import", &uri(port, &clients.good), "copy"]);
    assert!(copied.status.success(), "{copied:?}");
    let refused = cluster.drover(&["import", &uri(port, &clients.others), "copy-2"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let files = ["v", "copy"].map(|name| {
        let file = folder.path().join(format!("{name}.raw"));
        let exported = cluster.drover(&["export", name, &file.display().to_string()]);
        assert!(exported.status.success(), "{exported:?}");
        fs::read(file).expect("it was written")
    });
    assert!(files[0].len() as u64 == SIZE && files[0] == files[1]);
}

#[test]
fn a_volume_moves_there_and_back_over_tls() {
    let folder = tempfile::tempdir().expect("a folder");
    let tls = folder.path().join("tls");
    drover_tls(&["init"], &tls, &[]);
    let (cluster, _) = start(folder.path(), &tls);
    let mut client = Client::connect(&cluster.socket(0), "v").expect("the holder answers");
    let bulk = Bulk::write(&mut client, 12 * MIB);
    let area = |index: u64| Area { offset: index * MIB, blocks: 64 };
    let writers: Vec<Writer> = (0..2)
        .map(|node| Writer::start(&cluster.socket(node), "v", area(node as u64), OnLoss::Fail, node as u64 + 1))
        .collect();
    for destination in ["node-2", "node-1"] {
        let id = cluster.api.migrate("v", destination, json!({ "retention_ms": 100 }));
        cluster.api.wait_phase(&id, &["committed"], Duration::from_secs(60));
        writers.iter().for_each(|writer| writer.wait_flushes(3));
    }
    let written: Vec<_> = writers.into_iter().map(Writer::stop).collect();
    for node in 0..2 {
        written.iter().for_each(|written| written.verify(&cluster.socket(node), "v"));
        bulk.verify(&cluster, node, "v");
    }
}

/// Its certificate is good, and another node's: it must not register under that node's name.
#[test]
fn a_node_is_not_let_in_under_another_s_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let tls = folder.path().join("tls");
    drover_tls(&["init"], &tls, &[]);
    let mut cluster = Cluster::start(&Layout { tls: Some(&tls), ..Layout::two_nodes(folder.path()) });
    let settings = folder.path().join("node-2.toml");
    let text = fs::read_to_string(&settings).expect("its settings");
    fs::write(&settings, text.replace("id = \"node-2\"", "id = \"node-3\"")).expect("its settings");
    cluster.nodes[1].kill();
    cluster.lose_disks(1);
    cluster.nodes[1].start().expect("it starts");
    let log = folder.path().join("control.log");
    let began = std::time::Instant::now();
    while !fs::read_to_string(&log).expect("a log").contains("not that of the node it says it is") {
        assert!(began.elapsed() < Duration::from_secs(20), "the control plane does not refuse it");
        std::thread::sleep(Duration::from_millis(50));
    }
    let known = cluster.api.get("/v1/nodes");
    let names: Vec<_> = known["items"].as_array().expect("nodes").iter().map(|node| node["name"].clone()).collect();
    assert_eq!(names, [json!("node-1"), json!("node-2")]);
}
