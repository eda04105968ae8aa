//! Values that stand in another form than FHIR's: numbers behind a comparator, encoded data.

use data_encoding::{BASE64, BASE64_MIME_PERMISSIVE, HEXLOWER_PERMISSIVE};
use std::borrow::Cow;

/// A comparator and the number after it.
pub(super) fn compared(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let comparator = ["<=", ">=", "<", ">"].into_iter().find(|comparator| text.starts_with(comparator))?;
    let number = text[comparator.len()..].trim();
    crate::json::number(number).map(|_| (&text[..comparator.len()], number))
}

/// Data in base64, from the encoding that ED-4 names, in small letters: `base64`, `hex`; of any other the text itself.
/// `None` where the data is not in that encoding.
pub(super) fn in_base64<'t>(text: &'t str, encoding: &str) -> Option<Cow<'t, str>> {
    let decoder = match encoding {
        "base64" if is_base64(text) => return Some(Cow::Borrowed(text)),
        "base64" => &BASE64_MIME_PERMISSIVE,
        "hex" => &HEXLOWER_PERMISSIVE,
        _ => return Some(Cow::Owned(BASE64.encode(text.as_bytes()))),
    };
    let data: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    Some(Cow::Owned(BASE64.encode(&decoder.decode(&data).ok()?)))
}

/// Whether a text is base64 as FHIR wants it: a report of some megabytes then passes as it stands.
fn is_base64(text: &str) -> bool {
    let mut decoded = [0; 3 << 10];
    let mut decodes = |part: &[u8]| {
        let length = BASE64.decode_len(part.len()).ok();
        length.is_some_and(|length| BASE64.decode_mut(part, &mut decoded[..length]).is_ok())
    };
    // Only its end may be padded.
    !text.trim_end_matches('=').contains('=') && text.as_bytes().chunks(4 << 10).all(&mut decodes)
}
