//! The client library in real browsers: entering and leaving a room, its events, and who is in it.

use std::net::TcpListener;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::FaultProxy;
use crate::common::firefox::FIREFOX;
use crate::common::process::{Running, eventually, run as start_server};
use crate::common::program::free_port;
use crate::library_page::{ANY_ORIGIN, chromium, close, close_after_errors, enter_mesh, firefox, open, run};
use serde_json::json;

/// Runs a test in Chromium, then in Firefox, each with its own server.
fn in_both_browsers(test: impl Fn(&mut dyn Browser, &Running)) {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM, FIREFOX]) else { return };
    {
        let (server, _stderr) = start_server(ANY_ORIGIN);
        test(&mut chromium(&server), &server);
    }
    let (server, _stderr) = start_server(ANY_ORIGIN);
    test(&mut firefox(&server), &server);
}

/// Waits until the server has no peers and no connections.
fn wait_until_empty(server: &Running) {
    eventually("all connections are closed", || {
        ["connections", "peers", "rooms"].iter().all(|name| server.metric(name) == 0.0)
    });
}

// ---- Entering ----

#[test]
fn failed_join_has_a_reason() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    let gone = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    run(&mut browser, "await enter('A'); await enter('B', {}, connect);");
    let port = server.address.port();
    for (how, code) in [
        ("join(roomUrl, { id: 'A' })".to_owned(), "id_taken"),
        ("connect(roomUrl, { id: 'B' })".to_owned(), "id_taken"),
        (format!("join('ws://{gone}/ws')"), "unreachable"),
        (format!("connect('ws://{gone}/ws')"), "unreachable"),
        // Another origin, an invalid room, and an invalid address.
        (format!("join('ws://localhost:{port}/ws')"), "refused"),
        (format!("join('ws://127.0.0.1:{port}/ws/a%20b')"), "refused"),
        (format!("connect('ws://127.0.0.1:{port}/nowhere')"), "refused"),
        ("join('http://[', {})".to_owned(), "TypeError"),
        ("join('ftp://127.0.0.1/')".to_owned(), "TypeError"),
        ("join(roomUrl, { iceServers: [{ urls: 'turn:t.example' }] })".to_owned(), "InvalidAccessError"),
        ("connect(roomUrl, { iceServers: [{ urls: 'http://t.example' }] })".to_owned(), "SyntaxError"),
        ("join(roomUrl, { data: 'x'.repeat(16384) })".to_owned(), "too_big"),
        ("join(roomUrl, { token: () => { throw new Error('no token') } })".to_owned(), "unauthorized"),
    ] {
        assert_eq!(browser.eval(&format!("await codeOf({how})")), code, "{how}");
    }
    assert_eq!(server.metric("connections"), 2.0);
    // `http:` URLs are those of WebSockets, too, and a relative one is of the server of the page.
    let same = run(
        &mut browser,
        "const room = await join('/ws/tea', { id: 'C' });
        const { url, id, state, online, data } = room;
        room.leave();
        return [url === roomUrl, id, state, online, data === undefined, room.state, room.online];",
    );
    assert_eq!(same, json!([true, "C", "online", true, true, "closed", false]));
    close(&mut browser);
}

#[test]
fn silent_server_is_unreachable_after_the_timeout() {
    // It accepts connections, and answers nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", silent.local_addr().unwrap());
    in_both_browsers(|browser, _| {
        let found = run(
            browser,
            &format!(
                "const began = performance.now();
                const error = await join('{url}', {{ timeout: 700 }}).catch((error) => error);
                const time = performance.now() - began;
                return [error.code, error instanceof NoroshiError, error instanceof Error, time > 690];"
            ),
        );
        assert_eq!(found, json!(["unreachable", true, true, true]));
        let found = run(
            browser,
            &format!(
                "const controller = new AbortController(), reason = {{ why: 'the user has gone back' }};
                const joining = connect('{url}', {{ signal: controller.signal }});
                setTimeout(() => controller.abort(reason), 100);
                return await joining.catch((error) => error === reason);"
            ),
        );
        assert_eq!(found, true);
        close(browser);
    });
}

#[test]
fn aborted_signal_leaves_nothing_behind_in_every_state() {
    in_both_browsers(|browser, server| {
        // As StrictMode of React does: an effect is run, cleaned up at once, and run again with the same id.
        let found = run(
            browser,
            "const outcomes = [];
            for (let i = 0; i < 5; i++) {
                const first = new AbortController();
                const joining = codeOf(join(roomUrl, { id: 'A', signal: first.signal }));
                first.abort();
                const second = new AbortController();
                const room = await join(roomUrl, { id: 'A', signal: second.signal });
                outcomes.push(await joining, room.state);
                second.abort();
                outcomes.push(room.state, (await room.closed).code);
            }
            return outcomes;",
        );
        let once = ["AbortError", "online", "closed", "left"];
        assert_eq!(found, json!(vec![once; 5].concat()));
        wait_until_empty(server);
        // After any time while it enters.
        run(
            browser,
            "for (let ms = 0; ms < 40; ms++) {
                const controller = new AbortController(), { signal } = controller;
                setTimeout(() => controller.abort(), ms);
                const room = await join(roomUrl, { id: 'A', signal }).catch(() => undefined);
                await (room?.closed ?? Promise.resolve());
            }",
        );
        wait_until_empty(server);
        let before = server.metric("connections_total");
        let aborted = "codeOf(join(roomUrl, { signal: AbortSignal.abort() }))";
        assert_eq!(run(browser, &format!("return await {aborted};")), "AbortError");
        assert_eq!(server.metric("connections_total"), before);
        // While it is connected to a peer.
        run(
            browser,
            "globalThis.controller = new AbortController();
            await enter('A', { signal: controller.signal });
            await enter('B');",
        );
        browser.wait_until("isMesh('A', 'B')");
        browser.eval("(globalThis.pc = peer('A', 'B').pc, controller.abort())");
        assert_eq!(browser.eval("[pc.connectionState, rooms.A.state]"), json!(["closed", "closed"]));
        browser.wait_until("events.B.includes('left A left')");
        close(browser);
        wait_until_empty(server);
    });
}

#[test]
fn room_is_left_at_the_end_of_its_block() {
    in_both_browsers(|browser, server| {
        let found = run(
            browser,
            "let left;
            {
                await using room = await join(roomUrl);
                left = room;
            }
            return [left.state, (await left.closed).code];",
        );
        assert_eq!(found, json!(["closed", "left"]));
        close(browser);
        wait_until_empty(server);
    });
}

// ---- Events ----

#[test]
fn events_wait_for_their_first_listener() {
    in_both_browsers(|browser, _| {
        run(
            browser,
            "globalThis.a = await join(roomUrl, { id: 'A' });
            globalThis.b = await join(roomUrl, { id: 'B' });
            await until(() => a.peers.get('B')?.alive && b.peers.get('A')?.alive);
            for (const text of ['one', 'two', 'three']) a.send(text);
            a.share(sound());
            globalThis.c = await join(roomUrl, { id: 'C' });
            c.leave();
            // The tracks are negotiated after the messages.
            await until(() => receives(b.peers.get('A'), 'audio') === 1);
            await until(() => !b.peers.has('C'));",
        );
        // Nobody has listened until now.
        let found = run(
            browser,
            "const heard = [];
            for (const type of ['peer', 'open', 'message', 'track', 'left', 'online']) {
                b.addEventListener(type, ({ peer, data, track }) => {
                    heard.push([type, peer?.id, data ?? track?.kind].filter(Boolean).join(' '));
                });
            }
            await until(() => heard.some((it) => it.startsWith('left')));
            const all = heard.filter((it) => !/^open C/.test(it));
            a.send('four');
            await until(() => heard.includes('message A four'));
            return [all.filter((it) => / A/.test(it) || it === 'online'), all.filter((it) => / C/.test(it))];",
        );
        let of_a = ["online", "peer A", "open A", "message A one", "message A two", "message A three"];
        assert_eq!(found[0].as_array().unwrap()[..6], of_a.map(|it| json!(it)));
        assert_eq!(found[0][6], "track A audio");
        assert_eq!(found[1], json!(["peer C", "left C"]));
        // So do messages up to 1 MiB, and a thousand events.
        let found = run(
            browser,
            "const heard = [];
            globalThis.d = await join(roomUrl, { id: 'D' });
            await until(() => a.peers.get('D')?.alive && b.peers.get('D')?.alive);
            for (let i = 0; i < 1100; i++) a.send(i);
            for (let i = 0; i < 40; i++) b.send(new Uint8Array(60_000));
            let last;
            b.addEventListener('message', ({ data }) => last = data);
            a.send('last');
            await until(() => last === 'last' && d.peers.get('B').alive);
            const arrived = async (id) => [...(await d.peers.get(id).pc.getStats()).values()]
                .find((it) => it.type === 'data-channel' && it.label === 'noroshi').messagesReceived;
            while (await arrived('A') < 1101 || await arrived('B') < 40) await new Promise((resolve) => setTimeout(resolve, 10));
            d.addEventListener('message', ({ peer, data }) => heard.push([peer.id, data.byteLength ?? data]));
            await until(() => heard.length > 0);
            await new Promise((resolve) => setTimeout(resolve));
            const numbers = heard.filter(([id]) => id === 'A').map(([, data]) => data);
            const isInOrder = numbers.every((data, i) => data === i);
            const bytes = heard.filter(([id]) => id === 'B').reduce((sum, [, size]) => sum + size, 0);
            return [isInOrder, heard.length <= 1000, bytes <= 1 << 20, heard.length > 900];",
        );
        assert_eq!(found, json!([true, true, true, true]));
        run(browser, "[a, b, d].forEach((room) => room.leave());");
        close(browser);
    });
}

#[test]
fn events_and_messages_can_be_awaited() {
    in_both_browsers(|browser, _| {
        let found = run(
            browser,
            "const a = await join(roomUrl, { id: 'A' });
            const controller = new AbortController();
            const never = codeOf(a.once('left', { signal: controller.signal }));
            controller.abort();
            const aborted = codeOf(a.once('left', { signal: controller.signal }));
            const b = await join(roomUrl, { id: 'B' });
            const { peer } = await a.once('open');
            await b.once('open');
            b.send('one'); b.send({ two: 2 });
            const heard = [];
            for await (const message of a.messages()) {
                heard.push([message.peer === peer, message.data, message.reliable]);
                if (heard.length === 2) break;
            }
            // The iteration ends with the signal, and with the room.
            const second = new AbortController(), iteration = a.messages({ signal: second.signal });
            const next = iteration.next();
            second.abort();
            const ends = [(await next).done];
            const rest = (async () => { for await (const { data } of a.messages()) heard.push(data); })();
            b.send('three');
            await until(() => heard.length === 3);
            const closed = a.once('closed');
            a.leave();
            await rest;
            ends.push((await a.messages().next()).done);
            const left = await b.once('left');
            b.leave();
            return [await never, await aborted, heard, ends, (await closed).code, left.peer.id, left.reason];",
        );
        let heard = json!([[true, "one", true], [true, { "two": 2 }, true], "three"]);
        assert_eq!(found, json!(["AbortError", "AbortError", heard, [true, true], "left", "A", "left"]));
        close(browser);
    });
}

// ---- Who is in the room ----

#[test]
fn data_of_a_peer_is_known_before_open_and_may_change() {
    in_both_browsers(|browser, _| {
        let found = run(
            browser,
            "const heard = [];
            const listen = (room) => {
                room.addEventListener('open', ({ peer }) => heard.push([room.id, 'open', peer.data ?? null]));
                room.addEventListener('data', ({ peer, data }) => heard.push([room.id, 'data', data, peer.data === data]));
            };
            const a = await enter('A', { data: { name: 'Aoi', color: '#f00' } });
            const b = await enter('B');
            listen(a); listen(b);
            await until(() => heard.length === 2);
            const first = heard.splice(0).sort();
            b.setData('Ren');
            await until(() => heard.length === 1);
            const second = heard.splice(0);
            const refused = codeOfCall(() => a.setData('x'.repeat(20_000)));
            const kept = a.data.name;
            // A later peer gets the present value.
            const c = await enter('C', { data: 3 });
            listen(c);
            await until(() => heard.length === 4);
            return [first, second, refused, kept, heard.sort()];",
        );
        let aoi = json!({ "name": "Aoi", "color": "#f00" });
        assert_eq!(
            found,
            json!([
                [["A", "open", null], ["B", "open", aoi]],
                [["A", "data", "Ren", true]],
                "too_big",
                "Aoi",
                [["A", "open", 3], ["B", "open", 3], ["C", "open", "Ren"], ["C", "open", aoi]],
            ])
        );
        // What changed while the connection was begun anew is told with the next one.
        let found = run(
            browser,
            "const changed = rooms.A.once('data');
            peer('B', 'A').pc.close();
            rooms.B.setData('Ren again');
            const { peer: it, data } = await changed;
            return [it.id, data];",
        );
        assert_eq!(found, json!(["B", "Ren again"]));
        close(browser);
    });
}

#[test]
fn departures_have_reasons() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let mut browser = chromium(&server);
    let mut firefox = firefox(&server);
    let proxy = FaultProxy::new(server.address);
    // B is begun again under its id, while its old connection to A is alive: as after a crash.
    enter_mesh(&mut browser, &["A"]);
    run(&mut browser, &format!("await enter('B', {{ url: 'ws://{}/ws/tea' }});", proxy.address));
    browser.wait_until("isMesh('A', 'B')");
    proxy.redirect_to(([127, 0, 0, 1], free_port()).into());
    proxy.cut_connections();
    browser.wait_until("peer('A', 'B').away");
    browser.eval("(globalThis.old = rooms.B, globalThis.oldPeer = peer('A', 'B'), events.A = [])");
    run(&mut browser, "await enter('B');");
    browser.wait_until("isMesh('A', 'B')");
    assert_eq!(browser.eval("events.A"), json!(["left B replaced", "peer B", "open B"]));
    assert_eq!(browser.eval("[oldPeer.state, oldPeer.alive]"), json!(["closed", false]));
    assert_eq!(browser.eval("old.leave(); [old.state, events.A.length]"), json!(["closed", 3]));
    // B leaves, C closes its page, D crashes.
    let [mut other] = Chromium::start();
    open(&mut other, &server, server.address);
    run(&mut firefox, "await enter('C');");
    run(&mut other, "await enter('D');");
    browser.wait_until("rooms.A.peers.size === 3 && [...rooms.A.peers.values()].every(isSettled)");
    browser.eval(
        "(events.A = [], globalThis.departures = () => events.A.filter((it) => it.startsWith('left')), 0)",
    );
    browser.eval("rooms.B.leave()");
    browser.wait_until("departures().length === 1");
    firefox.open("about:blank");
    browser.wait_until("departures().length === 2");
    // Killed, as in a crash.
    drop(other);
    browser.wait_until("departures().length === 3");
    assert_eq!(browser.eval("departures()"), json!(["left B left", "left C left", "left D lost"]));
    close(&mut browser);
    firefox.assert_no_errors();
}

#[test]
fn replaced_room_closes_its_connections_when_it_is_left() {
    in_both_browsers(|browser, _| {
        run(browser, "await enter('A', { WebSocket: RecordingSocket }); await enter('B');");
        browser.wait_until("isMesh('A', 'B')");
        run(
            browser,
            "events.A = [];
            globalThis.pc = peer('A', 'B').pc;
            sockets[0].close(4000);",
        );
        browser.wait_until("rooms.A.state === 'closed'");
        let found = run(
            browser,
            "return [(await rooms.A.closed).code, events.A, pc.connectionState, rooms.A.peers.size];",
        );
        // Connected peers stay until the application leaves.
        assert_eq!(found, json!(["replaced", ["error", "closed"], "connected", 1]));
        browser.eval("(rooms.A.send('still here'), rooms.A.leave(), rooms.A.leave())");
        assert_eq!(browser.eval("[pc.connectionState, rooms.A.peers.size]"), json!(["closed", 0]));
        browser.wait_until("events.B.includes('left A left') && received.B.includes('A: still here')");
        assert_eq!(browser.eval("errors.map(([id, , code]) => id + ' ' + code)"), json!(["A replaced"]));
        close_after_errors(browser);
    });
}

#[test]
fn room_whose_id_was_taken_closes_its_connections_when_it_is_left() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(ANY_ORIGIN);
    let mut browser = chromium(&server);
    let proxy = FaultProxy::new(server.address);
    run(
        &mut browser,
        &format!("await enter('A', {{ url: 'ws://{}/ws/tea' }}); await enter('B');", proxy.address),
    );
    browser.wait_until("isMesh('A', 'B')");
    proxy.redirect_to(([127, 0, 0, 1], free_port()).into());
    proxy.cut_connections();
    browser.wait_until("rooms.A.state === 'offline' && peer('B', 'A').away");
    // Somebody else has the id meanwhile, and answers the server.
    run(&mut browser, "globalThis.pc = peer('A', 'B').pc; await connect(roomUrl, { id: 'A' });");
    proxy.redirect_to(server.address);
    browser.wait_until("rooms.A.state === 'closed'");
    assert_eq!(run(&mut browser, "return (await rooms.A.closed).code;"), "id_taken");
    assert_eq!(browser.eval("pc.connectionState"), "connected");
    browser.eval("rooms.A.leave()");
    assert_eq!(browser.eval("pc.connectionState"), "closed");
    browser.wait_until("rooms.B.peers.size === 0");
    assert_eq!(browser.eval("errors.map(([id, , code]) => id + ' ' + code)"), json!(["A id_taken"]));
    close_after_errors(&mut browser);
}

// ---- Failures ----

#[test]
fn failed_negotiation_keeps_the_peer_and_what_is_shared() {
    in_both_browsers(|browser, _| {
        enter_mesh(browser, &["A", "B"]);
        browser.eval("(rooms.A.share(sound()), rooms.B.share(sound()), 0)");
        browser
            .wait_until("receives(peer('A', 'B'), 'audio') === 1 && receives(peer('B', 'A'), 'audio') === 1");
        browser.wait_until("isMesh('A', 'B')");
        // Once: it is tried again, on the same connection.
        run(
            browser,
            "globalThis.before = peer('A', 'B');
            const { pc } = before;
            pc.setLocalDescription = () => {
                delete pc.setLocalDescription;
                return Promise.reject(new Error('no description'));
            };
            globalThis.share = rooms.A.share(picture());
            globalThis.firstPc = pc;",
        );
        browser.wait_until("receives(peer('B', 'A'), 'video') === 1 && isMesh('A', 'B')");
        assert_eq!(browser.eval("before.pc === firstPc && peer('A', 'B') === before"), true);
        // Again: on another connection, with everything that is shared.
        run(
            browser,
            "events.A = []; events.B = []; received.A = []; received.B = [];
            before.pc.setLocalDescription = () => Promise.reject(new Error('no description'));
            share.stop();
            share = rooms.A.share(picture());
            before.pc.addTransceiver('audio');",
        );
        browser.wait_until("before.pc !== firstPc && isMesh('A', 'B')");
        browser
            .wait_until("receives(peer('A', 'B'), 'audio') === 1 && receives(peer('B', 'A'), 'audio') === 1");
        browser.wait_until("receives(peer('B', 'A'), 'video') === 1");
        assert_eq!(browser.eval("peer('A', 'B') === before"), true);
        assert_eq!(browser.eval("events.A"), json!(["error B", "reconnecting B", "open B"]));
        assert_eq!(browser.eval("events.B"), json!(["reconnecting A", "open A"]));
        assert_eq!(browser.eval("received.B.sort()"), json!(["A shows audio", "A shows video"]));
        let error = json!(["A", "B", "connection_failed", "no description"]);
        assert_eq!(browser.eval("errors"), json!([error, error]));
        close_after_errors(browser);
    });
}

#[test]
fn connection_that_the_application_closes_disturbs_no_other() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let secret = std::env::temp_dir().join(format!("noroshi-library-secret-{}", std::process::id()));
    std::fs::write(&secret, "open-sesame").unwrap();
    let flags = format!("--ice-server turn:127.0.0.1:9 --turn-secret-file {}", secret.display());
    let (server, _stderr) = start_server(&format!("{ANY_ORIGIN} {flags}"));
    std::fs::remove_file(&secret).unwrap();
    let proxy = FaultProxy::new(server.address);
    let mut browser = chromium(&server);
    run(&mut browser, &format!("await enter('A', {{ url: 'ws://{}/ws/tea' }});", proxy.address));
    run(&mut browser, "await enter('B'); await enter('C');");
    browser.wait_until("isMesh('A', 'B', 'C')");
    run(
        &mut browser,
        "globalThis.others = [peer('A', 'C').pc, peer('B', 'C').pc];
        globalThis.closedPeer = peer('A', 'B');
        for (const id of 'ABC') events[id] = [];
        closedPeer.pc.close();",
    );
    // With new ICE servers for a closed connection, before anybody has noticed.
    proxy.cut_connections();
    browser.wait_until("events.A.includes('online') && isMesh('A', 'B', 'C')");
    assert_eq!(
        browser.eval("[peer('A', 'C').pc === others[0], peer('B', 'C').pc === others[1]]"),
        json!([true, true])
    );
    assert_eq!(browser.eval("peer('A', 'B') === closedPeer"), true);
    assert_eq!(browser.eval("events.A"), json!(["offline", "online", "reconnecting B", "open B"]));
    assert_eq!(browser.eval("events.C"), json!([]));
    close(&mut browser);
}

#[test]
fn small_messages_of_the_server_suffice() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    // Media are negotiated over the direct connection, so that their descriptions may be larger.
    let (server, _stderr) = start_server(r#"exec "$0" --max-message 2K"#);
    let mut browser = chromium(&server);
    enter_mesh(&mut browser, &["A", "B"]);
    browser.eval("(rooms.A.share(picture()), rooms.B.share(picture()), 0)");
    browser.wait_until(
        "isMesh('A', 'B') && receives(peer('A', 'B'), 'video') && receives(peer('B', 'A'), 'video')",
    );
    assert_eq!(browser.eval("peer('A', 'B').pc.localDescription.sdp.length > 4000"), true);
    assert_eq!(server.metric("closings_total{reason=\"too_big\"}"), 0.0);
    close(&mut browser);
}

#[test]
fn oversized_description_is_an_error_of_its_peer_only() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    // The descriptions of B are too large for the server.
    run(
        &mut browser,
        r#"const pad = (description) => description && { type: description.type, sdp: `${description.sdp}a=x:${"x".repeat(70_000)}\r\n` };
        class Verbose extends RTCPeerConnection {
            get localDescription() { return pad(super.localDescription); }
            get currentLocalDescription() { return pad(super.currentLocalDescription); }
        }
        await enter('A');
        await enter('B', { RTCPeerConnection: Verbose });
        await enter('C');"#,
    );
    browser.wait_until("['A', 'C'].every((other) => errors.some(([id, it]) => id === 'B' && it === other))");
    browser.wait_until("isSettled(peer('A', 'C')) && isSettled(peer('C', 'A')) && Object.values(rooms).every(({ online }) => online)");
    // Each error is reported once, and B is not closed again and again.
    let found = browser.eval("errors.map(([id, other, code]) => `${id} ${other} ${code}`).sort()");
    assert_eq!(found, json!(["B A too_big", "B C too_big"]));
    assert_eq!(server.metric("closings_total{reason=\"too_big\"}"), 1.0);
    assert_eq!(browser.eval("events.C.includes('offline') || events.A.includes('offline')"), false);
    close_after_errors(&mut browser);
    wait_until_empty(&server);
}

#[test]
fn repeated_answer_has_its_candidates() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    // The server rejects all candidates with `too_many`, so that the peers cannot connect.
    run(
        &mut browser,
        r#"globalThis.refuses = true;
        class Refusing extends RecordingSocket {
            send(text) {
                const message = JSON.parse(text);
                if (refuses && message.type === "candidateAdd") return;
                if (refuses && message.sdp) message.sdp.sdp = message.sdp.sdp.replace(/^a=candidate:.*\r\n/gm, "");
                super.send(JSON.stringify(message));
            }
        }
        await enter("A", { WebSocket: Refusing });
        await enter("B", { WebSocket: Refusing });"#,
    );
    browser.wait_until("peer('B', 'A').pc.signalingState === 'stable' && peer('A', 'B')?.pc.iceGatheringState === 'complete'");
    assert_eq!(browser.eval("/^a=candidate/m.test(peer('B', 'A').pc.remoteDescription?.sdp)"), false);
    browser.eval("(globalThis.before = [peer('A', 'B').pc, peer('B', 'A').pc], refuses = false)");
    let limited = r#"dispatchEvent(new MessageEvent("message", { data: '{"type":"error","code":"rate_limited","message":"too many"}' }))"#;
    browser.eval(&format!("sockets[0].{limited}"));
    browser.wait_until("isMesh('A', 'B')");
    assert_eq!(browser.eval("before[0] === peer('A', 'B').pc && before[1] === peer('B', 'A').pc"), true);
    close(&mut browser);
}

// ---- The page ----

#[test]
fn suspended_page_leaves_its_room() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    run(&mut browser, "await enter('A');");
    eventually("the group exists", || server.metric("peers") == 1.0);
    browser.eval(
        "globalThis.firePageTransition = (type) => dispatchEvent(new PageTransitionEvent(type, { persisted: true })); 0",
    );
    browser.eval("firePageTransition('pagehide'); 0");
    eventually("it sleeps", || server.metric("connections") == 0.0);
    browser.eval("dispatchEvent(new Event('online')); 0");
    browser.eval("firePageTransition('pageshow'); 0");
    browser.wait_until("rooms.A.online");
    eventually("the page has rejoined", || server.metric("peers") == 1.0);
    // A real navigation.
    browser.open("about:blank");
    wait_until_empty(&server);
    browser.assert_no_errors();
}

#[test]
fn left_room_is_garbage_collected() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    // Ten pairs that have met, and ten rooms alone.
    run(
        &mut browser,
        "globalThis.left = [];
        globalThis.meetAndLeave = async () => {
            const a = await join(roomUrl, { signal: new AbortController().signal }), b = await join(roomUrl);
            await Promise.all([a.once('open'), b.once('open')]);
            a.send('hello');
            const objects = [a, b, ...a.peers.values(), ...b.peers.values()];
            left.push(...objects.map((it) => new WeakRef(it)));
            a.leave();
            b.leave();
        };
        for (let i = 0; i < 10; i++) {
            await meetAndLeave();
            const alone = await join(roomUrl);
            left.push(new WeakRef(alone));
            alone.leave();
        }",
    );
    wait_until_empty(&server);
    eventually("the rooms and peers are collected", || {
        browser.collect_garbage();
        browser.eval("left.filter((it) => it.deref()).length") == 0
    });
    close(&mut browser);
}
