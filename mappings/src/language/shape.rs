//! The keys of the language with what they mean: the JSON Schema for editors and the reference are written from this table, and a
//! test holds it against what the loader takes.

use schemas::fhir::{ElementDef, Kind, r4};
use serde_json::{Map, Value, json};

/// What stands under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A name, a number, a sentence.
    Text,
    /// An expression.
    Expr,
    /// An expression, or a list of them.
    Exprs,
    /// A text, or a list of texts.
    Texts,
    /// One of these words.
    One(&'static [&'static str]),
    /// One of these words, or what the shape of a name says.
    OneOr(&'static [&'static str], &'static str),
    /// What the shape of a name says.
    Shape(&'static str),
    /// A list of what the shape of a name says.
    List(&'static str),
    /// The author's own keys, each with what the shape of a name says.
    Keyed(&'static str),
    /// The author's own keys, each with a text.
    KeyedText,
    /// A list, or a map with `all:` and a list, of what the shape of a name says.
    ListOrAll(&'static str),
    /// Whatever one likes to note.
    Any,
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) holds: Holds,
    pub(crate) required: bool,
    pub(crate) means: &'static str,
}

/// The keys that stand together.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) means: &'static str,
    pub(crate) keys: &'static [Key],
}

const fn key(name: &'static str, holds: Holds, means: &'static str) -> Key {
    Key { name, holds, required: false, means }
}

const fn must(name: &'static str, holds: Holds, means: &'static str) -> Key {
    Key { name, holds, required: true, means }
}

/// The codes of FHIR's data-absent-reason.
pub(crate) const ABSENT: &[&str] = &[
    "unknown",
    "asked-unknown",
    "temp-unknown",
    "not-asked",
    "asked-declined",
    "masked",
    "not-applicable",
    "unsupported",
    "as-text",
    "error",
    "not-a-number",
    "negative-infinity",
    "positive-infinity",
    "not-performed",
    "not-permitted",
];

const EXISTING: &[&str] = &["merge", "fill", "add", "keep"];
const SEVERITY: &[&str] = &["information", "warning", "error"];

/// Every shape. The documents come first, each begun by its first key.
pub(crate) const SHAPES: &[Shape] = &[
    Shape {
        name: "type_map",
        means: "a map of a data type",
        keys: &[
            must("type_map", Holds::Text, "its name"),
            must("from", Holds::Text, "the HL7 v2 data type, or `varies`"),
            key("to", Holds::Text, "the FHIR data type that it writes"),
            key("makes", Holds::Text, "the FHIR resource that it makes"),
            key("key", Holds::Shape("key"), "the key of an identity that it answers"),
            key("versions", Holds::Text, "for which versions it is meant"),
            key("scope", Holds::KeyedText, "aliases of groups around it"),
            key("options", Holds::Keyed("option"), "choices that a site has"),
            key("params", Holds::Texts, "what its caller may give by `with:`"),
            key("identity", Holds::Shape("identity"), "by what a made resource is recognised"),
            key("display", Holds::Expr, "what a reference to it shows"),
            key("chain", Holds::List("level"), "levels of a chain of resources, the coarsest first"),
            key(
                "rules",
                Holds::Keyed("rule"),
                "one rule for each element; or the keys of one rule stand here themselves",
            ),
            key("ignore", Holds::List("ignore"), "what is left out on purpose"),
            key("tests", Holds::List("test"), "messages and what becomes of them"),
            key("guide", Holds::Text, "the map of HL7's guide"),
        ],
    },
    Shape {
        name: "segment_map",
        means: "what one segment says of one resource",
        keys: &[
            must("segment_map", Holds::Text, "its name"),
            must("from", Holds::Text, "the segment"),
            must("to", Holds::Text, "the FHIR resource to which it adds"),
            key("versions", Holds::Text, "for which versions it is meant"),
            key("scope", Holds::KeyedText, "aliases of groups around it"),
            key("options", Holds::Keyed("option"), "choices that a site has"),
            key("params", Holds::Texts, "what its caller may give by `with:`"),
            key("rules", Holds::Keyed("rule"), "one rule for each element"),
            key("ignore", Holds::List("ignore"), "what is left out on purpose"),
            key("tests", Holds::List("test"), "messages and what becomes of them"),
            key("guide", Holds::Text, "the map of HL7's guide"),
        ],
    },
    Shape {
        name: "record_map",
        means: "what one record of a JSON or CSV document says",
        keys: &[
            must("record_map", Holds::Text, "its name"),
            must("from", Holds::Text, "the record"),
            key("to", Holds::Text, "the FHIR resource to which it adds, or the data type that it writes"),
            key("makes", Holds::Text, "the FHIR resource that it makes"),
            key("key", Holds::Shape("key"), "the key of an identity that it answers"),
            key("options", Holds::Keyed("option"), "choices that a site has"),
            key("params", Holds::Texts, "what its caller may give by `with:`"),
            key("identity", Holds::Shape("identity"), "by what a made resource is recognised"),
            key("display", Holds::Expr, "what a reference to it shows"),
            key("chain", Holds::List("level"), "levels of a chain of resources, the coarsest first"),
            key(
                "rules",
                Holds::Keyed("rule"),
                "one rule for each element; or the keys of one rule stand here themselves",
            ),
            key("ignore", Holds::List("ignore"), "what is left out on purpose"),
            key("tests", Holds::List("test"), "documents and what becomes of them"),
        ],
    },
    Shape {
        name: "mapping",
        means: "which resources a message has",
        keys: &[
            must("mapping", Holds::Text, "its name"),
            must("version", Holds::Text, "its version, stamped on what it makes"),
            must("source", Holds::Shape("source"), "which messages it takes"),
            key("options", Holds::Keyed("option"), "choices that a site has"),
            key("include", Holds::List("include"), "fragments, before its own resources"),
            key("resources", Holds::List("resource"), "its resources"),
            key(
                "target",
                Holds::Shape("target"),
                "the message of HL7 v2 that it writes, in place of resources",
            ),
            key("segments", Holds::List("entry"), "the segments of that message, in their order"),
            key("bundle", Holds::Keyed("rule"), "elements of the Bundle itself"),
            key("effects", Holds::List("effect"), "what the store does beside writing resources"),
            key("checks", Holds::List("check"), "what is reported, or keeps the message back"),
            key("ignore", Holds::List("ignore"), "what is left out on purpose"),
            key("tests", Holds::List("test"), "messages and what becomes of them"),
            key("guide", Holds::Text, "the map of HL7's guide"),
        ],
    },
    Shape {
        name: "fragment",
        means: "resources that several messages have in common",
        keys: &[
            must("fragment", Holds::Text, "its name"),
            key("options", Holds::Keyed("option"), "choices that a site has"),
            key("resources", Holds::List("resource"), "its resources"),
            key("bundle", Holds::Keyed("rule"), "elements of the Bundle itself"),
            key("checks", Holds::List("check"), "what is reported, or keeps the message back"),
            key("ignore", Holds::List("ignore"), "what is left out on purpose"),
        ],
    },
    Shape {
        name: "tests_for",
        means: "tests that stand apart from what they test",
        keys: &[
            must("tests_for", Holds::Text, "the map, fragment or mapping"),
            key("tests", Holds::List("test"), "messages and what becomes of them"),
        ],
    },
    Shape {
        name: "overlay",
        means: "what one sender's site changes, in a file under site/SENDER/",
        keys: &[
            must("overlay", Holds::Text, "its name"),
            key("priority", Holds::Text, "a number; a higher one comes later"),
            key("options", Holds::KeyedText, "`map.option` and the choice"),
            key("patch", Holds::Keyed("patch"), "rules by their path, which is the name of their slot"),
        ],
    },
    Shape {
        name: "z_segment",
        means: "a segment of a site's own",
        keys: &[
            must("z_segment", Holds::Text, "its name, such as ZPD"),
            key("title", Holds::Text, "what it is called"),
            key("fields", Holds::List("field"), "its fields, from the first"),
        ],
    },
    Shape {
        name: "record",
        means: "the shape of a record: an object of JSON, a line of CSV, or a list whose items are its members in their order",
        keys: &[
            must("record", Holds::Text, "its name, with a capital letter first: CgmReading"),
            key("title", Holds::Text, "what it is"),
            must(
                "members",
                Holds::Keyed("member"),
                "what it holds: text, number, boolean or another record; in brackets where there may be several",
            ),
        ],
    },
    Shape {
        name: "rule",
        means: "what is written into one element",
        keys: &[
            key("id", Holds::Text, "its name among the items of a list: part of its slot's name"),
            key("when", Holds::Expr, "only if this holds"),
            key("each", Holds::Expr, "once for each repetition or segment"),
            key("from", Holds::Expr, "on what the map is called"),
            key("value", Holds::Expr, "an expression"),
            key("const", Holds::Text, "a constant"),
            key(
                "absent",
                Holds::One(ABSENT),
                "why there is no value, as FHIR's extension data-absent-reason",
            ),
            key("concept", Holds::Text, "a constant code: system#code"),
            key("use", Holds::Text, "a map; beside `make:` the map that fills what is made"),
            key("make", Holds::Text, "a resource of its own; the element refers to it"),
            key("identity", Holds::Shape("identity"), "by what the made resource is recognised"),
            key("first", Holds::List("rule"), "the first of these that writes something"),
            key("all", Holds::List("rule"), "all of these, in order"),
            key("switch", Holds::Expr, "chooses one of `cases:`"),
            key("cases", Holds::Keyed("rule"), "rules by the words for which they stand, and `else`"),
            key("ref", Holds::Text, "the resource of the message that is meant"),
            key("refs", Holds::Text, "all resources of the message that are meant, or `*`"),
            key("where", Holds::Expr, "only those for which this holds"),
            key("without", Holds::Texts, "of `*`, the resources that are not meant"),
            key("max", Holds::Text, "at most so many"),
            key("as", Holds::Text, "the type, where there is a choice"),
            key("display", Holds::Expr, "the display of a concept or a reference"),
            key("url", Holds::Text, "of an extension: a URL, or the short name of one of HL7's"),
            key(
                "extension",
                Holds::ListOrAll("rule"),
                "extensions beside a primitive, or inside an extension",
            ),
            key("set", Holds::Keyed("rule"), "elements; beside `use:` or `make:` in place of theirs"),
            key("with", Holds::KeyedText, "what is given to the map; after `=` an expression"),
            key(
                "map",
                Holds::OneOr(&[], "sender_table"),
                "a table of mappings/table, `with.map`, or one of the sender's",
            ),
            key(
                "on_error",
                Holds::OneOr(&["omit", "fail", "data-absent", "quarantine"], "rule"),
                "what is done with a value that cannot be read",
            ),
            key(
                "on_unmapped",
                Holds::OneOr(&["omit", "fail", "quarantine"], "on_code"),
                "what is done with a code that the table does not know",
            ),
            key(
                "on_unmatched",
                Holds::OneOr(&["omit", "fail", "quarantine"], "on_code"),
                "what is done with a code that has no target",
            ),
            key("on_existing", Holds::OneOr(EXISTING, "by_trigger"), "how it meets what is known"),
            key("clear", Holds::Expr, "when the slot is emptied, whatever the message says of it"),
            key("issue", Holds::One(SEVERITY), "reports that the rule was used"),
            key("guide", Holds::Any, "the row of HL7's guide, where this differs"),
        ],
    },
    Shape {
        name: "on_code",
        means: "what is done with a code that is not translated",
        keys: &[
            key("set", Holds::Text, "another code"),
            key("keep", Holds::One(&["local"]), "the sender's own coding"),
            key("queue", Holds::One(&["true", "false"]), "unknown codes always go to the queue"),
            key(
                "policy",
                Holds::One(&["omit", "fail", "quarantine"]),
                "what becomes of the element, the resource, the message",
            ),
            key("issue", Holds::One(SEVERITY), "how it is reported"),
        ],
    },
    Shape {
        name: "sender_table",
        means: "a table of the sender's own",
        keys: &[must("sender", Holds::Text, "its name: site/SENDER/NAME.json")],
    },
    Shape {
        name: "key",
        means: "the key of an identity",
        keys: &[
            key("system", Holds::Expr, "whose it is; without it the sender's"),
            must("value", Holds::Expr, "the identifier"),
        ],
    },
    Shape {
        name: "identity",
        means: "by what a resource is recognised",
        keys: &[
            key("use", Holds::Text, "the map with `key:` for keys that name none"),
            key("scope", Holds::One(&["sender"]), "whose a key without a system is"),
            must(
                "else",
                Holds::One(&["quarantine", "omit", "display", "message"]),
                "what becomes of an instance without a key",
            ),
            key(
                "keys",
                Holds::List("identity_key"),
                "in order of preference; the first that is found names it",
            ),
        ],
    },
    Shape {
        name: "identity_key",
        means: "where a key stands",
        keys: &[
            key("each", Holds::Expr, "every repetition of this"),
            key("use", Holds::Text, "by this map with `key:`"),
            key("value", Holds::Exprs, "the identifier, of one or more parts"),
            key("system", Holds::Expr, "whose it is"),
            key("of", Holds::Text, "the resource under which it is counted"),
            key("when", Holds::Expr, "only if this holds"),
            key("fallback", Holds::One(&["true", "false"]), "counts only where no better one is found"),
        ],
    },
    Shape {
        name: "level",
        means: "one level of a chain",
        keys: &[
            must("id", Holds::Text, "its name"),
            must("from", Holds::Expr, "where its name stands"),
            key("type", Holds::Text, "what `level.type` says"),
        ],
    },
    Shape {
        name: "option",
        means: "a choice that a site has",
        keys: &[
            key("enum", Holds::Texts, "what may be chosen"),
            must("default", Holds::Text, "what is chosen without a word of the site"),
        ],
    },
    Shape {
        name: "ignore",
        means: "what is left out on purpose",
        keys: &[
            must("path", Holds::Text, "paths, parted by commas: PID-1, PID-24-25, PID-3.2, CX.9-10"),
            must("reason", Holds::Text, "why"),
        ],
    },
    Shape {
        name: "test",
        means: "a message and what becomes of it",
        keys: &[
            key("name", Holds::Text, "what it shows"),
            must("given", Holds::Text, "the message"),
            key("expect", Holds::KeyedText, "paths in the Bundle and what stands there"),
            key("absent", Holds::Texts, "paths where nothing stands"),
            key("unmapped", Holds::Texts, "the fields that no rule takes"),
            key("issues", Holds::Texts, "codes that are reported"),
            key("sender", Holds::Text, "who sends it"),
            key(
                "mapping",
                Holds::Text,
                "the mapping that takes it, where it is no HL7 v2 and the test stands elsewhere",
            ),
            key("options", Holds::KeyedText, "`map.option` and the choice"),
            key("systems", Holds::KeyedText, "the sender's registry of assigners"),
            key("wire", Holds::KeyedText, "what the wire says beside it, such as a level of its topic"),
        ],
    },
    Shape {
        name: "source",
        means: "which messages a mapping takes",
        keys: &[
            key("format", Holds::One(&["hl7v2", "json", "csv", "fhir"]), "how they are written"),
            key("structure", Holds::Texts, "of HL7 v2, the message structures"),
            key("record", Holds::Text, "of JSON and CSV, the record that the document is"),
            key("separator", Holds::Text, "of CSV, what stands between values; a comma by default"),
            key(
                "header",
                Holds::One(&["true", "false"]),
                "of CSV, whether the first line names the columns; it does by default",
            ),
            key("code", Holds::Text, "the message code, if it is not that of the structure"),
            key("events", Holds::Texts, "trigger events"),
            key("versions", Holds::Text, "such as >=2.3, 2.5.1 or 2.3-2.5.1"),
        ],
    },
    Shape {
        name: "target",
        means: "a message of HL7 v2 that is written",
        keys: &[
            key("format", Holds::One(&["hl7v2"]), "how it is written"),
            must("structure", Holds::Text, "its structure, such as ORU_R01"),
        ],
    },
    Shape {
        name: "entry",
        means: "a segment that is written, or several that stand together; beside these keys those of a rule: `use:` a map, or `set:` its fields",
        keys: &[
            must("id", Holds::Text, "its name"),
            key("segment", Holds::Text, "the segment; without one, it only holds others"),
            key("from", Holds::Expr, "the record about which it is"),
            key("each", Holds::Expr, "the same, once for each of them"),
            key("when", Holds::Expr, "only if this holds"),
            key("segments", Holds::List("entry"), "what follows it, about the same record"),
        ],
    },
    Shape {
        name: "resource",
        means: "a resource of a message",
        keys: &[
            must("id", Holds::Text, "its name, for references"),
            must("type", Holds::Text, "the FHIR resource"),
            key("from", Holds::Text, "the group or segment on which it stands; `GROUP as alias`"),
            key("each", Holds::Text, "the same, where there may be several"),
            key("when", Holds::Expr, "only if this holds"),
            key("stray", Holds::One(&["true", "false"]), "its segment may have no place in the structure"),
            key("on_existing", Holds::OneOr(EXISTING, "by_trigger"), "how it meets what is known"),
            key("identity", Holds::Shape("identity"), "by what it is recognised"),
            key("parts", Holds::List("part"), "what the segments say of it"),
            key("set", Holds::Keyed("rule"), "further elements"),
            key("guide", Holds::Any, "the row of HL7's guide, where this differs"),
        ],
    },
    Shape {
        name: "part",
        means: "what one segment says of a resource",
        keys: &[
            must("use", Holds::Text, "the segment map"),
            key("from", Holds::Text, "the segment, with groups below that of the resource"),
            key("each", Holds::Text, "the same, where there may be several"),
            key("when", Holds::Expr, "only if this holds"),
            key("stray", Holds::One(&["true", "false"]), "its segment may have no place in the structure"),
            key("with", Holds::KeyedText, "what is given to the map"),
        ],
    },
    Shape {
        name: "include",
        means: "a fragment in a mapping",
        keys: &[
            must("fragment", Holds::Text, "its name"),
            key("at", Holds::Text, "the group in which it stands"),
            key("without", Holds::Texts, "resources that are left out"),
            key("change", Holds::Keyed("change"), "what differs, by resource"),
        ],
    },
    Shape {
        name: "change",
        means: "what an include changes in one resource",
        keys: &[
            key(
                "else",
                Holds::One(&["quarantine", "omit", "display", "message"]),
                "what becomes of an instance without a key",
            ),
            key("when", Holds::Expr, "in place of its condition"),
            key("on_existing", Holds::OneOr(EXISTING, "by_trigger"), "how it meets what is known"),
            key("set", Holds::Keyed("rule"), "elements, in place of its own of that name"),
            key("parts", Holds::List("part"), "further parts"),
        ],
    },
    Shape {
        name: "effect",
        means: "what the store does beside writing resources",
        keys: &[
            must("id", Holds::Text, "its name"),
            key("when", Holds::Expr, "only if this holds"),
            key("merge", Holds::Shape("merge"), "one resource becomes another"),
            key("move", Holds::Shape("move"), "what was recorded for one patient is another's"),
        ],
    },
    Shape {
        name: "merge",
        means: "one resource becomes another",
        keys: &[must("from", Holds::Text, "who is no longer used"), must("into", Holds::Text, "who remains")],
    },
    Shape {
        name: "move",
        means: "what was recorded for one patient is another's, with all that refers to it",
        keys: &[
            must("what", Holds::Text, "the visit or the account"),
            must(
                "from",
                Holds::Text,
                "the patient whose it was; it waits for a person if it is known to be somebody else's",
            ),
            must("into", Holds::Text, "the patient whose it is"),
        ],
    },
    Shape {
        name: "check",
        means: "what is reported, or keeps the message back",
        keys: &[
            must("id", Holds::Text, "its name"),
            must("when", Holds::Expr, "if this holds"),
            key("issue", Holds::One(SEVERITY), "how it is reported"),
            key("text", Holds::Text, "what is said"),
            key("policy", Holds::One(&["quarantine", "report"]), "whether the message waits for a person"),
        ],
    },
    Shape {
        name: "patch",
        means: "what an overlay does to one rule",
        keys: &[
            key("after", Holds::Text, "behind which item an added one stands"),
            key("replace", Holds::Shape("rule"), "another rule in its place"),
            key("add", Holds::Shape("rule"), "a further item, or a further element"),
            key("remove", Holds::Text, "takes it out, for this reason"),
            key("table", Holds::OneOr(&[], "sender_table"), "another table"),
        ],
    },
    Shape {
        name: "member",
        means: "a member of a record; its type alone, or",
        keys: &[
            must(
                "type",
                Holds::Texts,
                "text, number, boolean or a record; in brackets where there may be several",
            ),
            key(
                "name",
                Holds::Text,
                "what the document calls it, if that is no name of letters, digits and `_`",
            ),
        ],
    },
    Shape {
        name: "field",
        means: "a field of a segment of a site's own",
        keys: &[must("name", Holds::Text, "what it is called"), must("type", Holds::Text, "its data type")],
    },
];

/// A scalar: the language reads all of them as text, and editors do not.
fn scalar() -> Value {
    json!({"type": ["string", "number", "boolean", "null"]})
}

fn words(words: &[&str]) -> Value {
    // `true` and `false` are words here and booleans to an editor.
    let mut all: Vec<Value> = words.iter().map(|word| json!(word)).collect();
    all.extend(words.iter().filter_map(|word| word.parse::<bool>().ok()).map(|truth| json!(truth)));
    json!({ "enum": all })
}

fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

fn named(shape: &str) -> Value {
    json!({"$ref": format!("#/$defs/{shape}")})
}

fn under(holds: Holds) -> Value {
    match holds {
        Holds::Text | Holds::Expr => scalar(),
        Holds::Exprs | Holds::Texts => json!({"anyOf": [scalar(), list(scalar())]}),
        Holds::One(choices) => words(choices),
        Holds::OneOr([], shape) => json!({"anyOf": [scalar(), named(shape)]}),
        Holds::OneOr(choices, shape) => json!({"anyOf": [words(choices), named(shape)]}),
        Holds::Shape(shape) => named(shape),
        Holds::List(shape) => list(named(shape)),
        Holds::Keyed(shape) => json!({"type": ["object", "null"], "additionalProperties": named(shape)}),
        Holds::KeyedText => json!({"type": ["object", "null"], "additionalProperties": scalar()}),
        Holds::ListOrAll(shape) => json!({"anyOf": [
            list(named(shape)),
            {"type": "object", "properties": {"all": list(named(shape))}, "required": ["all"], "additionalProperties": false},
        ]}),
        Holds::Any => json!(true),
    }
}

/// What one shape is, for an editor.
fn object(shape: &Shape, more: &[&Key]) -> Value {
    let keys = || shape.keys.iter().chain(more.iter().copied());
    let mut properties = Map::new();
    for key in keys() {
        if properties.contains_key(key.name) {
            continue;
        }
        let mut value = under(key.holds);
        if let Value::Object(value) = &mut value {
            value.insert("description".into(), json!(key.means));
        }
        properties.insert(key.name.to_owned(), value);
    }
    let required: Vec<&str> = shape.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({
        "description": shape.means, "type": "object", "properties": properties, "required": required,
        "additionalProperties": false,
    })
}

/// That `rules:` name elements of the type that `to:` or `makes:` names.
fn elements_of(target: &str) -> Vec<Value> {
    let types = r4().types().filter(|of| matches!(of.kind, Kind::Resource | Kind::DataType));
    types
        .filter(|of| target == "to" || of.kind == Kind::Resource)
        .map(|of| {
            let names: Vec<String> = r4().elements(of).map(ElementDef::path_name).collect();
            json!({
                "if": {"properties": {target: {"const": of.name}}, "required": [target]},
                "then": {"properties": {"rules": {"propertyNames": {"enum": names}}}},
            })
        })
        .collect()
}

/// Every key of the language with what it means, shape by shape.
pub fn keys_reference() -> String {
    let mut text = String::new();
    for shape in SHAPES {
        text.push_str(&format!("{}: {}\n", shape.name, shape.means));
        for key in shape.keys {
            let required = if key.required { " (required)" } else { "" };
            text.push_str(&format!("    {}{}{required}: {}\n", key.name, takes(key.holds), key.means));
        }
    }
    text
}

/// What a key takes, in a few words.
fn takes(holds: Holds) -> String {
    match holds {
        Holds::Text | Holds::Any => String::new(),
        Holds::Expr => " EXPR".to_owned(),
        Holds::Exprs => " EXPR or [EXPR]".to_owned(),
        Holds::Texts => " [..]".to_owned(),
        Holds::One(choices) => format!(" {}", choices.join("|")),
        Holds::OneOr([], shape) => format!(" NAME or {{{shape}}}"),
        Holds::OneOr(choices, shape) => format!(" {} or {{{shape}}}", choices.join("|")),
        Holds::Shape(shape) => format!(" {{{shape}}}"),
        Holds::List(shape) | Holds::ListOrAll(shape) => format!(" [{{{shape}}}]"),
        Holds::Keyed(shape) => format!(" {{NAME: {{{shape}}}}}"),
        Holds::KeyedText => " {NAME: TEXT}".to_owned(),
    }
}

/// The JSON Schema of a document of a mapping file.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let documents = SHAPES.iter().take_while(|shape| shape.keys[0].name == shape.name);
    let rule = SHAPES.iter().find(|shape| shape.name == "rule").expect("there are rules");
    for shape in SHAPES {
        // The keys of a rule may stand at the top of a map of values, and in an entry of `segments:`.
        let alone = matches!(shape.name, "type_map" | "record_map" | "entry");
        let more: Vec<&Key> = if alone { rule.keys.iter().collect() } else { Vec::new() };
        let mut definition = object(shape, &more);
        match shape.name {
            "type_map" | "record_map" => {
                definition["allOf"] = [elements_of("to"), elements_of("makes")].concat().into();
            }
            "member" => definition = json!({"anyOf": [scalar(), list(scalar()), definition]}),
            "segment_map" => definition["allOf"] = elements_of("to").into(),
            _ => {}
        }
        definitions.insert(shape.name.to_owned(), definition);
    }
    definitions.insert(
        "by_trigger".into(),
        json!({"description": "by trigger event, and `else`", "type": "object", "additionalProperties": words(EXISTING)}),
    );
    let branches: Vec<Value> =
        documents.map(|shape| json!({"if": {"required": [shape.name]}, "then": named(shape.name)})).collect();
    let first: Vec<Value> =
        SHAPES.iter().take(branches.len()).map(|shape| json!({"required": [shape.name]})).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A mapping of Pons",
        "type": "object",
        "anyOf": first,
        "allOf": branches,
        "$defs": definitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::load;
    use std::collections::BTreeSet;

    /// The keys that the loader knows where an unknown one stands, over some documents.
    fn known_to_the_loader(documents: &[String]) -> BTreeSet<String> {
        let mut known = BTreeSet::new();
        for text in documents {
            let (_, mistakes) = load::read_file(text);
            let told: Vec<String> = mistakes
                .iter()
                .filter_map(|m| m.text.strip_prefix("unknown key; known here: "))
                .map(str::to_owned)
                .collect();
            assert_eq!(told.len(), 1, "{text}: {mistakes:?}");
            known.extend(told[0].split(", ").map(str::to_owned));
        }
        known
    }

    #[test]
    fn the_table_names_the_keys_that_the_loader_takes() {
        const X: &str = "qqqqqqqqqqqq: 1";
        let map = |rest: &str| format!("segment_map: m\nfrom: PID\nto: Patient\n{rest}");
        let made = |rest: &str| format!("type_map: m\nfrom: CX\nmakes: Patient\nrules: {{}}\n{rest}");
        let rule = |rest: &str| map(&format!("rules: {{a: {{{rest}, {X}}}}}"));
        let mapping = |rest: &str| format!("mapping: m\nversion: 1\nsource: {{structure: A}}\n{rest}");
        let cases: &[(&str, Vec<String>)] = &[
            (
                "type_map",
                vec![
                    format!("type_map: m\nfrom: CX\nto: X\nrules: {{}}\n{X}"),
                    format!("type_map: m\nfrom: CX\nmakes: X\nrules: {{}}\n{X}"),
                    format!("type_map: m\nfrom: CX\nkey: {{value: CX.1}}\n{X}"),
                ],
            ),
            ("segment_map", vec![map(&format!("rules: {{}}\n{X}"))]),
            (
                "record_map",
                vec![
                    format!("record_map: m\nfrom: Reading\nto: X\nrules: {{}}\n{X}"),
                    format!("record_map: m\nfrom: Reading\nmakes: X\nrules: {{}}\n{X}"),
                    format!("record_map: m\nfrom: Reading\nkey: {{value: Reading.id}}\n{X}"),
                ],
            ),
            ("mapping", vec![mapping(X)]),
            ("fragment", vec![format!("fragment: f\n{X}")]),
            ("tests_for", vec![format!("tests_for: f\n{X}")]),
            ("overlay", vec![format!("overlay: f\n{X}")]),
            ("z_segment", vec![format!("z_segment: ZPD\n{X}")]),
            ("record", vec![format!("record: Reading\nmembers: {{}}\n{X}")]),
            (
                "rule",
                vec![
                    rule("value: x"),
                    rule("const: x"),
                    rule("absent: x"),
                    rule("concept: x"),
                    rule("use: x"),
                    rule("make: x, use: x"),
                    rule("first: []"),
                    rule("all: []"),
                    rule("switch: x, cases: {}"),
                    rule("ref: x"),
                    rule("refs: x"),
                    rule("set: {}"),
                ],
            ),
            ("on_code", vec![map(&format!("rules: {{a: {{value: x, on_unmapped: {{{X}}}}}}}"))]),
            ("sender_table", vec![map(&format!("rules: {{a: {{value: x, map: {{sender: x, {X}}}}}}}"))]),
            ("key", vec![format!("type_map: m\nfrom: CX\nkey: {{value: CX.1, {X}}}")]),
            ("identity", vec![made(&format!("identity: {{else: omit, {X}}}"))]),
            ("identity_key", vec![made(&format!("identity: {{else: omit, keys: [{{value: x, {X}}}]}}"))]),
            ("level", vec![made(&format!("chain: [{{id: x, from: x, {X}}}]"))]),
            ("option", vec![map(&format!("options: {{a: {{enum: [x], default: x, {X}}}}}\nrules: {{}}"))]),
            ("ignore", vec![map(&format!("ignore: [{{path: x, reason: x, {X}}}]\nrules: {{}}"))]),
            ("test", vec![map(&format!("tests: [{{given: x, {X}}}]\nrules: {{}}"))]),
            (
                "source",
                vec![
                    format!("mapping: m\nversion: 1\nsource: {{structure: A, {X}}}"),
                    format!("mapping: m\nversion: 1\nsource: {{format: csv, record: A, {X}}}"),
                ],
            ),
            ("target", vec![mapping(&format!("target: {{structure: A, {X}}}"))]),
            ("entry", vec![]),
            ("resource", vec![mapping(&format!("resources: [{{id: x, type: X, from: X, {X}}}]"))]),
            (
                "part",
                vec![mapping(&format!(
                    "resources: [{{id: x, type: X, from: X, parts: [{{use: x, from: X, {X}}}]}}]"
                ))],
            ),
            ("include", vec![mapping(&format!("include: [{{fragment: x, {X}}}]"))]),
            ("change", vec![mapping(&format!("include: [{{fragment: x, change: {{a: {{{X}}}}}}}]"))]),
            ("effect", vec![mapping(&format!("effects: [{{id: x, merge: {{from: a, into: b}}, {X}}}]"))]),
            ("merge", vec![mapping(&format!("effects: [{{id: x, merge: {{from: a, into: b, {X}}}}}]"))]),
            (
                "move",
                vec![mapping(&format!("effects: [{{id: x, move: {{what: a, from: b, into: c, {X}}}}}]"))],
            ),
            ("check", vec![mapping(&format!("checks: [{{id: x, when: x, {X}}}]"))]),
            ("patch", vec![format!("overlay: f\npatch: {{a: {{remove: so, {X}}}}}")]),
            ("member", vec![format!("record: Reading\nmembers: {{a: {{type: text, {X}}}}}")]),
            ("field", vec![format!("z_segment: ZPD\nfields: [{{name: x, type: ST, {X}}}]")]),
        ];
        assert_eq!(cases.len(), SHAPES.len());
        for ((name, documents), shape) in cases.iter().zip(SHAPES) {
            assert_eq!(*name, shape.name);
            let own: BTreeSet<String> = shape.keys.iter().map(|key| key.name.to_owned()).collect();
            assert_eq!(own.len(), shape.keys.len(), "{name}: a key stands there twice");
            // An entry takes the keys of a rule, too, so the loader names these.
            if !documents.is_empty() {
                assert_eq!(known_to_the_loader(documents), own, "{name}");
            }
        }
    }
}
