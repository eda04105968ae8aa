//! HTTP as bytes on a wire: one request a connection, whatever the answer is.

use crate::gateway::Gateway;
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WAIT: Duration = Duration::from_secs(20);

/// An answer: status, head with its lines parted by `\n`, body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The status line and the headers, their names in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let start = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(start.as_str()))
    }

    /// Asserts that it is a valid OperationOutcome with an error, and answers its issues as text.
    ///
    /// # Panics
    /// When it is not.
    pub fn outcome(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let outcome = self.json();
        assert_eq!(schemas::fhir::validate(&outcome), []);
        assert_eq!(outcome["resourceType"], "OperationOutcome");
        assert_eq!(outcome["issue"][0]["severity"], "error");
        outcome["issue"].to_string()
    }
}

/// Writes a head, `GET /path` and these headers, and after it a body of which it says that it has `length` bytes; reads until the
/// other side closes.
///
/// # Errors
/// When the gateway cannot be reached, or gives no answer of HTTP in time.
pub async fn exchange(
    gateway: &Gateway,
    request: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    length: usize,
) -> Result<Answer> {
    exchange_at(gateway.http, request, headers, body, length).await
}

/// As [`exchange`], with whoever listens there.
///
/// # Errors
/// When nobody can be reached, or there is no answer of HTTP in time.
pub async fn exchange_at(
    http: SocketAddr,
    request: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    length: usize,
) -> Result<Answer> {
    let mut wire = TcpStream::connect(http).await.context("connect")?;
    let mut head =
        format!("{request} HTTP/1.1\r\nhost: pons.test\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    wire.write_all(format!("{head}\r\n").as_bytes()).await.context("send")?;
    // Whoever is refused by the head alone may find the connection closed.
    let _ = wire.write_all(body).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(WAIT, wire.read_to_end(&mut answer)).await;
    let _ = read.context("an answer in time")?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer of HTTP")?;
    Ok(Answer {
        status: head.split(' ').nth(1).context("a status")?.parse()?,
        head: head.replace("\r\n", "\n"),
        body: body.to_owned(),
    })
}
