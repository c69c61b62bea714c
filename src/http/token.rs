//! Verifies and signs tokens: which rooms a peer may enter, under which id, and until when.
//!
//! A token is a JSON Web Token (RFC 7519), signed with HS256, HS384 or HS512 (RFC 7518 section 3.2). No other algorithm is
//! accepted.
//!
//! This module is pure: it turns a text and the current time into [`Claims`] or a [`TokenError`]. It does not know where
//! in a request a token was found.

use std::fmt;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};

use crate::id;
use crate::json;
use crate::limits::{
    TOKEN_BYTES_MAX, TOKEN_DATE_SECONDS_MAX, TOKEN_LEEWAY, TOKEN_SECRET_BYTES_MIN, TOKEN_SECRETS_MAX,
};
use crate::named_enum::named_enum;

/// The secrets that sign and verify tokens.
#[derive(Clone)]
pub struct Secrets {
    /// The first key signs; a token verified by any of them is valid.
    keys: Vec<Box<[u8]>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// The claims of a verified token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `exp`: when the token expires, since 1970.
    pub expires_at: Duration,
    /// `room`: the only room that the peer may enter.
    pub room: Option<Box<str>>,
    /// `room_prefix`: the prefix of the names of all rooms that the peer may enter.
    pub room_prefix: Option<Box<str>>,
    /// `sub`: the id of the peer.
    pub id: Option<Box<str>>,
}

named_enum! {
    /// The reason why a token is rejected.
    pub enum TokenError {
        /// There is no token.
        Missing = "missing",
        /// It is not a JWT with valid claims, or there are two tokens.
        Malformed = "malformed",
        /// `alg` is not HS256, HS384 or HS512.
        Algorithm = "algorithm",
        /// None of the secrets verifies its signature.
        Signature = "signature",
        /// `exp` is in the past.
        Expired = "expired",
        /// `nbf` or `iat` is in the future.
        NotYetValid = "not_yet_valid",
        /// `exp` is in milliseconds instead of seconds.
        ExpiryMilliseconds = "exp_milliseconds",
        /// `nbf` or `iat` is in milliseconds instead of seconds.
        BeginMilliseconds = "begin_milliseconds",
        /// It does not permit this room.
        Room = "room",
        /// It does not permit this id.
        Id = "id",
    }
}

impl TokenError {
    /// Returns a message for people.
    pub fn message(self) -> &'static str {
        match self {
            TokenError::Missing => "missing token",
            TokenError::Malformed => {
                "the token is invalid: expected a JWT with exp, signed with HS256, HS384 or HS512"
            }
            TokenError::Algorithm => {
                "the token's alg is not HS256, HS384 or HS512; sign it with one of these"
            }
            TokenError::Signature => "the token's signature matches none of the server's secrets",
            TokenError::Expired => "the token has expired",
            TokenError::NotYetValid => "the token is not yet valid",
            TokenError::ExpiryMilliseconds => "exp is in milliseconds; expected seconds",
            TokenError::BeginMilliseconds => "nbf or iat is in milliseconds; expected seconds",
            TokenError::Room => "the token is for another room",
            TokenError::Id => "the token is for another id",
        }
    }
}

impl Secrets {
    /// Parses the content of a secret file.
    ///
    /// Each line holds one secret, of any bytes. Whitespace around it is ignored, as are empty lines and lines that begin
    /// with `#`.
    ///
    /// # Errors
    /// The file is UTF-16, holds no secret or more than [`TOKEN_SECRETS_MAX`], or a secret is shorter than
    /// [`TOKEN_SECRET_BYTES_MIN`] (RFC 7518 section 3.2).
    pub fn parse(file: &[u8]) -> Result<Secrets, String> {
        let file = strip_byte_order_mark(file)?;
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut keys = Vec::new();
        for secret in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
            if secret.len() < TOKEN_SECRET_BYTES_MIN {
                let bytes = secret.len();
                return Err(format!(
                    "expected secrets of at least {TOKEN_SECRET_BYTES_MIN} bytes, got one of {bytes}"
                ));
            }
            keys.push(Box::from(secret));
        }
        match keys.len() {
            0 => Err("expected a secret, got a file with no secret".to_owned()),
            1..=TOKEN_SECRETS_MAX => Ok(Secrets { keys }),
            count => Err(format!(
                "expected at most {TOKEN_SECRETS_MAX} secrets (the current and the previous one), got {count}"
            )),
        }
    }

    /// Verifies a token at a time since 1970 and returns its claims.
    ///
    /// # Errors
    /// The reason why the token is rejected. An empty token counts as a missing one.
    pub fn verify(&self, token: &str, now: Duration) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let algorithm = Algorithm::from_header(&decode_text(header)?)?;
        let signature = decode_bytes(signature)?;
        let claims = decode_text(claims)?;
        if !self.keys.iter().any(|key| algorithm.verifies(key, signed, &signature)) {
            return Err(TokenError::Signature);
        }
        Claims::parse(&claims, now)
    }

    /// Verifies a token that must permit this room and this id.
    ///
    /// An empty token counts as missing.
    ///
    /// # Errors
    /// The reason why the token is rejected.
    pub fn admit(&self, token: &str, room: &str, id: &str, now: Duration) -> Result<Claims, TokenError> {
        let claims = self.verify(token, now)?;
        if !claims.allows(room) {
            return Err(TokenError::Room);
        }
        match claims.id.as_deref() {
            Some(permitted) if permitted != id => Err(TokenError::Id),
            _ => Ok(claims),
        }
    }

    /// Creates a token with these claims, signed with the first secret.
    pub fn sign(&self, claims: &Claims) -> String {
        let mut json = format!("{{\"exp\":{}", claims.expires_at.as_secs()).into_bytes();
        let texts = [("room", &claims.room), ("room_prefix", &claims.room_prefix), ("sub", &claims.id)];
        for (name, value) in texts {
            if let Some(value) = value {
                json.extend_from_slice(format!(",\"{name}\":").as_bytes());
                json::push_string(&mut json, value);
            }
        }
        json.push(b'}');
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(&json));
        let signature = mac::<Hmac<Sha256>>(&self.keys[0], &signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }
}

impl Claims {
    /// Returns whether the peer may enter this room.
    ///
    /// `room` is a whole name and `room_prefix` the beginning of a name; if the token has both, both must match. The
    /// default room has the empty name.
    pub fn allows(&self, room: &str) -> bool {
        let matches_name = self.room.as_deref().is_none_or(|name| room == name);
        let matches_prefix = self.room_prefix.as_deref().is_none_or(|prefix| room.starts_with(prefix));
        matches_name && matches_prefix
    }

    fn parse(json: &str, now: Duration) -> Result<Claims, TokenError> {
        let names = ["exp", "nbf", "iat", "room", "room_prefix", "sub"];
        let [exp, nbf, iat, room, room_prefix, sub] = parse_unique_fields(json, names)?;
        let expires_at = exp.ok_or(TokenError::Malformed).and_then(parse_numeric_date)?;
        let begins =
            [nbf, iat].into_iter().flatten().map(parse_numeric_date).collect::<Result<Vec<_>, _>>()?;
        let claims = Claims {
            expires_at,
            room: room.map(parse_text).transpose()?,
            room_prefix: room_prefix.map(parse_text).transpose()?,
            id: sub.map(parse_text).transpose()?,
        };
        if claims.id.as_deref().is_some_and(|id| !id::is_valid(id)) {
            return Err(TokenError::Malformed);
        }
        let is_in_milliseconds = |date: &Duration| date.as_secs() > TOKEN_DATE_SECONDS_MAX;
        if is_in_milliseconds(&expires_at) {
            return Err(TokenError::ExpiryMilliseconds);
        }
        if begins.iter().any(is_in_milliseconds) {
            return Err(TokenError::BeginMilliseconds);
        }
        if now >= expires_at + TOKEN_LEEWAY {
            return Err(TokenError::Expired);
        }
        if begins.iter().any(|begin| *begin > now + TOKEN_LEEWAY) {
            return Err(TokenError::NotYetValid);
        }
        Ok(claims)
    }
}

/// The algorithms that may sign a token.
///
/// All are HMAC with the same secret, so that a token cannot select a weaker check.
#[derive(Clone, Copy)]
enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    /// Parses the header of a token.
    ///
    /// `crit` names extensions that the recipient must understand (RFC 7515 section 4.1.11). None is supported, so a
    /// header with `crit` is rejected.
    fn from_header(json: &str) -> Result<Algorithm, TokenError> {
        let [alg, crit] = parse_unique_fields(json, ["alg", "crit"])?;
        let name = alg.and_then(json::parse_string).ok_or(TokenError::Malformed)?;
        if crit.is_some() {
            return Err(TokenError::Malformed);
        }
        match &*name {
            "HS256" => Ok(Algorithm::Hs256),
            "HS384" => Ok(Algorithm::Hs384),
            "HS512" => Ok(Algorithm::Hs512),
            _ => Err(TokenError::Algorithm),
        }
    }

    /// Returns whether the signature belongs to the text. The comparison takes constant time.
    fn verifies(self, key: &[u8], signed: &str, signature: &[u8]) -> bool {
        let result = match self {
            Algorithm::Hs256 => mac::<Hmac<Sha256>>(key, signed).verify_slice(signature),
            Algorithm::Hs384 => mac::<Hmac<Sha384>>(key, signed).verify_slice(signature),
            Algorithm::Hs512 => mac::<Hmac<Sha512>>(key, signed).verify_slice(signature),
        };
        result.is_ok()
    }
}

/// Returns the message authentication code of a text, not yet finalized.
fn mac<M: KeyInit + Mac>(key: &[u8], text: &str) -> M {
    let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.chain_update(text)
}

/// Returns the content of a secret file without a UTF-8 byte order mark.
///
/// # Errors
/// The file begins with a byte order mark of UTF-16. Its bytes would not be the secret that signs the tokens.
pub fn strip_byte_order_mark(file: &[u8]) -> Result<&[u8], &'static str> {
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return Err("expected UTF-8, got UTF-16: save the file as UTF-8");
    }
    Ok(file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file))
}

/// Returns the raw values of the named fields of a JSON object.
///
/// Other fields are ignored. A named field that occurs twice is an error, because parsers disagree on which one counts.
fn parse_unique_fields<'a, const N: usize>(
    json: &'a str,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], TokenError> {
    let mut values = [None; N];
    let mut has_duplicate = false;
    let object = json::parse_object(json, |key, value| {
        if let Some(index) = names.iter().position(|name| *name == key) {
            let previous = values[index].replace(value);
            has_duplicate |= previous.is_some();
        }
    });
    if object.is_none() || has_duplicate {
        return Err(TokenError::Malformed);
    }
    Ok(values)
}

/// Parses a `NumericDate` (RFC 7519 section 2), truncated to whole seconds.
///
/// A negative date becomes 0. A date after [`TOKEN_DATE_SECONDS_MAX`] becomes that plus one second. The text is a valid
/// JSON number of any length and form; a parser for all of them as a number would be large, so the digits before the
/// decimal point are added up here.
fn parse_numeric_date(json: &str) -> Result<Duration, TokenError> {
    const SECONDS_MAX: u64 = TOKEN_DATE_SECONDS_MAX + 1;
    const EXPONENT_MAX: i64 = TOKEN_BYTES_MAX as i64;

    let number = json.strip_prefix('-').unwrap_or(json);
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(TokenError::Malformed);
    }
    let is_negative = number != json;
    if is_negative {
        return Ok(Duration::ZERO);
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    // An exponent that overflows is as good as the largest one.
    let overflow = if exponent.starts_with('-') { -EXPONENT_MAX } else { EXPONENT_MAX };
    let exponent = exponent.parse().unwrap_or(overflow).clamp(-EXPONENT_MAX, EXPONENT_MAX);
    let integer_digits = whole.len() as i64 + exponent;
    let mut digits = whole.bytes().chain(fraction.bytes()).map(|digit| u64::from(digit - b'0'));
    let mut seconds = 0;
    for _ in 0..integer_digits {
        let digit = digits.next().unwrap_or(0);
        seconds = SECONDS_MAX.min(10 * seconds + digit);
    }
    Ok(Duration::from_secs(seconds))
}

fn parse_text(json: &str) -> Result<Box<str>, TokenError> {
    json::parse_string(json).map(Box::from).ok_or(TokenError::Malformed)
}

fn decode_bytes(base64: &str) -> Result<Vec<u8>, TokenError> {
    BASE64URL_NOPAD.decode(base64.as_bytes()).map_err(|_| TokenError::Malformed)
}

fn decode_text(base64: &str) -> Result<String, TokenError> {
    String::from_utf8(decode_bytes(base64)?).map_err(|_| TokenError::Malformed)
}
