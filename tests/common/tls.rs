//! TLS by the program `openssl`, so that no crate is needed.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::spawn;

pub const OPENSSL: &str = "/usr/bin/openssl";

/// The host name of the certificate. Browsers resolve it to this machine without DNS (RFC 6761 section 6.3).
pub const HOST: &str = "noroshi.localhost";

/// Creates a self-signed certificate and its key under certbot's file names, and a combined file for HAProxy.
pub fn certificate(home: &Path) {
    let request = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={HOST} \
        -addext subjectAltName=DNS:{HOST} -out fullchain.pem -keyout privkey.pem"
    );
    let made = Command::new(OPENSSL).args(request.split_whitespace()).current_dir(home).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap();
    std::fs::write(home.join(format!("{HOST}.pem")), read("fullchain.pem") + &read("privkey.pem")).unwrap();
}

/// Returns the hash of the certificate's public key (RFC 7469 section 2.4).
pub fn hash(home: &Path) -> String {
    let pipe = "openssl x509 -in fullchain.pem -pubkey -noout | openssl pkey -pubin -outform der \
        | openssl dgst -sha256 -binary | openssl base64";
    let hash = Command::new("sh").args(["-c", pipe]).current_dir(home).output().unwrap();
    String::from_utf8(hash.stdout).unwrap().trim().to_owned()
}

/// Connects over TLS from this address and verifies that the server has the certificate created above. Reads return end
/// of file when the server closes or the verification fails.
pub fn connect(home: &Path, from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (openssl, _) = listener.accept().unwrap();
    let arguments = format!(
        "s_client -quiet -no_ign_eof -nocommands -bind {from}:0 -connect {to} -servername {HOST} \
        -verify_hostname {HOST} -CAfile fullchain.pem -verify_return_error -verify_quiet"
    );
    let mut child = Command::new(OPENSSL)
        .args(arguments.split_whitespace())
        .current_dir(home)
        .stdin(Stdio::from(OwnedFd::from(openssl.try_clone().unwrap())))
        .stdout(Stdio::from(OwnedFd::from(openssl)))
        .stderr(File::options().append(true).create(true).open(home.join("openssl.log")).unwrap())
        .spawn()
        .unwrap();
    // The process ends when either side closes.
    spawn(move || child.wait());
    plain
}
