//! Reads the token of an upgrade request, and renders the response to an invalid one.

use std::time::Duration;

use super::{Request, Response};
use crate::http::token::{Claims, Secrets, TokenError};
use crate::protocol::Target;

impl Request<'_> {
    /// Verifies the token of this request and returns its claims.
    ///
    /// The token is in the `Authorization` header or else in the query, because browsers cannot set headers of a
    /// WebSocket.
    ///
    /// # Errors
    /// There is no token, more than one, or it is not valid for the target's room.
    pub(super) fn verified_claims(
        &self,
        target: &Target,
        secrets: &Secrets,
        unix_time: Duration,
    ) -> Result<Claims, TokenError> {
        let bearer_tokens = self.values("authorization").filter_map(bearer_token);
        let mut tokens = bearer_tokens.collect::<Result<Vec<String>, TokenError>>()?;
        if tokens.is_empty() {
            let query_tokens = target.query.values("token");
            tokens = query_tokens.collect::<Result<_, _>>().map_err(|_| TokenError::Malformed)?;
        }
        match tokens.as_slice() {
            [] => Err(TokenError::Missing),
            [token] => secrets.admit(token, &target.room, None, unix_time),
            _ => Err(TokenError::Malformed),
        }
    }

    /// Renders the response to a request without a valid token (RFC 6750 section 3).
    pub(super) fn unauthorized(&self, error: TokenError) -> Response {
        let (status, challenge) = match error {
            TokenError::Room | TokenError::Id => (403, "Bearer error=\"insufficient_scope\""),
            _ => (401, "Bearer error=\"invalid_token\""),
        };
        let mut headers = vec![("WWW-Authenticate", challenge)];
        headers.extend(self.cors_header());
        let mut response = self.sentence(status, error.message(), &headers);
        if let Some(reason) = response.reject_reason_mut() {
            reason.token_error = Some(error);
        }
        response
    }
}

/// Returns the token in the value of an `Authorization` header (RFC 6750 section 2.1).
///
/// `None`: the header has another scheme. It is for a proxy that asks for a password, for example.
fn bearer_token(value: &[u8]) -> Option<Result<String, TokenError>> {
    let value = value.trim_ascii();
    let scheme_end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(scheme_end);
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    let token = token.trim_ascii().to_vec();
    Some(String::from_utf8(token).map_err(|_| TokenError::Malformed))
}
