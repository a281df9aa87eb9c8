//! A certificate authority for one test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;

/// Signs certificates, and keeps the PEM files that a client is configured with.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    #[expect(clippy::new_without_default, reason = "a new one generates keys")]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().unwrap();
        // Nobody else's name: OpenSSL takes what has its signer's for signed by itself.
        params.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// Its own certificate, for clients that trust it.
    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A new client certificate and its key.
    pub fn client_files(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
        fs::write(self.path("client.pem"), certificate.pem()).unwrap();
        fs::write(self.path("client.key"), key.serialize_pem()).unwrap();
        (self.path("client.pem"), self.path("client.key"))
    }

    /// A new certificate for a server of that name, and its key.
    pub fn server_files(&self, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        fs::write(self.path("server.pem"), certificate.pem()).unwrap();
        fs::write(self.path("server.key"), key.serialize_pem()).unwrap();
        (self.path("server.pem"), self.path("server.key"))
    }

    /// The configuration of a server called `localhost`.
    pub fn server(&self) -> ServerConfig {
        self.server_named("localhost")
    }

    /// The configuration of a server with another name in its certificate.
    pub fn server_named(&self, name: &str) -> ServerConfig {
        self.server_with(name, WebPkiClientVerifier::no_client_auth())
    }

    /// The configuration of a server called `localhost` that wants client certificates of this authority.
    pub fn server_for_clients(&self) -> ServerConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        self.server_with("localhost", verifier)
    }

    /// The configuration of a server that identifies itself with the authority's own certificate.
    pub fn server_as_authority(&self) -> ServerConfig {
        let certificate = self.issuer.der().clone();
        server(certificate, self.issuer.key(), WebPkiClientVerifier::no_client_auth())
    }

    /// The configuration of a server called `localhost` whose certificate is signed by itself, and that certificate.
    pub fn self_signed() -> (ServerConfig, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let config = server(certificate.der().clone(), &key, WebPkiClientVerifier::no_client_auth());
        (config, certificate.pem())
    }

    fn server_with(
        &self,
        name: &str,
        verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    ) -> ServerConfig {
        let (certificate, key) = self.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
        server(certificate.der().clone(), &key, verifier)
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(self.directory.path()).join(file)
    }
}

fn server(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap()
}
