//! What a monitoring system is told.

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::Door;
use tungstenite::Message;

use super::net;
use crate::common::pipe::REQUEST;
use crate::common::sockets::Net;
use crate::common::transcript::Wire;

/// All samples, by name and labels. Strict about the text format: whatever is not as it should be panics.
pub fn metrics(net: &mut Net) -> BTreeMap<String, f64> {
    let answer = net.ask(Door::Metrics, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(body.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let (mut helped, mut typed) = (String::new(), (String::new(), String::new()));
    let mut families = Vec::new();
    for line in body.lines() {
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !text.is_empty() && !families.contains(&name.to_owned()), "{line}");
            helped = name.to_owned();
            families.push(helped.clone());
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(name == helped && ["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed = (name.to_owned(), kind.to_owned());
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = match key.split_once('{') {
                Some((name, labels)) => {
                    for label in labels.strip_suffix("\"}").unwrap().split("\",") {
                        let (label, value) = label.split_once("=\"").unwrap();
                        let is_fine = |b: u8| b.is_ascii_alphanumeric() || b"_.+".contains(&b);
                        assert!(is_name(label) && value.bytes().all(is_fine), "{line}");
                    }
                    name
                }
                None => key,
            };
            let suffixes: &[&str] =
                if typed.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(&typed.0)), "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(value >= 0.0 && samples.insert(key.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

#[test]
fn metrics_count() {
    let mut net = net();
    let before = metrics(&mut net);
    assert_eq!(before["noroshi_connections"], 0.0);
    assert_eq!(before["noroshi_messages_total{protocol=\"noroshi\",type=\"connect\"}"], 0.0);
    assert_eq!(before["noroshi_errors_total{protocol=\"noroshi\",code=\"bad_json\"}"], 0.0);
    assert_eq!(before["noroshi_closings_total{reason=\"left\"}"], 0.0);
    net.open("A", "");
    net.open("B", "tea");
    net.say("A", Message::text(r#"{"type":"connect","id":"A"}"#));
    net.say("A", Message::text("{"));
    net.ask(Door::Main, "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
    net.ask(Door::Main, &REQUEST.replace("/ws/", "/nowhere/"));
    net.leave("B");
    let after = metrics(&mut net);
    for (name, value) in [
        ("noroshi_connections", 1.0),
        ("noroshi_peers{protocol=\"noroshi\"}", 1.0),
        ("noroshi_rooms{protocol=\"noroshi\"}", 1.0),
        ("noroshi_connections_total", 2.0),
        ("noroshi_messages_total{protocol=\"noroshi\",type=\"connect\"}", 1.0),
        ("noroshi_errors_total{protocol=\"noroshi\",code=\"bad_json\"}", 1.0),
        ("noroshi_closings_total{reason=\"left\"}", 1.0),
        ("noroshi_refused_upgrades_total{status=\"404\"}", 1.0),
    ] {
        assert_eq!(after[name], value, "{name}");
    }
    for name in
        ["received_bytes_total", "sent_bytes_total", "loop_turn_seconds_count", "loop_turn_seconds_sum"]
    {
        assert!(after[&format!("noroshi_{name}")] > 0.0, "{name}");
    }
    assert!(net.ask(Door::Metrics, REQUEST).starts_with("HTTP/1.1 404 "));
    assert!(net.ask(Door::Main, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 404 "));
    while net.next("A").is_some() {}
    net.finish();
}

#[test]
fn an_idle_server_sleeps() {
    let mut net = net();
    net.open("A", "");
    net.say("A", Message::text(r#"{"type":"leave","id":"A"}"#));
    let turns = |net: &mut Net| metrics(net)["noroshi_loop_turn_seconds_count"];
    let before = turns(&mut net);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        net.server.turn(Some(Duration::from_secs(2).saturating_sub(began.elapsed()))).unwrap();
    }
    // Two sweeps, the end of the wait, and what it takes to ask.
    assert!(turns(&mut net) - before < 15.0);
    net.finish();
}
