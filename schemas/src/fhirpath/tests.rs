//! Expressions and what they find, by what can go wrong. HL7's own tests are run by `corpus -- fhirpath`.

use super::{Dialect, Fault, Node, Path, Scope};
use crate::fhir::r4;
use serde_json::{Value, json};

const NOW: &str = "2026-03-01T10:00:00.5Z";

fn patient() -> Value {
    json!({
        "resourceType": "Patient",
        "id": "p1",
        "contained": [{"resourceType": "Organization", "id": "o1", "name": "TEST-CLINIC"}],
        "identifier": [{"system": "urn:test", "value": "1"}, {"system": "urn:other", "value": "2"}],
        "active": true,
        "name": [
            {"use": "official", "family": "TEST-MÜLLER", "given": ["ANNA", "Ön"]},
            {"use": "maiden", "_family": {"extension": [{"url": "urn:test:why", "valueCode": "asked-unknown"}]}}
        ],
        "birthDate": "1980-02",
        "deceasedDateTime": "2025-12-31T23:30:00-05:00",
        "multipleBirthInteger": 2,
        "managingOrganization": {"reference": "#o1"},
        "generalPractitioner": [{"reference": "Practitioner/7"}]
    })
}

fn observation() -> Value {
    let text = r#"{
        "resourceType": "Observation",
        "status": "final",
        "valueQuantity": {"value": 1.50, "system": "http://unitsofmeasure.org", "code": "g"},
        "component": [{"valueInteger": 1}, {"valueString": "one"}, {"valueInteger": 2}]
    }"#;
    serde_json::from_str(text).expect("JSON")
}

fn run(expression: &str, on: &Value, dialect: Dialect) -> Result<Vec<String>, Fault> {
    let of = on["resourceType"].as_str().expect("a resource");
    let path = Path::compile(expression, of, dialect)?;
    let found = path.run(&Scope::of(on, NOW.parse().expect("a time")))?;
    Ok(found.iter().map(|item| item.value().map_or("{}".to_owned(), |value| value.to_string())).collect())
}

#[test]
fn paths_find_what_stands_there() {
    for (expression, expected) in [
        ("Patient.name.given", "ANNA Ön"),
        ("name.family", "TEST-MÜLLER {}"),
        ("name[1].family.extension('urn:test:why').value", "asked-unknown"),
        ("name.family.hasValue()", "FAULT"),
        ("name.family.select(hasValue())", "true false"),
        ("deceased", "2025-12-31T23:30:00-05:00"),
        ("deceased is dateTime", "true"),
        ("multipleBirth.type().name", "integer"),
        ("multipleBirth + 1", "3"),
        ("managingOrganization.resolve().name", "TEST-CLINIC"),
        ("generalPractitioner.resolve() is Practitioner", "true"),
        ("generalPractitioner.resolve() is Patient", "false"),
        ("contained.name", "TEST-CLINIC"),
        ("contained.ofType(Organization).name", "TEST-CLINIC"),
        ("identifier.where(system = 'urn:other').value", "2"),
        ("identifier.select($index)", "0 1"),
        ("%resource.id", "p1"),
        ("descendants().where($this is code)", "official maiden asked-unknown"),
        ("telecom.value", ""),
        ("telecom.empty()", "true"),
        ("active = {}", ""),
    ] {
        check(expression, &patient(), expected);
    }
}

/// `FAULT` where one is expected; else what was found, joined by blanks.
fn check(expression: &str, on: &Value, expected: &str) {
    let found = run(expression, on, Dialect::Standard);
    match found {
        Ok(found) => assert_eq!(found.join(" "), expected, "{expression}"),
        Err(fault) => assert_eq!("FAULT", expected, "{expression}: {fault}"),
    }
}

#[test]
fn numbers_are_exact() {
    for (expression, expected) in [
        ("value.value", "1.50"),
        ("value.value * 3", "4.50"),
        ("0.1 + 0.2 = 0.3", "true"),
        ("1.50 = 1.5", "true"),
        ("1.50 ~ 1.5", "true"),
        ("1.0 / 3.0 * 3.0 = 1", "false"),
        ("9223372036854775807 + 1", ""),
        ("7 / 0", ""),
        ("7 mod 0", ""),
        ("2.power(-1)", "0.5"),
        ("10.power(400)", ""),
        ("value = 1500 'mg'", "true"),
        ("value > 1.4 'g'", "true"),
        ("value > 1.4", ""),
        ("value > 1 'cm'", ""),
        ("value > 'a'", "FAULT"),
        ("37.0 'Cel' = 310.15 'K'", "true"),
        ("1 year = 12 months", "true"),
        ("1 'a' = 1 year", ""),
        ("(1 year).toQuantity('month')", "12 month"),
        ("@9999.highBoundary()", "9999-12-31"),
        ("79228162514264337593543950336.0", "FAULT"),
    ] {
        check(expression, &observation(), expected);
    }
}

#[test]
fn amounts_are_compared_in_one_unit_or_not_at_all() {
    let of = |low: &str, high: &str| -> Value {
        let text = format!(
            r#"{{"resourceType": "Observation", "referenceRange": [{{"low": {low}, "high": {high}}}]}}"#
        );
        serde_json::from_str(&text).expect("JSON")
    };
    let ucum = |value: &str, code: &str| {
        format!(r#"{{"value": {value}, "system": "http://unitsofmeasure.org", "code": "{code}"}}"#)
    };
    let grams = of(&ucum("1", "g"), &ucum("1000", "mg"));
    check("referenceRange.low = referenceRange.high", &grams, "true");
    check("referenceRange.low ~ referenceRange.high", &grams, "true");
    let words = of(r#"{"value": 1, "unit": "tablet"}"#, r#"{"value": 2, "unit": "tablet"}"#);
    check("referenceRange.low < referenceRange.high", &words, "true");
    check("referenceRange.low = 1", &words, "");
    let local = of(r#"{"value": 1, "system": "urn:x", "code": "g"}"#, &ucum("1", "g"));
    check("referenceRange.low < referenceRange.high", &local, "");
}

#[test]
fn what_is_sorted_stands_in_one_order() {
    let many = (1..60).map(|n| format!("{}", n * 37 % 61)).collect::<Vec<_>>().join(" | ");
    let sorted = run(&format!("({many}).sort()"), &patient(), Dialect::Standard).expect("sorted");
    assert!(sorted.iter().map(|text| text.parse::<u8>().expect("a number")).is_sorted());
    for (expression, expected) in [
        ("(@2024-02 | @2023 | @2024).sort()", "2023 2024 2024-02"),
        ("(2 'g' | 30 'mg' | 1 'g').sort(-$this)", "2 'g' 1 'g' 30 'mg'"),
        ("name.sort(-family).use", "maiden official"),
        ("(1 | 'a').sort()", "FAULT"),
        ("(1 'g' | 1 'cm').sort()", "FAULT"),
        ("name.sort($this)", "FAULT"),
    ] {
        check(expression, &patient(), expected);
    }
    // However the kinds are mixed, it is a fault and no panic.
    let mixed =
        (0..60).map(|n| if n % 3 == 0 { format!("'{n}'") } else { n.to_string() }).collect::<Vec<_>>();
    check(&format!("({}).sort()", mixed.join(" | ")), &patient(), "FAULT");
}

#[test]
fn dates_are_as_precise_as_they_were_written() {
    for (expression, expected) in [
        ("birthDate < @1980-03", "true"),
        ("birthDate < @1980-02-15", ""),
        ("birthDate = @1980-02-15", ""),
        ("birthDate ~ @1980-02-15", "false"),
        ("birthDate + 13 months", "1981-03"),
        ("birthDate + 1 day", "1980-02"),
        ("birthDate + 40 days", "1980-03"),
        ("@2024-01-31 + 1 month", "2024-02-29"),
        ("@2024-02-29 - 1 year", "2023-02-28"),
        ("@T23:30 + 45 minutes", "00:15"),
        ("@T12 + 1 day", ""),
        ("@9999-12-31 + 1 day", ""),
        ("@2024-13-01", "FAULT"),
        ("@2024-02-30", "FAULT"),
        ("deceased > @2026-01-01T04:00:00Z", "true"),
        ("deceased < @2026-01-01", "true"),
        ("deceased.toDate()", "2025-12-31"),
        ("now()", "2026-03-01T10:00:00.500Z"),
        ("today()", "2026-03-01"),
        ("birthDate + 5 'mg'", "FAULT"),
        ("birthDate + 5", "FAULT"),
        ("'2024-02-30'.toDate()", ""),
        ("birthDate.lowBoundary()", "1980-02-01"),
        ("birthDate.highBoundary()", "1980-02-29"),
        ("@2024-06-30T23:59:60Z.toString()", "2024-06-30T23:59:59Z"),
    ] {
        check(expression, &patient(), expected);
    }
}

#[test]
fn what_is_not_known_is_empty() {
    for (expression, expected) in [
        ("{} and false", "false"),
        ("{} and true", ""),
        ("{} or true", "true"),
        ("{} implies false", ""),
        ("false implies {}", "true"),
        ("{} xor true", ""),
        ("{}.not()", ""),
        ("iif({}, 1, 2)", "2"),
        ("name.given and true", "FAULT"),
        ("name.where({}).empty()", "true"),
        ("{}.allTrue()", "true"),
        ("false and (1 | 2).single()", "false"),
    ] {
        check(expression, &patient(), expected);
    }
}

#[test]
fn texts_count_in_characters() {
    for (expression, expected) in [
        ("name[0].family.length()", "11"),
        ("name[0].family.indexOf('L')", "7"),
        ("name[0].family.substring(6, 1)", "Ü"),
        ("name[0].family.lower()", "test-müller"),
        ("name[0].family ~ 'test-MÜLLER '", "true"),
        ("name[0].given.join('-')", "ANNA-Ön"),
        ("'a.b'.replace('.', '$1')", "a$1b"),
        ("'a1b'.replaceMatches('([0-9])', '<$1>')", "a<1>b"),
        ("'11/30/1972'.replaceMatches('([0-9]+)/([0-9]+)/[0-9]+', '$1x$2')", "11x30"),
        ("'+-5'.toInteger()", ""),
        ("'ab'.matches('a$')", "false"),
        ("'ab'.matches('(')", "FAULT"),
        ("'ab'.matches('(?=a)b')", "FAULT"),
        ("'x'.lastIndexOf('y')", "-1"),
        ("'zz'.decode('hex')", ""),
        ("'a'.encode('rot13')", "FAULT"),
        (r"'\u00e9'", "é"),
        (r"'\u12'", "FAULT"),
        (r"'\uD83D\uDE00'.unescape('json')", "FAULT"),
        (r"'\\ud83d\\ude00 \\q'.unescape('json')", "😀 \\q"),
    ] {
        check(expression, &patient(), expected);
    }
}

#[test]
fn mistakes_are_told_where_they_stand() {
    for (expression, expected) in [
        ("name.famly", "at 5: HumanName has no such element (did you mean family?)"),
        ("name.given.frist()", "at 11: no such function (did you mean first?)"),
        ("deceasedDateTime", "at 0: Patient has no such element (FHIRPath writes deceased.ofType(dateTime))"),
        ("Encounter.status", "at 0: Patient has no such element"),
        ("name.where(use = official)", "at 17: HumanName has no such element"),
        ("name.ofType(HumanNam)", "at 12: no such type (did you mean HumanName?)"),
        ("name.where()", "at 5: where() wants 1 arguments, not 0"),
        ("name.memberOf('x')", "at 5: memberOf() needs a terminology service, which Pons does not have"),
        ("children().first()", "at 11: what children() and descendants() find has no order to count in"),
        ("name..family", "at 5: expected a name after the point"),
        ("name.given)", "at 10: expected the end of the expression"),
        ("(name", "at 5: expected )"),
        ("'open", "at 0: a text that does not end"),
        ("name # given", "at 5: a sign that FHIRPath does not have"),
        ("%nobody", "at 0: no such variable"),
        ("name.single()", "at 5: one item is wanted here, not 2"),
        ("name as HumanName", "at 5: as wants one item, not several; ofType keeps those of a type"),
        ("conformsTo('urn:mine')", "at 0: conformsTo(): only the base resources of R4 are known"),
        ("", "at 0: expected an expression"),
    ] {
        let fault = run(expression, &patient(), Dialect::Standard).expect_err(expression);
        assert_eq!(fault.to_string(), expected, "{expression}");
    }
}

#[test]
fn the_dialect_of_r4_keeps_what_is_of_a_type() {
    let found = |text| run(text, &observation(), Dialect::R4).expect(text);
    assert_eq!(found("(component.value as integer)"), ["1", "2"]);
    assert_eq!(found("component.value.as(string)"), ["one"]);
    assert_eq!(found("children().first().exists()"), ["true"]);
}

#[test]
fn every_expression_of_r4_compiles() {
    let lines = |text: &'static str| text.lines().filter(|line| !line.starts_with('#'));
    let mut wrong = Vec::new();
    let mut count = 0;
    let mut compile = |on: &str, expression: &str| {
        count += 1;
        if let Err(fault) = Path::compile(expression, on, Dialect::R4) {
            wrong.push(format!("{on}: {fault}: {expression}"));
        }
    };
    for line in lines(include_str!("../../fhir/r4/search.txt")) {
        let parts: Vec<&str> = line.splitn(5, ' ').collect();
        compile(parts[2], parts[4]);
    }
    for line in lines(include_str!("../../fhir/r4/invariants.txt")) {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let of = r4().type_def(parts[0]).map(|of| of.name);
        let of = of.or_else(|| r4().element(parts[0])?.only_type().map(|of| of.name));
        compile(of.unwrap_or("Element"), parts[3]);
    }
    assert!(count > 1_600, "{count} expressions");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn variables_and_what_references_point_at_come_from_outside() {
    let (before, now) = (
        json!({"resourceType": "Encounter", "status": "planned"}),
        json!({"resourceType": "Encounter", "status": "finished"}),
    );
    let practitioner = json!({"resourceType": "Practitioner", "id": "7", "active": false});
    let resolve = |reference: &str| (reference == "Practitioner/7").then_some(&practitioner);
    let variables =
        [("previous", Some(Node::resource(&before).into())), ("event", Some("A03".into())), ("none", None)];
    let scope = Scope {
        variables: &variables,
        resolve: Some(&resolve),
        ..Scope::of(&now, NOW.parse().expect("a time"))
    };
    let text =
        "%previous.status != 'finished' and status = 'finished' and %event in ('A03') and %none.empty()";
    let path = Path::compile(text, "Encounter", Dialect::Standard).expect("compiles");
    assert_eq!(path.holds(&scope), Ok(true));
    let patient = patient();
    let scope = Scope { resolve: Some(&resolve), ..Scope::of(&patient, NOW.parse().expect("a time")) };
    let path = Path::compile("generalPractitioner.resolve().active", "Patient", Dialect::Standard)
        .expect("compiles");
    assert_eq!(path.holds(&scope), Ok(false));
}

#[test]
fn an_expression_cannot_take_for_ever() {
    let doubling = "(1|2|3|4|5|6|7|8|9|10|11|12|13|14|15|16|17|18|19|20|21|22|23|24|25|26|27|28|29|30|31|32|33|34|35|36|37|38|39|40)";
    for expression in [
        // A text of 2^40 bytes.
        format!("{doubling}.aggregate($total & $total, 'a')"),
        format!("{doubling}.aggregate($total.replace('a', 'aa'), 'a')"),
        format!("{doubling}.aggregate($total.combine($total), 1).count()"),
        format!(
            "{doubling}.select({doubling}.select({doubling}.select({doubling}.select({doubling})))).count()"
        ),
    ] {
        let fault = run(&expression, &patient(), Dialect::Standard).expect_err("bounded");
        assert!(fault.what.starts_with("more than 1000000 steps"), "{fault}");
    }
}

/// Whatever is deep is refused or runs, on a stack of 2 MiB as a worker has.
#[test]
fn an_expression_cannot_be_too_deep() {
    let deep = |count: usize| {
        [
            format!("{}1{}", "(".repeat(count), ")".repeat(count)),
            format!("{}1", "-".repeat(count)),
            format!("name{}", ".where(true)".repeat(count)),
            format!("1{}", " + 1".repeat(count)),
            format!("{}true{}", "iif(true, ".repeat(count), ")".repeat(count)),
            format!("name{}", "[0]".repeat(count)),
        ]
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        for count in [40, 480, 100_000] {
            for expression in deep(count) {
                let outcome = run(&expression, &patient(), Dialect::Standard);
                assert!(count < 100_000 || outcome.is_err(), "{}...", &expression[..20]);
            }
        }
    });
    thread.expect("a thread").join().expect("no overflow");
}

proptest::proptest! {
    /// No text makes the reader or the runner panic.
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z0-9 .,()'@$%{}|+<>=~!\\[\\]\\\\TZ:-]{0,60}") {
        let _ = run(&text, &patient(), Dialect::Standard);
    }

    /// Nor does any row of words of the language.
    #[test]
    fn any_words_are_read_or_refused(words in proptest::collection::vec(proptest::sample::select(vec![
        "name", "given", "birthDate", "deceased", ".", ".", "(", ")", "where(", "select(", "first()", "count()", "=", "+", "-",
        "and", "is", "as", "in", "|", "[0]", "1", "2.50", "'a'", "@2024-02", "@T10", "4 days", "3 'mg'", "$this", "%resource",
        "lowBoundary()", "highBoundary(6)", "toString()", "precision()", "substring(1", "repeat(", "sort(", "iif(", ",", "{}",
    ]), 0..14)) {
        let _ = run(&words.join(" "), &patient(), Dialect::Standard);
        let _ = run(&words.concat(), &observation(), Dialect::R4);
    }
}
