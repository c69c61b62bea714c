//! The client library in real browsers: messages of every kind and size.

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::CHROMIUM;
use crate::common::firefox::FIREFOX;
use crate::common::process::run as start_server;
use crate::library_page::{chromium, close, close_after_errors, enter_mesh, firefox, run};
use serde_json::json;

/// Functions that compare messages. A fingerprint has the type and the whole content.
const MESSAGES: &str = r#"(Object.assign(globalThis, {
    fingerprint: async (data) => {
        const digest = async (bytes) => {
            const hash = await crypto.subtle.digest("SHA-256", bytes);
            return [bytes.byteLength, ...new Uint8Array(hash)].join();
        };
        if (data instanceof File) return ["File", data.name, data.type, data.lastModified, await digest(await data.arrayBuffer())];
        if (data instanceof Blob) return ["Blob", data.type, await digest(await data.arrayBuffer())];
        if (data instanceof ArrayBuffer) return ["ArrayBuffer", await digest(data)];
        if (ArrayBuffer.isView(data)) {
            return ["ArrayBuffer", await digest(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength))];
        }
        const text = typeof data === "string" ? data : JSON.stringify(data);
        return [typeof data === "string" ? "string" : "JSON", await digest(new TextEncoder().encode(text))];
    },
    // Bytes without a period, so that exchanged pieces are noticed.
    noise: (size) => {
        const bytes = new Uint8Array(size);
        let state = 1;
        for (let i = 0; i < size; i += 1) {
            state = Math.imul(state, 1664525) + 1013904223 >>> 0;
            bytes[i] = state >>> 24;
        }
        return bytes;
    },
    small: () => [
        "", "hello", "\u0001", '\u0001{"json":1}', '\u0001{"begin":1,"kind":"text","size":3}', "é\u0000\ud83d\ude00",
        null, true, 0, -1.5, [], {}, { a: [1, { b: null }] }, [["\u0001"]],
        new ArrayBuffer(0), new Uint8Array([1, 0x6e, 0x72, 0x73]), new Uint8Array([1, 0x6e, 0x72, 0x73, 0, 0, 0, 1, 9]).buffer,
        noise(9).subarray(2, 5), new DataView(noise(60_000).buffer, 7, 50_000), noise(65_536),
        "x".repeat(65_536), new Float64Array([0.5, 1e300]),
    ],
}), 0)"#;

/// Sends everything that `send` and `write` take from one id to another one, which may be in another page.
pub fn send_every_kind(sender: &mut dyn Browser, receiver: Option<&mut dyn Browser>, from: &str, to: &str) {
    let send = "
        const to = peer('FROM', 'TO'), all = [];
        for (const data of small()) { to.send(data); all.push(data); }
        for (const data of small()) { await to.write(data); all.push(data); }
        const large = [
            noise(3_000_001), '狼煙'.repeat(400_000), Array.from({ length: 100_000 }, (_, i) => ({ i })),
            new Blob([noise(1_000_000)], { type: 'image/x-noise' }), new Blob([]), new Blob(['short']),
            new File([noise(700_000)], 'smoke.bin', { type: 'application/x-smoke', lastModified: 1_600_000_000_000 }),
            new File([], 'empty'), '\\u0001' + 'x'.repeat(300_000),
        ];
        for (const data of large) { await to.write(data); all.push(data); }
        to.send('the end');
        return Promise.all(all.map(fingerprint));";
    let send = &send.replace("FROM", from).replace("TO", to);
    let listen = "(globalThis.isOver = false, globalThis.arrived = [], rooms.TO.addEventListener('message', ({ data, reliable }) => {
        if (data !== 'the end') globalThis.arrived.push(data);
        else globalThis.isOver = reliable;
    }))";
    let listen = &listen.replace("TO", to);
    let arrived = "return Promise.all(arrived.map(fingerprint));";
    sender.eval(MESSAGES);
    let (sent, found) = match receiver {
        None => {
            sender.eval(listen);
            let sent = run(sender, send);
            sender.wait_until("globalThis.isOver");
            (sent, run(sender, arrived))
        }
        Some(receiver) => {
            receiver.eval(MESSAGES);
            receiver.eval(listen);
            let sent = run(sender, send);
            receiver.wait_until("globalThis.isOver");
            (sent, run(receiver, arrived))
        }
    };
    assert_eq!(sent.as_array().unwrap().len(), 53);
    assert_eq!(sent, found);
}

/// Runs a test in Chromium, then in Firefox, with A and B connected.
fn in_both_browsers(test: impl Fn(&mut dyn Browser)) {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM, FIREFOX]) else { return };
    let run_in = |browser: &mut dyn Browser| {
        enter_mesh(browser, &["A", "B"]);
        browser.eval(MESSAGES);
        test(browser);
    };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    run_in(&mut chromium(&server));
    run_in(&mut firefox(&server));
}

#[test]
fn messages_of_every_kind_and_size_arrive() {
    in_both_browsers(|browser| {
        send_every_kind(browser, None, "A", "B");
        close(browser);
    });
}

#[test]
fn large_message_reports_progress_on_both_sides() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const sent = [], received = [], file = new File([noise(400_000)], 'a.bin'), arrived = rooms.B.once('message');
            rooms.B.addEventListener('progress', ({ peer, received: bytes, size, name }) => received.push([peer.id, bytes, size, name]));
            await peer('A', 'B').write(file, { onprogress: ({ sent: bytes, size }) => sent.push([bytes, size]) });
            await arrived;
            const isRising = (all) => all.every((it, i) => i === 0 || it > all[i - 1]);
            const [last] = received.slice(-1);
            return [
                sent.length, sent.at(-1), isRising(sent.map(([bytes]) => bytes)),
                received.length, last, isRising(received.map(([, bytes]) => bytes)),
            ];",
        );
        assert_eq!(found, json!([7, [400_000, 400_000], true, 7, ["A", 400_000, 400_000, "a.bin"], true]));
        close(browser);
    });
}

#[test]
fn aborted_message_does_not_arrive_and_holds_nothing_up() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const to = peer('A', 'B'), data = noise(30_000_000), reason = new Error('changed my mind');
            const controller = new AbortController();
            const writing = to.write(data, { signal: controller.signal, onprogress: ({ sent }) => {
                if (sent > 3_000_000) controller.abort(reason);
            } });
            const error = await writing.catch((error) => error);
            const early = await codeOf(to.write(data, { signal: AbortSignal.abort() }));
            const kept = [];
            rooms.B.addEventListener('message', ({ data }) => kept.push(data.byteLength ?? data));
            await Promise.all([to.write(noise(200_000)), to.write(noise(300_000))]);
            to.send('the end');
            await until(() => kept.includes('the end'));
            return [error === reason, early, kept.slice(0, -1).sort(), kept.at(-1)];",
        );
        assert_eq!(found, json!([true, "AbortError", [200_000, 300_000], "the end"]));
        close(browser);
    });
}

#[test]
fn messages_over_the_limit_of_the_receiver_are_refused() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let mut browser = chromium(&server);
    browser.eval(MESSAGES);
    run(&mut browser, "await enter('A'); await enter('B', { receiveBytesMax: 500_000 });");
    browser.wait_until("isMesh('A', 'B')");
    let found = run(
        &mut browser,
        "const to = peer('A', 'B');
        const outcomes = [];
        for (const size of [500_001, 20_000_000]) {
            const error = await to.write(noise(size)).catch((error) => error);
            // A message that is sent before the refusal arrives is not awaited by anybody.
            outcomes.push(error?.code ?? 'sent');
        }
        await to.write(noise(500_000));
        to.send('the end');
        await until(() => received.B.includes('A: the end'));
        return [outcomes[1], received.B.length];",
    );
    assert_eq!(found, json!(["too_big", 2]));
    close(&mut browser);
}

#[test]
fn send_reports_what_it_cannot_send() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const c = watch(await join(roomUrl, { id: 'C' }));
            const early = codeOfCall(() => c.peers.get('A').send('too early'));
            const earlyWrite = await codeOf(c.peers.get('A').write('too early'));
            const reached = rooms.A.send('hello').map(({ id }) => id).sort();
            const isUnreliableEarly = c.peers.get('A').sendUnreliable('too early');
            await until(() => isMesh('A', 'B', 'C'));
            const to = peer('A', 'C'), max = to.maxMessageSize;
            return [early, earlyWrite, isUnreliableEarly, reached, [
                () => to.send(new Blob(['x'])), () => to.send(undefined), () => to.send(() => {}), () => to.send(1n),
                () => to.send('é'.repeat(max / 2 + 1)), () => to.send(new Uint8Array(max + 1)),
                () => to.sendUnreliable({ a: 1 }), () => to.sendUnreliable('x'.repeat(16_385)),
            ].map(codeOfCall), max >= 65_536];",
        );
        let codes = [
            "TypeError",
            "TypeError",
            "TypeError",
            "TypeError",
            "too_big",
            "too_big",
            "TypeError",
            "too_big",
        ];
        assert_eq!(found, json!(["not_open", "not_open", false, ["B"], codes, true]));
        // Some peers, and whom it has reached.
        let found = run(
            browser,
            "const [b, c] = [peer('A', 'B'), peer('A', 'C')];
            for (const id of 'BC') received[id] = [];
            const ids = (peers) => peers.map(({ id }) => id).sort();
            const reached = [rooms.A.send(1), rooms.A.send(2, { to: c }), rooms.A.send(3, { to: [b, c] }), rooms.A.send(4, { to: [] })];
            rooms.A.send('the end');
            await until(() => received.B.length === 3 && received.C.length === 4);
            return [reached.map(ids), received.B, received.C];",
        );
        assert_eq!(
            found,
            json!([
                [["B", "C"], ["C"], ["B", "C"], []],
                ["A: 1", "A: 3", "A: the end"],
                ["A: 1", "A: 2", "A: 3", "A: the end"]
            ])
        );
        // A failure concerns one peer.
        let found = run(
            browser,
            "const b = peer('A', 'B'), { send } = RTCDataChannel.prototype;
            let isFirst = true;
            RTCDataChannel.prototype.send = function (data) {
                if (data === 'hello' && isFirst) { isFirst = false; throw new Error('full'); }
                send.call(this, data);
            };
            const reached = rooms.A.send('hello').length;
            RTCDataChannel.prototype.send = send;
            return [reached, errors.map(([id, other, , message]) => [id, other, message])];",
        );
        assert_eq!(found, json!([1, [["A", "B", "full"]]]));
        close_after_errors(browser);
    });
}

#[test]
fn unreliable_messages_arrive_and_are_marked() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const heard = [];
            rooms.B.addEventListener('message', ({ data, reliable }) => heard.push([data.byteLength ?? data, reliable]));
            const to = peer('A', 'B');
            await until(() => to.sendUnreliable('ready') && heard.length > 0);
            const outcomes = [to.sendUnreliable('text'), to.sendUnreliable(noise(16_384)), to.sendUnreliable('\\u0001{\"json\":1}')];
            to.send('reliable');
            await until(() => heard.some(([data]) => data === 'reliable') && heard.some(([data]) => data === 16_384));
            await until(() => heard.some(([data]) => String(data).startsWith('\\u0001')));
            // Congested: late positions of a game are useless.
            let count = 0;
            while (to.sendUnreliable(noise(16_384)) && count < 10_000) count += 1;
            return [outcomes, heard.filter(([data]) => data !== 'ready').sort(), count < 10_000];",
        );
        let heard =
            json!([["\u{1}{\"json\":1}", false], [16_384, false], ["reliable", true], ["text", false]]);
        assert_eq!(found, json!([[true, true, true], heard, true]));
        close(browser);
    });
}

#[test]
fn all_waiters_for_queue_space_are_notified() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const to = peer('A', 'B'), data = noise(65_536);
            const fill = () => { for (let i = 0; i < 100; i++) to.send(data); };
            fill();
            const isFull = to.bufferedAmount > 65_536;
            await Promise.all([to.drained(), to.drained(65_536), to.drained(1 << 20)]);
            const isEmpty = to.bufferedAmount === 0;
            fill();
            const controller = new AbortController(), aborted = codeOf(to.drained(0, { signal: controller.signal }));
            controller.abort();
            // The end of the room ends the waiting, too.
            const last = to.drained(), writing = codeOf(to.write(noise(20_000_000)));
            rooms.A.leave();
            await last;
            return [isFull, isEmpty, await aborted, await writing];",
        );
        assert_eq!(found, json!([true, true, "AbortError", "not_open"]));
        close(browser);
    });
}

#[test]
fn statistics_tell_the_route() {
    in_both_browsers(|browser| {
        let found = run(
            browser,
            "const to = peer('A', 'B');
            to.send(noise(50_000));
            await until(() => received.B.length === 1);
            let stats;
            do stats = await to.stats(); while (stats.sent < 50_000 || stats.rtt === undefined);
            const { route, local, remote, rtt, received: bytes } = stats;
            rooms.A.leave();
            const after = await to.stats();
            return [route, /host|prflx/.test(local), /host|prflx/.test(remote), rtt >= 0 && rtt < 60_000, bytes > 0, after.route ?? null];",
        );
        assert_eq!(found, json!(["direct", true, true, true, true, null]));
        close(browser);
    });
}
