//! Templates of topics: a filter whose levels may bear names.

/// A template such as `wards/{ward}/devices/{device}/#`: each name stands for one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    levels: Vec<Level>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Fixed(String),
    Named(String),
    /// `+`
    Any,
    /// `#`
    Rest,
}

impl Template {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(text: &str) -> Result<Template, String> {
        let mut levels = Vec::new();
        for part in text.split('/') {
            let named = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            let level = match (part, named) {
                ("+", _) => Level::Any,
                ("#", _) => Level::Rest,
                (_, Some(name)) => Level::Named(plain(name, &levels)?),
                _ if part.contains(['+', '#', '{', '}', '\0']) => {
                    return Err(format!("`{part}`: a level is a text, a name in braces, `+` or `#`"));
                }
                _ => Level::Fixed(part.to_owned()),
            };
            if levels.last() == Some(&Level::Rest) {
                return Err("nothing may follow `#`".to_owned());
            }
            levels.push(level);
        }
        if text.is_empty() || text.len() > usize::from(u16::MAX) {
            return Err("a topic has from 1 to 65535 bytes".to_owned());
        }
        Ok(Template { levels })
    }

    /// The filter to subscribe to.
    pub(super) fn filter(&self) -> String {
        let levels = self.levels.iter().map(|level| match level {
            Level::Fixed(text) => text,
            Level::Named(_) | Level::Any => "+",
            Level::Rest => "#",
        });
        levels.collect::<Vec<_>>().join("/")
    }

    /// The names that it gives to levels.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(|level| match level {
            Level::Named(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The named levels of a topic, if it is one of these.
    pub(super) fn read_topic<'t>(&'t self, topic: &'t str) -> Option<Vec<(&'t str, &'t str)>> {
        // The broker's own.
        let is_system = topic.starts_with('$') && !matches!(&self.levels[0], Level::Fixed(_));
        let mut named = Vec::new();
        let mut parts = topic.split('/');
        for level in &self.levels {
            match (level, parts.next()) {
                (Level::Rest, _) => return (!is_system).then_some(named),
                (Level::Fixed(text), Some(part)) if text == part => {}
                (Level::Any, Some(_)) => {}
                (Level::Named(name), Some(part)) => named.push((name.as_str(), part)),
                _ => return None,
            }
        }
        (parts.next().is_none() && !is_system).then_some(named)
    }
}

fn plain(name: &str, before: &[Level]) -> Result<String, String> {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !is_plain || name == super::config::TOPIC {
        return Err(format!(
            "`{{{name}}}`: a name has small letters, digits and `_`, and `topic` is that of the whole"
        ));
    }
    if before.iter().any(|level| matches!(level, Level::Named(other) if other == name)) {
        return Err(format!("`{{{name}}}` stands there twice"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Template {
        Template::read(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_template_is_a_filter_and_gives_levels_their_names() {
        let ward = template("wards/{ward}/+/{device}/#");
        assert_eq!(ward.filter(), "wards/+/+/+/#");
        assert_eq!(ward.names().collect::<Vec<_>>(), ["ward", "device"]);
        let named = [("ward", "7"), ("device", "pump ü")];
        assert_eq!(ward.read_topic("wards/7/x/pump ü/a/b").as_deref(), Some(&named[..]));
        assert_eq!(
            ward.read_topic("wards/7/x/pump ü").as_deref(),
            Some(&named[..]),
            "`#` takes its parent too"
        );
        assert_eq!(ward.read_topic("wards/7/x"), None);
        assert_eq!(ward.read_topic("ward/7/x/y/z"), None);
    }

    #[test]
    fn levels_may_be_empty_and_none_may_be_left_over() {
        let one = template("a/{b}");
        assert_eq!(one.read_topic("a/").as_deref(), Some(&[("b", "")][..]));
        assert_eq!((one.read_topic("a"), one.read_topic("a/b/c")), (None, None));
        assert_eq!(template("/a").read_topic("/a").as_deref(), Some(&[][..]));
    }

    #[test]
    fn topics_of_the_broker_itself_are_taken_by_their_name_alone() {
        for (text, taken) in [("#", false), ("+/load", false), ("$SYS/load", true), ("$SYS/#", true)] {
            assert_eq!(template(text).read_topic("$SYS/load").is_some(), taken, "{text}");
        }
    }

    #[test]
    fn what_no_broker_would_take_is_a_mistake() {
        for (text, why) in [
            ("", "from 1 to 65535 bytes"),
            ("a/#/b", "nothing may follow"),
            ("a/b#", "`b#`"),
            ("a/{b", "`{b`"),
            ("a/{B}", "small letters"),
            ("a/{topic}", "`topic` is that of the whole"),
            ("{a}/{a}", "twice"),
        ] {
            let told = Template::read(text).expect_err("refused");
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
