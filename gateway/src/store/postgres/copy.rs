//! Many rows by `COPY ... (FORMAT binary)`: half the server's time of the same rows as arrays, as each value goes straight into its row and
//! rows are written a page at a time.

use crate::store::StoreError;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

/// The signature, the flags and the length of the header's extension (PostgreSQL's manual, COPY, Binary Format).
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: i16 = -1;
const NULL: i32 = -1;

/// Rows on their way into one table.
pub(super) struct Copy {
    statement: &'static str,
    columns: i16,
    bytes: Vec<u8>,
}

impl Copy {
    /// `statement` is `COPY table (columns) FROM STDIN (FORMAT binary)`.
    pub(super) fn new(statement: &'static str, columns: i16, bytes_expected: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER.len() + bytes_expected);
        bytes.extend_from_slice(HEADER);
        Copy { statement, columns, bytes }
    }

    /// Begins a row; its values follow in the order of the columns.
    pub(super) fn row(&mut self) -> &mut Self {
        self.bytes.extend_from_slice(&self.columns.to_be_bytes());
        self
    }

    pub(super) fn value(&mut self, value: &[u8]) -> &mut Self {
        // A value of 2 GiB cannot be sent: the count is wrong then, and the server refuses the whole.
        self.bytes.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    pub(super) fn maybe(&mut self, value: Option<&[u8]>) -> &mut Self {
        match value {
            Some(value) => self.value(value),
            None => {
                self.bytes.extend_from_slice(&NULL.to_be_bytes());
                self
            }
        }
    }

    pub(super) fn uuid(&mut self, value: Uuid) -> &mut Self {
        self.value(value.as_bytes())
    }

    pub(super) fn integer(&mut self, value: i32) -> &mut Self {
        self.value(&value.to_be_bytes())
    }

    pub(super) fn bigint(&mut self, value: i64) -> &mut Self {
        self.value(&value.to_be_bytes())
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.value(value.as_bytes())
    }

    /// Sends the rows; answers how many were written.
    pub(super) async fn send(mut self, conn: &mut PgConnection) -> Result<u64, StoreError> {
        self.bytes.extend_from_slice(&TRAILER.to_be_bytes());
        let mut copy = conn.copy_in_raw(self.statement).await?;
        copy.send(self.bytes).await?;
        Ok(copy.finish().await?)
    }
}
