//! The recipe of a camera in `scripts/deploy/camera`: its files are checked and run with a test pattern.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::Folder;
use crate::common::gstreamer::{LAUNCH, TEST_PATTERN, launch, plugin};
use crate::common::process::{NOROSHI, Running, eventually, run};
use crate::common::program::{Program, free_port, is_installed, npm};
use crate::common::readme::{configuration, deploy_file};
use crate::common::tls::{self, HOST, OPENSSL};
use nix::sys::signal::Signal;
use noroshi::config::{Command as Parsed, Config};
use noroshi::protocols;

const ANALYZE: &str = "/usr/bin/systemd-analyze";
const CADDY: &str = "/usr/bin/caddy";

/// Returns the arguments of the last `ExecStart=` of a unit, split and unquoted as systemd does (systemd.service(5),
/// "Command lines").
fn command_line(unit: &str) -> Vec<String> {
    let unit = configuration(unit).replace("\\\n", " ");
    let line =
        unit.lines().filter_map(|line| line.strip_prefix("ExecStart=")).next_back().unwrap().to_owned();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                let escaped = characters.next().unwrap();
                assert!("\\\"'".contains(escaped), "an escape sequence that this test does not know: {line}");
                word.push(escaped);
            }
            _ if quote == Some(character) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(character),
            ' ' if quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(character),
        }
    }
    words.push(word);
    words
}

/// Quotes an argument for a shell.
fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}: {text}");
    text.replace(from, to)
}

/// Starts the pipeline of the unit with a test pattern instead of the camera, and without a STUN server.
fn camera(plugin: &Path, url: &str, token: &str, properties: &str) -> Program {
    let words = command_line("camera/camera.service");
    assert_eq!(words[0], "gst-launch-1.0");
    let arguments: Vec<String> = words[1..].iter().map(|word| quoted(word)).collect();
    let mut arguments = arguments.join(" ");
    let source = "'libcamerasrc' '!' 'video/x-raw,width=640,height=480,framerate=15/1'";
    let sink = format!(r#"'webrtcsink' stun-server='""' {properties}"#);
    for (from, to) in [(source, TEST_PATTERN), ("'webrtcsink'", &sink), ("${URL}", url), ("${TOKEN}", token)]
    {
        arguments = replaced(&arguments, from, to);
    }
    launch(plugin, &arguments)
}

/// Starts noroshi with the flags of the drop-in.
fn start(secret: &Path) -> Running {
    let words = command_line("camera/noroshi-camera.conf");
    assert_eq!(words[0], "noroshi");
    let flags = words[1..].join(" ");
    let flags = replaced(&flags, "--listen 127.0.0.1:8080 ", "");
    let flags = replaced(&flags, "--metrics 127.0.0.1:8081 ", "");
    let flags = replaced(&flags, "${CREDENTIALS_DIRECTORY}/token", secret.to_str().unwrap());
    run(&format!(r#"exec "$0" {flags}"#)).0
}

/// Runs a command of the README that creates a token.
fn token(secret: &Path, starts_with: &str) -> String {
    let readme = deploy_file("camera/README.md");
    let line = readme.lines().map(str::trim).find(|line| line.starts_with(starts_with)).unwrap();
    let line = replaced(line, "sudo noroshi", *NOROSHI);
    let line = replaced(&line, "/etc/noroshi/token", secret.to_str().unwrap());
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Starts Caddy with the configuration of the recipe, which serves the page and gstwebrtc-api. Returns its port.
fn caddy(server: &Running, library: &str) -> (Program, u16) {
    let port = free_port();
    let caddy = Program::start_after(CADDY, "run --config Caddyfile", |home| {
        tls::certificate(home);
        let home = home.to_str().unwrap();
        let mut text = configuration("camera/Caddyfile");
        // GStreamer resolves only `localhost`, for which the certificate is not.
        let site = format!(
            "{HOST}:{port}, localhost:{port} {{\n    bind 127.0.0.1\n    tls {home}/fullchain.pem {home}/privkey.pem\n"
        );
        for (from, to) in [
            ("example.com {\n", &*site),
            ("127.0.0.1:8080", &server.address.to_string()),
            ("/var/www/camera", &format!("{home}/www")),
        ] {
            text = replaced(&text, from, to);
        }
        let options = format!("{{\n    admin unix//{home}/admin\n    auto_https disable_redirects\n}}\n");
        fs::write(format!("{home}/Caddyfile"), options + &text).unwrap();
        fs::create_dir(format!("{home}/www")).unwrap();
        let page = deploy_file("camera/viewer.html");
        let page = replaced(&page, "GstWebRTCAPI({", "GstWebRTCAPI({ webrtcConfig: { iceServers: [] },");
        fs::write(format!("{home}/www/viewer.html"), page).unwrap();
        fs::write(format!("{home}/www/gstwebrtc-api.js"), library).unwrap();
        let validated =
            Command::new(CADDY).args(["validate", "--config", "Caddyfile"]).current_dir(home).output();
        let validated = validated.unwrap();
        assert!(validated.status.success(), "{}", String::from_utf8_lossy(&validated.stderr));
    });
    caddy.wait_until("Caddy", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (caddy, port)
}

/// Waits until further frames are shown.
fn assert_moves(browser: &mut Chromium) {
    browser.wait_until("document.querySelector('#state')?.textContent === 'Live'");
    let frames = "document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames";
    let before = browser.eval(frames);
    browser.wait_until(&format!("{frames} > {before} + 5"));
}

#[test]
fn units_of_the_recipe_are_valid() {
    if ![ANALYZE, LAUNCH].iter().all(|program| is_installed(program)) {
        return;
    }
    let Folder(home) = &Folder::new("camera-units");
    fs::create_dir(home.join("noroshi.service.d")).unwrap();
    for (file, from) in [
        ("camera/camera.service", "camera.service"),
        ("noroshi.service", "noroshi.service"),
        ("camera/noroshi-camera.conf", "noroshi.service.d/noroshi-camera.conf"),
    ] {
        let unit = deploy_file(file).replace("ExecStart=noroshi", &format!("ExecStart={}", *NOROSHI));
        fs::write(home.join(from), unit).unwrap();
    }
    let mut verify = Command::new(ANALYZE);
    verify.arg("verify").args(["camera.service", "noroshi.service"].map(|unit| home.join(unit)));
    let output = verify.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && text.is_empty(), "{}", String::from_utf8_lossy(&text));
    assert!(deploy_file("camera/camera.service").lines().any(|line| line == "Restart=always"));
    let words = command_line("camera/noroshi-camera.conf");
    let parsed = Config::parse(&protocols::endpoints(protocols::ALL), words[1..].iter().map(Into::into));
    assert!(matches!(parsed, Ok(Parsed::Run(_))), "{parsed:?}");
}

#[test]
fn page_of_the_recipe_shows_the_camera() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM, CADDY, OPENSSL]) else { return };
    let Some(plugin) = plugin() else { return };
    let Some(npm) = npm("gstwebrtc-api@3.0.0").map(Folder) else { return };
    let library = npm.0.join("node_modules/gstwebrtc-api/dist/gstwebrtc-api-3.0.0.min.js");
    let library = fs::read_to_string(library).unwrap();
    let folder = Folder::new("camera");
    let secret = folder.0.join("token");
    fs::write(&secret, "0123456789abcdef0123456789abcdef\n").unwrap();
    let server = start(&secret);
    let (_caddy, port) = caddy(&server, &library);

    let camera_token =
        token(&secret, "sudo noroshi token --secret-file /etc/noroshi/token --room home --id garden");
    let trust = "signaller::insecure-tls=true";
    let url = format!("wss://localhost:{port}/cameras/home");
    let first = camera(&plugin, &url, &camera_token, trust);
    first.wait_until("the camera is registered", || (server.metric("producers") == 1.0).then_some(()));

    let viewer_token =
        token(&secret, "sudo noroshi token --secret-file /etc/noroshi/token --room home --ttl");
    let [mut browser] = Chromium::start();
    browser.ignore_certificate_errors();
    browser.open(&format!("https://{HOST}:{port}/viewer.html?room=home&camera=garden#{viewer_token}"));
    assert_moves(&mut browser);

    // The page shows the camera again after a restart.
    drop(first);
    browser.wait_until("document.querySelector('#state').textContent === 'The camera is offline.'");
    let mut second = camera(&plugin, &url, &camera_token, trust);
    assert_moves(&mut browser);

    // The end of the server's connection reaches the pipeline through Caddy.
    server.signal(Signal::SIGTERM);
    assert_ne!(second.wait_for_exit(), Some(0), "{}", second.log());
    browser.wait_until("document.querySelector('#state').textContent === 'The camera is offline.'");
    eventually("the server has ended", || std::net::TcpStream::connect(server.address).is_err());
}
