//! Input to noroshi's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

mod context;
mod hub_model;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use hub_model::Model;
use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::http::token::Claims;
use noroshi::limits::CLAIMANTS_MAX;
use noroshi::protocol::{Conn, Target};
use noroshi::protocols::noroshi::DESCRIPTOR;
use noroshi_test_support::input::Input;
use serde_json::{Value, json};
use world::{Bytes, STEPS_MAX, Step, World};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", r"\u0067", ""];
const ROOMS: [&str; 2] = ["", "tea"];
/// Few peers, so that they interact.
const PEERS_MAX: usize = 10;
/// Additional peers that connect, send and disconnect together, to reach the limits of claimants and holders.
const EXTRA_PEERS_MAX: usize = CLAIMANTS_MAX + 10;
/// Maximum steps with all additional peers in one input, because each takes long.
const EXTRA_STEPS_MAX: usize = 4;

/// The first two bytes select the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let (Some(limits), Some(rooms)) = (bytes.next(), bytes.next()) else { return };
    let mut hub = HubWorld::new(limits, rooms);
    for _ in 0..STEPS_MAX {
        if hub.step(&mut bytes).is_none() {
            break;
        }
    }
    hub.world.end();
}

struct HubWorld {
    world: World<Model>,
    has_tokens: bool,
    extra_steps: usize,
    rate: u32,
    /// The id in most messages of a connection.
    own_ids: BTreeMap<Conn, usize>,
}

impl HubWorld {
    fn new(limits: u8, rooms: u8) -> HubWorld {
        let rate = [0, 1, 2, 4][usize::from(limits % 4)];
        let memory = [None, Some(300), Some(1500), Some(70_000)][usize::from(limits / 4 % 4)];
        let has_tokens = limits & 0x10 != 0;
        let has_extra_peers = rooms >= 0xf0;
        let extra_steps = if has_extra_peers { EXTRA_STEPS_MAX } else { 0 };
        let mesh_peers_max = if has_extra_peers { 70 } else { 1 + usize::from(rooms % 4) };
        let has_ice_servers = !has_extra_peers && rooms & 0x08 != 0;
        // The URL has more than 4 KiB, so that a message with it costs two credits.
        let ice_urls = if has_ice_servers { vec!["x".repeat(4200)] } else { vec![] };
        let ice_servers = has_ice_servers.then(|| json!([{"urls": ice_urls}]));
        let config = Config { mesh_peers_max, ice_servers: ice_urls, ..world::config(rate, memory) };
        let model = Model::new(rate, mesh_peers_max, ice_servers);
        let slots = if has_extra_peers { PEERS_MAX + EXTRA_PEERS_MAX } else { PEERS_MAX };
        let world = World::new(&config, &DESCRIPTOR, model, slots).normalize(normalize);
        HubWorld { world, has_tokens, extra_steps, rate, own_ids: BTreeMap::new() }
    }

    fn step(&mut self, bytes: &mut Bytes) -> Option<()> {
        let step = self.world.next_step(bytes, PEERS_MAX)?;
        if self.world.common_step(step, bytes)? {
            return Some(());
        }
        match (step.event, step.conn) {
            (7, Some(conn)) => {
                let times = bytes.next()? % 16;
                let pause = bytes.next()? % 64;
                let message = self.message(step, conn, bytes)?;
                for _ in 0..times {
                    self.world.send(conn, message.as_bytes(), false);
                    self.world.now += Duration::from_millis(50 * u64::from(pause));
                    self.world.input(Input::Time);
                }
            }
            (8, _) if self.extra_steps > 0 => {
                self.extra_steps -= 1;
                self.extra_peers_step(step, bytes)?;
            }
            (_, None) => self.connect(step),
            (_, Some(conn)) => {
                let message = self.message(step, conn, bytes)?;
                self.world.send(conn, message.as_bytes(), false);
                // The server reports a liveness signal after the messages of a read.
                if step.event & 1 == 0 {
                    self.world.alive(conn);
                }
            }
        }
        Some(())
    }

    fn connect(&mut self, step: Step) {
        let kind = step.selector / PEERS_MAX;
        // Every second token is for one of a few ids, so that ids conflict.
        let token_id = Some(kind / 4 % 3).filter(|_| kind / 2 % 2 == 1);
        let claims = Claims {
            expires_at: Duration::from_secs(1_000_000),
            room: None,
            room_prefix: None,
            id: token_id.map(|id| IDS[id].into()),
        };
        let claims = Some(&claims).filter(|_| self.has_tokens);
        let conn = self
            .world
            .connect(step.slot, &target(ROOMS[kind % 2]), claims)
            .expect("the protocol accepts the peer");
        self.own_ids.insert(conn, token_id.unwrap_or(step.slot % 5));
        // Every second peer has one credit left at its first message.
        if kind / 12 == 1 {
            for _ in 1..10 * self.rate {
                self.world.frame(conn);
            }
        }
    }

    fn message(&self, step: Step, conn: Conn, bytes: &mut Bytes) -> Option<String> {
        let kind = bytes.next()?;
        let target = usize::from(bytes.next()?);
        let more = usize::from(bytes.next()?);
        let id = if step.selector < 200 { IDS[self.own_ids[&conn]] } else { IDS[step.selector % 8] };
        Some(message(kind, id, IDS[target % 8], more))
    }

    /// Connects the missing additional peers, which send the same message or disconnect.
    fn extra_peers_step(&mut self, step: Step, bytes: &mut Bytes) -> Option<()> {
        let first = usize::from(bytes.next()? % 16);
        let count = usize::from(bytes.next()?);
        let kind = bytes.next()?;
        let more = usize::from(bytes.next()?);
        for number in first..(first + count).min(EXTRA_PEERS_MAX) {
            let slot = PEERS_MAX + number;
            let conn = self.world.conn(slot);
            if step.selector % 8 == 7 {
                if let Some(conn) = conn {
                    self.world.disconnect(conn);
                }
                continue;
            }
            let claims = Claims {
                expires_at: Duration::from_secs(1_000_000),
                room: None,
                room_prefix: None,
                id: None,
            };
            let claims = Some(&claims).filter(|_| self.has_tokens);
            let Some(conn) = conn.or_else(|| self.world.connect(slot, &target(""), claims)) else { continue };
            let own = format!("p{number}");
            let id = if step.selector < 128 { own.as_str() } else { IDS[step.selector % 7] };
            self.world.send(conn, message(kind, id, IDS[step.selector / 8 % 8], more).as_bytes(), false);
        }
        Some(())
    }
}

fn target(room: &str) -> Target {
    Target { protocol: &DESCRIPTOR, room: room.to_owned(), query: Query::default() }
}

/// Rewrites a message of the server like the model's: without texts for people, and with sorted fields.
fn normalize(text: String) -> String {
    let mut message: Value = serde_json::from_str(&text).expect("the server sends JSON");
    if message["type"] == "error" {
        let sentence = message.as_object_mut().expect("an object").remove("message").expect("a sentence");
        assert!(!sentence.as_str().expect("a string").is_empty());
    }
    message.to_string()
}

fn message(kind: u8, id: &str, target: &str, more: usize) -> String {
    if kind >= 0xe0 {
        return ping(kind, id, target);
    }
    let kinds = ["connect", "offer", "answer", "candidateAdd", "join", "leave", "offer", "answer"];
    let kind = kinds[usize::from(kind % 8)];
    let mut text = format!(r#"{{"type":"{kind}","id":"{id}""#);
    if more & 1 == 0 {
        text.push_str(&format!(r#","target_id":"{target}""#));
    }
    // Few texts are long, because long ones take long.
    let length = match more / 8 {
        31 => 33_000,
        30 => 5_000,
        29 => 1_000,
        short => 3 * short,
    };
    match more / 2 % 4 {
        0 => text.push_str(&format!(r#","candidates":[{}0]"#, r#"["\"",1],"#.repeat(more / 8))),
        1 => text.push_str(&format!(r#","candidate":"{}""#, "x".repeat(length))),
        2 => text.push_str(&format!(r#","sdp":"{}""#, "\\n".repeat(length / 4))),
        _ => {}
    }
    text + "}"
}

fn ping(kind: u8, id: &str, target: &str) -> String {
    let mut text = r#"{"type":"ping""#.to_owned();
    if kind & 1 != 0 {
        text.push_str(&format!(r#","id":"{id}","target_id":"{target}""#));
    }
    match kind / 2 % 4 {
        0 | 1 => text.push_str(r#","iceServers":true"#),
        2 => text.push_str(r#","iceServers":1"#),
        _ => {}
    }
    text + "}"
}
