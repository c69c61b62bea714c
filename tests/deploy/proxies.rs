//! The proxy configurations of `scripts/deploy`, over TLS.

use std::fs::{self, DirEntry};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use crate::common::auxiliary_servers::{TURNSERVER, coturn};
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::client::Client;
use crate::common::files::{Folder, project_root};
use crate::common::process::{NOROSHI, Running, eventually, run};
use crate::common::program::{Program, free_port, is_installed};
use crate::common::readme::{configuration, deploy_file};
use crate::common::tls::{self, HOST, OPENSSL};
use nix::sys::signal::Signal;
use serde_json::json;

/// Replaces `60s` in the configurations, together with the ping interval: `--ping-interval 2` pings after 3 s at the latest.
const TIMEOUT: Duration = Duration::from_secs(6);

/// A proxy and the additions that its configuration needs in a test.
struct Kind {
    program: &'static str,
    /// Replacements for tests, in which the proxy listens on `PORT` and has its files in `HOME`.
    changes: &'static [(&'static str, &'static str)],
    /// Text before and after the configuration.
    around: [&'static str; 2],
    /// The name of the configuration file, in `scripts/deploy` and in a test.
    file: &'static str,
    arguments: &'static str,
    /// The replacement for a host that serves other pages, too, from a comment of the file.
    own_pages: (&'static str, &'static [&'static str]),
    /// The address of a server on a Unix socket, from a comment of the file.
    local: &'static str,
    /// Makes the running proxy reload its configuration.
    reload: fn(&Program),
    /// The close code of WebSockets at a reload, if the proxy closes them.
    reload_ends: Option<u16>,
    /// Whether the proxy closes idle connections.
    cuts: bool,
}

const NGINX: Kind = Kind {
    program: "/usr/sbin/nginx",
    changes: &[
        ("listen 443 ssl;", "listen 127.0.0.1:PORT ssl;"),
        ("    listen [::]:443 ssl;\n", ""),
        ("/etc/letsencrypt/live/example.com", "HOME"),
    ],
    around: [
        "daemon off; pid nginx.pid; events {}
        http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
        uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n",
        "}",
    ],
    file: "nginx.conf",
    arguments: "-p . -e stderr -c nginx.conf",
    own_pages: ("location /", &[r"location ~ ^/(ws|ws/.*|noroshi\.js|noroshi/.*|check)$"]),
    local: "unix:/run/noroshi.sock",
    reload: |proxy| proxy.signal(Signal::SIGHUP),
    reload_ends: None,
    cuts: true,
};

const CADDY: Kind = Kind {
    program: "/usr/bin/caddy",
    changes: &[(
        "example.com {\n",
        "example.com:PORT {\n    bind 127.0.0.1\n    tls HOME/fullchain.pem HOME/privkey.pem\n",
    )],
    around: ["{\n    admin unix//HOME/admin\n    auto_https disable_redirects\n}\n", ""],
    file: "Caddyfile",
    arguments: "run --config Caddyfile",
    own_pages: (
        "reverse_proxy 127.0.0.1:8080",
        &["@noroshi path /ws /ws/* /noroshi.js /noroshi/* /check", "reverse_proxy @noroshi 127.0.0.1:8080"],
    ),
    local: "unix//run/noroshi.sock",
    reload: |proxy| {
        let reload = format!("reload --config Caddyfile --address unix//{}/admin", proxy.home.display());
        let mut command = std::process::Command::new("/usr/bin/caddy");
        let reloaded =
            command.args(reload.split(' ')).current_dir(&proxy.home).env("HOME", &proxy.home).output();
        assert!(reloaded.as_ref().unwrap().status.success(), "{reloaded:?}");
    },
    reload_ends: Some(1001),
    cuts: false,
};

const HAPROXY: Kind = Kind {
    program: "/usr/sbin/haproxy",
    changes: &[(":::443 v4v6", "127.0.0.1:PORT"), ("/etc/haproxy", "HOME")],
    around: ["", ""],
    file: "haproxy.cfg",
    arguments: "-W -f haproxy.cfg",
    own_pages: (
        "default_backend noroshi",
        &[r"use_backend noroshi if { path_reg ^/(ws|ws/.*|noroshi\.js|noroshi/.*|check)$ }"],
    ),
    local: "unix@/run/noroshi.sock",
    reload: |proxy| proxy.signal(Signal::SIGUSR2),
    reload_ends: None,
    cuts: true,
};

/// A running proxy.
struct Proxy {
    kind: &'static Kind,
    program: Program,
    address: SocketAddr,
}

impl Proxy {
    /// Starts the proxy in front of a server, with further replacements.
    fn start(kind: &'static Kind, server: SocketAddr, changes: &[(&str, String)]) -> Proxy {
        Proxy::before(kind, &server.to_string(), changes)
    }

    /// Starts the proxy in front of this upstream address.
    fn before(kind: &'static Kind, server: &str, changes: &[(&str, String)]) -> Proxy {
        let port = free_port();
        let program = Program::start_after(kind.program, kind.arguments, |home| {
            tls::certificate(home);
            let mut text = kind.around.join(&configuration(kind.file));
            let mut change = |from: &str, to: &str| {
                assert!(text.contains(from), "{from}");
                text = text.replace(from, to);
            };
            changes.iter().for_each(|(from, to)| change(from, to));
            kind.changes.iter().for_each(|(from, to)| change(from, to));
            change("example.com", HOST);
            change("127.0.0.1:8080", server);
            change("HOME", home.to_str().unwrap());
            change("PORT", &port.to_string());
            fs::write(home.join(kind.file), text).unwrap();
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        program.wait_until("the proxy", || TcpStream::connect(address).ok());
        Proxy { kind, program, address }
    }

    /// Switches new connections to another server. Returns a peer that is connected to it.
    fn switch_server(&self, from: &Running, to: &Running) -> Client {
        let path = self.program.home.join(self.kind.file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace(&from.address.to_string(), &to.address.to_string())).unwrap();
        (self.kind.reload)(&self.program);
        let mut client = None;
        eventually("the configuration is reloaded", || {
            client = Some(self.peer("C", [127, 0, 0, 1], ""));
            to.metric("peers") > 0.0
        });
        client.unwrap()
    }

    fn connect(&self, from: [u8; 4]) -> TcpStream {
        tls::connect(&self.program.home, Ipv4Addr::from(from), self.address)
    }

    /// Returns the response to a browser's request for a path.
    fn get(&self, path: &str) -> String {
        let mut stream = self.connect([127, 0, 0, 1]);
        let host = self.host();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Returns the host as it appears in the page's URL.
    fn host(&self) -> String {
        format!("{HOST}:{}", self.address.port())
    }

    /// Requests an upgrade as a browser does on a page of this origin. Returns the connection and the status.
    fn request(&self, from: [u8; 4], host: &str, origin: &str, header: &str) -> (Client, u16) {
        let mut client = Client::from_stream(self.connect(from));
        client.send(
            format!(
                "GET /ws/tea HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n{header}Connection: Upgrade\r\n\
                Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            .as_bytes(),
        );
        let status = client.read_head().split(' ').nth(1).unwrap().parse().unwrap();
        (client, status)
    }

    /// Connects and registers a peer from this address.
    fn peer(&self, id: &str, from: [u8; 4], header: &str) -> Client {
        let (client, status) = self.request(from, &self.host(), &format!("https://{}", self.host()), header);
        assert_eq!(status, 101);
        client.register(id)
    }
}

/// Returns the address of a peer, from the server's log.
fn address_of(id: &str, log: &mut BufReader<ChildStderr>) -> String {
    let mut line = String::new();
    while !(line.contains(" registered: ") && line.ends_with(&format!("id {id:?}\n"))) {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    line.split(" from ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

fn server(flags: &str) -> (Running, BufReader<ChildStderr>) {
    run(&format!(r#"exec "$0" --log debug --trust-proxy 127.0.0.1 {flags}"#))
}

/// Exchanges a candidate in each direction.
fn exchange_messages(a: &mut Client, b: &mut Client) {
    a.send_json(json!({"type": "candidateAdd", "id": "A", "target_id": "B", "candidate": 1}));
    assert_eq!(b.receive_json(), json!({"type": "candidate", "candidate": "1", "id": "A"}));
    b.send_json(json!({"type": "candidateAdd", "id": "B", "target_id": "A", "candidate": 2}));
    assert_eq!(a.receive_json(), json!({"type": "candidate", "candidate": "2", "id": "B"}));
}

/// Returns whether all programs are installed.
fn can_run(kind: &Kind) -> bool {
    [OPENSSL, kind.program].iter().all(|program| is_installed(program))
}

/// Returns the path and the text of each module that the library imports.
fn library_modules() -> Vec<(String, String)> {
    let folder = project_root().join("src/web/noroshi");
    let read = |entry: DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (format!("/noroshi/{name}"), fs::read_to_string(entry.path()).unwrap())
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// Tests the page, the library and WebSockets through the proxy.
fn test_forwarding(kind: &'static Kind) {
    if !can_run(kind) {
        return;
    }
    let (first, mut log) = server("");
    let proxy = Proxy::start(kind, first.address, &[]);

    assert!(proxy.get("/").ends_with(include_str!("../../src/web/index.html")));
    assert!(proxy.get("/noroshi.js").ends_with(include_str!("../../src/web/noroshi.js")));
    for (path, module) in library_modules() {
        assert!(proxy.get(&path).ends_with(&module), "{path}");
    }

    let mut a = proxy.peer("A", [127, 0, 0, 7], "");
    assert_eq!(address_of("A", &mut log), "127.0.0.7");
    let forged = "X-Forwarded-For: 192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n";
    let mut b = proxy.peer("B", [127, 0, 0, 8], forged);
    assert_eq!(address_of("B", &mut log), "127.0.0.8");
    exchange_messages(&mut a, &mut b);

    let here = [127, 0, 0, 1];
    let host = proxy.host();
    for (host, origin, status) in [
        (host.as_str(), format!("https://{host}"), 101),
        // On port 443 browsers omit the port.
        (HOST, format!("https://{HOST}"), 101),
        (&host, "https://example.net".to_owned(), 403),
        (&host, format!("https://{host}0"), 403),
    ] {
        assert_eq!(proxy.request(here, host, &origin, "").1, status, "{origin} {host}");
    }

    let (second, _second_log) = server("");
    proxy.switch_server(&first, &second);
    match kind.reload_ends {
        // On a busy machine, one of them has been seen to receive 1002.
        Some(code) => {
            for received in [a.receive_close(), b.receive_close()] {
                assert!([code, 1002].contains(&received), "{received}");
            }
        }
        None => exchange_messages(&mut a, &mut b),
    }
}

/// Tests the proxy on a host with other pages, and with short timeouts.
fn test_forwarding_beside_pages(kind: &'static Kind) {
    if !can_run(kind) {
        return;
    }
    let (from, to) = kind.own_pages;
    let file = deploy_file(kind.file);
    let documented: Vec<&str> =
        file.lines().filter_map(|line| line.strip_prefix('#')).map(str::trim).collect();
    assert!(to.iter().all(|line| documented.contains(line)), "{to:?}");
    let mut changes = vec![(from, to.join("\n"))];
    if kind.cuts {
        changes.push(("60s", format!("{}s", TIMEOUT.as_secs())));
    }
    let (pings, _log) = server("--ping-interval 2");
    let proxy = Proxy::start(kind, pings.address, &changes);
    assert!(!proxy.get("/").contains("noroshi"));
    assert!(proxy.get("/noroshi.js").ends_with(include_str!("../../src/web/noroshi.js")));
    for (path, module) in library_modules() {
        assert!(proxy.get(&path).ends_with(&module), "{path}");
    }
    assert!(proxy.get("/check").ends_with(include_str!("../../src/web/check.html")));
    assert!(proxy.get("/ws").starts_with("HTTP/1.1 426 "));

    let mut client = proxy.peer("A", [127, 0, 0, 1], "");
    let began = Instant::now();
    while 2 * began.elapsed() < 3 * TIMEOUT {
        client.receive_ping();
    }
    client.sync();

    let (does_not_ping, _other_log) = server("");
    let mut client = proxy.switch_server(&pings, &does_not_ping);
    if kind.cuts {
        assert_eq!(client.read_up_to(1), 0, "or the time-outs above were none");
    }
}

#[test]
fn nginx_forwards_page_and_websockets() {
    test_forwarding(&NGINX);
}

#[test]
fn nginx_forwards_beside_other_pages() {
    test_forwarding_beside_pages(&NGINX);
}

#[test]
fn caddy_forwards_page_and_websockets() {
    test_forwarding(&CADDY);
}

#[test]
fn caddy_forwards_beside_other_pages() {
    test_forwarding_beside_pages(&CADDY);
}

#[test]
fn haproxy_forwards_page_and_websockets() {
    test_forwarding(&HAPROXY);
}

#[test]
fn haproxy_forwards_beside_other_pages() {
    test_forwarding_beside_pages(&HAPROXY);
}

#[test]
fn proxies_connect_to_a_unix_socket() {
    for kind in [&NGINX, &CADDY, &HAPROXY] {
        if !can_run(kind) {
            continue;
        }
        assert!(deploy_file(kind.file).contains(kind.local), "{}", kind.local);
        let folder = Folder::new("proxied");
        let socket = folder.0.join("socket").display().to_string();
        // nginx's workers run as another user.
        let (_server, mut log) = run(&format!(r#"umask 0; exec "$0" --log debug -l unix:{socket}"#));
        let local = kind.local.replace("/run/noroshi.sock", &socket);
        let proxy = Proxy::before(kind, &local, &[]);
        let mut a = proxy.peer("A", [127, 0, 0, 7], "");
        assert_eq!(address_of("A", &mut log), "127.0.0.7");
        let mut b = proxy.peer("B", [127, 0, 0, 8], "X-Forwarded-For: 192.0.2.1\r\n");
        assert_eq!(address_of("B", &mut log), "127.0.0.8");
        exchange_messages(&mut a, &mut b);
    }
}

#[test]
fn browsers_connect_behind_each_proxy() {
    if ![&NGINX, &CADDY, &HAPROXY].into_iter().all(can_run) {
        return;
    }
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let mut two = Chromium::start::<2>();
    two.iter_mut().for_each(Chromium::ignore_certificate_errors);
    for kind in [&NGINX, &CADDY, &HAPROXY] {
        let ((first, _log), (second, _other_log)) = (server(""), server(""));
        let proxy = Proxy::start(kind, first.address, &[]);
        for (browser, name) in two.iter_mut().zip(["Aoi", "Ren"]) {
            browser.open(&format!("https://{}/?room=tea&name={name}", proxy.host()));
            browser.wait_until("document.querySelector('#status')?.dataset.state === 'online'");
        }
        for browser in &mut two {
            browser.wait_until("[...room.peers.values()].some((peer) => peer.alive)");
            browser.eval("var before = [...room.peers.values()][0].pc");
        }
        let _third = proxy.switch_server(&first, &second);
        let ends = kind.reload_ends.is_some();
        eventually("the WebSockets are connected to the new server", || {
            (first.metric("peers"), second.metric("peers")) == if ends { (0.0, 3.0) } else { (2.0, 1.0) }
        });
        // The connection between the browsers stays open.
        for browser in &mut two {
            browser.wait_until(
                "[...room.peers.values()].some((peer) => peer.pc === before && peer.alive && !peer.away)",
            );
        }
        for browser in &mut two {
            browser.eval("room.leave()");
            // Caddy closes with 1001 and may still forward the server's reply to its Close frame.
            browser.errors.retain(|error| !(ends && error.contains("failed: Close received after close")));
        }
    }
    two.into_iter().for_each(Chromium::kill);
}

/// One host with nginx, coturn, and the flags of the drop-in for systemd: the check page finds no fault.
#[test]
fn deployment_with_nginx_turn_and_tokens_passes_the_check() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM, TURNSERVER, NGINX.program, OPENSSL]) else {
        return;
    };
    let folder = Folder::new("credentials");
    fs::write(folder.0.join("turn"), "open-sesame\n").unwrap();
    fs::write(folder.0.join("token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let (_coturn, port) = coturn("open-sesame");
    let drop_in = deploy_file("noroshi-turn-tokens.conf").replace("\\\n", " ");
    let flags = drop_in.lines().find_map(|line| line.strip_prefix("ExecStart=noroshi ")).unwrap();
    let flags = flags
        .replace("--listen 127.0.0.1:8080", "")
        .replace("--metrics 127.0.0.1:8081", "")
        .replace("${CREDENTIALS_DIRECTORY}", folder.0.to_str().unwrap())
        .replace(":example.com", &format!(":127.0.0.1:{port}"));
    let (server, _log) = run(&format!(r#"exec "$0" {flags}"#));
    let proxy = Proxy::start(&NGINX, server.address, &[]);

    let mut token = std::process::Command::new(*NOROSHI);
    let token = token.args(["token", "--ttl", "12h", "--secret-file"]).arg(folder.0.join("token")).output();
    let token = String::from_utf8(token.unwrap().stdout).unwrap();
    let [mut browser] = Chromium::start();
    browser.ignore_certificate_errors();
    browser.open(&format!("https://{}/check?idle=1#token={}", proxy.host(), token.trim()));
    browser.wait_until("!['', 'waiting'].includes(document.querySelector('#status')?.dataset.state ?? '')");
    for line in ["websocket", "rooms", "relay"] {
        let state = browser.eval(&format!("document.getElementById('{line}').dataset.state"));
        assert_eq!(state, "ok", "{line}: {}", browser.eval("document.querySelector('#report').value"));
    }
    let failed = browser.eval("document.querySelectorAll('#lines > li[data-state=failed]').length");
    assert_eq!(failed, 0, "{}", browser.eval("document.querySelector('#report').value"));
    browser.kill();
}

/// Without these lines of the configuration nginx sends its own `Host`, HTTP/1.0 (before 1.29.7), and no `Upgrade`.
#[test]
fn log_explains_upgrades_through_an_unconfigured_nginx() {
    if !can_run(&NGINX) {
        return;
    }
    let host = "proxy_set_header Host $http_host;";
    let upgrade = [
        "proxy_http_version 1.1;",
        "proxy_set_header Upgrade $http_upgrade;",
        "proxy_set_header Connection $connection_upgrade;",
    ];
    let refused = |without: &[&str]| {
        let (server, mut log) = server("");
        let old = ("proxy_pass http", "proxy_http_version 1.0; proxy_pass http".to_owned());
        let without = without.iter().map(|line| (*line, String::new()));
        let proxy = Proxy::start(&NGINX, server.address, &without.chain([old]).collect::<Vec<_>>());
        let (_, status) =
            proxy.request([127, 0, 0, 1], &proxy.host(), &format!("https://{}", proxy.host()), "");
        let mut line = String::new();
        while !line.contains(" was refused: ") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0);
        }
        let why = line.split(" was refused: ").nth(1).unwrap().trim_end().to_owned();
        (status, why.replace(&proxy.host(), "OUTSIDE").replace(&server.address.to_string(), "INSIDE"))
    };
    let causes = "HTTP/1.0, but WebSocket needs HTTP/1.1: does nginx lack proxy_http_version 1.1?; \
        no Upgrade header: is a proxy dropping it?";
    assert_eq!(refused(&upgrade), (426, format!("426, {causes}")));
    let foreign = r#"Origin "https://OUTSIDE" does not match Host "INSIDE"; see --allow-origin"#;
    let all = [&[host][..], &upgrade].concat();
    assert_eq!(refused(&all), (403, format!("403, {foreign}; {causes}")));
}
