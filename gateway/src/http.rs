//! A client of HTTP/1.1 for what is asked now and then: a connection for each request, every bound in sight.

use adapters::settings::HostPort;
use adapters::tls::{ClientFiles, ClientTls};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::{Request, Response, Uri, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How much of an answer is read.
const ANSWER_MAX: usize = 64 << 10;

/// Why there is no answer.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    target: HostPort,
    tls: Option<ClientTls>,
}

impl Server {
    /// That of a URL, `http:` or `https:`; for the latter the authorities that the system trusts.
    ///
    /// # Errors
    /// What is wrong with it, without the URL itself.
    pub(crate) fn of(uri: &Uri) -> Result<Server, String> {
        let host = uri.host().ok_or("it names no host")?;
        let encrypted = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let tls = match encrypted {
            true => Some(ClientTls::load(ClientFiles::default()).map_err(|error| error.to_string())?),
            false => None,
        };
        Ok(Server { target: HostPort { host: host.trim_matches(['[', ']']).to_owned(), port }, tls })
    }

    /// Sends a request and reads its answer, from the connection on within that time.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn ask(
        &self,
        request: Request<Bytes>,
        within: Duration,
    ) -> Result<Response<Bytes>, Error> {
        let asked = async {
            let stream = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
            match &self.tls {
                None => self.exchange(stream, request).await,
                Some(tls) => self.exchange(tls.connect(&self.target, stream).await?, request).await,
            }
        };
        match tokio::time::timeout(within, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", within.as_secs()).into()),
        }
    }

    async fn exchange<S>(&self, stream: S, request: Request<Bytes>) -> Result<Response<Bytes>, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut head, body) = request.into_parts();
        let host = head.uri.authority().map_or_else(|| self.target.to_string(), ToString::to_string);
        head.headers.insert(header::HOST, host.parse()?);
        // In origin form, as a server of HTTP/1.1 expects it.
        head.uri = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}
