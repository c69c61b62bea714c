//! What a relayed message costs between the bytes read and the bytes written: allocations, time and, with
//! valgrind installed, instructions. Two sessions on memory and a hub; no kernel.
//!
//! cargo run --release --example bench [-- --messages N]

use std::hash::RandomState;
use std::process::Command;
use std::time::{Duration, Instant};

use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::http::token::TokenError;
use noroshi::limits::HEAD_TIME_MAX;
use noroshi::memory_budget::Reservation;
use noroshi::protocol::{CloseCause, Conn, Descriptor, Member, Outbox, Times};
use noroshi::protocols::{self, Dispatcher};
use noroshi::server::admission::{Decision, LimitCheck};

use noroshi::session::{Event, Scratch, Session, SharedFrame, SharedState};
use noroshi_test_support::answer::answer;
use noroshi_test_support::pipe::{Pipe, REQUEST, TEXT, frame};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// What a candidate of a browser is, and an offer with video.
const PAYLOADS: [(&str, usize); 2] = [("candidate of 200 bytes", 200), ("SDP of 5,000 bytes", 5_000)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        // Under valgrind, and for a profiler.
        [flag, bytes, count] if flag == "--only" => {
            let mut line = Line::new(bytes.parse().expect("a number of bytes"));
            line.relay(count.parse().expect("a number of messages"));
        }
        [flag, count] if flag == "--messages" => report(count.parse().expect("a number of messages")),
        [] => report(200_000),
        _ => eprintln!("usage: bench [--messages N | --only BYTES N]"),
    }
}

fn report(count: usize) {
    for (name, bytes) in PAYLOADS {
        let mut line = Line::new(bytes);
        line.relay(1000);
        let (region, began) = (Region::new(ALLOCATOR), Instant::now());
        line.relay(count);
        let (took, change) = (began.elapsed(), region.change());
        let each = |total: usize| total as f64 / count as f64;
        println!("{name}");
        println!("  {:>8.2} allocations", each(change.allocations));
        println!("  {:>8.2} reallocations", each(change.reallocations));
        println!("  {:>8.0} ns", took.as_nanos() as f64 / count as f64);
        match instructions(bytes) {
            Some(each) => println!("  {each:>8.0} instructions"),
            None => println!("         ? instructions (valgrind is not installed)"),
        }
    }
}

/// The difference between two runs is what the messages cost.
fn instructions(bytes: usize) -> Option<f64> {
    let run = |count: usize| {
        let program = std::env::current_exe().ok()?;
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
        let output = valgrind.args(["--only", &bytes.to_string(), &count.to_string()]).output().ok()?;
        let log = String::from_utf8(output.stderr).ok()?;
        log.lines().find_map(|line| line.split("Collected : ").nth(1)?.trim().parse::<f64>().ok())
    };
    Some((run(11_000)? - run(1_000)?) / 10_000.0)
}

/// A peer that sends candidates to another, and what is between them.
struct Line {
    dispatcher: Dispatcher,
    sessions: Sessions,
    scratch: Scratch,
    frame: Vec<u8>,
}

struct Sessions {
    shared: SharedState,
    sessions: [Session<Pipe>; 2],
}

impl Outbox for Sessions {
    fn can_queue(&mut self, to: Conn, texts: &[String]) -> bool {
        self.sessions[to.slot()].can_queue(texts, &self.shared)
    }

    fn push_forwarded(&mut self, to: Conn, text: String) {
        self.sessions[to.slot()].push_forwarded(text, &mut self.shared);
    }

    fn broadcast(&mut self, to: &mut dyn Iterator<Item = Conn>, text: &str) -> usize {
        let frame = SharedFrame::text(text, &self.shared);
        to.filter(|to| !self.sessions[to.slot()].forward_shared(&frame, &mut self.shared)).count()
    }

    fn is_congested(&self, to: Conn) -> bool {
        self.sessions[to.slot()].is_congested(&self.shared)
    }

    fn has_unread_input(&self, _: Conn) -> bool {
        false
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        self.shared.budget.reserve(bytes)
    }

    fn send(&mut self, to: Conn, text: String) {
        self.sessions[to.slot()].send(text, &mut self.shared);
    }

    fn send_binary(&mut self, _: Conn, _: &[u8]) {}
    fn ping(&mut self, _: Conn) {}
    fn pause_reading(&mut self, _: Conn) {}
    fn resume_reading(&mut self, _: Conn) {}
    fn close(&mut self, _: Conn, _: CloseCause) {}
    fn record_registration(&mut self, _: Conn, _: &str, _: &str) {}
    fn record_entry(&mut self, _: Conn, _: &str) {}
    fn record_limit(&mut self, _: Conn, _: &'static str) {}
    fn record_refused_token(&mut self, _: Conn, _: TokenError) {}
    fn record_departure(&mut self, _: Conn, _: &'static Descriptor, _: &Member<'_>, _: Option<usize>) {}
}

impl Line {
    fn new(bytes: usize) -> Line {
        let config = Config { rate_max: 0, ..Config::default() };
        let dispatcher = Dispatcher::new(protocols::ALL, &config, &RandomState::new());
        let mut shared = SharedState::new(config);
        let sessions = [(); 2].map(|()| {
            let pipe = Pipe { writable_bytes: usize::MAX, ..Pipe::default() };
            Session::new(pipe, HEAD_TIME_MAX, &mut shared)
        });
        let sessions = Sessions { shared, sessions };
        let mut line = Line { dispatcher, sessions, scratch: Scratch::default(), frame: Vec::new() };
        line.turn(0, REQUEST.as_bytes());
        line.turn(1, REQUEST.as_bytes());
        for (who, text) in
            [(0, r#"{"type":"offer","id":"A"}"#), (1, r#"{"type":"answer","id":"B","target_id":"A"}"#)]
        {
            line.turn(who, &frame(TEXT, text.as_bytes()));
        }
        line.sessions.sessions[1].stream().output.clear();
        let rest = bytes - r#"{"candidate":"","sdpMid":"0","sdpMLineIndex":0}"#.len();
        // A candidate is one line, an SDP has many.
        let unit = if bytes < 1_000 { "x" } else { r"a=rtpmap:111 opus/48000/2\r\n" };
        let rest = unit.repeat(rest / unit.len());
        let candidate = format!(r#"{{"candidate":"{rest}","sdpMid":"0","sdpMLineIndex":0}}"#);
        let text = format!(r#"{{"type":"candidateAdd","id":"A","target_id":"B","candidate":{candidate}}}"#);
        line.frame = frame(TEXT, text.as_bytes());
        line
    }

    fn relay(&mut self, count: usize) {
        let frame = std::mem::take(&mut self.frame);
        for _ in 0..count {
            self.turn(0, &frame);
            let output = &mut self.sessions.sessions[1].stream().output;
            assert!(output.len() > frame.len() - 50, "it was relayed");
            output.clear();
        }
        self.frame = frame;
    }

    /// What the server does in a turn in which these bytes came.
    fn turn(&mut self, who: usize, bytes: &[u8]) {
        let conn = Conn::new(who as u64 + 1, who);
        let times = Times::default();
        let Sessions { sessions, shared } = &mut self.sessions;
        sessions[who].stream().input.extend(bytes);
        sessions[who].read(&mut self.scratch, shared);
        loop {
            let Sessions { sessions, shared } = &mut self.sessions;
            let Some(event) = sessions[who].next_event(&mut self.scratch, shared) else { break };
            match event {
                Event::Request(head) => {
                    let wall = Duration::ZERO;
                    let config = &self.sessions.shared.config;
                    let answer =
                        answer(&head, ListenerKind::Main, config, false, wall, |_, _| LimitCheck::Allowed);
                    let Decision::Upgrade { bytes, target, claims } = answer else { panic!("{answer:?}") };
                    let Sessions { sessions, shared } = &mut self.sessions;
                    sessions[who].accept(bytes, shared);
                    self.dispatcher.connect(times, conn, &target, claims.as_deref(), &mut self.sessions);
                }
                Event::Rejected(status, reason) => panic!("{status}, {}", reason.message),
                Event::Message(message) => {
                    self.dispatcher.message(times, conn, message, &mut self.sessions);
                }
                Event::Ping(_) | Event::Overhead => unreachable!("only text is sent"),
            }
        }
        self.dispatcher.alive(times, conn, &mut self.sessions);
        let Sessions { sessions, shared } = &mut self.sessions;
        for session in sessions {
            session.flush(shared);
        }
    }
}
