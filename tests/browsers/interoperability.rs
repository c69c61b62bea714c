//! Firefox with Firefox and with Chromium, in either order: all functions of the client library.

use std::path::Path;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run as start_server};
use crate::library_messages::send_every_kind;
use crate::library_page::{close, open, run};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The page with the room A, and the one with the room B.
struct Pair<'a> {
    pages: [&'a mut dyn Browser; 2],
}

const IDS: [&str; 2] = ["A", "B"];

/// An expression for the peer of a page, which has one room.
const PEER: &str = "[...Object.values(rooms)[0].peers.values()][0]";

impl Pair<'_> {
    fn open(&mut self, server: &Running) {
        for page in &mut self.pages {
            open(*page, server, server.address);
        }
    }

    fn enter(&mut self, how: &str) {
        for (page, id) in self.pages.iter_mut().zip(IDS) {
            run(*page, &format!("await enter('{id}', {{ data: 'data of {id}' }}, {how});"));
        }
        self.wait_until(&format!("isSettled({PEER})"));
    }

    /// Waits until an expression is truthy in both pages.
    #[track_caller]
    fn wait_until(&mut self, expression: &str) {
        for page in &mut self.pages {
            page.wait_until(expression);
        }
    }

    fn eval(&mut self, expression: &str) -> [Value; 2] {
        let [first, second] = &mut self.pages;
        [first.eval(expression), second.eval(expression)]
    }

    /// Sends a message from each page, and waits until it is in the other one.
    #[track_caller]
    fn exchange(&mut self, text: &str) {
        for (page, id) in self.pages.iter_mut().zip(IDS) {
            let reached = page.eval(&format!("rooms.{id}.send('{text}').length"));
            assert_eq!(reached, 1);
        }
        self.wait_until(&format!("Object.values(received)[0].some((it) => it.endsWith(': {text}'))"));
    }

    fn test_messages(&mut self) {
        assert_eq!(self.eval(&format!("{PEER}.data")), [json!("data of B"), json!("data of A")]);
        let [first, second] = &mut self.pages;
        send_every_kind(*first, Some(*second), "A", "B");
        send_every_kind(*second, Some(*first), "B", "A");
        self.eval(&format!(
            "globalThis.unreliable = setInterval(() => {PEER}.sendUnreliable('unreliable'), 50), 0"
        ));
        self.wait_until("Object.values(received)[0].some((it) => it.endsWith(': unreliable'))");
        self.eval("clearInterval(unreliable)");
        self.wait_until(&format!(
            "await {PEER}.stats().then(({{ route, rtt, local, remote, sent, received }}) =>
                route === 'direct' && rtt >= 0 && local && remote && sent > 1e6 && received > 1e6)"
        ));
    }

    fn test_media(&mut self) {
        let width = format!(
            "await {PEER}.pc.getStats().then((stats) =>
                [...stats.values()].find((it) => it.type === 'inbound-rtp' && it.kind === 'video')?.frameWidth)"
        );
        self.eval("(globalThis.room = Object.values(rooms)[0], globalThis.shares = { video: room.share(picture(48)) }, 0)");
        self.wait_until(&format!("{width} === 48"));
        self.eval("shares.video.replace(picture(64).getTracks()[0])");
        self.wait_until(&format!("{width} === 64"));
        let audio = format!(
            "await {PEER}.pc.getStats().then((stats) =>
                [...stats.values()].some((it) => it.type === 'inbound-rtp' && it.kind === 'audio' && it.packetsReceived > 0))"
        );
        self.eval("(shares.audio = room.share(tone()), 0)");
        self.wait_until(&audio);
        // Both pages change something at the same time.
        for round in 0..8 {
            let kind = ["video", "audio"][round % 2];
            self.eval(&format!(
                "(shares.{kind} ? shares.{kind}.stop() : 0,
                shares.{kind} = shares.{kind} ? undefined : room.share({}), 0)",
                if kind == "video" { "picture()" } else { "sound()" }
            ));
            let is_on = usize::from(round % 4 >= 2);
            self.wait_until(&format!(
                "isSettled({PEER}) && receives({PEER}, '{kind}') === {is_on} && sends({PEER}, '{kind}') === {is_on}"
            ));
        }
        self.wait_until(&format!("{width} > 0"));
        assert_eq!(self.eval(&format!("{PEER}.pc.getTransceivers().length")), [json!(2), json!(2)]);
        self.exchange("after media");
    }

    /// Each page is reloaded.
    fn test_reloads(&mut self, server: &Running) {
        for i in [0, 1] {
            let id = IDS[i];
            self.pages[1 - i].eval("Object.values(events)[0].length = 0");
            open(self.pages[i], server, server.address);
            run(self.pages[i], &format!("await enter('{id}', {{ data: 'again' }});"));
            self.wait_until(&format!("isSettled({PEER})"));
            // What is still shared comes again.
            let counts = format!("['video', 'audio'].map((kind) => receives({PEER}, kind)).join()");
            let expected = if i == 0 { "1,1" } else { "0,0" };
            self.pages[i].wait_until(&format!("{counts} === '{expected}'"));
            let seen = self.pages[1 - i].eval("Object.values(events)[0]");
            assert_eq!(seen, json!([format!("left {id} left"), format!("peer {id}"), format!("open {id}")]));
            assert_eq!(self.pages[1 - i].eval(&format!("{PEER}.data")), "again");
            self.exchange(&format!("reload {i}"));
        }
    }
}

/// Runs all functions of the library between two browsers.
fn test_pair<'a>(first: &'a mut dyn Browser, second: &'a mut dyn Browser) {
    let (mut server, _stderr) = start_server(r#"exec "$0""#);
    let mut pair = Pair { pages: [first, second] };
    pair.open(&server);
    pair.enter("join");
    pair.exchange("hello");
    pair.test_messages();
    pair.test_media();
    pair.test_reloads(&server);

    // The server restarts, and the connection between the pages is unchanged.
    pair.eval(&format!("(globalThis.before = {PEER}.pc, 0)"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    pair.wait_until("Object.values(rooms)[0].state === 'offline'");
    pair.exchange("without a server");
    let (server, _stderr) = start_server(&format!(r#"exec "$0" -l {}"#, server.address));
    pair.wait_until(&format!("Object.values(rooms)[0].online && isSettled({PEER})"));
    assert_eq!(pair.eval(&format!("{PEER}.pc === before")), [json!(true), json!(true)]);
    pair.exchange("with another server");
    for page in &mut pair.pages {
        close(*page);
    }

    // In a pair.
    pair.open(&server);
    pair.enter("connect");
    pair.exchange("in a pair");
    for page in &mut pair.pages {
        close(*page);
    }
    test_glare_of_first_offers(&mut pair, &server);
    eventually("all connections are closed", || {
        ["connections", "peers", "rooms"].iter().all(|name| server.metric(name) == 0.0)
    });
}

/// Both pages make their first offers at the same time: the library makes another one if no answer has come.
fn test_glare_of_first_offers(pair: &mut Pair, server: &Running) {
    pair.open(server);
    for (page, id) in pair.pages.iter_mut().zip(IDS) {
        run(
            *page,
            &format!(
                "globalThis.isHolding = true;
                globalThis.offers = [];
                class Holding extends RecordingSocket {{
                    send(text) {{
                        const {{ type, sdp }} = JSON.parse(text);
                        if (type === 'offer') offers.push(sdp.from);
                        if (!isHolding || !/offer|answer|candidateAdd/.test(type)) super.send(text);
                    }}
                }}
                await enter('{id}', {{ WebSocket: Holding }});
                rooms.{id}.share(picture());
                rooms.{id}.share(sound());"
            ),
        );
    }
    pair.wait_until(&format!("offers.length > 0 && {PEER}.pc.signalingState === 'have-local-offer'"));
    pair.eval("(isHolding = false, sockets[0].dispatchEvent(new MessageEvent('message', { data: '{\"type\":\"error\",\"code\":\"rate_limited\",\"message\":\"\"}' })), 0)");
    pair.wait_until(&format!(
        "isSettled({PEER}) && receives({PEER}, 'video') === 1 && receives({PEER}, 'audio') === 1"
    ));
    pair.exchange("after glare");
    for page in &mut pair.pages {
        close(*page);
    }
}

/// The pairs of browsers run one after the other, because together they would overload a small machine.
#[test]
fn browsers_interoperate_in_either_order() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let [mut firefox, mut other] = Firefox::start();
    let [mut chromium] = Chromium::start();
    println!("Firefox and Firefox");
    test_pair(&mut firefox, &mut other);
    println!("Firefox and Chromium");
    test_pair(&mut firefox, &mut chromium);
    println!("Chromium and Firefox");
    test_pair(&mut chromium, &mut firefox);
}

const ONLINE: &str = "document.querySelector('#status')?.dataset.state === 'online'";

fn open_page(browser: &mut dyn Browser, server: &Running, name: &str) {
    browser.open(&format!("http://{}/?room=tea&name={name}", server.address));
    browser.wait_until(ONLINE);
}

fn click(browser: &mut dyn Browser, id: &str) {
    browser.eval(&format!("document.querySelector('#{id}').click()"));
}

/// Saves screenshots in the directory TEST_LOOKS for visual inspection.
#[test]
fn page_fits_every_width_and_color_scheme() {
    let Some(_browsers) = reserve_browsers(2, &[FIREFOX]) else { return };
    let (server, _stderr) = start_server(r#"exec "$0""#);
    let [mut ren] = Firefox::start();
    for colors in ["light", "dark", "forced"] {
        let [mut aoi] = Firefox::start_in(colors);
        open_page(&mut aoi, &server, "Aoi");
        open_page(&mut ren, &server, "A%20name%20of%20many%20long%20words%20unbreakable-as-they-are");
        let is_dark = aoi.eval("matchMedia('(prefers-color-scheme: dark)').matches");
        let is_forced = aoi.eval("matchMedia('(forced-colors: active)').matches");
        assert_eq!((is_dark, is_forced), (Value::from(colors == "dark"), Value::from(colors == "forced")));
        aoi.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
        click(&mut ren, "camera");
        aoi.type_text("#say", "Good evening!");
        aoi.wait_until("document.querySelector('.peer video').videoWidth > 0");
        for (width, height) in [(320, 900), (390, 844), (832, 700), (1100, 780)] {
            aoi.resize(width, height);
            aoi.wait_until(&format!("innerWidth === {width}"));
            let wide =
                aoi.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth");
            assert_eq!(wide, 0, "{colors} at {width}");
            if let Some(folder) = std::env::var_os("TEST_LOOKS") {
                let file = Path::new(&folder).join(format!("firefox-{width}-{colors}.png"));
                std::fs::write(file, aoi.screenshot()).unwrap();
            }
        }
        for browser in [&mut aoi, &mut ren] {
            browser.eval("room.leave()");
            browser.assert_no_errors();
        }
    }
}
