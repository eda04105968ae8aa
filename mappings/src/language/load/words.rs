//! Words, formulas and maps with keys of the author's own: what all readers of the language share.

use super::*;

/// The entries of a map with keys of the author's own.
pub(super) fn pairs<T>(
    node: &Node,
    path: &str,
    mistakes: Mistakes<'_>,
    mut read: impl FnMut(Word, &Node, Mistakes<'_>) -> Option<T>,
) -> Vec<T> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .filter_map(|(Key { place, name }, node)| {
                read(Word { place: *place, text: name.clone() }, node, mistakes)
            })
            .collect(),
        Value::Empty => Vec::new(),
        _ => {
            wrong(mistakes, node.place, path, format!("expected a map, found {}", node.kind()));
            Vec::new()
        }
    }
}

pub(super) fn word(fields: &mut Fields<'_, '_>, name: &'static str) -> Option<Word> {
    let place = fields.take(name)?.place;
    fields.take_text(name).map(|text| Word { place, text: text.to_owned() })
}

pub(super) fn required_word(fields: &mut Fields<'_, '_>, name: &'static str) -> Option<Word> {
    fields.take_required(name)?;
    word(fields, name)
}

pub(super) fn words(fields: &mut Fields<'_, '_>, name: &'static str) -> Vec<Word> {
    let Some(node) = fields.take(name) else { return Vec::new() };
    match &node.value {
        Value::List(items) => items
            .iter()
            .filter_map(|item| item.text().map(|text| Word { place: item.place, text: text.to_owned() }))
            .collect(),
        _ => fields
            .take_texts(name)
            .into_iter()
            .map(|text| Word { place: node.place, text: text.to_owned() })
            .collect(),
    }
}

pub(super) fn formula_at(fields: &mut Fields<'_, '_>, name: &'static str) -> Option<Formula> {
    let node = fields.take(name)?;
    let key = fields.path_of(name);
    formula(node, &key, fields.mistakes())
}

pub(super) fn required_formula(fields: &mut Fields<'_, '_>, name: &'static str) -> Option<Formula> {
    fields.take_required(name)?;
    formula_at(fields, name)
}

pub(super) fn formula(node: &Node, key: &str, mistakes: Mistakes<'_>) -> Option<Formula> {
    let Some(text) = node.text() else {
        wrong(mistakes, node.place, key, format!("expected an expression, found {}", node.kind()));
        return None;
    };
    formula_text(text, node.place, key, mistakes)
}

pub(super) fn formula_text(text: &str, place: Place, key: &str, mistakes: Mistakes<'_>) -> Option<Formula> {
    match expression::parse(text) {
        Ok(expr) => Some(Formula { place, expr }),
        Err(expression::Wrong { at, text }) => {
            wrong(mistakes, within(place, at), key, text);
            None
        }
    }
}

/// The place of a character inside a scalar. A quoted scalar begins one column later; the reader of YAML gives the
/// place of the quote, so the column may be one too small, never on another line.
pub(crate) fn within(place: Place, at: usize) -> Place {
    Place { line: place.line, column: place.column + at }
}

/// Whether an expression is a plain path.
pub(crate) fn is_path(expr: &Expr) -> bool {
    matches!(expr, Expr::Path(_))
}
