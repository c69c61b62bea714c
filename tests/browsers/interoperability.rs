//! Firefox with Firefox and with Chromium, in either order: all functions of the page and the library.

use std::path::Path;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use nix::sys::signal::Signal;
use serde_json::Value;

const ONLINE: &str = "document.querySelector('#status')?.dataset.state === 'online'";
const CHAT: &str = "[...document.querySelectorAll('#log li')].map((it) => it.textContent)";

fn open_page(browser: &mut dyn Browser, server: &Running, name: &str) {
    browser.open(&format!("http://{}/?room=tea&name={name}", server.address));
    browser.wait_until(ONLINE);
}

fn click(browser: &mut dyn Browser, id: &str) {
    browser.eval(&format!("document.querySelector('#{id}').click()"));
}

/// Waits until each page shows the other's chat message.
fn exchange_messages(pair: &mut [(&mut dyn Browser, &str); 2], words: &str) {
    for (browser, _) in &mut *pair {
        browser.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
    }
    for i in [0, 1] {
        let name = pair[i].1;
        pair[i].0.type_text("#say", words);
        pair[1 - i].0.wait_until(&format!("{CHAT}.includes('{name}{words}')"));
    }
}

/// Returns an expression for whether media of this kind has arrived from the other page.
fn receives(kind: &str) -> String {
    let stats = "[...(await [...room.peers.values()][0].pc.getStats()).values()]";
    format!(
        "{stats}.some((it) => it.type === 'inbound-rtp' && it.kind === '{kind}' && it.packetsReceived > 0)"
    )
}

/// Waits until no negotiation is in progress, both buttons show the state of this device, and each page receives the
/// other's media.
fn wait_until_stable(pair: &mut [(&mut dyn Browser, &str); 2], device: &str, is_on: bool) {
    let pc = "[...room.peers.values()][0].pc";
    let pressed = format!("document.querySelector('#{device}').getAttribute('aria-pressed') === '{is_on}'");
    let sent = format!("{pc}.getSenders().filter(({{ track }}) => track).length");
    let received =
        format!("{pc}.getTransceivers().filter((it) => it.currentDirection?.includes('recv')).length");
    eventually("they settle", || {
        let stable = format!("{pressed} && {pc}.signalingState === 'stable'");
        let [a, b] = pair;
        a.0.eval(&stable) == true
            && b.0.eval(&stable) == true
            && a.0.eval(&sent) == b.0.eval(&received)
            && b.0.eval(&sent) == a.0.eval(&received)
    });
}

/// Runs all functions of the page and the library between two browsers.
fn test_pair<'a>(first: &'a mut dyn Browser, second: &'a mut dyn Browser) {
    let (mut server, _stderr) = run(r#"exec "$0""#);
    open_page(first, &server, "Aoi");
    open_page(second, &server, "Ren");
    let mut pair = [(first, "Aoi"), (second, "Ren")];
    exchange_messages(&mut pair, "Good evening!");

    // Cameras one after the other, then both microphones together.
    for i in [0, 1] {
        click(pair[i].0, "camera");
        pair[1 - i].0.wait_until("document.querySelector('.peer video').videoWidth > 0");
    }
    for (browser, _) in &mut pair {
        click(*browser, "microphone");
    }
    for (browser, _) in &mut pair {
        browser.wait_until(&receives("audio"));
    }
    // Glare: both pages change something at the same time.
    for round in 0..8 {
        let device = ["camera", "microphone"][round % 2];
        for (browser, _) in &mut pair {
            click(*browser, device);
        }
        wait_until_stable(&mut pair, device, round % 4 >= 2);
    }
    exchange_messages(&mut pair, "Still there?");

    // Each page is reloaded.
    for i in [0, 1] {
        let name = pair[i].1;
        open_page(pair[i].0, &server, name);
        exchange_messages(&mut pair, &format!("Again {i}"));
    }
    // The server restarts, and the connection between the pages is unchanged.
    for (browser, _) in &mut pair {
        browser.eval("globalThis.before = [...room.peers.values()][0].pc, 0");
    }
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    for (browser, _) in &mut pair {
        browser.wait_until(&format!("!({ONLINE})"));
    }
    exchange_messages(&mut pair, "Without a server");
    let (server, _stderr) = run(&format!(r#"exec "$0" -l {}"#, server.address));
    for (browser, _) in &mut pair {
        browser.wait_until(&format!(
            "{ONLINE} && [...room.peers.values()].every((peer) => peer.alive && !peer.away)"
        ));
        assert_eq!(browser.eval("[...room.peers.values()][0].pc === before"), true);
    }
    exchange_messages(&mut pair, "With another");

    // The same in a pair.
    for (browser, name) in &mut pair {
        browser.eval("room.leave()");
        browser.open(&format!("http://{}/healthz", server.address));
        browser.eval("(globalThis.received = [], globalThis.library = await import('/noroshi.js'), 0)");
        browser.eval(&format!(
            "(globalThis.room = await library.connect('ws://{}/ws/pairs', {{ id: '{name}' }}), 0)",
            server.address
        ));
        browser.eval(
            "(room.addEventListener('open', ({ peer }) => peer.send('I am ' + room.id)),
            room.addEventListener('message', ({ data }) => received.push(data)), 0)",
        );
    }
    for i in [0, 1] {
        let other = pair[1 - i].1;
        pair[i].0.wait_until(&format!("received.join() === 'I am {other}'"));
    }
    for (browser, _) in &mut pair {
        browser.eval("room.leave()");
        browser.assert_no_errors();
    }
    eventually("all connections are closed", || {
        ["connections", "peers", "rooms"].iter().all(|name| server.metric(name) == 0.0)
    });
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

/// Saves screenshots in the directory TEST_LOOKS for visual inspection.
#[test]
fn page_fits_every_width_and_color_scheme() {
    let Some(_browsers) = reserve_browsers(2, &[FIREFOX]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
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
