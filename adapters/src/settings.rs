//! The settings of an adapter as data: one table a side, from which the reading of the configuration and its
//! documentation derive.
//!
//! Invariant: a default stands in the table alone; [`SettingsReader`] reads it by the same rules as what a person wrote.

use ipnet::IpNet;
use schemas::yaml::{Fields, Node, Place};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One key of a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The key as written.
    pub key: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds when it is left out.
    pub default: Fallback,
    /// One sentence for the documentation.
    pub help: &'static str,
}

/// What holds when a key is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must not be left out.
    Required,
    /// Nothing: the feature is off.
    Absent,
    /// This, as if written.
    Value(&'static str),
}

/// What may stand under a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// The name of a file, relative to the folder of the configuration file.
    File,
    /// `true` or `false`.
    Flag,
    /// A whole number from the first to the second.
    Count(u64, u64),
    /// A number of bytes; `KiB` and `MiB` may follow.
    Bytes(u64, u64),
    /// A span of time in `ms`, `s`, `min` or `h`, such as `30s`.
    Span(Duration, Duration),
    /// `ADDRESS:PORT` to listen on.
    Listen,
    /// `HOST:PORT` to connect to.
    HostPort,
    /// An `http:` or `https:` URL.
    Url,
    /// Texts, one or a list.
    Texts,
    /// Networks in CIDR notation.
    Networks,
    /// One byte in hexadecimal, such as `0x0B`.
    Byte,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `{file: NAME}` or `{env: NAME}`.
    Secret,
    /// A map with settings of its own.
    Map(&'static [Setting]),
}

impl Kind {
    /// The form in a few words, for documentation and for mistakes.
    pub fn expected(&self) -> String {
        match self {
            Kind::Text => "text".to_owned(),
            Kind::File => "a file name".to_owned(),
            Kind::Flag => "true or false".to_owned(),
            Kind::Count(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Bytes(min, max) => {
                format!("a number of bytes from {} to {}, such as 512KiB", bytes(*min), bytes(*max))
            }
            Kind::Span(min, max) => format!("a time from {} to {}, such as 30s", span(*min), span(*max)),
            Kind::Listen => "an address and a port, such as 127.0.0.1:2575".to_owned(),
            Kind::HostPort => "a host and a port, such as lab.example:2575".to_owned(),
            Kind::Url => "an http: or https: URL".to_owned(),
            Kind::Texts => "a text or a list of texts".to_owned(),
            Kind::Networks => "networks such as 10.1.0.0/16".to_owned(),
            Kind::Byte => "a byte such as 0x0B".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Secret => "{file: NAME} or {env: NAME}".to_owned(),
            Kind::Map(_) => "a map".to_owned(),
        }
    }
}

fn bytes(count: u64) -> String {
    match count {
        _ if count >= 1 << 20 && count.is_multiple_of(1 << 20) => format!("{}MiB", count >> 20),
        _ if count >= 1 << 10 && count.is_multiple_of(1 << 10) => format!("{}KiB", count >> 10),
        _ => count.to_string(),
    }
}

fn span(time: Duration) -> String {
    let ms = time.as_millis();
    match ms {
        _ if ms >= 3_600_000 && ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        _ if ms >= 1_000 && ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = number_and_unit(text);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn parse_span(text: &str) -> Option<Duration> {
    let (digits, unit) = number_and_unit(text);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(digits.parse::<u64>().ok()?.checked_mul(factor)?))
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits);
    (digits, unit.trim_start())
}

fn parse_byte(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// A host by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A DNS name, or an address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl HostPort {
    /// Those of a URL, whose scheme means `port` where it names none.
    pub(crate) fn of(url: &hyper::Uri, port: u16) -> Option<HostPort> {
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(HostPort { host, port: url.port_u16().unwrap_or(port) })
    }

    /// Whether this can only mean the machine itself.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => address,
            None if host.contains(':') => return Err(()),
            None => host,
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(named) {
            return Err(());
        }
        Ok(HostPort { host: host.to_owned(), port: port.parse().map_err(|_| ())? })
    }
}

/// Reads the keys of one settings table from a configuration. A mistake is noted and reading goes on with the
/// default, so that every mistake is told at once; [`SettingsReader::failed`] says whether there was one.
pub struct SettingsReader<'f, 'n, 'm> {
    fields: &'f mut Fields<'n, 'm>,
    table: &'static [Setting],
    folder: PathBuf,
    mistakes_before: usize,
}

impl<'f, 'n, 'm> SettingsReader<'f, 'n, 'm> {
    /// Begins to read the keys of `table` from `fields`; relative file names count from `folder`.
    pub fn new(fields: &'f mut Fields<'n, 'm>, table: &'static [Setting], folder: &Path) -> Self {
        let mistakes_before = fields.mistakes().len();
        SettingsReader { fields, table, folder: folder.to_owned(), mistakes_before }
    }

    /// Whether a mistake was noted since this reader began.
    pub fn failed(&mut self) -> bool {
        self.fields.mistakes().len() > self.mistakes_before
    }

    /// Where the map that is read begins.
    pub fn place(&self) -> Place {
        self.fields.place()
    }

    /// The folder from which relative file names count.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes a mistake that only a look at several keys shows.
    pub fn wrong(&mut self, key: &'static str, text: impl Into<String>) {
        let place = self.fields.take(key).map_or(self.fields.place(), |node| node.place);
        self.fields.wrong(place, key, text);
    }

    /// Whether a key stands there, whatever its value.
    pub fn is_given(&mut self, key: &'static str) -> bool {
        self.fields.take(key).is_some()
    }

    fn setting(&self, key: &'static str) -> &'static Setting {
        self.table
            .iter()
            .find(|setting| setting.key == key)
            .expect("every key that is read stands in its table")
    }

    /// The text under a key and where it stands, or the default.
    fn text_or_default(&mut self, key: &'static str) -> Option<String> {
        let setting = self.setting(key);
        let default = match setting.default {
            Fallback::Value(text) => Some(text.to_owned()),
            Fallback::Absent | Fallback::Required => None,
        };
        let node = match setting.default {
            Fallback::Required => self.fields.take_required(key),
            Fallback::Absent | Fallback::Value(_) => self.fields.take(key),
        };
        let Some(node) = node else { return default };
        match node.text() {
            Some(text) if !text.trim().is_empty() => Some(text.to_owned()),
            _ => {
                let expected = setting.kind.expected();
                self.fields.wrong(node.place, key, format!("expected {expected}, found {}", node.kind()));
                default
            }
        }
    }

    fn parsed<T>(&mut self, key: &'static str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.text_or_default(key)?;
        let parsed = parse(&text);
        if parsed.is_some() {
            return parsed;
        }
        let setting = self.setting(key);
        self.wrong(key, format!("expected {}", setting.kind.expected()));
        match setting.default {
            Fallback::Value(text) => parse(text),
            Fallback::Absent | Fallback::Required => None,
        }
    }

    /// Text under a key.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.text_or_default(key)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> bool {
        self.parsed(key, |text| text.parse().ok()).unwrap_or(false)
    }

    /// A whole number within the bounds of its row.
    pub fn count(&mut self, key: &'static str) -> usize {
        let Kind::Count(min, max) = self.setting(key).kind else { unreachable!("{key} is a count") };
        let within = |count: &u64| (min..=max).contains(count);
        let count = self.parsed(key, |text| text.parse().ok().filter(within)).unwrap_or(min);
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// A number of bytes within the bounds of its row.
    pub fn bytes(&mut self, key: &'static str) -> usize {
        let Kind::Bytes(min, max) = self.setting(key).kind else { unreachable!("{key} is in bytes") };
        let within = |count: &u64| (min..=max).contains(count);
        let count = self.parsed(key, |text| parse_bytes(text).filter(within)).unwrap_or(min);
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// A span of time within the bounds of its row.
    pub fn span(&mut self, key: &'static str) -> Duration {
        let Kind::Span(min, max) = self.setting(key).kind else { unreachable!("{key} is a time") };
        let within = |time: &Duration| (min..=max).contains(time);
        self.parsed(key, |text| parse_span(text).filter(within)).unwrap_or(min)
    }

    /// An address to listen on.
    pub fn listen(&mut self, key: &'static str) -> Option<SocketAddr> {
        self.parsed(key, |text| text.parse().ok())
    }

    /// A host and a port to connect to.
    pub fn host_port(&mut self, key: &'static str) -> Option<HostPort> {
        self.parsed(key, |text| text.parse().ok())
    }

    /// A URL with a host.
    pub fn url(&mut self, key: &'static str) -> Option<hyper::Uri> {
        let usable = |uri: &hyper::Uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        };
        self.parsed(key, |text| text.parse().ok().filter(usable))
    }

    /// Texts, one or a list; none if the key is left out.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        if self.setting(key).default == Fallback::Required {
            self.fields.take_required(key);
        }
        self.fields.take_texts(key).into_iter().map(str::to_owned).collect()
    }

    /// Networks; none if the key is left out.
    pub fn networks(&mut self, key: &'static str) -> Vec<IpNet> {
        let expected = self.setting(key).kind.expected();
        let mut networks = Vec::new();
        for text in self.fields.take_texts(key) {
            match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
                Ok(network) => networks.push(network),
                Err(_) => self.wrong(key, format!("expected {expected}")),
            }
        }
        networks
    }

    /// One byte.
    pub fn byte(&mut self, key: &'static str) -> u8 {
        self.parsed(key, parse_byte).unwrap_or(0)
    }

    /// One word of the choices of its row.
    pub fn choice(&mut self, key: &'static str) -> &'static str {
        let setting = self.setting(key);
        let Kind::Choice(words) = setting.kind else { unreachable!("{key} is a choice") };
        let Fallback::Value(default) = setting.default else { unreachable!("{key} has a default") };
        self.fields.take_choice(key, words).unwrap_or(default)
    }

    /// The name of a file, made absolute by the folder of the configuration.
    pub fn file(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text_or_default(key).map(|name| self.folder.join(name))
    }

    /// A secret that is kept in a file or in the environment, never in the configuration itself.
    pub fn secret(&mut self, key: &'static str) -> Option<Secret> {
        let node = self.fields.take(key)?;
        let path = self.fields.path_of(key);
        Secret::read(node, &path, &self.folder, self.fields.mistakes())
    }

    /// Reads a map with settings of its own, if it is there.
    pub fn map<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut SettingsReader) -> Option<T>,
    ) -> Option<T> {
        let Kind::Map(table) = self.setting(key).kind else { unreachable!("{key} is a map") };
        let node = self.fields.take(key)?;
        let path = self.fields.path_of(key);
        let mut fields = Fields::new(node, &path, self.fields.mistakes());
        let value = read(&mut SettingsReader::new(&mut fields, table, &self.folder));
        fields.finish();
        value
    }
}

/// Where a secret is kept. It is read anew each time it is needed, so that a rotated one takes effect without a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// The content of a file without its trailing line end.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl Secret {
    /// Reads `{file: NAME}` or `{env: NAME}`, and sees that there is something now.
    pub fn read(
        node: &Node,
        path: &str,
        folder: &Path,
        mistakes: &mut Vec<schemas::yaml::Mistake>,
    ) -> Option<Secret> {
        let mut fields = Fields::new(node, path, mistakes);
        let file = fields.take_text("file").map(|name| Secret::File(folder.join(name)));
        let env = fields.take_text("env").map(|name| Secret::Env(name.to_owned()));
        let secret = match (file, env) {
            (Some(secret), None) | (None, Some(secret)) => match secret.value() {
                Ok(_) => Some(secret),
                Err(error) => {
                    fields.mistakes().push(schemas::yaml::Mistake {
                        place: node.place,
                        key: path.to_owned(),
                        text: error.to_string(),
                    });
                    None
                }
            },
            _ => {
                fields.mistakes().push(schemas::yaml::Mistake {
                    place: node.place,
                    key: path.to_owned(),
                    text: "expected either {file: NAME} or {env: NAME}; a secret never stands in the configuration itself"
                        .to_owned(),
                });
                None
            }
        };
        fields.finish();
        secret
    }

    /// The secret itself.
    ///
    /// # Errors
    /// When the file cannot be read, the variable is not set, or nothing is there. The error names where, never what.
    pub fn value(&self) -> Result<String, SecretError> {
        let text = match self {
            Secret::File(path) => std::fs::read_to_string(path).map_err(|error| {
                SecretError(format!("cannot read the file {}: {}", path.display(), error.kind()))
            })?,
            Secret::Env(name) => std::env::var(name)
                .map_err(|_| SecretError(format!("the environment variable {name} is not set")))?,
        };
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(SecretError(match self {
                Secret::File(path) => format!("the file {} is empty", path.display()),
                Secret::Env(name) => format!("the environment variable {name} is empty"),
            }));
        }
        Ok(text.to_owned())
    }
}

/// Why a secret cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SecretError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_carry_their_unit() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512KiB", Some(1 << 19)),
            ("8 MiB", Some(8 << 20)),
            ("8MB", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(parse_bytes(text), expected, "{text}");
        }
        for (text, expected) in [
            ("250ms", Some(250)),
            ("8s", Some(8_000)),
            ("5 min", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("8", None),
            ("1.5s", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_span(text), expected.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn what_is_expected_is_said_in_the_form_that_is_taken() {
        for count in [1, 1_000, 1 << 10, 8 << 20, 3 << 30] {
            assert_eq!(parse_bytes(&bytes(count)), Some(count));
        }
        for time in [
            Duration::from_millis(250),
            Duration::from_secs(8),
            Duration::from_secs(60),
            Duration::from_secs(7_200),
        ] {
            assert_eq!(parse_span(&span(time)), Some(time));
        }
    }

    #[test]
    fn a_target_has_a_host_and_a_port() {
        for (text, host, loopback) in [
            ("lab.example:2575", "lab.example", false),
            ("localhost:1", "localhost", true),
            ("127.0.0.2:1", "127.0.0.2", true),
            ("[::1]:1", "::1", true),
            ("localhost.example:1", "localhost.example", false),
        ] {
            let target: HostPort = text.parse().expect(text);
            assert_eq!((target.host.as_str(), target.is_loopback()), (host, loopback), "{text}");
            assert_eq!(target.to_string(), text);
        }
        for text in ["lab", "lab:", ":1", "::1:1", "lab:70000", "la b:1", "user@lab:1", "[lab:1"] {
            assert_eq!(text.parse::<HostPort>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_secret_comes_from_its_file_without_the_line_end() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "s3cret\r\n").expect("written");
        std::fs::write(folder.path().join("empty"), "\n").expect("written");
        assert_eq!(Secret::File(folder.path().join("token")).value().as_deref(), Ok("s3cret"));
        assert!(Secret::File(folder.path().join("empty")).value().is_err());
        assert!(Secret::File(folder.path().join("absent")).value().is_err());
    }
}
