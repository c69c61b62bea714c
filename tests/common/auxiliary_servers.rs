//! Servers that run beside noroshi in a test: a static file server, a STUN server and coturn.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::spawn;
use std::time::Duration;

use super::program::{Program, free_port};
use super::readme::configuration;
use super::tls;

pub const TURNSERVER: &str = "/usr/bin/turnserver";

/// Serves files by path from an origin separate from the server's. The page is the file at `/`.
pub fn serve(files: &[(&str, &str)]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let files: Vec<(String, String)> =
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    let answer = |mut stream: TcpStream, files: &[(String, String)]| {
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap_or_default();
        let target = String::from_utf8_lossy(&request[..read]).split(' ').nth(1).unwrap_or("/").to_owned();
        let path = target.split('?').next().unwrap_or("/");
        let found = files.iter().find(|(it, _)| it == path);
        let (status, text) = found.map_or(("404 Not Found", ""), |(_, text)| ("200 OK", text));
        let kind = if path.ends_with("js") { "text/javascript" } else { "text/html" };
        let length = text.len();
        let head = format!("Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close");
        let _ = write!(stream, "HTTP/1.1 {status}\r\n{head}\r\n\r\n{text}");
    };
    // A browser opens more connections than it uses, so each connection has its own thread.
    spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let files = files.clone();
            spawn(move || answer(stream, &files));
        }
    });
    address
}

/// Starts a STUN server that reports every client as behind a NAT. Returns its address.
pub fn stun() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    spawn(move || {
        let mut request = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut request) {
            // A binding success response with XOR-MAPPED-ADDRESS 203.0.113.7:5000 (RFC 8489 sections 5 and 14.2).
            let mut answer = b"\x01\x01\0\x0c\x21\x12\xa4\x42............\0\x20\0\x08\0\x01".to_vec();
            answer[8..20].copy_from_slice(&request[8..20]);
            answer.extend((5000_u16 ^ 0x2112).to_be_bytes());
            answer.extend((u32::from_be_bytes([203, 0, 113, 7]) ^ 0x2112_a442).to_be_bytes());
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

/// Starts coturn with `scripts/deploy/turnserver.conf` and this secret. Returns its port.
pub fn coturn(secret: &str) -> (Program, u16) {
    coturn_with(secret, "--no-tls", "(none)")
}

/// Starts coturn with TLS on this port, for the host name [`tls::HOST`].
pub fn coturn_over_tls(secret: &str, port: u16) -> (Program, u16) {
    let flags = format!("--tls-listening-port {port} --cert fullchain.pem --pkey privkey.pem");
    coturn_with(secret, &flags, "(none)")
}

/// Starts coturn with additional flags. Omits configuration lines that start with `omitted_prefix`.
pub fn coturn_with(secret: &str, flags: &str, omitted_prefix: &str) -> (Program, u16) {
    let port = free_port();
    let arguments = format!(
        "-c turnserver.conf --listening-ip 127.0.0.1 --listening-port {port} --allow-loopback-peers {flags} --no-dtls \
        --no-cli --log-file stdout --pidfile pid --userdb db"
    );
    let coturn = Program::start_after(TURNSERVER, &arguments, |home| {
        if flags.contains("--cert") {
            tls::certificate(home);
        }
        let lines = configuration("turnserver.conf").replace("SECRET", secret);
        let lines: String =
            lines.split_inclusive('\n').filter(|line| !line.starts_with(omitted_prefix)).collect();
        std::fs::write(home.join("turnserver.conf"), lines).unwrap();
    });
    // A binding request (RFC 8489 section 6).
    let request = b"\0\x01\0\0\x21\x12\xa4\x42noroshi test";
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    coturn.wait_until("an answer", || client.send(request).and_then(|_| client.recv(&mut [0; 512])).ok());
    (coturn, port)
}
