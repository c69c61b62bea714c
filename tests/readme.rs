//! Checks the README against the code.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::files::rust_files;
use common::memory::Memory;
use common::process::NOROSHI;
use common::readme::{README, configuration, deploy_file};
use common::sockets::Net;
use common::transcript::Transcript;
use noroshi::config::Config;
use noroshi::protocols::noroshi::message::{Code, Kind};

#[test]
fn transcript_in_the_readme_passes() {
    let text = README.split("```transcript\n").nth(1).unwrap().split("```").next().unwrap();
    let transcript = Transcript::parse("README.md".to_owned(), text);
    transcript.play(Box::new(Memory::new(&transcript.config)));
    transcript.play(Box::new(Net::new(&transcript.config)));
}

/// Returns the rows of the table of options: flags and default.
fn options() -> Vec<(Vec<&'static str>, &'static str)> {
    let table = README.split("## Options").nth(1).unwrap().split("\nExit codes").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `-"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
        let flags = cells.next().unwrap().split('`').filter(|part| part.starts_with('-'));
        (flags.collect(), cells.next().unwrap())
    })
    .collect()
}

#[test]
fn options_match_the_help() {
    let help = Config::help();
    let mut documented = Vec::new();
    let mut lines = help.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with('-') {
            continue;
        }
        let mut entry = line.to_owned();
        while let Some(more) = lines.next_if(|line| !line.trim_start().starts_with('-')) {
            entry.push_str(more);
        }
        let (flags, _) = entry.trim().split_once("  ").unwrap();
        let default = entry.split("[default: ").nth(1).map(|rest| rest.split(']').next().unwrap());
        documented
            .push((flags.split(", ").map(str::to_owned).collect::<Vec<_>>(), default.map(str::to_owned)));
    }
    let mut listed = options();
    let (last, _) = listed.pop().unwrap();
    assert_eq!(last, ["-h", "--help", "-V", "--version"]);
    assert_eq!(
        documented.split_off(documented.len() - 2).iter().flat_map(|(flags, _)| flags).collect::<Vec<_>>(),
        last
    );
    assert_eq!(documented.len(), listed.len());
    for ((flags, default), (readme_flags, readme_default)) in documented.iter().zip(&listed) {
        assert_eq!(flags, readme_flags);
        // The default address contains brackets.
        let default = default.as_deref().unwrap();
        assert!(readme_default.replace('`', "").starts_with(default), "{default} is not {readme_default}");
    }
}

#[test]
fn all_messages_and_errors_are_documented() {
    for name in Kind::ALL.iter().map(|kind| kind.name()) {
        assert!(README.contains(&format!(r#""type":"{name}""#)), "{name}");
    }
    let table = README.split("### Errors and closing").nth(1).unwrap();
    for name in Code::ALL.iter().map(|code| code.name()) {
        assert!(table.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn linked_files_exist() {
    for link in README.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        if !link.contains("://") && !link.starts_with('#') {
            assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists(), "{link}");
        }
    }
}

#[test]
fn named_tests_exist() {
    let promised = README.split("## What is promised").nth(1).unwrap().split("\n## ").next().unwrap();
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
fn first_log_lines_match_the_readme() {
    let first =
        README.split("    cargo run --release\n\nprints `").nth(1).unwrap().split('[').next().unwrap();
    assert!(README.contains("the log says at the start how much"));
    for (flags, memory) in [("", "14.9G of memory"), ("--max-memory 32M", "at most 32M of memory")] {
        let mut command = Command::new(NOROSHI);
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
    let flags = README.split("The server has the flags\n`").nth(1).unwrap().split('`').next().unwrap();
    assert_eq!(flags.split(' ').count(), 6);
    for flag in flags.split(' ') {
        assert!(include_str!("../scripts/load/target.rs").contains(&format!("\"{flag}\",\n")), "{flag}");
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
