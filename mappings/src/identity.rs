//! Who is who: a key found in a message becomes the id of a resource.

use sha1::{Digest, Sha1};
use uuid::Uuid;

/// The id of the resource of a type that a key names.
///
/// The name is `type`, `system` and `value`, each trimmed and prefixed by its length in bytes as four big-endian bytes, hashed
/// under the installation's secret namespace (UUIDv5). Frozen: stored resources depend on it.
pub fn id_of(namespace: Uuid, resource_type: &str, system: &str, value: &str) -> Uuid {
    let mut name = Sha1::new_with_prefix(namespace.as_bytes());
    for part in [resource_type, system, value] {
        let part = part.trim();
        name.update(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        name.update(part);
    }
    let hash = name.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_sha1_bytes(bytes).into_uuid()
}

/// The number of a message for MSH-10, which has room for 20 characters: the first 100 bits of its id, in Crockford's alphabet.
///
/// # Source
/// HL7 v2.5.1 section 2.15.9.10.
pub(crate) fn control_id(message: Uuid) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let bits = message.as_u128();
    (0..20).map(|digit| char::from(ALPHABET[(bits >> (123 - 5 * digit)) as usize & 31])).collect()
}

/// Several values as the one value of a key: parted by `|`, with `|` and `\` escaped, so that no two lists give the same text.
pub(crate) fn composite(value: &mut String, part: &str, first: bool) {
    if !first {
        value.push('|');
    }
    let part = part.trim();
    value.reserve(part.len() + 8);
    if !part.contains(['|', '\\']) {
        value.push_str(part);
        return;
    }
    for c in part.chars() {
        if matches!(c, '|' | '\\') {
            value.push('\\');
        }
        value.push(c);
    }
}

/// The system of identifiers that have no assigner: they belong to whoever sends them.
pub(crate) fn sender_system(authority: &str) -> String {
    let mut system = String::with_capacity(64);
    system.push_str("urn:pons:sender:");
    uri_part(&mut system, authority);
    system
}

/// The system of an assigner that nobody registered and that names itself by no universal id.
pub(crate) fn scoped_system(authority: &str, assigner: &str) -> String {
    let mut system = sender_system(authority);
    system.push(':');
    uri_part(&mut system, assigner);
    system
}

/// The name of an assigner as its sender wrote it, from [`scoped_system`]; `None` for any other system.
pub(crate) fn assigner(system: &str) -> Option<String> {
    let (_, name) = system.trim().strip_prefix("urn:pons:sender:")?.split_once(':')?;
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        let nibble =
            |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(if byte == b'%' { nibble(rest.next())? << 4 | nibble(rest.next())? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

/// Adds a text to a URI; what a URI does not hold is percent-encoded.
fn uri_part(uri: &mut String, text: &str) {
    for byte in text.trim().bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            uri.push(char::from(byte));
        } else {
            let hex = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble & 15)]);
            uri.extend(['%', hex(byte >> 4), hex(byte)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_frozen() {
        assert_eq!(
            id_of(Uuid::NAMESPACE_URL, "A", "b", "c"),
            Uuid::new_v5(&Uuid::NAMESPACE_URL, b"\0\0\0\x01A\0\0\0\x01b\0\0\0\x01c")
        );
        let space = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let check = |kind, system, value, expected: &str| {
            assert_eq!(id_of(space, kind, system, value).to_string(), expected, "{kind} {system} {value}");
        };
        check("Patient", "urn:oid:1.2.3", "TEST1", "6fda76e6-cef8-5e46-a27f-fc7a031dd07f");
        check("Patient", "urn:oid:1.2.3", " TEST1 ", "6fda76e6-cef8-5e46-a27f-fc7a031dd07f");
        check("Encounter", "urn:oid:1.2.3", "TEST1", "6ba88ebc-4614-559d-89a4-15c0750e159f");
        check("Patient", "urn:pons:sender:lab", "tést", "6a332c7a-e94a-5cea-a3d8-3be5cb393824");
    }

    #[test]
    fn the_borders_of_the_parts_count() {
        let space = Uuid::nil();
        assert_ne!(id_of(space, "Patient", "ab", "c"), id_of(space, "Patient", "a", "bc"));
        let composite_of = |parts: &[&str]| {
            let mut value = String::new();
            for (n, part) in parts.iter().enumerate() {
                composite(&mut value, part, n == 0);
            }
            value
        };
        assert_ne!(composite_of(&["a|b", "c"]), composite_of(&["a", "b|c"]));
        assert_ne!(composite_of(&["a\\", "b"]), composite_of(&["a\\|b"]));
    }

    #[test]
    fn a_system_made_of_a_name_is_a_uri() {
        assert_eq!(scoped_system("lab 1", "GEN/HOSP é"), "urn:pons:sender:lab%201:GEN%2FHOSP%20%C3%A9");
    }
}
