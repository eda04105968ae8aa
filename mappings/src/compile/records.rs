//! Records: the shapes that are declared, and the paths that go down through them.

use super::expressions::Typed;
use super::{Compiler, Env, hint, source};
use crate::functions::Kind;
use crate::language::ast::{self, Form, RecordDef, Word};
use crate::language::expression::{Expr, Filter, Member, PathExpr, Root};
use crate::language::load::VALUES;
use crate::names;
use crate::program::{Down, IgnoreRule, Op, Pick, RecordsCode};
use schemas::hl7v2::path::SegmentName;
use schemas::records::{self, Holds, Is, ShapeId, Shapes, Value};
use schemas::yaml::Place;
use std::sync::Arc;

/// A path through records, every name of it known.
pub(super) struct Way {
    /// The record at which it begins.
    pub(super) from: ShapeId,
    /// The records on the way.
    pub(super) down: Vec<Step>,
    /// The member that holds the value at its end; `None` if it ends in a record.
    pub(super) value: Option<(u16, Value)>,
}

/// One step of a way.
pub(super) struct Step {
    /// The member in which the record lies; of a reference the type of the resource.
    name: &'static str,
    pub(super) shape: ShapeId,
    /// Whether it follows a reference.
    follows: bool,
}

impl Way {
    /// The record at which it ends, or whose member its value is.
    pub(super) fn last(&self) -> ShapeId {
        self.down.last().map_or(self.from, |step| step.shape)
    }

    /// The members that are gone through, joined by dots; `None` if it follows a reference.
    fn groups(&self) -> Option<String> {
        let names = self.down.iter().map(|step| (!step.follows).then_some(step.name));
        Some(names.collect::<Option<Vec<_>>>()?.join("."))
    }
}

/// The way of a path from a record that stands around.
pub(super) fn way(env: &Env<'_>, name: &str, members: &[&str]) -> Result<Way, String> {
    let shapes = &*env.shapes;
    let Some(from) = env.records.iter().rev().find(|id| shapes.get(**id).name == name) else {
        let around: Vec<&str> = env.records.iter().map(|id| shapes.get(*id).name).collect();
        return Err(match (shapes.named(name), around.as_slice()) {
            (None, _) => format!("there is no record of this name{}", hint(name, shapes.names())),
            (Some(_), []) => "no record stands here".to_owned(),
            (Some(_), around) => format!("does not stand here; here stands {}", around.join(" in ")),
        });
    };
    down(shapes, *from, members)
}

fn down(shapes: &Shapes, from: ShapeId, members: &[&str]) -> Result<Way, String> {
    let mut way = Way { from, down: Vec::new(), value: None };
    for name in members {
        let shape = shapes.get(way.last());
        if way.value.is_some() {
            return Err(format!("`{name}` stands behind a value, which has no members"));
        }
        // What a reference leads to is a resource of a type.
        let target = shapes.named(name).filter(|id| shapes.get(*id).is == Is::Resource);
        if let (Is::Reference, Some(target)) = (shape.is, target) {
            way.down.push(Step { name: shapes.get(target).name, shape: target, follows: true });
            continue;
        }
        let Some((number, member)) = shape.member(name) else {
            let hint = hint(name, shape.members.iter().map(|member| member.name));
            return Err(format!("{} has no member `{name}`{hint}", shape.name));
        };
        match member.holds {
            Holds::Record(inner) => way.down.push(Step { name: member.name, shape: inner, follows: false }),
            Holds::Value(value) => way.value = Some((number, value)),
        }
    }
    Ok(way)
}

/// The way of a path of an expression.
pub(super) fn way_of(env: &Env<'_>, path: &PathExpr) -> Option<Way> {
    let Root::Record { name, .. } = &path.root else { return None };
    let members: Vec<&str> = path.members.iter().map(|member| member.name.as_str()).collect();
    way(env, name, &members).ok()
}

impl<'a> Compiler<'a> {
    /// Takes in the shapes: first their names, because they name each other.
    pub(super) fn declare_records(&mut self, records: &[(&'a RecordDef, &'a str)]) {
        let mut shapes = Shapes::beside(Arc::clone(records::fhir_shapes()));
        let mut known = Vec::new();
        for (record, file) in records {
            self.file = file;
            match shapes.add(names::name(&record.name.text)) {
                Some(id) => known.push((id, *record, *file)),
                None => {
                    let text = match records::fhir_shapes().named(&record.name.text) {
                        Some(_) => "is the name of a type of FHIR: give the record another one",
                        None => "this record is declared twice",
                    };
                    self.wrong(record.name.place, &record.name.text, text);
                }
            }
        }
        for (id, record, file) in known {
            self.file = file;
            for member in &record.members {
                let holds = match member.holds.text.as_str() {
                    "text" => Holds::Value(Value::Text),
                    "number" => Holds::Value(Value::Number),
                    "boolean" => Holds::Value(Value::Boolean),
                    name => match shapes.named(name) {
                        Some(inner) => Holds::Record(inner),
                        None => {
                            let hint = hint(name, VALUES.into_iter().chain(shapes.names()));
                            let text = format!("expected {}, or a record{hint}", VALUES.join(", "));
                            self.wrong(member.holds.place, &member.name.text, text);
                            continue;
                        }
                    },
                };
                let name = names::name(&member.name.text);
                let written = member.written.clone().unwrap_or_else(|| name.to_owned());
                if !shapes.add_member(id, records::Member { name, written, holds, many: member.many }) {
                    self.wrong(member.name.place, name, "this member is declared twice");
                }
            }
        }
        self.shapes = Arc::new(shapes);
    }

    /// The record of a name, with a mistake if there is none.
    pub(super) fn shape(&mut self, word: &Word, key: &str) -> Option<ShapeId> {
        let found = self.shapes.named(&word.text);
        if found.is_none() {
            let hint = hint(&word.text, self.shapes.names());
            self.wrong(word.place, key, format!("there is no record of this name{hint}"));
        }
        found
    }

    /// The segment that the record of a map is.
    pub(super) fn record_of(&self, map: &ast::Map) -> Option<SegmentName> {
        let shape = (map.on == ast::On::Record).then(|| self.shapes.named(&map.from.text))??;
        Some(shape.segment())
    }

    /// What a mapping takes, if that is no HL7 v2.
    pub(super) fn records(&mut self, mapping: &'a ast::Mapping) -> Option<RecordsCode> {
        let source = mapping.source.records.as_ref()?;
        let root = self.shape(&source.record, "source.record")?;
        if matches!(source.form, Form::Csv(_)) && self.shapes.lines(root).is_none() {
            let text = "the record of a CSV file has one member, a list of records that hold values alone: its lines";
            self.wrong(source.record.place, "source.record", text);
        }
        if let Some(include) = mapping.include.first() {
            let text = "fragments are of HL7 v2: a mapping of records says all of its resources itself";
            self.wrong(include.fragment.place, "include", text);
        }
        Some(RecordsCode { shapes: Arc::clone(&self.shapes), root, form: source.form })
    }

    /// The record on which a resource or a part stands, and the groups that lead there. Mistakes name `from`.
    pub(super) fn record_position(&mut self, env: &Env<'a>, from: &Word) -> Option<(String, Way)> {
        let mut names = from.text.split('.');
        let found = way(env, names.next().unwrap_or(""), &names.collect::<Vec<_>>());
        match found {
            Ok(way) if way.value.is_none() => {
                let groups = way.groups();
                if groups.is_none() {
                    let text = "a resource or a part stands where it stands, not where a reference leads";
                    self.wrong(from.place, "from", text);
                }
                Some((groups?, way))
            }
            Ok(_) => {
                self.wrong(from.place, "from", "expected a record, and this is a value");
                None
            }
            Err(text) => {
                self.wrong(from.place, "from", format!("{}: {text}", from.text));
                None
            }
        }
    }

    pub(super) fn record_path(&mut self, env: &Env<'a>, path: &PathExpr, at: Place) -> Typed {
        let nothing = |compiler: &mut Self| Typed::of(compiler.op(Op::Text("".into())), Kind::Element);
        let Root::Record { item, name } = &path.root else { return nothing(self) };
        let members: Vec<&str> = path.members.iter().map(|member| member.name.as_str()).collect();
        // An item may be of another resource, whose record does not stand around.
        let found = match (item, env.shapes.named(name)) {
            (true, Some(shape)) => down(&env.shapes, shape, &members),
            _ => way(env, name, &members),
        };
        let way = match found {
            Ok(way) => way,
            Err(text) => {
                self.wrong(at, &format!("{name}.{}", members.join(".")), text);
                return nothing(self);
            }
        };
        let mut inner = env.clone();
        let mut steps = Vec::new();
        for (member, step) in path.members.iter().zip(&way.down) {
            inner.records.push(step.shape);
            let pick = self.pick_member(&inner, member, at);
            let target = step.follows.then(|| step.shape.segment());
            steps.push(Down { member: step.name, target, pick });
        }
        let last = path.members.get(way.down.len());
        let pick = match last {
            Some(member) => self.pick_member(&inner.with_item(source::Types::default()), member, at),
            None => Pick::All,
        };
        let (field, boolean) =
            way.value.map_or((0, false), |(number, kind)| (number, kind == Value::Boolean));
        let kind = match way.value {
            Some((_, Value::Number)) => Kind::Decimal,
            Some((_, Value::Boolean)) => Kind::Bool,
            Some((_, Value::Text)) | None => Kind::Element,
        };
        let record = way.value.is_none().then(|| way.last());
        let op =
            Op::Record { item: *item, name: way.from.segment(), down: steps.into(), field, pick, boolean };
        Typed { record, ..Typed::of(self.op(op), kind) }
    }

    /// Which of several records or values are meant.
    fn pick_member(&mut self, env: &Env<'a>, member: &Member, at: Place) -> Pick {
        match &member.filter {
            None | Some(Filter::All) => Pick::All,
            Some(Filter::Number(number)) => Pick::Number(*number),
            Some(Filter::Where(expr)) => {
                if matches!(&**expr, Expr::Call { name, .. } if name == "index") {
                    self.wrong(at, &member.name, "a member is picked by a number or by a condition");
                }
                Pick::Where(self.truth(env, expr, at))
            }
        }
    }

    /// Reads an entry of `ignore:` about a record or one of its values.
    pub(super) fn ignored_members(&mut self, entry: &ast::Ignore, root: &str) -> Vec<IgnoreRule> {
        let shapes = Arc::clone(&self.shapes);
        let any = shapes.named(root).is_some_and(|shape| shapes.get(shape).is == Is::AnyResource);
        if !any {
            return self.ignored_member(&shapes, entry, root).into_iter().collect();
        }
        // What every resource has, each in its own place.
        let resources = shapes
            .names()
            .into_iter()
            .filter(|name| shapes.named(name).is_some_and(|shape| shapes.get(shape).is == Is::Resource));
        resources.filter_map(|name| self.ignored_member(&shapes, entry, name)).collect()
    }

    fn ignored_member(&mut self, shapes: &Shapes, entry: &ast::Ignore, root: &str) -> Option<IgnoreRule> {
        let mut names = entry.path.text.split('.');
        names.next();
        let names: Vec<&str> = names.collect();
        let found = match shapes.named(root) {
            None => Err(format!("there is no record of this name{}", hint(root, shapes.names()))),
            Some(shape) if names.is_empty() => Ok((shape, 1, u16::MAX)),
            Some(shape) => match down(shapes, shape, &names) {
                Ok(Way { value: Some((number, _)), down, from }) if down.is_empty() => {
                    Ok((from, number, number))
                }
                Ok(way) => {
                    let last = shapes.get(way.last()).name;
                    Err(format!("is a record of its own, or in one: write {last}, or {last}. and the member"))
                }
                Err(text) => Err(text),
            },
        };
        match found {
            Ok((shape, first, last)) => {
                let reason = Arc::from(entry.reason.as_str());
                Some(IgnoreRule { segment: Some(shape.segment()), first, last, steps: [0, 0], reason })
            }
            Err(text) => {
                self.wrong(entry.path.place, "ignore", format!("{}: {text}", entry.path.text));
                None
            }
        }
    }
}
