//! Arbitrary text as a token: an accepted token is signed and has the claims that serde_json reads.

#![cfg_attr(not(test), no_main)]

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use noroshi::http::token::{Secrets, TokenError};
use serde_json::Value;
use sha2::Sha256;

const SECRET: &[u8] = b"a secret that is thirty-two bytes";
const NOW: Duration = Duration::from_secs(1_800_000_000);

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|data: &[u8]| check(data));

/// The first line is the header and the second one the claims, which are signed here. The whole input is also a token.
pub fn check(data: &[u8]) {
    let secrets = Secrets::parse(SECRET).unwrap();
    if let Ok(text) = std::str::from_utf8(data) {
        let fault = secrets.verify(text, NOW).expect_err("a signature cannot be guessed");
        assert!(matches!(fault, TokenError::Malformed | TokenError::Algorithm | TokenError::Signature));
    }
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let header = lines.next().unwrap();
    let json = lines.next().unwrap_or_default();
    let signed = format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(json));
    let mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap().chain_update(&signed).finalize().into_bytes();
    let token = format!("{signed}.{}", BASE64URL_NOPAD.encode(&mac));
    let Ok(claims) = secrets.verify(&token, NOW) else { return };

    assert!(claims.expires_at + Duration::from_secs(30) > NOW);
    // An unknown claim may be more than a Value can hold.
    let read = |json| serde_json::from_slice::<Value>(json).ok();
    let (Some(header), Some(read)) = (read(header), read(json)) else { return };
    assert!(header["alg"] == "HS256" && header.get("crit").is_none());
    assert!(read["exp"].as_f64().unwrap().floor() >= claims.expires_at.as_secs_f64());
    for (name, claim) in [("room", &claims.room), ("room_prefix", &claims.room_prefix), ("sub", &claims.id)] {
        assert_eq!(read.get(name).map(|value| value.as_str().unwrap()), claim.as_deref());
    }
    for begin in ["nbf", "iat"].iter().filter_map(|name| read.get(name)) {
        assert!(begin.as_f64().unwrap() < NOW.as_secs_f64() + 31.0);
    }
    assert_eq!(secrets.verify(&secrets.sign(&claims), NOW), Ok(claims));
}
