//! Counters, and their rendering for Prometheus (text format, version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

/// The counters of the process. Only one thread uses them, so they are plain numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    /// WebSocket connections that are open now.
    pub connections: usize,
    /// WebSocket connections opened since the start.
    pub connections_total: u64,
    /// The counters of each protocol, by name.
    pub protocols: BTreeMap<&'static str, Counts>,
    /// Ended WebSocket connections, by reason.
    pub closings: BTreeMap<&'static str, u64>,
    /// Rejected WebSocket requests, by status.
    pub refused_upgrades: BTreeMap<u16, u64>,
    /// WebSockets rejected because of their token, in their request or in a message, by reason.
    pub refused_tokens: BTreeMap<&'static str, u64>,
    /// Bytes read from connections.
    pub bytes_in: u64,
    /// Bytes written to connections.
    pub bytes_out: u64,
    /// Duration of the iterations of the poll loop, without the time in poll.
    pub iterations: Histogram,
    /// File descriptors that the process has open now.
    pub descriptors: u64,
    /// The time when the process started, since 1970.
    pub started: Duration,
}

/// The counters of one protocol.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Connections that have an id now.
    pub peers: usize,
    /// Rooms that have peers now.
    pub rooms: usize,
    /// Well-formed messages since the start, by `type`.
    pub messages: Vec<(&'static str, u64)>,
    /// Rejected messages since the start, by `code`.
    pub errors: Vec<(&'static str, u64)>,
    /// Messages that were forwarded to members of rooms since the start. `None`: each message has one receiver.
    pub deliveries: Option<u64>,
    /// What the protocol has besides peers and rooms now.
    pub gauges: Vec<Gauge>,
    /// Offers since the start, by `outcome`, and the time until they were answered. `None`: the protocol has no offers.
    pub handshakes: Option<(Vec<(&'static str, u64)>, Histogram)>,
}

/// A number that only some protocols have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// The name of the metric, without the prefix of all metrics.
    pub name: &'static str,
    /// What it counts, in a sentence. Protocols with the same name have the same sentence.
    pub help: &'static str,
    /// The number now.
    pub value: usize,
}

impl Counts {
    /// Creates counters of these messages and errors, all 0.
    pub fn zero(messages: &[&'static str], errors: &[&'static str]) -> Counts {
        let zeros = |names: &[&'static str]| names.iter().map(|name| (*name, 0)).collect();
        Counts { messages: zeros(messages), errors: zeros(errors), ..Counts::default() }
    }

    /// Counts a message.
    ///
    /// # Panics
    /// If [`Counts::zero`] did not get this name: a counter must exist before its first event.
    pub fn count_message(&mut self, name: &str) {
        add(&mut self.messages, name, 1);
    }

    /// Counts an error.
    ///
    /// # Panics
    /// If [`Counts::zero`] did not get this name: a counter must exist before its first event.
    pub fn count_error(&mut self, name: &str) {
        self.count_errors(name, 1);
    }

    /// Counts this many errors.
    ///
    /// # Panics
    /// See [`Counts::count_error`].
    pub fn count_errors(&mut self, name: &str, number: usize) {
        add(&mut self.errors, name, number as u64);
    }
}

fn add(counts: &mut [(&'static str, u64)], name: &str, number: u64) {
    let counter = counts.iter_mut().find(|(known, _)| *known == name);
    let (_, count) = counter.expect("every name is registered");
    *count += number;
}

/// Upper bounds of the buckets, in seconds: from imperceptible to longer than users wait.
const BUCKET_BOUNDS: [f64; 7] = [0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0];

/// A histogram of durations.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// One count for each of [`BUCKET_BOUNDS`], and one for longer durations.
    counts: [u64; BUCKET_BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKET_BOUNDS.iter().take_while(|bound| seconds > **bound).count();
        self.counts[bucket] += 1;
        self.sum += duration;
    }
}

impl Metrics {
    /// Renders the response to `GET /metrics`.
    pub fn render(&self) -> String {
        let mut page = Page(String::with_capacity(4096));
        page.metric("connections", "gauge", "Open WebSocket connections.", self.connections);
        page.metric("connections_total", "counter", "WebSocket connections opened.", self.connections_total);
        let protocols = || self.protocols.iter();
        let label = |name, value: &dyn Display| format!("{name}=\"{value}\"");
        let peers = protocols().map(|(protocol, counts)| (label("protocol", protocol), counts.peers as u64));
        page.labeled_metric("peers", "gauge", "Connections that have an id.", peers);
        let rooms = protocols().map(|(protocol, counts)| (label("protocol", protocol), counts.rooms as u64));
        page.labeled_metric("rooms", "gauge", "Rooms that have peers.", rooms);
        let mut gauges = BTreeMap::<&str, (&str, Vec<(String, u64)>)>::new();
        for (protocol, counts) in protocols() {
            for gauge in &counts.gauges {
                let (_, samples) = gauges.entry(gauge.name).or_insert((gauge.help, Vec::new()));
                samples.push((label("protocol", protocol), gauge.value as u64));
            }
        }
        for (name, (help, samples)) in gauges {
            page.labeled_metric(name, "gauge", help, samples.into_iter());
        }
        let messages =
            protocols().flat_map(|(protocol, counts)| protocol_samples(protocol, "type", &counts.messages));
        page.labeled_metric(
            "messages_total",
            "counter",
            "Well-formed messages of clients, by type.",
            messages,
        );
        let errors =
            protocols().flat_map(|(protocol, counts)| protocol_samples(protocol, "code", &counts.errors));
        page.labeled_metric("errors_total", "counter", "Rejected messages of clients, by code.", errors);
        let deliveries = protocols()
            .filter_map(|(protocol, counts)| Some((label("protocol", protocol), counts.deliveries?)));
        let help = "Messages forwarded to members of rooms, in protocols where a message can have several receivers.";
        page.labeled_metric("deliveries_total", "counter", help, deliveries);
        let closings = self.closings.iter().map(|(reason, count)| (label("reason", reason), *count));
        page.labeled_metric("closings_total", "counter", "Ended WebSocket connections, by reason.", closings);
        let upgrades = self.refused_upgrades.iter().map(|(status, count)| (label("status", status), *count));
        let help = "Rejected WebSocket requests, by status.";
        page.labeled_metric("refused_upgrades_total", "counter", help, upgrades);
        let tokens = self.refused_tokens.iter().map(|(reason, count)| (label("reason", reason), *count));
        let help = "WebSockets rejected because of their token, by reason.";
        page.labeled_metric("refused_tokens_total", "counter", help, tokens);
        page.metric("received_bytes_total", "counter", "Bytes read from connections.", self.bytes_in);
        page.metric("sent_bytes_total", "counter", "Bytes written to connections.", self.bytes_out);
        page.head(
            "noroshi_loop_turn_seconds",
            "histogram",
            "Iterations of the poll loop, without the time in poll.",
        );
        page.histogram("loop_turn_seconds", None, &self.iterations);
        let handshakes =
            || protocols().filter_map(|(protocol, counts)| Some((protocol, counts.handshakes.as_ref()?)));
        let help = "Offers that reached a peer or were rejected, by outcome.";
        let outcomes = handshakes()
            .flat_map(|(protocol, (outcomes, _))| protocol_samples(protocol, "outcome", outcomes));
        page.labeled_metric("handshakes_total", "counter", help, outcomes);
        page.head("noroshi_answer_seconds", "histogram", "Time from an offer to its answer.");
        for (protocol, (_, answers)) in handshakes() {
            page.histogram("answer_seconds", Some(&label("protocol", protocol)), answers);
        }
        page.head("noroshi_build_info", "gauge", "Always 1; the version is in the label.");
        page.line(format_args!("noroshi_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        // These have the standard names of Prometheus client libraries, without a prefix.
        page.head("process_start_time_seconds", "gauge", "Time when the process started, since 1970.");
        page.line(format_args!("process_start_time_seconds {}", self.started.as_secs_f64()));
        page.head("process_open_fds", "gauge", "Open file descriptors.");
        page.line(format_args!("process_open_fds {}", self.descriptors));
        page.0
    }
}

/// Returns the samples of a protocol, each with its labels.
///
/// The labels are names from this program, which need no escape sequences.
fn protocol_samples(protocol: &str, label: &str, counts: &[(&str, u64)]) -> Vec<(String, u64)> {
    let sample =
        |(name, value): &(&str, u64)| (format!("protocol=\"{protocol}\",{label}=\"{name}\""), *value);
    counts.iter().map(sample).collect()
}

/// The text that is rendered so far.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn metric(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(&format!("noroshi_{name}"), kind, help);
        self.line(format_args!("noroshi_{name} {value}"));
    }

    fn labeled_metric(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl Iterator<Item = (String, u64)>,
    ) {
        self.head(&format!("noroshi_{name}"), kind, help);
        for (labels, value) in samples {
            self.line(format_args!("noroshi_{name}{{{labels}}} {value}"));
        }
    }

    /// Appends the samples of a histogram, with these labels.
    fn histogram(&mut self, name: &str, labels: Option<&str>, histogram: &Histogram) {
        let label_block = labels.map_or(String::new(), |labels| format!("{{{labels}}}"));
        let label_prefix = labels.map_or(String::new(), |labels| format!("{labels},"));
        let mut cumulative = 0;
        for (bucket, count) in histogram.counts.iter().enumerate() {
            cumulative += count;
            let bound = BUCKET_BOUNDS.get(bucket).map_or("+Inf".to_owned(), f64::to_string);
            self.line(format_args!("noroshi_{name}_bucket{{{label_prefix}le=\"{bound}\"}} {cumulative}"));
        }
        let sum = histogram.sum.as_secs_f64();
        self.line(format_args!("noroshi_{name}_sum{label_block} {sum}"));
        self.line(format_args!("noroshi_{name}_count{label_block} {cumulative}"));
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("writing to a string does not fail");
    }
}
