//! The STUN and TURN servers that clients are told, as `RTCPeerConnection` takes them, with credentials for TURN that
//! end by themselves (draft-uberti-behave-turn-rest-00; coturn calls it `use-auth-secret`).

use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use sha1::{Digest, Sha1};

use crate::config::{CALL_TIME_MAX, Config, TURN_CREDENTIALS_TTL};
use crate::json;

/// The servers, and the secret that is shared with those for TURN.
pub struct Ice {
    /// The JSON of `iceServers`, up to where the credentials go. Empty: there are no servers.
    begin: Vec<u8>,
    /// If there are servers for TURN.
    secret: Option<String>,
}

impl Ice {
    /// The servers of this configuration.
    pub fn new(config: &Config) -> Ice {
        let (turn, stun): (Vec<_>, Vec<_>) =
            config.ice_servers.iter().partition(|url| url.starts_with("turn"));
        let mut begin = Vec::new();
        for urls in [&stun, &turn].into_iter().filter(|urls| !urls.is_empty()) {
            begin.extend_from_slice(if begin.is_empty() { b"[{\"urls\":" } else { b"},{\"urls\":" });
            for (i, url) in urls.iter().enumerate() {
                begin.push(if i == 0 { b'[' } else { b',' });
                json::push_string(&mut begin, url);
            }
            begin.push(b']');
        }
        Ice { begin, secret: config.turn_secret.clone().filter(|_| !turn.is_empty()).map(|secret| secret.0) }
    }

    /// A message, which is a JSON object, with the servers for this peer in it, if there are any: see [`Ice::servers`].
    pub fn add_to(&self, mut text: String, id: &str, now: Duration, until: Option<Duration>) -> String {
        let servers = self.servers(id, now, until);
        if !servers.is_empty() {
            text.pop();
            text.push_str(",\"iceServers\":");
            text.push_str(&servers);
            text.push('}');
        }
        text
    }

    /// The JSON of `iceServers` for this peer, at this time since 1970. Empty: there are none. `until` is when its token
    /// ends: its password ends a call later.
    pub fn servers(&self, id: &str, now: Duration, until: Option<Duration>) -> String {
        if self.begin.is_empty() {
            return String::new();
        }
        let mut json = self.begin.clone();
        if let Some(secret) = &self.secret {
            let last = until.map_or(Duration::MAX, |until| until + CALL_TIME_MAX);
            let username = format!("{}:{}", (now + TURN_CREDENTIALS_TTL).min(last).as_secs(), name(id));
            json.extend_from_slice(b",\"username\":");
            json::push_string(&mut json, &username);
            json.extend_from_slice(b",\"credential\":");
            json::push_string(&mut json, &BASE64.encode(&sign(secret.as_bytes(), &username)));
        }
        json.extend_from_slice(b"}]");
        String::from_utf8(json).expect("strings and ASCII are UTF-8")
    }
}

/// Whom the TURN server sees in its log. Not the id: coturn refuses names with spaces, quotes, backslashes or some words
/// of SQL in them.
fn name(id: &str) -> String {
    HEXLOWER.encode(&Sha1::digest(id)[..8])
}

/// HMAC-SHA1 (RFC 2104).
fn sign(secret: &[u8], text: &str) -> [u8; 20] {
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
        let ice = Ice::new(&Config { ice_servers, turn_secret, ..Config::default() });
        ice.servers(id, Duration::from_secs(seconds), None)
    }

    #[test]
    fn signatures() {
        // RFC 2202 section 3: test cases 1, 2 and 6.
        let larger = "Test Using Larger Than Block-Size Key - Hash Key First";
        for (secret, text, expected) in [
            (&[0x0b; 20][..], "Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
            (b"Jefe", "what do ya want for nothing?", "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (&[0xaa; 80], larger, "aa4ae5e15272d00e95705637ce8a3b55ed402112"),
        ] {
            assert_eq!(HEXLOWER.encode(&sign(secret, text)), expected, "{text}");
        }
    }

    #[test]
    fn what_clients_are_told() {
        assert_eq!(servers(&[], "", "A", 0), "");
        let stun = ["stun:a.example", "stuns:[2001:db8::1]:5349"];
        let told = r#"[{"urls":["stun:a.example","stuns:[2001:db8::1]:5349"]}]"#;
        assert_eq!(servers(&stun, "secret", "A", 0), told);
        // printf A | openssl dgst -sha1 | cut -c -16, and
        // printf 1000043200:6dcd4ce23d88e2ee | openssl dgst -sha1 -hmac north -binary | base64
        let told = concat!(
            r#"[{"urls":["turn:t.example?transport=tcp"],"#,
            r#""username":"1000043200:6dcd4ce23d88e2ee","credential":"e6RJaSjqfkq1ApMm+XsQDWIah1M="}]"#
        );
        assert_eq!(servers(&["turn:t.example?transport=tcp"], "north", "A", 1_000_000_000), told);
        // printf '"é' and printf 43200:abd3b73674a23c7e | openssl dgst -sha1 -hmac north -binary | base64
        let told = concat!(
            r#"[{"urls":["stun:a.example"]},{"urls":["turn:t.example","turns:t.example"],"#,
            r#""username":"43200:abd3b73674a23c7e","credential":"O/06Ktgm7aDGjhSVXjspmwQMVtg="}]"#
        );
        assert_eq!(
            servers(&["turn:t.example", "stun:a.example", "turns:t.example"], "north", "\"é", 0),
            told
        );
    }
}
