//! Rules of noroshi's protocol that transcripts cannot express.

use std::time::Duration;

use crate::common::input::Input;
use crate::common::memory::{Memory, Recorded, remaining_state, target};
use crate::common::transcript::{Received, Transport};
use noroshi::config::{Config, Secret};
use noroshi::http::token::Claims;
use noroshi::limits::{CLAIMANTS_MAX, OFFER_HOLDERS_MAX};
use serde_json::{Value, json};

fn memory(change: impl FnOnce(&mut Config)) -> Memory {
    let mut config = Config::default();
    change(&mut config);
    Memory::new(&config)
}

fn receive_json(transport: &mut Memory, peer: &str) -> Value {
    match transport.next_received(peer) {
        Some(Received::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{peer} received {other:?}"),
    }
}

fn code(transport: &mut Memory, peer: &str) -> Value {
    receive_json(transport, peer)["code"].clone()
}

fn send(transport: &mut Memory, peer: &str, message: Value) {
    transport.send(peer, message.to_string().as_bytes(), false);
}

fn open(transport: &mut Memory, peer: &str) {
    transport.open(peer, "");
    send(transport, peer, json!({"type": "leave", "id": peer}));
}

#[test]
fn turn_credentials_differ_by_peer_and_expire_after_twelve_hours() {
    let mut transport = memory(|config| {
        config.ice_servers = vec!["stun:s.example".into(), "turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    transport.epoch = Duration::from_secs(1_000_000_000);
    transport.open("A", "");
    let ice_servers = |transport: &mut Memory, peer: &str, kind: &str| {
        send(transport, peer, json!({"type": kind, "id": peer}));
        receive_json(transport, peer)["iceServers"].clone()
    };
    let expected = |username: &str, credential: &str| {
        json!([
            {"urls": ["stun:s.example"]},
            {"urls": ["turn:t.example"], "username": username, "credential": credential},
        ])
    };
    // The user name begins with the output of printf A | openssl dgst -sha1, and the credential is that of printf
    // 1000043200:6dcd4ce23d88e2ee | openssl dgst -sha1 -hmac north -binary | base64
    let first = expected("1000043200:6dcd4ce23d88e2ee", "e6RJaSjqfkq1ApMm+XsQDWIah1M=");
    assert_eq!(ice_servers(&mut transport, "A", "join"), first);
    transport.advance(3600);
    assert_eq!(
        ice_servers(&mut transport, "A", "join"),
        expected("1000046800:6dcd4ce23d88e2ee", "XN+jwWiUy5jx5bx97NJjjKi57dE=")
    );
    // The wall clock is set back.
    transport.epoch = Duration::from_secs(999_996_400);
    assert_eq!(ice_servers(&mut transport, "A", "connect"), first);
    send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    transport.open("B", "");
    assert_eq!(
        ice_servers(&mut transport, "B", "connect"),
        expected("1000043200:ae4f281df5a5d0ff", "NtmUWvm/j++CHEh6rj7PZSIov78=")
    );
    assert_eq!((transport.next_received("A"), transport.next_received("B")), (None, None));
}

#[test]
fn turn_credentials_expire_at_most_four_hours_after_the_token() {
    let mut transport = memory(|config| {
        config.ice_servers = vec!["turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    transport.epoch = Duration::from_secs(1_000_000_000);
    for (peer, seconds, expiry) in [("A", 60, 1_000_000_060 + 14_400), ("B", 1_000_000, 1_000_043_200)] {
        let until = Duration::from_secs(1_000_000_000 + seconds);
        transport.open_with_token(
            peer,
            "",
            &Claims { expires_at: until, id: Some(peer.into()), ..Claims::default() },
        );
        send(&mut transport, peer, json!({"type": "join", "id": peer}));
        let joined = receive_json(&mut transport, peer);
        let username = joined["iceServers"][0]["username"].as_str().unwrap();
        assert!(username.starts_with(&format!("{expiry}:")), "{username}");
    }
}

#[test]
fn ping_returns_new_turn_credentials() {
    let mut transport = memory(|config| {
        config.ice_servers = vec!["turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    transport.epoch = Duration::from_secs(1_000_000_000);
    open(&mut transport, "A");
    // The credentials are those of `turn_credentials_differ_by_peer_and_expire_after_twelve_hours`.
    for (username, credential) in [
        ("1000043200:6dcd4ce23d88e2ee", "e6RJaSjqfkq1ApMm+XsQDWIah1M="),
        ("1000046800:6dcd4ce23d88e2ee", "XN+jwWiUy5jx5bx97NJjjKi57dE="),
    ] {
        send(&mut transport, "A", json!({"type": "ping", "id": "A", "iceServers": true}));
        let server = json!({"urls": ["turn:t.example"], "username": username, "credential": credential});
        assert_eq!(receive_json(&mut transport, "A"), json!({"type": "pong", "iceServers": [server]}));
        transport.advance(3600);
    }
    assert_eq!(transport.next_received("A"), None);
    Box::new(transport).finish();
}

#[test]
fn ping_with_ice_servers_costs_credits_for_the_answer() {
    // Each row: bytes of the URLs, and the credits of a ping.
    for (url_bytes, credits) in [(0, 1), (20, 2), (3500, 2), (4096, 3), (7500, 3), (8192, 4)] {
        let mut transport = memory(|config| {
            config.rate_max = 1;
            config.ice_servers = vec!["x".repeat(url_bytes)];
            config.ice_servers.retain(|url| !url.is_empty());
        });
        open(&mut transport, "A");
        // A bucket holds ten credits. One was paid to register.
        let pings = 9 / credits;
        for _ in 0..pings {
            send(&mut transport, "A", json!({"type": "ping", "iceServers": true}));
            let pong = receive_json(&mut transport, "A");
            assert_eq!((&pong["type"], pong["iceServers"].is_array()), (&json!("pong"), url_bytes > 0));
        }
        send(&mut transport, "A", json!({"type": "ping", "iceServers": true}));
        assert_eq!(code(&mut transport, "A"), "rate_limited", "{url_bytes}");
        assert_eq!(transport.count("ping"), pings as u64);
        // An unregistered connection receives no servers and pays for none.
        transport.open("B", "");
        for _ in 0..10 {
            send(&mut transport, "B", json!({"type": "ping", "id": "B", "iceServers": true}));
            assert_eq!(receive_json(&mut transport, "B"), json!({"type": "pong"}));
        }
        send(&mut transport, "B", json!({"type": "ping"}));
        assert_eq!(code(&mut transport, "B"), "rate_limited");
        Box::new(transport).finish();
    }
}

#[test]
fn answer_to_a_busy_peer_forms_no_pair() {
    let mut transport = memory(|_| ());
    open(&mut transport, "A");
    open(&mut transport, "B");
    send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    send(&mut transport, "B", json!({"type": "connect", "id": "B"}));
    assert_eq!(receive_json(&mut transport, "B")["sdp"], "1");
    let a = transport.conn("A");
    transport.outbox.full.insert(a);
    for message in [
        json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 2}),
        json!({"type": "offer", "id": "B", "target_id": "A", "sdp": 2}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "A", "candidate": 2}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "A", "candidates": [2, 3]}),
    ] {
        send(&mut transport, "B", message);
        let error = receive_json(&mut transport, "B");
        assert_eq!((&error["code"], &error["target_id"]), (&json!("peer_busy"), &json!("A")));
    }
    send(&mut transport, "B", json!({"type": "answer", "id": "B", "sdp": 2}));
    assert_eq!(receive_json(&mut transport, "B")["target_id"], Value::Null, "it had no target");
    assert_eq!(transport.next_received("A"), None);
    transport.outbox.full.clear();
    // The offer remains current, and B still holds it.
    send(&mut transport, "B", json!({"type": "answer", "id": "B", "sdp": 3}));
    assert_eq!(receive_json(&mut transport, "A"), json!({"type": "answer", "sdp": "3", "id": "B"}));
    Box::new(transport).finish();
}

#[test]
fn candidates_are_limited_by_size() {
    let mut transport = memory(|config| config.message_bytes_max = 1 << 20);
    open(&mut transport, "A");
    let candidate =
        |length: usize| json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(length - 2)});
    send(&mut transport, "A", candidate(64 * 1024 + 1));
    assert_eq!(code(&mut transport, "A"), "too_many");
    send(&mut transport, "A", candidate(64 * 1024 - 2));
    send(&mut transport, "A", candidate(3));
    assert_eq!(code(&mut transport, "A"), "too_many");
    send(&mut transport, "A", json!({"type": "candidateAdd", "id": "A", "candidate": 10}));
    assert_eq!(transport.next_received("A"), None, "the stored candidates have exactly the maximum size");
    Box::new(transport).finish();
}

/// Sets up a probed holder and a claimant of its id that has sent its first message.
fn claim(transport: &mut Memory, first: Value) {
    open(transport, "A");
    transport.stop_reading("A");
    transport.open("B", "");
    send(transport, "B", first);
}

#[test]
fn claimant_is_not_read_before_the_probe_ends() {
    let mut transport = memory(|config| config.rate_max = 0);
    claim(&mut transport, json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(60_000)}));
    let reserved = transport.reserved();
    for _ in 0..10_000 {
        send(&mut transport, "B", json!({"type": "leave", "id": "A"}));
    }
    assert_eq!(transport.next_received("B"), None);
    assert_eq!((transport.reserved(), transport.count("leave")), (reserved, 1), "the message was not read");
    transport.advance(5);
    assert_eq!(transport.count("leave"), 10_001);
    send(&mut transport, "B", json!({"type": "connect", "id": "A"}));
    assert_eq!(receive_json(&mut transport, "B"), json!({"type": "offer"}));
    Box::new(transport).finish();
}

#[test]
fn claimants_over_the_limit_are_rejected_immediately() {
    let mut transport = memory(|_| ());
    open(&mut transport, "A");
    transport.stop_reading("A");
    let names: Vec<String> = (0..=CLAIMANTS_MAX).map(|i| format!("C{i}")).collect();
    for name in &names {
        transport.open(name, "");
        send(&mut transport, name, json!({"type": "join", "id": "A"}));
    }
    for name in &names[..CLAIMANTS_MAX] {
        assert_eq!(transport.next_received(name), None, "{name} waits");
    }
    assert_eq!(code(&mut transport, &names[CLAIMANTS_MAX]), "id_taken");
    transport.advance(5);
    assert_eq!(receive_json(&mut transport, &names[0])["type"], "joined");
    for name in &names[1..CLAIMANTS_MAX] {
        assert_eq!(code(&mut transport, name), "id_taken");
    }
    Box::new(transport).finish();
}

#[test]
fn probe_that_ends_without_claimants_has_no_effect() {
    let mut transport = memory(|_| ());
    claim(&mut transport, json!({"type": "join", "id": "A"}));
    transport.advance(1);
    transport.close("B");
    transport.advance(5);
    assert_eq!(remaining_state(&transport.dispatcher), (1, 1, None), "the holder is still there");
    // The next claim starts another probe.
    transport.open("C", "");
    send(&mut transport, "C", json!({"type": "join", "id": "A"}));
    transport.advance(4);
    assert_eq!(transport.next_received("C"), None);
    transport.advance(1);
    assert_eq!(receive_json(&mut transport, "C")["type"], "joined");
    Box::new(transport).finish();
}

#[test]
fn claim_is_charged_and_counted_once() {
    let mut transport = memory(|config| config.rate_max = 5);
    claim(&mut transport, json!({"type": "candidateAdd", "id": "A", "candidates": vec![1; 40]}));
    transport.close("A");
    send(&mut transport, "B", json!({"type": "offer", "id": "A", "sdp": 1}));
    open(&mut transport, "C");
    send(&mut transport, "C", json!({"type": "answer", "id": "C", "target_id": "A"}));
    assert_eq!(receive_json(&mut transport, "C")["candidate"].as_str().unwrap().len(), 79);
    assert_eq!(transport.count("candidateAdd"), 1);
    assert_eq!(transport.count("rate_limited"), 0);
    Box::new(transport).finish();
}

#[test]
fn full_array_of_candidates_is_accepted_at_any_rate() {
    let mut transport = memory(|config| config.rate_max = 1);
    open(&mut transport, "A");
    for _ in 0..2 {
        transport.advance(3600);
        send(&mut transport, "A", json!({"type": "candidateAdd", "id": "A", "candidates": vec![1; 64]}));
        assert_ne!(transport.count("candidateAdd"), 0);
    }
    assert_eq!(code(&mut transport, "A"), "too_many", "which is not too fast");
    Box::new(transport).finish();
}

/// Everything that a message makes the server send is charged: one credit for every 64 deliveries or part of 64, and
/// one for every 4 KiB or part of 4 KiB of an answer.
#[test]
fn deliveries_and_long_answers_cost_credits() {
    // Each row: members of the mesh, length of their ids, messages of a peer outside the mesh, and their total credits.
    for (others, id_bytes, messages, credits) in [
        (0, 5, &["join"][..], 2),
        (1, 5, &["join"], 3),
        (63, 5, &["join"], 3),
        (64, 5, &["join"], 3),
        (65, 5, &["join"], 4),
        // 30 ids of 128 bytes exceed 4 KiB.
        (29, 128, &["join"], 3),
        (30, 128, &["join"], 4),
        (30, 128, &["join", "join"], 4 + 3),
        (65, 5, &["join", "leave"], 4 + 3),
        (65, 5, &["join", "leave", "leave"], 4 + 3 + 1),
        (65, 5, &["join", "connect"], 4 + 3),
        (65, 5, &["join", "ping"], 4 + 1),
    ] {
        let mut transport = memory(|config| {
            config.mesh_peers_max = 1000;
            config.rate_max = 1;
        });
        for i in 0..others {
            let name = format!("{i:0>id_bytes$}");
            transport.open(&name, "");
            send(&mut transport, &name, json!({"type": "join", "id": name}));
        }
        transport.open("X", "");
        // A full bucket has ten credits. The messages cost exactly the remaining ones.
        for _ in 0..10 - credits {
            transport.send("X", b"x", false);
        }
        for message in messages {
            send(&mut transport, "X", json!({"type": message, "id": "X"}));
        }
        assert_eq!(transport.count("rate_limited"), 0, "{messages:?} with {others} others");
        transport.send("X", b"x", false);
        assert_eq!(transport.count("rate_limited"), 1, "{messages:?} with {others} others");
        Box::new(transport).finish();
    }
}

/// A peer whose token replaces the holder of its id pays for its own announcement, too.
#[test]
fn takeover_is_charged_for_joining_a_full_mesh() {
    let mut transport = memory(|config| {
        config.mesh_peers_max = 2;
        config.rate_max = 1;
    });
    for peer in ["A", "B"] {
        transport.open(peer, "");
        send(&mut transport, peer, json!({"type": "join", "id": peer}));
    }
    let claims =
        Claims { expires_at: Duration::from_secs(1000), room: None, room_prefix: None, id: Some("A".into()) };
    transport.open_with_token("O", "", &claims);
    // The message, the departure of A, the arrival of O and the answer cost four of ten credits.
    send(&mut transport, "O", json!({"type": "join", "id": "A"}));
    assert_eq!(receive_json(&mut transport, "O")["peers"], json!(["B"]));
    for _ in 0..6 {
        transport.send("O", b"x", false);
        assert_eq!(code(&mut transport, "O"), "bad_json");
    }
    transport.send("O", b"x", false);
    assert_eq!(code(&mut transport, "O"), "rate_limited");
    Box::new(transport).finish();
}

/// A late answer is answered with the current offer, which may be long.
#[test]
fn late_answer_is_charged_for_the_offer_that_it_receives() {
    let mut transport = memory(|config| config.rate_max = 1);
    open(&mut transport, "A");
    open(&mut transport, "B");
    send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    send(&mut transport, "B", json!({"type": "connect", "id": "B"}));
    assert_eq!(receive_json(&mut transport, "B")["sdp"], "1");
    transport.advance(1000);
    send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": "x".repeat(10_000)}));
    send(&mut transport, "B", json!({"type": "answer", "id": "B", "sdp": 2}));
    assert_eq!(code(&mut transport, "B"), "offer_taken");
    assert_eq!(receive_json(&mut transport, "B")["target_id"], "A");
    // The message and three blocks of 4 KiB cost four of ten credits.
    for _ in 0..6 {
        transport.send("B", b"x", false);
        assert_eq!(code(&mut transport, "B"), "bad_json");
    }
    transport.send("B", b"x", false);
    assert_eq!(code(&mut transport, "B"), "rate_limited");
    Box::new(transport).finish();
}

/// A message over the rate limit has no effect, even if its sender has no id yet.
#[test]
fn message_over_the_rate_limit_has_no_effect() {
    let mut transport = memory(|config| config.rate_max = 1);
    for i in 0..30 {
        let name = format!("{i:0>128}");
        transport.open(&name, "");
        send(&mut transport, &name, json!({"type": "join", "id": name}));
        while transport.next_received(&name).is_some() {}
    }
    transport.open("X", "");
    for _ in 0..9 {
        transport.send("X", b"x", false);
        assert_eq!(code(&mut transport, "X"), "bad_json");
    }
    send(&mut transport, "X", json!({"type": "join", "id": "X"}));
    assert_eq!(code(&mut transport, "X"), "rate_limited");
    for i in 0..30 {
        let name = format!("{i:0>128}");
        while let Some(Received::Text(text)) = transport.next_received(&name) {
            assert!(!text.contains(r#""id":"X""#), "{name} received {text}");
        }
    }
    assert_eq!(remaining_state(&transport.dispatcher).0, 30, "X is not registered");
    Box::new(transport).finish();
}

/// The effects of one message are limited by the credits of its sender, regardless of the room's size.
#[test]
fn an_offer_is_held_by_a_limited_number_of_peers() {
    let mut transport = memory(|_| ());
    open(&mut transport, "A");
    send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    let names: Vec<String> = (0..=OFFER_HOLDERS_MAX).map(|i| format!("H{i}")).collect();
    for name in &names {
        transport.open(name, "");
        send(&mut transport, name, json!({"type": "connect", "id": name}));
    }
    for name in &names[..OFFER_HOLDERS_MAX] {
        assert_eq!(receive_json(&mut transport, name)["sdp"], "1");
    }
    let last = &names[OFFER_HOLDERS_MAX];
    assert_eq!(transport.next_received(last), None, "the peer is queued");
    send(&mut transport, &names[0], json!({"type": "answer", "id": names[0], "target_id": "A"}));
    assert_eq!(receive_json(&mut transport, last), json!({"type": "offer"}), "the peer is the offerer");
    Box::new(transport).finish();
}

#[test]
fn room_timeout_restarts_with_the_queue() {
    let mut transport = memory(|_| ());
    for peer in ["L", "H", "X"] {
        open(&mut transport, peer);
    }
    // H holds L's offer, which X has taken. L is queued again.
    send(&mut transport, "L", json!({"type": "offer", "id": "L", "sdp": 1}));
    send(&mut transport, "H", json!({"type": "connect", "id": "H"}));
    receive_json(&mut transport, "H");
    send(&mut transport, "X", json!({"type": "answer", "id": "X", "target_id": "L"}));
    send(&mut transport, "X", json!({"type": "connect", "id": "X"}));
    send(&mut transport, "X", json!({"type": "leave", "id": "X"}));
    receive_json(&mut transport, "L");
    receive_json(&mut transport, "L");
    // X becomes the offerer. L is queued alone for 29 s, then gives up its position to H.
    send(&mut transport, "X", json!({"type": "connect", "id": "X"}));
    assert_eq!(receive_json(&mut transport, "X"), json!({"type": "offer"}));
    send(&mut transport, "L", json!({"type": "connect", "id": "L"}));
    transport.advance(29);
    transport.close("L");
    assert_eq!(receive_json(&mut transport, "H"), json!({"type": "peerLeft", "id": "L"}));
    transport.advance(29);
    assert_eq!(transport.next_received("H"), None);
    transport.advance(1);
    assert_eq!(receive_json(&mut transport, "H"), json!({"type": "offer"}));
    Box::new(transport).finish();
}

#[test]
fn offers_and_candidates_are_rejected_without_memory() {
    let mut transport = memory(|_| ());
    for peer in ["A", "B"] {
        open(&mut transport, peer);
    }
    transport.open("late", "");
    transport.stop_reading("A");
    transport.open("claimant", "");
    send(&mut transport, "claimant", json!({"type": "connect", "id": "A"}));
    let reserved = transport.reserved();
    assert!(reserved > 0);
    transport.outbox.out_of_memory = true;
    for message in [
        json!({"type": "offer", "id": "B", "sdp": 1}),
        // Without a target they belong to that offer.
        json!({"type": "candidateAdd", "id": "B", "candidate": 1}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "B", "candidate": 1}),
    ] {
        send(&mut transport, "B", message);
    }
    assert_eq!(code(&mut transport, "B"), "too_many");
    assert_eq!(code(&mut transport, "B"), "unknown_peer");
    assert_eq!(transport.next_received("B"), None);
    send(&mut transport, "late", json!({"type": "answer", "id": "A", "target_id": "B"}));
    assert_eq!(receive_json(&mut transport, "late")["target_id"], "B");
    transport.open("second claimant", "");
    send(&mut transport, "second claimant", json!({"type": "connect", "id": "A"}));
    assert_eq!(code(&mut transport, "second claimant"), "too_many");
    assert_eq!(transport.reserved(), reserved);

    // Candidates of the rejected offer are not kept for a later one.
    transport.outbox.out_of_memory = false;
    transport.open("C", "C");
    send(&mut transport, "C", json!({"type": "candidateAdd", "id": "C", "candidate": 1}));
    transport.outbox.out_of_memory = true;
    send(&mut transport, "C", json!({"type": "offer", "id": "C", "sdp": 1}));
    assert_eq!(code(&mut transport, "C"), "too_many");
    transport.outbox.out_of_memory = false;
    send(&mut transport, "C", json!({"type": "offer", "id": "C", "sdp": 2}));
    transport.open("D", "C");
    send(&mut transport, "D", json!({"type": "answer", "id": "D", "target_id": "C"}));
    assert_eq!(receive_json(&mut transport, "C")["type"], "answer");
    assert_eq!(transport.next_received("D"), None, "no candidates");
    transport.close("C");
    assert_eq!(receive_json(&mut transport, "D")["type"], "peerLeft");
    transport.close("D");

    // With memory available, everything works again.
    transport.outbox.out_of_memory = false;
    send(&mut transport, "B", json!({"type": "offer", "id": "B", "sdp": 1}));
    send(&mut transport, "B", json!({"type": "candidateAdd", "id": "B", "candidate": 1}));
    assert_eq!(transport.next_received("B"), None);
    assert!(transport.reserved() > reserved);
    Box::new(transport).finish();
}

/// Replaced offers and dropped candidates release their memory.
#[test]
fn replaced_offers_and_dropped_candidates_release_their_memory() {
    let mut transport = memory(|config| config.rate_max = 0);
    open(&mut transport, "A");
    let mut reserved = Vec::new();
    for _ in 0..100 {
        send(&mut transport, "A", json!({"type": "offer", "id": "A", "sdp": "x".repeat(60_000)}));
        for _ in 0..10 {
            send(
                &mut transport,
                "A",
                json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(1000)}),
            );
        }
        assert_eq!(transport.next_received("A"), None);
        reserved.push(transport.reserved());
    }
    assert!(reserved.iter().all(|it| *it == reserved[0]), "{reserved:?}");
    send(&mut transport, "A", json!({"type": "leave", "id": "A"}));
    assert_eq!(transport.reserved(), 0);
    Box::new(transport).finish();
}

/// A slot is reused, but not the credits of its previous connection.
#[test]
fn connection_in_a_reused_slot_has_a_full_bucket() {
    let mut transport = memory(|config| config.rate_max = 1);
    let conn = |number| noroshi::protocol::Conn::new(number, 0);
    transport.handle(Input::Connected(conn(1), &target(""), None));
    let is_closed = |transport: &Memory| {
        transport
            .outbox
            .effects
            .iter()
            .any(|effect| matches!(effect, Recorded::Close(it, _) if *it == conn(1)))
    };
    while !is_closed(&transport) {
        transport.now += Duration::from_millis(20);
        transport.handle(Input::Text(conn(1), r#"{"type":"leave","id":"A"}"#));
    }
    transport.outbox.effects.clear();
    // The server reports each disconnect once.
    transport.handle(Input::Connected(conn(2), &target(""), None));
    for _ in 0..10 {
        transport.handle(Input::Text(conn(2), r#"{"type":"leave","id":"B"}"#));
    }
    assert_eq!(transport.outbox.effects.drain(..).collect::<Vec<_>>(), [Recorded::Registered(conn(2))]);
    transport.handle(Input::Disconnected(conn(2)));
    Box::new(transport).finish();
}
