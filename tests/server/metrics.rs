//! What a monitoring system is told.

use std::collections::BTreeMap;
use std::time::Duration;

use noroshi::http::ListenerKind;
use tungstenite::Message;

use super::net;
use crate::common::pipe::REQUEST;
use crate::common::sockets::Net;
use crate::common::transcript::Wire;

/// All samples, by name and labels. Strict about the text format: whatever is not as it should be panics.
pub fn metrics(net: &mut Net) -> BTreeMap<String, f64> {
    let answer = net.ask(ListenerKind::Metrics, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n");
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
    net.ask(ListenerKind::Main, "GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n");
    net.ask(ListenerKind::Main, &REQUEST.replace("/ws/", "/nowhere/"));
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
    assert!(net.ask(ListenerKind::Metrics, REQUEST).starts_with("HTTP/1.1 404 "));
    assert!(
        net.ask(ListenerKind::Main, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 404 ")
    );
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

#[test]
fn offers_and_what_becomes_of_them() {
    let mut net = net();
    let say = |net: &mut Net, who: &str, rest: &str| {
        net.say(who, Message::text(format!(r#"{{"id":"{who}",{rest}}}"#)));
    };
    let outcomes = |net: &mut Net| {
        let metrics = metrics(net);
        ["answered", "unanswered", "refused", "left"].map(|outcome| {
            metrics[&format!("noroshi_handshakes_total{{protocol=\"noroshi\",outcome=\"{outcome}\"}}")]
        })
    };
    for who in ["A", "B"] {
        net.open(who, "");
    }
    say(&mut net, "A", r#""type":"offer","sdp":1"#);
    assert_eq!(outcomes(&mut net), [0.0; 4], "nobody is there to answer");
    say(&mut net, "B", r#""type":"connect""#);
    net.pass(2);
    say(&mut net, "B", r#""type":"answer","sdp":2"#);
    assert_eq!(outcomes(&mut net), [1.0, 0.0, 0.0, 0.0]);
    let seconds = metrics(&mut net);
    let seconds =
        |le: &str| seconds[&format!("noroshi_answer_seconds_bucket{{protocol=\"noroshi\",le=\"{le}\"}}")];
    assert_eq!((seconds("1"), seconds("3"), seconds("+Inf")), (0.0, 1.0, 1.0));
    // Both offer at once, and one of them is answered.
    say(&mut net, "A", r#""type":"offer","sdp":3"#);
    say(&mut net, "B", r#""type":"offer","sdp":4"#);
    say(&mut net, "A", r#""type":"answer","sdp":5"#);
    // What nobody asked for answers nothing.
    say(&mut net, "A", r#""type":"answer","sdp":6"#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 0.0, 0.0]);
    say(&mut net, "A", r#""type":"offer","sdp":7"#);
    say(&mut net, "B", r#""type":"leave""#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 0.0, 1.0]);
    say(&mut net, "A", r#""type":"offer","sdp":8,"target_id":"nobody""#);
    say(&mut net, "A", r#""type":"offer","sdp":9"#);
    say(&mut net, "B", r#""type":"offer","sdp":10"#);
    assert_eq!(outcomes(&mut net), [2.0, 0.0, 2.0, 1.0]);
    say(&mut net, "B", r#""type":"connect""#);
    net.pass(31);
    assert_eq!(outcomes(&mut net), [2.0, 1.0, 2.0, 1.0]);
    // It is passed on all the same.
    say(&mut net, "B", r#""type":"answer","sdp":11"#);
    assert_eq!(outcomes(&mut net), [2.0, 1.0, 2.0, 1.0]);
    for who in ["A", "B"] {
        while net.next(who).is_some() {}
    }
    net.finish();
}
