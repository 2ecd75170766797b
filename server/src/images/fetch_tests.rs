//! Fetches without a network: names and answers are made up here.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream;

use super::super::network::TransportError;
use super::*;

/// Answers lookups in order, and fails when there are more.
struct Names {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
}

impl Resolver for Names {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.asked.lock().unwrap().push(name.to_owned());
        let answer = self.answers.lock().unwrap().pop_front();
        async move { answer.ok_or_else(|| io::Error::other("no such name")) }.boxed()
    }
}

/// Answers requests in order, and fails when there are more.
struct Web {
    replies: Mutex<VecDeque<Reply>>,
    hops: Mutex<Vec<Hop>>,
}

impl Transport for Web {
    fn get<'a>(&'a self, hop: &'a Hop) -> BoxFuture<'a, Result<Reply, TransportError>> {
        self.hops.lock().unwrap().push(hop.clone());
        let reply = self.replies.lock().unwrap().pop_front();
        async move { reply.ok_or(TransportError::Connect) }.boxed()
    }
}

struct World {
    names: Arc<Names>,
    web: Arc<Web>,
    fetcher: Fetcher,
}

impl World {
    fn new(names: &[&[&str]], replies: Vec<Reply>) -> Self {
        let answers = names.iter().map(|addresses| addresses.iter().map(|a| a.parse().unwrap()).collect()).collect();
        let names = Arc::new(Names { answers: Mutex::new(answers), asked: Mutex::default() });
        let web = Arc::new(Web { replies: Mutex::new(replies.into()), hops: Mutex::default() });
        let config = ImagesConfig { max_bytes: 1024, ..ImagesConfig::default() };
        let fetcher = Fetcher::new(&config, names.clone(), web.clone());
        Self { names, web, fetcher }
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, ImageError> {
        self.fetcher.fetch(url).await
    }

    fn connections(&self) -> Vec<SocketAddr> {
        let hops = self.web.hops.lock().unwrap();
        hops.iter().flat_map(|hop| hop.addresses.clone()).collect()
    }
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn reply(status: u16, pieces: Vec<Result<Bytes, TransportError>>) -> Reply {
    Reply { status, location: None, content_type: None, length: None, body: stream::iter(pieces).boxed() }
}

fn image() -> Reply {
    reply(200, vec![Ok("im".into()), Ok("age".into())])
}

fn redirect(to: &str) -> Reply {
    Reply { location: Some(to.to_owned()), ..reply(302, vec![]) }
}

#[tokio::test]
async fn an_image_is_fetched_from_the_address_that_was_checked() {
    let world = World::new(&[&["8.8.8.8", "2606:4700::1"]], vec![image()]);
    let bytes = world.fetch("https://Images.Example:8443/a.png").await;
    assert_eq!(bytes.unwrap(), "image");
    let wanted = ["8.8.8.8:8443", "[2606:4700::1]:8443"].map(socket);
    assert_eq!(world.connections(), wanted);
    assert_eq!(*world.names.asked.lock().unwrap(), ["images.example"]);
}

#[tokio::test]
async fn addresses_that_are_not_public_are_never_connected_to() {
    for url in [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://%31%32%37.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://0/",
        "http://10.1.2.3:8080/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2852039166/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://192.168.1.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://[2002:7f00:1::]/",
    ] {
        let world = World::new(&[], vec![image()]);
        let error = world.fetch(url).await.unwrap_err();
        assert!(matches!(error, ImageError::NotPublic { .. }), "{url}: {error}");
        assert!(world.connections().is_empty(), "{url}");
    }
}

#[tokio::test]
async fn names_of_such_addresses_are_not_connected_to_either() {
    for addresses in [&["127.0.0.1"][..], &["169.254.169.254"], &["8.8.8.8", "10.0.0.1"], &["2606:4700::1", "::1"]] {
        let world = World::new(&[addresses], vec![image()]);
        let error = world.fetch("http://metadata.example/").await.unwrap_err();
        assert_eq!(error.code(), "image_url_not_allowed");
        // What the name resolves to is the network's own affair.
        let message = error.to_string();
        assert!(!message.contains(addresses[0]), "{message}");
        assert!(message.contains("metadata.example"), "{message}");
        assert!(world.connections().is_empty());
    }
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_asked_once() {
    // Open when it is checked, closed ever after: what connects must not ask again.
    let world = World::new(&[&["8.8.8.8"], &["127.0.0.1"]], vec![image()]);
    world.fetch("http://rebind.example/").await.unwrap();
    assert_eq!(world.connections(), [socket("8.8.8.8:80")]);
    assert_eq!(world.names.asked.lock().unwrap().len(), 1);
    // The second fetch asks anew and is refused.
    let error = world.fetch("http://rebind.example/").await.unwrap_err();
    assert_eq!(error.code(), "image_url_not_allowed");
    assert_eq!(world.connections().len(), 1);
}

#[tokio::test]
async fn redirects_go_through_the_same_gate() {
    for (location, code) in [
        ("http://127.0.0.1/", "image_url_not_allowed"),
        ("http://2130706433/", "image_url_not_allowed"),
        ("//169.254.169.254/latest", "image_url_not_allowed"),
        ("http://[::1]:6379/", "image_url_not_allowed"),
        ("http://private.example/", "image_url_not_allowed"),
        // The same name again, which now resolves elsewhere.
        ("/other", "image_url_not_allowed"),
        ("http://user:secret@8.8.8.8/", "invalid_image_url"),
        ("file:///etc/passwd", "image_fetch_failed"),
        ("data:image/png;base64,AAAA", "image_fetch_failed"),
        ("gopher://8.8.8.8/", "image_fetch_failed"),
        ("http://", "image_fetch_failed"),
    ] {
        let world = World::new(&[&["8.8.8.8"], &["10.0.0.1"]], vec![redirect(location), image()]);
        let error = world.fetch("http://open.example/").await.unwrap_err();
        assert_eq!(error.code(), code, "{location}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(world.connections().len(), 1, "{location}");
    }
}

#[tokio::test]
async fn redirects_are_followed_so_far() {
    let world =
        World::new(&[&["8.8.8.8"], &["1.1.1.1"]], vec![redirect("https://b.example/x/y"), redirect("../z"), image()]);
    // The last name has no address left: each hop asks for its own.
    assert!(world.fetch("http://a.example/").await.is_err());
    {
        let hops = world.web.hops.lock().unwrap();
        assert_eq!(hops[1].url.as_str(), "https://b.example/x/y");
        assert_eq!(hops[1].addresses, [socket("1.1.1.1:443")]);
    }

    let endless = || (0..10).map(|_| redirect("http://8.8.8.8/")).collect();
    let world = World::new(&[], endless());
    let error = world.fetch("http://8.8.4.4/").await.unwrap_err();
    assert!(error.to_string().contains("more than 3 redirects"), "{error}");
    assert_eq!(world.connections().len(), 4);
}

#[tokio::test]
async fn only_an_image_that_fits_is_taken() {
    let full = || vec![Ok(Bytes::from(vec![0; 1024]))];
    let over = || vec![Ok(Bytes::from(vec![0; 1000])), Ok(Bytes::from(vec![0; 25]))];
    let endless =
        || Reply { body: stream::repeat_with(|| Ok(Bytes::from(vec![0; 100]))).boxed(), ..reply(200, vec![]) };
    let typed = |content_type: &str| Reply { content_type: Some(content_type.to_owned()), ..image() };
    let claimed = |length| Reply { length: Some(length), ..endless() };
    let cases: Vec<(&str, Reply, Result<usize, &str>)> = vec![
        ("full", reply(200, full()), Ok(1024)),
        ("over", reply(200, over()), Err("image_too_large")),
        ("endless", endless(), Err("image_too_large")),
        ("claims much", claimed(1025), Err("image_too_large")),
        ("lies", claimed(10), Err("image_too_large")),
        ("not found", reply(404, full()), Err("image_fetch_failed")),
        ("partial", reply(206, full()), Err("image_fetch_failed")),
        ("empty", reply(204, vec![]), Err("image_fetch_failed")),
        ("nowhere", reply(301, vec![]), Err("image_fetch_failed")),
        ("breaks", reply(200, vec![Ok("a".into()), Err(TransportError::Broken)]), Err("image_fetch_failed")),
        ("html", typed("text/html; charset=utf-8"), Err("unsupported_image_format")),
        ("json", typed("application/json"), Err("unsupported_image_format")),
        ("vague", typed("binary/octet-stream"), Ok(5)),
        ("image", typed("Image/Whatever; q=1"), Ok(5)),
    ];
    for (name, reply, wanted) in cases {
        let world = World::new(&[], vec![reply]);
        let found = world.fetch("http://8.8.8.8/").await;
        let found = found.map(|bytes| bytes.len());
        assert_eq!(found.as_ref().map_err(ImageError::code), wanted.as_ref().map_err(|code| *code), "{name}");
    }
}

#[tokio::test]
async fn time_is_limited() {
    let silent = Reply {
        body: stream::once(async { Ok(Bytes::from_static(b"a")) }).chain(stream::pending()).boxed(),
        ..reply(200, vec![])
    };
    let mut world = World::new(&[], vec![silent]);
    world.fetcher.timeout = Duration::from_millis(50);
    let error = world.fetch("http://8.8.8.8/").await.unwrap_err();
    assert_eq!(error.to_string(), "the image could not be fetched from `8.8.8.8`: it took longer than 0.05 s");
    assert_eq!(world.fetcher.places.available_permits(), PLACES);
}

#[tokio::test]
async fn urls_have_a_form() {
    for url in [
        "http://",
        "http:///",
        "http://user@8.8.8.8/",
        "http://:secret@8.8.8.8/",
        "http://a b/",
        "http://[::1",
        "http://8.8.8.8:99999/",
        "http://1.2.3.4.5/",
        "ftp://8.8.8.8/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "8.8.8.8/a.png",
        "",
    ] {
        let world = World::new(&[], vec![image()]);
        let error = world.fetch(url).await.unwrap_err();
        assert_eq!(error.code(), "invalid_image_url", "{url}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
    let world = World::new(&[], vec![image()]);
    let long = format!("http://8.8.8.8/{}", "a".repeat(MAX_URL));
    assert_eq!(world.fetch(&long).await.unwrap_err().code(), "invalid_image_url");
    let unknown = world.fetch("http://nowhere.example/").await.unwrap_err();
    assert!(unknown.to_string().contains("cannot be resolved"), "{unknown}");
}
