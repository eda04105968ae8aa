//! From the tree of a mapping to a flat program: every name is resolved, every path and type checked.
//!
//! Invariant: a program that compiles without mistakes refers to nothing that does not exist.

mod expressions;
mod identities;
mod needs;
mod reads;
mod records;
mod rules;
mod segments;
mod slots;
mod source;
pub(crate) mod target;
mod whole;

use crate::catalog::FileMistake;
use crate::language::ast::{Answer, Declared, Document, Fragment, Map, On, OptionDef, Word};
use crate::program::{Code, IgnoreRule, MappingCode, NodeId, Slot};
use crate::table::Table;
use foldhash::fast::FixedState;
use schemas::records::{ShapeId, Shapes};
use schemas::yaml::{Mistake, Place, nearest};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

/// One file, read.
pub(crate) struct Parsed {
    pub(crate) file: String,
    pub(crate) documents: Vec<Document>,
}

/// What compiling answers.
pub(crate) struct Compiled {
    pub(crate) code: Code,
    pub(crate) mappings: Vec<MappingCode>,
    pub(crate) mistakes: Vec<FileMistake>,
}

/// Compiles every document against each other.
pub(crate) fn compile(files: &[Parsed], tables: Vec<Table>) -> Compiled {
    let mut compiler = Compiler {
        maps: HashMap::new(),
        fragments: HashMap::new(),
        declared: HashMap::new(),
        shapes: Arc::default(),
        mappings: Vec::new(),
        taken: HashSet::new(),
        tables: tables.iter().zip(0u32..).map(|(table, n)| (table.name.clone(), n)).collect(),
        expressions: Known::default(),
        nodes: Known::default(),
        makes: Known::default(),
        lists: HashSet::new(),
        code: Code {
            sender_tables: (tables.iter().zip(0..))
                .filter(|(table, _)| table.name.contains('/'))
                .map(|(table, id)| (table.name.clone(), id))
                .collect(),
            tables,
            ..Code::default()
        },
        called: HashMap::new(),
        parts: HashMap::new(),
        open: Vec::new(),
        refs: HashMap::new(),
        resources: Vec::new(),
        file: "",
        in_extension: false,
        mistakes: Vec::new(),
    };
    compiler.gather(files);
    for parsed in files {
        for document in &parsed.documents {
            compiler.file = &parsed.file;
            match document {
                Document::Map(map) => compiler.map_of_its_own(map),
                Document::Tests { of, .. } => compiler.tests_of(of),
                Document::Mapping(_)
                | Document::Fragment(_)
                | Document::Overlay(_)
                | Document::Segment(_)
                | Document::Record(_) => {}
            }
        }
    }
    let mut mappings = Vec::new();
    for parsed in files {
        for document in &parsed.documents {
            compiler.file = &parsed.file;
            if let Document::Mapping(mapping) = document {
                mappings.push(compiler.mapping(mapping));
            }
        }
    }
    compiler.nobody_takes();
    let refs = std::mem::take(&mut compiler.refs);
    for mapping in &mut mappings {
        mapping.refs = vec![None; refs.len()];
        for (name, id) in &refs {
            mapping.refs[usize::from(*id)] = mapping.resources.iter().position(|r| *r.id == **name);
        }
    }
    let mistakes = compiler.mistakes;
    let mut code = compiler.code;
    code.exprs.shrink_to_fit();
    code.nodes.shrink_to_fit();
    code.makes.shrink_to_fit();
    Compiled { code, mappings, mistakes }
}

struct Compiler<'a> {
    maps: HashMap<&'a str, (&'a Map, &'a str)>,
    fragments: HashMap<&'a str, (&'a Fragment, &'a str)>,
    /// The segments of sites' own.
    declared: HashMap<&'a str, &'a Declared>,
    /// The shapes of records.
    shapes: Arc<Shapes>,
    /// The names of the mappings.
    mappings: Vec<&'a str>,
    /// Resources of fragments that some mapping has taken, as fragment and id.
    taken: HashSet<(&'a str, &'a str)>,
    tables: HashMap<String, u32>,
    code: Code,
    /// What is in the code already: many mappings say the same.
    expressions: Known,
    nodes: Known,
    makes: Known,
    /// The lists of slots, each once.
    lists: HashSet<Arc<[Slot]>>,
    /// Value maps that are compiled already.
    called: HashMap<&'a str, u32>,
    /// Segment maps that are compiled already.
    parts: HashMap<&'a str, Part>,
    /// The maps that are being compiled: a map that calls one of them calls itself.
    open: Vec<&'a str>,
    /// The names that references use, numbered over the whole catalog.
    refs: HashMap<String, u16>,
    /// Every `id:` of every mapping's resources.
    resources: Vec<&'a str>,
    file: &'a str,
    /// Whether the next extension stands inside another.
    in_extension: bool,
    mistakes: Vec<FileMistake>,
}

#[derive(Clone)]
struct Part {
    slots: Arc<[Slot]>,
    ignore: Arc<Vec<IgnoreRule>>,
}

impl<'a> Compiler<'a> {
    fn gather(&mut self, files: &'a [Parsed]) {
        let mut mappings: HashMap<&'a str, &str> = HashMap::new();
        let mut records = Vec::new();
        for parsed in files {
            self.file = &parsed.file;
            for document in &parsed.documents {
                match document {
                    Document::Map(map) => {
                        if let Some((_, other)) = self.maps.insert(&map.name.text, (map, &parsed.file)) {
                            self.wrong(
                                map.name.place,
                                &map.name.text,
                                format!("a map of this name stands in {other} too"),
                            );
                        }
                    }
                    Document::Mapping(mapping) => {
                        if let Some(other) = mappings.insert(&mapping.name.text, &parsed.file) {
                            let text = format!("a mapping of this name stands in {other} too");
                            self.wrong(mapping.name.place, &mapping.name.text, text);
                        }
                        self.resources.extend(mapping.resources.iter().map(|r| r.id.text.as_str()));
                        self.mappings.push(&mapping.name.text);
                    }
                    Document::Tests { .. } | Document::Overlay(_) => {}
                    Document::Segment(declared) => self.declare(declared),
                    Document::Record(record) => records.push((record, &*parsed.file)),
                    Document::Fragment(fragment) => {
                        let own = (&**fragment, &*parsed.file);
                        if let Some((_, other)) = self.fragments.insert(&fragment.name.text, own) {
                            let text = format!("a fragment of this name stands in {other} too");
                            self.wrong(fragment.name.place, &fragment.name.text, text);
                        }
                        self.resources.extend(fragment.resources.iter().map(|r| r.id.text.as_str()));
                    }
                }
            }
        }
        self.declare_records(&records);
    }

    /// A segment of a site's own.
    fn declare(&mut self, declared: &'a Declared) {
        for word in &declared.types {
            if source::Types::named(&word.text).is_none() {
                let hint = hint(&word.text, source::type_names());
                self.wrong(word.place, "type", format!("there is no data type of this name{hint}"));
            }
        }
        if self.declared.insert(&declared.name.text, declared).is_some() {
            self.wrong(declared.name.place, &declared.name.text, "this segment is declared twice");
        }
    }

    /// The types of a field. `Err` holds how many fields the segment has.
    fn field_types(&self, segment: &str, number: u16) -> Result<source::Types, usize> {
        let Some(declared) = self.declared.get(segment) else { return source::field(segment, number) };
        let word = usize::from(number).checked_sub(1).and_then(|index| declared.types.get(index));
        let word = word.ok_or(declared.types.len())?;
        Ok(source::Types::named(&word.text).unwrap_or_default())
    }

    /// Tests that stand in a file of their own are about something that there is.
    fn tests_of(&mut self, of: &Word) {
        let known = self.maps.keys().chain(self.fragments.keys()).chain(&self.mappings).copied();
        let mut known: Vec<&str> = known.collect();
        if !known.contains(&of.text.as_str()) {
            known.sort_unstable();
            let hint = hint(&of.text, known);
            let text = format!("there is no map, fragment or mapping of this name{hint}");
            self.wrong(of.place, "tests_for", text);
        }
    }

    /// Compiles a map even if nobody calls it, so that its mistakes are told.
    fn map_of_its_own(&mut self, map: &'a Map) {
        match &map.answer {
            Answer::To(_) if adds_to_a_resource(map) => {
                self.segment_map(map);
            }
            Answer::To(_) => {
                self.type_map(map);
            }
            Answer::Makes(kind) => self.check_makes(map, kind),
            Answer::Key(_) => {
                let env = Env::of_map(self, map);
                self.key_map(&env, map);
            }
        }
    }

    fn wrong(&mut self, place: Place, key: &str, text: impl Into<String>) {
        let mistake = Mistake { place, key: key.to_owned(), text: text.into() };
        self.mistakes.push(FileMistake { file: self.file.to_owned(), mistake });
    }

    /// Looks a map up by its name and says so if there is none.
    fn find_map(&mut self, name: &Word) -> Option<(&'a Map, &'a str)> {
        if let Some(found) = self.maps.get(name.text.as_str()) {
            return Some(*found);
        }
        let mut names: Vec<&str> = self.maps.keys().copied().collect();
        names.sort_unstable();
        let hint = hint(&name.text, names);
        self.wrong(name.place, &name.text, format!("there is no map of this name{hint}"));
        None
    }

    fn find_table(&mut self, name: &Word) -> Option<u32> {
        if let Some(found) = self.tables.get(name.text.as_str()) {
            return Some(*found);
        }
        let mut names: Vec<&str> = self.tables.keys().map(String::as_str).collect();
        names.sort_unstable();
        let hint = hint(&name.text, names);
        self.wrong(name.place, &name.text, format!("there is no table of this name{hint}"));
        None
    }

    /// The number of a name that references use.
    fn reference(&mut self, name: &Word) -> u16 {
        if !self.resources.contains(&name.text.as_str()) {
            let hint = hint(&name.text, self.resources.clone());
            self.wrong(name.place, &name.text, format!("no mapping has a resource with this id{hint}"));
        }
        let next = u16::try_from(self.refs.len()).unwrap_or(u16::MAX);
        *self.refs.entry(name.text.clone()).or_insert(next)
    }

    /// A place in the file at hand.
    fn at(&mut self, place: Place) -> crate::program::At {
        let files = &mut self.code.files;
        // The file at hand is mostly the last one.
        let known = files.iter().rposition(|known| **known == *self.file);
        let file = known.unwrap_or_else(|| {
            files.push(self.file.into());
            files.len() - 1
        });
        crate::program::At { file: u16::try_from(file).unwrap_or(u16::MAX), place }
    }

    fn node(&mut self, mut node: crate::program::Node) -> NodeId {
        node.needs = needs::of_node(&self.code, &node).unwrap_or_default();
        NodeId(self.nodes.once(&mut self.code.nodes, node))
    }

    /// A list of slots, which several mappings may share.
    fn list(&mut self, slots: Vec<Slot>) -> Arc<[Slot]> {
        if let Some(known) = self.lists.get(&*slots) {
            return Arc::clone(known);
        }
        let list: Arc<[Slot]> = slots.into();
        self.lists.insert(Arc::clone(&list));
        list
    }
}

/// Where each of many values stands in their list, by their hashes.
#[derive(Default)]
struct Known(HashMap<u64, u32>);

impl Known {
    /// The place of a value in the list, to which it is added if it is new.
    fn once<T: Eq + Hash>(&mut self, all: &mut Vec<T>, value: T) -> u32 {
        let hash = FixedState::default().hash_one(&value);
        if let Some(known) = self.0.get(&hash)
            && all[*known as usize] == value
        {
            return *known;
        }
        let place = u32::try_from(all.len()).expect("a catalog has fewer than 2^32 of a kind");
        all.push(value);
        self.0.entry(hash).or_insert(place);
        place
    }
}

/// `; did you mean ...?`, if something is near.
fn hint<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    nearest(word, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// Whether a map is a part of a resource, not of an element.
fn adds_to_a_resource(map: &Map) -> bool {
    match (map.on, &map.answer) {
        (On::Segment, _) => true,
        (On::Record, Answer::To(to)) => target::resource(&to.text).is_some(),
        _ => false,
    }
}

/// What an expression or a rule sees around it.
#[derive(Clone)]
struct Env<'a> {
    /// The map or mapping that it stands in, for the names of its rules.
    owner: &'a str,
    /// What paths that begin with a data type mean: the type and what it is based on, the innermost last.
    bases: Vec<(source::Types, crate::program::Base)>,
    /// The segment on which a segment map stands.
    anchor: Option<&'a str>,
    shapes: Arc<Shapes>,
    /// The records around, the innermost last.
    records: Vec<ShapeId>,
    params: &'a [Word],
    options: &'a [crate::language::ast::OptionDef],
    /// Aliases and the groups that they name.
    aliases: Vec<(String, String)>,
    chain: bool,
    /// Whether a made resource or an instance is being identified: `ordinal()` has a meaning.
    identity: bool,
}

impl<'a> Env<'a> {
    fn of_map(compiler: &mut Compiler<'a>, map: &'a Map) -> Env<'a> {
        let mut env = Env {
            owner: &map.name.text,
            bases: Vec::new(),
            anchor: None,
            shapes: Arc::clone(&compiler.shapes),
            records: Vec::new(),
            params: &map.params,
            options: &map.options,
            aliases: map
                .scope
                .iter()
                .map(|(alias, group)| (alias.text.clone(), group.text.clone()))
                .collect(),
            chain: !map.chain.is_empty(),
            identity: false,
        };
        match map.on {
            On::Segment if source::is_segment(&map.from.text) => {}
            On::Segment => {
                let hint = hint(&map.from.text, source::segment_names());
                compiler.wrong(map.from.place, "from", format!("there is no segment of this name{hint}"));
            }
            On::Element => match source::Types::named(&map.from.text) {
                Some(types) => env.bases.push((types, crate::program::Base::Map)),
                None => {
                    let hint = hint(&map.from.text, source::type_names());
                    let text = format!("there is no data type of this name{hint}");
                    compiler.wrong(map.from.place, "from", text);
                }
            },
            On::Record => {
                if let Some(shape) = compiler.shape(&map.from, "from") {
                    env.records.push(shape);
                }
            }
        }
        if map.on == On::Segment {
            env.anchor = Some(&map.from.text);
        }
        env
    }

    fn of_mapping(compiler: &Compiler<'a>, name: &'a str, options: &'a [OptionDef]) -> Env<'a> {
        Env {
            owner: name,
            bases: Vec::new(),
            anchor: None,
            shapes: Arc::clone(&compiler.shapes),
            records: Vec::new(),
            params: &[],
            options,
            aliases: Vec::new(),
            chain: false,
            identity: false,
        }
    }

    /// The same, with another current item.
    fn with_item(&self, types: source::Types) -> Env<'a> {
        let mut env = self.clone();
        env.bases.push((types, crate::program::Base::Item));
        env
    }

    /// The same, with what a path leads to as the current item.
    fn with_items_of(&self, path: &expressions::Typed) -> Env<'a> {
        match path.record {
            Some(shape) => {
                let mut env = self.clone();
                env.records.push(shape);
                env
            }
            None => self.with_item(path.types.clone()),
        }
    }
}
