//! The protocols of others under attack, while a pair of ours goes on as if nothing were. What is common to all
//! protocols is attacked in the other files; here it is what is each one's own.

mod common;

use std::time::Duration;

use common::client::Client;
use common::loaded_server::{AT_REST, KIB, LoadedServer, MIB};
use common::pipe::{TEXT, frame};
use common::transcript::Heard;
use noroshi::config::QUEUE_BYTES_MAX;
use serde_json::{Value, json};

const BOTH: &str = "--ayame --matchbox";

fn ayame(address: std::net::SocketAddr, room: &str) -> Client {
    let mut client = Client::connect(address).upgraded_at("/signaling");
    client.say(json!({"type": "register", "roomId": room}));
    client
}

fn matchbox(address: std::net::SocketAddr, room: &str) -> Client {
    Client::connect(address).upgraded_at(&format!("/{room}"))
}

fn id(client: &mut Client) -> String {
    client.heard()["IdAssigned"].as_str().unwrap().to_owned()
}

/// Ayame's one goroutine waits for a peer that does not read, and everybody with it.
#[test]
fn who_does_not_read_stops_nobody() {
    let mut siege = LoadedServer::of(&format!("{BOTH} --max-rate 0"));
    let address = siege.address();
    let sdp = json!({"type": "offer", "sdp": "x".repeat(60 * KIB)}).to_string();
    let mut rooms = siege.crowd(100, |address, i| {
        let room = i.to_string();
        let mut deaf = Client::with_buffer(address, 4 * KIB).upgraded_at("/signaling");
        deaf.say(json!({"type": "register", "roomId": room}));
        deaf.heard();
        let mut talker = ayame(address, &room);
        talker.heard();
        (deaf, talker)
    });
    let mut deaf = Client::with_buffer(address, 4 * KIB).upgraded_at("/tea");
    let deaf_id = id(&mut deaf);
    let mut talker = matchbox(address, "tea");
    id(&mut talker);
    let signal = json!({"Signal": {"receiver": deaf_id, "data": "x".repeat(60 * KIB)}}).to_string();
    for _ in 0..12 {
        siege.talk();
        rooms.iter_mut().for_each(|(_, talker)| talker.say_text(&sdp));
        talker.say_text(&signal);
    }
    siege.until("they are closed", |server| server.metric("closings_total{reason=\"slow\"}") == 101.0);
    for (_, talker) in &mut rooms {
        assert_eq!(talker.hear(), Heard::Text(r#"{"type":"bye"}"#.to_owned()));
        assert_eq!(talker.hear(), Heard::Closed(1000));
    }
    assert_eq!(talker.heard(), json!({"PeerLeft": deaf_id}));
    drop((rooms, deaf, talker));
    siege.end(AT_REST + 110 * 2 * (QUEUE_BYTES_MAX + 64 * KIB));
}

#[test]
fn rubbish_and_floods() {
    let mut siege = LoadedServer::of(BOTH);
    let address = siege.address();
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
        siege.talk();
        let mut board = Client::connect(address).upgraded_at("/signaling");
        board.say_text(text);
        assert_eq!(board.closed(), 1000, "{text}");
        let mut game = matchbox(address, "tea");
        id(&mut game);
        game.say_text(text);
        game.send(&frame(0x82, text.as_bytes()));
        assert_eq!(game.settle(), [Value::Null; 0], "{text}");
    }
    // Who goes on saying too much is closed, and its partner hears bye.
    let (mut first, mut second) = (ayame(address, "tea"), ayame(address, "tea"));
    first.heard();
    second.heard();
    let mut game = matchbox(address, "tea");
    id(&mut game);
    siege.until("both are closed", |server| {
        for _ in 0..200 {
            for (client, text) in [(&mut second, r#"{"type":"candidate"}"#), (&mut game, "\"KeepAlive\"")] {
                // It may be closed already.
                let _ = client.try_send(&frame(TEXT, text.as_bytes()));
            }
        }
        server.metric("closings_total{reason=\"rate_limited\"}") == 2.0
    });
    assert_eq!(first.closed(), 1000);
    drop((first, second, game));
    siege.end(AT_REST + 2 * MIB);
}

/// Each comes as somebody else, into a room of its own, and goes; thousands come before one room; groups of every size.
#[test]
fn rooms_and_groups_without_end() {
    let mut siege = LoadedServer::of(&format!("{BOTH} --max-connections 3000"));
    for round in 0..3 {
        let crowd = siege.crowd(600, |address, i| {
            let mut board = ayame(address, &format!("{round}-{}", i / 2));
            assert_eq!(board.heard()["type"], "accept");
            let mut game = matchbox(address, &format!("{round}-{}?next={}", i % 7, i % 50));
            id(&mut game);
            (board, game)
        });
        // A few in their ways.
        for (i, (board, game)) in crowd.into_iter().enumerate() {
            if i % 3 == 0 {
                board.reset();
                game.reset();
            }
        }
        siege.until_metric("connections", 2);
        siege.until_metric("rooms", 1);
    }
    // Before a room of two who do not answer.
    let mut two = [ayame(siege.address(), "tea"), ayame(siege.address(), "tea")];
    two.iter_mut().for_each(|client| drop(client.heard()));
    let mut crowd = siege.crowd(1000, |address, _| ayame(address, "tea"));
    // They are probed once, and after five seconds the first two of the crowd have the room.
    siege.until_metric("closings_total{reason=\"replaced\"}", 1);
    for client in &mut crowd[..2] {
        assert_eq!(client.heard()["type"], "accept");
        // They are probed in turn, and live.
        client.pinged();
    }
    for client in &mut crowd[2..] {
        assert_eq!(client.answered(), json!({"type": "reject", "reason": "full"}));
    }
    drop((two, crowd));
    siege.end(AT_REST + 4 * MIB);
}

/// What a peer chooses cannot forge a line of the log, nor make one that does not fit into a pipe.
#[test]
fn names_of_rooms_in_the_log() {
    let siege = LoadedServer::of_script(&format!(r#"exec "$0" --log debug {BOTH}"#));
    let name = format!("x\n2026-01-01 ERROR forged {}", "\u{7f}".repeat(200));
    let mut board = ayame(siege.address(), &name);
    assert_eq!(board.heard()["type"], "accept");
    let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let mut game = matchbox(siege.address(), &encoded);
    id(&mut game);
    drop((board, game));
    let log = siege.end(AT_REST);
    for dialect in ["ayame", "matchbox"] {
        let line = log.lines().find(|line| line.contains(&format!("; {dialect} room \"x\\n2026"))).unwrap();
        assert!(line.len() < 1024, "{line}");
    }
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")), "{log}");
}

/// A budget refuses whoever would need more, of any protocol, and the pair does not notice.
#[test]
fn a_budget_holds_for_them_too() {
    let mut siege = LoadedServer::of(&format!("{BOTH} --max-memory 8M --max-rate 0"));
    let sdp = json!({"type": "offer", "sdp": "x".repeat(60 * KIB)}).to_string();
    let mut crowd = siege.crowd(300, |address, i| ayame(address, &(i / 2).to_string()));
    for _ in 0..8 {
        siege.talk();
        crowd.iter_mut().for_each(|client| drop(client.try_send(&frame(TEXT, sdp.as_bytes()))));
    }
    siege.pass(Duration::from_secs(1));
    drop(crowd);
    siege.end(8 * MIB + AT_REST);
}
