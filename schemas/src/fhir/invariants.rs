//! Rules of FHIR R4 between elements, for the types that an exchange of care and claims moves, written out by hand.

use super::definitions::{TypeDef, TypeId, r4};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

type Object = Map<String, Value>;

/// A rule: for which type, its text with the standard's key, and whether an object keeps it.
type Rule = (&'static str, &'static str, fn(&Object) -> bool);

/// The texts of the rules of a type that an object breaks.
///
/// # Source
/// The invariants of severity error in the StructureDefinitions of 4.0.1. Those of definitional resources (`ValueSet`,
/// `Questionnaire`, `TestScript`, ...) are not here.
pub(super) fn broken(of: &TypeDef, object: &Object) -> impl Iterator<Item = &'static str> {
    rules_of(of).iter().filter(move |(_, _, keeps)| !keeps(object)).map(|(_, text, _)| *text)
}

/// The rules of a type: they stand together in [`RULES`].
fn rules_of(of: &TypeDef) -> &'static [Rule] {
    static SPANS: OnceLock<HashMap<TypeId, Range<usize>>> = OnceLock::new();
    let spans = SPANS.get_or_init(|| {
        let mut spans: HashMap<TypeId, Range<usize>> = HashMap::new();
        for (index, (name, ..)) in RULES.iter().enumerate() {
            let of = r4().type_def(name).expect("a type of the definitions: a test looks");
            let span = spans.entry(of.id).or_insert(index..index);
            debug_assert_eq!(span.end, index, "the rules of {name} stand together");
            span.end = index + 1;
        }
        spans
    });
    spans.get(&of.id).map_or(&[], |span| &RULES[span.clone()])
}

fn has(object: &Object, name: &str) -> bool {
    object.contains_key(name) || object.contains_key(&format!("_{name}"))
}

/// Whether any type of a choice is there.
fn has_choice(object: &Object, name: &str) -> bool {
    object.keys().any(|key| {
        let key = key.strip_prefix('_').unwrap_or(key);
        key.strip_prefix(name).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
    })
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn list<'a>(object: &'a Object, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn any(object: &Object, names: &[&str]) -> bool {
    names.iter().any(|name| has(object, name))
}

/// Whether a CodeableConcept has a code, of a system that ends so.
fn coded(object: &Object, name: &str, system: &str, codes: &[&str]) -> bool {
    let codings = object.get(name).and_then(|concept| concept.get("coding")).and_then(Value::as_array);
    codings.into_iter().flatten().any(|coding| {
        coding.get("system").and_then(Value::as_str).is_some_and(|found| found.ends_with(system))
            && coding.get("code").and_then(Value::as_str).is_some_and(|code| codes.contains(&code))
    })
}

/// `a` is not after `b`: as instants when both have a time, else as far as both dates go.
fn ordered(a: Option<&str>, b: Option<&str>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return true };
    if let (Ok(a), Ok(b)) = (a.parse::<jiff::Timestamp>(), b.parse::<jiff::Timestamp>()) {
        return a <= b;
    }
    let date = |text: &str| text.split('T').next().unwrap_or_default().to_owned();
    let (a, b) = (date(a), date(b));
    let common = a.len().min(b.len());
    a.get(..common) <= b.get(..common)
}

fn type_is(object: &Object, of: &[&str]) -> bool {
    text(object, "type").is_some_and(|found| of.contains(&found))
}

fn all_entries(object: &Object, keeps: impl Fn(&Value) -> bool) -> bool {
    list(object, "entry").all(keeps)
}

fn first_is(object: &Object, kind: &str) -> bool {
    let first = list(object, "entry").next();
    first.and_then(|entry| entry.get("resource")?.get("resourceType")?.as_str()) == Some(kind)
}

fn unique_urls(object: &Object) -> bool {
    let mut urls: Vec<_> = list(object, "entry")
        .filter_map(|entry| {
            let version = entry.get("resource").and_then(|r| r.get("meta")?.get("versionId")?.as_str());
            Some((entry.get("fullUrl")?.as_str()?, version))
        })
        .collect();
    let count = urls.len();
    urls.sort_unstable();
    urls.dedup();
    urls.len() == count
}

/// `fullUrl` must end in the resource's own type and id, unless it is a URN.
fn full_url_fits(object: &Object) -> bool {
    let url = text(object, "fullUrl");
    let resource = object.get("resource");
    let (Some(url), Some(id)) = (url, resource.and_then(|r| r.get("id")?.as_str())) else { return true };
    let kind = resource.and_then(|r| r.get("resourceType")?.as_str()).unwrap_or_default();
    let own_server =
        url.strip_suffix(id).and_then(|rest| rest.strip_suffix('/')).is_some_and(|rest| rest.ends_with(kind));
    url.starts_with("urn:") || own_server || url.rsplit('/').nth(1).is_none_or(|part| part != kind)
}

fn observation_component_differs(object: &Object) -> bool {
    let codings = |concept: Option<&Value>| -> Vec<(Option<String>, Option<String>)> {
        let codings = concept.and_then(|c| c.get("coding")).and_then(Value::as_array);
        let part = |coding: &Value, name| coding.get(name).and_then(Value::as_str).map(str::to_owned);
        codings.into_iter().flatten().map(|c| (part(c, "system"), part(c, "code"))).collect()
    };
    let own = codings(object.get("code"));
    !list(object, "component")
        .any(|component| codings(component.get("code")).iter().any(|coding| own.contains(coding)))
}

const WITH_REQUEST: [&str; 3] = ["batch", "transaction", "history"];
const WITH_RESPONSE: [&str; 3] = ["batch-response", "transaction-response", "history"];
const NOT_HOME: fn(&Value) -> bool = |value| value.get("use").and_then(Value::as_str) != Some("home");
const UCUM: &str = "http://unitsofmeasure.org";

fn ucum_if_any(object: &Object) -> bool {
    (has(object, "code") || !has(object, "value"))
        && text(object, "system").is_none_or(|system| system == UCUM)
}

#[rustfmt::skip]
const RULES: [Rule; 64] = [
    ("Extension", "ext-1: must have either extensions or a value", |o| has(o, "extension") != has_choice(o, "value")),
    ("Quantity", "qty-3: a code for the unit needs its system", |o| !has(o, "code") || has(o, "system")),
    ("Age", "age-1: a value needs a code, in UCUM", ucum_if_any),
    ("Distance", "dis-1: a value needs a code, in UCUM", ucum_if_any),
    ("Duration", "drt-1: a code needs UCUM as its system and a value", |o| !has(o, "code") || (text(o, "system") == Some(UCUM) && has(o, "value"))),
    ("Attachment", "att-1: data needs a contentType", |o| !has(o, "data") || has(o, "contentType")),
    ("ContactPoint", "cpt-2: a value needs a system", |o| !has(o, "value") || has(o, "system")),
    ("Period", "per-1: start must not be after end", |o| ordered(text(o, "start"), text(o, "end"))),
    ("Ratio", "rat-1: numerator and denominator go together", |o| has(o, "numerator") == has(o, "denominator") && (has(o, "numerator") || has(o, "extension"))),
    ("Expression", "exp-1: an expression or a reference is needed", |o| any(o, &["expression", "reference"])),
    ("Timing.repeat", "tim-1: a duration needs its unit", |o| !has(o, "duration") || has(o, "durationUnit")),
    ("Timing.repeat", "tim-2: a period needs its unit", |o| !has(o, "period") || has(o, "periodUnit")),
    ("Timing.repeat", "tim-6: periodMax needs a period", |o| !has(o, "periodMax") || has(o, "period")),
    ("Timing.repeat", "tim-7: durationMax needs a duration", |o| !has(o, "durationMax") || has(o, "duration")),
    ("Timing.repeat", "tim-8: countMax needs a count", |o| !has(o, "countMax") || has(o, "count")),
    ("Timing.repeat", "tim-9: an offset needs a when, but not a meal itself", |o| !has(o, "offset") || (has(o, "when") && list(o, "when").all(|w| !matches!(w.as_str(), Some("C" | "CM" | "CD" | "CV"))))),
    ("Timing.repeat", "tim-10: timeOfDay and when exclude each other", |o| !has(o, "timeOfDay") || !has(o, "when")),
    ("AllergyIntolerance", "ait-1: clinicalStatus is needed unless entered in error", |o| coded(o, "verificationStatus", "allergyintolerance-verification", &["entered-in-error"]) || has(o, "clinicalStatus")),
    ("AllergyIntolerance", "ait-2: no clinicalStatus where entered in error", |o| !coded(o, "verificationStatus", "allergyintolerance-verification", &["entered-in-error"]) || !has(o, "clinicalStatus")),
    ("Appointment", "app-2: start and end go together", |o| has(o, "start") == has(o, "end")),
    ("Appointment", "app-3: only a proposed, cancelled or waitlisted one may lack start and end", |o| (has(o, "start") && has(o, "end")) || matches!(text(o, "status"), Some("proposed" | "cancelled" | "waitlist"))),
    ("Appointment", "app-4: cancelationReason only when cancelled or noshow", |o| !has(o, "cancelationReason") || matches!(text(o, "status"), Some("noshow" | "cancelled"))),
    ("Appointment.participant", "app-1: a type or an actor is needed", |o| any(o, &["type", "actor"])),
    ("AppointmentResponse", "apr-1: a participantType or an actor is needed", |o| any(o, &["participantType", "actor"])),
    ("AuditEvent.entity", "sev-1: a name or a query, not both", |o| !(has(o, "name") && has(o, "query"))),
    ("Bundle", "bdl-1: total only in a searchset or history", |o| !has(o, "total") || type_is(o, &["searchset", "history"])),
    ("Bundle", "bdl-2: entry.search only in a searchset", |o| type_is(o, &["searchset"]) || all_entries(o, |e| e.get("search").is_none())),
    ("Bundle", "bdl-3: entry.request in each entry of a batch, transaction or history, else in none", |o| all_entries(o, |e| e.get("request").is_some() == type_is(o, &WITH_REQUEST))),
    ("Bundle", "bdl-4: entry.response in each entry of a batch-response, transaction-response or history, else in none", |o| all_entries(o, |e| e.get("response").is_some() == type_is(o, &WITH_RESPONSE))),
    ("Bundle", "bdl-7: fullUrl must be unique, or the versions differ", |o| type_is(o, &["history"]) || unique_urls(o)),
    ("Bundle", "bdl-9: a document needs an identifier with system and value", |o| !type_is(o, &["document"]) || o.get("identifier").is_some_and(|i| i.get("system").is_some() && i.get("value").is_some())),
    ("Bundle", "bdl-10: a document needs a timestamp", |o| !type_is(o, &["document"]) || o.contains_key("timestamp")),
    ("Bundle", "bdl-11: a document begins with a Composition", |o| !type_is(o, &["document"]) || first_is(o, "Composition")),
    ("Bundle", "bdl-12: a message begins with a MessageHeader", |o| !type_is(o, &["message"]) || first_is(o, "MessageHeader")),
    ("Bundle.entry", "bdl-5: a resource, a request or a response is needed", |o| any(o, &["resource", "request", "response"])),
    ("Bundle.entry", "bdl-8: fullUrl must not name a version", |o| text(o, "fullUrl").is_none_or(|url| !url.contains("/_history/"))),
    ("Bundle.entry", "fullUrl must end in the id of its resource", full_url_fits),
    ("CarePlan.activity", "cpl-3: a reference or a detail, not both", |o| !(has(o, "detail") && has(o, "reference"))),
    ("Composition.section", "cmp-1: text, entries or sections are needed", |o| any(o, &["text", "entry", "section"])),
    ("Composition.section", "cmp-2: emptyReason only without entries", |o| !(has(o, "emptyReason") && has(o, "entry"))),
    ("Condition", "con-4: what has abated is inactive, resolved or in remission", |o| !has_choice(o, "abatement") || coded(o, "clinicalStatus", "condition-clinical", &["resolved", "remission", "inactive"])),
    ("Condition", "con-5: no clinicalStatus where entered in error", |o| !coded(o, "verificationStatus", "condition-ver-status", &["entered-in-error"]) || !has(o, "clinicalStatus")),
    ("Condition.stage", "con-1: a summary or an assessment is needed", |o| any(o, &["summary", "assessment"])),
    ("Condition.evidence", "con-2: a code or a detail is needed", |o| any(o, &["code", "detail"])),
    ("Consent", "ppc-1: a policy or a policyRule is needed", |o| any(o, &["policy", "policyRule"])),
    ("FamilyMemberHistory", "fhs-1: age or born, not both", |o| !(has_choice(o, "age") && has_choice(o, "born"))),
    ("FamilyMemberHistory", "fhs-2: estimatedAge needs an age", |o| !has(o, "estimatedAge") || has_choice(o, "age")),
    ("Goal.target", "gol-1: a detail needs a measure", |o| !has_choice(o, "detail") || has(o, "measure")),
    ("Group", "grp-1: members only of an actual group", |o| !has(o, "member") || o.get("actual") == Some(&Value::Bool(true))),
    ("Immunization.education", "imm-1: documentType or reference is needed", |o| any(o, &["documentType", "reference"])),
    ("List", "lst-1: emptyReason only without entries", |o| !(has(o, "emptyReason") && has(o, "entry"))),
    ("List", "lst-2: a deleted entry only where the list is of changes", |o| text(o, "mode") == Some("changes") || list(o, "entry").all(|e| e.get("deleted").is_none())),
    ("Observation", "obs-6: dataAbsentReason only without a value", |o| !(has(o, "dataAbsentReason") && has_choice(o, "value"))),
    ("Observation", "obs-7: no value where a component has the same code", |o| !has_choice(o, "value") || observation_component_differs(o)),
    ("Observation.referenceRange", "obs-3: low, high or text is needed", |o| any(o, &["low", "high", "text"])),
    ("Organization", "org-1: a name or an identifier is needed", |o| any(o, &["identifier", "name"])),
    ("Organization", "org-2: no address for use home", |o| list(o, "address").all(NOT_HOME)),
    ("Organization", "org-3: no telecom for use home", |o| list(o, "telecom").all(NOT_HOME)),
    ("Parameters.parameter", "inv-1: one of value, resource and part", |o| u8::from(has_choice(o, "value")) + u8::from(has(o, "resource")) + u8::from(has(o, "part")) == 1),
    ("Patient.contact", "pat-1: name, telecom, address or organization is needed", |o| any(o, &["name", "telecom", "address", "organization"])),
    ("QuestionnaireResponse.item", "qrs-1: items beneath an item or beneath its answer, not both", |o| !(has(o, "answer") && has(o, "item"))),
    ("RequestGroup.action", "rqg-1: a resource or actions, not both", |o| has(o, "resource") != has(o, "action")),
    ("ServiceRequest", "prr-1: orderDetail needs a code", |o| !has(o, "orderDetail") || has(o, "code")),
    ("TriggerDefinition", "trd-1: timing or data, not both", |o| !(has(o, "data") && has_choice(o, "timing"))),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// For each rule an object that breaks it and one that keeps it.
    #[rustfmt::skip]
    const CASES: [(&str, &str, &str, &str); 64] = [
        ("Extension", "ext-1", r#"{"url":"a"}"#, r#"{"url":"a","valueString":"b"}"#),
        ("Quantity", "qty-3", r#"{"code":"mg"}"#, r#"{"code":"mg","system":"http://unitsofmeasure.org"}"#),
        ("Age", "age-1", r#"{"value":3}"#, r#"{"value":3,"code":"a","system":"http://unitsofmeasure.org"}"#),
        ("Distance", "dis-1", r#"{"value":3,"code":"m","system":"x"}"#, r#"{"value":3,"code":"m"}"#),
        ("Duration", "drt-1", r#"{"code":"h","value":1}"#, r#"{"code":"h","value":1,"system":"http://unitsofmeasure.org"}"#),
        ("Attachment", "att-1", r#"{"data":"VEVT"}"#, r#"{"data":"VEVT","contentType":"text/plain"}"#),
        ("ContactPoint", "cpt-2", r#"{"value":"1"}"#, r#"{"value":"1","system":"phone"}"#),
        ("Period", "per-1", r#"{"start":"2020-01-02","end":"2020-01-01"}"#, r#"{"start":"2020-01-02T23:00:00-08:00","end":"2020-01-03T06:00:00-02:00"}"#),
        ("Ratio", "rat-1", r#"{"numerator":{"value":1}}"#, r#"{"numerator":{"value":1},"denominator":{"value":2}}"#),
        ("Expression", "exp-1", r#"{"language":"text/cql"}"#, r#"{"language":"text/cql","expression":"x"}"#),
        ("Timing.repeat", "tim-1", r#"{"duration":1}"#, r#"{"duration":1,"durationUnit":"h"}"#),
        ("Timing.repeat", "tim-2", r#"{"period":1}"#, r#"{"period":1,"periodUnit":"h"}"#),
        ("Timing.repeat", "tim-6", r#"{"periodMax":1}"#, r#"{"periodMax":1,"period":1,"periodUnit":"h"}"#),
        ("Timing.repeat", "tim-7", r#"{"durationMax":1}"#, r#"{"durationMax":1,"duration":1,"durationUnit":"h"}"#),
        ("Timing.repeat", "tim-8", r#"{"countMax":1}"#, r#"{"countMax":1,"count":1}"#),
        ("Timing.repeat", "tim-9", r#"{"offset":1,"when":["CM"]}"#, r#"{"offset":1,"when":["ACM"]}"#),
        ("Timing.repeat", "tim-10", r#"{"timeOfDay":["08:00:00"],"when":["ACM"]}"#, r#"{"timeOfDay":["08:00:00"]}"#),
        ("AllergyIntolerance", "ait-1", r#"{}"#, r#"{"clinicalStatus":{}}"#),
        ("AllergyIntolerance", "ait-2", r#"{"clinicalStatus":{},"verificationStatus":{"coding":[{"system":"x/allergyintolerance-verification","code":"entered-in-error"}]}}"#, r#"{"verificationStatus":{"coding":[{"system":"x/allergyintolerance-verification","code":"entered-in-error"}]}}"#),
        ("Appointment", "app-2", r#"{"start":"2020","status":"proposed"}"#, r#"{"status":"proposed"}"#),
        ("Appointment", "app-3", r#"{"status":"booked"}"#, r#"{"status":"booked","start":"2020","end":"2020"}"#),
        ("Appointment", "app-4", r#"{"status":"proposed","cancelationReason":{}}"#, r#"{"status":"cancelled","cancelationReason":{}}"#),
        ("Appointment.participant", "app-1", r#"{"status":"accepted"}"#, r#"{"status":"accepted","actor":{}}"#),
        ("AppointmentResponse", "apr-1", r#"{}"#, r#"{"actor":{}}"#),
        ("AuditEvent.entity", "sev-1", r#"{"name":"a","query":"b"}"#, r#"{"name":"a"}"#),
        ("Bundle", "bdl-1", r#"{"type":"collection","total":1}"#, r#"{"type":"searchset","total":1}"#),
        ("Bundle", "bdl-2", r#"{"type":"collection","entry":[{"search":{}}]}"#, r#"{"type":"searchset","entry":[{"search":{}}]}"#),
        ("Bundle", "bdl-3", r#"{"type":"collection","entry":[{"request":{}}]}"#, r#"{"type":"batch","entry":[{"request":{}}]}"#),
        ("Bundle", "bdl-4", r#"{"type":"batch-response","entry":[{}]}"#, r#"{"type":"batch-response","entry":[{"response":{}}]}"#),
        ("Bundle", "bdl-7", r#"{"type":"collection","entry":[{"fullUrl":"a"},{"fullUrl":"a"}]}"#, r#"{"type":"collection","entry":[{"fullUrl":"a"},{"fullUrl":"a","resource":{"meta":{"versionId":"1"}}},{}]}"#),
        ("Bundle", "bdl-9", r#"{"type":"document","identifier":{"value":"1"}}"#, r#"{"type":"document","identifier":{"value":"1","system":"x"}}"#),
        ("Bundle", "bdl-10", r#"{"type":"document"}"#, r#"{"type":"document","timestamp":"x"}"#),
        ("Bundle", "bdl-11", r#"{"type":"document","entry":[{"resource":{"resourceType":"Patient"}}]}"#, r#"{"type":"document","entry":[{"resource":{"resourceType":"Composition"}}]}"#),
        ("Bundle", "bdl-12", r#"{"type":"message"}"#, r#"{"type":"message","entry":[{"resource":{"resourceType":"MessageHeader"}}]}"#),
        ("Bundle.entry", "bdl-5", r#"{"fullUrl":"a"}"#, r#"{"resource":{}}"#),
        ("Bundle.entry", "bdl-8", r#"{"fullUrl":"http://x/Patient/1/_history/2","resource":{}}"#, r#"{"fullUrl":"http://x/Patient/1","resource":{}}"#),
        ("Bundle.entry", "fullUrl", r#"{"fullUrl":"http://x/Patient/1","resource":{"resourceType":"Patient","id":"2"}}"#, r#"{"fullUrl":"http://x/Patient/2","resource":{"resourceType":"Patient","id":"2"}}"#),
        ("CarePlan.activity", "cpl-3", r#"{"detail":{},"reference":{}}"#, r#"{"detail":{}}"#),
        ("Composition.section", "cmp-1", r#"{"title":"a"}"#, r#"{"text":{}}"#),
        ("Composition.section", "cmp-2", r#"{"emptyReason":{},"entry":[]}"#, r#"{"emptyReason":{},"text":{}}"#),
        ("Condition", "con-4", r#"{"abatementString":"a"}"#, r#"{"abatementString":"a","clinicalStatus":{"coding":[{"system":"x/condition-clinical","code":"resolved"}]}}"#),
        ("Condition", "con-5", r#"{"clinicalStatus":{},"verificationStatus":{"coding":[{"system":"x/condition-ver-status","code":"entered-in-error"}]}}"#, r#"{"clinicalStatus":{}}"#),
        ("Condition.stage", "con-1", r#"{"type":{}}"#, r#"{"summary":{}}"#),
        ("Condition.evidence", "con-2", r#"{"id":"a"}"#, r#"{"code":[]}"#),
        ("Consent", "ppc-1", r#"{}"#, r#"{"policyRule":{}}"#),
        ("FamilyMemberHistory", "fhs-1", r#"{"ageString":"a","bornString":"b"}"#, r#"{"ageString":"a"}"#),
        ("FamilyMemberHistory", "fhs-2", r#"{"estimatedAge":true}"#, r#"{"estimatedAge":true,"ageString":"a"}"#),
        ("Goal.target", "gol-1", r#"{"detailString":"a"}"#, r#"{"detailString":"a","measure":{}}"#),
        ("Group", "grp-1", r#"{"actual":false,"member":[]}"#, r#"{"actual":true,"member":[]}"#),
        ("Immunization.education", "imm-1", r#"{"publicationDate":"2020"}"#, r#"{"documentType":"a"}"#),
        ("List", "lst-1", r#"{"mode":"working","emptyReason":{},"entry":[{}]}"#, r#"{"mode":"working","emptyReason":{}}"#),
        ("List", "lst-2", r#"{"mode":"working","entry":[{"deleted":true}]}"#, r#"{"mode":"changes","entry":[{"deleted":true}]}"#),
        ("Observation", "obs-6", r#"{"dataAbsentReason":{},"_valueString":{}}"#, r#"{"dataAbsentReason":{}}"#),
        ("Observation", "obs-7", r#"{"valueString":"a","code":{"coding":[{"code":"x"}]},"component":[{"code":{"coding":[{"code":"x"}]}}]}"#, r#"{"valueString":"a","code":{"coding":[{"code":"x"}]},"component":[{"code":{"coding":[{"code":"y"}]}}]}"#),
        ("Observation.referenceRange", "obs-3", r#"{"type":{}}"#, r#"{"text":"a"}"#),
        ("Organization", "org-1", r#"{}"#, r#"{"name":"TEST"}"#),
        ("Organization", "org-2", r#"{"name":"TEST","address":[{"use":"home"}]}"#, r#"{"name":"TEST","address":[{"use":"work"}]}"#),
        ("Organization", "org-3", r#"{"name":"TEST","telecom":[{"use":"home"}]}"#, r#"{"name":"TEST","telecom":[{}]}"#),
        ("Parameters.parameter", "inv-1", r#"{"valueString":"a","part":[]}"#, r#"{"part":[]}"#),
        ("Patient.contact", "pat-1", r#"{"gender":"male"}"#, r#"{"name":{}}"#),
        ("QuestionnaireResponse.item", "qrs-1", r#"{"answer":[],"item":[]}"#, r#"{"answer":[]}"#),
        ("RequestGroup.action", "rqg-1", r#"{}"#, r#"{"resource":{}}"#),
        ("ServiceRequest", "prr-1", r#"{"orderDetail":[]}"#, r#"{"orderDetail":[],"code":{}}"#),
        ("TriggerDefinition", "trd-1", r#"{"data":[],"timingDate":"2020"}"#, r#"{"data":[]}"#),
    ];

    #[test]
    fn each_rule_tells_what_keeps_it_from_what_breaks_it() {
        assert_eq!(CASES.len(), RULES.len());
        for ((of, key, breaking, keeping), (rule_of, text, _)) in CASES.into_iter().zip(RULES) {
            assert!(
                of == rule_of && text.starts_with(key),
                "{key}: the cases stand in the order of the rules"
            );
            let of = r4().type_def(of).expect("a type");
            let object = |text| serde_json::from_str::<Object>(text).expect("JSON");
            assert!(broken(of, &object(breaking)).any(|found| found == text), "{key}: {breaking}");
            assert!(!broken(of, &object(keeping)).any(|found| found == text), "{key}: {keeping}");
        }
    }
}
