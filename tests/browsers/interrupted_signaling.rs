//! The client library while the network between pages and server is cut, silent or redirected.

use std::time::Duration;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::{FaultProxy, random};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, run};
use serde_json::json;

/// The pages come from other origins than the server's.
const OPEN: &str = r#"exec "$0" --allow-origin "*""#;

/// Opens a page whose rooms `A` and `B` use one proxy each.
fn page(server: &Running, proxies: [&FaultProxy; 2]) -> Chromium {
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", server.address));
    let [a, b] = proxies.map(|proxy| proxy.address);
    browser.eval(&format!("const urls = {{ A: 'ws://{a}/ws/tea', B: 'ws://{b}/ws/tea' }}"));
    browser.eval(
        r#"const { join, connect } = await import("/noroshi.js");
        const errors = [], received = [], rejected = [];
        addEventListener("unhandledrejection", ({ reason }) => rejected.push(String(reason)));
        async function enter(id, how = join) {
            const room = await how(urls[id], { id });
            room.addEventListener("error", ({ error }) => errors.push(`${id}: ${error.message}`));
            room.addEventListener("message", ({ data }) => received.push(`${id} receives ${data}`));
            return room;
        }
        const other = { A: "B", B: "A" };
        const peer = (room) => room.peers.get(other[room.id]);
        const meet = (...rooms) => rooms.every((room) => peer(room)?.alive);"#,
    );
    browser
}

fn close(mut browser: Chromium) {
    assert_eq!(browser.eval("rejected"), json!([]));
    browser.assert_no_errors();
    browser.kill();
}

#[test]
fn pair_is_stable_after_negotiating_over_cut_signaling() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let mut seed = std::env::var("TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("TEST_SEED={seed}");
    let (server, _stderr) = run(OPEN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = page(&server, [&proxies[0], &proxies[1]]);
    browser.eval("const a = await enter('A', connect), b = await enter('B', connect); 0");
    browser.wait_until("meet(a, b)");
    browser.eval(
        "const first = [a, b].map((room) => peer(room).pc), stream = new MediaStream(), context = new AudioContext();
        // Adds or removes a track.
        function toggle(room) {
            const { pc } = peer(room), sender = pc.getSenders().find(({ track }) => track);
            if (sender) pc.removeTrack(sender);
            else pc.addTrack(context.createMediaStreamDestination().stream.getAudioTracks()[0], stream);
        } 0",
    );
    for _ in 0..24 {
        browser.eval(&format!("toggle({}); 0", ["a", "b"][random(&mut seed, 0..2) as usize]));
        std::thread::sleep(Duration::from_millis(random(&mut seed, 100..400)));
        proxies[random(&mut seed, 0..2) as usize].cut_connections();
    }
    browser.wait_until("[a, b].every((room) => room.online && !peer(room).away && peer(room).pc.signalingState === 'stable')");
    // Each page receives what the other one sends.
    browser.wait_until(
        "[[a, b], [b, a]].every(([from, to]) => {
            const sent = peer(from).pc.getSenders().filter(({ track }) => track).length;
            const directions = peer(to).pc.getTransceivers().map((it) => it.currentDirection ?? '');
            return directions.filter((it) => it.includes('recv')).length >= sent;
        })",
    );
    browser.eval("a.send('hello'); b.send('hello'); 0");
    browser.wait_until("received.length === 2");
    assert_eq!(browser.eval("[a, b].every((room, i) => peer(room).pc === first[i])"), true);
    close(browser);
}

#[test]
fn pair_survives_a_server_restart_during_negotiation() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let (next, _stderr) = run(OPEN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = page(&server, [&proxies[0], &proxies[1]]);
    browser.eval("const a = await enter('A', connect), b = await enter('B', connect); 0");
    browser.wait_until("meet(a, b)");
    for proxy in &proxies {
        proxy.black_hole();
    }
    browser.eval("const stream = new AudioContext().createMediaStreamDestination().stream; 0");
    browser.eval("peer(a).pc.addTrack(stream.getTracks()[0], stream); 0");
    browser.wait_until("peer(a).pc.signalingState === 'have-local-offer'");
    for proxy in &proxies {
        proxy.redirect_to(next.address);
        proxy.cut_connections();
    }
    browser.wait_until(
        "a.online && b.online && peer(a).pc.signalingState === 'stable' && !peer(a).away && !peer(b).away",
    );
    browser.wait_until(
        "peer(b).pc.getTransceivers().some(({ currentDirection }) => currentDirection?.includes('recv'))",
    );
    close(browser);
}

#[test]
fn black_hole_network_is_noticed() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let mut servers = vec![run(OPEN)];
    let page = servers[0].0.address;
    let proxy = FaultProxy::new(page);
    let ([mut chromium], [mut firefox]) = (Chromium::start(), Firefox::start());
    let mut both: [(&mut dyn Browser, &str); 2] = [(&mut chromium, "Chromium"), (&mut firefox, "Firefox")];
    for (browser, name) in &mut both {
        browser.open(&format!("http://{page}/healthz"));
        browser.eval("(globalThis.library = await import('/noroshi.js'), 0)");
        // One page is in a room, and one waits in its own room for a partner.
        browser.eval(&format!(
            "(globalThis.rooms = [
                await library.join('ws://{0}/ws/tea', {{ id: '{name}' }}),
                await library.connect('ws://{0}/ws/{name}', {{ id: '{name}' }}),
            ], 0)",
            proxy.address
        ));
        browser.eval(
            "(globalThis.lost = [], globalThis.errors = [], rooms.forEach((room, i) => {
                room.addEventListener('offline', () => lost[i] = performance.now());
                room.addEventListener('error', ({ error }) => errors.push(error.message));
            }))",
        );
    }
    // A connection that is being established fails when its signaling is cut, and Firefox reports that as an error.
    for (browser, _) in &mut both {
        browser.wait_until(
            "rooms[0].peers.size === 1 && [...rooms[0].peers.values()].every(({ alive }) => alive)",
        );
    }
    let is_back = "rooms.every((room, i) => lost[i] > at && room.online)";
    // Immediately, if the browser reports a network change.
    for hint in [
        "dispatchEvent(new Event('online'))",
        "document.dispatchEvent(new Event('visibilitychange'))",
        "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
    ] {
        proxy.black_hole();
        // Another server, which does not have to probe holders of these ids first.
        servers.push(run(OPEN));
        proxy.redirect_to(servers.last().unwrap().0.address);
        for (browser, _) in &mut both {
            browser.eval(&format!("(globalThis.at = performance.now(), {hint}, 0)"));
        }
        for (browser, _) in &mut both {
            browser.wait_until(is_back);
            assert_eq!(browser.eval("Math.max(...lost) < at + 20000"), true, "{hint}");
        }
    }
    // Without a report, after half a minute.
    proxy.black_hole();
    for (browser, _) in &mut both {
        browser.eval("globalThis.at = performance.now()");
    }
    for (browser, _) in &mut both {
        browser.wait_until("performance.now() > at + 29000");
        browser.wait_until(is_back);
        assert_eq!(browser.eval("Math.min(...lost) > at + 20000"), true, "silence is asked first");
        assert_eq!(browser.eval("errors"), json!([]));
        browser.assert_no_errors();
    }
}

#[test]
fn room_split_over_two_servers_is_reunited() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let (other, _stderr) = run(OPEN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = page(&server, [&proxies[0], &proxies[1]]);
    browser.eval("const a = await enter('A'), b = await enter('B'); 0");
    browser.wait_until("meet(a, b)");
    proxies[1].redirect_to(other.address);
    proxies[1].cut_connections();
    browser.wait_until("b.online && peer(a).away && peer(b).away");
    // The balancer directs new connections to one server again and cuts no existing connection.
    proxies[1].redirect_to(server.address);
    browser.wait_until("!peer(a).away && !peer(b).away");
    assert_eq!(browser.eval("meet(a, b)"), true);
    close(browser);
}
