//! NBD URIs: `nbd://host[:port]/export`, `nbd+unix:///export?socket=path`, and with TLS
//! `nbds://host[:port]/export?tls-certificates=folder`.
//!
//! Source: `doc/uri.md` of <https://github.com/NetworkBlockDevice/nbd>; `tls-certificates` as libnbd has it.

use super::ExportName;
use super::proto::{PORT, bounds::STRING_BYTES_MAX};
use std::{fmt, path::PathBuf, str::FromStr};

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// The host is a name or an address; an IPv6 one is without its brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// An export somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    pub address: NbdAddress,
    pub name: ExportName,
    /// TLS, with the certificates of this folder.
    pub tls: Option<PathBuf>,
}

/// The text is no NBD URI that we can reach.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUri {
    #[error("the scheme is none of nbd, nbds and nbd+unix")]
    Scheme,
    #[error("the host or port is wrong")]
    Host,
    #[error("a Unix socket's path is given as ?socket=/path, and the host left empty")]
    Socket,
    #[error("for nbds the folder of your certificates is given as ?tls-certificates=/path")]
    Certificates,
    #[error("the export's name is wrong or too long")]
    Export,
    #[error("a % is not followed by two hexadecimal digits, or the result is not text")]
    Escape,
}

impl FromStr for NbdUri {
    type Err = BadUri;
    fn from_str(text: &str) -> Result<Self, BadUri> {
        let (scheme, rest) = text.split_once("://").ok_or(BadUri::Scheme)?;
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = match scheme {
            "nbd" | "nbds" => tcp(authority)?,
            "nbd+unix" => unix(authority, query)?,
            _ => return Err(BadUri::Scheme),
        };
        let name = unescape(path)?;
        if name.len() > STRING_BYTES_MAX {
            return Err(BadUri::Export);
        }
        let tls = if scheme == "nbds" { Some(certificates(query)?) } else { None };
        Ok(Self { address, tls, name: name.parse().map_err(|_| BadUri::Export)? })
    }
}

fn tcp(authority: &str) -> Result<NbdAddress, BadUri> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(BadUri::Host)?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or(BadUri::Host)?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { PORT } else { port.parse().map_err(|_| BadUri::Host)? };
    if host.is_empty() || host.contains('@') {
        return Err(BadUri::Host);
    }
    Ok(NbdAddress::Tcp { host: unescape(host)?, port })
}

fn unix(authority: &str, query: &str) -> Result<NbdAddress, BadUri> {
    let socket = query.split('&').find_map(|part| part.strip_prefix("socket=")).ok_or(BadUri::Socket)?;
    let path = unescape(socket)?;
    if !authority.is_empty() || path.is_empty() || path.contains('\0') {
        return Err(BadUri::Socket);
    }
    Ok(NbdAddress::Unix(path.into()))
}

fn certificates(query: &str) -> Result<PathBuf, BadUri> {
    let folder = query.split('&').find_map(|part| part.strip_prefix("tls-certificates="));
    let folder = unescape(folder.ok_or(BadUri::Certificates)?)?;
    if folder.is_empty() || folder.contains('\0') { Err(BadUri::Certificates) } else { Ok(folder.into()) }
}

fn unescape(text: &str) -> Result<String, BadUri> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(BadUri::Escape);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    String::from_utf8(bytes).map_err(|_| BadUri::Escape)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/@".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = escape(&self.name.to_string());
        let folder = |path: &PathBuf| format!("?tls-certificates={}", escape(&path.to_string_lossy()));
        let (scheme, query) = match &self.tls {
            Some(path) => ("nbds", folder(path)),
            None => ("nbd", String::new()),
        };
        match &self.address {
            NbdAddress::Tcp { host, port } if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{name}{query}")
            }
            NbdAddress::Tcp { host, port } => write!(f, "{scheme}://{host}:{port}/{name}{query}"),
            NbdAddress::Unix(path) => write!(f, "nbd+unix:///{name}?socket={}", escape(&path.to_string_lossy())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_read_back() {
        for text in [
            "nbd://localhost:10809/vol",
            "nbd://[::1]:7/vol@web",
            "nbd+unix:///vol?socket=/run/drover/a%20b",
            "nbd+unix:///?socket=s",
            "nbds://localhost:10809/vol?tls-certificates=/etc/a%20b",
        ] {
            assert_eq!(text.parse::<NbdUri>().unwrap().to_string(), text);
        }
        let uri: NbdUri = "nbd://h".parse().unwrap();
        assert_eq!(uri.address, NbdAddress::Tcp { host: "h".into(), port: PORT });
        assert_eq!(uri.name.export, "");
    }

    #[test]
    fn wrong_uris_say_why() {
        for (text, why) in [
            ("vol", BadUri::Scheme),
            ("nbds://h/vol", BadUri::Certificates),
            ("nbds://h/vol?tls-certificates=", BadUri::Certificates),
            ("nbd:///vol", BadUri::Host),
            ("nbd://h:99999/vol", BadUri::Host),
            ("nbd://[::1/vol", BadUri::Host),
            ("nbd+unix:///vol", BadUri::Socket),
            ("nbd+unix://h/vol?socket=s", BadUri::Socket),
            ("nbd://h/%zz", BadUri::Escape),
            ("nbd://h/%", BadUri::Escape),
            ("nbd://h/vol@", BadUri::Export),
        ] {
            assert_eq!(text.parse::<NbdUri>(), Err(why), "{text}");
        }
    }
}
