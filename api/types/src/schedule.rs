//! Snapshots by the clock.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When a volume gets snapshots, and which of them stay. They are named `auto-` and the moment, by UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Seconds from one to the next, counted from 1970 by UTC: 3600 is each full hour.
    #[schema(minimum = 60, maximum = 31_622_400)]
    pub every_s: u64,
    /// So many seconds after; below `every_s`.
    #[serde(default)]
    pub at_s: u64,
    /// A snapshot stays while any of the rules keeps it.
    #[schema(min_items = 1, max_items = 8)]
    pub keep: Vec<Keep>,
}

/// Keeps the newest snapshot of each of the last periods that have one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// Length of the periods, seconds: 86400 is days.
    #[schema(minimum = 60, maximum = 31_622_400)]
    pub every_s: u64,
    /// How many; 128 at most with all rules together.
    #[schema(minimum = 1, maximum = 128)]
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeSchedule {
    pub volume: String,
    pub schedule: Schedule,
    /// When the next is due, milliseconds since 1970.
    pub next_ms: u64,
    /// Snapshots that it has taken and not taken away.
    pub made: Vec<String>,
}

/// A moment as `2026-11-21 04:05:06`, by the civil calendar (Howard Hinnant's days_from_civil, inverted).
pub fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn moments_are_shown_by_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(utc(1_795_233_906_000), "2026-11-21 04:05:06");
        assert_eq!(utc(4_102_444_799_000), "2099-12-31 23:59:59");
    }
}
