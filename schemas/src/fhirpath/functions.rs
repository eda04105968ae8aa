//! The functions of FHIRPath, one row each.

use super::Fault;

/// A function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Abs,
    Aggregate,
    All,
    AllFalse,
    AllTrue,
    AnyFalse,
    AnyTrue,
    Ceiling,
    Children,
    Combine,
    Comparable,
    ConformsTo,
    Contains,
    /// Whether [`Function::To`] would give something.
    ConvertsTo(Target),
    Count,
    Decode,
    Descendants,
    Distinct,
    Empty,
    Encode,
    EndsWith,
    Escape,
    Exclude,
    Exists,
    Exp,
    Extension,
    First,
    Floor,
    GetValue,
    HasValue,
    HighBoundary,
    HtmlChecks,
    Iif,
    IndexOf,
    Intersect,
    IsDistinct,
    Join,
    Last,
    LastIndexOf,
    Length,
    Ln,
    Log,
    LowBoundary,
    Lower,
    Matches,
    MatchesFull,
    Not,
    Now,
    Power,
    Precision,
    Repeat,
    Replace,
    ReplaceMatches,
    Resolve,
    Round,
    Select,
    Single,
    Skip,
    Sort,
    Split,
    Sqrt,
    StartsWith,
    SubsetOf,
    Substring,
    SupersetOf,
    Tail,
    Take,
    TimeOfDay,
    To(Target),
    ToChars,
    Today,
    Trace,
    Trim,
    Truncate,
    Type,
    Unescape,
    Union,
    Upper,
    Where,
}

/// What a value is turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Boolean,
    Integer,
    Decimal,
    String,
    Date,
    DateTime,
    Time,
    Quantity,
}

/// A function with how many arguments it takes.
#[derive(Debug)]
pub(super) struct Row {
    name: &'static str,
    pub(super) function: Function,
    pub(super) least: usize,
    pub(super) most: usize,
}

const fn row(name: &'static str, function: Function, least: usize, most: usize) -> Row {
    Row { name, function, least, most }
}

/// The functions by name. `is`, `as` and `ofType` take a type and are read by the grammar.
///
/// # Source
/// FHIRPath 2.0.0; `sort`, `matchesFull`, `lastIndexOf`, the boundaries, `precision` and `comparable` of 3.0.0; of FHIR R4
/// `extension`, `hasValue`, `getValue`, `resolve`, `conformsTo`, `htmlChecks`.
static FUNCTIONS: [Row; 93] = [
    row("abs", Function::Abs, 0, 0),
    row("aggregate", Function::Aggregate, 1, 2),
    row("all", Function::All, 1, 1),
    row("allFalse", Function::AllFalse, 0, 0),
    row("allTrue", Function::AllTrue, 0, 0),
    row("anyFalse", Function::AnyFalse, 0, 0),
    row("anyTrue", Function::AnyTrue, 0, 0),
    row("ceiling", Function::Ceiling, 0, 0),
    row("children", Function::Children, 0, 0),
    row("combine", Function::Combine, 1, 1),
    row("comparable", Function::Comparable, 1, 1),
    row("conformsTo", Function::ConformsTo, 1, 1),
    row("contains", Function::Contains, 1, 1),
    row("convertsToBoolean", Function::ConvertsTo(Target::Boolean), 0, 0),
    row("convertsToDate", Function::ConvertsTo(Target::Date), 0, 0),
    row("convertsToDateTime", Function::ConvertsTo(Target::DateTime), 0, 0),
    row("convertsToDecimal", Function::ConvertsTo(Target::Decimal), 0, 0),
    row("convertsToInteger", Function::ConvertsTo(Target::Integer), 0, 0),
    row("convertsToQuantity", Function::ConvertsTo(Target::Quantity), 0, 1),
    row("convertsToString", Function::ConvertsTo(Target::String), 0, 0),
    row("convertsToTime", Function::ConvertsTo(Target::Time), 0, 0),
    row("count", Function::Count, 0, 0),
    row("decode", Function::Decode, 1, 1),
    row("descendants", Function::Descendants, 0, 0),
    row("distinct", Function::Distinct, 0, 0),
    row("empty", Function::Empty, 0, 0),
    row("encode", Function::Encode, 1, 1),
    row("endsWith", Function::EndsWith, 1, 1),
    row("escape", Function::Escape, 1, 1),
    row("exclude", Function::Exclude, 1, 1),
    row("exists", Function::Exists, 0, 1),
    row("exp", Function::Exp, 0, 0),
    row("extension", Function::Extension, 1, 1),
    row("first", Function::First, 0, 0),
    row("floor", Function::Floor, 0, 0),
    row("getValue", Function::GetValue, 0, 0),
    row("hasValue", Function::HasValue, 0, 0),
    row("highBoundary", Function::HighBoundary, 0, 1),
    row("htmlChecks", Function::HtmlChecks, 0, 0),
    row("iif", Function::Iif, 2, 3),
    row("indexOf", Function::IndexOf, 1, 1),
    row("intersect", Function::Intersect, 1, 1),
    row("isDistinct", Function::IsDistinct, 0, 0),
    row("join", Function::Join, 0, 1),
    row("last", Function::Last, 0, 0),
    row("lastIndexOf", Function::LastIndexOf, 1, 1),
    row("length", Function::Length, 0, 0),
    row("ln", Function::Ln, 0, 0),
    row("log", Function::Log, 1, 1),
    row("lowBoundary", Function::LowBoundary, 0, 1),
    row("lower", Function::Lower, 0, 0),
    row("matches", Function::Matches, 1, 1),
    row("matchesFull", Function::MatchesFull, 1, 1),
    row("not", Function::Not, 0, 0),
    row("now", Function::Now, 0, 0),
    row("power", Function::Power, 1, 1),
    row("precision", Function::Precision, 0, 0),
    row("repeat", Function::Repeat, 1, 1),
    row("replace", Function::Replace, 2, 2),
    row("replaceMatches", Function::ReplaceMatches, 2, 2),
    row("resolve", Function::Resolve, 0, 0),
    row("round", Function::Round, 0, 1),
    row("select", Function::Select, 1, 1),
    row("single", Function::Single, 0, 0),
    row("skip", Function::Skip, 1, 1),
    row("sort", Function::Sort, 0, 8),
    row("split", Function::Split, 1, 1),
    row("sqrt", Function::Sqrt, 0, 0),
    row("startsWith", Function::StartsWith, 1, 1),
    row("subsetOf", Function::SubsetOf, 1, 1),
    row("substring", Function::Substring, 1, 2),
    row("supersetOf", Function::SupersetOf, 1, 1),
    row("tail", Function::Tail, 0, 0),
    row("take", Function::Take, 1, 1),
    row("timeOfDay", Function::TimeOfDay, 0, 0),
    row("toBoolean", Function::To(Target::Boolean), 0, 0),
    row("toChars", Function::ToChars, 0, 0),
    row("toDate", Function::To(Target::Date), 0, 0),
    row("toDateTime", Function::To(Target::DateTime), 0, 0),
    row("toDecimal", Function::To(Target::Decimal), 0, 0),
    row("toInteger", Function::To(Target::Integer), 0, 0),
    row("toQuantity", Function::To(Target::Quantity), 0, 1),
    row("toString", Function::To(Target::String), 0, 0),
    row("toTime", Function::To(Target::Time), 0, 0),
    row("today", Function::Today, 0, 0),
    row("trace", Function::Trace, 1, 2),
    row("trim", Function::Trim, 0, 0),
    row("truncate", Function::Truncate, 0, 0),
    row("type", Function::Type, 0, 0),
    row("unescape", Function::Unescape, 1, 1),
    row("union", Function::Union, 1, 1),
    row("upper", Function::Upper, 0, 0),
    row("where", Function::Where, 1, 1),
];

/// A function by its name.
pub(super) fn find(name: &str) -> Option<&'static Row> {
    FUNCTIONS.iter().find(|row| row.name == name)
}

/// The name of a function, for a fault.
pub(super) fn name_of(function: Function) -> &'static str {
    FUNCTIONS.iter().find(|row| row.function == function).map_or("", |row| row.name)
}

/// What to say of a name that is no function's.
pub(super) fn unknown(at: usize, name: &str) -> Fault {
    if let "memberOf" | "subsumes" | "subsumedBy" = name {
        return Fault::new(at, format!("{name}() needs a terminology service, which Pons does not have"));
    }
    let known = FUNCTIONS.iter().map(|row| row.name).chain(["is", "as", "ofType"]);
    Fault::new(at, format!("no such function{}", super::nearest(name, known)))
}
