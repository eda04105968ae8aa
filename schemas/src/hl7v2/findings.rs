//! Issues in a number that does not depend on the sender.

use crate::issue::{Issue, Severity};
use std::fmt::Display;

/// How many issues of one code are listed one by one; the rest is counted.
const ISSUES_OF_A_KIND_MAX: usize = 10;

/// Collects issues: the first ones of each code are listed, the others counted.
#[derive(Default)]
pub(super) struct Findings {
    issues: Vec<Issue>,
    kinds: Vec<(Severity, &'static str, usize)>,
}

impl Findings {
    /// One finding at a place.
    pub(super) fn note(
        &mut self,
        severity: Severity,
        code: &'static str,
        path: impl Display,
        text: impl Display,
    ) {
        let count = match self.kinds.iter_mut().find(|kind| kind.1 == code) {
            Some(kind) => {
                kind.2 += 1;
                kind.2
            }
            None => {
                self.kinds.push((severity, code, 1));
                1
            }
        };
        if count <= ISSUES_OF_A_KIND_MAX {
            self.issues.push(Issue::new(severity, code, path.to_string(), text.to_string()));
        }
    }

    /// Findings of another reader, which has bounded them.
    pub(super) fn extend(&mut self, issues: impl IntoIterator<Item = Issue>) {
        self.issues.extend(issues);
    }

    /// The issues, the counts of what was not listed last.
    pub(super) fn into_issues(mut self) -> Vec<Issue> {
        for (severity, code, count) in self.kinds {
            if let Some(more) = count.checked_sub(ISSUES_OF_A_KIND_MAX).filter(|more| *more > 0) {
                self.issues.push(Issue::new(severity, code, "", format!("{more} more of the same")));
            }
        }
        self.issues
    }
}
