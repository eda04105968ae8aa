//! Who may take from a subscriber's own queue: a user of the broker for each, by the broker's management API.
//!
//! A password is made, told once, and kept nowhere here: whoever has lost it asks for another, which ends the one before. A broker that
//! has lost its data has lost its users too.
//!
//! # Source
//! RabbitMQ's HTTP API: users, permissions, user limits.

use crate::http::Server;
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use lapin::uri::AMQPUri;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Value, json};
use std::time::Duration;
use uuid::Uuid;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How many connections a subscriber may have at once.
const CONNECTIONS_MAX: u32 = 10;

/// Gives and takes away.
#[derive(Debug)]
pub struct Keys {
    server: Server,
    base: String,
    authorization: HeaderValue,
    vhost: String,
    /// Where subscribers reach the broker, with its virtual host.
    public: String,
}

/// What opens a queue.
pub struct Key {
    /// `amqp://` or `amqps://`, with the virtual host and without a user.
    pub url: String,
    /// The user, of the queue's name.
    pub user: String,
    /// A secret.
    pub password: String,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No answer.
    #[error("the broker's management API is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another answer than yes.
    #[error("the broker's management API answered {0}")]
    Refused(StatusCode),
}

impl Keys {
    /// By the address of the management API, with the user and the password of an administrator in it, and by that of the broker;
    /// `public` is the latter as subscribers know it, if they know another one.
    ///
    /// # Errors
    /// What is wrong, without what may be secret.
    pub fn new(management: &str, broker: &str, public: Option<&str>) -> Result<Keys, String> {
        let uri: Uri = management.parse().map_err(|_| "it is no address")?;
        let (user, host) = uri
            .authority()
            .and_then(|authority| authority.as_str().rsplit_once('@'))
            .ok_or("it names no user: http://user:password@host:15672")?;
        let plain: Vec<u8> = percent_decode_str(user).collect();
        let scheme = uri.scheme_str().unwrap_or("http");
        let base = format!("{scheme}://{host}{}", uri.path().trim_end_matches('/'));
        let server = Server::of(&base.parse().map_err(|_| "it is no address")?)?;
        let credentials = data_encoding::BASE64.encode(&plain);
        let authorization = HeaderValue::from_str(&format!("Basic {credentials}"));
        let mut authorization = authorization.map_err(|_| "its user cannot be sent")?;
        authorization.set_sensitive(true);
        let broker: AMQPUri = broker.parse().map_err(|_| "the bus is no RabbitMQ")?;
        let own = format!("{}://{}:{}", broker.scheme, broker.authority.host, broker.authority.port);
        let vhost = encoded(&broker.vhost);
        let public = format!("{}/{vhost}", public.unwrap_or(&own).trim_end_matches('/'));
        Ok(Keys { server, base, authorization, vhost, public })
    }

    /// Lets a user read one queue and nothing else, with a new password; ends every connection that was opened by one before.
    ///
    /// # Errors
    /// When the broker does not say yes: then nobody has a password that it takes.
    pub async fn issue(&self, queue: &str) -> Result<Key, KeyError> {
        // 244 bits of the system's.
        let password = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let user = encoded(queue);
        let limit = json!({"value": CONNECTIONS_MAX});
        self.revoke(queue).await?;
        self.put(&format!("users/{user}"), json!({"password": password, "tags": ""})).await?;
        self.put(&format!("user-limits/{user}/max-connections"), limit).await?;
        let read = format!("^{}$", queue.replace('.', "\\."));
        let rights = json!({"configure": "^$", "write": "^$", "read": read});
        self.put(&format!("permissions/{}/{user}", self.vhost), rights).await?;
        Ok(Key { url: self.public.clone(), user: queue.to_owned(), password })
    }

    /// Takes it away, with every connection that was opened by it.
    ///
    /// # Errors
    /// When the broker does not say yes.
    pub async fn revoke(&self, queue: &str) -> Result<(), KeyError> {
        let answered = self.ask(Method::DELETE, &format!("users/{}", encoded(queue)), None).await;
        match answered {
            Err(KeyError::Refused(StatusCode::NOT_FOUND)) => Ok(()),
            answered => answered,
        }
    }

    async fn put(&self, path: &str, body: Value) -> Result<(), KeyError> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(), KeyError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/api/{path}", self.base))
            .header(AUTHORIZATION, &self.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from(body.map(|body| body.to_string()).unwrap_or_default()))
            .map_err(|error| KeyError::Away(error.into()))?;
        let answer = self.server.ask(request, ANSWER_MAX).await.map_err(KeyError::Away)?;
        if answer.status().is_success() { Ok(()) } else { Err(KeyError::Refused(answer.status())) }
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_put_together_from_the_configuration() {
        let keys =
            Keys::new("http://ad%40min:p%3Aw@127.0.0.1:15672/", "amqp://pons:x@rabbit:5673/%2fpons", None);
        let keys = keys.expect("right");
        assert_eq!((keys.base.as_str(), keys.vhost.as_str()), ("http://127.0.0.1:15672", "%2Fpons"));
        assert_eq!(keys.public, "amqp://rabbit:5673/%2Fpons");
        let header = data_encoding::BASE64.encode(b"ad@min:p:w");
        assert_eq!(keys.authorization, format!("Basic {header}"));
        assert!(!format!("{keys:?}").contains(&header), "secrets are not shown");
        let public = Some("amqps://broker.genhosp.example:5671/");
        let keys = Keys::new("http://a:b@h:1", "amqp://a:b@rabbit", public).expect("right");
        assert_eq!(keys.public, "amqps://broker.genhosp.example:5671/%2F");
        for wrong in ["http://127.0.0.1:15672", "", "http://a:b@"] {
            assert!(Keys::new(wrong, "amqp://a:b@rabbit", None).is_err(), "{wrong}");
        }
    }
}
