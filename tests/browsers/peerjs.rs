//! The client `peerjs` from npm, unmodified, on a page of another origin.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::client::Client;
use crate::common::files::Folder;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use crate::common::program::{free_port, npm};
use crate::common::transcript::SECRET;
use nix::sys::signal::Signal;
use noroshi::http::token::{Claims, Secrets};

/// Starts a web server with the page. `None` without npm.
fn page() -> Option<SocketAddr> {
    let home = npm("peerjs@1.5.5")?;
    let client = std::fs::read_to_string(home.join("node_modules/peerjs/dist/peerjs.min.js")).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    Some(serve(&[("/", include_str!("../pages/peerjs.html")), ("/peerjs.min.js", &client)]))
}

fn start(page: SocketAddr, flags: &str) -> Running {
    let (server, _stderr) =
        run(&format!(r#"exec "$0" --allow-origin http://localhost:{} {flags}"#, page.port()));
    server
}

fn open(browser: &mut dyn Browser, page: SocketAddr) {
    browser.open(&format!("http://localhost:{}/", page.port()));
    browser.wait_until("window.enter");
}

/// Creates the peer of a page and returns the first event. An empty id: the server generates one.
fn enter(browser: &mut dyn Browser, server: &Running, id: &str, options: &str) -> String {
    let port = server.address.port();
    let outcome = browser.eval(&format!("await enter('{id}', {{ port: {port}, {options} }})"));
    outcome.as_str().unwrap().to_owned()
}

fn wait_for_data(from: &mut dyn Browser, from_id: &str, to: &mut dyn Browser, to_id: &str, words: &str) {
    from.wait_until(&format!("connections['{to_id}']?.open"));
    to.wait_until(&format!("connections['{from_id}']?.open"));
    from.eval(&format!("connections['{to_id}'].send('{words}')"));
    to.wait_until(&format!("received.includes('{words}')"));
}

fn wait_for_video(browser: &mut dyn Browser) {
    browser.wait_until("document.querySelector('video').srcObject?.getVideoTracks().length === 1");
    browser.wait_until("document.querySelector('video').videoWidth > 0");
}

/// The errors that PeerJS itself writes to the console.
fn assert_no_other_errors(browser: &mut dyn Browser) {
    browser.errors().retain(|error| !error.contains("PeerJS: "));
    browser.assert_no_errors();
}

fn wait_until_empty(server: &Running) {
    eventually("all connections are closed", || server.metric("connections") + server.metric("rooms") == 0.0);
}

fn connect_and_call(first: &mut dyn Browser, second: &mut dyn Browser, server: &Running, options: &str) {
    assert_eq!(enter(first, server, "alice", options), "open alice");
    // The server generates the id of the other one.
    let opened = enter(second, server, "", options);
    let id = opened.strip_prefix("open ").unwrap().to_owned();
    assert_eq!(id.len(), 36, "{id}");
    first.eval(&format!("connectTo('{id}')"));
    wait_for_data(first, "alice", second, &id, "hello");
    wait_for_data(second, &id, first, "alice", "hello to you");
    second.eval("await callTo('alice')");
    wait_for_video(first);
    wait_for_video(second);
    // The others stay connected when one has left the server.
    first.eval("peer.disconnect()");
    wait_for_data(second, &id, first, "alice", "still here");
    leave(first);
    leave(second);
    wait_until_empty(server);
}

fn leave(browser: &mut dyn Browser) {
    browser.eval("peer.destroy(), document.querySelector('video').srcObject = null");
    assert_no_other_errors(browser);
}

#[test]
fn peers_connect_and_call_with_named_and_generated_ids() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let server = start(page, "--peerjs");
    let top = start(page, "--peerjs=/");
    let ([mut a, mut b], [mut c]) = (Chromium::start(), Firefox::start());
    for browser in [&mut a as &mut dyn Browser, &mut b, &mut c] {
        open(browser, page);
    }
    connect_and_call(&mut a, &mut b, &server, "");
    connect_and_call(&mut a, &mut c, &server, "path: '/peerjs', key: 'k2'");
    connect_and_call(&mut c, &mut b, &top, "key: 'k3'");
}

#[test]
fn ids_are_taken_only_by_pages_that_are_there() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let server = start(page, "--peerjs");
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    assert_eq!(enter(&mut a, &server, "alice", ""), "open alice");
    assert_eq!(enter(&mut b, &server, "alice", ""), "unavailable-id");
    // Another key is another namespace.
    assert_eq!(enter(&mut b, &server, "alice", "key: 'k2'"), "open alice");
    assert_eq!(enter(&mut b, &server, "bob", ""), "open bob");
    // A reloaded page has a new token.
    open(&mut a, page);
    assert_eq!(enter(&mut a, &server, "alice", ""), "open alice");
    a.eval("connectTo('bob')");
    wait_for_data(&mut a, "alice", &mut b, "bob", "after the reload");
    // The page reconnects with its id and token, while the server still has the old connection.
    a.eval("peer.socket._socket.close = () => {}");
    a.eval("events.length = 0, peer.disconnect(), peer.reconnect()");
    a.wait_until("events.includes('open alice')");
    wait_for_data(&mut b, "bob", &mut a, "alice", "after the reconnect");
    // A client whose network is gone holds its id for five seconds at most.
    let mut gone = Client::connect(server.address).upgrade_at("/peerjs?key=peerjs&id=carol&token=t");
    assert_eq!(gone.receive_json()["type"], "OPEN");
    assert_eq!(enter(&mut b, &server, "carol", ""), "open carol");
    drop(gone);
    leave(&mut a);
    leave(&mut b);
}

#[test]
fn absent_peer_is_called_and_comes_or_never_comes() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let server = start(page, "--peerjs");
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    assert_eq!(enter(&mut a, &server, "alice", ""), "open alice");
    a.eval("connectTo('late'), connectTo('never')");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(enter(&mut b, &server, "late", ""), "open late");
    wait_for_data(&mut a, "alice", &mut b, "late", "in time");
    a.wait_until("events.includes('peer-unavailable')");
    assert_eq!(a.eval("events.filter((event) => event === 'peer-unavailable').length"), 1);
    assert_eq!(a.eval("errors.join()"), "Could not connect to peer never");
    leave(&mut a);
    leave(&mut b);
}

#[test]
fn connections_survive_a_restart_of_the_server() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let flags = format!("--peerjs --listen 127.0.0.1:{}", free_port());
    let server = start(page, &flags);
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    assert_eq!(enter(&mut a, &server, "alice", ""), "open alice");
    assert_eq!(enter(&mut b, &server, "bob", ""), "open bob");
    a.eval("connectTo('bob')");
    wait_for_data(&mut a, "alice", &mut b, "bob", "before");
    server.signal(Signal::SIGTERM);
    for browser in [&mut a as &mut dyn Browser, &mut b] {
        browser.wait_until("events.includes('disconnected')");
    }
    wait_for_data(&mut b, "bob", &mut a, "alice", "without a server");
    drop(server);
    let server = start(page, &flags);
    for (browser, id) in [(&mut a as &mut dyn Browser, "alice"), (&mut b, "bob")] {
        browser.eval("events.length = 0, peer.reconnect()");
        browser.wait_until(&format!("events.includes('open {id}')"));
    }
    b.eval("delete connections.alice, connectTo('alice')");
    wait_for_data(&mut b, "bob", &mut a, "alice", "again");
    leave(&mut a);
    leave(&mut b);
    wait_until_empty(&server);
}

fn token(id: Option<&str>, key: &str) -> String {
    let expires_at = Duration::from_secs(4_000_000_000);
    let claims = Claims { expires_at, room: Some(key.into()), id: id.map(Box::from), ..Claims::default() };
    Secrets::parse(SECRET).unwrap().sign(&claims)
}

#[test]
fn pages_connect_with_tokens_and_get_reasons() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(page) = page() else { return };
    let folder = Folder::new("peerjs-tokens");
    let file = folder.0.join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let server = start(page, &format!("--peerjs --token-secret-file {}", file.display()));
    let ([mut a], [mut b]) = (Chromium::start(), Firefox::start());
    open(&mut a, page);
    open(&mut b, page);
    for browser in [&mut a as &mut dyn Browser, &mut b] {
        assert_eq!(enter(browser, &server, "alice", ""), "server-error");
        let error = browser.eval("errors.at(-1)").as_str().unwrap().to_owned();
        assert_eq!(error, "the token is invalid: expected a JWT with exp, signed with HS256, HS384 or HS512");
        let other = format!("token: '{}'", token(Some("alice"), "k2"));
        assert_eq!(enter(browser, &server, "alice", &other), "server-error");
        assert_eq!(browser.eval("errors.at(-1)"), "the token is for another room");
    }
    let alice = format!("token: '{}'", token(Some("alice"), "peerjs"));
    assert_eq!(enter(&mut a, &server, "alice", &alice), "open alice");
    // Another page with a token for the id takes it over.
    assert_eq!(enter(&mut b, &server, "alice", &alice), "open alice");
    a.wait_until("events.includes('disconnected')");
    // A page renews its token before it reconnects.
    let renewed = token(Some("alice"), "peerjs");
    a.eval(&format!("events.length = 0, peer.options.token = '{renewed}', peer.reconnect()"));
    a.wait_until("events.includes('open alice')");
    let anyone = format!("token: '{}'", token(None, "peerjs"));
    assert_eq!(enter(&mut b, &server, "bob", &anyone), "open bob");
    b.eval("connectTo('alice')");
    wait_for_data(&mut b, "bob", &mut a, "alice", "hello");
    leave(&mut a);
    leave(&mut b);
    assert_eq!(server.metric("refused_tokens_total{reason=\"room\"}"), 2.0);
}
