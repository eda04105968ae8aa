//! The rules of FHIR R4 between elements: HL7's invariants, in FHIRPath.

use super::definitions::{TypeDef, TypeId, r4};
use crate::fhirpath::{Dialect, Item, Node, Path, Scope, Value as FhirPath};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::OnceLock;

/// Rules that the walk over the resource checks itself, with a nearer place or at less cost: emptiness, references,
/// narratives, and what is contained.
const ELSEWHERE: [&str; 7] = ["ele-1", "ref-1", "txt-1", "txt-2", "dom-2", "dom-3", "dom-4"];

/// Rules that one value is not after another. Where that is not known, as of a Period from a day to an hour of it, they are kept.
const ORDERS: [&str; 4] = ["per-1", "rng-2", "mdd-1", "inv-1"];

/// What an object is checked in: its resource, and the one around that if it is contained.
#[derive(Clone, Copy)]
pub(super) struct Around<'v> {
    pub(super) resource: &'v Value,
    pub(super) root: &'v Value,
}

struct Rule {
    key: &'static str,
    path: Path,
}

/// The texts of the rules of a type that an object breaks, each with the standard's key.
///
/// # Source
/// The invariants of severity error in the StructureDefinitions of 4.0.1 (`schemas/fhir/r4/invariants.txt`).
pub(super) fn broken(of: &'static TypeDef, object: &Value, around: Around<'_>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut at = Some(of);
    while let Some(of) = at {
        for rule in rules().get(&of.id).into_iter().flatten() {
            if !rule.keeps(of, object, around) {
                broken.push(rule.text());
            }
        }
        at = of.base.map(|id| r4().get(id));
    }
    if of.name == "Bundle.entry" && !full_url_fits(object) {
        broken.push("fullUrl must end in the id of its resource".to_owned());
    }
    broken
}

impl Rule {
    fn keeps(&self, of: &'static TypeDef, object: &Value, around: Around<'_>) -> bool {
        let scope = Scope {
            item: Item::Node(Node::element(object, of)),
            root: Node::resource(around.root),
            // No rule asks for the time.
            ..Scope::of(around.resource, Timestamp::UNIX_EPOCH)
        };
        match self.path.run(&scope) {
            Ok(found) if found.is_empty() => ORDERS.contains(&self.key),
            Ok(found) => !matches!(found.as_slice(), [Item::Value(FhirPath::Boolean(false))]),
            // It cannot be asked of what stands there: the walk tells what is wrong with that. Or there is too much of it, and what
            // was not checked is not wrong.
            Err(_) => true,
        }
    }

    /// What to say: in our own words, or what does not hold.
    fn text(&self) -> String {
        match TEXTS.iter().find(|(key, _)| *key == self.key) {
            Some((key, text)) => format!("{key}: {text}"),
            None => format!("{}: does not hold: {}", self.key, self.path),
        }
    }
}

/// The rules by the type that they begin at, compiled at the first call.
fn rules() -> &'static HashMap<TypeId, Vec<Rule>> {
    static RULES: OnceLock<HashMap<TypeId, Vec<Rule>>> = OnceLock::new();
    RULES.get_or_init(|| {
        let mut rules: HashMap<TypeId, Vec<Rule>> = HashMap::new();
        for line in include_str!("../../fhir/r4/invariants.txt").lines() {
            let mut parts = line.splitn(4, ' ');
            let (Some(place), Some(key), Some("E"), Some(text)) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if ELSEWHERE.contains(&key) {
                continue;
            }
            let (of, path) = compile(place, text);
            rules.entry(of).or_default().push(Rule { key, path });
        }
        rules
    })
}

/// A rule of an element that is no part (`ElementDefinition.max`) is one of its type for each of it.
fn compile(place: &str, text: &str) -> (TypeId, Path) {
    let (of, text) = match r4().type_def(place) {
        Some(of) => (of, text.to_owned()),
        None => {
            let (owner, element) =
                place.trim_end_matches("[x]").rsplit_once('.').expect("an element of a type");
            (r4().type_def(owner).expect("a type of the definitions"), format!("{element}.all({text})"))
        }
    };
    (of.id, Path::compile(&text, of.name, Dialect::R4).expect("a test compiles each"))
}

/// Our words for the rules of what an exchange of care and claims moves.
#[rustfmt::skip]
const TEXTS: [(&str, &str); 63] = [
    ("ext-1", "must have either extensions or a value"),
    ("qty-3", "a code for the unit needs its system"),
    ("age-1", "a value needs a code, in UCUM"),
    ("dis-1", "a value needs a code, in UCUM"),
    ("drt-1", "a code needs UCUM as its system and a value"),
    ("att-1", "data needs a contentType"),
    ("cpt-2", "a value needs a system"),
    ("per-1", "start must not be after end"),
    ("rat-1", "numerator and denominator go together"),
    ("exp-1", "an expression or a reference is needed"),
    ("tim-1", "a duration needs its unit"),
    ("tim-2", "a period needs its unit"),
    ("tim-6", "periodMax needs a period"),
    ("tim-7", "durationMax needs a duration"),
    ("tim-8", "countMax needs a count"),
    ("tim-9", "an offset needs a when, but not a meal itself"),
    ("tim-10", "timeOfDay and when exclude each other"),
    ("ait-1", "clinicalStatus is needed unless entered in error"),
    ("ait-2", "no clinicalStatus where entered in error"),
    ("app-2", "start and end go together"),
    ("app-3", "only a proposed, cancelled or waitlisted one may lack start and end"),
    ("app-4", "cancelationReason only when cancelled or noshow"),
    ("app-1", "a type or an actor is needed"),
    ("apr-1", "a participantType or an actor is needed"),
    ("sev-1", "a name or a query, not both"),
    ("bdl-1", "total only in a searchset or history"),
    ("bdl-2", "entry.search only in a searchset"),
    ("bdl-3", "entry.request in each entry of a batch, transaction or history, else in none"),
    ("bdl-4", "entry.response in each entry of a batch-response, transaction-response or history, else in none"),
    ("bdl-7", "fullUrl must be unique, or the versions differ"),
    ("bdl-9", "a document needs an identifier with system and value"),
    ("bdl-10", "a document needs a timestamp"),
    ("bdl-11", "a document begins with a Composition"),
    ("bdl-12", "a message begins with a MessageHeader"),
    ("bdl-5", "a resource, a request or a response is needed"),
    ("bdl-8", "fullUrl must not name a version"),
    ("cpl-3", "a reference or a detail, not both"),
    ("cmp-1", "text, entries or sections are needed"),
    ("cmp-2", "emptyReason only without entries"),
    ("con-4", "what has abated is inactive, resolved or in remission"),
    ("con-5", "no clinicalStatus where entered in error"),
    ("con-1", "a summary or an assessment is needed"),
    ("con-2", "a code or a detail is needed"),
    ("ppc-1", "a policy or a policyRule is needed"),
    ("fhs-1", "age or born, not both"),
    ("fhs-2", "estimatedAge needs an age"),
    ("gol-1", "a detail needs a measure"),
    ("grp-1", "members only of an actual group"),
    ("imm-1", "documentType or reference is needed"),
    ("lst-1", "emptyReason only without entries"),
    ("lst-2", "a deleted entry only where the list is of changes"),
    ("obs-6", "dataAbsentReason only without a value"),
    ("obs-7", "no value where a component has the same code"),
    ("obs-3", "low, high or text is needed"),
    ("org-1", "a name or an identifier is needed"),
    ("org-2", "no address for use home"),
    ("org-3", "no telecom for use home"),
    ("inv-1", "one of value, resource and part"),
    ("pat-1", "name, telecom, address or organization is needed"),
    ("qrs-1", "items beneath an item or beneath its answer, not both"),
    ("rqg-1", "a resource or actions, not both"),
    ("prr-1", "orderDetail needs a code"),
    ("trd-1", "timing or data, not both"),
];

/// `fullUrl` must end in the resource's own type and id, unless it is a URN.
fn full_url_fits(object: &Value) -> bool {
    let url = object.get("fullUrl").and_then(Value::as_str);
    let resource = object.get("resource");
    let (Some(url), Some(id)) = (url, resource.and_then(|r| r.get("id")?.as_str())) else { return true };
    let kind = resource.and_then(|r| r.get("resourceType")?.as_str()).unwrap_or_default();
    let own_server =
        url.strip_suffix(id).and_then(|rest| rest.strip_suffix('/')).is_some_and(|rest| rest.ends_with(kind));
    url.starts_with("urn:") || own_server || url.rsplit('/').nth(1).is_none_or(|part| part != kind)
}

#[cfg(test)]
mod tests {
    use super::super::definitions::Kind;
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
        ("AllergyIntolerance", "ait-2", r#"{"clinicalStatus":{},"verificationStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/allergyintolerance-verification","code":"entered-in-error"}]}}"#, r#"{"verificationStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/allergyintolerance-verification","code":"entered-in-error"}]}}"#),
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
        ("Bundle", "bdl-9", r#"{"type":"document","identifier":{"value":"1"}}"#, r#"{"type":"document","identifier":{"value":"1","system":"x"}}"#),
        ("Bundle", "bdl-10", r#"{"type":"document"}"#, r#"{"type":"document","timestamp":"x"}"#),
        ("Bundle", "bdl-11", r#"{"type":"document","entry":[{"resource":{"resourceType":"Patient"}}]}"#, r#"{"type":"document","entry":[{"resource":{"resourceType":"Composition"}}]}"#),
        ("Bundle", "bdl-12", r#"{"type":"message"}"#, r#"{"type":"message","entry":[{"resource":{"resourceType":"MessageHeader"}}]}"#),
        ("CarePlan.activity", "cpl-3", r#"{"detail":{},"reference":{}}"#, r#"{"detail":{}}"#),
        ("Composition.section", "cmp-1", r#"{"title":"a"}"#, r#"{"text":{}}"#),
        ("Composition.section", "cmp-2", r#"{"emptyReason":{},"entry":[{"id":"a"}]}"#, r#"{"emptyReason":{},"text":{}}"#),
        ("Condition", "con-4", r#"{"abatementString":"a"}"#, r#"{"abatementString":"a","clinicalStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/condition-clinical","code":"resolved"}]}}"#),
        ("Condition", "con-5", r#"{"clinicalStatus":{},"verificationStatus":{"coding":[{"system":"http://terminology.hl7.org/CodeSystem/condition-ver-status","code":"entered-in-error"}]}}"#, r#"{"clinicalStatus":{}}"#),
        ("Condition.stage", "con-1", r#"{"type":{}}"#, r#"{"summary":{}}"#),
        ("Condition.evidence", "con-2", r#"{"id":"a"}"#, r#"{"code":[{"id":"a"}]}"#),
        ("Consent", "ppc-1", r#"{}"#, r#"{"policyRule":{}}"#),
        ("FamilyMemberHistory", "fhs-1", r#"{"ageString":"a","bornString":"b"}"#, r#"{"ageString":"a"}"#),
        ("FamilyMemberHistory", "fhs-2", r#"{"estimatedAge":true}"#, r#"{"estimatedAge":true,"ageString":"a"}"#),
        ("Goal.target", "gol-1", r#"{"detailString":"a"}"#, r#"{"detailString":"a","measure":{}}"#),
        ("Group", "grp-1", r#"{"actual":false,"member":[{"id":"a"}]}"#, r#"{"actual":true,"member":[{"id":"a"}]}"#),
        ("Immunization.education", "imm-1", r#"{"publicationDate":"2020"}"#, r#"{"documentType":"a"}"#),
        ("List", "lst-1", r#"{"mode":"working","emptyReason":{},"entry":[{}]}"#, r#"{"mode":"working","emptyReason":{}}"#),
        ("List", "lst-2", r#"{"mode":"working","entry":[{"deleted":true}]}"#, r#"{"mode":"changes","entry":[{"deleted":true}]}"#),
        ("Observation", "obs-6", r#"{"dataAbsentReason":{},"_valueString":{}}"#, r#"{"dataAbsentReason":{}}"#),
        ("Observation", "obs-7", r#"{"valueString":"a","code":{"coding":[{"code":"x"}]},"component":[{"code":{"coding":[{"code":"x"}]}}]}"#, r#"{"valueString":"a","code":{"coding":[{"code":"x"}]},"component":[{"code":{"coding":[{"code":"y"}]}}]}"#),
        ("Observation.referenceRange", "obs-3", r#"{"type":{}}"#, r#"{"text":"a"}"#),
        ("Organization", "org-1", r#"{}"#, r#"{"name":"TEST"}"#),
        ("Organization", "org-2", r#"{"name":"TEST","address":[{"use":"home"}]}"#, r#"{"name":"TEST","address":[{"use":"work"}]}"#),
        ("Organization", "org-3", r#"{"name":"TEST","telecom":[{"use":"home"}]}"#, r#"{"name":"TEST","telecom":[{}]}"#),
        ("Parameters.parameter", "inv-1", r#"{"valueString":"a","part":[{"id":"a"}]}"#, r#"{"part":[{"id":"a"}]}"#),
        ("Patient.contact", "pat-1", r#"{"gender":"male"}"#, r#"{"name":{}}"#),
        ("QuestionnaireResponse.item", "qrs-1", r#"{"answer":[{"id":"a"}],"item":[{"id":"a"}]}"#, r#"{"answer":[{"id":"a"}]}"#),
        ("RequestGroup.action", "rqg-1", r#"{}"#, r#"{"resource":{}}"#),
        ("ServiceRequest", "prr-1", r#"{"orderDetail":[{"id":"a"}]}"#, r#"{"orderDetail":[{"id":"a"}],"code":{}}"#),
        ("TriggerDefinition", "trd-1", r#"{"data":[{"id":"a"}],"timingDate":"2020"}"#, r#"{"data":[{"id":"a"}]}"#),
        ("Bundle", "bdl-7", r#"{"type":"collection","entry":[{"fullUrl":"a"},{"fullUrl":"a"}]}"#, r#"{"type":"collection","entry":[{"fullUrl":"a"},{"fullUrl":"a","resource":{"meta":{"versionId":"1"}}},{}]}"#),
        ("Bundle.entry", "bdl-5", r#"{"fullUrl":"a"}"#, r#"{"resource":{}}"#),
        ("Bundle.entry", "bdl-8", r#"{"fullUrl":"http://x/Patient/1/_history/2","resource":{}}"#, r#"{"fullUrl":"http://x/Patient/1","resource":{}}"#),
        ("Bundle.entry", "fullUrl", r#"{"fullUrl":"http://x/Patient/1","resource":{"resourceType":"Patient","id":"2"}}"#, r#"{"fullUrl":"http://x/Patient/2","resource":{"resourceType":"Patient","id":"2"}}"#),
    ];

    #[test]
    fn each_rule_tells_what_keeps_it_from_what_breaks_it() {
        let mut wrong = Vec::new();
        for (of, key, breaking, keeping) in CASES {
            let of = r4().type_def(of).expect("a type");
            let told = |text| {
                let mut object: Value = serde_json::from_str(text).expect("JSON");
                if of.kind == Kind::Resource {
                    object["resourceType"] = of.name.into();
                }
                let found = broken(of, &object, Around { resource: &object, root: &object });
                found.iter().any(|found| found.starts_with(key))
            };
            if !told(breaking) {
                wrong.push(format!("{key} is kept by {breaking}"));
            }
            if told(keeping) {
                wrong.push(format!("{key} is broken by {keeping}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_rule_of_the_standard_is_known() {
        assert!(rules().values().map(Vec::len).sum::<usize>() >= 199);
        for (key, _) in TEXTS {
            assert!(rules().values().flatten().any(|rule| rule.key == key), "{key}");
        }
    }
}
