//! The npm package of the client library: installed, bundled, imported in a page and in Node.js.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::{Folder, project_root};
use crate::common::firefox::{FIREFOX, Firefox};
use crate::common::process::{eventually, run};
use crate::common::program::{Program, find, npm};
use crate::common::readme::read;
use serde_json::json;

// ---- The package and the examples, for all tests ----

/// Builds the package, once for all tests. `None` without Node.js and npm.
fn package() -> Option<&'static Path> {
    static PACKAGE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        find("npm")?;
        let node = find("node")?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm");
        let mut script = Command::new(node);
        script.arg(project_root().join("scripts/npm.mjs")).arg(&folder);
        let output = script.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(folder.join(format!("noroshi-{}.tgz", env!("CARGO_PKG_VERSION"))))
    };
    PACKAGE.get_or_init(build).as_deref()
}

/// Installs the package, and others, into a new directory.
pub fn install_package(others: &str) -> Option<Folder> {
    let package = package()?.to_str().unwrap();
    npm(&format!("{package} {others}")).map(Folder)
}

/// An example of the documentation.
pub struct Example {
    /// The language of the code block.
    pub language: String,
    /// The heading above.
    pub heading: String,
    /// The code, for a page that of its script.
    pub code: String,
    /// The whole block.
    pub block: String,
}

/// Whether an example is a page, with elements and a script.
pub fn is_page(example: &Example) -> bool {
    example.language == "html"
}

/// Returns the examples of the documents that use the library.
pub fn library_examples() -> Vec<Example> {
    let mut examples = Vec::new();
    for document in ["README.md", "src/web/README.md"] {
        let text = read(document);
        let mut heading = "";
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.starts_with('#') {
                heading = line.trim_start_matches(['#', ' ']);
            }
            let Some(language) = line.strip_prefix("```") else { continue };
            let block: String =
                lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
            let script = block.split_once("<script type=\"module\">\n");
            let code = script.map_or(&*block, |(_, script)| script.split_once("</script>").unwrap().0);
            if code.contains("from \"noroshi\"") || code.contains("noroshi.js\"") {
                let (language, heading, code) = (language.to_owned(), heading.to_owned(), code.to_owned());
                examples.push(Example { language, heading, code, block });
            }
        }
    }
    examples
}

/// Returns the code of an example below a heading.
#[track_caller]
fn example_below(heading: &str) -> String {
    let example = library_examples().into_iter().find(|example| example.heading == heading);
    example.unwrap_or_else(|| panic!("there is no example below {heading}")).code
}

// ---- Bundled by Vite ----

const MAIN: &str = r##"
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createApp, defineComponent, h } from "vue";
import { Chat } from "./chat";
import { useRoom } from "./use_room";

const url = new URLSearchParams(location.search).get("url") ?? "";
const Presence = defineComponent({
  setup() {
    const { peers, room } = useRoom(url + "-of-vue");
    return () => h("p", `${room.value?.state ?? "entering"}: ${peers.value.length} connected`);
  },
});
createRoot(document.querySelector("#react")!).render(<StrictMode><Chat url={url} /></StrictMode>);
const app = createApp(Presence);
app.mount("#vue");
document.querySelector("#unmount")!.addEventListener("click", () => app.unmount());
"##;

const PAGE: &str = r#"<!doctype html><title>Vite</title><link rel="icon" href="data:,">
<div id="react"></div><div id="vue"></div><button id="unmount">Unmount</button>
<script type="module" src="/main.tsx"></script>"#;

const TSCONFIG: &str = r#"{ "compilerOptions": { "strict": true, "noUnusedLocals": true, "target": "es2022",
    "module": "esnext", "moduleResolution": "bundler", "jsx": "react-jsx", "lib": ["es2022", "dom", "dom.iterable"],
    "types": [], "noEmit": true }, "include": ["*.ts", "*.tsx"] }"#;

/// Returns the output of a program of an npm package.
fn run_tool(home: &Path, tool: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(home.join("node_modules/.bin").join(tool));
    let output = command.args(arguments).current_dir(home).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {text}");
    text.into_owned()
}

/// Serves the files that Vite has built.
fn serve_build(home: &Path) -> std::net::SocketAddr {
    let dist = home.join("dist");
    let mut files = vec![("/".to_owned(), std::fs::read_to_string(dist.join("index.html")).unwrap())];
    for entry in dist.join("assets").read_dir().unwrap().map(Result::unwrap) {
        let path = format!("/assets/{}", entry.file_name().to_str().unwrap());
        files.push((path, std::fs::read_to_string(entry.path()).unwrap()));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&**path, &**text)).collect();
    serve(&files)
}

#[test]
fn package_works_in_a_vite_project_with_react_and_vue() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let packages = "typescript@7 vite@8 react@19 react-dom@19 @types/react@19 @types/react-dom@19 vue@3";
    let Some(home) = install_package(packages) else { return };
    for (file, text) in [
        ("main.tsx", MAIN),
        ("index.html", PAGE),
        ("tsconfig.json", TSCONFIG),
        ("chat.tsx", &example_below("React")),
        ("use_room.ts", &example_below("Vue")),
    ] {
        std::fs::write(home.0.join(file), text).unwrap();
    }
    assert_eq!(run_tool(&home.0, "tsc", &[]), "");
    run_tool(&home.0, "vite", &["build", "--logLevel", "warn"]);
    let page = serve_build(&home.0);

    let (server, _stderr) = run(&format!(r#"exec "$0" --allow-origin http://{page}"#));
    let [mut chromium] = Chromium::start();
    let [mut firefox] = Firefox::start();
    let mut pair: [&mut dyn Browser; 2] = [&mut chromium, &mut firefox];
    for browser in &mut pair {
        browser.open(&format!("http://{page}/?url=ws://{}/ws/tea", server.address));
    }
    for browser in &mut pair {
        browser.wait_until("document.querySelector('#vue').innerText === 'online: 1 connected'");
        browser.wait_until("!document.querySelector('#react button').disabled");
    }
    // The first effects of StrictMode have left: there are two rooms with two peers each.
    eventually("only the second effects are left", || server.metric("peers") == 4.0);
    eventually("both show the message of the other", || {
        pair.iter_mut().all(|browser| {
            browser.eval("document.querySelector('#react button').click()");
            browser.eval("document.querySelector('#react').innerText.includes(': hello')") == true
        })
    });
    pair[0].eval("document.querySelector('#unmount').click()");
    pair[1].wait_until("document.querySelector('#vue').innerText === 'online: 0 connected'");
    for browser in &mut pair {
        browser.assert_no_errors();
    }
}

// ---- Node.js ----

/// Runs a module in Node.js, in the directory where the package is installed. Returns its output.
fn run_node(home: &Path, module: &str) -> String {
    let node = find("node").unwrap();
    let output =
        Command::new(node).args(["--input-type=module", "-e", module]).current_dir(home).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every global function and constructor that could open, listen or schedule something throws.
const FORBID_EFFECTS: &str = r#"
    const names = ["WebSocket", "RTCPeerConnection", "MediaStream", "fetch", "setTimeout", "setInterval",
        "addEventListener", "crypto", "navigator", "queueMicrotask"];
    const descriptors = Object.getOwnPropertyDescriptors(globalThis);
    for (const name of names) {
        Object.defineProperty(globalThis, name, { configurable: true, get() { throw new Error(`${name} is used`); } });
    }
"#;

const PERMIT_EFFECTS: &str = r#"
    for (const name of names) {
        delete globalThis[name];
        if (descriptors[name]) Object.defineProperty(globalThis, name, descriptors[name]);
    }
"#;

#[test]
fn import_in_node_has_no_effects() {
    let Some(home) = install_package("typescript@7") else { return };
    let module = r#"
        FORBID_EFFECTS
        const library = await import("noroshi");
        PERMIT_EFFECTS
        console.log(Object.keys(library).sort().join());
        const error = await library.join("ws://localhost:1/ws").catch((error) => error);
        console.log(error.name, error.message);
    "#;
    let module =
        module.replace("FORBID_EFFECTS", FORBID_EFFECTS).replace("PERMIT_EFFECTS", PERMIT_EFFECTS);
    let names = "NoroshiError,Peer,Room,connect,join\n";
    let failure = "TypeError there is no RTCPeerConnection or WebSocket here: pass implementations in the options\n";
    assert_eq!(run_node(&home.0, &module), format!("{names}{failure}"));
}

#[test]
fn import_and_refused_options_in_a_page_have_no_effects() {
    let Some(_browsers) = reserve_browsers(1, &[CHROMIUM]) else { return };
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut browser] = Chromium::start();
    browser.open(&format!("http://{}/healthz", server.address));
    browser.eval(&format!(
        "{FORBID_EFFECTS} const library = await import('/noroshi.js'); {PERMIT_EFFECTS} 0"
    ));
    // Nothing is opened for options that the browser or the library does not accept.
    browser.eval(
        "const opened = [];
        globalThis.WebSocket = class { constructor(url) { opened.push(url); } };
        const circular = {}; circular.self = circular;
        const refuse = (url, options) => library.join(url, options).then(() => 'in', (error) => error.code ?? error.name);
        const url = location.origin + '/ws/tea'; 0",
    );
    let refused = browser.eval(
        "await Promise.all([
            refuse('ftp://localhost/ws'), refuse('http://['), refuse(url, { iceServers: [{ urls: 'nonsense:' }] }),
            refuse(url, { iceTransportPolicy: 'nonsense' }), refuse(url, { data: 'x'.repeat(20_000) }),
            refuse(url, { data: circular }), refuse(url, { signal: AbortSignal.abort() }),
        ])",
    );
    // The code of a DOMException is a number.
    let expected =
        json!(["TypeError", "TypeError", 12, "TypeError", "too_big", "TypeError", 20]);
    assert_eq!(refused, expected);
    assert_eq!(browser.eval("opened"), json!([]));
    browser.kill();
}

#[test]
fn bot_in_node_talks_to_browsers() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM, FIREFOX]) else { return };
    let Some(home) = install_package("werift@0.25 ws@8") else { return };
    std::fs::write(home.0.join("bot.mjs"), example_below("Node bot")).unwrap();
    let (server, _stderr) = run(r#"exec "$0""#);
    let [mut chromium] = Chromium::start();
    let [mut firefox] = Firefox::start();
    let enter = |browser: &mut dyn Browser| {
        browser.open(&format!("http://{}/healthz", server.address));
        browser.eval("(globalThis.library = await import('/noroshi.js'), globalThis.received = [], 0)");
        browser.eval("(globalThis.room = await library.join('/ws/tea'), 0)");
        browser.eval(
            "(room.addEventListener('open', ({ peer }) => peer.data?.name === 'bot' && peer.send('hello')),
            room.addEventListener('message', ({ peer, data }) => received.push(`${peer.data?.name}: ${data}`)), 0)",
        );
    };
    // One browser is there before the bot, and one comes after it.
    enter(&mut chromium);
    let node = find("node").unwrap();
    let arguments = format!("{} ws://{}/ws/tea", home.0.join("bot.mjs").display(), server.address);
    let bot = Program::start(node.to_str().unwrap(), &arguments);
    chromium.wait_until("received.includes('bot: you said hello')");
    enter(&mut firefox);
    firefox.wait_until("received.includes('bot: you said hello')");
    drop(bot);
    for browser in [&mut chromium as &mut dyn Browser, &mut firefox] {
        browser.wait_until("room.peers.size === 1");
        browser.eval("room.leave()");
        browser.assert_no_errors();
    }
}
