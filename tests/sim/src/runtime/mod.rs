//! The simulator's runtime: one thread, virtual time, one seed.
//!
//! ```text
//!   Sim ── scheduler: picks one of the runnable tasks at random, polls it, virtual time moves a little
//!     ├── timers: when nothing is runnable, time jumps to the earliest
//!     ├── processes: own the tasks, a clock, a random stream, listeners; killed and paused as a whole
//!     └── net: connections that deliver in order or break
//! ```
//!
//! Invariants:
//! - Every decision comes from a generator made of the seed and a purpose; nothing reads the machine's
//!   clock or chance. So the same seed and the same program give the same [`Sim::trace_digest`].
//! - A task runs only while its process is alive and not paused. A killed process's tasks are dropped
//!   before `kill` returns (the task that called it: when it next yields).
//! - Worlds hold the simulator weakly: it ends with its last [`Sim`] or [`Process`], and its tasks with it.

mod clock;
mod generator;
mod net;
mod process;
mod tasks;
#[cfg(test)]
mod tests;
mod timers;

pub use generator::Generator;
pub(crate) use generator::mix;
pub use net::NetConfig;
pub use process::{Killed, Process};

use clock::ProcessClock;
use net::Network;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tasks::{TaskId, TaskWaker, Tasks};
use timers::{Event, Timers};

/// Virtual time that one poll takes, at most: so that time passes in a program that never waits.
const POLL_NANOS_MAX: u64 = 1_000;

/// Virtual time after which a program that has not ended counts as hung, unless told otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// A simulated world of processes. Clones are handles to the same one.
#[derive(Clone)]
pub struct Sim(pub(crate) Rc<Inner>);

/// Index of a process in [`Inner::processes`].
pub(crate) type ProcessIndex = usize;

/// One run of a process, from its start to its death: what a task, socket or world belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub process: ProcessIndex,
    pub number: u64,
}

pub(crate) struct ProcessState {
    pub name: String,
    /// Grows with each death.
    pub life: u64,
    pub paused: bool,
    pub random: Generator,
    pub clock: ProcessClock,
    /// Tasks that became runnable during a pause.
    pub parked: Vec<TaskId>,
}

pub(crate) struct Inner {
    pub seed: u64,
    now_nanos: Cell<u64>,
    time_limit: Cell<Duration>,
    digest: Cell<u64>,
    running: Cell<bool>,
    scheduler: RefCell<Generator>,
    pub tasks: RefCell<Tasks>,
    pub timers: RefCell<Timers>,
    pub processes: RefCell<Vec<ProcessState>>,
    names: RefCell<BTreeMap<String, ProcessIndex>>,
    pub net: RefCell<Network>,
}

impl Sim {
    pub fn new(seed: u64) -> Self {
        Self(Rc::new(Inner {
            seed,
            now_nanos: Cell::new(0),
            time_limit: Cell::new(TIME_LIMIT),
            digest: Cell::new(seed),
            running: Cell::new(false),
            scheduler: RefCell::new(Generator::new(seed, "scheduler")),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            processes: RefCell::default(),
            names: RefCell::default(),
            net: RefCell::new(Network::new(Generator::new(seed, "net"))),
        }))
    }

    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Virtual time since the simulation began. Processes see their own clocks, which differ from it.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now_nanos())
    }

    /// A generator of its own for `purpose`, a function of the seed: for workloads and faults.
    pub fn generator(&self, purpose: &str) -> Generator {
        Generator::new(self.0.seed, purpose)
    }

    /// Equal for two runs when, and in practice only when, every scheduling decision, timer and
    /// delivered message was equal.
    pub fn trace_digest(&self) -> u64 {
        self.0.digest.get()
    }

    /// Virtual time at which a run panics as hung (six hours by default).
    pub fn set_time_limit(&self, limit: Duration) {
        self.0.time_limit.set(limit);
    }

    /// The process of this name, created at its first mention.
    pub fn process(&self, name: &str) -> Process {
        Process { sim: self.clone(), index: self.0.process_index(name) }
    }

    /// Drops all tasks of the process at once, breaks its connections (the other sides notice later) and
    /// frees its addresses. `process.world()` is then the world of its next life.
    pub fn kill(&self, name: &str) {
        self.process(name).kill();
    }

    /// Stops the process as SIGSTOP does: its tasks do not run, time goes on, messages queue.
    pub fn pause(&self, name: &str) {
        self.process(name).pause();
    }

    pub fn resume(&self, name: &str) {
        self.process(name).resume();
    }

    /// Cuts the network between two processes in both directions. What is sent waits; the connection
    /// breaks after a while, or when healed, or delivers late: never is one message lost inside it.
    pub fn partition(&self, a: &str, b: &str) {
        self.partition_one_way(a, b);
        self.partition_one_way(b, a);
    }

    /// Cuts what `from` sends to `to`.
    pub fn partition_one_way(&self, from: &str, to: &str) {
        let (from, to) = (self.0.process_index(from), self.0.process_index(to));
        self.0.record(&[0x10, from as u64, to as u64]);
        self.0.net.borrow_mut().block(from, to);
    }

    /// Heals the network between two processes in both directions.
    pub fn heal(&self, a: &str, b: &str) {
        let (a, b) = (self.0.process_index(a), self.0.process_index(b));
        self.0.net_heal(|from, to| (from, to) == (a, b) || (from, to) == (b, a));
    }

    pub fn heal_all(&self) {
        self.0.net_heal(|_, _| true);
    }

    /// Breaks every connection between two processes; both sides notice after a delay.
    pub fn reset_connections(&self, a: &str, b: &str) {
        let (a, b) = (self.0.process_index(a), self.0.process_index(b));
        self.0.net_reset(a, b);
    }

    /// Changes the network's behaviour from now on.
    pub fn set_net(&self, config: NetConfig) {
        self.0.net.borrow_mut().config = config;
    }

    /// Completes after `duration` of virtual time; for the code that drives the simulation.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let deadline = self.0.now_nanos().saturating_add(nanos(duration));
        self.0.sleep_global(deadline)
    }

    /// Runs the simulation until `future`, which belongs to no process, is done.
    ///
    /// # Panics
    /// When nothing can run any more before it is done, or at the time limit; the message has the seed.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let inner = &self.0;
        let _running = inner.enter();
        let mut future = pin!(future);
        let root = Arc::new(TaskWaker::root(inner.tasks.borrow().woken.clone()));
        let waker = std::task::Waker::from(root.clone());
        waker.wake_by_ref();
        loop {
            match inner.next_step() {
                Step::Poll(TaskId::ROOT) => {
                    inner.before_poll(TaskId::ROOT);
                    root.take_up();
                    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        inner.tasks.borrow_mut().forget_root();
                        return output;
                    }
                }
                Step::Poll(task) => inner.poll_task(task),
                Step::Fired => {}
                Step::Idle => {
                    panic!("seed {}: deadlock at {:?}: nothing can run, no timer is set", inner.seed, self.now())
                }
            }
            inner.check_time_limit();
        }
    }

    /// Kills every process: nothing of the simulation is kept alive by its own tasks any more.
    pub fn end(&self) {
        let names: Vec<String> = self.0.names.borrow().keys().cloned().collect();
        names.iter().for_each(|name| self.kill(name));
    }

    /// Runs until virtual time `until` since the beginning, or until nothing can run any more.
    pub fn run_until(&self, until: Duration) {
        let inner = &self.0;
        let _running = inner.enter();
        // The timer makes time reach `until` also when nothing else is going on.
        let _end = inner.sleep_global(nanos(until));
        while inner.now_nanos() < nanos(until) {
            match inner.next_step() {
                Step::Poll(task) => inner.poll_task(task),
                Step::Fired => {}
                Step::Idle => break,
            }
        }
    }

    pub fn run_for(&self, duration: Duration) {
        self.run_until(self.now() + duration);
    }
}

enum Step {
    Poll(TaskId),
    Fired,
    Idle,
}

/// Marks the simulation as running, and names the seed if what runs panics.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        if std::thread::panicking() {
            eprintln!("simulation: seed {}, at {:?}", self.0.seed, Duration::from_nanos(self.0.now_nanos()));
        }
    }
}

impl Inner {
    pub fn now_nanos(&self) -> u64 {
        self.now_nanos.get()
    }

    /// Adds to the trace.
    pub fn record(&self, words: &[u64]) {
        self.digest.set(words.iter().fold(self.digest.get(), |digest, word| generator::mix(digest ^ *word)));
    }

    pub fn process_index(&self, name: &str) -> ProcessIndex {
        if let Some(index) = self.names.borrow().get(name) {
            return *index;
        }
        let mut processes = self.processes.borrow_mut();
        let index = processes.len();
        processes.push(ProcessState {
            name: name.into(),
            life: 0,
            paused: false,
            random: Generator::new(self.seed, &format!("process {name} life 0")),
            clock: ProcessClock::new(&mut Generator::new(self.seed, &format!("boot time of {name}"))),
            parked: Vec::new(),
        });
        self.names.borrow_mut().insert(name.into(), index);
        index
    }

    pub fn is_alive(&self, life: Life) -> bool {
        self.processes.borrow()[life.process].life == life.number
    }

    fn enter(&self) -> Running<'_> {
        assert!(!self.running.replace(true), "the simulation is already running: block_on inside block_on");
        Running(self)
    }

    fn check_time_limit(&self) {
        let now = Duration::from_nanos(self.now_nanos());
        assert!(now < self.time_limit.get(), "seed {}: hung: not done after {now:?} of virtual time", self.seed);
    }

    /// What happens next: a due timer, else one of the runnable tasks at random, else the next timer.
    fn next_step(&self) -> Step {
        if self.fire_timer(self.now_nanos()) {
            return Step::Fired;
        }
        if let Some(task) = self.pick_task() {
            return Step::Poll(task);
        }
        if self.fire_timer(u64::MAX) { Step::Fired } else { Step::Idle }
    }

    /// Takes one runnable task; parks those of paused processes.
    fn pick_task(&self) -> Option<TaskId> {
        let mut tasks = self.tasks.borrow_mut();
        let mut processes = self.processes.borrow_mut();
        tasks.collect_woken();
        while tasks.runnable_count() > 0 {
            let index = self.scheduler.borrow_mut().below(tasks.runnable_count() as u64);
            let task = tasks.take_runnable(index as usize);
            match tasks.process_of(task) {
                _ if task == TaskId::ROOT => return Some(task),
                None => {}
                Some(process) if processes[process].paused => processes[process].parked.push(task),
                Some(_) => return Some(task),
            }
        }
        None
    }

    fn before_poll(&self, task: TaskId) {
        let cost = self.scheduler.borrow_mut().below(POLL_NANOS_MAX);
        self.now_nanos.set(self.now_nanos() + cost);
        self.record(&[0x01, task.0, self.now_nanos()]);
    }

    fn poll_task(&self, task: TaskId) {
        if task == TaskId::ROOT {
            return;
        }
        let Some((life, mut future, waker)) = self.tasks.borrow_mut().begin_poll(task) else { return };
        self.before_poll(task);
        let done = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        // Killed by itself: the future ends here, outside of every borrow.
        if !done && self.is_alive(life) {
            self.tasks.borrow_mut().end_poll(task, future);
        } else {
            self.tasks.borrow_mut().remove(task);
            drop(future);
        }
    }

    /// Lets the earliest timer due by `until` happen; time moves to it.
    fn fire_timer(&self, until: u64) -> bool {
        let Some((at, number, event)) = self.timers.borrow_mut().pop_due(until) else { return false };
        self.now_nanos.set(self.now_nanos().max(at));
        self.record(&[0x02, number, self.now_nanos()]);
        match event {
            Event::Sleep(sleep) => self.sleep_due(&sleep),
            Event::Net(event) => self.net_event(event),
        }
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Tasks hold worlds; their destructors may look for the simulator and find it gone.
        let tasks = self.tasks.get_mut().take_all();
        drop(tasks);
    }
}

/// Virtual nanoseconds, saturating: 584 years are enough.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
