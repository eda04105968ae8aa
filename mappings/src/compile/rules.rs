//! Rules: each is checked against the type of the element that it writes, and becomes a node.

use super::source::Types;
use super::target::{self, Element};
use super::{Compiler, Env, hint, reads};
use crate::functions::{FUNCTIONS, Kind};
use crate::json::{self, Primitive};
use crate::language::ast::{self, Answer, Body, Does, OnCode, OnError, Policy, Rule, TableRef, Word};
use crate::language::expression;
use crate::language::load::within;
use crate::language::shape::ABSENT;
use crate::program::{
    Action, Argument, Base, CodeForm, CodeRule, ExprId, Field, Lookup, MapBody, Node, NodeId, Op, Parts,
    Pick, Piece, Recovery, Scope, TableUse, Target, TypeMap,
};
use schemas::hl7v2::path::SegmentName;
use schemas::issue::Severity;
use schemas::records::ShapeId;
use std::sync::Arc;

/// What an element takes.
#[derive(Clone, Debug)]
pub(super) struct Want {
    /// `Patient.name`, for messages and for the elements below.
    pub(super) path: String,
    pub(super) types: Vec<&'static str>,
    pub(super) choice: bool,
    pub(super) many: bool,
    /// Whether no more than one is written, with a slot of its own: then an item of a list of primitives may have extensions.
    pub(super) alone: bool,
}

impl Want {
    pub(super) fn of(element: &Element) -> Want {
        Want {
            path: element.path.clone(),
            types: element.types.clone(),
            choice: element.choice,
            many: element.many,
            alone: false,
        }
    }

    pub(super) fn one(ty: &'static str) -> Want {
        Want { path: ty.to_owned(), types: vec![ty], choice: false, many: false, alone: false }
    }
}

impl<'a> Compiler<'a> {
    /// Compiles one rule, with everything around its producer.
    pub(super) fn rule(&mut self, env: &Env<'a>, rule: &'a Rule, want: &Want, name: &str) -> NodeId {
        let Some(file) = rule.file.as_deref() else { return self.rule_here(env, rule, want, name) };
        let around = std::mem::replace(&mut self.file, file);
        let node = self.rule_here(env, rule, want, name);
        self.file = around;
        node
    }

    /// Compiles a rule of the file at hand.
    fn rule_here(&mut self, env: &Env<'a>, rule: &'a Rule, want: &Want, name: &str) -> NodeId {
        let (env, each) = self.item(env, rule.each.as_ref());
        // With `each:`, a condition is about the item.
        let when = rule.when.as_ref().map(|formula| self.condition(&env, formula));
        let env = &env;
        let extends = rule.url.is_some();
        let (does, suffix) = if extends {
            (self.extension_action(env, rule, name), "")
        } else {
            self.action(env, rule, want, name)
        };
        let on_error = match &rule.on_error {
            OnError::Default => Recovery::Outer,
            OnError::Policy(policy) => Recovery::Policy(*policy),
            OnError::Rule(other) => Recovery::Node(self.rule(env, other, want, name)),
        };
        let extension = if extends { Vec::new() } else { self.extensions(env, &rule.extension, name) };
        let alone = want.alone && rule.each.is_none();
        if !extension.is_empty() && want.many && !alone && self.is_primitive(rule, want) {
            let text =
                "an item of a list of primitives has extensions only where it is the one item of its rule";
            self.wrong(rule.place, name, text);
        }
        let refers = matches!(rule.does, Does::Make { .. } | Does::Ref { .. });
        if !extension.is_empty() && !refers && !self.is_primitive(rule, want) {
            self.wrong(
                rule.place,
                name,
                "`extension:` stands beside the value of a primitive or a reference; here, write it under `set:`",
            );
        }
        let when_item = when.is_some_and(|when| each.is_none_or(|each| self.is_about_item(when, each)));
        let at = self.at(rule.place);
        self.node(Node {
            when,
            when_item,
            each,
            does,
            on_error,
            report: rule.issue,
            rule: Arc::from(name),
            at,
            extension,
            suffix,
            needs: Parts::default(),
        })
    }

    /// Whether a condition may be another one for another item of `each`.
    fn is_about_item(&self, when: ExprId, each: ExprId) -> bool {
        let of_segments =
            matches!(self.code.op(each), Op::Segment { field: 0, .. } | Op::Record { field: 0, .. });
        let about = |id: ExprId| self.is_about_item(id, each);
        match self.code.op(when) {
            Op::Segment { scope, pick, .. } => {
                let numbered = matches!(pick, Pick::Nth(number) if about(*number));
                of_segments || *scope == Scope::Item || numbered
            }
            // Within `each`, the nearest record of a name may be the item.
            Op::Record { item, .. } => of_segments || *item,
            Op::Part { base, .. } => matches!(base, Base::Item),
            Op::Call { function, args } => {
                FUNCTIONS[*function].name == "index" || args.iter().any(|arg| about(*arg))
            }
            Op::Not(inner) | Op::OneOf { item: inner, .. } => about(*inner),
            Op::And(a, b) | Op::Or(a, b) | Op::Compare(_, a, b) | Op::Coalesce(a, b) => {
                about(*a) || about(*b)
            }
            Op::In { item, list, .. } => about(*item) || list.iter().any(|expr| about(*expr)),
            _ => false,
        }
    }

    fn is_primitive(&self, rule: &Rule, want: &Want) -> bool {
        let named = rule.as_type.as_ref().map(|word| word.text.as_str());
        named.or(want.types.first().copied()).is_some_and(|ty| Primitive::of(ty).is_some())
    }

    fn item(&mut self, env: &Env<'a>, formula: Option<&ast::Formula>) -> (Env<'a>, Option<ExprId>) {
        match formula {
            None => (env.clone(), None),
            Some(formula) => {
                let typed = self.path_formula(env, formula);
                (env.with_items_of(&typed), Some(typed.id))
            }
        }
    }

    pub(super) fn extensions(&mut self, env: &Env<'a>, rules: &'a [Rule], name: &str) -> Vec<NodeId> {
        let want = Want { path: "Extension".into(), many: true, ..Want::one("Extension") };
        let mut nodes = Vec::new();
        for rule in rules {
            let id = rule.id.as_ref().map_or("extension", |id| id.text.as_str());
            if rule.url.is_none() {
                self.wrong(rule.place, id, "an extension needs a `url:`");
                continue;
            }
            nodes.push(self.rule(env, rule, &want, &format!("{name}/{id}")));
        }
        nodes
    }

    fn extension_action(&mut self, env: &Env<'a>, rule: &'a Rule, name: &str) -> Action {
        let short = rule.url.as_ref().map_or("", |url| url.text.as_str());
        // Inside an extension a short name is the whole URL (FHIR R4, Extension.url).
        let nested = std::mem::take(&mut self.in_extension);
        let full = if nested || short.contains(':') {
            short.to_owned()
        } else {
            format!("http://hl7.org/fhir/StructureDefinition/{short}")
        };
        let mut url = String::new();
        json::string(&mut url, &full);
        let value = if matches!(rule.does, Does::Extension) {
            None
        } else {
            let want = Want {
                path: format!("{name} (an extension)"),
                types: target::extension_types(),
                choice: true,
                many: false,
                alone: false,
            };
            let (does, suffix) = self.action(env, rule, &want, name);
            let (on_error, at) = (Recovery::Outer, self.at(rule.place));
            Some(self.node(Node {
                when: None,
                when_item: false,
                each: None,
                does,
                on_error,
                report: None,
                rule: Arc::from(name),
                at,
                extension: Vec::new(),
                suffix,
                needs: Parts::default(),
            }))
        };
        let mut inner = Vec::new();
        for rule in &rule.extension {
            self.in_extension = true;
            inner.extend(self.extensions(env, std::slice::from_ref(rule), name));
        }
        self.in_extension = false;
        Action::Extension { url: url.into(), value, nested: inner }
    }

    /// The type that a rule writes, by `as:` or by what it does; `None` where its items or its map decide.
    fn type_of(&mut self, rule: &Rule, want: &Want, name: &str) -> Option<&'static str> {
        if let Some(word) = &rule.as_type {
            if let Some(ty) = want.types.iter().find(|ty| **ty == word.text) {
                return Some(ty);
            }
            let hint = hint(&word.text, want.types.iter().copied());
            let text = format!("{} takes {}, not {}{hint}", want.path, some_of(&want.types), word.text);
            self.wrong(word.place, name, text);
            return want.types.first().copied();
        }
        if !want.choice {
            return want.types.first().copied();
        }
        let inferred = match &rule.does {
            Does::Concept(_) => Some("CodeableConcept"),
            Does::Make { .. } | Does::Ref { .. } | Does::Refs { .. } => Some("Reference"),
            Does::Use(map) => match self.maps.get(map.text.as_str()).map(|(map, _)| &map.answer) {
                Some(Answer::To(to)) => target::data_type(&to.text),
                _ => return None,
            },
            Does::First(_) | Does::All(_) | Does::Switch { .. } => return None,
            Does::Value(_) | Does::Const(_) | Does::Absent(_) | Does::Object | Does::Extension => None,
        };
        match inferred.filter(|ty| want.types.contains(ty)) {
            Some(ty) => Some(ty),
            None if matches!(rule.does, Does::Use(_)) => None,
            None => {
                self.wrong(
                    rule.place,
                    name,
                    format!("say by `as:` which type {} gets: {}", want.path, some_of(&want.types)),
                );
                want.types.first().copied()
            }
        }
    }

    fn action(&mut self, env: &Env<'a>, rule: &'a Rule, want: &Want, name: &str) -> (Action, &'static str) {
        let ty = self.type_of(rule, want, name);
        let suffix = match ty {
            Some(ty) if want.choice => target::suffix(ty),
            _ => "",
        };
        let nothing = Action::First(Vec::new());
        let uses_set = matches!(rule.does, Does::Use(_) | Does::Make { .. } | Does::Object);
        if !rule.set.is_empty() && !uses_set {
            self.wrong(rule.place, name, "`set:` stands alone, or beside `use:` or `make:`");
        }
        let takes_map = matches!(rule.does, Does::Value(_) | Does::Use(_));
        if rule.map.is_some() && !takes_map {
            self.wrong(rule.place, name, "`map:` stands beside `value:` or `use:`");
        }
        if rule.from.is_some() && !matches!(rule.does, Does::Use(_) | Does::Make { .. }) {
            self.wrong(
                rule.place,
                name,
                "`from:` stands beside `use:` or `make:`: it says on what the map is called",
            );
        }
        let action = match (&rule.does, ty) {
            (Does::First(items), _) => Action::First(
                items.iter().map(|item| self.rule(env, item, want, &item_name(name, item))).collect(),
            ),
            (Does::All(items), _) => {
                if !want.many {
                    self.wrong(rule.place, name, format!("{} takes one value: write `first:`", want.path));
                }
                let want = Want { alone: false, ..want.clone() };
                Action::All(
                    items.iter().map(|item| self.rule(env, item, &want, &item_name(name, item))).collect(),
                )
            }
            (Does::Switch { on, cases, otherwise }, _) => {
                let on = self.formula(env, on).id;
                let cases = cases
                    .iter()
                    .map(|(words, rule)| {
                        let node = self.rule(
                            env,
                            rule,
                            want,
                            &format!("{name}/{}", words.first().map_or("", |w| w)),
                        );
                        (words.iter().map(|word| word.as_str().into()).collect(), node)
                    })
                    .collect();
                let otherwise =
                    otherwise.as_ref().map(|rule| self.rule(env, rule, want, &format!("{name}/else")));
                Action::Switch { on, cases, otherwise }
            }
            (Does::Use(map), _) => self.call_map(env, rule, map, ty, want, name).unwrap_or(nothing),
            (_, None) => nothing,
            (Does::Value(formula), Some(ty)) => {
                self.value(env, rule, formula, ty, want, name).unwrap_or(nothing)
            }
            (Does::Const(word), Some(ty)) => self.constant(word, ty, want, name).unwrap_or(nothing),
            (Does::Absent(word), Some(ty)) => self.absent(word, ty, want, name),
            (Does::Concept(word), Some(ty)) => {
                self.concept(env, rule, word, ty, want, name).unwrap_or(nothing)
            }
            (Does::Object, Some(ty)) => {
                if Primitive::of(ty).is_some() {
                    self.wrong(
                        rule.place,
                        name,
                        format!("{} is a {ty} and has no elements to set", want.path),
                    );
                }
                let constant = rule.set.iter().all(|(_, rule)| is_constant(rule));
                Action::Object { fields: self.fields(env, &rule.set, ty, name, true), constant }
            }
            (Does::Make { kind, uses, identity }, Some(ty)) => {
                self.expect_reference(rule, ty, want, name);
                let make = self.make(env, rule, kind, uses.as_ref(), identity.as_deref(), name);
                make.unwrap_or(nothing)
            }
            (Does::Ref { to, filter }, Some(ty)) => {
                self.expect_reference(rule, ty, want, name);
                let filter = filter.as_ref().map(|formula| self.condition(env, formula));
                let to = self.ref_target(to);
                Action::Ref { to, filter }
            }
            (Does::Refs { to, filter, without, max }, Some(ty)) => {
                self.expect_reference(rule, ty, want, name);
                if !want.many && *max != Some(1) {
                    self.wrong(
                        rule.place,
                        name,
                        format!("{} takes one reference: write `ref:`, or `max: 1`", want.path),
                    );
                }
                let filter = filter.as_ref().map(|formula| self.condition(env, formula));
                let mut to_all = self.ref_target(to);
                if !without.is_empty() {
                    if to_all != Target::All {
                        self.wrong(rule.place, name, "`without:` stands beside `refs: \"*\"`");
                    }
                    to_all = Target::Others(without.iter().map(|word| self.reference(word)).collect());
                }
                let to = to_all;
                Action::Refs { to, filter, max: max.unwrap_or(u32::MAX) }
            }
            (Does::Extension, _) => nothing,
        };
        (action, suffix)
    }

    fn ref_target(&mut self, to: &Word) -> Target {
        match to.text.as_str() {
            "*" => Target::All,
            "owner" => Target::Owner,
            _ => Target::Resource(self.reference(to)),
        }
    }

    fn expect_reference(&mut self, rule: &Rule, ty: &str, want: &Want, name: &str) {
        if ty != "Reference" {
            self.wrong(rule.place, name, format!("{} is a {ty}, no Reference", want.path));
        }
    }

    fn value(
        &mut self,
        env: &Env<'a>,
        rule: &Rule,
        formula: &ast::Formula,
        ty: &'static str,
        want: &Want,
        name: &str,
    ) -> Option<Action> {
        let typed = self.formula(env, formula);
        if let Some(map) = &rule.map {
            let form = match ty {
                "CodeableConcept" => CodeForm::Concept,
                "Coding" => CodeForm::Coding,
                "code" => CodeForm::Code,
                _ => match Primitive::of(ty) {
                    Some(kind @ (Primitive::Text | Primitive::Uri)) => CodeForm::Plain(kind),
                    _ => {
                        self.wrong(
                            rule.place,
                            name,
                            format!("{} is a {ty}: a table cannot fill it", want.path),
                        );
                        return None;
                    }
                },
            };
            let table = self.table_use(rule, map, form, want, name)?;
            return Some(Action::Coded { expr: typed.id, table, form });
        }
        let Some(kind) = Primitive::of(ty) else {
            let text =
                format!("{} is a {ty}: `use:` a map that makes one, or `set:` its elements", want.path);
            self.wrong(formula.place, name, text);
            return None;
        };
        if ty == "code" && typed.kind == Kind::Element && target::required_codes(&want.path).is_some() {
            let text =
                format!("{} is bound to a fixed list of codes: translate the value by `map:`", want.path);
            self.wrong(formula.place, name, text);
        }
        let expected = match kind {
            Primitive::Boolean if typed.kind != Kind::Bool => "yes_no(..) or a condition",
            Primitive::Date if typed.kind != Kind::Date => "date(..)",
            Primitive::DateTime if !matches!(typed.kind, Kind::Date | Kind::DateTime | Kind::Instant) => {
                "datetime(..)"
            }
            Primitive::Instant if typed.kind != Kind::Instant => "instant(..)",
            Primitive::Time if typed.kind != Kind::Time => "time(..)",
            Primitive::Decimal if !matches!(typed.kind, Kind::Decimal | Kind::Integer) => "decimal(..)",
            Primitive::Integer | Primitive::PositiveInteger | Primitive::UnsignedInteger
                if typed.kind != Kind::Integer =>
            {
                "integer(..)"
            }
            Primitive::Base64 if typed.kind != Kind::Base64 => "base64(..)",
            Primitive::Xhtml if typed.kind != Kind::Xhtml => "narrative(..)",
            Primitive::Hl7Time if typed.kind != Kind::Hl7Time => "hl7_time(..)",
            _ => "",
        };
        if !expected.is_empty() {
            self.wrong(formula.place, name, format!("{} is a {ty}: expected {expected}", want.path));
        }
        Some(Action::Value { expr: typed.id, kind })
    }

    fn table_use(
        &mut self,
        rule: &Rule,
        map: &TableRef,
        form: CodeForm,
        want: &Want,
        name: &str,
    ) -> Option<Box<TableUse>> {
        let table = match map {
            TableRef::Named(word) => {
                let id = self.find_table(word)?;
                self.check_table(id, word, form, want, name);
                // One of a sender's own goes before it.
                self.check_sender_tables(word, form, want, name);
                Lookup::Table(id)
            }
            TableRef::Given => Lookup::Given,
            TableRef::Sender(word) => {
                self.check_sender_tables(word, form, want, name);
                Lookup::Sender(word.text.as_str().into())
            }
        };
        let unmapped = self.code_rule(rule.on_unmapped.as_ref(), Some(Severity::Warning), form, want, name);
        let unmatched = self.code_rule(rule.on_unmatched.as_ref(), None, form, want, name);
        Some(Box::new(TableUse { table, unmapped, unmatched }))
    }

    /// Whether what the tables of that name of any sender answer is what the element takes.
    fn check_sender_tables(&mut self, word: &Word, form: CodeForm, want: &Want, name: &str) {
        let is = |known: &str| known.split_once('/').is_some_and(|(_, table)| table == word.text);
        let tables = self.code.sender_tables.iter().filter(|(known, _)| is(known));
        let mut tables: Vec<u32> = tables.map(|(_, id)| *id).collect();
        tables.sort_unstable();
        for id in tables {
            self.check_table(id, word, form, want, name);
        }
    }

    /// Whether what a table answers is what its element takes.
    fn check_table(&mut self, id: u32, word: &Word, form: CodeForm, want: &Want, name: &str) {
        let (CodeForm::Code, Some(codes)) = (form, target::required_codes(&want.path)) else { return };
        let bound = self.code.bound.entry(id).or_insert_with(|| codes.to_vec());
        bound.retain(|code| codes.contains(code));
        let table = &self.code.tables[id as usize];
        let (table_name, passes) = (table.name.clone(), table.passes_unknown_codes());
        let mut strange: Vec<String> = table
            .target_codes()
            .filter(|target| !codes.contains(&target.code.as_str()))
            .map(|target| target.code.clone())
            .collect();
        strange.sort_unstable();
        if !strange.is_empty() {
            let text = format!(
                "the table {table_name} answers {}, which {} does not take",
                strange.join(", "),
                want.path
            );
            self.wrong(word.place, name, text);
        }
        if passes {
            let text = format!(
                "the table {table_name} lets unknown codes pass, and {} takes a fixed list",
                want.path
            );
            self.wrong(word.place, name, text);
        }
    }

    fn code_rule(
        &mut self,
        on: Option<&OnCode>,
        issue: Option<Severity>,
        form: CodeForm,
        want: &Want,
        name: &str,
    ) -> CodeRule {
        let Some(on) = on else { return CodeRule { set: None, keep: false, policy: Policy::Omit, issue } };
        if let (Some(set), CodeForm::Code, Some(codes)) = (&on.set, form, target::required_codes(&want.path))
            && !codes.contains(&set.text.as_str())
        {
            let hint = hint(&set.text, codes.iter().copied());
            self.wrong(set.place, name, format!("{} takes one of {}{hint}", want.path, codes.join(", ")));
        }
        if on.keep && form == CodeForm::Code && target::required_codes(&want.path).is_some() {
            self.wrong(
                rule_place(on),
                name,
                format!("{} takes a fixed list of codes: a local one cannot be kept", want.path),
            );
        }
        CodeRule {
            set: on.set.as_ref().map(|word| word.text.as_str().into()),
            keep: on.keep,
            policy: on.policy.unwrap_or(Policy::Omit),
            issue: on.issue.or(issue),
        }
    }

    fn absent(&mut self, word: &Word, ty: &'static str, want: &Want, name: &str) -> Action {
        if Primitive::of(ty).is_none() || want.choice || want.many {
            let text = "says why a single primitive has no value; write it under the element that is one";
            self.wrong(word.place, name, format!("{} is a {ty}, and `absent:` {text}", want.path));
        }
        if !ABSENT.contains(&word.text.as_str()) {
            let hint = hint(&word.text, ABSENT.iter().copied());
            self.wrong(word.place, name, format!("expected one of {}{hint}", ABSENT.join(", ")));
        }
        Action::Absent(word.text.as_str().into())
    }

    fn constant(&mut self, word: &Word, ty: &'static str, want: &Want, name: &str) -> Option<Action> {
        let Some(kind) = Primitive::of(ty) else {
            self.wrong(
                word.place,
                name,
                format!("{} is a {ty}: a constant is a primitive; did you mean `concept:`?", want.path),
            );
            return None;
        };
        if let (true, Some(codes)) = (ty == "code", target::required_codes(&want.path))
            && !codes.contains(&word.text.as_str())
        {
            let hint = hint(&word.text, codes.iter().copied());
            self.wrong(word.place, name, format!("{} takes one of {}{hint}", want.path, codes.join(", ")));
        }
        let mut text = String::new();
        if !json::primitive(&mut text, kind, &word.text) {
            self.wrong(word.place, name, format!("expected a {ty}"));
        }
        Some(Action::Const(text.into()))
    }

    fn concept(
        &mut self,
        env: &Env<'a>,
        rule: &Rule,
        word: &Word,
        ty: &'static str,
        want: &Want,
        name: &str,
    ) -> Option<Action> {
        let form = match ty {
            "CodeableConcept" => CodeForm::Concept,
            "Coding" => CodeForm::Coding,
            _ => {
                self.wrong(
                    word.place,
                    name,
                    format!("{} is a {ty}, neither a CodeableConcept nor a Coding", want.path),
                );
                return None;
            }
        };
        let Some((system, code)) = word.text.rsplit_once('#') else {
            self.wrong(word.place, name, "expected system#code, such as v2-0203#MR");
            return None;
        };
        let mut pieces = Vec::new();
        let mut rest = code;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((inner, after)) = after.split_once('}') else {
                self.wrong(word.place, name, "this `{` has no `}`");
                return None;
            };
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            match expression::parse(inner) {
                Ok(expr) => {
                    let formula = ast::Formula { place: word.place, expr };
                    pieces.push(Piece::Expr(self.formula(env, &formula).id));
                }
                Err(wrong) => self.wrong(within(word.place, wrong.at), name, wrong.text),
            }
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        if pieces.is_empty() {
            self.wrong(word.place, name, "expected a code after `#`");
        }
        let display = rule.display.as_ref().map(|formula| self.formula(env, formula).id);
        Some(Action::Concept { system: code_system(system).into(), code: pieces, display, form })
    }

    fn call_map(
        &mut self,
        env: &Env<'a>,
        rule: &'a Rule,
        word: &Word,
        ty: Option<&'static str>,
        want: &Want,
        name: &str,
    ) -> Option<Action> {
        let (map, _) = self.find_map(word)?;
        let Answer::To(to) = &map.answer else {
            self.wrong(
                word.place,
                name,
                "this map makes a resource or a key: `make:` or `identity:` uses it",
            );
            return None;
        };
        if super::adds_to_a_resource(map) {
            self.wrong(word.place, name, "this map adds to a resource: `parts:` of a resource use it");
            return None;
        }
        let fits = to.text.ends_with("[x]") && want.choice
            || ty.is_some_and(|ty| ty == to.text || loosely(ty, &to.text));
        if !fits {
            let text = format!(
                "{} takes {}, and {} makes a {}",
                want.path,
                some_of(&want.types),
                word.text,
                to.text
            );
            self.wrong(word.place, name, text);
        }
        let from = self.source_of(env, rule, map, word);
        let with = self.arguments(env, map, &rule.with, name);
        let table = match &rule.map {
            Some(map) => Some(self.table_use(rule, map, CodeForm::Coding, want, name)?),
            None => None,
        };
        let parent = target::data_type(&to.text);
        let set = match parent {
            Some(parent) => self.fields(env, &rule.set, parent, name, false),
            None => Vec::new(),
        };
        let index = self.type_map(map)?;
        if !set.is_empty() && !matches!(self.code.maps[index as usize].body, MapBody::Object(_)) {
            self.wrong(
                rule.place,
                name,
                format!("{} answers no single object, so `set:` has nothing to change", word.text),
            );
        }
        let anchor = env.anchor.and_then(SegmentName::new);
        let remember = reads::of_call(&mut self.code, (index, table.as_deref()), &with, from, &set, anchor);
        Some(Action::Call { map: index, from, with, table, set, remember })
    }

    /// On what a map is called: `from:`, else the current item. Its type must fit.
    pub(super) fn source_of(
        &mut self,
        env: &Env<'a>,
        rule: &Rule,
        map: &'a ast::Map,
        word: &Word,
    ) -> Option<ExprId> {
        let from = rule.from.as_ref().map(|formula| self.path_formula(env, formula));
        if map.on == ast::On::Record {
            let stands = match &from {
                Some(typed) => typed.record,
                None => env.records.last().copied(),
            };
            self.expect_record(stands, map, word);
            return from.map(|typed| typed.id);
        }
        match from {
            Some(typed) => {
                self.expect_source(&typed.types, map, word);
                Some(typed.id)
            }
            None => {
                let types = env.bases.last().map(|(types, _)| types.clone());
                if types.is_none() {
                    self.wrong(word.place, &word.text, "on what? write `from:` or `each:` with a path");
                }
                self.expect_source(&types.unwrap_or_default(), map, word);
                None
            }
        }
    }

    /// Whether the record that stands there is the one on which a map stands.
    pub(super) fn expect_record(&mut self, stands: Option<ShapeId>, map: &'a ast::Map, word: &Word) {
        let stands = stands.map(|shape| self.shapes.get(shape).name);
        if stands != Some(map.from.text.as_str()) {
            let text =
                format!("stands on a {}, and here stands {}", map.from.text, stands.unwrap_or("no record"));
            self.wrong(word.place, &word.text, text);
        }
    }

    /// Whether the map's `from:` fits what stands there.
    pub(super) fn expect_source(&mut self, types: &Types, map: &'a ast::Map, word: &Word) {
        if map.from.text != "varies" && !types.fits(&map.from.text) {
            let text = format!("stands on a {}, and here stands {}", map.from.text, types.0.join(" or "));
            self.wrong(word.place, &word.text, text);
        }
    }

    pub(super) fn arguments(
        &mut self,
        env: &Env<'a>,
        map: &'a ast::Map,
        with: &[(Word, ast::Argument)],
        name: &str,
    ) -> Vec<(u16, Argument)> {
        let mut arguments = Vec::new();
        for (param, argument) in with {
            let Some(index) = map.params.iter().position(|known| known.text == param.text) else {
                let hint = hint(&param.text, map.params.iter().map(|known| known.text.as_str()));
                self.wrong(
                    param.place,
                    name,
                    format!("`{}` is no parameter of {}{hint}", param.text, map.name.text),
                );
                continue;
            };
            let argument = match argument {
                ast::Argument::Text(word) => Argument::Text(word.text.as_str().into()),
                ast::Argument::Formula(formula) => Argument::Expr(self.formula(env, formula).id),
            };
            arguments.push((u16::try_from(index).unwrap_or(u16::MAX), argument));
        }
        arguments
    }

    /// The elements under `rules:` of a value map or under `set:`. `complete`: whether every required one must be there.
    pub(super) fn fields(
        &mut self,
        env: &Env<'a>,
        set: &'a [(Word, Rule)],
        parent: &str,
        name: &str,
        complete: bool,
    ) -> Vec<Field> {
        let mut fields = Vec::new();
        for (word, rule) in set {
            let Some(element) = self.element(parent, word) else { continue };
            let mut want = Want::of(&element);
            if want.types == ["Extension"] {
                want.path = "Extension".to_owned();
            }
            let node = self.rule(env, rule, &want, &format!("{name}/{}", word.text));
            let remember = reads::of_field(&mut self.code, node, env.anchor.and_then(SegmentName::new));
            let bare = word.text.trim_end_matches("[x]");
            let key = if element.choice { format!("\"{bare}") } else { format!("\"{bare}\":") };
            fields.push(Field {
                key: key.into(),
                name: bare.into(),
                many: element.many,
                choice: element.choice,
                required: element.required,
                node,
                remember,
            });
        }
        if complete && let Some((word, _)) = set.first() {
            let written = |name: &str| set.iter().any(|(word, _)| word.text.trim_end_matches("[x]") == name);
            for missing in
                target::required(parent).into_iter().filter(|name| !written(name.trim_end_matches("[x]")))
            {
                self.wrong(
                    word.place,
                    name,
                    format!("{parent}.{missing} is required, and no rule writes it"),
                );
            }
        }
        fields
    }

    /// An element of a type or of a backbone path, with a mistake if there is none.
    pub(super) fn element(&mut self, parent: &str, word: &Word) -> Option<Element> {
        let found = target::element(parent, &word.text);
        if found.is_none() {
            let names = target::names(parent);
            let hint = hint(&word.text, names.iter().map(String::as_str));
            self.wrong(word.place, &word.text, format!("{parent} has no such element{hint}"));
        }
        found
    }

    /// Compiles a value map once.
    pub(super) fn type_map(&mut self, map: &'a ast::Map) -> Option<u32> {
        let name = map.name.text.as_str();
        if let Some(id) = self.called.get(name) {
            return Some(*id);
        }
        if self.open.contains(&name) {
            let text =
                format!("these maps call each other in a circle: {} -> {name}", self.open.join(" -> "));
            self.wrong(map.name.place, name, text);
            return None;
        }
        let Answer::To(to) = &map.answer else { return None };
        self.open.push(name);
        let file = std::mem::replace(&mut self.file, self.maps.get(name).map_or("", |(_, file)| file));
        let env = Env::of_map(self, map);
        let choice = to.text.ends_with("[x]");
        let ty = target::data_type(&to.text);
        let body = match (&map.rules, ty) {
            (Body::Elements(rules), Some(ty)) if Primitive::of(ty).is_none() => {
                MapBody::Object(self.fields(&env, rules, ty, name, true))
            }
            (Body::One(rule), _) if choice || ty.is_some() => {
                let want = match ty {
                    Some(ty) => Want { many: true, ..Want::one(ty) },
                    None => Want {
                        path: to.text.clone(),
                        types: target::extension_types(),
                        choice: true,
                        many: false,
                        alone: false,
                    },
                };
                MapBody::Node(self.rule(&env, rule, &want, name))
            }
            _ => {
                let hint = hint(&to.text, target::type_names());
                self.wrong(to.place, "to", format!("expected a FHIR data type, or value[x]{hint}"));
                MapBody::Empty
            }
        };
        let ignore = self.ignores(&map.ignore, Some(&map.from.text));
        let id = u32::try_from(self.code.maps.len()).expect("a catalog has fewer than 2^32 maps");
        let record = self.record_of(map);
        let constant = match &map.rules {
            Body::Elements(rules) => rules.iter().all(|(_, rule)| is_constant(rule)),
            _ => false,
        };
        self.code.maps.push(TypeMap { record, body, constant, ignore });
        self.file = file;
        self.open.pop();
        self.called.insert(name, id);
        Some(id)
    }
}

/// A type that stands for another without loss, as `string` for `markdown`, or `CWE` for `CE`.
fn loosely(want: &str, made: &str) -> bool {
    if want == "varies" || super::source::are_kin(want, made) {
        return true;
    }
    matches!(
        (Primitive::of(want), Primitive::of(made)),
        (Some(Primitive::Text), Some(Primitive::Text | Primitive::Code))
            | (Some(Primitive::Uri), Some(Primitive::Uri))
    )
}

/// Whether a rule writes the same whatever the message says.
fn is_constant(rule: &Rule) -> bool {
    match &rule.does {
        Does::Const(_) | Does::Concept(_) | Does::Absent(_) => true,
        Does::Object => rule.set.iter().all(|(_, rule)| is_constant(rule)),
        Does::First(rules) | Does::All(rules) => rules.iter().all(is_constant),
        _ => false,
    }
}

fn item_name(name: &str, item: &Rule) -> String {
    item.id.as_ref().map_or_else(|| name.to_owned(), |id| format!("{name}/{}", id.text))
}

fn rule_place(on: &OnCode) -> schemas::yaml::Place {
    on.set.as_ref().map_or_else(schemas::yaml::Place::default, |word| word.place)
}

fn some_of(types: &[&str]) -> String {
    match types {
        [one] => format!("a {one}"),
        many if many.len() > 12 => "a data type".to_owned(),
        many => format!("one of {}", many.join(", ")),
    }
}

/// The full name of a code system.
fn code_system(short: &str) -> String {
    match short {
        "loinc" => "http://loinc.org".to_owned(),
        "snomed" => "http://snomed.info/sct".to_owned(),
        "ucum" => "http://unitsofmeasure.org".to_owned(),
        _ if short.contains(':') => short.to_owned(),
        _ => format!("http://terminology.hl7.org/CodeSystem/{short}"),
    }
}
