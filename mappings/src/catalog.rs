//! Every mapping and table of an installation, read, checked and compiled together.

use crate::compile::{self, Parsed};
use crate::language::ast::{Document, Test};
use crate::language::load;
use crate::program::{Code, MappingCode};
use crate::run::{Context, Mapped, Memo, Quarantined, Traced};
use crate::table::Table;
use schemas::hl7v2::Message;
use schemas::hl7v2::definitions::Version;
use schemas::yaml::Mistake;
use std::fmt;
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
    pub(crate) tests: Vec<(String, Test)>,
}

/// One mapping of a message, compiled.
#[derive(Debug)]
pub struct Program {
    code: Arc<Code>,
    mapping: MappingCode,
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
        let mut mistakes = Vec::new();
        let (mut parsed, mut tables, mut tests) = (Vec::new(), Vec::new(), Vec::new());
        for (file, text) in files {
            if file == crate::guide::NOTES {
                continue;
            }
            let mut wrong = |mistake| mistakes.push(FileMistake { file: file.clone(), mistake });
            if let Some(path) = file.strip_suffix(".json") {
                let name =
                    path.strip_prefix("site/").unwrap_or_else(|| path.rsplit('/').next().unwrap_or(path));
                match Table::read(name, &text) {
                    Ok(table) => tables.push(table),
                    Err(mistake) => wrong(mistake),
                }
            } else if file.ends_with(".yaml") {
                let (documents, found) = load::read_file(&text);
                found.into_iter().for_each(wrong);
                for document in &documents {
                    let own = match document {
                        Document::Map(map) => &*map.tests,
                        Document::Mapping(mapping) => &mapping.tests,
                        Document::Tests { tests, .. } => tests,
                        Document::Fragment(_) => &[],
                    };
                    tests.extend(own.iter().map(|test| (file.clone(), test.clone())));
                }
                parsed.push(Parsed { file, documents });
            }
        }
        let compiled = compile::compile(&parsed, tables);
        mistakes.extend(compiled.mistakes);
        if !mistakes.is_empty() {
            mistakes.sort_by(|a, b| (&a.file, a.mistake.place).cmp(&(&b.file, b.mistake.place)));
            mistakes.dedup();
            return Err(mistakes);
        }
        let code = Arc::new(compiled.code);
        let programs =
            compiled.mappings.into_iter().map(|mapping| Program { code: code.clone(), mapping }).collect();
        Ok(Catalog { programs, tests })
    }

    /// The mapping for a message, by its header: message code, trigger event, message structure and version.
    ///
    /// A mapping that names the trigger event goes before one that only names the structure.
    pub fn program_for(&self, code: &str, trigger: &str, structure: &str, version: &str) -> Option<&Program> {
        let version = Version::nearest(version);
        let fits = |program: &&Program| {
            let mapping = &program.mapping;
            mapping.versions.contains(version)
                && mapping.code == code
                && (mapping.events.is_empty()
                    || trigger.is_empty()
                    || mapping.events.iter().any(|event| event == trigger))
        };
        let by_event = |program: &&Program| program.mapping.events.iter().any(|event| event == trigger);
        let by_structure =
            |program: &&Program| program.mapping.structures.iter().any(|name| name == structure);
        let found = || self.programs.iter().filter(fits);
        found().find(by_event).or_else(|| found().find(by_structure)).or_else(|| {
            // Older versions name the code alone, where it leaves no doubt.
            let mut rest = found().filter(|_| trigger.is_empty());
            rest.next().filter(|_| rest.next().is_none())
        })
    }

    /// The mapping for a message.
    pub fn program_of(&self, message: &Message<'_>) -> Option<&Program> {
        let header = message.header();
        let trigger = header.trigger().filter(|trigger| !trigger.is_empty()).or_else(|| {
            let evn = message.find(schemas::hl7v2::SegmentName::of("EVN"))?;
            message.field(evn, 1).text(message)
        });
        self.program_for(
            &header.message_code().unwrap_or_default(),
            &trigger.unwrap_or_default(),
            &header.structure().unwrap_or_default(),
            &header.version().unwrap_or_default(),
        )
    }

    /// Forgets what slots wrote for earlier messages. What mapping makes does not depend on it, only how long it takes.
    pub fn forget(&self) {
        if let Some(program) = self.programs.first() {
            program.code.memos.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Every mapping.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// A mapping by its name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name() == name)
    }
}

impl Program {
    /// Maps a message.
    ///
    /// # Errors
    /// [`Quarantined`] when the message cannot be mapped; it says why without a value of the message.
    pub fn run(&self, message: &Message<'_>, context: &Context<'_>) -> Result<Mapped, Quarantined> {
        let memos = || self.code.memos.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memo = memos().pop().unwrap_or_default();
        let mapped = crate::run::run(&self.code, &self.mapping, message, context, &mut memo, None);
        memos().push(memo);
        mapped
    }

    /// Maps a message and notes where everything comes from. What it makes is the same.
    pub(crate) fn trace(
        &self,
        message: &Message<'_>,
        context: &Context<'_>,
    ) -> Result<(Mapped, Traced), Quarantined> {
        let (mut memo, mut traced) = (Memo::default(), Traced::default());
        let mapped =
            crate::run::run(&self.code, &self.mapping, message, context, &mut memo, Some(&mut traced))?;
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

    /// The version, such as `1.0.0`.
    pub fn version(&self) -> &str {
        &self.mapping.version
    }

    /// Message code and trigger events that it takes.
    pub fn takes(&self) -> (&str, &[String]) {
        (&self.mapping.code, &self.mapping.events)
    }
}
