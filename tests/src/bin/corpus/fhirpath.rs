//! HL7's tests of FHIRPath, case by case, against the engine of `schemas`.

use anyhow::{Context, Result};
use clap::Args;
use roxmltree::Node;
use schemas::fhirpath::{Dialect, Item, Path, Scope};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

/// What to run.
#[derive(Args)]
pub(super) struct Suite {
    /// A file of HL7's test suite (`tests-fhir-r4.xml`); its resources lie in `input` beside it, as JSON
    suite: PathBuf,
    /// A line for each failing case that says why it is right to fail: its name, a blank, the reason
    #[arg(long)]
    reasons: Option<PathBuf>,
}

/// Runs every case; good if each that fails has its reason, and none has one that passes.
pub(super) fn run(arguments: &Suite) -> Result<bool> {
    let text = fs::read_to_string(&arguments.suite).context("the suite")?;
    let document = roxmltree::Document::parse(&text)?;
    let reasons = match &arguments.reasons {
        Some(file) => fs::read_to_string(file).context("the reasons")?,
        None => String::new(),
    };
    let reasons: HashMap<&str, &str> = reasons
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .collect();
    let mut inputs: HashMap<String, Value> = HashMap::new();
    let (mut passed, mut failed, mut good) = (0, 0, true);
    for case in document.descendants().filter(|node| node.has_tag_name("test")) {
        let name = case.attribute("name").unwrap_or_default();
        let file = case.attribute("inputfile").unwrap_or("patient-example.xml").replace(".xml", ".json");
        if !inputs.contains_key(&file) {
            let path = arguments.suite.with_file_name("input").join(&file);
            let json = fs::read(&path).with_context(|| format!("{}", path.display()))?;
            inputs.insert(file.clone(), serde_json::from_slice(&json)?);
        }
        let fault = fault(case, &inputs[&file]);
        match (fault, reasons.get(name)) {
            (None, None) => passed += 1,
            (None, Some(_)) => {
                passed += 1;
                good = false;
                println!("{name}: passes, and has a reason to fail");
            }
            (Some(fault), reason) => {
                failed += 1;
                good &= reason.is_some();
                println!("{name}: {fault}; {}", reason.unwrap_or(&"NO REASON"));
            }
        }
    }
    println!("{passed} of {} cases pass", passed + failed);
    Ok(good)
}

/// What is wrong with the outcome of a case.
fn fault(case: Node<'_, '_>, input: &Value) -> Option<String> {
    let child = |name: &str| case.children().find(|node| node.has_tag_name(name));
    let expression = child("expression")?;
    let wants_fault = expression.attribute("invalid").is_some();
    let text = expression.text().unwrap_or_default();
    let found = outcome(text, input);
    let found = match (found, wants_fault) {
        (Err(_), true) => return None,
        (Ok(found), true) => return Some(format!("`{text}` gave {found:?} where a fault is wanted")),
        (Err(fault), false) => return Some(format!("`{text}` failed: {fault}")),
        (Ok(found), false) => found,
    };
    let mut wanted: Vec<String> = case
        .children()
        .filter(|node| node.has_tag_name("output"))
        .map(|node| node.text().unwrap_or_default())
        .map(|text| match text.strip_prefix('@') {
            Some(moment) => moment.strip_prefix('T').unwrap_or(moment).to_owned(),
            None => text.to_owned(),
        })
        .collect();
    let mut found = found;
    if case.attribute("predicate") == Some("true") {
        let holds = match found.as_slice() {
            [] => "false",
            [only] if only == "false" => "false",
            _ => "true",
        };
        found = vec![holds.to_owned()];
    }
    if case.attribute("ordered") == Some("false") {
        wanted.sort();
        found.sort();
    }
    (found != wanted).then(|| format!("`{text}` gave {found:?}, not {wanted:?}"))
}

fn outcome(expression: &str, input: &Value) -> Result<Vec<String>, schemas::fhirpath::Fault> {
    let on = input.get("resourceType").and_then(Value::as_str).unwrap_or("Resource");
    let path = Path::compile(expression, on, Dialect::Standard)?;
    let now = jiff::Timestamp::now();
    let found = path.run(&Scope::of(input, now))?;
    Ok(found.iter().map(shown).collect())
}

fn shown(item: &Item<'_>) -> String {
    match item.value() {
        Some(value) => value.to_string(),
        None => format!("{:?}", item.node().and_then(|node| node.type_def()).map(|of| of.name)),
    }
}
