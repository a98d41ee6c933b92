//! A move of a volume from one node to another: what is asked, where it stands, what it brought.

use crate::ApiError;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use utoipa::ToSchema;

/// Where a migration stands.
///
/// ```text
///  planned → tracking → copying → converging → mirroring → flipping → settling → committed
///               └──────────┴───────────┴────────────┴── any failure ──► rolling_back → rolled_back
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Planned,
    Tracking,
    Copying,
    Converging,
    Mirroring,
    Flipping,
    Settling,
    Committed,
    RollingBack,
    RolledBack,
    Failed,
}

impl Phase {
    pub const ALL: [Phase; 11] = [
        Self::Planned,
        Self::Tracking,
        Self::Copying,
        Self::Converging,
        Self::Mirroring,
        Self::Flipping,
        Self::Settling,
        Self::Committed,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
    ];

    /// Nothing but clean-up follows.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack | Self::Failed)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Tracking => "tracking",
            Self::Copying => "copying",
            Self::Converging => "converging",
            Self::Mirroring => "mirroring",
            Self::Flipping => "flipping",
            Self::Settling => "settling",
            Self::Committed => "committed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What decides when the volume flips, once everything has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cutover {
    /// At once.
    #[default]
    Auto,
    /// When told to.
    Manual,
    /// Within `window`, or when told to.
    Window,
}

/// What decides when the source is released, once both sides were proven equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommitPolicy {
    /// The retention time.
    #[default]
    Auto,
    /// When told to.
    Manual,
}

/// A daily span `HH:MM-HH:MM` in UTC; it may pass midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Minutes of the day, 0..1440; equal: the whole day.
    from: u16,
    to: u16,
}

const MINUTES_OF_DAY: u16 = 24 * 60;

impl Window {
    /// Whether the moment, in milliseconds since 1970, lies within.
    pub fn contains(self, wall_ms: u64) -> bool {
        let minute = (wall_ms / 60_000 % u64::from(MINUTES_OF_DAY)) as u16;
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 || !text.bytes().all(|b| b.is_ascii_digit() || b == b':') {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

impl FromStr for Window {
    type Err = ApiError;
    fn from_str(text: &str) -> Result<Self, ApiError> {
        text.split_once('-')
            .and_then(|(from, to)| Some(Self { from: minutes(from)?, to: minutes(to)? }))
            .ok_or_else(|| ApiError::invalid("options.window", format!("{text:?} is not of the form HH:MM-HH:MM")))
    }
}

impl TryFrom<String> for Window {
    type Error = ApiError;
    fn try_from(text: String) -> Result<Self, ApiError> {
        text.parse()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

/// How a migration is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MigrationOptions {
    /// Bytes a second on the wire; absent: as fast as it goes.
    #[schema(minimum = 65_536)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_bytes_per_s: Option<u64>,
    /// Begin mirroring without waiting for the rounds to shrink.
    pub mirror_at_once: bool,
    /// Send what clients access most first, and flip before all has arrived: the rest follows, and is fetched when asked for.
    pub hot_first: bool,
    /// Name content that the destination has already, in volumes of the same tenant, instead of sending it.
    pub dedup: bool,
    /// With `hot_first`: share of what clients access, by its decayed counts, that the destination has to have before the
    /// flip, in percent; 0: whatever it has.
    #[schema(maximum = 100)]
    pub coverage_percent: u32,
    pub cutover: Cutover,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "22:30-04:00",
        pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub window: Option<Window>,
    /// Longest that the source may stop admitting for a flip; past it the flip is given up and tried again later.
    #[schema(minimum = 5, maximum = 30_000)]
    pub pause_ms_max: u64,
    /// How long the source keeps its copy after both sides were proven equal.
    #[schema(maximum = 2_592_000_000_u64)]
    pub retention_ms: u64,
    pub commit: CommitPolicy,
    /// How long a side may be away before the flip until the migration is rolled back.
    #[schema(minimum = 1_000, maximum = 604_800_000)]
    pub peer_deadline_ms: u64,
}

/// Pauses below this cannot be kept by any disk that flushes; above it clients time out.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 5..=30_000;
const THROTTLE_BYTES_PER_S_MIN: u64 = 64 << 10;
const DAYS_MS: u64 = 24 * 3600 * 1000;

impl Default for MigrationOptions {
    fn default() -> Self {
        Self {
            throttle_bytes_per_s: None,
            mirror_at_once: false,
            hot_first: false,
            dedup: true,
            coverage_percent: 95,
            cutover: Cutover::Auto,
            window: None,
            pause_ms_max: 1_000,
            retention_ms: 5_000,
            commit: CommitPolicy::Auto,
            peer_deadline_ms: 600_000,
        }
    }
}

impl MigrationOptions {
    pub fn check(&self) -> Result<(), ApiError> {
        check_throttle(self.throttle_bytes_per_s)?;
        if (self.cutover == Cutover::Window) != self.window.is_some() {
            return Err(ApiError::invalid(
                "options.window",
                "a window goes with the cutover policy `window`, and with no other",
            ));
        }
        if self.coverage_percent > 100 {
            return Err(ApiError::invalid("options.coverage_percent", "the coverage is at most 100 percent"));
        }
        if !PAUSE_MS.contains(&self.pause_ms_max) {
            return Err(ApiError::invalid("options.pause_ms_max", "the longest pause is from 5 ms to 30,000 ms"));
        }
        if self.retention_ms > 30 * DAYS_MS {
            return Err(ApiError::invalid("options.retention_ms", "the retention time is at most 30 days"));
        }
        if !(1_000..=7 * DAYS_MS).contains(&self.peer_deadline_ms) {
            return Err(ApiError::invalid("options.peer_deadline_ms", "the deadline is from 1 second to 7 days"));
        }
        Ok(())
    }
}

fn check_throttle(throttle_bytes_per_s: Option<u64>) -> Result<(), ApiError> {
    match throttle_bytes_per_s {
        Some(rate) if rate < THROTTLE_BYTES_PER_S_MIN => {
            let field = "throttle_bytes_per_s";
            Err(ApiError::invalid(field, "a throttle is at least 65,536 bytes a second").hint("to stop sending, pause"))
        }
        _ => Ok(()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartMigration {
    /// Id or name.
    pub volume: String,
    pub destination: String,
    #[serde(default)]
    pub options: MigrationOptions,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Id or name.
    pub volume: String,
    pub destination: String,
    #[serde(default)]
    pub options: MigrationOptions,
    /// What the link carries; absent: as measured by earlier migrations between the two, else 1 Gbit/s.
    #[schema(minimum = 1)]
    #[serde(default)]
    pub link_bytes_per_s: Option<u64>,
}

/// A change of a running migration. Absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TuneMigration {
    /// At least 65,536, or 0: no throttle.
    pub throttle_bytes_per_s: Option<u64>,
    /// Of a migration that goes hot first.
    #[schema(maximum = 100)]
    pub coverage_percent: Option<u32>,
    pub cutover: Option<Cutover>,
    #[schema(value_type = Option<String>, example = "22:30-04:00",
        pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$")]
    pub window: Option<Window>,
    #[schema(minimum = 5, maximum = 30_000)]
    pub pause_ms_max: Option<u64>,
    #[schema(maximum = 2_592_000_000_u64)]
    pub retention_ms: Option<u64>,
    pub commit: Option<CommitPolicy>,
}

impl TuneMigration {
    /// `options` with the changes, or why that cannot be.
    pub fn apply(&self, options: &MigrationOptions) -> Result<MigrationOptions, ApiError> {
        let mut tuned = options.clone();
        if let Some(throttle) = self.throttle_bytes_per_s {
            tuned.throttle_bytes_per_s = (throttle > 0).then_some(throttle);
        }
        if self.coverage_percent.is_some() && !options.hot_first {
            let text = "only a migration that goes hot first flips by coverage";
            return Err(ApiError::invalid("coverage_percent", text));
        }
        tuned.coverage_percent = self.coverage_percent.unwrap_or(tuned.coverage_percent);
        if let Some(cutover) = self.cutover {
            tuned.cutover = cutover;
            tuned.window = if cutover == Cutover::Window { self.window.or(options.window) } else { None };
        } else if self.window.is_some() {
            tuned.window = self.window;
        }
        tuned.pause_ms_max = self.pause_ms_max.unwrap_or(tuned.pause_ms_max);
        tuned.retention_ms = self.retention_ms.unwrap_or(tuned.retention_ms);
        tuned.commit = self.commit.unwrap_or(tuned.commit);
        tuned.check()?;
        Ok(tuned)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Warning {
    /// Stable name of what is warned of.
    pub code: String,
    pub text: String,
}

/// Where a plan's link rate comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateSource {
    Given,
    /// By earlier migrations between the two nodes.
    Measured,
    #[default]
    Assumed,
}

/// What a migration is expected to bring and cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationPlan {
    pub volume: String,
    pub source: String,
    pub destination: String,
    /// Bytes of blocks that hold data, in the volume and in its snapshots, what these share counted once; compression is not
    /// counted on.
    pub bytes_to_send: u64,
    /// Snapshots that go with it.
    #[serde(default)]
    pub snapshots: u64,
    pub link_bytes_per_s: u64,
    pub link_rate: RateSource,
    /// What clients write, as last observed.
    pub write_bytes_per_s: u64,
    /// Until the flip may happen, writes meanwhile included.
    pub duration_ms_expected: u64,
    pub pause_ms_expected: u64,
    pub destination_free_bytes: u64,
    /// What is reserved at the destination.
    pub space_needed_bytes: u64,
    pub fits: bool,
    pub warnings: Vec<Warning>,
}

/// Whether going back loses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WayBack {
    /// Before the flip: the source has everything, cancelling loses nothing.
    Source,
    /// After it: the source has all that was acknowledged.
    Open,
    /// The source lacks writes; it opens again once they were sent.
    Closed,
    /// The migration is over.
    None,
}

/// What comparing both sides has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProofResult {
    pub regions_total: u64,
    pub regions_equal: u64,
    pub regions_different: u64,
    /// Regions where the destination has more allocated: thin became thick.
    pub regions_thicker: u64,
}

/// What a migration did bring and cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Receipt {
    /// Bytes of blocks that held data when it began, those of snapshots included.
    pub held_bytes: u64,
    /// Snapshots that went with the volume.
    pub snapshots: u64,
    /// Bytes of blocks sent until the flip, what was sent twice included.
    pub logical_bytes: u64,
    /// Bytes on the wire until the flip.
    pub wire_bytes: u64,
    /// Of `logical_bytes`: what the destination had already, in other volumes of the tenant.
    pub deduplicated_bytes: u64,
    /// Bytes on the wire from destination to source after the flip.
    pub return_wire_bytes: u64,
    pub rounds: u32,
    /// Bytes of blocks that were still at the source at the flip, and the share of what clients access whose blocks were
    /// not, in thousandths: as of the last report before it.
    pub remote_bytes_at_flip: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage_permille_at_flip: Option<u32>,
    /// Of the blocks that clients accessed in the first minute after the flip, those that were there, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_permille_60s: Option<u32>,
    /// From the start to the (last) flip.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip_ms: Option<u64>,
    /// From the start to the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_ms: Option<u64>,
    /// From the start to its end, however it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
    /// Longest pause of a flip as the control plane saw it: from asking the old holder to stop admitting until the
    /// new one served.
    pub pause_ms_max: u64,
    pub flips: u32,
    /// Flips that were given up before the lease moved.
    pub flips_given_up: u32,
    pub rolled_back: bool,
    /// For how long clients were slowed to the link in all.
    pub slowed_ms: u64,
    /// Starts over after a restart of a side.
    pub restarts: u32,
    /// After the flip the destination restarted, and the source was made equal to it by comparison: the proof then says
    /// that both are equal, no longer that the copy was what the source had before the flip.
    pub compared_after_flip: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofResult>,
}

/// What may be asked of a migration in its present phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Pause,
    Resume,
    Cutover,
    Cancel,
    Rollback,
    Commit,
}

/// A spell in which a migration slows clients to the link, so that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Slowed {
    pub since_ms: u64,
    /// What they wrote a second before it, and what they write now.
    pub free_bytes_per_s: u64,
    pub bytes_per_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Migration {
    pub id: String,
    pub volume: String,
    pub volume_name: String,
    pub source: String,
    pub destination: String,
    pub phase: Phase,
    pub paused: bool,
    /// What it waits for, where it waits for something in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// It waits for a person: to resume it, to cut over, to commit, or to decide.
    pub needs_you: bool,
    /// Bytes of blocks to send, those of them that have arrived (never more), and those that are left now, what clients
    /// wrote again included.
    pub bytes_total: u64,
    pub bytes_done: u64,
    pub bytes_left: u64,
    /// Of a migration that goes hot first. Before the flip: bytes of blocks that would stay at the source if it flipped now,
    /// and the share of what clients access that would not, in thousandths. After it: bytes of blocks yet to be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage_permille: Option<u32>,
    /// Progress in thousandths; it never falls.
    pub permille: u32,
    pub rate_bytes_per_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// Clients write less than before, since their writes wait for both sides; absent where they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowed: Option<Slowed>,
    pub generation: u64,
    pub options: MigrationOptions,
    pub way_back: WayBack,
    pub actions: Vec<Action>,
    pub plan: MigrationPlan,
    pub receipt: Receipt,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    pub created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Nodes that have yet to be told that it is over.
    pub cleanup_pending: Vec<String>,
    /// Path of its events.
    pub events: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_may_pass_midnight() {
        let at = |hours: u64, minutes: u64| (hours * 60 + minutes) * 60_000 + 9 * DAYS_MS;
        let night: Window = "22:30-04:00".parse().unwrap();
        for (moment, inside) in
            [(at(22, 29), false), (at(22, 30), true), (at(0, 0), true), (at(3, 59), true), (at(4, 0), false)]
        {
            assert_eq!(night.contains(moment), inside, "{moment}");
        }
        let noon: Window = "12:00-13:00".parse().unwrap();
        assert!(noon.contains(at(12, 59)) && !noon.contains(at(13, 0)) && !noon.contains(at(2, 0)));
        assert_eq!(night.to_string(), "22:30-04:00");
        for bad in ["", "22:30", "24:00-01:00", "1:00-2:00", "10:60-11:00", "+1:00-02:00"] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }

    /// harvester#10495: an option that was silently absent.
    #[test]
    fn an_unknown_option_is_refused() {
        let request = r#"{"volume":"a","destination":"b","options":{"throtle_bytes_per_s":1}}"#;
        assert!(serde_json::from_str::<StartMigration>(request).is_err());
    }

    #[test]
    fn options_are_checked_whole() {
        let defaults = MigrationOptions::default();
        defaults.check().unwrap();
        let windowless = MigrationOptions { cutover: Cutover::Window, ..defaults.clone() };
        assert_eq!(windowless.check().unwrap_err().field.as_deref(), Some("options.window"));
        assert!(TuneMigration { throttle_bytes_per_s: Some(1), ..Default::default() }.apply(&defaults).is_err());
        let covered = MigrationOptions { coverage_percent: 101, ..defaults.clone() };
        assert_eq!(covered.check().unwrap_err().field.as_deref(), Some("options.coverage_percent"));
        let accepted = TuneMigration { coverage_percent: Some(0), ..Default::default() };
        assert!(accepted.apply(&defaults).is_err());
        let hot_first = MigrationOptions { hot_first: true, ..defaults.clone() };
        assert_eq!(accepted.apply(&hot_first).unwrap().coverage_percent, 0);
        let unthrottled = TuneMigration { throttle_bytes_per_s: Some(0), ..Default::default() };
        let throttled = MigrationOptions { throttle_bytes_per_s: Some(1 << 20), ..defaults };
        assert_eq!(unthrottled.apply(&throttled).unwrap().throttle_bytes_per_s, None);
    }
}
