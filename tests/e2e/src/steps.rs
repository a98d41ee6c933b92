//! The steps of a migration as `drover-stepped-control` persists them: watched, and held where a test wants to act.
//!
//! Invariants: a step that is not the next of those wanted passes at once; one that is stands, on the control plane's
//! side before or after it is durable, until it is let go.

use std::{
    collections::VecDeque,
    fmt,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is not stored.
    Before,
    /// It is durable; nothing was done about it yet.
    After,
}

/// A moment of a step: `tracking`, `flipped`, `cleaned_up node-1 end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    pub moment: Moment,
    pub step: String,
}

impl At {
    pub fn before(step: &str) -> Self {
        Self { moment: Moment::Before, step: step.into() }
    }
    pub fn after(step: &str) -> Self {
        Self { moment: Moment::After, step: step.into() }
    }

    fn is_cleanup(&self) -> bool {
        self.step.starts_with("cleaned_up ")
    }

    /// The line without the migration's id.
    fn parse(line: &str) -> Self {
        let mut words = line.trim_end().splitn(3, ' ');
        let moment = match words.next() {
            Some("before") => Moment::Before,
            Some("after") => Moment::After,
            _ => panic!("not a step: {line:?}"),
        };
        Self { moment, step: words.nth(1).unwrap_or_else(|| panic!("not a step: {line:?}")).into() }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self.moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        write!(f, "{moment} {}", self.step)
    }
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<VecDeque<At>>,
    seen: Mutex<Vec<String>>,
    ends: AtomicBool,
}

/// The harness's side; for one cluster.
pub struct Steps {
    shared: Arc<Shared>,
    socket: PathBuf,
    held: mpsc::Receiver<At>,
    go: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Steps {
    /// Listens; to be called before the control plane starts.
    pub fn listen(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("the socket's place is free");
        let shared = Arc::<Shared>::default();
        let (holding, held) = mpsc::channel();
        let (go, going) = mpsc::channel();
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                // One after the other: each start of the control plane connects anew.
                for stream in listener.incoming() {
                    if shared.ends.load(Relaxed) {
                        return;
                    }
                    serve(&shared, stream.expect("it connects"), &holding, &going);
                }
            }
        });
        Self { shared, socket: socket.into(), held, go, thread: Some(thread) }
    }

    /// These are to be held, one after the other, each when it comes for the first time after the one before; those of a
    /// clean-up that follow each other in any order.
    pub fn want(&self, steps: impl IntoIterator<Item = At>) {
        *self.shared.wanted.lock().expect("no thread panics") = steps.into_iter().collect();
        self.shared.seen.lock().expect("no thread panics").clear();
    }

    /// Waits until the next of those wanted is held; it stands until `release`.
    pub fn wait_held(&self, within: Duration) -> At {
        self.held.recv_timeout(within).unwrap_or_else(|_| {
            let wanted = self.shared.wanted.lock().expect("no thread panics").front().cloned();
            panic!("{wanted:?} was not observed; these were: {:#?}", self.seen())
        })
    }

    /// Lets it go on; whether somebody is still there does not matter.
    pub fn release(&self) {
        self.go.send(()).expect("the thread runs");
    }

    /// Every step since `want`.
    pub fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().expect("no thread panics").clone()
    }
}

fn serve(shared: &Shared, stream: UnixStream, holding: &mpsc::Sender<At>, going: &mpsc::Receiver<()>) {
    let Ok(mut answers) = stream.try_clone() else { return };
    // An error: it was killed.
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let at = At::parse(&line);
        let is_wanted = {
            let mut wanted = shared.wanted.lock().expect("no thread panics");
            // The nodes are told at once that it is over: their answers come in any order.
            let any_order = wanted.iter().take_while(|at| at.is_cleanup()).count();
            let place = wanted.iter().take(any_order.max(1)).position(|wanted| *wanted == at);
            place.and_then(|place| wanted.remove(place)).is_some()
        };
        shared.seen.lock().expect("no thread panics").push(line);
        // Whoever waits may have given up.
        if is_wanted && (holding.send(at).is_err() || going.recv().is_err()) {
            return;
        }
        if answers.write_all(b"go\n").is_err() {
            return;
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        // Whatever is held goes on; then the thread sees that it is over.
        let (closed, _) = mpsc::channel();
        self.go = closed;
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            let _ = thread.join();
        }
    }
}
