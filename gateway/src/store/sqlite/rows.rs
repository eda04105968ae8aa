//! Many rows in few statements.

use crate::store::StoreError;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Sqlite};

/// Rows a statement: few sizes, so that few statements are prepared.
const SIZES: [usize; 3] = [64, 8, 1];

/// A statement with its values bound so far.
pub(super) type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Rows to be written or looked for.
pub(super) struct Rows<'r, R> {
    rows: &'r [R],
}

impl<'r, R> Rows<'r, R> {
    pub(super) fn new(rows: &'r [R]) -> Self {
        Rows { rows }
    }

    /// Runs `head (?, ?), (?, ?) tail` with `columns` values a row. Answers how many rows were changed.
    pub(super) async fn tuples(
        &self,
        conn: &mut SqliteConnection,
        head: &str,
        columns: usize,
        tail: &str,
        bind: impl Fn(Bound<'r>, &'r R) -> Bound<'r>,
    ) -> Result<u64, StoreError> {
        let tuple = format!("({})", marks(columns));
        let mut changed = 0;
        for part in parts(self.rows) {
            let sql = format!("{head}{}{tail}", vec![tuple.as_str(); part.len()].join(","));
            let query = part.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
            changed += query.execute(&mut *conn).await?.rows_affected();
        }
        Ok(changed)
    }

    /// Runs `head ?, ?, ? tail` with one value a row. Answers the rows found.
    pub(super) async fn one_each(
        &self,
        conn: &mut SqliteConnection,
        head: &str,
        tail: &str,
        bind: impl Fn(Bound<'r>, &'r R) -> Bound<'r>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let mut found = Vec::new();
        for part in parts(self.rows) {
            let sql = format!("{head}{}{tail}", marks(part.len()));
            let query = part.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
            found.extend(query.fetch_all(&mut *conn).await?);
        }
        Ok(found)
    }

    /// As [`Rows::tuples`], answering the rows found or returned.
    pub(super) async fn tuples_found(
        &self,
        conn: &mut SqliteConnection,
        head: &str,
        columns: usize,
        tail: &str,
        bind: impl Fn(Bound<'r>, &'r R) -> Bound<'r>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let tuple = format!("({})", marks(columns));
        let mut found = Vec::new();
        for part in parts(self.rows) {
            let sql = format!("{head}{}{tail}", vec![tuple.as_str(); part.len()].join(","));
            let query = part.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
            found.extend(query.fetch_all(&mut *conn).await?);
        }
        Ok(found)
    }
}

fn marks(count: usize) -> String {
    vec!["?"; count].join(",")
}

fn parts<R>(rows: &[R]) -> impl Iterator<Item = &[R]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rest.len())?;
        let (part, after) = rest.split_at(size);
        rest = after;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_every_row_once_and_in_order() {
        for count in [0, 1, 7, 8, 9, 64, 73, 200] {
            let rows: Vec<usize> = (0..count).collect();
            assert_eq!(parts(&rows).flatten().copied().collect::<Vec<_>>(), rows);
        }
    }
}
