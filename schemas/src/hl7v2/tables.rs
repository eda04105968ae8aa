//! The codes of HL7's tables, from `schemas/hl7v2/tables.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Each table's number, and its codes in order.
static TABLES: LazyLock<HashMap<&'static str, Vec<&'static str>>> = LazyLock::new(|| {
    let lines = include_str!("../../hl7v2/tables.txt").lines().filter(|line| !line.starts_with('#'));
    let tables = lines.filter_map(|line| line.split_once('\t'));
    tables.map(|(number, codes)| (number, codes.split('\t').collect())).collect()
});

/// Whether HL7 lists a code in a table, of four digits, in any version; `None` for a table of which no codes are known.
///
/// A table that HL7 calls user-defined lists what it suggests: a site's own codes are not in it.
pub fn lists(table: &str, code: &str) -> Option<bool> {
    TABLES.get(table).map(|codes| codes.binary_search(&code).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_listed_as_it_is_written() {
        assert_eq!(lists("0002", "M"), Some(true));
        assert_eq!(lists("0002", "m"), Some(false));
        assert_eq!(lists("0002", "Married"), Some(false));
        assert_eq!(lists("9999", "M"), None);
    }

    #[test]
    fn every_list_can_be_searched() {
        assert!(TABLES.len() > 400);
        assert_eq!(lists("0335", "Q6H"), None, "its codes follow patterns");
        for (table, codes) in &*TABLES {
            assert!(table.len() == 4 && codes.is_sorted_by(|a, b| a < b), "{table}");
        }
    }
}
