//! Who is subscribed at the moment: what stands in the configuration, and what was requested over `/fhir`.
//!
//! Invariant: a message is routed by no older roster than the one that its recording transaction sees, so that whoever was told to be
//! subscribed misses nothing that is received from then on, whichever replica records it.

use super::Router;
use super::requested::{self, Channel, Wanted};
use crate::config::Subscription;
use crate::ingest::senders::Senders;
use crate::store::{Requested, Standing, Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

/// How often a change is tried when others change the same subscription.
const TRIES_MAX: usize = 10;
/// How many deliveries are given up in one transaction.
const GIVEN_UP_AT_ONCE: usize = 1_000;

/// Keeps up with the store.
pub struct Roster {
    store: Arc<dyn Store>,
    configured: Vec<Arc<Subscription>>,
    senders: Senders,
    /// Where `/fhir` lies.
    base: Option<String>,
    namespace: Uuid,
    now: watch::Sender<Arc<Enrolled>>,
    /// Held while it is read.
    reading: Mutex<()>,
}

/// The roster at one moment.
#[derive(Debug)]
pub struct Enrolled {
    version: i64,
    /// Routes by it.
    pub router: Router,
    /// What was requested, removed ones included.
    pub requested: Vec<Arc<Enrolment>>,
    /// Where each stands.
    by_id: HashMap<Uuid, usize>,
}

/// A requested subscription.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// As it is stored.
    pub stored: Requested,
    /// What it asks for, or why the configuration does not allow that any more.
    pub wanted: Result<Arc<Wanted>, Arc<str>>,
}

impl Enrolment {
    /// By which channel it is told.
    pub fn channel(&self) -> Option<Channel> {
        Channel::of(&serde_json::from_str(&self.stored.resource).ok()?)
    }

    /// Whether its events are recorded.
    fn is_heard(&self) -> bool {
        self.stored.is_live && !matches!(self.stored.standing, Standing::Off | Standing::Removed)
    }
}

impl Enrolled {
    /// One that was requested, and is not removed.
    pub fn find(&self, id: Uuid) -> Option<&Arc<Enrolment>> {
        let found = self.by_id.get(&id).map(|index| &self.requested[*index]);
        found.filter(|one| one.stored.standing != Standing::Removed)
    }
}

impl Roster {
    /// What stands in the configuration; the rest is read by [`Roster::refresh`].
    pub fn new(
        store: Arc<dyn Store>,
        configured: Vec<Subscription>,
        senders: Senders,
        base: Option<String>,
        namespace: Uuid,
    ) -> Roster {
        let configured: Vec<Arc<Subscription>> = configured.into_iter().map(Arc::new).collect();
        let router = Router::new(configured.clone(), namespace);
        let now = watch::Sender::new(Arc::new(Enrolled {
            version: -1,
            router,
            requested: Vec::new(),
            by_id: HashMap::new(),
        }));
        Roster { store, configured, senders, base, namespace, now, reading: Mutex::new(()) }
    }

    /// What stands in the configuration.
    pub fn configured(&self) -> &[Arc<Subscription>] {
        &self.configured
    }

    /// Where `/fhir` lies, if the configuration says so.
    pub fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }

    /// As it was read last.
    pub fn now(&self) -> Arc<Enrolled> {
        self.now.borrow().clone()
    }

    /// Tells of changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Enrolled>> {
        self.now.subscribe()
    }

    /// As of that version of the store, or a later one.
    ///
    /// # Errors
    /// The store's.
    pub async fn at_least(&self, version: i64) -> Result<Arc<Enrolled>, StoreError> {
        let now = self.now();
        if now.version >= version { Ok(now) } else { self.refresh().await }
    }

    /// As it is by now.
    ///
    /// # Errors
    /// The store's.
    pub async fn refresh(&self) -> Result<Arc<Enrolled>, StoreError> {
        let _alone = self.reading.lock().await;
        let before = self.now();
        if let Some(changes) = self.store.requested(before.version).await? {
            let version = changes.version;
            let changed = changes.rows.into_iter().map(|one| Arc::new(self.enrol(one, &before)));
            // What did not read may read by now: a file that could not be opened, say.
            let again = |one: &Arc<Enrolment>| match one.wanted {
                Ok(_) => Arc::clone(one),
                Err(_) => Arc::new(self.enrol(one.stored.clone(), &before)),
            };
            let unchanged = before.requested.iter().filter(|_| !changes.is_whole);
            let mut requested: Vec<Arc<Enrolment>> = unchanged.map(again).collect();
            for one in changed {
                match before.by_id.get(&one.stored.id).filter(|_| !changes.is_whole) {
                    Some(index) => requested[*index] = one,
                    None => requested.push(one),
                }
            }
            let heard = requested.iter().filter(|one| one.is_heard());
            let heard = heard.filter_map(|one| Some(Arc::clone(&one.wanted.as_ref().ok()?.subscription)));
            let subscriptions = self.configured.iter().cloned().chain(heard).collect();
            let router = Router::new(subscriptions, self.namespace);
            let by_id = requested.iter().enumerate().map(|(index, one)| (one.stored.id, index)).collect();
            self.now.send_replace(Arc::new(Enrolled { version, router, requested, by_id }));
        }
        Ok(self.now())
    }

    fn enrol(&self, stored: Requested, before: &Enrolled) -> Enrolment {
        let known = before.by_id.get(&stored.id).map(|index| &before.requested[*index]);
        let known = known.filter(|known| known.stored.written == stored.written);
        if let Some(Ok(wanted)) = known.map(|known| &known.wanted) {
            return Enrolment { wanted: Ok(Arc::clone(wanted)), stored };
        }
        let wanted = self.read(&stored);
        let before = known.and_then(|known| known.wanted.as_ref().err());
        if let Err(why) = &wanted
            && before != Some(why)
        {
            tracing::warn!(subscription = %stored.id, owner = %stored.owner, why = &**why, "a requested subscription is not allowed any more");
        }
        Enrolment { wanted, stored }
    }

    fn read(&self, stored: &Requested) -> Result<Arc<Wanted>, Arc<str>> {
        let allowed = self.senders.subscribes(&stored.owner).ok_or("its owner may not subscribe any more")?;
        let base = self.base.as_deref().ok_or("the configuration does not say where /fhir lies")?;
        let resource = serde_json::from_str(&stored.resource).map_err(|_| "what is stored does not read")?;
        let id = stored.id.to_string();
        requested::read(&resource, (&id, &stored.owner), allowed, base)
            .map(Arc::new)
            .map_err(|faults| faults.first().map_or("", |fault| &fault.text).into())
    }

    /// Writes a new one, or the next version of one, and takes it in.
    ///
    /// # Errors
    /// The store's; [`StoreError::Conflict`] if another came first.
    pub async fn write(&self, one: &Requested) -> Result<(), StoreError> {
        let written = self.store.write_requested(one).await;
        let refreshed = self.refresh().await;
        written?;
        // It is written: whoever needs to know it reads it again.
        if let Err(error) = refreshed {
            tracing::warn!(error = %crate::chain(&error), "the subscriptions could not be read");
        }
        Ok(())
    }

    /// Changes one as it stands by now; `change` says whether there is anything to change. Answers whether there was.
    ///
    /// # Errors
    /// The store's.
    pub async fn change(
        &self,
        id: Uuid,
        change: impl Fn(&mut Requested) -> bool,
    ) -> Result<bool, StoreError> {
        for _ in 0..TRIES_MAX {
            let now = self.refresh().await?;
            let Some(known) = now.find(id) else { return Ok(false) };
            let mut one = known.stored.clone();
            if !change(&mut one) {
                return Ok(false);
            }
            one.version += 1;
            match self.write(&one).await {
                Err(StoreError::Conflict) => {}
                written => return written.map(|()| true),
            }
        }
        Err(StoreError::Conflict)
    }

    /// What its owner is asked to keep to.
    pub fn senders(&self) -> &Senders {
        &self.senders
    }

    /// Gives up whatever one still had to be sent. Answers how many deliveries that were.
    ///
    /// # Errors
    /// The store's.
    pub async fn give_up(&self, id: Uuid, why: &str) -> Result<u64, StoreError> {
        let (name, mut all) = (id.to_string(), 0);
        loop {
            let given_up = self.store.give_up(&name, why, GIVEN_UP_AT_ONCE).await?;
            all += given_up;
            if given_up == 0 {
                return Ok(all);
            }
        }
    }

    /// Forgets one.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget(&self, id: Uuid) -> Result<(), StoreError> {
        self.store.forget(id).await?;
        self.refresh().await.map(drop)
    }
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roster").field("version", &self.now().version).finish_non_exhaustive()
    }
}
