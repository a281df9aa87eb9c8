//! TLS for both transports, from the files that the configuration names.
//!
//! rustls checks the files for both, so that a wrong one is reported at startup with its variable.

use std::{fs, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::ClientError;
use crate::otlp::config::{Endpoint, PemFile, TlsFiles};

/// Trusted certificates and the client's own, read and checked.
pub(super) struct Tls {
    /// For reqwest, and the check that the files belong together.
    pub(super) rustls: ClientConfig,
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Reads the files. Without TLS at the endpoint it reads none and trusts no certificate.
    pub(super) fn load(endpoint: &Endpoint, files: &TlsFiles) -> Result<Self, ClientError> {
        let (mut roots, mut ca, mut identity) = (RootCertStore::empty(), None, None);
        if endpoint.is_tls() {
            ca = files.ca.as_ref().map(|file| read_roots(file, &mut roots)).transpose()?;
            if ca.is_none() {
                system_roots(&mut roots)?;
            }
            let client = files.client.as_ref();
            identity =
                client.map(|client| Ok((read(&client.certificate)?, read(&client.key)?))).transpose()?;
        }
        // An explicit provider: a process-wide default would be a side effect of a library.
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Setup(error.to_string()))?
            .with_root_certificates(roots);
        let rustls = match (&files.client, &identity) {
            (Some(client), Some((certificate, key))) => {
                let chain = certificates(&client.certificate, certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| ClientError::NoKey {
                    variable: client.key.variable.clone(),
                    path: client.key.path.clone(),
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| ClientError::Identity {
                    variable: client.certificate.variable.clone(),
                    path: client.certificate.path.clone(),
                    key_variable: client.key.variable.clone(),
                    problem: error.to_string(),
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Self { rustls, ca, identity })
    }

    /// The same for tonic, which wants PEM.
    pub(super) fn for_tonic(&self, endpoint: &Endpoint) -> ClientTlsConfig {
        let mut config = match &self.ca {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        // tonic would use the address with its brackets, which is not a server name.
        if let Some(url::Host::Ipv6(address)) = endpoint.as_url().host() {
            config = config.domain_name(address.to_string());
        }
        config
    }
}

fn read(file: &PemFile) -> Result<Vec<u8>, ClientError> {
    fs::read(&file.path).map_err(|source| ClientError::Unreadable {
        variable: file.variable.clone(),
        path: file.path.clone(),
        source,
    })
}

fn certificates(file: &PemFile, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(ClientError::NoCertificate {
            variable: file.variable.clone(),
            path: PathBuf::clone(&file.path),
        }),
    }
}

fn read_roots(file: &PemFile, roots: &mut RootCertStore) -> Result<Vec<u8>, ClientError> {
    let pem = read(file)?;
    let (added, _) = roots.add_parsable_certificates(certificates(file, &pem)?);
    if added == 0 {
        return Err(ClientError::NoCertificate { variable: file.variable.clone(), path: file.path.clone() });
    }
    Ok(pem)
}

fn system_roots(roots: &mut RootCertStore) -> Result<(), ClientError> {
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 { Err(ClientError::NoSystemRoots) } else { Ok(()) }
}
