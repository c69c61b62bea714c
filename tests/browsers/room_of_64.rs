//! The default limits allow the client library in rooms with the maximum number of members.
//!
//! All members are in one page of a browser. A browser cannot hold four thousand peer connections, so a stub replaces
//! `RTCPeerConnection`. Its signaling behaves as Chromium's: it makes offers and answers of the size of those for data
//! channels, one after the other, trickles candidates, and is connected when both descriptions are set. Its data channels
//! deliver what is sent.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::process::{Running, eventually, run};

/// Members of a full room, by default.
const MEMBERS: usize = 64;

/// Time within which a mesh must be complete, on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// An `RTCPeerConnection` without a network. Both ends of a connection are in the page and find each other by the
/// `ice-ufrag` of their descriptions, so that one end detects when the other is closed.
const STUB: &str = r#"
    const byUfrag = new Map();
    // When candidates are found, in milliseconds after the description is set: host, STUN, TURN.
    const GATHERED = [1, 1, 2, 2, 3, 40, 45, 50, 60, 80, 100, 120, 150, 200, 250];
    // All members share one thread here, unlike in practice. So that this does not make them slow readers, the next
    // description is made when few bytes are in flight to all members together. Until then descriptions are made ten
    // times as fast as by Chromium.
    let underWay = 0;
    const UNDER_WAY_MAX = 150_000;
    const size = (text) => text.includes('"sdp"') ? 1500 : 400;
    globalThis.WebSocket = class extends WebSocket {
        constructor(url) {
            super(url);
            this.addEventListener("message", ({ data }) => {
                if (/"type":"(offer|answer|candidate|error)"/.test(data)) underWay -= size(data);
            });
        }
        send(text) {
            if (text.includes('"target_id"')) underWay += size(text);
            super.send(text);
        }
    };
    // For the same reason, members have ten times as long until they take another one for slow.
    const wait = globalThis.setTimeout;
    globalThis.setTimeout = (action, ms) => wait(action, ms >= 2000 ? ms * 10 : ms);
    const waiting = [];
    setInterval(() => underWay < UNDER_WAY_MAX && waiting.splice(0, 2).forEach((resolve) => resolve()), 4);
    const token = (length) => Array.from({ length }, () => "abcdefghijklmnopqrstuvwxyz"[Math.floor(Math.random() * 26)]).join("");

    class StubChannel extends EventTarget {
        readyState = "connecting"; bufferedAmount = 0; bufferedAmountLowThreshold = 0;
        // The channel at the other end.
        other = undefined;
        send(data) {
            const { other } = this;
            setTimeout(() => other?.readyState === "open" && other.onmessage?.({ data }), 1);
        }
        change(state, type) {
            this.readyState = state;
            const event = new Event(type);
            this[`on${type}`]?.(event);
            this.dispatchEvent(event);
        }
    }

    class StubConnection {
        signalingState = "stable"; connectionState = "new"; iceGatheringState = "new";
        localDescription = null; remoteDescription = null; currentLocalDescription = null; currentRemoteDescription = null;
        sctp = { maxMessageSize: 262144 };
        #ufrag = `${token(4)}${StubConnection.count += 1}`; #session = Math.floor(Math.random() * 1e15); #version = 1; #candidates = []; #isNegotiated = false;
        #isAskedFor = false; #channels = []; #other = null;

        static count = 0;
        constructor() { byUfrag.set(this.#ufrag, this); }
        getTransceivers() { return []; }
        createDataChannel(_label, { id }) { this.#negotiate(); return this.#channels[id] = new StubChannel(); }
        setConfiguration() {}
        restartIce() { throw new Error("a stub does not fail"); }

        #negotiate() {
            if (this.#isNegotiated || this.#isAskedFor) return;
            this.#isAskedFor = true;
            setTimeout(() => {
                this.#isAskedFor = false;
                if (this.signalingState === "stable" && !this.#isNegotiated) this.onnegotiationneeded?.(new Event("negotiationneeded"));
            });
        }

        #sdp() {
            return `v=0\r\no=- ${this.#session} ${++this.#version} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n` +
                `m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=ice-ufrag:${this.#ufrag}\r\n` +
                `a=ice-pwd:${"p".repeat(24)}\r\na=fingerprint:sha-256 ${"00:".repeat(32)}\r\na=setup:actpass\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n` +
                this.#candidates.map((candidate) => `a=${candidate}\r\n`).join("");
        }

        async setLocalDescription() {
            await new Promise((resolve) => waiting.push(resolve));
            const type = this.signalingState === "have-remote-offer" ? "answer" : "offer";
            if (this.signalingState === "closed") throw new DOMException("closed", "InvalidStateError");
            this.localDescription = { type, sdp: this.#sdp() };
            if (type === "answer") this.#agree(this.localDescription, this.remoteDescription);
            else this.#signal("have-local-offer");
            this.#gather();
        }

        async setRemoteDescription(description) {
            await new Promise((resolve) => setTimeout(resolve, 1));
            if (this.signalingState === "closed") throw new DOMException("closed", "InvalidStateError");
            this.remoteDescription = description;
            this.#other = byUfrag.get(/^a=ice-ufrag:(\S+)/m.exec(description.sdp)[1]);
            // An offer rolls back our own pending offer.
            if (description.type === "offer") this.#signal("have-remote-offer");
            else this.#agree(this.localDescription, description);
        }

        async addIceCandidate() {}

        #agree(ours, theirs) {
            [this.currentLocalDescription, this.currentRemoteDescription] = [ours, theirs];
            this.#isNegotiated = true;
            this.#signal("stable");
            if (this.connectionState !== "new") return;
            this.#become("connecting");
            setTimeout(() => this.#connect(), 50);
        }

        // Both ends are connected at the same time.
        #connect() {
            const other = this.#other;
            if (this.signalingState === "closed" || other?.signalingState !== "stable" || other.#other !== this) return;
            if (this.connectionState !== "connecting" || other.connectionState !== "connecting") return;
            for (const [end, remote] of [[this, other], [other, this]]) {
                end.#become("connected");
                end.#channels.forEach((channel, id) => channel.other = remote.#channels[id]);
            }
            for (const end of [this, other]) {
                end.#channels.forEach((channel) => channel.readyState === "connecting" && channel.change("open", "open"));
            }
        }

        #signal(state) {
            this.signalingState = state;
            this.onsignalingstatechange?.(new Event("signalingstatechange"));
        }

        #become(state) {
            this.connectionState = state;
            this.onconnectionstatechange?.(new Event("connectionstatechange"));
        }

        #gather() {
            if (this.iceGatheringState !== "new") return;
            this.iceGatheringState = "gathering";
            GATHERED.forEach((ms, i) => setTimeout(() => {
                if (this.signalingState === "closed") return;
                const candidate = `candidate:${1000000000 + i} 1 udp 2113937151 192.0.2.${i} ${50000 + i} typ srflx raddr 10.0.0.${i} rport ${50000 + i} ` +
                    `generation 0 ufrag ${this.#ufrag} network-cost 999`;
                this.#candidates.push(candidate);
                this.onicecandidate?.({ candidate: { candidate, sdpMid: "0", sdpMLineIndex: 0, usernameFragment: this.#ufrag } });
                if (i + 1 < GATHERED.length) return;
                this.iceGatheringState = "complete";
                this.onicecandidate?.({ candidate: null });
            }, ms));
        }

        close() {
            if (this.signalingState === "closed") return;
            [this.signalingState, this.connectionState] = ["closed", "closed"];
            byUfrag.delete(this.#ufrag);
            this.#channels.forEach((channel) => channel.readyState = "closed");
            const other = this.#other;
            setTimeout(() => other?.lose(), 5);
        }

        // The other end is closed.
        lose() {
            if (this.signalingState === "closed") return;
            for (const channel of this.#channels) {
                if (channel.readyState === "open") channel.change("closed", "close");
            }
        }
    }
    globalThis.RTCPeerConnection = StubConnection; 0"#;

const HELPERS: &str = r#"
    const { join } = await import("/noroshi.js");
    let rooms = [];
    const errors = [];
    const enter = async (number) => {
        const room = await join(url, { id: `member-${number}` });
        room.addEventListener("error", ({ error }) => errors.push(error.code ?? error.message));
        rooms[number] = room;
    };
    const isMesh = () => rooms.every((room) => room.peers.size === rooms.length - 1 && [...room.peers.values()].every((peer) => peer.state === "connected" && !peer.away));
    const numbers = Array.from({ length: MEMBERS }, (_, i) => i);
    0"#;

/// Opens a page with the stub and the library.
fn page(server: &Running) -> Chromium {
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", server.address));
    browser.eval(STUB);
    browser.eval(&format!("const url = 'ws://{}/ws/tea', MEMBERS = {MEMBERS}", server.address));
    browser.eval(HELPERS);
    browser
}

/// Waits until every member is connected to every other member.
fn wait_for_mesh(browser: &mut Chromium) {
    let began = Instant::now();
    while browser.eval("isMesh()") != true {
        assert!(
            began.elapsed() < WAIT_TIMEOUT,
            "members are not connected: {}",
            browser.eval("JSON.stringify(errors.slice(0, 9))")
        );
        sleep(Duration::from_millis(100));
    }
}

/// Asserts that no message was rejected and that the server has closed no connection.
fn nothing_was_refused(server: &Running) {
    for code in ["rate_limited", "peer_busy", "too_many", "id_taken", "room_full"] {
        assert_eq!(server.metric(&format!("errors_total{{code=\"{code}\"}}")), 0.0, "{code}");
    }
    for reason in ["rate_limited", "slow", "no_memory", "silent", "replaced", "too_big", "unregistered"] {
        assert_eq!(server.metric(&format!("closings_total{{reason=\"{reason}\"}}")), 0.0, "{reason}");
    }
}

#[test]
fn sixty_four_members_join_and_rejoin_without_errors() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let mut browser = page(&server);
    let left = |server: &Running| eventually("all have left", || server.metric("connections") == 0.0);

    browser.eval("for (const number of numbers) await enter(number); 0");
    wait_for_mesh(&mut browser);
    nothing_was_refused(&server);
    browser.eval("for (const room of rooms) room.leave(); rooms = []; underWay = 0; 0");
    left(&server);
    nothing_was_refused(&server);

    browser.eval("await Promise.all(numbers.map(enter)); 0");
    wait_for_mesh(&mut browser);
    nothing_was_refused(&server);

    // Half of the members leave and rejoin under their ids.
    browser.eval("for (const number of numbers.slice(0, 32)) rooms[number].leave(); await Promise.all(numbers.slice(0, 32).map(enter)); 0");
    wait_for_mesh(&mut browser);
    nothing_was_refused(&server);

    assert_eq!(server.metric("peers"), MEMBERS as f64);
    assert_eq!(browser.eval("errors"), serde_json::json!([]));
    browser.eval("for (const room of rooms) room.leave(); 0");
    left(&server);
    nothing_was_refused(&server);
    browser.assert_no_errors();
    browser.kill();
}
