//! Input to matchbox's protocol, which must stay consistent and match its model.

#![cfg_attr(not(test), no_main)]

#[allow(dead_code, reason = "not every target needs all of it")]
mod context;
mod matchbox_model;
#[allow(dead_code, reason = "not every target needs all of it")]
mod world;

use matchbox_model::Model;
use noroshi::config::Config;
use noroshi::http::query::Query;
use noroshi::protocol::{Conn, Target};
use noroshi::protocols::matchbox::DESCRIPTOR;
use world::{Bytes, Repetition, STEPS_MAX, Step, World};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

const ROOMS: [&str; 3] = ["", "tea", "お茶"];
/// Queries, each with the group size that it requests; see the model.
pub const QUERIES: [(&str, usize); 12] = [
    ("", 0),
    ("next=2", 2),
    ("next=3", 3),
    ("next=1", 1),
    ("next=0", 0),
    ("next=x", 0),
    ("next=-2", 0),
    ("next=3&next=2", 2),
    ("token=a&next=3&x=1", 3),
    ("next=8", 8),
    ("next=%32", 2),
    ("n%65xt=3&next=%ff", 0),
];
const PEERS_MAX: usize = 10;
/// Additional peers, so that a notice to all of them costs more than one credit.
const EXTRA_PEERS_MAX: usize = 80;

/// The first byte selects the configuration, the others the events.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let Some(limits) = bytes.next() else { return };
    let rate = [0, 1, 2, 4][usize::from(limits % 4)];
    let has_extra_peers = limits >= 0xe0;
    let mesh_peers_max = if has_extra_peers { 70 } else { 2 + usize::from(limits / 4 % 4) };
    let config = Config { mesh_peers_max, ..world::config(rate, None) };
    let model = Model::new(rate, mesh_peers_max);
    let mut world = World::new(&config, &DESCRIPTOR, model, PEERS_MAX + EXTRA_PEERS_MAX);
    // Ids of current and former peers, so that messages also go to disconnected peers.
    let mut names = Vec::new();
    for _ in 0..STEPS_MAX {
        if step(&mut world, has_extra_peers, &mut names, &mut bytes).is_none() {
            break;
        }
    }
    world.end();
}

fn step(
    world: &mut World<Model>,
    has_extra_peers: bool,
    names: &mut Vec<String>,
    bytes: &mut Bytes,
) -> Option<()> {
    let step = world.next_step(bytes, PEERS_MAX)?;
    if world.common_step(step, bytes)? {
        return Some(());
    }
    match (step.event, step.conn) {
        (7, Some(conn)) => {
            let repetition = Repetition::next(bytes)?;
            let message = message(names, bytes)?;
            world.send_repeatedly(conn, message.as_bytes(), repetition);
        }
        (8, _) if has_extra_peers => extra_peers_step(world, step, names, bytes)?,
        (_, None) => {
            let query = usize::from(bytes.next()?);
            connect(world, step.slot, &target(step.selector / PEERS_MAX, query), names);
        }
        (_, Some(conn)) => {
            let message = message(names, bytes)?;
            world.send(conn, message.as_bytes(), false);
            world.alive(conn);
        }
    }
    Some(())
}

/// Connects the missing additional peers, or disconnects them.
fn extra_peers_step(
    world: &mut World<Model>,
    step: Step,
    names: &mut Vec<String>,
    bytes: &mut Bytes,
) -> Option<()> {
    let first = usize::from(bytes.next()? % 16);
    let count = usize::from(bytes.next()?);
    for slot in (PEERS_MAX + first)..(PEERS_MAX + (first + count).min(EXTRA_PEERS_MAX)) {
        match world.conn(slot) {
            Some(conn) if step.selector % 4 == 3 => world.disconnect(conn),
            Some(_) => {}
            None if step.selector % 4 == 3 => {}
            None => _ = connect(world, slot, &target(0, 0), names),
        }
    }
    Some(())
}

fn connect(world: &mut World<Model>, slot: usize, target: &Target, names: &mut Vec<String>) -> Option<Conn> {
    let conn = world.connect(slot, target, None)?;
    names.push(world.name(conn).expect("matchbox peers are registered when they connect").to_owned());
    Some(conn)
}

fn target(room: usize, query: usize) -> Target {
    let room = ROOMS[room % ROOMS.len()].to_owned();
    let (query, _) = QUERIES[query % QUERIES.len()];
    Target { protocol: &DESCRIPTOR, room, query: Query::new(query) }
}

fn message(names: &[String], bytes: &mut Bytes) -> Option<String> {
    let kind = bytes.next()?;
    let receiver = usize::from(bytes.next()?);
    let more = usize::from(bytes.next()?);
    let receiver = match names.len() {
        0 => "00000000-0000-4000-8000-000000000000",
        length => &names[length - 1 - receiver % length],
    };
    Some(match kind % 8 {
        0 => " \"KeepAlive\"\n".to_owned(),
        1 => format!(r#"{{"Signal":{{"receiver":"{receiver}"}}}}"#),
        2 => format!(r#"{{"Signal":{{"data":1,"receiver":{receiver}}}}}"#),
        3 => format!(r#"{{"Signal":{{"receiver":"{}x","data":1}}}}"#, &receiver[1..]),
        4 => format!(r#"{{"Signal":{{"receiver":"{receiver}","data": [ "{}" ] }}}}"#, "x".repeat(64 * more)),
        _ => format!(r#"{{"Signal":{{"data":{more},"receiver":"{receiver}"}}}}"#),
    })
}
