//! The records in memory, by kind, and changes of them that go to the store as one transaction.

use drover_base::{Epoch, MigrationId, NodeId, OperationId, VolumeId};
use drover_meta::{MetaError, MetaStore, Transaction, Version};
use drover_types::record::{
    CordonRecord, DrainRecord, ExportRecord, Format, GroupRecord, IdempotencyRecord, LeaseRecord, LinkRecord,
    MigrationRecord, NodeRecord, ScheduleRecord, TenantRecord, VolumeRecord,
};
use drover_types::{Event, Severity};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Events that are kept: the last weeks of a quiet cluster, a day of a busy one; some 3 MiB.
pub const EVENTS_MAX: usize = 10_000;

/// A record and when it was last changed.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    pub version: Version,
    pub record: T,
}

pub type Table<R> = BTreeMap<<R as Record>::Id, Kept<R>>;

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned + Clone + 'static {
    type Id: Ord + Clone + 'static;
    const PREFIX: &'static str;
    fn id(&self) -> Self::Id;
    /// What follows the prefix in the key.
    fn suffix(id: &Self::Id) -> String;
    fn table(state: &State) -> &Table<Self>;
    fn table_mut(state: &mut State) -> &mut Table<Self>;
}

macro_rules! record {
    ($type:ty, $id:ty, $prefix:literal, $table:ident, |$this:ident| $get:expr, |$key:ident| $suffix:expr) => {
        impl Record for $type {
            type Id = $id;
            const PREFIX: &'static str = $prefix;
            fn id(&self) -> $id {
                let $this = self;
                $get
            }
            fn suffix($key: &$id) -> String {
                $suffix
            }
            fn table(state: &State) -> &Table<Self> {
                &state.$table
            }
            fn table_mut(state: &mut State) -> &mut Table<Self> {
                &mut state.$table
            }
        }
    };
}

/// Key and record of an idempotent request.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Remembered {
    pub key: String,
    pub request: IdempotencyRecord,
}

/// Two nodes and what was measured between them.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Link {
    pub from: NodeId,
    pub to: NodeId,
    pub measured: LinkRecord,
}

record!(NodeRecord, NodeId, "node/", nodes, |this| this.node.clone(), |key| key.to_string());
record!(CordonRecord, NodeId, "cordon/", cordons, |this| this.node.clone(), |key| key.to_string());
record!(DrainRecord, NodeId, "drain/", drains, |this| this.node.clone(), |key| key.to_string());
record!(VolumeRecord, VolumeId, "volume/", volumes, |this| this.volume, |key| key.to_string());
record!(TenantRecord, String, "tenant/", tenants, |this| this.tenant.clone(), |key| key.clone());
record!(LeaseRecord, VolumeId, "lease/", leases, |this| this.volume, |key| key.to_string());
record!(MigrationRecord, MigrationId, "migration/", migrations, |this| this.migration, |key| key.to_string());
record!(
    ExportRecord,
    (NodeId, String),
    "export/",
    exports,
    |this| (this.node.clone(), this.name.clone()),
    |key| format!("{}/{}", key.0, key.1)
);
record!(Remembered, String, "idempotency/", remembered, |this| this.key.clone(), |key| key.clone());
record!(Link, (NodeId, NodeId), "link/", links, |this| (this.from.clone(), this.to.clone()), |key| format!(
    "{}/{}",
    key.0, key.1
));
record!(ScheduleRecord, VolumeId, "schedule/", schedules, |this| this.volume, |key| key.to_string());
record!(GroupRecord, OperationId, "group/", groups, |this| this.hold, |key| key.to_string());
record!(Event, u64, "event/", events, |this| this.id, |key| format!("{key:016x}"));

const FORMAT_KEY: &str = "format";
const DATA_MAP_KEY: &str = "data-map";

/// Everything, as last committed.
#[derive(Default)]
pub struct State {
    pub nodes: Table<NodeRecord>,
    pub cordons: Table<CordonRecord>,
    pub drains: Table<DrainRecord>,
    pub volumes: Table<VolumeRecord>,
    pub tenants: Table<TenantRecord>,
    pub leases: Table<LeaseRecord>,
    pub migrations: Table<MigrationRecord>,
    pub exports: Table<ExportRecord>,
    pub remembered: Table<Remembered>,
    pub links: Table<Link>,
    pub groups: Table<GroupRecord>,
    pub schedules: Table<ScheduleRecord>,
    pub events: Table<Event>,
    /// Grows with every change of which volume is where.
    pub data_map: u64,
    formatted: bool,
}

impl State {
    pub async fn load(store: &dyn MetaStore) -> Result<Self, MetaError> {
        let mut state = Self::default();
        if let Some(entry) = store.get(FORMAT_KEY).await? {
            let Format::V1 = parse(FORMAT_KEY, &entry.value)?;
            state.formatted = true;
        }
        if let Some(entry) = store.get(DATA_MAP_KEY).await? {
            state.data_map = parse(DATA_MAP_KEY, &entry.value)?;
        }
        state.load_table::<NodeRecord>(store).await?;
        state.load_table::<CordonRecord>(store).await?;
        state.load_table::<DrainRecord>(store).await?;
        state.load_table::<VolumeRecord>(store).await?;
        state.load_table::<TenantRecord>(store).await?;
        state.load_table::<LeaseRecord>(store).await?;
        state.load_table::<MigrationRecord>(store).await?;
        state.load_table::<ExportRecord>(store).await?;
        state.load_table::<Remembered>(store).await?;
        state.load_table::<Link>(store).await?;
        state.load_table::<GroupRecord>(store).await?;
        state.load_table::<ScheduleRecord>(store).await?;
        state.load_table::<Event>(store).await?;
        Ok(state)
    }

    async fn load_table<R: Record>(&mut self, store: &dyn MetaStore) -> Result<(), MetaError> {
        for entry in store.scan(R::PREFIX).await? {
            let record: R = parse(&entry.key, &entry.value)?;
            R::table_mut(self).insert(record.id(), Kept { version: entry.version, record });
        }
        Ok(())
    }

    pub fn last_event(&self) -> u64 {
        self.events.last_key_value().map_or(0, |(id, _)| *id)
    }

    pub fn node(&self, node: &NodeId) -> Option<&NodeRecord> {
        self.nodes.get(node).map(|kept| &kept.record)
    }
    pub fn cordon(&self, node: &NodeId) -> Option<&CordonRecord> {
        self.cordons.get(node).map(|kept| &kept.record)
    }
    pub fn drain(&self, node: &NodeId) -> Option<&DrainRecord> {
        self.drains.get(node).map(|kept| &kept.record)
    }
    pub fn lease(&self, volume: VolumeId) -> Option<&LeaseRecord> {
        self.leases.get(&volume).map(|kept| &kept.record)
    }
    pub fn migration(&self, migration: MigrationId) -> Option<&MigrationRecord> {
        self.migrations.get(&migration).map(|kept| &kept.record)
    }
    pub fn volume(&self, volume: VolumeId) -> Option<&VolumeRecord> {
        self.volumes.get(&volume).map(|kept| &kept.record)
    }
    pub fn volume_named(&self, name: &str) -> Option<&VolumeRecord> {
        self.volumes.values().map(|kept| &kept.record).find(|record| record.name == name)
    }
    pub fn epoch(&self, volume: VolumeId) -> Epoch {
        self.lease(volume).map_or(Epoch(0), |lease| lease.epoch)
    }
    /// The volume's migrations, finished ones included.
    pub fn migrations_of(&self, volume: VolumeId) -> impl Iterator<Item = &MigrationRecord> {
        self.migrations.values().map(|kept| &kept.record).filter(move |record| record.volume == volume)
    }
    /// The volume's migration that has not ended.
    pub fn active_migration(&self, volume: VolumeId) -> Option<&MigrationRecord> {
        self.migrations_of(volume).find(|record| !record.stage.is_final())
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetaError> {
    serde_json::from_slice(value).map_err(|_| MetaError::Corrupt(key.into()))
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data always encodes")
}

/// Puts committed changes into the copy in memory.
pub type Apply = Box<dyn FnOnce(&mut State, Version)>;

/// Looks a record's version up in the copy in memory.
type Expected = Box<dyn Fn(&State) -> Option<Version>>;

struct Edit {
    key: String,
    /// `None`: delete.
    value: Option<Vec<u8>>,
    /// The version that the copy in memory has of the record.
    expected: Expected,
    apply: Apply,
}

/// What a decision changes.
pub struct Changes {
    wall_ms: u64,
    edits: Vec<Edit>,
    events: Vec<Event>,
    moves_data: bool,
}

/// An event that is about to be recorded.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub severity: Severity,
    pub kind: &'static str,
    pub text: String,
    pub node: Option<NodeId>,
    pub volume: Option<VolumeId>,
    pub migration: Option<MigrationId>,
}

impl NewEvent {
    pub fn new(severity: Severity, kind: &'static str, text: impl Into<String>) -> Self {
        Self { severity, kind, text: text.into(), node: None, volume: None, migration: None }
    }
    pub fn info(kind: &'static str, text: impl Into<String>) -> Self {
        Self::new(Severity::Info, kind, text)
    }
    pub fn warning(kind: &'static str, text: impl Into<String>) -> Self {
        Self::new(Severity::Warning, kind, text)
    }
    pub fn error(kind: &'static str, text: impl Into<String>) -> Self {
        Self::new(Severity::Error, kind, text)
    }
    #[must_use]
    pub fn node(mut self, node: &NodeId) -> Self {
        self.node = Some(node.clone());
        self
    }
    #[must_use]
    pub fn volume(mut self, volume: VolumeId) -> Self {
        self.volume = Some(volume);
        self
    }
    #[must_use]
    pub fn migration(mut self, migration: MigrationId) -> Self {
        self.migration = Some(migration);
        self
    }
}

impl Changes {
    pub fn new(wall_ms: u64) -> Self {
        Self { wall_ms, edits: Vec::new(), events: Vec::new(), moves_data: false }
    }

    pub fn wall_ms(&self) -> u64 {
        self.wall_ms
    }

    pub fn put<R: Record>(&mut self, record: R) {
        let id = record.id();
        let (looked_up, kept) = (id.clone(), record.clone());
        self.edits.push(Edit {
            key: format!("{}{}", R::PREFIX, R::suffix(&id)),
            value: Some(json(&record)),
            expected: Box::new(move |state| R::table(state).get(&looked_up).map(|kept| kept.version)),
            apply: Box::new(move |state, version| {
                R::table_mut(state).insert(id, Kept { version, record: kept });
            }),
        });
    }

    pub fn delete<R: Record>(&mut self, id: R::Id) {
        let looked_up = id.clone();
        self.edits.push(Edit {
            key: format!("{}{}", R::PREFIX, R::suffix(&id)),
            value: None,
            expected: Box::new(move |state| R::table(state).get(&looked_up).map(|kept| kept.version)),
            apply: Box::new(move |state, _| {
                R::table_mut(state).remove(&id);
            }),
        });
    }

    pub fn event(&mut self, event: NewEvent) {
        self.events.push(Event {
            id: 0,
            at_ms: self.wall_ms,
            severity: event.severity,
            kind: event.kind.into(),
            text: event.text,
            node: event.node.map(|node| node.to_string()),
            volume: event.volume.map(|volume| volume.to_string()),
            migration: event.migration.map(|migration| migration.to_string()),
        });
    }

    /// A node tells of something under a name of its own, maybe in a migration of the volume.
    pub fn reported(
        &mut self,
        node: &NodeId,
        kind: &str,
        volume: Option<VolumeId>,
        migration: Option<MigrationId>,
        text: String,
    ) {
        let severity = match kind {
            "poisoned" | "writes_lost" => Severity::Error,
            "tier_space" | "way_back_closed" | "copy_dropped" | "link_silent" | "reopened" | "remote_unreadable" => {
                Severity::Warning
            }
            _ => Severity::Info,
        };
        self.event(NewEvent { volume, migration, ..NewEvent::new(severity, "node", text).node(node) });
        if let Some(event) = self.events.last_mut() {
            event.kind = format!("node.{kind}");
        }
    }

    /// A volume is somewhere else now.
    pub fn moves_data(&mut self) {
        self.moves_data = true;
    }

    /// The transaction, and how to apply it once committed.
    pub fn finish(mut self, state: &State) -> (Transaction, Apply) {
        if self.edits.is_empty() && self.events.is_empty() {
            return (Transaction::default(), Box::new(|_, _| {}));
        }
        let mut transaction = Transaction::default();
        let mut id = state.last_event();
        for mut event in std::mem::take(&mut self.events) {
            id += 1;
            event.id = id;
            tracing::info!(id, kind = event.kind, text = event.text, "event");
            self.put(event);
            if let Some((oldest, _)) = state.events.iter().nth((id - state.last_event()) as usize - 1)
                && state.events.len() >= EVENTS_MAX
            {
                self.delete::<Event>(*oldest);
            }
        }
        let mut applies = Vec::new();
        for edit in self.edits {
            transaction.expect.push((edit.key.clone(), (edit.expected)(state)));
            match edit.value {
                Some(value) => transaction.puts.push((edit.key, value)),
                None => transaction.deletes.push(edit.key),
            }
            applies.push(edit.apply);
        }
        let data_map = state.data_map + u64::from(self.moves_data);
        if self.moves_data {
            transaction.puts.push((DATA_MAP_KEY.into(), json(&data_map)));
        }
        if !state.formatted {
            transaction.puts.push((FORMAT_KEY.into(), json(&Format::V1)));
        }
        let apply = move |state: &mut State, version| {
            for apply in applies {
                apply(state, version);
            }
            state.data_map = data_map;
            state.formatted = true;
        };
        (transaction, Box::new(apply))
    }
}
