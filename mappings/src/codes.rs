//! Codes that somebody translated for one sender while the gateway runs: they go before the tables.

use crate::table::Target;
use std::collections::HashMap;

/// What people have said of single codes of single senders.
#[derive(Clone, Debug, Default)]
pub struct SiteCodes {
    /// Counts up with each change.
    version: i64,
    /// By sender and table, then by code.
    by_table: HashMap<(String, String), HashMap<String, Target>>,
}

/// One code that was translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCode {
    /// Whose code it is.
    pub sender: String,
    /// The table that does not know it.
    pub table: String,
    /// The code as it is sent.
    pub code: String,
    /// The system of its translation; may be empty where the element knows it.
    pub system: String,
    /// Its translation.
    pub target: String,
    /// What the translation is called, if it was said.
    pub display: Option<String>,
}

impl SiteCodes {
    /// All codes at a version.
    pub fn new(version: i64, codes: impl IntoIterator<Item = SiteCode>) -> SiteCodes {
        let mut by_table: HashMap<(String, String), HashMap<String, Target>> = HashMap::new();
        for SiteCode { sender, table, code, system, target, display } in codes {
            let target = Target { system, code: target, display };
            by_table.entry((sender, table)).or_default().insert(code, target);
        }
        SiteCodes { version, by_table }
    }

    /// How often they changed.
    pub fn version(&self) -> i64 {
        self.version
    }

    pub(crate) fn look_up(&self, sender: &str, table: &str, code: &str) -> Option<&Target> {
        if self.by_table.is_empty() {
            return None;
        }
        self.by_table.get(&(sender.to_owned(), table.to_owned()))?.get(code)
    }
}
