//! A control plane and nodes as child processes, with all they need in one directory.
//!
//! ```text
//!  DIR/secret            shared by all            DIR/node-1.toml     a node's settings
//!  DIR/token             for the REST interface   DIR/node-1/         its tier, metadata, sockets
//!  DIR/env               to source in a shell     DIR/node-1.log
//!  DIR/control.toml      its settings             DIR/control/        its data
//! ```

use super::process::{Child, stop};
use crate::client::Client;
use crate::failure::{Context, Exit, Failure};
use drover_types::{Health, Node};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long all of it may take to be up: recovery of large maps is the longest part.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Longest directory name for which the sockets below it still have a path the kernel takes.
const DIR_BYTES_MAX: usize = 85;

/// What to start.
pub struct Plan {
    pub dir: PathBuf,
    /// Where the REST interface listens.
    pub rest: String,
    pub nodes: Vec<NodePlan>,
}

pub struct NodePlan {
    pub name: String,
    /// The network namespace it runs in, if one of its own.
    pub netns: Option<String>,
    /// `None`: a unix socket in its directory.
    pub peer: Option<String>,
    pub tier_bytes: u64,
}

impl NodePlan {
    pub fn dir(&self, plan: &Plan) -> PathBuf {
        plan.dir.join(&self.name)
    }
    pub fn nbd_socket(&self, plan: &Plan) -> PathBuf {
        self.dir(plan).join("nbd.sock")
    }
    /// The file that holds its slots.
    pub fn slots(&self, plan: &Plan) -> PathBuf {
        self.dir(plan).join("tier/fast.slots")
    }
}

impl Plan {
    pub fn api(&self) -> String {
        format!("http://{}", self.rest)
    }

    pub fn token(&self) -> Result<String, Failure> {
        let path = self.dir.join("token");
        std::fs::read_to_string(&path).or_fail(|| format!("cannot read {}", path.display()))
    }

    pub fn client(&self) -> Result<Client, Failure> {
        Client::new(Some(&self.api()), Some(&self.token()?))
    }

    fn control_socket(&self) -> PathBuf {
        self.dir.join("control.sock")
    }

    /// Makes directories and files. Secret and token stay as they are if they are there.
    fn write(&self) -> Result<(), Failure> {
        make_dir(&self.dir)?;
        if self.dir.as_os_str().len() > DIR_BYTES_MAX {
            return Err(Failure::usage(format!("{} is too long for sockets below it", self.dir.display())));
        }
        for secret in ["secret", "token"] {
            make_secret(&self.dir.join(secret))?;
        }
        let dir = self.dir.display();
        let token = self.token()?;
        let env = format!("export DROVER_API={} DROVER_TOKEN={}\n", self.api(), token.trim());
        write_private(&self.dir.join("env"), &env)?;
        make_dir(&self.dir.join("control"))?;
        let control = format!(
            "data = \"{dir}/control\"\nsecret = \"{dir}/secret\"\ntoken = \"{dir}/token\"\n\n\
             [listen]\nrest = \"{}\"\nnodes = \"unix:{}\"\n",
            self.rest,
            self.control_socket().display(),
        );
        write_private(&self.dir.join("control.toml"), &control)?;
        for node in &self.nodes {
            self.write_node(node)?;
        }
        Ok(())
    }

    fn write_node(&self, node: &NodePlan) -> Result<(), Failure> {
        let dir = node.dir(self);
        for part in [dir.clone(), dir.join("tier"), dir.join("checkpoint")] {
            make_dir(&part)?;
        }
        let (top, own) = (self.dir.display(), dir.display());
        let peer = node.peer.clone().unwrap_or_else(|| format!("unix:{own}/peer.sock"));
        let text = format!(
            "id = \"{}\"\ncontrol = \"unix:{}\"\nsecret = \"{top}/secret\"\nmeta = \"{own}/meta\"\n\
             checkpoint = \"{own}/checkpoint\"\n\n\
             [listen]\nadmin = \"unix:{own}/admin.sock\"\npeer = \"{peer}\"\nnbd_unix = \"{own}/nbd.sock\"\n\n\
             [[tier]]\nname = \"fast\"\nclass = \"ssd\"\npath = \"{own}/tier\"\nsize = \"{}\"\n\
             sparse = true\n",
            node.name,
            self.control_socket().display(),
            node.tier_bytes,
        );
        write_private(&self.dir.join(format!("{}.toml", node.name)), &text)
    }
}

/// Volumes' data lies below: it is for nobody else to read.
pub fn make_dir(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).or_fail(|| format!("cannot make {}", path.display()))
}

fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let open = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(text.as_bytes())).or_fail(|| format!("cannot write {}", path.display()))
}

fn make_secret(path: &Path) -> Result<(), Failure> {
    let mut bytes = [0; 32];
    let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.or_fail(|| "cannot read /dev/urandom".into())?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match OpenOptions::new().create_new(true).write(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).or_fail(|| format!("cannot write {}", path.display())),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Failure::failed(format!("cannot write {}", path.display())).cause(error)),
    }
}

/// The processes. Dropping it kills them; [`Cluster::stop`] stops them in order.
pub struct Cluster {
    children: Vec<Child>,
}

impl Cluster {
    /// Writes the settings and starts all of it; completes when every node has registered.
    pub async fn start(plan: &Plan) -> Result<Self, Failure> {
        plan.write()?;
        let binary = std::env::current_exe().or_fail(|| "cannot find this program's file".into())?;
        let mut control = Command::new(&binary);
        control.arg("control").arg("--config").arg(plan.dir.join("control.toml"));
        let mut cluster = Self { children: Vec::new() };
        cluster.children.push(Child::start("control", control, &plan.dir.join("control.log"))?);
        for node in &plan.nodes {
            let mut command = match &node.netns {
                Some(netns) => {
                    let mut command = Command::new("ip");
                    command.args(["netns", "exec", netns]).arg(&binary);
                    command
                }
                None => Command::new(&binary),
            };
            command.arg("node").arg("--config").arg(plan.dir.join(format!("{}.toml", node.name)));
            let log = plan.dir.join(format!("{}.log", node.name));
            cluster.children.push(Child::start(&node.name, command, &log)?);
        }
        cluster.ready(plan).await?;
        Ok(cluster)
    }

    async fn ready(&mut self, plan: &Plan) -> Result<(), Failure> {
        let client = plan.client()?;
        let begin = Instant::now();
        loop {
            self.check()?;
            match client.list::<Node>("/v1/nodes").await {
                Ok(nodes) => {
                    let up = |name: &str| nodes.iter().any(|node| node.name == name && node.health == Health::Up);
                    if plan.nodes.iter().all(|node| up(&node.name)) {
                        return Ok(());
                    }
                }
                Err(failure) if failure.exit == Exit::Unreachable => {}
                Err(failure) => {
                    // Whoever answered may be another control plane, at whose address ours could not listen.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    self.check()?;
                    return Err(failure);
                }
            }
            if begin.elapsed() > READY_DEADLINE {
                let hint = format!("see the logs in {}", plan.dir.display());
                return Err(Failure::failed("the nodes did not register in time").hint(hint));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An error if one of the processes has ended.
    pub fn check(&mut self) -> Result<(), Failure> {
        self.children.iter_mut().try_for_each(Child::check)
    }

    /// Nodes first, so that they can tell the control plane.
    pub async fn stop(mut self) -> Vec<String> {
        let mut nodes = self.children.split_off(1);
        let mut late = stop(&mut nodes).await;
        late.extend(stop(&mut self.children).await);
        late
    }
}
