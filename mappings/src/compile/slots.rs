//! Slots: the rules of a resource, cut into the parts that are written and emptied as a whole.

use super::rules::Want;
use super::target::suffix;
use super::{Compiler, Env, reads, records};
use crate::functions::{FUNCTIONS, is_strict};
use crate::language::ast::{Does, Formula, OnExisting, Rule, Word};
use crate::language::expression::{Expr, PathExpr, Root};
use crate::names;
use crate::program::{ExprId, Op, Scope, Slot, SlotPath};
use schemas::hl7v2::path::SegmentName;

/// Where the walk through nested rules is.
#[derive(Clone)]
struct At {
    /// The FHIR path of the parent, `Encounter` or `Encounter.hospitalization`.
    parent: String,
    /// The slot's path so far, `hospitalization.`.
    path: String,
    /// The slot's name so far, `pv1_encounter`.
    name: String,
    guards: Vec<ExprId>,
    existing: Option<OnExisting>,
}

impl<'a> Compiler<'a> {
    /// The slots of the rules of a resource type. `owner` begins their names.
    pub(super) fn slots(
        &mut self,
        env: &Env<'a>,
        rules: &'a [(Word, Rule)],
        resource: &str,
        owner: &str,
        outer: bool,
    ) -> Vec<Slot> {
        let mut slots = Vec::new();
        let at = At {
            parent: resource.to_owned(),
            path: String::new(),
            name: owner.to_owned(),
            guards: Vec::new(),
            existing: None,
        };
        for (word, rule) in rules {
            self.flatten(env, word, rule, &at, outer, &mut slots);
        }
        for (slot, order) in slots.iter_mut().zip(0..) {
            slot.order = order;
        }
        slots
    }

    fn flatten(
        &mut self,
        env: &Env<'a>,
        word: &Word,
        rule: &'a Rule,
        at: &At,
        outer: bool,
        slots: &mut Vec<Slot>,
    ) {
        let around = self.file;
        self.file = rule.file.as_deref().unwrap_or(around);
        self.flatten_here(env, word, rule, at, outer, slots);
        self.file = around;
    }

    fn flatten_here(
        &mut self,
        env: &Env<'a>,
        word: &Word,
        rule: &'a Rule,
        at: &At,
        outer: bool,
        slots: &mut Vec<Slot>,
    ) {
        let Some(element) = self.element(&at.parent, word) else { return };
        let want = Want::of(&element);
        let name = format!("{}/{}", at.name, word.text);
        let existing = rule.on_existing.clone().or_else(|| at.existing.clone());
        let plain = rule.each.is_none() && rule.from.is_none() && rule.url.is_none();
        let guards = |compiler: &mut Self| {
            let mut guards = at.guards.clone();
            guards.extend(rule.when.as_ref().map(|formula| compiler.condition(env, formula)));
            guards
        };
        match &rule.does {
            Does::All(items) if element.many && plain => {
                let guards = guards(self);
                for item in items {
                    let id = item.id.as_ref().map_or("item", |id| id.text.as_str());
                    let item_at = At { guards: guards.clone(), existing: existing.clone(), ..at.clone() };
                    let name = format!("{name}/{id}");
                    self.slot(env, item, &want, &word.text, name, item_at, outer, slots);
                }
            }
            Does::Object if !element.many && !element.choice && plain && want.types != ["Extension"] => {
                let inner = At {
                    parent: want.types.first().unwrap_or(&"").to_string(),
                    path: format!("{}{}.", at.path, word.text),
                    name,
                    guards: guards(self),
                    existing,
                };
                for (word, rule) in &rule.set {
                    self.flatten(env, word, rule, &inner, outer, slots);
                }
            }
            _ => {
                let at = At { existing, ..at.clone() };
                self.slot(env, rule, &want, &word.text, name, at, outer, slots);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one walk, used in two places above")]
    fn slot(
        &mut self,
        env: &Env<'a>,
        rule: &'a Rule,
        want: &Want,
        element: &str,
        name: String,
        at: At,
        outer: bool,
        slots: &mut Vec<Slot>,
    ) {
        if slots.iter().any(|slot| slot.name == name) {
            self.wrong(rule.place, &name, "two slots have this name");
        }
        let bare = element.trim_end_matches("[x]");
        let text = format!("{}{bare}", at.path);
        let beside = names::name(&format!("{}_{bare}.extension", at.path));
        let types = match want.choice {
            true => want
                .types
                .iter()
                .map(|of| (suffix(of), names::name(&format!("{text}/{}", suffix(of)))))
                .collect(),
            false => Vec::new(),
        };
        let node = self.rule(env, rule, &Want { alone: true, ..want.clone() }, &name);
        let around = self.file;
        self.file = rule.file.as_deref().unwrap_or(around);
        let (sources, carries) = self.sources(env, rule);
        let mut inner = Vec::new();
        below(rule, &mut inner);
        for rule in inner.into_iter().filter(|rule| rule.clear.is_some()) {
            self.wrong(
                rule.place,
                &name,
                "`clear:` empties a slot as a whole: write it at the rule that names the slot",
            );
        }
        let clear = rule.clear.as_ref().map(|formula| self.condition(env, formula));
        self.file = around;
        let idle = clear.is_none() && idle(env, rule);
        let mut slot = Slot {
            name: names::name(&name),
            path: SlotPath { text: names::name(&text), many: want.many, choice: want.choice, types, beside },
            order: 0,
            guards: at.guards,
            node,
            clear,
            sources,
            idle,
            fields: 0,
            existing: rule.on_existing.clone().or(at.existing),
            outer,
            finest: false,
            remember: None,
            refusal: None,
        };
        let conditions = || slot.guards.iter().chain(&self.code.node(node).when);
        slot.finest = conditions().any(|condition| self.asks_for_the_finest(*condition));
        let anchor = env.anchor.and_then(SegmentName::new);
        slot.remember = reads::of_slot(&mut self.code, &slot, anchor);
        slot.refusal = reads::of_refusal(&mut self.code, &slot, carries, anchor);
        if idle {
            let bit = |source: &ExprId| match self.code.op(*source) {
                Op::Segment { scope: Scope::Near, name, field: field @ 1..=127, .. }
                    if Some(*name) == anchor =>
                {
                    Some(1 << field)
                }
                _ => None,
            };
            let bits: Option<Vec<u128>> = slot.sources.iter().map(bit).collect();
            slot.fields = bits.unwrap_or_default().into_iter().fold(0, |all, bit| all | bit);
        }
        slots.push(slot);
    }

    /// Whether a condition holds for the finest level of a chain alone.
    fn asks_for_the_finest(&self, condition: ExprId) -> bool {
        match self.code.op(condition) {
            Op::Call { function, .. } => FUNCTIONS[*function].name == "is_finest",
            Op::And(a, b) => self.asks_for_the_finest(*a) || self.asks_for_the_finest(*b),
            _ => false,
        }
    }

    /// The fields of the message that a rule carries over, and what a caller hands it of them; of a rule without any, those that
    /// its conditions read. And whether it carries any over.
    fn sources(&mut self, env: &Env<'a>, rule: &Rule) -> (Vec<ExprId>, bool) {
        let (mut values, mut conditions) = (Vec::new(), Vec::new());
        gather(rule, &mut values, &mut conditions);
        let mut found: Vec<(&PathExpr, &Formula)> = Vec::new();
        let mut carries = false;
        for (list, carried) in [(values, true), (conditions, false)] {
            for (path, formula) in list {
                let counts = counts(env, path) || matches!(path.root, Root::Name("with", _));
                let known = found.iter().any(|(other, _)| {
                    (&other.root, &other.steps, &other.members) == (&path.root, &path.steps, &path.members)
                });
                if counts && !known {
                    found.push((path, formula));
                }
            }
            if !found.is_empty() {
                carries = carried;
                break;
            }
        }
        let mut sources = Vec::new();
        for (path, formula) in found {
            let formula = Formula { place: formula.place, expr: Expr::Path(path.clone()) };
            sources.push(self.formula(env, &formula).id);
        }
        (sources, carries)
    }
}

/// The rules inside a rule.
fn below<'r>(rule: &'r Rule, found: &mut Vec<&'r Rule>) {
    let mut inner: Vec<&Rule> = rule.set.iter().map(|(_, rule)| rule).chain(&rule.extension).collect();
    match &rule.does {
        Does::First(rules) | Does::All(rules) => inner.extend(rules),
        Does::Switch { cases, otherwise, .. } => {
            inner.extend(cases.iter().map(|(_, rule)| rule));
            inner.extend(otherwise.as_deref());
        }
        _ => {}
    }
    for rule in inner {
        found.push(rule);
        below(rule, found);
    }
}

type Paths<'r> = Vec<(&'r PathExpr, &'r Formula)>;

fn gather<'r>(rule: &'r Rule, values: &mut Paths<'r>, conditions: &mut Paths<'r>) {
    if let Some(formula) = &rule.when {
        paths(&formula.expr, formula, conditions);
    }
    for formula in [&rule.each, &rule.from].into_iter().flatten() {
        paths(&formula.expr, formula, values);
    }
    match &rule.does {
        Does::Value(formula) => paths(&formula.expr, formula, values),
        Does::First(rules) | Does::All(rules) => {
            rules.iter().for_each(|rule| gather(rule, values, conditions))
        }
        Does::Switch { on, cases, otherwise } => {
            paths(&on.expr, on, conditions);
            cases.iter().for_each(|(_, rule)| gather(rule, values, conditions));
            otherwise.iter().for_each(|rule| gather(rule, values, conditions));
        }
        _ => {}
    }
    rule.set.iter().for_each(|(_, rule)| gather(rule, values, conditions));
    rule.extension.iter().for_each(|rule| gather(rule, values, conditions));
}

fn paths<'r>(expr: &'r Expr, formula: &'r Formula, found: &mut Paths<'r>) {
    match expr {
        Expr::Path(path) => found.push((path, formula)),
        Expr::Text(_) | Expr::Number(_) => {}
        Expr::Call { args, .. } => args.iter().for_each(|arg| paths(arg, formula, found)),
        Expr::Not(inner) => paths(inner, formula, found),
        Expr::And(a, b) | Expr::Or(a, b) | Expr::Compare(_, a, b) | Expr::Coalesce(a, b) => {
            paths(a, formula, found);
            paths(b, formula, found);
        }
        Expr::In { item, list, .. } => {
            paths(item, formula, found);
            list.iter().for_each(|expr| paths(expr, formula, found));
        }
    }
}

/// Whether a path names something of the message that a slot carries over.
fn counts(env: &Env<'_>, path: &PathExpr) -> bool {
    match &path.root {
        Root::Segment { alias, field, .. } => field.is_some() && alias.as_deref() != Some("it"),
        Root::Type(name) => env.bases.iter().any(|(types, _)| types.may_be(name)),
        Root::Record { item, .. } => {
            !item && records::way_of(env, path).is_some_and(|way| way.value.is_some())
        }
        Root::It | Root::Level | Root::Name(..) => false,
    }
}

/// Whether a rule writes nothing where nothing stands at the paths that it carries over.
fn idle(env: &Env<'_>, rule: &Rule) -> bool {
    let path = |formula: &Option<Formula>| {
        formula.as_ref().is_some_and(|f| matches!(&f.expr, Expr::Path(path) if counts(env, path)))
    };
    if path(&rule.each) {
        return true;
    }
    if rule.each.is_some() || !rule.extension.iter().all(|rule| idle(env, rule)) {
        return false;
    }
    match &rule.does {
        Does::Value(formula) => idle_expr(env, &formula.expr),
        // From nothing no resource is made.
        Does::Use(_) | Does::Make { .. } => {
            path(&rule.from) && rule.set.iter().all(|(_, rule)| idle(env, rule) || is_fixed(rule))
        }
        Does::Object => {
            let some = rule.set.iter().any(|(_, rule)| idle(env, rule));
            some && rule.set.iter().all(|(_, rule)| idle(env, rule) || is_fixed(rule))
        }
        Does::First(rules) | Does::All(rules) => rules.iter().all(|rule| idle(env, rule)),
        Does::Switch { cases, otherwise, .. } => {
            cases.iter().map(|(_, rule)| rule).chain(otherwise.as_deref()).all(|rule| idle(env, rule))
        }
        Does::Extension => true,
        Does::Const(_) | Does::Absent(_) | Does::Concept(_) | Does::Ref { .. } | Does::Refs { .. } => false,
    }
}

/// A constant beside others: an object of constants alone is not written.
fn is_fixed(rule: &Rule) -> bool {
    matches!(rule.does, Does::Const(_) | Does::Concept(_)) && rule.extension.is_empty()
}

fn idle_expr(env: &Env<'_>, expr: &Expr) -> bool {
    match expr {
        Expr::Path(path) => counts(env, path),
        Expr::Coalesce(a, b) => idle_expr(env, a) && idle_expr(env, b),
        Expr::Call { name, args, .. } if name == "join" => args.iter().skip(1).all(|arg| idle_expr(env, arg)),
        Expr::Call { name, args, .. } if name == "lines" => args.iter().all(|arg| idle_expr(env, arg)),
        Expr::Call { name, args, .. } => {
            is_strict(name) && args.first().is_some_and(|arg| idle_expr(env, arg))
        }
        _ => false,
    }
}
