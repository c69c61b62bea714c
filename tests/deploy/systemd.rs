//! Notifications to systemd, socket activation, and the units of `scripts/deploy`.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::client::Client;
use crate::common::files::Folder;
use crate::common::process::{NOROSHI, run};
use crate::common::program::{Program, free_port, is_installed};
use crate::common::readme::deploy_file;
use nix::sys::signal::Signal;
use noroshi::config::{Command as Parsed, Config};
use noroshi::protocols;

const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";
const ANALYZE: &str = "/usr/bin/systemd-analyze";
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The notification socket of a service manager.
struct NotifySocket(UnixDatagram);

impl NotifySocket {
    fn receive(&self) -> String {
        let mut text = [0; 256];
        let n = self.0.recv(&mut text).expect("a notification arrives");
        String::from_utf8_lossy(&text[..n]).trim_end().to_owned()
    }

    /// Waits until this notification arrives.
    fn wait_until(&self, expected: &str) {
        let began = Instant::now();
        while self.receive() != expected {
            assert!(began.elapsed() < WAIT_TIMEOUT, "timed out waiting for: {expected}");
        }
    }
}

#[test]
fn service_manager_is_notified_of_ready_watchdog_and_stopping() {
    let folder = Folder::new("notify");
    let path = folder.0.join("socket");
    let notify_socket = NotifySocket(UnixDatagram::bind(&path).unwrap());
    notify_socket.0.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let (mut server, _stderr) = run(&format!(
        r#"export NOTIFY_SOCKET={} WATCHDOG_USEC=200000; exec "$0" --drain 60"#,
        path.display()
    ));
    assert_eq!(notify_socket.receive(), "READY=1");
    notify_socket.wait_until("STATUS=0 connections, 0 rooms");
    // Without connections the watchdog is still notified.
    (0..5).for_each(|_| notify_socket.wait_until("WATCHDOG=1"));
    let client = Client::open(server.address, "tea").register("A");
    notify_socket.wait_until("STATUS=1 connections, 1 rooms");
    drop(client);
    notify_socket.wait_until("STATUS=0 connections, 0 rooms");
    // A suspended loop sends no notification.
    server.signal(Signal::SIGSTOP);
    notify_socket.0.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    while notify_socket.0.recv(&mut [0; 256]).is_ok() {}
    notify_socket.0.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    server.signal(Signal::SIGCONT);
    notify_socket.wait_until("WATCHDOG=1");
    server.signal(Signal::SIGTERM);
    notify_socket.wait_until("STOPPING=1");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn stalled_service_manager_does_not_block_the_server() {
    let folder = Folder::new("unread-notify");
    let path = folder.0.join("socket");
    let notify_socket = NotifySocket(UnixDatagram::bind(&path).unwrap());
    notify_socket.0.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    // The socket's queue is full before the server starts.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"filler", &path).is_ok() {}
    let script = format!(r#"export NOTIFY_SOCKET={} WATCHDOG_USEC=20000; exec "$0""#, path.display());
    let (mut server, _stderr) = run(&script);
    for _ in 0..20 {
        assert!(server.is_healthy());
    }
    // Notifications resume when the socket is read again.
    notify_socket.wait_until("WATCHDOG=1");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
}

#[test]
fn activated_socket_is_served() {
    if !is_installed(ACTIVATE) {
        return;
    }
    let port = free_port();
    let arguments = format!("-l 127.0.0.1:{port} {} --log error", *NOROSHI);
    let program = Program::start(ACTIVATE, &arguments);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    program.wait_until("the socket", || std::net::TcpStream::connect(address).ok());
    // This connection waited in the backlog.
    let mut client = Client::open(address, "tea").register("A");
    assert!(client.sync().is_empty());
    let log = || std::fs::read_to_string(program.home.join("log")).unwrap();
    assert!(log().contains(&format!("listening on ws://127.0.0.1:{port}/ws")), "{}", log());
    assert!(!log().contains(":8080"), "the default address is unused: {}", log());
}

#[test]
fn activated_unix_socket_is_served() {
    if !is_installed(ACTIVATE) {
        return;
    }
    let folder = Folder::new("handed");
    let path = folder.0.join("socket");
    let program = Program::start(ACTIVATE, &format!("-l {} {} --log error", path.display(), *NOROSHI));
    program.wait_until("the socket", || std::os::unix::net::UnixStream::connect(&path).ok());
    let health = Command::new(*NOROSHI).arg("health").arg(format!("unix:{}", path.display())).status();
    assert!(health.unwrap().success());
    let log = std::fs::read_to_string(program.home.join("log")).unwrap();
    assert!(log.contains(&format!("listening on unix:{}", path.display())), "{log}");
    // The socket file belongs to the service manager and is not removed.
    program.signal(Signal::SIGTERM);
    program.wait_until("its end", || std::os::unix::net::UnixStream::connect(&path).err());
    assert!(path.exists());
}

#[test]
fn socket_unit_with_accept_yes_is_rejected_at_start() {
    if !is_installed(ACTIVATE) {
        return;
    }
    let folder = Folder::new("accept");
    for listen in [format!("127.0.0.1:{}", free_port()), folder.0.join("socket").display().to_string()] {
        let program = Program::start(ACTIVATE, &format!("--accept -l {listen} {}", *NOROSHI));
        let log = || std::fs::read_to_string(program.home.join("log")).unwrap();
        program.wait_until("a connection", || match listen.starts_with('/') {
            true => std::os::unix::net::UnixStream::connect(&listen).map(drop).ok(),
            false => std::net::TcpStream::connect(&listen).map(drop).ok(),
        });
        program.wait_until("its end", || log().contains("died with code 1").then_some(()));
        let why = "noroshi: a socket that was passed: expected a listening socket, got a connection: \
            the socket unit has Accept=yes, set Accept=no\n";
        assert!(log().contains(why), "{}", log());
    }
}

#[test]
fn units_are_valid_and_hardened() {
    if !is_installed(ANALYZE) {
        return;
    }
    let Folder(home) = &Folder::new("units");
    let service = home.join("noroshi.service");
    std::fs::write(
        &service,
        deploy_file("noroshi.service").replace("ExecStart=noroshi", &format!("ExecStart={}", *NOROSHI)),
    )
    .unwrap();
    std::fs::write(home.join("noroshi.socket"), deploy_file("noroshi.socket")).unwrap();
    let drop_ins = home.join("noroshi.service.d");
    std::fs::create_dir(&drop_ins).unwrap();
    let drop_in = deploy_file("noroshi-turn-tokens.conf");
    std::fs::write(
        drop_ins.join("noroshi-turn-tokens.conf"),
        drop_in.replace("ExecStart=noroshi", &format!("ExecStart={}", *NOROSHI)),
    )
    .unwrap();
    let analyze = |arguments: &[&str], files: &[&str]| {
        let mut command = Command::new(ANALYZE);
        command.args(arguments).args(files.iter().map(|file| home.join(file)));
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (is_successful, output) = analyze(&["verify"], &["noroshi.service", "noroshi.socket"]);
    assert!(is_successful && output.is_empty(), "{output}");
    let unit = deploy_file("noroshi.service");
    assert!(unit.lines().any(|line| line.starts_with("TimeoutStopSec=")));
    // Every exit code except 0 restarts the service, including that of a panic.
    assert!(unit.lines().any(|line| line == "Restart=on-failure"));
    let (is_successful, output) =
        analyze(&["security", "--offline=true", "--threshold=15"], &["noroshi.service"]);
    assert!(is_successful, "{output}");
}

#[test]
fn flags_of_units_are_valid() {
    for unit in ["noroshi.service", "noroshi-turn-tokens.conf"] {
        let text = deploy_file(unit).replace("\\\n", " ");
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=noroshi ")).unwrap();
        let parsed =
            Config::parse(&protocols::endpoints(protocols::ALL), command.split_whitespace().map(Into::into));
        assert!(matches!(parsed, Ok(Parsed::Run(_))), "{unit}: {parsed:?}");
    }
}
