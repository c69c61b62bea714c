//! Peers that send or read too slowly, too much or nothing valid, against a server process.

use std::io::Write;
use std::thread;
use std::time::Duration;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB, PAIR};
use crate::common::pipe::{PING, TEXT, frame};
use crate::common::sockets::Net;
use crate::common::transcript::Transport;
use nix::sys::signal::Signal;
use noroshi::config::Config;
use noroshi::limits::{
    CANDIDATES_MAX, HEAD_BYTES_MAX, QUEUE_BYTES_MAX_FLOOR, READ_BYTES_MAX, STORED_BYTES_MAX,
};
use serde_json::{Value, json};
use tungstenite::Message;

// ---- Slow heads ----

#[test]
fn unfinished_request_heads_time_out() {
    let mut loaded = LoadedServer::start("");
    let unfinished_head = format!("GET /ws HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(HEAD_BYTES_MAX - 100));
    let mut silent = loaded.connect_many(500, |address, _| Client::connect(address));
    let mut slow = loaded.connect_many(500, |address, _| Client::connect(address));
    // On a busy machine, the server may already have answered and closed some connections.
    slow.iter_mut().for_each(|client| _ = client.try_send(unfinished_head.as_bytes()));
    for _ in 0..4 {
        loaded.run_for(Duration::from_secs(1));
        for client in slow.iter_mut().filter(|client| !client.has_response("408")) {
            let _ = client.try_send(b"x");
        }
    }
    for client in slow.iter_mut().chain(&mut silent) {
        assert!(client.read_head().starts_with("HTTP/1.1 408 "));
    }
    drop((slow, silent));
    // A growing buffer may have twice the capacity of its content.
    loaded.finish(BASELINE_BYTES + 500 * 2 * HEAD_BYTES_MAX);
}

#[test]
fn unfinished_frames_time_out() {
    let mut loaded = LoadedServer::start("--ping-interval 2");
    let message = frame(TEXT, &[b'x'; 64 * KIB]);
    let mut stopped = loaded.connect_many(500, |address, i| {
        let mut client = Client::open(address, "tea").register(&i.to_string());
        client.send(&message[..message.len() - 1]);
        // A pong would become part of the unfinished frame.
        client.answers = false;
        client
    });
    loaded.wait_for_metric("closings_total{reason=\"silent\"}", 500);
    for client in &mut stopped {
        assert_eq!(client.receive_close(), 4001);
    }
    loaded.wait_for_metric("connections", 2);
    drop(stopped);
    loaded.finish(BASELINE_BYTES + 500 * 2 * Config::default().message_bytes_max);
}

// ---- Readers that do not read ----

#[test]
fn thousand_stalled_readers_are_closed() {
    let mut loaded = LoadedServer::start("--max-rate 0");
    let takes_little = |address, id: &str| Client::with_buffer(address, 4 * KIB).upgrade("tea").register(id);
    let stalled = loaded.connect_many(1000, |address, i| takes_little(address, &i.to_string()));
    let mut slow = takes_little(loaded.address(), "slow");
    let mut sender = Client::open(loaded.address(), "tea").register("sender");
    let sdp = "x".repeat(60 * KIB);
    let offer = |to: &str| format!(r#"{{"type":"offer","id":"sender","target_id":"{to}","sdp":"{sdp}"}}"#);
    // Fills the kernel's buffers on both sides and most of the queue.
    loaded.connect_many(stalled.len(), |_, i| {
        for _ in 0..5 {
            sender.send_text(&offer(&i.to_string()));
        }
    });
    loaded.connect_many(stalled.len(), |_, i| {
        let target = i.to_string();
        let is_told = |received: &Value| received["code"] == "peer_busy" && received["target_id"] == *target;
        let is_full = (0..5).any(|_| {
            sender.send_text(&offer(&target));
            sender.sync().iter().any(is_told)
        });
        assert!(is_full, "{target} takes no end of messages");
    });
    // They are closed ten seconds later, except the one that still reads a little.
    loaded.wait_until("the connections are closed", |server| {
        sender.send_text(&offer("slow"));
        sender.sync();
        slow.read_up_to(4 * KIB);
        server.metric("closings_total{reason=\"slow\"}") == 1000.0
    });
    for i in 0..stalled.len() {
        sender.send_text(&offer(&i.to_string()));
        assert_eq!(sender.receive_json()["code"], "unknown_peer");
    }
    loaded.wait_for_metric("connections", 4);
    drop((stalled, slow, sender));
    loaded.finish(BASELINE_BYTES + 1001 * (QUEUE_BYTES_MAX_FLOOR + 8 * KIB));
}

// ---- Flooding senders ----

/// Returns continuous input: a name, the first bytes and the repeated bytes. Pongs are not read.
fn floods() -> [(&'static str, Vec<u8>, Vec<u8>); 3] {
    [
        ("messages", vec![], frame(TEXT, br#"{"type":"leave","id":"X"}"#)),
        ("fragments-without-a-byte", frame(0x01, b""), frame(0x00, b"")),
        ("pings", vec![], frame(PING, &[7; 125])),
    ]
}

#[test]
fn floods_use_bounded_memory() {
    let mut loaded = LoadedServer::start("--max-rate 0");
    let talkers = floods().map(|(what, first, again)| {
        let mut client = Client::open(loaded.address(), what).register("X");
        thread::spawn(move || {
            client.send(&first);
            let thousand = again.repeat(1000);
            (0..100).for_each(|_| client.send(&thousand));
            client
        })
    });
    let mut refused = Client::open(loaded.address(), "tea").register("Y");
    for _ in 0..100 {
        refused.send(&frame(TEXT, b"{").repeat(1000));
        assert_eq!(refused.sync().len(), 1000);
        loaded.exchange_candidates();
    }
    let talkers = talkers.map(|talker| talker.join().unwrap());
    loaded.wait_for_metric("messages_total{type=\"leave\"}", 2 + 4 + 100_000);
    assert_eq!(loaded.server.metric("connections"), 2.0 + 4.0, "no connection was closed");
    drop((talkers, refused));
    loaded.finish(BASELINE_BYTES + QUEUE_BYTES_MAX_FLOOR);
}

/// Time is counted in iterations of the loop, which do not depend on the load of the machine.
#[test]
fn delivery_takes_one_iteration_regardless_of_other_senders() {
    const DELIVERIES: usize = 50;
    let mut net = Box::new(Net::new(&Config { rate_max: 0, ..Config::default() }));
    let mut talkers: Vec<_> = (0..9)
        .map(|i| {
            let (_, first, again) = &floods()[i % 3];
            let mut stream = net.websocket(&i.to_string()).into_inner();
            stream.write_all(first).unwrap();
            (stream, again.repeat(64 * KIB / again.len()), 0)
        })
        .collect();
    for id in PAIR {
        net.open(id, "");
        net.send(id, Message::text(json!({"type": "leave", "id": id}).to_string()));
    }
    let candidate = json!({"type": "candidateAdd", "id": "P", "target_id": "Q", "candidate": 0}).to_string();
    for _ in 0..DELIVERIES {
        for (stream, bytes, sent) in &mut talkers {
            if *sent <= DELIVERIES * READ_BYTES_MAX {
                *sent += stream.write(&bytes[*sent % bytes.len()..]).unwrap_or(0);
            }
        }
        net.socket("P").send(Message::text(&*candidate)).unwrap();
        net.server.poll_once(Some(Duration::ZERO)).unwrap();
        assert!(net.socket("Q").read().unwrap().is_text());
    }
    let was_ahead = |sent: usize| sent > DELIVERIES * READ_BYTES_MAX;
    assert!(talkers.iter().all(|(_, _, sent)| was_ahead(*sent)), "unread bytes were always available");
    drop(talkers);
    net.finish();
}

// ---- JSON ----

/// The parts of an extreme offer from A to B: prefix, repeated opening, middle, repeated closing and suffix; and the
/// expected error.
type Extreme = ([&'static str; 5], Option<&'static str>);

const EXTREMES: [Extreme; 11] = [
    ([r#""sdp":"#, "[", "1", "]", ""], None),
    ([r#""sdp":"#, r#"{"":"#, "{}", "}", ""], None),
    ([r#""x":"#, "[", "1", "]", r#","sdp":1"#], None),
    ([r#""sdp":"#, "[", "1", "", ""], Some("bad_json")),
    ([r#""id":"#, "[", "1", "]", ""], Some("bad_message")),
    ([r#"""#, "key", r#"":0,"sdp":1"#, "", ""], None),
    ([r#"""#, r"\u0074", r#"":0,"sdp":1"#, "", ""], None),
    ([r#""sdp":""#, r"\ud800", r#"""#, "", ""], None),
    ([r#""sdp":""#, r"\u0000", r#"""#, "", ""], None),
    ([r#""sdp":1"#, "0", "", "", ""], None),
    (["", r#""sdp":0,"#, r#""sdp":1"#, "", ""], None),
];

/// Sends offers of the maximum length.
fn send_extremes(flags: &str, message_bytes_max: usize, extremes: &[Extreme], memory_max: usize) {
    let mut loaded = LoadedServer::start(flags);
    let mut a = Client::open(loaded.address(), "tea").register("A");
    let mut b = Client::open(loaded.address(), "tea").register("B");
    for ([before, again, middle, again_after, behind], error) in extremes {
        let head = format!(r#"{{"type":"offer","id":"A","target_id":"B",{before}"#);
        let room = message_bytes_max - head.len() - middle.len() - behind.len() - 1;
        let times = room / (again.len() + again_after.len());
        let text = [&head, &*again.repeat(times), middle, &again_after.repeat(times), behind, "}"].concat();
        a.send_text(&text);
        match error {
            Some(code) => assert_eq!(a.receive_json()["code"], *code),
            None => {
                assert!(text.contains(b.receive_json()["sdp"].as_str().unwrap()), "B receives A's message")
            }
        }
        loaded.exchange_candidates();
    }
    drop((a, b));
    loaded.finish(memory_max);
}

#[test]
fn deep_and_long_json_is_handled() {
    send_extremes("", 64 * KIB, &EXTREMES, BASELINE_BYTES + MIB);
    // Memory for a growing input buffer and a message, an output text of twice the size, and a queue.
    send_extremes("--max-message 16M", 16 * MIB, &EXTREMES[..1], BASELINE_BYTES + 7 * 16 * MIB);
}

// ---- Rooms ----

#[test]
fn stored_candidates_are_limited() {
    const PEERS: usize = 1000;
    let mut loaded = LoadedServer::start("--max-connections 1002");
    let candidate = "x".repeat(STORED_BYTES_MAX / CANDIDATES_MAX - r#""""#.len());
    let peers = loaded.connect_many(PEERS, |address, i| {
        let mut client = Client::open(address, &i.to_string());
        for _ in 0..CANDIDATES_MAX {
            client.send_json(json!({"type": "candidateAdd", "id": "A", "candidate": candidate}));
        }
        client.send_json(json!({"type": "candidateAdd", "id": "A", "candidate": 1}));
        assert_eq!(client.receive_json()["code"], "too_many");
        client
    });
    let (full, _) = loaded.server.memory();
    assert!(full > PEERS * STORED_BYTES_MAX, "all candidates are stored");
    drop(peers);
    loaded.finish(BASELINE_BYTES + PEERS * (STORED_BYTES_MAX + 4 * KIB));
}

// ---- Operators ----

#[test]
fn sigterm_during_traffic_closes_all_peers() {
    let mut loaded = LoadedServer::start("--max-rate 0");
    let mut responsive =
        loaded.connect_many(50, |address, i| Client::open(address, "tea").register(&i.to_string()));
    // These clients do not answer the Close frame, and some of them send continuously.
    let mut unresponsive = loaded.connect_many(50, |address, i| Client::open(address, &i.to_string()));
    unresponsive.iter_mut().for_each(|client| client.answers = false);
    let talkers: Vec<_> = unresponsive[..5].iter().map(Client::clone_stream).collect();
    let talkers = talkers.into_iter().map(|mut mouth| {
        let [(_, _, message), ..] = floods();
        thread::spawn(move || while mouth.write_all(&message.repeat(1000)).is_ok() {})
    });
    let talkers: Vec<_> = talkers.collect();
    loaded.wait_until("the peers exchange messages", |server| {
        server.metric("messages_total{type=\"leave\"}") > 1000.0
    });
    for (i, client) in responsive.iter_mut().enumerate() {
        let id = i.to_string();
        let target = ((i + 1) % 50).to_string();
        client.send_json(json!({"type": "offer", "id": id, "target_id": target, "sdp": 1}));
    }
    loaded.server.signal(Signal::SIGTERM);
    for client in responsive.iter_mut().chain(&mut unresponsive).chain(&mut loaded.pair) {
        assert_eq!(client.receive_close(), 1001);
    }
    assert_eq!(loaded.server.code(), Some(0));
    talkers.into_iter().for_each(|talker| talker.join().unwrap());
}
