//! Clients of the GStreamer signalling protocol, unmodified: webrtcsink and webrtcsrc in pipelines, gstwebrtc-api in
//! browsers, and gst-signalling in Python.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::Folder;
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::gstreamer::{TEST_PATTERN, launch, plugin};
use crate::common::process::{Running, eventually, run};
use crate::common::program::{Program, find, free_port, is_installed, npm};
use crate::common::transcript::SECRET;
use nix::sys::signal::Signal;
use noroshi::http::token::{Claims, Secrets};

/// Debian's Python has the introspection of GStreamer, which gst-signalling imports.
const PYTHON: &str = "/usr/bin/python3";
const INTROSPECTION: &str = "/usr/lib/python3/dist-packages/gi";

/// What elements report when a TCP connection ends without a Close frame.
const CONNECTION_ENDED: &str = "Connection reset without closing handshake";

/// gstwebrtc-api as one script. `None` without npm.
static LIBRARY: LazyLock<Option<String>> = LazyLock::new(|| {
    let home = npm("gstwebrtc-api@3.0.0")?;
    let file = home.join("node_modules/gstwebrtc-api/dist/gstwebrtc-api-3.0.0.min.js");
    let library = std::fs::read_to_string(file).unwrap();
    std::fs::remove_dir_all(home).unwrap();
    Some(library)
});

/// Starts a web server with the page. `None` without npm.
fn page() -> Option<SocketAddr> {
    let library = LIBRARY.as_ref()?;
    Some(serve(&[("/", include_str!("../pages/gstreamer.html")), ("/gstwebrtc-api.js", library)]))
}

fn start(page: SocketAddr, flags: &str) -> Running {
    let (server, _stderr) =
        run(&format!(r#"exec "$0" --gstreamer --allow-origin http://localhost:{} {flags}"#, page.port()));
    server
}

/// Opens the page and connects it to the server, with this query.
fn enter(browser: &mut dyn Browser, page: SocketAddr, server: SocketAddr, query: &str) {
    browser.open(&format!("http://localhost:{}/", page.port()));
    browser.wait_until("window.GstWebRTCAPI && window.enter");
    browser.eval(&format!("enter('ws://{server}/{query}')"));
}

/// Starts a session with a producer and waits until its picture moves.
fn watch(browser: &mut dyn Browser, id: &str) {
    browser.wait_until(&format!("has('{id}')"));
    assert_eq!(browser.eval(&format!("watch('{id}')")), true);
    assert_moves(browser, id);
}

/// Waits until further frames are decoded.
#[track_caller]
fn assert_moves(browser: &mut dyn Browser, id: &str) {
    let before = browser.eval(&format!("await frames('{id}')"));
    browser.wait_until(&format!("await frames('{id}') > {before} + 5"));
}

/// Starts a pipeline that offers a test pattern.
fn camera(plugin: &Path, server: SocketAddr, properties: &str) -> Program {
    let sink = r#"webrtcsink video-caps=video/x-vp8 stun-server='""' meta=meta,name=camera"#;
    let arguments = format!("{TEST_PATTERN} ! {sink} signaller::uri=ws://{server} {properties}");
    launch(plugin, &arguments)
}

/// Starts a pipeline that decodes 20 frames of a producer and ends.
fn viewer(plugin: &Path, server: SocketAddr, properties: &str) -> Program {
    let source = format!(r#"webrtcsrc stun-server='""' signaller::uri=ws://{server} {properties}"#);
    launch(plugin, &format!("{source} ! videoconvert ! fakesink num-buffers=20"))
}

/// Returns the property that makes a pipeline send this token.
fn bearer(token: &str) -> String {
    format!(r#"'signaller::headers=headers,authorization="Bearer\ {token}"'"#)
}

/// Returns a token for any room, which expires in the year 2096.
fn token(id: Option<&str>) -> String {
    Secrets::parse(SECRET).unwrap().sign(&Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        id: id.map(Into::into),
        ..Claims::default()
    })
}

/// Waits until a viewer has decoded its frames. Its exit code says nothing, because webrtcsrc sometimes reports an error
/// while it shuts down: that it cannot send any more.
fn wait_for_frames(viewer: &Program) {
    viewer.wait_until("20 frames", || viewer.log().contains("Got EOS from element").then_some(()));
}

/// Waits until a pipeline ends with this error, so that a supervisor starts it again. The exit code is 1, but GLib sometimes
/// aborts the process while it exits.
fn assert_fails(mut pipeline: Program, error: &str) {
    let code = pipeline.wait_for_exit();
    let log = pipeline.log();
    assert!(code != Some(0) && log.contains(error), "{code:?}: {log}");
}

fn wait_for_producer(server: &Running) {
    eventually("the camera is registered", || server.metric("producers") == 1.0);
}

fn assert_no_misunderstanding(server: &Running) {
    for code in ["not_understood", "unknown_peer", "not_in_session", "peer_busy", "rate_limited"] {
        assert_eq!(server.metric(&format!("errors_total{{code=\"{code}\"}}")), 0.0, "{code}");
    }
}

#[test]
fn camera_is_seen_by_browsers_and_native_viewers() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let (Some(plugin), Some(page)) = (plugin(), page()) else { return };
    let server = start(page, "");
    let camera = camera(&plugin, server.address, "");
    let ([mut chromium], [mut firefox]) = (Chromium::start(), Firefox::start());
    wait_for_producer(&server);
    for browser in [&mut chromium as &mut dyn Browser, &mut firefox] {
        enter(browser, page, server.address, "");
        browser.wait_until("producers().length === 1");
    }
    let id = chromium.eval("producers()[0].id").as_str().unwrap().to_owned();
    assert_eq!(chromium.eval("producers()[0].meta.name"), "camera");
    for browser in [&mut chromium as &mut dyn Browser, &mut firefox] {
        watch(browser, &id);
    }
    let native = viewer(&plugin, server.address, &format!("signaller::producer-peer-id={id}"));
    wait_for_frames(&native);
    let first = viewer(&plugin, server.address, "connect-to-first-producer=true");
    wait_for_frames(&first);
    drop((native, first));
    eventually("the sessions of native viewers have ended", || server.metric("sessions") == 2.0);

    // A viewer that ends its session, and one that disappears.
    chromium.eval(&format!("leave('{id}')"));
    eventually("the session has ended", || server.metric("sessions") == 1.0);
    assert_moves(&mut firefox, &id);
    watch(&mut chromium, &id);
    drop(firefox);
    eventually("the session has ended", || server.metric("sessions") == 1.0);
    assert_moves(&mut chromium, &id);

    // The camera ends. The pipeline often fails while it shuts down, with the original server too.
    camera.signal(Signal::SIGINT);
    chromium.wait_until(&format!("isClosed('{id}') && producers().length === 0"));
    chromium.assert_no_errors();
    assert_no_misunderstanding(&server);
    drop(chromium);
    eventually("nothing is left", || server.metric("connections") + server.metric("rooms") == 0.0);
    assert_eq!(server.metric("sessions") + server.metric("producers"), 0.0);
}

#[test]
fn camera_keeps_its_id_with_a_token() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (Some(plugin), Some(page)) = (plugin(), page()) else { return };
    let folder = Folder::new("gstreamer-token");
    let file = folder.0.join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let server = start(page, &format!("--token-secret-file {}", file.display()));
    let camera_token = bearer(&token(Some("cam-1")));
    let first = camera(&plugin, server.address, &camera_token);
    wait_for_producer(&server);

    // Without a token, elements report the status, and the pipeline ends.
    let source = "signaller::producer-peer-id=cam-1";
    assert_fails(viewer(&plugin, server.address, source), "HTTP error: 401 Unauthorized");
    let [mut browser] = Chromium::start();
    enter(&mut browser, page, server.address, "");
    eventually("a page without a token is refused", || {
        server.metric("refused_tokens_total{reason=\"missing\"}") >= 2.0
    });

    // With a token, the camera is known by its id.
    enter(&mut browser, page, server.address, &format!("?token={}", token(None)));
    watch(&mut browser, "cam-1");
    let native = viewer(&plugin, server.address, &format!("{source} {}", bearer(&token(None))));
    wait_for_frames(&native);
    drop(native);

    // The camera restarts, and viewers find it again under its id.
    drop(first);
    browser.wait_until("isClosed('cam-1') && !has('cam-1')");
    let second = camera(&plugin, server.address, &camera_token);
    watch(&mut browser, "cam-1");

    // It starts again before the server knows that the older one has gone. That one ends, because it lost its id.
    let _third = camera(&plugin, server.address, &camera_token);
    assert_fails(second, CONNECTION_ENDED);
    browser.wait_until("isClosed('cam-1')");
    watch(&mut browser, "cam-1");
    assert_eq!(server.metric("producers"), 1.0);
    assert_no_misunderstanding(&server);
}

/// GStreamer's elements do not reconnect, so a supervisor restarts the pipeline.
#[test]
fn supervised_camera_survives_a_restart_of_the_server() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (Some(plugin), Some(page)) = (plugin(), page()) else { return };
    let port = free_port();
    let flags = format!("-l 127.0.0.1:{port}");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut server = start(page, &flags);
    let first = camera(&plugin, address, "");
    let [mut browser] = Chromium::start();
    wait_for_producer(&server);
    enter(&mut browser, page, address, "");
    browser.wait_until("producers().length === 1");
    let id = browser.eval("producers()[0].id").as_str().unwrap().to_owned();
    watch(&mut browser, &id);
    let native = format!("signaller::producer-peer-id={id} ! videoconvert ! fakesink");
    let native =
        launch(&plugin, &format!(r#"webrtcsrc stun-server='""' signaller::uri=ws://{address} {native}"#));
    eventually("the native viewer has a session", || server.metric("sessions") == 2.0);

    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    // After a Close frame they would continue without a server.
    assert_fails(first, CONNECTION_ENDED);
    assert_fails(native, CONNECTION_ENDED);
    browser.wait_until(&format!("isClosed('{id}') && producers().length === 0"));

    let server = start(page, &flags);
    let _second = camera(&plugin, address, "");
    // The page reconnects by itself.
    browser.wait_until("producers().length === 1");
    let id = browser.eval("producers()[0].id").as_str().unwrap().to_owned();
    watch(&mut browser, &id);
    assert_no_misunderstanding(&server);
}

/// gst-signalling from PyPI, with the modules of GStreamer from Debian.
#[test]
fn python_client_lists_the_camera() {
    if ![PYTHON, INTROSPECTION].iter().all(|file| is_installed(file)) {
        return;
    }
    let (Some(plugin), Some(pip)) = (plugin(), find("pip3")) else { return };
    let home = Folder::new("gst-signalling");
    let mut install = Command::new(pip);
    // The dependency PyGObject is Debian's, which needs no compiler.
    install.args("install --quiet --disable-pip-version-check --no-deps --target packages".split(' '));
    install.args([
        "gst-signalling==1.1.2",
        "pyee==13.0.0",
        "websockets==15.0.1",
        "typing_extensions==4.15.0",
    ]);
    // Debian's pip otherwise refuses to install packages, even into a separate directory.
    install.current_dir(&home.0).env("PIP_BREAK_SYSTEM_PACKAGES", "1").env("PIP_ROOT_USER_ACTION", "ignore");
    assert!(install.status().unwrap().success());
    let (server, _stderr) = run(r#"exec "$0" --gstreamer"#);
    let _camera = camera(&plugin, server.address, "");
    wait_for_producer(&server);
    let list = "import sys; from gst_signalling import utils; \
                print(utils.get_producer_list(sys.argv[1], int(sys.argv[2])))";
    let mut python = Command::new(PYTHON);
    python.args(["-W", "ignore", "-c", list, "127.0.0.1", &server.address.port().to_string()]);
    let output = python.env("PYTHONPATH", home.0.join("packages")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rooms = server.request(server.metrics, "/rooms");
    let id = rooms.split(r#""id":""#).nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{{'{id}': {{'name': 'camera'}}}}\n"));
    assert_no_misunderstanding(&server);
}
