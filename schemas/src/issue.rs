//! What a reader, a mapping or a check has to say about one message: a severity, a code, a place, a sentence.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How much an [`Issue`] matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing was lost; somebody may want to know.
    Information,
    /// Something was not taken as it stood.
    Warning,
    /// Something could not be taken.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Information => "information",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// One finding about one message. It names places and never values: a value is a patient's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    /// How much it matters.
    pub severity: Severity,
    /// A stable word in kebab case, the same for every finding of a kind, such as `unmapped-field`.
    pub code: String,
    /// Where in the message: an HL7 v2 path (`OBX[3]-5.2`) or a FHIRPath; empty when it is about the whole message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Which mapping rule raised it, such as `pid_patient/birthDate`; empty when none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// A sentence for the operator: what was expected, what was done. Never a value of the message.
    pub text: String,
}

impl Issue {
    /// An issue without a mapping rule.
    pub fn new(severity: Severity, code: &str, path: impl Into<String>, text: impl Into<String>) -> Self {
        Issue { severity, code: code.to_owned(), path: path.into(), rule: String::new(), text: text.into() }
    }

    /// The same issue, said to come from a mapping rule.
    #[must_use]
    pub fn by(mut self, rule: impl Into<String>) -> Self {
        self.rule = rule.into();
        self
    }
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.code)?;
        if !self.path.is_empty() {
            write!(f, " at {}", self.path)?;
        }
        if !self.rule.is_empty() {
            write!(f, " ({})", self.rule)?;
        }
        write!(f, ": {}", self.text)
    }
}
