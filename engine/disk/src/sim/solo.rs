//! A world of one thread with virtual time: what unit tests of storage code run in.
//!
//! Time stands still while any task can run and then jumps to the next timer, so a run depends on the seed
//! alone. There is no network.

use drover_base::{
    Instant, LocalFuture, World,
    world::{Clock, Connection, Listener, Net, Random, Spawn, Timer},
};
use futures::{
    channel::oneshot,
    executor::{LocalPool, LocalSpawner},
    task::LocalSpawnExt,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    rc::Rc,
};

struct State {
    now: Cell<Instant>,
    random: Cell<u64>,
    /// Sleepers by deadline, then by order of arrival.
    sleepers: RefCell<BTreeMap<(Instant, u64), oneshot::Sender<()>>>,
    arrivals: Cell<u64>,
    spawner: LocalSpawner,
}

/// The world and its executor.
pub struct SoloWorld {
    state: Rc<State>,
    pool: LocalPool,
}

impl SoloWorld {
    pub fn new(seed: u64) -> Self {
        let pool = LocalPool::new();
        let state = State {
            now: Cell::new(Instant(1)),
            random: Cell::new(seed),
            sleepers: RefCell::default(),
            arrivals: Cell::new(0),
            spawner: pool.spawner(),
        };
        Self { state: Rc::new(state), pool }
    }

    pub fn world(&self) -> World {
        let all = Rc::new(Solo(self.state.clone()));
        World { clock: all.clone(), timer: all.clone(), random: all.clone(), net: all.clone(), spawn: all }
    }

    /// Runs every task until `future` has ended. Panics if it waits for something that no timer will bring.
    pub fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let output = Rc::new(RefCell::new(None));
        let slot = output.clone();
        let task = async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        };
        self.state.spawner.spawn_local(task).expect("the pool lives as long as the world");
        loop {
            self.pool.run_until_stalled();
            if let Some(output) = output.borrow_mut().take() {
                return output;
            }
            let next = self.state.sleepers.borrow_mut().pop_first();
            let ((deadline, _), sleeper) = next.expect("the future waits for something that never comes");
            self.state.now.set(deadline.max(self.state.now.get()));
            // A sleeper that was dropped needs no waking.
            let _ = sleeper.send(());
        }
    }
}

struct Solo(Rc<State>);

impl Clock for Solo {
    fn now(&self) -> Instant {
        self.0.now.get()
    }
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.0.now.get().0 / 1_000_000
    }
}

impl Timer for Solo {
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<'static, ()> {
        let (sender, receiver) = oneshot::channel();
        let arrival = self.0.arrivals.replace(self.0.arrivals.get() + 1);
        self.0.sleepers.borrow_mut().insert((deadline, arrival), sender);
        Box::pin(async move {
            // The sender is dropped with the world only, and then nothing polls this.
            let _ = receiver.await;
        })
    }
}

impl Random for Solo {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next_u64(&self) -> u64 {
        let state = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Net for Solo {
    fn connect(&self, _address: &str) -> LocalFuture<'static, io::Result<Connection>> {
        Box::pin(async { Err(io::ErrorKind::NetworkUnreachable.into()) })
    }
    fn listen(&self, _address: &str) -> LocalFuture<'static, io::Result<Box<dyn Listener>>> {
        Box::pin(async { Err(io::ErrorKind::AddrNotAvailable.into()) })
    }
}

impl Spawn for Solo {
    fn spawn(&self, future: LocalFuture<'static, ()>) {
        self.0.spawner.spawn_local(future).expect("the pool lives as long as the world");
    }
    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture<'static, ()> {
        Box::pin(async move { work() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_jumps_to_the_next_timer() {
        let mut solo = SoloWorld::new(1);
        let world = solo.world();
        let order = solo.run(async move {
            let order = Rc::new(RefCell::new(Vec::new()));
            for seconds in [3u64, 1, 2] {
                let (inner, order) = (world.clone(), order.clone());
                let task = async move {
                    inner.sleep(Duration::from_secs(seconds)).await;
                    order.borrow_mut().push(seconds);
                };
                world.spawn(task).detach();
            }
            world.sleep(Duration::from_secs(3600)).await;
            order.take()
        });
        assert_eq!(order, [1, 2, 3]);
    }

    #[test]
    #[should_panic(expected = "never comes")]
    fn a_deadlock_is_told() {
        SoloWorld::new(1).run(std::future::pending::<()>());
    }
}
