//! The load test, against the server in every mode and against faulty servers.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::common::files::Folder;
use crate::common::process::example;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

fn load(flags: &str) -> Output {
    // The script would rebuild the server, which is already built for this test.
    Command::new(example("load")).args(flags.split_whitespace()).env_remove("CARGO").output().unwrap()
}

fn report(flags: &str) -> (bool, Value) {
    let output = load(&format!("{flags} --json"));
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    (output.status.success(), report.unwrap_or_else(|_| panic!("{flags}: {output:?}")))
}

#[test]
fn load_test_runs_in_every_mode() {
    for mode in
        ["relay", "relay --in-flight 16 --payload 5000", "call", "call --one-room", "connect", "churn"]
    {
        let (fine, report) = report(&format!("--mode {mode} --pairs 5 --seconds 0.3 --idle 20"));
        assert!(fine, "{mode}: {report}");
        let server = &report["servers"][0];
        assert!(server["units"].as_u64().unwrap() > 0, "{mode}: {report}");
        assert!(server["ms"]["max"].as_f64() >= server["ms"]["p50"].as_f64(), "{mode}: {report}");
        assert!(server["cpu_us_each"].as_f64().unwrap() >= 0.0, "{mode}: {report}");
        assert!(server["rss_after"].as_u64() > Some(1_000_000), "{mode}: {report}");
    }
    let (fine, report) = report("--mode idle --idle 300");
    assert!(fine && report["servers"][0]["units"] == 300, "{report}");
}

#[test]
fn load_test_speaks_every_protocol() {
    for dialect in ["ayame", "matchbox"] {
        for mode in ["relay --in-flight 4", "call", "connect", "churn", "idle --idle 100"] {
            let (fine, report) =
                report(&format!("--dialect {dialect} --mode {mode} --pairs 3 --seconds 0.3"));
            assert!(fine && report["dialect"] == dialect, "{mode}: {report}");
        }
    }
}

#[test]
fn two_servers_receive_the_same_load() {
    let servers = [Faulty::new(Fault::None), Faulty::new(Fault::None)];
    let (fine, report) = report(&format!(
        "--url {} --versus {} --pid {} --pid2 {} --seconds 0.5 --pairs 2",
        servers[0].url,
        servers[1].url,
        std::process::id(),
        std::process::id()
    ));
    assert!(fine, "{report}");
    assert!(report["ratio_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["ratio_cpu_each"].as_f64().unwrap() > 0.0);
}

#[test]
fn charts_show_each_server() {
    let folder = Folder::new("charts");
    let file = folder.0.join("charts.svg");
    let servers = [Faulty::new(Fault::None), Faulty::new(Fault::None)];
    let urls = servers.each_ref().map(|server| &server.url);
    for (flags, lines) in
        [(format!("--url {}", urls[0]), 1), (format!("--url {} --versus {}", urls[0], urls[1]), 2)]
    {
        let plot = format!("--plot {} --seconds 0.5 --pairs 2 {flags}", file.display());
        let (fine, report) = report(&plot);
        assert!(fine, "{report}");
        let charts = std::fs::read_to_string(&file).unwrap();
        assert!(charts.starts_with("<svg ") && charts.trim_end().ends_with("</svg>"));
        for text in ["Latency of candidates", "candidates a second over time"] {
            assert_eq!(charts.matches(text).count(), 1, "{text}");
        }
        // A legend in each chart, if there are two servers.
        let names = charts.matches("first server").count() + charts.matches("second server").count();
        assert_eq!(names, if lines == 2 { 4 } else { 0 });
    }
}

#[test]
fn results_are_printed_as_a_table() {
    let output = load("--pairs 3 --seconds 0.2");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "no progress output without a terminal: {output:?}"
    );
    let table = String::from_utf8(output.stdout).unwrap();
    for row in ["candidates", "per second", "p50 ms", "p99.9 ms", "CPU µs each", "RSS KB after"] {
        assert!(table.lines().any(|line| line.trim_start().starts_with(row)), "{table}");
    }
}

#[test]
fn wrong_flags_and_unreachable_servers_are_errors() {
    for flags in [
        "--mode fast",
        "--dialect x",
        "--dialect ayame --room-size 3",
        "--mode idle --plot x",
        "--pairs 0",
        "--seconds x",
        "--pid2 1",
        "more",
        "--payload -1",
    ] {
        let output = load(flags);
        assert_eq!(output.status.code(), Some(2), "{flags}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{flags}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("ws://{nobody}/ws"), "http://127.0.0.1/ws".to_owned()] {
        let output = load(&format!("--url {url} --seconds 0.1"));
        assert_eq!(output.status.code(), Some(1), "{url}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{url}");
    }
    assert!(load("--help").status.success());
}

// ---- Faulty servers ----

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Loses,
    Doubles,
    Delays,
    Limits,
    Mute,
    GoesAway,
}

/// A relay with one thread per connection and a fault in every tenth message.
struct Faulty {
    url: String,
}

type Peers = Arc<Mutex<HashMap<String, WebSocket<TcpStream>>>>;

impl Faulty {
    fn new(fault: Fault) -> Faulty {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        thread::spawn(move || {
            let peers = Peers::default();
            for stream in listener.incoming() {
                let peers = peers.clone();
                thread::spawn(move || serve(stream.unwrap(), &peers, fault));
            }
        });
        Faulty { url }
    }
}

fn serve(stream: TcpStream, peers: &Peers, fault: Fault) -> Option<()> {
    // A second handle of the same connection for its writers.
    let writer =
        WebSocket::from_raw_socket(stream.try_clone().ok()?, tungstenite::protocol::Role::Server, None);
    let mut reader = tungstenite::accept(stream).ok()?;
    let mut writer = Some(writer);
    let mut held_back = None;
    for count in 1.. {
        let message: Value = serde_json::from_str(reader.read().ok()?.to_text().ok()?).ok()?;
        let id = message["id"].as_str()?;
        let target = message["target_id"].as_str()?;
        let mut peers = peers.lock().unwrap();
        if let Some(writer) = writer.take() {
            peers.insert(id.to_owned(), writer);
        }
        let candidate = message["candidate"].to_string();
        let text = json!({"type": "candidate", "candidate": candidate, "id": id}).to_string();
        let target = peers.get_mut(target)?;
        let mut send = |text: &str| target.send(Message::text(text)).ok();
        match fault {
            Fault::Mute => {}
            _ if count % 10 != 0 => send(&text)?,
            Fault::None => send(&text)?,
            Fault::Loses => {}
            Fault::Doubles => {
                send(&text)?;
                send(&text)?;
            }
            Fault::Delays => held_back = Some(text),
            Fault::Limits => {
                peers.get_mut(id)?.send(Message::text(r#"{"type":"error","code":"rate_limited"}"#)).ok()?
            }
            Fault::GoesAway => {
                peers.clear();
                return reader.get_ref().shutdown(std::net::Shutdown::Both).ok();
            }
        }
        if count % 10 == 1
            && let Some(text) = held_back.take()
        {
            peers.get_mut(message["target_id"].as_str()?)?.send(Message::text(text)).ok()?;
        }
    }
    Some(())
}

#[test]
fn lost_duplicated_and_delayed_messages_are_detected() {
    let run = |fault| {
        let server = Faulty::new(fault);
        report(&format!("--url {} --pairs 2 --in-flight 40 --seconds 0.3", server.url))
    };
    let count = |report: &Value, name: &str| report["servers"][0][name].as_u64().unwrap();
    for (fault, name) in [
        (Fault::Loses, "lost"),
        (Fault::Doubles, "doubled"),
        (Fault::Delays, "out_of_order"),
        (Fault::Limits, "rate_limited"),
    ] {
        let (fine, report) = run(fault);
        assert!(!fine && count(&report, name) > 0, "{name}: {report}");
        for other in ["doubled", "out_of_order", "rate_limited"] {
            assert!(other == name || count(&report, other) == 0, "{name} is not {other}: {report}");
        }
    }
    let (fine, report) = run(Fault::None);
    assert!(fine, "{report}");
}

#[test]
fn server_that_stops_is_an_error_in_one_line() {
    let server = Faulty::new(Fault::GoesAway);
    let output = load(&format!("--url {} --pairs 1 --in-flight 5 --seconds 5", server.url));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "load: the server has closed a connection\n");
}

#[test]
fn server_that_registers_no_peer_is_an_error() {
    let server = Faulty::new(Fault::Mute);
    for mode in ["relay", "idle --idle 3"] {
        let output = load(&format!("--url {} --pairs 1 --mode {mode}", server.url));
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(" of ") && stderr.lines().count() == 1, "{stderr}");
    }
}
