//! Every mapping and table of an installation, read, checked and compiled together.

use crate::compile::{self, Parsed};
use crate::given::Given;
use crate::language::ast::{Document, Form, Test};
use crate::language::load;
use crate::language::overlay::{self, Placed};
use crate::program::{Code, MappingCode, RecordsCode};
use crate::run::{Context, Mapped, Memo, Quarantined, Traced};
use crate::table::Table;
use schemas::hl7v2::Message;
use schemas::hl7v2::definitions::{Version, definitions};
use schemas::records::{self, Records};
use schemas::yaml::Mistake;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

/// One mistake in one file of the mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMistake {
    /// The file, as it was named to the catalog.
    pub file: String,
    /// What is wrong there.
    pub mistake: Mistake,
}

impl fmt::Display for FileMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.mistake)
    }
}

/// The mappings and tables of an installation, compiled.
#[derive(Debug)]
pub struct Catalog {
    programs: Vec<Program>,
    /// Those of senders with overlays.
    of_senders: HashMap<String, Vec<Program>>,
    pub(crate) tests: Vec<(String, Test)>,
    digest: Arc<str>,
}

/// One mapping of a message, compiled.
#[derive(Debug)]
pub struct Program {
    code: Arc<Code>,
    mapping: MappingCode,
    /// Name, version and the digest of all files of which it was made.
    stamp: String,
}

include!(concat!(env!("OUT_DIR"), "/files.rs"));

impl Catalog {
    /// The mappings and tables that come with the program.
    ///
    /// # Panics
    /// Never in a released build: a test compiles them.
    pub fn builtin() -> Catalog {
        let files = Catalog::builtin_files();
        match Catalog::from_files(files) {
            Ok(catalog) => catalog,
            Err(mistakes) => {
                let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                panic!("the mappings that come with the program have mistakes:\n{}", told.join("\n"));
            }
        }
    }

    /// The files that come with the program, as (path, text), to be extended by those of a site.
    pub fn builtin_files() -> Vec<(String, String)> {
        FILES.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    /// Reads, checks and compiles files. `.yaml` are mappings; `.json` are tables (FHIR ConceptMaps), named by the file; a table
    /// under `site/<sender>/` is that sender's own.
    ///
    /// # Errors
    /// Every mistake of every file, in the order of the files and of their lines.
    pub fn from_files(files: Vec<(String, String)>) -> Result<Catalog, Vec<FileMistake>> {
        let Read { parsed, tables, tests, mut mistakes } = Read::of(&files);
        let mut senders: Vec<&str> = Vec::new();
        for Parsed { file, documents } in &parsed {
            for document in documents {
                let Document::Overlay(overlay) = document else { continue };
                match overlay::sender_of(file) {
                    Some(sender) if !senders.contains(&sender) => senders.push(sender),
                    Some(_) => {}
                    None => {
                        let text = "an overlay stands in the folder of its sender: site/SENDER/";
                        let key = overlay.name.text.clone();
                        let mistake = Mistake { place: overlay.name.place, key, text: text.to_owned() };
                        mistakes.push(FileMistake { file: file.clone(), mistake });
                    }
                }
            }
        }
        let digest: Arc<str> = Catalog::digest_of(&files).into();
        let (programs, found) = compiled(&parsed, tables.clone(), &digest);
        mistakes.extend(found);
        // A sender with overlays has programs of its own.
        let mut of_senders = HashMap::new();
        for sender in senders {
            let (programs, found) = compiled_for(sender, &files, &tables, &digest);
            mistakes.extend(found);
            of_senders.insert(sender.to_owned(), programs);
        }
        if !mistakes.is_empty() {
            let place = |of: &FileMistake| (of.file.clone(), of.mistake.place, of.mistake.text.clone());
            mistakes.sort_by_cached_key(place);
            mistakes.dedup();
            return Err(mistakes);
        }
        Ok(Catalog { programs, of_senders, tests, digest })
    }

    /// A short digest of the files of mappings and tables, in whatever order: what it is equal for maps alike.
    pub fn digest_of(files: &[(String, String)]) -> String {
        use sha2::{Digest, Sha256};
        let mut files: Vec<&(String, String)> =
            files.iter().filter(|(file, _)| file != crate::guide::NOTES).collect();
        files.sort();
        let mut hasher = Sha256::new();
        for (file, text) in files {
            for part in [file, text] {
                hasher.update((part.len() as u64).to_be_bytes());
                hasher.update(part.as_bytes());
            }
        }
        hasher.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// [`Catalog::digest_of`] the files that it was made of.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The mapping for a message, by its header: message code, trigger event, message structure and version.
    ///
    /// A mapping that names the trigger event goes before one that only names the structure.
    pub fn program_for(&self, code: &str, trigger: &str, structure: &str, version: &str) -> Option<&Program> {
        found(&self.programs, code, trigger, structure, version)
    }

    /// The mapping for a message of a sender, which may have overlays.
    pub fn program_of(&self, sender: &str, message: &Message<'_>) -> Option<&Program> {
        let header = message.header();
        let trigger = header.trigger().filter(|trigger| !trigger.is_empty()).or_else(|| {
            let evn = message.find(schemas::hl7v2::SegmentName::of("EVN"))?;
            message.field(evn, 1).text(message)
        });
        found(
            self.of_senders.get(sender).unwrap_or(&self.programs),
            &header.message_code().unwrap_or_default(),
            &trigger.unwrap_or_default(),
            &header.structure().unwrap_or_default(),
            &header.version().unwrap_or_default(),
        )
    }

    /// The names of all code tables.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.programs.first().into_iter().flat_map(|one| &one.code.tables).map(|table| table.short_name())
    }

    /// The codes that every element takes into which a table is written, where it is written into one with a fixed list of codes.
    pub fn fixed_targets(&self, table: &str) -> Option<&[&'static str]> {
        let code = &self.programs.first()?.code;
        let id = code.tables.iter().position(|one| one.short_name() == table)?;
        code.bound.get(&u32::try_from(id).ok()?).map(Vec::as_slice)
    }

    /// Forgets what slots wrote for earlier messages. What mapping makes does not depend on it, only how long it takes.
    pub fn forget(&self) {
        for program in self.of_senders.values().chain([&self.programs]).filter_map(|all| all.first()) {
            program.code.memos.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Every mapping.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// A mapping by its name, as a sender has it.
    pub fn program(&self, sender: &str, name: &str) -> Option<&Program> {
        let programs = self.of_senders.get(sender).unwrap_or(&self.programs);
        programs.iter().find(|program| program.name() == name)
    }
}

/// See [`Catalog::program_for`].
fn found<'p>(
    programs: &'p [Program],
    code: &str,
    trigger: &str,
    structure: &str,
    version: &str,
) -> Option<&'p Program> {
    let version = Version::nearest(version);
    let fits = |program: &&Program| {
        let mapping = &program.mapping;
        mapping.records.is_none()
            && mapping.versions.contains(version)
            && mapping.code == code
            && (mapping.events.is_empty()
                || trigger.is_empty()
                || mapping.events.iter().any(|event| event == trigger))
    };
    let by_event = |program: &&Program| program.mapping.events.iter().any(|event| event == trigger);
    // Without MSH-9.3, the definitions know which structure an event has.
    let known = definitions(version).structure_of(code, trigger, structure).map(|known| known.name);
    let by_structure = |program: &&Program| {
        program.mapping.structures.iter().any(|name| name == structure || Some(&**name) == known)
    };
    let found = || programs.iter().filter(fits);
    // One event may have had another structure in an earlier version.
    let by_both = |program: &&Program| by_event(program) && by_structure(program);
    found().find(by_both).or_else(|| found().find(by_event)).or_else(|| found().find(by_structure)).or_else(
        || {
            // Older versions name the code alone, where it leaves no doubt.
            let mut rest = found().filter(|_| trigger.is_empty());
            rest.next().filter(|_| rest.next().is_none())
        },
    )
}

/// What stands in files.
#[derive(Default)]
struct Read {
    parsed: Vec<Parsed>,
    tables: Vec<Table>,
    tests: Vec<(String, Test)>,
    mistakes: Vec<FileMistake>,
}

impl Read {
    /// Reads files on as many threads as there are processors, in the order in which they are given.
    fn of(files: &[(String, String)]) -> Read {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some((file, text)) = files.get(index)
            {
                done.push((index, Read::of_file(file, text)));
            }
            done
        };
        let mut all: Vec<(usize, Read)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let done = threads.into_iter().map(|thread| thread.join().expect("reading does not break off"));
            done.flatten().collect()
        });
        all.sort_by_key(|(index, _)| *index);
        let mut read = Read::default();
        for (_, one) in all {
            read.parsed.extend(one.parsed);
            read.tables.extend(one.tables);
            read.tests.extend(one.tests);
            read.mistakes.extend(one.mistakes);
        }
        read
    }

    fn of_file(file: &str, text: &str) -> Read {
        let mut read = Read::default();
        // The notes about the guide, and the schema for editors, are no mappings.
        let is_table = file.starts_with("table/") || file.starts_with("site/");
        if file == crate::guide::NOTES || (file.ends_with(".json") && !is_table) {
            return read;
        }
        let mut wrong = |mistake| read.mistakes.push(FileMistake { file: file.to_owned(), mistake });
        if let Some(path) = file.strip_suffix(".json") {
            let name = path.strip_prefix("site/").unwrap_or_else(|| path.rsplit('/').next().unwrap_or(path));
            match Table::read(name, text) {
                Ok(table) => read.tables.push(table),
                Err(mistake) => wrong(mistake),
            }
        } else if file.ends_with(".yaml") {
            let (documents, found) = load::read_file(text);
            found.into_iter().for_each(wrong);
            for document in &documents {
                let own: &[Test] = match document {
                    Document::Map(map) => &map.tests,
                    Document::Mapping(mapping) => &mapping.tests,
                    Document::Tests { tests, .. } => tests,
                    Document::Fragment(_)
                    | Document::Overlay(_)
                    | Document::Segment(_)
                    | Document::Record(_) => &[],
                };
                // A document of records does not say which mapping takes it; the mapping in which a test stands does.
                let around = match document {
                    Document::Mapping(mapping) => mapping.source.records.as_ref().map(|_| &mapping.name.text),
                    _ => None,
                };
                read.tests.extend(own.iter().map(|test| {
                    let mapping = test.mapping.clone().or_else(|| around.cloned());
                    (file.to_owned(), Test { mapping, ..test.clone() })
                }));
            }
            read.parsed.push(Parsed { file: file.to_owned(), documents });
        }
        read
    }
}

fn compiled(parsed: &[Parsed], tables: Vec<Table>, digest: &str) -> (Vec<Program>, Vec<FileMistake>) {
    let compiled = compile::compile(parsed, tables);
    let code = Arc::new(compiled.code);
    let program = |mapping: MappingCode| {
        let stamp = format!("{} {}+{digest}", mapping.name, mapping.version);
        Program { code: code.clone(), mapping, stamp }
    };
    let programs = compiled.mappings.into_iter().map(program);
    (programs.collect(), compiled.mistakes)
}

/// The mappings as the overlays of a sender change them.
fn compiled_for(
    sender: &str,
    files: &[(String, String)],
    tables: &[Table],
    digest: &str,
) -> (Vec<Program>, Vec<FileMistake>) {
    let mut parsed = Read::of(files).parsed;
    let mut overlays = Vec::new();
    let mut mistakes = Vec::new();
    for (Parsed { documents, .. }, (file, _)) in parsed.iter_mut().zip(yaml(files)) {
        if overlay::sender_of(file) != Some(sender) {
            continue;
        }
        let taken = documents.extract_if(.., |document| matches!(document, Document::Overlay(_)));
        overlays.extend(taken.filter_map(|document| match document {
            Document::Overlay(overlay) => Some(Placed { file, overlay: *overlay }),
            _ => None,
        }));
    }
    let mut documents: Vec<Document> = Vec::new();
    let mut counts = Vec::new();
    for Parsed { documents: own, .. } in &mut parsed {
        counts.push(own.len());
        documents.append(own);
    }
    mistakes.extend(overlay::apply(overlays, &mut documents));
    let mut documents = documents.into_iter();
    for (Parsed { documents: own, .. }, count) in parsed.iter_mut().zip(counts) {
        own.extend(documents.by_ref().take(count));
    }
    let (programs, found) = compiled(&parsed, tables.to_vec(), digest);
    mistakes.extend(found);
    (programs, mistakes)
}

/// The files of mappings among all.
fn yaml(files: &[(String, String)]) -> impl Iterator<Item = &(String, String)> {
    files.iter().filter(|(file, _)| file.ends_with(".yaml") && file != crate::guide::NOTES)
}

impl Program {
    /// Maps what is given: a message, or a document that [`Program::read`] has read.
    ///
    /// # Errors
    /// [`Quarantined`] when it cannot be mapped; it says why without a value of the message.
    pub fn run<'g>(&self, given: impl Into<Given<'g>>, context: &Context<'_>) -> Result<Mapped, Quarantined> {
        let memos = || self.code.memos.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memo = memos().pop().unwrap_or_default();
        let mapped = crate::run::run(&self.code, &self.mapping, given.into(), context, &mut memo, None);
        memos().push(memo);
        mapped
    }

    /// Whether it takes documents of records, not messages of HL7 v2.
    pub fn takes_records(&self) -> bool {
        self.mapping.records.is_some()
    }

    /// Whether what it takes is JSON, and is not read as FHIR.
    pub fn takes_json(&self) -> bool {
        self.mapping.records.as_ref().is_some_and(|records| matches!(records.form, Form::Json))
    }

    /// How CSV is written that it takes.
    pub fn takes_csv(&self) -> Option<records::Csv> {
        match self.mapping.records.as_ref()?.form {
            Form::Csv(csv) => Some(csv),
            Form::Json | Form::Fhir => None,
        }
    }

    /// Whether it writes messages of HL7 v2, not resources.
    pub fn writes_messages(&self) -> bool {
        self.mapping.writes.is_some()
    }

    /// Reads a document of records, if this mapping takes such; `None` if it takes messages of HL7 v2.
    ///
    /// # Errors
    /// [`records::Unreadable`] says why it cannot be read.
    pub fn read(&self, text: &str, limits: &records::Limits) -> Option<Result<Records, records::Unreadable>> {
        let RecordsCode { shapes, root, form } = self.mapping.records.as_ref()?;
        Some(match form {
            Form::Json => records::read_json(text, shapes, *root, limits),
            Form::Csv(form) => records::read_csv(text, *form, shapes, *root, limits),
            Form::Fhir => records::read_fhir(text, limits),
        })
    }

    /// Maps what is given and notes where everything comes from. What it makes is the same.
    pub(crate) fn trace(
        &self,
        given: Given<'_>,
        context: &Context<'_>,
    ) -> Result<(Mapped, Traced), Quarantined> {
        let (mut memo, mut traced) = (Memo::default(), Traced::default());
        let mapped =
            crate::run::run(&self.code, &self.mapping, given, context, &mut memo, Some(&mut traced))?;
        Ok((mapped, traced))
    }

    /// The name of a file in which rules stand.
    pub(crate) fn file(&self, number: u16) -> &str {
        self.code.files.get(usize::from(number)).map_or("", |file| file)
    }

    /// The name, such as `oru_r01`.
    pub fn name(&self) -> &str {
        &self.mapping.name
    }

    /// What is stamped on what it makes: `oru_r01 1.0.0+1f2e3d4c`, with the digest of all mappings and tables.
    pub fn stamp(&self) -> &str {
        &self.stamp
    }

    /// The version, such as `1.0.0`.
    pub fn version(&self) -> &str {
        &self.mapping.version
    }

    /// Whether it takes messages of a version.
    pub fn takes_version(&self, version: Version) -> bool {
        self.mapping.versions.contains(version)
    }

    /// The message structures that it takes.
    pub fn structures(&self) -> &[String] {
        &self.mapping.structures
    }

    /// Message code and trigger events that it takes.
    pub fn takes(&self) -> (&str, &[String]) {
        (&self.mapping.code, &self.mapping.events)
    }
}
