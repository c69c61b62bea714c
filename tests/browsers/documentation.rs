//! The examples of the library's documentation, in Chromium and Firefox.

use std::net::SocketAddr;

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, run};
use crate::common::program::free_port;
use crate::package::{Example, is_page, library_examples};

/// Starts a server that pages of this address may use.
fn start_server(port: u16, page: SocketAddr) -> Running {
    run(&format!(r#"exec "$0" -l 127.0.0.1:{port} --allow-origin http://localhost:{}"#, page.port())).0
}

/// Returns the pages of the library's documentation with the headings above them, for the server at this port.
fn pages(port: u16) -> Vec<(String, String)> {
    let pages = library_examples().into_iter().filter(is_page);
    let page = |example: Example| {
        let block = example.block.replace("localhost:8080", &format!("127.0.0.1:{port}"));
        let is_audio = example.heading == "Audio only";
        let begin = if is_audio { RECORD_PLAYERS } else { "" };
        (example.heading, format!("<!doctype html><link rel=\"icon\" href=\"data:,\">{begin}{block}"))
    };
    pages.map(page).collect()
}

/// The page of audio shows nothing. Its players are kept in a list.
const RECORD_PLAYERS: &str = "<script>
    const players = [], NativeAudio = Audio;
    globalThis.Audio = function () { const player = new NativeAudio(); players.push(player); return player; };
</script>";

const LINES: &str = "[...document.querySelectorAll('li')].map((line) => line.textContent)";
const VIDEOS_PLAY: &str = "[...document.querySelectorAll('video')].every((video) => video.videoWidth > 0)";
/// Instead of the screen, which tests cannot share.
const FAKE_SCREEN: &str = "(globalThis.screens = [], navigator.mediaDevices.getDisplayMedia = async () => {
    const canvas = document.createElement('canvas');
    const context = canvas.getContext('2d');
    setInterval(() => context.fillRect(0, 0, Math.random() * 99, 99), 40);
    const screen = canvas.captureStream();
    // Firefox does not deliver an event `ended` that a script dispatches to this track.
    globalThis.endedListeners = [];
    screen.getTracks()[0].addEventListener = (type, listener) => endedListeners.push(listener);
    screens.push(screen);
    return screen;
}, 0)";

type Pair<'a> = [&'a mut dyn Browser; 2];

fn quick_start(pair: &mut Pair) {
    for browser in pair {
        browser.wait_until("document.body.innerText.includes('Aoi says hello')");
    }
}

fn chat(pair: &mut Pair) {
    for browser in &mut *pair {
        browser.wait_until(&format!("{LINES}.some((line) => line.endsWith(' is here'))"));
    }
    for i in [0, 1] {
        pair[i].type_text("input", &format!("words {i}"));
        pair[i].wait_until(&format!("{LINES}.includes('you, to 1: words {i}')"));
        pair[1 - i].wait_until(&format!("{LINES}.some((line) => line.endsWith(': words {i}'))"));
    }
    pair[0].open("about:blank");
    pair[1].wait_until(&format!("{LINES}.some((line) => line.endsWith(' has left'))"));
}

fn video_call(pair: &mut Pair) {
    for browser in &mut *pair {
        browser.wait_until(&format!("document.querySelectorAll('video').length === 2 && {VIDEOS_PLAY}"));
        browser.eval("document.querySelector('button').click()");
        assert_eq!(browser.eval("document.querySelector('button').textContent"), "Unmute");
    }
    pair[0].open("about:blank");
    pair[1].wait_until("document.querySelectorAll('video').length === 1");
}

fn screen_share(pair: &mut Pair) {
    // The second share uses the transceiver of the first again.
    for i in [0, 1, 0] {
        pair[i].eval(&format!("globalThis.screens ?? {FAKE_SCREEN}"));
        pair[i].eval("document.querySelector('button').click()");
        pair[1 - i].wait_until(&format!("document.querySelector('video') && {VIDEOS_PLAY}"));
        pair[i].wait_until("endedListeners.length === 1");
        pair[i].eval("(endedListeners.forEach((listener) => listener()), 0)");
        pair[1 - i].wait_until("!document.querySelector('video')");
    }
}

fn meeting(pair: &mut Pair) {
    let videos = |count: usize| format!("document.querySelectorAll('video').length === {count} && {VIDEOS_PLAY}");
    for browser in &mut *pair {
        browser.wait_until(&videos(2));
        browser.wait_until(&format!("{LINES}.some((line) => line.endsWith(' is here'))"));
    }
    for i in [0, 1, 0] {
        pair[i].eval(&format!("globalThis.screens ?? {FAKE_SCREEN}"));
        pair[i].eval("(endedListeners.length = 0, document.querySelector('#screen').click())");
        pair[1 - i].wait_until(&videos(3));
        pair[i].wait_until("endedListeners.length === 1");
        pair[i].eval("(endedListeners.forEach((listener) => listener()), 0)");
        pair[1 - i].wait_until(&videos(2));
    }
    pair[0].type_text("input", "words");
    pair[1].wait_until(&format!("{LINES}.some((line) => line.endsWith(': words'))"));
    pair[0].eval("document.querySelector('#leave').click()");
    pair[0].wait_until(&videos(0));
    pair[1].wait_until(&videos(1));
    pair[1].wait_until(&format!("{LINES}.some((line) => line.endsWith(' has left'))"));
}

fn files(pair: &mut Pair) {
    for i in [0, 1] {
        pair[i].eval(
            "(() => {
                const bytes = new Uint8Array(3_000_000).map((_, index) => index * 7);
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], 'photo.jpg'));
                document.querySelector('input').files = transfer.files;
            })()",
        );
        // The peer may not be connected yet, and then does not get the file.
        pair[i].eval("(document.querySelector('progress').value = 0)");
        pair[i].wait_until(
            "document.querySelector('progress').value > 0
            || !document.querySelector('input').dispatchEvent(new Event('change'))",
        );
        pair[1 - i].wait_until("document.querySelector('a')");
        let other = &mut pair[1 - i];
        assert_eq!(other.eval("document.querySelector('a').textContent"), "photo.jpg, 3000000 bytes");
        let sum = "[...new Uint8Array(await (await fetch(document.querySelector('a').href)).arrayBuffer())]
            .every((byte, index) => byte === (index * 7) % 256)";
        assert_eq!(other.eval(sum), true);
        other.wait_until("document.querySelector('progress').value > 0");
    }
}

fn presence(pair: &mut Pair) {
    for browser in &mut *pair {
        browser.wait_until(&format!("{LINES}.join() === 'Aoi: connected'"));
    }
    pair[0].eval(
        "(document.querySelector('input').value = 'Ren',
        document.querySelector('input').dispatchEvent(new Event('input')), 0)",
    );
    pair[1].wait_until(&format!("{LINES}.join() === 'Ren: connected'"));
    pair[1].open("about:blank");
    pair[0].wait_until(&format!("{LINES}.length === 0"));
}

fn audio_only(pair: &mut Pair) {
    for browser in pair {
        browser.wait_until("players.length === 1 && players[0].currentTime > 0");
    }
}

type Scenario = fn(&mut Pair);

/// The pages of the documentation, by their headings.
const SCENARIOS: [(&str, Scenario); 8] = [
    ("Quick start", quick_start),
    ("Chat", chat),
    ("Video call", video_call),
    ("Screen share", screen_share),
    ("Video call with chat and screen share", meeting),
    ("Files, with progress", files),
    ("Presence", presence),
    ("Audio only", audio_only),
];

#[test]
fn pages_of_the_documentation_work_in_chromium_and_firefox() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let port = free_port();
    // Another test opens the page of README.md.
    let pages: Vec<(String, String)> =
        pages(port).into_iter().filter(|(heading, _)| heading != "Use in your app").collect();
    let headings: Vec<&str> = pages.iter().map(|(heading, _)| &**heading).collect();
    assert_eq!(headings, SCENARIOS.map(|(heading, _)| heading));
    let paths: Vec<String> = (0..pages.len()).map(|index| format!("/{index}")).collect();
    let files: Vec<(&str, &str)> =
        paths.iter().zip(&pages).map(|(path, (_, page))| (&**path, &**page)).collect();
    let page = serve(&files);
    let _server = start_server(port, page);
    let [mut chromium] = Chromium::start();
    let [mut firefox] = Firefox::start();
    for (index, (heading, scenario)) in SCENARIOS.iter().enumerate() {
        println!("{heading}");
        let mut pair: Pair = [&mut chromium, &mut firefox];
        for browser in &mut pair {
            browser.open(&format!("http://localhost:{}/{index}", page.port()));
        }
        scenario(&mut pair);
    }
    chromium.assert_no_errors();
    firefox.assert_no_errors();
}

/// Each module runs to its end, with a peer in the rooms `tea` and `pairs`.
#[test]
fn modules_of_the_documentation_run_without_errors() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let port = free_port();
    let is_module = |example: &Example| example.language == "js" && !example.code.contains("from \"werift\"");
    let modules: Vec<(String, String)> = library_examples()
        .into_iter()
        .filter(is_module)
        .map(|example| {
            let library = format!("\"http://127.0.0.1:{port}/noroshi.js\"");
            let code = example.code.replace("\"noroshi\"", &library);
            (example.heading, code.replace("localhost:8080", &format!("127.0.0.1:{port}")))
        })
        .collect();
    assert!(modules.len() >= 9, "{}", modules.len());
    let paths: Vec<String> = (0..modules.len()).map(|index| format!("/{index}.js")).collect();
    let mut files: Vec<(&str, &str)> =
        paths.iter().zip(&modules).map(|(path, (_, code))| (&**path, &**code)).collect();
    files.push(("/", "<!doctype html><link rel=\"icon\" href=\"data:,\">"));
    files.push(("/token", "secret"));
    let page = serve(&files);
    let server = start_server(port, page);
    let [mut chromium] = Chromium::start();
    let [mut companion] = Firefox::start();
    companion.open(&format!("http://{}/healthz", server.address));
    companion.eval("(globalThis.library = await import('/noroshi.js'), 0)");
    companion.eval(
        "(globalThis.rooms = [await library.join('/ws/tea'), await library.connect('/ws/pairs'), await library.connect('/ws')], 0)",
    );
    companion.eval(
        "(rooms.forEach((room) => room.addEventListener('open', ({ peer }) => peer.send({ text: 'hello' }))), 0)",
    );
    for ((heading, _), path) in modules.iter().zip(&paths) {
        println!("{heading}");
        chromium.open(&format!("http://localhost:{}/", page.port()));
        chromium.eval(&format!("await import('{path}'), 0"));
    }
    chromium.assert_no_errors();
    companion.assert_no_errors();
}

/// A page that is left may be in the back/forward cache, where nothing of it runs.
#[test]
fn peers_of_a_page_that_is_left_do_not_wait() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut chromium] = Chromium::start();
    let [mut firefox] = Firefox::start();
    let mut pair: Pair = [&mut chromium, &mut firefox];
    for gone in [0, 1] {
        for browser in &mut pair {
            browser.open(&format!("http://{}/healthz", server.address));
            browser.eval("(globalThis.library = await import('/noroshi.js'), globalThis.reasons = [], 0)");
            browser.eval(&format!("(globalThis.room = await library.join('/ws/room{gone}'), 0)"));
            browser.eval("(room.addEventListener('left', ({ reason }) => reasons.push(reason)), 0)");
        }
        for browser in &mut pair {
            browser.wait_until("[...room.peers.values()][0]?.alive");
        }
        pair[gone].open("about:blank");
        pair[1 - gone].wait_until("room.peers.size === 0");
        // After a lost connection it would be `lost`.
        assert_eq!(pair[1 - gone].eval("reasons.join()"), "left");
    }
}
