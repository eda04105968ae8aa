//! Subscriptions that their owners asked for over FHIR, as both stores keep them.

use super::{StoreError, pack};
use jiff::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// A subscription that somebody asked for over `/fhir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requested {
    /// Its id, and its name on the bus and in deliveries.
    pub id: Uuid,
    /// The sender whose it is.
    pub owner: Arc<str>,
    /// 1 at first, one more with each change.
    pub version: i64,
    /// The version in which its owner spoke last.
    pub written: i64,
    /// How it stands.
    pub standing: Standing,
    /// Whether its events are recorded: from its first handshake on, until it is switched off.
    pub is_live: bool,
    /// Why it does not get on, for its owner; empty if it does.
    pub error: String,
    /// The Subscription in JSON as its owner wrote it, which may hold secrets in its headers.
    pub resource: String,
    /// When it changed last, by the database's clock; of no meaning when it is written.
    pub changed_at: Timestamp,
}

/// What became of the requested subscriptions since somebody read them last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// How often any of them changed.
    pub version: i64,
    /// Whether these are all that there are; otherwise those that are new or have changed.
    pub is_whole: bool,
    /// They, by their ids.
    pub rows: Vec<Requested>,
}

/// How a requested subscription stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its endpoint has not answered a handshake yet.
    Requested,
    /// It is notified.
    Active,
    /// Its endpoint did not take the handshake: nothing is sent until its owner asks again.
    Refused,
    /// Its endpoint took the handshake, and takes no notifications now; they are kept, and tried again and again.
    Failing,
    /// Its owner switched it off, or its end has come.
    Off,
    /// Its owner deleted it; what was still to be sent is about to be given up.
    Removed,
}

/// Each with its number in a row. Frozen: rows depend on it.
const STANDINGS: [(i16, Standing); 6] = [
    (0, Standing::Requested),
    (1, Standing::Active),
    (2, Standing::Refused),
    (3, Standing::Failing),
    (4, Standing::Off),
    (5, Standing::Removed),
];

impl Standing {
    pub(super) fn to_row(self) -> i16 {
        STANDINGS.iter().find(|(_, known)| *known == self).map_or(0, |(code, _)| *code)
    }

    /// The status of a FHIR Subscription (value set subscription-status).
    pub fn code(self) -> &'static str {
        match self {
            Standing::Requested => "requested",
            Standing::Active => "active",
            Standing::Refused | Standing::Failing => "error",
            Standing::Off | Standing::Removed => "off",
        }
    }
}

/// The columns of a row, in this order.
pub(super) const COLUMNS: &str = "id, owner, version, written, standing, live, error, resource, changed_us";

/// As [`COLUMNS`] come.
pub(super) type Row = (Uuid, String, i64, i64, i16, bool, String, String, i64);

pub(super) fn from_row(row: Row) -> Result<Requested, StoreError> {
    let (id, owner, version, written, standing, is_live, error, resource, changed_us) = row;
    let known = STANDINGS.iter().find(|(code, _)| *code == standing);
    let (_, standing) = known.ok_or_else(|| pack::damaged("the standing of a subscription"))?;
    Ok(Requested {
        id,
        owner: owner.into(),
        version,
        written,
        standing: *standing,
        is_live,
        error,
        resource,
        changed_at: pack::time(changed_us)?,
    })
}

/// How many tokens of an owner are kept; the newest.
pub(super) const TOKENS_MAX: i64 = 100;

/// What binds a WebSocket to subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketToken {
    /// SHA-256 of the token. The token itself is its owner's alone.
    pub hash: [u8; 32],
    /// The sender whose it is.
    pub owner: Arc<str>,
    /// To which it binds.
    pub subscriptions: Vec<Uuid>,
    /// Until when.
    pub until: Timestamp,
}

impl SocketToken {
    /// [`SocketToken::subscriptions`] as a row has it.
    pub(super) fn listed(&self) -> String {
        self.subscriptions.iter().map(Uuid::to_string).collect::<Vec<_>>().join(" ")
    }

    pub(super) fn from_row(
        hash: [u8; 32],
        (owner, subscriptions, until_us): (String, String, i64),
    ) -> Result<SocketToken, StoreError> {
        let subscriptions = subscriptions.split_whitespace().map(str::parse).collect::<Result<_, _>>();
        let subscriptions = subscriptions.map_err(|_| pack::damaged("a token's subscriptions"))?;
        Ok(SocketToken { hash, owner: owner.into(), subscriptions, until: pack::time(until_us)? })
    }
}
