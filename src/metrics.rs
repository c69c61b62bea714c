//! What is counted, and how a monitoring system reads it: the Prometheus text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

/// The counters of the process. One thread counts, so they are plain numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    /// WebSocket connections now.
    pub connections: usize,
    /// Connections with an id now.
    pub peers: usize,
    /// Rooms that somebody is in now.
    pub rooms: usize,
    /// WebSocket connections opened since the start.
    pub connections_total: u64,
    /// Well-formed messages, by `type`.
    pub messages: BTreeMap<&'static str, u64>,
    /// Refused messages, by `code`.
    pub errors: BTreeMap<&'static str, u64>,
    /// Ended WebSocket connections, by reason.
    pub closings: BTreeMap<&'static str, u64>,
    /// Requests for a WebSocket that were refused, by status.
    pub refused_upgrades: BTreeMap<u16, u64>,
    /// Requests for a WebSocket whose token was not believed, by what is wrong with it.
    pub refused_tokens: BTreeMap<&'static str, u64>,
    /// Bytes read from connections.
    pub bytes_in: u64,
    /// Bytes written to connections.
    pub bytes_out: u64,
    /// Turns of the poll loop, by how long they took, waiting not counted: at most as long as the first of
    /// [`TURN_SECONDS`], and so on, or longer than the last.
    pub turns: [u64; TURN_SECONDS.len() + 1],
    /// How long all of them took.
    pub turns_took: Duration,
    /// Descriptors that the process has open now.
    pub descriptors: u64,
    /// When the process started, since 1970.
    pub started: Duration,
}

/// From a turn that nobody notices to one that everybody does.
pub const TURN_SECONDS: [f64; 4] = [0.001, 0.01, 0.1, 1.0];

impl Metrics {
    /// Counts a turn of the poll loop.
    pub fn turned(&mut self, took: Duration) {
        let bucket = TURN_SECONDS.iter().take_while(|seconds| took.as_secs_f64() > **seconds).count();
        self.turns[bucket] += 1;
        self.turns_took += took;
    }

    /// The text for `GET /metrics`.
    pub fn render(&self) -> String {
        let mut page = Page(String::with_capacity(4096));
        page.plain("connections", "gauge", "WebSocket connections now.", self.connections);
        page.plain("peers", "gauge", "Connections with an id now.", self.peers);
        page.plain("rooms", "gauge", "Rooms that somebody is in now.", self.rooms);
        page.plain("connections_total", "counter", "WebSocket connections opened.", self.connections_total);
        page.labelled("messages_total", "Well-formed messages of clients, by type.", "type", &self.messages);
        page.labelled("errors_total", "Refused messages of clients, by code.", "code", &self.errors);
        page.labelled("closings_total", "Ended WebSocket connections, by reason.", "reason", &self.closings);
        page.labelled(
            "refused_upgrades_total",
            "Requests for a WebSocket that were refused, by status.",
            "status",
            &self.refused_upgrades,
        );
        page.labelled(
            "refused_tokens_total",
            "Requests for a WebSocket whose token was not believed, by reason.",
            "reason",
            &self.refused_tokens,
        );
        page.plain("received_bytes_total", "counter", "Bytes read from connections.", self.bytes_in);
        page.plain("sent_bytes_total", "counter", "Bytes written to connections.", self.bytes_out);
        page.turns(&self.turns, self.turns_took);
        page.head("noroshi_build_info", "gauge", "Always 1; the version is in the label.");
        page.line(format_args!("noroshi_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        // The names that Prometheus' own libraries give to these.
        page.head("process_start_time_seconds", "gauge", "When the process started, since 1970.");
        page.line(format_args!("process_start_time_seconds {}", self.started.as_secs_f64()));
        page.head("process_open_fds", "gauge", "Descriptors that are open now.");
        page.line(format_args!("process_open_fds {}", self.descriptors));
        page.0
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(&format!("noroshi_{name}"), kind, help);
        self.line(format_args!("noroshi_{name} {value}"));
    }

    /// Labels are names of ours, in which nothing needs an escape.
    fn labelled<L: Display>(&mut self, name: &str, help: &str, label: &str, values: &BTreeMap<L, u64>) {
        self.head(&format!("noroshi_{name}"), "counter", help);
        for (key, value) in values {
            self.line(format_args!("noroshi_{name}{{{label}=\"{key}\"}} {value}"));
        }
    }

    fn turns(&mut self, turns: &[u64], took: Duration) {
        const NAME: &str = "noroshi_loop_turn_seconds";
        self.head(NAME, "histogram", "Turns of the poll loop, waiting not counted.");
        let mut sum = 0;
        for (bucket, count) in turns.iter().enumerate() {
            sum += count;
            let most = TURN_SECONDS.get(bucket).map_or("+Inf".to_owned(), f64::to_string);
            self.line(format_args!("{NAME}_bucket{{le=\"{most}\"}} {sum}"));
        }
        self.line(format_args!("{NAME}_sum {}\n{NAME}_count {sum}", took.as_secs_f64()));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a string takes all that is written to it");
    }
}
