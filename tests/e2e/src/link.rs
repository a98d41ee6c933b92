//! Two hosts on one machine: network namespaces joined by a link of limited rate.
//!
//! ```text
//!  root ── 10.213.x.0/30 ── host 0 ══ 10.213.x.8/30, limited by tbf ══ host 1 ── 10.213.x.4/30 ── root
//! ```
//! The control plane and clients stay in the root namespace; what hosts send each other crosses the limited link.

use std::{io, process::Command};

/// The namespaces and their link; gone when dropped.
pub struct Link {
    prefix: String,
    net: u8,
}

impl Link {
    /// `rate_mbit` bounds each direction. `prefix` is at most 6 letters; `net` tells links of one machine apart.
    pub fn new(prefix: &str, net: u8, rate_mbit: u32) -> io::Result<Self> {
        let link = Self { prefix: prefix.into(), net };
        link.remove();
        for host in 0..2 {
            let namespace = link.namespace(host);
            ip(&format!("netns add {namespace}"))?;
            let (outer, inner) = (format!("{prefix}r{host}"), format!("{prefix}i{host}"));
            ip(&format!("link add {outer} type veth peer name {inner} netns {namespace}"))?;
            ip(&format!("addr add 10.213.{net}.{}/30 dev {outer}", host * 4 + 1))?;
            ip(&format!("link set {outer} up"))?;
            ip(&format!("-n {namespace} addr add {}/30 dev {inner}", link.outer_address(host)))?;
            ip(&format!("-n {namespace} link set {inner} up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        let (a, b) = (link.namespace(0), link.namespace(1));
        ip(&format!("-n {a} link add between type veth peer name between netns {b}"))?;
        for host in 0..2 {
            let namespace = link.namespace(host);
            ip(&format!("-n {namespace} addr add {}/30 dev between", link.inner_address(host)))?;
            ip(&format!("-n {namespace} link set between up"))?;
        }
        link.set_rate(rate_mbit)?;
        Ok(link)
    }

    /// Changes the rate of both directions.
    pub fn set_rate(&self, rate_mbit: u32) -> io::Result<()> {
        for host in 0..2 {
            let shape = format!("qdisc replace dev between root tbf rate {rate_mbit}mbit burst 256kb latency 20ms");
            run("tc", &format!("-n {} {shape}", self.namespace(host)))?;
        }
        Ok(())
    }

    pub fn namespace(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }

    /// The host's address as seen from the root namespace.
    pub fn outer_address(&self, host: usize) -> String {
        format!("10.213.{}.{}", self.net, host * 4 + 2)
    }

    /// The root namespace's address as seen from the host.
    pub fn root_address(&self, host: usize) -> String {
        format!("10.213.{}.{}", self.net, host * 4 + 1)
    }

    /// The host's address on the limited link.
    pub fn inner_address(&self, host: usize) -> String {
        format!("10.213.{}.{}", self.net, 9 + host)
    }

    /// Bytes the host has sent over the limited link.
    pub fn sent_bytes(&self, host: usize) -> io::Result<u64> {
        let words = ["netns", "exec", &self.namespace(host), "cat", "/sys/class/net/between/statistics/tx_bytes"];
        let output = Command::new("ip").args(words).output()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().map_err(io::Error::other)
    }

    fn remove(&self) {
        for host in 0..2 {
            // It may not be there.
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(host)]).output();
            let _ = Command::new("ip").args(["link", "del", &format!("{}r{host}", self.prefix)]).output();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(words: &str) -> io::Result<()> {
    run("ip", words)
}

fn run(program: &str, words: &str) -> io::Result<()> {
    let output = Command::new(program).args(words.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program} {words}: {}", reason.trim())))
}
