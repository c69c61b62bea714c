//! The types of the npm package: examples of the documentation pass, wrong calls fail, and the documentation is complete.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use crate::common::files::Folder;
use crate::common::readme::read;
use crate::package::{install_package, is_page, library_examples};

/// Packages that examples import.
const PACKAGES: &str = "typescript@7 react @types/react vue werift ws @types/ws @types/node";

/// Checks modules like an application that has no JavaScript of its own. Returns the output of tsc.
fn check_types(home: &Path, flags: &str, files: &[String]) -> String {
    let common = "--noEmit --target esnext --module esnext --moduleResolution bundler --jsx react-jsx \
        --lib esnext,dom,dom.iterable,dom.asynciterable";
    let tsc = home.join("node_modules/.bin/tsc");
    let mut command = Command::new(tsc);
    command.args(common.split_whitespace()).args(flags.split_whitespace()).args(files).current_dir(home);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn examples_of_the_documentation_pass_the_type_check() {
    let Some(home) = install_package(PACKAGES) else { return };
    let (mut pages, mut modules, mut programs) = (Vec::new(), Vec::new(), Vec::new());
    for (index, example) in library_examples().iter().enumerate() {
        let is_react = example.code.contains("from \"react\"");
        let name = format!("example{index}.{}", if is_react { "tsx" } else { "mts" });
        // TypeScript does not know what is imported by URL.
        let code = example.code.replace("\"http://localhost:8080/noroshi.js\"", "\"noroshi\"");
        std::fs::write(home.0.join(&name), code).unwrap();
        if is_page(example) {
            pages.push(name);
        } else if example.code.contains("from \"werift\"") {
            programs.push(name);
        } else {
            modules.push(name);
        }
    }
    assert!(pages.len() >= 7 && modules.len() >= 12, "{pages:?} {modules:?}");
    assert_eq!(programs.len(), 1);
    // The declarations of the package are checked, too.
    assert_eq!(check_types(&home.0, "--strict --types react", &modules), "");
    // Pages are JavaScript, which finds its elements without a check for null.
    assert_eq!(check_types(&home.0, "--strict false --types react", &pages), "");
    // The declarations of werift have errors.
    assert_eq!(check_types(&home.0, "--strict --skipLibCheck --types node", &programs), "");
}

/// A beginning with values of each type, and calls of which each has one error.
const VALUES: &str = r#"
import { join, NoroshiError, Peer, Room } from "noroshi";
import type { ErrorCode, Share } from "noroshi";
declare const room: Room, peer: Peer, share: Share, error: NoroshiError;
declare const camera: MediaStream, blob: Blob;
"#;

const WRONG_CALLS: [&str; 34] = [
    "peer.say('hello');",
    "peer.send(blob);",
    "peer.send(undefined);",
    "peer.send(() => 1);",
    "peer.send(Symbol());",
    "peer.send(1n);",
    "peer.sendUnreliable({ x: 1 });",
    "peer.write(undefined);",
    "peer.write('text', { onprogress: (received: string) => received });",
    "peer.drained('all');",
    "peer.id = 'other';",
    "peer.state === 'gone';",
    "peer.session;",
    "new Peer();",
    "new Room();",
    "room.addEventListener('opened', () => {});",
    "room.addEventListener('message', ({ track }) => track);",
    "room.addEventListener('left', { handleEvent: ({ reason }) => reason === 'bored' });",
    "room.removeEventListener('opened', () => {});",
    "room.once('opened');",
    "room.once('open').then(({ track }) => track);",
    "room.closed = Promise.resolve({ code: 'left', message: '' });",
    "room.entered;",
    "room.peers.clear();",
    "room.send('hello', { to: 'alice' });",
    "room.setData(undefined);",
    "room.share('camera');",
    "room.state === 'gone';",
    "share.replace(camera);",
    "share.tracks = [];",
    "join(1);",
    "join('/ws', { tokens: 'secret' });",
    "const code: ErrorCode = 'nonsense';",
    "error.code === 'nonsense';",
];

const RIGHT_CALLS: &str = r#"
peer.send(new Uint8Array(1));
peer.send(new ArrayBuffer(1));
peer.send({ list: [1, null, "text"], missing: undefined });
peer.send(["a", "b"] as const);
peer.write(blob, { signal: AbortSignal.timeout(1), onprogress: ({ sent, size }) => console.log(sent / size) });
room.addEventListener("left", { handleEvent: ({ reason }) => console.log(reason === "lost") });
room.addEventListener("message", async ({ peer, data, reliable }) => console.log(peer.id, data.x, reliable), { once: true });
room.addEventListener("track", null);
room.once("track").then(({ track, streams }) => console.log(track.kind, streams[0]?.id));
room.send("hello", { to: peer });
room.send("hello", { to: room.peers.values() });
room.share(camera.getTracks()[0]!, { to: [peer] }).stop();
join(new URL("wss://example.com/ws"), { token: async () => "secret", RTCPeerConnection, WebSocket });
async function leaveAtTheEnd() {
  await using room = await join("/ws");
  for await (const { peer, data } of room.messages({ signal: AbortSignal.timeout(1) })) console.log(peer.id, data);
}
const code: ErrorCode = error.code;
console.log(code, leaveAtTheEnd, error instanceof Error, share.tracks.length);
"#;

#[test]
fn wrong_calls_fail_the_type_check() {
    let Some(home) = install_package("typescript@7") else { return };
    let write = |name: &str, text: &str| std::fs::write(home.0.join(name), format!("{VALUES}{text}")).unwrap();
    write("right.mts", RIGHT_CALLS);
    assert_eq!(check_types(&home.0, "--strict", &["right.mts".to_owned()]), "");
    let mut files = Vec::new();
    for (index, call) in WRONG_CALLS.iter().enumerate() {
        let name = format!("wrong{index}.mts");
        write(&name, call);
        files.push(name);
    }
    for (index, import) in ["{ PeerSession } from 'noroshi'", "'noroshi/noroshi/room.js'"].iter().enumerate() {
        let name = format!("import{index}.mts");
        write(&name, &format!("import {import};"));
        files.push(name);
    }
    let output = check_types(&home.0, "--strict --noUncheckedSideEffectImports", &files);
    let accepted: Vec<&String> = files.iter().filter(|file| !output.contains(&format!("{file}("))).collect();
    assert!(accepted.is_empty(), "{accepted:?} have no errors\n{output}");
}

/// Returns the names at the beginning of lines that are indented by four spaces and end like this.
fn names<'a>(declaration: &'a str, ends: &[char]) -> Vec<&'a str> {
    let members = declaration.lines().filter_map(|line| {
        let member = line.strip_prefix("    ")?;
        let member = member.strip_prefix("get ").or(member.strip_prefix("readonly ")).unwrap_or(member);
        let name = member.split(ends).next()?;
        let is_name = name.len() < member.len() && name.starts_with(char::is_alphabetic);
        (is_name && name.chars().all(char::is_alphanumeric)).then_some(name)
    });
    members.collect()
}

/// Returns the text of a class or type in a declaration.
#[track_caller]
fn declaration_of(home: &Folder, module: &str, start: &str) -> String {
    let path = home.0.join(format!("node_modules/noroshi/noroshi/{module}.d.ts"));
    let text = std::fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("{module} has no {start}"));
    let end = if start.contains("ErrorCode") { ";" } else { "\n}" };
    rest.split_once(end).unwrap().0.to_owned()
}

#[test]
fn documentation_names_every_member_option_event_and_code() {
    let Some(home) = install_package("typescript@7") else { return };
    let text = read("src/web/README.md");
    let mut missing = String::new();
    let mut count = 0;
    for (module, start) in [
        ("room", "export declare class Room "),
        ("peer", "export declare class Peer "),
        ("share", "export declare class Share "),
        ("events", "export declare class BufferedEventTarget"),
        ("room", "export type RoomOptions = {"),
        ("room", "export type RoomEvents = {"),
    ] {
        let declaration = declaration_of(&home, module, start);
        for name in names(&declaration, &['(', ':', '?', '<']) {
            count += 1;
            if !text.contains(&format!("`{name}`")) && !text.contains(&format!("`{name}(")) && name != "constructor" {
                writeln!(missing, "{start}: {name}").unwrap();
            }
        }
    }
    for start in ["export type ErrorCode = ", "export type ServerErrorCode = "] {
        for code in declaration_of(&home, "errors", start).split('"').skip(1).step_by(2) {
            count += 1;
            if !text.contains(&format!("`{code}`")) {
                writeln!(missing, "error code {code}").unwrap();
            }
        }
    }
    assert!(count > 70, "{count}");
    assert_eq!(missing, "");
}
