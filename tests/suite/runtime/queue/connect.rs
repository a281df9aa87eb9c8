//! Connecting to a queue between processes fails with one line. These tests need no server.

use std::sync::Arc;

use runspan::runtime::queue::{RedisQueue, RedisSettings};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::receiver::Authority;

#[tokio::test]
async fn a_wrong_url_is_one_error_without_its_password() {
    for url in [
        "",
        "localhost",
        "http://user:s3cret@host",
        "redis://",
        "redis://:s3cret@host/zero",
        "redis://:s3#cret@h",
        "redis://:12#s3cret@h",
        "rediss://:12#insecure@h",
        "redis://u:s3@cr/et@h",
        "redis://:s3@cret@h",
        "redis://u:12/s3cret@h",
        "redis://u:12?s3cret@h",
        "redis://u:12?user=s3cret@h",
        "redis://u:s3%cret@h",
        "redis://u:s3\tcret@h",
        "unix:///run/redis.sock?pass=s3#cret",
    ] {
        let error = RedisQueue::connect(url, RedisSettings::new("test")).await.unwrap_err();
        insta::allow_duplicates! {
            insta::assert_snapshot!(error, @"invalid queue URL: write redis://HOST:6379/0, or rediss:// for TLS, and with a password redis://USER:PASSWORD@HOST:6379/0, percent-encoded (@ as %40, / as %2F, ? as %3F, # as %23, % as %25)");
        }
    }
}

/// What is said when a server at this address is connected to.
async fn no_queue(url: &str, port: u16) -> String {
    let error = RedisQueue::connect(url, RedisSettings::new("test")).await.unwrap_err();
    error.to_string().replace(&format!(":{port}"), ":PORT")
}

#[tokio::test]
async fn a_server_that_is_silent_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = no_queue(&format!("redis://:s3cret@127.0.0.1:{port}"), port).await;
    insta::assert_snapshot!(error, @"cannot reach the queue at 127.0.0.1:PORT: no answer within 5s");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let stranger = TlsAcceptor::from(Arc::new(Authority::new().server()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server =
        tokio::spawn(async move { stranger.accept(listener.accept().await.unwrap().0).await.is_err() });
    // Without a provider of cryptography this would be a panic.
    let error = no_queue(&format!("rediss://127.0.0.1:{port}"), port).await;
    insta::assert_snapshot!(error, @"cannot reach the queue at 127.0.0.1:PORT: invalid peer certificate: UnknownIssuer");
    assert!(server.await.unwrap());
}
