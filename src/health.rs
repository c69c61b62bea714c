//! The client of `noroshi health`: in an image that has nothing but this program there is no other to ask with.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::config::{HEALTH_TIME_MAX, HTTP_ANSWER_BYTES_MAX, HealthCheck};

/// Asks whether a server is well.
///
/// # Errors
/// Whatever is not an answer of 200: what went wrong, or what was said instead.
pub fn ask(probe: &HealthCheck) -> io::Result<()> {
    let mut stream = connect(probe)?;
    stream.set_read_timeout(Some(HEALTH_TIME_MAX))?;
    stream.set_write_timeout(Some(HEALTH_TIME_MAX))?;
    let HealthCheck { authority, path, .. } = probe;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    // To the end, because a close before it would reset the connection. If that does not come, the first line counts.
    let end = stream.take(HTTP_ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    match answer.lines().next() {
        Some(line) if line.starts_with("HTTP/1.") && line.split(' ').nth(1) == Some("200") => Ok(()),
        Some(line) => Err(io::Error::other(format!("{:?}", line.chars().take(80).collect::<String>()))),
        None if end.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) => {
            Err(ErrorKind::TimedOut.into())
        }
        None => Err(end.err().unwrap_or_else(|| ErrorKind::UnexpectedEof.into())),
    }
}

/// To the first address of the name that takes the connection: `localhost` is two.
fn connect(probe: &HealthCheck) -> io::Result<TcpStream> {
    if let Some(path) = &probe.socket {
        // To read and to write are the same for a socket of any family.
        return UnixStream::connect(path).map(|stream| OwnedFd::from(stream).into());
    }
    let mut last = io::Error::other("the name has no address");
    for address in probe.authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HEALTH_TIME_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
