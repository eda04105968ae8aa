//! The client: connects, works, and connects again for as long as it should.

use super::config::MqttConfig;
use super::session::{End, Session};
use crate::{Intake, RunningSource, Source};
use async_trait::async_trait;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The first pause before another attempt.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// A client that is not at work.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) name: Arc<str>,
    pub(super) config: MqttConfig,
}

#[async_trait]
impl Source for Client {
    async fn start(
        self: Arc<Self>,
        intake: Arc<dyn Intake>,
        stop: CancellationToken,
    ) -> io::Result<RunningSource> {
        let (source, broker) = (&self.name, &self.config.connector.target);
        if let Some(why) = &self.config.plain_text_waiver {
            tracing::warn!(%source, %broker, why, "readings travel without TLS here, as the configuration says");
        }
        Ok(RunningSource { address: None, task: tokio::spawn(run(self, intake, stop)) })
    }
}

async fn run(client: Arc<Client>, intake: Arc<dyn Intake>, stop: CancellationToken) {
    let (source, broker) = (&client.name, &client.config.connector.target);
    let mut pause = RETRY_FIRST;
    // The filters of a session that an earlier process began may be others.
    let mut is_subscribed = false;
    while !stop.is_cancelled() {
        let opened = tokio::select! {
            () = stop.cancelled() => break,
            opened = Session::open(&client, &intake) => opened,
        };
        let why = match opened {
            Err(why) => why,
            Ok((session, was_there)) => {
                tracing::info!(%source, %broker, session = was_there, "connected to the broker");
                if is_subscribed && !was_there {
                    tracing::error!(%source, %broker, "the broker has forgotten the session: what was published meanwhile is not handed over");
                }
                is_subscribed &= was_there;
                intake.reaches(source, true);
                let end = session.work(&mut is_subscribed, &mut pause, &stop).await;
                intake.reaches(source, false);
                match end {
                    End::Stopped => break,
                    End::Lost(why) => why,
                }
            }
        };
        tracing::warn!(%source, %broker, error = %why, again_in = ?pause, "not connected to the broker");
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(client.config.retry_max);
    }
}

impl Client {
    /// The pause after a connection that was of use.
    pub(super) fn first_pause(&self) -> Duration {
        RETRY_FIRST.min(self.config.retry_max)
    }
}
