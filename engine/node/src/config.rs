//! A node's settings: one TOML file, read and checked wholly before the node does anything.
//!
//! ```toml
//! id = "node-1"
//! control = "127.0.0.1:7601"          # the control plane's address for nodes
//! secret = "/etc/drover/secret"       # a file that all of the cluster share; needed beyond this machine
//! meta = "/var/lib/drover/meta"
//! checkpoint = "/backup/drover"       # the second place of the maps
//! shards = 4                          # optional: one for each processor it may use
//!
//! [listen]
//! admin = "127.0.0.1:7611"
//! peer = "127.0.0.1:7612"
//! migration = "10.0.0.1:7613"         # optional: migrations travel here instead of over peer
//! nbd_unix = "/run/drover/nbd.sock"
//! nbd_tcp = "127.0.0.1:10809"
//!
//! [advertise]                         # optional: where others reach what listens above, if that is not the same
//! peer = "storage-1.example:7612"     # admin, peer, migration, nbd_tcp
//!
//! [tls]                               # optional: what is listened at or dialled above by TCP is TLS, for everybody
//! cert = "/etc/drover/server-cert.pem"
//! key = "/etc/drover/server-key.pem"
//! ca = "/etc/drover/ca-cert.pem"
//!
//! [[tier]]                            # none: a gateway
//! name = "fast"
//! class = "nvme"                      # nvme, ssd or hdd
//! path = "/srv/nvme"                  # a directory or a block device
//! size = "100GiB"                     # for slots; a label takes 64 KiB more
//! sparse = false                      # true: a file takes its space as it fills; else all of it is taken at once
//! discard = false                     # true: a block device is told of what is free again; a sparse file is always
//! overwrite = false                   # true: take the device though it is not empty; only for a new tier
//! ```

pub mod checks;
#[cfg(test)]
mod tests;

use checks::{Problems, field};
use drover_base::NodeId;
use drover_base::text::parse_bytes;
use drover_base::units::EXTENT_BYTES;
use drover_runtime::tls::TlsFiles;
use serde::Deserialize;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

pub use checks::{ConfigError, Problem};

/// Tiers of a node: the device number in a map entry has six bits.
pub const TIERS_MAX: usize = 64;

/// Shards of a node at most: far more than a machine has devices for.
pub const SHARDS_MAX: u32 = 64;

/// What a node is started with. Every value has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    pub id: NodeId,
    /// Address of the control plane's listener for nodes.
    pub control: String,
    /// BLAKE3 of the secret's file; zeros where none is set.
    pub secret: [u8; 32],
    pub meta: PathBuf,
    pub checkpoint: Option<PathBuf>,
    /// Threads that serve volumes, each its own; may change between two starts.
    pub shards: u32,
    /// Where to listen.
    pub listen: Listen,
    /// What to tell others, where that differs from the listening address (`0.0.0.0`, NAT).
    pub advertise: Advertise,
    /// Certificates, for everything that goes by TCP.
    pub tls: Option<TlsFiles>,
    pub tiers: Vec<TierConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub admin: String,
    pub peer: String,
    pub migration: Option<String>,
    pub nbd_unix: Option<PathBuf>,
    pub nbd_tcp: Option<String>,
}

/// Addresses others are told; `None`: the one listened at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertise {
    pub admin: Option<String>,
    pub peer: Option<String>,
    pub migration: Option<String>,
    pub nbd_tcp: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierConfig {
    pub name: String,
    pub class: Class,
    /// The file or block device that holds the slots.
    pub device: PathBuf,
    pub is_block_device: bool,
    /// Bytes for slots, a multiple of the extent's size. The device has a header before them.
    pub size_bytes: u64,
    /// A file takes its space as it fills: then its file system may be full when a write needs room.
    pub sparse: bool,
    /// The device is told of slots that are free again. A file that is not sparse keeps its space.
    pub discards: bool,
    /// A device that is not empty may be taken for a new tier.
    pub overwrite: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Nvme,
    Ssd,
    Hdd,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: String,
    control: String,
    secret: Option<PathBuf>,
    meta: PathBuf,
    checkpoint: Option<PathBuf>,
    shards: Option<u32>,
    listen: ListenFile,
    #[serde(default)]
    advertise: AdvertiseFile,
    tls: Option<checks::TlsTable>,
    #[serde(default)]
    tier: Vec<TierFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenFile {
    admin: String,
    peer: String,
    migration: Option<String>,
    nbd_unix: Option<PathBuf>,
    nbd_tcp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvertiseFile {
    admin: Option<String>,
    peer: Option<String>,
    migration: Option<String>,
    nbd_tcp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TierFile {
    name: String,
    class: String,
    path: PathBuf,
    size: String,
    #[serde(default)]
    sparse: bool,
    #[serde(default)]
    discard: bool,
    #[serde(default)]
    overwrite: bool,
}

impl NodeConfig {
    /// Reads and checks the file. Changes nothing anywhere.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = checks::read(path)?;
        Self::parse(&text).map_err(|error| error.of(path))
    }

    /// Checks the text of a settings file against itself and against this machine. All problems are found at once.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = checks::from_toml(text)?;
        let mut problems = Problems::default();
        let id = problems.take("id", NodeId::new(&file.id), "a name such as \"node-1\"");
        problems.address("control", &file.control, true);
        let secret = file.secret.as_deref().and_then(|path| problems.secret(path));
        problems.folder("meta", &file.meta);
        if let Some(checkpoint) = &file.checkpoint {
            problems.folder("checkpoint", checkpoint);
            if checkpoint.starts_with(&file.meta) {
                problems.add("checkpoint", "it lies within meta", "choose a second place, best on another disk");
            }
        }
        if let Some(shards) = file.shards.filter(|shards| !(1..=SHARDS_MAX).contains(shards)) {
            let hint = format!("1 to {SHARDS_MAX}; without the key one for each processor");
            problems.add("shards", &format!("{shards} shards"), &hint);
        }
        check_listen(&mut problems, &file.listen, &file.advertise, file.secret.is_some());
        let tls = file.tls.and_then(|table| problems.tls(table));
        let tiers = check_tiers(&mut problems, &file.tier);
        problems.finish(|| Self {
            id: id.expect("a bad id is a problem"),
            control: file.control,
            secret: secret.unwrap_or([0; 32]),
            meta: file.meta,
            checkpoint: file.checkpoint,
            shards: file.shards.unwrap_or_else(shards_by_processors),
            listen: Listen {
                admin: file.listen.admin,
                peer: file.listen.peer,
                migration: file.listen.migration,
                nbd_unix: file.listen.nbd_unix,
                nbd_tcp: file.listen.nbd_tcp,
            },
            advertise: Advertise {
                admin: file.advertise.admin,
                peer: file.advertise.peer,
                migration: file.advertise.migration,
                nbd_tcp: file.advertise.nbd_tcp,
            },
            tls,
            tiers,
        })
    }
}

/// One for each processor that the process may use.
fn shards_by_processors() -> u32 {
    // Where the machine does not tell, one always works.
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    u32::try_from(processors).unwrap_or(SHARDS_MAX).min(SHARDS_MAX)
}

fn check_listen(problems: &mut Problems, listen: &ListenFile, advertise: &AdvertiseFile, has_secret: bool) {
    let own = [
        ("admin", Some(&listen.admin), &advertise.admin),
        ("peer", Some(&listen.peer), &advertise.peer),
        ("migration", listen.migration.as_ref(), &advertise.migration),
        ("nbd_tcp", listen.nbd_tcp.as_ref(), &advertise.nbd_tcp),
    ];
    for (name, at, told) in own {
        let Some(at) = at else {
            if told.is_some() {
                problems.add(&field("advertise", name), "nothing listens for it", &format!("set listen.{name} too"));
            }
            continue;
        };
        let key = field("listen", name);
        problems.listen(&key, at, told.is_some());
        if name != "nbd_tcp" && !has_secret && !checks::is_local(at) {
            let cause = "other machines can reach it and no secret is set";
            problems.add(&key, cause, "set secret to a file shared by the cluster, or listen at 127.0.0.1");
        }
        if let Some(told) = told {
            problems.address(&field("advertise", name), told, true);
        }
    }
    if let Some(path) = &listen.nbd_unix {
        problems.socket("listen.nbd_unix", path);
    }
    if listen.nbd_unix.is_none() && listen.nbd_tcp.is_none() {
        problems.add("listen", "no client could reach this node", "set nbd_unix or nbd_tcp");
    }
}

fn check_tiers(problems: &mut Problems, files: &[TierFile]) -> Vec<TierConfig> {
    if files.len() > TIERS_MAX {
        let hint = "join devices below Drover, or run a second node";
        problems.add("tier", &format!("{} tiers, at most {TIERS_MAX}", files.len()), hint);
    }
    let mut tiers: Vec<TierConfig> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let key = |name: &str| format!("tier[{index}].{name}");
        if !drover_base::ids::is_name(&file.name, 63) {
            problems.add(&key("name"), &format!("{:?} is not a name", file.name), "use a-z, 0-9, - and .");
        }
        let class = match file.class.as_str() {
            "nvme" => Class::Nvme,
            "ssd" => Class::Ssd,
            "hdd" => Class::Hdd,
            other => {
                problems.add(&key("class"), &format!("{other:?} is not a class"), "nvme, ssd or hdd");
                continue;
            }
        };
        let size = problems.take(&key("size"), parse_bytes(&file.size), "for example \"100GiB\"");
        let Some(size) = size else { continue };
        if size == 0 || !size.is_multiple_of(EXTENT_BYTES) {
            problems.add(&key("size"), &format!("{size} bytes"), "a multiple of 64KiB, and not nothing");
        }
        let Some((device, is_block_device)) = find_device(problems, &key("path"), file) else { continue };
        if is_block_device && file.sparse {
            problems.add(&key("sparse"), "a block device has all its space", "leave it out, or give a directory");
        }
        if !is_block_device && file.discard {
            let hint = "leave it out: a sparse file gives back what is free, another keeps its space";
            problems.add(&key("discard"), "only a block device is told to discard", hint);
        }
        if tiers.iter().any(|tier| tier.name == file.name) {
            problems.add(&key("name"), &format!("{:?} is there twice", file.name), "every tier has a name of its own");
        } else if tiers.iter().any(|tier| tier.device == device) {
            problems.add(&key("path"), "another tier uses it", "every tier has a device of its own");
        }
        tiers.push(TierConfig {
            name: file.name.clone(),
            class,
            device,
            is_block_device,
            size_bytes: size,
            sparse: file.sparse,
            discards: file.sparse || file.discard,
            overwrite: file.overwrite,
        });
    }
    tiers
}

fn find_device(problems: &mut Problems, key: &str, file: &TierFile) -> Option<(PathBuf, bool)> {
    let kind = match std::fs::metadata(&file.path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) => {
            let hint = format!("make it: mkdir -p {}", file.path.display());
            problems.add(key, &format!("{}: {error}", file.path.display()), &hint);
            return None;
        }
    };
    if kind.is_block_device() {
        Some((file.path.clone(), true))
    } else if kind.is_dir() {
        Some((file.path.join(format!("{}.slots", file.name)), false))
    } else {
        problems.add(key, &format!("{} is neither", file.path.display()), "a directory or a block device");
        None
    }
}
