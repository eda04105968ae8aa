//! The URIs of assigners and code systems, and what HL7 v2 calls them.

use std::borrow::Cow;

/// A universal id as a URI. `kind` is of table 0301; empty if it is not said.
pub(crate) fn universal(id: &str, kind: &str) -> Option<String> {
    if id.is_empty() || id.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return None;
    }
    let uuid = || id.parse::<uuid::Uuid>().ok().filter(|_| id.len() == 36);
    match kind.trim().to_ascii_uppercase().as_str() {
        "ISO" | "OID" => schemas::fhir::is_oid(id).then(|| format!("urn:oid:{id}")),
        "UUID" | "GUID" => uuid().map(|uuid| format!("urn:uuid:{uuid}")),
        "URI" | "URL" => id.contains(':').then(|| id.to_owned()),
        "DNS" => Some(format!("urn:pons:dns:{}", id.to_ascii_lowercase())),
        _ if schemas::fhir::is_oid(id) => Some(format!("urn:oid:{id}")),
        _ if uuid().is_some() => uuid().map(|uuid| format!("urn:uuid:{uuid}")),
        _ if ["http://", "https://", "urn:"].iter().any(|scheme| id.starts_with(scheme)) => {
            Some(id.to_owned())
        }
        _ => None,
    }
}

/// The universal id of an assigner, and what kind of id that is by table 0301; `None` for what is known to its sender alone.
pub(super) fn universal_id(uri: &str) -> Option<(&str, &'static str)> {
    let uri = uri.trim();
    match (uri.strip_prefix("urn:oid:"), uri.strip_prefix("urn:uuid:"), uri.strip_prefix("urn:pons:dns:")) {
        (Some(oid), _, _) => Some((oid, "ISO")),
        (_, Some(uuid), _) => Some((uuid, "UUID")),
        (_, _, Some(name)) => Some((name, "DNS")),
        _ if uri.starts_with("urn:pons:sender:") => None,
        _ => Some((uri, "URI")),
    }
}

/// The other way round than [`known_coding_system`].
pub(super) fn v2_system(uri: &str) -> String {
    let known = CODING_SYSTEMS.iter().find(|(_, known)| *known == uri).map(|(names, _)| names[0]);
    let table =
        || uri.strip_prefix("http://terminology.hl7.org/CodeSystem/v2-").filter(|table| table.len() == 4);
    known
        .map(str::to_owned)
        .or_else(|| table().map(|table| format!("HL7{table}")))
        .or_else(|| crate::identity::assigner(uri))
        .unwrap_or_else(|| uri.strip_prefix("urn:oid:").unwrap_or(uri).to_owned())
}

/// The code systems of table 0396 that are not HL7's own tables, by their names in use, the table's own first.
const CODING_SYSTEMS: [(&[&str], &str); 17] = [
    (&["LN", "LOINC"], "http://loinc.org"),
    (&["SCT", "SNOMED", "SNOMEDCT", "SCT2", "SNOMED-CT"], "http://snomed.info/sct"),
    (&["UCUM"], "http://unitsofmeasure.org"),
    (&["RXNORM", "RXN"], "http://www.nlm.nih.gov/research/umls/rxnorm"),
    (&["CVX"], "http://hl7.org/fhir/sid/cvx"),
    (&["MVX"], "http://hl7.org/fhir/sid/mvx"),
    (&["NDC"], "http://hl7.org/fhir/sid/ndc"),
    (&["I10", "ICD10"], "http://hl7.org/fhir/sid/icd-10"),
    (&["I10C", "I10CM", "ICD10CM", "I10-CM"], "http://hl7.org/fhir/sid/icd-10-cm"),
    (&["I10P", "I10PCS"], "http://www.cms.gov/Medicare/Coding/ICD10"),
    (&["I9C", "I9", "I9CDX"], "http://hl7.org/fhir/sid/icd-9-cm"),
    (&["C4", "CPT4", "CPT"], "http://www.ama-assn.org/go/cpt"),
    (&["HCPCS", "HPC"], "urn:oid:2.16.840.1.113883.6.285"),
    (&["ISO3166_1", "ISO3166"], "urn:iso:std:iso:3166"),
    (&["ISO639", "ISO639-1"], "urn:ietf:bcp:47"),
    (&["CDCREC"], "urn:oid:2.16.840.1.113883.6.238"),
    (&["NUCC", "NUCCPT"], "http://nucc.org/provider-taxonomy"),
];

/// The URI of a code system of table 0396.
pub(crate) fn known_coding_system(name: &str) -> Option<Cow<'static, str>> {
    let known = CODING_SYSTEMS.iter().find(|(names, _)| names.contains(&name));
    if let Some((_, uri)) = known {
        return Some(Cow::Borrowed(uri));
    }
    let table = name.strip_prefix("HL7").map(|rest| rest.trim_start_matches(['-', ' ']))?;
    let digits = table.len() == 4 && table.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| Cow::Owned(format!("http://terminology.hl7.org/CodeSystem/v2-{table}")))
}
