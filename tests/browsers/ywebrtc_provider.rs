//! y-webrtc's provider and Yjs from npm, unmodified, on a page of another origin.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::LazyLock;

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::Folder;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use crate::common::program::{free_port, npm};
use crate::common::transcript::SECRET;
use nix::sys::signal::Signal;
use noroshi::http::token::{Claims, Secrets};

/// Yjs and the provider as one script. `None` without npm.
static BUNDLE: LazyLock<Option<String>> = LazyLock::new(|| {
    let home = npm("y-webrtc@10.3.0 yjs@13.6.27 esbuild@0.25.12")?;
    let entry = "import * as Y from 'yjs'; import { WebrtcProvider } from 'y-webrtc'; \
                 Object.assign(window, { Y, WebrtcProvider });";
    std::fs::write(home.join("entry.mjs"), entry).unwrap();
    let mut esbuild = Command::new(home.join("node_modules/.bin/esbuild"));
    esbuild.args(["entry.mjs", "--bundle", "--log-level=error", "--define:global=window"]);
    let bundle = esbuild.current_dir(&home).output().unwrap();
    assert!(bundle.status.success(), "{}", String::from_utf8_lossy(&bundle.stderr));
    std::fs::remove_dir_all(home).unwrap();
    Some(String::from_utf8(bundle.stdout).unwrap())
});

/// Starts a web server with the page. `None` without npm.
fn page() -> Option<SocketAddr> {
    let bundle = BUNDLE.as_ref()?;
    Some(serve(&[("/", include_str!("../pages/ywebrtc.html")), ("/bundle.js", bundle)]))
}

fn start(page: SocketAddr, flags: &str) -> Running {
    let (server, _stderr) =
        run(&format!(r#"exec "$0" --y-webrtc --allow-origin http://localhost:{} {flags}"#, page.port()));
    server
}

fn open(browser: &mut dyn Browser, page: SocketAddr) {
    browser.open(&format!("http://localhost:{}/", page.port()));
    browser.wait_until("window.WebrtcProvider && window.enter");
}

fn url(server: &Running) -> String {
    format!("ws://{}/y-webrtc", server.address)
}

/// Lets each page write a word, and waits until all documents have all of them and are equal.
fn converge(browsers: &mut [&mut dyn Browser], room: &str, word: &str) {
    let count = browsers.len();
    let words: Vec<String> = (0..count).map(|number| format!("{word}-{number}")).collect();
    for (browser, word) in browsers.iter_mut().zip(&words) {
        browser.eval(&format!("write('{room}', '{word} ')"));
    }
    let mut documents = Vec::new();
    for browser in browsers {
        browser.wait_until(&format!("has('{room}', '{}')", words.join("', '")));
        documents.push(browser.eval(&format!("read('{room}')")));
    }
    assert!(documents.iter().all(|document| *document == documents[0]), "{documents:?}");
}

#[test]
fn three_providers_converge_in_several_rooms() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let server = start(page, "");
    let ([mut a, mut b], [mut c]) = (Chromium::start(), Firefox::start());
    let mut all: [&mut dyn Browser; 3] = [&mut a, &mut b, &mut c];
    for (number, browser) in all.iter_mut().enumerate() {
        open(*browser, page);
        browser.eval(&format!("enter('{}', 'tea')", url(&server)));
        browser.eval(&format!("setUser('tea', 'user {number}')"));
    }
    for browser in &mut all {
        browser.wait_until("peers('tea') === 2");
    }
    converge(&mut all, "tea", "hello");
    for browser in &mut all {
        browser.wait_until("users('tea') === 'user 0,user 1,user 2'");
    }
    // Two more rooms on the same connections, one of them encrypted.
    let mut two = all;
    for browser in &mut two[1..] {
        browser.eval(&format!("enter('{}', 'milk')", url(&server)));
        browser.eval(&format!("enter('{}', 'secret', {{ password: 'open sesame' }})", url(&server)));
    }
    for room in ["milk", "secret"] {
        for browser in &mut two[1..] {
            browser.wait_until(&format!("peers('{room}') === 1"));
        }
        converge(&mut two[1..], room, "two");
    }
    assert_eq!(
        (server.metric("connections"), server.metric("peers"), server.metric("rooms")),
        (3.0, 3.0, 3.0)
    );
    // A wrong password finds nobody, and disturbs nobody.
    two[0].eval(&format!("enter('{}', 'secret', {{ password: 'close sesame' }})", url(&server)));
    eventually("the third subscription", || server.metric("messages_total{type=\"subscribe\"}") >= 8.0);
    converge(&mut two[1..], "secret", "again");
    assert_eq!(two[0].eval("read('secret')"), "");
    // Its awareness reports that a user has left.
    two[0].eval("leave('tea')");
    for browser in &mut two[1..] {
        browser.wait_until("users('tea') === 'user 1,user 2'");
    }
    converge(&mut two[1..], "tea", "without it");
    for code in ["not_understood", "peer_busy", "rate_limited", "forbidden", "too_many_topics"] {
        assert_eq!(server.metric(&format!("errors_total{{code=\"{code}\"}}")), 0.0, "{code}");
    }
    drop((a, b, c));
    eventually("nothing is left", || server.metric("connections") + server.metric("rooms") == 0.0);
}

#[test]
fn editing_continues_while_the_server_restarts() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let port = free_port();
    let flags = format!("-l 127.0.0.1:{port}");
    let server = start(page, &flags);
    let url = format!("ws://127.0.0.1:{port}/y-webrtc");
    let ([mut a, mut b], [mut c]) = (Chromium::start(), Firefox::start());
    for browser in [&mut a as &mut dyn Browser, &mut b] {
        open(browser, page);
        browser.eval(&format!("enter('{url}', 'tea')"));
    }
    for browser in [&mut a, &mut b] {
        browser.wait_until("peers('tea') === 1");
    }
    server.signal(Signal::SIGTERM);
    for browser in [&mut a, &mut b] {
        browser.wait_until("!isSignaling('tea')");
    }
    drop(server);
    // Connected editors do not need the server, and another one edits alone.
    converge(&mut [&mut a, &mut b], "tea", "without a server");
    open(&mut c, page);
    c.eval(&format!("enter('{url}', 'tea')"));
    c.eval("write('tea', 'alone ')");
    let server = start(page, &flags);
    for browser in [&mut a as &mut dyn Browser, &mut b, &mut c] {
        browser.wait_until("isSignaling('tea') && peers('tea') === 2");
        browser.wait_until("has('tea', 'alone', 'without a server-0', 'without a server-1')");
    }
    converge(&mut [&mut a, &mut b, &mut c], "tea", "together");
    assert_eq!(server.metric("errors_total{code=\"not_understood\"}"), 0.0);
}

/// Twenty editors, in frames of two browsers.
#[test]
fn twenty_providers_converge() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let server = start(page, "");
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    for (browser, count) in [(&mut a as &mut dyn Browser, 14), (&mut b, 6)] {
        open(browser, page);
        // With the default of 20 to 34, two shared cores would negotiate 190 connections.
        let options = "{ maxConns: 5 }";
        browser.eval(&format!("await enterFrames({count}, '{}', 'tea', {options})", url(&server)));
    }
    eventually("all have subscribed", || server.metric("peers") == 20.0);
    for browser in [&mut a as &mut dyn Browser, &mut b] {
        browser.wait_until("everyFrame(frame => frame.peers('tea') > 0)");
    }
    a.eval("frames[0].write('tea', 'first ')");
    b.eval("frames[5].write('tea', 'last ')");
    for browser in [&mut a as &mut dyn Browser, &mut b] {
        browser.wait_until("everyFrame(frame => frame.has('tea', 'first', 'last'))");
    }
    assert_eq!((server.metric("rooms"), server.metric("errors_total{code=\"peer_busy\"}")), (1.0, 0.0));
    assert_eq!(server.metric("errors_total{code=\"rate_limited\"}"), 0.0);
}

/// Returns a token for this topic, which expires in the year 2096.
fn token(room: &str) -> String {
    Secrets::parse(SECRET).unwrap().sign(&Claims {
        expires_at: std::time::Duration::from_secs(4_000_000_000),
        room: Some(room.into()),
        ..Claims::default()
    })
}

#[test]
fn token_admits_to_its_room_and_can_be_renewed() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let folder = Folder::new("ywebrtc-token");
    let file = folder.0.join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let server = start(page, &format!("--token-secret-file {}", file.display()));
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    let mut pair: [&mut dyn Browser; 2] = [&mut a, &mut b];
    let with_token = |room: &str| format!("{}?token={}", url(&server), token(room));
    for browser in &mut pair {
        open(*browser, page);
    }
    pair[0].eval(&format!("enter('{}', 'tea')", with_token("tea")));
    pair[1].eval(&format!("enter('{}', 'tea')", url(&server)));
    pair[0].wait_until("isSignaling('tea')");
    eventually("a client without a token is refused", || {
        server.metric("refused_tokens_total{reason=\"missing\"}") >= 2.0
    });
    // The client reads its URL at each attempt.
    pair[1].eval(&format!(
        "rooms.get('tea').provider.signalingConns.forEach(connection => connection.url = '{}')",
        with_token("tea")
    ));
    for browser in &mut pair {
        browser.wait_until("peers('tea') === 1");
    }
    converge(&mut pair, "tea", "hello");
    // The token is for another room.
    pair[0].eval(&format!("enter('{}', 'milk')", with_token("tea")));
    eventually("the other topic is refused", || server.metric("errors_total{code=\"forbidden\"}") >= 2.0);
    assert_eq!(server.metric("rooms"), 1.0);
}
