//! Verification of tokens: the examples of the RFCs, and tokens that are almost valid.

use std::time::Duration;

use data_encoding::{BASE64URL, BASE64URL_NOPAD};
use hmac::{Hmac, KeyInit, Mac};
use noroshi::http::token::{Claims, Secrets, TokenError};
use noroshi::limits::TOKEN_BYTES_MAX;
use serde_json::json;
use sha2::{Sha256, Sha384, Sha512};

const SECRET: &str = "a secret that is thirty-two bytes";
const NOW: u64 = 1_800_000_000;

fn secrets() -> Secrets {
    Secrets::parse(SECRET.as_bytes()).unwrap()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns a token with a valid signature over arbitrary content.
fn signed(header: &str, claims: &str) -> String {
    signed_with::<Hmac<Sha256>>(header, claims)
}

/// Signs a header and claims with this algorithm, independent of the header's `alg`.
fn signed_with<M: KeyInit + Mac>(header: &str, claims: &str) -> String {
    let signed = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header.as_bytes()),
        BASE64URL_NOPAD.encode(claims.as_bytes())
    );
    let mac = <M as KeyInit>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(&signed);
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
}

fn verify_claims(claims: &str) -> Result<Claims, TokenError> {
    secrets().verify(&signed(r#"{"alg":"HS256"}"#, claims), at(NOW))
}

fn valid_token() -> (String, Claims) {
    let room = Some("tea*".into());
    let room_prefix = Some("te".into());
    let claims = Claims { expires_at: at(NOW + 60), room, room_prefix, id: Some("狼".into()) };
    (secrets().sign(&claims), claims)
}

/// RFC 7515, appendix A.1, which is also the example of RFC 7519, section 3.1.
#[test]
fn example_of_the_rfcs_is_verified() {
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let secrets = Secrets::parse(&BASE64URL_NOPAD.decode(key.as_bytes()).unwrap()).unwrap();
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
        dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let claims = Claims { expires_at: at(1_300_819_380), ..Claims::default() };
    assert_eq!(secrets.verify(token, at(1_300_819_379)), Ok(claims));
    assert_eq!(secrets.verify(token, at(NOW)), Err(TokenError::Expired));
    // RFC 7519, section 6.1: an unsecured JWT with the same claims.
    let unsecured = "eyJhbGciOiJub25lIn0.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    assert_eq!(secrets.verify(unsecured, at(1_300_819_379)), Err(TokenError::Algorithm));
}

#[test]
fn signed_tokens_are_accepted() {
    let (token, claims) = valid_token();
    assert_eq!(secrets().verify(&token, at(NOW)), Ok(claims));
    let odd = Claims {
        expires_at: at(NOW),
        room: Some("\"*\n".into()),
        room_prefix: Some("\u{1}\\".into()),
        id: Some("a\\ \"b".into()),
    };
    assert_eq!(secrets().verify(&secrets().sign(&odd), at(NOW)), Ok(odd));
}

#[test]
fn altered_parts_are_rejected() {
    let (token, _) = valid_token();
    let refused = |token: &str| secrets().verify(token, at(NOW)).expect_err(token);
    for cut in 0..token.len() {
        refused(&token[..cut]);
        refused(&token[token.len() - cut..]);
    }
    let parts: Vec<&str> = token.split('.').collect();
    for i in 0..parts.len() {
        let with = |part: String| {
            let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[i] = part;
            refused(&parts.join("."))
        };
        with(String::new());
        with(parts[i].repeat(2));
        for odd in ["=", "==", "A", "AA", "+", "/", "-", "_", "%3D", ".", " ", "\n", "é", "\0"] {
            with(format!("{}{odd}", parts[i]));
            with(format!("{odd}{}", parts[i]));
        }
        let bytes = BASE64URL_NOPAD.decode(parts[i].as_bytes()).unwrap();
        assert_eq!(with(BASE64URL.encode(&[&bytes[..], b"!"].concat()) + "="), TokenError::Malformed);
        // Every bit of the token is significant.
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            with(BASE64URL_NOPAD.encode(&bytes));
        }
    }
    // The last character of a signature has two unused bits, and only one encoding of them is accepted.
    let last = token.chars().last().unwrap();
    let alike = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars();
    for other in alike.filter(|other| *other != last) {
        refused(&format!("{}{other}", &token[..token.len() - 1]));
    }
    assert_eq!(refused(""), TokenError::Missing);
    for token in
        [".", "..", "...", "a.b.c", "a.b.c.d", &token.repeat(2), &format!("{token}."), &format!(".{token}")]
    {
        assert_eq!(refused(token), TokenError::Malformed);
    }
}

#[test]
fn three_algorithms_are_accepted() {
    let claims = json!({"exp": NOW + 60}).to_string();
    let verify = |token: String| secrets().verify(&token, at(NOW)).map(|claims| claims.expires_at);
    assert_eq!(verify(signed_with::<Hmac<Sha256>>(r#"{"alg":"HS256"}"#, &claims)), Ok(at(NOW + 60)));
    assert_eq!(verify(signed_with::<Hmac<Sha384>>(r#"{"alg":"HS384"}"#, &claims)), Ok(at(NOW + 60)));
    assert_eq!(verify(signed_with::<Hmac<Sha512>>(r#"{"alg":"HS512"}"#, &claims)), Ok(at(NOW + 60)));
    // A truncated signature is invalid.
    let token = signed_with::<Hmac<Sha512>>(r#"{"alg":"HS512"}"#, &claims);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let half = BASE64URL_NOPAD.encode(&BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()[..32]);
    assert_eq!(verify(format!("{signed}.{half}")), Err(TokenError::Signature));
}

/// Signed with Python's `hmac` and `hashlib`.
#[test]
fn tokens_of_another_implementation_are_accepted() {
    let hs384 = "eyJhbGciOiJIUzM4NCIsInR5cCI6IkpXVCJ9.eyJleHAiOjE4MDAwMDAwNjB9.ezoQ0SKNk53RkGPT1VCMFUh98o6z\
        VnijpmasasJ83tJ_xEKiXmoQpwzokIETs93V";
    let hs512 = "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9.eyJleHAiOjE4MDAwMDAwNjB9.QvubQamBqfrag-CBcW_JYedCBnJC\
        laHygm2OpsgBE0mYRaUMo0r9qumW-W7K6cFFHGQbjAuE-RdBtEIB0j_Ikg";
    for token in [hs384, hs512] {
        let expected = Ok(Claims { expires_at: at(NOW + 60), ..Claims::default() });
        assert_eq!(secrets().verify(token, at(NOW)), expected, "{token}");
    }
}

#[test]
fn other_algorithms_and_critical_headers_are_rejected() {
    let claims = json!({"exp": NOW + 60}).to_string();
    let verify = |header: &str| secrets().verify(&signed(header, &claims), at(NOW));
    for header in [
        r#"{"alg":"HS256"}"#,
        r#"{"typ":"JWT","alg":"HS256"}"#,
        r#" { "alg" : "\u0048S256", "kid" : "1", "typ" : 7 } "#,
    ] {
        assert!(verify(header).is_ok(), "{header}");
    }
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"HS1"}"#,
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"HS256 "}"#,
        r#"{"alg":""}"#,
    ] {
        assert_eq!(verify(header), Err(TokenError::Algorithm), "{header}");
    }
    // Signed with another algorithm than the header names.
    for header in [r#"{"alg":"HS384"}"#, r#"{"alg":"HS512"}"#] {
        assert_eq!(verify(header), Err(TokenError::Signature), "{header}");
    }
    for header in [
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":null}"#,
        r#"{"ALG":"HS256"}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","crit":null}"#,
        r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#,
        r#"{"alg":"HS256"} {}"#,
        r#"{"alg":"HS256"#,
        r#"["HS256"]"#,
        "{}",
        "",
    ] {
        assert_eq!(verify(header), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn claims_of_the_wrong_type_or_duplicated_are_rejected() {
    let exp = format!(r#""exp":{}"#, NOW + 60);
    for more in [
        "",
        r#","room":"","sub":"a""#,
        r#","room_prefix":"","sub":"\u0080 \u00a0""#,
        r#","room":"*","iss":7,"aud":null,"jti":[1,{}],"x":1e999"#,
        r#","nbf":0,"iat":-1"#,
    ] {
        assert!(verify_claims(&format!("{{{exp}{more}}}")).is_ok(), "{more}");
    }
    let long = format!(r#","sub":"{}""#, "x".repeat(129));
    for more in [
        r#","room":null"#,
        r#","room":7"#,
        r#","room":["tea"]"#,
        r#","sub":null"#,
        r#","sub":7"#,
        r#","sub":"""#,
        r#","sub":"\ud800""#,
        r#","sub":"a\u0000""#,
        r#","sub":"a\nb""#,
        r#","sub":"\u001f""#,
        r#","sub":"\u007f""#,
        r#","room_prefix":null"#,
        r#","room_prefix":["tea"]"#,
        r#","room_prefix":"a","room_prefix":"b""#,
        &long,
        r#","nbf":"0""#,
        r#","iat":true"#,
        r#","room":"a","room":"b""#,
        r#","sub":"a","\u0073ub":"a""#,
        &format!(",{exp}"),
        ",",
        "}",
    ] {
        assert_eq!(verify_claims(&format!("{{{exp}{more}}}")), Err(TokenError::Malformed), "{more}");
    }
    let secrets = secrets();
    let not_utf8 = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(br#"{"alg":"HS256"}"#),
        BASE64URL_NOPAD.encode(b"{\"\xff\":1}")
    );
    assert_eq!(secrets.verify(&format!("{not_utf8}.AAAA"), at(NOW)), Err(TokenError::Malformed));
}

#[test]
fn dates_are_accepted_in_all_json_number_formats() {
    let until =
        |exp: &str| verify_claims(&format!(r#"{{"exp":{exp}}}"#)).map(|claims| claims.expires_at.as_secs());
    assert_eq!(until("1800000060"), Ok(NOW + 60));
    assert_eq!(until("1800000060.9"), Ok(NOW + 60));
    assert_eq!(until("1.80000006e9"), Ok(NOW + 60));
    assert_eq!(until("18000000600E-1"), Ok(NOW + 60));
    // The end of the year 9999, which some issuers use for "never".
    assert_eq!(until("253402300799"), Ok(253_402_300_799));
    assert_eq!(until("999999999999.9"), Ok(999_999_999_999));
    for late in ["1000000000000", "1800000060000", "1e300", "1e400", "1e99999999999999999999", "18e+9999"] {
        assert_eq!(until(late), Err(TokenError::ExpiryMilliseconds), "{late}");
    }
    assert_eq!(until("0.0180000006000e11"), Ok(NOW + 60));
    assert_eq!(until("99999999999999999999999999999999"), Err(TokenError::ExpiryMilliseconds));
    for expired in ["0", "-0", "-1", "-1e300", "-1e400", "1e-400", "1e-99999999999999999999", "0.5", "0e9999"]
    {
        assert_eq!(until(expired), Err(TokenError::Expired), "{expired}");
    }
    for bad in [
        r#""1800000060""#,
        "null",
        "true",
        "[]",
        "{}",
        "+1800000060",
        "01800000060",
        "1800000060.",
        "0x6b49d23c",
        "NaN",
        "Infinity",
        "inf",
        "1_800_000_060",
    ] {
        assert_eq!(until(bad), Err(TokenError::Malformed), "{bad}");
    }
    assert_eq!(verify_claims("{}"), Err(TokenError::Malformed), "exp is required");
}

#[test]
fn dates_in_milliseconds_have_their_own_error() {
    let milliseconds = 1000 * NOW;
    let exp = verify_claims(&format!(r#"{{"exp":{milliseconds},"iat":{milliseconds}}}"#));
    assert_eq!(exp, Err(TokenError::ExpiryMilliseconds));
    assert_eq!(TokenError::ExpiryMilliseconds.message(), "exp is in milliseconds; expected seconds");
    for name in ["nbf", "iat"] {
        let claims = verify_claims(&format!(r#"{{"exp":{},"{name}":{milliseconds}}}"#, NOW + 60));
        assert_eq!(claims, Err(TokenError::BeginMilliseconds), "{name}");
    }
    assert_eq!(TokenError::BeginMilliseconds.message(), "nbf or iat is in milliseconds; expected seconds");
}

#[test]
fn expiry_follows_the_wall_clock() {
    let claims = json!({"exp": NOW + 60, "nbf": NOW, "iat": NOW - 10}).to_string();
    let token = signed(r#"{"alg":"HS256"}"#, &claims);
    let secrets = secrets();
    let verify = |now: u64| secrets.verify(&token, at(now)).map(|_| ());
    for (now, expected) in [
        (NOW, Ok(())),
        (NOW + 89, Ok(())),
        (NOW + 90, Err(TokenError::Expired)),
        (u64::MAX / 2, Err(TokenError::Expired)),
        (NOW - 30, Ok(())),
        (NOW - 31, Err(TokenError::NotYetValid)),
        (0, Err(TokenError::NotYetValid)),
        (NOW, Ok(())),
    ] {
        assert_eq!(verify(now), expected, "{now}");
    }
    let later = |name: &str| verify_claims(&format!(r#"{{"exp":{},"{name}":{}}}"#, NOW + 60, NOW + 31));
    assert_eq!((later("nbf"), later("iat")), (Err(TokenError::NotYetValid), Err(TokenError::NotYetValid)));
}

#[test]
fn token_length_is_limited() {
    let claims = |padding: usize| format!(r#"{{"exp":{},"x":"{}"}}"#, NOW + 60, "x".repeat(padding));
    let token = |padding| signed(r#"{"alg":"HS256"}"#, &claims(padding));
    let longest =
        (0..TOKEN_BYTES_MAX).map(token).take_while(|token| token.len() <= TOKEN_BYTES_MAX).last().unwrap();
    assert!(secrets().verify(&longest, at(NOW)).is_ok());
    for padding in [TOKEN_BYTES_MAX, 2 * TOKEN_BYTES_MAX] {
        assert_eq!(secrets().verify(&token(padding), at(NOW)), Err(TokenError::Malformed));
    }
}

#[test]
fn room_and_room_prefix_are_separate_claims() {
    let allows = |room: Option<&str>, room_prefix: Option<&str>, name: &str| {
        let room = room.map(Box::from);
        let room_prefix = room_prefix.map(Box::from);
        Claims { room, room_prefix, ..Claims::default() }.allows(name)
    };
    for (room, prefix, name) in [
        (Some("tea"), None, "tea"),
        (Some(""), None, ""),
        (Some("te.a"), None, "te.a"),
        (Some("*"), None, "*"),
        (Some("tea*"), None, "tea*"),
        (None, Some("tea"), "tea"),
        (None, Some("tea"), "teapot"),
        (None, Some(""), ""),
        (None, Some(""), "tea"),
        (None, Some("*"), "*a"),
        (Some("teapot"), Some("tea"), "teapot"),
        (None, None, "tea"),
        (None, None, ""),
    ] {
        assert!(allows(room, prefix, name), "{room:?} {prefix:?} {name}");
    }
    for (room, prefix, name) in [
        (Some("tea"), None, "teapot"),
        (Some("tea"), None, "te"),
        (Some("tea"), None, "Tea"),
        (Some("TEA"), None, "tea"),
        (Some("tea*"), None, "teapot"),
        (Some("tea*"), None, "tea"),
        (Some("*"), None, "tea"),
        (Some("*"), None, ""),
        (Some("te%61"), None, "tea"),
        (Some("tea"), None, "te%61"),
        (Some("tea"), None, ""),
        (Some(""), None, "tea"),
        (None, Some("tea"), "te"),
        (None, Some("tea"), "Teapot"),
        (None, Some("tea"), ""),
        (None, Some("tea*"), "teapot"),
        (Some("teapot"), Some("coffee"), "teapot"),
        (Some("coffee"), Some("tea"), "teapot"),
    ] {
        assert!(!allows(room, prefix, name), "{room:?} {prefix:?} {name}");
    }
}

#[test]
fn byte_order_mark_is_not_part_of_the_secret() {
    let (token, claims) = valid_token();
    let with_mark = Secrets::parse(format!("\u{feff}{SECRET}\r\n").as_bytes()).unwrap();
    assert_eq!(with_mark.verify(&token, at(NOW)), Ok(claims));
    let comment = format!("\u{feff}# a comment\n{SECRET}");
    assert!(Secrets::parse(comment.as_bytes()).unwrap().verify(&token, at(NOW)).is_ok());
    let utf16 = |order: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("\u{feff}{SECRET}\n").encode_utf16().flat_map(order).collect()
    };
    for file in [utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
        assert_eq!(Secrets::parse(&file).unwrap_err(), "expected UTF-8, got UTF-16: save the file as UTF-8");
    }
}

#[test]
fn several_secrets_are_accepted() {
    let other = "another secret of more than thirty-two bytes";
    let (old, _) = valid_token();
    for file in [
        format!("{other}\n{SECRET}\n"),
        format!("# Since Monday.\r\n {other} \r\n\r\n# Until Sunday.\r\n{SECRET}"),
    ] {
        let both = Secrets::parse(file.as_bytes()).unwrap();
        assert!(both.verify(&old, at(NOW)).is_ok());
        let new = both.sign(&Claims { expires_at: at(NOW), ..Claims::default() });
        assert!(both.verify(&new, at(NOW)).is_ok());
        assert_eq!(secrets().verify(&new, at(NOW)), Err(TokenError::Signature));
        let only_new = Secrets::parse(other.as_bytes()).unwrap();
        assert!(only_new.verify(&new, at(NOW)).is_ok());
        assert_eq!(only_new.verify(&old, at(NOW)), Err(TokenError::Signature));
        assert_eq!(format!("{both:?}"), "Secrets");
    }
    for (file, word) in [
        (String::new(), "no secret"),
        (" \n# a comment that has more than thirty-two bytes\n".to_owned(), "no secret"),
        (SECRET[..31].to_owned(), "at least 32 bytes"),
        (format!("{SECRET}\nshort"), "at least 32 bytes"),
        (format!("{SECRET}\n{SECRET}\n{SECRET}"), "at most 2"),
    ] {
        assert!(Secrets::parse(file.as_bytes()).unwrap_err().contains(word), "{file}");
    }
}
