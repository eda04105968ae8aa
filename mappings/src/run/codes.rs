//! Codes: looked up in tables, kept as the sender wrote them, or written as a constant.

use super::coverage::State;
use super::{Frame, Halt, Run, UnmappedCode, Val};
use crate::json::{self, Primitive};
use crate::language::ast::Policy;
use crate::program::{CodeForm, CodeRule, Lookup, Node, TableUse};
use crate::table::{Answer, Target};
use schemas::hl7v2::{Element, Level};
use std::borrow::Cow;

impl<'r> Run<'r> {
    #[expect(clippy::too_many_arguments, reason = "a code, where it stands, its table and its form")]
    pub(super) fn write_coded(
        &mut self,
        frame: &Frame<'r, '_>,
        node: &'r Node,
        element: Element,
        code: &str,
        table: &'r TableUse,
        form: CodeForm,
        out: &mut String,
    ) -> Result<bool, Halt> {
        // A table that is handed on comes with its caller's rules for codes that it does not translate.
        let (mut at, mut usage) = (frame.call, table);
        let given = matches!(table.table, Lookup::Given);
        while let Lookup::Given = usage.table {
            let Some(call) = at else { return Ok(false) };
            let Some(next) = call.table else { return Ok(false) };
            usage = next;
            at = call.outer;
        }
        let id = match &usage.table {
            Lookup::Table(id) => *id,
            Lookup::Sender(name) => {
                let Some(id) = self.code.sender_tables.get(&format!("{}/{name}", self.context.sender)) else {
                    return Ok(false);
                };
                *id
            }
            Lookup::Given => return Ok(false),
        };
        let table = &self.code.tables[id as usize];
        // The table's own name, also where it is the sender's.
        let name = table.short_name();
        let said =
            self.context.codes.and_then(|codes| codes.look_up(&self.context.sender, name, code.trim()));
        if let Some(target) = said {
            self.carried += 1;
            return Ok(write_code(out, target, form, self.local_text(element, form)));
        }
        // A table of the sender's own goes before the one that all share.
        let own = match self.code.sender_tables.is_empty() {
            true => None,
            false => self.code.sender_tables.get(&format!("{}/{name}", self.context.sender)),
        };
        let own = own.map(|own| self.code.tables[*own as usize].look_up(code));
        let answer = own.filter(|answer| *answer != Answer::Unmapped).unwrap_or_else(|| table.look_up(code));
        let (rule, known): (&CodeRule, bool) = match answer {
            Answer::Mapped(target) => {
                self.carried += 1;
                return Ok(write_code(out, &target, form, self.local_text(element, form)));
            }
            Answer::Unmatched => (&usage.unmatched, true),
            Answer::Unmapped => (&usage.unmapped, false),
        };
        let path = self.last_path();
        if let Some(leaf) = self.last_leaf {
            self.mark(leaf, State::LookedUp);
        }
        if !known {
            let unmapped =
                UnmappedCode { table: name.to_owned(), code: code.trim().to_owned(), path: path.clone() };
            self.unmapped_codes.push(unmapped);
        }
        if let Some(severity) = rule.issue {
            let (word, what) = if known {
                ("unmatched-code", "has no target for")
            } else {
                ("unmapped-code", "does not know")
            };
            let text = format!("table {} {what} this code", table.name);
            self.issue(severity, word, path, &node.rule, text);
        }
        if let Some(set) = &rule.set {
            let system = table.target_codes().next().map_or(String::new(), |target| target.system.clone());
            let target = Target { system, code: set.to_string(), display: None };
            self.carried += 1;
            return Ok(write_code(out, &target, form, self.local_text(element, form)));
        }
        if rule.keep && !given {
            let display = self.local_part(element, 2);
            let system = self.local_part(element, 3);
            let system = match system {
                // A code that names no system is of the table, if HL7 lists it there, else of the sender's own version of it.
                None => self.table_system(table.of_v2.as_deref(), Some(code), false),
                named => self.coding_system(named.as_deref(), None),
            };
            let system = match system {
                Val::Text(system) => system.into_owned(),
                _ => String::new(),
            };
            let target = Target { system, code: code.to_owned(), display };
            self.carried += 1;
            return Ok(write_code(out, &target, form, None));
        }
        match rule.policy {
            Policy::Omit | Policy::DataAbsent => Ok(false),
            Policy::Fail => Err(Halt::LeaveOut),
            Policy::Quarantine => Err(Halt::Quarantine(format!(
                "{}: table {} does not translate a code",
                node.rule, table.name
            ))),
        }
    }

    /// What a sender calls a code: the text of a concept.
    fn local_text(&mut self, element: Element, form: CodeForm) -> Option<String> {
        if form == CodeForm::Concept { self.local_part(element, 2) } else { None }
    }

    fn local_part(&mut self, element: Element, part: u16) -> Option<String> {
        let repetition = match element.level {
            Level::Field => element.repetition(self.message, 1),
            _ => element,
        };
        if repetition.level != Level::Repetition {
            return None;
        }
        let part = repetition.part(self.message, part);
        let value = if part.is_absent() || self.is_null(part) { Val::Absent } else { Val::Element(part) };
        self.text(value).map(Cow::into_owned)
    }
}

/// Writes a code in the form that the element has.
pub(super) fn write_code(out: &mut String, target: &Target, form: CodeForm, text: Option<String>) -> bool {
    let start = out.len();
    match form {
        CodeForm::Code => json::primitive(out, Primitive::Code, &target.code),
        CodeForm::Plain(kind) => json::primitive(out, kind, &target.code),
        CodeForm::Coding | CodeForm::Concept => {
            let concept = form == CodeForm::Concept;
            out.push_str(if concept { "{\"coding\":[{" } else { "{" });
            if !target.system.is_empty() {
                out.push_str("\"system\":");
                json::string(out, &target.system);
                out.push(',');
            }
            out.push_str("\"code\":");
            if !json::primitive(out, Primitive::Code, &target.code) {
                out.truncate(start);
                return false;
            }
            if let Some(display) = &target.display {
                let before = out.len();
                out.push_str(",\"display\":");
                if !json::primitive(out, Primitive::Text, display) {
                    out.truncate(before);
                }
            }
            out.push('}');
            if concept {
                out.push(']');
                if let Some(text) = text {
                    let before = out.len();
                    out.push_str(",\"text\":");
                    if !json::primitive(out, Primitive::Text, &text) {
                        out.truncate(before);
                    }
                }
                out.push('}');
            }
            true
        }
    }
}
