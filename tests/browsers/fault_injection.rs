//! Chromium and Firefox in one room and in one pair while WebSockets are cut continuously, chunks are delayed and
//! tracks change. After the faults stop, everything recovers.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::{FaultProxy, random};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{eventually, run};
use serde_json::json;

const STORM: Duration = Duration::from_secs(12);

/// Functions of the page. Tracks are silent, so that playback needs no permission.
const HELPERS: &str = "
    const rooms = {}, received = {}, rejected = [], stream = new MediaStream(), context = new AudioContext();
    addEventListener('unhandledrejection', ({ reason }) => rejected.push(String(reason)));
    const watch = (room) => {
        received[room.id] = [];
        room.addEventListener('message', ({ peer, data }) => received[room.id].push(peer.id + ' ' + data));
        rooms[room.id] = room;
        return 0;
    };
    // Adds a track for all peers, or removes it.
    const toggle = (room) => room.peers.forEach(({ pc }) => {
        const sender = pc.getSenders().find(({ track }) => track);
        if (sender) pc.removeTrack(sender);
        else pc.addTrack(context.createMediaStreamDestination().stream.getAudioTracks()[0], stream);
    });
    const isWell = (room, count) => room.online && room.peers.size === count
        && [...room.peers.values()].every((peer) => peer.alive && !peer.away && peer.pc.signalingState === 'stable');
    0";

/// Runs faults over these rooms of two pages.
fn run_faults(flow: &str, rooms: [&[&str]; 2]) {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let mut seed = std::env::var("TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("TEST_SEED={seed}");
    let (server, _stderr) = run(r#"exec "$0" --allow-origin "*""#);
    let proxy = FaultProxy::new(server.address);
    let ([mut chromium], [mut firefox]) = (Chromium::start(), Firefox::start());
    let mut pages: [(&mut dyn Browser, &[&str]); 2] = [(&mut chromium, rooms[0]), (&mut firefox, rooms[1])];
    let others = rooms.concat().len() - 1;
    for (page, rooms) in &mut pages {
        page.open(&format!("http://{}/healthz", server.address));
        page.eval(HELPERS);
        page.eval("(globalThis.library = await import('/noroshi.js'), 0)");
        for id in *rooms {
            page.eval(&format!(
                "watch(await library.{flow}('ws://{}/ws/tea', {{ id: '{id}' }}))",
                proxy.address
            ));
        }
    }
    for (page, _) in &mut pages {
        page.wait_until(&format!("Object.values(rooms).every((room) => isWell(room, {others}))"));
    }

    proxy.start_faults(seed);
    let began = Instant::now();
    while began.elapsed() < STORM {
        let (page, rooms) = &mut pages[random(&mut seed, 0..2) as usize];
        let id = rooms[random(&mut seed, 0..rooms.len() as u64) as usize];
        page.eval(&format!("(toggle(rooms.{id}), 0)"));
        sleep(Duration::from_millis(random(&mut seed, 50..300)));
    }
    proxy.stop_faults();

    for (page, _) in &mut pages {
        page.wait_until(&format!("Object.values(rooms).every((room) => isWell(room, {others}))"));
    }
    // Every page receives the messages of every other page.
    for (page, _) in &mut pages {
        page.eval("(Object.values(rooms).forEach((room) => room.send('is here')), 0)");
    }
    for (page, _) in &mut pages {
        let all = "new Set(received[id].filter((it) => it.endsWith('is here'))).size";
        page.wait_until(&format!("Object.keys(rooms).every((id) => {all} === {others})"));
    }
    // Every page has the current tracks of the others.
    let count = |which: &str, direction: &str| {
        format!(
            "Object.values(rooms).flatMap((room) => [...room.peers.values()].map(({{ id, pc }}) => [
                {which}.join(), pc.getTransceivers().filter((it) =>
                    it.currentDirection?.includes('{direction}') && ('{direction}' === 'recv' || it.sender.track)).length]))"
        )
    };
    eventually("tracks arrive", || {
        let [mut sent, mut received] = [vec![], vec![]];
        for (page, _) in &mut pages {
            sent.extend(page.eval(&count("[room.id, id]", "send")).as_array().unwrap().clone());
            received.extend(page.eval(&count("[id, room.id]", "recv")).as_array().unwrap().clone());
        }
        sent.sort_by_key(|it| it.to_string());
        received.sort_by_key(|it| it.to_string());
        sent == received
    });
    for (page, _) in &mut pages {
        assert_eq!(page.eval("rejected"), json!([]));
        page.assert_no_errors();
    }
}

#[test]
fn room_of_four_recovers_from_faults() {
    run_faults("join", [&["A", "C"], &["B", "D"]]);
}

#[test]
fn pair_recovers_from_faults() {
    run_faults("connect", [&["A"], &["B"]]);
}
