//! What a relayed message costs between the bytes read and the bytes written: allocations, time and, with
//! valgrind installed, instructions. Two sessions on memory and a hub; no kernel.
//!
//! cargo run --release --example bench [-- --messages N]

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use noroshi::config::Config;
use noroshi::http::Door;
use noroshi::hub::{Conn, Effect, Hub, Input, Outbox};
use noroshi::session::{Event, Session, Shared, Stream};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

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
    hub: Hub,
    sessions: Sessions,
    frame: Vec<u8>,
}

struct Sessions {
    shared: Shared,
    sessions: [Session<Pipe>; 2],
}

#[derive(Default)]
struct Pipe {
    input: VecDeque<u8>,
    /// How many bytes were written.
    output: usize,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.input.read(buffer) }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Pipe {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outbox for Sessions {
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool {
        self.sessions[to.slot()].has_room(texts, &self.shared)
    }

    fn push(&mut self, effect: Effect<'_>) {
        if let Effect::Send(to, text) = effect {
            self.sessions[to.slot()].send(text, &mut self.shared);
        }
    }
}

impl Line {
    fn new(bytes: usize) -> Line {
        let config = Config { rate_max: 0, ..Config::default() };
        let session = || Session::new(Pipe::default(), Door::Main, Duration::ZERO);
        let hub = Hub::new(&config);
        let sessions = Sessions { shared: Shared::new(config), sessions: [session(), session()] };
        let mut line = Line { hub, sessions, frame: Vec::new() };
        for (who, id) in ["A", "B"].into_iter().enumerate() {
            line.turn(who, REQUEST);
            line.turn(who, &frame(&format!(r#"{{"type":"leave","id":"{id}"}}"#)));
        }
        let rest = "x".repeat(bytes - r#"{"candidate":"","sdpMid":"0","sdpMLineIndex":0}"#.len());
        let candidate = format!(r#"{{"candidate":"{rest}","sdpMid":"0","sdpMLineIndex":0}}"#);
        line.frame =
            frame(&format!(r#"{{"type":"candidateAdd","id":"A","target_id":"B","candidate":{candidate}}}"#));
        line
    }

    fn relay(&mut self, count: usize) {
        let frame = std::mem::take(&mut self.frame);
        let before = self.sessions.sessions[1].stream().output;
        for _ in 0..count {
            self.turn(0, &frame);
        }
        assert!(
            self.sessions.sessions[1].stream().output - before > count * (frame.len() - 50),
            "all was relayed"
        );
        self.frame = frame;
    }

    /// What the server does in a turn in which these bytes came.
    fn turn(&mut self, who: usize, bytes: &[u8]) {
        let conn = Conn::new(who as u64 + 1, who);
        let Sessions { sessions, shared } = &mut self.sessions;
        sessions[who].stream().input.extend(bytes);
        sessions[who].fill(shared);
        loop {
            let Sessions { sessions, shared } = &mut self.sessions;
            let Some(event) = sessions[who].next(shared) else { break };
            let input = match &event {
                Event::Upgraded(room) => Input::Connected(conn, room),
                Event::Message(text) => Input::Text(conn, text),
            };
            self.hub.handle(Duration::ZERO, input, &mut self.sessions);
        }
        self.hub.handle(Duration::ZERO, Input::Alive(conn), &mut self.sessions);
        let Sessions { sessions, shared } = &mut self.sessions;
        for session in sessions {
            session.flush(shared);
        }
    }
}

fn frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        n @ 0..=125 => frame.push(0x80 | n as u8),
        n => {
            frame.push(0x80 | 126);
            frame.extend((n as u16).to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.extend(text.bytes().zip([1, 2, 3, 4].into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
