//! The command line.

use crate::failure::EXIT_CODES;
use crate::output::Output;
use clap::{Args, Parser, Subcommand, ValueEnum};
use drover_types::{CommitPolicy, Cutover, Window};
use std::path::PathBuf;

/// Drover serves block volumes over NBD and moves them, live, between storage nodes.
#[derive(Parser)]
#[command(name = "drover", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Address of the control plane's REST interface [default: http://127.0.0.1:7600]
    #[arg(long, global = true, env = "DROVER_API", value_name = "URL", help_heading = "Global options")]
    pub api: Option<String>,
    /// Its bearer token
    #[arg(long, global = true, env = "DROVER_TOKEN", hide_env_values = true, help_heading = "Global options")]
    pub token: Option<String>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum Command {
    /// Health, what runs, and what needs you, on one screen
    Status,
    /// A control plane and nodes on this machine, for trying and for a single host
    Up(Up),
    /// Run a storage node
    Node(NodeCommand),
    /// Run a control plane
    Control(ConfigFile),
    /// Volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots of a volume
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Whose volumes are, and how much of them there may be
    #[command(subcommand)]
    Tenant(Tenant),
    /// Move volumes between nodes
    #[command(subcommand)]
    Migrate(Migrate),
    /// Copy a raw image or an NBD export into a volume
    Import(Import),
    /// Copy a volume to a raw file or an NBD export
    Export(Export),
    /// Check a stopped node's metadata
    Fsck(Fsck),
    /// Certificates for connections between machines
    #[command(subcommand)]
    Tls(Tls),
    /// What happened, and why
    Events(Events),
    /// A live volume moves between two nodes, back, and again, under load
    Demo(Demo),
    /// Print a shell's completions
    Completions { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
pub enum Tls {
    /// Make an authority of this cluster's own
    Init {
        /// A folder that is made for it; keep its ca-key.pem to yourself
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a certificate by it, and the files that go to whom it is for
    Issue(TlsIssue),
}

#[derive(Args)]
pub struct TlsIssue {
    /// The authority's folder
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// What for
    #[arg(value_enum)]
    pub role: TlsRole,
    /// The id of the node; else any name
    #[arg(value_parser = drover_base::NodeId::new)]
    pub name: drover_base::NodeId,
    /// Names and IP addresses by which it is reached; once for each
    #[arg(long, value_name = "ADDRESS", required_if_eq_any([("role", "node"), ("role", "control")]))]
    pub host: Vec<String>,
    /// How long it is valid, days
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsRole {
    /// A storage node or gateway
    Node,
    /// The control plane
    Control,
    /// Whoever attaches volumes over NBD
    Client,
}

#[derive(Args)]
pub struct ConfigFile {
    /// TOML file of settings
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct Up {
    /// Where everything is kept
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Storage nodes to run
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub nodes: u8,
    /// Size of each node's tier; space is used as it is written
    #[arg(long, default_value = "100GiB", value_parser = drover_base::text::parse_bytes)]
    pub size: u64,
    /// Where the REST interface listens
    #[arg(long, default_value = "127.0.0.1:7600", value_name = "HOST:PORT")]
    pub listen: std::net::SocketAddr,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct NodeCommand {
    /// TOML file of settings
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Option<NodeQuery>,
}

#[derive(Subcommand)]
pub enum NodeQuery {
    /// All nodes
    List,
    /// One node with its tiers
    Show { name: String },
    /// Let a node take no new volumes and no new migrations; what it holds goes on
    Cordon {
        name: String,
        /// Why, for whoever is refused later
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a node take volumes and migrations again
    Uncordon { name: String },
    /// Cordon a node and move every volume it holds to others; run again, it goes on
    Drain(NodeDrain),
    /// Forget a node that is gone for good
    Forget {
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
pub struct NodeDrain {
    pub name: String,
    /// Nodes that may take its volumes [default: any that is up and not cordoned]
    #[arg(long, value_name = "NODE", value_delimiter = ',', num_args = 1..)]
    pub to: Vec<String>,
    /// Moves at once [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub parallel: Option<u32>,
    /// For how long further moves may begin, such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub deadline: Option<u64>,
    /// Bytes a second at most of each move, such as 50MB; 0 for no limit
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub throttle: Option<u64>,
    /// Begin no further move; those under way go on, and the node stays cordoned
    #[arg(long, conflicts_with_all = ["to", "parallel", "deadline", "throttle"])]
    pub cancel: bool,
    /// Do not wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Subcommand)]
pub enum Volume {
    /// Make an empty volume
    Create {
        name: String,
        /// Size, such as 100GiB
        #[arg(long, value_parser = drover_base::text::parse_bytes)]
        size: u64,
        /// The node that is to hold it [default: the one with the most room]
        #[arg(long)]
        node: Option<String>,
        /// Whose it is to be, for life [default: default]
        #[arg(long)]
        tenant: Option<String>,
    },
    List {
        /// Only those of this tenant
        #[arg(long)]
        tenant: Option<String>,
    },
    Show {
        /// Name or id
        volume: String,
    },
    /// Limit what a volume's clients together may use a second; what is not given is not limited
    Limit(VolumeLimit),
    /// Make a volume of a snapshot, on the same node; nothing is copied
    Clone {
        /// Such as web@monday
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// The new volume
        name: String,
    },
    /// Make a volume larger; clients see it when they connect again
    Resize {
        volume: String,
        /// Its new size, such as 200GiB
        #[arg(value_parser = drover_base::text::parse_bytes)]
        size: u64,
    },
    /// Remove a volume and its data
    Delete {
        volume: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Open a poisoned volume again, through recovery
    Reopen { volume: String },
    /// Serve a volume to clients, and print how they reach it
    Attach(Attach),
    /// Serve it no longer
    Detach {
        volume: String,
        /// Only there [default: everywhere]
        #[arg(long)]
        node: Option<String>,
    },
}

#[derive(Args)]
pub struct VolumeLimit {
    pub volume: String,
    /// Requests a second, at least 100
    #[arg(long, required_unless_present_any = ["bandwidth", "none"])]
    pub iops: Option<u64>,
    /// Bytes read and written a second, such as 50MB
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub bandwidth: Option<u64>,
    /// For how long what is not used is saved, to be used at once later [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub burst: Option<u64>,
    /// No limits
    #[arg(long, conflicts_with_all = ["iops", "bandwidth", "burst"])]
    pub none: bool,
}

#[derive(Subcommand)]
pub enum Tenant {
    /// Those that have volumes or quotas
    List,
    Show {
        name: String,
    },
    /// Set a tenant's quotas; what is not given is not limited
    Set {
        name: String,
        /// Sizes of its volumes in all, such as 10TiB
        #[arg(long, value_parser = drover_base::text::parse_bytes, required_unless_present_any = ["volumes", "none"])]
        bytes: Option<u64>,
        /// How many volumes
        #[arg(long)]
        volumes: Option<u64>,
        /// No quotas
        #[arg(long, conflicts_with_all = ["bytes", "volumes"])]
        none: bool,
    },
}

#[derive(Args)]
pub struct Attach {
    pub volume: String,
    /// The node that serves it; any can [default: the holder]
    #[arg(long)]
    pub node: Option<String>,
    /// Name under which it is served [default: the volume's]
    #[arg(long)]
    pub name: Option<String>,
    /// What uses it, for accounting
    #[arg(long)]
    pub workload: Option<String>,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub print: AttachPrint,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum AttachPrint {
    /// The NBD URIs
    #[default]
    Uri,
    /// Arguments of QEMU
    Qemu,
    /// A disk of a libvirt domain
    Libvirt,
    /// A call of nbd-client
    NbdClient,
}

#[derive(Subcommand)]
pub enum Snapshot {
    Create {
        volume: String,
        name: String,
    },
    List {
        volume: String,
    },
    Delete {
        volume: String,
        name: String,
    },
    /// Freeze several volumes at one moment: all, or none
    Group {
        name: String,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Snapshots by the clock
    #[command(subcommand)]
    Schedule(SnapshotSchedule),
    /// Make the volume as it was; what was written since is lost
    Rollback {
        volume: String,
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
pub enum SnapshotSchedule {
    /// Take one every so often, and keep some
    Set {
        volume: String,
        /// Time from one to the next, such as 1h
        #[arg(long, value_parser = time_ms)]
        every: u64,
        /// So long after, by UTC: 3h with --every 24h is three in the morning
        #[arg(long, value_parser = time_ms, default_value = "0")]
        at: u64,
        /// How many stay: 24, or the newest of each of the last 7 days: 7x24h
        #[arg(long, required = true, value_name = "COUNT[xTIME]")]
        keep: Vec<String>,
    },
    Show {
        volume: String,
    },
    /// Take no more; those that were taken stay
    Clear {
        volume: String,
    },
}

#[derive(Subcommand)]
pub enum Migrate {
    /// What a move would bring and cost; changes nothing
    Plan(MigratePlan),
    /// Begin a move
    Start(MigrateStart),
    /// Follow a migration to its end
    Watch {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    /// Stop sending in the background; what is mirrored goes on
    Pause {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    Resume {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    /// Let it flip now
    Cutover {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
        /// Of one that goes hot first: whatever the destination has by now
        #[arg(long)]
        accept_coverage: bool,
    },
    /// Give it up before the flip
    Cancel {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    /// Go back; after the flip this is another flip, and loses nothing
    Rollback {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    /// Release the source
    Commit {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
    /// Change a running migration
    Tune(MigrateTune),
    List {
        /// Also those that are over
        #[arg(long)]
        all: bool,
    },
    Show {
        /// Id, or its volume's name: the unfinished one, else the last
        migration: String,
    },
}

#[derive(Args)]
pub struct MigrateTune {
    /// Id, or its volume's name: the unfinished one, else the last
    pub migration: String,
    /// Bytes a second at most; 0 for no limit
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub throttle: Option<u64>,
    /// Of one that goes hot first: percent of what is accessed that has to be there before the flip
    #[arg(long, value_name = "PERCENT")]
    pub coverage: Option<u32>,
    /// When to flip once all is there: auto, manual or window
    #[arg(long, value_parser = cutover)]
    pub cutover: Option<Cutover>,
    /// For --cutover window: daily span in UTC, such as 22:30-04:00
    #[arg(long, value_parser = window)]
    pub window: Option<Window>,
    /// Longest pause of the flip, such as 200ms
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub pause_max: Option<u64>,
    /// How long the source keeps its copy, such as 10min
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub retention: Option<u64>,
    /// When to release the source: auto (after the retention time) or manual
    #[arg(long, value_parser = commit)]
    pub commit: Option<CommitPolicy>,
}

#[derive(Args)]
pub struct MigratePlan {
    pub volume: String,
    /// Destination node
    #[arg(long)]
    pub to: String,
    #[command(flatten)]
    pub options: MigrateOptions,
    /// Bytes a second the link carries [default: as measured before, else 125MB]
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub link: Option<u64>,
}

#[derive(Args)]
pub struct MigrateStart {
    pub volume: String,
    /// Destination node
    #[arg(long)]
    pub to: String,
    #[command(flatten)]
    pub options: MigrateOptions,
    /// Follow it to its end
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args)]
pub struct MigrateOptions {
    /// Bytes a second at most, such as 50MB
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub throttle: Option<u64>,
    /// Mirror writes at once instead of after rounds
    #[arg(long)]
    pub mirror_at_once: bool,
    /// Send what is accessed most first, and flip before all has arrived: the rest is fetched afterwards
    #[arg(long)]
    pub hot_first: bool,
    /// With --hot-first: percent of what is accessed that has to be there before the flip [default: 95]
    #[arg(long, value_name = "PERCENT", requires = "hot_first")]
    pub coverage: Option<u32>,
    /// Send everything, also what the destination has already in other volumes of the tenant
    #[arg(long)]
    pub no_dedup: bool,
    /// When to flip once all is there: auto, manual or window
    #[arg(long, value_parser = cutover, default_value = "auto")]
    pub cutover: Cutover,
    /// For --cutover window: daily span in UTC, such as 22:30-04:00
    #[arg(long, value_parser = window)]
    pub window: Option<Window>,
    /// Longest pause of the flip, such as 200ms [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub pause_max: Option<u64>,
    /// How long the source keeps its copy, such as 10min [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub retention: Option<u64>,
    /// Keep the source until `drover migrate commit`
    #[arg(long)]
    pub manual_commit: bool,
    /// How long a side may be away before the flip until it is given up [default: 10min]
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    pub peer_deadline: Option<u64>,
}

fn cutover(text: &str) -> Result<Cutover, String> {
    match text {
        "auto" => Ok(Cutover::Auto),
        "manual" => Ok(Cutover::Manual),
        "window" => Ok(Cutover::Window),
        _ => Err("auto, manual or window".into()),
    }
}

fn commit(text: &str) -> Result<CommitPolicy, String> {
    match text {
        "auto" => Ok(CommitPolicy::Auto),
        "manual" => Ok(CommitPolicy::Manual),
        _ => Err("auto or manual".into()),
    }
}

/// Milliseconds of a time such as `200ms`, `5s`, `10min`, `2h` or `3d`.
pub fn time_ms(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        // Nothing is as long in every unit.
        "" if number == "0" => 1,
        _ => return Err(format!("{text:?} is not a time such as 200ms, 5s, 10min, 2h or 3d")),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.ok_or_else(|| format!("{text:?} is not a time such as 200ms, 5s, 10min, 2h or 3d"))
}

fn window(text: &str) -> Result<Window, String> {
    text.parse().map_err(|error: drover_types::ApiError| error.message)
}

#[derive(Args)]
pub struct Import {
    /// A raw file or block device, or an NBD URI
    pub source: String,
    /// The volume; made if it is not there
    pub volume: String,
    /// The node for a new volume [default: the one with the most room]
    #[arg(long)]
    pub node: Option<String>,
    /// Whose a new volume is to be [default: default]
    #[arg(long)]
    pub tenant: Option<String>,
    /// Size of a new volume [default: that of the source]
    #[arg(long, value_parser = drover_base::text::parse_bytes)]
    pub size: Option<u64>,
    /// Overwrite a volume that is there
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Args)]
pub struct Export {
    pub volume: String,
    /// A raw file to write, or an NBD URI
    pub destination: String,
    /// Overwrite a file that is there, or what an NBD export holds
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Args)]
pub struct Fsck {
    /// The node's TOML file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Rebuild the metadata from the checkpoint in the second place
    #[arg(long)]
    pub restore: bool,
}

#[derive(Args)]
pub struct Events {
    /// Go on as they happen
    #[arg(long, short)]
    pub follow: bool,
    /// Only those of this volume (id or name)
    #[arg(long)]
    pub volume: Option<String>,
    /// Only those of this migration (id, or its volume's name: the unfinished one, else the last)
    #[arg(long)]
    pub migration: Option<String>,
    /// Only those after this id
    #[arg(long)]
    pub after: Option<u64>,
}

#[derive(Args)]
pub struct Demo {
    /// Damage one byte of the destination behind Drover's back: the demo must notice
    #[arg(long)]
    pub sabotage: bool,
    /// Where to put its files, about 16 GiB [default: a new directory under the system's temporary one]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Most bytes of real data in the image
    #[arg(long, default_value = "2.5GiB", value_parser = drover_base::text::parse_bytes)]
    pub data_max: u64,
    /// Leave its files and logs behind
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, ms) in
            [("200ms", 200), ("5s", 5_000), ("10min", 600_000), ("2h", 7_200_000), ("3d", 259_200_000), ("0", 0)]
        {
            assert_eq!(time_ms(text), Ok(ms), "{text}");
        }
        for text in ["", "5", "ms", "5 s", "-5s", "1.5s", "5m", "99999999999999999999s", "18446744073709551615d"] {
            assert!(time_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
