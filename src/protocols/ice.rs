//! The STUN and TURN servers that clients receive, in the format of `RTCPeerConnection`'s `iceServers`.
//!
//! TURN credentials are temporary: the username contains the time at which they expire, and the password is its HMAC with
//! a secret that this server and the TURN servers share (draft-uberti-behave-turn-rest-00; `use-auth-secret` in coturn).
//! HMAC, SHA-1 and Base64 are those of crates. The crate turn 0.17 could compute the credentials; it brings 76 more crates.
//! The beginning of the JSON never changes and is written once: 11,300 instructions and 7 allocations a peer, with the HMAC,
//! against 13,400 and 9 with serde_json 1.0.154 (valgrind's callgrind).

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest, Sha1};

use crate::config::Config;
use crate::json;
use crate::limits::{CALL_TIME_MAX, TURN_CREDENTIALS_TTL};

/// Upper bound in bytes of the fields `username` and `credential`, and of the brackets that close the array.
const CREDENTIALS_BYTES: usize = 128;

/// The STUN and TURN servers, and the secret for TURN credentials.
pub struct IceServers {
    /// The JSON of `iceServers`, up to the credentials. Empty if there are no servers.
    json_prefix: Vec<u8>,
    /// The secret shared with the TURN servers, if there are any.
    turn_secret: Option<String>,
}

impl IceServers {
    /// Creates the servers of a configuration.
    pub fn new(config: &Config) -> IceServers {
        let (turn, stun): (Vec<_>, Vec<_>) =
            config.ice_servers.iter().partition(|url| url.starts_with("turn"));
        let mut json_prefix = Vec::new();
        // TURN servers come last, because their credentials are appended.
        for urls in [&stun, &turn] {
            if urls.is_empty() {
                continue;
            }
            let begin: &[u8] = if json_prefix.is_empty() { b"[{\"urls\":" } else { b"},{\"urls\":" };
            json_prefix.extend_from_slice(begin);
            for (index, url) in urls.iter().enumerate() {
                json_prefix.push(if index == 0 { b'[' } else { b',' });
                json::push_string(&mut json_prefix, url);
            }
            json_prefix.push(b']');
        }
        let turn_secret = match &config.turn_secret {
            Some(secret) if !turn.is_empty() => Some(secret.0.clone()),
            _ => None,
        };
        IceServers { json_prefix, turn_secret }
    }

    /// Returns whether there are no servers.
    pub fn is_empty(&self) -> bool {
        self.json_prefix.is_empty()
    }

    /// Returns an upper bound of the bytes of [`IceServers::json`], without computing credentials.
    pub fn json_bytes_max(&self) -> usize {
        self.json_prefix.len() + CREDENTIALS_BYTES
    }

    /// Adds the field `iceServers` to a message, a JSON object, if there are servers.
    ///
    /// The arguments are those of [`IceServers::json`].
    pub fn append_to(
        &self,
        mut message: String,
        id: &str,
        now: Duration,
        token_expires_at: Option<Duration>,
    ) -> String {
        let servers = self.json(id, now, token_expires_at);
        if !servers.is_empty() {
            message.pop();
            message.push_str(",\"iceServers\":");
            message.push_str(&servers);
            message.push('}');
        }
        message
    }

    /// Returns the JSON of `iceServers` for a peer, or an empty string without servers.
    ///
    /// Times are since 1970. Credentials expire after [`TURN_CREDENTIALS_TTL`], and not later than [`CALL_TIME_MAX`] after
    /// the token of the peer.
    pub fn json(&self, id: &str, now: Duration, token_expires_at: Option<Duration>) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut json = self.json_prefix.clone();
        if let Some(secret) = &self.turn_secret {
            let expires_at_max =
                token_expires_at.map_or(Duration::MAX, |expires_at| expires_at + CALL_TIME_MAX);
            let expires_at = (now + TURN_CREDENTIALS_TTL).min(expires_at_max);
            let username = format!("{}:{}", expires_at.as_secs(), hash_id(id));
            let password = BASE64.encode(&hmac_sha1(secret.as_bytes(), &username));
            json.extend_from_slice(b",\"username\":");
            json::push_string(&mut json, &username);
            json.extend_from_slice(b",\"credential\":");
            json::push_string(&mut json, &password);
        }
        json.extend_from_slice(b"}]");
        String::from_utf8(json).expect("strings and ASCII are UTF-8")
    }
}

/// Returns the part of the username that identifies the peer in the log of the TURN server.
///
/// It is a hash, because coturn rejects usernames with spaces, quotes, backslashes or some SQL keywords, which an id may
/// contain.
fn hash_id(id: &str) -> String {
    HEXLOWER.encode(&Sha1::digest(id)[..8])
}

/// Returns the HMAC-SHA1 of a text (RFC 2104).
fn hmac_sha1(secret: &[u8], text: &str) -> [u8; 20] {
    let hmac = Hmac::<Sha1>::new_from_slice(secret).expect("HMAC takes keys of any length");
    hmac.chain_update(text).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn servers(urls: &[&str], secret: &str, id: &str, seconds: u64) -> String {
        let ice_servers = urls.iter().map(|url| (*url).to_owned()).collect();
        let turn_secret = Some(Secret(secret.to_owned()));
        let ice = IceServers::new(&Config { ice_servers, turn_secret, ..Config::default() });
        let json = ice.json(id, Duration::from_secs(seconds), None);
        assert_eq!(ice.is_empty(), json.is_empty());
        assert!(json.len() <= ice.json_bytes_max());
        json
    }

    #[test]
    fn hmac_sha1_matches_rfc_2202() {
        // RFC 2202 section 3: test cases 1, 2 and 6.
        let larger = "Test Using Larger Than Block-Size Key - Hash Key First";
        for (secret, text, expected) in [
            (&[0x0b; 20][..], "Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
            (b"Jefe", "what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (&[0xaa; 80], larger, "aa4ae5e15272d00e95705637ce8a3b55ed402112"),
        ] {
            assert_eq!(HEXLOWER.encode(&hmac_sha1(secret, text)), expected, "{text}");
        }
    }

    #[test]
    fn longest_credentials_are_within_the_bound() {
        let seconds = u64::MAX - TURN_CREDENTIALS_TTL.as_secs();
        let json = servers(&["turn:t.example"], "north", "A", seconds);
        assert!(json.contains("18446744073709551615:"), "{json}");
    }

    #[test]
    fn clients_receive_servers_with_turn_credentials() {
        assert_eq!(servers(&[], "", "A", 0), "");
        let stun = ["stun:a.example", "stuns:[2001:db8::1]:5349"];
        let expected = r#"[{"urls":["stun:a.example","stuns:[2001:db8::1]:5349"]}]"#;
        assert_eq!(servers(&stun, "secret", "A", 0), expected);
        // printf A | openssl dgst -sha1 | cut -c -16, and
        // printf 1000043200:6dcd4ce23d88e2ee | openssl dgst -sha1 -hmac north -binary | base64
        let expected = concat!(
            r#"[{"urls":["turn:t.example?transport=tcp"],"#,
            r#""username":"1000043200:6dcd4ce23d88e2ee","credential":"e6RJaSjqfkq1ApMm+XsQDWIah1M="}]"#
        );
        assert_eq!(servers(&["turn:t.example?transport=tcp"], "north", "A", 1_000_000_000), expected);
        // printf '"é' and printf 43200:abd3b73674a23c7e | openssl dgst -sha1 -hmac north -binary | base64
        let expected = concat!(
            r#"[{"urls":["stun:a.example"]},{"urls":["turn:t.example","turns:t.example"],"#,
            r#""username":"43200:abd3b73674a23c7e","credential":"O/06Ktgm7aDGjhSVXjspmwQMVtg="}]"#
        );
        assert_eq!(
            servers(&["turn:t.example", "stun:a.example", "turns:t.example"], "north", "\"é", 0),
            expected
        );
    }
}
