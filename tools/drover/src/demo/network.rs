//! The link between the two nodes: two network namespaces joined by a pair of virtual interfaces, each limited.

use crate::failure::Failure;
use serde_json::Value;
use std::process::Command;

/// About 1 Gbit/s.
pub const RATE_BITS: u64 = 1_000_000_000;

/// Bytes sent at once by the limiter: what the kernel hands over in one piece, several times.
const BURST: &str = "256kb";

/// How long bytes may wait at the limiter: a switch's buffer, not a bufferbloated modem's.
const QUEUE: &str = "10ms";

pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// A namespace for each node. Dropping it removes them with all that is in them.
pub struct Network {
    names: [String; 2],
}

impl Network {
    /// Needs root and a kernel that grants namespaces.
    pub fn create() -> Result<Self, Failure> {
        let id = std::process::id();
        let network = Self { names: [format!("drover-demo-{id}-1"), format!("drover-demo-{id}-2")] };
        let interfaces = [format!("dr{id}a"), format!("dr{id}b")];
        for name in &network.names {
            ip(&["netns", "add", name])?;
        }
        ip(&["link", "add", &interfaces[0], "type", "veth", "peer", "name", &interfaces[1]])?;
        for side in 0..2 {
            let (name, interface) = (&network.names[side], &interfaces[side]);
            ip(&["link", "set", interface, "netns", name])?;
            ip(&["-n", name, "link", "set", interface, "name", "wire"])?;
            ip(&["-n", name, "address", "add", &format!("{}/30", ADDRESSES[side]), "dev", "wire"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "link", "set", "wire", "up"])?;
            let rate = format!("{RATE_BITS}bit");
            let limit = ["qdisc", "add", "dev", "wire", "root", "tbf", "rate", &rate, "burst", BURST, "latency", QUEUE];
            run("tc", &[&["-n", name.as_str()], &limit[..]].concat())?;
        }
        Ok(network)
    }

    pub fn name(&self, side: usize) -> &str {
        &self.names[side]
    }

    /// Bytes the interface of `side` has sent, headers included.
    pub fn sent_bytes(&self, side: usize) -> Option<u64> {
        let args = ["-n", self.name(side), "-s", "-j", "link", "show", "dev", "wire"];
        let output = Command::new("ip").args(args).output().ok()?;
        let json: Value = serde_json::from_slice(&output.stdout).ok()?;
        json[0]["stats64"]["tx"]["bytes"].as_u64()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // One that was never made needs no removing.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(args: &[&str]) -> Result<(), Failure> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), Failure> {
    let what = || format!("{program} {}", args.join(" "));
    let output = Command::new(program).args(args).output().map_err(|error| Failure::failed(what()).cause(error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::failed(what()).cause(String::from_utf8_lossy(&output.stderr).trim()))
}
