//! The page for users: repeated clicks, phones, long names, forced colors and screen readers.

use std::path::PathBuf;

use crate::common::axe::{assert_accessible, axe};
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::process::{Running, run};
use serde_json::{Value, json};

fn open_page(browser: &mut Chromium, server: &Running, name: &str) {
    browser.open(&format!("http://{}/?room=tea&name={name}", server.address));
    browser.wait_until("document.querySelector('#status')?.dataset.state !== 'joining'");
}

/// Saves a screenshot in the directory of this variable, for visual inspection.
fn save_screenshot(browser: &mut Chromium, name: &str) {
    let Some(folder) = std::env::var_os("TEST_LOOKS") else { return };
    for (width, height) in [(320, 900), (390, 844), (1100, 780)] {
        for colors in ["light", "dark", "forced"] {
            browser.resize(width, height, colors);
            let file = PathBuf::from(&folder).join(format!("{name}-{width}-{colors}.png"));
            std::fs::write(file, browser.screenshot()).unwrap();
        }
    }
}

#[test]
fn device_button_shows_the_state_of_the_device() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut browser] = Chromium::start();
    open_page(&mut browser, &server, "Aoi");
    browser.eval(
        "const live = [], get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (kinds) => {
            const stream = await get(kinds);
            live.push(...stream.getTracks());
            return stream;
        };
        const button = document.querySelector('#camera');
        const isLive = () => live.filter((track) => track.readyState === 'live').length;
        const pressed = () => button.getAttribute('aria-pressed'); 0",
    );
    for clicks in [2, 3, 5] {
        browser.eval(&format!("for (let i = 0; i < {clicks}; i++) button.click(); 0"));
        browser.wait_until("pressed() === 'true' && isLive() === 1");
        browser.eval("button.click(); 0");
        browser.wait_until("pressed() === 'false' && isLive() === 0");
    }
    // The track ends, and the browser refuses a new one.
    browser.eval("button.click(); 0");
    browser.wait_until("pressed() === 'true'");
    browser.eval("live.at(-1).stop(); live.at(-1).dispatchEvent(new Event('ended')); 0");
    browser.wait_until("pressed() === 'false' && isLive() === 0");
    browser.eval("navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }; button.click(); button.click(); 0");
    browser.wait_until("document.querySelector('#media-note').textContent.includes('Allow it')");
    assert_eq!(browser.eval("pressed()"), "false");
    browser.kill();
}

#[test]
fn failed_join_shows_a_reason_and_a_remedy() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let (mut server, _stderr) = run(r#"exec "$0" --max-mesh-peers 1"#);
    let [mut first, mut second] = Chromium::start();
    // A name is truncated to 128 bytes.
    open_page(&mut first, &server, &"日".repeat(60));
    first.wait_until("document.querySelector('#status').dataset.state === 'online'");
    assert_eq!(first.eval("room.id"), "日".repeat(42));
    first.eval("const name = document.querySelector('#name'), type = (text) => { name.value = text; name.dispatchEvent(new Event('input')); }; 0");
    first.eval("type('日'.repeat(43)); 0");
    assert_eq!(first.eval("name.validity.valid"), false);
    first.eval("type('Aoi'); document.querySelector('#rename').click(); 0");
    first.wait_until("room?.id === 'Aoi' && room.online");
    let wait_for_status = |browser: &mut Chromium, text: &str| {
        browser
            .wait_until(&format!("document.querySelector('#status-words').textContent.includes({text:?})"));
    };
    let ways = |browser: &mut Chromium| {
        browser.eval("[...document.querySelectorAll('#again, #rename')].filter((it) => !it.hidden).map((it) => it.id).join()")
    };
    open_page(&mut second, &server, "Aoi");
    wait_for_status(&mut second, "already called Aoi");
    assert_eq!(ways(&mut second), "rename");
    save_screenshot(&mut second, "taken");
    second.eval("document.querySelector('#rename').click(); 0");
    wait_for_status(&mut second, "This room is full");
    assert_eq!(ways(&mut second), "again");
    // A peer joins under the same name while no other peer is present.
    first.eval("room.dispatchEvent(Object.assign(new Event('error'), { error: { code: 'replaced' } })); 0");
    wait_for_status(&mut first, "so this page is out");
    assert_eq!(
        first.eval("document.querySelector('#status-words').textContent.includes('stays connected')"),
        false
    );
    first.eval("document.querySelector('#again').click(); 0");
    first.wait_until("document.querySelector('#status').dataset.state === 'online'");
    // Any other error of the server.
    second.eval(
        r#"WebSocket.prototype.send = function () {
            this.onmessage({ data: '{"type":"error","code":"bad_message","message":"that is no id"}' });
        };
        document.querySelector('#again').click(); 0"#,
    );
    wait_for_status(&mut second, "cannot be entered: that is no id");
    assert_eq!(ways(&mut second), "again,rename");
    second.eval("WebSocket = class { constructor() { setTimeout(() => this.onclose({ code: 1006 })); } close() {} }; 0");
    second.eval("document.querySelector('#again').click(); 0");
    wait_for_status(&mut second, "does not let this page in");
    assert_eq!(ways(&mut second), "again,rename");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    wait_for_status(&mut first, "The server is gone");
    for mut browser in [first, second] {
        browser.eval("0");
        browser.errors.retain(|error| !error.contains(r#""source":"network""#));
        browser.kill();
    }
}

#[test]
fn narrow_page_shows_everything_and_marks_unread_messages() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut phone, mut other] = Chromium::start();
    phone.resize(320, 600, "light");
    open_page(&mut phone, &server, "Aoi");
    open_page(&mut other, &server, "A%20name%20of%20many%20long%20words%20unbreakable-as-they-are");
    phone.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
    for width in [320, 390, 832, 1100] {
        phone.resize(width, 600, "light");
        let wide = phone.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth");
        assert_eq!(wide, 0, "at {width}");
    }
    phone.resize(320, 600, "light");
    phone.eval("document.querySelector('#camera').click(); scrollTo(0, 0); 0");
    assert_eq!(phone.eval("document.querySelector('#unread').hidden"), true);
    other.type_text("#say", "one");
    phone.wait_until("document.querySelector('#unread').textContent === '1 new message'");
    other.type_text("#say", "two");
    phone.wait_until("document.querySelector('#unread').textContent === '2 new messages'");
    save_screenshot(&mut phone, "unread");
    phone.resize(320, 600, "light");
    phone.eval("document.querySelector('#unread').click(); 0");
    phone.wait_until("document.querySelector('#unread').hidden && document.activeElement.id === 'say'");
    phone.kill();
    other.kill();
}

#[test]
fn page_is_accessible() {
    let Some(axe) = axe() else { return };
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut aoi, mut ren] = Chromium::start();
    open_page(&mut aoi, &server, "Aoi");
    assert_accessible(&mut aoi, &axe);
    save_screenshot(&mut aoi, "alone");
    open_page(&mut ren, &server, "Ren");
    for browser in [&mut aoi, &mut ren] {
        browser.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
        browser.eval("document.querySelector('#camera').click(); 0");
        browser.type_text("#say", "Good evening!");
    }
    aoi.wait_until("document.querySelector('.peer video').videoWidth > 0");
    assert_accessible(&mut aoi, &axe);
    save_screenshot(&mut aoi, "together");
    // Without colors, the state of a button differs in its text.
    let mark = "getComputedStyle(document.querySelector('#camera'), '::before').content";
    let on = aoi.eval(mark);
    aoi.eval("document.querySelector('#camera').click(); 0");
    assert_ne!(aoi.eval(mark), on);
    aoi.eval("room.dispatchEvent(Object.assign(new Event('error'), { error: { code: 'room_full' } })); 0");
    assert_accessible(&mut aoi, &axe);
    // Every name has a background with readable letters. axe has checked two of them; these are the worst cases.
    let contrasts: Value = aoi.eval(
        "Array.from({ length: 360 }, (_, hue) => {
            const face = document.querySelector('.face');
            face.style.setProperty('--hue', hue);
            const [r, g, b] = getComputedStyle(face).backgroundColor.match(/[\\d.]+/g).map((it) => it / 255)
                .map((it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
            return 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05);
        }).filter((it) => it < 4.5)",
    );
    assert_eq!(contrasts, json!([]));
    aoi.kill();
    ren.kill();
}
