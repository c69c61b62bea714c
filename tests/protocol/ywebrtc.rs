//! y-webrtc, where transcripts are not enough: one test or more for each requirement R1 to R10 and the tokens. The
//! requirements are those of `src/protocols/README.md`.

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use crate::common::memory::{Memory, Recorded, remaining_state};
use crate::common::pipe::frame;
use crate::common::sockets::Net;
use crate::common::transcript::{Received, SECRET, Transcript, Transport};
use noroshi::config::{Command, Config};
use noroshi::http::ListenerKind;
use noroshi::http::token::{Claims, Secrets};
use noroshi::limits::{
    BASE_BYTES, LARGE_QUEUE_BYTES_MAX_FLOOR, RATE_DELIVERIES_PER_CREDIT, RATE_VIOLATION_TIME_MAX,
    ROOM_TEXT_BYTES_MAX, STALL_TIME_MAX, SUBSCRIPTION_BYTES, TOPICS_PER_CONNECTION_MAX,
};
use noroshi::memory_budget::Budget;
use noroshi::protocols::{self, ywebrtc};
use serde_json::{Value, json};

const PATH: &str = "/y-webrtc";

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.mount(&ywebrtc::DESCRIPTOR.endpoint, PATH.to_owned());
    change(&mut config);
    config
}

fn memory() -> Memory {
    Memory::new(&config(|_| ()))
}

fn send(transport: &mut dyn Transport, peer: &str, message: Value) {
    transport.send(peer, message.to_string().as_bytes(), false);
}

fn subscribe(transport: &mut dyn Transport, peer: &str, topics: &[&str]) {
    transport.open_at(peer, PATH);
    send(transport, peer, json!({"type": "subscribe", "topics": topics}));
}

/// Returns the texts that a peer has received.
fn texts(transport: &mut dyn Transport, peer: &str) -> Vec<String> {
    let next = || match transport.next_received(peer) {
        Some(Received::Text(text)) => Some(text),
        None => None,
        other => panic!("{peer} received {other:?}"),
    };
    std::iter::from_fn(next).collect()
}

fn parse_flags(flags: &[&str]) -> Result<Config, String> {
    match Config::parse(&protocols::endpoints(protocols::ALL), flags.iter().map(OsString::from)) {
        Ok(Command::Run(config)) => Ok(config),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    }
}

// ---- R1: mount ----

#[test]
fn r1_path_and_all_paths_below_it_are_served() {
    let mut net = Box::new(Net::new(&parse_flags(&["--y-webrtc"]).unwrap()));
    let paths = ["/y-webrtc", "/y-webrtc/", "/y-webrtc/tea/a%2fb", "/y-webrtc//?x=%ff", "/y-webrtc?room=tea"];
    for path in paths {
        net.open_at(path, path);
        send(&mut *net, path, json!({"type": "subscribe", "topics": ["tea"]}));
    }
    send(&mut *net, paths[0], json!({"type": "publish", "topic": "tea"}));
    for path in paths {
        assert_eq!(texts(&mut *net, path), [r#"{"topic":"tea","type":"publish","clients":5}"#], "{path}");
    }
    for (path, is_upgrade, status) in
        [("/y-webrtc", false, 426), ("/y-webrtcs", true, 404), ("/", true, 404), ("/", false, 200)]
    {
        assert_eq!(net.status(path, is_upgrade), Some(status), "{path}");
    }
    net.finish();
}

#[test]
fn r1_protocol_at_the_top_takes_the_upgrades_of_no_other_protocol() {
    let config = parse_flags(&["--y-webrtc=/", "--ayame"]).unwrap();
    let mut net = Box::new(Net::new(&config));
    for path in ["/", "/tea", "/signaling/x", "/y-webrtc"] {
        net.open_at(path, path);
        send(&mut *net, path, json!({"type": "ping"}));
        assert_eq!(texts(&mut *net, path), [r#"{"type":"pong"}"#], "{path}");
    }
    net.open_at("ayame", "/signaling");
    send(&mut *net, "ayame", json!({"type": "register", "roomId": "tea"}));
    assert!(texts(&mut *net, "ayame")[0].contains("accept"));
    net.open("noroshi", "tea");
    send(&mut *net, "noroshi", json!({"type": "join", "id": "a"}));
    assert!(texts(&mut *net, "noroshi")[0].contains("joined"));
    assert!(net.request(ListenerKind::Main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").contains("<!doctype html>"));
    assert_eq!((net.status("/healthz", false), net.status("/tea", false)), (Some(200), Some(426)));
    net.finish();
    let error = parse_flags(&["--y-webrtc=/", "--matchbox"]).unwrap_err();
    assert_eq!(error, "--y-webrtc and --matchbox: expected different paths, got the same for both");
    parse_flags(&["--y-webrtc=/", "--matchbox=/games"]).unwrap();
}

#[test]
fn r1_protocol_is_off_without_its_flag() {
    let mut net = Box::new(Net::new(&Config::default()));
    assert_eq!(net.status(PATH, true), Some(404));
    net.finish();
    for (flag, path) in [("--y-webrtc=/docs", "/docs"), ("--y-webrtc=/", "")] {
        assert_eq!(parse_flags(&[flag]).unwrap().path_of(&ywebrtc::DESCRIPTOR.endpoint), Some(path));
    }
    let help = Config::help(&protocols::endpoints(protocols::ALL));
    let line = "      --y-webrtc[=PATH]      also serve y-webrtc's protocol, at PATH or at /y-webrtc [default: off]\n";
    assert!(help.contains(line), "{help}");
}

// ---- R2: relay ----

#[test]
fn r2_message_is_relayed_as_it_was_written_with_the_number_of_subscribers() {
    let mut memory = memory();
    subscribe(&mut memory, "A", &["tea"]);
    subscribe(&mut memory, "B", &["tea"]);
    for (sent, received) in [
        (
            r#" {"type" : "publish",  "topic":"tea", "data":1e400 } "#,
            r#" {"type" : "publish",  "topic":"tea", "data":1e400 ,"clients":2}"#,
        ),
        (
            r#"{"clients":9,"type":"publish","topic":"t\u0065a","\ud800":"\ud800"}"#,
            r#"{"type":"publish","topic":"t\u0065a","\ud800":"\ud800","clients":2}"#,
        ),
        (
            r#"{"type":"publish","clients":[1,{"clients":2}],"topic":"tea","cl\u0069ents":3,"clients":4}"#,
            r#"{"type":"publish","topic":"tea","clients":2}"#,
        ),
        (
            r#"{"type":"ping","type":"publish","topic":"no","data":{"clients":1},"topic":"tea"}"#,
            r#"{"type":"ping","type":"publish","topic":"no","data":{"clients":1},"topic":"tea","clients":2}"#,
        ),
    ] {
        for is_binary in [false, true] {
            memory.send("A", sent.as_bytes(), is_binary);
            for peer in ["A", "B"] {
                assert_eq!(texts(&mut memory, peer), [received]);
            }
        }
    }
    let counts = memory.dispatcher.each().find(|(name, _)| *name == "y-webrtc").unwrap().1.counts(memory.now);
    assert_eq!((counts.peers, counts.rooms, counts.deliveries), (2, 1, Some(16)));
    assert_eq!((memory.count("publish"), memory.count("subscribe")), (8, 2));
    Box::new(memory).finish();
}

// ---- R3: invalid messages ----

#[test]
fn r3_invalid_messages_are_counted_and_ignored() {
    let mut memory = memory();
    subscribe(&mut memory, "A", &["tea"]);
    let invalid: [&[u8]; 19] = [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"17",
        b"[]",
        br#""ping""#,
        b"{}",
        br#"{"type":7}"#,
        br#"{"type":"pong"}"#,
        br#"{"type":"ping"}}"#,
        br#"{"type":"publish"}"#,
        br#"{"type":"publish","topic":7}"#,
        br#"{"type":"publish","topic":""}"#,
        br#"{"type":"publish","topic":"\ud800"}"#,
        br#"{"type":"subscribe","topics":"tea"}"#,
        br#"{"type":"subscribe","topics":{}}"#,
        br#"{"type":"unsubscribe","topics":7}"#,
        br#"{"type":"subscribe","topics":[7]}"#,
    ];
    for (index, message) in invalid.into_iter().enumerate() {
        memory.send("A", message, false);
        assert_eq!(memory.count("not_understood"), index as u64 + 1, "{message:?}");
        assert_eq!(texts(&mut memory, "A"), [""; 0]);
    }
    for missing in [json!({"type": "subscribe"}), json!({"type": "unsubscribe", "topics": null})] {
        send(&mut memory, "A", missing);
    }
    assert_eq!(memory.count("not_understood"), invalid.len() as u64);
    send(&mut memory, "A", json!({"type": "publish", "topic": "tea"}));
    assert_eq!(texts(&mut memory, "A").len(), 1, "the connection is usable");
    Box::new(memory).finish();
}

#[test]
fn r3_malformed_frames_close_only_their_own_connection() {
    let broken: [&[u8]; 4] = [
        b"\x81\x05hello",
        b"\xf1\x80\0\0\0\0",
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        &frame(0x81, b"\xff"),
    ];
    let mut net = Box::new(Net::new(&config(|_| ())));
    subscribe(&mut *net, "A", &["tea"]);
    for (bytes, code) in broken.into_iter().zip([1002, 1002, 1009, 1007]) {
        subscribe(&mut *net, "B", &["tea"]);
        net.socket("B").get_mut().write_all(bytes).unwrap();
        net.run_until_idle();
        assert_eq!(net.next_received("B"), Some(Received::Closed(code)));
        send(&mut *net, "A", json!({"type": "publish", "topic": "tea"}));
        assert_eq!(texts(&mut *net, "A"), [r#"{"topic":"tea","type":"publish","clients":1}"#]);
    }
    net.finish();
}

// ---- R4: liveness ----

#[test]
fn r4_vanished_subscriber_is_closed_after_two_ping_intervals() {
    let text = r#"
A +
A > {"type":"subscribe","topics":["tea"]}
B +
B > {"type":"subscribe","topics":["tea"]}
B !
A ~ 49
A > {"type":"publish","topic":"tea"}
A < {"type":"publish","topic":"tea","clients":2}
A ~ 3
A > {"type":"publish","topic":"tea"}
A < {"type":"publish","topic":"tea","clients":1}
A > {"type":"ping"}
A < {"type":"pong"}
"#;
    let transcript = Transcript::parse("ywebrtc/vanished".to_owned(), text);
    transcript.play(Box::new(Net::new(&transcript.config)));
}

#[test]
fn r4_any_frame_is_a_sign_of_life() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    subscribe(&mut *net, "A", &["tea"]);
    net.stop_reading("A");
    for _ in 0..10 {
        net.advance(20);
        net.socket("A").get_mut().write_all(&frame(0x8a, b"")).unwrap();
        net.run_until_idle();
    }
    subscribe(&mut *net, "B", &[]);
    send(&mut *net, "B", json!({"type": "publish", "topic": "tea"}));
    assert_eq!(remaining_state(net.server.dispatcher()).0, 1, "A is still subscribed");
    net.finish();
}

// ---- R5: limits ----

#[test]
fn r5_topic_has_1_to_256_bytes() {
    let mut memory = memory();
    let longest = "ü".repeat(ROOM_TEXT_BYTES_MAX / 2);
    let too_long = format!("{longest}x");
    subscribe(&mut memory, "A", &["", &too_long, &longest]);
    assert_eq!((memory.count("not_understood"), remaining_state(&memory.dispatcher).1), (2, 1));
    for topic in ["", &too_long, &longest] {
        send(&mut memory, "A", json!({"type": "publish", "topic": topic}));
    }
    assert_eq!((memory.count("not_understood"), texts(&mut memory, "A").len()), (4, 1));
    Box::new(memory).finish();
}

#[test]
fn r5_connection_has_at_most_1024_topics() {
    let mut memory = memory();
    subscribe(&mut memory, "A", &[]);
    let topics: Vec<String> = (0..TOPICS_PER_CONNECTION_MAX + 3).map(|topic| topic.to_string()).collect();
    let conn = memory.conn("A");
    let message = json!({"type": "subscribe", "topics": topics}).to_string();
    for _ in 0..2 {
        memory.handle(crate::common::input::Input::Text(conn, &message));
    }
    assert_eq!(memory.count("too_many_topics"), 6);
    assert_eq!(remaining_state(&memory.dispatcher).1, TOPICS_PER_CONNECTION_MAX);
    let limits = memory.outbox.effects.iter().filter(|effect| matches!(effect, Recorded::LimitReached(..)));
    assert_eq!(
        limits.collect::<Vec<_>>(),
        [&Recorded::LimitReached(conn, "too_many_topics")],
        "it is logged once"
    );
    let name_bytes: usize = topics[..TOPICS_PER_CONNECTION_MAX].iter().map(String::len).sum();
    assert_eq!(memory.reserved(), TOPICS_PER_CONNECTION_MAX * SUBSCRIPTION_BYTES + name_bytes);
    // A place that was freed can be used again.
    send(&mut memory, "A", json!({"type": "unsubscribe", "topics": ["7", "7", "no"]}));
    send(&mut memory, "A", json!({"type": "subscribe", "topics": ["1024", "1025"]}));
    assert_eq!(memory.count("too_many_topics"), 7);
    Box::new(memory).finish();
}

#[test]
fn r5_subscriptions_count_towards_the_memory_limit() {
    let mut memory = memory();
    let budget =
        Config { memory_bytes_max: Some(BASE_BYTES + 10 * (SUBSCRIPTION_BYTES + 1)), ..config(|_| ()) };
    memory.outbox.budget = Budget::new(&budget);
    subscribe(&mut memory, "A", &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b"]);
    assert_eq!((remaining_state(&memory.dispatcher).1, memory.count("too_many_topics")), (10, 2));
    subscribe(&mut memory, "B", &["0"]);
    assert_eq!(memory.count("too_many_topics"), 3);
    send(&mut memory, "A", json!({"type": "unsubscribe", "topics": ["3"]}));
    send(&mut memory, "B", json!({"type": "subscribe", "topics": ["0"]}));
    send(&mut memory, "B", json!({"type": "publish", "topic": "0"}));
    assert!(texts(&mut memory, "B")[0].contains(r#""clients":2"#));
    Box::new(memory).finish();
}

/// Returns how many messages of this size a connection may publish at once in a topic with this many subscribers.
fn burst(subscribers: usize, bytes: usize, rate: u32) -> usize {
    let mut memory = Memory::new(&config(|config| config.rate_max = rate));
    for number in 0..subscribers {
        subscribe(&mut memory, &number.to_string(), &["tea"]);
    }
    memory.open_at("P", PATH);
    let mut message = json!({"type": "publish", "topic": "tea", "data": ""}).to_string();
    message.insert_str(message.find('"').unwrap() + 1, &"x".repeat(bytes - message.len()));
    let mut passed = 0;
    while memory.count("rate_limited") == 0 {
        let conn = memory.conn("P");
        memory.handle(crate::common::input::Input::Text(conn, &message));
        let delivered = memory.outbox.effects.drain(..).filter(|effect| matches!(effect, Recorded::Send(..)));
        let delivered = delivered.count();
        assert!(delivered == subscribers || (delivered == 0 && memory.count("rate_limited") == 1));
        passed += usize::from(delivered > 0);
    }
    passed
}

#[test]
fn r5_publish_is_paid_by_size_and_number_of_subscribers() {
    let group = RATE_DELIVERIES_PER_CREDIT;
    for (subscribers, bytes, credits) in
        [(1, 100, 1), (group, 4096, 1), (group + 1, 100, 2), (group, 4097, 2), (3 * group, 5000, 6)]
    {
        assert_eq!(burst(subscribers, bytes, 6), 60 / credits, "{subscribers} subscribers, {bytes} bytes");
    }
}

/// A restart of a document with 200 editors: each publishes about 200 messages at once, to 200 subscribers.
#[test]
fn r5_clients_of_a_large_document_may_reconnect_at_once() {
    assert!(burst(200, 700, Config::default().rate_max) >= 200);
}

#[test]
fn r5_number_of_subscribers_is_not_limited() {
    let mut memory = Memory::new(&config(|config| config.mesh_peers_max = 1));
    for number in 0..300 {
        subscribe(&mut memory, &number.to_string(), &["tea"]);
    }
    send(&mut memory, "7", json!({"type": "publish", "topic": "tea"}));
    for number in 0..300 {
        let received = texts(&mut memory, &number.to_string());
        assert_eq!(received, [r#"{"topic":"tea","type":"publish","clients":300}"#]);
    }
    Box::new(memory).finish();
}

#[test]
fn r5_client_that_stays_over_the_rate_is_closed_and_no_longer_counted() {
    let mut memory = Memory::new(&config(|config| config.rate_max = 1));
    for number in 0..RATE_DELIVERIES_PER_CREDIT {
        subscribe(&mut memory, &number.to_string(), &["tea"]);
    }
    subscribe(&mut memory, "P", &["tea", "milk"]);
    // Ten credits: one for subscribing, then two for each message, of which the dispatcher charges one.
    for second in 0..=RATE_VIOLATION_TIME_MAX.as_secs() + 1 {
        for _ in 0..8 {
            if memory.next_received("P") == Some(Received::Closed(1008)) {
                assert!(second >= RATE_VIOLATION_TIME_MAX.as_secs());
                send(&mut memory, "0", json!({"type": "publish", "topic": "tea"}));
                let last = texts(&mut memory, "0").pop().unwrap();
                assert!(last.contains(&format!(r#""clients":{RATE_DELIVERIES_PER_CREDIT}"#)), "{last}");
                assert_eq!(remaining_state(&memory.dispatcher).1, 1);
                return Box::new(memory).finish();
            }
            send(&mut memory, "P", json!({"type": "publish", "topic": "tea"}));
        }
        memory.advance(1);
    }
    panic!("the connection is not closed");
}

// ---- R6: slow readers ----

#[test]
fn r6_message_is_dropped_only_for_the_subscriber_whose_queue_is_full() {
    let mut memory = memory();
    for peer in ["A", "B", "C"] {
        subscribe(&mut memory, peer, &["tea"]);
    }
    let conn = memory.conn("B");
    memory.outbox.full.insert(conn);
    send(&mut memory, "A", json!({"type": "publish", "topic": "tea"}));
    for (peer, received) in [("A", 1), ("B", 0), ("C", 1)] {
        assert_eq!(texts(&mut memory, peer).len(), received, "{peer}");
    }
    assert_eq!(memory.count("peer_busy"), 1);
    Box::new(memory).finish();
}

#[test]
fn r6_queue_holds_two_mebibytes_and_a_subscriber_that_reads_nothing_is_closed() {
    let mut net = Box::new(Net::new(&config(|config| config.rate_max = 0)));
    for peer in ["A", "B"] {
        subscribe(&mut *net, peer, &["tea"]);
    }
    net.stop_reading("B");
    let data = "x".repeat(60_000);
    let busy = |net: &Net| {
        let counts = net.server.dispatcher().each().find(|(name, _)| *name == "y-webrtc").unwrap().1;
        let errors = counts.counts(Duration::ZERO).errors;
        errors.into_iter().find(|(name, _)| *name == "peer_busy").unwrap().1
    };
    let mut bytes = 0;
    while busy(&net) == 0 {
        send(&mut *net, "A", json!({"type": "publish", "topic": "tea", "data": data}));
        assert_eq!(texts(&mut *net, "A").len(), 1);
        bytes += data.len();
    }
    // The rest is in the buffers of the kernel.
    assert!(bytes > LARGE_QUEUE_BYTES_MAX_FLOOR, "{bytes}");
    let used = net.server.shared().budget.used();
    assert!(used < BASE_BYTES + LARGE_QUEUE_BYTES_MAX_FLOOR + 100_000, "{used} bytes are used");
    net.advance(STALL_TIME_MAX.as_secs() + 2);
    send(&mut *net, "A", json!({"type": "publish", "topic": "tea"}));
    assert_eq!(texts(&mut *net, "A"), [r#"{"topic":"tea","type":"publish","clients":1}"#]);
    net.finish();
}

// ---- R7: tokens ----

/// Returns the path with a token for this room or this prefix of rooms, which expires in the year 2096.
fn with_token(room: Option<&str>, room_prefix: Option<&str>) -> String {
    let token = Secrets::parse(SECRET).unwrap().sign(&Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        room: room.map(Box::from),
        room_prefix: room_prefix.map(Box::from),
        id: Some("alice".into()),
    });
    format!("{PATH}?token={token}")
}

#[test]
fn r7_token_is_required_and_limits_the_topics() {
    let mut net = Box::new(Net::new(&config(|config| {
        config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
    })));
    for path in [PATH, "/y-webrtc?token=", "/y-webrtc?token=x", "/y-webrtc/tea"] {
        assert_eq!(net.status(path, true), Some(401), "{path}");
    }
    for (peer, path, allowed) in [
        ("any", with_token(None, None), vec!["tea", "tea-1", "milk"]),
        ("room", with_token(Some("tea"), None), vec!["tea"]),
        ("prefix", with_token(None, Some("tea")), vec!["tea", "tea-1"]),
        ("both", with_token(Some("tea-1"), Some("milk")), vec![]),
        ("star", with_token(Some("t*"), None), vec![]),
        ("empty", with_token(Some(""), None), vec![]),
    ] {
        net.open_at(peer, &path);
        send(&mut *net, peer, json!({"type": "subscribe", "topics": ["tea", "tea-1", "milk"]}));
        for topic in ["tea", "tea-1", "milk"] {
            send(&mut *net, peer, json!({"type": "publish", "topic": topic}));
        }
        let received = texts(&mut *net, peer);
        let expected =
            allowed.iter().map(|topic| format!(r#"{{"topic":"{topic}","type":"publish","clients":1}}"#));
        assert_eq!(received, expected.collect::<Vec<_>>(), "{peer}");
        net.close(peer);
    }
    // A publish to another topic reaches nobody.
    net.open_at("all", &with_token(None, None));
    send(&mut *net, "all", json!({"type": "subscribe", "topics": ["milk"]}));
    net.open_at("room", &with_token(Some("tea"), None));
    send(&mut *net, "room", json!({"type": "publish", "topic": "milk"}));
    assert_eq!(texts(&mut *net, "all"), [""; 0]);
    let counts = net.server.dispatcher().each().find(|(name, _)| *name == "y-webrtc").unwrap().1;
    let errors = counts.counts(Duration::ZERO).errors;
    assert!(errors.contains(&("forbidden", 2 * (2 + 1 + 3 + 3 + 3) + 1)), "{errors:?}");
    net.finish();
}

// ---- R8: first message ----

#[test]
fn r8_any_well_formed_message_satisfies_the_timeout() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    for (peer, message) in [
        ("subscribe", r#"{"type":"subscribe","topics":[]}"#),
        ("unsubscribe", r#"{"type":"unsubscribe"}"#),
        ("publish", r#"{"type":"publish","topic":"tea"}"#),
        ("ping", r#"{"type":"ping"}"#),
        ("silent", ""),
        ("unknown", r#"{"type":"hello"}"#),
    ] {
        net.open_at(peer, PATH);
        if !message.is_empty() {
            Transport::send(&mut *net, peer, message.as_bytes(), false);
        }
    }
    net.advance(29);
    assert_eq!(net.server.sessions(), 6);
    net.advance(600);
    for peer in ["silent", "unknown"] {
        assert_eq!(net.next_received(peer), Some(Received::Closed(1008)), "{peer}");
    }
    assert_eq!(texts(&mut *net, "ping"), [r#"{"type":"pong"}"#]);
    assert_eq!(net.server.sessions(), 4, "a connection without topics is not closed");
    net.finish();
}

// ---- R9: memory ----

#[test]
fn r9_topic_ends_with_its_last_subscription() {
    let mut memory = memory();
    subscribe(&mut memory, "A", &["tea", "milk"]);
    subscribe(&mut memory, "B", &["tea"]);
    assert_eq!(remaining_state(&memory.dispatcher).1, 2);
    let before = memory.reserved();
    send(&mut memory, "A", json!({"type": "unsubscribe", "topics": ["milk"]}));
    assert_eq!(remaining_state(&memory.dispatcher), (2, 1, None));
    assert_eq!(memory.reserved(), before - SUBSCRIPTION_BYTES - "milk".len());
    send(&mut memory, "A", json!({"type": "unsubscribe", "topics": ["tea"]}));
    assert_eq!(remaining_state(&memory.dispatcher), (1, 1, None));
    memory.close("B");
    assert_eq!((remaining_state(&memory.dispatcher), memory.reserved()), ((0, 0, None), 0));
    Box::new(memory).finish();
}

/// In linear time these million steps would take minutes.
#[test]
fn r9_leaving_a_large_topic_takes_logarithmic_time() {
    use crate::common::input::Input;
    use noroshi::http::query::Query;
    use noroshi::protocol::{Conn, Target, Times};

    const SUBSCRIBERS: usize = 50_000;
    let mut dispatcher = crate::common::memory::dispatcher(&config(|config| config.rate_max = 0));
    let mut out = crate::common::memory::Recorder::default();
    let target = Target { protocol: &ywebrtc::DESCRIPTOR, room: String::new(), query: Query::default() };
    let conn = |index: usize| Conn::new(index as u64 + 1, index);
    let mut input = |input: Input| {
        input.deliver(&mut dispatcher, Times::default(), &mut out);
        out.effects.clear();
    };
    for index in 0..SUBSCRIBERS {
        input(Input::Connected(conn(index), &target, None));
        input(Input::Text(conn(index), r#"{"type":"subscribe","topics":["tea","milk"]}"#));
    }
    for _ in 0..5 {
        for index in (1..SUBSCRIBERS).step_by(2).chain((0..SUBSCRIBERS).rev().step_by(2)) {
            input(Input::Text(conn(index), r#"{"type":"unsubscribe","topics":["tea"]}"#));
            input(Input::Text(conn(index), r#"{"type":"subscribe","topics":["tea"]}"#));
        }
    }
    for index in (1..SUBSCRIBERS).step_by(2).chain((0..SUBSCRIBERS).step_by(2)) {
        input(Input::Disconnected(conn(index)));
    }
    assert_eq!(remaining_state(&dispatcher), (0, 0, None));
    assert_eq!(out.budget.reserved(), 0);
}

// ---- R10: shutdown ----

#[test]
fn r10_stop_closes_all_connections_with_1001() {
    let mut net = Box::new(Net::new(&config(|_| ())));
    for (peer, topics) in [("A", &["tea"][..]), ("B", &["tea", "milk"]), ("C", &[])] {
        subscribe(&mut *net, peer, topics);
    }
    net.server.stop();
    net.run_until_idle();
    for peer in ["A", "B", "C"] {
        assert_eq!(net.next_received(peer), Some(Received::Closed(1001)), "{peer}");
    }
    net.finish();
}

#[test]
fn r10_drain_closes_the_subscribers_of_a_topic_one_after_the_other() {
    let mut net = Box::new(Net::new(&config(|config| config.drain = Duration::from_secs(40))));
    let peers: Vec<String> = (0..40).map(|peer| peer.to_string()).collect();
    for peer in &peers {
        subscribe(&mut *net, peer, &["tea"]);
    }
    net.server.drain();
    assert_eq!(net.status(PATH, true), Some(503), "a new client connects to another server");
    net.advance(19);
    assert_eq!(net.server.sessions(), peers.len());
    let mut before = peers.len();
    let mut closed_at_once = Vec::new();
    for _ in 0..20 {
        net.advance(1);
        closed_at_once.push(before - net.server.sessions());
        before = net.server.sessions();
    }
    assert!(closed_at_once.iter().all(|closed| *closed <= peers.len() / 4), "{closed_at_once:?}");
    assert!(closed_at_once.iter().filter(|closed| **closed > 0).count() >= 8, "{closed_at_once:?}");
    net.advance(2);
    for peer in &peers {
        assert_eq!(net.next_received(peer), Some(Received::Closed(1001)));
    }
    net.finish();
}
