//! The kill table: courses that a migration can take, the steps that each persists, and who is hit at which of them.

use drover_e2e::{At, Moment};
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Source,
    Destination,
    Control,
}

/// What is done while a step is held, or as soon as it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// kill -9; it is back after a moment.
    Kill(Process),
    /// SIGSTOP for longer than a timed lease, then SIGCONT.
    Sleep(Process),
    /// kill -9; it stays away until `Up`.
    Down(Process),
    Up(Process),
    /// SIGSTOP until `Continue`.
    Stop(Process),
    Continue(Process),
    /// Asks the control plane, until it agrees.
    Ask(&'static str),
    /// Has the policy decide over the cutover from now on, until the control plane agrees.
    Tune,
    /// Takes its disks away, of one that is down.
    Lose(Process),
    /// Changes a byte on its disks that no client reads.
    Damage(Process),
    /// Writes over more than a round may leave, faster than it is sent, until rounds are counted.
    Churn,
    /// Lets go what the options held back.
    Release,
}

use Act::{Ask, Churn, Continue, Damage, Down, Kill, Lose, Release, Stop, Tune, Up};
use Process::{Control, Destination, Source};

/// One course of a migration.
pub struct Course {
    pub name: &'static str,
    pub options: fn() -> Value,
    /// Steps in their order. Those not hit, and without acts, may be left out.
    pub steps: &'static [Expected],
    /// How it may end.
    pub ends: &'static [&'static str],
}

pub struct Expected {
    pub step: &'static str,
    /// Whether the table hits it in this course.
    pub is_hit: bool,
    /// What brings the course about.
    pub acts: &'static [(Moment, Act)],
}

const fn hit(step: &'static str) -> Expected {
    Expected { step, is_hit: true, acts: &[] }
}

const fn hit_with(step: &'static str, acts: &'static [(Moment, Act)]) -> Expected {
    Expected { step, is_hit: true, acts }
}

const fn with(step: &'static str, acts: &'static [(Moment, Act)]) -> Expected {
    Expected { step, is_hit: false, acts }
}

const AFTER: Moment = Moment::After;

/// Content, beside what the writers write, that a throttled migration copies in about two seconds.
pub const BULK_BYTES: u64 = 12 << 20;

pub const ONE_BY_ONE: &[Course] = &[
    Course {
        name: "committed",
        options: || json!({ "retention_ms": 100 }),
        steps: &[
            hit("planned"),
            hit("tracking"),
            hit("copying"),
            hit("mirroring"),
            hit("flipping"),
            hit("settling"),
            hit("flipped"),
            hit("proven"),
            hit("committed"),
            hit("cleaned_up node-2 grant"),
            hit("cleaned_up node-2 end"),
            hit("cleaned_up node-1 end"),
        ],
        // A destination that is away for too long once it holds is taken over.
        ends: &["committed", "rolled_back"],
    },
    Course {
        name: "converging",
        options: || json!({ "retention_ms": 100, "throttle_bytes_per_s": 6 << 20 }),
        steps: &[with("copying", &[(AFTER, Churn)]), hit_with("converging", &[(AFTER, Release)])],
        ends: &["committed"],
    },
    Course {
        name: "rolled-back",
        options: || json!({ "commit": "manual" }),
        steps: &[
            with("flipped", &[(AFTER, Ask("rollback"))]),
            hit("flipping_back"),
            hit("flip_back_began"),
            hit("returning"),
            hit("flipped_back"),
            hit("returned"),
            hit("cleaned_up node-1 end"),
            hit("cleaned_up node-1 grant"),
            hit("cleaned_up node-2 grant"),
            hit("cleaned_up node-2 end"),
            hit("rolled_back"),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "cancelled",
        options: || json!({ "cutover": "manual" }),
        steps: &[
            with("mirroring", &[(AFTER, Ask("cancel"))]),
            hit("cancelled"),
            hit("cleaned_up node-1 end"),
            hit("cleaned_up node-1 grant"),
            hit("cleaned_up node-2 end"),
            hit("rolled_back"),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "started-over",
        options: || json!({ "retention_ms": 100 }),
        steps: &[with("copying", &[(AFTER, Kill(Source))]), hit("start_over")],
        ends: &["committed"],
    },
    Course {
        name: "flip-given-up",
        options: || json!({ "retention_ms": 100, "pause_ms_max": 300 }),
        steps: &[
            with("flipping", &[(AFTER, Stop(Destination))]),
            hit_with("flip_given_up", &[(AFTER, Continue(Destination))]),
            hit("resumed"),
        ],
        ends: &["committed"],
    },
    Course {
        name: "taken-over",
        options: || json!({ "commit": "manual" }),
        steps: &[
            with("flipped", &[(AFTER, Stop(Destination))]),
            hit_with("taken_over", &[(AFTER, Continue(Destination))]),
            hit("cleaned_up node-1 grant"),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "way-back-closed",
        options: || json!({ "retention_ms": 100 }),
        steps: &[
            with("flipped", &[(AFTER, Down(Source))]),
            hit_with("way_back_closed", &[(AFTER, Up(Source))]),
            hit("way_back_opened"),
        ],
        ends: &["committed", "rolled_back"],
    },
];

/// What is rarer, or asked for: all that is hit of a course in one migration, whoever is hit.
pub const AT_ONCE: &[Course] = &[
    Course {
        name: "asked-for",
        options: || json!({ "cutover": "manual", "commit": "manual", "pause_ms_max": 5000 }),
        steps: &[
            with("mirroring", &[(AFTER, Ask("pause"))]),
            hit_with("paused", &[(AFTER, Ask("resume"))]),
            hit_with("unpaused", &[(AFTER, Ask("cutover"))]),
            hit_with("cutover", &[(AFTER, Tune)]),
            hit_with("tuned", &[(AFTER, Ask("commit"))]),
            hit("commit"),
        ],
        ends: &["committed", "rolled_back"],
    },
    Course {
        name: "flip-cancelled",
        options: || json!({ "pause_ms_max": 5000 }),
        steps: &[
            with("flipping", &[(AFTER, Stop(Destination)), (AFTER, Ask("cancel"))]),
            hit_with("cancelled", &[(AFTER, Continue(Destination))]),
            hit("cleaned_up node-1 resume"),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "flip-back-given-up",
        options: || json!({ "commit": "manual", "pause_ms_max": 300 }),
        steps: &[
            with("flipped", &[(AFTER, Ask("rollback"))]),
            with("flip_back_began", &[(AFTER, Stop(Source))]),
            hit_with("flip_back_given_up", &[(AFTER, Continue(Source))]),
            hit("resumed"),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "proof-failed",
        options: || json!({ "retention_ms": 100 }),
        steps: &[
            with("settling", &[(AFTER, Damage(Destination))]),
            hit_with("proof_failed", &[(AFTER, Ask("rollback"))]),
        ],
        ends: &["rolled_back"],
    },
    Course {
        name: "copy-lost",
        options: || json!({ "commit": "manual" }),
        steps: &[
            with("flipped", &[(AFTER, Down(Source))]),
            with("way_back_closed", &[(AFTER, Lose(Source)), (AFTER, Up(Source))]),
            hit_with("copy_lost", &[(AFTER, Ask("commit"))]),
            hit("committed_alone"),
        ],
        ends: &["committed"],
    },
    Course {
        name: "failed",
        options: || json!({ "cutover": "manual", "peer_deadline_ms": 2000 }),
        steps: &[
            with("mirroring", &[(AFTER, Down(Source)), (AFTER, Down(Destination))]),
            hit_with("failed", &[(AFTER, Up(Source)), (AFTER, Up(Destination))]),
        ],
        ends: &["failed"],
    },
];

/// The same of what only time brings about: a cutover that waits in vain, a rollback that waits in vain.
pub const LATE: &[Course] = &[
    Course {
        name: "cutover-refused",
        options: || json!({ "cutover": "manual", "retention_ms": 100 }),
        steps: &[
            with("mirroring", &[(AFTER, Ask("pause"))]),
            with("paused", &[(AFTER, Ask("cutover"))]),
            hit_with("cutover_refused", &[(AFTER, Tune)]),
            with("tuned", &[(AFTER, Ask("resume"))]),
        ],
        ends: &["committed"],
    },
    Course {
        name: "rollback-given-up",
        options: || json!({ "commit": "manual" }),
        steps: &[
            with("flipped", &[(AFTER, Ask("rollback"))]),
            with("flipping_back", &[(AFTER, Down(Source))]),
            hit_with("rollback_given_up", &[(AFTER, Up(Source)), (AFTER, Ask("commit"))]),
        ],
        ends: &["committed"],
    },
];

/// One migration, and what happens to it: at each of these, in this order.
pub struct Run {
    pub course: &'static Course,
    /// Who is hit, for people.
    pub title: String,
    pub script: Vec<(At, Vec<Act>)>,
}

impl Run {
    fn new(course: &'static Course, title: String, hits: &[(At, Act)]) -> Self {
        let mut script = Vec::new();
        for expected in course.steps {
            for moment in [Moment::Before, Moment::After] {
                let at = At { moment, step: expected.step.into() };
                let of_case = hits.iter().filter(|(hit, _)| *hit == at).map(|(_, act)| *act);
                let own = expected.acts.iter().filter(|(when, _)| *when == moment).map(|(_, act)| *act);
                let acts: Vec<Act> = of_case.chain(own).collect();
                if !acts.is_empty() {
                    script.push((at, acts));
                }
            }
        }
        Self { course, title, script }
    }

    /// The processes that do not live through it.
    pub fn is_killed(&self, process: Process) -> bool {
        self.script.iter().flat_map(|(_, acts)| acts).any(|act| matches!(act, Kill(it) | Down(it) if *it == process))
    }
}

/// Every step of every course, before and after: a migration each, but for those of `AT_ONCE`. The control plane comes
/// back with what it had persisted, so all steps of a course are one migration for it.
pub fn killed(victim: Process) -> Vec<Run> {
    let at_once = |courses: &'static [Course]| courses.iter().map(move |course| killed_at_once(course, victim));
    if victim == Control {
        return at_once(ONE_BY_ONE).chain(at_once(AT_ONCE)).collect();
    }
    let moments = ONE_BY_ONE.iter().flat_map(|course| hits(course).map(move |at| (course, at)));
    let one =
        |(course, at): (_, At)| Run::new(course, format!("{victim:?} killed {at}"), &[(at.clone(), Kill(victim))]);
    moments.map(one).chain(at_once(AT_ONCE)).collect()
}

/// Everybody in turn, in those that only time brings about.
pub fn late() -> Vec<Run> {
    let victims = [Source, Destination, Control];
    LATE.iter().flat_map(|course| victims.map(|victim| killed_at_once(course, victim))).collect()
}

fn killed_at_once(course: &'static Course, victim: Process) -> Run {
    let hits: Vec<_> = hits(course).map(|at| (at, Kill(victim))).collect();
    Run::new(course, format!("{victim:?} killed at {} moments", hits.len()), &hits)
}

fn hits(course: &'static Course) -> impl Iterator<Item = At> {
    let steps = course.steps.iter().filter(|expected| expected.is_hit);
    steps.flat_map(|expected| [At::before(expected.step), At::after(expected.step)])
}

/// The holder stands still for longer than its timed lease, in each phase in which it is timed.
pub fn sleeps() -> Vec<Run> {
    const SLEEPS: &[(&str, &str, Process)] = &[
        ("committed", "mirroring", Source),
        ("committed", "flipping", Source),
        ("committed", "settling", Destination),
        ("committed", "flipped", Destination),
        ("committed", "proven", Destination),
        ("rolled-back", "flipping_back", Destination),
        ("rolled-back", "flip_back_began", Destination),
        ("rolled-back", "returning", Source),
        ("flip-given-up", "flip_given_up", Source),
    ];
    let run = |(name, step, holder): &(&str, &str, Process)| {
        let course = ONE_BY_ONE.iter().find(|course| course.name == *name).expect("a course");
        Run::new(course, format!("{holder:?} asleep after {step}"), &[(At::after(step), Act::Sleep(*holder))])
    };
    SLEEPS.iter().map(run).collect()
}
