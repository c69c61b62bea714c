//! Input to y-webrtc's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

#[allow(dead_code, reason = "not every target needs all of it")]
mod context;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;
mod ywebrtc_model;

use std::time::Duration;

use noroshi::http::query::Query;
use noroshi::http::token::Claims;
use noroshi::protocol::Target;
use noroshi::protocols::ywebrtc::DESCRIPTOR;
use world::{Bytes, Repetition, STEPS_MAX, Step, World};
use ywebrtc_model::{Model, normalize};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// Topics, as JSON strings.
const TOPICS: [&str; 8] =
    [r#""tea""#, r#""tea""#, r#""tea-1""#, r#""t\u0065a""#, r#""milk""#, r#""狼煙 1""#, r#""""#, "7"];
/// The claims `room` and `room_prefix` of tokens.
const CLAIMS: [(Option<&str>, Option<&str>); 4] =
    [(None, None), (Some("tea"), None), (None, Some("tea")), (Some("milk"), Some("m"))];
const PEERS_MAX: usize = 10;
/// Additional peers, so that a message to all of them costs more than one credit.
const EXTRA_PEERS_MAX: usize = 80;

/// The first byte selects the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(limits) = bytes.next() else { return };
    let rate = [0, 1, 2, 4][usize::from(limits % 4)];
    let memory_bytes = [None, None, Some(1000), Some(20_000)][usize::from(limits / 4 % 4)];
    let config = world::config(rate, memory_bytes);
    // Checks take long with many peers or topics, so that few inputs have them.
    let is_large = limits >= 0xe0;
    let slots = PEERS_MAX + EXTRA_PEERS_MAX;
    let mut world = World::new(&config, &DESCRIPTOR, Model::new(rate), slots).normalize(normalize);
    for _ in 0..STEPS_MAX {
        if step(&mut world, is_large, &mut bytes).is_none() {
            break;
        }
    }
    world.end();
}

fn step(world: &mut World<Model>, is_large: bool, bytes: &mut Bytes) -> Option<()> {
    let step = world.next_step(bytes, PEERS_MAX)?;
    if world.common_step(step, bytes)? {
        return Some(());
    }
    match (step.event, step.conn) {
        (7, Some(conn)) => {
            let repetition = Repetition::next(bytes)?;
            let message = message(bytes)?;
            world.send_repeatedly(conn, message.as_bytes(), repetition);
        }
        (8, _) if is_large => extra_peers_step(world, step, bytes)?,
        (9, Some(conn)) => {
            // In a large world, up to twice as many topics as a connection may have, in one message.
            let [first, count] = [bytes.next()?, bytes.next()?].map(usize::from);
            let (first, count) = if is_large { (8 * first, 8 * count) } else { (first % 8, count % 8) };
            let topics: Vec<String> = (first..first + count).map(|topic| topic.to_string()).collect();
            let kind = if step.selector < 0xc0 { "subscribe" } else { "unsubscribe" };
            let topics = topics.join("\",\"");
            world.send(conn, format!(r#"{{"type":"{kind}","topics":["{topics}"]}}"#).as_bytes(), false);
        }
        (_, None) => {
            let claims = usize::from(bytes.next()?);
            connect(world, step.slot, claims);
        }
        (_, Some(conn)) => {
            let message = message(bytes)?;
            world.send(conn, message.as_bytes(), step.selector >= 0xf0);
            world.alive(conn);
        }
    }
    Some(())
}

/// Connects and subscribes the missing additional peers, or disconnects them.
fn extra_peers_step(world: &mut World<Model>, step: Step, bytes: &mut Bytes) -> Option<()> {
    let first = usize::from(bytes.next()? % 16);
    let count = usize::from(bytes.next()?);
    for slot in (PEERS_MAX + first)..(PEERS_MAX + (first + count).min(EXTRA_PEERS_MAX)) {
        match world.conn(slot) {
            Some(conn) if step.selector % 4 == 3 => world.disconnect(conn),
            Some(_) => {}
            None if step.selector % 4 == 3 => {}
            None => {
                connect(world, slot, 0);
                if let Some(conn) = world.conn(slot) {
                    world.send(conn, br#"{"type":"subscribe","topics":["tea"]}"#, false);
                }
            }
        }
    }
    Some(())
}

fn connect(world: &mut World<Model>, slot: usize, claims: usize) {
    let (room, room_prefix) = CLAIMS[claims / 2 % CLAIMS.len()];
    let claims = (claims % 2 == 1).then(|| Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        room: room.map(Box::from),
        room_prefix: room_prefix.map(Box::from),
        id: None,
    });
    let target = Target { protocol: &DESCRIPTOR, room: String::new(), query: Query::default() };
    world.connect(slot, &target, claims.as_ref());
}

fn message(bytes: &mut Bytes) -> Option<String> {
    let kind = bytes.next()?;
    let topic = TOPICS[usize::from(bytes.next()?) % TOPICS.len()];
    let more = bytes.next()?;
    let other = TOPICS[usize::from(more) % TOPICS.len()];
    Some(match kind % 12 {
        0 => r#"{"type":"ping"}"#.to_owned(),
        1 => format!(r#"{{"type":"unsubscribe","topics":[{topic},{other}]}}"#),
        2 => format!(r#"{{"topics":{topic},"type":"subscribe"}}"#),
        3..6 => format!(r#"{{"type":"subscribe","topics":[{topic},{other},{topic}]}}"#),
        6 => format!(r#"{{"type":"publish","clients":{more},"topic":{topic},"clients":[{more}]}} "#),
        7 => format!(
            r#"{{"type":"publish","topic":{other},"data":"{}","topic":{topic}}}"#,
            "x".repeat(64 * usize::from(more))
        ),
        8 => format!(r#"{{"t\u0079pe":"publish","topic":{topic},"cl\u0069ents":{more},"a":null}}"#),
        _ => format!(r#"{{"type":"publish","topic":{topic},"data":{more}}}"#),
    })
}
