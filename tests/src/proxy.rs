//! A TCP proxy that spoils connections: between a sender and the gateway, or the gateway and what it stands on.

use crate::generate::Rng;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does to the bytes of every connection, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Each read is passed on this much later, give or take a half.
    Latency(Duration),
    /// One byte a write.
    Slices,
    /// The connection ends in good order after so many bytes in one direction.
    CutAfter(usize),
    /// The connection is reset after so many bytes in one direction.
    ResetAfter(usize),
    /// Everything is taken and nothing is passed on.
    BlackHole,
    /// New connections are reset at once, standing ones too.
    Refuse,
}

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    at: SocketAddr,
    fault: watch::Sender<Fault>,
    connections: Arc<Mutex<u64>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FaultProxy {
    /// Stands before `to`, on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(to: SocketAddr) -> Result<FaultProxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let at = listener.local_addr()?;
        let (fault, watched) = watch::channel(Fault::None);
        let connections = Arc::new(Mutex::new(0));
        let server = tokio::spawn(serve(listener, to, watched, connections.clone()));
        Ok(FaultProxy { at, fault, connections, server })
    }

    /// Where to connect to instead.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// From now on connections suffer this, those that stand too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many connections came so far.
    pub fn connections(&self) -> u64 {
        *self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, fault: watch::Receiver<Fault>, count: Arc<Mutex<u64>>) {
    while let Ok((inside, _)) = listener.accept().await {
        let number = {
            let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
            *count += 1;
            *count
        };
        tokio::spawn(connection(inside, to, fault.clone(), Rng::new(number)));
    }
}

/// How one direction of a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Orderly,
    Reset,
}

async fn connection(inside: TcpStream, to: SocketAddr, fault: watch::Receiver<Fault>, rng: Rng) {
    if *fault.borrow() == Fault::Refuse {
        reset(&inside);
        return;
    }
    let Ok(outside) = TcpStream::connect(to).await else {
        reset(&inside);
        return;
    };
    let _ = (inside.set_nodelay(true), outside.set_nodelay(true));
    let (mut inside_read, mut inside_write) = inside.into_split();
    let (mut outside_read, mut outside_write) = outside.into_split();
    let mut back = rng.clone();
    back.number();
    let end = tokio::select! {
        end = pass(&mut inside_read, &mut outside_write, fault.clone(), rng) => end,
        end = pass(&mut outside_read, &mut inside_write, fault.clone(), back) => end,
    };
    if end == End::Reset {
        reset(inside_read.as_ref());
        reset(outside_read.as_ref());
    }
}

/// Makes closing the socket send RST instead of FIN.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn pass(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    mut fault: watch::Receiver<Fault>,
    mut rng: Rng,
) -> End {
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        let count = tokio::select! {
            changed = fault.changed() => {
                if changed.is_err() || *fault.borrow() == Fault::Refuse {
                    return End::Reset;
                }
                continue;
            }
            read = read.read(&mut buffer) => match read {
                Ok(0) => return End::Orderly,
                Ok(count) => count,
                Err(_) => return End::Reset,
            },
        };
        let mut bytes = &buffer[..count];
        let now = *fault.borrow();
        let mut end = None;
        match now {
            Fault::None => {}
            Fault::Latency(by) => {
                let percent = 50 + rng.below(100) as u32;
                tokio::time::sleep(by * percent / 100).await;
            }
            Fault::BlackHole => continue,
            Fault::Refuse => return End::Reset,
            Fault::CutAfter(limit) | Fault::ResetAfter(limit) => {
                if passed + count >= limit {
                    bytes = &bytes[..limit.saturating_sub(passed)];
                    end = Some(if matches!(now, Fault::CutAfter(_)) { End::Orderly } else { End::Reset });
                }
            }
            Fault::Slices => {
                for byte in bytes {
                    if write.write_all(&[*byte]).await.is_err() {
                        return End::Reset;
                    }
                    tokio::task::yield_now().await;
                }
                bytes = &[];
            }
        }
        passed += count;
        if write.write_all(bytes).await.is_err() {
            return End::Reset;
        }
        if let Some(end) = end {
            return end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        at
    }

    /// What comes back of `sent` under a fault: the bytes, and whether the connection was reset.
    async fn through(fault: Fault, sent: &[u8]) -> (Vec<u8>, bool) {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        proxy.set(fault);
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        let mut came = Vec::new();
        if stream.write_all(sent).await.is_err() {
            return (came, true);
        }
        let mut buffer = [0; 4096];
        while came.len() < sent.len() {
            match tokio::time::timeout(Duration::from_millis(500), stream.read(&mut buffer)).await {
                Ok(Ok(0)) | Err(_) => return (came, false),
                Ok(Ok(count)) => came.extend(&buffer[..count]),
                Ok(Err(_)) => return (came, true),
            }
        }
        (came, false)
    }

    #[tokio::test]
    async fn without_a_fault_and_slowed_everything_comes_through() {
        let sent = vec![7; 3000];
        for fault in [Fault::None, Fault::Slices, Fault::Latency(Duration::from_millis(5))] {
            assert_eq!(through(fault, &sent).await, (sent.clone(), false), "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_cut_passes_so_much_and_no_more() {
        let (came, reset) = through(Fault::CutAfter(100), &[7; 3000]).await;
        assert!(came.len() <= 100 && !reset, "{} bytes", came.len());
        let (came, _) = through(Fault::ResetAfter(100), &[7; 3000]).await;
        assert!(came.len() <= 100, "{} bytes", came.len());
    }

    #[tokio::test]
    async fn a_black_hole_says_nothing_and_a_refusal_resets() {
        assert_eq!(through(Fault::BlackHole, &[7; 10]).await, (Vec::new(), false));
        let (came, _) = through(Fault::Refuse, &[7; 10]).await;
        assert!(came.is_empty());
    }

    #[tokio::test]
    async fn a_fault_reaches_standing_connections() {
        let proxy = FaultProxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        let mut buffer = [0; 1];
        stream.read_exact(&mut buffer).await.unwrap();
        proxy.set(Fault::Refuse);
        assert!(matches!(stream.read(&mut buffer).await, Err(_) | Ok(0)));
        assert_eq!(proxy.connections(), 1);
    }
}
