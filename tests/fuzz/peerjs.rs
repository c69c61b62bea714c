//! Input to PeerJS's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

#[allow(dead_code, reason = "not every target needs all of it")]
mod context;
mod peerjs_model;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;

use std::time::Duration;

use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::http::token::{Claims, Secrets};
use noroshi::protocol::Target;
use noroshi::protocols::peerjs::DESCRIPTOR;
use noroshi_test_support::input::Input;
use peerjs_model::Model;
use world::{Bytes, STEPS_MAX, World};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const SECRET: &[u8] = b"a secret that is thirty-two bytes";
const KEYS: [&str; 4] = ["peerjs", "peerjs", "k2", ""];
const IDS: [&str; 8] = ["a", "b", "c", "d", "a%22%00", "%E8%8C%B6", "", "%ff"];
/// The ids as messages write them; the last ones are nobody's.
const DESTINATIONS: [&str; 8] = ["a", "b", "c", "d", r"a\u0022\u0000", "茶", "nobody", "somebody"];
const PEERS_MAX: usize = 12;

/// The first byte selects the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(limits) = bytes.next() else { return };
    let rate = [0, 1, 2, 4][usize::from(limits % 4)];
    let secrets = Secrets::parse(SECRET).expect("a secret");
    let token_secrets = (limits & 4 != 0).then_some(secrets);
    let tokens = if token_secrets.is_some() { signed_tokens() } else { chosen_tokens() };
    let memory = [None, Some(1 << 20), Some(64 << 10), Some(3000)][usize::from(limits / 8 % 4)];
    let config = Config { token_secrets, ..world::config(rate, memory) };
    let model = Model::new(rate, config.token_secrets.clone());
    let mut world = World::new(&config, &DESCRIPTOR, model, PEERS_MAX);
    for _ in 0..STEPS_MAX {
        if step(&mut world, &tokens, &mut bytes).is_none() {
            break;
        }
    }
    world.end();
}

fn step(world: &mut World<Model>, tokens: &[String], bytes: &mut Bytes) -> Option<()> {
    let step = world.next_step(bytes, PEERS_MAX)?;
    if world.common_step(step, bytes)? {
        return Some(());
    }
    match (step.event, step.conn) {
        // A message many times, each time to another peer or to the same one.
        (7, Some(conn)) => {
            let times = bytes.next()?;
            let pause = bytes.next()?;
            let is_numbered = pause >= 192;
            let times = if is_numbered { times } else { times % 16 };
            let message = message(bytes)?;
            for number in 0..times {
                let text = if is_numbered {
                    message.replace("somebody", &format!("somebody{number}"))
                } else {
                    message.clone()
                };
                world.send(conn, text.as_bytes(), false);
                world.now += Duration::from_millis(10 * u64::from(pause % 64));
                world.input(Input::Time);
            }
        }
        // Many clients claim one id.
        (8, _) => {
            let target = target(step.selector, tokens, bytes)?;
            for slot in 0..PEERS_MAX {
                if world.conn(slot).is_none() {
                    world.connect(slot, &target, None);
                }
            }
        }
        (_, None) => {
            let target = target(step.selector, tokens, bytes)?;
            world.connect(step.slot, &target, None);
        }
        (_, Some(conn)) => {
            let message = message(bytes)?;
            world.send(conn, message.as_bytes(), step.selector >= 240);
            // The server reports a liveness signal after the messages of a read.
            if step.event & 1 == 0 {
                world.alive(conn);
            }
        }
    }
    Some(())
}

fn target(selector: usize, tokens: &[String], bytes: &mut Bytes) -> Option<Target> {
    let id = usize::from(bytes.next()?);
    let token = usize::from(bytes.next()?);
    let key = KEYS[selector / PEERS_MAX % KEYS.len()];
    let id = match id {
        // Neither of them is valid.
        254 => "x".repeat(129),
        255 => String::new(),
        id => IDS[id % IDS.len()].to_owned(),
    };
    let query = Query::new(&format!("key={key}&id={id}&token={}", tokens[token % tokens.len()]));
    Some(Target { protocol: &DESCRIPTOR, room: key.to_owned(), query })
}

fn chosen_tokens() -> Vec<String> {
    ["t1", "t2", "t3", ""].map(str::to_owned).to_vec()
}

/// Returns valid and invalid tokens, and other texts.
fn signed_tokens() -> Vec<String> {
    let secrets = Secrets::parse(SECRET).expect("a secret");
    let other_secrets = Secrets::parse(b"another secret of thirty-two byte").expect("a secret");
    let claims =
        Claims { expires_at: Duration::from_secs(1_000_000), room: None, room_prefix: None, id: None };
    let in_k2 = Claims { room: Some("k2".into()), ..claims.clone() };
    let a_anywhere = Claims { id: Some("a".into()), ..claims.clone() };
    let a_in_peerjs = Claims { room: Some("peerjs".into()), ..a_anywhere.clone() };
    let in_p = Claims { room_prefix: Some("p".into()), ..claims.clone() };
    let for_a_minute = Claims { expires_at: Duration::from_secs(60), ..claims.clone() };
    let mut tokens = vec![String::new(), "x".to_owned(), other_secrets.sign(&claims)];
    for claims in [claims, in_k2, a_anywhere, a_in_peerjs, in_p, for_a_minute] {
        tokens.push(secrets.sign(&claims));
    }
    tokens
}

fn message(bytes: &mut Bytes) -> Option<String> {
    let kind = bytes.next()?;
    let more = usize::from(bytes.next()?);
    let to = DESTINATIONS[usize::from(kind / 16) % DESTINATIONS.len()];
    let kind = match kind % 16 {
        0..5 => "OFFER",
        5..7 => "ANSWER",
        7..11 => "CANDIDATE",
        11 => "LEAVE",
        12 => "HEARTBEAT",
        13 if more < 32 => return Some(r#"{"type":"LEAVE"}"#.to_owned()),
        13 => "EXPIRE",
        14 => return Some(format!(r#"{{"type":"OFFER","dst":"{}"}}"#, "x".repeat(more))),
        _ => return Some(format!(r#"{{"type":"CANDIDATE","payload":null,"dst":"{to}","dst":null}}"#)),
    };
    let size = if more < 128 { more } else { 200 * more };
    let payload = if more == 1 { String::new() } else { format!(r#""payload":"{}","#, "x".repeat(size)) };
    Some(format!(r#"{{"type":"{kind}",{payload}"dst":"{to}"}}"#))
}
