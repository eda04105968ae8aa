//! A wrapper that keeps a patient's data out of logs and error texts by construction.

use std::fmt;

/// A value about a patient. It has no `Display`, and its `Debug` prints `[phi]`, so that it cannot slip into a log
/// line, an error or a panic message. Reach the value with [`Phi::reveal`], where showing it is the point.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Phi<T>(T);

impl<T> Phi<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Phi(value)
    }

    /// The value itself. Search for this name to see every place that shows a patient's data.
    pub const fn reveal(&self) -> &T {
        &self.0
    }

    /// Unwraps the value.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Phi<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[phi]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_value() {
        let name = Phi::new("TEST^JANE");
        assert_eq!(format!("{name:?}"), "[phi]");
        assert_eq!(format!("{:#?}", Some(&name)), "Some(\n    [phi],\n)");
        assert_eq!(*name.reveal(), "TEST^JANE");
    }
}
