//! Giving way to intake in a burst: with a backlog, what is done first only decides who waits, and senders wait for an answer.

use std::time::Duration;

/// How long normalizing waits at a time.
pub(super) const GIVE_WAY: Duration = Duration::from_millis(10);
/// How long it waits over one backlog, all in all; so no message waits longer for that.
const GIVE_WAY_MAX: Duration = Duration::from_secs(10);

/// How long normalizing gave way since there is a backlog.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    shown: Duration,
}

impl Courtesy {
    /// Whether normalizing waits now. Once it has waited long enough, it works the backlog off before it gives way again.
    pub(super) fn gives_way(&mut self, backlog: bool, pressed: bool) -> bool {
        if !backlog {
            self.shown = Duration::ZERO;
        }
        backlog && pressed && self.shown < GIVE_WAY_MAX
    }

    /// It waited so long.
    pub(super) fn shown(&mut self, time: Duration) {
        self.shown += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizing_gives_way_for_a_while_and_then_works_the_backlog_off() {
        let mut courtesy = Courtesy::default();
        assert!(!courtesy.gives_way(false, true), "a few messages are done in no time");
        assert!(!courtesy.gives_way(true, false), "nobody waits at the door");
        let mut waited = Duration::ZERO;
        while courtesy.gives_way(true, true) {
            courtesy.shown(GIVE_WAY);
            waited += GIVE_WAY;
        }
        assert_eq!(waited, GIVE_WAY_MAX);
        assert!(
            !courtesy.gives_way(true, false) && !courtesy.gives_way(true, true),
            "the backlog is still there"
        );
        assert!(!courtesy.gives_way(false, true));
        assert!(courtesy.gives_way(true, true), "this is another one");
    }
}
