//! A second opinion in tests: the typed R4B models of fhir-sdk, which nobody here wrote.
//!
//! The only place that names fhir-sdk. It is heavy to compile, so it stands behind the feature `typed`, has one
//! deserializer, and exports plain functions.

use fhir_sdk::r4b::resources::Resource;
use serde::de::value::{Error, MapDeserializer, SeqDeserializer};
use serde::de::{Deserialize, Deserializer, IntoDeserializer, Visitor};
use serde_json::Value;

/// Reads a resource into the typed models, writes it again and compares.
///
/// Numbers compare by their value, as the models hold decimals as floats; times as instants.
///
/// # Errors
/// The place of the first difference as a FHIRPath, never a value: what the models do not take, or do not give back. R4B
/// is not R4 in a few resources (`Evidence`, `Medication`'s relatives); those are not judged rightly here.
pub fn check(json: &[u8]) -> Result<(), String> {
    let value: Value = serde_json::from_slice(json).map_err(|_| "not JSON".to_owned())?;
    let name = value.get("resourceType").and_then(Value::as_str).unwrap_or("Resource").to_owned();
    let Some(resource) = read(&value) else {
        return Err(format!("{}: the R4B models do not take it", culprit(&value, name)));
    };
    let again =
        serde_json::to_value(&resource).map_err(|_| format!("{name}: the R4B models do not write it"))?;
    match difference(&value, &again, &name) {
        Some(path) => Err(format!("{path}: the R4B models give back something else")),
        None => Ok(()),
    }
}

fn read(value: &Value) -> Option<Resource> {
    Resource::deserialize(Plain(value)).ok()
}

/// The innermost place without which the models take the resource. serde's own message would hold the value.
fn culprit(value: &Value, path: String) -> String {
    if let Some(entries) = value.get("entry").and_then(Value::as_array) {
        for (index, entry) in entries.iter().enumerate() {
            if let Some(resource) = entry.get("resource").filter(|resource| read(resource).is_none()) {
                return culprit(resource, format!("{path}.entry[{index}].resource"));
            }
        }
    }
    let Value::Object(object) = value else { return path };
    let blamed = object.keys().filter(|name| *name != "resourceType").find(|name| {
        let mut without = object.clone();
        without.shift_remove(*name);
        read(&Value::Object(without)).is_some()
    });
    blamed.map_or(path.clone(), |name| format!("{path}.{name}"))
}

/// The first place where two JSON values differ.
fn difference(a: &Value, b: &Value, path: &str) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
            names.into_iter().find_map(|name| {
                let path = format!("{path}.{name}");
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => difference(a, b, &path),
                    _ => Some(path),
                }
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(index, (a, b))| difference(a, b, &format!("{path}[{index}]"))),
        (Value::Number(a), Value::Number(b)) => (a.as_f64() != b.as_f64()).then(|| path.to_owned()),
        (Value::String(a), Value::String(b)) => (a != b && !same_time(a, b)).then(|| path.to_owned()),
        _ => (a != b).then(|| path.to_owned()),
    }
}

/// The models write times in their own way, without idle zeros.
fn same_time(a: &str, b: &str) -> bool {
    let time = |text: &str| text.parse::<jiff::civil::Time>().ok();
    let instant = |text: &str| text.parse::<jiff::Timestamp>().ok();
    match (instant(a), instant(b)) {
        (Some(a), Some(b)) => a == b,
        _ => time(a).is_some() && time(a) == time(b),
    }
}

/// JSON as plain values. With `arbitrary_precision` serde_json hands numbers on as maps, which `flatten` and `tag` in the
/// models cannot read.
#[derive(Clone, Copy)]
struct Plain<'a>(&'a Value);

impl<'de> IntoDeserializer<'de, Error> for Plain<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Plain<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter().map(Plain))),
            Value::Object(object) => visitor.visit_map(MapDeserializer::new(
                object.iter().map(|(name, value)| (name.as_str(), Plain(value))),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self.0.as_str().unwrap_or_default().into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bundle() -> Value {
        json!({"resourceType": "Bundle", "type": "transaction", "entry": [
            {"fullUrl": "urn:uuid:00000001-1111-4111-8111-111111111111", "request": {"method": "PUT", "url": "Patient/p1"}, "resource": {
                "resourceType": "Patient", "id": "p1", "name": [{"family": "TEST", "given": ["JANE"]}], "gender": "female",
                "birthDate": "1980-02", "deceasedBoolean": false, "meta": {"lastUpdated": "2020-01-01T10:00:00.000+01:00"},
                "contained": [{"resourceType": "Practitioner", "id": "gp", "name": [{"family": "TEST"}]}],
                "_birthDate": {"extension": [{"url": "http://example.org/y", "valueDateTime": "1980-02-28T10:00:00Z"}]}}},
            {"request": {"method": "POST", "url": "Observation"}, "resource": {
                "resourceType": "Observation", "status": "final", "code": {"text": "TEST"},
                "valueQuantity": {"value": 13.20, "unit": "g/dL"}, "component": [{"code": {"text": "TEST"}, "valueInteger": 3}]}}
        ]})
    }

    fn check_changed(pointer: &str, value: Value, expected: &str) {
        let mut changed = bundle();
        let (around, name) = pointer.rsplit_once('/').expect("a pointer");
        changed
            .pointer_mut(around)
            .and_then(Value::as_object_mut)
            .expect("an object")
            .insert(name.to_owned(), value);
        let found = check(changed.to_string().as_bytes()).expect_err(pointer);
        assert_eq!(found, expected, "{pointer}");
    }

    #[test]
    fn the_same_time_may_be_written_otherwise() {
        for (a, b, same) in [
            ("22:31:00.0000", "22:31:00", true),
            ("22:31:00", "22:31:01", false),
            ("2024-02-29T10:00:00+01:00", "2024-02-29T09:00:00Z", true),
            ("TEST", "TEST ", false),
        ] {
            assert_eq!(same_time(a, b), same, "{a} {b}");
        }
    }

    #[test]
    fn a_right_bundle_comes_back_as_it_went() {
        assert_eq!(check(bundle().to_string().as_bytes()), Ok(()));
    }

    #[test]
    fn what_is_not_taken_or_not_given_back_is_named_by_its_place() {
        let (lost, refused) = ("the R4B models give back something else", "the R4B models do not take it");
        check_changed(
            "/entry/0/resource/nam",
            json!("SECRET"),
            &format!("Bundle.entry[0].resource.nam: {lost}"),
        );
        check_changed(
            "/entry/1/resource/valueQuantity/amount",
            json!(1),
            &format!("Bundle.entry[1].resource.valueQuantity.amount: {lost}"),
        );
        check_changed(
            "/entry/0/resource/name",
            json!("SECRET"),
            &format!("Bundle.entry[0].resource.name: {refused}"),
        );
        check_changed(
            "/entry/0/resource/birthDate",
            json!("SECRET"),
            &format!("Bundle.entry[0].resource.birthDate: {refused}"),
        );
        check_changed(
            "/entry/1/resource/valueQuantity",
            json!({"value": "SECRET"}),
            &format!("Bundle.entry[1].resource.valueQuantity: {lost}"),
        );
        assert_eq!(check(b"SECRET"), Err("not JSON".to_owned()));
        assert!(check(br#"{"resourceType": "HumanName"}"#).is_err());
    }
}
