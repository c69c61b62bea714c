//! Attacks on the rules of noroshi's protocol, in memory.
//!
//! A pair in its own room exchanges candidates during each attack. At the end all rooms are empty.

use std::alloc::System;

use crate::common::input::Input;
use crate::common::memory::{Memory, Recorded, remaining_state, target};
use crate::common::own_process::is_alone;
use crate::common::transcript::{Received, Transport};
use noroshi::config::Config;
use noroshi::limits::PROBE_TIME_MAX;
use noroshi::protocol::Conn;
use noroshi::protocols::noroshi::message::Kind;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

/// The protocol in memory, and a well-behaved pair that exchanges candidates.
struct LoadedHub {
    memory: Memory,
    messages_sent: usize,
}

/// The ids of the well-behaved pair.
const PAIR: [&str; 2] = ["P", "Q"];

impl LoadedHub {
    fn new() -> LoadedHub {
        let config = Config { rate_max: 0, ..Config::default() };
        let mut loaded = LoadedHub { memory: Memory::new(&config), messages_sent: 0 };
        for id in PAIR {
            loaded.open(id, "pair");
            loaded.send(id, json!({"type": "leave", "id": id}));
        }
        loaded
    }

    fn open(&mut self, peer: &str, room: &str) {
        self.memory.open(peer, room);
    }

    fn send(&mut self, peer: &str, message: Value) {
        self.memory.send(peer, message.to_string().as_bytes(), false);
    }

    fn receive(&mut self, peer: &str) -> Option<Value> {
        match self.memory.next_received(peer)? {
            Received::Text(text) => Some(serde_json::from_str(&text).unwrap()),
            Received::Closed(code) => Some(code.into()),
        }
    }

    /// Exchanges a candidate in each direction.
    fn exchange_candidates(&mut self) {
        self.messages_sent += 1;
        for (from, to) in [(0, 1), (1, 0)] {
            let id = PAIR[from];
            let target = PAIR[to];
            let message = json!({"type": "candidateAdd", "id": id, "target_id": target, "candidate": self.messages_sent});
            self.send(id, message);
            let expected =
                json!({"type": "candidate", "candidate": self.messages_sent.to_string(), "id": id});
            assert_eq!(self.receive(target), Some(expected));
        }
    }

    /// Handles an input and returns the number of effects.
    fn input(&mut self, input: Input) -> usize {
        self.memory.handle(input);
        let effects = self.memory.outbox.effects.drain(..);
        effects.filter(|effect| !matches!(effect, Recorded::Left(_))).count()
    }

    fn finish(mut self) {
        self.exchange_candidates();
        Box::new(self.memory).finish();
    }
}

// ---- JSON ----

/// Returns a valid message of this type.
fn valid_message(kind: Kind) -> Value {
    json!({"type": kind.name(), "id": "A", "target_id": "B", "sdp": {}, "candidate": {}, "candidates": [1]})
}

/// Returns the error for a message in which one field has this value. `None`: the field is missing.
fn error(kind: Kind, field: &str, value: Option<&Value>) -> Option<&'static str> {
    let text = value.and_then(Value::as_str);
    let is_missing = value.is_none_or(Value::is_null);
    let names_a_target = matches!(kind, Kind::Offer | Kind::Answer | Kind::CandidateAdd);
    let is_boolean = value.is_some_and(Value::is_boolean);
    match field {
        "type" => Some(if text.is_some() { "unknown_type" } else { "bad_message" }),
        "id" if kind == Kind::Ping => None,
        "id" if text == Some("?") => Some("id_mismatch"),
        "id" => Some("bad_message"),
        "target_id" if !names_a_target => None,
        // There is no peer to answer.
        "target_id" if is_missing || text == Some("") => (kind == Kind::Answer).then_some("bad_message"),
        "target_id" => Some(if text == Some("?") { "unknown_peer" } else { "bad_message" }),
        "candidates" if kind == Kind::CandidateAdd && !is_missing => Some("bad_message"),
        "iceServers" if kind == Kind::Ping && !is_missing && !is_boolean => Some("bad_message"),
        _ => None,
    }
}

#[test]
fn every_message_is_checked_with_every_value_of_every_field() {
    let mut loaded = LoadedHub::new();
    let huge = "x".repeat(60 * KIB);
    let values = [
        None,
        Some(json!(null)),
        Some(json!(true)),
        Some(json!(-1.5e300)),
        Some(json!("")),
        Some(json!("?")),
        Some(json!(huge)),
        Some(json!([])),
        Some(json!([0; 65].to_vec())),
        Some(json!({})),
        Some(json!({"type": "connect", "id": "A"})),
    ];
    for kind in Kind::ALL {
        for field in ["type", "id", "target_id", "sdp", "candidate", "candidates", "iceServers", "whatever"] {
            for value in &values {
                for id in ["A", "B"] {
                    loaded.open(id, "tea");
                    loaded.send(id, json!({"type": "leave", "id": id}));
                }
                let mut message = valid_message(kind);
                match value {
                    Some(value) => message[field] = value.clone(),
                    None => drop(message.as_object_mut().unwrap().remove(field)),
                }
                loaded.send("A", message);
                let received = loaded.receive("A").unwrap_or_default();
                let expected = error(kind, field, value.as_ref());
                assert_eq!(received["code"].as_str(), expected, "{kind:?} {field} {value:?}");
                loaded.exchange_candidates();
                loaded.memory.close("A");
                loaded.memory.close("B");
            }
        }
    }
    loaded.finish();
}

// ---- Ids ----

const FIGHTERS: usize = 200;

impl LoadedHub {
    /// Connects a peer that holds the id X and answers nothing, and claimants of that id.
    fn claim_held_id(&mut self) -> Vec<String> {
        self.open("X", "tea");
        self.send("X", json!({"type": "leave", "id": "X"}));
        self.memory.stop_reading("X");
        let claimants: Vec<String> = (0..FIGHTERS).map(|i| format!("claimant {i}")).collect();
        for peer in &claimants {
            self.open(peer, "tea");
            self.send(peer, json!({"type": "join", "id": "X"}));
        }
        self.exchange_candidates();
        claimants
    }

    fn expect_id_taken(&mut self, peer: &str) {
        assert_eq!(self.receive(peer).unwrap_or_default()["code"], "id_taken", "{peer}");
    }
}

#[test]
fn two_hundred_claims_of_a_live_holder_are_rejected() {
    let mut loaded = LoadedHub::new();
    let claimants = loaded.claim_held_id();
    loaded.memory.advance(PROBE_TIME_MAX.as_secs() - 1);
    loaded.memory.input(Input::Alive(loaded.memory.conn("X")));
    for peer in &claimants {
        loaded.expect_id_taken(peer);
    }
    // All claimants may register another id.
    for peer in &claimants {
        loaded.send(peer, json!({"type": "leave", "id": peer}));
        assert_eq!(loaded.receive(peer), None);
    }
    assert_eq!(remaining_state(&loaded.memory.dispatcher).0, PAIR.len() + 1 + FIGHTERS);
    loaded.finish();
}

#[test]
fn two_hundred_claims_of_a_dead_holder_have_one_winner() {
    let mut loaded = LoadedHub::new();
    let mut claimants = loaded.claim_held_id();
    // Some claimants disconnect.
    for peer in claimants.drain(..10) {
        loaded.memory.close(&peer);
    }
    loaded.memory.advance(PROBE_TIME_MAX.as_secs());
    assert_eq!(loaded.receive(&claimants[0]), Some(json!({"type": "joined", "id": "X", "peers": []})));
    for peer in &claimants[1..] {
        loaded.expect_id_taken(peer);
    }
    assert_eq!(remaining_state(&loaded.memory.dispatcher).0, PAIR.len() + 1);
    loaded.finish();
}

// ---- Storms ----

/// Returns the bytes that the process has allocated.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

#[test]
fn twenty_thousand_peers_queue_in_one_room() {
    if !is_alone("noroshi_rules::twenty_thousand_peers_queue_in_one_room", &[]) {
        return;
    }
    const CROWD_PEERS: usize = 20_000;
    let mut loaded = LoadedHub::new();
    let conns: Vec<Conn> = (10..10 + CROWD_PEERS).map(|i| Conn::new(i as u64, i)).collect();
    let before = allocated();
    for conn in &conns {
        loaded.input(Input::Connected(*conn, &target("tea"), None));
        loaded.input(Input::Text(*conn, &format!(r#"{{"type":"connect","id":"{}"}}"#, conn.number())));
    }
    let taken = allocated() - before;
    println!("{} bytes for each", taken / CROWD_PEERS);
    assert!(taken < CROWD_PEERS * 512);
    loaded.exchange_candidates();
    // Each offerer leaves, and the next peer becomes the offerer.
    let notices: usize = conns.iter().map(|conn| loaded.input(Input::Disconnected(*conn))).sum();
    assert_eq!(notices, CROWD_PEERS - 1);
    loaded.finish();
}
