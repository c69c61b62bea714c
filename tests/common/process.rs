//! The server as a process, observed through /proc and its metrics.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tungstenite::WebSocket;

use super::files::project_root;
use super::program::WAIT_TIMEOUT;

/// The path of the server. Cargo builds it beside the directory of the test programs.
pub static NOROSHI: LazyLock<&str> = LazyLock::new(|| {
    let tests = std::env::current_exe().unwrap();
    let server = tests.parent().and_then(Path::parent).unwrap().join("noroshi");
    server.into_os_string().into_string().unwrap().leak()
});

/// Builds an example and returns its path. `cargo test` builds all examples first, `cargo test --test GROUP` does not.
pub fn example(name: &str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let profile = Path::new(*NOROSHI).parent().unwrap();
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    // The variable is set by `cargo test`. A test program that is started by itself uses what is there.
    if let Some(cargo) = std::env::var_os("CARGO").filter(|_| built.insert(name.to_owned())) {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--example", name]).current_dir(project_root());
        build.arg("--target-dir").arg(profile.parent().unwrap());
        match profile.file_name().unwrap().to_str().unwrap() {
            "debug" => {}
            other => _ = build.args(["--profile", other]),
        }
        assert!(build.status().unwrap().success(), "{name} cannot be built");
    }
    profile.join("examples").join(name)
}

/// A server process, killed when the value is dropped.
pub struct Running {
    pub child: Child,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a shell command that ends in `exec "$0" …` and so becomes the server.
pub fn run(script: &str) -> (Running, BufReader<ChildStderr>) {
    let script = format!("{script} -l 127.0.0.1:0 --metrics 127.0.0.1:0");
    let mut command = Command::new("sh");
    let mut child = command.args(["-c", &script, *NOROSHI]).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut read_address = |prefix: &str, suffix: &str| loop {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the server logs its address");
        if let Some(rest) = line.strip_prefix(prefix) {
            break rest.trim_end().strip_suffix(suffix).unwrap().parse().unwrap();
        }
    };
    let address = read_address("listening on ws://", "/ws");
    let metrics = read_address("metrics on http://", "/metrics");
    (Running { child, address, metrics }, stderr)
}

impl Running {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn request(&self, address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn is_healthy(&self) -> bool {
        self.request(self.address, "/healthz").ends_with("\r\n\r\nok")
    }

    /// Returns a metric by name and labels, without the prefix `noroshi_`, summed over all protocols.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.request(self.metrics, "/metrics");
        let samples = page.lines().filter_map(|line| line.strip_prefix("noroshi_")?.rsplit_once(' '));
        let values = samples.filter(|(key, _)| without_protocol(key) == name);
        let values: Vec<f64> = values.map(|(_, value)| value.parse().unwrap()).collect();
        assert!(!values.is_empty(), "{name} is not in {page}");
        values.iter().sum()
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).unwrap().count()
    }

    /// Returns the resident memory in bytes: current and peak.
    pub fn memory(&self) -> (usize, usize) {
        let status = std::fs::read_to_string(self.proc("status")).unwrap();
        let kib = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap()
        };
        (kib("VmRSS:") * 1024, kib("VmHWM:") * 1024)
    }

    /// Returns the CPU time used so far.
    pub fn cpu(&self) -> Duration {
        let schedstat = std::fs::read_to_string(self.proc("schedstat")).unwrap();
        Duration::from_nanos(schedstat.split_whitespace().next().unwrap().parse().unwrap())
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }

    pub fn websocket(&self, path: &str) -> WebSocket<RetryOnInterrupt> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        tungstenite::client(format!("ws://{}{path}", self.address), RetryOnInterrupt(stream)).unwrap().0
    }

    pub fn code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the process exits", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

/// Retries reads that a signal interrupts, for example SIGCHLD from another test's server. A socket with a timeout is
/// not restarted automatically (signal(7)).
pub struct RetryOnInterrupt(pub TcpStream);

impl Read for RetryOnInterrupt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Write for RetryOnInterrupt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Polls a condition in another process until it holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{what}");
        sleep(Duration::from_millis(10));
    }
}

/// Removes the protocol label, which is the first label, from a metric's key.
fn without_protocol(key: &str) -> String {
    let Some((name, labels)) = key.split_once("{protocol=\"") else { return key.to_owned() };
    match labels.split_once("\",") {
        Some((_, others)) => format!("{name}{{{others}"),
        None => name.to_owned(),
    }
}
