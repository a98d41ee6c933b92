//! The tasks and which of them are runnable.
//!
//! Invariants: a task is in `runnable`, in its process's parked list, or woken at most once at a time
//! (`queued`). A future is taken out while it is polled, so that it may spawn and kill.

use super::{Life, ProcessIndex};
use drover_base::LocalFuture;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskId(pub u64);

impl TaskId {
    /// The future given to `block_on`.
    pub const ROOT: TaskId = TaskId(0);
}

/// Woken tasks in the order of their wakes. The lock is never contended: wakers must be `Sync`, that is all.
type Woken = Arc<Mutex<Vec<TaskId>>>;

pub(crate) struct TaskWaker {
    task: TaskId,
    queued: AtomicBool,
    woken: Woken,
}

impl TaskWaker {
    pub fn root(woken: Woken) -> Self {
        Self { task: TaskId::ROOT, queued: AtomicBool::new(false), woken }
    }
    /// The task is about to be polled: wakes count again.
    pub fn take_up(&self) {
        self.queued.store(false, Ordering::Relaxed);
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.woken.lock().expect("no panic under this lock").push(self.task);
        }
    }
}

struct Task {
    life: Life,
    future: Option<LocalFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

pub(crate) struct Tasks {
    tasks: BTreeMap<TaskId, Task>,
    runnable: Vec<TaskId>,
    pub woken: Woken,
    next: u64,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { tasks: BTreeMap::new(), runnable: Vec::new(), woken: Woken::default(), next: TaskId::ROOT.0 + 1 }
    }
}

impl Tasks {
    pub fn add(&mut self, life: Life, future: LocalFuture<'static, ()>) {
        let id = TaskId(self.next);
        self.next += 1;
        let waker = Arc::new(TaskWaker { task: id, queued: AtomicBool::new(false), woken: self.woken.clone() });
        waker.clone().wake();
        self.tasks.insert(id, Task { life, future: Some(future), waker });
    }

    pub fn collect_woken(&mut self) {
        self.runnable.append(&mut self.woken.lock().expect("no panic under this lock"));
    }
    pub fn runnable_count(&self) -> usize {
        self.runnable.len()
    }
    pub fn take_runnable(&mut self, index: usize) -> TaskId {
        self.runnable.swap_remove(index)
    }
    pub fn make_runnable(&mut self, tasks: Vec<TaskId>) {
        self.runnable.extend(tasks);
    }
    pub fn process_of(&self, task: TaskId) -> Option<ProcessIndex> {
        self.tasks.get(&task).map(|task| task.life.process)
    }
    /// The root future is done: a wake of it that is still under way means nothing to the next one.
    pub fn forget_root(&mut self) {
        self.collect_woken();
        self.runnable.retain(|task| *task != TaskId::ROOT);
    }

    pub fn begin_poll(&mut self, id: TaskId) -> Option<(Life, LocalFuture<'static, ()>, Waker)> {
        let task = self.tasks.get_mut(&id)?;
        let future = task.future.take().expect("a task is polled once at a time");
        task.waker.take_up();
        Some((task.life, future, Waker::from(task.waker.clone())))
    }
    pub fn end_poll(&mut self, id: TaskId, future: LocalFuture<'static, ()>) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.future = Some(future);
        }
    }
    pub fn remove(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    /// Takes out the futures of a process; the caller drops them outside of every borrow.
    #[must_use]
    pub fn take_process(&mut self, process: ProcessIndex) -> Vec<LocalFuture<'static, ()>> {
        let of_process: Vec<_> =
            self.tasks.iter().filter(|(_, task)| task.life.process == process).map(|(id, _)| *id).collect();
        of_process.into_iter().filter_map(|id| self.tasks.remove(&id)?.future).collect()
    }
    #[must_use]
    pub fn take_all(&mut self) -> Vec<LocalFuture<'static, ()>> {
        std::mem::take(&mut self.tasks).into_values().filter_map(|task| task.future).collect()
    }
}
