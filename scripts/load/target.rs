//! The server under test: somebody else's, or our own on another core.

use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

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
    pub fn new(url: Option<&str>, pid: Option<u32>) -> io::Result<Target> {
        match url {
            Some(url) => Target::at(url, pid),
            None => Target::start(),
        }
    }

    pub fn at(url: &str, pid: Option<u32>) -> io::Result<Target> {
        let wrong = || io::Error::new(ErrorKind::InvalidInput, format!("{url} is not ws://HOST:PORT/PATH"));
        let rest = url.strip_prefix("ws://").ok_or_else(wrong)?;
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        let named = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let address = named.to_socket_addrs()?.next().ok_or_else(wrong)?;
        Ok(Target { address, host: host.to_owned(), path: format!("/{path}"), pid, child: None })
    }

    /// Starts the server that was built beside this program, on another core where there is one.
    pub fn start() -> io::Result<Target> {
        let binary = std::env::current_exe()?
            .parent()
            .and_then(|dir| dir.parent())
            .expect("examples/")
            .join("noroshi");
        if let Some(cargo) = std::env::var_os("CARGO") {
            // `cargo run --example` does not build it.
            let release = if cfg!(debug_assertions) { &[][..] } else { &["--release"] };
            Command::new(cargo).args(["build", "--quiet", "--bin", "noroshi"]).args(release).status()?;
        }
        let cores = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut free = (0..CpuSet::count()).filter(|core| cores.is_set(*core).unwrap_or(false));
        let (ours, theirs) = (free.next(), free.next());
        // What is started inherits the core.
        pin(theirs);
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
            .stderr(Stdio::piped())
            .spawn();
        if theirs.is_some() {
            pin(ours);
        }
        let mut child = child.map_err(|error| {
            io::Error::new(error.kind(), format!("{} does not start: {error}", binary.display()))
        })?;
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let url = lines.find_map(|line| line.ok()?.strip_prefix("listening on ").map(str::to_owned));
        let url = url.ok_or_else(|| io::Error::other("the server does not say where it listens"))?;
        let mut target = Target::at(&url, Some(child.id()))?;
        target.child = Some(child);
        Ok(target)
    }

    /// CPU time of all its threads.
    pub fn cpu(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid?)).ok()?;
        let times = tasks.filter_map(|task| {
            let schedstat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            schedstat.split_whitespace().next()?.parse::<u64>().ok()
        });
        Some(Duration::from_nanos(times.sum()))
    }

    /// Resident memory, in bytes.
    pub fn rss(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    }
}

pub fn pin(core: Option<usize>) {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        // Where this is not allowed, the figures are noisier.
        let _ = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    }
}
