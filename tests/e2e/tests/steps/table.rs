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
    /// Writes over more than a round may leave, faster than it is sent, until rounds are counted.
    Churn,
    /// Lets go what the options held back.
    Release,
}

use Act::{Ask, Churn, Continue, Down, Kill, Release, Stop, Up};
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

pub const COURSES: &[Course] = &[
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
            hit("cleaning_up"),
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
            hit("cleaning_up"),
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
            hit_with("cleaning_up", &[(AFTER, Continue(Destination))]),
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

/// Every step of every course, before and after, a migration each.
pub fn one_by_one(victim: Process) -> Vec<Run> {
    let moments = COURSES.iter().flat_map(|course| hits(course).map(move |at| (course, at)));
    moments.map(|(course, at)| Run::new(course, format!("{victim:?} killed {at}"), &[(at, Kill(victim))])).collect()
}

/// The same, all steps of a course in one migration: the control plane comes back with what it had persisted.
pub fn all_at_once() -> Vec<Run> {
    let run = |course| {
        let hits: Vec<_> = hits(course).map(|at| (at, Kill(Control))).collect();
        Run::new(course, format!("{Control:?} killed at {} moments", hits.len()), &hits)
    };
    COURSES.iter().map(run).collect()
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
        let course = COURSES.iter().find(|course| course.name == *name).expect("a course");
        Run::new(course, format!("{holder:?} asleep after {step}"), &[(At::after(step), Act::Sleep(*holder))])
    };
    SLEEPS.iter().map(run).collect()
}
