//! The event log, once or as it grows.

use super::{migrate, volumes};
use crate::arguments::Events;
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::output::Output;
use drover_base::{MigrationId, VolumeId};
use drover_types::{Event, Severity};
use std::time::Duration;

/// Largest event that is read: the log's texts are one line each.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Pause before a broken stream is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub async fn run(client: &Client, output: Output, events: &Events) -> Result<(), Failure> {
    let volume = match &events.volume {
        // An id is taken as it is: events of a volume that was deleted are still there.
        Some(id) if id.parse::<VolumeId>().is_ok() => Some(id.clone()),
        Some(name) => Some(volumes::get(client, name).await?.id),
        None => None,
    };
    let migration = match &events.migration {
        Some(id) if id.parse::<MigrationId>().is_ok() => Some(id.clone()),
        Some(volume) => Some(migrate::get(client, volume).await?.id),
        None => None,
    };
    let wanted = Wanted { volume, migration };
    if !events.follow {
        let after = events.after.map(|after| after.to_string());
        for event in client.list_after::<Event>(&wanted.path(), after).await? {
            output.show_line(&event, show)?;
        }
        return Ok(());
    }
    let mut last = events.after;
    let mut is_first = true;
    loop {
        match follow(client, output, &wanted, &mut last).await {
            // The stream ended or broke; events are numbered, so it goes on where it stopped.
            Ok(()) => output.say("the stream ended; connecting again"),
            Err(failure) if is_first => return Err(failure),
            Err(failure) => output.say(&format!("{}; connecting again", failure.message)),
        }
        is_first = false;
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Which events to show, by ids.
struct Wanted {
    volume: Option<String>,
    migration: Option<String>,
}

impl Wanted {
    fn path(&self) -> String {
        let pairs = [("volume", &self.volume), ("migration", &self.migration)];
        let given = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", escape(value.as_ref()?))));
        let given: Vec<String> = given.collect();
        if given.is_empty() { "/v1/events".into() } else { format!("/v1/events?{}", given.join("&")) }
    }

    fn has(&self, event: &Event) -> bool {
        (self.migration.is_none() || self.migration == event.migration)
            && (self.volume.is_none() || self.volume == event.volume)
    }
}

async fn follow(client: &Client, output: Output, wanted: &Wanted, last: &mut Option<u64>) -> Result<(), Failure> {
    let mut response = client.stream("/v1/events/stream", *last).await?;
    let mut parser = Parser::default();
    while let Ok(Some(chunk)) = response.chunk().await {
        for data in parser.feed(&chunk)? {
            let Ok(event) = serde_json::from_str::<Event>(&data) else { continue };
            *last = Some(event.id);
            if wanted.has(&event) {
                output.show_line(&event, show)?;
            }
        }
    }
    Ok(())
}

/// Cuts a stream of server-sent events into their data.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
    data: Vec<String>,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, Failure> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() && !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data).join("\n"));
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).into());
            }
        }
        if self.buffer.len() > EVENT_BYTES_MAX || self.data.len() > EVENT_BYTES_MAX {
            return Err(Failure::failed("the stream of events has one without an end"));
        }
        Ok(events)
    }
}

pub fn show(event: &Event) -> String {
    let severity = match event.severity {
        Severity::Info => "",
        Severity::Warning => "warning: ",
        Severity::Error => "ERROR: ",
    };
    format!("{}  {:<27} {severity}{}", drover_types::utc(event.at_ms), event.kind, event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_from_the_stream_wherever_it_is_torn() {
        let stream = b"id: 1\ndata: one\n\n: keep-alive\n\ndata: two\r\ndata:more\r\n\r\ndata: unfinished\n";
        for cut in 1..stream.len() {
            let mut parser = Parser::default();
            let mut events = parser.feed(&stream[..cut]).unwrap();
            events.extend(parser.feed(&stream[cut..]).unwrap());
            assert_eq!(events, ["one", "two\nmore"], "torn at {cut}");
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = Parser::default();
        let result = (0..20).try_for_each(|_| parser.feed(&[b'x'; 100_000]).map(drop));
        assert!(result.is_err());
    }
}
