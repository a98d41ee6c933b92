//! Tasks of this thread, and the worker pool for long arithmetic.
//!
//! The pool is bounded twice: in threads, and in jobs waiting; one more job than that waits in its caller. Its threads
//! yield to those that serve clients: where cores are scarce, hashing and compression get what I/O leaves.

#![allow(unsafe_code)] // std cannot set a thread's priority.

use drover_base::LocalFuture;
use drover_base::world::Spawn;
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::{Semaphore, oneshot};

/// Jobs that wait or run, per thread of the pool: enough that a thread never idles while a caller is woken.
const JOBS_PER_THREAD: usize = 16;

/// Niceness of the pool's threads: a tenth of the share that a shard's thread gets of a core both want.
const NICENESS: libc::c_int = 10;

struct Job {
    work: Box<dyn FnOnce() + Send>,
    done: oneshot::Sender<()>,
}

/// A pool of threads. They end when the last clone is dropped and their work is done.
#[derive(Clone)]
pub struct Workers {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

impl Workers {
    pub fn start(threads: usize) -> io::Result<Self> {
        assert!(threads > 0, "a pool without threads never does its work");
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs, room: Arc::new(Semaphore::new(threads * JOBS_PER_THREAD)) })
    }

    async fn run(self, work: Box<dyn FnOnce() + Send>) {
        let _place = self.room.acquire().await.expect("the semaphore is never closed");
        let (done, finished) = oneshot::channel();
        self.jobs.send(Job { work, done }).expect("workers live as long as the pool");
        // An error means that the work panicked; whoever waits for its result sees that.
        let _ = finished.await;
    }
}

/// Makes the calling thread yield to others of the process.
fn yield_to_others() {
    // SAFETY: the call takes no pointers; 0 is the calling thread.
    let status = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    debug_assert_eq!(status, 0, "anybody may make a thread of its own nicer");
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>) {
    yield_to_others();
    loop {
        let next = queue.lock().expect("nothing panics while it waits for a job").recv();
        let Ok(Job { work, done }) = next else { return };
        // A job that panics must not take the thread with it: its caller fails, the others go on.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // The caller may have been dropped.
        let _ = done.send(());
        // To whoever became runnable meanwhile: the kernel would let this thread run on until its slice is over, some
        // milliseconds, whatever its niceness.
        std::thread::yield_now();
    }
}

pub(crate) struct LocalSpawn {
    workers: Workers,
}

impl LocalSpawn {
    pub(crate) fn new(workers: &Workers) -> Self {
        Self { workers: workers.clone() }
    }
}

impl Spawn for LocalSpawn {
    fn spawn(&self, future: LocalFuture<'static, ()>) {
        tokio::task::spawn_local(future);
    }

    fn offload(&self, work: Box<dyn FnOnce() + Send>) -> LocalFuture<'static, ()> {
        Box::pin(self.workers.clone().run(work))
    }
}
