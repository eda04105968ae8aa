//! Those who wait for a message to be normalized: FHIR writes, application acknowledgements.

use schemas::issue::Issue;
use schemas::message::MessageId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;
use uuid::Uuid;

/// What normalizing one message came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Why it is in quarantine, if it is.
    pub quarantined: Option<String>,
    /// What was not as the message expects: nothing of it was taken, and nothing of it will be.
    pub unmet: Option<Issue>,
    /// The resources that it made or changed, in the order of the message.
    pub resources: Vec<Changed>,
}

impl Done {
    /// Of a message in quarantine.
    pub fn quarantined(why: String) -> Self {
        Done { quarantined: Some(why), unmet: None, resources: Vec::new() }
    }

    /// Of a message that was taken.
    pub fn taken(resources: Vec<Changed>) -> Self {
        Done { quarantined: None, unmet: None, resources }
    }

    /// Of a message under whose condition nothing of it is taken.
    pub fn unmet(issue: Issue) -> Self {
        Done { quarantined: None, unmet: Some(issue), resources: Vec::new() }
    }
}

/// The codes of issues that tell of an unmet condition: what is there is another version, or is there or not; what a search finds has
/// another id.
pub const UNMET: [&str; 2] = ["precondition-failed", "other-id"];

/// One resource of a [`Done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// `Patient`, ...
    pub resource_type: String,
    /// Its id.
    pub id: Uuid,
    /// The version that it was given; unknown for a repeat after which others have changed it.
    pub version: Option<i64>,
    /// Whether it was not there before.
    pub created: bool,
}

/// The register of those who wait. In memory: who waits has a connection open to this very process.
#[derive(Debug, Default)]
pub struct Waiters {
    waiting: Mutex<HashMap<MessageId, Vec<oneshot::Sender<Done>>>>,
}

impl Waiters {
    /// Begins to wait; call it before the message is stored, or look into the store afterwards.
    pub fn register(&self, message: MessageId) -> oneshot::Receiver<Done> {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who gave up leave their entry behind; clear such entries whenever the register has grown.
        if waiting.len().is_power_of_two() {
            waiting.retain(|_, who| who.iter().any(|one| !one.is_closed()));
        }
        waiting.entry(message).or_default().push(tell);
        told
    }

    /// Whether anybody waits for this message.
    pub fn awaited(&self, message: MessageId) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&message)
    }

    /// Whether anybody waits for any message.
    pub fn anybody(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.values().flatten().any(|one| !one.is_closed())
    }

    /// Tells everybody who waits for this message.
    pub fn tell(&self, message: MessageId, done: &Done) {
        let who = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&message);
        for one in who.into_iter().flatten() {
            // A waiter that gave up has closed its connection: nobody is left to tell.
            let _ = one.send(done.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_told_once_and_those_who_gave_up_leave_nothing_behind() {
        let waiters = Waiters::default();
        let id = MessageId(Uuid::from_u128(1));
        let done = Done::taken(Vec::new());
        let (mut first, second) = (waiters.register(id), waiters.register(id));
        drop(second);
        assert!(waiters.awaited(id) && waiters.anybody());
        waiters.tell(id, &done);
        assert_eq!(first.try_recv(), Ok(done));
        assert!(!waiters.awaited(id) && !waiters.anybody());
        for n in 0..1000 {
            drop(waiters.register(MessageId(Uuid::from_u128(n))));
        }
        assert!(waiters.waiting.lock().expect("held by nobody").len() <= 512);
        assert!(!waiters.anybody(), "they all gave up");
    }
}
