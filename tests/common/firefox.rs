//! Firefox, driven through WebDriver BiDi.

use std::net::TcpStream;

use data_encoding::BASE64;
use serde_json::{Map, Value, json};
use tungstenite::{Message, WebSocket};

use super::browser::{Browser, Key, assert_reservation};
use super::process::RetryOnInterrupt;
use super::program::{Program, WAIT_TIMEOUT};

pub const FIREFOX: &str = "/usr/bin/firefox-esr";

/// Disables background traffic and resolves every name to this machine, restricts ICE candidates to this machine
/// without mDNS names, and provides a fake camera that needs no permission.
const PREFERENCES: &str = r#"
user_pref("media.peerconnection.ice.loopback", true);
user_pref("media.peerconnection.ice.obfuscate_host_addresses", false);
user_pref("media.navigator.streams.fake", true);
user_pref("media.navigator.permission.disabled", true);
user_pref("media.autoplay.default", 0);
user_pref("media.gmp-manager.url", "");
user_pref("media.gmp-provider.enabled", false);
user_pref("app.update.enabled", false);
user_pref("app.normandy.enabled", false);
user_pref("browser.aboutConfig.showWarning", false);
user_pref("browser.newtabpage.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.search.update", false);
user_pref("browser.startup.homepage", "about:blank");
user_pref("browser.startup.page", 0);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("extensions.getAddons.cache.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("network.dns.disablePrefetch", true);
user_pref("network.dns.native-is-localhost", true);
user_pref("network.prefetch-next", false);
user_pref("network.proxy.type", 0);
user_pref("network.trr.mode", 5);
user_pref("privacy.trackingprotection.enabled", false);
user_pref("remote.prefs.recommended", true);
user_pref("toolkit.telemetry.enabled", false);
user_pref("toolkit.telemetry.server", "");
user_pref("toolkit.telemetry.unified", false);
"#;

/// A Firefox process with one tab and its own profile.
pub struct Firefox {
    /// Killed when the browser is dropped.
    _program: Program,
    socket: WebSocket<RetryOnInterrupt>,
    /// The browsing context of the tab.
    context: Value,
    commands: u64,
    errors: Vec<String>,
}

impl Firefox {
    /// Starts N browsers in parallel.
    pub fn start<const N: usize>() -> [Firefox; N] {
        Firefox::start_in("light")
    }

    /// Starts N browsers with this color scheme: `light`, `dark` or `forced`. It is fixed for the process.
    pub fn start_in<const N: usize>(colors: &str) -> [Firefox; N] {
        let scheme = u8::from(colors != "dark");
        let document_color_use = if colors == "forced" { 2 } else { 1 };
        let preferences = format!(
            r#"{PREFERENCES}
user_pref("layout.css.prefers-color-scheme.content-override", {scheme});
user_pref("browser.display.document_color_use", {document_color_use});
"#
        );
        let flags = "--headless --no-remote --profile . --remote-debugging-port 0 about:blank";
        let start = || {
            Program::start_after(FIREFOX, flags, |home| {
                std::fs::write(home.join("user.js"), &preferences).unwrap();
            })
        };
        [(); N].map(|()| start()).map(Firefox::attach)
    }

    fn attach(program: Program) -> Firefox {
        assert_reservation();
        let socket = program.wait_until("the address of WebDriver BiDi", || {
            let log = std::fs::read_to_string(program.home.join("log")).ok()?;
            let url =
                log.lines().find_map(|line| line.strip_prefix("WebDriver BiDi listening on "))?.to_owned();
            let stream = TcpStream::connect(url.strip_prefix("ws://").unwrap()).ok()?;
            stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
            Some(tungstenite::client(format!("{url}/session"), RetryOnInterrupt(stream)).unwrap().0)
        });
        let mut browser =
            Firefox { _program: program, socket, context: Value::Null, commands: 0, errors: Vec::new() };
        browser.command("session.new", json!({"capabilities": {}}));
        browser.command("session.subscribe", json!({"events": ["log.entryAdded"]}));
        // A new tab has the focus. In the first one, the address bar has it.
        let tab = browser.command("browsingContext.create", json!({"type": "tab"}));
        browser.context = tab["context"].clone();
        browser
    }

    /// Sets the viewport in pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let viewport = json!({"width": width, "height": height});
        self.command("browsingContext.setViewport", json!({"context": self.context, "viewport": viewport}));
    }

    fn press_keys(&mut self, keys: impl IntoIterator<Item = char>) {
        let actions: Vec<Value> = keys
            .into_iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.command("input.performActions", json!({"context": self.context, "actions": [keyboard]}));
    }

    /// Sends a WebDriver BiDi command and returns its result.
    #[track_caller]
    fn command(&mut self, method: &str, params: Value) -> Value {
        self.commands += 1;
        let command = json!({"id": self.commands, "method": method, "params": params});
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let message = self.socket.read().unwrap();
            let mut message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            if message["id"] == self.commands {
                assert_eq!(message["type"], "success", "{command}: {message}");
                return message["result"].take();
            }
            if message["method"] == "log.entryAdded" && message["params"]["level"] == "error" {
                self.errors.push(message["params"].to_string());
            }
        }
    }
}

impl Browser for Firefox {
    #[track_caller]
    fn open(&mut self, url: &str) {
        let params = json!({"context": self.context, "url": url, "wait": "complete"});
        self.command("browsingContext.navigate", params);
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        let expression = match expression.contains("await ") {
            true => format!("(async () => ({expression}))()"),
            false => expression.to_owned(),
        };
        let params = json!({"expression": expression, "target": {"context": self.context}, "awaitPromise": true,
            "userActivation": true, "serializationOptions": {"maxObjectDepth": 9}});
        let result = self.command("script.evaluate", params);
        assert_eq!(result["type"], "success", "{expression}: {result}");
        value(&result["result"])
    }

    #[track_caller]
    fn type_text(&mut self, selector: &str, text: &str) {
        self.eval(&format!("document.querySelector({selector:?}).select()"));
        self.press_keys(text.chars());
        self.press(Key::Enter);
    }

    fn press(&mut self, key: Key) {
        // The codes of WebDriver (section 17.4.2, keyboard actions).
        let code = match key {
            Key::Tab => '\u{e004}',
            Key::Enter => '\u{e007}',
            Key::Escape => '\u{e00c}',
        };
        self.press_keys([code]);
    }

    fn set_viewport(&mut self, width: u32, height: u32) {
        self.resize(width, height);
    }

    fn screenshot(&mut self) -> Vec<u8> {
        let result = self.command("browsingContext.captureScreenshot", json!({"context": self.context}));
        BASE64.decode(result["data"].as_str().unwrap().as_bytes()).unwrap()
    }

    fn errors(&mut self) -> &mut Vec<String> {
        &mut self.errors
    }
}

/// Converts a remote value to JSON.
fn value(remote: &Value) -> Value {
    let list = || remote["value"].as_array().into_iter().flatten();
    match remote["type"].as_str() {
        Some("string" | "number" | "boolean") => remote["value"].clone(),
        Some("array") => list().map(value).collect(),
        Some("object") => {
            let entry = |entry: &Value| (entry[0].as_str().unwrap().to_owned(), value(&entry[1]));
            Value::Object(list().map(entry).collect::<Map<_, _>>())
        }
        _ => Value::Null,
    }
}
