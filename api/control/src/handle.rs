//! The control plane from another thread.

use crate::Control;
use drover_base::LocalFuture;
use drover_types::{ApiError, ErrorCode};
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot, watch};

/// Commands that may wait for the control plane's thread; further callers wait for a place.
const QUEUE_MAX: usize = 1_024;

type Job = Box<dyn FnOnce(Rc<Control>) -> LocalFuture<'static, ()> + Send>;

/// Sends commands to the control plane's thread. Clones are handles to the same.
#[derive(Clone)]
pub struct ControlHandle {
    jobs: mpsc::Sender<Job>,
    last_event: watch::Receiver<u64>,
}

impl Control {
    /// Takes commands from handles from now on.
    pub fn handle(self: &Rc<Self>) -> ControlHandle {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_MAX);
        let this = self.clone();
        self.world
            .spawn(async move {
                while let Some(job) = queue.recv().await {
                    this.world.spawn(job(this.clone())).detach();
                }
            })
            .detach();
        ControlHandle { jobs, last_event: self.ledger.watch_events() }
    }
}

impl ControlHandle {
    /// Runs `command` on the control plane's thread. It runs to its end also when the caller goes away.
    pub async fn run<T, C>(&self, command: C) -> Result<T, ApiError>
    where
        T: Send + 'static,
        C: FnOnce(Rc<Control>) -> LocalFuture<'static, Result<T, ApiError>> + Send + 'static,
    {
        let stopped = || ApiError::new(ErrorCode::Unavailable, "the control plane is stopping");
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |control| {
            Box::pin(async move {
                // The caller may have gone.
                let _ = sender.send(command(control).await);
            })
        });
        self.jobs.send(job).await.map_err(|_| stopped())?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Tells of the last event's id, and wakes with each new one.
    pub fn last_event(&self) -> watch::Receiver<u64> {
        self.last_event.clone()
    }
}
