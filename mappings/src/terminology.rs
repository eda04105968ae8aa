//! Whether codes are formed as their systems form them. What a code means, no table here knows.

/// The code system LOINC.
pub(crate) const LOINC: &str = "http://loinc.org";

/// No unit is longer; longer texts are not looked at.
const UNIT_MAX: usize = 100;

/// Whether a text is a unit of UCUM, with its capitals as they are.
pub(crate) fn is_unit(text: &str) -> bool {
    text.len() <= UNIT_MAX && octofhir_ucum::validate(text).is_ok()
}

/// Whether a text is formed like a code of LOINC: a number of up to seven digits, a hyphen and the check digit (modulo 10, as on
/// credit cards), or the code of a part (`LP`), an answer (`LA`), a list (`LL`) or a group (`LG`), which are not checked.
pub(crate) fn is_loinc(code: &str) -> bool {
    let Some((number, check)) = code.rsplit_once('-') else { return false };
    let of_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if check.len() != 1 || !of_digits(check) {
        return false;
    }
    if let Some(number) = ["LP", "LA", "LL", "LG"].iter().find_map(|kind| number.strip_prefix(kind)) {
        return !number.is_empty() && of_digits(number);
    }
    if number.is_empty() || number.len() > 7 || !of_digits(number) {
        return false;
    }
    let sum: u32 = number
        .bytes()
        .rev()
        .zip([2, 1].into_iter().cycle())
        .map(|(digit, times)| u32::from(digit - b'0') * times)
        .map(|product| product / 10 + product % 10)
        .sum();
    check.as_bytes().first().is_some_and(|check| (10 - sum % 10) % 10 == u32::from(check - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_digit_of_a_loinc_code_is_computed() {
        for code in ["718-7", "4544-3", "6690-2", "8302-2", "48767-8", "2160-0", "LP7839-6", "LA6115-4"] {
            assert!(is_loinc(code), "{code}");
        }
        for code in
            ["718-1", "7187", "718-", "-7", "718-77", "HB", "", "12345678-1", "7I8-7", "LP-1", "718–7"]
        {
            assert!(!is_loinc(code), "{code}");
        }
    }

    #[test]
    fn units_are_those_of_ucum() {
        let units = [
            "mg/dL",
            "g/dL",
            "mmol/L",
            "umol/L",
            "10*3/uL",
            "10*9/L",
            "%",
            "mm[Hg]",
            "[IU]/mL",
            "m[IU]/L",
            "U/L",
            "fL",
            "pg",
            "/min",
            "Cel",
            "kg/m2",
            "[pH]",
            "{titer}",
            "ng/mL{FEU}",
            "mL/min/{1.73_m2}",
            "s",
            "h",
            "d",
            "[in_i]",
            "[lb_av]",
            "/[HPF]",
            "meq/L",
            "mosm/kg",
            "1",
        ];
        for unit in units {
            assert!(is_unit(unit), "{unit}");
        }
        for text in
            ["mmHg", "x10E3/uL", "cells/uL", "sec", "mg / dL", "", "ratio", "mg//dL", "MG/DL!", "µmol/L"]
        {
            assert!(!is_unit(text), "{text}");
        }
        assert!(!is_unit(&"(".repeat(100_000)) && !is_unit(&"m.".repeat(50_000)));
    }

    proptest! {
        #[test]
        fn any_text_is_looked_at_without_a_panic(text in any::<String>(), unit in r"[a-zA-Z0-9\[\]{}().*/+^%-]{0,100}") {
            let _ = (is_unit(&text), is_unit(&unit), is_loinc(&text), is_loinc(&unit));
        }
    }
}
