//! Checks the documentation against the code, and its links.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::auxiliary_servers::serve;
use crate::common::browser::{Browser, reserve_browsers};
use crate::common::chromium::{CHROMIUM, Chromium};
use crate::common::files::rust_files;
use crate::common::memory::Memory;
use crate::common::process::{NOROSHI, run};
use crate::common::program::free_port;
use crate::common::readme::{DOCUMENTS, configuration, deploy_file, read, section};
use crate::common::sockets::Net;
use crate::common::transcript::Transcript;
use noroshi::config::Config;
use noroshi::protocols;
use noroshi::protocols::noroshi::message::{Code, Kind};

const PROTOCOL: &str = "src/protocols/noroshi/PROTOCOL.md";
const OPERATION: &str = "scripts/deploy/README.md";

#[test]
fn readme_is_short() {
    assert!(read("README.md").lines().count() <= 200);
}

/// Both browsers show the camera of the other.
#[test]
fn page_of_the_readme_connects_two_browsers() {
    let Some(_browsers) = reserve_browsers(2, &[CHROMIUM]) else { return };
    let text = read("README.md");
    let page = text.split("```html\n").nth(1).unwrap().split("```").next().unwrap();
    let port = free_port();
    let page = page.replace("localhost:8080", &format!("127.0.0.1:{port}"));
    let address = serve(&[("/", &page), ("/favicon.ico", "")]);
    let (_server, _stderr) =
        run(&format!(r#"exec "$0" -l 127.0.0.1:{port} --allow-origin http://{address}"#));
    let mut two = Chromium::start::<2>();
    for browser in &mut two {
        browser.open(&format!("http://{address}/"));
    }
    for browser in &mut two {
        browser.wait_until("document.querySelector('video')?.videoWidth > 0");
    }
    two.into_iter().for_each(Chromium::kill);
}

#[test]
fn transcript_of_the_protocol_passes() {
    let text = read(PROTOCOL);
    let text = text.split("```transcript\n").nth(1).unwrap().split("```").next().unwrap();
    let transcript = Transcript::parse("PROTOCOL.md".to_owned(), text);
    transcript.play(Box::new(Memory::new(&transcript.config)));
    transcript.play(Box::new(Net::new(&transcript.config)));
}

#[test]
fn all_messages_errors_and_close_codes_are_documented() {
    let text = read(PROTOCOL);
    for name in Kind::ALL.iter().map(|kind| kind.name()) {
        assert!(text.contains(&format!(r#""type":"{name}""#)), "{name}");
    }
    let errors = section(PROTOCOL, "## Errors");
    for name in Code::ALL.iter().map(|code| code.name()) {
        assert!(errors.contains(&format!("`{name}`")), "{name}");
    }
    let codes = section(PROTOCOL, "## Close codes");
    // `src/session/close.rs` has the codes; 1000 is for other protocols.
    for code in [1001, 1002, 1007, 1008, 1009, 1013, 4000, 4001] {
        assert!(codes.contains(&format!("| {code} | ")), "{code}");
        assert!(read("src/session/close.rs").contains(&format!("({code}")), "{code}");
    }
}

// ---- Flags ----

/// A flag with its names and its value, such as `-l, --listen ADDR`, and its description.
#[derive(Debug, PartialEq, Eq)]
struct Flag {
    names: String,
    description: String,
}

impl Flag {
    /// Returns the default that the description ends with.
    fn default(&self) -> Option<&str> {
        // The default address contains brackets.
        let (_, default) = self.description.split_once("[default: ")?;
        default.strip_suffix(']')
    }
}

/// Joins the words of several lines.
fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the flags of `--help`.
fn flags_of_the_help() -> Vec<Flag> {
    let help = Config::help(&protocols::endpoints(protocols::ALL));
    let mut flags: Vec<Flag> = Vec::new();
    for line in help.lines() {
        let text = line.trim_start();
        if text.starts_with('-') {
            let (names, description) = text.split_once("  ").unwrap_or((text, ""));
            flags.push(Flag { names: names.to_owned(), description: in_one_line(description) });
        } else if line.starts_with("       ") && !flags.is_empty() {
            let description = &mut flags.last_mut().unwrap().description;
            *description = in_one_line(&format!("{description} {text}"));
        }
    }
    flags
}

/// Returns the flags of the man page.
fn flags_of_the_manual() -> Vec<Flag> {
    let manual = deploy_file("noroshi.8").replace('\\', "");
    let options = manual.split(".SH OPTIONS\n").nth(1).unwrap().split("\n.SH ").next().unwrap();
    let entries = options.split(".TP\n.B ").skip(1);
    let flag = |entry: &str| {
        let (names, description) = entry.split_once('\n').unwrap();
        Flag { names: names.to_owned(), description: in_one_line(description) }
    };
    entries.map(flag).collect()
}

#[test]
fn manual_page_matches_the_help() {
    let help = flags_of_the_help();
    assert!(help.len() > 20, "{help:#?}");
    assert_eq!(flags_of_the_manual(), help);
}

/// The table has longer descriptions than the help, but the same flags, in the same order, with the same defaults.
#[test]
fn table_of_flags_matches_the_help() {
    let table = section(OPERATION, "## Flags");
    let rows: Vec<(String, String)> = table
        .lines()
        .filter(|line| line.starts_with("| `-"))
        .map(|row| {
            let mut cells = row.split('|').skip(1);
            let mut cell = || cells.next().unwrap().trim().replace('`', "");
            (cell(), cell())
        })
        .collect();
    let flags = flags_of_the_help();
    assert_eq!(rows.len(), flags.len());
    for ((names, default), flag) in rows.iter().zip(&flags) {
        assert_eq!(*names, flag.names);
        assert_eq!(default, flag.default().unwrap_or_default(), "{names}");
    }
}

/// Inline code that begins with a flag names one that exists.
#[test]
fn named_flags_exist() {
    let flags = flags_of_the_help();
    let names: BTreeSet<&str> =
        flags.iter().flat_map(|flag| flag.names.split([' ', ',', '=', '['])).collect();
    for document in DOCUMENTS {
        let text = prose(document);
        // Not `-- --nocapture` or `--NAME`.
        let is_flag = |code: &&str| {
            code.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        };
        for code in text.split('`').skip(1).step_by(2).filter(is_flag) {
            let flag = code.split([' ', '=', '[']).next().unwrap();
            let is_of_token = ["--room", "--room-prefix", "--id", "--ttl"].contains(&flag);
            assert!(names.contains(flag) || is_of_token, "{document}: {code}");
        }
    }
}

// ---- Links ----

/// Returns the lines of a document that are not in code blocks.
fn prose(document: &str) -> String {
    let mut is_code = false;
    let mut text = String::new();
    for line in read(document).lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code && !line.starts_with("    ") {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// Returns the anchors of a document: its headings as GitHub converts them.
fn anchors(document: &str) -> BTreeSet<String> {
    let text = prose(document);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Returns a path without `.` and `..`.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => assert!(normalized.pop(), "{}", path.display()),
            Component::CurDir => {}
            other => normalized.push(other),
        }
    }
    normalized
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let anchors: BTreeMap<&str, BTreeSet<String>> =
        DOCUMENTS.into_iter().map(|document| (document, anchors(document))).collect();
    let mut links = 0;
    for document in DOCUMENTS {
        for link in prose(document).split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            links += 1;
            let (path, anchor) =
                link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
            let target = match path {
                "" => PathBuf::from(document),
                path => normalized(&Path::new(document).parent().unwrap().join(path)),
            };
            assert!(root.join(&target).exists(), "{document}: {link}");
            let Some(anchor) = anchor else { continue };
            let target = target.to_str().unwrap();
            let known = anchors.get(target).unwrap_or_else(|| panic!("{document}: {link}"));
            assert!(known.contains(anchor), "{document}: {link}: {known:#?}");
        }
    }
    assert!(links > 100, "{links}");
}

#[test]
fn links_of_all_documents_are_checked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.to_owned()];
    let mut documents = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in folder.read_dir().unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".md") {
                documents.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    documents.sort();
    let mut checked = DOCUMENTS.to_vec();
    checked.sort_unstable();
    assert_eq!(documents, checked);
}

/// A list of contents names all headings of the second level, in their order.
#[test]
fn contents_list_all_sections() {
    for document in DOCUMENTS {
        let text = prose(document);
        let Some((_, contents)) = text.split_once("\nContents: ") else { continue };
        let contents = contents.split("\n\n").next().unwrap();
        let listed: Vec<&str> =
            contents.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
        let sections: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .map(|heading| {
                let lower = heading.to_lowercase();
                let kept = lower.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect()
            })
            .collect();
        assert_eq!(listed, sections, "{document}");
    }
}

/// Every file of `scripts/deploy` is described there.
#[test]
fn deployment_files_are_listed() {
    let text = read(OPERATION);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deploy");
    for entry in folder.read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || text.contains(&format!("[`{name}`]({name})")), "{name}");
    }
}

// ---- Statements about the program ----

#[test]
fn named_tests_exist() {
    let promised = section("tests/README.md", "## Guarantees");
    let mut tests: Vec<String> = Vec::new();
    for path in ["src", "tests"].into_iter().flat_map(rust_files) {
        let text = std::fs::read_to_string(&path).unwrap();
        let names = text.split("#[test]\nfn ").skip(1).chain(text.split("#[test]\n    fn ").skip(1));
        tests.extend(names.map(|name| name.split('(').next().unwrap().to_owned()));
    }
    let is_test =
        |name: &&str| name.matches('_').count() > 1 && name.ends_with(|c: char| c.is_lowercase() || c == '…');
    let named: Vec<&str> = promised.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        let found = match name.strip_suffix('…') {
            Some(begin) => tests.iter().any(|test| test.starts_with(begin)),
            None => tests.iter().any(|test| test == name),
        };
        assert!(found, "{name}");
    }
}

#[test]
fn first_log_lines_match_the_documentation() {
    let readme = read("README.md");
    let first =
        readme.split("    cargo run --release\n\nIt prints `").nth(1).unwrap().split('[').next().unwrap();
    assert!(section(OPERATION, "## Limits").contains("the log states at the start how much"));
    for (flags, memory) in [("", "14.9G of memory"), ("--max-memory 32M", "at most 32M of memory")] {
        let mut command = Command::new(*NOROSHI);
        command.args(format!("-l 127.0.0.1:0 {flags}").split_whitespace()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let lines = BufReader::new(server.stderr.take().unwrap()).lines().map(Result::unwrap).take(3);
        let lines: Vec<String> = lines.collect();
        server.kill().unwrap();
        server.wait().unwrap();
        // The line between them has the address to open.
        assert!(lines[0].starts_with(first) && lines[2].contains(memory), "{lines:#?}");
    }
}

#[test]
fn load_test_uses_the_documented_flags() {
    let text = read("scripts/README.md");
    let flags = text.split("The server has the flags `").nth(1).unwrap().split('`').next().unwrap();
    assert_eq!(flags.split(' ').count(), 6);
    for flag in flags.split(' ') {
        assert!(read("scripts/load/target.rs").contains(&format!("\"{flag}\",\n")), "{flag}");
    }
}

/// The proxies' upstream address is the unit's listening address, and the unit trusts the proxies.
#[test]
fn proxies_and_unit_use_the_same_address() {
    let unit = deploy_file("noroshi.service");
    assert!(unit.contains("--listen 127.0.0.1:8080 --trust-proxy 127.0.0.1 "));
    assert!(deploy_file("noroshi.socket").contains("\nListenStream=127.0.0.1:8080\n"));
    for proxy in ["Caddyfile", "nginx.conf", "haproxy.cfg"] {
        assert!(configuration(proxy).contains("127.0.0.1:8080"), "{proxy}");
    }
}
