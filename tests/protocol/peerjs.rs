//! PeerJS, where transcripts are not enough: paths, origins, timing, limits, tokens. The names of tests begin with the number of
//! the requirement that they verify.

use std::time::Duration;

use crate::common::memory::{Memory, Recorded, dispatcher};
use crate::common::sockets::Net;
use crate::common::transcript::{Received, SECRET, Transport};
use noroshi::config::{Command, Config};
use noroshi::http::ListenerKind;
use noroshi::http::origin::AllowedOrigin;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::{
    CLAIMANTS_MAX, HELD_BYTES_MAX_FLOOR, HELD_DEPARTED_SENDERS_MAX, HELD_MESSAGES_MAX, HELD_PAIRS_MAX,
    HELD_PER_RECEIVER_MAX, HOLD_REMEMBERED_TIME, HOLD_TIME,
};
use noroshi::protocol::{Conn, Target};
use noroshi::protocols::{self, Destination, peerjs};
use serde_json::{Value, json};

use crate::common::input::Input;

fn config(flags: &[&str]) -> Config {
    match Config::parse(&protocols::endpoints(protocols::ALL), flags.iter().map(Into::into)) {
        Ok(Command::Run(config)) => config,
        other => panic!("{flags:?}: {other:?}"),
    }
}

fn with_tokens() -> Config {
    Config { token_secrets: Some(Secrets::parse(SECRET).unwrap()), ..config(&["--peerjs"]) }
}

/// A server in memory, without a rate limit.
fn memory() -> Memory {
    Memory::new(&config(&["--peerjs", "--max-rate", "0"]))
}

/// Connects a client whose id is its name.
fn open(transport: &mut dyn Transport, id: &str) {
    connect(transport, id, id, "peerjs", &format!("token-of-{id}"));
    assert_eq!(texts(transport, id), [r#"{"type":"OPEN"}"#]);
}

fn connect(transport: &mut dyn Transport, peer: &str, id: &str, key: &str, token: &str) {
    transport.open_at(peer, &format!("/peerjs?key={key}&id={id}&token={token}&version=1.5.5"));
}

/// Connects a client as number `number`, and sends an offer for an absent peer. The state is not checked after each input, which
/// would take quadratic time with many clients. Returns what the server sends to the client after `OPEN`.
fn offer_unchecked(memory: &mut Memory, number: usize, id: &str) -> Vec<Recorded> {
    let conn = Conn::new(1_000_000 + number as u64, 10_000 + number);
    let query = Query::new(&format!("key=peerjs&id={id}&token=t"));
    let target = Target { protocol: &peerjs::DESCRIPTOR, room: "peerjs".to_owned(), query };
    memory.handle(Input::Connected(conn, &target, None));
    let open = [Recorded::Registered(conn), Recorded::Send(conn, r#"{"type":"OPEN"}"#.to_owned())];
    assert_eq!(memory.outbox.effects.drain(..).collect::<Vec<_>>(), open);
    memory.handle(Input::Text(conn, r#"{"type":"OFFER","dst":"absent"}"#));
    memory.outbox.effects.drain(..).collect()
}

fn disconnect_unchecked(memory: &mut Memory, number: usize) {
    let conn = Conn::new(1_000_000 + number as u64, 10_000 + number);
    memory.handle(Input::Disconnected(conn));
    assert_eq!(memory.outbox.effects.drain(..).collect::<Vec<_>>(), [Recorded::Left(conn)]);
}

fn send(transport: &mut dyn Transport, from: &str, kind: &str, to: &str, payload: Value) {
    let text = json!({"type": kind, "payload": payload, "dst": to}).to_string();
    transport.send(from, text.as_bytes(), false);
}

/// Returns all texts that a peer has received.
fn texts(transport: &mut dyn Transport, peer: &str) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(received) = transport.next_received(peer) {
        match received {
            Received::Text(text) => texts.push(text),
            Received::Closed(code) => panic!("{peer} was closed with {code} after {texts:?}"),
        }
    }
    texts
}

fn expire(absent: &str, sender: &str) -> String {
    format!(r#"{{"type":"EXPIRE","src":"{absent}","dst":"{sender}"}}"#)
}

fn relayed(kind: &str, from: &str, to: &str, payload: Value) -> String {
    format!(r#"{{"type":"{kind}","src":"{from}","dst":"{to}","payload":{payload}}}"#)
}

fn assert_refused(transport: &mut dyn Transport, peer: &str, sentence: &str) {
    let Some(Received::Text(text)) = transport.next_received(peer) else { panic!("{peer}") };
    let message: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(message, json!({"type": "ERROR", "payload": {"msg": sentence}}));
    assert_eq!(transport.next_received(peer), Some(Received::Closed(1000)));
    assert_eq!(transport.next_received(peer), None);
}

fn assert_id_taken(transport: &mut dyn Transport, peer: &str) {
    let id_taken = r#"{"type":"ID-TAKEN","payload":{"msg":"ID is taken"}}"#.to_owned();
    assert_eq!(transport.next_received(peer), Some(Received::Text(id_taken)));
    assert_eq!(transport.next_received(peer), Some(Received::Closed(1000)));
    assert_eq!(transport.next_received(peer), None);
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const MILLISECOND: Duration = Duration::from_millis(1);

// ---- R1 ----

#[test]
fn r1_socket_and_resources_have_the_paths_of_each_mount() {
    for (flag, sockets, resources, unknown) in [
        (
            "--peerjs",
            vec!["/peerjs", "/peerjs/peerjs"],
            vec![
                "/peerjs/",
                "/peerjs/id",
                "/peerjs/peers",
                "/peerjs/peerjs/id",
                "/peerjs/k2/peers",
                "/peerjs/a%20b/id",
            ],
            vec![
                "/",
                "/id",
                "/k2/id",
                "/PEERJS",
                "/peerjsx",
                "/peerjs/peerjs/",
                "/peerjs/a/b/id",
                "/peerjs//id",
                "/peerjs/x",
            ],
        ),
        (
            "--peerjs=/myapp",
            vec!["/myapp", "/myapp/peerjs"],
            vec!["/myapp/", "/myapp/peerjs/id", "/myapp/k2/id"],
            vec!["/peerjs", "/peerjs/id", "/myapp/peerjs/peerjs"],
        ),
        (
            "--peerjs=/",
            vec!["/peerjs"],
            vec!["/", "/id", "/peers", "/peerjs/id", "/k2/id", "/k2/peers"],
            vec!["/peerjs/peerjs", "/peerjs/", "/other"],
        ),
    ] {
        let dispatcher = dispatcher(&config(&[flag]));
        let destination = |path: &str| dispatcher.destination(path, &Query::new("key=k2&key=k3"));
        for path in sockets {
            match destination(path) {
                Some(Destination::WebSocket(target)) => assert_eq!(target.room, "k3", "{path}"),
                other => panic!("{flag} {path}: {other:?}"),
            }
        }
        for path in resources {
            assert!(matches!(destination(path), Some(Destination::Resource(_))), "{flag} {path}");
        }
        for path in unknown {
            assert!(destination(path).is_none(), "{flag} {path}");
        }
    }
    assert!(dispatcher(&config(&[])).destination("/peerjs", &Query::default()).is_none());
}

#[test]
fn r1_page_stays_at_the_top_and_all_protocols_share_the_port() {
    let flags = ["--peerjs=/", "--ayame", "--matchbox=/games", "--max-rate", "0"];
    let mut net = Box::new(Net::new(&config(&flags)));
    let page = net.request(ListenerKind::Main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(page.contains("<!doctype html>"));
    for (path, is_upgrade, status) in [
        ("/", true, 404),
        ("/noroshi.js", false, 200),
        ("/k2/id", false, 200),
        ("/peerjs", false, 426),
        ("/peerjs/", true, 404),
        ("/k2/id", true, 404),
        ("/healthz", false, 200),
    ] {
        assert_eq!(net.status(path, is_upgrade), Some(status), "{path}");
    }
    open(&mut *net, "a");
    net.open_at("game", "/games/peerjs");
    net.open_at("board", "/signaling");
    net.open("ours", "peerjs");
    let counts =
        net.server.dispatcher().each().map(|(name, protocol)| (name, protocol.counts(Duration::ZERO).peers));
    assert_eq!(counts.collect::<Vec<_>>(), [("noroshi", 0), ("ayame", 0), ("matchbox", 1), ("peerjs", 1)]);
    assert!(net.next_received("game").is_some());
    net.finish();
}

// ---- R2 ----

#[test]
fn r2_origins_are_checked_and_every_response_to_an_allowed_page_is_readable() {
    let mut config = config(&["--peerjs"]);
    config.allow_origins = vec![AllowedOrigin::parse("https://a.example").unwrap()];
    let mut net = Net::new(&config);
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut request = |request: &str, headers: &str| {
        let response =
            net.request(ListenerKind::Main, &format!("{request} HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
        let status: u16 = response.split(' ').nth(1).unwrap().parse().unwrap();
        let head = response.split("\r\n\r\n").next().unwrap().to_owned();
        (status, head)
    };
    for (method_and_path, status) in [
        ("GET /peerjs/peerjs/id?ts=1", 200),
        ("HEAD /peerjs/id", 200),
        ("GET /peerjs/peerjs/peers", 401),
        ("GET /peerjs/", 200),
        ("OPTIONS /peerjs/k2/id", 204),
        ("DELETE /peerjs/id", 405),
    ] {
        let (found, head) = request(method_and_path, "Origin: https://a.example\r\n");
        assert_eq!(found, status, "{method_and_path}");
        assert!(head.contains("\r\nAccess-Control-Allow-Origin: https://a.example"), "{head}");
        assert!(head.contains("\r\nVary: Origin"), "{head}");
        let (found, head) = request(method_and_path, "Origin: https://b.example\r\n");
        assert_eq!(found, 403, "{method_and_path}");
        assert!(!head.contains("Access-Control-Allow-Origin"), "{head}");
        // A client that is no page, or a page of this origin.
        let (found, head) = request(method_and_path, "");
        assert_eq!(
            (found, head.contains("Access-Control-Allow-Origin")),
            (status, false),
            "{method_and_path}"
        );
        let (found, head) = request(method_and_path, "Origin: http://h\r\n");
        assert_eq!(
            (found, head.contains("\r\nAccess-Control-Allow-Origin: http://h")),
            (status, true),
            "{head}"
        );
    }
    let (_, head) = request("GET /peerjs/id", "");
    assert!(head.contains("\r\nCache-Control: no-store"), "{head}");
    assert!(!head.contains("WWW-Authenticate"), "{head}");
    let upgrade = "GET /peerjs?key=k&id=i&token=t";
    assert_eq!(request(upgrade, &format!("{UPGRADE}Origin: https://b.example\r\n")).0, 403);
}

#[test]
fn r2_generated_ids_are_random_uuids() {
    let mut memory = memory();
    let mut ids = Vec::new();
    for path in ["/peerjs/id", "/peerjs/peerjs/id", "/peerjs/peerjs/id?ts=1&version=1.5.5"] {
        ids.push(memory.request_resource("GET", path, None).unwrap().body);
    }
    for id in &ids {
        let groups: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
        assert!(id.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()), "{id}");
        assert_eq!((&id[14..15], ids.iter().filter(|other| *other == id).count()), ("4", 1), "{id}");
    }
    // The id is not reserved: any client may use it.
    open(&mut memory, &ids[0]);
    Box::new(memory).finish();
}

// ---- R3, R4, R5 ----

#[test]
fn r3_same_token_takes_over_and_the_old_connection_is_closed() {
    let mut memory = memory();
    open(&mut memory, "b");
    connect(&mut memory, "old", "a", "peerjs", "t1");
    connect(&mut memory, "new", "a", "peerjs", "t1");
    assert_eq!(memory.next_received("old"), Some(Received::Text(r#"{"type":"OPEN"}"#.to_owned())));
    assert_eq!(memory.next_received("old"), Some(Received::Closed(4000)));
    assert_eq!(texts(&mut memory, "new"), [r#"{"type":"OPEN"}"#]);
    // The old connection is known to nobody: what it has sent before it reads the Close frame has no effect.
    send(&mut memory, "old", "OFFER", "b", json!(1));
    assert_eq!(texts(&mut memory, "b"), [""; 0]);
    // A token is compared, not its beginning, and only with the holder of the same id and key.
    memory.stop_reading("new");
    for (peer, id, key, token) in
        [("c", "a", "peerjs", "t"), ("d", "a", "peerjs", "t1x"), ("e", "a", "k2", "t1")]
    {
        connect(&mut memory, peer, id, key, token);
    }
    assert_eq!(
        (texts(&mut memory, "c").len(), texts(&mut memory, "d").len()),
        (0, 0),
        "they wait for a probe"
    );
    assert_eq!(texts(&mut memory, "e"), [r#"{"type":"OPEN"}"#]);
    Box::new(memory).finish();
}

#[test]
fn r4_claimants_share_one_probe_of_five_seconds() {
    let mut memory = memory();
    open(&mut memory, "a");
    memory.stop_reading("a");
    connect(&mut memory, "b", "a", "peerjs", "t2");
    // The second claimant causes no ping.
    let conn = Conn::new(100, 100);
    let query = Query::new("key=peerjs&id=a&token=t3");
    let target = Target { protocol: &peerjs::DESCRIPTOR, room: "peerjs".to_owned(), query };
    memory.handle(Input::Connected(conn, &target, None));
    assert_eq!(memory.outbox.effects, [Recorded::PauseReading(conn)]);
    memory.handle(Input::Disconnected(conn));
    memory.outbox.effects.clear();
    memory.advance_by(seconds(5) - MILLISECOND);
    assert_eq!(texts(&mut memory, "b"), [""; 0]);
    memory.advance_by(MILLISECOND);
    assert_eq!(texts(&mut memory, "b"), [r#"{"type":"OPEN"}"#]);
    Box::new(memory).finish();
}

#[test]
fn r4_number_of_claimants_is_limited() {
    let mut memory = memory();
    open(&mut memory, "a");
    memory.stop_reading("a");
    for number in 0..CLAIMANTS_MAX {
        connect(&mut memory, &format!("c{number}"), "a", "peerjs", "t2");
    }
    connect(&mut memory, "last", "a", "peerjs", "t2");
    assert_id_taken(&mut memory, "last");
    assert_eq!(memory.count("id_taken"), 1);
    memory.advance(5);
    assert_eq!(texts(&mut memory, "c0"), [r#"{"type":"OPEN"}"#]);
    for number in 1..CLAIMANTS_MAX {
        assert_id_taken(&mut memory, &format!("c{number}"));
    }
    Box::new(memory).finish();
}

#[test]
fn r4_probe_ends_when_all_claimants_have_left() {
    let mut memory = memory();
    open(&mut memory, "a");
    memory.stop_reading("a");
    connect(&mut memory, "b", "a", "peerjs", "t2");
    memory.close("b");
    memory.advance(6);
    connect(&mut memory, "c", "a", "peerjs", "t3");
    memory.advance(4);
    assert_eq!(texts(&mut memory, "c"), [""; 0], "the holder was not closed, and is probed again");
    memory.advance(1);
    assert_eq!(texts(&mut memory, "c"), [r#"{"type":"OPEN"}"#]);
    Box::new(memory).finish();
}

/// A claimant is not read while the probe runs, so that TCP holds what it sends.
#[test]
fn r5_messages_before_open_are_processed_in_order() {
    let mut net = Box::new(Net::new(&config(&["--peerjs"])));
    open(&mut *net, "a");
    open(&mut *net, "b");
    net.stop_reading("a");
    connect(&mut *net, "claimant", "a", "peerjs", "t2");
    for number in 0..20 {
        send(&mut *net, "claimant", "CANDIDATE", "b", json!(number));
    }
    assert_eq!(texts(&mut *net, "b"), [""; 0]);
    net.advance(6);
    assert_eq!(texts(&mut *net, "claimant"), [r#"{"type":"OPEN"}"#]);
    let expected: Vec<String> = (0..20).map(|number| relayed("CANDIDATE", "a", "b", json!(number))).collect();
    assert_eq!(texts(&mut *net, "b"), expected);
    net.finish();
}

// ---- R6 ----

#[test]
fn r6_silent_connection_is_closed_after_two_ping_intervals_and_heartbeats_are_not_required() {
    let mut net = Box::new(Net::new(&config(&["--peerjs", "--ping-interval", "30"])));
    open(&mut *net, "silent");
    open(&mut *net, "alive");
    net.stop_reading("silent");
    net.advance(58);
    assert_eq!(net.server.sessions(), 2);
    net.advance(6);
    assert_eq!(net.server.sessions(), 1);
    connect(&mut *net, "next", "silent", "peerjs", "t2");
    assert_eq!(texts(&mut *net, "next"), [r#"{"type":"OPEN"}"#]);
    net.advance(600);
    send(&mut *net, "alive", "OFFER", "silent", json!(1));
    assert_eq!(texts(&mut *net, "next"), [relayed("OFFER", "alive", "silent", json!(1))]);
    Transport::send(&mut *net, "alive", br#"{"type":"HEARTBEAT"}"#, false);
    assert_eq!(texts(&mut *net, "alive"), [""; 0]);
    net.finish();
}

// ---- R7 ----

#[test]
fn r7_invalid_messages_are_counted_and_the_connection_stays() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    let invalid =
        ["", "{", "null", "17", "\"x\"", "[]", "{}", r#"{"type":"X","dst":"b"}"#, r#"{"type":"OFFER"}"#];
    for text in invalid {
        memory.send("a", text.as_bytes(), false);
    }
    memory.send("a", b"\xff", true);
    assert_eq!(memory.count("not_understood"), invalid.len() as u64 + 1);
    // Nesting is not limited, and numbers keep their notation.
    let payload = format!("{}1.50e+1{}", "[".repeat(20_000), "]".repeat(20_000));
    memory.send("a", format!(r#"{{"payload":{payload},"dst":"b","type":"OFFER"}}"#).as_bytes(), true);
    assert_eq!(
        texts(&mut memory, "b"),
        [format!(r#"{{"type":"OFFER","src":"a","dst":"b","payload":{payload}}}"#)]
    );
    assert_eq!((memory.count("OFFER"), texts(&mut memory, "a").len()), (1, 0));
    Box::new(memory).finish();
}

// ---- R8, R9 ----

#[test]
fn r8_messages_are_held_for_five_seconds_per_pair() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    send(&mut memory, "a", "OFFER", "absent", json!(1));
    memory.advance_by(seconds(2));
    send(&mut memory, "a", "CANDIDATE", "absent", json!(2));
    send(&mut memory, "b", "OFFER", "absent", json!(3));
    send(&mut memory, "a", "OFFER", "other", json!(4));
    memory.advance_by(seconds(3) - MILLISECOND);
    assert_eq!((texts(&mut memory, "a").len(), texts(&mut memory, "b").len()), (0, 0));
    memory.advance_by(MILLISECOND);
    assert_eq!(texts(&mut memory, "a"), [expire("absent", "a")]);
    memory.advance_by(seconds(2) - MILLISECOND);
    assert_eq!((texts(&mut memory, "a").len(), texts(&mut memory, "b").len()), (0, 0));
    memory.advance_by(MILLISECOND);
    assert_eq!(texts(&mut memory, "a"), [expire("other", "a")]);
    assert_eq!(texts(&mut memory, "b"), [expire("absent", "b")]);
    assert_eq!(memory.count("expired"), 3);
    open(&mut memory, "absent");
    assert_eq!(texts(&mut memory, "absent"), [""; 0], "expired messages are dropped");
    Box::new(memory).finish();
}

#[test]
fn r8_receiver_that_registers_in_time_gets_open_and_then_all_messages() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    let mut expected = vec![r#"{"type":"OPEN"}"#.to_owned()];
    for number in 0..20 {
        for sender in ["b", "a"] {
            send(&mut memory, sender, "CANDIDATE", "late", json!(number));
            expected.push(relayed("CANDIDATE", sender, "late", json!(number)));
        }
    }
    memory.advance_by(HOLD_TIME - MILLISECOND);
    connect(&mut memory, "late", "late", "peerjs", "t");
    assert_eq!(texts(&mut memory, "late"), expected);
    assert_eq!(memory.reserved(), 0);
    memory.advance(60);
    assert_eq!(
        (texts(&mut memory, "a").len(), texts(&mut memory, "b").len()),
        (0, 0),
        "nobody is told EXPIRE"
    );
    Box::new(memory).finish();
}

#[test]
fn r9_late_candidates_are_dropped_for_thirty_seconds_and_an_offer_begins_again() {
    let mut memory = memory();
    open(&mut memory, "a");
    send(&mut memory, "a", "OFFER", "b", json!(1));
    memory.advance_by(HOLD_TIME);
    assert_eq!(texts(&mut memory, "a"), [expire("b", "a")]);
    memory.advance_by(HOLD_REMEMBERED_TIME - MILLISECOND);
    send(&mut memory, "a", "CANDIDATE", "b", json!(2));
    memory.advance_by(MILLISECOND);
    assert_eq!((memory.dispatcher.next_timer(), memory.reserved()), (None, 0), "the pair is forgotten");
    assert_eq!(texts(&mut memory, "a"), [""; 0]);
    // An offer of a remembered pair begins another attempt.
    for attempt in 0..3 {
        send(&mut memory, "a", "OFFER", "b", json!(attempt));
        memory.advance_by(HOLD_TIME);
        assert_eq!(texts(&mut memory, "a"), [expire("b", "a")], "one for each attempt");
    }
    // A receiver that has been there in between ends the attempt.
    open(&mut memory, "b");
    assert_eq!(texts(&mut memory, "b"), [""; 0]);
    memory.close("b");
    send(&mut memory, "a", "CANDIDATE", "b", json!(3));
    memory.advance_by(HOLD_TIME);
    assert_eq!(texts(&mut memory, "a"), [expire("b", "a")]);
    Box::new(memory).finish();
}

// ---- R10 ----

#[test]
fn r10_held_messages_of_a_sender_are_limited_and_expire_is_sent_nevertheless() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    // Bytes: four messages of 60,000 bytes fit, the fifth does not.
    for number in 0..5 {
        send(&mut memory, "a", "OFFER", &format!("absent{number}"), json!("x".repeat(60_000)));
    }
    assert_eq!(memory.count("hold_full"), 1);
    assert!(memory.reserved() >= 240_000 && memory.reserved() < HELD_BYTES_MAX_FLOOR + 10_000);
    // The limit is that of each sender.
    send(&mut memory, "b", "OFFER", "absent4", json!("x".repeat(60_000)));
    assert_eq!(memory.count("hold_full"), 1);
    connect(&mut memory, "absent4", "absent4", "peerjs", "t");
    let received = texts(&mut memory, "absent4");
    assert_eq!(
        received,
        [r#"{"type":"OPEN"}"#.to_owned(), relayed("OFFER", "b", "absent4", json!("x".repeat(60_000)))]
    );
    assert_eq!(texts(&mut memory, "a"), [expire("absent4", "a")], "its offer was dropped");
    memory.advance_by(HOLD_TIME);
    let expected: Vec<String> = (0..4).map(|number| expire(&format!("absent{number}"), "a")).collect();
    assert_eq!(texts(&mut memory, "a"), expected);
    // Messages: the space is free again, and the number is limited too.
    for number in 0..HELD_MESSAGES_MAX + 3 {
        send(&mut memory, "a", "OFFER", "absent0", json!(number));
    }
    assert_eq!(memory.count("hold_full"), 1 + 3);
    memory.advance_by(HOLD_TIME);
    assert_eq!(texts(&mut memory, "a"), [expire("absent0", "a")]);
    Box::new(memory).finish();
}

#[test]
fn r10_absent_peers_of_a_sender_are_limited() {
    let mut memory = memory();
    open(&mut memory, "a");
    for number in 0..HELD_PAIRS_MAX {
        send(&mut memory, "a", "OFFER", &format!("absent{number}"), json!(1));
    }
    assert_eq!(texts(&mut memory, "a"), [""; 0]);
    send(&mut memory, "a", "OFFER", "further", json!(1));
    assert_eq!(texts(&mut memory, "a"), [expire("further", "a")], "nothing is stored, so it is told at once");
    send(&mut memory, "a", "CANDIDATE", "further", json!(1));
    assert_eq!((texts(&mut memory, "a").len(), memory.count("hold_full")), (0, 2));
    memory.advance_by(HOLD_TIME);
    assert_eq!(texts(&mut memory, "a").len(), HELD_PAIRS_MAX);
    Box::new(memory).finish();
}

#[test]
fn r10_messages_for_one_absent_peer_are_limited() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    send(&mut memory, "a", "CANDIDATE", "absent", json!(1));
    send(&mut memory, "b", "CANDIDATE", "absent", json!(1));
    for number in 2..HELD_PER_RECEIVER_MAX {
        assert_eq!(offer_unchecked(&mut memory, number, &format!("s{number}")), []);
    }
    let last = HELD_PER_RECEIVER_MAX;
    let conn = Conn::new(1_000_000 + last as u64, 10_000 + last);
    let told = [Recorded::Send(conn, expire("absent", "last"))];
    assert_eq!(offer_unchecked(&mut memory, last, "last"), told, "nothing is stored, so it is told at once");
    // Further messages of known senders are dropped. Who has sent an offer is told when the receiver registers.
    send(&mut memory, "a", "OFFER", "absent", json!(2));
    send(&mut memory, "b", "CANDIDATE", "absent", json!(2));
    assert_eq!(memory.count("hold_full"), 3);
    connect(&mut memory, "absent", "absent", "peerjs", "t");
    assert_eq!(texts(&mut memory, "absent").len(), 1 + HELD_PER_RECEIVER_MAX);
    assert_eq!(texts(&mut memory, "a"), [expire("absent", "a")]);
    assert_eq!((texts(&mut memory, "b").len(), memory.reserved()), (0, 0));
    for number in 2..=HELD_PER_RECEIVER_MAX {
        disconnect_unchecked(&mut memory, number);
    }
    Box::new(memory).finish();
}

#[test]
fn r10_without_memory_the_sender_is_told() {
    let mut memory = memory();
    open(&mut memory, "a");
    send(&mut memory, "a", "OFFER", "absent", json!(1));
    memory.outbox.out_of_memory = true;
    send(&mut memory, "a", "CANDIDATE", "absent", json!(2));
    send(&mut memory, "a", "OFFER", "other", json!(3));
    assert_eq!(texts(&mut memory, "a"), [expire("other", "a")]);
    memory.outbox.out_of_memory = false;
    memory.advance_by(seconds(1));
    connect(&mut memory, "absent", "absent", "peerjs", "t");
    let received = texts(&mut memory, "absent");
    assert_eq!(received, [r#"{"type":"OPEN"}"#.to_owned(), relayed("OFFER", "a", "absent", json!(1))]);
    assert_eq!((memory.count("hold_full"), texts(&mut memory, "a").len()), (2, 0));
    Box::new(memory).finish();
}

#[test]
fn r10_messages_of_senders_that_have_left_are_limited() {
    let mut memory = memory();
    open(&mut memory, "stays");
    // They are counted only while messages are held, and a sender that returns is counted no more.
    for _ in 0..3 {
        for number in 0..HELD_DEPARTED_SENDERS_MAX + 5 {
            let sender = format!("s{number}");
            for _ in 0..2 {
                assert_eq!(offer_unchecked(&mut memory, number, &sender), []);
                disconnect_unchecked(&mut memory, number);
            }
        }
        connect(&mut memory, "absent", "absent", "peerjs", "t");
        // Those beyond the limit have left nothing.
        assert_eq!(texts(&mut memory, "absent").len(), 1 + 2 * HELD_DEPARTED_SENDERS_MAX);
        assert_eq!(memory.reserved(), 0);
        memory.close("absent");
    }
    Box::new(memory).finish();
}

#[test]
fn r10_larger_messages_can_be_held_with_a_larger_limit() {
    let mut memory = Memory::new(&config(&["--peerjs", "--max-rate", "0", "--max-message", "1M"]));
    open(&mut memory, "a");
    let payload = json!("x".repeat(900_000));
    send(&mut memory, "a", "OFFER", "b", payload.clone());
    send(&mut memory, "a", "OFFER", "b", payload.clone());
    assert_eq!(memory.count("hold_full"), 1);
    connect(&mut memory, "b", "b", "peerjs", "t");
    assert_eq!(texts(&mut memory, "b").pop(), Some(relayed("OFFER", "a", "b", payload)));
    Box::new(memory).finish();
}

// ---- R11 ----

#[test]
fn r11_offer_to_a_full_queue_is_answered_with_expire_at_once() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    let b = memory.conn("b");
    memory.outbox.full.insert(b);
    send(&mut memory, "a", "OFFER", "b", json!(1));
    assert_eq!(texts(&mut memory, "a"), [expire("b", "a")]);
    send(&mut memory, "a", "CANDIDATE", "b", json!(2));
    send(&mut memory, "a", "LEAVE", "b", json!(3));
    assert_eq!(texts(&mut memory, "a"), [""; 0]);
    send(&mut memory, "a", "ANSWER", "b", json!(4));
    assert_eq!(texts(&mut memory, "a"), [expire("b", "a")]);
    assert_eq!((memory.count("peer_busy"), memory.count("expired")), (4, 0));
    memory.advance(10);
    memory.outbox.full.clear();
    assert_eq!(
        (texts(&mut memory, "a").len(), texts(&mut memory, "b").len()),
        (0, 0),
        "nothing is held for a peer that is there"
    );
    Box::new(memory).finish();
}

#[test]
fn r11_held_messages_that_do_not_fit_into_the_queue_are_reported() {
    let mut net = Box::new(Net::new(&config(&["--peerjs", "--max-rate", "0"])));
    let senders: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    for sender in &senders {
        open(&mut *net, sender);
        send(&mut *net, sender, "OFFER", "absent", json!("x".repeat(60_000)));
        send(&mut *net, sender, "CANDIDATE", "absent", json!("x".repeat(60_000)));
    }
    connect(&mut *net, "absent", "absent", "peerjs", "t");
    let received = texts(&mut *net, "absent");
    let delivered =
        |sender: &String| received.contains(&relayed("OFFER", sender, "absent", json!("x".repeat(60_000))));
    let (reached, missed): (Vec<String>, Vec<String>) = senders.iter().cloned().partition(delivered);
    assert!(!reached.is_empty() && !missed.is_empty(), "the queue has space for some of 960,000 bytes");
    for sender in &reached {
        assert_eq!(texts(&mut *net, sender), [""; 0]);
    }
    for sender in &missed {
        assert_eq!(texts(&mut *net, sender), [expire("absent", sender)]);
    }
    net.finish();
}

// ---- R12, R13, R14 ----

#[test]
fn r12_keys_are_namespaces_for_ids_holds_and_takeovers() {
    let mut memory = memory();
    for (peer, id, key) in [("a1", "a", "k1"), ("a2", "a", "k2"), ("b1", "b", "k1")] {
        connect(&mut memory, peer, id, key, "t");
        assert_eq!(
            texts(&mut memory, peer),
            [r#"{"type":"OPEN"}"#],
            "an equal token takes over nothing of another key"
        );
    }
    send(&mut memory, "a2", "OFFER", "b", json!(2));
    send(&mut memory, "a1", "OFFER", "b", json!(1));
    assert_eq!(texts(&mut memory, "b1"), [relayed("OFFER", "a", "b", json!(1))]);
    let counts =
        memory.dispatcher.each().find(|(name, _)| *name == "peerjs").unwrap().1.counts(Duration::ZERO);
    assert_eq!((counts.peers, counts.rooms), (3, 2), "a room is a key in use");
    memory.close("b1");
    connect(&mut memory, "b2", "b", "k2", "t");
    let received = texts(&mut memory, "b2");
    assert_eq!(received, [r#"{"type":"OPEN"}"#.to_owned(), relayed("OFFER", "a", "b", json!(2))]);
    Box::new(memory).finish();
}

#[test]
fn r13_list_of_ids_is_disabled() {
    for config in [config(&["--peerjs"]), with_tokens()] {
        let mut memory = Memory::new(&config);
        for path in ["/peerjs/peers", "/peerjs/peerjs/peers", "/peerjs/k2/peers?ts=1"] {
            let response = memory.request_resource("GET", path, None).unwrap();
            assert_eq!(
                (response.status, response.body.as_str()),
                (401, "the list of ids is disabled\n"),
                "{path}"
            );
        }
    }
}

#[test]
fn r14_messages_of_the_server_are_ignored_from_clients() {
    let mut memory = memory();
    open(&mut memory, "a");
    open(&mut memory, "b");
    for kind in ["EXPIRE", "OPEN", "ERROR", "ID-TAKEN", "INVALID-KEY"] {
        send(&mut memory, "a", kind, "b", json!({"msg": "forged"}));
        send(&mut memory, "a", kind, "absent", json!({"msg": "forged"}));
    }
    assert_eq!((texts(&mut memory, "a").len(), texts(&mut memory, "b").len()), (0, 0));
    assert_eq!((memory.count("not_understood"), memory.reserved()), (10, 0));
    send(&mut memory, "a", "LEAVE", "absent", json!(null));
    assert_eq!(memory.reserved(), 0, "LEAVE is not held");
    send(&mut memory, "a", "LEAVE", "b", json!(1));
    assert_eq!(texts(&mut memory, "b"), [relayed("LEAVE", "a", "b", json!(1))]);
    memory.send("a", br#"{"type":"LEAVE"}"#, false);
    assert_eq!(memory.next_received("a"), Some(Received::Closed(1000)));
    assert_eq!(memory.count("LEAVE"), 3);
    Box::new(memory).finish();
}

// ---- R15 ----

fn token(claims: Value) -> String {
    let text = |name: &str| claims.get(name).map(|value| value.as_str().unwrap().into());
    let expires_at = seconds(claims.get("exp").map_or(4_000_000_000, |exp| exp.as_u64().unwrap()));
    let claims = Claims { expires_at, room: text("room"), room_prefix: text("room_prefix"), id: text("sub") };
    Secrets::parse(SECRET).unwrap().sign(&claims)
}

#[test]
fn r15_faults_of_tokens_are_messages_and_counted_by_reason() {
    let mut memory = Memory::new(&with_tokens());
    memory.epoch = seconds(1_000_000);
    let foreign = Secrets::parse(b"another secret of thirty-two byte").unwrap();
    let foreign = foreign.sign(&Claims { expires_at: seconds(4_000_000_000), ..Claims::default() });
    for (peer, token, sentence) in [
        ("no", String::new(), "missing token"),
        (
            "random",
            "9sk2nfm3rq".to_owned(),
            "the token is invalid: expected a JWT with exp, signed with HS256, HS384 or HS512",
        ),
        ("foreign", foreign, "the token's signature matches none of the server's secrets"),
        ("expired", token(json!({"exp": 999_000})), "the token has expired"),
        ("other", token(json!({"sub": "another"})), "the token is for another id"),
        ("key", token(json!({"room": "k2"})), "the token is for another room"),
        ("prefix", token(json!({"room_prefix": "k"})), "the token is for another room"),
    ] {
        connect(&mut memory, peer, peer, "peerjs", &token);
        assert_refused(&mut memory, peer, sentence);
    }
    let reasons: Vec<(&str, u64)> =
        memory.outbox.refused_tokens.iter().map(|(name, count)| (*name, *count)).collect();
    assert_eq!(
        reasons,
        [("expired", 1), ("id", 1), ("malformed", 1), ("missing", 1), ("room", 2), ("signature", 1)]
    );
    assert_eq!((memory.count("bad_parameters"), memory.reserved()), (0, 0));
    connect(
        &mut memory,
        "a",
        "a",
        "peerjs",
        &token(json!({"sub": "a", "room": "peerjs", "room_prefix": "peer"})),
    );
    assert_eq!(texts(&mut memory, "a"), [r#"{"type":"OPEN"}"#]);
    Box::new(memory).finish();
}

#[test]
fn r15_id_of_a_token_belongs_to_its_connections() {
    let mut memory = Memory::new(&with_tokens());
    let (anyone, alice) = (token(json!({})), token(json!({"sub": "alice"})));
    connect(&mut memory, "first", "alice", "peerjs", &anyone);
    assert_eq!(texts(&mut memory, "first"), [r#"{"type":"OPEN"}"#]);
    // An equal token without `sub` is not necessarily the same client: the holder is probed.
    memory.stop_reading("first");
    connect(&mut memory, "second", "alice", "peerjs", &anyone);
    assert_eq!(texts(&mut memory, "second"), [""; 0]);
    // A token for the id takes over from any holder, and rejects those that wait.
    connect(&mut memory, "third", "alice", "peerjs", &alice);
    assert_id_taken(&mut memory, "second");
    assert_eq!(texts(&mut memory, "third"), [r#"{"type":"OPEN"}"#]);
    // Nobody without such a token gets the id while it is connected, even if it is silent.
    memory.stop_reading("third");
    connect(&mut memory, "fourth", "alice", "peerjs", &anyone);
    assert_id_taken(&mut memory, "fourth");
    // Another token for the id: a page that has renewed its token.
    connect(
        &mut memory,
        "fifth",
        "alice",
        "peerjs",
        &token(json!({"sub": "alice", "exp": 3_900_000_000_u64})),
    );
    assert_eq!(texts(&mut memory, "fifth"), [r#"{"type":"OPEN"}"#]);
    Box::new(memory).finish();
}

// ---- R16 ----

#[test]
fn r16_parameters_are_checked_and_refused_by_a_message() {
    const MISSING: &str = "No id, token, or key supplied to websocket server";
    let mut memory = memory();
    let long_id = "é".repeat(64);
    connect(&mut memory, "long", &long_id, "peerjs", "t");
    assert_eq!(texts(&mut memory, "long"), [r#"{"type":"OPEN"}"#]);
    let longer_id = format!("{long_id}x");
    connect(&mut memory, "longer", &longer_id, "peerjs", "t");
    assert_refused(&mut memory, "longer", "id: expected 1 to 128 bytes of UTF-8");
    for (peer, query, sentence) in [
        ("a", "", MISSING),
        ("b", "?key=k&id=&token=t", MISSING),
        ("c", "?key=k&id=i", MISSING),
        ("d", "?key=&id=i&token=t", MISSING),
        ("e", "?key=k&id=i&token=t&id=", MISSING),
        ("f", "?Key=k&id=i&token=t", MISSING),
        ("g", "?key=k&id=%ff&token=t", "id: expected 1 to 128 bytes of UTF-8"),
    ] {
        memory.open_at(peer, &format!("/peerjs{query}"));
        assert_refused(&mut memory, peer, sentence);
    }
    assert_eq!(memory.count("bad_parameters"), 8);
    // Ids are compared exactly: case and Unicode normalization matter.
    for (peer, id) in
        [("1", "Tea"), ("2", "tea"), ("3", "te%CC%81"), ("4", "t%C3%A9"), ("5", "tea+"), ("6", "%00")]
    {
        connect(&mut memory, peer, id, "peerjs", "t");
        assert_eq!(texts(&mut memory, peer), [r#"{"type":"OPEN"}"#], "{id}");
    }
    Box::new(memory).finish();
}

// ---- R17 ----

#[test]
fn r17_shutdown_closes_all_connections_and_no_departure_is_announced() {
    let mut net = Net::new(&config(&["--peerjs"]));
    for id in ["a", "b", "c"] {
        open(&mut net, id);
    }
    send(&mut net, "a", "OFFER", "b", json!(1));
    assert_eq!(texts(&mut net, "b").len(), 1);
    send(&mut net, "a", "OFFER", "absent", json!(1));
    net.close("c");
    assert_eq!((texts(&mut net, "a").len(), texts(&mut net, "b").len()), (0, 0));
    net.server.stop();
    net.run_until_idle();
    for id in ["a", "b"] {
        assert_eq!(net.next_received(id), Some(Received::Closed(1001)));
        assert_eq!(net.next_received(id), None);
    }
}

#[test]
fn r17_drain_admits_clients_of_keys_in_use() {
    let mut net = Net::new(&config(&["--peerjs", "--drain", "60", "--max-rate", "0"]));
    open(&mut net, "a");
    net.server.drain();
    open(&mut net, "b");
    assert_eq!(net.status("/peerjs?key=other&id=c&token=t", true), Some(503));
    send(&mut net, "a", "OFFER", "b", json!(1));
    assert_eq!(texts(&mut net, "b"), [relayed("OFFER", "a", "b", json!(1))]);
}
