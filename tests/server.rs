//! The server on real sockets, for what only a kernel shows.

mod common;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::pipe::{CLOSE, REQUEST, TEXT, close, frame, frames};
use common::sockets::Net;
use common::transcript::{Heard, Wire};
use noroshi::address::Network;
use noroshi::config::{
    BASE_BYTES, CONNECTION_BYTES, CROWD_REFUSED_AT_ONCE, Config, HEAD_TIME_MAX, READ_BYTES_MAX,
    REFUSED_AT_ONCE, Secret, TURN_CREDENTIALS_TTL,
};
use noroshi::http::Door;
use noroshi::server::Server;
use tungstenite::Message;

fn with(change: impl FnOnce(&mut Config)) -> Box<Net> {
    let mut config = Config { metrics: Some("127.0.0.1:0".parse().unwrap()), ..Config::default() };
    change(&mut config);
    Box::new(Net::new(&config))
}

fn net() -> Box<Net> {
    with(|_| ())
}

fn heard(net: &mut Net, who: &str) -> serde_json::Value {
    match net.next(who) {
        Some(Heard::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{who} heard {other:?}"),
    }
}

#[test]
fn plain_http() {
    let mut net = net();
    let answer = net.ask(Door::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let answer = net.ask(Door::Main, "HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.contains("\r\nContent-Length: 2\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = net.ask(Door::Main, "GET /?room=tea HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../src/page.html")), "{answer}");
    let answer = net.ask(Door::Main, "GET /noroshi.js HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../src/noroshi.js")), "{answer}");
    let tag = answer.split("\r\nETag: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let again = format!("GET /noroshi.js HTTP/1.1\r\nHost: h\r\nIf-None-Match: {tag}\r\n\r\n");
    let answer = net.ask(Door::Main, &again);
    assert!(answer.starts_with("HTTP/1.1 304 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    // A body that nobody reads must not turn the answer into a reset.
    let body = "x".repeat(100_000);
    let answer = net.ask(Door::Main, &format!("POST /ws HTTP/1.1\r\nHost: h\r\n\r\n{body}"));
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = net.ask(Door::Main, &format!("GET / HTTP/1.1\r\nX: {body}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut silent = net.connect(Door::Main);
    net.server.turn(Some(Duration::ZERO)).unwrap();
    net.server.advance(Duration::from_secs(5));
    assert!(net.read_to_end(&mut silent).starts_with(b"HTTP/1.1 408 "));
    drop(silent);
    net.finish();
}

#[test]
fn credentials_go_by_the_clock_on_the_wall() {
    let mut net = with(|config| {
        config.ice_servers = vec!["turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    net.server.advance(Duration::from_secs(100_000));
    net.open("A", "");
    net.say("A", Message::text(r#"{"type":"join","id":"A"}"#));
    let joined = heard(&mut net, "A");
    let (expiry, id) = joined["iceServers"][0]["username"].as_str().unwrap().split_once(':').unwrap();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let left = expiry.parse::<u64>().unwrap() - wall;
    let ttl = TURN_CREDENTIALS_TTL.as_secs();
    assert!(id == "6dcd4ce23d88e2ee" && (ttl - 60..=ttl).contains(&left), "{joined}");
    net.finish();
}

#[test]
fn a_frame_may_come_with_the_request_and_a_request_byte_by_byte() {
    let mut net = net();
    let bytes =
        [REQUEST.as_bytes(), &frame(TEXT, br#"{"type":"join","id":"A"}"#), &frame(CLOSE, b"")].concat();
    for chunk in [bytes.len(), 1] {
        let mut stream = net.connect(Door::Main);
        for bytes in bytes.chunks(chunk) {
            stream.write_all(bytes).unwrap();
            net.server.turn(Some(Duration::ZERO)).unwrap();
        }
        let all = net.read_to_end(&mut stream);
        let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let expected = [(TEXT, br#"{"type":"joined","id":"A","peers":[]}"#.to_vec()), (CLOSE, vec![])];
        assert_eq!(frames(&all[end..]).0, expected);
    }
    net.finish();
}

#[test]
fn a_protocol_error_is_told_before_the_connection_ends() {
    let mut net = net();
    let mut stream = net.connect(Door::Main);
    // What still lies unread when the server closes would make it a reset.
    let bytes = [REQUEST.as_bytes(), &frame(0xff, b"nonsense"), &vec![7; 200_000]].concat();
    net.until(|_| match stream.write(&bytes) {
        Ok(n) => (n > 0).then_some(()),
        Err(error) => panic!("{error}"),
    });
    let all = net.read_to_end(&mut stream);
    let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(frames(&all[end..]).0, [(CLOSE, close(1002, "protocol error"))]);
    drop(stream);
    net.finish();
}

#[test]
fn one_address_has_so_many_connections() {
    let mut net = with(|config| config.connections_per_ip_max = 2);
    net.open("A", "");
    net.open("B", "");
    assert!(net.ask(Door::Main, REQUEST).starts_with("HTTP/1.1 429 "));
    // Others do not notice.
    let mut other = net.connect_from("127.0.0.2", Door::Main);
    other.write_all(REQUEST.as_bytes()).unwrap();
    net.until(|_| (other.read(&mut [0; 1000]).ok()? > 100).then_some(()));
    // What is too much is not even heard.
    let mut silent: Vec<_> = (0..20).map(|_| net.connect(Door::Main)).collect();
    net.server.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(net.server.sessions(), 3 + CROWD_REFUSED_AT_ONCE);
    for stream in &mut silent[CROWD_REFUSED_AT_ONCE..] {
        assert!(net.read_to_end(stream).is_empty());
    }
    assert!(net.ask(Door::Metrics, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 200 "));
    drop((silent, other));
    net.leave("A");
    net.until(|net| (net.server.sessions() == 1).then_some(()));
    net.open("C", "");
    net.finish();
}

#[test]
fn only_a_trusted_proxy_is_believed() {
    for (network, believed) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let mut net = with(|config| {
            config.connections_per_ip_max = 2;
            config.trusted_proxies = vec![Network::parse(network).unwrap()];
        });
        let mut ask = |address: &str| {
            let mut stream = net.connect(Door::Main);
            let request = REQUEST.replace("Host:", &format!("X-Forwarded-For: {address}\r\nHost:"));
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = vec![0; 1000];
            net.until(|_| stream.read(&mut answer).ok());
            (stream, String::from_utf8_lossy(&answer[9..12]).into_owned())
        };
        let open: Vec<_> = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"].map(&mut ask).into();
        let statuses: Vec<_> = open.iter().map(|(_, status)| status.as_str()).collect();
        // The limit is not for the proxy itself, which has everybody's connections.
        let expected = if believed { ["101", "101", "429", "101"] } else { ["101", "101", "429", "429"] };
        assert_eq!(statuses, expected);
        if believed {
            // Who is in the same place as the proxy keeps nobody out.
            let crowd: Vec<_> = (0..8).map(|_| ask("127.0.0.1")).collect();
            assert_eq!(crowd.iter().filter(|(_, status)| status == "101").count(), 2);
            assert_eq!(ask("192.0.2.3").1, "101");
        }
        drop(open);
        net.finish();
    }
}

#[test]
fn without_memory_new_connections_are_told_503() {
    let mut net = with(|config| config.memory_bytes_max = Some(BASE_BYTES + 5 * CONNECTION_BYTES / 2));
    net.open("A", "");
    net.open("B", "");
    assert!(net.ask(Door::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    // Those who are there do not notice.
    net.say("A", Message::text(r#"{"type":"join","id":"A"}"#));
    net.say("B", Message::text(r#"{"type":"join","id":"B"}"#));
    net.leave("B");
    assert_eq!(heard(&mut net, "A")["type"], "joined");
    assert_eq!(heard(&mut net, "A")["type"], "peerJoined");
    assert_eq!(heard(&mut net, "A")["type"], "peerLeft");
    net.until(|net| (net.server.sessions() == 1).then_some(()));
    net.open("C", "");
    net.finish();
}

#[test]
fn a_full_server_says_503_and_goes_on() {
    let mut net = with(|config| config.connections_max = 2);
    net.open("A", "");
    net.open("B", "");
    for _ in 0..3 {
        assert!(net.ask(Door::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    }
    assert!(net.ask(Door::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 200 "));
    assert!(net.ask(Door::Metrics, "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 200 "));
    // Those who only hold the door are sent away in time.
    let mut idle: Vec<_> = (0..40).map(|_| net.connect(Door::Main)).collect();
    net.leave("A");
    net.server.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(net.server.sessions(), 2 + REFUSED_AT_ONCE);
    net.server.advance(HEAD_TIME_MAX);
    for stream in &mut idle[..17] {
        assert!(net.read_to_end(stream).starts_with(b"HTTP/1.1 408 "));
    }
    drop(idle);
    net.open("C", "");
    assert!(net.ask(Door::Main, REQUEST).starts_with("HTTP/1.1 503 "));
    net.finish();
}

#[test]
fn who_does_not_read_is_cut_off_and_delays_nobody() {
    let mut net = net();
    for who in ["A", "B", "C"] {
        net.open(who, "");
        net.say(who, Message::text(format!(r#"{{"type":"leave","id":"{who}"}}"#)));
    }
    net.deafen("A");
    let sdp = "x".repeat(60_000);
    let text = format!(r#"{{"type":"offer","id":"B","target_id":"A","sdp":"{sdp}"}}"#);
    // Until the buffers of the kernel and the queue are full, and then for six seconds.
    let mut busy = 0;
    while busy < 3 + 6 {
        net.say("B", Message::text(text.as_str()));
        busy = match net.next("B") {
            Some(Heard::Text(text)) => {
                assert!(
                    text.contains(r#""code":"peer_busy""#) && text.contains(r#""target_id":"A""#),
                    "{text}"
                );
                busy + 1
            }
            _ => 0,
        };
        net.pass(u64::from(busy >= 3));
    }
    // The others do not notice.
    net.say("B", Message::text(r#"{"type":"offer","id":"B","target_id":"C","sdp":1}"#));
    assert_eq!(heard(&mut net, "C")["sdp"], "1");
    net.pass(6);
    net.say("B", Message::text(text.as_str()));
    assert_eq!(heard(&mut net, "B")["code"], "unknown_peer");
    assert_eq!(metrics(&mut net)["noroshi_closings_total{reason=\"slow\"}"], 1.0);
    net.finish();
}

#[test]
fn who_sends_without_end_delays_nobody() {
    let mut net = with(|config| config.rate_max = 0);
    net.open("A", "");
    net.open("B", "");
    let flood = frame(TEXT, br#"{"type":"leave","id":"A"}"#).repeat(100_000);
    let mut stream = net.socket("A").get_ref().try_clone().unwrap();
    let mut sent = 0;
    for _ in 0..50 {
        if let Ok(n) = stream.write(&flood[sent % 31..]) {
            sent += n;
        }
        // Whatever A has sent, B is answered in the turn in which it is heard.
        net.socket("B").send(Message::Ping(Default::default())).unwrap();
        net.server.turn(Some(Duration::ZERO)).unwrap();
        assert_eq!(net.socket("B").read().unwrap(), Message::Pong(Default::default()));
    }
    assert!(sent > 50 * READ_BYTES_MAX, "A was ahead all the time");
    let read = metrics(&mut net)["noroshi_received_bytes_total"];
    let turns = metrics(&mut net)["noroshi_loop_turn_seconds_count"];
    assert!(read <= turns * (READ_BYTES_MAX + 500) as f64, "A has one read a turn");
    assert_eq!(metrics(&mut net)["noroshi_closings_total{reason=\"protocol_error\"}"], 0.0);
    drop(stream);
    net.finish();
}

#[test]
fn the_silent_are_noticed_and_the_idle_are_not_cut() {
    let mut net = net();
    for who in ["A", "B"] {
        net.open(who, "");
        net.say(who, Message::text(format!(r#"{{"type":"join","id":"{who}"}}"#)));
        heard(&mut net, who);
    }
    heard(&mut net, "A");
    net.deafen("B");
    net.pass(49);
    assert_eq!(net.next("A"), None);
    net.pass(6);
    assert_eq!(heard(&mut net, "A"), serde_json::json!({"type": "peerLeft", "id": "B"}));
    net.pass(200);
    assert_eq!(net.next("A"), None);
    net.open("C", "");
    net.pass(31);
    assert_eq!(net.next("C"), Some(Heard::Closed(1008)));
    net.finish();
}

#[test]
fn what_came_while_the_server_stood_still_is_heard_before_the_clock_speaks() {
    let mut net = net();
    let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    for who in &names {
        net.open(who, "");
        net.say(who, Message::text(format!(r#"{{"type":"leave","id":"{who}"}}"#)));
    }
    // All are pinged, and somebody claims the id of the first; they answer, and the server does not look.
    net.server.advance(Duration::from_secs(30));
    net.server.turn(Some(Duration::ZERO)).unwrap();
    net.open("claimant", "");
    net.socket("claimant").send(Message::text(r#"{"type":"connect","id":"0"}"#)).unwrap();
    net.until(|net| (net.server.hub().wake_at().is_some()).then_some(()));
    for who in &names {
        net.socket(who).send(Message::Pong(Default::default())).unwrap();
    }
    net.server.advance(Duration::from_secs(29));
    net.settle("0");
    assert_eq!(heard(&mut net, "claimant")["code"], "id_taken");
    for who in &names {
        assert_eq!(net.next(who), None);
    }
    net.finish();
}

#[test]
fn a_stop_says_goodbye_to_all() {
    let mut net = net();
    for who in ["A", "B", "C"] {
        net.open(who, "");
        net.say(who, Message::text(format!(r#"{{"type":"join","id":"{who}"}}"#)));
        while net.next(who).is_some() {}
    }
    while net.next("A").is_some() || net.next("B").is_some() {}
    let waiting = net.connect(Door::Main);
    net.deafen("C");
    net.server.stop();
    net.settle("A");
    assert_eq!([net.next("A"), net.next("A")], [Some(Heard::Closed(1001)), None]);
    assert_eq!([net.next("B"), net.next("B")], [Some(Heard::Closed(1001)), None]);
    assert!(!net.server.is_stopped(), "C has two seconds to answer");
    net.server.advance(Duration::from_secs(2));
    assert!(net.server.is_stopped());
    drop(waiting);
}

#[test]
fn a_stop_waits_no_longer_than_it_must() {
    let mut net = net();
    net.open("A", "");
    net.server.stop();
    net.settle("A");
    assert!(net.server.is_stopped());
}

// ---- Metrics ----

/// All samples, by name and labels. Strict about the text format: whatever is not as it should be panics.
fn metrics(net: &mut Net) -> BTreeMap<String, f64> {
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
                    let (label, value) = labels.strip_suffix("\"}").unwrap().split_once("=\"").unwrap();
                    let is_fine = |b: u8| b.is_ascii_alphanumeric() || b"_.+".contains(&b);
                    assert!(is_name(label) && value.bytes().all(is_fine), "{line}");
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
    assert_eq!(before["noroshi_messages_total{type=\"connect\"}"], 0.0);
    assert_eq!(before["noroshi_errors_total{code=\"bad_json\"}"], 0.0);
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
        ("noroshi_peers", 1.0),
        ("noroshi_rooms", 1.0),
        ("noroshi_connections_total", 2.0),
        ("noroshi_messages_total{type=\"connect\"}", 1.0),
        ("noroshi_errors_total{code=\"bad_json\"}", 1.0),
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

#[test]
fn one_address_takes_both_kinds_of_ip() {
    let listen = vec!["[::]:0".parse().unwrap()];
    let mut server = Server::bind(Config { listen, ..Config::default() }).unwrap();
    let port = server.addresses(Door::Main).next().unwrap().port();
    for host in ["127.0.0.1", "::1"] {
        let mut stream = TcpStream::connect((host, port)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            server.turn(Some(Duration::from_millis(10))).unwrap();
        }
        assert!(answer.ends_with(b"ok"), "{host}");
    }
}
