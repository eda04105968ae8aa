use super::*;
use crate::authority::Authority;
use crate::tests::{destination, outgoing};
use crate::{DeliverError, Destination, Receipt};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it comes in time")
}

/// A web server whose answers the test writes, and a destination that posts to it.
struct Pair {
    listener: TcpListener,
    destination: Arc<dyn Destination>,
}

impl Pair {
    async fn new(config: &str) -> Pair {
        Pair::new_in(config, Path::new(".")).await
    }

    async fn new_in(config: &str, folder: &Path) -> Pair {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let config = format!("url: http://127.0.0.1:{port}/events?to=lab\n{config}");
        let destination = destination("rest-hook", &config, folder).expect("a right configuration");
        Pair { listener, destination }
    }

    async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.expect("a connection").0
    }

    /// Delivers over a new connection that is answered with `answer`; gives the request too.
    async fn deliver(&self, answer: &str) -> (Result<Receipt, DeliverError>, String) {
        let outgoing = outgoing("TEST1");
        let other_side = async {
            let mut stream = self.accept().await;
            let request = request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.expect("open");
            stream.shutdown().await.expect("open");
            request
        };
        within(async { tokio::join!(self.destination.deliver(&outgoing), other_side) }).await
    }
}

/// Reads one request with a body of `Content-Length`.
async fn request<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let count = within(stream.read(&mut buffer)).await.expect("open");
        assert_ne!(count, 0, "a request comes whole: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
            if body.len() == length.parse::<usize>().expect("a number") {
                return text;
            }
        }
    }
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: &str) {
    stream.write_all(answer.as_bytes()).await.expect("open");
    stream.flush().await.expect("open");
}

fn again(answer: &str, after: Option<u64>, away: bool) -> Result<Receipt, DeliverError> {
    Err(DeliverError::Again { answer: answer.to_owned(), after: after.map(Duration::from_secs), away })
}

#[tokio::test]
async fn a_bundle_is_posted_with_the_delivery_id_and_nothing_of_the_patient_in_headers() {
    let pair = Pair::new("").await;
    let (delivered, request) = pair.deliver("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(delivered, Ok(Receipt { answer: "HTTP 204".to_owned() }));
    let port = pair.listener.local_addr().expect("bound").port();
    let expected = format!(
        "POST /events?to=lab HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/fhir+json\r\n\
         user-agent: pons/{}\r\nidempotency-key: 00000000-0000-0000-0000-000000000007\r\ncontent-length: 42\r\n\r\n\
         {{\"resourceType\":\"Bundle\",\"type\":\"history\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(request, expected);
}

#[tokio::test]
async fn trace_and_token_go_along() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("token"), "s3cret\n").expect("written");
    let pair = Pair::new_in("bearer: {file: token}", folder.path()).await;
    let mut traced = outgoing("TEST1");
    traced.traceparent = Some("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01".to_owned());
    let (delivered, request) = within(async {
        tokio::join!(pair.destination.deliver(&traced), async {
            let mut stream = pair.accept().await;
            let request = request(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            request
        })
    })
    .await;
    assert!(delivered.is_ok());
    assert!(
        request.contains("\r\ntraceparent: 00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\r\n"),
        "{request}"
    );
    assert!(request.contains("\r\nauthorization: Bearer s3cret\r\n"), "{request}");
    assert!(!format!("{:?}", pair.destination).contains("s3cret"));
}

#[tokio::test]
async fn each_status_means_what_becomes_of_the_delivery() {
    let pair = Pair::new("retry_after_max: 100s").await;
    for (head, expected) in [
        ("200 OK", Ok(Receipt { answer: "HTTP 200".to_owned() })),
        ("202 Accepted", Ok(Receipt { answer: "HTTP 202".to_owned() })),
        ("400 Bad Request", Err(DeliverError::Never { answer: "HTTP 400".to_owned() })),
        ("401 Unauthorized", again("HTTP 401", None, true)),
        ("404 Not Found", Err(DeliverError::Never { answer: "HTTP 404".to_owned() })),
        ("408 Request Timeout", again("HTTP 408", None, false)),
        ("422 Unprocessable Content", Err(DeliverError::Never { answer: "HTTP 422".to_owned() })),
        ("429 Too Many Requests\r\nretry-after: 7", again("HTTP 429", Some(7), true)),
        ("500 Internal Server Error", again("HTTP 500", None, false)),
        ("503 Service Unavailable", again("HTTP 503", None, true)),
        ("503 Service Unavailable\r\nretry-after: 7000", again("HTTP 503", Some(100), true)),
        (
            "503 Service Unavailable\r\nretry-after: Fri, 01 Jan 2100 00:00:00 GMT",
            again("HTTP 503", Some(100), true),
        ),
        (
            "503 Service Unavailable\r\nretry-after: Wed, 01 Jan 2020 00:00:00 GMT",
            again("HTTP 503", Some(0), true),
        ),
        ("503 Service Unavailable\r\nretry-after: soon", again("HTTP 503", None, true)),
        (
            "302 Found\r\nlocation: http://127.0.0.1:1/",
            Err(DeliverError::Never {
                answer: "HTTP 302: redirects are not followed, name the right URL".to_owned(),
            }),
        ),
    ] {
        let (delivered, _) = pair.deliver(&format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(delivered, expected, "{head}");
    }
}

#[tokio::test]
async fn a_notification_goes_as_a_fhir_message_and_the_response_code_says_what_becomes_of_it() {
    let mut pair = Pair::new("").await;
    let port = pair.listener.local_addr().expect("bound").port();
    let hook = |url: &str| Hook {
        url: url.parse().expect("a URL"),
        headers: hyper::HeaderMap::new(),
        answer_timeout: Duration::from_secs(5),
        tls: None,
        is_public: false,
        message_from: Some("https://pons.test/fhir".to_owned()),
    };
    pair.destination = super::hook(hook(&format!("http://127.0.0.1:{port}/base/"))).expect("right");
    let (delivered, request) = pair.deliver("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(delivered, Ok(Receipt { answer: "HTTP 204".to_owned() }));
    assert!(request.starts_with("POST /base/$process-message HTTP/1.1\r\n"), "{request}");
    let (_, body) = request.split_once("\r\n\r\n").expect("a body");
    let message: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(schemas::fhir::validate(&message), [], "{message}");
    assert_eq!(message["type"], "message");
    let header = &message["entry"][0]["resource"];
    assert_eq!(header["source"]["endpoint"], "https://pons.test/fhir");
    assert_eq!(header["destination"][0]["endpoint"], format!("http://127.0.0.1:{port}/base/"));
    assert_eq!(header["focus"][0]["reference"], message["entry"][1]["fullUrl"]);
    assert_eq!(message["entry"][1]["resource"]["type"], "history");
    let (_, again_request) = pair.deliver("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(again_request, request, "every attempt sends the same");

    let never = |answer: &str| Err(DeliverError::Never { answer: answer.to_owned() });
    let taken = |answer: &str| Ok(Receipt { answer: answer.to_owned() });
    let of = |code: &str| {
        format!(
            r#"{{"resourceType":"Bundle","type":"message","entry":[{{"resource":{{"resourceType":"MessageHeader","response":{{"identifier":"x","code":"{code}"}}}}}}]}}"#
        )
    };
    for (body, expected) in [
        (of("ok"), taken("HTTP 200, response ok")),
        (of("fatal-error"), never("HTTP 200, response fatal-error")),
        (of("transient-error"), again("HTTP 200, response transient-error", None, false)),
        (of("new"), taken("HTTP 200")),
        ("{\"entry\":[{}]}".to_owned(), taken("HTTP 200")),
        ("rubbish".to_owned(), taken("HTTP 200")),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert_eq!(pair.deliver(&answer).await.0, expected, "{body}");
    }
    let unread = again("HTTP 200, a response that could not be read to its end", None, false);
    let long = "x".repeat(70_000);
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n{long}");
    assert_eq!(pair.deliver(&long).await.0, unread, "it may say that it failed");
    let fatal = of("fatal-error");
    let answer = format!("HTTP/1.1 503 Busy\r\ncontent-length: {}\r\n\r\n{fatal}", fatal.len());
    assert_eq!(pair.deliver(&answer).await.0, again("HTTP 503", None, true), "the status comes first");
    let wrong = super::hook(hook("http://127.0.0.1/base?x=1"));
    assert!(wrong.is_err_and(|why| why.contains("without a query")));
}

#[tokio::test]
async fn a_connection_is_kept_and_one_that_was_closed_is_replaced() {
    let pair = Pair::new("").await;
    let outgoing = outgoing("TEST1");
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let (first, mut stream) = within(async {
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut stream = pair.accept().await;
            request(&mut stream).await;
            answer(&mut stream, ok).await;
            stream
        })
    })
    .await;
    assert!(first.is_ok());
    for _ in 0..3 {
        let (next, ()) = within(async {
            tokio::join!(pair.destination.deliver(&outgoing), async {
                request(&mut stream).await;
                answer(&mut stream, ok).await;
            })
        })
        .await;
        assert!(next.is_ok(), "{next:?}");
    }
    drop(stream);
    assert!(pair.deliver(ok).await.0.is_ok());
}

#[tokio::test]
async fn many_requests_are_under_way_at_once() {
    let pair = Pair::new("connections: 16").await;
    let mut deliveries = tokio::task::JoinSet::new();
    for n in 0..20 {
        let destination = Arc::clone(&pair.destination);
        deliveries.spawn(async move { destination.deliver(&outgoing(&format!("TEST{n}"))).await });
    }
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = pair.accept().await;
        request(&mut stream).await;
        streams.push(stream);
    }
    // Sixteen wait for their answer at once; the last four come over connections that have become free.
    for stream in &mut streams {
        answer(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    }
    let mut rest: tokio::task::JoinSet<()> = streams
        .into_iter()
        .map(|mut stream| async move {
            let mut byte = [0];
            if stream.peek(&mut byte).await.is_ok_and(|count| count > 0) {
                request(&mut stream).await;
                answer(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
        .collect();
    while let Some(delivered) = within(deliveries.join_next()).await {
        assert!(delivered.expect("no panic").is_ok());
    }
    rest.abort_all();
    while rest.join_next().await.is_some() {}
}

#[tokio::test]
async fn an_endless_body_does_not_hold_the_delivery_up() {
    let pair = Pair::new("").await;
    let outgoing = outgoing("TEST1");
    let (delivered, ()) = within(async {
        tokio::join!(pair.destination.deliver(&outgoing), async {
            let mut stream = pair.accept().await;
            request(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        })
    })
    .await;
    assert_eq!(delivered, Ok(Receipt { answer: "HTTP 200".to_owned() }));
}

#[tokio::test]
async fn bundles_travel_over_mutual_tls() {
    let authority = Authority::new();
    authority.sign("server", &["localhost"], &[], "web");
    authority.sign("pons", &["pons.test"], &[], "pons");
    let folder = authority.folder.path();
    let files = crate::tls::ServerFiles {
        certificate: authority.path("server.pem"),
        key: authority.path("server.key"),
        client_ca: Some(authority.path("ca.pem")),
        client_optional: false,
    };
    let server = crate::tls::ServerTls::load(files, &["http/1.1"]).expect("files");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let config =
        format!("url: https://localhost:{port}/\ntls: {{ca: ca.pem, certificate: pons.pem, key: pons.key}}");
    let destination = destination("rest-hook", &config, folder).expect("a right configuration");
    let outgoing = outgoing("TEST1");
    let (delivered, names) = within(async {
        tokio::join!(destination.deliver(&outgoing), async {
            let stream = listener.accept().await.expect("a connection").0;
            let mut stream = server.accept(stream).await.expect("a handshake");
            request(&mut stream).await;
            answer(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            crate::tls::client_names(&stream)
        })
    })
    .await;
    assert!(delivered.is_ok(), "{delivered:?}");
    assert_eq!(names[..], ["pons.test", "pons"]);
}

#[test]
fn mistakes_in_a_configuration_are_told() {
    for (config, expected) in [
        ("url: http://lab.example/", "url: off loopback needs https:"),
        ("url: ftp://lab.example/", "url: expected an http: or https: URL"),
        ("url: https://user:pass@lab.example/", "url: expected an http: or https: URL"),
        ("url: http://localhost/\ntls: {}", "url: `tls` needs an https: URL"),
        ("url: http://localhost/\nbearer: s3cret", "bearer"),
        ("url: http://localhost/\nbearer: {file: absent}", "bearer: cannot read the file"),
        ("url: http://localhost/\nbearer: {env: PONS_TEST_NOT_SET}", "PONS_TEST_NOT_SET is not set"),
    ] {
        let mistakes = destination("rest-hook", config, Path::new(".")).expect_err(config);
        let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|mistake| mistake.contains(expected)), "{config}: {told:?}");
        assert!(told.iter().all(|mistake| !mistake.contains("s3cret")), "{told:?}");
    }
}
