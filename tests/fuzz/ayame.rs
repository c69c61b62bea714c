//! Input to Ayame's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

mod ayame_model;
#[allow(dead_code, reason = "not every target needs all of it")]
mod context;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;

use std::time::Duration;

use ayame_model::Model;
use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::protocol::Target;
use noroshi::protocols::ayame::DESCRIPTOR;
use world::{Bytes, Repetition, STEPS_MAX, World};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const SECRET: &[u8] = b"a secret that is thirty-two bytes";
const ROOMS: [&str; 4] = ["tea", "coffee", "te", r"t\u0065a"];
const CLIENTS: [&str; 4] = ["a", "b", "c", ""];
/// More than the number of clients that may wait for the probe of one room.
const PEERS_MAX: usize = 24;

/// The first byte selects the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(limits) = bytes.next() else { return };
    let rate = [0, 1, 2, 4][usize::from(limits % 4)];
    let secrets = Secrets::parse(SECRET).expect("a secret");
    let token_secrets = (limits & 4 != 0).then_some(secrets);
    let keys = if token_secrets.is_some() { keys() } else { vec![String::new()] };
    let config = Config { token_secrets, ..world::config(rate, None) };
    let model = Model::new(rate, config.token_secrets.clone());
    let mut world = World::new(&config, &DESCRIPTOR, model, PEERS_MAX);
    for _ in 0..STEPS_MAX {
        if step(&mut world, &keys, &mut bytes).is_none() {
            break;
        }
    }
    world.end();
}

fn step(world: &mut World<Model>, keys: &[String], bytes: &mut Bytes) -> Option<()> {
    let step = world.next_step(bytes, PEERS_MAX)?;
    if world.common_step(step, bytes)? {
        return Some(());
    }
    match (step.event, step.conn) {
        (7, Some(conn)) => {
            let repetition = Repetition::next(bytes)?;
            let message = message(step.selector, keys, bytes)?;
            world.send_repeatedly(conn, message.as_bytes(), repetition);
        }
        // Many clients connect and request seats of one room.
        (8, _) => {
            let count = usize::from(bytes.next()?) % PEERS_MAX;
            let message = message(step.selector, keys, bytes)?;
            for slot in 0..count {
                let conn = match world.conn(slot) {
                    Some(conn) => conn,
                    None => world.connect(slot, &target(), None).expect("the protocol accepts the peer"),
                };
                world.send(conn, message.as_bytes(), false);
            }
        }
        (_, None) => _ = world.connect(step.slot, &target(), None),
        (_, Some(conn)) => {
            let message = message(step.selector, keys, bytes)?;
            world.send(conn, message.as_bytes(), false);
            // The server reports a liveness signal after the messages of a read.
            if step.event & 1 == 0 {
                world.alive(conn);
            }
        }
    }
    Some(())
}

fn target() -> Target {
    Target { protocol: &DESCRIPTOR, room: String::new(), query: Query::default() }
}

/// Returns valid and invalid tokens, and other texts.
fn keys() -> Vec<String> {
    let secrets = Secrets::parse(SECRET).expect("a secret");
    let other_secrets = Secrets::parse(b"another secret of thirty-two byte").expect("a secret");
    let claims =
        Claims { expires_at: Duration::from_secs(1_000_000), room: None, room_prefix: None, id: None };
    let in_tea = Claims { room: Some("tea".into()), ..claims.clone() };
    let a_in_coffee = Claims { room: Some("coffee".into()), id: Some("a".into()), ..claims.clone() };
    let b_anywhere = Claims { id: Some("b".into()), ..claims.clone() };
    let in_te = Claims { room_prefix: Some("te".into()), ..claims.clone() };
    let for_a_minute = Claims { expires_at: Duration::from_secs(60), ..claims.clone() };
    let mut keys = vec![String::new(), "x".to_owned(), other_secrets.sign(&claims)];
    for claims in [claims, in_tea, a_in_coffee, b_anywhere, in_te, for_a_minute] {
        keys.push(secrets.sign(&claims));
    }
    keys
}

fn message(selector: usize, keys: &[String], bytes: &mut Bytes) -> Option<String> {
    let kind = bytes.next()?;
    let more = usize::from(bytes.next()?);
    let kind = match kind % 16 {
        0..8 => {
            let room = ROOMS[more % 4];
            let client = CLIENTS[selector / PEERS_MAX % 4];
            let field = if more & 0x40 == 0 { "key" } else { "signalingKey" };
            let key = &keys[usize::from(kind / 16) % keys.len()];
            let standalone = ["false", "true", "null", "1"][more / 4 % 4];
            return Some(format!(
                r#"{{"type":"register","roomId":"{room}","clientId":"{client}","{field}":"{key}","standalone":{standalone}}}"#
            ));
        }
        8 => "connected",
        9 => "pong",
        10 => "candidate",
        11 => "x",
        12 | 13 => "offer",
        _ => "answer",
    };
    let size = if more < 128 { more } else { 64 * more };
    Some(format!(r#"{{"type":"{kind}","sdp":"{}"}}"#, "x".repeat(size)))
}
