//! Unix sockets, which proxies on the same machine connect to.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::common::client::Client;
use crate::common::files::Folder;
use crate::common::pipe::REQUEST;
use crate::common::process::{NOROSHI, Running, eventually, run};
use nix::sys::signal::Signal;
use serde_json::json;

/// Connects to the socket file. The stream is used like a TCP stream.
fn connect(path: &Path) -> Client {
    Client::from_stream(TcpStream::from(OwnedFd::from(UnixStream::connect(path).unwrap())))
}

/// Requests an upgrade with this header. Returns the connection and the status.
fn ask(path: &Path, header: &str) -> (Client, u16) {
    let mut client = connect(path);
    client.send(REQUEST.replace("Host: h\r\n", &format!("Host: h\r\n{header}")).as_bytes());
    let status = client.read_head().split(' ').nth(1).unwrap().parse().unwrap();
    (client, status)
}

fn noroshi(arguments: &[&str]) -> Output {
    Command::new(*NOROSHI).args(arguments).output().unwrap()
}

/// Returns the error message of a server that cannot start.
fn start_error(path: &Path) -> String {
    let output = noroshi(&["--listen", &format!("unix:{}", path.display())]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn is_healthy(path: &Path) -> bool {
    noroshi(&["health", &format!("unix:{}", path.display())]).status.success()
}

fn serve(path: &Path, flags: &str) -> Running {
    run(&format!(r#"umask 027; exec "$0" -l unix:{} --log error {flags}"#, path.display())).0
}

#[test]
fn socket_file_has_the_mode_of_the_umask_and_is_removed() {
    let folder = Folder::new("local");
    let path = &folder.0.join("socket");
    let mut server = serve(path, "");
    let file = fs::symlink_metadata(path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o750);
    assert!(is_healthy(path));

    let taken = format!("noroshi: cannot listen on unix:{}: Address already in use", path.display());
    assert!(start_error(path).starts_with(&taken), "{}", start_error(path));
    assert!(is_healthy(path), "the socket of another process is unchanged");

    server.signal(Signal::SIGKILL);
    server.code();
    assert!(path.exists() && !is_healthy(path));
    let mut server = serve(path, "");
    assert!(is_healthy(path), "the stale socket is replaced");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.code(), Some(0));
    assert!(!path.exists());

    fs::write(path, "mine").unwrap();
    assert!(start_error(path).starts_with(&taken));
    assert_eq!(fs::read(path).unwrap(), b"mine");
    let [far, nowhere] = [folder.0.join("x".repeat(120)), folder.0.join("no/socket")];
    assert!(
        [far, nowhere].iter().all(|path| start_error(path).starts_with("noroshi: cannot listen on unix:"))
    );
}

#[test]
fn forwarded_addresses_are_trusted_on_a_unix_socket() {
    let folder = Folder::new("believed");
    let path = &folder.0.join("socket");
    let server = serve(path, "--max-connections-per-ip 1");
    // Connections without a forwarded address are not counted.
    let clients = ["A", "B", "C"].map(|id| ask(path, "").0.register(id));
    let here = "X-Forwarded-For: 192.0.2.1\r\n";
    let (first, status) = ask(path, here);
    assert_eq!(status, 101);
    assert_eq!(ask(path, here).1, 429);
    // Connections to the TCP port are checked by their own address.
    let mut other = Client::connect(server.address);
    other.send(REQUEST.replace("Host: h\r\n", &format!("Host: h\r\n{here}")).as_bytes());
    assert!(other.read_head().starts_with("HTTP/1.1 101 "));
    let mut another = Client::connect(server.address);
    another.send(REQUEST.as_bytes());
    assert!(another.read_head().starts_with("HTTP/1.1 429 "));
    drop((clients, first, other, another));
    eventually("all connections are closed", || server.metric("connections") == 0.0);
}

#[test]
fn message_larger_than_the_kernel_buffers_arrives() {
    let folder = Folder::new("large");
    let path = &folder.0.join("socket");
    let _server = serve(path, "--max-message 1M");
    let [mut a, mut b] = ["A", "B"].map(|id| ask(path, "").0.register(id));
    let texts = ["x", "y"].map(|letter| letter.repeat(900_000));
    for text in &texts {
        a.send_json(json!({"type": "candidateAdd", "id": "A", "target_id": "B", "candidate": text}));
    }
    // The messages are queued for a peer that does not read yet.
    assert!(a.sync().is_empty());
    for text in texts {
        let candidate = format!("\"{text}\"");
        assert_eq!(b.receive_json(), json!({"type": "candidate", "id": "A", "candidate": candidate}));
    }
}

#[test]
fn one_of_several_processes_serves_at_a_stale_path() {
    let folder = Folder::new("race");
    let path = &folder.0.join("socket");
    for round in 0..10 {
        // A killed server leaves its socket file behind.
        drop(UnixListener::bind(path).unwrap());
        let start = || {
            let mut command = Command::new(*NOROSHI);
            command.args(["--listen", &format!("unix:{}", path.display())]).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        let mut started: Vec<Child> = (0..4).map(|_| start()).collect();
        let mut codes = Vec::new();
        eventually("all processes but one exit", || {
            codes = started.iter_mut().map(|child| child.try_wait().unwrap()).collect::<Vec<_>>();
            codes.iter().flatten().count() >= 3
        });
        assert!(is_healthy(path), "round {round}: {codes:?}");
        let codes: Vec<_> = codes.iter().flatten().map(|status| status.code()).collect();
        assert_eq!(codes, [Some(1); 3], "round {round}");
        for child in &mut started {
            let _ = child.kill();
            child.wait().unwrap();
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn start_does_not_replace_the_socket_of_another_process() {
    let folder = Folder::new("lock");
    let path = &folder.0.join("socket");
    drop(UnixListener::bind(path).unwrap());
    let stale = fs::symlink_metadata(path).unwrap().ino();
    // The test acts as the other process: it has locked the directory and is about to replace the stale file.
    let lock = File::open(&folder.0).unwrap();
    lock.lock().unwrap();
    let mut command = Command::new(*NOROSHI);
    let command = command.args(["--listen", &format!("unix:{}", path.display())]).stderr(Stdio::piped());
    let mut second = command.spawn().unwrap();
    for _ in 0..30 {
        assert_eq!(fs::symlink_metadata(path).unwrap().ino(), stale);
        sleep(Duration::from_millis(10));
    }
    fs::remove_file(path).unwrap();
    let _first = UnixListener::bind(path).unwrap();
    let fresh = fs::symlink_metadata(path).unwrap().ino();
    drop(lock);
    let mut status = None;
    eventually("the second process exits", || {
        status = second.try_wait().unwrap();
        status.is_some()
    });
    let output = second.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Address already in use"));
    assert_eq!(fs::symlink_metadata(path).unwrap().ino(), fresh);
}

#[test]
fn socket_file_is_removed_when_a_later_address_cannot_be_bound() {
    let folder = Folder::new("later");
    let path = folder.0.join("socket");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = format!("unix:{}", path.display());
    let output = noroshi(&["-l", &unix, "-l", &taken.local_addr().unwrap().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
}

#[test]
fn socket_file_of_another_server_is_not_removed() {
    let folder = Folder::new("another");
    let path = &folder.0.join("socket");
    let mut first = serve(path, "");
    fs::remove_file(path).unwrap();
    let _second = serve(path, "");
    first.signal(Signal::SIGTERM);
    assert_eq!(first.code(), Some(0));
    assert!(is_healthy(path));
}
