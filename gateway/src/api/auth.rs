//! The one place that decides which HTTP client may do what.

use super::{Answer, outcome};
use crate::ingest::senders::{Known, Senders};
use hyper::http::request::Parts;
use hyper::{StatusCode, header};
use std::net::SocketAddr;

/// Who asks: by bearer token, by client certificate, or anybody on loopback where no senders are configured.
///
/// # Errors
/// The answer to give: 401 without a credential that is known here.
pub fn client(senders: &Senders, head: &Parts, peer: SocketAddr, names: &[String]) -> Result<Known, Answer> {
    if let Some(value) = head.headers.get(header::AUTHORIZATION) {
        let token = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        // A credential that is given and wrong never falls back to another.
        return token.and_then(|token| senders.by_token(token)).ok_or_else(unauthorized);
    }
    if let Some(known) = senders.by_certificate(names) {
        return Ok(known);
    }
    if senders.is_empty() && peer.ip().to_canonical().is_loopback() {
        return Ok(Known::local());
    }
    Err(unauthorized())
}

fn unauthorized() -> Answer {
    let mut answer = outcome::answer(
        StatusCode::UNAUTHORIZED,
        "login",
        "a bearer token or client certificate of a configured sender is required",
    );
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer realm=\"pons\""));
    // The body was not read: the connection cannot be used again.
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sender;

    fn ask(
        senders: &Senders,
        authorization: Option<&str>,
        peer: &str,
        names: &[&str],
    ) -> Result<String, u16> {
        let mut request = hyper::Request::builder().uri("/fhir");
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        let (head, ()) = request.body(()).expect("valid").into_parts();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        client(senders, &head, peer.parse().expect("an address"), &names)
            .map(|known| known.name.to_string())
            .map_err(|answer| answer.status().as_u16())
    }

    #[test]
    fn a_credential_decides_and_a_wrong_one_never_falls_back() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "t0ken").expect("written");
        let token = Some(adapters::settings::Secret::File(file.path().to_owned()));
        let portal = Sender {
            name: "portal".into(),
            token,
            certificates: vec!["portal.test".to_owned()],
            ..Sender::default()
        };
        let senders = Senders::new(vec![portal], Vec::new());
        assert_eq!(ask(&senders, Some("Bearer t0ken"), "192.0.2.1:9", &[]), Ok("portal".to_owned()));
        assert_eq!(ask(&senders, None, "192.0.2.1:9", &["portal.test"]), Ok("portal".to_owned()));
        assert_eq!(ask(&senders, Some("Bearer wrong"), "192.0.2.1:9", &["portal.test"]), Err(401));
        assert_eq!(ask(&senders, Some("Basic t0ken"), "127.0.0.1:9", &[]), Err(401));
        assert_eq!(
            ask(&senders, None, "127.0.0.1:9", &[]),
            Err(401),
            "loopback is no credential once senders are configured"
        );
    }

    #[test]
    fn without_senders_only_loopback_is_let_in() {
        let nobody = Senders::new(Vec::new(), Vec::new());
        assert_eq!(ask(&nobody, None, "127.0.0.1:9", &[]), Ok("local".to_owned()));
        assert_eq!(ask(&nobody, None, "192.0.2.1:9", &[]), Err(401));
        assert_eq!(ask(&nobody, Some("Bearer x"), "127.0.0.1:9", &[]), Err(401));
    }
}
