//! What a row of the guide names on the FHIR side: `performer[1](PractitionerRole.practitioner(Practitioner))`.

/// An element of a resource type, without indexes: `Practitioner` and `name.family`. No type means that of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Aim {
    pub(super) resource: Option<String>,
    pub(super) path: String,
}

/// The elements on the way: the first is that of the map's own resource, the last what the row is about.
pub(super) fn aims(text: &str) -> Vec<Aim> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    // `status="finished"` assigns.
    let text = text.split_once('=').map_or(&*text, |(path, _)| path);
    let mut aims = Vec::new();
    for (depth, piece) in text.split('(').enumerate() {
        let piece = plain(piece.trim_end_matches(')'));
        let (resource, path) = if depth == 0 {
            (None, piece)
        } else {
            let (resource, path) = piece.split_once('.').unwrap_or((&piece, ""));
            (Some(resource.to_owned()), path.to_owned())
        };
        aims.push(Aim { resource, path: path.trim_matches('.').to_owned() });
    }
    // A resource of which nothing is said means the reference to it.
    if aims.len() > 1 && aims.last().is_some_and(|aim| aim.path.is_empty()) {
        aims.pop();
    }
    aims
}

/// Without indexes.
fn plain(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut depth = 0;
    for c in path.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out.trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_row_names_is_found() {
        let aim = |resource: Option<&str>, path: &str| Aim {
            resource: resource.map(str::to_owned),
            path: path.to_owned(),
        };
        let cases: &[(&str, &[Aim])] = &[
            ("name[1].family", &[aim(None, "name.family")]),
            ("[2].given", &[aim(None, "given")]),
            ("status=\"finished\"", &[aim(None, "status")]),
            ("subscriber(RelatedPerson)", &[aim(None, "subscriber")]),
            (
                "requester(Practitioner.address)",
                &[aim(None, "requester"), aim(Some("Practitioner"), "address")],
            ),
            (
                "performer[1](PractitionerRole[1].practitioner(Practitioner))",
                &[aim(None, "performer"), aim(Some("PractitionerRole"), "practitioner")],
            ),
            ("$this", &[aim(None, "$this")]),
        ];
        for (text, expected) in cases {
            assert_eq!(aims(text), *expected, "{text}");
        }
    }
}
