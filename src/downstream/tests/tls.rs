//! TLS, against a server whose certificate only the test's own authority vouches for.
//!
//! `localhost.pem` holds a certificate and key made for this test alone, `authority.pem` who
//! signed it (whose key was thrown away).

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::*;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/downstream/tests").join(name)
}

/// Answers two connections from a thread of its own.
fn serve() -> String {
    let certificate = CertificateDer::from_pem_file(file("localhost.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("localhost.pem")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let mut stream =
                StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream.unwrap());
            // A client that does not trust us ends here.
            if stream.read(&mut [0; 4096]).is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue").unwrap();
            }
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn a_service_is_trusted_by_its_authority_and_not_without() {
    let url = serve();
    let mut get = post();
    get.method = "GET".into();
    let known = downstream(Settings { ca_file: Some(file("authority.pem")), ..settings(&url) });
    let trusted = known.call(&get, &request("r-1"), false, AMPLE).await;
    assert_eq!(trusted, Ok(Some("true".into())));

    let mut roots = rustls::RootCertStore::empty();
    crate::downstream::tls::add_file(&mut roots, &file("localhost.pem")).unwrap();
    let stranger = Dependency::new("geocoder", &settings(&url), roots).unwrap();
    let (error, _) =
        transient(stranger.call(&get, &request("r-1"), false, AMPLE).await.unwrap_err());
    assert!(
        error.starts_with("GET to geocoder could not connect: invalid peer certificate"),
        "{error}"
    );
}

#[test]
fn a_certificate_file_of_no_use_is_named() {
    for (path, why) in [("missing.pem", "cannot be read"), ("tls.rs", "holds no certificate")] {
        let wrong = Settings { ca_file: Some(file(path)), ..settings("https://localhost") };
        let error = Downstream::new(&BTreeMap::from([("geocoder".to_owned(), wrong)]))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("dependencies.geocoder: ca_file "), "{error}");
        assert!(error.contains(path) && error.contains(why), "{error}");
    }
}
