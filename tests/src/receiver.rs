//! A subscriber's MLLP listener: takes HL7 v2 messages as Pons passes them on, answers each with AA and logs it.

use crate::checker::{Arrival, Seen};
use crate::generate::Run;
use crate::sender::Connection;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;

/// A running listener; it ends when this is dropped.
#[derive(Debug)]
pub struct Receiver {
    at: SocketAddr,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Receiver {
    /// Starts on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(run: Run) -> Result<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let at = listener.local_addr()?;
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn({
            let arrivals = arrivals.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let arrivals = arrivals.clone();
                    tokio::spawn(async move {
                        // Ends when the gateway goes away, which is part of the game.
                        let _ = converse(Connection::over(stream), run, &arrivals).await;
                    });
                }
            }
        });
        Ok(Receiver { at, arrivals, server })
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// How many messages it acknowledged.
    pub fn accepted(&self) -> usize {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What it saw, as the checker reads it. A message passed on as it came has its own control id for an id.
    pub fn seen(&self, subscription: &str, topics: &[&str]) -> Seen {
        Seen {
            subscription: subscription.to_owned(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            arrivals: self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

async fn converse(
    mut connection: Connection<tokio::net::TcpStream>,
    run: Run,
    arrivals: &Mutex<Vec<Arrival>>,
) -> Result<()> {
    loop {
        let message = connection.receive(Duration::from_secs(3600)).await?;
        let text = String::from_utf8_lossy(&message);
        let header = text.split('\r').next().unwrap_or_default();
        let control_id = header.split('|').nth(9).unwrap_or_default().to_owned();
        let answer =
            format!("MSH|^~\\&|LAB||PONS||20260101000000||ACK|A{control_id}|P|2.5.1\rMSA|AA|{control_id}\r");
        // One that was written anew has another control id than the message that it tells of.
        let marker = run.newest(header.as_bytes()).or_else(|| run.newest(&message));
        let arrival = Arrival { marker, delivery: control_id, number: None };
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        connection.send(answer.as_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Kind, Population};

    #[tokio::test]
    async fn a_message_is_logged_by_its_control_id_and_acknowledged() {
        let run = Run::new(1);
        let receiver = Receiver::start(run).await.unwrap();
        let sent = Population::new(run, 1, 1).message(Kind::Admit, 0);
        let stream = tokio::net::TcpStream::connect(receiver.address()).await.unwrap();
        let mut connection = Connection::over(stream);
        connection.send(&sent.bytes).await.unwrap();
        let answer = connection.receive(Duration::from_secs(5)).await.unwrap();
        assert_eq!(crate::sender::acknowledgement(&answer).unwrap().control_id, sent.control_id);
        let seen = receiver.seen("a", &[]);
        assert_eq!(
            (seen.arrivals[0].marker, &seen.arrivals[0].delivery),
            (Some(sent.marker), &sent.control_id)
        );
    }
}
