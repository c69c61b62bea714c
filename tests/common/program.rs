//! External programs that tests start.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Time after which waiting fails the test. It is long because two cores may run four browsers and other programs.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns whether a program is installed. Tests that need it are skipped otherwise, except in CI, where they fail.
pub fn is_installed(program: &str) -> bool {
    let is_installed = Path::new(program).exists();
    if !is_installed {
        assert!(std::env::var_os("CI").is_none(), "{program} is missing");
        // The test harness captures the output of print macros.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED a test: {program} is missing").unwrap();
    }
    is_installed
}

/// Returns the path of a program in PATH, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.exists());
    is_installed(found.as_ref().map_or(program, |file| file.to_str().unwrap())).then_some(found?)
}

/// Returns a port that is free for TCP and UDP and below 32768, where the kernel's ephemeral ports begin.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Test processes that run in parallel start at different ports.
        let next = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (16_384 + next % 16_384) as u16;
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}

/// Installs npm packages, separated by spaces, into a new directory, which the caller removes. `None` without npm.
pub fn npm(packages: &str) -> Option<PathBuf> {
    let npm = find("npm")?;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let home = std::env::temp_dir().join(format!("noroshi-npm-{}-{count}", std::process::id()));
    std::fs::create_dir(&home).unwrap();
    let install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", "."];
    let mut command = Command::new(npm);
    command.args(install).args(packages.split(' ')).current_dir(&home);
    assert!(command.status().unwrap().success());
    Some(home)
}

/// A process group, killed when the value is dropped.
pub struct Program {
    child: Child,
    /// The working, temporary and home directory of the program. Removed when the value is dropped.
    pub home: PathBuf,
}

impl Program {
    /// Starts a program with arguments separated by spaces.
    pub fn start(program: &str, arguments: &str) -> Program {
        Program::start_after(program, arguments, |_| {})
    }

    /// Starts a program after `prepare` has filled its directory.
    pub fn start_after(program: &str, arguments: &str, prepare: impl FnOnce(&Path)) -> Program {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // The path is short because Chromium creates a Unix socket there.
        let home = std::env::temp_dir().join(format!("noroshi-{}-{count}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        prepare(&home);
        let log = File::create(home.join("log")).unwrap();
        // The program ends with the test, even if the test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]).args(arguments.split_whitespace());
        command.current_dir(&home).env("HOME", &home).env("TMPDIR", &home).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Program { child: command.spawn().unwrap(), home }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Sends a signal to the program and its descendants in its process group.
    pub fn signal_group(&self, signal: Signal) {
        killpg(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Returns what the program has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.home.join("log")).unwrap()).into_owned()
    }

    /// Waits until the program exits, and returns its exit code. `None` if a signal killed it.
    #[track_caller]
    pub fn wait_for_exit(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "timed out: the exit of the program\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Polls until a value is available.
    #[track_caller]
    pub fn wait_until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(it) = found() {
                return it;
            }
            assert!(began.elapsed() < WAIT_TIMEOUT, "timed out: {what}\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
        // Descendants that are not our children may still write for a moment.
        let began = Instant::now();
        while std::fs::remove_dir_all(&self.home).is_err_and(|error| error.kind() != ErrorKind::NotFound)
            && began.elapsed() < WAIT_TIMEOUT
        {
            sleep(Duration::from_millis(10));
        }
    }
}
