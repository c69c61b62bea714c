//! A panic ends the process immediately. No input from peers is known to cause one.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use crate::common::pipe::{REQUEST, TEXT, frame};
use crate::common::process::eventually;
use noroshi::config::{Config, Endpoint, ListenAddress};
use noroshi::http::ListenerKind;
use noroshi::http::token::Claims;
use noroshi::limits::LOG_LINE_BYTES_MAX;
use noroshi::logger::{PANIC_EXIT_CODE, exit_on_panic, print_line};
use noroshi::message::Message;
use noroshi::metrics::Counts;
use noroshi::protocol::{Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use noroshi::server::Server;

/// Environment variable that makes this test binary the server, see [`server_with_a_faulty_protocol`].
const MARKER: &str = "NOROSHI_TEST_FAULTY_PROTOCOL";

/// A protocol that panics at each message.
struct Faulty;

static FAULTY: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "faulty",
        title: "faulty",
        default_path: "/ws",
        is_always_on: true,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: 0,
    },
    token_place: TokenPlace::Request,
    route: |below, _| Route::Room(below.unwrap_or_default().to_owned()),
    new: |_, _| Box::new(Faulty),
};

impl Protocol for Faulty {
    fn on_connect(&mut self, conn: Conn, target: &Target, _: Option<&Claims>, context: &mut Context) {
        context.registered(conn, &target.room, "faulty");
    }

    fn on_message(&mut self, _: Conn, message: Message<'_>, _: &mut Context) {
        panic!("{}", message.text().unwrap_or_default().repeat(10));
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {}

    fn on_disconnect(&mut self, _: Conn, _: &mut Context) {}

    fn member(&self, _: Conn) -> Option<Member<'_>> {
        Some(Member { room: "", id: Some("faulty".into()), state: "faulty" })
    }

    fn counts(&self, _: Duration) -> Counts {
        Counts::default()
    }
}

/// Runs the server in a child process of the tests below, without a log. Does nothing as a test.
#[test]
fn server_with_a_faulty_protocol() {
    if std::env::var_os(MARKER).is_none() {
        return;
    }
    exit_on_panic();
    let config =
        Config { listen: vec![ListenAddress::Tcp("127.0.0.1:0".parse().unwrap())], ..Config::default() };
    let mut server = Server::with_protocols(&[&FAULTY], config).unwrap();
    print_line(format_args!("listening on {}", server.addresses(ListenerKind::Main).next().unwrap()));
    server.run().unwrap();
}

/// Starts the server with a pipe as stderr.
fn start() -> (Child, BufReader<ChildStderr>, TcpStream) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "panic::server_with_a_faulty_protocol"]).env(MARKER, "1");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let stream = TcpStream::connect(line.trim().strip_prefix("listening on ").unwrap()).unwrap();
    (child, stderr, stream)
}

/// Sends a message that makes the server panic. Returns the exit code.
fn provoke_panic(child: &mut Child, stream: &mut TcpStream, message: &str) -> Option<i32> {
    stream.write_all(&[REQUEST.as_bytes(), &frame(TEXT, message.as_bytes())].concat()).unwrap();
    let mut status = None;
    eventually("the process exits", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap().code()
}

#[test]
fn panic_ends_the_process_with_its_own_exit_code_and_a_last_line() {
    for (message, shown, end) in [
        ("a", "aaaaaaaaaa".to_owned(), ""),
        ("a\nforged\u{202e}", r"a\nforged\u{202e}".repeat(10), ""),
        (&"long ".repeat(100), "long ".repeat(190), " [truncated]"),
    ] {
        let (mut child, mut stderr, mut stream) = start();
        assert_eq!(provoke_panic(&mut child, &mut stream, message), Some(PANIC_EXIT_CODE));
        let mut last = String::new();
        stderr.read_to_string(&mut last).unwrap();
        let line = last.strip_suffix('\n').unwrap();
        assert!(line.starts_with("noroshi: panic at tests/server/panic.rs:"), "{last}");
        assert!(line.contains(&format!(": {shown}")) && line.ends_with(end), "{last}");
        assert!(last.lines().count() == 1 && last.len() <= LOG_LINE_BYTES_MAX, "{last}");
    }
}

#[test]
fn panic_ends_the_process_when_stderr_is_closed_or_full() {
    let (mut child, stderr, mut stream) = start();
    drop(stderr);
    assert_eq!(provoke_panic(&mut child, &mut stream, "a"), Some(PANIC_EXIT_CODE));

    let (mut child, _stderr, mut stream) = start();
    let mut pipe = OpenOptions::new().write(true).open(format!("/proc/{}/fd/2", child.id())).unwrap();
    // The capacity of a pipe (pipe(7)).
    pipe.write_all(&[b'x'; 65_536]).unwrap();
    assert_eq!(provoke_panic(&mut child, &mut stream, "a"), Some(PANIC_EXIT_CODE));
}
