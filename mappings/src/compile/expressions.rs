//! Expressions: paths are checked against the definitions, calls against the table of functions.

use super::source::{self, Types};
use super::{Compiler, Env, hint};
use crate::functions::{FUNCTIONS, Kind};
use crate::language::ast::Formula;
use crate::language::expression::{Comparison, Expr, Filter, PathExpr, Root};
use crate::language::load::within;
use crate::program::{Base, ExprId, Op, Party, Pick, Scope};
use schemas::hl7v2::path::SegmentName;
use schemas::records::ShapeId;
use schemas::yaml::Place;

/// A compiled expression and what is known of its value.
pub(super) struct Typed {
    pub(super) id: ExprId,
    pub(super) kind: Kind,
    /// For a path, what stands there.
    pub(super) types: Types,
    /// For a path to a record, its shape.
    pub(super) record: Option<ShapeId>,
}

impl Typed {
    pub(super) fn of(id: ExprId, kind: Kind) -> Typed {
        Typed { id, kind, types: Types::default(), record: None }
    }
}

impl<'a> Compiler<'a> {
    /// An expression, which many rules may share.
    pub(super) fn op(&mut self, op: Op) -> ExprId {
        ExprId(self.expressions.once(&mut self.code.exprs, op))
    }

    /// Compiles a formula of any kind.
    pub(super) fn formula(&mut self, env: &Env<'a>, formula: &Formula) -> Typed {
        self.expr(env, &formula.expr, formula.place)
    }

    /// Compiles a condition.
    pub(super) fn condition(&mut self, env: &Env<'a>, formula: &Formula) -> ExprId {
        let typed = self.formula(env, formula);
        if typed.kind != Kind::Bool {
            self.wrong(formula.place, "", "expected a condition, such as valued(PID-3) or PID-8 == 'F'");
        }
        typed.id
    }

    /// Compiles a path.
    pub(super) fn path_formula(&mut self, env: &Env<'a>, formula: &Formula) -> Typed {
        let typed = self.formula(env, formula);
        if !crate::language::load::is_path(&formula.expr) {
            self.wrong(formula.place, "", "expected a path, such as PID-3, CX.4 or Reading.value");
        }
        typed
    }

    fn expr(&mut self, env: &Env<'a>, expr: &Expr, place: Place) -> Typed {
        let plain = Typed::of;
        match expr {
            Expr::Text(text) => plain(self.op(Op::Text(text.as_str().into())), Kind::Text),
            Expr::Number(number) => plain(self.op(Op::Number(*number)), Kind::Integer),
            Expr::Path(path) => self.path(env, path, place),
            Expr::Call { name, args, at } => self.call(env, name, args, within(place, *at), place),
            Expr::Not(inner) => {
                let inner = self.truth(env, inner, place);
                plain(self.op(Op::Not(inner)), Kind::Bool)
            }
            Expr::And(a, b) => {
                let (a, b) = (self.truth(env, a, place), self.truth(env, b, place));
                plain(self.op(Op::And(a, b)), Kind::Bool)
            }
            Expr::Or(a, b) => {
                let (a, b) = (self.truth(env, a, place), self.truth(env, b, place));
                plain(self.op(Op::Or(a, b)), Kind::Bool)
            }
            Expr::Compare(comparison @ (Comparison::Equal | Comparison::Unequal), item, word)
                if let Some(words) = words([&**word]) =>
            {
                let item = self.expr(env, item, place).id;
                let negated = *comparison == Comparison::Unequal;
                plain(self.op(Op::OneOf { negated, item, words }), Kind::Bool)
            }
            Expr::Compare(comparison, a, b) => {
                let (a, b) = (self.expr(env, a, place).id, self.expr(env, b, place).id);
                plain(self.op(Op::Compare(*comparison, a, b)), Kind::Bool)
            }
            Expr::In { negated, item, list } if let Some(words) = words(list) => {
                let item = self.expr(env, item, place).id;
                plain(self.op(Op::OneOf { negated: *negated, item, words }), Kind::Bool)
            }
            Expr::In { negated, item, list } => {
                let item = self.expr(env, item, place).id;
                let list = list.iter().map(|expr| self.expr(env, expr, place).id).collect();
                plain(self.op(Op::In { negated: *negated, item, list }), Kind::Bool)
            }
            Expr::Coalesce(a, b) => {
                let (a, b) = (self.expr(env, a, place), self.expr(env, b, place));
                let kind = if a.kind == b.kind { a.kind } else { Kind::Text };
                let id = self.op(Op::Coalesce(a.id, b.id));
                Typed { id, kind, types: a.types, record: a.record }
            }
        }
    }

    pub(super) fn truth(&mut self, env: &Env<'a>, expr: &Expr, place: Place) -> ExprId {
        let typed = self.expr(env, expr, place);
        if typed.kind != Kind::Bool {
            self.wrong(place, "", "`and`, `or` and `not` take conditions, such as valued(PID-3)");
        }
        typed.id
    }

    fn call(&mut self, env: &Env<'a>, name: &str, args: &[Expr], at: Place, place: Place) -> Typed {
        let Some(index) = FUNCTIONS.iter().position(|function| function.name == name) else {
            let hint = hint(name, FUNCTIONS.iter().map(|function| function.name));
            self.wrong(at, name, format!("there is no function of this name{hint}"));
            return Typed::of(self.op(Op::Text("".into())), Kind::Text);
        };
        let function = &FUNCTIONS[index];
        if args.len() < function.args.0 || args.len() > function.args.1 {
            let expected = match function.args {
                (0, 0) => "no argument".to_owned(),
                (least, most) if least == most => format!("{least} arguments"),
                (least, usize::MAX) => format!("{least} arguments or more"),
                (least, most) => format!("{least} to {most} arguments"),
            };
            self.wrong(at, name, format!("takes {expected}, here are {}; {}", args.len(), function.spec));
        }
        if name == "ordinal" && !env.identity {
            self.wrong(at, name, "has a meaning in `identity:` only");
        }
        if matches!(name, "chain_key" | "is_finest") && !env.chain {
            self.wrong(at, name, "has a meaning in a map with `chain:` only");
        }
        let typed: Vec<Typed> = args.iter().map(|arg| self.expr(env, arg, place)).collect();
        if matches!(name, "same" | "among")
            && typed.iter().any(|arg| arg.record.is_none())
            && !env.records.is_empty()
        {
            self.wrong(at, name, "takes paths to records");
        }
        let args: Box<[ExprId]> = typed.iter().map(|arg| arg.id).collect();
        let id = self.op(Op::Call { function: index, args });
        Typed::of(id, function.answers)
    }

    fn path(&mut self, env: &Env<'a>, path: &PathExpr, place: Place) -> Typed {
        let at = within(place, path.at);
        match &path.root {
            Root::Segment { alias, name, field } => {
                self.segment_path(env, path, alias.as_deref(), name, *field, at)
            }
            Root::Type(name) => self.type_path(env, path, name, at),
            Root::Record { .. } => self.record_path(env, path, at),
            Root::It => {
                let types = env.bases.last().map(|(types, _)| types.clone()).unwrap_or_default();
                let types = self.steps(types, &path.steps, at, "it");
                self.no_filter(path, at);
                let id = self.op(Op::Part { base: Base::Item, steps: steps(path) });
                Typed { types, ..Typed::of(id, Kind::Element) }
            }
            Root::Level => {
                self.no_filter(path, at);
                self.in_chain(env, at);
                let id = self.op(Op::Part { base: Base::Level, steps: steps(path) });
                Typed::of(id, Kind::Element)
            }
            Root::Name(head, name) => self.name_path(env, head, name, at),
        }
    }

    fn in_chain(&mut self, env: &Env<'a>, at: Place) {
        if !env.chain {
            self.wrong(at, "level", "has a meaning in a map with `chain:` only");
        }
    }

    fn no_filter(&mut self, path: &PathExpr, at: Place) {
        if !matches!(path.filter, None | Some(Filter::All)) {
            self.wrong(at, "", "only a field of a segment has repetitions to choose from");
        }
    }

    fn name_path(&mut self, env: &Env<'a>, head: &str, name: &str, at: Place) -> Typed {
        let (op, kind) = match (head, name) {
            ("with", _) => match env.params.iter().position(|param| param.text == name) {
                Some(index) => (Op::With(u16::try_from(index).unwrap_or(u16::MAX)), Kind::Text),
                None => {
                    let hint = hint(name, env.params.iter().map(|param| param.text.as_str()));
                    self.wrong(
                        at,
                        name,
                        format!("is no parameter of {}: name it under `params:`{hint}", env.owner),
                    );
                    (Op::Text("".into()), Kind::Text)
                }
            },
            ("option", _) => match env.options.iter().find(|option| option.name.text == name) {
                Some(option) => {
                    let name = format!("{}.{name}", env.owner).into();
                    (Op::Option { name, default: option.default.as_str().into() }, Kind::Text)
                }
                None => {
                    let hint = hint(name, env.options.iter().map(|option| option.name.text.as_str()));
                    self.wrong(
                        at,
                        name,
                        format!("is no option of {}: declare it under `options:`{hint}", env.owner),
                    );
                    (Op::Text("".into()), Kind::Text)
                }
            },
            ("sender", "name") => (Op::SenderName, Kind::Text),
            ("sender", "system") => (Op::SenderSystem, Kind::Text),
            ("context", "received_at") => (Op::ReceivedAt, Kind::Instant),
            ("context", "mapping") => (Op::MappingName, Kind::Text),
            ("context", "message") => (Op::MessageText, Kind::Text),
            ("context", "message_id") => (Op::MessageId, Kind::Text),
            ("context", "control_id") => (Op::ControlId, Kind::Text),
            ("context", "sending_application") => (Op::Party(Party::SendingApplication), Kind::Text),
            ("context", "sending_facility") => (Op::Party(Party::SendingFacility), Kind::Text),
            ("context", "receiving_application") => (Op::Party(Party::ReceivingApplication), Kind::Text),
            ("context", "receiving_facility") => (Op::Party(Party::ReceivingFacility), Kind::Text),
            ("context", "sender") => (Op::SenderName, Kind::Text),
            ("wire", _) => (Op::Wire(name.into()), Kind::Text),
            ("level", "type") => {
                self.in_chain(env, at);
                (Op::LevelKind, Kind::Text)
            }
            ("level", "id") => {
                self.in_chain(env, at);
                (Op::LevelId, Kind::Text)
            }
            _ => {
                let known: &[&str] = match head {
                    "sender" => &["name", "system"],
                    "context" => &[
                        "received_at",
                        "message_id",
                        "control_id",
                        "message",
                        "mapping",
                        "sender",
                        "sending_application",
                        "sending_facility",
                        "receiving_application",
                        "receiving_facility",
                    ],
                    _ => &["type", "id"],
                };
                let hint = hint(name, known.iter().copied());
                self.wrong(at, name, format!("expected one of {} after `{head}.`{hint}", known.join(", ")));
                (Op::Text("".into()), Kind::Text)
            }
        };
        Typed::of(self.op(op), kind)
    }

    fn type_path(&mut self, env: &Env<'a>, path: &PathExpr, name: &str, at: Place) -> Typed {
        self.no_filter(path, at);
        let base = env.bases.iter().rev().find(|(types, _)| types.may_be(name));
        // Inside a map for `CWE`, a path may name the older type that a sender used.
        let base = base.or_else(|| env.bases.iter().rev().find(|(types, _)| types.fits(name)));
        let known = Types::named(name);
        let (Some((_, base)), Some(types)) = (base, known) else {
            if crate::language::expression::is_segment_name(name) && source::is_segment(name) {
                return self.segment_path(env, path, None, name, None, at);
            }
            let around: Vec<&str> = env.bases.iter().flat_map(|(types, _)| types.0.iter().copied()).collect();
            let text = if around.is_empty() {
                format!("`{name}` is neither a segment nor a data type that stands here")
            } else {
                format!("`{name}` does not stand here; here stands {}", around.join(" or "))
            };
            self.wrong(at, name, text);
            return Typed::of(self.op(Op::Text("".into())), Kind::Element);
        };
        let base = *base;
        let types = self.steps(types, &path.steps, at, name);
        let id = self.op(Op::Part { base, steps: steps(path) });
        Typed { types, ..Typed::of(id, Kind::Element) }
    }

    fn segment_path(
        &mut self,
        env: &Env<'a>,
        path: &PathExpr,
        alias: Option<&str>,
        name: &str,
        field: Option<u16>,
        at: Place,
    ) -> Typed {
        let nothing = |compiler: &mut Self| Typed::of(compiler.op(Op::Text("".into())), Kind::Element);
        if !source::is_segment(name) {
            let hint = hint(name, source::segment_names());
            self.wrong(at, name, format!("there is no segment of this name{hint}"));
            return nothing(self);
        }
        let scope = match alias {
            None => Scope::Near,
            Some("it") => Scope::Item,
            Some(alias) => match env.aliases.iter().find(|(known, _)| known == alias) {
                Some((_, group)) => Scope::Group(group.as_str().into()),
                None => {
                    let hint = hint(alias, env.aliases.iter().map(|(alias, _)| alias.as_str()));
                    let text =
                        format!("names no group here: declare it under `scope:`, or by `as {alias}`{hint}");
                    self.wrong(at, alias, text);
                    return nothing(self);
                }
            },
        };
        let types = match field.map(|field| self.field_types(name, field)) {
            None => Types::default(),
            Some(Ok(types)) => types,
            Some(Err(most)) => {
                self.wrong(
                    at,
                    &format!("{name}-{}", field.unwrap_or(0)),
                    format!("{name} has {most} fields"),
                );
                Types::default()
            }
        };
        let pick = match &path.filter {
            None | Some(Filter::All) => Pick::All,
            Some(Filter::Number(number)) => Pick::Number(*number),
            // A number picks by place, and is said by what is around the path.
            Some(Filter::Where(expr)) if matches!(&**expr, Expr::Call { name, .. } if name == "index") => {
                Pick::Nth(self.formula(env, &Formula { place: at, expr: (**expr).clone() }).id)
            }
            Some(Filter::Where(expr)) => {
                let inner = env.with_item(types.clone());
                Pick::Where(self.truth(&inner, expr, at))
            }
        };
        if field.is_none() && !matches!(pick, Pick::All) {
            self.wrong(at, name, "only a field has repetitions to choose from");
        }
        let types = self.steps(types, &path.steps, at, name);
        let name = SegmentName::new(name).expect("it is a segment of the definitions or a Z-segment");
        let id = self.op(Op::Segment { scope, name, field: field.unwrap_or(0), pick, steps: steps(path) });
        Typed { types, ..Typed::of(id, Kind::Element) }
    }

    fn steps(&mut self, mut types: Types, steps: &[u16], at: Place, name: &str) -> Types {
        for step in steps {
            types = match types.part(*step) {
                Ok(types) => types,
                Err(most) => {
                    let known = types.0.join(" or ");
                    self.wrong(at, name, format!("{known} has {most} parts, so there is no part {step}"));
                    return Types::default();
                }
            };
        }
        types
    }
}

/// Constant words, if these are nothing else.
fn words<'e>(list: impl IntoIterator<Item = &'e Expr>) -> Option<Box<[Box<str>]>> {
    let word = |expr: &Expr| match expr {
        Expr::Text(text) if !text.trim().is_empty() => Some(text.trim().into()),
        _ => None,
    };
    list.into_iter().map(word).collect()
}

fn steps(path: &PathExpr) -> [u16; 2] {
    [path.steps.first().copied().unwrap_or(0), path.steps.get(1).copied().unwrap_or(0)]
}
