//! The client library in a real browser.

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::process::{Running, eventually, run};
use crate::common::program::free_port;
use serde_json::json;

/// Opens a page with the library and functions that observe rooms. All rooms of a test may be in one page.
fn page(server: &Running) -> Chromium {
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", server.address));
    browser.eval(&format!("const url = 'ws://{}/ws/tea'", server.address));
    browser.eval(HELPERS);
    browser
}

const HELPERS: &str = r#"
    const { join, connect } = await import("/noroshi.js");
    const received = {}, errors = [];
    function watch(room) {
        received[room.id] = [];
        room.addEventListener("message", ({ peer, data }) => received[room.id].push(`${peer.id}: ${data}`));
        room.addEventListener("track", ({ peer, track }) => received[room.id].push(`${peer.id} shows ${track.kind}`));
        room.addEventListener("error", ({ peer, error }) => errors.push([room.id, peer?.id, error.code ?? error.message]));
        return room;
    }
    const enter = async (id, how = join, options = {}) => watch(await how(url, { id, ...options }));
    const meet = (room, id) => room.peers.get(id)?.alive;
    const fails = (how) => how().then(() => "", (error) => typeof error.code === "string" ? error.code : error.name);
    const picture = () => {
        const canvas = document.createElement("canvas");
        canvas.getContext("2d").fillRect(0, 0, 9, 9);
        return canvas.captureStream(9);
    };"#;

/// Ends a test. Errors that the browser reports for failed requests, including that for an icon, are ignored.
fn close(mut browser: Chromium) {
    browser.assert_no_errors();
    browser.kill();
}

#[test]
fn tracks_added_before_the_first_offer_are_in_the_answer() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval(
        "const b = await enter('B'), stream = picture();
        b.addEventListener('peer', ({ peer }) => peer.pc.addTrack(stream.getVideoTracks()[0], stream));
        const a = await enter('A'); 0",
    );
    browser.wait_until("meet(a, 'B') && meet(b, 'A') && received.A.includes('B shows video')");
    browser
        .wait_until("[a.peers.get('B'), b.peers.get('A')].every(({ pc }) => pc.signalingState === 'stable')");
    assert_eq!(browser.eval("errors"), json!([]));
    close(browser);
}

#[test]
fn failure_is_reported_with_its_peer_which_restarts() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval("const a = await enter('A'), b = await enter('B'); 0");
    browser.wait_until("meet(a, 'B') && meet(b, 'A')");
    browser.eval(
        "const before = a.peers.get('B');
        before.pc.setLocalDescription = () => Promise.reject(new Error('no description'));
        before.pc.addTransceiver('audio'); 0",
    );
    browser.wait_until("a.peers.get('B') !== before && meet(a, 'B') && meet(b, 'A')");
    browser.eval("a.send('hello'); 0");
    browser.wait_until("received.B.join() === 'A: hello'");
    assert_eq!(browser.eval("errors"), json!([["A", "B", "no description"]]));
    close(browser);
}

#[test]
fn repeated_answer_has_its_candidates() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    // The server rejects all candidates of A with `too_many`, so that the answer arrives without them.
    browser.eval(
        r#"let refuses = true;
        const all = [], send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (text) {
            const message = JSON.parse(text), isOfA = message.id === "A" && refuses;
            if (isOfA && message.type === "candidateAdd") return;
            if (isOfA && message.sdp) message.sdp.sdp = message.sdp.sdp.replace(/^a=candidate:.*\r\n/gm, "");
            if (isOfA && !all.includes(this)) all.push(this);
            send.call(this, JSON.stringify(message));
        };
        const a = await enter('A'), b = await enter('B'), has = () => /^a=candidate/m.test(b.peers.get('A').pc.remoteDescription?.sdp);
        0"#,
    );
    browser.wait_until("b.peers.get('A')?.pc.signalingState === 'stable' && a.peers.get('B')?.pc.iceGatheringState === 'complete'");
    assert_eq!(browser.eval("has()"), false);
    browser.eval(
        r#"refuses = false;
        all[0].onmessage({ data: '{"type":"error","code":"rate_limited","message":"too many"}' }); 0"#,
    );
    browser.wait_until("has()");
    close(browser);
}

#[test]
fn send_addresses_one_peer_and_reports_failures() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval(
        "const tried = [], a = await enter('A');
        const attempt = (peer, data) => { try { peer.send(data); } catch (error) { tried.push(error.code ?? error.name); } };
        a.addEventListener('peer', ({ peer }) => attempt(peer, 'too early'), { once: true });
        const b = await enter('B'), c = await enter('C'); 0",
    );
    browser.wait_until("meet(a, 'B') && meet(a, 'C') && meet(b, 'A') && meet(c, 'A')");
    browser.eval("for (const data of [{ a: 1 }, new Blob(['x'.repeat(3e5)]), 'é'.repeat(2e5)]) attempt(a.peers.get('C'), data); 0");
    assert_eq!(browser.eval("tried"), json!(["not_open", "TypeError", "TypeError", "too_big"]));
    assert_eq!(browser.eval("a.peers.get('C').maxMessageSize >= 65536"), true);
    // The queue has space for one message.
    browser.eval(
        "a.peers.get('B').channel.send = () => { throw new Error('full'); };
        for (let i = 0; i < 100; i++) a.send(String(i)); 0",
    );
    browser.wait_until("received.C.length === 100");
    assert_eq!(browser.eval("errors.length === 100 && errors.every((it) => it.join() === 'A,B,full')"), true);
    browser
        .eval("const c2 = a.peers.get('C'); for (let i = 0; i < 100; i++) c2.send(new Uint8Array(65536)); 0");
    assert_eq!(browser.eval("c2.bufferedAmount > 65536"), true);
    browser.eval("await c2.drained(65536); 0");
    assert_eq!(browser.eval("c2.bufferedAmount <= 65536"), true);
    browser.eval("await c2.drained(); 0");
    browser.wait_until("received.C.length === 200");
    close(browser);
}

#[test]
fn oversized_description_is_an_error_of_its_peer_only() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0" --max-message 2K"#);
    let mut browser = page(&server);
    browser.eval("const a = await enter('A'), b = await enter('B'); 0");
    browser.wait_until("errors.length > 0 && b.online");
    browser.wait_until("a.peers.has('B')");
    assert_eq!(browser.eval("errors.every((it) => it.join() === 'B,A,too_big')"), true);
    // New peers still connect as far as possible, and the error does not repeat forever.
    browser.eval("const c = await enter('C'); 0");
    browser.wait_until(
        "errors.some((it) => it.join() === 'C,A,too_big') && b.online && c.online && b.peers.has('C')",
    );
    let closed = "closings_total{reason=\"too_big\"}";
    assert!((1.0..=4.0).contains(&server.metric(closed)), "{}", server.metric(closed));
    browser.eval("for (const room of [a, b, c]) room.leave(); 0");
    eventually("all connections are closed", || server.metric("connections") == 0.0);
    close(browser);
}

#[test]
fn suspended_page_leaves_its_room() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval("const a = await enter('A'); const firePageTransition = (type) => dispatchEvent(new PageTransitionEvent(type, { persisted: true })); 0");
    eventually("the group exists", || server.metric("peers") == 1.0);
    browser.eval("firePageTransition('pagehide'); 0");
    eventually("it sleeps", || server.metric("connections") == 0.0);
    browser.eval("dispatchEvent(new Event('online')); 0");
    browser.eval("firePageTransition('pageshow'); 0");
    browser.wait_until("a.online");
    eventually("the page has rejoined", || server.metric("peers") == 1.0);
    // A real navigation.
    browser.open("about:blank");
    eventually("the connection is closed", || server.metric("connections") == 0.0);
    close(browser);
}

#[test]
fn left_room_is_garbage_collected() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval(
        "const left = [];
        for (let i = 0; i < 30; i++) {
            const room = await join(url);
            left.push(new WeakRef(room));
            room.leave();
        } 0",
    );
    eventually("the connections are closed", || server.metric("connections") == 0.0);
    eventually("the rooms are collected", || {
        browser.collect_garbage();
        browser.eval("left.filter((room) => room.deref()).length") == 0
    });
    close(browser);
}

#[test]
fn failed_join_has_a_reason() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    let gone = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    browser.eval("const a = await enter('A'), b = await enter('B', connect); 0");
    let port = server.address.port();
    for (how, code) in [
        ("join(url, { id: 'A' })".to_owned(), "id_taken"),
        ("connect(url, { id: 'B' })".to_owned(), "id_taken"),
        (format!("join('ws://{gone}/ws')"), "unreachable"),
        (format!("connect('ws://{gone}/ws')"), "unreachable"),
        // Another origin, an invalid room, and an invalid address.
        (format!("join('ws://localhost:{port}/ws')"), "refused"),
        (format!("join('ws://127.0.0.1:{port}/ws/a%20b')"), "refused"),
        (format!("connect('ws://127.0.0.1:{port}/nowhere')"), "refused"),
        ("join('http://[', {})".to_owned(), "SyntaxError"),
        ("join(url, { iceServers: [{ urls: 'turn:t.example' }] })".to_owned(), "InvalidAccessError"),
        ("connect(url, { iceServers: [{ urls: 'http://t.example' }] })".to_owned(), "SyntaxError"),
    ] {
        assert_eq!(browser.eval(&format!("await fails(() => {how})")), code, "{how}");
    }
    assert_eq!(server.metric("connections"), 2.0);
    close(browser);
}
