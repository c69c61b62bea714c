//! Tokens in a real browser: the library requests one before each attempt, and the page has one in its address.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::fault_proxy::FaultProxy;
use crate::common::process::{Running, run};
use noroshi::http::token::{Claims, Secrets};
use serde_json::json;

const SECRET: &str = "a secret that is thirty-two bytes";

/// A server that requires tokens, and its secret file, which is removed when the value is dropped.
struct Guarded {
    server: Running,
    file: PathBuf,
}

impl Guarded {
    fn start(name: &str, secret: &str) -> Guarded {
        let file = std::env::temp_dir().join(format!("noroshi-{}-{name}", std::process::id()));
        std::fs::write(&file, secret).unwrap();
        let flags = format!("--token-secret-file {}", file.display());
        let (server, _stderr) = run(&format!(r#"exec "$0" --allow-origin "*" {flags}"#));
        Guarded { server, file }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// Returns a token that expires after this many seconds. A negative number means that it has expired.
fn token(room: Option<&str>, id: Option<&str>, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let until = Duration::from_secs(now.checked_add_signed(seconds).unwrap());
    let claims =
        Claims { expires_at: until, room: room.map(Box::from), room_prefix: None, id: id.map(Box::from) };
    Secrets::parse(SECRET.as_bytes()).unwrap().sign(&claims)
}

#[test]
fn library_joins_and_rejoins_with_a_token() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let guarded = Guarded::start("library", SECRET);
    let strict = Guarded::start("strict", "another secret of more than thirty-two bytes");
    let proxy = FaultProxy::new(guarded.server.address);
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", guarded.server.address));
    browser.eval(&format!(
        "const direct = 'ws://{}/ws/tea', url = 'ws://{}/ws/tea'",
        guarded.server.address, proxy.address
    ));
    browser.eval(
        "const { join, connect } = await import('/noroshi.js');
        const fails = (how) => how().then(() => [], (error) => [error.code, error.message]);",
    );
    let [good, old] = [token(Some("tea"), None, 60), token(None, None, -60)];
    let other = token(Some("coffee"), None, 60);
    // From the same origin, and from another origin that is allowed.
    for url in ["direct", "url"] {
        for (options, code, message) in [
            ("{}".to_owned(), "unauthorized", "missing token"),
            (format!("{{ token: {old:?} }}"), "unauthorized", "the token has expired"),
            (format!("{{ token: async () => {other:?} }}"), "forbidden", "the token is for another room"),
        ] {
            let found = browser.eval(&format!("await fails(() => join({url}, {options}))"));
            assert_eq!(found, json!([code, message]), "{options}");
        }
    }
    browser.eval(&format!(
        "let requests = 0;
        const errors = [], fresh = async () => (requests++, {good:?});
        const a = await join(url, {{ id: 'A', token: fresh }}), b = await connect(url, {{ id: 'B', token: {good:?} }});
        for (const room of [a, b]) room.addEventListener('error', ({{ error }}) => errors.push(room.id + ' ' + error.code)); 0",
    ));
    assert_eq!(browser.eval("requests"), 1);
    proxy.cut_connections();
    browser.wait_until("requests === 2 && a.online && b.online");
    // A token that is no longer accepted ends the room instead of causing endless retries.
    proxy.redirect_to(strict.server.address);
    proxy.cut_connections();
    browser.wait_until("errors.length === 2");
    assert_eq!(browser.eval("errors.sort()"), json!(["A unauthorized", "B unauthorized"]));
    browser.assert_no_errors();
    browser.kill();
}

#[test]
fn page_keeps_its_token_and_shares_only_the_room() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let guarded = Guarded::start("page", SECRET);
    let address = guarded.server.address;
    let [mut browser] = Chromium::start();
    let wait_for_status = |browser: &mut Chromium, text: &str| {
        browser
            .wait_until(&format!("document.querySelector('#status-words')?.textContent.includes({text:?})"));
    };
    browser.open(&format!("http://{address}/?room=tea"));
    wait_for_status(
        &mut browser,
        "This server requires a token, and your link has none. Ask the person who invited you",
    );
    let with = |room: &str, token: &str| format!("http://{address}/?room={room}#token={token}");
    for (token, expected_text) in [
        (token(Some("coffee"), None, 60), "Your token is for another room"),
        (
            token(Some("tea"), None, -60),
            "The server rejected the token in your link: the token has expired. Ask the person who invited you",
        ),
        ("x".to_owned(), "The server rejected the token in your link: the token is invalid: expected a JWT"),
    ] {
        // A change of the fragment alone would not reload the page.
        browser.open("about:blank");
        browser.open(&with("tea", &token));
        wait_for_status(&mut browser, expected_text);
    }
    let invited = |browser: &mut Chromium| {
        browser.eval(
            "navigator.clipboard.writeText = async () => {}; document.querySelector('#invite').click(); 0",
        );
        browser.eval("document.querySelector('#link').value")
    };
    let open = token(Some("tea"), None, 60);
    browser.open("about:blank");
    browser.open(&with("tea", &open));
    wait_for_status(&mut browser, "You are in the room alone.");
    assert_eq!(invited(&mut browser), with("tea", &open));
    let own = token(Some("tea"), Some("狼煙 Aoi"), 60);
    browser.open("about:blank");
    browser.open(&format!("http://{address}/#token={own}"));
    wait_for_status(&mut browser, "You are in the room alone.");
    assert_eq!(
        browser.eval("[room.id, document.querySelector('#name').value]"),
        json!(["狼煙 Aoi", "狼煙 Aoi"])
    );
    assert_eq!(browser.eval("document.querySelector('#name').disabled"), true);
    assert_eq!(browser.eval("location.search"), "?room=tea");
    assert_eq!(invited(&mut browser), format!("http://{address}/?room=tea"));
    // After a reload the page has the same id and replaces its old connection immediately.
    browser.eval("location.reload(); 0");
    wait_for_status(&mut browser, "You are in the room alone.");
    // A token for a room prefix leads into one room of that prefix.
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(60);
    let claims = Claims { expires_at: until, room_prefix: Some("tea-".into()), ..Claims::default() };
    let prefixed = Secrets::parse(SECRET.as_bytes()).unwrap().sign(&claims);
    browser.open("about:blank");
    browser.open(&format!("http://{address}/#token={prefixed}"));
    wait_for_status(&mut browser, "You are in the room alone.");
    assert_eq!(browser.eval("location.search.startsWith('?room=tea-')"), true);
    browser.assert_no_errors();
    browser.kill();
}
