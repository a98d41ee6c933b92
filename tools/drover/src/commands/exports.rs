//! Where clients reach volumes.

use super::volumes;
use crate::arguments::{Attach, AttachPrint};
use crate::client::{Client, escape};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use drover_node::nbd::{NbdAddress, NbdUri};
use drover_types::{CreateExport, Export, Volume};
use serde::Serialize;

/// Every export of the volume.
pub async fn of(client: &Client, volume: &Volume) -> Result<Vec<Export>, Failure> {
    let exports: Vec<Export> = client.list("/v1/exports").await?;
    Ok(exports.into_iter().filter(|export| export.volume == volume.id).collect())
}

pub async fn create(client: &Client, volume: &Volume, node: &str, name: Option<&str>) -> Result<Export, Failure> {
    let request =
        CreateExport { volume: volume.id.clone(), node: node.into(), name: name.map(Into::into), workload: None };
    client.post("/v1/exports", &request).await
}

pub async fn remove(client: &Client, export: &Export) -> Result<(), Failure> {
    client.delete(&format!("/v1/exports/{}/{}", escape(&export.node), escape(&export.name))).await
}

/// An export, and what to paste so that a client uses it.
#[derive(Serialize)]
struct Printed {
    #[serde(flatten)]
    export: Export,
    text: String,
}

pub async fn attach(client: &Client, output: Output, attach: &Attach) -> Result<(), Failure> {
    let volume = volumes::get(client, &attach.volume).await?;
    let node = attach.node.as_deref().unwrap_or(&volume.holder);
    let name = attach.name.as_deref().unwrap_or(&volume.name);
    let same = |export: &Export| export.node == node && export.name == name;
    let export = match of(client, &volume).await?.into_iter().find(same) {
        Some(export) if attach.workload.is_none() || attach.workload == export.workload => export,
        Some(export) => {
            let workload = export.workload.unwrap_or_else(|| "none".into());
            return Err(Failure::new(
                Exit::Conflict,
                format!("{node} serves {name} already, for the workload {workload}"),
            )
            .hint(format!("drover volume detach {}", volume.name)));
        }
        None => {
            let request = CreateExport {
                volume: volume.id.clone(),
                node: node.into(),
                name: Some(name.into()),
                workload: attach.workload.clone(),
            };
            client.post("/v1/exports", &request).await?
        }
    };
    let text = print(&export, attach.print)?;
    let printed = Printed { export, text };
    output.show(&printed, |printed| printed.text.clone())
}

pub async fn detach(client: &Client, output: Output, volume: &str, node: Option<&str>) -> Result<(), Failure> {
    let volume = volumes::get(client, volume).await?;
    let exports = of(client, &volume).await?;
    let chosen: Vec<&Export> = exports.iter().filter(|export| node.is_none_or(|node| node == export.node)).collect();
    if chosen.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("{} is not served there", volume.name)));
    }
    for export in &chosen {
        remove(client, export).await?;
    }
    output.show(&chosen, |chosen| {
        let lines = chosen.iter().map(|export| format!("{} no longer serves {}", export.node, export.name));
        lines.collect::<Vec<_>>().join("\n")
    })
}

/// What to paste so that a client uses the export.
fn print(export: &Export, form: AttachPrint) -> Result<String, Failure> {
    let uris = parsed(export);
    let best = uris.iter().find(|uri| matches!(uri.address, NbdAddress::Unix(_))).or(uris.first());
    let Some(best) = best else {
        return Err(Failure::failed(format!("{} gives no address for {}", export.node, export.name)));
    };
    let name = &export.name;
    let certificates = best.tls.as_ref().map(|folder| folder.display().to_string());
    let certificates = certificates.as_deref();
    Ok(match (form, &best.address) {
        (AttachPrint::Uri, _) => export.uris.join("\n"),
        (AttachPrint::Qemu, address) => {
            let server = match address {
                NbdAddress::Unix(path) => {
                    format!("server.type=unix,server.path={}", comma(&path.display().to_string()))
                }
                NbdAddress::Tcp { host, port } => format!("server.type=inet,server.host={host},server.port={port}"),
            };
            let (object, credentials) = certificates.map_or(Default::default(), |folder| {
                let folder = comma(folder);
                let object = format!("-object tls-creds-x509,id=drover-tls,endpoint=client,dir={folder} ");
                (object, ",tls-creds=drover-tls")
            });
            // Reconnecting and its queue let the VM wait instead of seeing an error while a node restarts.
            format!(
                "{object}-blockdev driver=nbd,node-name={node},{server},export={name}{credentials},reconnect-delay=60,discard=unmap \
                 -device virtio-blk-pci,drive={node}",
                node = node_name(name),
            )
        }
        (AttachPrint::Libvirt, address) => {
            let host = match address {
                NbdAddress::Unix(path) => {
                    format!("<host transport='unix' socket='{}'/>", xml(&path.display().to_string()))
                }
                NbdAddress::Tcp { host, port } => format!("<host name='{host}' port='{port}'/>"),
            };
            // libvirt has the folder in its own settings: nbd_tls_x509_cert_dir.
            let tls = if certificates.is_some() { " tls='yes'" } else { "" };
            format!(
                "<disk type='network' device='disk'>\n  <driver name='qemu' type='raw' discard='unmap'/>\n  \
                 <source protocol='nbd' name='{name}'{tls}>\n    {host}\n    <reconnect delay='60'/>\n  </source>\n  \
                 <target dev='vda' bus='virtio'/>\n</disk>"
            )
        }
        (AttachPrint::NbdClient, address) => {
            let server = match address {
                NbdAddress::Unix(path) => format!("-unix {}", path.display()),
                NbdAddress::Tcp { host, port } => format!("{host} {port}"),
            };
            let files = certificates.map_or_else(String::new, |folder| {
                let [cert, key, ca] =
                    ["client-cert", "client-key", "ca-cert"].map(|file| format!("{folder}/{file}.pem"));
                format!(" -certfile {cert} -keyfile {key} -cacertfile {ca}")
            });
            format!("nbd-client {server} /dev/nbd0 -name {name} -block-size 4096 -connections 2 -persist{files}")
        }
    })
}

/// QEMU's option syntax doubles a comma within a value.
fn comma(value: &str) -> String {
    value.replace(',', ",,")
}

/// A name that QEMU takes for a node: it begins with a letter and has at most 31 characters.
fn node_name(export: &str) -> String {
    let whole = format!("drover-{export}");
    if whole.len() <= QEMU_NAME_MAX {
        return whole;
    }
    let digest = blake3::hash(export.as_bytes()).to_hex();
    format!("{}-{}", &whole[..QEMU_NAME_MAX - 9], &digest[..8])
}

const QEMU_NAME_MAX: usize = 31;

/// As a value between single quotes.
fn xml(value: &str) -> String {
    value.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// Where an NBD client's certificates are, unless the variable names another folder.
const CERTIFICATES: (&str, &str) = ("DROVER_TLS_CERTIFICATES", "/etc/drover/tls");

fn parsed(export: &Export) -> Vec<NbdUri> {
    let folder = || std::env::var(CERTIFICATES.0).unwrap_or_else(|_| CERTIFICATES.1.into());
    let parse = |uri: &String| match uri.strip_prefix("nbds://") {
        Some(_) => format!("{uri}?tls-certificates={}", folder()).parse().ok(),
        None => uri.parse().ok(),
    };
    export.uris.iter().filter_map(parse).collect()
}

/// A way for this program to reach a volume's data, removed again by [`Reach::close`] if it was made for that.
pub struct Reach {
    pub uri: NbdUri,
    temporary: Option<Export>,
}

impl Reach {
    /// An export that this machine can connect to: one of the holder's, else another, else one made for now.
    pub async fn open(client: &Client, volume: &Volume) -> Result<Self, Failure> {
        let mut exports = of(client, volume).await?;
        exports.sort_by_key(|export| (export.node != volume.holder, export.node.clone(), export.name.clone()));
        for export in &exports {
            if let Some(uri) = usable(export) {
                return Ok(Self { uri, temporary: None });
            }
        }
        let name = format!("copy-{}", volume.id);
        let export = create(client, volume, &volume.holder, Some(&name)).await?;
        match usable(&export) {
            Some(uri) => Ok(Self { uri, temporary: Some(export) }),
            None => {
                remove(client, &export).await?;
                let message = format!("{} cannot be reached over NBD from here", volume.holder);
                Err(Failure::new(Exit::Unreachable, message).hint("set listen.nbd_tcp in the node's settings"))
            }
        }
    }

    pub async fn close(self, client: &Client) -> Result<(), Failure> {
        match self.temporary {
            Some(export) => remove(client, &export).await,
            None => Ok(()),
        }
    }
}

fn usable(export: &Export) -> Option<NbdUri> {
    parsed(export).into_iter().find(|uri| match &uri.address {
        NbdAddress::Unix(path) => path.exists(),
        NbdAddress::Tcp { .. } => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        Export {
            node: "node-1".into(),
            name: "disk".into(),
            volume: "vol-0000000000000001".into(),
            volume_name: "disk".into(),
            workload: None,
            usage: vec![],
            uris: vec!["nbd://127.0.0.1:10809/disk".into(), "nbd+unix:///disk?socket=/run/d,1.sock".into()],
        }
    }

    #[test]
    fn what_is_pasted_names_the_socket_and_the_export() {
        for (form, parts) in [
            (AttachPrint::Uri, ["nbd://127.0.0.1:10809/disk", "nbd+unix:///disk?socket=/run/d,1.sock"]),
            (AttachPrint::Qemu, ["server.path=/run/d,,1.sock", "export=disk"]),
            (AttachPrint::Libvirt, ["socket='/run/d,1.sock'", "name='disk'"]),
            (AttachPrint::NbdClient, ["-unix /run/d,1.sock", "-name disk"]),
        ] {
            let text = print(&export(), form).unwrap();
            for part in parts {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
    }

    #[test]
    fn what_is_pasted_for_tls_names_the_certificates() {
        let export = || Export { uris: vec!["nbds://h:10809/disk".into()], ..export() };
        for (form, part) in [
            (AttachPrint::Uri, "nbds://h:10809/disk"),
            (AttachPrint::Qemu, "-object tls-creds-x509,id=drover-tls,endpoint=client,dir=/etc/drover/tls "),
            (AttachPrint::Qemu, ",tls-creds=drover-tls,"),
            (AttachPrint::Libvirt, "name='disk' tls='yes'"),
            (AttachPrint::NbdClient, "-certfile /etc/drover/tls/client-cert.pem"),
        ] {
            let text = print(&export(), form).unwrap();
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn names_are_such_that_qemu_and_libvirt_take_them() {
        assert_eq!(node_name("9.disk"), "drover-9.disk");
        let long = |last: char| node_name(&format!("{}{last}", "a".repeat(62)));
        assert_eq!(long('b').len(), 31);
        assert_ne!(long('b'), long('c'));
        assert_eq!(xml("/run/o'neill & co"), "/run/o&apos;neill &amp; co");
    }

    #[test]
    fn an_export_without_an_address_is_an_error() {
        assert!(print(&Export { uris: vec![], ..export() }, AttachPrint::Qemu).is_err());
    }
}
