//! Debian's Chromium, driven over its DevTools WebSocket.

use std::net::TcpStream;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use super::browser::Browser;
use super::process::Patient;
use super::program::{GIVE_UP, Program};

pub const CHROMIUM: &str = "/usr/bin/chromium";

/// One that is alone and quiet; that finds candidates on this machine alone, and does not hide their addresses behind
/// names of mDNS; that has a camera, and nobody who would have to allow it.
const FLAGS: &str = "--headless --no-sandbox --no-first-run --user-data-dir=. --remote-debugging-port=0 \
    --disable-gpu --disable-quic --disable-dev-shm-usage --disable-extensions --disable-sync \
    --disable-background-networking --disable-component-update --mute-audio \
    --allow-loopback-in-peer-connection --disable-features=WebRtcHideLocalIpsWithMdns \
    --use-fake-device-for-media-stream --use-fake-ui-for-media-stream about:blank";

/// A browser with one tab and a profile of its own.
pub struct Chromium {
    program: Program,
    socket: WebSocket<Patient>,
    /// Names the tab in commands.
    session: Value,
    commands: u64,
    /// The errors in its console so far: exceptions, what `console.error` was called with, requests that failed, and
    /// what a policy forbade.
    pub errors: Vec<String>,
}

impl Chromium {
    /// Starts some at the same time.
    pub fn start<const N: usize>() -> [Chromium; N] {
        [(); N].map(|()| Program::start(CHROMIUM, FLAGS)).map(Chromium::attach)
    }

    /// Starts one that trusts whoever has the key with this hash, as TURN over TLS must be trusted too.
    pub fn trusting(hash: &str) -> Chromium {
        let flags = format!("--ignore-certificate-errors-spki-list={hash} {FLAGS}");
        Chromium::attach(Program::start(CHROMIUM, &flags))
    }

    fn attach(program: Program) -> Chromium {
        let socket = program.until("the address of the DevTools", || {
            let text = std::fs::read_to_string(program.home.join("DevToolsActivePort")).ok()?;
            let (port, path) = text.split_once('\n')?;
            let stream = TcpStream::connect(("127.0.0.1", port.parse().ok()?)).ok()?;
            stream.set_read_timeout(Some(GIVE_UP)).unwrap();
            Some(tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), Patient(stream)).unwrap().0)
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

    /// Does something of the DevTools protocol, and returns what it returns.
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

    /// From now on it takes whatever certificate a server shows.
    pub fn trust(&mut self) {
        self.command("Security.setIgnoreCertificateErrors", json!({"ignore": true}));
    }

    /// From now on its page has the focus, as if somebody sat before it.
    pub fn focus(&mut self) {
        self.command("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
    }

    /// What nothing holds is freed.
    pub fn collect_garbage(&mut self) {
        self.command("HeapProfiler.collectGarbage", json!({}));
    }

    /// From now on the page is as wide and as high as this, in pixels, and in these colors: `light`, `dark`, or `forced`.
    pub fn resize(&mut self, width: u32, height: u32, colors: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size);
        let scheme = if colors == "dark" { "dark" } else { "light" };
        let forced = if colors == "forced" { "active" } else { "none" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme},
            {"name": "forced-colors", "value": forced}]});
        self.command("Emulation.setEmulatedMedia", features);
    }

    /// Kills it, as a crash would. Its console must have been without errors.
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
        self.until("document.readyState === 'complete'");
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
    fn write(&mut self, selector: &str, text: &str) {
        self.eval(&format!("document.querySelector({selector:?}).select()"));
        self.command("Input.insertText", json!({"text": text}));
        for kind in ["keyDown", "keyUp"] {
            let enter = json!({"type": kind, "key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"});
            self.command("Input.dispatchKeyEvent", enter);
        }
    }

    fn picture(&mut self) -> Vec<u8> {
        let result = self.command("Page.captureScreenshot", json!({}));
        BASE64.decode(result["data"].as_str().unwrap().as_bytes()).unwrap()
    }

    fn errors(&mut self) -> &mut Vec<String> {
        &mut self.errors
    }
}

/// What an event of the DevTools adds to the errors of the console.
fn error(event: &Value) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" if params["type"] == "error" => Some(params["args"].to_string()),
        "Log.entryAdded" if params["entry"]["level"] == "error" => Some(params["entry"].to_string()),
        _ => None,
    }
}
