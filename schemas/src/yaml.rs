//! YAML as a tree of text with places: the form in which configuration and mappings are read.
//!
//! Invariant: every scalar is text; its reader types it by its place, so that `NO`, `05` and `.10` mean what they
//! say. Anchors, aliases, tags, merge keys and duplicate keys are errors: a reader should see what there is.

use saphyr_parser::{Event, Parser, ScanError};
use std::fmt;

/// A place in a YAML text, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One mistake in a YAML file: where, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub place: Place,
    /// The path of keys that leads there, such as `sources[0].port`; may be empty.
    pub key: String,
    /// What is wrong and what was expected; never a secret.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// A node with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where the node begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, quoted or not. A plain empty scalar (`key:`) is [`Value::Empty`].
    Text(String),
    /// A key without a value.
    Empty,
    /// `[a, b]`
    List(Vec<Node>),
    /// `{a: b}`, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a map, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where the key stands.
    pub place: Place,
    /// The key.
    pub name: String,
}

impl Node {
    /// What to call this node in a sentence.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Text(_) => "text",
            Value::Empty => "nothing",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value under a key of a map.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }
}

/// Reads every document of a YAML text (documents are parted by `---`).
///
/// # Errors
/// The first mistake in syntax, or the first use of what is left out on purpose (anchors, aliases, tags, merge keys,
/// duplicate keys, keys that are not text).
pub fn read(text: &str) -> Result<Vec<Node>, Mistake> {
    let mut reader = TreeReader { parser: Parser::new_from_str(text), depth: 0 };
    let mut documents = Vec::new();
    loop {
        match reader.next()? {
            (Event::StreamEnd, _) => return Ok(documents),
            (Event::DocumentStart(_), _) => documents.push(reader.node()?),
            _ => {}
        }
    }
}

/// The deepest nesting taken; deeper is a mistake or an attack.
const DEPTH_MAX: usize = 64;

struct TreeReader<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    depth: usize,
}

impl<'t> TreeReader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, Place), Mistake> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                Ok((event, Place { line: span.start.line(), column: span.start.col() + 1 }))
            }
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok((Event::StreamEnd, Place::default())),
        }
    }

    fn node(&mut self) -> Result<Node, Mistake> {
        let (event, place) = self.next()?;
        self.node_from(event, place)
    }

    fn node_from(&mut self, event: Event<'t>, place: Place) -> Result<Node, Mistake> {
        let refuse = |what: &str| Err(Mistake { place, key: String::new(), text: what.to_owned() });
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return refuse("nested more than 64 levels deep");
        }
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors and tags are not used here: write the value out");
                }
                let plain = style == saphyr_parser::ScalarStyle::Plain;
                if plain && text.is_empty() { Value::Empty } else { Value::Text(text.into_owned()) }
            }
            Event::SequenceStart(anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors and tags are not used here: write the value out");
                }
                let mut items = Vec::new();
                loop {
                    let (event, place) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break Value::List(items);
                    }
                    items.push(self.node_from(event, place)?);
                }
            }
            Event::MappingStart(anchor, tag) => {
                if anchor != 0 || tag.is_some() {
                    return refuse("anchors and tags are not used here: write the value out");
                }
                self.entries()?
            }
            Event::Alias(_) => return refuse("aliases are not used here: write the value out"),
            _ => return refuse("expected a value"),
        };
        self.depth -= 1;
        Ok(Node { place, value })
    }

    fn entries(&mut self) -> Result<Value, Mistake> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, place) = self.next()?;
            let refuse = |text: String| Err(Mistake { place, key: String::new(), text });
            let name = match event {
                Event::MappingEnd => return Ok(Value::Map(entries)),
                Event::Scalar(name, ..) if name == "<<" => {
                    return refuse("merge keys are not used here: write the keys out".to_owned());
                }
                Event::Scalar(name, ..) => name.into_owned(),
                _ => return refuse("a key is plain text".to_owned()),
            };
            if entries.iter().any(|(key, _)| key.name == name) {
                return refuse(format!("key `{name}` stands here twice"));
            }
            let node = self.node()?;
            entries.push((Key { place, name }, node));
        }
    }
}

fn syntax(error: &ScanError) -> Mistake {
    let mark = error.marker();
    Mistake {
        place: Place { line: mark.line(), column: mark.col() + 1 },
        key: String::new(),
        text: error.info().to_owned(),
    }
}

/// The nearest of `known` to `word`, if it is near enough to be what was meant.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let (distance, best) = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word.to_lowercase(), &name.to_lowercase()), name))
        .min()?;
    (distance <= 1 + word.chars().count() / 3).then_some(best)
}

/// Reads one map key by key and collects every mistake on the way, so that all of them are told at once.
///
/// Take each key that you know with the `take_*` functions, then call [`Fields::finish`], which reports the rest as unknown
/// with the nearest right spelling.
pub struct Fields<'n, 'm> {
    path: String,
    place: Place,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
    mistakes: &'m mut Vec<Mistake>,
}

impl<'n, 'm> Fields<'n, 'm> {
    /// Begins to read `node`, which should be a map (nothing counts as an empty one). `path` leads to it.
    pub fn new(node: &'n Node, path: &str, mistakes: &'m mut Vec<Mistake>) -> Self {
        let entries: &[(Key, Node)] = match &node.value {
            Value::Map(entries) => entries,
            Value::Empty => &[],
            _ => {
                mistakes.push(Mistake {
                    place: node.place,
                    key: path.to_owned(),
                    text: format!("expected a map, found {}", node.kind()),
                });
                &[]
            }
        };
        Fields { path: path.to_owned(), place: node.place, entries, known: Vec::new(), mistakes }
    }

    /// The path of a key of this map.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where this map begins.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Where mistakes are collected, to read what lies below this map.
    pub fn mistakes(&mut self) -> &mut Vec<Mistake> {
        self.mistakes
    }

    /// Notes a mistake about a key of this map.
    pub fn wrong(&mut self, place: Place, name: &str, text: impl Into<String>) {
        let key = self.path_of(name);
        self.mistakes.push(Mistake { place, key, text: text.into() });
    }

    /// The node under a key, if it is there.
    pub fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        self.entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node)
    }

    /// The node under a key; a mistake if it is missing.
    pub fn take_required(&mut self, name: &'static str) -> Option<&'n Node> {
        let node = self.take(name);
        if node.is_none() {
            self.wrong(self.place, name, "is missing");
        }
        node
    }

    /// Text under a key; a mistake if it is something else.
    pub fn take_text(&mut self, name: &'static str) -> Option<&'n str> {
        let node = self.take(name)?;
        let text = node.text();
        if text.is_none() {
            self.wrong(node.place, name, format!("expected text, found {}", node.kind()));
        }
        text
    }

    /// A value parsed from the text under a key, such as a number or an address. `expected` says what it should be.
    pub fn take_parsed<T: std::str::FromStr>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        let text = self.take_text(name)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let place =
                self.entries.iter().find(|(key, _)| key.name == name).map_or(self.place, |(_, n)| n.place);
            self.wrong(place, name, format!("expected {expected}"));
        }
        parsed
    }

    /// `true` or `false` under a key.
    pub fn take_bool(&mut self, name: &'static str) -> Option<bool> {
        self.take_parsed(name, "true or false")
    }

    /// One word of a list of choices.
    pub fn take_choice(&mut self, name: &'static str, choices: &[&'static str]) -> Option<&'static str> {
        let text = self.take_text(name)?;
        if let Some(choice) = choices.iter().find(|choice| **choice == text) {
            return Some(choice);
        }
        let place =
            self.entries.iter().find(|(key, _)| key.name == name).map_or(self.place, |(_, n)| n.place);
        let hint = nearest(text, choices.iter().copied())
            .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        self.wrong(place, name, format!("expected one of {}{hint}", choices.join(", ")));
        None
    }

    /// A list of texts; a single text counts as a list of one.
    pub fn take_texts(&mut self, name: &'static str) -> Vec<&'n str> {
        let Some(node) = self.take(name) else { return Vec::new() };
        match &node.value {
            Value::Text(text) => vec![text],
            Value::Empty => Vec::new(),
            Value::List(items) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match item.text() {
                        Some(text) => texts.push(text),
                        None => self.wrong(item.place, name, format!("expected text, found {}", item.kind())),
                    }
                }
                texts
            }
            Value::Map(_) => {
                self.wrong(node.place, name, "expected a list of texts, found a map");
                Vec::new()
            }
        }
    }

    /// The items of a list under a key.
    pub fn take_list(&mut self, name: &'static str) -> &'n [Node] {
        match self.take(name) {
            None => &[],
            Some(Node { value: Value::List(items), .. }) => items,
            Some(Node { value: Value::Empty, .. }) => &[],
            Some(node) => {
                self.wrong(node.place, name, format!("expected a list, found {}", node.kind()));
                &[]
            }
        }
    }

    /// Reports every key that nobody took, with the nearest right spelling.
    pub fn finish(self) {
        for (key, _) in self.entries {
            if self.known.contains(&key.name.as_str()) {
                continue;
            }
            let hint = nearest(&key.name, self.known.iter().copied()).map_or_else(
                || format!("known here: {}", self.known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            self.mistakes.push(Mistake {
                place: key.place,
                key: self.path_of(&key.name),
                text: format!("unknown key; {hint}"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        read(text).expect("valid").remove(0)
    }

    #[test]
    fn scalars_stay_text() {
        let node = one("a: .10\nb: NO\nc: 05\nd:\ne: ''\n");
        let text = |name| node.get(name).and_then(Node::text);
        assert_eq!((text("a"), text("b"), text("c")), (Some(".10"), Some("NO"), Some("05")));
        assert_eq!(node.get("d").map(|n| &n.value), Some(&Value::Empty));
        assert_eq!(text("e"), Some(""));
    }

    #[test]
    fn what_is_left_out_is_refused_with_its_place() {
        for (text, line, column) in [
            ("a: &x 1\n", 1, 4),
            ("a: 1\nb: *x\n", 2, 4),
            ("a: !!int 1\n", 1, 4),
            ("a: 1\na: 2\n", 2, 1),
            ("<<: {a: 1}\n", 1, 1),
            ("a: [1, 2\n", 2, 1),
        ] {
            let mistake = read(text).expect_err(text);
            assert_eq!((mistake.place.line, mistake.place.column), (line, column), "{text:?}: {mistake}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_the_nearest_spelling() {
        let node = one("prot: 1\nhost: x\nmode: fastt\nport: abc\n");
        let mut mistakes = Vec::new();
        let mut fields = Fields::new(&node, "sources[0]", &mut mistakes);
        let port: Option<u16> = fields.take_parsed("port", "a port number");
        let mode = fields.take_choice("mode", &["fast", "slow"]);
        fields.take_required("name");
        assert_eq!(fields.take_text("host"), Some("x"));
        fields.finish();
        assert_eq!((port, mode), (None, None));
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "4:7: sources[0].port: expected a port number",
                "3:7: sources[0].mode: expected one of fast, slow; did you mean `fast`?",
                "1:1: sources[0].name: is missing",
                "1:1: sources[0].prot: unknown key; did you mean `port`?",
            ]
        );
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let deep = "[".repeat(500);
        assert!(read(&deep).is_err());
    }
}
