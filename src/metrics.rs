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
    /// Bytes read from connections.
    pub bytes_in: u64,
    /// Bytes written to connections.
    pub bytes_out: u64,
    /// Turns of the poll loop.
    pub turns: u64,
    /// The longest of them, waiting not counted.
    pub longest_turn: Duration,
}

impl Metrics {
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
        page.plain("received_bytes_total", "counter", "Bytes read from connections.", self.bytes_in);
        page.plain("sent_bytes_total", "counter", "Bytes written to connections.", self.bytes_out);
        page.plain("loop_turns_total", "counter", "Turns of the poll loop.", self.turns);
        page.plain(
            "loop_turn_seconds_max",
            "gauge",
            "The longest turn of the poll loop since the start, waiting not counted.",
            self.longest_turn.as_secs_f64(),
        );
        page.0
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP noroshi_{name} {help}"));
        self.line(format_args!("# TYPE noroshi_{name} {kind}"));
    }

    fn plain(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(format_args!("noroshi_{name} {value}"));
    }

    /// Labels are names of ours, in which nothing needs an escape.
    fn labelled<L: Display>(&mut self, name: &str, help: &str, label: &str, values: &BTreeMap<L, u64>) {
        self.head(name, "counter", help);
        for (key, value) in values {
            self.line(format_args!("noroshi_{name}{{{label}=\"{key}\"}} {value}"));
        }
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a string takes all that is written to it");
    }
}
