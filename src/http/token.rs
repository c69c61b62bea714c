//! Where a request has its token, and what it is told if the token is not good.

use std::time::Duration;

use super::{Answer, Request};
use crate::protocol::Target;
use crate::token::{Claims, Secrets, TokenError};

impl Request<'_> {
    /// What the token says, from the header or else from the query: browsers cannot set headers.
    pub(super) fn claims(
        &self,
        target: &Target,
        secrets: &Secrets,
        wall: Duration,
    ) -> Result<Claims, TokenError> {
        let in_header = self.values("authorization").filter_map(bearer);
        let mut tokens = in_header.collect::<Result<Vec<String>, TokenError>>()?;
        if tokens.is_empty() {
            let in_query = target.query.values("token").map(|token| token.map_err(|_| TokenError::Malformed));
            tokens = in_query.collect::<Result<_, _>>()?;
        }
        match &tokens[..] {
            [] => Err(TokenError::Missing),
            [token] => secrets.admit(token, &target.room, None, wall),
            _ => Err(TokenError::Malformed),
        }
    }

    /// RFC 6750 section 3.
    pub(super) fn unauthorized(&self, fault: TokenError) -> Answer {
        let (status, error) = match fault {
            TokenError::Room | TokenError::Id => (403, "Bearer error=\"insufficient_scope\""),
            _ => (401, "Bearer error=\"invalid_token\""),
        };
        let mut headers = vec![("WWW-Authenticate", error)];
        headers.extend(self.shared_with_its_origin());
        let mut answer = self.plain(status, fault.message(), &headers);
        if let Answer::Plain { refused: Some(refusal), .. } = &mut answer {
            refusal.fault = Some(fault);
        }
        answer
    }
}

/// Returns the token in the value of an `Authorization` header (RFC 6750 section 2.1). `None`: the header has another
/// scheme. It is for a proxy that asks for a password, for example.
fn bearer(value: &[u8]) -> Option<Result<String, TokenError>> {
    let value = value.trim_ascii();
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    Some(String::from_utf8(token.trim_ascii().to_vec()).map_err(|_| TokenError::Malformed))
}
