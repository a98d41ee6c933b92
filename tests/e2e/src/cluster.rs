//! A control plane and nodes as real processes, in a folder of their own, all gone at the end.

use crate::{Api, Daemon, Link};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How a cluster is laid out.
pub struct Layout<'a> {
    pub nodes: usize,
    /// Where tiers and metadata lie; on tmpfs for benches of the engine, on disk for crashes.
    pub folder: &'a Path,
    pub tier_size: &'a str,
    /// Shortest useful time to live, so that lease tests take seconds.
    pub lease_ttl_ms: u64,
    /// The first two nodes run on its hosts.
    pub link: Option<&'a Link>,
    /// Processors of each node, as taskset names them; none: any.
    pub cpus: &'a [&'a str],
    /// An authority's folder that `drover tls init` made: what goes by TCP is TLS.
    pub tls: Option<&'a Path>,
}

impl<'a> Layout<'a> {
    /// What most tests need.
    pub fn two_nodes(folder: &'a Path) -> Self {
        Self { nodes: 2, folder, tier_size: "1GiB", lease_ttl_ms: 2000, link: None, cpus: &[], tls: None }
    }
}

/// The running processes.
pub struct Cluster {
    pub control: Daemon,
    pub nodes: Vec<Daemon>,
    pub api: Api,
    folder: PathBuf,
}

/// Where clients of a node connect, for whoever outlives a borrow of the cluster.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub socket: PathBuf,
}

impl Endpoint {
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

/// The `drover` binary under test: `DROVER_BIN`, or the one beside the test programs.
pub fn drover_program() -> PathBuf {
    if let Some(path) = std::env::var_os("DROVER_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test program has a path");
    let release = test.ancestors().find(|folder| folder.ends_with("release")).expect("it lies in the target folder");
    release.join("drover")
}

impl Cluster {
    /// Starts all and waits until the control plane knows every node.
    pub fn start(layout: &Layout) -> Self {
        Self::start_set(layout, |settings| settings)
    }

    /// The same with nodes' settings that `set` has changed.
    pub fn start_set(layout: &Layout, set: impl Fn(String) -> String) -> Self {
        Self::start_with(layout, daemon("control", layout.folder), set)
    }

    /// The same with the control plane `program`, which tells `steps` of what it persists and waits so long for what
    /// was asked for and cannot be.
    pub fn start_stepped(layout: &Layout, program: &Path, steps: &Path, patience: Duration) -> Self {
        let (config, log) = (layout.folder.join("control.toml"), layout.folder.join("control.log"));
        let (config, steps, patience) =
            (config.display().to_string(), steps.display().to_string(), patience.as_millis().to_string());
        let control = Daemon::new("control", program, &[&config, &steps, &patience], &log);
        Self::start_with(layout, control, |settings| settings)
    }

    fn start_with(layout: &Layout, control: Daemon, set: impl Fn(String) -> String) -> Self {
        let folder = layout.folder.to_path_buf();
        fs::create_dir_all(&folder).expect("the cluster's folder");
        fs::write(folder.join("secret"), "a secret of this test cluster, 32 bytes or more").expect("a secret");
        fs::write(folder.join("token"), "token-of-this-test-cluster").expect("a token");
        let ports = free_ports(2);
        let (rest, rpc) = (ports[0], ports[1]);
        let any = layout.link.is_some();
        let control_settings = control_config(&folder, rest, rpc, layout.lease_ttl_ms, any);
        let control_settings = control_settings + &tls_config(layout, "control", "control");
        fs::write(folder.join("control.toml"), control_settings).expect("the control plane's settings");
        let nodes = (0..layout.nodes)
            .map(|index| {
                fs::create_dir_all(folder.join(format!("tier-{index}"))).expect("a tier's folder");
                let name = node_name(index);
                let config = set(node_config(layout, index, rpc)) + &tls_config(layout, "node", &name);
                fs::write(folder.join(format!("{name}.toml")), config).expect("a node's settings");
                let mut node = daemon(&name, &folder);
                if let Some(link) = layout.link.filter(|_| index < 2) {
                    node = node.in_namespace(&link.namespace(index));
                }
                match layout.cpus.get(index) {
                    Some(cpus) => node.pinned(cpus),
                    None => node,
                }
            })
            .collect();
        let api = Api::new(&format!("http://127.0.0.1:{rest}"), "token-of-this-test-cluster");
        let mut cluster = Self { control, nodes, api, folder };
        cluster.control.start().expect("the control plane starts");
        for node in &mut cluster.nodes {
            node.start().expect("a node starts");
        }
        cluster.wait_for_nodes();
        cluster
    }

    /// Waits until every node has registered.
    pub fn wait_for_nodes(&self) {
        let count = self.nodes.len();
        self.api.wait_for("/v1/nodes", Duration::from_secs(20), |nodes| {
            let is_up = |node: &&Value| node["health"] == "up";
            nodes["items"].as_array().is_some_and(|items| items.iter().filter(is_up).count() == count)
        });
    }

    /// Ends a node in order and starts it again. The control plane may not have noticed yet, but clients can connect.
    pub fn restart(&mut self, node: usize) {
        assert!(self.nodes[node].terminate().expect("it ends").success());
        self.nodes[node].start().expect("a node starts");
        let began = Instant::now();
        while UnixStream::connect(self.socket(node)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "node {node} does not come back");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Makes a volume on a node and exports it under its name on every node.
    pub fn create_volume(&self, name: &str, size_bytes: u64, node: usize) {
        self.api.post("/v1/volumes", json!({ "name": name, "size_bytes": size_bytes, "node": node_name(node) }));
        for index in 0..self.nodes.len() {
            self.api.post("/v1/exports", json!({ "volume": name, "node": node_name(index), "name": name }));
        }
    }

    /// The volume on a node's unix socket.
    pub fn uri(&self, node: usize, export: &str) -> String {
        self.endpoint(node).uri(export)
    }

    /// Where the node's clients connect.
    pub fn endpoint(&self, node: usize) -> Endpoint {
        Endpoint { socket: self.socket(node) }
    }

    /// A node's unix socket.
    pub fn socket(&self, node: usize) -> PathBuf {
        self.folder.join(format!("{}.sock", node_name(node)))
    }

    /// The device file of a node's tier.
    pub fn device(&self, node: usize) -> PathBuf {
        let folder = self.folder.join(format!("tier-{node}"));
        let mut files: Vec<_> =
            fs::read_dir(folder).expect("a tier").map(|entry| entry.expect("a file").path()).collect();
        assert_eq!(files.len(), 1, "a tier has one device file");
        files.remove(0)
    }

    /// The command line, as people use it.
    pub fn drover(&self, arguments: &[&str]) -> Output {
        let (api, token) = self.api.address();
        let mut drover = Command::new(drover_program());
        drover.args(arguments).env("DROVER_API", api).env("DROVER_TOKEN", token).stdin(Stdio::null());
        drover.output().expect("drover runs")
    }

    /// Takes away all that a node that is down has on its disks.
    pub fn lose_disks(&self, node: usize) {
        fs::remove_file(self.device(node)).expect("its device file");
        for folder in ["meta", "checkpoint"] {
            fs::remove_dir_all(self.folder.join(format!("{}-{folder}", node_name(node)))).expect("its folder");
        }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The name of the node with this index.
pub fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

fn daemon(name: &str, folder: &Path) -> Daemon {
    let verb = if name == "control" { "control" } else { "node" };
    let config = folder.join(format!("{name}.toml")).display().to_string();
    Daemon::new(name, &drover_program(), &[verb, "--config", &config], &folder.join(format!("{name}.log")))
}

/// Makes the member's certificate; its settings.
fn tls_config(layout: &Layout, role: &str, name: &str) -> String {
    let Some(authority) = layout.tls else { return String::new() };
    let mut issue = Command::new(drover_program());
    issue.args(["tls", "issue"]).arg(authority).args([role, name, "--host", "127.0.0.1", "--host", "localhost"]);
    let issued = issue.output().expect("drover runs");
    assert!(issued.status.success(), "{issued:?}");
    let file = |what: &str| authority.join(format!("{role}-{name}")).join(what).display().to_string();
    format!(
        "[tls]\ncert = \"{}\"\nkey = \"{}\"\nca = \"{}\"\n",
        file("server-cert.pem"),
        file("server-key.pem"),
        file("ca-cert.pem")
    )
}

fn control_config(folder: &Path, rest: u16, rpc: u16, lease_ttl_ms: u64, any: bool) -> String {
    let folder = folder.display();
    let rpc_host = if any { "0.0.0.0" } else { "127.0.0.1" };
    format!(
        "data = \"{folder}/control\"\ntoken = \"{folder}/token\"\nsecret = \"{folder}/secret\"\nlease_ttl_ms = {lease_ttl_ms}\n\
         [listen]\nrest = \"127.0.0.1:{rest}\"\nnodes = \"{rpc_host}:{rpc}\"\n"
    )
}

fn node_config(layout: &Layout, index: usize, rpc: u16) -> String {
    let (folder, name) = (layout.folder.display(), node_name(index));
    let ports = free_ports(3);
    let (control, admin, data) = match layout.link.filter(|_| index < 2) {
        Some(link) => (link.root_address(index), link.outer_address(index), link.inner_address(index)),
        None => ["127.0.0.1"; 3].map(String::from).into(),
    };
    format!(
        "id = \"{name}\"\ncontrol = \"{control}:{rpc}\"\nsecret = \"{folder}/secret\"\nmeta = \"{folder}/{name}-meta\"\n\
         checkpoint = \"{folder}/{name}-checkpoint\"\n\
         [listen]\nadmin = \"{admin}:{}\"\npeer = \"{data}:{}\"\nmigration = \"{data}:{}\"\nnbd_unix = \"{folder}/{name}.sock\"\n\
         [[tier]]\nname = \"fast\"\nclass = \"nvme\"\npath = \"{folder}/tier-{index}\"\nsize = \"{}\"\n\
         sparse = true\n",
        ports[0], ports[1], ports[2], layout.tier_size
    )
}

/// Ports that were free a moment ago, all different, also from those of other clusters of this process. They lie below
/// those that the kernel gives to outgoing connections, so that none of these takes one before its daemon listens.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + (std::process::id() % 400) as u16 * 50;
    let mut candidates = std::iter::repeat_with(|| start + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.by_ref().filter(is_free).take(count).collect()
}
