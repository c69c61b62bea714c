//! The client behind `noroshi health`: a container image with only this program has no other HTTP client.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::config::HealthCheck;
use crate::limits::{HEALTH_TIME_MAX, HTTP_RESPONSE_BYTES_MAX};

/// Characters of an unexpected status line that the error message shows.
const STATUS_LINE_SHOWN_MAX: usize = 80;

/// Requests the health endpoint of a server.
///
/// # Errors
/// The server cannot be reached, does not answer within [`HEALTH_TIME_MAX`], or answers with another status than 200. The
/// error then shows the status line.
pub fn check(target: &HealthCheck) -> io::Result<()> {
    let mut stream = connect(target)?;
    stream.set_read_timeout(Some(HEALTH_TIME_MAX))?;
    stream.set_write_timeout(Some(HEALTH_TIME_MAX))?;
    let HealthCheck { authority, path, .. } = target;
    let head = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut response = Vec::new();
    // Reads to the end, because closing with unread data resets the connection. If the end does not come, the status
    // line is sufficient.
    let end = stream.take(HTTP_RESPONSE_BYTES_MAX).read_to_end(&mut response);
    let response = String::from_utf8_lossy(&response);
    match (response.lines().next(), end) {
        (Some(status_line), _) if is_ok(status_line) => Ok(()),
        (Some(status_line), _) => {
            let shown: String = status_line.chars().take(STATUS_LINE_SHOWN_MAX).collect();
            Err(io::Error::other(format!("expected status 200, got {shown:?}")))
        }
        (None, Err(error)) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn is_ok(status_line: &str) -> bool {
    status_line.starts_with("HTTP/1.") && status_line.split(' ').nth(1) == Some("200")
}

/// Connects to the server, at the first address of its name that accepts: `localhost` has two.
fn connect(target: &HealthCheck) -> io::Result<TcpStream> {
    if let Some(path) = &target.socket {
        // Reading and writing are the same system calls for sockets of both families, so that one type is sufficient.
        let stream = UnixStream::connect(path)?;
        return Ok(OwnedFd::from(stream).into());
    }
    let mut last_error = io::Error::other("expected a host name with an address, got one without");
    for address in target.authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HEALTH_TIME_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}
