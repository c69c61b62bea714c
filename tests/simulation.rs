//! Many peers at random against the hub, which must be consistent after each input and empty at the end.
//!
//! The seed of a failing run is printed; `TEST_SEED=… cargo test --test simulation` plays it alone.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::dice::Dice;
use common::memory::{Recorded, Recorder, gate, left, target};
use noroshi::config::Config;
use noroshi::gate::Gate;
use noroshi::protocol::{Conn, Input};
use serde_json::Value;

const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "nobody"];
const ROOMS: [&str; 3] = ["", "tea", "mesh"];

struct World {
    dice: Dice,
    gate: Gate,
    now: Duration,
    out: Recorder,
    /// Everybody who is connected, with the id under which it speaks.
    peers: BTreeMap<Conn, &'static str>,
    connections: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let rate_max = *dice.pick(&[0, 0, 2, 100]);
        let config = Config { mesh_peers_max: 3, rate_max, ..Config::default() };
        let gate = gate(&config);
        let (peers, out) = (BTreeMap::new(), Recorder::default());
        World { dice, gate, now: Duration::ZERO, out, peers, connections: 0 }
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(self.now, self.now, input, &mut self.out);
        self.gate.each().for_each(|(_, protocol)| protocol.check());
        while let Some(effect) = self.out.effects.pop_front() {
            match effect {
                Recorded::Send(to, text) => {
                    assert!(self.peers.contains_key(&to), "{text} is sent to somebody who is gone");
                    let Ok(Value::Object(said)) = serde_json::from_str(&text) else { panic!("{text}") };
                    assert!(said["type"].is_string());
                }
                Recorded::Ping(to) => {
                    if self.dice.roll(3) == 0 {
                        self.input(Input::Alive(to));
                    }
                }
                Recorded::Close(conn, _) => {
                    assert!(self.peers.remove(&conn).is_some(), "closed twice");
                    // What is still on its way from there means nothing.
                    self.input(Input::Text(conn, r#"{"type":"connect","id":"a"}"#));
                    self.input(Input::Alive(conn));
                    self.input(Input::Disconnected(conn));
                }
                Recorded::Registered(conn) => {
                    assert!(self.peers.contains_key(&conn));
                }
                Recorded::Left(_) => {}
            }
        }
    }

    fn message(&mut self, own: &'static str) -> String {
        let dice = &mut self.dice;
        let kinds = [
            "connect",
            "connect",
            "offer",
            "offer",
            "answer",
            "answer",
            "candidateAdd",
            "join",
            "leave",
            "x",
        ];
        let kind = dice.pick(&kinds);
        let id = if dice.roll(20) == 0 { dice.pick(&IDS) } else { own };
        let mut text = format!(r#"{{"type":"{kind}","id":"{id}""#);
        if dice.roll(2) == 0 {
            text.push_str(&format!(r#","target_id":"{}""#, dice.pick(&IDS)));
        }
        match dice.roll(4) {
            0 => text.push_str(r#","candidates":[1,2,3,4,5,6,7,8,9,0]"#),
            1 => text.push_str(&format!(r#","candidate":"{}""#, "x".repeat(dice.roll(9000) as usize))),
            _ => text.push_str(r#","sdp":{"v":0}"#),
        }
        if dice.roll(50) > 0 {
            text.push('}');
        }
        text
    }

    fn step(&mut self) {
        let who = (!self.peers.is_empty()).then(|| {
            let n = self.dice.roll(self.peers.len() as u64) as usize;
            self.peers.iter().nth(n).map(|(conn, id)| (*conn, *id)).unwrap()
        });
        match (self.dice.roll(20), who) {
            (0..3, _) | (_, None) => {
                let (room, id) = (*self.dice.pick(&ROOMS), *self.dice.pick(&IDS[..7]));
                // The lowest free slot, so that slots are used again.
                let slot = (0..).find(|slot| self.peers.keys().all(|conn| conn.slot() != *slot)).unwrap();
                self.connections += 1;
                let conn = Conn::new(self.connections, slot);
                self.peers.insert(conn, id);
                self.input(Input::Connected(conn, &target(room), None));
            }
            (3, Some((conn, _))) => {
                self.peers.remove(&conn);
                self.out.full.remove(&conn);
                self.input(Input::Disconnected(conn));
            }
            (4, Some((conn, _))) => self.input(Input::Alive(conn)),
            (5, Some((conn, _))) => {
                if !self.out.full.remove(&conn) {
                    self.out.full.insert(conn);
                }
            }
            (6, _) => {
                self.now += Duration::from_millis(self.dice.roll(40_000));
                self.input(Input::Time);
            }
            (7, _) => {
                if let Some(due) = self.gate.wake_at() {
                    self.now = self.now.max(due);
                    self.input(Input::Time);
                    assert!(self.gate.wake_at().is_none_or(|at| at > self.now));
                }
            }
            (_, Some((conn, id))) => {
                let text = self.message(id);
                self.input(Input::Text(conn, &text));
            }
        }
    }

    fn end(mut self) {
        while let Some((conn, _)) = self.peers.pop_first() {
            self.input(Input::Disconnected(conn));
        }
        assert_eq!(left(&self.gate), (0, 0, None));
    }
}

#[test]
fn the_hub_is_consistent_whatever_happens() {
    let seeds = match std::env::var("TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..400).collect(),
    };
    for seed in seeds {
        println!("TEST_SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..500 {
            world.step();
        }
        world.end();
    }
}

// ---- Large rooms ----

struct Crowd {
    gate: Gate,
    out: Recorder,
    effects: usize,
}

const CROWD: usize = 20_000;

impl Crowd {
    /// So many peers that connect to one room.
    fn new() -> Crowd {
        let gate = gate(&Config::default());
        let mut crowd = Crowd { gate, out: Recorder::default(), effects: 0 };
        for i in 0..CROWD {
            crowd.input(Input::Connected(conn(i), &target(""), None));
            crowd.say(i, "connect", "");
        }
        crowd
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(Duration::ZERO, Duration::ZERO, input, &mut self.out);
        let told = self.out.effects.drain(..).filter(|effect| !matches!(effect, Recorded::Left(_)));
        self.effects += told.count();
    }

    fn say(&mut self, who: usize, kind: &str, more: &str) {
        let text = format!(r#"{{"type":"{kind}","id":"{who}"{more}}}"#);
        self.input(Input::Text(conn(who), &text));
    }

    fn end(mut self) {
        for i in 0..CROWD {
            self.input(Input::Disconnected(conn(i)));
        }
        assert_eq!(left(&self.gate), (0, 0, None));
    }
}

fn conn(i: usize) -> Conn {
    Conn::new(i as u64 + 1, i)
}

/// The effects say that nobody is told in vain. Were a step linear in the crowd, these would take minutes.
#[test]
fn a_crowd_waits_while_its_offerers_leave() {
    let mut crowd = Crowd::new();
    assert_eq!(crowd.effects, CROWD + 1, "all are registered, and one is asked");
    crowd.effects = 0;
    for i in 0..CROWD {
        crowd.say(i, "leave", "");
    }
    assert_eq!(crowd.effects, CROWD - 1, "each time the next is asked");
    crowd.end();
}

#[test]
fn a_crowd_leaves_from_the_middle_and_the_back_of_the_line() {
    let mut crowd = Crowd::new();
    crowd.effects = 0;
    for i in (1..CROWD).rev().step_by(2).chain((1..CROWD).step_by(2)) {
        crowd.input(Input::Disconnected(conn(i)));
    }
    assert_eq!(crowd.effects, 0);
    crowd.end();
}

#[test]
fn a_crowd_pairs_and_leaves() {
    let mut crowd = Crowd::new();
    crowd.effects = 0;
    for i in (0..CROWD).step_by(2) {
        crowd.say(i, "offer", r#","sdp":1"#);
        crowd.say(i + 1, "answer", r#","sdp":2"#);
        crowd.input(Input::Disconnected(conn(i)));
    }
    // The offer is handed, the answer told, the next one asked, and the partner hears who left.
    assert_eq!(crowd.effects, 4 * (CROWD / 2) - 1);
    crowd.end();
}

#[test]
fn a_crowd_is_handed_the_same_offer() {
    let mut crowd = Crowd::new();
    for i in 1..CROWD {
        crowd.say(i, "leave", "");
    }
    crowd.say(0, "offer", r#","sdp":1"#);
    crowd.effects = 0;
    for i in 1..CROWD {
        crowd.say(i, "connect", "");
    }
    assert_eq!(crowd.effects, CROWD - 1, "all are handed it");
    // One takes it, the others come too late and begin anew.
    crowd.effects = 0;
    for i in 1..CROWD {
        crowd.say(i, "answer", r#","target_id":"0""#);
    }
    assert_eq!(crowd.effects, 1 + (CROWD - 2) + 1, "one answer, errors, and one is asked");
    crowd.end();
}
