//! Inputs into the hub, which must be consistent after each of them and say what the model says.

#![cfg_attr(not(test), no_main)]

mod model;

use std::collections::BTreeSet;
use std::time::Duration;

use model::{Model, Said};
use noroshi::config::Config;
use noroshi::gate::Gate;
use noroshi::hub::Hub;
use noroshi::protocol::{Conn, Dialect, Effect, Input, Outbox, Target};
use noroshi::query::Query;
use serde_json::Value;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// The first byte is the configuration, the rest is what happens; see `World::step`.
pub fn check(mut data: &[u8]) {
    let Some(&how) = data.split_off_first() else { return };
    let mut world = World::new(how);
    for _ in 0..500 {
        if world.step(&mut data).is_none() {
            break;
        }
    }
    world.end();
}

const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", r"\u0067", ""];
const ROOMS: [&str; 2] = ["", "tea"];
/// Few enough to meet each other.
const PEERS_MAX: usize = 10;

struct World {
    gate: Gate,
    now: Duration,
    out: Out,
    /// Without one where rate or memory are limited.
    model: Option<Model>,
    /// By slot.
    peers: [Option<Conn>; PEERS_MAX],
    connections: u64,
    /// Who ever had an id.
    registered: BTreeSet<Conn>,
    errors: u64,
}

#[derive(Default)]
struct Out {
    said: Vec<(Conn, Said)>,
    full: BTreeSet<Conn>,
    /// Whether nothing more may be kept.
    out_of_memory: bool,
}

impl Outbox for Out {
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool {
        assert!(!texts.is_empty());
        !self.full.contains(&to)
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        if self.out_of_memory { None } else { self.budget.reserve(bytes) }
    }

    fn push(&mut self, effect: Effect<'_>) {
        self.said.push(match effect {
            Effect::Send(to, text) => {
                let mut message: Value = serde_json::from_str(&text).expect("JSON");
                if message["type"] == "error" {
                    let sentence = message.as_object_mut().unwrap().remove("message").unwrap();
                    assert!(!sentence.as_str().unwrap().is_empty());
                }
                (to, Said::Text(message))
            }
            Effect::SendBinary(..) => unreachable!("the hub says no bytes"),
            Effect::Ping(to) => (to, Said::Ping),
            Effect::Close(to, why) => (to, Said::Close(why)),
            Effect::Registered { conn, .. } => (conn, Said::Registered),
            Effect::Left { conn, member, .. } => {
                (conn, Said::Left(member.room.to_owned(), member.id.map(String::from)))
            }
        });
    }
}

impl World {
    fn new(how: u8) -> World {
        let rate_max = [0, 0, 0, 3][usize::from(how % 4)];
        let config = Config { mesh_peers_max: 1 + usize::from(how / 4 % 4), rate_max, ..Config::default() };
        World {
            gate: Gate::new(&config).to(Dialect::Noroshi, Hub::new(&config)),
            now: Duration::ZERO,
            out: Out::default(),
            model: (rate_max == 0).then(|| Model::new(config.mesh_peers_max)),
            peers: [None; PEERS_MAX],
            connections: 0,
            registered: BTreeSet::new(),
            errors: 0,
        }
    }

    fn step(&mut self, data: &mut &[u8]) -> Option<()> {
        let mut byte = || data.split_off_first().copied();
        let (what, who) = (byte()?, usize::from(byte()?));
        let slot = who % PEERS_MAX;
        let conn = self.peers[slot];
        match (what % 16, conn) {
            (0, Some(conn)) => {
                self.peers[slot] = None;
                self.out.full.remove(&conn);
                self.input(Input::Disconnected(conn));
                // What was on its way means nothing.
                self.input(Input::Alive(conn));
            }
            (1, Some(conn)) => self.input(Input::Alive(conn)),
            (2, Some(conn)) => {
                if !self.out.full.remove(&conn) {
                    self.out.full.insert(conn);
                }
            }
            (2, None) if self.model.is_none() => self.out.out_of_memory = !self.out.out_of_memory,
            (3, _) => {
                self.now += Duration::from_millis(100 * who as u64);
                self.input(Input::Time);
            }
            (4, _) => {
                self.now = self.now.max(self.gate.wake_at().unwrap_or_default());
                self.input(Input::Time);
                assert!(self.gate.wake_at().is_none_or(|at| at > self.now));
            }
            (5, Some(conn)) => {
                let length = usize::from(byte()?).min(data.len());
                let bytes = data.split_off(..length)?;
                match std::str::from_utf8(bytes) {
                    Ok(text) if who & 0x80 == 0 => self.input(Input::Text(conn, text)),
                    _ => self.input(Input::Binary(conn, bytes)),
                }
            }
            (_, None) => {
                self.connections += 1;
                let conn = Conn::new(self.connections, slot);
                self.peers[slot] = Some(conn);
                let room = ROOMS[who / PEERS_MAX % 2].to_owned();
                let target = Target { dialect: Dialect::Noroshi, room, query: Query::default() };
                self.input(Input::Connected(conn, &target, None));
            }
            (_, Some(conn)) => {
                let (kind, target, more) = (byte()?, usize::from(byte()?), usize::from(byte()?));
                let id = if who < 200 { IDS[slot % 7] } else { IDS[who % 8] };
                // What a claimant sends is kept up to a limit, which the model has not.
                let is_registered = self.registered.contains(&conn);
                let more = if is_registered { more } else { more % 8 };
                let text = message(kind, id, IDS[target % 8], more);
                self.input(Input::Text(conn, &text));
            }
        }
        Some(())
    }

    fn input(&mut self, input: Input) {
        self.gate.handle(self.now, self.now, input, &mut self.out);
        let (_, hub) = self.gate.each().next().unwrap();
        hub.check();
        let mut said = std::mem::take(&mut self.out.said);
        for (conn, said) in &said {
            let is_here = self.peers[conn.slot()] == Some(*conn);
            assert!(is_here || matches!(said, Said::Left(..)), "{said:?} is said to somebody who is gone");
            self.registered.extend(Some(*conn).filter(|_| *said == Said::Registered));
            self.errors += u64::from(matches!(said, Said::Text(message) if message["type"] == "error"));
        }
        let Some(model) = &mut self.model else { return };
        (model.now, model.full) = (self.now, self.out.full.clone());
        model.handle(input);
        // The order between different peers means nothing.
        let mut expected = std::mem::take(&mut model.said);
        expected.sort_by_key(|(conn, _)| *conn);
        said.sort_by_key(|(conn, _)| *conn);
        assert_eq!(said, expected, "after {input:?}");
        assert_eq!(self.gate.wake_at(), model.wake_at());
        let counts = hub.counts(self.now);
        assert_eq!((counts.peers, counts.rooms), (model.peers(), model.rooms()));
        assert_eq!(counts.errors.iter().map(|(_, count)| count).sum::<u64>(), self.errors);
    }

    fn end(mut self) {
        for conn in self.peers.into_iter().flatten() {
            self.input(Input::Disconnected(conn));
        }
        let (_, hub) = self.gate.each().next().unwrap();
        let counts = hub.counts(self.now);
        assert_eq!((counts.peers, counts.rooms, self.gate.wake_at()), (0, 0, None));
    }
}

fn message(kind: u8, id: &str, target: &str, more: usize) -> String {
    let kinds = ["connect", "offer", "answer", "candidateAdd", "join", "leave", "offer", "answer"];
    let kind = kinds[usize::from(kind % 8)];
    let mut text = format!(r#"{{"type":"{kind}","id":"{id}""#);
    if more & 1 == 0 {
        text.push_str(&format!(r#","target_id":"{target}""#));
    }
    match more / 2 % 4 {
        0 => text.push_str(&format!(r#","candidates":[{}0]"#, r#"["\"",1],"#.repeat(more / 8))),
        1 => text.push_str(&format!(r#","candidate":"{}""#, "x".repeat(1000 * (more / 8)))),
        2 => text.push_str(&format!(r#","sdp":{{"n": {more}}}"#)),
        _ => {}
    }
    text + "}"
}
