//! Connections to outside systems: TCP, then TLS if it is configured, within one bound of time.

use crate::DeliverError;
use crate::settings::HostPort;
use crate::tls::ClientTls;
use std::io;
use std::net::IpAddr;
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
    /// Whether it must lie on the public internet: whoever named it may not reach into our own networks by us.
    pub(crate) is_public: bool,
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
        let target = (self.target.host.as_str(), self.target.port);
        let stream = if self.is_public {
            let found: Vec<_> =
                tokio::net::lookup_host(target).await?.filter(|at| is_public(at.ip())).collect();
            if found.is_empty() {
                return Err(io::Error::other("it has no public address, and none of ours may be reached so"));
            }
            TcpStream::connect(&found[..]).await?
        } else {
            TcpStream::connect(target).await?
        };
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(&self.target, stream).await?),
        })
    }
}

/// Whether an address is one of the public internet: not of a private, local, shared, documentation or other special range.
///
/// # Source
/// The IANA registries of special-purpose IPv4 and IPv6 addresses (RFC 6890 and its updates).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let special = matches!(
                (a, b, c),
                (0 | 10 | 127, _, _)
                    | (100, 64..=127, _)
                    | (169, 254, _)
                    | (172, 16..=31, _)
                    | (192, 0, 0 | 2)
                    | (192, 88, 99)
                    | (192, 168, _)
                    | (198, 18 | 19, _)
                    | (198, 51, 100)
                    | (203, 0, 113)
                    | (224.., _, _)
            );
            !special
        }
        // 2000::/3 is what there is of the public internet; these of it are not.
        IpAddr::V6(v6) => match v6.segments() {
            // Teredo and the like, benchmarking, ORCHID: all of 2001::/23.
            [0x2001, 0..=0x1ff, ..] => false,
            // Documentation.
            [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
            // 6to4 holds an address of IPv4.
            [0x2002, high, low, ..] => {
                let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
                is_public(IpAddr::from([a, b, c, d]))
            }
            [first, ..] => (0x2000..0x4000).contains(&first),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        let public = [
            "8.8.8.8",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2002:808:808::1",
        ];
        let special = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001:db8::1",
            "2001::1",
        ];
        for (addresses, expected) in [(&public[..], true), (&special[..], false)] {
            for address in addresses {
                assert_eq!(is_public(address.parse().expect("an address")), expected, "{address}");
            }
        }
    }

    #[tokio::test]
    async fn a_target_that_must_be_public_is_not_reached_on_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        for (host, is_public) in [("localhost", true), ("127.0.0.1", true), ("127.0.0.1", false)] {
            let target = HostPort { host: host.to_owned(), port };
            let connector = Connector { target, tls: None, is_public, timeout: Duration::from_secs(5) };
            let connected = connector.connect().await.err();
            let refused = connected.is_some_and(|error| error.to_string().contains("no public address"));
            assert_eq!(refused, is_public, "{host}");
        }
    }
}
