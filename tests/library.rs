//! The client library in a real browser: what real ones, and people, do to it.

mod common;

use common::browser::Browser;
use common::chromium::{CHROMIUM, Chromium};
use common::process::{Running, eventually, run};
use common::program::{free_port, is_installed};
use serde_json::json;

/// A page that has the library, and helpers to see what happens to a room. All rooms of a test can be in one page.
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

/// Ends a test. What the browser itself says of requests that fail, its own for an icon among them, is no fault.
fn close(mut browser: Chromium) {
    browser.assert_no_errors();
    browser.kill();
}

#[test]
fn who_awaits_the_first_offer_may_add_to_its_answer() {
    if !is_installed(CHROMIUM) {
        return;
    }
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
fn what_fails_is_told_with_its_peer_which_begins_anew() {
    if !is_installed(CHROMIUM) {
        return;
    }
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
fn an_answer_that_is_said_again_brings_its_candidates() {
    if !is_installed(CHROMIUM) {
        return;
    }
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    // The server refuses all candidates of A, as if they were too many, and so does the answer come without them.
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
fn each_peer_is_sent_to_for_itself_and_what_cannot_be_sent_is_said_clearly() {
    if !is_installed(CHROMIUM) {
        return;
    }
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
    // The queue of one is full.
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
fn a_description_that_is_too_large_is_an_error_of_that_peer_and_the_room_lives_on() {
    if !is_installed(CHROMIUM) {
        return;
    }
    let (server, _stderr) = run(r#"exec "$0" --max-message 2K"#);
    let mut browser = page(&server);
    browser.eval("const a = await enter('A'), b = await enter('B'); 0");
    browser.wait_until("errors.length > 0 && b.online");
    browser.wait_until("a.peers.has('B')");
    assert_eq!(browser.eval("errors.every((it) => it.join() === 'B,A,too_big')"), true);
    // Whoever comes is still met as far as that is possible, and it is not said for ever.
    browser.eval("const c = await enter('C'); 0");
    browser.wait_until(
        "errors.some((it) => it.join() === 'C,A,too_big') && b.online && c.online && b.peers.has('C')",
    );
    let closed = "closings_total{reason=\"too_big\"}";
    assert!((1.0..=4.0).contains(&server.metric(closed)), "{}", server.metric(closed));
    browser.eval("for (const room of [a, b, c]) room.leave(); 0");
    eventually("nobody is left", || server.metric("connections") == 0.0);
    close(browser);
}

#[test]
fn a_page_that_sleeps_is_no_ghost() {
    if !is_installed(CHROMIUM) {
        return;
    }
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    browser.eval("const a = await enter('A'); const turns = (type) => dispatchEvent(new PageTransitionEvent(type, { persisted: true })); 0");
    eventually("it is there", || server.metric("peers") == 1.0);
    browser.eval("turns('pagehide'); 0");
    eventually("it sleeps", || server.metric("connections") == 0.0);
    browser.eval("dispatchEvent(new Event('online')); 0");
    browser.eval("turns('pageshow'); 0");
    browser.wait_until("a.online");
    eventually("it is back", || server.metric("peers") == 1.0);
    // And really.
    browser.open("about:blank");
    eventually("it is gone", || server.metric("connections") == 0.0);
    close(browser);
}

#[test]
fn a_room_that_was_left_is_held_by_nothing() {
    if !is_installed(CHROMIUM) {
        return;
    }
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
    eventually("they are gone", || server.metric("connections") == 0.0);
    eventually("nothing holds them", || {
        browser.collect_garbage();
        browser.eval("left.filter((room) => room.deref()).length") == 0
    });
    close(browser);
}

#[test]
fn who_does_not_come_in_is_told_why() {
    if !is_installed(CHROMIUM) {
        return;
    }
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
        // Another origin, a room that is none, and nothing that is one.
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
