//! Pages with the client library, and functions in them that observe rooms.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::common::browser::Browser;
use crate::common::chromium::Chromium;
use crate::common::firefox::Firefox;
use crate::common::process::Running;

/// The pages come from other origins than that of a proxy.
pub const ANY_ORIGIN: &str = r#"exec "$0" --allow-origin "*""#;

/// What tests use in a page. All rooms of a test may be in one page.
const HELPERS: &str = r#"
    const rooms = {}, received = {}, events = {}, errors = [], rejected = [];
    addEventListener("unhandledrejection", ({ reason }) => rejected.push(String(reason)));
    const nameOf = ({ peer, reason }) => [peer?.id, reason].filter((it) => it !== undefined).join(" ");
    // Records what happens in a room: its events, except frequent ones, are "TYPE PEER REASON".
    function watch(room) {
        const { id } = room;
        rooms[id] = room;
        received[id] ??= [];
        events[id] ??= [];
        const recorded = ["peer", "open", "reconnecting", "left", "offline", "online", "closed", "error"];
        for (const type of recorded) {
            room.addEventListener(type, (event) => events[id].push(`${type} ${nameOf(event)}`.trim()));
        }
        room.addEventListener("message", ({ peer, data }) => received[id].push(`${peer.id}: ${data}`));
        room.addEventListener("track", ({ peer, track }) => received[id].push(`${peer.id} shows ${track.kind}`));
        room.addEventListener("error", ({ peer, error }) => errors.push([id, peer?.id, error.code, error.message]));
        return room;
    }
    async function enter(id, options = {}, how = join) {
        return watch(await how(options.url ?? roomUrl, { id, ...options }));
    }
    const peer = (id, other) => rooms[id].peers.get(other);
    const isSettled = (it) => it?.state === "connected" && !it.away && it.pc.signalingState === "stable";
    // Whether each of these rooms is connected to all others.
    const isMesh = (...ids) => ids.every((id) => rooms[id].online && rooms[id].peers.size === ids.length - 1
        && ids.every((other) => other === id || isSettled(peer(id, other))));
    const until = async (condition) => {
        while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
    };
    const codeOf = (promise) => promise.then(() => "", (error) => typeof error.code === "string" ? error.code : error.name);
    const codeOfCall = (call) => { try { call(); return ""; } catch (error) { return error.code ?? error.name; } };
    const picture = (width = 32) => {
        const canvas = Object.assign(document.createElement("canvas"), { width, height: 32 });
        const context = canvas.getContext("2d");
        setInterval(() => { context.fillStyle = `hsl(${Math.random() * 360}, 90%, 50%)`; context.fillRect(0, 0, width, 32); }, 50);
        return canvas.captureStream(20);
    };
    const sound = () => new AudioContext().createMediaStreamDestination().stream;
    const tone = () => {
        const context = new AudioContext(), oscillator = context.createOscillator();
        const destination = context.createMediaStreamDestination();
        oscillator.connect(destination);
        oscillator.start();
        return destination.stream;
    };
    // How many tracks of a kind a peer sends to us.
    const receives = (it, kind) => it.pc.getTransceivers()
        .filter((each) => each.receiver.track.kind === kind && each.currentDirection?.includes("recv")).length;
    const sends = (it, kind) => it.pc.getTransceivers()
        .filter((each) => each.sender.track?.kind === kind && each.currentDirection?.includes("send")).length;
    // A WebSocket class that records its instances, and their messages in both directions.
    const sockets = [], sent = [], delivered = [];
    class RecordingSocket extends WebSocket {
        constructor(url) {
            super(url);
            sockets.push(this);
            this.addEventListener("message", ({ data }) => delivered.push(JSON.parse(data)));
        }
        send(text) {
            sent.push(JSON.parse(text));
            super.send(text);
        }
    }
    "helpers""#;

/// Opens a page of the server with the library. The default room is `tea` at this address.
pub fn open(browser: &mut dyn Browser, server: &Running, address: SocketAddr) {
    browser.open(&format!("http://{}/healthz", server.address));
    // `eval` of Firefox takes a script with `await` and a space for a single expression.
    browser.eval(&HELPERS.replace("await ", "await\t"));
    browser.eval(&format!("globalThis.roomUrl = 'ws://{address}/ws/tea'"));
    browser.eval("(Object.assign(globalThis, await import('/noroshi.js')), 0)");
}

/// Starts Chromium with the page that `open` opens.
pub fn chromium(server: &Running) -> Chromium {
    let [mut browser] = Chromium::start();
    open(&mut browser, server, server.address);
    browser
}

/// Starts Firefox with the page that `open` opens.
pub fn firefox(server: &Running) -> Firefox {
    let [mut browser] = Firefox::start();
    open(&mut browser, server, server.address);
    browser
}

/// Runs statements in an asynchronous function of the page, and returns what they return.
#[track_caller]
pub fn run(browser: &mut dyn Browser, statements: &str) -> Value {
    browser.eval(&format!("await (async () => {{ {statements} }})()"))
}

/// Enters the default room under each of these ids, and waits until all are connected to each other.
#[track_caller]
pub fn enter_mesh(browser: &mut dyn Browser, ids: &[&str]) {
    let ids = json!(ids);
    run(browser, &format!("for (const id of {ids}) await enter(id);"));
    browser.wait_until(&format!("isMesh(...{ids})"));
}

/// Leaves all rooms. Asserts that neither the library nor the console has reported an error.
#[track_caller]
pub fn close(browser: &mut dyn Browser) {
    assert_eq!(browser.eval("errors"), json!([]));
    close_after_errors(browser);
}

/// Leaves all rooms. Asserts that the console has no error, except for failed requests.
#[track_caller]
pub fn close_after_errors(browser: &mut dyn Browser) {
    browser.eval("Object.values(rooms).forEach((room) => room.leave())");
    assert_eq!(browser.eval("rejected"), json!([]));
    browser.assert_no_errors();
}
