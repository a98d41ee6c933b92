//! A process, and the world it sees.

use super::{Generator, Inner, Life, ProcessIndex, Sim, net};
use drover_base::{
    Instant, LocalFuture, World,
    world::{Clock, Connection, Listener, Net, Random, Spawn, Timer},
};
use futures::channel::oneshot;
use std::{
    future::Future,
    io,
    rc::{Rc, Weak},
    time::Duration,
};

/// A simulated process (and the machine it runs on: its clock outlives its deaths). Clones are handles.
#[derive(Clone)]
pub struct Process {
    pub(crate) sim: Sim,
    pub(crate) index: ProcessIndex,
}

/// The process was killed before the work was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed;

/// A wall clock's milliseconds since 1970 at uptime zero: for people, so any date will do.
const WALL_MS_AT_BOOT: u64 = 1_790_000_000_000;

/// What offloaded work takes at most, so that what waits for it meets other work.
const OFFLOAD_NANOS_MAX: u64 = 200_000;

impl Process {
    pub fn name(&self) -> String {
        self.sim.0.processes.borrow()[self.index].name.clone()
    }

    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    fn life(&self) -> Life {
        Life { process: self.index, number: self.sim.0.processes.borrow()[self.index].life }
    }

    /// The world of its present life. After a kill the world that was handed out before is dead: what it
    /// spawns is dropped, its sockets fail.
    pub fn world(&self) -> World {
        let world = Rc::new(SimWorld { sim: Rc::downgrade(&self.sim.0), life: self.life() });
        World { clock: world.clone(), timer: world.clone(), random: world.clone(), net: world.clone(), spawn: world }
    }

    /// Runs `future` as a task of the process's present life.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.sim.0.spawn(self.life(), Box::pin(future));
    }

    /// Runs `future` as a task of the process; its output, or [`Killed`].
    pub fn run<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
    ) -> impl Future<Output = Result<T, Killed>> + 'static {
        let (sender, receiver) = oneshot::channel();
        self.spawn(async move {
            // Nobody may be waiting any more.
            let _ = sender.send(future.await);
        });
        async move { receiver.await.map_err(|_| Killed) }
    }

    /// See [`Sim::kill`]. A paused process that is killed is no longer paused.
    pub fn kill(&self) {
        let inner = &self.sim.0;
        let life = self.life();
        inner.record(&[0x20, self.index as u64]);
        {
            let process = &mut inner.processes.borrow_mut()[self.index];
            process.life += 1;
            process.paused = false;
            process.parked.clear();
            let purpose = format!("process {} life {}", process.name, process.life);
            process.random = Generator::new(inner.seed, &purpose);
        }
        inner.net_kill(life);
        // Destructors of the tasks may call into the simulator: nothing is borrowed here.
        let tasks = inner.tasks.borrow_mut().take_process(self.index);
        drop(tasks);
    }

    /// See [`Sim::pause`].
    pub fn pause(&self) {
        self.sim.0.record(&[0x21, self.index as u64]);
        self.sim.0.processes.borrow_mut()[self.index].paused = true;
    }

    pub fn resume(&self) {
        let inner = &self.sim.0;
        inner.record(&[0x22, self.index as u64]);
        let process = &mut inner.processes.borrow_mut()[self.index];
        process.paused = false;
        inner.tasks.borrow_mut().make_runnable(std::mem::take(&mut process.parked));
    }

    pub fn is_paused(&self) -> bool {
        self.sim.0.processes.borrow()[self.index].paused
    }

    /// Lets the process's clock run `ppm` millionths faster (negative: slower) from now on.
    pub fn set_clock_drift(&self, ppm: i64) {
        self.change_clock(|clock, now| clock.set_drift(now, ppm));
    }

    /// Stops the process's clock, or lets it go on from where it stopped.
    pub fn stop_clock(&self, stopped: bool) {
        self.change_clock(|clock, now| clock.set_stopped(now, stopped));
    }

    /// Moves the process's clock, back with a negative number.
    pub fn jump_clock(&self, by_nanos: i64) {
        self.change_clock(|clock, now| clock.jump(now, by_nanos));
    }

    fn change_clock(&self, change: impl FnOnce(&mut super::ProcessClock, u64)) {
        let inner = &self.sim.0;
        inner.record(&[0x23, self.index as u64]);
        change(&mut inner.processes.borrow_mut()[self.index].clock, inner.now_nanos());
        inner.clock_changed(self.index);
    }
}

impl Inner {
    pub fn spawn(&self, life: Life, future: LocalFuture<'static, ()>) {
        if self.is_alive(life) {
            self.tasks.borrow_mut().add(life, future);
        } else {
            drop(future);
        }
    }
}

/// The world as one life of a process sees it.
struct SimWorld {
    sim: Weak<Inner>,
    life: Life,
}

impl Clock for SimWorld {
    fn now(&self) -> Instant {
        let Some(sim) = self.sim.upgrade() else { return Instant(0) };
        Instant(sim.processes.borrow()[self.life.process].clock.read(sim.now_nanos()))
    }
    fn wall_ms(&self) -> u64 {
        WALL_MS_AT_BOOT + self.now().0 / 1_000_000
    }
}

impl Timer for SimWorld {
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<'static, ()> {
        match self.sim.upgrade() {
            Some(sim) => Box::pin(sim.sleep_by_clock(self.life.process, deadline.0)),
            None => Box::pin(std::future::pending()),
        }
    }
}

impl Random for SimWorld {
    fn next_u64(&self) -> u64 {
        self.sim.upgrade().map_or(0, |sim| sim.processes.borrow_mut()[self.life.process].random.next_u64())
    }
}

impl Spawn for SimWorld {
    fn spawn(&self, future: LocalFuture<'static, ()>) {
        if let Some(sim) = self.sim.upgrade() {
            sim.spawn(self.life, future);
        }
    }
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture<'static, ()> {
        let took = self.next_u64() % OFFLOAD_NANOS_MAX;
        let done = self.sleep_until(self.now() + Duration::from_nanos(took));
        Box::pin(async move {
            work();
            done.await;
        })
    }
}

impl Net for SimWorld {
    fn connect(&self, address: &str) -> LocalFuture<'static, io::Result<Connection>> {
        Box::pin(net::connect(self.sim.clone(), self.life, address.into()))
    }
    fn listen(&self, address: &str) -> LocalFuture<'static, io::Result<Box<dyn Listener>>> {
        let listening = net::listen(&self.sim, self.life, address);
        Box::pin(async move { listening })
    }
}
