//! TLS for every listener and every client: rustls with aws-lc-rs, certificates from files, taken up anew when the files
//! change.
//!
//! Invariant: a connection that stands is never touched by a reload, and files that cannot be used leave what worked
//! before in place. There is no setting that turns verification off.

use crate::settings::{Fallback, HostPort, Kind, Setting, SettingsReader};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How often a new connection looks whether the certificate files have changed.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// The keys of `tls:` on a listener.
pub const SERVER_SETTINGS: &[Setting] = &[
    Setting {
        key: "certificate",
        kind: Kind::File,
        default: Fallback::Required,
        help: "PEM file with the listener's certificate and its chain; taken up anew when it changes.",
    },
    Setting {
        key: "key",
        kind: Kind::File,
        default: Fallback::Required,
        help: "PEM file with the private key of the certificate.",
    },
    Setting {
        key: "client_ca",
        kind: Kind::File,
        default: Fallback::Absent,
        help: "PEM file with the authorities whose client certificates are taken; with it, clients are asked for one (mTLS).",
    },
    Setting {
        key: "client_certificate",
        kind: Kind::Choice(&["required", "optional"]),
        default: Fallback::Value("required"),
        help: "With `client_ca`: whether a client without a certificate is turned away.",
    },
];

/// The keys of `tls:` on a client.
pub const CLIENT_SETTINGS: &[Setting] = &[
    Setting {
        key: "ca",
        kind: Kind::File,
        default: Fallback::Absent,
        help: "PEM file with the authorities that are trusted to name the server; without it, those of the system.",
    },
    Setting {
        key: "certificate",
        kind: Kind::File,
        default: Fallback::Absent,
        help: "PEM file with a client certificate and its chain (mTLS); needs `key`.",
    },
    Setting {
        key: "key",
        kind: Kind::File,
        default: Fallback::Absent,
        help: "PEM file with the private key of the client certificate.",
    },
    Setting {
        key: "server_name",
        kind: Kind::Text,
        default: Fallback::Absent,
        help: "The name that the server's certificate must bear, if it is not the host that is connected to.",
    },
];

/// Why TLS cannot be set up; names the file and what is wrong with it, never its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

/// The files of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Certificate and chain, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM; with them clients are asked for one.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is taken all the same.
    pub client_optional: bool,
}

/// TLS of a listener. Cheap to clone; clones share their certificates.
#[derive(Clone, Debug)]
pub struct ServerTls {
    current: Arc<Reloaded<ServerConfig>>,
    asks_clients: bool,
}

impl ServerTls {
    /// Loads the files. `alpn` is the protocols offered, such as `http/1.1`; none for MLLP.
    ///
    /// # Errors
    /// When a file is missing, is not PEM, or key and certificate do not belong together.
    pub fn load(files: ServerFiles, alpn: &'static [&'static str]) -> Result<Self, TlsError> {
        let asks_clients = files.client_ca.is_some();
        let watched = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        let watched = watched.into_iter().flatten().cloned().collect();
        let current = Reloaded::load(watched, Box::new(move || server_config(&files, alpn)))?;
        Ok(ServerTls { current: Arc::new(current), asks_clients })
    }

    /// Reads the keys of [`SERVER_SETTINGS`] and loads the files they name; every mistake goes to the reader.
    pub fn read(settings: &mut SettingsReader, alpn: &'static [&'static str]) -> Option<Self> {
        let (certificate, key) = (settings.file("certificate"), settings.file("key"));
        let client_ca = settings.file("client_ca");
        let client_optional = settings.choice("client_certificate") == "optional";
        let files = ServerFiles { certificate: certificate?, key: key?, client_ca, client_optional };
        Self::load(files, alpn).map_err(|error| settings.wrong("certificate", error.to_string())).ok()
    }

    /// Whether clients are asked for a certificate.
    pub fn asks_clients(&self) -> bool {
        self.asks_clients
    }

    /// Shakes hands with a client that has connected. The caller bounds the time.
    ///
    /// # Errors
    /// Whatever ends a handshake: no TLS, no common version, a certificate that is not taken.
    pub async fn accept<S>(&self, stream: S) -> std::io::Result<tokio_rustls::server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(self.current.get()).accept(stream).await
    }

    /// Looks at the files now, as a new connection does from time to time; for SIGHUP.
    ///
    /// # Errors
    /// When they changed and cannot be used; the former ones stay in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.reload()
    }
}

/// The names that a client proved to bear: DNS names, then URIs, then common names of its certificate. Empty without one.
pub fn client_names<S>(stream: &tokio_rustls::server::TlsStream<S>) -> Arc<[String]> {
    let certificates = stream.get_ref().1.peer_certificates();
    certificates.and_then(<[_]>::first).map(certificate_names).unwrap_or_default().into()
}

fn certificate_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        let general = &alternative.value.general_names;
        names.extend(general.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        }));
        names.extend(general.iter().filter_map(|name| match name {
            GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        }));
    }
    let common = certificate.subject().iter_common_name();
    names.extend(common.filter_map(|name| name.as_str().ok().map(str::to_owned)));
    names
}

/// The files of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFiles {
    /// Trusted authorities, PEM; those of the system without it.
    pub ca: Option<PathBuf>,
    /// Client certificate with its chain, and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server must bear, if it is not its host.
    pub server_name: Option<String>,
}

/// TLS of a client. Cheap to clone; clones share their certificates.
#[derive(Clone, Debug)]
pub struct ClientTls {
    current: Arc<Reloaded<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
}

impl ClientTls {
    /// Loads the files.
    ///
    /// # Errors
    /// When a file is missing or unusable, no authority is known, or the server's name is none.
    pub fn load(files: ClientFiles) -> Result<Self, TlsError> {
        let server_name = match &files.server_name {
            None => None,
            Some(name) => {
                let name = ServerName::try_from(name.clone());
                Some(name.map_err(|_| {
                    TlsError("the server name is neither a DNS name nor an address".to_owned())
                })?)
            }
        };
        let mut watched: Vec<PathBuf> = files.ca.iter().cloned().collect();
        if let Some((certificate, key)) = &files.identity {
            watched.extend([certificate.clone(), key.clone()]);
        }
        let current = Reloaded::load(watched, Box::new(move || client_config(&files)))?;
        Ok(ClientTls { current: Arc::new(current), server_name })
    }

    /// What the system trusts, read once for all.
    pub(crate) fn of_system() -> Result<Self, String> {
        static LOADED: OnceLock<ClientTls> = OnceLock::new();
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded.clone());
        }
        let loaded = ClientTls::load(ClientFiles::default()).map_err(|error| error.to_string())?;
        Ok(LOADED.get_or_init(|| loaded).clone())
    }

    /// Reads the keys of [`CLIENT_SETTINGS`] and loads the files they name; every mistake goes to the reader.
    pub fn read(settings: &mut SettingsReader) -> Option<Self> {
        let (ca, server_name) = (settings.file("ca"), settings.text("server_name"));
        let identity = match (settings.file("certificate"), settings.file("key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                settings.wrong("certificate", "needs `key` beside it");
                return None;
            }
            (None, Some(_)) => {
                settings.wrong("key", "needs `certificate` beside it");
                return None;
            }
        };
        let files = ClientFiles { ca, identity, server_name };
        Self::load(files).map_err(|error| settings.wrong("ca", error.to_string())).ok()
    }

    /// Shakes hands with a server. The caller bounds the time.
    ///
    /// # Errors
    /// Whatever ends a handshake: no TLS, a certificate that is not trusted or names somebody else.
    pub async fn connect<S>(
        &self,
        target: &HostPort,
        stream: S,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(target.host.clone())
                .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?,
        };
        TlsConnector::from(self.current.get()).connect(name, stream).await
    }
}

fn server_config(files: &ServerFiles, alpn: &[&str]) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(authorities(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if files.client_optional { verifier.allow_unauthenticated() } else { verifier };
            let verifier =
                verifier.build().map_err(|error| TlsError(format!("{}: {error}", ca.display())))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(certificates(&files.certificate)?, private_key(&files.key)?)
        .map_err(|error| pair_error(&files.certificate, &files.key, &error))?;
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(config)
}

fn client_config(files: &ClientFiles) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = match &files.ca {
        Some(ca) => authorities(ca)?,
        None => system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(error.to_string()))?
        .with_root_certificates(roots);
    match &files.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| pair_error(certificate, key, &error)),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |error: &dyn std::fmt::Display| TlsError(format!("{}: {error}", path.display()));
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| unusable(&error))?;
    if certificates.is_empty() {
        return Err(unusable(&"no certificate in PEM form is in it"));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError(format!("{}: {error}", path.display())))
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError(format!("{}: {error}", path.display())))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(TlsError("the system has no trusted authorities: name a file under `ca`".to_owned()));
    }
    Ok(roots)
}

fn pair_error(certificate: &Path, key: &Path, error: &rustls::Error) -> TlsError {
    TlsError(format!("{} with key {}: {error}", certificate.display(), key.display()))
}

/// What was made of some files, made anew when they change.
struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    stamps: Vec<Option<(SystemTime, u64)>>,
    looked: Instant,
}

impl<T> Reloaded<T> {
    fn load(
        files: Vec<PathBuf>,
        make: Box<dyn Fn() -> Result<T, TlsError> + Send + Sync>,
    ) -> Result<Self, TlsError> {
        // Stamps are taken before the files are read: a change in between is seen as one later.
        let stamps = stamps(&files);
        let state = State { value: Arc::new(make()?), stamps, looked: Instant::now() };
        Ok(Reloaded { files, make, state: Mutex::new(state) })
    }

    /// The present value; looks at the files first if the last look is long ago.
    fn get(&self) -> Arc<T> {
        let due = self.lock().looked.elapsed() >= CHECK_EVERY;
        if due && let Err(error) = self.reload() {
            tracing::warn!(%error, "new certificate files cannot be used: the former ones stay in use");
        }
        Arc::clone(&self.lock().value)
    }

    fn reload(&self) -> Result<(), TlsError> {
        let stamps = stamps(&self.files);
        {
            let mut state = self.lock();
            state.looked = Instant::now();
            if state.stamps == stamps {
                return Ok(());
            }
            // Taken down even if the files turn out unusable, so that each change is told once.
            state.stamps = stamps;
        }
        let value = Arc::new((self.make)()?);
        self.lock().value = value;
        tracing::info!(files = ?self.files, "certificates taken up anew");
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> std::fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    files.iter().map(stamp).collect()
}
