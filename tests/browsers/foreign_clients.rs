//! The clients of the library's documentation in Python and Node.js, which follow the protocol document alone, with browsers.

use std::process::Command;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::Folder;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, run};
use crate::common::program::{Program, find, npm};
use crate::common::readme::read;
use serde_json::json;

/// After this time (milliseconds), the library would replace a connection that does not settle.
const SETTLING_MAX: f64 = 10_000.0;

/// Returns the code block below a heading.
fn code_below(heading: &str) -> String {
    let text = read("src/web/README.md");
    let (_, below) = text.split_once(&format!("\n{heading}\n")).unwrap();
    let (_, block) = below.split_once("\n```").unwrap();
    let (_, code) = block.split_once('\n').unwrap();
    code.split_once("\n```").unwrap().0.to_owned()
}

/// Enters the room in a page, and records what happens.
fn enter(browser: &mut dyn Browser, server: &Running, room: &str) {
    browser.open(&format!("http://{}/healthz", server.address));
    browser.eval("(globalThis.library = await import('/noroshi.js'), globalThis.received = [], globalThis.problems = [], 0)");
    browser.eval(&format!("(globalThis.room = await library.join('/ws/{room}'), 0)"));
    browser.eval(
        "(room.addEventListener('peer', ({ peer }) => {
            globalThis.peer = peer;
            globalThis.began = performance.now();
        }),
        room.addEventListener('open', ({ peer }) => {
            globalThis.time = performance.now() - began;
            globalThis.pc = peer.pc;
            peer.send('hello');
        }),
        room.addEventListener('message', ({ data }) => received.push(data)),
        room.addEventListener('track', ({ track }) => received.push(`a track of ${track.kind}`)),
        room.addEventListener('reconnecting', () => problems.push('reconnecting')),
        room.addEventListener('error', ({ error }) => problems.push(error.message)),
        room.addEventListener('left', ({ reason }) => received.push(reason)), 0)",
    );
}

/// Exchanges messages with the client, then offers come from both sides, one after the other and together.
fn talk(browser: &mut dyn Browser, description: &str) {
    browser.wait_until("received.includes('you said hello')");
    let time = browser.eval("time").as_f64().unwrap();
    println!("{description}: messages can be sent after {time:.0} ms");
    assert!(time < SETTLING_MAX, "{description}: {time} ms");
    let stable = "pc.signalingState === 'stable' && pc.connectionState === 'connected'";
    browser.eval("peer.send('video')");
    browser.wait_until(&format!("received.includes('a track of video') && {stable}"));
    browser.eval(
        "(globalThis.picture = () => {
            const canvas = document.createElement('canvas');
            const context = canvas.getContext('2d');
            setInterval(() => context.fillRect(0, 0, Math.random() * 99, 99), 40);
            return canvas.captureStream();
        }, globalThis.isSending = ({ sender, currentDirection }) => sender.track && currentDirection?.includes('send'),
        room.share(picture()), 0)",
    );
    browser.wait_until(&format!("received.includes('you send video') && {stable}"));
    // A glare, or nearly.
    browser.eval("(peer.send('video'), room.share(picture()), 0)");
    browser.wait_until(&format!(
        "received.filter((it) => it === 'a track of video').length >= 2
        && pc.getTransceivers().filter(isSending).length === 2 && {stable}"
    ));
    browser.eval("(received.length = 0, peer.send('after all'), 0)");
    browser.wait_until("received.includes('you said after all')");
    assert_eq!(browser.eval("problems"), json!([]), "{description}");
    assert_eq!(browser.eval("peer.pc === pc && room.peers.size === 1"), true, "{description}");
}

/// Runs the client with both browsers, in either order.
fn test_client(language: &str, program: &str, arguments: &str) {
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut chromium] = Chromium::start();
    let [mut firefox] = Firefox::start();
    let browsers: [(&str, &mut dyn Browser); 2] = [("Chromium", &mut chromium), ("Firefox", &mut firefox)];
    for (name, browser) in browsers {
        for is_first in [true, false] {
            let order = if is_first { "before" } else { "after" };
            let description = format!("{language}, {order} {name}");
            let room = format!("{order}-{name}");
            let start = || Program::start(program, &format!("{arguments} ws://{}/ws/{room}", server.address));
            let client = if is_first {
                let client = start();
                client.wait_until("the client is in the room", || {
                    (server.metric("peers") == 1.0).then_some(())
                });
                enter(browser, &server, &room);
                client
            } else {
                enter(browser, &server, &room);
                start()
            };
            talk(browser, &description);
            drop(client);
            browser.eval("room.leave()");
            browser.assert_no_errors();
        }
    }
}

#[test]
fn python_client_of_the_documentation_talks_to_browsers() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(python) = find("python3") else { return };
    let home = Folder::new("python-client");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", "packages"];
    let mut install = Command::new(&python);
    install.args(pip).args(["aiortc==1.16.0", "websockets"]).current_dir(&home.0);
    assert!(install.status().unwrap().success());
    std::fs::write(home.0.join("client.py"), code_below("### Python: aiortc")).unwrap();
    let folder = home.0.display();
    let arguments = format!("PYTHONPATH={folder}/packages {} {folder}/client.py", python.display());
    test_client("Python", "/usr/bin/env", &arguments);
}

#[test]
fn node_client_of_the_documentation_talks_to_browsers() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(node) = find("node") else { return };
    let Some(home) = npm("werift@0.25 ws@8").map(Folder) else { return };
    std::fs::write(home.0.join("client.mjs"), code_below("### Node.js: werift")).unwrap();
    test_client("Node.js", node.to_str().unwrap(), home.0.join("client.mjs").to_str().unwrap());
}
