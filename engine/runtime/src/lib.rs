//! The production world: time, chance, network and tasks of `drover_base::world` over the kernel and tokio.
//!
//! Everything here runs inside a current-thread tokio runtime with a `LocalSet`: a plain one for the control plane
//! ([`block_on`]), that of tokio-uring for a storage node. No code outside the daemons and tests uses this crate.

mod clock;
mod connection;
pub mod framing;
mod net;
mod random;
mod tasks;
pub mod tls;

pub use connection::{Detached, Incoming};
pub use net::{SocketListener, bind_unix};
pub use tasks::Workers;

use drover_base::World;
use std::{future::Future, io, rc::Rc, sync::Arc};
use tls::Tls;

/// The world of this thread. Long arithmetic goes to `workers`, which all threads of a process share. With `tls`, TCP is
/// encrypted and both sides show who they are.
pub fn world(workers: &Workers, tls: Option<Arc<Tls>>) -> World {
    World {
        clock: Rc::new(clock::BootClock),
        timer: Rc::new(clock::TokioTimer),
        random: Rc::new(random::KernelRandom::default()),
        net: Rc::new(net::SocketNet { tls }),
        spawn: Rc::new(tasks::LocalSpawn::new(workers)),
    }
}

/// Runs `future` and the tasks it spawns on this thread until it completes; tasks still running are then dropped.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}

#[cfg(test)]
mod tests;
