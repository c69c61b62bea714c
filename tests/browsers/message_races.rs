//! The client library with duplicated, late and invalid messages.

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::CHROMIUM;
use crate::common::process::run as start_server;
use crate::library_page::{chromium, close, close_after_errors, run};
use serde_json::json;

/// What all tests do with the recorded messages of B, whose WebSocket is the second one.
const SEND_AS_B: &str = "(Object.assign(globalThis, {
    sendAsB: (message) => sockets[1].send(JSON.stringify({ id: 'B', target_id: 'A', ...message })),
    connections: () => [peer('A', 'B').pc, peer('B', 'A').pc],
    flush: async () => { FLUSH },
    isUnchanged: () => connections().every((pc, i) => pc === before[i]),
}), 0)";

/// Waits until everything that was sent before has been delivered to A and handled: A handles one message after the other,
/// and a negotiation after all of them.
const FLUSH: &str = "
    sendAsB({ type: 'candidateAdd', candidate: { candidate: 'flush' } });
    await until(() => JSON.stringify(delivered.at(-1)).includes('flush'));
    delivered.push({});
    const share = rooms.A.share(sound());
    await until(() => isMesh('A', 'B') && receives(peer('B', 'A'), 'audio') === 1);
    share.stop();
    await until(() => isMesh('A', 'B') && receives(peer('B', 'A'), 'audio') === 0);";

#[test]
fn duplicated_messages_have_no_effect() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    for how in ["join", "connect"] {
        run(
            &mut browser,
            &format!(
                "class Doubling extends WebSocket {{
                    set onmessage(listener) {{
                        super.onmessage = listener && ((event) => {{
                            listener(event);
                            // A message of the peer.
                            if (JSON.parse(event.data).id) listener(event);
                        }});
                    }}
                }}
                globalThis.created = 0;
                class Counting extends RTCPeerConnection {{
                    constructor(configuration) {{ super(configuration); created += 1; }}
                }}
                const options = {{ WebSocket: Doubling, RTCPeerConnection: Counting }};
                for (const id of 'AB') {{
                    await enter(id, options, {how});
                    rooms[id].share(sound());
                }}"
            ),
        );
        browser.wait_until("isMesh('A', 'B') && receives(peer('A', 'B'), 'audio') === 1 && receives(peer('B', 'A'), 'audio') === 1");
        // Each room creates one at first, to check its configuration.
        assert_eq!(browser.eval("created"), 4, "{how}");
        assert_eq!(
            browser.eval("events.A.filter((it) => it !== 'online')"),
            json!(["peer B", "open B"]),
            "{how}"
        );
        browser.eval("(rooms.A.leave(), rooms.B.leave(), events.A = [], events.B = [], 0)");
    }
    close(&mut browser);
}

#[test]
fn late_messages_of_earlier_connections_have_no_effect() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    browser.eval(&SEND_AS_B.replace("FLUSH", FLUSH));
    run(&mut browser, "for (const id of 'AB') await enter(id, { WebSocket: RecordingSocket });");
    browser.wait_until("isMesh('A', 'B')");
    // A second connection, which B begins.
    run(
        &mut browser,
        "globalThis.old = sent.filter(({ id, type }) => id === 'B' && /offer|candidateAdd/.test(type));
        events.A = []; events.B = [];
        peer('A', 'B').pc.close();",
    );
    browser.wait_until("events.A.includes('open B') && events.B.includes('open A') && isMesh('A', 'B')");
    assert_eq!(browser.eval("old[0].type"), "offer");
    let found = run(
        &mut browser,
        "globalThis.before = connections();
            const count = delivered.length;
            // The first offer of the earlier connection, and its candidates.
            for (const message of old) sendAsB(message);
            await flush();
            const all = [isUnchanged()];
            // An offer that is meant for an earlier connection of A, from the present one of B.
            const present = sent.findLast(({ id, type }) => id === 'B' && /offer|answer/.test(type)).sdp;
            sendAsB({ type: 'offer', sdp: { ...present, type: 'offer', sdp: old[0].sdp.sdp, to: 'earlier.1', seq: 99 } });
            // An answer to an offer that was never made, and one for another connection.
            sendAsB({ type: 'answer', sdp: { ...present, type: 'answer', seq: 98, offer: 97, to: old[0].sdp.from } });
            await flush();
            all.push(isUnchanged(), delivered.length > count);
            return all;",
    );
    assert_eq!(found, json!([true, true, true]));
    browser.wait_until("isMesh('A', 'B')");
    browser.eval("(rooms.A.share(sound()), rooms.B.share(sound()), 0)");
    browser.wait_until("isMesh('A', 'B') && receives(peer('A', 'B'), 'audio') === 1 && receives(peer('B', 'A'), 'audio') === 1");
    assert_eq!(browser.eval("isUnchanged()"), true);
    close(&mut browser);
}

#[test]
fn invalid_messages_end_no_connection() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    browser.eval(&SEND_AS_B.replace("FLUSH", FLUSH));
    run(&mut browser, "for (const id of 'AB') await enter(id, { WebSocket: RecordingSocket });");
    browser.wait_until("isMesh('A', 'B')");
    let found = run(
        &mut browser,
        "globalThis.before = connections();
            const present = sent.findLast(({ id, type }) => id === 'B' && /offer|answer/.test(type)).sdp;
            const candidates = [
                'a|b', null, 7, [], {}, { candidate: 'a|b' }, { candidate: '|' }, { candidate: '}|{' }, { candidate: 7 },
                { from: present.from, candidate: 'candidate:1 1 udp 1 x|y 9 typ host', sdpMid: '0' }, { from: 7, to: {} },
                { from: present.from, candidate: 'candidate:1 1 udp 1 192.0.2.1 9 typ host', sdpMid: 'none' },
            ];
            for (const candidate of candidates) sendAsB({ type: 'candidateAdd', candidate });
            const rollback = { type: 'rollback', sdp: 'v=0', from: present.from };
            for (const sdp of [null, 7, 'v=0', [], {}, { type: 'offer' }, { type: 'offer', sdp: 7 }, rollback]) {
                sendAsB({ type: 'offer', sdp });
                sendAsB({ type: 'answer', sdp });
            }
            await flush();
            return isUnchanged();",
    );
    assert_eq!(found, true);
    assert_eq!(browser.eval("errors"), json!([]));
    // An offer that the browser refuses is an error with its peer, and ends no other connection.
    run(
        &mut browser,
        "events.A = [];
        globalThis.invalid = new WebSocket(roomUrl);
        const tell = (message) => invalid.send(JSON.stringify({ id: 'invalid', ...message }));
        invalid.onopen = () => tell({ type: 'join' });
        invalid.onmessage = ({ data }) => {
            if (JSON.parse(data).type !== 'joined') return;
            tell({ type: 'offer', target_id: 'A', sdp: { type: 'offer', sdp: 'v=0', from: 'invalid.1', seq: 1 } });
        };",
    );
    browser.wait_until("errors.length > 0");
    browser.eval("(globalThis.remaining = peer('A', 'invalid'), invalid.close())");
    browser.wait_until("events.A.includes('left invalid left')");
    assert_eq!(
        browser.eval("errors.map(([id, other, code]) => [id, other, code])"),
        json!([["A", "invalid", "connection_failed"]])
    );
    assert_eq!(
        browser.eval("[isUnchanged(), remaining.state, isMesh('A', 'B')]"),
        json!([true, "closed", true])
    );
    close_after_errors(&mut browser);
}

#[test]
fn stored_candidates_may_contain_the_separator_and_be_invalid() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    // A client without the library, whose candidates are stored with its offer until A comes.
    run(
        &mut browser,
        "const socket = new WebSocket(roomUrl), pc = new RTCPeerConnection();
        const tell = (message) => socket.send(JSON.stringify({ id: 'foreign', ...message }));
        const channel = pc.createDataChannel('', { negotiated: true, id: 0 });
        channel.onmessage = ({ data }) => { globalThis.heard = data; channel.send('to the library'); };
        globalThis.foreign = pc;
        socket.onopen = () => tell({ type: 'connect' });
        socket.onmessage = async ({ data }) => {
            const { type, sdp, candidate } = JSON.parse(data);
            if (type === 'offer') {
                await pc.setLocalDescription();
                tell({ type: 'offer', sdp: pc.localDescription });
                for (const candidate of [{ candidate: 'a|b' }, { candidate: '\"}|{\"' }, '|', '\\\\\"|', ['|'], null]) {
                    tell({ type: 'candidateAdd', candidate });
                }
                globalThis.isOffered = true;
            } else if (type === 'answer') {
                await pc.setRemoteDescription(JSON.parse(sdp));
            } else if (type === 'candidate') {
                await pc.addIceCandidate(JSON.parse(candidate)).catch(() => {});
            }
        };
        pc.onicecandidate = ({ candidate }) => {
            if (candidate) tell({ type: 'candidateAdd', candidate });
            else globalThis.isGathered = true;
        };",
    );
    browser.wait_until("globalThis.isGathered");
    run(&mut browser, "await enter('A', { WebSocket: RecordingSocket }, connect);");
    browser.wait_until("peer('A', 'foreign')?.alive");
    assert_eq!(browser.eval("delivered.some(({ type, candidate }) => type === 'candidate' && candidate.includes('a|b') && candidate.includes('typ host'))"), true);
    browser.eval("rooms.A.send('to the foreign client')");
    browser.wait_until("received.A.includes('foreign: to the library')");
    assert_eq!(browser.eval("heard"), "to the foreign client");
    browser.wait_until("isSettled(peer('A', 'foreign'))");
    browser.eval("foreign.close()");
    browser.wait_until("rooms.A.peers.size === 0 || peer('A', 'foreign').state !== 'connected'");
    close(&mut browser);
}
