//! The client library in real browsers: media that a room shares with its peers.

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::CHROMIUM;
use crate::common::firefox::FIREFOX;
use crate::common::process::run as start_server;
use crate::library_page::{chromium, close, enter_mesh, firefox, run};
use serde_json::json;

/// Runs a test in Chromium, then in Firefox.
fn in_both_browsers(test: impl Fn(&mut dyn Browser)) {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM, FIREFOX]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    test(&mut chromium(&server));
    test(&mut firefox(&server));
}

/// Functions that look at what arrives.
const MEDIA: &str = "(Object.assign(globalThis, {
    // The width of the video that a peer sends: 0 if none is decoded.
    widthOf: async (it) => {
        const stats = [...(await it.pc.getStats()).values()];
        return stats.find((each) => each.type === 'inbound-rtp' && each.kind === 'video')?.frameWidth ?? 0;
    },
    transceivers: (it) => it.pc.getTransceivers().length,
}), 0)";

#[test]
fn shared_media_reach_present_and_later_peers_until_stopped() {
    in_both_browsers(|browser| {
        browser.eval(MEDIA);
        run(browser, "await enter('A'); globalThis.camera = rooms.A.share(picture(32)); await enter('B');");
        browser.wait_until("isMesh('A', 'B') && receives(peer('B', 'A'), 'video') === 1");
        browser.wait_until("await widthOf(peer('B', 'A')) === 32");
        // Streams arrive with their tracks.
        let found = run(
            browser,
            "const stream = new MediaStream([...picture(48).getTracks(), ...sound().getTracks()]);
            const arrived = [];
            rooms.B.addEventListener('track', ({ peer, track, streams }) => arrived.push([peer.id, track.kind, streams[0]?.id === stream.id]));
            globalThis.both = rooms.A.share(stream);
            await until(() => arrived.length === 2);
            return [arrived.sort(), both.tracks.length, both.tracks.every((it) => stream.getTracks().includes(it))];",
        );
        assert_eq!(found[1], 2);
        assert_eq!(found[2], true);
        assert_eq!(found[0], json!([["A", "audio", true], ["A", "video", true]]));
        browser
            .wait_until("receives(peer('B', 'A'), 'video') === 2 && receives(peer('B', 'A'), 'audio') === 1");
        // A later peer gets everything.
        run(browser, "await enter('C');");
        browser.wait_until("isMesh('A', 'B', 'C') && receives(peer('C', 'A'), 'video') === 2 && receives(peer('C', 'A'), 'audio') === 1");
        // What is stopped ends at all, and the camera goes on.
        browser.eval("(both.stop(), both.stop(), 0)");
        for id in ["B", "C"] {
            browser.wait_until(&format!(
                "receives(peer('{id}', 'A'), 'video') === 1 && receives(peer('{id}', 'A'), 'audio') === 0"
            ));
        }
        assert_eq!(browser.eval("both.tracks.every((track) => track.readyState === 'live')"), true);
        // An offer of the other side, after that, and media in the other direction.
        browser.eval("(rooms.B.share(sound()), rooms.C.share(sound()), 0)");
        browser
            .wait_until("receives(peer('A', 'B'), 'audio') === 1 && receives(peer('A', 'C'), 'audio') === 1");
        browser
            .wait_until("receives(peer('B', 'C'), 'audio') === 1 && receives(peer('C', 'B'), 'audio') === 1");
        browser.wait_until("isMesh('A', 'B', 'C')");
        browser.eval("camera.stop()");
        browser
            .wait_until("receives(peer('B', 'A'), 'video') === 0 && receives(peer('C', 'A'), 'video') === 0");
        close(browser);
    });
}

#[test]
fn replaced_track_arrives_without_a_negotiation() {
    in_both_browsers(|browser| {
        browser.eval(MEDIA);
        enter_mesh(browser, &["A", "B"]);
        run(
            browser,
            "globalThis.share = rooms.A.share(picture(32)); globalThis.next = picture(64).getTracks()[0];",
        );
        browser.wait_until("isMesh('A', 'B') && await widthOf(peer('B', 'A')) === 32");
        let found = run(
            browser,
            "globalThis.before = peer('A', 'B').pc.localDescription.sdp;
            const refused = codeOfCall(() => share.replace(sound().getTracks()[0]));
            share.replace(next);
            return [refused, share.tracks.length, share.tracks[0] === next];",
        );
        assert_eq!(found, json!(["TypeError", 1, true]));
        browser.wait_until("await widthOf(peer('B', 'A')) === 64");
        assert_eq!(browser.eval("peer('A', 'B').pc.localDescription.sdp === before"), true);
        // A later peer gets the present track.
        run(browser, "await enter('C');");
        browser.wait_until("isMesh('A', 'B', 'C') && await widthOf(peer('C', 'A')) === 64");
        close(browser);
    });
}

#[test]
fn media_for_some_peers_reach_only_those_over_all_their_connections() {
    in_both_browsers(|browser| {
        browser.eval(MEDIA);
        enter_mesh(browser, &["A", "B", "C"]);
        browser.eval("(rooms.A.share(sound()), rooms.A.share(picture(), { to: peer('A', 'B') }), 0)");
        let is_right = "isMesh('A', 'B', 'C')
            && receives(peer('B', 'A'), 'video') === 1 && receives(peer('B', 'A'), 'audio') === 1
            && receives(peer('C', 'A'), 'video') === 0 && receives(peer('C', 'A'), 'audio') === 1";
        browser.wait_until(is_right);
        // After new connections.
        run(
            browser,
            "for (const id of 'ABC') events[id] = [];
            peer('B', 'A').pc.close();
            peer('C', 'A').pc.close();",
        );
        browser.wait_until(&format!(
            "events.A.filter((it) => it.startsWith('open')).length === 2 && {is_right}"
        ));
        // The receivers may be nobody, and somebody who comes later is not one of them.
        run(
            browser,
            "rooms.A.share(picture(), { to: [] }); rooms.A.share(picture(), { to: [peer('A', 'C')] }); await enter('D');",
        );
        browser.wait_until("isMesh('A', 'B', 'C', 'D') && receives(peer('D', 'A'), 'audio') === 1 && receives(peer('C', 'A'), 'video') === 1");
        assert_eq!(
            browser.eval("['B', 'C', 'D'].map((id) => receives(peer(id, 'A'), 'video'))"),
            json!([1, 1, 0])
        );
        close(browser);
    });
}

#[test]
fn hundred_shares_leave_a_description_of_the_first_size() {
    in_both_browsers(|browser| {
        browser.eval(MEDIA);
        enter_mesh(browser, &["A", "B"]);
        // On and off, first one after the other, then without waiting for the negotiation.
        let found = run(
            browser,
            "const stream = new MediaStream([...picture().getTracks(), ...sound().getTracks()]);
            const has = (count) => until(() => isMesh('A', 'B') && receives(peer('B', 'A'), 'video') === count
                && receives(peer('B', 'A'), 'audio') === count && sends(peer('A', 'B'), 'video') === count);
            const sizes = [];
            for (let i = 0; i < 100; i++) {
                const share = rooms.A.share(i % 2 ? stream : stream.clone());
                if (i < 10) {
                    await has(1);
                    sizes.push(peer('A', 'B').pc.localDescription.sdp.length, peer('B', 'A').pc.localDescription.sdp.length);
                }
                share.stop();
                if (i < 10) await has(0);
            }
            const last = rooms.A.share(stream);
            await has(1);
            sizes.push(peer('A', 'B').pc.localDescription.sdp.length, peer('B', 'A').pc.localDescription.sdp.length);
            const ratio = Math.max(...sizes) / Math.min(...sizes.slice(0, 2));
            return [ratio < 1.6, transceivers(peer('A', 'B')), transceivers(peer('B', 'A')), sizes];",
        );
        println!("{found}");
        assert_eq!(found[0], true, "{found}");
        assert_eq!((&found[1], &found[2]), (&json!(2), &json!(2)), "{found}");
        close(browser);
    });
}
