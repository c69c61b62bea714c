//! The page for users: names, screens, the invitation, floods, many people, phones, forced colors and screen readers.

use std::path::PathBuf;

use crate::common::axe::{assert_accessible, axe};
use crate::common::browser::{Browser, Key, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use crate::common::program::npm;
use data_encoding::BASE64;
use serde_json::{Value, json};

const IS_CONNECTED: &str = "[...room.peers.values()].some((peer) => peer.alive)";

/// An expression for the lines of the chat.
const CHAT: &str = "[...document.querySelectorAll('#log li')].map((it) => it.textContent)";

fn open_page(browser: &mut dyn Browser, server: &Running, name: &str) {
    browser.open(&format!("http://{}/?room=tea&name={name}", server.address));
    browser.wait_until("document.querySelector('#status')?.dataset.state !== 'joining'");
}

/// Opens a document without the page, and imports the client library as `library`.
fn open_library(browser: &mut dyn Browser, server: &Running) {
    browser.open(&format!("http://{}/healthz", server.address));
    browser.eval("(globalThis.library = await import('/noroshi.js'), 0)");
}

/// Joins the room of [`open_page`] with the library, as `rooms.at(-1)`.
fn join(browser: &mut dyn Browser, server: &Running, options: &Value) {
    browser.eval(&format!(
        "((globalThis.rooms ??= []).push(await library.join('ws://{}/ws/tea', {options})), 0)",
        server.address
    ));
}

fn click(browser: &mut dyn Browser, selector: &str) {
    browser.eval(&format!("(document.querySelector({selector:?}).click(), 0)"));
}

fn wait_for_status(browser: &mut dyn Browser, text: &str) {
    browser.wait_until(&format!("document.querySelector('#status-words').textContent.includes({text:?})"));
}

/// Runs a test in Chromium, then in Firefox.
fn in_both_browsers(test: impl Fn(&mut dyn Browser)) {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let ([mut chromium], [mut firefox]) = (Chromium::start(), Firefox::start());
    chromium.focus();
    println!("Chromium");
    test(&mut chromium);
    println!("Firefox");
    test(&mut firefox);
}

/// Runs a test in Chromium, then in Firefox, each together with another Chromium.
fn with_another_browser(test: impl Fn(&mut dyn Browser, &mut Chromium)) {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let [mut chromium, mut other] = Chromium::start();
    let [mut firefox] = Firefox::start();
    chromium.focus();
    println!("Chromium");
    test(&mut chromium, &mut other);
    println!("Firefox");
    test(&mut firefox, &mut other);
}

/// Saves a screenshot in the directory of this variable, for visual inspection.
fn save_screenshots(browser: &mut Chromium, name: &str) {
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
    in_both_browsers(|browser| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Aoi");
        browser.eval(
            "const live = [], get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = (kinds) => get(kinds).then((stream) => {
                live.push(...stream.getTracks());
                return stream;
            });
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
        for (error, text) in [
            (
                "NotAllowedError",
                "The browser may not use the camera. Allow it in its settings for this page.",
            ),
            ("NotFoundError", "This device has no camera."),
            ("NotReadableError", "The camera is in use by another program."),
        ] {
            browser.eval(&format!(
                "navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{error}') }};
                button.click(); button.click(); 0"
            ));
            browser.wait_until(&format!("document.querySelector('#media-note').textContent === {text:?}"));
            assert_eq!(browser.eval("pressed()"), "false");
        }
        browser.eval("room.leave()");
        browser.assert_no_errors();
    });
}

/// Waits until the page has these tiles: the name, and whether a video is shown.
fn wait_for_tiles(browser: &mut dyn Browser, tiles: &[(&str, bool)]) {
    let shown = "JSON.stringify([...document.querySelectorAll('#peers > li')].map((it) => {
        const video = it.querySelector('video');
        return [it.querySelector('.name').textContent, !video.hidden && video.videoWidth > 0];
    }))";
    browser.wait_until(&format!("{shown} === JSON.stringify({})", json!(tiles)));
}

#[test]
fn screen_and_camera_of_a_person_are_separate_tiles() {
    with_another_browser(|browser, other| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Aoi");
        // A test cannot choose a screen.
        browser.eval(
            "var shared;
            navigator.mediaDevices.getDisplayMedia = async () => {
                const canvas = Object.assign(document.createElement('canvas'), { width: 480, height: 270 });
                const context = canvas.getContext('2d');
                setInterval(() => {
                    context.fillStyle = `hsl(${performance.now() % 360} 50% 50%)`;
                    context.fillRect(0, 0, 480, 270);
                }, 50);
                return shared = canvas.captureStream(20);
            }; 0",
        );
        open_page(other, &server, "Ren");
        for browser in [&mut *browser, other as &mut dyn Browser] {
            browser.wait_until(IS_CONNECTED);
        }
        click(browser, "#screen");
        wait_for_tiles(other, &[("Screen of Aoi", true), ("Ren", false), ("Aoi", false)]);
        click(browser, "#camera");
        let both = [("Screen of Aoi", true), ("Ren", false), ("Aoi", true)];
        wait_for_tiles(other, &both);
        // A person who enters later sees both, also after the sender has entered again.
        open_page(other, &server, "Ren");
        wait_for_tiles(other, &both);
        browser.eval("room.leave()");
        wait_for_status(browser, "You have left the room.");
        wait_for_tiles(other, &[("Ren", false)]);
        click(browser, "#again");
        wait_for_tiles(other, &both);
        // The camera is switched off, and the user stops the screen in the browser.
        click(browser, "#camera");
        wait_for_tiles(other, &[("Screen of Aoi", true), ("Ren", false), ("Aoi", false)]);
        browser.eval(
            "(shared.getTracks()[0].stop(), shared.getTracks()[0].dispatchEvent(new Event('ended')), 0)",
        );
        wait_for_tiles(other, &[("Ren", false), ("Aoi", false)]);
        assert_eq!(browser.eval("document.querySelector('#screen').getAttribute('aria-pressed')"), "false");
        // And again, with the transceivers of before.
        click(browser, "#screen");
        click(browser, "#camera");
        wait_for_tiles(other, &both);
        for browser in [&mut *browser, other as &mut dyn Browser] {
            browser.eval("room.leave()");
            browser.assert_no_errors();
        }
    });
}

#[test]
fn names_are_data_and_do_not_affect_other_text() {
    with_another_browser(|browser, other| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Aoi");
        assert_eq!(browser.eval("room.data.name"), "Aoi");
        let first_id = browser.eval("room.id");
        assert_ne!(first_id, "Aoi");
        // Two people have our name. One has no name that can be shown, and one turns the direction of text.
        open_library(other, &server);
        let long = "x".repeat(5000);
        for options in [
            json!({"id": "b", "data": {"name": "Aoi"}}),
            json!({"id": "c", "data": {"name": " Aoi \n"}}),
            json!({"id": "d", "data": {"name": 5}}),
            json!({"id": "e", "data": {"name": long}}),
            json!({"id": "f", "data": {"name": "live \u{202e}eman"}}),
        ] {
            join(other, &server, &options);
        }
        browser.wait_until("document.querySelectorAll('.peer[data-state=connected]').length === 5");
        let shown = "Object.fromEntries([...document.querySelectorAll('.peer')].map((it) =>
            [it.dataset.peer, it.querySelector('.name').textContent]))";
        let expected =
            json!({"b": "Aoi", "c": "Aoi", "d": "d", "e": "x".repeat(64), "f": "live \u{202e}eman"});
        assert_eq!(browser.eval(shown), expected);
        // The text after the name is from left to right, both in a line of the chat and in a message.
        other.eval("(rooms[4].send('\\u202eover there'), 0)");
        browser.wait_until(&format!("{CHAT}.at(-1).endsWith('over there')"));
        let order = "(() => {
            const line = [...document.querySelectorAll('#log li')].find((it) => /eman is here/.test(it.textContent));
            const text = line.lastChild;
            const left = (at) => {
                const range = document.createRange();
                range.setStart(text, at);
                range.setEnd(text, at + 1);
                return range.getBoundingClientRect().left;
            };
            return [line.textContent, left(1) < left(text.length - 1), line.firstChild.localName];
        })()";
        assert_eq!(browser.eval(order), json!(["live \u{202e}eman is here.", true, "bdi"]));
        let isolated = "['#log .text', '#log b bdi', '.peer .name'].map((it) =>
            getComputedStyle([...document.querySelectorAll(it)].at(-1)).unicodeBidi)";
        assert_eq!(browser.eval(isolated), json!(["isolate", "isolate", "isolate"]));
        // A person renames itself, here and there, and stays connected.
        other.eval("(rooms[0].setData({ name: 'Sora' }), 0)");
        browser.wait_until(&format!("{CHAT}.at(-1) === 'Aoi is now called Sora.'"));
        assert_eq!(browser.eval(&format!("({shown}).b")), "Sora");
        browser.type_text("#name", "Yuki");
        other.wait_until(
            "rooms.every((it) => [...it.peers.values()].some(({ data }) => data?.name === 'Yuki'))",
        );
        assert_eq!(browser.eval("room.id"), first_id);
        assert_eq!(browser.eval("document.querySelector('#me .name').textContent"), "Yuki");
        assert_eq!(browser.eval("document.querySelectorAll('.peer[data-state=connected]').length"), 5);
        // A reload keeps it.
        assert_eq!(browser.eval("history.state.name"), "Yuki");
        // Markup is text.
        other.eval("(rooms[0].setData({ name: '<img src=x onerror=alert(1)>' }), 0)");
        browser.wait_until(&format!("({shown}).b === '<img src=x onerror=alert(1)>'"));
        assert_eq!(browser.eval("document.querySelectorAll('#peers img, #log img').length"), 0);
        browser.eval("room.leave()");
        browser.assert_no_errors();
        other.eval("rooms.forEach((it) => it.leave())");
    });
}

#[test]
fn flood_of_messages_is_summed_up() {
    with_another_browser(|browser, other| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Ren");
        // Counts how often the page measures its log, and every line that it adds.
        browser.eval(
            "const lines = [];
            new MutationObserver((changes) => changes.forEach(({ addedNodes }) =>
                addedNodes.forEach((it) => lines.push(it.textContent)))).observe(document.querySelector('#log'), { childList: true });
            let measured = 0;
            const { get } = Object.getOwnPropertyDescriptor(Element.prototype, 'scrollHeight');
            Object.defineProperty(Element.prototype, 'scrollHeight', { get() { measured += 1; return get.call(this); } }); 0",
        );
        open_library(other, &server);
        join(other, &server, &json!({"data": {"name": "Ann"}}));
        other.wait_until("[...rooms[0].peers.values()].some((peer) => peer.alive)");
        other.eval(
            "(globalThis.flood = (async () => {
                const [peer] = rooms[0].peers.values();
                for (let i = 0; i < 20000; i++) {
                    if (i % 500 === 0) await peer.drained(1 << 16);
                    peer.send(`line ${i}`);
                }
            })(), 0)",
        );
        // Every message is either shown or counted.
        let shown = "lines.filter((it) => it.startsWith('Annline ')).length";
        let omitted = r"lines.map((it) => Number(/^(\d+) more lines? from Ann\.$/.exec(it)?.[1] ?? 0)).reduce((a, b) => a + b, 0)";
        browser.wait_until(&format!("{shown} + {omitted} === 20000"));
        let seconds =
            browser.eval("lines.filter((it) => it.includes(' more line')).length").as_u64().unwrap();
        let shown = browser.eval(shown).as_u64().unwrap();
        assert!(seconds >= 1 && shown <= 20 * (seconds + 1), "{shown} lines in {seconds} s");
        assert!(browser.eval("document.querySelectorAll('#log li').length").as_u64().unwrap() <= 500);
        println!("20,000 messages in {seconds} s: {shown} lines");
        // Our own lines are not limited. Those of one task are drawn together.
        browser.eval(
            "measured = 0;
            for (let i = 0; i < 600; i++) {
                document.querySelector('#say').value = `own ${i}`;
                document.querySelector('#say-form').requestSubmit();
            } 0",
        );
        browser.wait_until(&format!("{CHAT}.at(-1) === 'Renown 599'"));
        assert_eq!(browser.eval("[measured, document.querySelectorAll('#log li').length]"), json!([2, 500]));
        assert_eq!(browser.eval(&format!("{CHAT}[0]")), "Renown 100");
        // A message of another client is shortened, or described.
        for (data, text) in [
            ("'y'.repeat(9000)", format!("Ann{} …", "y".repeat(4000))),
            ("new Uint8Array(3)", "Ann(3 bytes)".to_owned()),
            ("{ a: [1] }", "Ann{\"a\":[1]}".to_owned()),
        ] {
            other.eval(&format!("(rooms[0].send({data}), 0)"));
            browser.wait_until(&format!("{CHAT}.at(-1) === {text:?}"));
        }
        browser.eval("room.leave()");
        browser.assert_no_errors();
        other.eval("rooms[0].leave()");
    });
}

#[test]
fn six_people_with_cameras_fit_into_the_window() {
    with_another_browser(|browser, other| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Aoi");
        open_library(other, &server);
        for (i, name) in
            ["Ren", "Yuki", "Sora", "Hana", "Hana", "A name of many long words"].into_iter().enumerate()
        {
            join(other, &server, &json!({"data": {"name": name}}));
            other.eval(&format!(
                "(() => {{
                    const canvas = Object.assign(document.createElement('canvas'), {{ width: 320, height: 240 }});
                    const context = canvas.getContext('2d');
                    setInterval(() => {{
                        context.fillStyle = `hsl({} 35% ${{45 + Math.random()}}%)`;
                        context.fillRect(0, 0, 320, 240);
                    }}, 100);
                    rooms.at(-1).share(canvas.captureStream(10));
                }})()",
                60 * i
            ));
        }
        click(browser, "#camera");
        let playing = "[...document.querySelectorAll('#peers video')].filter((it) => it.videoWidth > 0 && !it.hidden).length";
        browser.wait_until(&format!("{playing} === 7"));
        // In the window, whatever else is shown.
        let outside = "[...document.querySelectorAll('#peers > li')].filter((it) => {
            const box = it.getBoundingClientRect(), list = document.querySelector('#tiles').getBoundingClientRect();
            return box.width < 100 || box.left < 0 || box.right > innerWidth || box.top < list.top || box.bottom > list.bottom + 1;
        }).length";
        let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        for (width, height) in [(1100, 780), (1400, 800), (900, 700)] {
            browser.set_viewport(width, height);
            browser.wait_until(&format!("innerWidth === {width} && {outside} === 0"));
            assert_eq!(browser.eval(wide), 0, "at {width}");
        }
        // With a note, and a screen.
        browser.set_viewport(1100, 780);
        browser.eval("(navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError') }, 0)");
        click(browser, "#microphone");
        browser.wait_until(&format!("!document.querySelector('#media-note').hidden && {outside} === 0"));
        // Phones scroll.
        for width in [390, 320] {
            browser.set_viewport(width, 700);
            browser.wait_until(&format!("innerWidth === {width}"));
            assert_eq!(browser.eval(wide), 0, "at {width}");
        }
        browser.set_viewport(1100, 780);
        if let Some(folder) = std::env::var_os("TEST_LOOKS") {
            std::fs::write(PathBuf::from(folder).join("six.png"), browser.screenshot()).unwrap();
        }
        browser.eval("room.leave()");
        browser.assert_no_errors();
        other.eval("rooms.forEach((it) => it.leave())");
    });
}

#[test]
fn qr_code_leads_to_the_room() {
    let Some(home) = npm("jsqr") else { return };
    let decoder = std::fs::read_to_string(home.join("node_modules/jsqr/dist/jsQR.js")).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    in_both_browsers(|browser| {
        let (server, _stderr) = run(r#"exec "$0""#);
        let fragment = format!("#token={}", "x".repeat(150));
        // The token is not checked by this server.
        browser.open(&format!("http://{}/?room=tea&name=Aoi{fragment}", server.address));
        browser.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
        let link = format!("http://{}/?room=tea{fragment}", server.address);
        browser.eval(&format!("{decoder}; 0"));
        // As a phone sees it: in the page while we are alone, then in the dialog.
        let decode = |browser: &mut dyn Browser| {
            let png = BASE64.encode(&browser.screenshot());
            browser.eval(&format!(
                "await new Promise((resolve) => {{
                    const image = new Image();
                    image.onload = () => {{
                        const {{ width, height }} = image;
                        const context = Object.assign(document.createElement('canvas'), {{ width, height }}).getContext('2d');
                        context.drawImage(image, 0, 0);
                        resolve(jsQR(context.getImageData(0, 0, width, height).data, width, height)?.data);
                    }};
                    image.src = 'data:image/png;base64,{png}';
                }})"
            ))
        };
        browser.set_viewport(1100, 780);
        assert_eq!(decode(browser), link);
        click(browser, "#invite");
        assert_eq!(decode(browser), link);
        assert_eq!(browser.eval("document.querySelector('#link').value"), link);
        browser.set_viewport(320, 700);
        assert_eq!(decode(browser), link);
        click(browser, "#copy");
        browser.wait_until("document.querySelector('#copy').textContent === 'Link copied'");
        click(browser, "#close");
        assert_eq!(browser.eval("document.querySelector('#invitation').open"), false);
        // Everything comes from the server.
        let foreign = "performance.getEntriesByType('resource').filter(({ name }) => !name.startsWith(location.origin)).map(({ name }) => name)";
        assert_eq!(browser.eval(foreign), json!([]));
        // A link that fits into no code.
        browser.open("about:blank");
        browser.open(&format!("http://{}/?room=tea&name=Aoi#token={}", server.address, "x".repeat(3000)));
        browser.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
        assert_eq!(browser.eval("document.querySelectorAll('.qr').length"), 0);
        browser.eval("room.leave()");
        browser.assert_no_errors();
    });
}

#[test]
fn vendored_qr_code_library_is_the_published_one() {
    let (header, code) = include_str!("../../src/web/qrcode.js").split_once("*/\n").unwrap();
    let version = header.split(' ').nth(1).unwrap().trim_end_matches(':');
    let Some(home) = npm(&format!("lean-qr@{version}")) else { return };
    let folder = home.join("node_modules/lean-qr");
    let [published, license] =
        ["nano.mjs", "LICENSE"].map(|name| std::fs::read_to_string(folder.join(name)).unwrap());
    std::fs::remove_dir_all(home).unwrap();
    assert!(code == published, "src/web/qrcode.js differs from nano.mjs of lean-qr {version}");
    assert!(header.contains(license.trim()), "the license of lean-qr {version} has changed");
}

#[test]
fn page_works_by_keyboard() {
    in_both_browsers(|browser| {
        let (server, _stderr) = run(r#"exec "$0""#);
        browser.set_viewport(1100, 780);
        open_page(browser, &server, "Aoi");
        let focused = "document.activeElement.id || document.activeElement.localName";
        let visited: Vec<Value> = (0..10)
            .map(|_| {
                browser.press(Key::Tab);
                // Each stop is visible.
                let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
                assert_eq!(outline, "solid", "{}", browser.eval(focused));
                browser.eval(focused)
            })
            .collect();
        let expected =
            ["room", "invite", "name", "camera", "microphone", "screen", "said", "say", "button", "summary"];
        assert_eq!(visited, expected);
        browser.eval("document.querySelector('#invite').focus()");
        browser.press(Key::Enter);
        assert_eq!(browser.eval("document.querySelector('#invitation').open"), true);
        assert_eq!(browser.eval("document.activeElement.closest('dialog')?.id"), "invitation");
        browser.press(Key::Escape);
        browser.wait_until("!document.querySelector('#invitation').open");
        assert_eq!(browser.eval(focused), "invite");
        browser.eval("document.querySelector('#camera').focus()");
        browser.press(Key::Enter);
        browser.wait_until("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'");
        browser.eval("room.leave()");
        browser.assert_no_errors();
    });
}

#[test]
fn absent_server_is_asked_with_random_growing_pauses() {
    in_both_browsers(|browser| {
        let (server, _stderr) = run(r#"exec "$0""#);
        open_page(browser, &server, "Aoi");
        // Requests fail, and the pauses of the page pass at once. The timers of the library, whose random factor is not
        // used before the room is entered, have whole numbers of seconds.
        for (random, expected) in [
            (0.0, json!([250, 500, 1000, 2000, 4000, 7500, 7500])),
            (0.25, json!([375, 750, 1500, 3000, 6000, 11_250, 11_250])),
            (0.75, json!([625, 1250, 2500, 5000, 10_000, 18_750, 18_750])),
        ] {
            browser.eval(&format!(
                "(() => {{
                    globalThis.original ??= {{ setTimeout, fetch, random: Math.random, WebSocket }};
                    globalThis.pauses = [];
                    globalThis.requests = 0;
                    const expected = {expected};
                    globalThis.setTimeout = (action, pause) => {{
                        if (pause !== expected[pauses.length]) {{
                            return original.setTimeout.call(globalThis, action, pause);
                        }}
                        pauses.push(pause);
                        return pauses.length < expected.length ? original.setTimeout.call(globalThis, action) : 0;
                    }};
                    globalThis.fetch = async () => {{
                        requests += 1;
                        throw new TypeError('no server');
                    }};
                    Math.random = () => {random};
                    globalThis.WebSocket = class {{
                        constructor() {{
                            original.setTimeout.call(globalThis, () => this.onclose({{ code: 1006 }}));
                        }}
                        close() {{}}
                    }};
                    document.querySelector('#again').click();
                }})()"
            ));
            browser.wait_until("pauses.length === 7");
            assert_eq!(browser.eval("pauses"), expected);
            // The library asks twice when it enters; after each pause but the last, the page asks once.
            browser.wait_until("requests === 8");
            wait_for_status(browser, "The server does not answer. Trying again …");
        }
        // The server is there again.
        browser.eval(
            "(() => {
                Object.assign(globalThis, { fetch: original.fetch, WebSocket: original.WebSocket });
                Math.random = original.random;
                document.querySelector('#again').click();
            })()",
        );
        browser.wait_until("room?.online && document.querySelector('#status').dataset.state === 'online'");
        browser.eval("room.leave()");
        browser.assert_no_errors();
    });
}

#[test]
fn failed_join_shows_a_reason_and_a_remedy() {
    with_another_browser(|first, second| {
        let (mut server, _stderr) = run(r#"exec "$0" --max-mesh-peers 1"#);
        open_page(first, &server, "Aoi");
        first.wait_until("document.querySelector('#status').dataset.state === 'online'");
        let has_remedy = |browser: &mut dyn Browser| browser.eval("!document.querySelector('#again').hidden");
        open_page(second, &server, "Aoi");
        wait_for_status(second, "This room is full.");
        assert_eq!(has_remedy(second), true);
        save_screenshots(second, "full");
        // The room is over.
        for (code, text) in [
            (
                "replaced",
                "You have entered this room on another page with the same token, so this page was disconnected.",
            ),
            ("forbidden", "Your token is for another room."),
            ("bad_message", "You cannot enter the room: oh."),
        ] {
            first.eval(&format!(
                "(room.dispatchEvent(Object.assign(new Event('closed'), {{ code: '{code}', message: 'oh' }})), 0)"
            ));
            wait_for_status(first, text);
            assert_eq!(has_remedy(first), true);
            click(first, "#again");
            first.wait_until("document.querySelector('#status').dataset.state === 'online'");
        }
        // Any other error of the server.
        second.eval(
            r#"WebSocket.prototype.send = function () {
                this.onmessage({ data: '{"type":"error","code":"bad_message","message":"that is no id"}' });
            };
            document.querySelector('#again').click(); 0"#,
        );
        wait_for_status(second, "You cannot enter the room: that is no id.");
        assert_eq!(has_remedy(second), true);
        second.eval("WebSocket = class { constructor() { setTimeout(() => this.onclose({ code: 1006 })); } close() {} }; 0");
        click(second, "#again");
        wait_for_status(second, "The server refused the connection. The reason is in the log of the server.");
        assert_eq!(has_remedy(second), true);
        server.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(server.code(), Some(0));
        wait_for_status(first, "The connection to the server is lost. Reconnecting …");
        first.eval("room.leave()");
        for browser in [&mut *first, second as &mut dyn Browser] {
            browser.assert_no_errors();
        }
    });
}

#[test]
fn narrow_page_shows_everything_and_marks_unread_messages() {
    with_another_browser(|phone, other| {
        let (server, _stderr) = run(r#"exec "$0""#);
        phone.set_viewport(320, 600);
        open_page(phone, &server, "Aoi");
        open_page(other, &server, "A%20name%20of%20many%20long%20words%20unbreakable-as-they-are");
        phone.wait_until(IS_CONNECTED);
        for width in [320, 390, 832, 1100] {
            phone.set_viewport(width, 600);
            phone.wait_until(&format!("innerWidth === {width}"));
            let wide =
                phone.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth");
            assert_eq!(wide, 0, "at {width}");
        }
        phone.set_viewport(320, 600);
        phone.wait_until("innerWidth === 320");
        click(phone, "#camera");
        phone.wait_until("document.querySelector('#own-video').videoWidth > 0");
        phone.eval("(scrollTo(0, 0), 0)");
        eventually("the chat is out of sight", || {
            phone.eval("document.querySelector('#say-form').getBoundingClientRect().top > innerHeight")
                == true
        });
        assert_eq!(phone.eval("document.querySelector('#unread').hidden"), true);
        other.type_text("#say", "one");
        phone.wait_until("document.querySelector('#unread').textContent === '1 new message'");
        other.type_text("#say", "two");
        phone.wait_until("document.querySelector('#unread').textContent === '2 new messages'");
        click(phone, "#unread");
        phone.wait_until("document.querySelector('#unread').hidden && document.activeElement.id === 'say'");
        for browser in [&mut *phone, other as &mut dyn Browser] {
            browser.eval("room.leave()");
            browser.assert_no_errors();
        }
    });
}

#[test]
fn page_is_accessible() {
    let Some(axe) = axe() else { return };
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut aoi, mut ren] = Chromium::start();
    open_page(&mut aoi, &server, "Aoi");
    assert_accessible(&mut aoi, &axe);
    save_screenshots(&mut aoi, "alone");
    click(&mut aoi, "#invite");
    assert_accessible(&mut aoi, &axe);
    save_screenshots(&mut aoi, "invitation");
    click(&mut aoi, "#close");
    open_page(&mut ren, &server, "Ren");
    for browser in [&mut aoi, &mut ren] {
        browser.wait_until(IS_CONNECTED);
        click(browser, "#camera");
        browser.type_text("#say", "Good evening!");
    }
    aoi.wait_until("document.querySelector('.peer video').videoWidth > 0");
    assert_accessible(&mut aoi, &axe);
    save_screenshots(&mut aoi, "together");
    // Without colors, the state of a button differs in its text.
    let mark = "getComputedStyle(document.querySelector('#camera'), '::before').content";
    let on = aoi.eval(mark);
    click(&mut aoi, "#camera");
    assert_ne!(aoi.eval(mark), on);
    aoi.eval("room.dispatchEvent(Object.assign(new Event('closed'), { code: 'room_full' })); 0");
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

/// Without https, browsers provide no devices.
#[test]
fn page_without_devices_explains_why() {
    let Some(_browsers) = reserve_browsers(1, &[FIREFOX]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut firefox] = Firefox::start();
    // Firefox resolves every name to this machine. Browsers treat a plain-HTTP name as insecure.
    firefox.open(&format!("http://noroshi.example:{}/?room=tea&name=Aoi", server.address.port()));
    firefox.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
    assert_eq!(
        firefox.eval("['camera', 'microphone'].map((id) => document.getElementById(id).disabled)"),
        json!([true, true])
    );
    assert_eq!(firefox.eval("document.querySelector('#screen').hidden"), true);
    assert_eq!(
        firefox.eval("document.querySelector('#media-note').textContent"),
        format!(
            "Browsers allow cameras and microphones only on https pages and on localhost. The address of this page is \
            http://noroshi.example:{}.",
            server.address.port()
        )
    );
    firefox.eval("room.leave()");
    firefox.assert_no_errors();
}
