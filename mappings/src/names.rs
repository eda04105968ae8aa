//! The names of rules and the paths of elements, kept for the life of the process: every slot of every message carries some.
//!
//! Invariant: they come from mappings and from FHIR's definitions, never from a message, so there are a few thousand of them.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);

/// The same text for as long as the process lives; the same place for the same text.
pub(crate) fn name(text: &str) -> &'static str {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(text) {
        return known;
    }
    let kept: &'static str = Box::leak(text.into());
    names.insert(kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once() {
        let first = name("a/name/of/a/test");
        assert_eq!(first, "a/name/of/a/test");
        assert!(std::ptr::eq(first, name(&String::from("a/name/of/a/test"))));
    }
}
