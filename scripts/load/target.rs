//! The server under test: one at a URL, or a noroshi process started on another core.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::dialects::Dialect;

/// The address of the server under test, and its process if it is on this machine.
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
    pub pid: Option<u32>,
    pub child: Option<Child>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Target {
    pub fn new(url: Option<&str>, pid: Option<u32>, dialect: Dialect) -> io::Result<Target> {
        match url {
            Some(url) => Target::from_url(url, pid),
            None => Target::spawn(dialect),
        }
    }

    pub fn from_url(url: &str, pid: Option<u32>) -> io::Result<Target> {
        let invalid = || {
            let message = format!("expected ws://HOST:PORT/PATH, got {url:?}");
            io::Error::new(ErrorKind::InvalidInput, message)
        };
        let rest = url.strip_prefix("ws://").ok_or_else(invalid)?;
        let (host, path) = rest.split_once('/').ok_or_else(invalid)?;
        let authority = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = authority.to_socket_addrs()?.next().ok_or_else(invalid)?;
        Ok(Target { address, host: host.to_owned(), path: format!("/{path}"), pid, child: None })
    }

    /// Starts the noroshi binary that was built with this program, on another core if there is one.
    pub fn spawn(dialect: Dialect) -> io::Result<Target> {
        let binary = std::env::current_exe()?
            .parent()
            .and_then(|dir| dir.parent())
            .expect("examples/")
            .join("noroshi");
        if let Some(cargo) = std::env::var_os("CARGO") {
            // `cargo run --example` does not build the binary.
            let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
            Command::new(cargo).args(["build", "--quiet", "--bin", "noroshi"]).args(release).status()?;
        }
        let (flags, path) = dialect.of_noroshi();
        let cores = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut available = (0..CpuSet::count()).filter(|core| cores.is_set(*core).unwrap_or(false));
        let load_core = available.next();
        let server_core = available.next();
        // The child inherits the core.
        pin_to(server_core);
        let child = Command::new(&binary)
            .args([
                "--listen",
                "127.0.0.1:0",
                "--max-rate",
                "0",
                "--max-connections",
                "100000",
                "--log",
                "error",
            ])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn();
        if server_core.is_some() {
            pin_to(load_core);
        }
        let mut child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot start {}: {error}", binary.display()))
        })?;
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        let url = url.ok_or_else(|| {
            io::Error::other("expected `listening on URL` on stderr of the server, got none")
        })?;
        let mut target = Target::from_url(&url, Some(child.id()))?;
        target.path = path.to_owned();
        target.child = Some(child);
        Ok(target)
    }

    /// Returns the CPU time of all threads of the server.
    pub fn cpu(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid?)).ok()?;
        let times = tasks.filter_map(|task| {
            let schedstat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            schedstat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Some(Duration::from_nanos(times.sum()))
    }

    /// Returns the resident memory of the server, in bytes.
    pub fn rss(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }
}

/// Restricts this process to a core.
pub fn pin_to(core: Option<usize>) {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        // Without permission, the figures are noisier.
        let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}
