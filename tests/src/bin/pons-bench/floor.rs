//! The floor under everything that is taken: the same bytes as one row each, many rows a commit, and nothing else.

use anyhow::{Context, Result};
use tests::services::connect;
use tokio::sync::{mpsc, oneshot};

type Waiting = (Vec<u8>, oneshot::Sender<()>);

/// A table that does nothing but keep. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Floor {
    send: mpsc::Sender<Waiting>,
}

impl Floor {
    /// Makes the table in a database of its own.
    ///
    /// # Errors
    /// When the database is away.
    pub(crate) async fn open(database: &str) -> Result<Floor> {
        let client = connect(database).await?;
        client
            .batch_execute(
                "create table message (id uuid primary key, received_us bigint not null, bytes bytea not null)",
            )
            .await
            .context("a table")?;
        let (send, waiting) = mpsc::channel::<Waiting>(1024);
        tokio::spawn(commit(client, waiting));
        Ok(Floor { send })
    }

    /// Answers once the bytes are durable, and whether they are.
    pub(crate) async fn keep(&self, bytes: Vec<u8>) -> bool {
        let (done, committed) = oneshot::channel();
        self.send.send((bytes, done)).await.is_ok() && committed.await.is_ok()
    }
}

/// Commits what has come while the last commit was under way.
async fn commit(client: tokio_postgres::Client, mut waiting: mpsc::Receiver<Waiting>) {
    let insert = "insert into message select * from unnest($1::uuid[], $2::int8[], $3::bytea[])";
    let insert = client.prepare(insert).await.expect("the floor's own statement is right");
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, 256).await > 0 {
        let ids: Vec<uuid::Uuid> = batch.iter().map(|_| uuid::Uuid::now_v7()).collect();
        let times = vec![0_i64; batch.len()];
        let bytes: Vec<&[u8]> = batch.iter().map(|(message, _)| message.as_slice()).collect();
        if client.execute(&insert, &[&ids, &times, &bytes]).await.is_err() {
            return;
        }
        for (_, done) in batch.drain(..) {
            let _ = done.send(());
        }
    }
}
