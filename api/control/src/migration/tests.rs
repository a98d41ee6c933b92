//! The machine under random answers: what it must never record, and that it always comes to an end.

use super::executor::base_snapshot;
use super::knowledge::{Answer, Asked, Effect, Knowledge, ProofKey};
use super::machine::{NodeView, Step, View, next};
use super::transition::{Facts, SourceCopy, Transition};
use crate::ControlConfig;
use crate::lived::Moment;
use crate::table::{Changes, Kept, State};
use drover_base::{Epoch, Generation, InstanceId, Instant, MigrationId, NodeId, VolumeId};
use drover_meta::Version;
use drover_sim::runtime::Generator;
use drover_types::VolumeState;
use drover_types::record::{CleanupTask, LeaseRecord, MigrationRecord, NodeRecord, Stage, VolumeRecord};
use drover_wire::admin::{Position, Proof, PullProgress, Refusal, SendPhase, SendProgress};
use std::time::Duration;

const VOLUME: VolumeId = VolumeId(1);
const MIGRATION: MigrationId = MigrationId(2);
const TTL: Duration = Duration::from_secs(9);
const BEGINNING: Instant = Instant(1_000_000_000_000);
const DRIFT: Duration = Duration::from_millis(500);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn registered(name: &str, instance: u64) -> NodeRecord {
    NodeRecord {
        node: node(name),
        instance: InstanceId(instance),
        admin: name.into(),
        peer: name.into(),
        migration: name.into(),
        nbd_unix: None,
        nbd_tcp: None,
    }
}

fn record() -> MigrationRecord {
    let volume = VolumeRecord {
        volume: VOLUME,
        name: "v".into(),
        size_bytes: 1 << 30,
        state: VolumeState::Ready,
        created_ms: 0,
        resize_to: None,
        tenant: drover_types::DEFAULT_TENANT.into(),
        limits: Default::default(),
        origin: None,
    };
    let mut record = crate::migrations::blank(MIGRATION, &volume, node("a"), node("b"));
    record.options.retention_ms = 1000;
    record
}

/// The control plane's state with one migration, nodes that answer anything, and what the answers entitle to.
struct Walk {
    chance: Generator,
    state: State,
    knowledge: Knowledge,
    now: Instant,
    version: u64,
    lease_age: Duration,
    source_copy: SourceCopy,
    /// The attempt, and the start of the holder that drained under it, in this life of the control plane.
    drained: Option<(u64, InstanceId)>,
    confirmed: Option<u64>,
    /// A sound proof was reported and the way back has not closed since.
    proof_is_sound: bool,
    good: bool,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut state = State::default();
        let version = Version(1);
        for name in ["a", "b"] {
            state.nodes.insert(node(name), Kept { version, record: registered(name, 1) });
        }
        let lease =
            LeaseRecord { volume: VOLUME, epoch: Epoch(1), revision: 0, holder: node("a"), ttl_ms: None, leg: None };
        state.leases.insert(VOLUME, Kept { version, record: lease });
        let mut chance = Generator::new(seed, "walk");
        let mut migration = record();
        migration.options.hot_first = chance.chance_ppm(300_000);
        state.migrations.insert(MIGRATION, Kept { version, record: migration });
        Self {
            chance,
            state,
            knowledge: Knowledge::default(),
            now: BEGINNING,
            version: 1,
            lease_age: Duration::ZERO,
            source_copy: SourceCopy::There,
            drained: None,
            confirmed: None,
            proof_is_sound: false,
            good: false,
        }
    }

    fn record(&self) -> &MigrationRecord {
        &self.state.migrations[&MIGRATION].record
    }
    fn lease(&self) -> &LeaseRecord {
        &self.state.leases[&VOLUME].record
    }

    fn commit(&mut self, changes: Changes) {
        let before = self.lease().clone();
        let generation = self.record().generation;
        let (_, apply) = changes.finish(&self.state);
        self.version += 1;
        apply(&mut self.state, Version(self.version));
        let after = self.lease();
        if *after != before {
            assert!((after.epoch, after.revision) > (before.epoch, before.revision), "{before:?} → {after:?}");
            assert!(after.holder == before.holder || after.epoch > before.epoch);
        }
        assert!(self.record().generation >= generation);
    }

    fn facts<'a>(&self, knowledge: &'a Knowledge) -> Facts<'a> {
        let progress = knowledge.report.as_ref().map(|report| &report.progress);
        Facts {
            ttl: TTL,
            drift: DRIFT,
            lease_age: self.lease_age,
            holder_silence: None,
            source_copy: self.source_copy,
            progress,
            shown: knowledge.shown,
        }
    }

    /// Stores the transition if it applies, after checking that it may.
    fn store(&mut self, transition: Transition) -> bool {
        let mut changes = Changes::new(1_000);
        let outcome = transition.clone().store(&self.state, self.record(), &self.facts(&self.knowledge), &mut changes);
        if outcome.is_err() {
            return false;
        }
        self.check(&transition);
        self.commit(changes);
        match transition {
            Transition::MoveLease { .. } | Transition::TakeOver => {
                self.lease_age = Duration::ZERO;
                self.proof_is_sound = false;
            }
            Transition::GiveUpFlip { .. } => self.knowledge.flip_given_up(self.now),
            Transition::StartOver { .. } => {
                self.knowledge.sender_lost = None;
                self.knowledge.unsure = None;
            }
            Transition::RequestCommit => self.knowledge.proof_begun = None,
            Transition::Proven { .. } => self.knowledge.proven_at = Some(self.now),
            _ => {}
        }
        true
    }

    fn check(&self, transition: &Transition) {
        let reported = self.knowledge.report.as_ref().map(|report| &report.progress);
        match transition {
            Transition::BeginFlip if self.record().stage == Stage::Mirroring && self.record().options.hot_first => {
                assert!(
                    reported.expect("the gate asks").coverage_permille >= Some(950),
                    "flipped without what is accessed"
                );
            }
            Transition::Proven { .. } => {
                let pull = reported.and_then(|progress| progress.pull.as_ref());
                assert!(pull.is_none_or(|pull| pull.remote_bytes == 0), "proven while blocks are at the source only");
            }
            Transition::MoveLease { handover } => {
                let holder = self.record().sides().0;
                let instance = self.state.nodes[holder].record.instance;
                assert_eq!(self.drained, Some((handover.attempt, instance)), "the lease moved without a drain");
                assert_eq!(self.confirmed, Some(handover.attempt), "the lease moved without a confirmation");
            }
            Transition::Commit => {
                assert!(self.proof_is_sound, "committed without a proof");
                assert!(self.record().way_back_open);
            }
            Transition::Flipped { .. } => {
                let other = self.record().sides().1;
                let (instance, lease) = (self.state.nodes[other].record.instance, self.lease());
                let told = self.knowledge.told.get(other) == Some(&(instance, lease.epoch, lease.revision));
                assert!(told || self.knowledge.is_tried(other, &Effect::Grant), "a figure before waiting clients");
            }
            Transition::TakeOver => {
                assert!(self.lease_age >= TTL + DRIFT, "taken over before the lease ran out");
                assert!(self.record().way_back_open, "taken over with the way back closed");
                assert_eq!(self.source_copy, SourceCopy::There, "taken over by a source without a copy");
            }
            Transition::CommitAlone => {
                assert!(self.record().commit_requested && self.source_copy == SourceCopy::Lost);
                assert_eq!(self.lease().holder, self.record().destination);
            }
            _ => {}
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, lived: self.now.since(BEGINNING) }
    }

    fn step(&mut self) -> Option<Step> {
        let record = self.record().clone();
        self.knowledge.enter(&record, self.moment());
        let view = |name: &NodeId| NodeView {
            instance: self.state.nodes.get(name).map(|kept| kept.record.instance),
            silence: Some(Duration::ZERO),
        };
        let view = View {
            config: &ControlConfig::default(),
            record: &record,
            lease: self.lease(),
            knowledge: &self.knowledge,
            source: view(&record.source),
            destination: view(&record.destination),
            now: self.now,
            wall_ms: 1_000,
            lived: self.moment().lived,
            lease_ran_out: self.facts(&self.knowledge).lease_ran_out(),
            source_copy: self.source_copy,
            earlier_cleanup: false,
        };
        match next(&view) {
            Step::End => None,
            step => Some(step),
        }
    }

    fn ask(&mut self, node: NodeId, effect: Effect) {
        let record = self.record().clone();
        let asked = Asked {
            instance: self.state.nodes[&node].record.instance,
            node,
            effect: effect.clone(),
            generation: record.generation,
            epoch: self.lease().epoch,
            revision: self.lease().revision,
            throttle: record.options.throttle_bytes_per_s,
            paused: record.paused,
            proof: ProofKey::new(&record, |node| self.state.node(node).map(|node| node.instance)),
            at: self.now,
        };
        self.knowledge.asking(&asked);
        self.pass(20);
        if !self.good && self.chance.chance_ppm(50_000) {
            // The world changes while it is asked.
            self.disturb();
        }
        let answer = if self.good { self.good_answer(&effect) } else { self.any_answer(&effect) };
        self.note(&asked, &answer);
        let record = self.record().clone();
        self.knowledge.learn(&record, &asked, answer.clone(), self.moment());
        match (&effect, &answer) {
            (Effect::Resume { attempt }, Answer::Done | Answer::Refused(_)) if record.resume == Some(*attempt) => {
                self.store(Transition::Resumed { attempt: *attempt });
            }
            (Effect::Cleanup(cleanup), Answer::Done) => {
                if let CleanupTask::End { drop_volume: true } = cleanup.task {
                    assert_ne!(cleanup.node, self.lease().holder, "the holder's copy is dropped");
                }
                self.store(Transition::CleanedUp { cleanup: cleanup.clone() });
            }
            _ => {}
        }
    }

    /// What the answer entitles to, kept apart from what the machine makes of it.
    fn note(&mut self, asked: &Asked, answer: &Answer) {
        match (&asked.effect, answer) {
            (Effect::Quiesce { attempt }, Answer::Drained(..)) => self.drained = Some((*attempt, asked.instance)),
            (Effect::Confirm { attempt, .. }, Answer::Done) => self.confirmed = Some(*attempt),
            (Effect::Progress, Answer::Progress(progress)) => {
                let sound = progress.proof.as_ref().is_some_and(|proof| proof.regions_equal == proof.regions_total);
                let current = progress.generation == self.record().generation && asked.node == *self.record().sides().0;
                if sound && current && progress.phase == SendPhase::Proven && self.record().way_back_open {
                    self.proof_is_sound = true;
                }
            }
            _ => {}
        }
    }

    fn good_answer(&mut self, effect: &Effect) -> Answer {
        match effect {
            Effect::Quiesce { attempt } => Answer::Drained(Position { session: *attempt, sequence: 1 }, Duration::ZERO),
            Effect::Progress => {
                let record = self.record();
                let phase = match record.stage {
                    Stage::Copying => SendPhase::Converging,
                    Stage::Settling if self.knowledge.proof_begun.is_some() => SendPhase::Proven,
                    _ => SendPhase::Synced,
                };
                let proof = Proof { regions_total: 9, regions_equal: 9, ..Proof::default() };
                Answer::Progress(Box::new(SendProgress { proof: Some(proof), ..progress(record.generation, phase) }))
            }
            _ => Answer::Done,
        }
    }

    fn any_answer(&mut self, effect: &Effect) -> Answer {
        let refusals = [
            Refusal::NotFound { what: "it".into() },
            Refusal::Conflict { reason: "so".into() },
            Refusal::Epoch { asked: Epoch(1), known: Epoch(2) },
            Refusal::Deadline { reason: "late".into() },
        ];
        match self.chance.below(10) {
            0 => return Answer::Unknown("lost".into()),
            1 => return Answer::Refused(self.chance.pick(&refusals).clone()),
            _ => {}
        }
        match effect {
            Effect::Progress => {
                let phases = [
                    SendPhase::Connecting,
                    SendPhase::Comparing,
                    SendPhase::Copying,
                    SendPhase::Converging,
                    SendPhase::Mirroring,
                    SendPhase::Synced,
                    SendPhase::Synced,
                    SendPhase::Drained,
                    SendPhase::Proving,
                    SendPhase::Proven,
                    SendPhase::Failed,
                ];
                let phase = *self.chance.pick(&phases);
                let generation = Generation(self.record().generation.0.saturating_sub(self.chance.below(2)));
                let different = u64::from(self.chance.chance_ppm(100_000));
                let proof = self.chance.chance_ppm(500_000).then_some(Proof {
                    regions_total: 9,
                    regions_equal: if phase == SendPhase::Proven { 9 } else { 9 - different },
                    regions_different: if phase == SendPhase::Proven { 0 } else { different },
                    regions_thicker: 0,
                });
                let link_up = phase != SendPhase::Connecting;
                let remote_bytes = self.chance.below(3) << 20;
                let pull = PullProgress { remote_bytes, ..PullProgress::default() };
                let pull = (!self.record().stage.is_before_flip()).then_some(pull);
                let coverage_permille = Some(900 + self.chance.below(101) as u32);
                let told = progress(generation, phase);
                Answer::Progress(Box::new(SendProgress { proof, link_up, pull, coverage_permille, ..told }))
            }
            _ => self.good_answer(effect),
        }
    }

    fn pass(&mut self, millis_max: u64) {
        let time = Duration::from_millis(self.chance.below(millis_max) + 1);
        self.now = self.now + time;
        self.lease_age += time;
    }

    /// Something happens that nobody asked for.
    fn disturb(&mut self) {
        match self.chance.below(10) {
            0 | 1 => {
                let name = *self.chance.pick(&["a", "b"]);
                let mut changes = Changes::new(1_000);
                let instance = self.chance.next_u64();
                crate::rpc::note_registration(&self.state, &mut changes, registered(name, instance));
                self.commit(changes);
                if !self.record().stage.is_before_flip() {
                    self.proof_is_sound = false;
                }
            }
            2 => {
                // The control plane restarts: what it was told is gone.
                let record = self.record().clone();
                self.knowledge = Knowledge::of(&record);
                if record.stage == Stage::Tracking {
                    self.knowledge.unsure = Some(record.generation);
                }
                (self.drained, self.confirmed) = (None, None);
                self.lease_age = Duration::ZERO;
            }
            3 if self.record().stage == Stage::Settling => {
                let mut record = self.record().clone();
                record.way_back_open = self.chance.chance_ppm(700_000);
                let word = record.way_back_change.map_or(0, |(_, word)| word + 1);
                record.way_back_change = Some((InstanceId(1), word));
                record.proven = false;
                self.proof_is_sound = false;
                let mut changes = Changes::new(1_000);
                changes.put(record);
                self.commit(changes);
            }
            4 => self.lease_age = Duration::ZERO,
            5 => {
                let paused = self.chance.chance_ppm(300_000);
                self.store(Transition::Pause { paused });
            }
            6 if self.chance.chance_ppm(100_000) => {
                self.store(Transition::RollBack { reason: "asked".into(), error: None });
            }
            7 => {
                self.store(Transition::RequestCommit);
            }
            8 => {
                let copies = [SourceCopy::There, SourceCopy::There, SourceCopy::Unknown, SourceCopy::Lost];
                self.source_copy = *self.chance.pick(&copies);
            }
            _ => self.pass(3_000),
        }
    }

    /// One turn of the executor; `false` when there is nothing left to do.
    fn turn(&mut self) -> bool {
        match self.step() {
            None => return false,
            Some(Step::Ask { node, effect }) => self.ask(node, effect),
            Some(Step::Record(transition)) => {
                let moves = transition.clone();
                if !self.store(transition)
                    && let Transition::MoveLease { handover } = moves
                {
                    self.knowledge.flip_failed = Some((handover.attempt, "stale".into()));
                }
            }
            Some(Step::Wait { until }) => {
                self.now = self.now.max(until);
                if self.good {
                    self.lease_age = Duration::ZERO;
                }
            }
            Some(Step::End) => unreachable!("told apart above"),
        }
        true
    }
}

fn progress(generation: Generation, phase: SendPhase) -> SendProgress {
    SendProgress {
        migration: MIGRATION,
        generation,
        phase,
        paused: false,
        total_bytes: 100,
        done_bytes: 100,
        snapshots: 0,
        dirty_bytes: 0,
        remote_bytes: 0,
        coverage_permille: Some(1000),
        logical_bytes: 100,
        wire_bytes: 50,
        deduplicated_bytes: 0,
        rounds: 1,
        ready_to_mirror: true,
        link_up: true,
        last_flush_ms_ago: Some(1),
        client_write_bytes_per_s: 0,
        free_write_bytes_per_s: 0,
        writes_wait: false,
        proof: None,
        pull: None,
        error: None,
    }
}

/// What the new holder of a hot-first move fetches is data that moves, as what a sender sends is.
#[test]
fn a_rate_counts_what_is_fetched() {
    let (record, mut knowledge) = (record(), Knowledge::default());
    let mut rates = Vec::new();
    for second in 0..11 {
        let now = BEGINNING + Duration::from_secs(second);
        let asked = Asked {
            node: record.sides().0.clone(),
            instance: InstanceId(1),
            effect: Effect::Progress,
            generation: record.generation,
            epoch: Epoch(1),
            revision: 0,
            throttle: None,
            paused: false,
            proof: ProofKey::new(&record, |_| None),
            at: now,
        };
        let mut answer = progress(record.generation, SendPhase::Mirroring);
        answer.pull = Some(PullProgress { pulled_bytes: second * 1_000_000, ..PullProgress::default() });
        knowledge.learn(&record, &asked, Answer::Progress(Box::new(answer)), Moment { now, lived: Duration::ZERO });
        rates.push(knowledge.rate_bytes_per_s);
    }
    assert!(rates.is_sorted() && (990_000..=1_000_000).contains(&rates[10]), "{rates:?}");
}

/// propolis#155: activating the target fenced the source before that had drained. Here the lease moves only after the
/// holder has drained and the other side has confirmed, whatever is answered in which order.
#[test]
fn whatever_is_answered_nothing_unsafe_is_recorded_and_all_ends() {
    let mut ends = std::collections::BTreeMap::<&str, u32>::new();
    for seed in 0..3_000 {
        let mut walk = Walk::new(seed);
        let turns = walk.chance.below(300);
        for _ in 0..turns {
            if walk.chance.chance_ppm(30_000) {
                walk.disturb();
            }
            if !walk.turn() {
                break;
            }
        }
        // From here on everything answers: every state has a way to the end.
        walk.good = true;
        walk.source_copy = SourceCopy::There;
        let mut left = 2_000;
        loop {
            if walk.record().paused {
                walk.store(Transition::Pause { paused: false });
            }
            if walk.record().proof_failed && walk.record().stage == Stage::Settling {
                walk.store(Transition::RequestCommit);
            }
            if !walk.record().stage.is_before_flip() && !walk.record().way_back_open {
                let mut record = walk.record().clone();
                record.way_back_open = true;
                let mut changes = Changes::new(1_000);
                changes.put(record);
                walk.commit(changes);
            }
            if !walk.turn() {
                break;
            }
            left -= 1;
            assert!(left > 0, "seed {seed}: it never ends: {:#?}", walk.record());
        }
        let (record, lease) = (walk.record(), walk.lease());
        assert!(record.stage.is_final() && record.cleanup.is_empty());
        assert!(lease.ttl_ms.is_none() && lease.leg.is_none(), "seed {seed}: {lease:?}");
        let holder = if record.stage == Stage::Committed { "b" } else { "a" };
        assert_eq!(lease.holder, node(holder));
        *ends.entry(record.phase().name()).or_default() += 1;
    }
    assert!(ends["committed"] > 500 && ends["rolled_back"] > 100, "{ends:?}");
}

/// Whether a report of an older generation is passed over; so the test of the test can ask too.
pub fn stale_report_is_passed_over() -> bool {
    let current = MigrationRecord { stage: Stage::Mirroring, generation: Generation(3), ..record() };
    let mut knowledge = Knowledge::of(&current);
    let asked = Asked {
        node: node("a"),
        instance: InstanceId(1),
        effect: Effect::Progress,
        generation: Generation(3),
        epoch: Epoch(1),
        revision: 0,
        throttle: None,
        paused: false,
        proof: ProofKey::new(&current, |_| None),
        at: Instant(1),
    };
    let moment = |at| Moment { now: Instant(at), lived: Duration::from_nanos(at) };
    let stale = Answer::Progress(Box::new(progress(Generation(2), SendPhase::Synced)));
    knowledge.learn(&current, &asked, stale, moment(2));
    let passed_over = knowledge.report.is_none();
    let fresh = Answer::Progress(Box::new(progress(Generation(3), SendPhase::Copying)));
    knowledge.learn(&current, &asked, fresh, moment(3));
    assert_eq!(knowledge.report.map(|report| report.progress.phase), Some(SendPhase::Copying));
    passed_over
}

/// ydb-platform/nbs#3162: a stale progress update overwrote a reset index and data stayed uncopied.
#[test]
fn a_report_of_an_older_generation_changes_nothing() {
    assert!(stale_report_is_passed_over());
}

#[test]
fn names_of_base_snapshots_are_names() {
    assert!(drover_base::ids::is_name(&base_snapshot(MIGRATION), 63));
}
