//! Certificates for tests, made on the spot.

use crate::tls::{ClientFiles, ClientTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use std::path::PathBuf;
use tempfile::TempDir;

/// An authority that signs certificates into files.
pub(crate) struct Authority {
    pub(crate) folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer =
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("written");
        Authority { folder, issuer }
    }

    /// Writes `<name>.pem` and `<name>.key`.
    pub(crate) fn sign(&self, name: &str, dns: &[&str], uris: &[&str], common_name: &str) {
        let mut params =
            CertificateParams::new(dns.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
                .expect("names");
        params
            .subject_alt_names
            .extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))));
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("written");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client that trusts this authority, with a certificate or without.
    pub(crate) fn client(&self, identity: Option<&str>) -> ClientTls {
        let identity =
            identity.map(|name| (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key"))));
        ClientTls::load(ClientFiles { ca: Some(self.path("ca.pem")), identity, server_name: None })
            .expect("files")
    }
}
