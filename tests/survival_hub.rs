//! Attacks on the rules of signaling, on memory: what peers say to each other's harm. See `survival.rs`.
//!
//! Meanwhile a pair in a room of its own goes on exchanging candidates; afterwards the hub is empty, and what it had
//! allocated at most is below a bound that the test states.

mod common;

use std::alloc::System;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::memory::{Memory, Recorded, left, target};
use common::transcript::{Heard, Wire};
use noroshi::config::{Config, PROBE_TIME_MAX};
use noroshi::protocol::{Conn, Input};
use noroshi::protocols::noroshi::message::Kind;
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;

/// A hub, and two peers who want nothing but to go on talking.
struct LoadedServer {
    wire: Memory,
    said: usize,
    _alone: MutexGuard<'static, ()>,
}

/// The ids of the pair.
const PAIR: [&str; 2] = ["P", "Q"];

impl LoadedServer {
    fn new() -> LoadedServer {
        // All that the process allocates is counted together.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Config { rate_max: 0, ..Config::default() };
        let mut siege = LoadedServer { wire: Memory::new(&config), said: 0, _alone: alone };
        for id in PAIR {
            siege.open(id, "pair");
            siege.say(id, json!({"type": "leave", "id": id}));
        }
        siege
    }

    fn open(&mut self, who: &str, room: &str) {
        self.wire.open(who, room);
    }

    fn say(&mut self, who: &str, message: Value) {
        self.wire.say(who, message.to_string().as_bytes(), false);
    }

    fn heard(&mut self, who: &str) -> Option<Value> {
        match self.wire.next(who)? {
            Heard::Text(text) => Some(serde_json::from_str(&text).unwrap()),
            Heard::Closed(code) => Some(code.into()),
        }
    }

    /// The pair exchanges a candidate, each way.
    fn talk(&mut self) {
        self.said += 1;
        for (from, to) in [(0, 1), (1, 0)] {
            let (id, target) = (PAIR[from], PAIR[to]);
            let said = json!({"type": "candidateAdd", "id": id, "target_id": target, "candidate": self.said});
            self.say(id, said);
            let heard = json!({"type": "candidate", "candidate": self.said.to_string(), "id": id});
            assert_eq!(self.heard(target), Some(heard));
        }
    }

    /// Puts something into the hub and forgets the effects, but for their number.
    fn input(&mut self, input: Input) -> usize {
        self.wire.handle(input);
        let effects = self.wire.outbox.effects.drain(..);
        effects.filter(|effect| !matches!(effect, Recorded::Left(_))).count()
    }

    /// What is allocated now, the test's own things among it.
    fn allocated(&self) -> usize {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated - stats.bytes_deallocated
    }

    fn end(mut self) {
        self.talk();
        Box::new(self.wire).finish();
    }
}

// ---- JSON ----

/// A message of each type that is fine.
fn fine(kind: Kind) -> Value {
    json!({"type": kind.name(), "id": "A", "target_id": "B", "sdp": {}, "candidate": {}, "candidates": [1]})
}

/// Which error a message gets of which one field has this value (`None`: is missing).
fn error(kind: Kind, field: &str, value: Option<&Value>) -> Option<&'static str> {
    let text = value.and_then(Value::as_str);
    let is_missing = value.is_none_or(Value::is_null);
    let names_a_target = matches!(kind, Kind::Offer | Kind::Answer | Kind::CandidateAdd);
    match field {
        "type" => Some(if text.is_some() { "unknown_type" } else { "bad_message" }),
        "id" if text == Some("?") => Some("id_mismatch"),
        "id" => Some("bad_message"),
        "target_id" if !names_a_target => None,
        // Nobody to answer.
        "target_id" if is_missing || text == Some("") => (kind == Kind::Answer).then_some("bad_message"),
        "target_id" => Some(if text == Some("?") { "unknown_peer" } else { "bad_message" }),
        "candidates" if kind == Kind::CandidateAdd && !is_missing => Some("bad_message"),
        _ => None,
    }
}

#[test]
fn every_field_of_every_message_has_every_value() {
    let mut siege = LoadedServer::new();
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
        for field in ["type", "id", "target_id", "sdp", "candidate", "candidates", "whatever"] {
            for value in &values {
                for id in ["A", "B"] {
                    siege.open(id, "tea");
                    siege.say(id, json!({"type": "leave", "id": id}));
                }
                let mut message = fine(kind);
                match value {
                    Some(value) => message[field] = value.clone(),
                    None => drop(message.as_object_mut().unwrap().remove(field)),
                }
                siege.say("A", message);
                let heard = siege.heard("A").unwrap_or_default();
                let expected = error(kind, field, value.as_ref());
                assert_eq!(heard["code"].as_str(), expected, "{kind:?} {field} {value:?}");
                siege.talk();
                siege.wire.leave("A");
                siege.wire.leave("B");
            }
        }
    }
    siege.end();
}

// ---- Ids ----

const FIGHTERS: usize = 200;

impl LoadedServer {
    /// A peer that holds the id X and answers nothing, and so many that claim it.
    fn fight(&mut self) -> Vec<String> {
        self.open("X", "tea");
        self.say("X", json!({"type": "leave", "id": "X"}));
        self.wire.deafen("X");
        let fighters: Vec<String> = (0..FIGHTERS).map(|i| format!("fighter {i}")).collect();
        for who in &fighters {
            self.open(who, "tea");
            self.say(who, json!({"type": "join", "id": "X"}));
        }
        self.talk();
        fighters
    }

    fn taken(&mut self, who: &str) {
        assert_eq!(self.heard(who).unwrap_or_default()["code"], "id_taken", "{who}");
    }
}

#[test]
fn two_hundred_fight_for_the_id_of_the_living() {
    let mut siege = LoadedServer::new();
    let fighters = siege.fight();
    siege.wire.pass(PROBE_TIME_MAX.as_secs() - 1);
    siege.wire.input(Input::Alive(siege.wire.conn("X")));
    for who in &fighters {
        siege.taken(who);
    }
    // They may all have another.
    for who in &fighters {
        siege.say(who, json!({"type": "leave", "id": who}));
        assert_eq!(siege.heard(who), None);
    }
    assert_eq!(left(&siege.wire.dispatcher).0, PAIR.len() + 1 + FIGHTERS);
    siege.end();
}

#[test]
fn two_hundred_fight_for_the_id_of_the_dead() {
    let mut siege = LoadedServer::new();
    let mut fighters = siege.fight();
    // Some lose heart.
    for who in fighters.drain(..10) {
        siege.wire.leave(&who);
    }
    siege.wire.pass(PROBE_TIME_MAX.as_secs());
    assert_eq!(siege.heard(&fighters[0]), Some(json!({"type": "joined", "id": "X", "peers": []})));
    for who in &fighters[1..] {
        siege.taken(who);
    }
    assert_eq!(left(&siege.wire.dispatcher).0, PAIR.len() + 1);
    siege.end();
}

// ---- Storms ----

#[test]
fn twenty_thousand_wait_in_one_room() {
    const CROWD: usize = 20_000;
    let mut siege = LoadedServer::new();
    let conns: Vec<Conn> = (10..10 + CROWD).map(|i| Conn::new(i as u64, i)).collect();
    let before = siege.allocated();
    for conn in &conns {
        siege.input(Input::Connected(*conn, &target("tea"), None));
        siege.input(Input::Text(*conn, &format!(r#"{{"type":"connect","id":"{}"}}"#, conn.number())));
    }
    let taken = siege.allocated() - before;
    println!("{} bytes for each", taken / CROWD);
    assert!(taken < CROWD * 512);
    siege.talk();
    // Whoever is asked leaves, and the next one is asked.
    let told: usize = conns.iter().map(|conn| siege.input(Input::Disconnected(*conn))).sum();
    assert_eq!(told, CROWD - 1);
    siege.end();
}
