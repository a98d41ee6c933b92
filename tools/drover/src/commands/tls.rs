//! Certificates: an authority in a folder, and what it has issued in folders below it.
//!
//! The files have the names that libnbd and QEMU expect, so that a client's folder can be given to them as it is.

use crate::arguments::{Tls, TlsIssue, TlsRole};
use crate::failure::{Context, Exit, Failure};
use crate::output::Output;
use drover_runtime::tls::{Role, node_dns_name};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const CA_NAME: &str = "Drover cluster authority";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Ten years: who distributes it anew has to reach every machine.
const CA_DAYS: u32 = 3650;

/// The clocks of machines differ.
const SKEW: Duration = DAY;

pub fn run(output: Output, command: Tls) -> Result<(), Failure> {
    match command {
        Tls::Init { dir } => init(output, &dir),
        Tls::Issue(issue) => self::issue(output, &issue),
    }
}

fn init(output: Output, dir: &Path) -> Result<(), Failure> {
    make_folder(dir)?;
    let key = key()?;
    let certificate = authority().self_signed(&key).or_fail(|| "cannot sign".into())?;
    write(&dir.join(CA_CERT), &certificate.pem(), 0o644)?;
    write(&dir.join(CA_KEY), &key.serialize_pem(), 0o600)?;
    let ca = dir.join(CA_CERT).display().to_string();
    output.show(&json!({ "ca": ca }), |_| {
        format!("made {ca}\nissue with: drover tls issue {} node NAME --host ADDRESS", dir.display())
    })
}

fn issue(output: Output, issue: &TlsIssue) -> Result<(), Failure> {
    let read = |name: &str| {
        let path = issue.dir.join(name);
        let text = fs::read_to_string(&path).map_err(|error| {
            let failure = Failure::usage(format!("cannot read {}", path.display())).cause(error);
            failure.hint(format!("make an authority: drover tls init {}", issue.dir.display()))
        })?;
        Ok::<_, Failure>(text)
    };
    let ca = read(CA_CERT)?;
    let ca_key = KeyPair::from_pem(&read(CA_KEY)?).or_fail(|| "the authority's key cannot be used".into())?;
    let params = params(issue)?;
    let (role, stem) = match issue.role {
        TlsRole::Node => (Role::Node, "server"),
        TlsRole::Control => (Role::Control, "server"),
        TlsRole::Client => (Role::Client, "client"),
    };
    let folder = issue.dir.join(format!("{role}-{}", issue.name));
    let key = key()?;
    let issuer = Issuer::new(authority(), ca_key);
    let certificate = params.signed_by(&key, &issuer).or_fail(|| "cannot sign".into())?;
    make_folder(&folder)?;
    write(&folder.join(CA_CERT), &ca, 0o644)?;
    write(&folder.join(format!("{stem}-cert.pem")), &certificate.pem(), 0o644)?;
    write(&folder.join(format!("{stem}-key.pem")), &key.serialize_pem(), 0o600)?;
    let shown = folder.display().to_string();
    let value = json!({ "folder": shown, "role": role.to_string(), "name": issue.name, "days": issue.days });
    output.show(&value, |_| format!("made {shown}: {CA_CERT}, {stem}-cert.pem, {stem}-key.pem"))
}

/// The same whenever it is called, so that what is issued names the authority as it was made.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, CA_DAYS);
    params
}

fn params(issue: &TlsIssue) -> Result<CertificateParams, Failure> {
    let mut names = issue.host.clone();
    match issue.role {
        TlsRole::Node => names.extend([Role::Node.dns_name().to_owned(), node_dns_name(&issue.name)]),
        TlsRole::Control => names.push(Role::Control.dns_name().into()),
        TlsRole::Client => names.push(Role::Client.dns_name().into()),
    }
    let mut params = CertificateParams::new(names)
        .map_err(|error| Failure::usage("a host is a DNS name or an IP address").cause(error))?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, issue.name.to_string());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    // TLS 1.3 needs the first; QEMU takes no certificate without the second.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = match issue.role {
        TlsRole::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        // Members are dialled and dial.
        _ => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    };
    valid(&mut params, issue.days);
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + DAY * days).into();
}

fn key() -> Result<KeyPair, Failure> {
    KeyPair::generate().or_fail(|| "cannot make a key".into())
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new().mode(0o700).create(path).map_err(|error| {
        let exit = if path.exists() { Exit::Conflict } else { Exit::Usage };
        Failure::new(exit, format!("cannot make {}", path.display())).cause(error)
    })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).or_fail(|| format!("cannot write {}", path.display()))
}
