//! GStreamer, where transcripts are not enough: one test or more for each requirement R1 to R14. The requirements are those of
//! `src/protocols/README.md`.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::time::Duration;

use crate::common::input::Input;
use crate::common::memory::{Memory, Recorded, Recorder, dispatcher, remaining_state};
use crate::common::pipe::frame;
use crate::common::sockets::Net;
use crate::common::transcript::{Received, SECRET, Transcript, Transport};
use noroshi::config::{Command, Config};
use noroshi::http::ListenerKind;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::{
    BASE_BYTES, GSTREAMER_LIST_BYTES_MAX, GSTREAMER_LISTENERS_MAX, GSTREAMER_META_BYTES_MAX,
    GSTREAMER_ROOM_META_BYTES_MAX, GSTREAMER_SESSION_BYTES, GSTREAMER_SESSIONS_PER_CONSUMER_MAX,
    GSTREAMER_SESSIONS_PER_PAIR_MAX, GSTREAMER_SESSIONS_PER_PRODUCER_MAX, QUEUE_BYTES_MAX_FLOOR,
    RATE_BLOCK_BYTES, RATE_BURST_SECONDS, RATE_DELIVERIES_PER_CREDIT, RATE_VIOLATION_TIME_MAX,
    STALL_TIME_MAX,
};
use noroshi::memory_budget::Budget;
use noroshi::protocol::{Conn, Target, Times};
use noroshi::protocols::{self, gstreamer};
use serde_json::{Value, json};

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.mount(&gstreamer::DESCRIPTOR.endpoint, String::new());
    change(&mut config);
    config
}

fn memory() -> Memory {
    Memory::new(&config(|_| ()))
}

fn send(transport: &mut dyn Transport, peer: &str, message: Value) {
    transport.send(peer, message.to_string().as_bytes(), false);
}

/// Returns the messages that a peer has received.
fn messages(transport: &mut dyn Transport, peer: &str) -> Vec<Value> {
    let next = || match transport.next_received(peer) {
        Some(Received::Text(text)) => Some(serde_json::from_str(&text).expect(&text)),
        None => None,
        other => panic!("{peer} received {other:?}"),
    };
    std::iter::from_fn(next).collect()
}

/// Returns the only message that a peer has received.
fn message(transport: &mut dyn Transport, peer: &str) -> Value {
    let mut messages = messages(transport, peer);
    assert_eq!(messages.len(), 1, "{peer}: {messages:?}");
    messages.remove(0)
}

/// Connects a peer, and returns its id.
fn connect(transport: &mut dyn Transport, peer: &str) -> String {
    connect_at(transport, peer, "/")
}

fn connect_at(transport: &mut dyn Transport, peer: &str, path: &str) -> String {
    transport.open_at(peer, path);
    let welcome = message(transport, peer);
    assert_eq!(welcome["type"], "welcome");
    welcome["peerId"].as_str().unwrap().to_owned()
}

fn set_status(transport: &mut dyn Transport, peer: &str, roles: Value, meta: Value) {
    send(transport, peer, json!({"type": "setPeerStatus", "roles": roles, "meta": meta}));
}

fn connect_producer(transport: &mut dyn Transport, peer: &str) -> String {
    let id = connect(transport, peer);
    set_status(transport, peer, json!(["producer"]), json!(null));
    id
}

/// Starts a session, and returns its id if there is no error. `peer` is not the producer.
fn start(transport: &mut dyn Transport, peer: &str, producer_id: &str) -> Option<String> {
    send(transport, peer, json!({"type": "startSession", "peerId": producer_id}));
    let answer = message(transport, peer);
    match answer["type"].as_str().unwrap() {
        "sessionStarted" => Some(answer["sessionId"].as_str().unwrap().to_owned()),
        "error" => None,
        other => panic!("{other}"),
    }
}

fn list(transport: &mut dyn Transport, peer: &str) -> Vec<Value> {
    send(transport, peer, json!({"type": "list"}));
    let answer = message(transport, peer);
    assert_eq!(answer["type"], "list");
    answer["producers"].as_array().unwrap().clone()
}

fn parse_flags(flags: &[&str]) -> Result<Config, String> {
    match Config::parse(&protocols::endpoints(protocols::ALL), flags.iter().map(OsString::from)) {
        Ok(Command::Run(config)) => Ok(config),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

fn play_on_sockets(text: &str) {
    let transcript = Transcript::parse("gstreamer/here".to_owned(), text);
    transcript.play(Box::new(Net::new(&transcript.config)));
}

// ---- The flag ----

#[test]
fn path_and_rooms_below_it_are_served() {
    for (flag, paths, others) in [
        ("--gstreamer", &["/", "/tea", "/a%2fb", "/?token=x", "/%E7%8B%BC"][..], &["/a/b", "/%ff"][..]),
        ("--gstreamer=/gst", &["/gst", "/gst/", "/gst/tea"], &["/", "/tea", "/gst/a/b"]),
    ] {
        let mut net = Box::new(Net::new(&parse_flags(&[flag]).unwrap()));
        for path in paths {
            connect_at(&mut *net, path, path);
            assert_eq!(
                net.status(path, false),
                Some(if *path == "/" || *path == "/?token=x" { 200 } else { 426 })
            );
        }
        for path in others {
            assert!(matches!(net.status(path, true), Some(400 | 404)), "{path}");
        }
        net.finish();
    }
    let help = Config::help(&protocols::endpoints(protocols::ALL));
    let line = "      --gstreamer[=PATH]     also serve GStreamer's protocol, at PATH/ROOM or at /ROOM [default: off]\n";
    assert!(help.contains(line), "{help}");
}

#[test]
fn two_protocols_at_one_path_are_an_error() {
    let error = parse_flags(&["--gstreamer", "--matchbox"]).unwrap_err();
    assert_eq!(error, "--gstreamer and --matchbox: expected different paths, got the same for both");
    let error = parse_flags(&["--matchbox=/x", "--gstreamer=/x"]).unwrap_err();
    assert_eq!(error, "--matchbox and --gstreamer: expected different paths, got the same for both");
    parse_flags(&["--gstreamer=/gst", "--matchbox"]).unwrap();
}

#[test]
fn peer_is_registered_at_the_upgrade() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    connect(&mut *net, "A");
    net.advance(600);
    assert_eq!((messages(&mut *net, "A").len(), net.server.sessions()), (0, 1));
    net.finish();
}

// ---- R1: no Close frame ----

#[test]
fn r1_stop_ends_tcp_without_a_close_frame() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    connect_producer(&mut *net, "P");
    connect(&mut *net, "C");
    net.open("noroshi", "tea");
    net.server.stop();
    net.run_until_idle();
    assert_eq!(net.next_received("noroshi"), Some(Received::Closed(1001)));
    for peer in ["P", "C"] {
        assert_eq!(net.next_received(peer), Some(Received::Closed(1006)), "{peer}");
    }
    net.finish();
}

#[test]
fn r1_drain_ends_the_peers_of_a_room_together_without_a_close_frame() {
    let mut net = Box::new(Net::new(&config(|config| config.drain = Duration::from_secs(40))));
    for number in 0..10 {
        for peer in ["P", "C"] {
            connect_at(&mut *net, &format!("{peer}{number}"), &format!("/{number}"));
        }
    }
    net.server.drain();
    assert_eq!(net.status("/new", true), Some(503));
    connect_at(&mut *net, "late", "/7");
    net.close("late");
    let mut seconds = 0;
    while remaining_state(net.server.dispatcher()).0 > 0 {
        net.advance(1);
        seconds += 1;
        for number in 0..10 {
            let [producer, consumer] = ["P", "C"].map(|peer| net.next_received(&format!("{peer}{number}")));
            assert_eq!(producer, consumer, "the peers of a room end in the same second");
            assert!(producer.is_none_or(|ended| ended == Received::Closed(1006)));
        }
    }
    assert!((30..=41).contains(&seconds), "{seconds} s");
    net.finish();
}

#[test]
fn r1_close_frame_of_a_client_is_answered() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    connect(&mut *net, "A");
    net.socket("A").close(None).unwrap();
    net.run_until_idle();
    assert_eq!(net.next_received("A"), Some(Received::Closed(1005)));
    assert_eq!(remaining_state(net.server.dispatcher()).0, 0);
    net.finish();
}

#[test]
fn r1_malformed_frames_and_large_messages_end_tcp_without_a_close_frame() {
    let too_big = frame(0x81, &vec![b'x'; Config::default().message_bytes_max + 1]);
    let broken: [&[u8]; 4] = [b"\x81\x05hello", b"\xf1\x80\0\0\0\0", &too_big, &frame(0x81, b"\xff")];
    let mut net = Box::new(Net::new(&config(|_| ())));
    connect(&mut *net, "A");
    for bytes in broken {
        connect(&mut *net, "B");
        net.socket("B").get_mut().write_all(bytes).unwrap();
        net.run_until_idle();
        assert_eq!(net.next_received("B"), Some(Received::Closed(1006)));
    }
    assert_eq!(list(&mut *net, "A"), [] as [Value; 0]);
    net.finish();
}

#[test]
fn r1_client_over_the_rate_is_ended_without_a_close_frame() {
    let mut net = Box::new(Net::new(&config(|config| config.rate_max = 1)));
    connect_producer(&mut *net, "P");
    connect(&mut *net, "J");
    set_status(&mut *net, "J", json!(["listener"]), json!(null));
    messages(&mut *net, "J");
    for _ in 0..=RATE_VIOLATION_TIME_MAX.as_secs() + 1 {
        for _ in 0..12 {
            if net.server.sessions() == 2 {
                send(&mut *net, "P", json!({"type": "list"}));
            }
        }
        net.advance(1);
    }
    let mut received = std::iter::from_fn(|| net.next_received("P"));
    let last = received.by_ref().last();
    assert_eq!(last, Some(Received::Closed(1006)));
    assert_eq!(message(&mut *net, "J")["roles"], json!([]));
    net.finish();
}

// ---- R2: liveness ----

#[test]
fn r2_silent_producer_is_removed_after_two_ping_intervals() {
    play_on_sockets(
        r#"
P +
P < {"type":"welcome","peerId":"$p"}
P > {"type":"setPeerStatus","roles":["producer"],"meta":{"name":"cam"}}
C +
C < {"type":"welcome","peerId":"$c"}
C > {"type":"setPeerStatus","roles":["listener"]}
C < {"type":"peerStatusChanged","roles":["listener"],"meta":null,"peerId":"$c"}
C > {"type":"startSession","peerId":"$p"}
C < {"type":"sessionStarted","peerId":"$p","sessionId":"$s"}
P < {"type":"startSession","peerId":"$c","sessionId":"$s","offer":null}
P !
C ~ 49
C > {"type":"list"}
C < {"type":"list","producers":[{"id":"$p","meta":{"name":"cam"}}]}
C ~ 3
C < {"type":"endSession","sessionId":"$s"}
C < {"type":"peerStatusChanged","roles":[],"meta":{"name":"cam"},"peerId":"$p"}
C > {"type":"list"}
C < {"type":"list","producers":[]}
"#,
    );
}

#[test]
fn r2_client_that_answers_pings_is_kept() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    connect_producer(&mut *net, "P");
    net.advance(3600);
    connect(&mut *net, "C");
    assert_eq!(list(&mut *net, "C").len(), 1);
    net.finish();
}

// ---- R3: slow readers ----

#[test]
fn r3_one_that_does_not_read_stops_nobody() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    let producer = connect_producer(&mut *net, "P");
    set_status(&mut *net, "P", json!(["producer"]), json!("x".repeat(GSTREAMER_META_BYTES_MAX - 2)));
    connect(&mut *net, "slow");
    net.stop_reading("slow");
    // The client writes until the server reads no more of it, because it is closed.
    for _ in 0..400 {
        if net.server.sessions() == 1 {
            break;
        }
        send(&mut *net, "slow", json!({"type": "list"}));
        if net.server.sessions() < 3 {
            connect(&mut *net, "C");
            assert_eq!(list(&mut *net, "C")[0]["id"], json!(producer));
            net.close("C");
        }
    }
    connect(&mut *net, "C");
    assert!(start(&mut *net, "C", &producer).is_some());
    assert_eq!(message(&mut *net, "P")["type"], "startSession");
    net.advance(STALL_TIME_MAX.as_secs() + 2);
    assert_eq!(remaining_state(net.server.dispatcher()).0, 2, "the slow reader is removed");
    net.finish();
}

#[test]
fn r3_status_is_dropped_only_for_the_listener_whose_queue_is_full() {
    let mut memory = memory();
    for peer in ["A", "B", "C"] {
        connect(&mut memory, peer);
        set_status(&mut memory, peer, json!(["listener"]), json!(null));
    }
    for peer in ["A", "B", "C"] {
        messages(&mut memory, peer);
    }
    let conn = memory.conn("B");
    memory.outbox.full.insert(conn);
    set_status(&mut memory, "A", json!(["listener"]), json!(1));
    for (peer, received) in [("A", 1), ("B", 0), ("C", 1)] {
        assert_eq!(messages(&mut memory, peer).len(), received, "{peer}");
    }
    assert_eq!(memory.count("peer_busy"), 1);
    Box::new(memory).finish();
}

// ---- R4: messages that end the pipeline of a camera ----

#[test]
fn r4_nothing_that_a_native_client_cannot_parse_is_relayed() {
    let mut memory = memory();
    let producer = connect_producer(&mut memory, "P");
    connect(&mut memory, "C");
    let session = start(&mut memory, "C", &producer).unwrap();
    message(&mut memory, "P");
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let ignored = [
        format!(r#"{{"type":"startSession","peerId":"{producer}","offer":""}}"#),
        format!(r#"{{"type":"startSession","peerId":"{producer}","offer":"\ud800"}}"#),
        format!(r#"{{"type":"startSession","peerId":"{producer}","offer":"a\u0000"}}"#),
        format!(r#"{{"type":"startSession","peerId":"{producer}","offer":[]}}"#),
        format!(r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"answer","sdp":""}}}}"#),
        format!(r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"answer","sdp":"\udc00"}}}}"#),
        format!(r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"rollback","sdp":"a"}}}}"#),
        format!(
            r#"{{"type":"peer","sessionId":"{session}","ice":{{"candidate":"\ud800","sdpMLineIndex":0}}}}"#
        ),
        format!(
            r#"{{"type":"peer","sessionId":"{session}","ice":{{"candidate":"","sdpMLineIndex":4294967296}}}}"#
        ),
        format!(r#"{{"type":"peer","sessionId":"{session}","ice":{{"candidate":"","sdpMLineIndex":1e0}}}}"#),
        r#"{"type":"setPeerStatus","roles":["listener"],"meta":1e999}"#.to_owned(),
        r#"{"type":"setPeerStatus","roles":["listener"],"meta":{"a\u0000":1}}"#.to_owned(),
        r#"{"type":"setPeerStatus","roles":["listener"],"meta":{"a":["\ud800"]}}"#.to_owned(),
        format!(r#"{{"type":"setPeerStatus","roles":["listener"],"meta":{deep}}}"#),
    ];
    for (index, text) in ignored.iter().enumerate() {
        memory.send("C", text.as_bytes(), false);
        assert_eq!(memory.count("not_understood"), index as u64 + 1, "{text}");
    }
    assert_eq!((messages(&mut memory, "C").len(), messages(&mut memory, "P").len()), (0, 0));
    // Further and repeated fields are left out.
    let text = format!(
        r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"offer","sdp":"x","x":{deep},"sdp":"a\r\n","type":"answer"}}}}"#
    );
    memory.send("C", text.as_bytes(), false);
    let expected =
        format!(r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"answer","sdp":"a\r\n"}}}}"#);
    assert_eq!(memory.next_received("P"), Some(Received::Text(expected)));
    Box::new(memory).finish();
}

// ---- R5, R6: see also the transcripts `stranger_ends_nothing` and `new_peer_is_no_request` ----

#[test]
fn r5_session_of_another_room_does_not_exist() {
    let mut memory = memory();
    let producer = connect_producer(&mut memory, "P");
    connect(&mut memory, "C");
    let session = start(&mut memory, "C", &producer).unwrap();
    connect_at(&mut memory, "X", "/other");
    for kind in ["endSession", "endSessionV1_1"] {
        send(&mut memory, "X", json!({"type": kind, "sessionId": session}));
    }
    send(
        &mut memory,
        "X",
        json!({"type": "peer", "sessionId": session, "sdp": {"type": "answer", "sdp": "a"}}),
    );
    assert_eq!((memory.count("unknown_session"), messages(&mut memory, "X").len()), (3, 0));
    assert_eq!((messages(&mut memory, "C").len(), messages(&mut memory, "P").len()), (0, 1));
    Box::new(memory).finish();
}

#[test]
fn r6_internal_messages_of_the_original_are_not_understood() {
    let mut memory = memory();
    connect_producer(&mut memory, "P");
    for kind in ["newPeer", "welcome", "peerStatusChanged", "sessionStarted", "error"] {
        send(
            &mut memory,
            "P",
            json!({"type": kind, "peerId": "x", "details": "x", "roles": [], "sessionId": "x"}),
        );
    }
    assert_eq!(memory.count("not_understood"), 5);
    assert_eq!(list(&mut memory, "P").len(), 1, "the roles are as they were");
    Box::new(memory).finish();
}

// ---- R7: rooms, see also the transcript `rooms_are_apart` ----

#[test]
fn r7_room_exists_while_a_peer_is_in_it() {
    let mut memory = memory();
    for (peer, path) in [("A", "/"), ("B", "/tea"), ("C", "/t%65a"), ("D", "/Tea")] {
        connect_at(&mut memory, peer, path);
    }
    assert_eq!(remaining_state(&memory.dispatcher), (4, 3, None));
    for peer in ["A", "B", "D"] {
        memory.close(peer);
    }
    assert_eq!(remaining_state(&memory.dispatcher), (1, 1, None));
    Box::new(memory).finish();
}

// ---- R8, R9: tokens ----

/// Returns a query with a token of these claims, which expires in the year 2096.
fn token(room: Option<&str>, room_prefix: Option<&str>, id: Option<&str>) -> String {
    Secrets::parse(SECRET).unwrap().sign(&Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        room: room.map(Box::from),
        room_prefix: room_prefix.map(Box::from),
        id: id.map(Box::from),
    })
}

fn config_with_tokens() -> Config {
    config(|config| config.token_secrets = Some(Secrets::parse(SECRET).unwrap()))
}

#[test]
fn r8_token_is_required_and_limits_the_rooms() {
    let mut net = Box::new(Net::new(&config_with_tokens()));
    for (path, token, status) in [
        ("/tea", None, 401),
        ("/tea", Some("x".to_owned()), 401),
        ("/tea", Some(token(None, None, None)), 101),
        ("/tea", Some(token(Some("tea"), None, None)), 101),
        ("/milk", Some(token(Some("tea"), None, None)), 403),
        ("/", Some(token(Some("tea"), None, None)), 403),
        ("/", Some(token(Some(""), None, None)), 101),
        ("/tea-1", Some(token(None, Some("tea"), None)), 101),
        ("/milk", Some(token(None, Some("tea"), None)), 403),
    ] {
        let query = token.as_ref().map_or(String::new(), |token| format!("?token={token}"));
        let header = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        for (query, header) in [(&query[..], ""), ("", &header[..])] {
            let request = format!(
                "GET {path}{query} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{header}\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            let mut stream = net.connect(ListenerKind::Main);
            stream.write_all(request.as_bytes()).unwrap();
            let mut bytes = [0; 1024];
            let n = net.wait_until(|_| stream.read(&mut bytes).ok());
            let response = String::from_utf8_lossy(&bytes[..n]);
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
        }
    }
    net.finish();
}

#[test]
fn r9_second_connection_with_the_same_sub_takes_over() {
    for on_sockets in [false, true] {
        let mut transport: Box<dyn Transport> = match on_sockets {
            true => Box::new(Net::new(&config_with_tokens())),
            false => Box::new(Memory::new(&config_with_tokens())),
        };
        let it = &mut *transport;
        let camera = format!("/tea?token={}", token(None, None, Some("cam \"1\"")));
        let viewer = format!("/tea?token={}", token(None, None, None));
        assert_eq!(connect_at(it, "first", &camera), "cam \"1\"");
        set_status(it, "first", json!(["producer", "listener"]), json!(1));
        messages(it, "first");
        let id = connect_at(it, "J", &viewer);
        set_status(it, "J", json!(["listener"]), json!(null));
        messages(it, "J");
        messages(it, "first");
        let session = start(it, "J", "cam \"1\"").unwrap();
        assert_eq!(message(it, "first")["peerId"], json!(id));
        // Another room has another holder of the id.
        assert_eq!(connect_at(it, "elsewhere", &camera.replace("tea", "milk")), "cam \"1\"");
        assert_eq!(connect_at(it, "second", &camera), "cam \"1\"");
        assert_eq!(it.next_received("first"), Some(Received::Closed(1006)));
        assert_eq!(
            messages(it, "J"),
            [
                json!({"type": "endSession", "sessionId": session}),
                json!({"type": "peerStatusChanged", "roles": [], "meta": 1, "peerId": "cam \"1\""}),
            ]
        );
        assert_eq!((list(it, "J").len(), it.next_received("elsewhere")), (0, None));
        set_status(it, "second", json!(["producer"]), json!(2));
        assert_eq!(message(it, "J")["meta"], 2);
        assert!(start(it, "J", "cam \"1\"").is_some());
        assert_eq!(message(it, "second")["type"], "startSession");
        transport.finish();
    }
}

#[test]
fn r9_only_connection_of_a_room_is_taken_over() {
    let mut memory = Memory::new(&config_with_tokens());
    let camera = format!("/tea?token={}", token(None, None, Some("cam")));
    for number in 0..3 {
        connect_at(&mut memory, &number.to_string(), &camera);
        assert_eq!(remaining_state(&memory.dispatcher), (1, 1, None));
    }
    Box::new(memory).finish();
}

#[test]
fn r9_ids_without_sub_are_random_uuids() {
    let mut memory = memory();
    let producer = connect_producer(&mut memory, "P");
    connect(&mut memory, "C");
    let session = start(&mut memory, "C", &producer).unwrap();
    for id in [&producer, &session] {
        let uuid = uuid_version(id);
        assert_eq!(uuid, Some('4'), "{id}");
    }
    assert_ne!(producer, session);
    Box::new(memory).finish();
}

/// Returns the version of a UUID in lower case with hyphens.
fn uuid_version(text: &str) -> Option<char> {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f' | '-');
    (lengths == [8, 4, 4, 4, 12] && text.chars().all(is_digit)).then(|| text.chars().nth(14)).flatten()
}

// ---- R10: see the transcript `lists_have_an_order` ----

#[test]
fn r10_lists_are_in_the_order_of_registration() {
    let mut memory = memory();
    let ids: Vec<String> = (0..50).map(|number| connect(&mut memory, &number.to_string())).collect();
    let order: Vec<usize> = (0..50).map(|number| number * 7 % 50).collect();
    for number in &order {
        set_status(&mut memory, &number.to_string(), json!(["producer"]), json!(number));
    }
    // A new description does not change the place, a role that was given up does.
    set_status(&mut memory, &order[0].to_string(), json!(["producer", "listener"]), json!(order[0]));
    for roles in [json!([]), json!(["consumer"]), json!(["producer"])] {
        set_status(&mut memory, &order[1].to_string(), roles, json!(order[1]));
    }
    messages(&mut memory, &order[0].to_string());
    let mut expected = order.clone();
    let moved = expected.remove(1);
    expected.push(moved);
    let listed = list(&mut memory, "3");
    let expected: Vec<Value> =
        expected.iter().map(|number| json!({"id": ids[*number], "meta": number})).collect();
    assert_eq!(listed, expected);
    Box::new(memory).finish();
}

// ---- R11: see the transcript `protocol_1_1` ----

#[test]
fn r11_version_is_that_of_the_receiver() {
    for (producer_version, kind) in
        [(None, "endSession"), (Some("v1_0"), "endSession"), (Some("v1_1"), "endSessionV1_1")]
    {
        for error in [json!(null), json!("no \"decoder\"")] {
            let mut memory = memory();
            let producer = connect(&mut memory, "P");
            if let Some(version) = producer_version {
                send(&mut memory, "P", json!({"type": "setProtocolVersion", "version": version}));
            }
            set_status(&mut memory, "P", json!(["producer"]), json!(null));
            connect(&mut memory, "C");
            let session = start(&mut memory, "C", &producer).unwrap();
            message(&mut memory, "P");
            send(&mut memory, "C", json!({"type": "endSessionV1_1", "sessionId": session, "error": error}));
            let mut expected = json!({"type": kind, "sessionId": session});
            if kind == "endSessionV1_1" {
                expected["error"] = error;
            }
            assert_eq!(message(&mut memory, "P"), expected);
            Box::new(memory).finish();
        }
    }
}

// ---- R12: limits ----

#[test]
fn r12_sessions_of_two_peers_and_of_a_consumer_are_limited() {
    let mut memory = memory();
    connect(&mut memory, "C");
    let pairs = GSTREAMER_SESSIONS_PER_CONSUMER_MAX / GSTREAMER_SESSIONS_PER_PAIR_MAX;
    let producers: Vec<String> =
        (0..=pairs).map(|number| connect_producer(&mut memory, &format!("P{number}"))).collect();
    let mut sessions = Vec::new();
    for producer in &producers[..pairs] {
        for _ in 0..GSTREAMER_SESSIONS_PER_PAIR_MAX {
            sessions.push(start(&mut memory, "C", producer).unwrap());
        }
        assert_eq!(start(&mut memory, "C", producer), None);
    }
    assert_eq!(start(&mut memory, "C", &producers[pairs]), None);
    assert_eq!(memory.count("too_many"), pairs as u64 + 1);
    assert_eq!(memory.reserved(), GSTREAMER_SESSIONS_PER_CONSUMER_MAX * GSTREAMER_SESSION_BYTES);
    send(&mut memory, "C", json!({"type": "endSession", "sessionId": sessions[0]}));
    assert!(start(&mut memory, "C", &producers[pairs]).is_some(), "a session that has ended is not counted");
    // Another consumer has sessions of its own.
    connect(&mut memory, "D");
    assert!(start(&mut memory, "D", &producers[1]).is_some());
    memory.close("C");
    assert_eq!(memory.reserved(), GSTREAMER_SESSION_BYTES);
    Box::new(memory).finish();
}

#[test]
fn r12_sessions_of_a_waiting_consumer_are_limited_whoever_starts_them() {
    let mut memory = memory();
    let consumer = connect(&mut memory, "C");
    set_status(&mut memory, "C", json!(["consumer"]), json!(null));
    connect(&mut memory, "P");
    let request = json!({"type": "startSession", "peerId": consumer});
    for _ in 0..GSTREAMER_SESSIONS_PER_PAIR_MAX {
        send(&mut memory, "P", request.clone());
        assert_eq!(message(&mut memory, "P")["type"], "startSession");
        assert_eq!(message(&mut memory, "C")["type"], "sessionStarted");
    }
    send(&mut memory, "P", request);
    assert_eq!(message(&mut memory, "P")["type"], "error");
    assert_eq!(messages(&mut memory, "C"), [] as [Value; 0]);
    Box::new(memory).finish();
}

#[test]
fn r12_sessions_of_a_producer_are_limited_and_end_together() {
    let mut memory = Memory::new(&config(|config| config.rate_max = 0));
    let producer = connect_producer(&mut memory, "P");
    let consumers = GSTREAMER_SESSIONS_PER_PRODUCER_MAX / GSTREAMER_SESSIONS_PER_PAIR_MAX;
    for number in 0..=consumers {
        let peer = number.to_string();
        connect(&mut memory, &peer);
        for _ in 0..GSTREAMER_SESSIONS_PER_PAIR_MAX {
            assert_eq!(start(&mut memory, &peer, &producer).is_some(), number < consumers);
        }
    }
    memory.close("P");
    for number in 0..=consumers {
        let ended = messages(&mut memory, &number.to_string()).len();
        assert_eq!(ended, if number < consumers { GSTREAMER_SESSIONS_PER_PAIR_MAX } else { 0 });
    }
    assert_eq!(memory.reserved(), 0);
    Box::new(memory).finish();
}

#[test]
fn r12_meta_of_a_peer_and_of_a_room_is_limited() {
    let mut memory = memory();
    let largest = json!("x".repeat(GSTREAMER_META_BYTES_MAX - 2));
    let peers = GSTREAMER_ROOM_META_BYTES_MAX / GSTREAMER_META_BYTES_MAX;
    for number in 0..=peers {
        connect(&mut memory, &number.to_string());
    }
    set_status(&mut memory, "0", json!(["producer"]), json!("x".repeat(GSTREAMER_META_BYTES_MAX - 1)));
    assert_eq!(message(&mut memory, "0")["type"], "error");
    assert_eq!((list(&mut memory, "0").len(), memory.reserved()), (0, 0), "nothing changes");
    for number in 0..peers {
        // Any role counts, and none, too.
        let roles = [json!(["producer"]), json!(["consumer"]), json!([])][number % 3].clone();
        for _ in 0..2 {
            set_status(&mut memory, &number.to_string(), roles.clone(), largest.clone());
        }
        assert_eq!(messages(&mut memory, &number.to_string()), [] as [Value; 0]);
    }
    assert_eq!(memory.reserved(), GSTREAMER_ROOM_META_BYTES_MAX);
    let last = peers.to_string();
    set_status(&mut memory, &last, json!(["producer"]), json!(1));
    assert_eq!(message(&mut memory, &last)["type"], "error");
    set_status(&mut memory, &last, json!(["producer"]), json!(null));
    assert_eq!(messages(&mut memory, &last), [] as [Value; 0], "a producer without meta is listed");
    connect_at(&mut memory, "elsewhere", "/other");
    set_status(&mut memory, "elsewhere", json!(["producer"]), largest.clone());
    assert_eq!(messages(&mut memory, "elsewhere"), [] as [Value; 0], "another room has a limit of its own");
    memory.close("0");
    set_status(&mut memory, &last, json!(["producer"]), largest);
    assert_eq!(messages(&mut memory, &last), [] as [Value; 0]);
    assert_eq!(memory.count("too_many"), 2);
    Box::new(memory).finish();
}

#[test]
fn r12_list_always_fits_into_a_queue() {
    const { assert!(GSTREAMER_LIST_BYTES_MAX + 64 < QUEUE_BYTES_MAX_FLOOR) };
    // Without the invariants, which would be checked after each of these thousands of inputs.
    let mut dispatcher = dispatcher(&config(|config| config.rate_max = 0));
    let mut out = Recorder::default();
    let target = Target { protocol: &gstreamer::DESCRIPTOR, room: String::new(), query: Query::default() };
    let conn = |number: usize| Conn::new(number as u64 + 1, number);
    let mut input = |input: Input| {
        input.deliver(&mut dispatcher, Times::default(), &mut out);
        let last = out.effects.drain(..).next_back();
        match last {
            Some(Recorded::Send(_, text)) => serde_json::from_str(&text).unwrap(),
            _ => Value::Null,
        }
    };
    let status = |roles: Value| json!({"type": "setPeerStatus", "roles": roles}).to_string();
    let mut number = 0;
    loop {
        input(Input::Connected(conn(number), &target, None));
        let answer = input(Input::Text(conn(number), &status(json!(["producer"]))));
        if answer["type"] == "error" {
            break;
        }
        number += 1;
    }
    let answer = input(Input::Text(conn(0), r#"{"type":"list"}"#));
    let listed = answer["producers"].as_array().unwrap();
    assert_eq!(listed.len(), number);
    assert!(number > 2500, "{number} producers");
    let bytes = answer.to_string().len();
    let entry_bytes = listed[0].to_string().len() + 1;
    assert!(
        (GSTREAMER_LIST_BYTES_MAX - entry_bytes..GSTREAMER_LIST_BYTES_MAX + 64).contains(&bytes),
        "{bytes}"
    );
    // Consumers have a list of their own.
    assert_eq!(input(Input::Text(conn(number), &status(json!(["consumer"])))), Value::Null);
    dispatcher.check();
}

#[test]
fn r12_listeners_of_a_room_are_limited() {
    // Without the invariants, as above.
    let mut dispatcher = dispatcher(&config(|config| config.rate_max = 0));
    let mut out = Recorder::default();
    let target = |room: &str| Target {
        protocol: &gstreamer::DESCRIPTOR,
        room: room.to_owned(),
        query: Query::default(),
    };
    let conn = |number: usize| Conn::new(number as u64 + 1, number);
    let status = |roles: Value| json!({"type": "setPeerStatus", "roles": roles}).to_string();
    let mut set_status = |number: usize, room: &str, roles: Value| {
        let (conn, target) = (conn(number), target(room));
        Input::Connected(conn, &target, None).deliver(&mut dispatcher, Times::default(), &mut out);
        let text = status(roles);
        Input::Text(conn, &text).deliver(&mut dispatcher, Times::default(), &mut out);
        let last = out.effects.drain(..).next_back();
        match last {
            Some(Recorded::Send(to, text)) if to == conn => {
                serde_json::from_str::<Value>(&text).unwrap()["type"].clone()
            }
            other => panic!("{other:?}"),
        }
    };
    for number in 0..GSTREAMER_LISTENERS_MAX {
        assert_eq!(set_status(number, "", json!(["listener"])), "peerStatusChanged");
    }
    let number = GSTREAMER_LISTENERS_MAX;
    assert_eq!(set_status(number, "", json!(["listener", "producer"])), "error");
    assert_eq!(set_status(number + 1, "other", json!(["listener"])), "peerStatusChanged");
    dispatcher.check();
}

#[test]
fn r12_meta_and_sessions_count_towards_the_memory_limit() {
    let mut memory = memory();
    let budget =
        Config { memory_bytes_max: Some(BASE_BYTES + GSTREAMER_SESSION_BYTES + 1000), ..config(|_| ()) };
    memory.outbox.budget = Budget::new(&budget);
    let producer = connect_producer(&mut memory, "P");
    set_status(&mut memory, "P", json!(["producer"]), json!("x".repeat(998)));
    assert_eq!((messages(&mut memory, "P").len(), memory.reserved()), (0, 1000));
    connect(&mut memory, "C");
    assert!(start(&mut memory, "C", &producer).is_some());
    message(&mut memory, "P");
    assert!(start(&mut memory, "C", &producer).is_none());
    set_status(&mut memory, "C", json!([]), json!(1));
    assert_eq!(message(&mut memory, "C")["type"], "error");
    assert_eq!(memory.count("too_many"), 2);
    Box::new(memory).finish();
}

/// Returns how often a peer may send a message at once. `prepare` is called before, and must set up the peer `A`.
fn burst(rate: u32, prepare: impl FnOnce(&mut Memory), message: impl Fn(usize) -> Value) -> usize {
    let mut memory = Memory::new(&config(|config| config.rate_max = rate));
    prepare(&mut memory);
    for passed in 0.. {
        let conn = memory.conn("A");
        memory.handle(Input::Text(conn, &message(passed).to_string()));
        let sent = memory.outbox.effects.drain(..).count();
        if memory.count("rate_limited") > 0 {
            assert_eq!(sent, 0, "a message over the rate has no effect");
            return passed;
        }
    }
    unreachable!()
}

#[test]
fn r12_status_is_paid_by_the_number_of_listeners_and_the_size() {
    for (listeners, bytes, credits) in [
        (0, 10, 1),
        (1, 10, 2),
        (RATE_DELIVERIES_PER_CREDIT, 10, 2),
        (RATE_DELIVERIES_PER_CREDIT + 1, 10, 3),
        (RATE_DELIVERIES_PER_CREDIT, RATE_BLOCK_BYTES, 4),
        (2 * RATE_DELIVERIES_PER_CREDIT, 2 * RATE_BLOCK_BYTES, 9),
    ] {
        let rate = 18;
        let prepare = |memory: &mut Memory| {
            for number in 0..listeners {
                connect(memory, &number.to_string());
                set_status(memory, &number.to_string(), json!(["listener"]), json!(null));
            }
            connect(memory, "A");
        };
        let message = |number| {
            let meta = format!("{number:0>bytes$}");
            json!({"type": "setPeerStatus", "roles": ["producer"], "meta": meta})
        };
        let passed = burst(rate, prepare, message);
        let burst_credits = (rate * RATE_BURST_SECONDS) as usize;
        assert_eq!(passed, burst_credits / credits, "{listeners} listeners, {bytes} bytes");
    }
}

#[test]
fn r12_list_is_paid_by_its_size() {
    for (meta_bytes, credits) in [(2, 1), (RATE_BLOCK_BYTES, 2), (3 * RATE_BLOCK_BYTES, 4)] {
        let prepare = |memory: &mut Memory| {
            connect(memory, "P");
            set_status(memory, "P", json!(["producer"]), json!("x".repeat(meta_bytes - 2)));
            connect(memory, "A");
        };
        let passed = burst(4, prepare, |_| json!({"type": "list"}));
        assert_eq!(passed, 40 / credits, "{meta_bytes} bytes");
        let prepare = |memory: &mut Memory| {
            connect(memory, "P");
            set_status(memory, "P", json!(["producer"]), json!("x".repeat(meta_bytes - 2)));
            connect(memory, "A");
        };
        assert_eq!(burst(4, prepare, |_| json!({"type": "listConsumers"})), 40, "it lists consumers only");
    }
}

#[test]
fn r12_end_of_a_session_is_paid_when_it_starts() {
    let mut memory = Memory::new(&config(|config| config.rate_max = 1));
    let producer = connect_producer(&mut memory, "P");
    connect(&mut memory, "C");
    for _ in 0..5 {
        assert!(start(&mut memory, "C", &producer).is_some());
    }
    send(&mut memory, "C", json!({"type": "list"}));
    assert_eq!((messages(&mut memory, "C").len(), memory.count("rate_limited")), (0, 1));
    messages(&mut memory, "P");
    memory.close("C");
    assert_eq!(messages(&mut memory, "P").len(), 5, "the disconnect costs nothing");
    Box::new(memory).finish();
}

#[test]
fn r12_burst_of_a_producer_with_ninety_viewers_passes() {
    let viewers = 90;
    let mut memory = Memory::new(&config(|_| ()));
    let producer = connect_producer(&mut memory, "A");
    for number in 0..viewers {
        connect(&mut memory, &number.to_string());
        start(&mut memory, &number.to_string(), &producer).unwrap();
    }
    let sessions: Vec<String> =
        messages(&mut memory, "A").iter().map(|it| it["sessionId"].as_str().unwrap().to_owned()).collect();
    for id in &sessions {
        let sdp = json!({"type": "offer", "sdp": "x".repeat(2800)});
        send(&mut memory, "A", json!({"type": "peer", "sessionId": id, "sdp": sdp}));
        for _ in 0..10 {
            let ice = json!({"candidate": "x".repeat(150), "sdpMLineIndex": 0});
            send(&mut memory, "A", json!({"type": "peer", "sessionId": id, "ice": ice}));
        }
    }
    assert_eq!(memory.count("rate_limited"), 0);
    for number in 0..viewers {
        assert_eq!(messages(&mut memory, &number.to_string()).len(), 11);
    }
    Box::new(memory).finish();
}

// ---- R13: full queues ----

#[test]
fn r13_session_ends_if_a_relayed_message_does_not_fit() {
    for (sender, receiver) in [("P", "C"), ("C", "P")] {
        for content in [
            json!({"sdp": {"type": "answer", "sdp": "a"}}),
            json!({"ice": {"candidate": "c", "sdpMLineIndex": 0}}),
        ] {
            let mut memory = memory();
            let producer = connect_producer(&mut memory, "P");
            connect(&mut memory, "C");
            let session = start(&mut memory, "C", &producer).unwrap();
            let other = start(&mut memory, "C", &producer).unwrap();
            messages(&mut memory, "P");
            let conn = memory.conn(receiver);
            memory.outbox.full.insert(conn);
            let mut relayed = content.clone();
            relayed["type"] = json!("peer");
            relayed["sessionId"] = json!(session);
            send(&mut memory, sender, relayed.clone());
            for peer in [sender, receiver] {
                assert_eq!(message(&mut memory, peer), json!({"type": "endSession", "sessionId": session}));
            }
            memory.outbox.full.clear();
            send(&mut memory, sender, relayed.clone());
            relayed["sessionId"] = json!(other);
            send(&mut memory, sender, relayed.clone());
            assert_eq!(message(&mut memory, receiver), relayed, "the other session goes on");
            assert_eq!((memory.count("peer_busy"), memory.count("unknown_session")), (1, 1));
            Box::new(memory).finish();
        }
    }
}

#[test]
fn r13_session_whose_start_does_not_fit_ends_at_once() {
    let mut memory = memory();
    let producer = connect_producer(&mut memory, "P");
    connect(&mut memory, "C");
    let conn = memory.conn("P");
    memory.outbox.full.insert(conn);
    send(&mut memory, "C", json!({"type": "startSession", "peerId": producer}));
    let received = messages(&mut memory, "C");
    let session = &received[0]["sessionId"];
    assert_eq!(
        received,
        [
            json!({"type": "sessionStarted", "peerId": producer, "sessionId": session}),
            json!({"type": "endSession", "sessionId": session}),
        ]
    );
    assert_eq!((messages(&mut memory, "P").len(), memory.count("peer_busy"), memory.reserved()), (0, 1, 0));
    Box::new(memory).finish();
}

// ---- R14: metrics, log and rooms ----

#[test]
fn r14_metrics_have_gauges_of_producers_and_sessions() {
    let mut net = Box::new(Net::new(&config(|config| config.metrics = Some("127.0.0.1:0".parse().unwrap()))));
    let producer = connect_producer(&mut *net, "P");
    connect_producer(&mut *net, "Q");
    connect_at(&mut *net, "X", "/other");
    connect(&mut *net, "C");
    start(&mut *net, "C", &producer).unwrap();
    Transport::send(&mut *net, "C", b"x", false);
    let page = net.request(ListenerKind::Operator, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    for line in [
        r#"noroshi_peers{protocol="gstreamer"} 4"#,
        r#"noroshi_rooms{protocol="gstreamer"} 2"#,
        "# TYPE noroshi_producers gauge",
        r#"noroshi_producers{protocol="gstreamer"} 2"#,
        "# TYPE noroshi_sessions gauge",
        r#"noroshi_sessions{protocol="gstreamer"} 1"#,
        r#"noroshi_messages_total{protocol="gstreamer",type="setPeerStatus"} 2"#,
        r#"noroshi_messages_total{protocol="gstreamer",type="startSession"} 1"#,
        r#"noroshi_errors_total{protocol="gstreamer",code="not_understood"} 1"#,
    ] {
        assert_eq!(page.lines().filter(|it| *it == line).count(), 1, "{line}: {page}");
    }
    assert!(net.status("/healthz", false) == Some(200));
    net.finish();
}

#[test]
fn r14_rooms_show_the_roles() {
    let mut memory = memory();
    for (roles, state) in [
        (json!([]), "peer"),
        (json!(["producer"]), "producer"),
        (json!(["consumer", "consumer"]), "consumer"),
        (json!(["listener"]), "listener"),
        (json!(["listener", "producer"]), "producer+listener"),
        (json!(["consumer", "listener"]), "consumer+listener"),
    ] {
        let id = connect_at(&mut memory, state, "/tea");
        set_status(&mut memory, state, roles, json!({"name": "secret"}));
        let (protocol, members) = memory.dispatcher.members(memory.conn(state));
        assert_eq!((protocol, members.len()), ("gstreamer", 1));
        assert_eq!((members[0].room, members[0].id.as_deref(), members[0].state), ("tea", Some(&*id), state));
    }
    Box::new(memory).finish();
}

#[test]
fn r14_departure_is_reported_once() {
    let mut memory = memory();
    connect(&mut memory, "A");
    let conn = memory.conn("A");
    memory.handle(Input::Disconnected(conn));
    memory.handle(Input::Disconnected(conn));
    let left = memory.outbox.effects.drain(..).filter(|effect| matches!(effect, Recorded::Left(_)));
    assert_eq!(left.count(), 1);
    Box::new(memory).finish();
}

// ---- Status ----

#[test]
fn repeated_status_is_told_only_without_the_peer_id() {
    let mut memory = memory();
    let id = connect(&mut memory, "A");
    connect(&mut memory, "J");
    set_status(&mut memory, "J", json!(["listener"]), json!(null));
    messages(&mut memory, "J");
    let status = |roles: Value, meta: Value, peer_id: Value| json!({"type": "setPeerStatus", "roles": roles, "meta": meta, "peerId": peer_id});
    for (message, told) in [
        // The status of a new peer, as it is before it has set one.
        (status(json!([]), json!(null), json!(null)), 0),
        (status(json!(["producer"]), json!({"a": 1}), json!(id)), 1),
        (status(json!(["producer"]), json!({"a": 1}), json!(id)), 0),
        (status(json!(["producer"]), json!({"a": 1}), json!("another")), 1),
        (status(json!(["producer"]), json!({"a": 1}), json!(null)), 1),
        (status(json!(["producer", "producer"]), json!({"a": 1}), json!(id)), 1),
        (status(json!(["producer", "producer"]), json!({"a": 2}), json!(id)), 1),
        (status(json!(["producer", "producer"]), json!({"a": 2}), json!(id)), 0),
    ] {
        let text = message.to_string();
        send(&mut memory, "A", message.clone());
        let received = messages(&mut memory, "J");
        assert_eq!(received.len(), told, "{text}");
        for received in received {
            assert_eq!((&received["roles"], &received["meta"]), (&message["roles"], &message["meta"]));
            assert_eq!(received["peerId"], json!(id), "a peer sets its own status only");
        }
    }
    Box::new(memory).finish();
}

#[test]
fn no_session_starts_with_oneself() {
    let mut memory = memory();
    let producer = connect_producer(&mut memory, "P");
    assert_eq!(start(&mut memory, "P", &producer), None);
    assert_eq!(memory.count("unknown_peer"), 1);
    Box::new(memory).finish();
}

#[test]
fn consumer_that_gives_up_its_role_ends_its_sessions() {
    let mut memory = memory();
    let consumer = connect(&mut memory, "C");
    set_status(&mut memory, "C", json!(["consumer"]), json!(null));
    let producer = connect_producer(&mut memory, "P");
    send(&mut memory, "P", json!({"type": "startSession", "peerId": consumer}));
    let session = message(&mut memory, "P")["sessionId"].clone();
    message(&mut memory, "C");
    // It gives up no role that it does not have.
    set_status(&mut memory, "P", json!(["producer", "listener"]), json!(null));
    message(&mut memory, "P");
    set_status(&mut memory, "C", json!([]), json!(null));
    assert_eq!(
        messages(&mut memory, "P"),
        [
            json!({"type": "endSession", "sessionId": session}),
            json!({"type": "peerStatusChanged", "roles": [], "meta": null, "peerId": consumer}),
        ]
    );
    // Without the role `consumer`, a session goes on when the status changes.
    assert!(start(&mut memory, "C", &producer).is_some());
    set_status(&mut memory, "C", json!(["listener"]), json!(null));
    assert_eq!(messages(&mut memory, "P").len(), 2, "startSession and peerStatusChanged");
    Box::new(memory).finish();
}
