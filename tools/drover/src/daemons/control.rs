//! `drover control`: the control plane as a process.
//!
//! ```toml
//! data = "/var/lib/drover/control"
//! token = "/etc/drover/token"         # the bearer token of the REST interface
//! secret = "/etc/drover/secret"       # what nodes have to show; needed beyond this machine
//! lease_ttl_ms = 9000                 # optional: time to live of timed leases
//!
//! [listen]
//! rest = "127.0.0.1:7600"
//! nodes = "127.0.0.1:7601"
//!
//! [tls]                               # optional: between the control plane and nodes
//! cert = "/etc/drover/server-cert.pem"
//! key = "/etc/drover/server-key.pem"
//! ca = "/etc/drover/ca-cert.pem"
//! ```

use super::cluster::make_dir;
use super::process::Signals;
use super::{abort_on_panic, log};
use crate::commands::block_on;
use crate::failure::{Context, Failure};
use drover_control::{Control, ControlConfig};
use drover_meta::RocksMetaStore;
use drover_node::config::ConfigError;
use drover_node::config::checks::{self, Problems};
use drover_runtime::Workers;
use drover_runtime::tls::{Tls, TlsFiles};
use drover_server::ServerConfig;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// Bounds of a timed lease: below, ordinary delays end it; above, a dead holder is waited for too long.
const LEASE_TTL_MS: std::ops::RangeInclusive<u64> = 1_000..=60_000;

const WORKERS: usize = 1;

/// How long requests, and streams of events, may take to end when the process stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: PathBuf,
    token: PathBuf,
    secret: Option<PathBuf>,
    lease_ttl_ms: Option<u64>,
    listen: Listen,
    tls: Option<checks::TlsTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    rest: String,
    nodes: String,
}

/// Settings, checked wholly before anything is done.
#[derive(Debug)]
struct Settings {
    data: PathBuf,
    token: String,
    secret: [u8; 32],
    lease_ttl: Option<Duration>,
    rest: SocketAddr,
    nodes: String,
    tls: Option<TlsFiles>,
}

impl Settings {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&checks::read(path)?).map_err(|error| ConfigError { path: Some(path.into()), ..error })
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = checks::from_toml(text)?;
        let mut problems = Problems::default();
        problems.folder("data", &file.data);
        let token = token(&mut problems, &file.token);
        let secret = file.secret.as_deref().and_then(|path| problems.secret(path));
        let rest = problems.take("listen.rest", file.listen.rest.parse(), "an IP address and port: 127.0.0.1:7600");
        problems.listen("listen.nodes", &file.listen.nodes, true);
        if !checks::is_local(&file.listen.nodes) && file.secret.is_none() {
            let hint = "set secret to a file shared by the cluster, or listen at 127.0.0.1";
            problems.add("listen.nodes", "other machines can reach it and no secret is set", hint);
        }
        if let Some(ttl) = file.lease_ttl_ms.filter(|ttl| !LEASE_TTL_MS.contains(ttl)) {
            let hint = format!("from {} to {}", LEASE_TTL_MS.start(), LEASE_TTL_MS.end());
            problems.add("lease_ttl_ms", &format!("{ttl} ms"), &hint);
        }
        let tls = file.tls.and_then(|table| problems.tls(table));
        problems.finish(|| Self {
            tls,
            data: file.data,
            token: token.expect("a bad token is a problem"),
            secret: secret.unwrap_or([0; 32]),
            lease_ttl: file.lease_ttl_ms.map(Duration::from_millis),
            rest: rest.expect("a bad address is a problem"),
            nodes: file.listen.nodes,
        })
    }
}

fn token(problems: &mut Problems, path: &Path) -> Option<String> {
    let hint = "make one: head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE";
    let text = problems.take("token", checks::read(path), hint)?.trim().to_owned();
    if text.len() < 16 || !text.is_ascii() || text.contains(char::is_whitespace) {
        problems.add("token", "it must be at least 16 visible characters on one line", hint);
        return None;
    }
    Some(text)
}

pub fn run(config: &Path) -> Result<(), Failure> {
    let settings = Settings::load(config)?;
    log();
    abort_on_panic();
    block_on(serve(settings))
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    make_dir(&settings.data)?;
    let store =
        RocksMetaStore::open(&settings.data.join("meta")).or_fail(|| "cannot open the control plane's store".into())?;
    let tls = settings.tls.map(Tls::load).transpose().or_fail(|| "cannot use the certificates".into())?;
    let world = drover_runtime::world(&Workers::start(WORKERS).or_fail(|| "cannot start threads".into())?, tls);
    let defaults = ControlConfig::default();
    let config = ControlConfig { secret: settings.secret, ttl: settings.lease_ttl.unwrap_or(defaults.ttl), ..defaults };
    let control =
        Control::start(config, world, Rc::new(store)).await.or_fail(|| "the control plane cannot start".into())?;
    let server = ServerConfig { listen: settings.rest, token: Some(settings.token) };
    let bound = drover_server::bind(server).await.or_fail(|| format!("cannot listen at {}", settings.rest))?;
    let nodes = control.serve(&settings.nodes).await.or_fail(|| format!("cannot listen at {}", settings.nodes))?;
    tracing::info!(target: "control", rest = %settings.rest, %nodes, "up");
    let (stopping, mut stopped) = watch::channel(false);
    let stop = async move {
        signals.stop().await;
        // The server ends without being told only by an error.
        let _ = stopping.send(true);
    };
    let late = async {
        // An error means that the sender is gone, after it sent.
        let _ = stopped.wait_for(|is_stopping| *is_stopping).await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        biased;
        served = bound.serve(control.handle(), stop) => served.or_fail(|| "the REST interface failed".into())?,
        () = late => tracing::info!(target: "control", "some requests did not end in time"),
    }
    tracing::info!(target: "control", "stopped");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked_whole() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().display();
        std::fs::write(folder.path().join("token"), "0123456789abcdef\n").unwrap();
        std::fs::write(folder.path().join("short"), "0123").unwrap();
        let good = format!(
            "data = \"{dir}/data\"\ntoken = \"{dir}/token\"\n[listen]\nrest = \"127.0.0.1:7600\"\nnodes = \"127.0.0.1:7601\"\n"
        );
        assert_eq!(Settings::parse(&good).unwrap().token, "0123456789abcdef");
        for (from, to, key) in [
            ("/token", "/none", "token"),
            ("/token", "/short", "token"),
            ("127.0.0.1:7601", "0.0.0.0:7601", "listen.nodes"),
            ("127.0.0.1:7600", "unix:/tmp/rest", "listen.rest"),
            ("[listen]", "lease_ttl_ms = 10\n[listen]", "lease_ttl_ms"),
        ] {
            let error = Settings::parse(&good.replace(from, to)).expect_err(to);
            assert!(error.problems.iter().any(|problem| problem.key == key), "{from} → {to}: {error}");
        }
        assert!(Settings::parse(&good.replace("rest =", "reast =")).unwrap_err().to_string().contains("reast"));
    }
}
