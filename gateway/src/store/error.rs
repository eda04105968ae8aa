//! What a database's error means for the path: try again, stop intake, do the batch again, or a mistake of ours.

use crate::store::StoreError;
use sqlx::sqlite::SqliteError;

impl From<sqlx::Error> for StoreError {
    /// The detail that PostgreSQL sends along with an error may hold a value of the row. It is not part of the error's text,
    /// and no code of ours asks for it.
    fn from(error: sqlx::Error) -> Self {
        let meaning = match &error {
            sqlx::Error::Database(database) => {
                let code = database.code().unwrap_or_default();
                if database.try_downcast_ref::<SqliteError>().is_some() {
                    sqlite(code.parse().unwrap_or_default())
                } else {
                    postgres(&code)
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Meaning::Away,
            _ => Meaning::Bug,
        };
        match meaning {
            Meaning::Away => StoreError::Away(Box::new(error)),
            Meaning::Full => StoreError::Full,
            Meaning::Conflict => StoreError::Conflict,
            Meaning::Bug => StoreError::Bug(Box::new(error)),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Meaning {
    Away,
    Full,
    Conflict,
    Bug,
}

/// PostgreSQL's SQLSTATE (its manual, appendix A).
fn postgres(code: &str) -> Meaning {
    match code {
        // disk_full
        "53100" => Meaning::Full,
        // serialization_failure, deadlock_detected, and the unique_violation of two batches that made the same row
        "40001" | "40P01" | "23505" => Meaning::Conflict,
        // out_of_memory, too_many_connections, the shutdowns and cannot_connect_now, idle_session_timeout,
        // read_only_sql_transaction (a standby after a failover), lock_not_available, query_canceled,
        // idle_in_transaction_session_timeout, io_error
        "53200" | "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "25006" | "55P03" | "57014" | "25P03"
        | "58030" => Meaning::Away,
        // connection exceptions
        _ if code.starts_with("08") => Meaning::Away,
        _ => Meaning::Bug,
    }
}

/// SQLite's result codes, extended ones included: the primary code is the low byte.
fn sqlite(code: u32) -> Meaning {
    const IOERR_SHMSIZE: u32 = 4874;
    match (code & 0xFF, code) {
        // FULL; the shared memory file could not grow
        (13, _) | (_, IOERR_SHMSIZE) => Meaning::Full,
        // CONSTRAINT_PRIMARYKEY, CONSTRAINT_UNIQUE, CONSTRAINT_ROWID
        (_, 1555 | 2067 | 2579) => Meaning::Conflict,
        // BUSY, LOCKED, READONLY, IOERR, CANTOPEN
        (5 | 6 | 8 | 10 | 14, _) => Meaning::Away,
        _ => Meaning::Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_meaning() {
        for (code, meaning) in [
            ("53100", Meaning::Full),
            ("40P01", Meaning::Conflict),
            ("23505", Meaning::Conflict),
            ("57P01", Meaning::Away),
            ("08006", Meaning::Away),
            ("42601", Meaning::Bug),
            ("", Meaning::Bug),
        ] {
            assert_eq!(postgres(code), meaning, "{code}");
        }
        for (code, meaning) in [
            (13, Meaning::Full),
            (4874, Meaning::Full),
            (2067, Meaning::Conflict),
            (5, Meaning::Away),
            (517, Meaning::Away),
            (1, Meaning::Bug),
            (11, Meaning::Bug),
        ] {
            assert_eq!(sqlite(code), meaning, "{code}");
        }
    }
}
