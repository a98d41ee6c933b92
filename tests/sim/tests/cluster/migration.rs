//! The migration and the one who asks for it.

use crate::world::{Cluster, VOLUME_NAME};
use drover_sim::runtime::Generator;
use drover_types::{Action, CommitPolicy, Cutover, Migration, MigrationOptions, Phase, StartMigration};
use std::time::Duration;

/// How long one may be away, for wishes that have little patience.
const PEER_DEADLINE_SHORT: Duration = Duration::from_secs(5);

/// Virtual time within which it has to end once nothing fails any more: past every deadline of the control plane,
/// several times.
const END_WITHIN: Duration = Duration::from_secs(1_200);
const LOOK_PERIOD: Duration = Duration::from_millis(200);

/// What is asked for on the way.
pub struct Wishes {
    options: MigrationOptions,
    /// Go back once it settles.
    rolls_back: bool,
    /// Looks at a migration in one phase before anything is asked of it.
    patience: u64,
    /// Cancel before the flip, at the first look past this phase.
    cancels: bool,
}

impl Wishes {
    pub fn draw(mut random: Generator) -> Self {
        let rolls_back = random.below(3) == 0;
        let cutover = if random.below(4) == 0 { Cutover::Manual } else { Cutover::Auto };
        // So little that there is something left to stay behind.
        let hot_first = random.below(2) == 0;
        let rate_max = if hot_first { 1 << 17 } else { 1 << 20 };
        let options = MigrationOptions {
            throttle_bytes_per_s: (hot_first || random.below(4) > 0).then(|| random.between(1 << 16, rate_max)),
            mirror_at_once: random.below(3) == 0,
            hot_first,
            coverage_percent: random.below(70) as u32,
            cutover,
            retention_ms: random.below(20_000),
            // Whoever means to go back does not let it commit by itself.
            commit: if rolls_back { CommitPolicy::Manual } else { CommitPolicy::Auto },
            peer_deadline_ms: if random.below(6) == 0 { PEER_DEADLINE_SHORT.as_millis() as u64 } else { 600_000 },
            ..MigrationOptions::default()
        };
        let (patience, cancels) = (random.below(40), random.below(12) == 0);
        Self { options, rolls_back, patience, cancels }
    }

    fn action(&self, migration: &Migration) -> Option<Action> {
        match migration.phase {
            Phase::Converging | Phase::Mirroring if self.cancels => Some(Action::Cancel),
            Phase::Mirroring if self.options.cutover == Cutover::Manual => Some(Action::Cutover),
            Phase::Settling if self.rolls_back => Some(Action::Rollback),
            _ => None,
        }
    }
}

pub async fn start(cluster: &Cluster, wishes: &Wishes) -> String {
    let options = wishes.options.clone();
    let request = StartMigration { volume: VOLUME_NAME.into(), destination: "b".into(), options };
    let started = cluster.command(|control| async move { control.start_migration(request, None).await }).await;
    started.expect("the control plane lives").expect("b has room").value.id
}

async fn look(cluster: &Cluster, id: &str) -> Option<Migration> {
    let id = id.to_owned();
    let found = cluster.command(|control| async move { control.show_migration(&id) }).await?;
    Some(found.expect("what was started is remembered").value)
}

/// Only where both sides were away for as long as they may be, it is not known whether anything is left. Once they are
/// back it turns out that the source has it all, as after a rollback.
fn check_failed(cluster: &Cluster, wishes: &Wishes) {
    let deadline = Duration::from_millis(wishes.options.peer_deadline_ms);
    let now = cluster.sim.now();
    for name in ["a", "b"] {
        // A little is heard of it before it is heard of again for good, and the control plane may have been down since.
        let away = cluster.absent_between(name, now.saturating_sub(2 * deadline), now);
        let seed = cluster.sim.seed();
        assert!(away >= deadline / 2, "seed {seed}: it failed, and {name} was away for {away:?}\n{}", cluster.told());
    }
}

/// Asks for what is wished until the migration is over and nothing of it is left anywhere; `calm_since` tells when the
/// faults ended.
pub async fn see_through(
    cluster: &Cluster,
    id: &str,
    wishes: &Wishes,
    calm_since: impl Fn() -> Option<Duration>,
) -> Migration {
    let (mut phase, mut looks) = (None, 0);
    loop {
        let seen = look(cluster, id).await;
        if let Some(migration) = &seen {
            if phase.replace(migration.phase) != Some(migration.phase) {
                cluster.tell(&format!("the migration is {}", migration.phase));
                if migration.phase == Phase::Failed {
                    check_failed(cluster, wishes);
                }
                looks = 0;
            }
            looks += 1;
            if migration.phase.is_final() && migration.cleanup_pending.is_empty() {
                return migration.clone();
            }
            if let Some(action) = wishes.action(migration).filter(|_| looks > wishes.patience) {
                let id = id.to_owned();
                // It may have moved on, or die while it is asked: the next look tells.
                let _ = cluster.command(|control| async move { control.act(&id, action, None, None).await }).await;
            }
        }
        cluster.sim.sleep(LOOK_PERIOD).await;
        if let Some(since) = calm_since() {
            let in_time = cluster.sim.now() < since + END_WITHIN;
            assert!(in_time, "seed {}: the migration does not end\n{}", cluster.sim.seed(), cluster.told());
        }
    }
}
