use super::*;
use crate::authority::Authority;
use crate::tls::{ClientFiles, ClientTls};
use std::io;
use tokio_rustls::client::TlsStream;

async fn connect(running: &Running, client: &ClientTls) -> io::Result<Peer<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(running.address()).await?;
    let target = format!("localhost:{}", running.address().port()).parse().expect("a target");
    Ok(Peer::new(client.connect(&target, stream).await?))
}

const SERVER: &str = "tls: {certificate: server.pem, key: server.key}";
const MUTUAL: &str = "tls: {certificate: server.pem, key: server.key, client_ca: ca.pem}";

#[tokio::test]
async fn messages_travel_over_tls_however_they_are_split() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "pons");
    let running = Running::start_in(SERVER, authority.folder.path()).await;
    let mut peer = connect(&running, &authority.client(None)).await.expect("a handshake");
    for byte in framed("OK1").chunks(7) {
        peer.send(byte).await;
    }
    assert_eq!(peer.answer().await, "AA OK1");
    let large = frame(&[message("OK2", ""), vec![b'x'; 3 << 20]].concat());
    peer.send(&[large, framed("AE3")].concat()).await;
    assert_eq!(peer.answer().await, "AA OK2");
    assert_eq!(peer.answer().await, "AE AE3");
    assert!(running.intake.received.lock().unwrap()[0].certificate_names.is_empty());
}

#[tokio::test]
async fn the_names_of_a_client_certificate_go_with_the_message() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "pons");
    authority.sign("lab", &["lab.test", "lab2.test"], &["urn:test:lab"], "Test Lab");
    let running = Running::start_in(MUTUAL, authority.folder.path()).await;
    let mut peer = connect(&running, &authority.client(Some("lab"))).await.expect("a handshake");
    peer.send(&framed("OK1")).await;
    assert_eq!(peer.answer().await, "AA OK1");
    let names = running.intake.received.lock().unwrap()[0].certificate_names.to_vec();
    assert_eq!(names, ["lab.test", "lab2.test", "urn:test:lab", "Test Lab"]);
}

#[tokio::test]
async fn a_client_without_a_right_certificate_gets_no_message_through() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.sign("server", &["localhost"], &[], "pons");
    stranger.sign("lab", &["lab.test"], &[], "Test Lab");
    let running = Running::start_in(MUTUAL, authority.folder.path()).await;
    let files = ClientFiles {
        ca: Some(authority.path("ca.pem")),
        identity: Some((stranger.path("lab.pem"), stranger.path("lab.key"))),
        server_name: None,
    };
    for client in [authority.client(None), ClientTls::load(files).expect("files")] {
        // In TLS 1.3 the client learns of it when it reads.
        if let Ok(mut peer) = connect(&running, &client).await {
            let _ = peer.stream.write_all(&framed("OK1")).await;
            assert_eq!(peer.answer().await, "closed");
        }
    }
    let mut plain = running.connect().await;
    plain.send(&framed("OK1")).await;
    let _ = plain.stream.shutdown().await;
    let mut rest = Vec::new();
    let _ = within(plain.stream.read_to_end(&mut rest)).await;
    assert!(!rest.contains(&0x0B), "no answer in plain text");
    assert!(running.intake.accepted().is_empty());

    let optional = format!("{}, client_certificate: optional}}", MUTUAL.trim_end_matches('}'));
    let running = Running::start_in(&optional, authority.folder.path()).await;
    let mut peer = connect(&running, &authority.client(None)).await.expect("a handshake");
    peer.send(&framed("OK1")).await;
    assert_eq!(peer.answer().await, "AA OK1");
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_open_connections_stay() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "pons");
    let files = crate::tls::ServerFiles {
        certificate: authority.path("server.pem"),
        key: authority.path("server.key"),
        client_ca: None,
        client_optional: false,
    };
    let server = crate::tls::ServerTls::load(files, &[]).expect("files");
    let handshake = async || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let target = "localhost:1".parse().expect("a target");
        let client = authority.client(None);
        let (near, far) = tokio::join!(client.connect(&target, near), server.accept(far));
        let near = near.expect("a handshake");
        let certificate = near.get_ref().1.peer_certificates().expect("one")[0].to_vec();
        (near, far.expect("a handshake"), certificate)
    };
    let (mut near, mut far, first) = handshake().await;
    authority.sign("server", &["localhost"], &[], "pons, anew");
    server.reload().expect("usable");
    let (_, _, second) = handshake().await;
    assert_ne!(first, second);
    far.write_all(b"still here").await.expect("open");
    let mut text = [0; 10];
    near.read_exact(&mut text).await.expect("open");
    assert_eq!(&text, b"still here");

    std::fs::write(authority.path("server.key"), "no key").expect("written");
    assert!(server.reload().is_err());
    assert_eq!(handshake().await.2, second, "what worked stays in use");
}

#[test]
fn unusable_certificate_files_are_mistakes_in_the_configuration() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "pons");
    authority.sign("other", &["localhost"], &[], "other");
    std::fs::write(authority.path("empty.pem"), "").expect("written");
    for (tls, expected) in [
        ("{certificate: absent.pem, key: server.key}", "absent.pem"),
        ("{certificate: empty.pem, key: server.key}", "no certificate in PEM form"),
        ("{certificate: server.pem, key: other.key}", "with key"),
        ("{certificate: server.pem}", "tls.key: is missing"),
        ("{certificate: server.pem, key: server.key, client_ca: absent.pem}", "absent.pem"),
        ("{certificate: server.pem, key: server.key, client_cert: optional}", "did you mean `client_ca`?"),
    ] {
        let config = format!("listen: 0.0.0.0:2575\ntls: {tls}");
        let mistakes = configured(&config, authority.folder.path()).expect_err(tls);
        assert_eq!(mistakes.len(), 1, "{tls}: {mistakes:?}");
        assert!(mistakes[0].to_string().contains(expected), "{tls}: {}", mistakes[0]);
    }
}
