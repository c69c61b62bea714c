//! The client library while the network between pages and server, or between pages, is cut, silent or redirected.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::{FaultProxy, random};
use crate::common::firefox::FIREFOX;
use crate::common::process::{Running, run as start_server};
use crate::common::program::free_port;
use crate::library_page::{ANY_ORIGIN, chromium, close, firefox, open, run};
use serde_json::json;

/// Enters rooms `A` and `B` over one proxy each, and waits until they are connected.
fn enter_through(browser: &mut dyn Browser, proxies: [&FaultProxy; 2], how: &str) {
    for (id, proxy) in ["A", "B"].iter().zip(proxies) {
        run(browser, &format!("await enter('{id}', {{ url: 'ws://{}/ws/tea' }}, {how});", proxy.address));
    }
    browser.wait_until("isMesh('A', 'B')");
}

/// An address where nothing listens.
fn nowhere() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

#[test]
fn negotiations_need_no_server() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let mut seed = std::env::var("TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("TEST_SEED={seed}");
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = chromium(&server);
    enter_through(&mut browser, [&proxies[0], &proxies[1]], "connect");
    run(
        &mut browser,
        "globalThis.first = [peer('A', 'B').pc, peer('B', 'A').pc];
        globalThis.shares = {};
        globalThis.toggle = (id) => {
            if (shares[id]) { shares[id].stop(); delete shares[id]; }
            else shares[id] = rooms[id].share(sound());
        };
        globalThis.isRight = () => [['A', 'B'], ['B', 'A']].every(([id, other]) =>
            receives(peer(other, id), 'audio') === (shares[id] ? 1 : 0));",
    );
    for _ in 0..24 {
        browser.eval(&format!("toggle('{}')", ["A", "B"][random(&mut seed, 0..2) as usize]));
        std::thread::sleep(Duration::from_millis(random(&mut seed, 100..400)));
        proxies[random(&mut seed, 0..2) as usize].cut_connections();
    }
    browser.wait_until("isMesh('A', 'B') && isRight()");
    // There is no server at all.
    for proxy in &proxies {
        proxy.redirect_to(nowhere());
        proxy.cut_connections();
    }
    browser.wait_until("!rooms.A.online && !rooms.B.online");
    browser.eval("(toggle('A'), toggle('B'))");
    browser
        .wait_until("isRight() && [...Object.values(first)].every((pc) => pc.signalingState === 'stable')");
    browser.eval("(rooms.A.send('hello'), rooms.B.send('hello'))");
    browser.wait_until("received.A.includes('B: hello') && received.B.includes('A: hello')");
    assert_eq!(browser.eval("[rooms.A.state, peer('A', 'B').state]"), json!(["offline", "connected"]));
    // Another server.
    let (next, _stderr) = start_server(ANY_ORIGIN);
    for proxy in &proxies {
        proxy.redirect_to(next.address);
    }
    browser.wait_until("isMesh('A', 'B')");
    assert_eq!(
        browser.eval("[peer('A', 'B').pc === first[0], peer('B', 'A').pc === first[1]]"),
        json!([true, true])
    );
    close(&mut browser);
}

#[test]
fn returning_partner_is_detected_immediately() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = chromium(&server);
    enter_through(&mut browser, [&proxies[0], &proxies[1]], "connect");
    let before = server.metric("connections_total");
    for (proxy, [id, other]) in proxies.iter().zip([["A", "B"], ["B", "A"]]) {
        browser.eval("(events.A = [], events.B = [])");
        proxy.cut_connections();
        browser.wait_until(&format!("events.{id}.includes('online') && isMesh('A', 'B')"));
        assert_eq!(browser.eval(&format!("events.{other}.includes('offline')")), false);
    }
    // Neither had to search for the other.
    assert_eq!(server.metric("connections_total") - before, 2.0);
    close(&mut browser);
}

#[test]
fn black_hole_network_is_noticed() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let mut servers = vec![start_server(ANY_ORIGIN)];
    let proxy = FaultProxy::new(servers[0].0.address);
    let (mut chromium, mut firefox) = (chromium(&servers[0].0), firefox(&servers[0].0));
    let mut both: [(&mut dyn Browser, &str); 2] = [(&mut chromium, "Chromium"), (&mut firefox, "Firefox")];
    for (browser, name) in &mut both {
        // One page is in a room, and one waits in its own room for a partner.
        run(
            *browser,
            &format!(
                "await enter('mesh {name}', {{ url: 'ws://{0}/ws/tea' }});
                await enter('pair {name}', {{ url: 'ws://{0}/ws/{name}' }}, connect);
                globalThis.lost = [];
                Object.values(rooms).forEach((room, i) => room.addEventListener('offline', () => lost[i] = performance.now()));",
                proxy.address
            ),
        );
    }
    // A connection that is being established fails when its signaling is cut, and Firefox reports that as an error.
    for (browser, name) in &mut both {
        browser
            .wait_until(&format!("[...rooms['mesh {name}'].peers.values()].filter(isSettled).length === 1"));
    }
    let is_back = "Object.values(rooms).every((room, i) => lost[i] > at && room.online)";
    // Immediately, if the browser reports a network change.
    for hint in [
        "dispatchEvent(new Event('online'))",
        "document.dispatchEvent(new Event('visibilitychange'))",
        "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
    ] {
        proxy.black_hole();
        // Another server, which does not have to probe holders of these ids first.
        servers.push(start_server(ANY_ORIGIN));
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
        close(*browser);
    }
}

#[test]
fn black_hole_network_does_not_block_reconnecting() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let mut browser = chromium(&server);
    // A page that is suspended before it has joined, and resumed.
    run(
        &mut browser,
        "const firePageTransition = (type) => dispatchEvent(new PageTransitionEvent(type, { persisted: true }));
        const entering = enter('A');
        firePageTransition('pagehide');
        firePageTransition('pageshow');
        await entering;",
    );
    assert_eq!(server.metric("peers"), 1.0);
    close(&mut browser);
}

#[test]
fn room_has_at_most_one_open_connection() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let proxy = FaultProxy::new(server.address);
    let mut browser = chromium(&server);
    let url = format!("ws://{}/ws/tea", proxy.address);
    run(&mut browser, &format!("await enter('A', {{ url: '{url}', WebSocket: RecordingSocket }});"));
    // Closing the old connection takes as long as opening the new one.
    proxy.set_delay(1000);
    browser.eval("(sockets[0].close(), dispatchEvent(new Event('online')), 0)");
    browser.wait_until("sockets.length > 1");
    browser.wait_until("events.A.filter((it) => it === 'online').length === 2");
    proxy.set_delay(0);
    run(
        &mut browser,
        "dispatchEvent(new Event('online')); await until(() => delivered.at(-1).type === 'pong');",
    );
    assert_eq!(browser.eval("sockets.length"), 2);
    assert_eq!(server.metric("connections"), 1.0);
    close(&mut browser);
}

#[test]
fn delayed_message_does_not_count_as_an_answer() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let proxy = FaultProxy::new(server.address);
    let mut browser = chromium(&server);
    let url = format!("ws://{}/ws/tea", proxy.address);
    run(&mut browser, &format!("await enter('A', {{ url: '{url}', WebSocket: RecordingSocket }});"));
    browser.eval("rooms.A.addEventListener('offline', () => globalThis.lost ??= performance.now())");
    proxy.black_hole();
    // A resumed page receives messages that arrived during its suspension.
    browser.eval(
        r#"(dispatchEvent(new Event('online')), globalThis.at = performance.now(),
        sockets[0].dispatchEvent(new MessageEvent("message", { data: '{"type":"peerLeft","id":"B"}' })), 0)"#,
    );
    browser.wait_until("globalThis.lost");
    assert_eq!(browser.eval("lost < at + 15000"), true);
    close(&mut browser);
}

#[test]
fn liveness_check_does_not_request_new_credentials() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let server = server_with_turn("liveness");
    let mut browser = chromium(&server);
    run(&mut browser, "await enter('A', { WebSocket: RecordingSocket }); await enter('B');");
    browser.wait_until("isMesh('A', 'B')");
    let found = run(
        &mut browser,
        "const before = [peer('A', 'B').pc.getConfiguration().iceServers[0].username, sent.length];
        dispatchEvent(new Event('online'));
        await until(() => delivered.at(-1).type === 'pong');
        const after = [peer('A', 'B').pc.getConfiguration().iceServers[0].username, sent.length - 1];
        return [before.join() === after.join(), sent.at(-1), delivered.at(-1)];",
    );
    assert_eq!(found, json!([true, { "type": "ping" }, { "type": "pong" }]));
    close(&mut browser);
}

/// Starts a server that gives TURN credentials.
fn server_with_turn(name: &str) -> Running {
    let secret = std::env::temp_dir().join(format!("noroshi-turn-secret-{}-{name}", std::process::id()));
    std::fs::write(&secret, "open-sesame").unwrap();
    let flags = format!("--ice-server turn:127.0.0.1:9 --turn-secret-file {}", secret.display());
    let (server, _stderr) = start_server(&format!("{ANY_ORIGIN} {flags}"));
    std::fs::remove_file(&secret).unwrap();
    server
}

#[test]
fn turn_credentials_are_renewed_in_rooms_and_pairs() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let server = server_with_turn("renewal");
    let mut browser = chromium(&server);
    // What happens every hour happens four times a second.
    browser.eval(
        "(globalThis.originalInterval = setInterval,
        globalThis.setInterval = (action, ms) => originalInterval(action, ms >= 600_000 ? 250 : ms), 0)",
    );
    for how in ["join", "connect"] {
        run(
            &mut browser,
            &format!("await enter('{how} A', {{}}, {how}); await enter('{how} B', {{}}, {how});"),
        );
        browser.wait_until(&format!("isMesh('{how} A', '{how} B')"));
        let found = run(
            &mut browser,
            &format!(
                "const {{ pc }} = peer('{how} A', '{how} B'), name = () => pc.getConfiguration().iceServers[0].username;
                // They change every second.
                const first = name();
                await until(() => name() !== first);
                return [first.length > 5, pc === peer('{how} A', '{how} B').pc];"
            ),
        );
        assert_eq!(found, json!([true, true]), "{how}");
        browser.eval("Object.values(rooms).forEach((room) => room.leave())");
    }
    close(&mut browser);
}

#[test]
fn room_split_over_two_servers_is_reunited() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let (other, _stderr) = start_server(ANY_ORIGIN);
    let proxies = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = chromium(&server);
    enter_through(&mut browser, [&proxies[0], &proxies[1]], "join");
    proxies[1].redirect_to(other.address);
    proxies[1].cut_connections();
    browser.wait_until("rooms.B.online && peer('A', 'B').away && peer('B', 'A').away");
    // The balancer directs new connections to one server again and cuts no existing connection.
    proxies[1].redirect_to(server.address);
    browser.wait_until("isMesh('A', 'B')");
    close(&mut browser);
}

#[test]
fn one_peer_that_loses_the_server_disturbs_no_other() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let (other, _stderr) = start_server(ANY_ORIGIN);
    let proxy = FaultProxy::new(server.address);
    let mut browser = chromium(&server);
    run(&mut browser, "for (const id of 'ABCD') await enter(id);");
    let url = format!("ws://{}/ws/tea", proxy.address);
    run(&mut browser, &format!("await enter('E', {{ url: '{url}', WebSocket: RecordingSocket }});"));
    browser.wait_until("isMesh(...'ABCDE')");
    run(
        &mut browser,
        "for (const id of 'ABCDE') events[id] = [];
        globalThis.connections = () => [...'ABCD'].map((id) => peer(id, 'E').pc);
        globalThis.before = connections();",
    );
    let connections = server.metric("connections_total");
    proxy.redirect_to(nowhere());
    proxy.cut_connections();
    browser.wait_until("[...'ABCD'].every((id) => peer(id, 'E').away)");
    // For much longer than it takes others to look for a peer elsewhere.
    browser.eval("globalThis.at = performance.now()");
    browser.wait_until("performance.now() > at + 15000");
    assert_eq!(browser.eval("rooms.E.state"), "offline");
    browser.eval("rooms.E.send('still here')");
    browser.wait_until("[...'ABCD'].every((id) => received[id].includes('E: still here'))");
    // It gets to another server, where nobody else is, then to the right one.
    proxy.redirect_to(other.address);
    browser.wait_until("rooms.E.online");
    proxy.redirect_to(server.address);
    browser.wait_until("isMesh(...'ABCDE')");
    assert_eq!(browser.eval("connections().every((pc, i) => pc === before[i])"), true);
    assert_eq!(browser.eval("[...'ABCD'].flatMap((id) => events[id])"), json!([]));
    assert_eq!(server.metric("connections_total") - connections, 1.0);
    close(&mut browser);
}

#[test]
fn messages_to_an_interrupted_peer_arrive_later() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let [mut sender, mut receiver] = Chromium::start();
    for (browser, id) in [(&mut sender, "A"), (&mut receiver, "B")] {
        open(browser, &server, server.address);
        run(browser, &format!("await enter('{id}');"));
    }
    for (browser, other) in [(&mut sender, "B"), (&mut receiver, "A")] {
        browser.wait_until(&format!("isSettled(Object.values(rooms)[0].peers.get('{other}'))"));
    }
    run(
        &mut sender,
        "globalThis.before = peer('A', 'B').pc; globalThis.states = []; rooms.A.addEventListener('state', ({ peer }) => states.push(peer.state));",
    );
    receiver.suspend();
    sender.wait_until("before.connectionState === 'disconnected'");
    assert_eq!(sender.eval("[peer('A', 'B').state, peer('A', 'B').alive]"), json!(["interrupted", true]));
    assert_eq!(sender.eval("rooms.A.send('one').map(({ id }) => id)"), json!(["B"]));
    receiver.resume();
    receiver.wait_until("received.B.includes('A: one')");
    sender.wait_until("isMesh('A') || isSettled(peer('A', 'B'))");
    assert_eq!(
        sender.eval("[peer('A', 'B').pc === before, events.A]"),
        json!([true, ["online", "peer B", "open B"]])
    );
    assert_eq!(sender.eval("[states.includes('interrupted'), states.at(-1)]"), json!([true, "connected"]));
    close(&mut sender);
    close(&mut receiver);
}

#[test]
fn unreachable_partner_is_left_for_another() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let mut browser = chromium(&server);
    // A partner that answers, but sends no candidates and receives none: as behind a firewall.
    run(
        &mut browser,
        "await enter('A', {}, connect);
        const socket = new WebSocket(roomUrl), pc = new RTCPeerConnection({ iceTransportPolicy: 'relay' });
        const tell = (message) => socket.send(JSON.stringify({ id: 'unreachable', ...message }));
        socket.onopen = () => tell({ type: 'connect' });
        socket.onmessage = async ({ data }) => {
            const { type, sdp, target_id } = JSON.parse(data);
            if (type !== 'offer' || !sdp) return;
            await pc.setRemoteDescription(JSON.parse(sdp));
            await pc.setLocalDescription();
            tell({ type: 'answer', target_id, sdp: pc.localDescription });
        };
        globalThis.at = performance.now();",
    );
    browser.wait_until("events.A.includes('peer unreachable')");
    run(&mut browser, "await enter('B', {}, connect);");
    browser.wait_until("isMesh('A', 'B')");
    let seconds = browser.eval("(performance.now() - at) / 1000").as_f64().unwrap();
    println!("left after {seconds:.1} s");
    assert!((29.0..90.0).contains(&seconds), "{seconds}");
    assert_eq!(
        browser.eval("events.A"),
        json!(["online", "peer unreachable", "left unreachable lost", "peer B", "open B"])
    );
    close(&mut browser);
}

/// Firefox delays the WebSockets of a host more and more when they fail, up to a minute. The library opens one only when a
/// health check has succeeded.
#[test]
fn firefox_is_back_soon_after_a_long_outage() {
    let Some(_browsers) = reserve_browsers(2, &[FIREFOX]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let proxy = FaultProxy::new(server.address);
    let url = format!("ws://{}/ws/tea", proxy.address);
    let (mut browser, mut control) = (firefox(&server), firefox(&server));
    run(&mut browser, &format!("await enter('A', {{ url: '{url}' }});"));
    // A page that opens the next WebSocket as soon as one has failed shows how long the browser delays it.
    run(
        &mut control,
        &format!(
            "globalThis.failures = [];
            const reopen = () => {{
                const socket = new WebSocket('{url}');
                socket.onopen = () => globalThis.isOpen = true;
                socket.onclose = () => {{ failures.push(performance.now()); if (!globalThis.isOver) reopen(); }};
            }};
            reopen();"
        ),
    );
    control.wait_until("globalThis.isOpen");
    proxy.redirect_to(nowhere());
    proxy.cut_connections();
    let began = Instant::now();
    control.wait_until("failures.length > 5 && failures.at(-1) - failures.at(-2) > 15_000");
    println!("outage of {:.0} s", began.elapsed().as_secs_f64());
    browser.eval(
        "(rooms.A.addEventListener('online', () => globalThis.back = performance.now()), globalThis.at = performance.now())",
    );
    proxy.redirect_to(server.address);
    browser.wait_until("globalThis.back");
    let seconds = browser.eval("(back - at) / 1000").as_f64().unwrap();
    println!("back after {seconds:.1} s");
    assert!(seconds < 5.0, "{seconds}");
    control.eval("globalThis.isOver = true");
    close(&mut browser);
}
