//! Tokens: who may come in, into which rooms, under which id, and until when. Whoever has a secret signs them: JSON Web
//! Tokens (RFC 7519) with HS256, HS384 or HS512 (RFC 7518 section 3.2), and with nothing else.
//!
//! Pure: text and the time go in, [`Claims`] or a [`Fault`] come out. Where a token was found is not known here.

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

/// What tokens are signed with.
#[derive(Clone)]
pub struct Secrets {
    /// The first signs, any verifies.
    keys: Vec<Box<[u8]>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// What a token says, once it is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// `exp`: when it ends, since 1970.
    pub until: Duration,
    /// `room`: the only room.
    pub room: Option<Box<str>>,
    /// `room_prefix`: the prefix of all its rooms.
    pub room_prefix: Option<Box<str>>,
    /// `sub`: the id that its bearer speaks as.
    pub id: Option<Box<str>>,
}

named_enum! {
    /// Why a request may not come in.
    pub enum Fault {
        /// There is no token.
        Missing = "missing",
        /// It is no token of the kind that is signed here, or there are two.
        Malformed = "malformed",
        /// It names an algorithm that is not used here.
        Algorithm = "algorithm",
        /// It is signed with none of our secrets, or it was changed.
        Signature = "signature",
        /// Its time is over.
        Expired = "expired",
        /// Its time has not begun, or it comes from the future.
        NotYetValid = "not_yet_valid",
        /// `exp` is no number of seconds.
        ExpiryMilliseconds = "exp_milliseconds",
        /// `nbf` or `iat` is no number of seconds.
        BeginMilliseconds = "begin_milliseconds",
        /// It is for another room.
        Room = "room",
        /// It is for another id.
        Id = "id",
    }
}

impl Fault {
    /// A sentence for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Fault::Missing => "a token is needed here",
            Fault::Malformed => "that is no token (a JWT with exp, signed with HS256, HS384 or HS512)",
            Fault::Algorithm => "the token's alg is not HS256, HS384 or HS512; sign it with one of these",
            Fault::Signature => "the token is not signed by this server's operator",
            Fault::Expired => "the token has expired",
            Fault::NotYetValid => "the token is not yet valid",
            Fault::ExpiryMilliseconds => "exp is in milliseconds; expected seconds",
            Fault::BeginMilliseconds => "nbf or iat is in milliseconds; expected seconds",
            Fault::Room => "the token is for another room",
            Fault::Id => "the token is for another id",
        }
    }
}

impl Secrets {
    /// Reads a file of secrets: one a line, of any bytes, without the space around it; `#` begins a comment.
    ///
    /// # Errors
    /// It is UTF-16, there is no secret, or too many of them, or one is too short to resist guessing (RFC 7518 section 3.2).
    pub fn parse(file: &[u8]) -> Result<Secrets, String> {
        let file = strip_byte_order_mark(file)?;
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut keys = Vec::new();
        for secret in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
            if secret.len() < TOKEN_SECRET_BYTES_MIN {
                return Err(format!("a secret has at least {TOKEN_SECRET_BYTES_MIN} bytes"));
            }
            keys.push(Box::from(secret));
        }
        match keys.len() {
            0 => Err("there is no secret in it".to_owned()),
            1..=TOKEN_SECRETS_MAX => Ok(Secrets { keys }),
            _ => Err(format!("at most {TOKEN_SECRETS_MAX} secrets: a new one, and the one before it")),
        }
    }

    /// What this token says, at this time since 1970.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn verify(&self, token: &str, now: Duration) -> Result<Claims, Fault> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Fault::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Fault::Malformed)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Fault::Malformed);
        }
        let algorithm = Algorithm::of_header(&decode(header)?)?;
        let (signature, claims) = (bytes(signature)?, decode(claims)?);
        if !self.keys.iter().any(|key| algorithm.verifies(key, signed, &signature)) {
            return Err(Fault::Signature);
        }
        Claims::parse(&claims, now)
    }

    /// The same, if it lets its bearer into this room and, where the id is known by now, under this id. An empty token is
    /// none.
    ///
    /// # Errors
    /// Why it does not.
    pub fn admit(&self, token: &str, room: &str, id: Option<&str>, now: Duration) -> Result<Claims, Fault> {
        let claims = if token.is_empty() { Err(Fault::Missing) } else { self.verify(token, now) }?;
        match (&claims.id, id) {
            _ if !claims.allows(room) => Err(Fault::Room),
            (Some(own), Some(id)) if **own != *id => Err(Fault::Id),
            _ => Ok(claims),
        }
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Claims) -> String {
        let mut json = format!("{{\"exp\":{}", claims.until.as_secs()).into_bytes();
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
        let signature = keyed::<Hmac<Sha256>>(&self.keys[0], &signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }
}

impl Claims {
    /// Returns whether its bearer may be in this room. `room` is the whole name, `room_prefix` its begin; if both are there, both
    /// must hold. The default room has the empty name.
    pub fn allows(&self, room: &str) -> bool {
        let is_named = self.room.as_deref().is_none_or(|named| room == named);
        let begins_so = self.room_prefix.as_deref().is_none_or(|prefix| room.starts_with(prefix));
        is_named && begins_so
    }

    fn parse(json: &str, now: Duration) -> Result<Claims, Fault> {
        let names = ["exp", "nbf", "iat", "room", "room_prefix", "sub"];
        let [exp, nbf, iat, room, room_prefix, sub] = fields(json, names)?;
        let until = exp.ok_or(Fault::Malformed).and_then(date)?;
        let begins = [nbf, iat].into_iter().flatten().map(date).collect::<Result<Vec<_>, _>>()?;
        let claims = Claims {
            until,
            room: room.map(text).transpose()?,
            room_prefix: room_prefix.map(text).transpose()?,
            id: sub.map(text).transpose()?,
        };
        if claims.id.as_deref().is_some_and(|id| !id::is_valid(id)) {
            return Err(Fault::Malformed);
        }
        let is_in_milliseconds = |date: &Duration| date.as_secs() > TOKEN_DATE_SECONDS_MAX;
        if is_in_milliseconds(&until) {
            return Err(Fault::ExpiryMilliseconds);
        }
        if begins.iter().any(is_in_milliseconds) {
            return Err(Fault::BeginMilliseconds);
        }
        if now >= until + TOKEN_LEEWAY {
            return Err(Fault::Expired);
        }
        if begins.iter().any(|begin| *begin > now + TOKEN_LEEWAY) {
            return Err(Fault::NotYetValid);
        }
        Ok(claims)
    }
}

/// The algorithms with which a token may be signed. All of them are HMAC with the same secret: none lets a bearer choose
/// a weaker check.
#[derive(Clone, Copy)]
enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
}

impl Algorithm {
    /// Reads the header of a token. `crit` names what must be understood (RFC 7515 section 4.1.11), and nothing is.
    fn of_header(json: &str) -> Result<Algorithm, Fault> {
        let [alg, crit] = fields(json, ["alg", "crit"])?;
        let name = alg.and_then(json::string).ok_or(Fault::Malformed)?;
        if crit.is_some() {
            return Err(Fault::Malformed);
        }
        match &*name {
            "HS256" => Ok(Algorithm::Hs256),
            "HS384" => Ok(Algorithm::Hs384),
            "HS512" => Ok(Algorithm::Hs512),
            _ => Err(Fault::Algorithm),
        }
    }

    /// Returns whether this is the signature of a text, compared in constant time.
    fn verifies(self, key: &[u8], signed: &str, signature: &[u8]) -> bool {
        let verified = match self {
            Algorithm::Hs256 => keyed::<Hmac<Sha256>>(key, signed).verify_slice(signature),
            Algorithm::Hs384 => keyed::<Hmac<Sha384>>(key, signed).verify_slice(signature),
            Algorithm::Hs512 => keyed::<Hmac<Sha512>>(key, signed).verify_slice(signature),
        };
        verified.is_ok()
    }
}

/// Computes the code of a text, up to its last step.
fn keyed<M: KeyInit + Mac>(key: &[u8], text: &str) -> M {
    let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.chain_update(text)
}

/// Returns the content of a file of secrets without the byte order mark that some editors write.
///
/// # Errors
/// The mark is that of UTF-16, in which no secret is what signed the tokens.
pub fn strip_byte_order_mark(file: &[u8]) -> Result<&[u8], &'static str> {
    if file.starts_with(b"\xff\xfe") || file.starts_with(b"\xfe\xff") {
        return Err("expected UTF-8, got UTF-16: save the file as UTF-8");
    }
    Ok(file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file))
}

/// The values of these fields of an object, as they were written. Others are ignored; one that is there twice could be
/// read in two ways.
fn fields<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Result<[Option<&'a str>; N], Fault> {
    let mut values = [None; N];
    let mut twice = false;
    let object = json::object(json, |key, value| {
        if let Some(i) = names.iter().position(|name| *name == key) {
            twice |= values[i].replace(value).is_some();
        }
    });
    if twice { Err(Fault::Malformed) } else { object.map(|()| values).ok_or(Fault::Malformed) }
}

/// A `NumericDate` (RFC 7519 section 2), in whole seconds. What is before 1970 is 1970, and what is later than any date
/// is a second later than [`TOKEN_DATE_SECONDS_MAX`]. By hand, because a number of any length and form may be written here, and what reads all of them is large.
fn date(json: &str) -> Result<Duration, Fault> {
    const LAST: u64 = TOKEN_DATE_SECONDS_MAX + 1;
    let number = json.strip_prefix('-').unwrap_or(json);
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Fault::Malformed);
    }
    if number != json {
        return Ok(Duration::ZERO);
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let most = TOKEN_BYTES_MAX as i64;
    let exponent = exponent.parse().unwrap_or(if exponent.starts_with('-') { -most } else { most });
    let point = exponent.clamp(-most, most) + whole.len() as i64;
    let mut digits = whole.bytes().chain(fraction.bytes()).map(|digit| u64::from(digit - b'0'));
    let before_the_point = (0..point).map(|_| digits.next().unwrap_or(0));
    Ok(Duration::from_secs(before_the_point.fold(0, |seconds, digit| LAST.min(10 * seconds + digit))))
}

fn text(json: &str) -> Result<Box<str>, Fault> {
    json::string(json).map(Box::from).ok_or(Fault::Malformed)
}

fn bytes(base64: &str) -> Result<Vec<u8>, Fault> {
    BASE64URL_NOPAD.decode(base64.as_bytes()).map_err(|_| Fault::Malformed)
}

fn decode(base64: &str) -> Result<String, Fault> {
    String::from_utf8(bytes(base64)?).map_err(|_| Fault::Malformed)
}
