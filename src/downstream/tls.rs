//! Whom we trust: the certificates of the machine, and one file more where a dependency says so.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The certificate authorities that the machine trusts. Those that cannot be read are left out:
/// a broken one must not cut off the services that do not need it.
pub(super) fn machine_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(event = "tls.roots", %error, "some root certificates could not be read");
    }
    let mut roots = RootCertStore::empty();
    let (_added, _ignored) = roots.add_parsable_certificates(found.certs);
    roots
}

/// Adds the certificates of a PEM file.
///
/// # Errors
/// Why the file is of no use, and what it should hold.
pub(super) fn add_file(roots: &mut RootCertStore, file: &Path) -> Result<(), String> {
    let wrong = |why: String| {
        format!("ca_file {} {why}, it must hold certificates in PEM form", file.display())
    };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(format!("cannot be read ({error})")))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| wrong(format!("holds a certificate that is not valid ({error})")))?;
    }
    Ok(())
}

/// TLS 1.2 and 1.3 by `ring`, HTTP/2 where the service speaks it.
///
/// # Errors
/// The words of `rustls`.
pub(super) fn config(roots: RootCertStore) -> Result<ClientConfig, String> {
    // Named here, for the crate has no default provider and reqwest would panic without one.
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
