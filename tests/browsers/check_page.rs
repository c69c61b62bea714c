//! The deployment check page, in a working deployment and with each fault that it detects.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::auxiliary_servers::{TURNSERVER, coturn, coturn_over_tls, coturn_with, serve, stun};
use crate::common::axe::{assert_accessible, axe};
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::client::Client;
use crate::common::fault_proxy::FaultProxy;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{NOROSHI, Running, run};
use crate::common::program::{WAIT_TIMEOUT, free_port};
use crate::common::tls;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const PROGRAMS: [&str; 3] = [CHROMIUM, FIREFOX, TURNSERVER];

/// Patterns that a report must not contain: TURN user names and passwords, and tokens.
const SECRETS: &str = r"/\d{9,}:[0-9a-f]{16}|[A-Za-z0-9+\/]{27}=|eyJ/";

/// The results of the page, line by line, without camera and microphone.
struct Report(Value);

impl Report {
    /// Opens the page in several browsers in parallel.
    #[track_caller]
    fn by(browsers: [&mut dyn Browser; 2], url: &str) -> [Report; 2] {
        let mut browsers = browsers;
        for browser in &mut browsers {
            browser.open(url);
        }
        browsers.map(|browser| Report::now(browser))
    }

    /// Waits until the page has finished its checks.
    #[track_caller]
    fn now(browser: &mut dyn Browser) -> Report {
        let began = Instant::now();
        while browser.eval("document.querySelector('#status').dataset.state") == "waiting" {
            assert!(began.elapsed() < WAIT_TIMEOUT, "{}", browser.eval("document.body.innerText"));
            sleep(Duration::from_millis(50));
        }
        browser.assert_no_errors();
        let results = browser.eval(
            "Object.fromEntries([...document.querySelectorAll('#lines > li')].map((it) => [it.id, [it.dataset.state,
            ...['.title', '.words'].map((part) => it.querySelector(part).textContent)]]))",
        );
        let results = results.as_object().unwrap();
        // The report contains all results and no secret.
        let report = browser.eval("document.querySelector('#report').value");
        let report = report.as_str().unwrap();
        for (id, line) in results {
            let [state, title, words] = [0, 1, 2].map(|i| line[i].as_str().unwrap());
            let colon = if words.is_empty() { "" } else { ": " };
            let line = format!("[{state}] {title}{colon}{words}");
            assert!(report.lines().any(|it| it == line), "{id}: {line}\n{report}");
        }
        assert_eq!(report.lines().filter(|line| line.starts_with('[')).count(), results.len(), "{report}");
        assert_eq!(browser.eval(&format!("{SECRETS}.test(document.querySelector('#report').value)")), false);
        assert_eq!(browser.eval(&format!("{SECRETS}.test(document.body.innerText)")), false);
        Report(results.clone().into())
    }

    /// Asserts the state of a line and a part of its text.
    #[track_caller]
    fn has(&self, id: &str, state: &str, words: &str) {
        let line = &self.0[id];
        assert_eq!(line[0], state, "{id}: {:#}", self.0);
        assert!(line[2].as_str().unwrap().contains(words), "{id}: {words}: {:#}", self.0);
    }

    /// Asserts that the report has exactly these lines.
    #[track_caller]
    fn has_only(&self, others: &[&str]) {
        let known = ["https", "websocket", "rooms", "idle", "clock", "servers", "relay", "devices"];
        let mut expected = [&known[..], others].concat();
        expected.sort_unstable();
        let mut ids: Vec<&str> = self.0.as_object().unwrap().keys().map(String::as_str).collect();
        ids.sort_unstable();
        assert_eq!(ids, expected);
    }
}

/// Starts a server that hands out a STUN and a TURN server at this port, with credentials of this secret.
fn start_server_with_turn(home: &Path, secret: &str, port: u16, query: &str) -> Running {
    let file = home.join("secret");
    std::fs::write(&file, secret).unwrap();
    run(&format!(
        r#"exec "$0" --ice-server stun:127.0.0.1:{port} --ice-server 'turn:127.0.0.1:{port}{query}' \
        --turn-secret-file {}"#,
        file.display()
    ))
    .0
}

fn url(server: &Running) -> String {
    format!("http://{}/check?idle=3", server.address)
}

fn browsers() -> (Chromium, Firefox) {
    let ([chromium], [firefox]) = (Chromium::start(), Firefox::start());
    (chromium, firefox)
}

#[test]
fn correct_deployment_passes_all_checks() {
    let Some(_browsers) = reserve_browsers(2, &PROGRAMS) else { return };
    let (mut chromium, mut firefox) = browsers();
    let (coturn, port) = coturn("open-sesame");
    let server = start_server_with_turn(&coturn.home, "open-sesame", port, "");
    chromium.focus();
    for browser in [&mut chromium as &mut dyn Browser, &mut firefox] {
        browser.open(&url(&server));
        browser.wait_until(
            "/^Testing whether a WebSocket without messages stays open for 3 s/.test(document.querySelector('#idle .words').textContent)",
        );
        let results = Report::now(browser);
        results.has_only(&["stun-0", "turn-udp-1", "turn-tcp-1"]);
        results.has("https", "ok", "Not needed on localhost. Other devices need it.");
        results.has("websocket", "ok", "Connections to /ws/… open.");
        results.has(
            "rooms",
            "ok",
            "Two clients joined a room and saw each other, and one saw the other leave.",
        );
        results.has("idle", "ok", "It stayed open for 3 s without messages.");
        results.has("clock", "ok", "differ by at most 5 minutes");
        results.has("servers", "ok", &format!("stun:127.0.0.1:{port}, turn:127.0.0.1:{port}"));
        // On one machine both addresses are equal, and browsers keep one of them.
        results.has("stun-0", "warning", "this device is not behind a NAT");
        results.has("turn-udp-1", "ok", "The server accepts the credentials.");
        let hint = format!("add --ice-server turn:127.0.0.1:{port}?transport=tcp");
        results.has("turn-tcp-1", "ok", &hint);
        results.has("relay", "ok", "Round-trip time ");
        let numbers = r"/^Round-trip time \d+\.\d ms \(median of 20\), (\d+\.\d) Mbit\/s\.$/.exec(document.querySelector('#relay .words').textContent)";
        browser.wait_until(&format!("Number(({numbers})?.[1]) > 0.5"));
        browser.wait_until("document.querySelector('#status').textContent === 'No test failed. Warnings: 1. The texts below explain what to do.'");
        results.has("devices", "waiting", "will ask");
        browser.eval("document.querySelector('#devices button').click()");
        browser.wait_until("document.querySelector('#devices').dataset.state === 'ok'");
        let results = Report::now(browser);
        results.has("devices", "ok", "camera “");
        results.has("devices", "ok", "microphone “");
        browser.eval("document.querySelector('#copy').click()");
        browser.wait_until("document.querySelector('#copy').textContent === 'Report copied'");
        browser.assert_no_errors();
    }
    if let Some(axe) = axe() {
        assert_accessible(&mut chromium, &axe);
    }
    for colors in ["light", "dark"] {
        chromium.resize(320, 900, colors);
        assert_eq!(chromium.eval("document.documentElement.scrollWidth <= 320"), true);
        if let Some(folder) = std::env::var_os("TEST_LOOKS") {
            std::fs::write(Path::new(&folder).join(format!("check-{colors}.png")), chromium.screenshot())
                .unwrap();
        }
    }
    // The secrets that the report must not contain are those of the page.
    let servers = "await new Promise((resolve) => {
        const socket = new WebSocket(location.href.replace(/^http(.*)check.*/, 'ws$1ws/tea'));
        socket.onopen = () => socket.send('{\"type\":\"join\",\"id\":\"A\"}');
        socket.onmessage = ({ data }) => resolve(JSON.parse(data).iceServers[1]);
    })";
    let Value::Object(servers) = firefox.eval(servers) else { panic!("no servers") };
    for secret in ["username", "credential"] {
        assert_eq!(firefox.eval(&format!("{SECRETS}.test({})", servers[secret])), true, "{secret}");
    }
    // A client behind a NAT.
    let stun = stun();
    let (server, _stderr) = run(&format!(r#"exec "$0" --ice-server stun:{stun}"#));
    for results in Report::by([&mut chromium, &mut firefox], &url(&server)) {
        results.has_only(&["stun-0"]);
        results.has("stun-0", "ok", "It reports the public address of this device.");
        results.has("relay", "skipped", "noroshi sends no TURN server to clients.");
    }
    // Only over TCP, as it is handed out.
    let server = start_server_with_turn(&coturn.home, "open-sesame", port, "?transport=tcp");
    for results in Report::by([&mut chromium, &mut firefox], &url(&server)) {
        results.has_only(&["stun-0", "turn-tcp-1"]);
        results.has("turn-tcp-1", "ok", "The server accepts the credentials.");
        results.has("relay", "ok", "Round-trip time ");
    }
}

#[test]
fn rejecting_and_unreachable_turn_servers_are_distinguished() {
    let Some(_browsers) = reserve_browsers(2, &PROGRAMS) else { return };
    let (mut chromium, mut firefox) = browsers();
    let mut both = |home: &Path, secret: &str, port: u16| {
        Report::by([&mut chromium, &mut firefox], &url(&start_server_with_turn(home, secret, port, "")))
    };
    let (coturn, port) = coturn("open-sesame");
    for results in both(&coturn.home, "open-barley", port) {
        results.has("websocket", "ok", "");
        for id in ["turn-udp-1", "turn-tcp-1"] {
            results.has(id, "failed", "The server rejects the credentials (error 401).");
            results.has(id, "failed", "static-auth-secret must equal");
            results.has(id, "failed", "realm");
        }
        results.has("stun-0", "warning", "this device is not behind a NAT");
        results.has("relay", "skipped", "No TURN server works.");
    }
    let (coturn, port) = coturn_with("open-sesame", "--no-tls", "realm=");
    let [in_chromium, in_firefox] = both(&coturn.home, "open-sesame", port);
    // Chromium does not accept an empty realm.
    in_chromium.has("turn-udp-1", "failed", "Does the configuration of the TURN server have a realm?");
    in_chromium.has("relay", "skipped", "No TURN server works.");
    in_firefox.has("turn-udp-1", "ok", "The server accepts the credentials.");
    in_firefox.has("relay", "ok", "Round-trip time ");
    // A port that stays unused.
    let nobody = free_port();
    let [in_chromium, in_firefox] = both(&coturn.home, "open-sesame", nobody);
    for results in [&in_chromium, &in_firefox] {
        results.has("stun-0", "failed", "The server does not answer (error 701). Is it running?");
        results.has("turn-udp-1", "failed", "The server does not answer (error 701). Is it running?");
        results.has("turn-udp-1", "failed", "3478 for UDP and TCP");
        results.has("relay", "skipped", "No TURN server works.");
        results.has("clock", "ok", "differ by at most 5 minutes");
    }
    // Clients do not get this URL. Chromium says in which step it failed.
    in_chromium.has("turn-tcp-1", "warning", "The TCP connection is refused.");
    in_firefox.has("turn-tcp-1", "warning", "The server does not answer (error 701).");
    let (server, _stderr) = run(r#"exec "$0" --ice-server stun:nowhere.invalid"#);
    chromium.open(&url(&server));
    Report::now(&mut chromium).has("stun-0", "failed", "The host name cannot be resolved.");
}

#[test]
fn untrusted_turn_certificate_is_reported() {
    let Some(_browsers) = reserve_browsers(2, &[&PROGRAMS[..], &[tls::OPENSSL]].concat()) else { return };
    let port = free_port();
    let (coturn, _) = coturn_over_tls("open-sesame", port);
    let secret = coturn.home.join("secret");
    std::fs::write(&secret, "open-sesame").unwrap();
    let (server, _stderr) = run(&format!(
        r#"exec "$0" --ice-server turns:{}:{port} --turn-secret-file {}"#,
        tls::HOST,
        secret.display()
    ));
    let (mut stranger, mut firefox) = browsers();
    for results in Report::by([&mut stranger, &mut firefox], &url(&server)) {
        results.has_only(&["turn-tls-0"]);
        results.has("turn-tls-0", "failed", "a certificate for this name that browsers trust?");
        results.has("relay", "skipped", "No TURN server works.");
    }
    stranger.kill();
    let mut chromium = Chromium::start_trusting(&tls::hash(&coturn.home));
    chromium.open(&url(&server));
    let results = Report::now(&mut chromium);
    results.has_only(&["turn-tls-0"]);
    results.has("turn-tls-0", "ok", "The server accepts the credentials.");
    results.has("relay", "ok", "Round-trip time ");
}

#[test]
fn proxy_faults_are_reported() {
    let Some(_browsers) = reserve_browsers(2, &PROGRAMS) else { return };
    let (mut chromium, mut firefox) = browsers();
    let (server, _stderr) = run(r#"exec "$0""#);
    let proxy = FaultProxy::new(server.address);
    for browser in [&mut chromium as &mut dyn Browser, &mut firefox] {
        browser.open(&format!("http://{}/check?idle=20", proxy.address));
        browser.wait_until("document.querySelector('#idle .words').textContent.startsWith('Testing')");
        sleep(Duration::from_secs(2));
        proxy.cut_connections();
        let results = Report::now(browser);
        results.has_only(&[]);
        results.has("rooms", "ok", "");
        let words = results.0["idle"][2].as_str().unwrap();
        let (lived, _) = words
            .strip_prefix("The connection was lost after ")
            .unwrap()
            .split_once(" s (code 1006)")
            .expect(words);
        assert!(["2", "3"].contains(&lived), "{words}");
        results.has("idle", "failed", &format!("probably the proxy closes idle connections after {lived} s"));
        results.has("servers", "warning", "--ice-server stun:");
        results.has("clock", "skipped", "noroshi sends none");
        results.has("relay", "skipped", "--turn-secret-file");
    }
    // The server stops.
    chromium.open(&format!("http://{}/check?idle=20", server.address));
    chromium.wait_until("document.querySelector('#idle .words').textContent.startsWith('Testing')");
    server.signal(Signal::SIGTERM);
    Report::now(&mut chromium).has("idle", "failed", "with code 1001: noroshi or the proxy was stopped");
    let page = serve(&[("/check", include_str!("../../src/web/check.html"))]);
    for results in Report::by([&mut chromium, &mut firefox], &format!("http://{page}/check")) {
        results.has("websocket", "failed", "/ws is answered with status 404, and not by noroshi.");
        for id in ["rooms", "idle", "clock", "servers", "relay"] {
            results.has(id, "skipped", "This test needs a WebSocket.");
        }
    }
    let (server, _stderr) = run(r#"exec "$0" --max-connections 1"#);
    let _only_client = Client::open(server.address, "");
    for results in Report::by([&mut chromium, &mut firefox], &url(&server)) {
        results.has(
            "websocket",
            "failed",
            "noroshi rejects the connection with status 503: the server is full.",
        );
    }
    // The proxy forwards the health check only.
    let page = serve(&[("/check", include_str!("../../src/web/check.html")), ("/healthz", "ok")]);
    for results in Report::by([&mut chromium, &mut firefox], &format!("http://{page}/check")) {
        results.has("websocket", "failed", "The proxy forwards /healthz but not /ws");
    }
    // The page is still there, but noroshi is not.
    let page = include_str!("../../src/web/check.html");
    let page = page.replace(
        "new URL(\"ws\", location.href)",
        &format!("new URL(\"http://127.0.0.1:{}/ws\")", free_port()),
    );
    let page = serve(&[("/check", &page)]);
    chromium.open(&format!("http://{page}/check"));
    Report::now(&mut chromium).has("websocket", "failed", "Nothing answers. Is noroshi running");
    // Firefox resolves every name to this machine. Browsers treat a plain-HTTP name as insecure.
    let (server, _stderr) = run(r#"exec "$0""#);
    firefox.open(&format!("http://noroshi.example:{}/check?idle=3", server.address.port()));
    let results = Report::now(&mut firefox);
    results.has("https", "failed", "use a proxy with TLS in front of noroshi");
    results.has("devices", "failed", "on https pages");
    results.has("websocket", "ok", "");
}

#[test]
fn wrong_clock_is_reported() {
    let Some(_browsers) = reserve_browsers(2, &PROGRAMS) else { return };
    let (mut chromium, mut firefox) = browsers();
    let (coturn, port) = coturn("open-sesame");
    std::fs::write(coturn.home.join("secret"), "open-sesame").unwrap();
    let (server, _stderr) = run(&format!(
        r#"exec "$0" --allow-origin '*' --ice-server turn:127.0.0.1:{port} --turn-secret-file {}"#,
        coturn.home.join("secret").display()
    ));
    for (shift, state, words) in [
        ("+ 290", "ok", "differ by at most 5 minutes"),
        ("- 290", "ok", "differ by at most 5 minutes"),
        ("+ 400", "warning", "s behind the clock of this device"),
        ("- 400", "warning", "s ahead of the clock of this device"),
    ] {
        // The original page with a changed clock, from another origin.
        let mut page = include_str!("../../src/web/check.html").to_owned();
        for (from, to) in [
            ("new URL(\"ws\", location.href)", format!("new URL(\"http://{}/ws\")", server.address)),
            ("Date.now() / 1000", format!("(Date.now() / 1000 {shift})")),
        ] {
            assert_eq!(page.matches(from).count(), 1, "{from}");
            page = page.replace(from, &to);
        }
        let page = serve(&[("/check", &page)]);
        for results in Report::by([&mut chromium, &mut firefox], &format!("http://{page}/check?idle=1")) {
            results.has("clock", state, words);
        }
    }
}

#[test]
fn missing_token_is_explained_and_tokens_are_not_reported() {
    let Some(_browsers) = reserve_browsers(2, &PROGRAMS) else { return };
    let (mut chromium, mut firefox) = browsers();
    let (coturn, port) = coturn("open-sesame");
    let [turn, tokens] = ["turn", "tokens"].map(|name| coturn.home.join(name));
    std::fs::write(&turn, "open-sesame").unwrap();
    std::fs::write(&tokens, "0123456789abcdef0123456789abcdef").unwrap();
    let (server, _stderr) = run(&format!(
        r#"exec "$0" --ice-server turn:127.0.0.1:{port} --turn-secret-file {} --token-secret-file {}"#,
        turn.display(),
        tokens.display()
    ));
    let mint = |claims: &[&str]| {
        let minted = Command::new(*NOROSHI)
            .args(["token", "--secret-file"])
            .arg(&tokens)
            .args(claims)
            .output()
            .unwrap();
        assert!(minted.status.success(), "{minted:?}");
        String::from_utf8(minted.stdout).unwrap().trim().to_owned()
    };
    let mut both = |name: &str, token: &str| {
        // The name differs each time, because a change of the fragment alone does not reload the page.
        let url = format!("http://{}/check?idle=1&{name}#token={token}", server.address);
        Report::by([&mut chromium, &mut firefox], &url)
    };
    for results in both("missing", "") {
        results.has(
            "websocket",
            "failed",
            "noroshi requires a token, and the address of this page has none.",
        );
        results.has("websocket", "failed", "noroshi token --secret-file");
    }
    for results in both("bad", "eyJ.e30.x") {
        results.has(
            "websocket",
            "failed",
            "noroshi rejects the token in the address of this page: the token is invalid: expected a JWT",
        );
    }
    for results in both("any", &mint(&["--ttl", "9h"])) {
        results.has("rooms", "ok", "");
        results.has("clock", "ok", "differ by at most 5 minutes");
        results.has("relay", "ok", "");
    }
    for results in both("one", &mint(&["--ttl", "1h", "--room-prefix", "tea-", "--id", "日"])) {
        results.has("websocket", "ok", "");
        results.has("rooms", "skipped", "is for one id. This test needs a token without “sub”.");
        results.has("idle", "ok", "");
        results.has("clock", "skipped", "valid for at least 8 hours");
        results.has("turn-udp-0", "ok", "");
    }
    // The current holder keeps its id.
    let taken = mint(&["--ttl", "1h", "--room", "tea", "--id", "Aoi"]);
    let mut aoi = Client::connect(server.address).upgrade(&format!("tea?token={taken}")).register("Aoi");
    for results in both("taken", &taken) {
        results.has("websocket", "warning", "is for one id in one room");
        results.has_only(&[]);
        results.has("relay", "skipped", "This test needs a token without “sub”.");
    }
    assert!(aoi.sync().is_empty());
    for results in both("room", &mint(&["--ttl", "1h", "--room", "tea"])) {
        results.has("rooms", "ok", "");
        assert_eq!(results.0["websocket"], json!(["ok", "WebSocket", "Connections to /ws/… open."]));
    }
}
