//! Who stands beside the server: somebody else's web server, and a TURN server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::spawn;
use std::time::Duration;

use super::program::Program;
use super::readme::block;

pub const TURNSERVER: &str = "/usr/bin/turnserver";

/// Serves files by their paths, the page at `/` among them, on an origin of their own.
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
    // Each in a thread of its own, because a browser opens more connections than it uses.
    spawn(move || {
        for stream in listener.incoming().map(Result::unwrap) {
            let files = files.clone();
            spawn(move || answer(stream, &files));
        }
    });
    address
}

/// Starts coturn as the README has it, with a secret, and returns its port.
pub fn coturn(secret: &str) -> (Program, u16) {
    coturn_with(&block("use-auth-secret").replace("SECRET", secret))
}

/// The same, with these lines in its turnserver.conf.
pub fn coturn_with(lines: &str) -> (Program, u16) {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let arguments = format!(
        "-c turnserver.conf --listening-ip 127.0.0.1 --listening-port {port} --allow-loopback-peers --no-tls --no-dtls \
        --no-cli --log-file stdout --pidfile pid --userdb db"
    );
    let coturn = Program::start_after(TURNSERVER, &arguments, |home| {
        std::fs::write(home.join("turnserver.conf"), lines).unwrap();
    });
    // A binding request (RFC 8489 section 6).
    let request = b"\0\x01\0\0\x21\x12\xa4\x42noroshi test";
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    coturn.until("an answer", || client.send(request).and_then(|_| client.recv(&mut [0; 512])).ok());
    (coturn, port)
}
