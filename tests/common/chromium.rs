//! Chromium, driven through the DevTools protocol over a WebSocket.

use std::net::TcpStream;

use data_encoding::BASE64;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::browser::{Browser, Key, assert_reservation};
use super::process::RetryOnInterrupt;
use super::program::{Program, WAIT_TIMEOUT};

pub const CHROMIUM: &str = "/usr/bin/chromium";

/// Disables background traffic, restricts ICE candidates to this machine without mDNS names, and provides a fake camera
/// that needs no permission.
const FLAGS: &str = "--headless --no-sandbox --no-first-run --user-data-dir=. --remote-debugging-port=0 \
    --disable-gpu --disable-quic --disable-dev-shm-usage --disable-extensions --disable-sync \
    --disable-background-networking --disable-component-update --mute-audio \
    --allow-loopback-in-peer-connection --disable-features=WebRtcHideLocalIpsWithMdns \
    --use-fake-device-for-media-stream --use-fake-ui-for-media-stream about:blank";

/// A Chromium process with one tab and its own profile.
pub struct Chromium {
    /// Killed when the browser is dropped.
    program: Program,
    socket: WebSocket<RetryOnInterrupt>,
    /// The DevTools session of the tab.
    session: Value,
    commands: u64,
    /// Console errors so far: exceptions, calls of `console.error`, failed requests and policy violations.
    pub errors: Vec<String>,
}

impl Chromium {
    /// Starts N browsers in parallel.
    pub fn start<const N: usize>() -> [Chromium; N] {
        [(); N].map(|()| Program::start(CHROMIUM, FLAGS)).map(Chromium::attach)
    }

    /// Starts a browser that trusts the certificate whose public key has this hash. TURN over TLS needs this, too.
    pub fn start_trusting(hash: &str) -> Chromium {
        let flags = format!("--ignore-certificate-errors-spki-list={hash} {FLAGS}");
        Chromium::attach(Program::start(CHROMIUM, &flags))
    }

    fn attach(program: Program) -> Chromium {
        assert_reservation();
        let socket = program.wait_until("the address of the DevTools", || {
            let text = std::fs::read_to_string(program.home.join("DevToolsActivePort")).ok()?;
            let (port, path) = text.split_once('\n')?;
            let stream = TcpStream::connect(("127.0.0.1", port.parse().ok()?)).ok()?;
            stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
            Some(
                tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), RetryOnInterrupt(stream))
                    .unwrap()
                    .0,
            )
        });
        let mut browser = Chromium { program, socket, session: Value::Null, commands: 0, errors: Vec::new() };
        let targets = browser.command("Target.getTargets", json!({}));
        let tab = targets["targetInfos"].as_array().unwrap().iter().find(|it| it["type"] == "page").unwrap();
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        browser.session = browser.command("Target.attachToTarget", attach)["sessionId"].take();
        for domain in ["Page", "Runtime", "Log"] {
            browser.command(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a DevTools command and returns its result.
    #[track_caller]
    fn command(&mut self, method: &str, params: Value) -> Value {
        self.commands += 1;
        let mut command = json!({"id": self.commands, "method": method, "params": params});
        if self.session.is_string() {
            command["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let mut message: Value =
                serde_json::from_str(self.socket.read().unwrap().to_text().unwrap()).unwrap();
            if message["id"] == self.commands {
                assert!(message["error"].is_null(), "{command}: {message}");
                return message["result"].take();
            }
            self.errors.extend(error(&message));
        }
    }

    /// Accepts every certificate from now on.
    pub fn ignore_certificate_errors(&mut self) {
        self.command("Security.setIgnoreCertificateErrors", json!({"ignore": true}));
    }

    /// Emulates a focused page.
    pub fn focus(&mut self) {
        self.command("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
    }

    pub fn collect_garbage(&mut self) {
        self.command("HeapProfiler.collectGarbage", json!({}));
    }

    /// Sets the viewport in pixels and the color scheme: `light`, `dark` or `forced`.
    pub fn resize(&mut self, width: u32, height: u32, colors: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size);
        let scheme = if colors == "dark" { "dark" } else { "light" };
        let forced = if colors == "forced" { "active" } else { "none" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme},
            {"name": "forced-colors", "value": forced}]});
        self.command("Emulation.setEmulatedMedia", features);
    }

    /// Stops all processes of the browser, as when a computer sleeps.
    pub fn suspend(&self) {
        self.program.signal_group(Signal::SIGSTOP);
    }

    /// Continues after [`Chromium::suspend`].
    pub fn resume(&self) {
        self.program.signal_group(Signal::SIGCONT);
    }

    /// Kills the browser, as a crash does, after it checks that the console has no errors.
    #[track_caller]
    pub fn kill(mut self) {
        self.eval("0");
        assert!(self.errors.is_empty(), "{:#?}", self.errors);
    }
}

impl Browser for Chromium {
    #[track_caller]
    fn open(&mut self, url: &str) {
        let result = self.command("Page.navigate", json!({"url": url}));
        assert!(result["errorText"].is_null(), "{url}: {result}");
        self.wait_until("document.readyState === 'complete'");
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "replMode": true, "awaitPromise": true,
            "returnByValue": true, "userGesture": true});
        let mut result = self.command("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    #[track_caller]
    fn type_text(&mut self, selector: &str, text: &str) {
        self.eval(&format!("document.querySelector({selector:?}).select()"));
        self.command("Input.insertText", json!({"text": text}));
        self.press(Key::Enter);
    }

    fn press(&mut self, key: Key) {
        let (name, code, text) = match key {
            Key::Tab => ("Tab", 9, None),
            Key::Enter => ("Enter", 13, Some("\r")),
            Key::Escape => ("Escape", 27, None),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code});
            if let Some(text) = text {
                event["text"] = text.into();
            }
            self.command("Input.dispatchKeyEvent", event);
        }
    }

    fn set_viewport(&mut self, width: u32, height: u32) {
        self.resize(width, height, "light");
    }

    fn screenshot(&mut self) -> Vec<u8> {
        let result = self.command("Page.captureScreenshot", json!({}));
        BASE64.decode(result["data"].as_str().unwrap().as_bytes()).unwrap()
    }

    fn errors(&mut self) -> &mut Vec<String> {
        &mut self.errors
    }
}

/// Returns the console error that a DevTools event reports.
fn error(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => Some(params["entry"].to_string()),
        _ => None,
    }
}
