//! The metrics page.

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::ListenerKind;
use tungstenite::Message;

use super::sockets::net;
use crate::common::pipe::REQUEST;
use crate::common::sockets::Net;
use crate::common::transcript::Transport;

/// Returns all samples by name and labels. Panics at any violation of the text format.
pub fn metrics(net: &mut Net) -> BTreeMap<String, f64> {
    let answer = net.request(ListenerKind::Operator, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(body.ends_with('\n'));
    let mut samples = BTreeMap::new();
    let mut helped = String::new();
    let mut typed = (String::new(), String::new());
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
                        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
                        assert!(is_name(label) && value.bytes().all(is_allowed), "{line}");
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
fn metrics_count_events() {
    let mut net = net();
    let before = metrics(&mut net);
    assert_eq!(before["noroshi_connections"], 0.0);
    assert_eq!(before["noroshi_messages_total{protocol=\"noroshi\",type=\"connect\"}"], 0.0);
    assert_eq!(before["noroshi_errors_total{protocol=\"noroshi\",code=\"bad_json\"}"], 0.0);
    assert_eq!(before["noroshi_closings_total{reason=\"left\"}"], 0.0);
    net.open("A", "");
    net.open("B", "tea");
    net.send("A", Message::text(r#"{"type":"connect","id":"A"}"#));
    net.send("A", Message::text("{"));
    net.request(ListenerKind::Main, "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
    net.request(ListenerKind::Main, &REQUEST.replace("/ws/", "/nowhere/"));
    net.close("B");
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
    assert!(net.request(ListenerKind::Operator, REQUEST).starts_with("HTTP/1.1 404 "));
    assert!(
        net.request(ListenerKind::Main, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            .starts_with("HTTP/1.1 404 ")
    );
    while net.next_received("A").is_some() {}
    net.finish();
}

#[test]
fn idle_server_does_not_wake_up() {
    let mut net = net();
    net.open("A", "");
    net.send("A", Message::text(r#"{"type":"leave","id":"A"}"#));
    let began = std::time::Instant::now();
    let mut iterations = 0;
    while began.elapsed() < Duration::from_secs(2) {
        net.server.poll_once(Some(Duration::from_secs(2).saturating_sub(began.elapsed()))).unwrap();
        iterations += 1;
    }
    // Two sweeps and the end of the wait. The timer of the kernel may be a little early.
    assert!(iterations < 10, "{iterations} iterations");
    net.finish();
}

#[test]
fn outcomes_of_offers_are_counted() {
    let mut net = net();
    let send = |net: &mut Net, peer: &str, rest: &str| {
        net.send(peer, Message::text(format!(r#"{{"id":"{peer}",{rest}}}"#)));
    };
    let outcomes = |net: &mut Net| {
        let metrics = metrics(net);
        ["answered", "unanswered", "refused", "left"].map(|outcome| {
            metrics[&format!("noroshi_handshakes_total{{protocol=\"noroshi\",outcome=\"{outcome}\"}}")]
        })
    };
    for peer in ["A", "B"] {
        net.open(peer, "");
    }
    send(&mut net, "A", r#""type":"offer","sdp":1"#);
    assert_eq!(outcomes(&mut net), [0.0; 4], "there is no peer to answer");
    send(&mut net, "B", r#""type":"connect""#);
    net.advance(2);
    send(&mut net, "B", r#""type":"answer","sdp":2"#);
    assert_eq!(outcomes(&mut net), [1.0, 0.0, 0.0, 0.0]);
    let seconds = metrics(&mut net);
    let seconds =
        |le: &str| seconds[&format!("noroshi_answer_seconds_bucket{{protocol=\"noroshi\",le=\"{le}\"}}")];
    assert_eq!((seconds("1"), seconds("3"), seconds("+Inf")), (0.0, 1.0, 1.0));
    // Glare: both peers offer, and one offer is answered.
    send(&mut net, "A", r#""type":"offer","sdp":3"#);
    send(&mut net, "B", r#""type":"offer","sdp":4"#);
    send(&mut net, "A", r#""type":"answer","sdp":5"#);
    // An answer without an offer is not counted.
    send(&mut net, "A", r#""type":"answer","sdp":6"#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 0.0, 0.0]);
    send(&mut net, "A", r#""type":"offer","sdp":7"#);
    send(&mut net, "B", r#""type":"leave""#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 0.0, 1.0]);
    send(&mut net, "A", r#""type":"offer","sdp":8,"target_id":"nobody""#);
    send(&mut net, "A", r#""type":"offer","sdp":9"#);
    send(&mut net, "B", r#""type":"offer","sdp":10"#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 2.0, 1.0]);
    send(&mut net, "B", r#""type":"connect""#);
    net.advance(31);
    assert_eq!(outcomes(&mut net), [2.0, 1.0, 2.0, 1.0]);
    // The late answer is still forwarded.
    send(&mut net, "B", r#""type":"answer","sdp":11"#);
    assert_eq!(outcomes(&mut net), [2.0, 1.0, 2.0, 1.0]);
    for peer in ["A", "B"] {
        while net.next_received(peer).is_some() {}
    }
    net.finish();
}
