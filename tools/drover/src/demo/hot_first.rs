//! The second act: the volume goes back hot first over a link that is throttled, so that most of it is still at the other
//! node when it flips.

use super::load::{Area, Done, Mode};
use super::{IMAGE_BYTES, Stage, Watch, load, start_move};
use crate::failure::Failure;
use crate::output::show_ms;
use drover_base::text::show_bytes;
use drover_types::{CommitPolicy, Migration, MigrationOptions, Phase, TuneMigration};
use std::time::Duration;

/// What the move may send a second before its flip: in the time that what is accessed needs, little else comes.
const THROTTLE_BYTES_PER_S: u64 = 12_000_000;

/// Of what holds data, so much has to be remote at the flip, or there was little to show.
const REMOTE_PERCENT_MIN: u64 = 70;

/// What somebody reads of the image meanwhile: it has to be fetched first.
const READ_BYTES_PER_S: u64 = 2_000_000;
const READ_TIME: Duration = Duration::from_secs(5);

/// Whether as much as there should be was remote at the flip.
pub fn was_mostly_remote(hot: &Migration) -> bool {
    hot.receipt.remote_bytes_at_flip * 100 >= hot.receipt.held_bytes * REMOTE_PERCENT_MIN && hot.receipt.held_bytes > 0
}

/// Moves the volume to node-1. The migration, committed, and what the reader of the image saw.
pub async fn act(stage: &Stage<'_>, watch: &mut Watch<'_>) -> Result<(Migration, Done), Failure> {
    stage.output.say(&format!("back to node-1, hot first, at {}/s ...", show_bytes(THROTTLE_BYTES_PER_S)));
    let options = MigrationOptions {
        hot_first: true,
        commit: CommitPolicy::Auto,
        retention_ms: 1_000,
        throttle_bytes_per_s: Some(THROTTLE_BYTES_PER_S),
        ..MigrationOptions::default()
    };
    let hot = start_move(stage, 0, options).await?;
    let has_flipped = |seen: &Migration| seen.phase == Phase::Settling || seen.phase.is_final();
    let flipped = watch.reach("hot", &hot.id, has_flipped).await?;
    stage.output.say(&format!(
        "{} are still at node-2 only, after {}; reading here and there in the image ...",
        show_bytes(flipped.receipt.remote_bytes_at_flip),
        show_ms(flipped.receipt.flip_ms.unwrap_or(0)),
    ));
    let image = Area { uri: stage.uri.to_string(), offset: 0, len: IMAGE_BYTES, rate: READ_BYTES_PER_S };
    let read = load::run(&image, Mode::ReadOnly(READ_TIME), 5, &stage.dir.join("fio.log")).await?;
    stage.output.say(&format!("{} read, {} errors; now the rest ...", show_bytes(read.read_bytes), read.errors));
    let faster =
        TuneMigration { throttle_bytes_per_s: Some(stage.throttle().unwrap_or(0)), ..TuneMigration::default() };
    let _: Migration = stage.client.patch(&format!("/v1/migrations/{}", hot.id), &faster).await?;
    let hot = watch.reach("hot", &hot.id, |seen| seen.phase == Phase::Committed).await?;
    Ok((hot, read))
}
