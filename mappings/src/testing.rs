//! Runs the `tests:` that stand in the mappings.

use crate::alone::{Alone, NotMapped, explain_by, map_by};
use crate::catalog::{Catalog, Program};
use crate::given::Given;
use crate::language::ast::Test;
use crate::lineage::Lineage;
use crate::run::{Context, Quarantined};
use schemas::hl7v2::time::Zone;
use schemas::hl7v2::{Limits, Message, Path, grammar};
use schemas::issue::Issue;
use schemas::records::{self, Records};
use schemas::yaml::Place;
use serde_json::Value;
use std::fmt;
use uuid::Uuid;

/// A test of a mapping that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestFailure {
    /// The file in which it stands.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// Its name.
    pub name: String,
    /// What was expected, and what came.
    pub text: String,
}

impl fmt::Display for TestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: test `{}`: {}", self.file, self.place, self.name, self.text)
    }
}

impl Catalog {
    /// Runs every test of every mapping, each against an empty store. The messages of tests are invented, so what they
    /// hold may be shown.
    pub fn run_tests(&self) -> Vec<TestFailure> {
        let mut failures = Vec::new();
        for (file, test) in &self.tests {
            for text in run(self, test) {
                failures.push(TestFailure {
                    file: file.clone(),
                    place: test.place,
                    name: test.name.clone(),
                    text,
                });
            }
        }
        failures
    }

    /// The lineage of every test that holds and whose message is mapped.
    pub fn explain_tests(&self) -> Vec<Lineage> {
        let explain = |test: &Test| {
            let subject = Subject::of(self, test).ok()?;
            explain_by(subject.program?, subject.given(), &context(test)).ok().map(|(_, lineage)| lineage)
        };
        let holding = self.tests.iter().filter(|(_, test)| run(self, test).is_empty());
        holding.filter_map(|(_, test)| explain(test)).collect()
    }

    /// The HL7 v2 messages of the tests, all of them invented.
    pub fn test_messages(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter(|(_, test)| test.mapping.is_none()).map(|(_, test)| test.given.as_str())
    }

    /// How many tests stand in the mappings.
    pub fn test_count(&self) -> usize {
        self.tests.len()
    }
}

/// Who sends what a test gives, where it does not say.
const SENDER: &str = "test";

/// What a mapping may know beside the message of a test.
pub(crate) fn context(test: &Test) -> Context<'_> {
    let sender = test.sender.as_deref().unwrap_or(SENDER);
    Context {
        message_id: Uuid::from_u128(1),
        received_at: jiff::Timestamp::UNIX_EPOCH,
        seq: 1,
        sender: sender.into(),
        authority: sender.into(),
        zone: Zone::UTC,
        namespace: Uuid::nil(),
        systems: &test.systems,
        options: &test.options,
        wire: &test.wire,
        codes: None,
        parties: crate::Parties::default(),
    }
}

/// What a test is about, read, and the mapping that takes it.
pub(crate) struct Subject<'t> {
    pub(crate) program: Option<&'t Program>,
    read: Read<'t>,
}

enum Read<'t> {
    Message(Message<'t>),
    Records(Box<Records>, &'t str),
}

impl<'t> Subject<'t> {
    pub(crate) fn of(catalog: &'t Catalog, test: &'t Test) -> Result<Self, String> {
        let sender = test.sender.as_deref().unwrap_or(SENDER);
        let text = test.given.as_str();
        let named = match &test.mapping {
            Some(name) => {
                let program = catalog.program(sender, name);
                Some(program.ok_or_else(|| format!("there is no mapping {name}"))?)
            }
            None => None,
        };
        if let Some(read) = named.and_then(|program| program.read(text, &records::Limits::default())) {
            let records = read.map_err(|error| format!("the document cannot be read: {error}"))?;
            return Ok(Subject { program: named, read: Read::Records(Box::new(records), text) });
        }
        let message = Message::parse(text, &Limits::default());
        let message = message.map_err(|error| format!("the message cannot be read: {error}"))?;
        let program = named.or_else(|| catalog.program_of(sender, &message));
        Ok(Subject { program, read: Read::Message(message) })
    }

    pub(crate) fn given(&self) -> Given<'_> {
        match &self.read {
            Read::Message(message) => Given::Message(message),
            Read::Records(records, text) => Given::Records(records, text),
        }
    }
}

/// What does not hold of one test.
fn run(catalog: &Catalog, test: &Test) -> Vec<String> {
    let subject = match Subject::of(catalog, test) {
        Ok(subject) => subject,
        Err(why) => return vec![why],
    };
    let context = context(test);
    if let Some(written) = subject.program.and_then(|program| program.write(subject.given(), &context)) {
        return match written {
            Ok(message) => of_message(test, &message),
            Err(quarantined) => of_quarantined(test, &quarantined),
        };
    }
    let mapped = match subject.program {
        Some(program) => map_by(program, subject.given(), &context),
        None => Err(NotMapped::NotTaken),
    };
    let Alone { bundle, issues } = match mapped {
        Ok(alone) => alone,
        Err(NotMapped::NotTaken) => return vec!["no mapping takes this message".to_owned()],
        Err(NotMapped::Quarantined(quarantined)) => return of_quarantined(test, &quarantined),
    };
    let bundle: Value = match serde_json::from_str(&bundle) {
        Ok(bundle) => bundle,
        Err(error) => return vec![format!("the Bundle is no JSON: {error}")],
    };
    let faults = schemas::fhir::validate(&bundle);
    let mut wrong: Vec<String> =
        faults.iter().map(|fault| format!("the Bundle is not FHIR R4: {fault}")).collect();
    for (path, expected) in &test.expect {
        match at(&bundle, &path.text) {
            Some(found) if matches(&bundle, found, expected) => {}
            Some(found) => wrong.push(format!("{}: expected {expected}, found {}", path.text, shown(found))),
            None => wrong.push(format!("{}: expected {expected}, found nothing", path.text)),
        }
    }
    for path in &test.absent {
        if let Some(found) = at(&bundle, &path.text) {
            wrong.push(format!("{}: expected nothing, found {}", path.text, shown(found)));
        }
    }
    wrong.extend(of_issues(test, &issues));
    wrong
}

fn of_quarantined(test: &Test, quarantined: &Quarantined) -> Vec<String> {
    let expected = test.issues.iter().any(|code| code == "quarantined");
    if expected { Vec::new() } else { vec![format!("quarantined: {}", quarantined.reason)] }
}

/// What does not hold of a message that was written: it reads back, its segments stand where its structure has them, and its fields
/// are those that are expected, by paths such as `PID-5.1` and `OBX[2]-5`.
fn of_message(test: &Test, written: &crate::Message) -> Vec<String> {
    let message = match Message::parse(&written.text, &Limits::default()) {
        Ok(message) => message,
        Err(error) => return vec![format!("what was written cannot be read: {error}")],
    };
    let mut wrong: Vec<String> =
        message.issues().iter().map(|issue| format!("what was written: {issue}")).collect();
    match grammar::structure_of(&message) {
        Some(structure) => {
            let groups = grammar::group(&message, structure);
            wrong.extend(groups.issues().iter().map(|issue| format!("what was written: {issue}")));
        }
        None => wrong.push("what was written has no structure".to_owned()),
    }
    let at = |path: &str| -> Result<Option<String>, String> {
        let path: Path = path.parse().map_err(|error| format!("{path}: {error}"))?;
        Ok(message.at(&path).text(&message).map(|text| text.into_owned()))
    };
    for (path, expected) in &test.expect {
        match at(&path.text) {
            Err(why) => wrong.push(why),
            Ok(Some(found)) if found == *expected => {}
            Ok(Some(found)) => wrong.push(format!("{}: expected {expected}, found {found}", path.text)),
            Ok(None) => wrong.push(format!("{}: expected {expected}, found nothing", path.text)),
        }
    }
    for path in &test.absent {
        match at(&path.text) {
            Err(why) => wrong.push(why),
            Ok(Some(found)) => wrong.push(format!("{}: expected nothing, found {found}", path.text)),
            Ok(None) => {}
        }
    }
    wrong.extend(of_issues(test, &written.issues));
    wrong
}

/// What does not hold of what is told.
fn of_issues(test: &Test, issues: &[Issue]) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(expected) = &test.unmapped {
        let unmapped = issues.iter().filter(|issue| issue.code == "unmapped-field");
        let found: Vec<&str> = unmapped.map(|issue| issue.path.as_str()).collect();
        if found != expected.iter().map(String::as_str).collect::<Vec<_>>() {
            wrong.push(format!("unmapped: expected [{}], found [{}]", expected.join(", "), found.join(", ")));
        }
    }
    for code in &test.issues {
        if !issues.iter().any(|issue| issue.code == *code) {
            wrong.push(format!("expected an issue {code}"));
        }
    }
    wrong
}

/// What a path such as `Patient.name[0].family`, `Observation[1].status` or `Bundle.timestamp` names in a Bundle. Indexes count from 0; without
/// one the first is meant.
fn at<'b>(bundle: &'b Value, path: &str) -> Option<&'b Value> {
    let mut steps = path.split('.');
    let (kind, index) = step(steps.next()?)?;
    let mut found = match kind {
        "Bundle" => bundle,
        _ => resources(bundle).filter(|resource| resource["resourceType"] == kind).nth(index)?,
    };
    for text in steps {
        let (name, index) = step(text)?;
        found = found.get(name)?;
        if let Value::Array(items) = found {
            found = items.get(index)?;
        }
    }
    Some(found)
}

fn step(text: &str) -> Option<(&str, usize)> {
    match text.split_once('[') {
        None => Some((text, 0)),
        Some((name, rest)) => Some((name, rest.strip_suffix(']')?.parse().ok()?)),
    }
}

fn resources(bundle: &Value) -> impl Iterator<Item = &Value> {
    bundle["entry"].as_array().into_iter().flatten().map(|entry| &entry["resource"])
}

/// Whether a value is as expected. `-> Patient` expects a reference to that resource of the Bundle.
fn matches(bundle: &Value, found: &Value, expected: &str) -> bool {
    if let Some(target) = expected.strip_prefix("-> ") {
        let id = at(bundle, &format!("{target}.id")).and_then(Value::as_str);
        return found.as_str().is_some_and(|found| id.is_some_and(|id| found == format!("urn:uuid:{id}")));
    }
    shown(found) == expected
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
