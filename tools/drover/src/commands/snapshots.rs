//! Snapshots of a volume.

use super::{confirm, show_done};
use crate::arguments::Snapshot as Command;
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::output::{Output, table};
use drover_base::text::show_bytes;
use drover_types::{CreateSnapshot, Snapshot};

pub async fn run(client: &Client, output: Output, command: Command) -> Result<(), Failure> {
    let path = |volume: &str| format!("/v1/volumes/{}/snapshots", escape(volume));
    match command {
        Command::Create { volume, name } => {
            let made: serde_json::Value = client.post(&path(&volume), &CreateSnapshot { name: name.clone() }).await?;
            output.show(&made, |_| format!("snapshot {name} of {volume} made"))
        }
        Command::List { volume } => {
            let snapshots: Vec<Snapshot> = client.list(&path(&volume)).await?;
            output.show(&snapshots, |snapshots| {
                let rows = snapshots
                    .iter()
                    .map(|snapshot| [snapshot.name.clone(), utc(snapshot.created_ms), show_bytes(snapshot.used_bytes)]);
                table(["SNAPSHOT", "MADE (UTC)", "USED"], rows)
            })
        }
        Command::Delete { volume, name } => {
            client.delete(&format!("{}/{}", path(&volume), escape(&name))).await?;
            let text = format!(
                "snapshot {name} of {volume} deleted; its space comes back in the background (drover volume show {volume})"
            );
            show_done(output, &text)
        }
        Command::Rollback { volume, name, yes } => {
            confirm(&format!("What was written to {volume} since {name} will be lost. Go on?"), yes)?;
            let path = format!("{}/{}/rollback", path(&volume), escape(&name));
            let _: serde_json::Value = client.post(&path, &serde_json::json!({})).await?;
            show_done(output, &format!("{volume} is as it was at {name}"))
        }
    }
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
