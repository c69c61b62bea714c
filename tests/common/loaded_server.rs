//! A running server under attack, on which others go on as if nothing were.

use std::io::{BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::json;

use super::client::Client;
use super::process::{NOROSHI, Running, eventually, run};

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// What a debug build takes with few peers is half of this; the rest is for what its allocator keeps.
pub const AT_REST: usize = 8 * MIB;

/// After so long, what a test waits for will not come.
const GIVE_UP: Duration = Duration::from_secs(60);

/// The ids of the pair.
pub const PAIR: [&str; 2] = ["P", "Q"];

/// A server, and two peers who want nothing but to go on talking.
pub struct LoadedServer {
    pub server: Running,
    stderr: BufReader<ChildStderr>,
    pub pair: [Client; 2],
    said: usize,
    /// Descriptors when nobody is there.
    empty: usize,
    /// Descriptors when the pair is there.
    pub at_rest: usize,
}

impl LoadedServer {
    /// Of a server with these flags, which lets silent peers be for as long as a slow machine needs.
    pub fn of(flags: &str) -> LoadedServer {
        LoadedServer::of_script(&format!(r#"exec "$0" --log warn --ping-interval 600 {flags}"#))
    }

    /// Of the server that this script becomes.
    pub fn of_script(script: &str) -> LoadedServer {
        // The crowds are in this process.
        let (_, files_max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, files_max, files_max).unwrap();
        let (server, stderr) = run(script);
        let empty = server.descriptors();
        let pair = PAIR.map(|id| Client::open(server.address, "pair").registered(id));
        let at_rest = server.descriptors();
        LoadedServer { server, stderr, pair, said: 0, empty, at_rest }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// The pair exchanges a candidate, each way.
    pub fn talk(&mut self) {
        self.said += 1;
        for (from, to) in [(0, 1), (1, 0)] {
            let (id, target) = (PAIR[from], PAIR[to]);
            let said = json!({"type": "candidateAdd", "id": id, "target_id": target, "candidate": self.said});
            self.pair[from].say(said);
            let heard = json!({"type": "candidate", "candidate": self.said.to_string(), "id": id});
            assert_eq!(self.pair[to].heard(), heard);
        }
    }

    /// So many come, while the pair talks.
    pub fn crowd<T>(&mut self, count: usize, mut member: impl FnMut(SocketAddr, usize) -> T) -> Vec<T> {
        let come = |i| {
            if i % 50 == 0 {
                self.talk();
            }
            member(self.address(), i)
        };
        (0..count).map(come).collect()
    }

    /// The pair talks until something is so.
    pub fn until(&mut self, what: &str, mut is_so: impl FnMut(&Running) -> bool) {
        let began = Instant::now();
        while !is_so(&self.server) {
            assert!(began.elapsed() < GIVE_UP, "{what}");
            self.talk();
            sleep(Duration::from_millis(20));
        }
    }

    /// The pair talks until a metric has this value.
    pub fn until_metric(&mut self, name: &str, value: usize) {
        self.until(&format!("{name} {value}"), |server| server.metric(name) == value as f64);
    }

    /// The pair talks for so long.
    pub fn pass(&mut self, time: Duration) {
        let began = Instant::now();
        self.until("time passes", |_| began.elapsed() >= time);
    }

    /// The attackers are gone. Proves that nothing is left of them, nor of the pair when it goes, and returns what
    /// was logged.
    pub fn end(mut self, memory_max: usize) -> String {
        let at_rest = self.at_rest;
        self.until("their descriptors are closed", |server| server.descriptors() == at_rest);
        for (name, left) in [("connections", 2.0), ("peers", 2.0), ("rooms", 1.0)] {
            assert_eq!(self.server.metric(name), left, "{name}");
        }
        let (_, peak) = self.server.memory();
        println!("{} KiB of memory at most, {} allowed", peak / KIB, memory_max / KIB);
        assert!(peak <= memory_max);
        drop(self.pair);
        eventually("all descriptors are closed", || self.server.descriptors() == self.empty);
        for name in ["connections", "peers", "rooms"] {
            assert_eq!(self.server.metric(name), 0.0, "{name}");
        }
        self.server.signal(Signal::SIGTERM);
        assert_eq!(self.server.code(), Some(0));
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        log
    }
}

/// What the load test does to this server.
pub fn load(siege: &LoadedServer, flags: &str) -> Child {
    let program = Path::new(NOROSHI).with_file_name("examples/load");
    let url = format!("ws://{}/ws/load", siege.address());
    let mut command = Command::new(program);
    command.args(["--url", &url]).args(flags.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("`cargo test` builds the examples, `cargo test --test …` does not")
}
