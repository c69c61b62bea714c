//! What is counted, and how a monitoring system reads it: the Prometheus text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

/// The counters of the process. One thread counts, so they are plain numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    /// WebSocket connections now.
    pub connections: usize,
    /// WebSocket connections opened since the start.
    pub connections_total: u64,
    /// What each protocol has counted.
    pub protocols: BTreeMap<&'static str, Counts>,
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
    /// Turns of the poll loop, by how long they took, waiting not counted.
    pub turns: Histogram,
    /// Descriptors that the process has open now.
    pub descriptors: u64,
    /// When the process started, since 1970.
    pub started: Duration,
}

/// What a protocol counts.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections with an id now.
    pub peers: usize,
    /// Rooms that somebody is in now.
    pub rooms: usize,
    /// Well-formed messages since the start, by `type`.
    pub messages: Vec<(&'static str, u64)>,
    /// Refused messages, by `code`.
    pub errors: Vec<(&'static str, u64)>,
    /// Offers that were made since the start, by `outcome`, and how long it took to answer them, if it knows of any.
    pub handshakes: Option<(Vec<(&'static str, u64)>, Histogram)>,
}

impl Counts {
    /// Nothing yet, of these messages and errors.
    pub fn of(messages: &[&'static str], errors: &[&'static str]) -> Counts {
        let zeros = |names: &[&'static str]| names.iter().map(|name| (*name, 0)).collect();
        Counts { messages: zeros(messages), errors: zeros(errors), ..Counts::default() }
    }

    /// Counts a message of this name.
    pub fn message(&mut self, name: &str) {
        count(&mut self.messages, name);
    }

    /// Counts an error of this name.
    pub fn error(&mut self, name: &str) {
        count(&mut self.errors, name);
    }
}

fn count(counts: &mut [(&'static str, u64)], name: &str) {
    let count = counts.iter_mut().find(|(it, _)| *it == name);
    count.expect("it was announced, so that it is seen before it first happens").1 += 1;
}

/// From what nobody notices to what nobody waits for.
const SECONDS: [f64; 7] = [0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0];

/// How often something took at most as long as the first of some times, and so on, or longer than the last.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: [u64; SECONDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let bucket = SECONDS.iter().take_while(|seconds| took.as_secs_f64() > **seconds).count();
        self.counts[bucket] += 1;
        self.sum += took;
    }
}

impl Metrics {
    /// The text for `GET /metrics`.
    pub fn render(&self) -> String {
        let mut page = Page(String::with_capacity(4096));
        page.plain("connections", "gauge", "WebSocket connections now.", self.connections);
        page.plain("connections_total", "counter", "WebSocket connections opened.", self.connections_total);
        let protocols = || self.protocols.iter();
        let by = |label, value: &dyn Display| format!("{label}=\"{value}\"");
        let peers = protocols().map(|(protocol, counts)| (by("protocol", protocol), counts.peers as u64));
        page.labelled("peers", "gauge", "Connections with an id now.", peers);
        let rooms = protocols().map(|(protocol, counts)| (by("protocol", protocol), counts.rooms as u64));
        page.labelled("rooms", "gauge", "Rooms that somebody is in now.", rooms);
        let messages = protocols().flat_map(|(protocol, counts)| of(protocol, "type", &counts.messages));
        page.labelled("messages_total", "counter", "Well-formed messages of clients, by type.", messages);
        let errors = protocols().flat_map(|(protocol, counts)| of(protocol, "code", &counts.errors));
        page.labelled("errors_total", "counter", "Refused messages of clients, by code.", errors);
        let closings = self.closings.iter().map(|(reason, count)| (by("reason", reason), *count));
        page.labelled("closings_total", "counter", "Ended WebSocket connections, by reason.", closings);
        let upgrades = self.refused_upgrades.iter().map(|(status, count)| (by("status", status), *count));
        let help = "Requests for a WebSocket that were refused, by status.";
        page.labelled("refused_upgrades_total", "counter", help, upgrades);
        let tokens = self.refused_tokens.iter().map(|(reason, count)| (by("reason", reason), *count));
        let help = "Requests for a WebSocket whose token was not believed, by reason.";
        page.labelled("refused_tokens_total", "counter", help, tokens);
        page.plain("received_bytes_total", "counter", "Bytes read from connections.", self.bytes_in);
        page.plain("sent_bytes_total", "counter", "Bytes written to connections.", self.bytes_out);
        page.head("noroshi_loop_turn_seconds", "histogram", "Turns of the poll loop, waiting not counted.");
        page.histogram("loop_turn_seconds", None, &self.turns);
        let handshakes =
            || protocols().filter_map(|(protocol, counts)| Some((protocol, counts.handshakes.as_ref()?)));
        let help = "Offers that reached somebody or were refused, by what became of them.";
        let outcomes = handshakes().flat_map(|(protocol, (outcomes, _))| of(protocol, "outcome", outcomes));
        page.labelled("handshakes_total", "counter", help, outcomes);
        page.head("noroshi_answer_seconds", "histogram", "From an offer to its answer.");
        for (protocol, (_, answers)) in handshakes() {
            page.histogram("answer_seconds", Some(&by("protocol", protocol)), answers);
        }
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

/// Numbers of a protocol with their labels, which are names of ours, in which nothing needs an escape.
fn of(protocol: &str, label: &str, numbers: &[(&str, u64)]) -> Vec<(String, u64)> {
    let sample =
        |(name, value): &(&str, u64)| (format!("protocol=\"{protocol}\",{label}=\"{name}\""), *value);
    numbers.iter().map(sample).collect()
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

    fn labelled(&mut self, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (String, u64)>) {
        self.head(&format!("noroshi_{name}"), kind, help);
        for (labels, value) in samples {
            self.line(format_args!("noroshi_{name}{{{labels}}} {value}"));
        }
    }

    /// With these labels, if any.
    fn histogram(&mut self, name: &str, labels: Option<&str>, it: &Histogram) {
        let (all, more) = (
            labels.map_or(String::new(), |labels| format!("{{{labels}}}")),
            labels.map_or(String::new(), |labels| format!("{labels},")),
        );
        let mut sum = 0;
        for (bucket, count) in it.counts.iter().enumerate() {
            sum += count;
            let most = SECONDS.get(bucket).map_or("+Inf".to_owned(), f64::to_string);
            self.line(format_args!("noroshi_{name}_bucket{{{more}le=\"{most}\"}} {sum}"));
        }
        self.line(format_args!(
            "noroshi_{name}_sum{all} {}\nnoroshi_{name}_count{all} {sum}",
            it.sum.as_secs_f64()
        ));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a string takes all that is written to it");
    }
}
