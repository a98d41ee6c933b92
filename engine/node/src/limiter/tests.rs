use super::*;
use drover_sim::runtime::Sim;

const SECOND: Duration = Duration::from_secs(1);

fn limits(iops: Option<u64>, bytes_per_s: Option<u64>, burst_ms: u64) -> IoLimits {
    IoLimits { revision: 1, iops, bytes_per_s, burst_ms }
}

struct Bench {
    sim: Sim,
    limiter: Rc<Limiter>,
    /// Requests that passed, by client.
    passed: Rc<RefCell<BTreeMap<Client, u64>>>,
}

impl Bench {
    fn new(limits: IoLimits) -> Self {
        let sim = Sim::new(1);
        let limiter = Limiter::new(sim.process("node").world(), limits);
        Self { sim, limiter, passed: Rc::default() }
    }

    /// A client that always has so many requests under way.
    fn client(&self, client: Client, depth: usize, bytes: u64) {
        for _ in 0..depth {
            let (limiter, passed, world) =
                (self.limiter.clone(), self.passed.clone(), self.sim.process("node").world());
            self.sim.process("node").spawn(async move {
                loop {
                    limiter.admit(client, bytes).await;
                    *passed.borrow_mut().entry(client).or_default() += 1;
                    world.sleep(Duration::from_micros(100)).await;
                }
            });
        }
    }

    fn passed(&self, client: Client) -> u64 {
        self.passed.borrow().get(&client).copied().unwrap_or(0)
    }

    /// What passes in so much time.
    fn count(&self, client: Client, time: Duration) -> u64 {
        let before = self.passed(client);
        self.sim.run_for(time);
        self.passed(client) - before
    }
}

const A: Client = Client::Here(1);
const B: Client = Client::Gateway(SessionId(7));

#[track_caller]
fn near(count: u64, wanted: u64) {
    assert!(count.abs_diff(wanted) <= wanted / 100 + 1, "{count} passed instead of {wanted}");
}

#[test]
fn no_more_passes_than_the_rate_and_no_less() {
    for depth in [1, 32, 128] {
        let bench = Bench::new(limits(Some(500), None, 1_000));
        bench.client(A, depth, 4096);
        let burst = bench.count(A, Duration::from_millis(100));
        assert!(burst <= 500 + 50 + 1, "{burst}");
        bench.sim.run_for(SECOND * 5);
        near(bench.count(A, SECOND * 20), 10_000);
    }
}

#[test]
fn bytes_are_limited_whatever_the_requests_are() {
    for bytes in [4_096, 1 << 20, 32 << 20] {
        let bench = Bench::new(limits(None, Some(16 << 20), 500));
        bench.client(A, 8, bytes);
        bench.sim.run_for(SECOND * 20);
        near(bench.count(A, SECOND * 200) * bytes, 3_200 << 20);
    }
    let both = Bench::new(limits(Some(100), Some(1 << 20), 1_000));
    both.client(A, 8, 64 << 10);
    both.sim.run_for(SECOND * 5);
    near(both.count(A, SECOND * 50), 16 * 50);
}

#[test]
fn what_was_not_used_may_be_used_at_once_up_to_the_burst() {
    let bench = Bench::new(limits(Some(1_000), None, 3_000));
    bench.client(A, 64, 0);
    near(bench.count(A, SECOND), 4_000);
    near(bench.count(A, SECOND), 1_000);
    // Nothing is asked for a minute: what was saved is the burst, no more.
    let idle = Bench::new(limits(Some(1_000), None, 3_000));
    idle.sim.run_for(SECOND * 60);
    idle.client(A, 64, 0);
    near(idle.count(A, SECOND), 4_000);
}

/// How much of its half a client with few requests gets beside one with very many, in percent.
fn share_of_the_small() -> u64 {
    let bench = Bench::new(limits(Some(1_000), None, 100));
    bench.client(A, 512, 4096);
    bench.client(B, 8, 4096);
    bench.sim.run_for(SECOND * 5);
    bench.count(B, SECOND * 10) * 100 / 5_000
}

#[test]
fn who_asks_for_little_gets_its_half() {
    let share = share_of_the_small();
    assert!((98..=102).contains(&share), "{share} %");
}

#[test]
fn a_change_counts_at_once_also_for_those_that_wait() {
    let bench = Bench::new(limits(Some(1), None, 0));
    bench.client(A, 10, 0);
    bench.sim.run_for(SECOND * 10);
    bench.limiter.set(IoLimits { revision: 2, ..limits(Some(1_000), None, 0) });
    near(bench.count(A, SECOND), 1_000);
    bench.limiter.set(IoLimits { revision: 3, ..limits(None, None, 0) });
    assert!(!bench.limiter.is_on());
    assert!(bench.count(A, SECOND) > 50_000, "without limits nobody waits");
    let waited = bench.limiter.waited();
    assert!(waited.requests > 500 && waited.us > 1_000_000, "{waited:?}");
}

#[test]
fn those_that_wait_are_let_go_when_the_volume_leaves() {
    let bench = Bench::new(limits(Some(1), None, 0));
    bench.client(A, 10, 0);
    bench.sim.run_for(Duration::from_millis(100));
    let before = bench.passed(A);
    bench.limiter.let_all_go();
    bench.sim.run_for(Duration::from_micros(50));
    assert_eq!(bench.passed(A), before + 10);
}

/// Clients that were cut off while they waited took from those that stayed.
#[test]
fn who_has_gone_takes_nothing() {
    let bench = Bench::new(limits(Some(100), None, 10));
    bench.client(B, 4, 0);
    bench.sim.run_for(SECOND);
    let (limiter, world) = (bench.limiter.clone(), bench.sim.process("node").world());
    bench.sim.process("node").spawn(async move {
        let gone = (0..1_000).map(|_| world.timeout(Duration::from_millis(1), limiter.admit(A, 0)));
        futures::future::join_all(gone).await;
    });
    near(bench.count(B, SECOND * 20), 2_000);
}

#[cfg(feature = "planted")]
#[test]
fn planted_starving() {
    drover_base::planted::plant(Some(Bug::LimitStarves));
    let share = share_of_the_small();
    drover_base::planted::plant(None);
    assert!(share < 50, "{share} %: the bug is not caught");
}
