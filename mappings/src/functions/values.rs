//! Values that stand in another form than FHIR's: numbers behind a comparator, encoded data.

use data_encoding::{BASE64, BASE64_MIME_PERMISSIVE, HEXLOWER_PERMISSIVE};

/// A comparator and the number after it.
pub(super) fn compared(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let comparator = ["<=", ">=", "<", ">"].into_iter().find(|comparator| text.starts_with(comparator))?;
    let number = text[comparator.len()..].trim();
    crate::json::number(number).map(|_| (&text[..comparator.len()], number))
}

/// Data in base64, from the encoding that ED-4 names, in small letters: `base64`, `hex`; of any other the text itself.
/// `None` where the data is not in that encoding.
pub(super) fn in_base64(text: &str, encoding: &str) -> Option<String> {
    let decoder = match encoding {
        "base64" => &BASE64_MIME_PERMISSIVE,
        "hex" => &HEXLOWER_PERMISSIVE,
        _ => return Some(BASE64.encode(text.as_bytes())),
    };
    let data: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    Some(BASE64.encode(&decoder.decode(&data).ok()?))
}
