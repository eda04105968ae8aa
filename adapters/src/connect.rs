//! Connections to outside systems: TCP, then TLS if it is configured, within one bound of time.

use crate::DeliverError;
use crate::settings::HostPort;
use crate::tls::ClientTls;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connected stream, with TLS or without.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

/// How to reach one outside system.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) target: HostPort,
    pub(crate) tls: Option<ClientTls>,
    /// For name resolution, TCP and TLS together.
    pub(crate) timeout: Duration,
}

impl Connector {
    /// Connects.
    ///
    /// # Errors
    /// [`DeliverError::Again`] with `away`: nothing was sent, and the other side as a whole cannot be reached.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Wire>, DeliverError> {
        let away = |answer: String| DeliverError::Again { answer, after: None, away: true };
        match tokio::time::timeout(self.timeout, self.try_connect()).await {
            Ok(Ok(wire)) => Ok(wire),
            Ok(Err(error)) => Err(away(format!("no connection to {}: {error}", self.target))),
            Err(_) => Err(away(format!("no connection to {} within {:?}", self.target, self.timeout))),
        }
    }

    async fn try_connect(&self) -> io::Result<Box<dyn Wire>> {
        let stream = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(&self.target, stream).await?),
        })
    }
}
