//! The connections of other nodes to one volume, and what is still under way for each.
//!
//! Invariants
//! - Of a session one connection is current; an older one is fenced (nothing of it is applied any more) and drained
//!   (nothing of it is still being applied) before the first request of a newer one is served.
//! - All mirrors of a volume are one session: only one sender's stream is ever applied.

use drover_base::planted::{Bug, is_planted};
use drover_base::{IoError, LocalFuture, SessionId, world::MessageSender};
use drover_store::Fence;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use tokio::sync::Notify;

/// Sessions that a volume serves at once.
const SESSIONS_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SessionKey {
    Gateway(SessionId),
    Mirror,
}

/// One connection of a session.
pub(crate) struct Attended {
    open: Cell<bool>,
    running: Cell<usize>,
    /// It was closed, or nothing is running any more.
    changed: Notify,
    sender: Rc<dyn MessageSender>,
}

/// A request under way.
pub(crate) struct Running(Rc<Attended>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.changed.notify_waiters();
        }
    }
}

impl Attended {
    fn new(sender: Rc<dyn MessageSender>) -> Rc<Self> {
        Rc::new(Self { open: Cell::new(true), running: Cell::new(0), changed: Notify::new(), sender })
    }

    pub fn is_open(&self) -> bool {
        self.open.get()
    }

    pub fn begin(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(self.clone())
    }

    /// Nothing more of it is applied; what is being applied goes on.
    pub fn close(&self) {
        if self.open.replace(false) {
            self.sender.close();
            self.changed.notify_waiters();
        }
    }

    /// Completes when it is closed.
    pub async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.open.get() {
                return;
            }
            changed.await;
        }
    }

    /// Completes when nothing of it is being applied any more.
    pub async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.running.get() == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[derive(Default)]
pub(crate) struct Sessions(RefCell<BTreeMap<SessionKey, Rc<Attended>>>);

impl Sessions {
    /// Makes a new connection the session's current one; the older one is fenced and drained first. `None`: a still
    /// newer one came meanwhile, or there are too many sessions.
    pub async fn enter(&self, key: SessionKey, sender: Rc<dyn MessageSender>) -> Option<Rc<Attended>> {
        let connection = Attended::new(sender);
        // While it waits it counts as running, so that a still newer connection waits for the older one, too.
        let entering = connection.begin();
        let older = {
            let mut current = self.0.borrow_mut();
            if current.len() >= SESSIONS_MAX && !current.contains_key(&key) {
                return None;
            }
            current.insert(key, connection.clone())
        };
        if let Some(older) = older
            && !is_planted(Bug::SessionNotFenced)
        {
            older.close();
            older.drained().await;
        }
        drop(entering);
        connection.is_open().then_some(connection)
    }

    /// The connection has ended; when all of it has, the session is forgotten unless it has a newer one.
    pub async fn leave(&self, key: SessionKey, connection: &Rc<Attended>) {
        connection.close();
        connection.drained().await;
        let mut current = self.0.borrow_mut();
        if current.get(&key).is_some_and(|newest| Rc::ptr_eq(newest, connection)) {
            current.remove(&key);
        }
    }

    /// Fences every connection of these sessions.
    pub fn close(&self, which: impl Fn(SessionKey) -> bool) {
        for connection in self.of(which) {
            connection.close();
        }
    }

    /// Completes when nothing of these sessions' connections is being applied any more.
    pub async fn drained(&self, which: impl Fn(SessionKey) -> bool) {
        for connection in self.of(which) {
            connection.drained().await;
        }
    }

    fn of(&self, which: impl Fn(SessionKey) -> bool) -> Vec<Rc<Attended>> {
        let current = self.0.borrow();
        current.iter().filter(|(key, _)| which(**key)).map(|(_, connection)| connection.clone()).collect()
    }
}

/// A request's permission: its connection is the session's current one, and the volume's fence allows it.
pub(crate) struct SessionFence<F: ?Sized> {
    pub connection: Rc<Attended>,
    pub inner: Rc<F>,
}

impl<F: Fence + ?Sized> Fence for SessionFence<F> {
    fn check(&self) -> Result<(), IoError> {
        if !self.connection.is_open() && !is_planted(Bug::SessionNotFenced) {
            return Err(IoError::Disconnected);
        }
        self.inner.check()
    }

    fn gone(&self) -> LocalFuture<'_, ()> {
        Box::pin(self.connection.closed())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use drover_base::world::Message;
    use futures::FutureExt;
    use std::io;

    struct Nowhere;

    impl MessageSender for Nowhere {
        fn send(&self, _message: Message) -> LocalFuture<'static, io::Result<()>> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn close(&self) {}
    }

    const KEY: SessionKey = SessionKey::Gateway(SessionId(7));

    fn enter(sessions: &Sessions) -> Option<Rc<Attended>> {
        sessions.enter(KEY, Rc::new(Nowhere)).now_or_never().flatten()
    }

    #[test]
    pub fn a_newer_connection_waits_for_the_older_one_s_requests() {
        let sessions = Sessions::default();
        let old = enter(&sessions).unwrap();
        let running = old.begin();
        let fence = SessionFence { connection: old.clone(), inner: Rc::new(drover_store::Unfenced) };
        assert_eq!(fence.check(), Ok(()));
        let mut entering = Box::pin(sessions.enter(KEY, Rc::new(Nowhere)));
        assert!(entering.as_mut().now_or_never().is_none());
        assert_eq!(fence.check(), Err(IoError::Disconnected));
        // A third one must wait for the first, too, though the second never served anything.
        let mut third = Box::pin(sessions.enter(KEY, Rc::new(Nowhere)));
        assert!(third.as_mut().now_or_never().is_none());
        drop(running);
        assert!(entering.as_mut().now_or_never().unwrap().is_none(), "a newer one has come");
        assert!(third.as_mut().now_or_never().unwrap().is_some());
    }

    #[test]
    fn other_sessions_do_not_wait() {
        let sessions = Sessions::default();
        let old = enter(&sessions).unwrap();
        let _running = old.begin();
        let other = sessions.enter(SessionKey::Mirror, Rc::new(Nowhere)).now_or_never();
        assert!(other.flatten().is_some());
        assert!(old.is_open());
    }

    #[test]
    fn sessions_that_ended_are_forgotten() {
        let sessions = Sessions::default();
        let connection = enter(&sessions).unwrap();
        sessions.leave(KEY, &connection).now_or_never().unwrap();
        assert!(sessions.0.borrow().is_empty());
    }
}
