//! Hears from the nodes themselves, at that very moment, when a holder gives up what a gateway's clients were
//! acknowledged: from then on those writes are uncertain.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

/// Nodes whose clients' unflushed writes were given up, since last asked.
#[derive(Clone, Default)]
pub struct Losses(Arc<Mutex<Vec<String>>>);

impl Losses {
    /// Listens on this thread until the result is dropped.
    pub fn listen(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(self.clone())
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

#[derive(Default)]
struct Told {
    is_loss: bool,
    text: String,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "kind" => self.is_loss = format!("{value:?}").contains("writes_lost"),
            "message" => self.text = format!("{value:?}"),
            _ => {}
        }
    }
}

impl Subscriber for Losses {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "drover::event"
    }

    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        if let Some((node, _)) = told.text.split_once(" stayed away").filter(|_| told.is_loss) {
            self.0.lock().expect("nobody panics with it").push(node.into());
        }
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}
