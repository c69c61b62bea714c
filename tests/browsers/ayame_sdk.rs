//! Ayame's web SDK from npm, unmodified, on a page of another origin.

use crate::common::auxiliary_servers::{TURNSERVER, coturn, serve};
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::client::Client;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use crate::common::program::npm;
use nix::sys::signal::Signal;
use serde_json::json;

/// Starts a web server with the page. `None` without npm.
fn page() -> Option<std::net::SocketAddr> {
    let home = npm("@open-ayame/ayame-web-sdk@2025.1.1")?;
    let sdk = home.join("node_modules/@open-ayame/ayame-web-sdk/dist/ayame.mjs");
    let sdk = std::fs::read_to_string(sdk).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    Some(serve(&[("/", include_str!("../pages/ayame.html")), ("/ayame.mjs", &sdk)]))
}

fn open(browser: &mut dyn Browser, page: std::net::SocketAddr) {
    browser.open(&format!("http://localhost:{}/", page.port()));
    browser.wait_until("window.enter");
}

/// Connects a page and returns the outcome.
fn connect_page(browser: &mut dyn Browser, server: &Running, options: &str) -> String {
    let url = format!("ws://{}/signaling", server.address);
    browser.eval(&format!("await enter('{url}', {options})")).as_str().unwrap().to_owned()
}

/// Waits until each page receives the other's message.
fn exchange_messages(pair: &mut [&mut dyn Browser; 2], words: &str) {
    for browser in &mut *pair {
        browser.wait_until("window.channel?.readyState === 'open'");
    }
    for i in [0, 1] {
        pair[i].eval(&format!("channel.send('{words} {i}')"));
        pair[1 - i].wait_until(&format!("sent.includes('{words} {i}')"));
    }
}

/// Waits until each page receives the other's video.
fn wait_for_video(pair: &mut [&mut dyn Browser; 2]) {
    for browser in pair {
        browser.wait_until("document.querySelector('video').srcObject?.getVideoTracks().length === 1");
        browser.wait_until("document.querySelector('video').videoWidth > 0");
    }
}

fn wait_until_empty(server: &Running) {
    eventually("all connections are closed", || server.metric("connections") + server.metric("rooms") == 0.0);
}

const CAMERA: &str = "{ stream: true, iceServers: [] }";
const CHAT: &str = "{ audio: { enabled: false }, video: { enabled: false }, iceServers: [] }";

fn connect_and_disconnect(first: &mut dyn Browser, second: &mut dyn Browser, server: &Running) {
    assert_eq!(connect_page(first, server, CAMERA), "in");
    assert_eq!(connect_page(second, server, CAMERA), "in");
    let mut pair: [&mut dyn Browser; 2] = [first, second];
    wait_for_video(&mut pair);
    exchange_messages(&mut pair, "hello");
    // After a disconnect the partner receives `bye`, and then its own connection is closed.
    pair[0].eval("await connection.disconnect()");
    pair[1].wait_until("received.includes('bye') && received.includes('disconnect WS-CLOSED')");
    wait_until_empty(server);
    // Both reconnect with their existing objects.
    for browser in &mut pair {
        browser.eval("window.channel = undefined");
        assert_eq!(browser.eval("await again(true)"), "in");
    }
    exchange_messages(&mut pair, "again");
    for browser in &mut pair {
        browser.eval("await connection.disconnect()");
    }
    wait_until_empty(server);
}

#[test]
fn two_clients_connect_disconnect_and_reconnect() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let flags = format!("--ayame --allow-origin http://localhost:{}", page.port());
    let (server, _stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let ([mut a, mut b], [mut c]) = (Chromium::start(), Firefox::start());
    for browser in [&mut a as &mut dyn Browser, &mut b, &mut c] {
        open(browser, page);
    }
    connect_and_disconnect(&mut a, &mut b, &server);
    connect_and_disconnect(&mut a, &mut c, &server);
    connect_and_disconnect(&mut c, &mut b, &server);
    for browser in [&mut a as &mut dyn Browser, &mut b, &mut c] {
        browser.assert_no_errors();
    }
}

#[test]
fn third_client_is_rejected_unless_a_member_is_dead() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM]) else { return };
    let Some(page) = page() else { return };
    let flags = format!("--ayame --allow-origin http://localhost:{}", page.port());
    let (server, _stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let [mut a, mut b, mut c] = Chromium::start();
    for browser in [&mut a, &mut b, &mut c] {
        open(browser, page);
    }
    assert_eq!(connect_page(&mut a, &server, CHAT), "in");
    assert_eq!(connect_page(&mut b, &server, CHAT), "in");
    exchange_messages(&mut [&mut a, &mut b], "hello");
    assert_eq!(connect_page(&mut c, &server, CHAT), "REJECTED");
    c.wait_until("received.includes('disconnect full')");
    exchange_messages(&mut [&mut a, &mut b], "still here");
    for browser in [&mut a, &mut b, &mut c] {
        browser.eval("await connection.disconnect()");
        browser.wait_until("!connection.webSocket && !connection.peerConnection");
    }
    wait_until_empty(&server);
    // A client whose network is gone. Its partner receives `bye` and reconnects as the second client.
    let mut dead = Client::connect(server.address).upgrade_at("/signaling");
    dead.send_json(json!({"type": "register", "roomId": "tea"}));
    assert_eq!(dead.receive_json()["isExistUser"], false);
    assert_eq!(b.eval("await again(false)"), "in");
    assert_eq!(c.eval("await again(false)"), "in");
    b.wait_until("received.includes('bye') && !connection.webSocket && !connection.peerConnection");
    assert_eq!(b.eval("window.channel = undefined, await again(false)"), "in");
    exchange_messages(&mut [&mut b, &mut c], "without it");
    drop(dead);
    for browser in [&mut a, &mut b, &mut c] {
        browser.eval("await connection.disconnect()");
        browser.assert_no_errors();
    }
    wait_until_empty(&server);
}

#[test]
fn restart_ends_all_but_standalone_connections() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let flags = format!("--ayame --allow-origin http://localhost:{}", page.port());
    let (server, _stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    let mut pair: [&mut dyn Browser; 2] = [&mut a, &mut b];
    for browser in &mut pair {
        assert_eq!(connect_page(*browser, &server, CHAT), "in");
    }
    exchange_messages(&mut pair, "hello");
    server.signal(Signal::SIGTERM);
    for browser in &mut pair {
        browser.wait_until("received.includes('disconnect WS-CLOSED')");
    }
    drop(server);
    // A standalone client needs the server only to establish the connection.
    let (server, _stderr) = run(&format!(r#"exec "$0" {flags}"#));
    let standalone = CHAT.replace("iceServers", "standalone: true, iceServers");
    for browser in &mut pair {
        browser.eval("window.channel = undefined");
        assert_eq!(connect_page(*browser, &server, &standalone), "in");
    }
    exchange_messages(&mut pair, "alone");
    wait_until_empty(&server);
    assert_eq!(server.metric("errors_total{code=\"not_understood\"}"), 0.0);
    server.signal(Signal::SIGTERM);
    exchange_messages(&mut pair, "still");
    for browser in &mut pair {
        assert!(!browser.eval("received.join()").as_str().unwrap().contains("bye"));
        browser.eval("await connection.disconnect()");
        // With Ayame's original server, too, the second client sends this to a closed connection.
        browser.errors().retain(|error| !error.contains("WebSocket is already in CLOSING or CLOSED state"));
        browser.assert_no_errors();
    }
}

#[test]
fn clients_use_the_turn_server_that_they_receive() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX, TURNSERVER]) else { return };
    let Some(page) = page() else { return };
    let (coturn, port) = coturn("open-sesame");
    let file = coturn.home.join("secret");
    std::fs::write(&file, "open-sesame").unwrap();
    let (server, _stderr) = run(&format!(
        r#"exec "$0" --ayame --allow-origin http://localhost:{} --ice-server turn:127.0.0.1:{port} --turn-secret-file {}"#,
        page.port(),
        file.display()
    ));
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    let mut pair: [&mut dyn Browser; 2] = [&mut a, &mut b];
    for browser in &mut pair {
        assert_eq!(
            connect_page(*browser, &server, &CHAT.replace("iceServers", "relay: true, iceServers")),
            "in"
        );
    }
    exchange_messages(&mut pair, "by the relay");
    for browser in &mut pair {
        assert_eq!(browser.eval("await localCandidateType()"), "relay");
    }
    for browser in &mut pair {
        browser.eval("await connection.disconnect()");
        browser.assert_no_errors();
    }
    wait_until_empty(&server);
}
