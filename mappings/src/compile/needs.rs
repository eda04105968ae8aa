//! What a node needs to write anything: the parts of the element on which its map was called, if it writes nothing without them.
//! Most parts of a name or an identifier are empty, so most of its rules need not be looked at.

use crate::functions::FUNCTIONS;
use crate::language::expression::Comparison;
use crate::program::{Action, Base, Code, ExprId, Field, Node, NodeId, Op, Parts};

/// The parts without which a node writes nothing; `None` if it may write all the same.
pub(super) fn of_node(code: &Code, node: &Node) -> Option<Parts> {
    if let Some(each) = node.each {
        return path(code, each);
    }
    if let Some(parts) = node.when.and_then(|when| condition(code, when)) {
        return Some(parts);
    }
    let beside = all(node.extension.iter().map(|id| of_id(code, *id)))?;
    Some(of_action(code, &node.does)?.and(beside))
}

fn of_id(code: &Code, id: NodeId) -> Option<Parts> {
    Some(code.node(id).needs).filter(|needs| *needs != Parts::default())
}

fn all(parts: impl Iterator<Item = Option<Parts>>) -> Option<Parts> {
    let mut sum = Parts::default();
    for part in parts {
        sum = sum.and(part?);
    }
    Some(sum)
}

fn of_action(code: &Code, action: &Action) -> Option<Parts> {
    match action {
        Action::Value { expr, .. } | Action::Coded { expr, .. } => value(code, *expr),
        Action::Object { fields, constant: false } => of_fields(code, fields),
        Action::Call { from: Some(from), set, .. } => Some(path(code, *from)?.and(of_fields(code, set)?)),
        Action::First(nodes) | Action::All(nodes) => all(nodes.iter().map(|id| of_id(code, *id))),
        Action::Switch { cases, otherwise, .. } => {
            all(cases.iter().map(|(_, id)| id).chain(otherwise).map(|id| of_id(code, *id)))
        }
        Action::Extension { value: Some(value), .. } => of_id(code, *value),
        Action::Extension { value: None, nested, .. } => all(nested.iter().map(|id| of_id(code, *id))),
        _ => None,
    }
}

/// Of the elements of an object; a constant beside others is not written by itself.
fn of_fields(code: &Code, fields: &[Field]) -> Option<Parts> {
    let constant = |field: &&Field| {
        let does = &code.node(field.node).does;
        matches!(does, Action::Const(_) | Action::Absent(_) | Action::Concept { .. })
    };
    all(fields.iter().filter(|field| !constant(field)).map(|field| of_id(code, field.node)))
}

/// Of an expression that is absent without them.
fn value(code: &Code, id: ExprId) -> Option<Parts> {
    match code.op(id) {
        Op::Call { function, args } => {
            let function = &FUNCTIONS[*function];
            match function.name {
                "join" => all(args.iter().skip(1).map(|arg| value(code, *arg))),
                "lines" => all(args.iter().map(|arg| value(code, *arg))),
                _ if function.strict => value(code, *args.first()?),
                _ => None,
            }
        }
        _ => path(code, id),
    }
}

/// Of a condition that does not hold without them.
fn condition(code: &Code, id: ExprId) -> Option<Parts> {
    match code.op(id) {
        Op::And(a, b) => condition(code, *a).or_else(|| condition(code, *b)),
        Op::Or(a, b) => Some(condition(code, *a)?.and(condition(code, *b)?)),
        Op::OneOf { negated: false, item, .. } | Op::In { negated: false, item, .. } => value(code, *item),
        Op::Compare(Comparison::Unequal, ..) => None,
        Op::Compare(_, a, b) => value(code, *a).or_else(|| value(code, *b)),
        Op::Call { function, args } => match FUNCTIONS[*function].name {
            "valued" | "is_null" | "is_number" | "has_comparator" => value(code, *args.first()?),
            _ => None,
        },
        _ => None,
    }
}

fn path(code: &Code, id: ExprId) -> Option<Parts> {
    match code.op(id) {
        Op::Part { base: Base::Map, steps } if steps[0] > 0 => Some(Parts::one(u32::from(steps[0]))),
        Op::Coalesce(a, b) => Some(value(code, *a)?.and(value(code, *b)?)),
        _ => None,
    }
}
