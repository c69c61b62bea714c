//! Attacks on the other protocols while a pair of noroshi's own protocol exchanges candidates. Attacks that do not
//! depend on the protocol are in the other files.

use std::time::Duration;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB};
use crate::common::pipe::{TEXT, frame};
use crate::common::transcript::Received;
use noroshi::limits::QUEUE_BYTES_MAX_FLOOR;
use serde_json::{Value, json};

const BOTH: &str = "--ayame --matchbox";

fn ayame(address: std::net::SocketAddr, room: &str) -> Client {
    let mut client = Client::connect(address).upgrade_at("/signaling");
    client.send_json(json!({"type": "register", "roomId": room}));
    client
}

fn matchbox(address: std::net::SocketAddr, room: &str) -> Client {
    Client::connect(address).upgrade_at(&format!("/{room}"))
}

fn id(client: &mut Client) -> String {
    client.receive_json()["IdAssigned"].as_str().unwrap().to_owned()
}

/// The original server has a single goroutine, so that a stalled reader blocks all clients.
#[test]
fn stalled_reader_blocks_no_other_client() {
    let mut loaded = LoadedServer::start(&format!("{BOTH} --max-rate 0"));
    let address = loaded.address();
    let sdp = json!({"type": "offer", "sdp": "x".repeat(60 * KIB)}).to_string();
    let mut rooms = loaded.connect_many(100, |address, i| {
        let room = i.to_string();
        let mut stalled = Client::with_buffer(address, 4 * KIB).upgrade_at("/signaling");
        stalled.send_json(json!({"type": "register", "roomId": room}));
        stalled.receive_json();
        let mut talker = ayame(address, &room);
        talker.receive_json();
        (stalled, talker)
    });
    let mut stalled = Client::with_buffer(address, 4 * KIB).upgrade_at("/tea");
    let stalled_id = id(&mut stalled);
    let mut talker = matchbox(address, "tea");
    id(&mut talker);
    let signal = json!({"Signal": {"receiver": stalled_id, "data": "x".repeat(60 * KIB)}}).to_string();
    for _ in 0..12 {
        loaded.exchange_candidates();
        rooms.iter_mut().for_each(|(_, talker)| talker.send_text(&sdp));
        talker.send_text(&signal);
    }
    loaded.wait_until("the connections are closed", |server| {
        server.metric("closings_total{reason=\"slow\"}") == 101.0
    });
    for (_, talker) in &mut rooms {
        assert_eq!(talker.receive(), Received::Text(r#"{"type":"bye"}"#.to_owned()));
        assert_eq!(talker.receive(), Received::Closed(1000));
    }
    assert_eq!(talker.receive_json(), json!({"PeerLeft": stalled_id}));
    drop((rooms, stalled, talker));
    loaded.finish(BASELINE_BYTES + 110 * 2 * (QUEUE_BYTES_MAX_FLOOR + 64 * KIB));
}

#[test]
fn invalid_messages_and_floods_are_handled() {
    let mut loaded = LoadedServer::start(BOTH);
    let address = loaded.address();
    let rubbish: Vec<String> = [
        "",
        "{",
        "null",
        "[]",
        "\"KeepAlive",
        "{\"Signal\":7}",
        "{\"type\":7}",
        "{\"type\":\"register\",\"roomId\":\"\\ud800\"}",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([1, 10_000].map(|depth| "[".repeat(depth)))
    .chain([format!(
        "{{\"Signal\":{{\"receiver\":\"{}\",\"data\":{}0{}}}}}",
        "-".repeat(36),
        "[".repeat(9000),
        "]".repeat(9000)
    )])
    .collect();
    for text in &rubbish {
        loaded.exchange_candidates();
        let mut board = Client::connect(address).upgrade_at("/signaling");
        board.send_text(text);
        assert_eq!(board.receive_close(), 1000, "{text}");
        let mut game = matchbox(address, "tea");
        id(&mut game);
        game.send_text(text);
        game.send(&frame(0x82, text.as_bytes()));
        assert_eq!(game.sync(), [Value::Null; 0], "{text}");
    }
    // A client that keeps exceeding the rate is closed, and its partner receives `bye`.
    let mut first = ayame(address, "tea");
    let mut second = ayame(address, "tea");
    first.receive_json();
    second.receive_json();
    let mut game = matchbox(address, "tea");
    id(&mut game);
    loaded.wait_until("both connections are closed", |server| {
        for _ in 0..200 {
            for (client, text) in [(&mut second, r#"{"type":"candidate"}"#), (&mut game, "\"KeepAlive\"")] {
                // The connection may already be closed.
                let _ = client.try_send(&frame(TEXT, text.as_bytes()));
            }
        }
        server.metric("closings_total{reason=\"rate_limited\"}") == 2.0
    });
    assert_eq!(first.receive_close(), 1000);
    drop((first, second, game));
    loaded.finish(BASELINE_BYTES + 2 * MIB);
}

/// Clients connect under changing names to their own rooms; thousands request one full room; groups have every size.
#[test]
fn many_rooms_and_groups_are_handled() {
    let mut loaded = LoadedServer::start(&format!("{BOTH} --max-connections 3000"));
    for round in 0..3 {
        let pairs = loaded.connect_many(600, |address, i| {
            let mut board = ayame(address, &format!("{round}-{}", i / 2));
            assert_eq!(board.receive_json()["type"], "accept");
            let mut game = matchbox(address, &format!("{round}-{}?next={}", i % 7, i % 50));
            id(&mut game);
            (board, game)
        });
        // Some of them send a message.
        for (i, (board, game)) in pairs.into_iter().enumerate() {
            if i % 3 == 0 {
                board.reset();
                game.reset();
            }
        }
        loaded.wait_for_metric("connections", 2);
        loaded.wait_for_metric("rooms", 1);
    }
    // A room of two clients that do not answer.
    let mut two = [ayame(loaded.address(), "tea"), ayame(loaded.address(), "tea")];
    two.iter_mut().for_each(|client| drop(client.receive_json()));
    let mut waiting = loaded.connect_many(1000, |address, _| ayame(address, "tea"));
    // Both are probed once. After five seconds two waiting clients take their seats.
    loaded.wait_for_metric("closings_total{reason=\"replaced\"}", 1);
    for client in &mut waiting[..2] {
        assert_eq!(client.receive_json()["type"], "accept");
        // The holders answer their probes and stay.
        client.receive_ping();
    }
    for client in &mut waiting[2..] {
        assert_eq!(client.receive_response(), json!({"type": "reject", "reason": "full"}));
    }
    drop((two, waiting));
    loaded.finish(BASELINE_BYTES + 4 * MIB);
}

/// Names that peers choose cannot forge a log line or make it too long for a pipe.
#[test]
fn room_names_cannot_forge_log_lines() {
    let loaded = LoadedServer::start_script(&format!(r#"exec "$0" --log debug {BOTH}"#));
    let name = format!("x\n2026-01-01 ERROR forged {}", "\u{7f}".repeat(200));
    let mut board = ayame(loaded.address(), &name);
    assert_eq!(board.receive_json()["type"], "accept");
    let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut game = matchbox(loaded.address(), &encoded);
    id(&mut game);
    drop((board, game));
    let log = loaded.finish(BASELINE_BYTES);
    for dialect in ["ayame", "matchbox"] {
        let line = log.lines().find(|line| line.contains(&format!("; {dialect} room \"x\\n2026"))).unwrap();
        assert!(line.len() < 1024, "{line}");
    }
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")), "{log}");
}

/// The memory budget applies to all protocols, and the pair is unaffected.
#[test]
fn memory_budget_applies_to_other_protocols() {
    let mut loaded = LoadedServer::start(&format!("{BOTH} --max-memory 8M --max-rate 0"));
    let sdp = json!({"type": "offer", "sdp": "x".repeat(60 * KIB)}).to_string();
    let mut waiting = loaded.connect_many(300, |address, i| ayame(address, &(i / 2).to_string()));
    for _ in 0..8 {
        loaded.exchange_candidates();
        waiting.iter_mut().for_each(|client| drop(client.try_send(&frame(TEXT, sdp.as_bytes()))));
    }
    loaded.run_for(Duration::from_secs(1));
    drop(waiting);
    loaded.finish(8 * MIB + BASELINE_BYTES);
}
