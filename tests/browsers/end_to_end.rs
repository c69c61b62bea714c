//! The page, the client library and the article's flow in real browsers on this machine.

use crate::common::auxiliary_servers::{TURNSERVER, coturn, serve};
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{Running, eventually, run};
use nix::sys::signal::Signal;
use serde_json::json;

/// Opens the page under a name.
fn open_page(browser: &mut dyn Browser, server: &Running, name: &str) {
    browser.open(&format!("http://{}/?room=tea&name={name}", server.address));
    browser.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
}

/// Waits until this is the last line of the chat.
fn wait_for_chat_line(browser: &mut dyn Browser, line: &str) {
    browser.wait_until(&format!("{CHAT}.at(-1) === {line:?}"));
}

/// An expression for the lines of the chat.
const CHAT: &str = "[...document.querySelectorAll('#log li')].map((it) =>
    it.className === 'note' ? it.textContent : [...it.children].map((part) => part.textContent).join(': '))";

/// Returns an expression for the peer with a name.
fn peer_named(name: &str) -> String {
    format!("[...room.peers.values()].find(({{ data }}) => data?.name === '{name}')")
}

/// Returns an expression for the tile of the peer with a name.
fn tile_of(name: &str) -> String {
    format!("document.querySelector(`[data-peer=\"${{{}.id}}\"]`)", peer_named(name))
}

/// Returns an expression for the number of decoded video frames of a peer.
fn decoded(name: &str) -> String {
    let stats = format!("[...(await {}.pc.getStats()).values()]", peer_named(name));
    format!("{stats}.find((it) => it.type === 'inbound-rtp' && it.kind === 'video')?.framesDecoded ?? 0")
}

/// Waits until the server has no rooms and no connections.
fn wait_until_empty(server: &Running) {
    eventually("all connections are closed", || {
        ["connections", "peers", "rooms"].iter().all(|name| server.metric(name) == 0.0)
    });
}

#[test]
fn three_pages_connect_and_one_is_killed() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let ([mut aoi, mut yuki], [mut ren]) = (Chromium::start(), Firefox::start());
    open_page(&mut aoi, &server, "Aoi");
    open_page(&mut ren, &server, "Ren");
    wait_for_chat_line(&mut aoi, "Ren is here.");
    wait_for_chat_line(&mut ren, "Aoi is here.");
    aoi.type_text("#say", "Good evening!");
    wait_for_chat_line(&mut ren, "Aoi: Good evening!");
    ren.type_text("#say", "Good evening, Aoi!");
    wait_for_chat_line(&mut aoi, "Ren: Good evening, Aoi!");

    open_page(&mut yuki, &server, "Yuki");
    for browser in [&mut aoi as &mut dyn Browser, &mut ren] {
        wait_for_chat_line(browser, "Yuki is here.");
    }
    yuki.wait_until(&format!("{CHAT}.length === 3"));
    ren.type_text("#say", "Is it snowing?");
    for browser in [&mut aoi, &mut yuki] {
        wait_for_chat_line(browser, "Ren: Is it snowing?");
    }
    aoi.type_text("#say", "Not here.");
    for browser in [&mut ren as &mut dyn Browser, &mut yuki] {
        wait_for_chat_line(browser, "Aoi: Not here.");
    }
    yuki.type_text("#say", "It is!");
    for browser in [&mut aoi as &mut dyn Browser, &mut ren] {
        wait_for_chat_line(browser, "Yuki: It is!");
        let state = format!("{}.querySelector('.state').textContent", tile_of("Yuki"));
        let expected = r"/^connected, direct, \d+ ms, (host|prflx) ↔ (host|prflx)$/";
        browser.wait_until(&format!("{expected}.test({state})"));
    }

    aoi.eval("document.querySelector('#camera').click()");
    for browser in [&mut ren as &mut dyn Browser, &mut yuki] {
        browser.wait_until(&decoded("Aoi"));
        let before = browser.eval(&decoded("Aoi"));
        browser.wait_until(&format!("({}) > {before}", decoded("Aoi")));
        browser.wait_until(&format!("{}.querySelector('video').videoWidth > 0", tile_of("Aoi")));
    }
    // The screenshot in the README.
    if let Some(path) = std::env::var_os("TEST_SCREENSHOT") {
        ren.eval("document.querySelector('#camera').click()");
        aoi.wait_until(&format!("({}) > 15", decoded("Ren")));
        aoi.resize(1100, 780, "light");
        std::fs::write(path, aoi.screenshot()).unwrap();
    }

    yuki.kill();
    for browser in [&mut aoi as &mut dyn Browser, &mut ren] {
        wait_for_chat_line(browser, "The connection to Yuki is lost.");
        browser.wait_until("document.querySelectorAll('#peers .peer').length === 1");
    }
    aoi.eval("room.leave()");
    aoi.wait_until("document.querySelector('#status-words').textContent === 'You have left the room.'");
    aoi.wait_until("document.querySelectorAll('#peers .peer').length === 0");
    wait_for_chat_line(&mut ren, "Aoi has left.");
    let lines = json!([
        "Messages go directly to the other people, not through the server.",
        "Aoi is here.",
        "Aoi: Good evening!",
        "Ren: Good evening, Aoi!",
        "Yuki is here.",
        "Ren: Is it snowing?",
        "Aoi: Not here.",
        "Yuki: It is!",
        "The connection to Yuki is lost.",
        "Aoi has left.",
    ]);
    assert_eq!(ren.eval(CHAT), lines);
    ren.eval("room.leave()");
    wait_until_empty(&server);
    aoi.kill();
    ren.assert_no_errors();
}

#[test]
fn server_restart_interrupts_no_connection() {
    let Some(_browsers) = reserve_browsers(4, &[CHROMIUM]) else { return };
    let (mut server, _stderr) = run(r#"exec "$0""#);
    let [aoi, ren, yuki, mut sora] = Chromium::start();
    let mut three = [aoi, ren, yuki];
    let names = ["Aoi", "Ren", "Yuki"];
    for (browser, name) in three.iter_mut().zip(names) {
        open_page(browser, &server, name);
    }
    // Each page sends consecutive numbers and records missing ones.
    for browser in &mut three {
        browser.wait_until("[...room.peers.values()].filter((peer) => peer.alive).length === 2");
        browser.eval(
            "const idBefore = room.id, before = [...room.peers.values()].map(({ pc }) => pc), last = {}, lost = [];
            room.addEventListener('message', ({ peer: { id }, data }) => {
                if (id in last && Number(data) !== last[id] + 1) lost.push(`${data} of ${id} after ${last[id]}`);
                last[id] = Number(data);
            });
            let count = 0;
            setInterval(() => room.send(String(++count)), 50)",
        );
    }
    wait_for_numbers(&mut three);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    for browser in &mut three {
        browser.wait_until("document.querySelector('#status').dataset.state === 'offline'");
    }
    wait_for_numbers(&mut three);
    let (server, _stderr) = run(&format!(r#"exec "$0" -l {}"#, server.address));
    for (browser, name) in three.iter_mut().zip(names) {
        browser.wait_until("document.querySelector('#status').dataset.state === 'online'");
        assert_eq!(browser.eval("[room.id === idBefore, room.data.name]"), json!([true, name]));
        browser.wait_until("[...room.peers.values()].every((peer) => peer.alive && !peer.away)");
    }
    open_page(&mut sora, &server, "Sora");
    for (browser, name) in three.iter_mut().zip(names) {
        sora.wait_until(&format!("{CHAT}.includes('{name} is here.')"));
        browser.wait_until(&format!("{CHAT}.includes('Sora is here.')"));
        // The connections to the first two pages are unchanged.
        let known = browser.eval("[...room.peers.values()].map(({ pc }) => before.indexOf(pc)).join()");
        assert_eq!(known, "0,1,-1");
        // The browser reports failed requests while the server was down.
        browser.errors.retain(|error| !error.contains("net::ERR_CONNECTION_REFUSED"));
    }
    wait_for_numbers(&mut three);
    sora.kill();
    three.into_iter().for_each(Chromium::kill);
    wait_until_empty(&server);
}

/// Waits until each page has received twenty more numbers from the two others without a gap.
fn wait_for_numbers(three: &mut [Chromium; 3]) {
    for browser in &mut *three {
        browser.eval("const then = { ...last }");
    }
    for browser in three {
        browser.wait_until("Object.keys(last).filter((id) => last[id] >= (then[id] ?? 0) + 20).length === 2");
        assert_eq!(browser.eval("lost.join()"), "");
    }
}

#[test]
fn page_of_the_article_works_unchanged() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let page = serve(&[("/", include_str!("../pages/article.html"))]);
    let (server, _stderr) = run(&format!(r#"exec "$0" --allow-origin http://{page}"#));
    let ([mut first], [mut second]) = (Chromium::start(), Firefox::start());
    let url = format!("http://{page}/#ws://{}/ws", server.address);
    first.open(&url);
    first.wait_until("connection.localDescription && connection.iceGatheringState === 'complete'");
    second.open(&url);
    for (browser, word) in [(&mut first as &mut dyn Browser, "ping"), (&mut second, "pong")] {
        browser.wait_until("channel?.readyState === 'open'");
        browser.eval(&format!("channel.send({word:?})"));
    }
    first.wait_until("sent.join() === 'pong'");
    second.wait_until("sent.join() === 'ping'");
    let received = |browser: &mut dyn Browser| browser.eval("received.map(({ type }) => type).join()");
    assert!(received(&mut first).as_str().unwrap().starts_with("offer,answer,candidate"));
    assert_eq!(received(&mut second), "offer,candidate");
    assert_eq!(second.eval("received[1].candidate.includes('}|{')"), true);
    first.kill();
    second.assert_no_errors();
    drop(second);
    wait_until_empty(&server);
}

#[test]
fn turn_server_accepts_the_credentials_of_the_server() {
    let Some(_browsers) = reserve_browsers(3, &[CHROMIUM, FIREFOX, TURNSERVER]) else { return };
    let (coturn, port) = coturn("open-sesame");
    let page = serve(&[("/", include_str!("../pages/relay.html"))]);
    let file = coturn.home.join("secret");
    let ([mut chromium], [mut firefox, mut other]) = (Chromium::start(), Firefox::start());
    let meet = |secret: &str, flow: &str, mut two: [&mut dyn Browser; 2]| {
        std::fs::write(&file, secret).unwrap();
        let (server, _stderr) = run(&format!(
            r#"exec "$0" --allow-origin http://{page} --ice-server turn:127.0.0.1:{port} --turn-secret-file {}"#,
            file.display()
        ));
        // coturn rejects user names with characters like these.
        let ids = ["Quiet O'Neil; drop table", r#"select "B\" or delete"#];
        for (browser, id) in two.iter_mut().zip(ids) {
            let id = id.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            browser.open(&format!("http://{page}/?server={}&flow={flow}&id={id}", server.address));
        }
        for (browser, other) in two.iter_mut().zip([ids[1], ids[0]]) {
            if secret == "open-sesame" {
                browser.wait_until(&format!("received.join() === 'I am ' + {other:?}"));
                assert_eq!(browser.eval("await route()"), json!(["relay", "relay"]));
            } else {
                browser.wait_until("pc?.iceGatheringState === 'complete'");
                assert_eq!(browser.eval("pc.localDescription.sdp.includes('a=candidate')"), false);
                assert_eq!(browser.eval("received"), json!([]));
            }
        }
        if secret != "open-sesame" {
            // Firefox does not report the TURN server's status.
            two[0].wait_until("refused.includes(401)");
        }
        for browser in &mut two {
            browser.eval("room.leave()");
            browser.assert_no_errors();
        }
        wait_until_empty(&server);
    };
    for flow in ["join", "connect"] {
        meet("open-sesame", flow, [&mut chromium, &mut firefox]);
        meet("open-sesame", flow, [&mut firefox, &mut chromium]);
        meet("open-sesame", flow, [&mut firefox, &mut other]);
    }
    meet("open-barley", "join", [&mut chromium, &mut firefox]);
}

#[test]
fn page_errors_are_detected() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let ([mut chromium], [mut firefox]) = (Chromium::start(), Firefox::start());
    let faults = [
        ("console.error('oh')", "oh"),
        ("setTimeout(() => { throw new Error('ah') })", "ah"),
        ("Promise.reject(new Error('eh')); 0", "eh"),
        ("document.body.append(Object.assign(new Image(), { src: '/x.png' }))", "img-src data:"),
        ("(await fetch('/x.png'), 0)", "404"),
    ];
    // Firefox does not report failed requests.
    let both: [(&mut dyn Browser, _); 2] = [(&mut chromium, &faults[..]), (&mut firefox, &faults[..4])];
    for (browser, faults) in both {
        open_page(browser, &server, "Aoi");
        for (wrong, word) in faults {
            assert!(browser.errors().is_empty(), "{:#?}", browser.errors());
            browser.eval(wrong);
            eventually(wrong, || {
                browser.eval("0");
                !browser.errors().is_empty()
            });
            let errors = std::mem::take(browser.errors());
            assert!(errors.len() == 1 && errors[0].contains(word), "{errors:#?}");
        }
        browser.eval("room.leave()");
    }
}
