//! Rules of the hub that the format of the transcripts cannot show.

mod common;

use std::time::Duration;

use common::memory::{Memory, Recorded, left, target};
use common::transcript::{Heard, Wire};
use noroshi::config::{CLAIMANTS_MAX, Config, OFFER_HOLDERS_MAX, Secret};
use noroshi::protocol::Input;
use noroshi::token::Claims;
use serde_json::{Value, json};

fn memory(change: impl FnOnce(&mut Config)) -> Memory {
    let mut config = Config::default();
    change(&mut config);
    Memory::new(&config)
}

fn heard(wire: &mut Memory, who: &str) -> Value {
    match wire.next(who) {
        Some(Heard::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{who} heard {other:?}"),
    }
}

fn code(wire: &mut Memory, who: &str) -> Value {
    heard(wire, who)["code"].clone()
}

fn say(wire: &mut Memory, who: &str, message: Value) {
    wire.say(who, message.to_string().as_bytes(), false);
}

fn open(wire: &mut Memory, who: &str) {
    wire.open(who, "");
    say(wire, who, json!({"type": "leave", "id": who}));
}

#[test]
fn credentials_are_each_peers_own_and_last_half_a_day_from_when_they_are_told() {
    let mut wire = memory(|config| {
        config.ice_servers = vec!["stun:s.example".into(), "turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    wire.epoch = Duration::from_secs(1_000_000_000);
    wire.open("A", "");
    let told = |wire: &mut Memory, who: &str, kind: &str| {
        say(wire, who, json!({"type": kind, "id": who}));
        heard(wire, who)["iceServers"].clone()
    };
    let expected = |username: &str, credential: &str| {
        json!([
            {"urls": ["stun:s.example"]},
            {"urls": ["turn:t.example"], "username": username, "credential": credential},
        ])
    };
    // The name begins printf A | openssl dgst -sha1, and the credential of the name
    // printf 1000043200:6dcd4ce23d88e2ee | openssl dgst -sha1 -hmac north -binary | base64
    let first = expected("1000043200:6dcd4ce23d88e2ee", "e6RJaSjqfkq1ApMm+XsQDWIah1M=");
    assert_eq!(told(&mut wire, "A", "join"), first);
    wire.pass(3600);
    assert_eq!(
        told(&mut wire, "A", "join"),
        expected("1000046800:6dcd4ce23d88e2ee", "XN+jwWiUy5jx5bx97NJjjKi57dE=")
    );
    // Somebody sets the clock back.
    wire.epoch = Duration::from_secs(999_996_400);
    assert_eq!(told(&mut wire, "A", "connect"), first);
    say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    wire.open("B", "");
    assert_eq!(
        told(&mut wire, "B", "connect"),
        expected("1000043200:ae4f281df5a5d0ff", "NtmUWvm/j++CHEh6rj7PZSIov78=")
    );
    assert_eq!((wire.next("A"), wire.next("B")), (None, None));
}

#[test]
fn a_password_ends_at_most_a_call_after_the_token() {
    let mut wire = memory(|config| {
        config.ice_servers = vec!["turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    });
    wire.epoch = Duration::from_secs(1_000_000_000);
    for (who, seconds, expiry) in [("A", 60, 1_000_000_060 + 14_400), ("B", 1_000_000, 1_000_043_200)] {
        let until = Duration::from_secs(1_000_000_000 + seconds);
        wire.admit(who, "", &Claims { expires_at: until, id: Some(who.into()), ..Claims::default() });
        say(&mut wire, who, json!({"type": "join", "id": who}));
        let joined = heard(&mut wire, who);
        let username = joined["iceServers"][0]["username"].as_str().unwrap();
        assert!(username.starts_with(&format!("{expiry}:")), "{username}");
    }
}

#[test]
fn a_busy_peer_makes_no_pair_and_is_told_nothing() {
    let mut wire = memory(|_| ());
    open(&mut wire, "A");
    open(&mut wire, "B");
    say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    say(&mut wire, "B", json!({"type": "connect", "id": "B"}));
    assert_eq!(heard(&mut wire, "B")["sdp"], "1");
    let a = wire.conn("A");
    wire.outbox.full.insert(a);
    for message in [
        json!({"type": "answer", "id": "B", "target_id": "A", "sdp": 2}),
        json!({"type": "offer", "id": "B", "target_id": "A", "sdp": 2}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "A", "candidate": 2}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "A", "candidates": [2, 3]}),
    ] {
        say(&mut wire, "B", message);
        let error = heard(&mut wire, "B");
        assert_eq!((&error["code"], &error["target_id"]), (&json!("peer_busy"), &json!("A")));
    }
    say(&mut wire, "B", json!({"type": "answer", "id": "B", "sdp": 2}));
    assert_eq!(heard(&mut wire, "B")["target_id"], Value::Null, "it named nobody");
    assert_eq!(wire.next("A"), None);
    wire.outbox.full.clear();
    // The offer stands, and B still holds it.
    say(&mut wire, "B", json!({"type": "answer", "id": "B", "sdp": 3}));
    assert_eq!(heard(&mut wire, "A"), json!({"type": "answer", "sdp": "3", "id": "B"}));
    Box::new(wire).finish();
}

#[test]
fn too_many_by_size() {
    let mut wire = memory(|config| config.message_bytes_max = 1 << 20);
    open(&mut wire, "A");
    let candidate =
        |length: usize| json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(length - 2)});
    say(&mut wire, "A", candidate(64 * 1024 + 1));
    assert_eq!(code(&mut wire, "A"), "too_many");
    say(&mut wire, "A", candidate(64 * 1024 - 2));
    say(&mut wire, "A", candidate(3));
    assert_eq!(code(&mut wire, "A"), "too_many");
    say(&mut wire, "A", json!({"type": "candidateAdd", "id": "A", "candidate": 10}));
    assert_eq!(wire.next("A"), None, "that fills it to the last byte");
    Box::new(wire).finish();
}

/// A probed holder, and a claimant of its id that has sent its first message.
fn claim(wire: &mut Memory, first: Value) {
    open(wire, "A");
    wire.deafen("A");
    wire.open("B", "");
    say(wire, "B", first);
}

#[test]
fn what_a_claimant_sends_is_not_read_before_the_probe_ends() {
    let mut wire = memory(|config| config.rate_max = 0);
    claim(&mut wire, json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(60_000)}));
    let reserved = wire.reserved();
    for _ in 0..10_000 {
        say(&mut wire, "B", json!({"type": "leave", "id": "A"}));
    }
    assert_eq!(wire.next("B"), None);
    assert_eq!((wire.reserved(), wire.count("leave")), (reserved, 1), "the server has none of it");
    wire.pass(5);
    assert_eq!(wire.count("leave"), 10_001);
    say(&mut wire, "B", json!({"type": "connect", "id": "A"}));
    assert_eq!(heard(&mut wire, "B"), json!({"type": "offer"}));
    Box::new(wire).finish();
}

#[test]
fn claimants_beyond_the_limit_are_told_at_once() {
    let mut wire = memory(|_| ());
    open(&mut wire, "A");
    wire.deafen("A");
    let names: Vec<String> = (0..=CLAIMANTS_MAX).map(|i| format!("C{i}")).collect();
    for name in &names {
        wire.open(name, "");
        say(&mut wire, name, json!({"type": "join", "id": "A"}));
    }
    for name in &names[..CLAIMANTS_MAX] {
        assert_eq!(wire.next(name), None, "{name} waits");
    }
    assert_eq!(code(&mut wire, &names[CLAIMANTS_MAX]), "id_taken");
    wire.pass(5);
    assert_eq!(heard(&mut wire, &names[0])["type"], "joined");
    for name in &names[1..CLAIMANTS_MAX] {
        assert_eq!(code(&mut wire, name), "id_taken");
    }
    Box::new(wire).finish();
}

#[test]
fn a_probe_that_ends_without_claimants_changes_nothing() {
    let mut wire = memory(|_| ());
    claim(&mut wire, json!({"type": "join", "id": "A"}));
    wire.pass(1);
    wire.leave("B");
    wire.pass(5);
    assert_eq!(left(&wire.dispatcher), (1, 1, None), "the holder is still there");
    // The next claim begins another probe.
    wire.open("C", "");
    say(&mut wire, "C", json!({"type": "join", "id": "A"}));
    wire.pass(4);
    assert_eq!(wire.next("C"), None);
    wire.pass(1);
    assert_eq!(heard(&mut wire, "C")["type"], "joined");
    Box::new(wire).finish();
}

#[test]
fn a_claim_is_paid_and_counted_once() {
    let mut wire = memory(|config| config.rate_max = 5);
    claim(&mut wire, json!({"type": "candidateAdd", "id": "A", "candidates": vec![1; 40]}));
    wire.leave("A");
    say(&mut wire, "B", json!({"type": "offer", "id": "A", "sdp": 1}));
    open(&mut wire, "C");
    say(&mut wire, "C", json!({"type": "answer", "id": "C", "target_id": "A"}));
    assert_eq!(heard(&mut wire, "C")["candidate"].as_str().unwrap().len(), 79);
    assert_eq!(wire.count("candidateAdd"), 1);
    assert_eq!(wire.count("rate_limited"), 0);
    Box::new(wire).finish();
}

#[test]
fn a_full_array_of_candidates_can_be_sent_at_any_rate() {
    let mut wire = memory(|config| config.rate_max = 1);
    open(&mut wire, "A");
    for _ in 0..2 {
        wire.pass(3600);
        say(&mut wire, "A", json!({"type": "candidateAdd", "id": "A", "candidates": vec![1; 64]}));
        assert_ne!(wire.count("candidateAdd"), 0);
    }
    assert_eq!(code(&mut wire, "A"), "too_many", "which is not too fast");
    Box::new(wire).finish();
}

/// Everything that a message makes the server say is paid for: one credit for every 64 deliveries begun, and for every
/// 4 KiB begun of an answer.
#[test]
fn deliveries_and_long_answers_cost_credits() {
    // Each row: peers in the mesh, the length of their ids, a message of one that is not, and its credits in all.
    for (others, id_bytes, messages, credits) in [
        (0, 5, &["join"][..], 2),
        (1, 5, &["join"], 3),
        (63, 5, &["join"], 3),
        (64, 5, &["join"], 3),
        (65, 5, &["join"], 4),
        // 30 ids of 128 bytes are more than 4 KiB.
        (29, 128, &["join"], 3),
        (30, 128, &["join"], 4),
        (30, 128, &["join", "join"], 4 + 3),
        (65, 5, &["join", "leave"], 4 + 3),
        (65, 5, &["join", "leave", "leave"], 4 + 3 + 1),
        (65, 5, &["join", "connect"], 4 + 3),
    ] {
        let mut wire = memory(|config| {
            config.mesh_peers_max = 1000;
            config.rate_max = 1;
        });
        for i in 0..others {
            let name = format!("{i:0>id_bytes$}");
            wire.open(&name, "");
            say(&mut wire, &name, json!({"type": "join", "id": name}));
        }
        wire.open("X", "");
        // A full bucket has ten credits. The messages cost what is left of it, and not one more.
        for _ in 0..10 - credits {
            wire.say("X", b"x", false);
        }
        for message in messages {
            say(&mut wire, "X", json!({"type": message, "id": "X"}));
        }
        assert_eq!(wire.count("rate_limited"), 0, "{messages:?} with {others} others");
        wire.say("X", b"x", false);
        assert_eq!(wire.count("rate_limited"), 1, "{messages:?} with {others} others");
        Box::new(wire).finish();
    }
}

/// A peer whose token replaces the holder of its id pays for its own announcement, too.
#[test]
fn a_takeover_pays_for_joining_a_mesh_that_was_full() {
    let mut wire = memory(|config| {
        config.mesh_peers_max = 2;
        config.rate_max = 1;
    });
    for who in ["A", "B"] {
        wire.open(who, "");
        say(&mut wire, who, json!({"type": "join", "id": who}));
    }
    let claims =
        Claims { expires_at: Duration::from_secs(1000), room: None, room_prefix: None, id: Some("A".into()) };
    wire.admit("O", "", &claims);
    // The message, the departure of A, the arrival of O, and the answer: four of ten credits.
    say(&mut wire, "O", json!({"type": "join", "id": "A"}));
    assert_eq!(heard(&mut wire, "O")["peers"], json!(["B"]));
    for _ in 0..6 {
        wire.say("O", b"x", false);
        assert_eq!(code(&mut wire, "O"), "bad_json");
    }
    wire.say("O", b"x", false);
    assert_eq!(code(&mut wire, "O"), "rate_limited");
    Box::new(wire).finish();
}

/// An answer that comes too late is answered with the offer that stands now, which may be long.
#[test]
fn an_answer_that_is_too_late_pays_for_the_offer_that_it_gets() {
    let mut wire = memory(|config| config.rate_max = 1);
    open(&mut wire, "A");
    open(&mut wire, "B");
    say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    say(&mut wire, "B", json!({"type": "connect", "id": "B"}));
    assert_eq!(heard(&mut wire, "B")["sdp"], "1");
    wire.pass(1000);
    say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": "x".repeat(10_000)}));
    say(&mut wire, "B", json!({"type": "answer", "id": "B", "sdp": 2}));
    assert_eq!(code(&mut wire, "B"), "offer_taken");
    assert_eq!(heard(&mut wire, "B")["target_id"], "A");
    // The message and three blocks of 4 KiB: four of ten credits.
    for _ in 0..6 {
        wire.say("B", b"x", false);
        assert_eq!(code(&mut wire, "B"), "bad_json");
    }
    wire.say("B", b"x", false);
    assert_eq!(code(&mut wire, "B"), "rate_limited");
    Box::new(wire).finish();
}

/// Of a message that costs too much nothing happens, also if its sender has no id yet.
#[test]
fn a_message_that_costs_too_much_changes_nothing() {
    let mut wire = memory(|config| config.rate_max = 1);
    for i in 0..30 {
        let name = format!("{i:0>128}");
        wire.open(&name, "");
        say(&mut wire, &name, json!({"type": "join", "id": name}));
        while wire.next(&name).is_some() {}
    }
    wire.open("X", "");
    for _ in 0..9 {
        wire.say("X", b"x", false);
        assert_eq!(code(&mut wire, "X"), "bad_json");
    }
    say(&mut wire, "X", json!({"type": "join", "id": "X"}));
    assert_eq!(code(&mut wire, "X"), "rate_limited");
    for i in 0..30 {
        let name = format!("{i:0>128}");
        while let Some(Heard::Text(text)) = wire.next(&name) {
            assert!(!text.contains(r#""id":"X""#), "{name} heard {text}");
        }
    }
    assert_eq!(left(&wire.dispatcher).0, 30, "X is not registered");
    Box::new(wire).finish();
}

/// One message makes the server say no more than its sender has paid for, whatever the room holds.
#[test]
fn an_offer_is_held_by_a_limited_number_of_peers() {
    let mut wire = memory(|_| ());
    open(&mut wire, "A");
    say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": 1}));
    let names: Vec<String> = (0..=OFFER_HOLDERS_MAX).map(|i| format!("H{i}")).collect();
    for name in &names {
        wire.open(name, "");
        say(&mut wire, name, json!({"type": "connect", "id": name}));
    }
    for name in &names[..OFFER_HOLDERS_MAX] {
        assert_eq!(heard(&mut wire, name)["sdp"], "1");
    }
    let last = &names[OFFER_HOLDERS_MAX];
    assert_eq!(wire.next(last), None, "it waits");
    say(&mut wire, &names[0], json!({"type": "answer", "id": names[0], "target_id": "A"}));
    assert_eq!(heard(&mut wire, last), json!({"type": "offer"}), "it is asked");
    Box::new(wire).finish();
}

#[test]
fn patience_begins_anew_when_the_line_does() {
    let mut wire = memory(|_| ());
    for who in ["L", "H", "X"] {
        open(&mut wire, who);
    }
    // H holds an offer of L's that X has taken; L is left behind.
    say(&mut wire, "L", json!({"type": "offer", "id": "L", "sdp": 1}));
    say(&mut wire, "H", json!({"type": "connect", "id": "H"}));
    heard(&mut wire, "H");
    say(&mut wire, "X", json!({"type": "answer", "id": "X", "target_id": "L"}));
    say(&mut wire, "X", json!({"type": "connect", "id": "X"}));
    say(&mut wire, "X", json!({"type": "leave", "id": "X"}));
    heard(&mut wire, "L");
    heard(&mut wire, "L");
    // X is asked, L waits alone for 29 s, then leaves its place to H.
    say(&mut wire, "X", json!({"type": "connect", "id": "X"}));
    assert_eq!(heard(&mut wire, "X"), json!({"type": "offer"}));
    say(&mut wire, "L", json!({"type": "connect", "id": "L"}));
    wire.pass(29);
    wire.leave("L");
    assert_eq!(heard(&mut wire, "H"), json!({"type": "peerLeft", "id": "L"}));
    wire.pass(29);
    assert_eq!(wire.next("H"), None);
    wire.pass(1);
    assert_eq!(heard(&mut wire, "H"), json!({"type": "offer"}));
    Box::new(wire).finish();
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let mut wire = memory(|_| ());
    for who in ["A", "B"] {
        open(&mut wire, who);
    }
    wire.open("late", "");
    wire.deafen("A");
    wire.open("claimant", "");
    say(&mut wire, "claimant", json!({"type": "connect", "id": "A"}));
    let reserved = wire.reserved();
    assert!(reserved > 0);
    wire.outbox.out_of_memory = true;
    for message in [
        json!({"type": "offer", "id": "B", "sdp": 1}),
        // Without a target they belong to that offer.
        json!({"type": "candidateAdd", "id": "B", "candidate": 1}),
        json!({"type": "candidateAdd", "id": "B", "target_id": "B", "candidate": 1}),
    ] {
        say(&mut wire, "B", message);
    }
    assert_eq!(code(&mut wire, "B"), "too_many");
    assert_eq!(code(&mut wire, "B"), "unknown_peer");
    assert_eq!(wire.next("B"), None);
    say(&mut wire, "late", json!({"type": "answer", "id": "A", "target_id": "B"}));
    assert_eq!(heard(&mut wire, "late")["target_id"], "B");
    wire.open("second claimant", "");
    say(&mut wire, "second claimant", json!({"type": "connect", "id": "A"}));
    assert_eq!(code(&mut wire, "second claimant"), "too_many");
    assert_eq!(wire.reserved(), reserved);

    // Nor is what was stored for the offer that was refused kept for another.
    wire.outbox.out_of_memory = false;
    wire.open("C", "C");
    say(&mut wire, "C", json!({"type": "candidateAdd", "id": "C", "candidate": 1}));
    wire.outbox.out_of_memory = true;
    say(&mut wire, "C", json!({"type": "offer", "id": "C", "sdp": 1}));
    assert_eq!(code(&mut wire, "C"), "too_many");
    wire.outbox.out_of_memory = false;
    say(&mut wire, "C", json!({"type": "offer", "id": "C", "sdp": 2}));
    wire.open("D", "C");
    say(&mut wire, "D", json!({"type": "answer", "id": "D", "target_id": "C"}));
    assert_eq!(heard(&mut wire, "C")["type"], "answer");
    assert_eq!(wire.next("D"), None, "no candidates");
    wire.leave("C");
    assert_eq!(heard(&mut wire, "D")["type"], "peerLeft");
    wire.leave("D");

    // With memory it goes on as if nothing had been.
    wire.outbox.out_of_memory = false;
    say(&mut wire, "B", json!({"type": "offer", "id": "B", "sdp": 1}));
    say(&mut wire, "B", json!({"type": "candidateAdd", "id": "B", "candidate": 1}));
    assert_eq!(wire.next("B"), None);
    assert!(wire.reserved() > reserved);
    Box::new(wire).finish();
}

/// Peers that replace what is stored use no more memory than what is there now.
#[test]
fn replaced_offers_and_dropped_candidates_release_their_memory() {
    let mut wire = memory(|config| config.rate_max = 0);
    open(&mut wire, "A");
    let mut reserved = Vec::new();
    for _ in 0..100 {
        say(&mut wire, "A", json!({"type": "offer", "id": "A", "sdp": "x".repeat(60_000)}));
        for _ in 0..10 {
            say(&mut wire, "A", json!({"type": "candidateAdd", "id": "A", "candidate": "x".repeat(1000)}));
        }
        assert_eq!(wire.next("A"), None);
        reserved.push(wire.reserved());
    }
    assert!(reserved.iter().all(|it| *it == reserved[0]), "{reserved:?}");
    say(&mut wire, "A", json!({"type": "leave", "id": "A"}));
    assert_eq!(wire.reserved(), 0);
    Box::new(wire).finish();
}

/// A slot is used again, but not the tokens of who was in it before.
#[test]
fn who_comes_after_a_flood_has_a_full_bucket() {
    let mut wire = memory(|config| config.rate_max = 1);
    let conn = |number| noroshi::protocol::Conn::new(number, 0);
    wire.handle(Input::Connected(conn(1), &target(""), None));
    let is_closed = |wire: &Memory| {
        wire.outbox.effects.iter().any(|effect| matches!(effect, Recorded::Close(it, _) if *it == conn(1)))
    };
    while !is_closed(&wire) {
        wire.now += Duration::from_millis(20);
        wire.handle(Input::Text(conn(1), r#"{"type":"leave","id":"A"}"#));
    }
    wire.outbox.effects.clear();
    // The server tells nobody twice that a connection is gone.
    wire.handle(Input::Connected(conn(2), &target(""), None));
    for _ in 0..10 {
        wire.handle(Input::Text(conn(2), r#"{"type":"leave","id":"B"}"#));
    }
    assert_eq!(wire.outbox.effects.drain(..).collect::<Vec<_>>(), [Recorded::Registered(conn(2))]);
    wire.handle(Input::Disconnected(conn(2)));
    Box::new(wire).finish();
}
