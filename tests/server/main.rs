//! The server on real sockets, for what only a kernel shows.

#[path = "../common/mod.rs"]
mod common;
mod drain;
mod metrics;
mod places;
mod rooms;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::pipe::{CLOSE, REQUEST, TEXT, close, frame, frames};
use common::sockets::Net;
use common::transcript::{Heard, Wire};
use metrics::metrics;
use noroshi::config::{Config, ListenAddress, READ_BYTES_MAX, Secret, TURN_CREDENTIALS_TTL};
use noroshi::http::ListenerKind;
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
    let answer = net.ask(ListenerKind::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let answer = net.ask(ListenerKind::Main, "HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.contains("\r\nContent-Length: 2\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = net.ask(ListenerKind::Main, "GET /?room=tea HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../../src/web/index.html")), "{answer}");
    let answer = net.ask(ListenerKind::Main, "GET /noroshi.js HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../../src/web/noroshi.js")), "{answer}");
    let tag = answer.split("\r\nETag: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let again = format!("GET /noroshi.js HTTP/1.1\r\nHost: h\r\nIf-None-Match: {tag}\r\n\r\n");
    let answer = net.ask(ListenerKind::Main, &again);
    assert!(answer.starts_with("HTTP/1.1 304 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    // A body that nobody reads must not turn the answer into a reset.
    let body = "x".repeat(100_000);
    let answer = net.ask(ListenerKind::Main, &format!("POST /ws HTTP/1.1\r\nHost: h\r\n\r\n{body}"));
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = net.ask(ListenerKind::Main, &format!("GET / HTTP/1.1\r\nX: {body}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut silent = net.connect(ListenerKind::Main);
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
        let mut stream = net.connect(ListenerKind::Main);
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
    let mut stream = net.connect(ListenerKind::Main);
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
    net.until(|net| (net.server.dispatcher().wake_at().is_some()).then_some(()));
    for who in &names {
        net.socket(who).send(Message::Pong(Default::default())).unwrap();
    }
    net.server.advance(Duration::from_secs(29));
    net.settle();
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
    let waiting = net.connect(ListenerKind::Main);
    net.deafen("C");
    net.server.stop();
    net.settle();
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
    net.settle();
    assert!(net.server.is_stopped());
}

#[test]
fn one_address_takes_both_kinds_of_ip() {
    let listen = vec![ListenAddress::Tcp("[::]:0".parse().unwrap())];
    let mut server = Server::bind(Config { listen, ..Config::default() }).unwrap();
    let port = server.addresses(ListenerKind::Main).next().unwrap().port();
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
