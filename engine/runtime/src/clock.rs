//! Time: `CLOCK_BOOTTIME` for leases, since it counts suspends and no administrator sets it.

#![allow(unsafe_code)] // std has no CLOCK_BOOTTIME.

use drover_base::world::{Clock, Timer};
use drover_base::{Instant, LocalFuture};
use std::time::{Duration, SystemTime};

/// Longest single wait. tokio's timers stand still while the machine is suspended, so a long wait looks at the
/// clock again at least this often.
const NAP: Duration = Duration::from_secs(1);

pub(crate) fn now() -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec that the call fills.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(status, 0, "every Linux since 2.6.39 has CLOCK_BOOTTIME");
    Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

pub(crate) struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Instant {
        now()
    }

    fn wall_ms(&self) -> u64 {
        // A clock before 1970 is shown as 1970; only people read it.
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}

pub(crate) struct TokioTimer;

impl Timer for TokioTimer {
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let left = deadline.since(now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(NAP)).await;
            }
        })
    }
}
