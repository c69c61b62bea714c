//! Input to GStreamer's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

#[allow(dead_code, reason = "not every target needs all of it")]
mod context;
mod gstreamer_model;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;

use std::time::Duration;

use gstreamer_model::{Model, normalize};
use noroshi::http::query::Query;
use noroshi::http::token::Claims;
use noroshi::protocol::{Conn, Target};
use noroshi::protocols::gstreamer::DESCRIPTOR;
use world::{Bytes, Repetition, STEPS_MAX, Step, World};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const ROOMS: [&str; 4] = ["", "", "tea", "milk"];
/// The claims of tokens: `sub`. The server has checked the others at the upgrade.
const IDS: [Option<&str>; 8] = [None, None, None, None, None, Some("cam"), Some("cam"), Some("狼煙 \"1\"")];
const PEERS_MAX: usize = 12;
/// Additional listeners, so that a message to all of them costs more than one credit.
const EXTRA_PEERS_MAX: usize = 80;
/// Lengths of `meta`, in a large world around the limit.
const META_BYTES: [usize; 8] = [0, 10, 100, 100, 200, 300, 400, 500];
const LARGE_META_BYTES: [usize; 8] = [0, 10, 100, 4000, 16_382, 16_382, 16_383, 20_000];
const ROLES: [&str; 12] = [
    "[]",
    r#"["producer"]"#,
    r#"["producer"]"#,
    r#"["listener"]"#,
    r#"["listener"]"#,
    r#"["consumer"]"#,
    r#"["listener","producer"]"#,
    r#"["consumer","listener","consumer"]"#,
    r#"["producer","consumer"]"#,
    r#"["admin"]"#,
    r#""producer""#,
    r#"["list\u0065ner"]"#,
];
const VALUES: [&str; 10] = [
    "null",
    r#""""#,
    r#""v=0\r\n""#,
    r#""x""#,
    r#""\ud800""#,
    r#""a\u0000""#,
    "7",
    "-0",
    "4294967295",
    r#"{"type":"offer","sdp":"x"}"#,
];
const METAS: [&str; 8] =
    ["null", r#"{"name":"a"}"#, r#"{ "name" : "a" }"#, "7", "1e999", r#""\udc00""#, "[[[]]]", "\"\\u0000\""];

/// The first byte selects the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(limits) = bytes.next() else { return };
    let rate = [0, 1, 2, 4][usize::from(limits % 4)];
    let memory_bytes = [None, None, Some(1000), Some(40_000)][usize::from(limits / 4 % 4)];
    let config = world::config(rate, memory_bytes);
    // Checks take long with many peers, so that few inputs have them.
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
            let message = message(world, conn, is_large, bytes)?;
            world.send_repeatedly(conn, message.as_bytes(), repetition);
        }
        (8, _) if is_large => extra_peers_step(world, step, bytes)?,
        (_, None) => {
            let choice = usize::from(bytes.next()?);
            connect(world, step.slot, choice);
        }
        (_, Some(conn)) => {
            let message = message(world, conn, is_large, bytes)?;
            world.send(conn, message.as_bytes(), step.selector >= 0xfc);
            world.alive(conn);
        }
    }
    Some(())
}

/// Connects the missing additional listeners, or disconnects them.
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
                    world.send(conn, br#"{"type":"setPeerStatus","roles":["listener"]}"#, false);
                }
            }
        }
    }
    Some(())
}

fn connect(world: &mut World<Model>, slot: usize, choice: usize) {
    let room = ROOMS[choice % ROOMS.len()].to_owned();
    let choice = choice / ROOMS.len();
    let claims = (choice > 0).then(|| Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        id: IDS[choice % IDS.len()].map(Box::from),
        ..Claims::default()
    });
    let target = Target { protocol: &DESCRIPTOR, room, query: Query::default() };
    world.connect(slot, &target, claims.as_ref());
}

/// Returns the id of a connected peer, as JSON.
fn peer_id(world: &World<Model>, selector: u8) -> String {
    let conn = world.conn(usize::from(selector) % PEERS_MAX);
    let id = conn.and_then(|conn| world.name(conn)).unwrap_or("nobody");
    serde_json::Value::from(id).to_string()
}

fn message(world: &World<Model>, conn: Conn, is_large: bool, bytes: &mut Bytes) -> Option<String> {
    let kind = bytes.next()?;
    let selector = bytes.next()?;
    let more = usize::from(bytes.next()?);
    let session = world.rules.session_id(usize::from(selector)).unwrap_or("none").to_owned();
    let value = VALUES[more % VALUES.len()];
    let other_value = VALUES[more / VALUES.len() % VALUES.len()];
    Some(match kind % 20 {
        0 => format!(r#"{{"type":"setProtocolVersion","version":"v1_{}"}}"#, more % 3),
        1 => r#"{"type":"list","x":1e999}"#.to_owned(),
        2 => r#"{"type":"listConsumers"}"#.to_owned(),
        3..6 => {
            let roles = ROLES[usize::from(selector) % ROLES.len()];
            let own_id = serde_json::Value::from(world.name(conn).unwrap_or_default()).to_string();
            let id = [own_id.as_str(), own_id.as_str(), "null", "\"another\"", "7"][more % 5];
            let meta = METAS[more / 5 % METAS.len()];
            format!(r#"{{"type":"setPeerStatus","roles":{roles},"meta":{meta},"peerId":{id}}}"#)
        }
        6 => {
            let roles = ROLES[usize::from(selector) % ROLES.len()];
            let lengths = if is_large { LARGE_META_BYTES } else { META_BYTES };
            let meta = "x".repeat(lengths[more % lengths.len()]);
            format!(r#"{{"type":"setPeerStatus","roles":{roles},"meta":"{meta}"}}"#)
        }
        7..11 => format!(r#"{{"type":"startSession","peerId":{}}}"#, peer_id(world, selector)),
        11 => format!(r#"{{"offer":{value},"type":"startSession","peerId":{}}}"#, peer_id(world, selector)),
        12 => format!(r#"{{"type":"endSession","sessionId":"{session}"}}"#),
        13 => format!(r#"{{"type":"endSessionV1_1","sessionId":"{session}","error":{value}}}"#),
        14 => format!(
            r#"{{"type":"peer","sessionId":"{session}","sdp":{{"type":"answer","sdp":{value},"x":{other_value}}}}}"#
        ),
        15 => format!(r#"{{"type":"peer","sessionId":"{session}","sdp":{{"sdp":{value},"type":"offer"}}}}"#),
        16 => format!(
            r#"{{"type":"peer","sessionId":"{session}","ice":{{"candidate":{value},"sdpMLineIndex":{other_value}}}}}"#
        ),
        17 => format!(
            r#"{{"type":"peer","sessionId":"{session}","ice":{{"candidate":"{}","sdpMLineIndex":1}}}}"#,
            "x".repeat(64 * more)
        ),
        18 => format!(r#"{{"type":"peer","sessionId":"{session}","ice":{value},"sdp":{other_value}}}"#),
        _ => format!(r#"{{"type":"newPeer","peerId":{}}}"#, peer_id(world, selector)),
    })
}
