//! Tokens: who may come in, into which rooms, under which id, and until when. Whoever has a secret signs them: JSON Web
//! Tokens (RFC 7519) with HS256 (RFC 7518 section 3.2), and with nothing else.
//!
//! Pure: text and the time go in, [`Claims`] or a [`Fault`] come out. Where a token was found is not known here.

use std::fmt;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::json;
use crate::limits::{ID_BYTES_MAX, TOKEN_BYTES_MAX, TOKEN_LEEWAY, TOKEN_SECRET_BYTES_MIN, TOKEN_SECRETS_MAX};
use crate::named::named;

/// What tokens are signed with.
#[derive(Clone)]
pub struct Secrets {
    /// Each as far as HMAC can be computed without a token. The first signs, any verifies.
    keys: Vec<Hmac<Sha256>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Secrets")
    }
}

/// What a token says, once it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `exp`: when it ends, since 1970.
    pub until: Duration,
    /// `room`: see [`Claims::allows`].
    pub room: Option<Box<str>>,
    /// `sub`: the id that its bearer speaks as.
    pub id: Option<Box<str>>,
}

named! {
    /// Why a request may not come in.
    pub enum Fault {
        /// There is no token.
        Missing = "missing",
        /// It is no token of the kind that is signed here, or there are two.
        Malformed = "malformed",
        /// It is signed with none of our secrets, or it was changed.
        Signature = "signature",
        /// Its time is over.
        Expired = "expired",
        /// Its time has not begun, or it comes from the future.
        NotYetValid = "not_yet_valid",
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
            Fault::Malformed => "that is no token (a JWT, HS256, with exp)",
            Fault::Signature => "the token is not signed by this server's operator",
            Fault::Expired => "the token has expired",
            Fault::NotYetValid => "the token is not yet valid",
            Fault::Room => "the token is for another room",
            Fault::Id => "the token is for another id",
        }
    }
}

impl Secrets {
    /// Reads a file of secrets: one a line, of any bytes, without the space around it; `#` begins a comment.
    ///
    /// # Errors
    /// There is none, or too many of them, or one is too short to resist guessing (RFC 7518 section 3.2).
    pub fn parse(file: &[u8]) -> Result<Secrets, String> {
        let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let mut keys = Vec::new();
        for secret in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
            if secret.len() < TOKEN_SECRET_BYTES_MIN {
                return Err(format!("a secret has at least {TOKEN_SECRET_BYTES_MIN} bytes"));
            }
            keys.push(Hmac::new_from_slice(secret).expect("HMAC takes keys of any length"));
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
        check_header(&decode(header)?)?;
        let (signature, claims) = (bytes(signature)?, decode(claims)?);
        let is_ours =
            |key: &&Hmac<Sha256>| (*key).clone().chain_update(signed).verify_slice(&signature).is_ok();
        self.keys.iter().find(is_ours).ok_or(Fault::Signature)?;
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
        for (name, value) in [("room", &claims.room), ("sub", &claims.id)] {
            if let Some(value) = value {
                json.extend_from_slice(format!(",\"{name}\":").as_bytes());
                json::push_string(&mut json, value);
            }
        }
        json.push(b'}');
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", BASE64URL_NOPAD.encode(&json));
        let signature = self.keys[0].clone().chain_update(&signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }
}

impl Claims {
    /// Whether its bearer may be in this room: the one that it names, any whose name begins as it says if it ends in
    /// `*`, or any at all if it names none. The default room has the empty name.
    pub fn allows(&self, room: &str) -> bool {
        match self.room.as_deref().map(|named| (named, named.strip_suffix('*'))) {
            None => true,
            Some((_, Some(prefix))) => room.starts_with(prefix),
            Some((named, None)) => room == named,
        }
    }

    fn parse(json: &str, now: Duration) -> Result<Claims, Fault> {
        let [exp, nbf, iat, room, sub] = fields(json, ["exp", "nbf", "iat", "room", "sub"])?;
        let until = exp.ok_or(Fault::Malformed).and_then(date)?;
        let begins = [nbf, iat].into_iter().flatten().map(date).collect::<Result<Vec<_>, _>>()?;
        let claims = Claims { until, room: room.map(text).transpose()?, id: sub.map(text).transpose()? };
        if claims.id.as_ref().is_some_and(|id| !(1..=ID_BYTES_MAX).contains(&id.len())) {
            return Err(Fault::Malformed);
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

/// Only what we would have written: whoever could choose the algorithm could choose none. `crit` names what must be
/// understood (RFC 7515 section 4.1.11), and nothing is.
fn check_header(json: &str) -> Result<(), Fault> {
    let [alg, crit] = fields(json, ["alg", "crit"])?;
    let is_ours = crit.is_none() && alg.and_then(json::string).is_some_and(|alg| alg == "HS256");
    if is_ours { Ok(()) } else { Err(Fault::Malformed) }
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

/// A `NumericDate` (RFC 7519 section 2), in whole seconds. What is before 1970 is 1970, and nothing is later than the
/// year 9999. By hand, because a number of any length and form may be written here, and what reads all of them is large.
fn date(json: &str) -> Result<Duration, Fault> {
    const LAST: u64 = 253_402_300_799;
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
