//! The headers of an upgrade to WebSocket (RFC 6455 section 4.2).

use tungstenite::handshake::derive_accept_key;

use super::{Request, Response};

impl<'a> Request<'a> {
    /// Returns whether the client requests a WebSocket: it sends a key or an `Upgrade` header.
    ///
    /// A proxy that is not configured for WebSockets drops `Upgrade`, but not the key.
    pub fn is_attempted_upgrade(&self) -> bool {
        self.has("sec-websocket-key") || self.lists("upgrade", "websocket")
    }

    /// Returns the header faults that prevent an upgrade, each with its likely cause.
    ///
    /// Proxies that are not configured for WebSockets send HTTP/1.0, or drop the hop-by-hop headers.
    pub fn upgrade_faults(&self) -> Vec<&'static str> {
        let mut faults = Vec::new();
        if self.version == 0 {
            faults.push("HTTP/1.0, but WebSocket needs HTTP/1.1: does nginx lack proxy_http_version 1.1?");
        }
        if !self.has("upgrade") {
            faults.push("no Upgrade header: is a proxy dropping it?");
        } else if !self.lists("upgrade", "websocket") {
            faults.push("the Upgrade header does not list websocket");
        } else if !self.lists("connection", "upgrade") {
            faults.push("no Upgrade in the Connection header: is a proxy changing it?");
        }
        faults
    }

    /// Returns the key of a valid upgrade.
    ///
    /// # Errors
    /// The response to a request that is not an upgrade, or whose headers are not valid.
    pub fn upgrade_key(&self) -> Result<&'a str, Response> {
        let faults = self.upgrade_faults();
        let has_version_13 = self.value("sec-websocket-version") == Some("13");
        if !faults.is_empty() || self.method != "GET" || !has_version_13 {
            return Err(self.upgrade_required(&faults));
        }
        match self.value("sec-websocket-key").filter(|key| is_websocket_key(key)) {
            Some(key) => Ok(key),
            None => Err(self.text_response(400, "Sec-WebSocket-Key is missing or malformed", &[])),
        }
    }

    /// Rejects a request for a WebSocket path that is not an upgrade, or one with these faults.
    fn upgrade_required(&self, faults: &[&str]) -> Response {
        let headers = [("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")];
        if self.is_attempted_upgrade() && !faults.is_empty() {
            self.text_response(426, &faults.join("; "), &headers)
        } else {
            self.text_response(426, "expected a WebSocket upgrade, version 13", &headers)
        }
    }
}

/// Renders the response that accepts an upgrade with this key.
pub fn switching_protocols(key: &str) -> Vec<u8> {
    let accept = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    head.into_bytes()
}

/// Returns whether a `Sec-WebSocket-Key` is the base64 of 16 bytes.
fn is_websocket_key(key: &str) -> bool {
    let is_base64_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let Some(digits) = key.strip_suffix("==") else { return false };
    digits.len() == 22 && digits.bytes().all(is_base64_byte)
}
