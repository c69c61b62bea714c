//! The server on real sockets, for behaviour that depends on the kernel.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::metrics::metrics;
use crate::common::pipe::{CLOSE, REQUEST, TEXT, close, frame, frames};
use crate::common::sockets::Net;
use crate::common::transcript::{Received, Transport};
use noroshi::config::{Config, ListenAddress, Secret};
use noroshi::http::ListenerKind;
use noroshi::limits::{READ_BYTES_MAX, TURN_CREDENTIALS_TTL};
use noroshi::server::Server;
use serde_json::json;
use tungstenite::Message;

pub fn with(change: impl FnOnce(&mut Config)) -> Box<Net> {
    let mut config = Config { metrics: Some("127.0.0.1:0".parse().unwrap()), ..Config::default() };
    change(&mut config);
    Box::new(Net::new(&config))
}

pub fn net() -> Box<Net> {
    with(|_| ())
}

pub fn receive_json(net: &mut Net, peer: &str) -> serde_json::Value {
    match net.next_received(peer) {
        Some(Received::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{peer} received {other:?}"),
    }
}

#[test]
fn plain_http_requests_are_answered() {
    let mut net = net();
    let answer = net.request(ListenerKind::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let answer = net.request(ListenerKind::Main, "HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.contains("\r\nContent-Length: 2\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = net.request(ListenerKind::Main, "GET /?room=tea HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../../src/web/index.html")), "{answer}");
    let answer = net.request(ListenerKind::Main, "GET /noroshi.js HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(answer.ends_with(include_str!("../../src/web/noroshi.js")), "{answer}");
    let tag = answer.split("\r\nETag: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let again = format!("GET /noroshi.js HTTP/1.1\r\nHost: h\r\nIf-None-Match: {tag}\r\n\r\n");
    let answer = net.request(ListenerKind::Main, &again);
    assert!(answer.starts_with("HTTP/1.1 304 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    // An unread request body must not turn the response into a reset.
    let body = "x".repeat(100_000);
    let answer = net.request(ListenerKind::Main, &format!("POST /ws HTTP/1.1\r\nHost: h\r\n\r\n{body}"));
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = net.request(ListenerKind::Main, &format!("GET / HTTP/1.1\r\nX: {body}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let mut silent = net.connect(ListenerKind::Main);
    net.server.poll_once(Some(Duration::ZERO)).unwrap();
    net.server.advance(Duration::from_secs(5));
    assert!(net.read_to_end(&mut silent).starts_with(b"HTTP/1.1 408 "));
    drop(silent);
    net.finish();
}

#[test]
fn connection_that_only_pings_is_closed_after_the_registration_timeout() {
    let mut net = net();
    net.open("A", "");
    for _ in 0..30 {
        net.send("A", Message::text(r#"{"type":"ping","id":"A"}"#));
        assert_eq!(receive_json(&mut net, "A"), json!({"type": "pong"}));
        Transport::advance(&mut *net, 1);
    }
    assert_eq!(net.next_received("A"), Some(Received::Closed(1008)));
    net.finish();
}

#[test]
fn turn_credentials_use_the_wall_clock() {
    let mut net = with(|config| {
        config.ice_servers = vec!["turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    net.server.advance(Duration::from_secs(100_000));
    net.open("A", "");
    net.send("A", Message::text(r#"{"type":"join","id":"A"}"#));
    let joined = receive_json(&mut net, "A");
    let (expiry, id) = joined["iceServers"][0]["username"].as_str().unwrap().split_once(':').unwrap();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let left = expiry.parse::<u64>().unwrap() - wall;
    let ttl = TURN_CREDENTIALS_TTL.as_secs();
    assert!(id == "6dcd4ce23d88e2ee" && (ttl - 60..=ttl).contains(&left), "{joined}");
    net.finish();
}

#[test]
fn frames_may_arrive_with_the_request_or_byte_by_byte() {
    let mut net = net();
    let bytes =
        [REQUEST.as_bytes(), &frame(TEXT, br#"{"type":"join","id":"A"}"#), &frame(CLOSE, b"")].concat();
    for chunk in [bytes.len(), 1] {
        let mut stream = net.connect(ListenerKind::Main);
        for bytes in bytes.chunks(chunk) {
            stream.write_all(bytes).unwrap();
            net.server.poll_once(Some(Duration::ZERO)).unwrap();
        }
        let all = net.read_to_end(&mut stream);
        let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let expected = [(TEXT, br#"{"type":"joined","id":"A","peers":[]}"#.to_vec()), (CLOSE, vec![])];
        assert_eq!(frames(&all[end..]).0, expected);
    }
    net.finish();
}

#[test]
fn protocol_error_is_reported_before_the_connection_ends() {
    let mut net = net();
    let mut stream = net.connect(ListenerKind::Main);
    // Unread bytes at the time of the close would cause a reset.
    let bytes = [REQUEST.as_bytes(), &frame(0xff, b"nonsense"), &vec![7; 200_000]].concat();
    net.wait_until(|_| match stream.write(&bytes) {
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
fn peer_that_does_not_read_is_closed_and_delays_no_other_peer() {
    let mut net = net();
    for peer in ["A", "B", "C"] {
        net.open(peer, "");
        net.send(peer, Message::text(format!(r#"{{"type":"leave","id":"{peer}"}}"#)));
    }
    net.stop_reading("A");
    let sdp = "x".repeat(60_000);
    let text = format!(r#"{{"type":"offer","id":"B","target_id":"A","sdp":"{sdp}"}}"#);
    // Until the kernel's buffers and the queue are full, and then for six seconds.
    let mut busy = 0;
    while busy < 3 + 6 {
        net.send("B", Message::text(text.as_str()));
        busy = match net.next_received("B") {
            Some(Received::Text(text)) => {
                assert!(
                    text.contains(r#""code":"peer_busy""#) && text.contains(r#""target_id":"A""#),
                    "{text}"
                );
                busy + 1
            }
            _ => 0,
        };
        net.advance(u64::from(busy >= 3));
    }
    // Other peers are unaffected.
    net.send("B", Message::text(r#"{"type":"offer","id":"B","target_id":"C","sdp":1}"#));
    assert_eq!(receive_json(&mut net, "C")["sdp"], "1");
    // A is closed ten seconds after its kernel has taken the last bytes. On a busy machine that may be late, and then the
    // queue takes another offer, without an answer.
    let is_closed = |net: &mut Net| {
        net.advance(1);
        net.send("B", Message::text(text.as_str()));
        match net.next_received("B") {
            Some(Received::Text(text)) if text.contains(r#""code":"unknown_peer""#) => true,
            Some(Received::Text(text)) => {
                assert!(text.contains(r#""code":"peer_busy""#), "{text}");
                false
            }
            Some(closed) => panic!("{closed:?}"),
            None => false,
        }
    };
    assert!((0..100).any(|_| is_closed(&mut net)));
    assert_eq!(metrics(&mut net)["noroshi_closings_total{reason=\"slow\"}"], 1.0);
    net.finish();
}

#[test]
fn peer_that_pings_and_does_not_read_is_closed() {
    let mut net = with(|config| {
        config.rate_max = 0;
        config.ice_servers = vec!["x".repeat(60_000)];
    });
    net.open("A", "");
    net.send("A", Message::text(r#"{"type":"leave","id":"A"}"#));
    net.stop_reading("A");
    let mut stream = net.socket("A").get_ref().try_clone().unwrap();
    let ping = frame(TEXT, br#"{"type":"ping","id":"A","iceServers":true}"#);
    // Each answer is queued, until the buffers of the kernel, the queue and its reserve are full. The bound is that of the
    // section "Memory of one connection" in `scripts/deploy/README.md`.
    let used_before = net.server.shared().budget.used();
    net.wait_until(|net| {
        let _ = stream.write(&ping);
        net.server.poll_once(Some(Duration::ZERO)).unwrap();
        assert!(net.server.shared().budget.used() - used_before <= 1152 * 1024 + 2 * 60_000);
        (metrics(net)["noroshi_closings_total{reason=\"slow\"}"] == 1.0).then_some(())
    });
    drop(stream);
    net.finish();
}

#[test]
fn continuous_sender_delays_no_other_peer() {
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
        // B's ping is answered in the iteration that reads it, regardless of what A has sent.
        net.socket("B").send(Message::Ping(Default::default())).unwrap();
        net.server.poll_once(Some(Duration::ZERO)).unwrap();
        assert_eq!(net.socket("B").read().unwrap(), Message::Pong(Default::default()));
    }
    assert!(sent > 50 * READ_BYTES_MAX, "A always had unread bytes");
    let read = metrics(&mut net)["noroshi_received_bytes_total"];
    let iterations = metrics(&mut net)["noroshi_loop_turn_seconds_count"];
    assert!(read <= iterations * (READ_BYTES_MAX + 500) as f64, "A has one read per iteration");
    assert_eq!(metrics(&mut net)["noroshi_closings_total{reason=\"protocol_error\"}"], 0.0);
    drop(stream);
    net.finish();
}

#[test]
fn silent_peers_are_closed_and_idle_peers_are_not() {
    let mut net = net();
    for peer in ["A", "B"] {
        net.open(peer, "");
        net.send(peer, Message::text(format!(r#"{{"type":"join","id":"{peer}"}}"#)));
        receive_json(&mut net, peer);
    }
    receive_json(&mut net, "A");
    net.stop_reading("B");
    net.advance(49);
    assert_eq!(net.next_received("A"), None);
    net.advance(6);
    assert_eq!(receive_json(&mut net, "A"), serde_json::json!({"type": "peerLeft", "id": "B"}));
    net.advance(200);
    assert_eq!(net.next_received("A"), None);
    net.open("C", "");
    net.advance(31);
    assert_eq!(net.next_received("C"), Some(Received::Closed(1008)));
    net.finish();
}

#[test]
fn pending_input_is_processed_before_timeouts_after_a_suspension() {
    let mut net = net();
    let names: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    for peer in &names {
        net.open(peer, "");
        net.send(peer, Message::text(format!(r#"{{"type":"leave","id":"{peer}"}}"#)));
    }
    // All peers are pinged and another one claims the first peer's id. They answer while the server is suspended.
    net.server.advance(Duration::from_secs(30));
    net.server.poll_once(Some(Duration::ZERO)).unwrap();
    net.open("claimant", "");
    net.socket("claimant").send(Message::text(r#"{"type":"connect","id":"0"}"#)).unwrap();
    net.wait_until(|net| (net.server.dispatcher().next_timer().is_some()).then_some(()));
    for peer in &names {
        net.socket(peer).send(Message::Pong(Default::default())).unwrap();
    }
    net.server.advance(Duration::from_secs(29));
    net.run_until_idle();
    assert_eq!(receive_json(&mut net, "claimant")["code"], "id_taken");
    for peer in &names {
        assert_eq!(net.next_received(peer), None);
    }
    net.finish();
}

#[test]
fn stop_closes_all_peers_with_1001() {
    let mut net = net();
    for peer in ["A", "B", "C"] {
        net.open(peer, "");
        net.send(peer, Message::text(format!(r#"{{"type":"join","id":"{peer}"}}"#)));
        while net.next_received(peer).is_some() {}
    }
    while net.next_received("A").is_some() || net.next_received("B").is_some() {}
    let waiting = net.connect(ListenerKind::Main);
    net.stop_reading("C");
    net.server.stop();
    net.run_until_idle();
    assert_eq!([net.next_received("A"), net.next_received("A")], [Some(Received::Closed(1001)), None]);
    assert_eq!([net.next_received("B"), net.next_received("B")], [Some(Received::Closed(1001)), None]);
    assert!(!net.server.is_stopped(), "C has two seconds to answer");
    net.server.advance(Duration::from_secs(2));
    assert!(net.server.is_stopped());
    drop(waiting);
}

#[test]
fn stop_ends_as_soon_as_all_peers_have_closed() {
    let mut net = net();
    net.open("A", "");
    net.server.stop();
    net.run_until_idle();
    assert!(net.server.is_stopped());
}

#[test]
fn ipv6_wildcard_address_accepts_ipv4_and_ipv6() {
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
            server.poll_once(Some(Duration::from_millis(10))).unwrap();
        }
        assert!(answer.ends_with(b"ok"), "{host}");
    }
}
