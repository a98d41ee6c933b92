//! Requests that are carried out once, however often they are sent.

use crate::Control;
use crate::config::{REMEMBERED_MAX, REMEMBERED_MS};
use crate::table::{Changes, Remembered, State};
use drover_base::{OperationId, VolumeId};
use drover_types::record::{IdempotencyRecord, PendingOperation};
use drover_types::{ApiError, ErrorCode};
use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

/// Longest key.
pub const KEY_MAX: usize = 255;

/// A request with the key under which its sender knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    pub key: String,
    /// What is asked: the same key with another one is a mistake.
    pub fingerprint: String,
}

/// Keys whose requests are being carried out.
pub type UnderWay = Rc<RefCell<BTreeSet<String>>>;

/// Holds a key while its request is carried out.
pub struct Holding {
    once: Option<Once>,
    /// What an earlier attempt asked of a node, if it came to no known end.
    pending: Option<PendingOperation>,
    under_way: UnderWay,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(once) = &self.once {
            self.under_way.borrow_mut().remove(&once.key);
        }
    }
}

/// What became of the key before.
pub enum Attempt {
    /// Nothing, or nothing that is known: carry the request out.
    First(Holding),
    /// It was carried out and made this.
    Repeated(String),
}

impl Control {
    /// To be called before a request is carried out.
    pub(crate) fn attempt(&self, once: Option<Once>) -> Result<Attempt, ApiError> {
        let Some(once) = once else {
            return Ok(Attempt::First(Holding { once: None, pending: None, under_way: self.under_way.clone() }));
        };
        if once.key.is_empty() || once.key.len() > KEY_MAX || !once.key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = format!("an Idempotency-Key is 1 to {KEY_MAX} printable characters without spaces");
            return Err(ApiError::invalid("Idempotency-Key", message));
        }
        let state = self.ledger.state();
        let mut pending = None;
        if let Some(kept) = state.remembered.get(&once.key)
            && kept.record.request.expires_ms > self.world.clock.wall_ms()
        {
            if kept.record.request.fingerprint != once.fingerprint {
                let message = "this Idempotency-Key came with another request before";
                return Err(
                    ApiError::new(ErrorCode::IdempotencyConflict, message).hint("use a new key for a new request")
                );
            }
            pending = kept.record.request.pending;
            if pending.is_none() {
                return Ok(Attempt::Repeated(kept.record.request.made.clone()));
            }
        }
        if !self.under_way.borrow_mut().insert(once.key.clone()) {
            let message = "a request with this Idempotency-Key is being carried out";
            return Err(ApiError::new(ErrorCode::IdempotencyInProgress, message).hint("ask again in a moment"));
        }
        Ok(Attempt::First(Holding { once: Some(once), pending, under_way: self.under_way.clone() }))
    }

    /// The id under which a node is asked for a change of the volume: an earlier attempt's, else a new one, recorded with
    /// the key before the node is asked. Whatever becomes of the answer, the node does it once.
    pub(crate) async fn operation(&self, holding: &Holding, volume: VolumeId) -> Result<OperationId, ApiError> {
        let epoch = self.ledger.state().epoch(volume);
        if let Some(pending) = holding.pending {
            if pending.epoch == epoch {
                return Ok(pending.operation);
            }
            let message = "the volume has moved since this Idempotency-Key came first";
            return Err(ApiError::new(ErrorCode::IdempotencyConflict, message)
                .cause("whether it was carried out then is unknown, and where the volume is now it cannot be known")
                .hint("look at the volume; if it is still wanted, ask under a new key"));
        }
        let operation = OperationId(self.world.random.next_u64());
        let pending = PendingOperation { operation, epoch };
        self.ledger
            .commit(|state, changes| {
                holding.keep(state, changes, "", Some(pending));
                Ok::<_, ApiError>(())
            })
            .await?;
        Ok(operation)
    }
}

impl Holding {
    pub fn key(&self) -> Option<&str> {
        self.once.as_ref().map(|once| once.key.as_str())
    }

    /// Remembers what the request made, in the step that makes it; forgets what expired or is too many.
    pub fn remember(&self, state: &State, changes: &mut Changes, made: &str) {
        self.keep(state, changes, made, None);
    }

    fn keep(&self, state: &State, changes: &mut Changes, made: &str, pending: Option<PendingOperation>) {
        let Some(once) = &self.once else { return };
        let now = changes.wall_ms();
        let request = IdempotencyRecord {
            fingerprint: once.fingerprint.clone(),
            expires_ms: now.saturating_add(REMEMBERED_MS),
            made: made.into(),
            pending,
        };
        let mut others: Vec<(u64, &String)> = state
            .remembered
            .values()
            .filter(|kept| kept.record.key != once.key)
            .map(|kept| (kept.record.request.expires_ms, &kept.record.key))
            .collect();
        others.sort();
        let excess = (others.len() + 1).saturating_sub(REMEMBERED_MAX);
        for (index, (expires_ms, key)) in others.into_iter().enumerate() {
            if index < excess || expires_ms <= now {
                changes.delete::<Remembered>(key.clone());
            }
        }
        changes.put(Remembered { key: once.key.clone(), request });
    }
}
