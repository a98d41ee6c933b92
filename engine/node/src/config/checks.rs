//! Checks that settings files of all processes share. Each problem says where, what and what to do.

use drover_runtime::tls::{Tls, TlsFiles};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket the kernel takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Largest settings or secret file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `[tls]`: PEM files.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsTable {
    cert: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

/// One thing that is wrong with settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, as `table.key`; empty: the file as a whole.
    pub key: String,
    pub cause: String,
    pub hint: String,
}

/// Settings that cannot be used; nothing was done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub path: Option<PathBuf>,
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(crate) fn of(mut self, path: &Path) -> Self {
        self.path = Some(path.into());
        self
    }

    fn whole(cause: String, hint: &str) -> Self {
        Self { path: None, problems: vec![Problem { key: String::new(), cause, hint: hint.into() }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        write!(f, "the settings cannot be used")?;
        for Problem { key, cause, hint } in &self.problems {
            let colon = if key.is_empty() { "" } else { ": " };
            write!(f, "\n  {key}{colon}{cause}")?;
            if !hint.is_empty() {
                write!(f, "\n    hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The text of a settings file.
pub fn read(path: &Path) -> Result<String, ConfigError> {
    let fail = |cause: String| ConfigError::whole(cause, "").of(path);
    let size = std::fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(fail(format!("{size} bytes are too many for a settings file")));
    }
    std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))
}

/// Decodes TOML; an unknown key is an error that names the known ones.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let cause = error.to_string().trim_end().replace('\n', "\n  ");
        ConfigError::whole(cause, "keys are checked strictly, so that a misspelt one is not silently ignored")
    })
}

/// `table.key`.
pub fn field(table: &str, key: &str) -> String {
    format!("{table}.{key}")
}

/// Whether only this machine can reach the address. A host name is not trusted to be local, but for `localhost`.
pub fn is_local(address: &str) -> bool {
    if address.starts_with("unix:") {
        return true;
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_any(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// Collects what is wrong.
#[derive(Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn add(&mut self, key: &str, cause: &str, hint: &str) {
        self.0.push(Problem { key: key.into(), cause: cause.into(), hint: hint.into() });
    }

    /// The value; its error becomes a problem.
    pub fn take<T, E: fmt::Display>(&mut self, key: &str, result: Result<T, E>, hint: &str) -> Option<T> {
        result.map_err(|error| self.add(key, &error.to_string(), hint)).ok()
    }

    /// `host:port` or `unix:/path` to connect to.
    pub fn address(&mut self, key: &str, address: &str, is_destination: bool) {
        const HINT: &str = "write host:port, such as 127.0.0.1:7611, or unix:/path";
        if let Some(path) = address.strip_prefix("unix:") {
            self.socket(key, Path::new(path));
            return;
        }
        let Some((host, port)) = address.rsplit_once(':') else {
            return self.add(key, &format!("{address:?} has no port"), HINT);
        };
        match port.parse::<u16>() {
            Err(_) => self.add(key, &format!("{port:?} is not a port"), HINT),
            Ok(0) if is_destination => self.add(key, "port 0 cannot be connected to", HINT),
            Ok(_) if host.is_empty() => self.add(key, "the host is missing", HINT),
            Ok(_) if is_destination && is_any(address) => {
                self.add(key, &format!("{host} is every address of a machine, so none to connect to"), HINT)
            }
            Ok(_) => {}
        }
    }

    /// An address to listen at; one that stands for many needs another to tell others.
    pub fn listen(&mut self, key: &str, address: &str, is_advertised: bool) {
        self.address(key, address, false);
        if is_any(address) && !is_advertised {
            let name = key.rsplit('.').next().unwrap_or(key);
            let hint = format!("set advertise.{name} to an address of this machine");
            self.add(key, "others cannot be told to connect to every address", &hint);
        }
    }

    pub fn socket(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            self.add(key, &format!("{} is relative", path.display()), "give the whole path");
        } else if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let cause = format!("{} bytes are too long for a socket's path", path.as_os_str().len());
            self.add(key, &cause, &format!("at most {SOCKET_PATH_BYTES_MAX}"));
        } else if !path.parent().is_some_and(Path::is_dir) {
            let folder = path.parent().unwrap_or(path).display().to_string();
            self.add(key, &format!("{folder} is not a directory"), &format!("make it: mkdir -p {folder}"));
        }
    }

    /// A directory that exists or can be made, its parent being there.
    pub fn folder(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() {
            self.add(key, &format!("{} is relative", path.display()), "give the whole path");
        } else if path.exists() && !path.is_dir() {
            self.add(key, &format!("{} is not a directory", path.display()), "choose another place");
        } else if !path.exists() && !path.parent().is_some_and(Path::is_dir) {
            let folder = path.parent().unwrap_or(path).display().to_string();
            self.add(key, &format!("{folder} is not a directory"), &format!("make it: mkdir -p {folder}"));
        }
    }

    /// BLAKE3 of a secret's file, whose ends are trimmed of white space.
    pub fn secret(&mut self, path: &Path) -> Option<[u8; 32]> {
        let hint = "make one: head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE";
        let text = self.take("secret", read(path), hint)?;
        if text.trim().len() < 16 {
            self.add("secret", "shorter than 16 characters", hint);
            return None;
        }
        Some(*blake3::hash(text.trim().as_bytes()).as_bytes())
    }

    /// The files, which hold what they are named for.
    pub fn tls(&mut self, TlsTable { cert, key, ca }: TlsTable) -> Option<TlsFiles> {
        let files = TlsFiles { cert, key, ca };
        let hint = "make them: drover tls init DIR; drover tls issue DIR node NAME --host ADDRESS";
        self.take("tls", Tls::load(files.clone()), hint).map(|_| files)
    }

    /// The value, if nothing is wrong.
    pub fn finish<T>(self, value: impl FnOnce() -> T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value()) } else { Err(ConfigError { path: None, problems: self.0 }) }
    }
}
