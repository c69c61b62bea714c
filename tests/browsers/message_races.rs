//! The client library with duplicated, late and concurrent messages.

use std::net::TcpListener;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::FaultProxy;
use crate::common::process::{Running, eventually, run};
use serde_json::json;

/// The pages come from other origins than the server's.
const OPEN: &str = r#"exec "$0" --allow-origin "*""#;

/// Opens a page with the library. Its rooms use one proxy each, if there are any.
fn page(server: &Running, wires: &[FaultProxy]) -> Chromium {
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", server.address));
    let addresses: Vec<_> = wires.iter().map(|proxy| proxy.address.to_string()).collect();
    browser.eval(&format!("const addresses = {addresses:?}, own = '{}'", server.address));
    browser.eval(
        r#"const sockets = [];
        // Records and counts all sent messages.
        const sent = [], send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (text) {
            if (!sockets.includes(this)) sockets.push(this);
            sent.push(JSON.parse(text));
            send.call(this, text);
        };
        const { join, connect } = await import("/noroshi.js");
        const errors = [], rejected = [];
        addEventListener("unhandledrejection", ({ reason }) => rejected.push(String(reason)));
        async function enter(id, how = join, options = {}) {
            const at = addresses["AB".indexOf(id)] ?? own;
            const room = await how(`ws://${at}/ws/tea`, { id, ...options });
            room.addEventListener("error", ({ peer, error }) => errors.push([id, peer?.id, error.code ?? error.message]));
            return room;
        }
        const other = { A: "B", B: "A" };
        const peer = (room) => room.peers.get(other[room.id]);
        const meet = (...rooms) => rooms.every((room) => peer(room)?.alive);
        const isStable = (...rooms) => rooms.every((room) => peer(room).pc.signalingState === "stable");
        const receives = (room) => peer(room).pc.getTransceivers()
            .filter(({ currentDirection }) => currentDirection?.includes("recv")).map(({ receiver }) => receiver.track.kind);
        const stream = new AudioContext().createMediaStreamDestination().stream;
        const silence = stream.getTracks()[0];"#,
    );
    browser
}

/// Opens a page in which `a` and `b` are connected members of a room.
fn page_with_a_mesh(server: &Running) -> Chromium {
    let mut browser = page(server, &[]);
    browser.eval("const a = await enter('A'), b = await enter('B'); 0");
    browser.wait_until("meet(a, b) && isStable(a, b)");
    browser
}

/// Ends a test. Errors that the browser reports for failed requests are ignored.
fn close(mut browser: Chromium) {
    assert_eq!(browser.eval("rejected"), json!([]));
    browser.errors.retain(|error| {
        !error.contains(r#""source":"network""#) && !error.contains("closed before the connection")
    });
    browser.kill();
}

#[test]
fn repeated_offer_has_no_effect() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page_with_a_mesh(&server);
    // B has made the first offer. One page makes another offer, which is lost; then the other one repeats its last
    // description.
    browser.eval(
        "const lose = (act) => {
            const { send } = WebSocket.prototype;
            WebSocket.prototype.send = () => {};
            act();
            return new Promise((done) => setTimeout(done, 500)).then(() => WebSocket.prototype.send = send);
        };
        const source = () => new AudioContext().createMediaStreamDestination().stream; 0",
    );
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "b")] {
        browser.eval(&format!(
            "await lose(() => peer({from}).pc.addTrack(source().getTracks()[0], stream));
            const before = receives({to}).length; 0"
        ));
        assert_eq!(browser.eval(&format!("peer({from}).pc.signalingState")), "have-local-offer");
        browser.eval(&format!("peer({to}).resend(true); 0"));
        browser.wait_until(&format!("isStable(a, b) && receives({to}).length === before + 1"));
    }
    assert_eq!(browser.eval("errors"), json!([]));
    close(browser);
}

#[test]
fn descriptions_have_the_ids_that_older_library_versions_expect() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page_with_a_mesh(&server);
    // Compares the whole line, byte by byte.
    assert_eq!(
        browser.eval(
            "const answer = sent.find(({ type }) => type === 'answer').sdp;
            /^o=.*/m.exec(peer(b).pc.localDescription.sdp)[0] === answer.to"
        ),
        true
    );
    // A browser may rewrite everything except the numbers.
    browser.eval(
        r#"const plain = WebSocket.prototype.send;
        WebSocket.prototype.send = function (text) {
            const message = JSON.parse(text);
            if (message.sdp?.to) message.sdp.to = message.sdp.to.replace(/^o=\S+ (\d+ \d+) .*/, "o=mozilla $1 IN IP4 0.0.0.0");
            plain.call(this, JSON.stringify(message));
        };
        peer(b).pc.addTrack(silence, stream); 0"#,
    );
    browser.wait_until("isStable(a, b) && receives(a).includes('audio')");
    close(browser);
}

#[test]
fn invalid_description_is_an_error_event_of_its_peer() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page_with_a_mesh(&server);
    browser.eval(
        r#"const sendMessage = (message) => send.call(sockets[1], JSON.stringify({ id: "B", target_id: "A", ...message }));
        sendMessage({ type: "candidateAdd", candidate: { candidate: "a|b" } });
        for (const sdp of [null, 7, {}, { type: "offer", sdp: "v=0" }]) sendMessage({ type: "offer", sdp }); 0"#,
    );
    browser.wait_until("errors.length > 1 && meet(a, b) && isStable(a, b)");
    assert_eq!(browser.eval("errors.every(([id, peer]) => id === 'A' && peer === 'B')"), true);
    close(browser);
}

#[test]
fn returning_partner_is_detected_immediately() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let wires = [FaultProxy::new(server.address), FaultProxy::new(server.address)];
    let mut browser = page(&server, &wires);
    browser.eval("const a = await enter('A', connect), b = await enter('B', connect); 0");
    browser.wait_until("meet(a, b) && isStable(a, b)");
    for (proxy, count) in wires.iter().zip([3, 4]) {
        proxy.cut_connections();
        browser.wait_until(&format!("sockets.length === {count}"));
        browser.wait_until("a.online && b.online && !peer(a).away && !peer(b).away");
    }
    // Neither had to search for the other.
    assert_eq!(browser.eval("sockets.length"), 4);
    close(browser);
}

#[test]
fn room_has_at_most_one_open_connection() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let proxy = FaultProxy::new(server.address);
    let mut browser = page(&server, std::slice::from_ref(&proxy));
    browser.eval("const a = await enter('A'); 0");
    // Closing the old connection takes as long as opening the new one.
    proxy.set_delay(1000);
    browser.eval("sockets[0].close(); dispatchEvent(new Event('online')); 0");
    browser.wait_until("sockets.length > 1");
    browser.eval("await new Promise((done) => setTimeout(done, 4000)); 0");
    assert_eq!(browser.eval("sockets.length"), 2);
    assert_eq!(server.metric("connections"), 1.0);
    assert_eq!(browser.eval("a.online && errors.length === 0"), true);
    close(browser);
}

#[test]
fn black_hole_network_does_not_block_reconnecting() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page(&server, &[]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", silent.local_addr().unwrap());
    // All timeouts are a tenth of their values, except those of the browser.
    browser.eval("const slow = setTimeout; setTimeout = (act, ms) => slow(act, ms / 10); 0");
    assert_eq!(browser.eval(&format!("await join('{url}').catch(({{ code }}) => code)")), "unreachable");
    // The same holds for a page that leaves before it has joined, and rejoins.
    let proxy = FaultProxy::new(server.address);
    browser.eval("setTimeout = slow; const firePageTransition = (type) => dispatchEvent(new PageTransitionEvent(type, { persisted: true })); 0");
    browser.eval(&format!(
        "const entering = join('ws://{}/ws/tea', {{ id: 'A' }}); firePageTransition('pagehide'); firePageTransition('pageshow');
        const a = await entering; 0",
        proxy.address
    ));
    eventually("the group exists", || server.metric("peers") == 1.0);
    close(browser);
}

#[test]
fn duplicated_descriptions_are_applied_once() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page(&server, &[]);
    // Descriptions arrive twice. An answer may be delayed until the next offer and arrive before and after it.
    browser.eval(
        r#"let waits = false, answer;
        const { set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onmessage");
        Object.defineProperty(WebSocket.prototype, "onmessage", {
            set(listener) {
                set.call(this, listener && ((event) => {
                    const { type, sdp } = JSON.parse(event.data);
                    if (type === "answer" && waits) return answer = event;
                    const all = type === "offer" && answer ? [answer, event, answer] : sdp ? [event, event] : [event];
                    answer = undefined;
                    all.forEach(listener);
                }));
            },
        });
        const offers = () => new Set(sent.filter(({ type }) => type === "offer").map(({ sdp }) => sdp.sdp)).size;
        const a = await enter("A"), b = await enter("B"); 0"#,
    );
    browser.wait_until("meet(a, b) && isStable(a, b)");
    assert_eq!(browser.eval("offers()"), 1);
    browser.eval(
        "const before = peer(b).pc;
        waits = true;
        peer(b).pc.addTrack(silence, stream); 0",
    );
    browser.wait_until("answer");
    browser.eval(
        "waits = false;
        peer(a).pc.addTrack(new AudioContext().createMediaStreamDestination().stream.getTracks()[0], stream); 0",
    );
    browser.wait_until("!answer && isStable(a, b) && receives(a).length === 1 && receives(b).length === 1");
    assert_eq!(browser.eval("errors"), json!([]));
    assert_eq!(browser.eval("peer(b).pc === before"), true);
    close(browser);
}

#[test]
fn delayed_message_does_not_count_as_an_answer() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let wires = [FaultProxy::new(server.address)];
    let mut browser = page(&server, &wires);
    browser.eval("const a = await enter('A'); let lost; a.addEventListener('offline', () => lost = performance.now()); 0");
    wires[0].black_hole();
    // A resumed page receives messages that arrived during its suspension.
    browser.eval(
        r#"dispatchEvent(new Event('online'));
        const at = performance.now();
        sockets[0].onmessage({ data: '{"type":"peerLeft","id":"B"}' }); 0"#,
    );
    browser.wait_until("lost");
    assert_eq!(browser.eval("lost < at + 15000"), true);
    close(browser);
}

#[test]
fn liveness_check_does_not_request_new_credentials() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let secret = std::env::temp_dir().join(format!("noroshi-turn-secret-{}", std::process::id()));
    std::fs::write(&secret, "open-sesame").unwrap();
    let (server, _stderr) =
        run(&format!(r#"exec "$0" --ice-server turn:127.0.0.1:9 --turn-secret-file {}"#, secret.display()));
    std::fs::remove_file(&secret).unwrap();
    let mut browser = page_with_a_mesh(&server);
    let fragment = r"/^a=ice-ufrag:(.*)/m.exec(peer(a).pc.localDescription.sdp)[1]";
    let before = browser.eval(fragment);
    // Credentials change every second.
    browser.eval("await new Promise((done) => setTimeout(done, 1500)); const before = sent.length; 0");
    browser.eval("dispatchEvent(new Event('online')); await new Promise((done) => setTimeout(done, 500)); 0");
    assert_eq!(browser.eval("sent.length - before"), 2);
    browser.eval("peer(a).pc.addTrack(silence, stream); 0");
    browser.wait_until("isStable(a, b) && receives(b).includes('audio')");
    assert_eq!(browser.eval(fragment), before);
    close(browser);
}

#[test]
fn all_waiters_for_queue_space_are_notified() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(OPEN);
    let mut browser = page_with_a_mesh(&server);
    browser.eval(
        "const fill = () => { for (let i = 0; i < 100; i++) peer(a).send(new Uint8Array(65536)); };
        fill();
        const all = Promise.all([peer(a).drained(), peer(a).drained(65536), peer(a).drained(1 << 20)]);
        await all; 0",
    );
    assert_eq!(browser.eval("peer(a).bufferedAmount"), 0);
    browser.eval("fill(); const last = peer(a).drained(); a.leave(); await last; 0");
    close(browser);
}
