//! Downloads from servers that the tests start: complete, interrupted, resumed, wrong and refused ones; hostile
//! archives; the hub's cache.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use retune::error::Result;
use retune::fetch::hub::{Hub, HubName};
use retune::fetch::{Digest, Limits, Transfer, download, unpack};
use zip::write::SimpleFileOptions;

/// A received request: its first line, and its headers by lower-case name.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    /// The start of a `Range`.
    fn start(&self) -> usize {
        let range = self.header("range").map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap());
        range.map_or(0, |start| start.parse().unwrap())
    }
}

/// A response: status line, headers, and a body that may be shorter than `content-length`.
struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str, body: &[u8]) -> Self {
        Self { status, headers: vec![("content-length", body.len().to_string())], body: body.to_vec() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends only the first bytes, then closes the connection.
    fn cut(mut self, length: usize) -> Self {
        self.body.truncate(length);
        self
    }
}

/// Sends the rest of a file from the start of the requested range.
fn part(request: &Request, file: &[u8]) -> Answer {
    match request.start() {
        0 => Answer::new("200 OK", file),
        start => Answer::new("206 Partial Content", &file[start..])
            .with("content-range", format!("bytes {start}-{}/{}", file.len() - 1, file.len())),
    }
}

struct Server {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Calls `answer(number, request)`, with requests numbered from 0.
    fn start(answer: impl Fn(usize, &Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Some(request) = read_request(stream.as_ref().unwrap()) else { continue };
                seen.lock().unwrap().push(request.clone());
                let Answer { status, headers, body } = answer(number, &request);
                let mut stream = stream.unwrap();
                let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
                headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
                let _ = stream.write_all(format!("{head}\r\n").as_bytes());
                if !request.line.starts_with("HEAD") {
                    let _ = stream.write_all(&body);
                }
            }
        });
        Self { address, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(std::result::Result::ok);
    let line = lines.next()?;
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_string()))
    });
    Some(Request { line, headers: headers.collect() })
}

fn file() -> Vec<u8> {
    (0..300_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(1_000_003).collect()
}

/// SHA-1 and SHA-256 of [`file`], from sha1sum and sha256sum.
const SHA1: &str = "620023bdb271600ccfb80997311349419ca199d9";
const SHA256: &str = "915768a30da522b765140e1931e6f0f47bbc7b17a39974a8356414640cf39123";

fn get(url: &str, target: &Path, digest: Option<Digest>) -> Result<()> {
    download(Transfer { url, token: None, digest }, target, |_, _| {})
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_complete_file_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| part(request, &file()));
    for (name, digest) in [("a", Some(Digest::Sha1(SHA1))), ("b", Some(Digest::Sha256Start(&SHA256[..8]))), ("c", None)]
    {
        let target = folder.path().join("new").join(name);
        let mut told = Vec::new();
        download(Transfer { url: &server.url("f.bin"), token: None, digest }, &target, |done, total| {
            told.push((done, total))
        })
        .unwrap();
        assert!(fs::read(&target).unwrap() == file());
        assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert_eq!(told.last(), Some(&(1_000_003, Some(1_000_003))));
    }
    assert_eq!(names(&folder.path().join("new")), ["a", "b", "c"], "no temporary file is left");
}

#[test]
fn an_interrupted_download_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|number, request| {
        let answer = part(request, &file()).with("etag", "\"one\"");
        if number < 2 { answer.cut(200_000) } else { answer }
    });
    let target = folder.path().join("f.bin");
    get(&server.url("f.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap();
    assert!(fs::read(&target).unwrap() == file());
    let requests = server.requests();
    let starts: Vec<usize> = requests.iter().map(Request::start).collect();
    assert_eq!(starts, [0, 200_000, 400_000], "nothing is sent twice");
    assert_eq!(requests[1].header("if-range"), Some("\"one\""));
    assert_eq!(names(folder.path()), ["f.bin"]);
}

#[test]
fn another_process_resumes_an_interrupted_download() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f.bin");
    let broken = Server::start(|_, request| match request.start() {
        0 => Answer::new("200 OK", &file()).with("etag", "\"one\"").cut(123_456),
        _ => Answer::new("503 Service Unavailable", b""),
    });
    let error = get(&broken.url("f.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap_err();
    assert!(error.message().ends_with("f.bin: the server responded with status 503"), "{error}");
    assert!(!target.exists());
    assert_eq!(names(folder.path()), [".f.bin.part", ".f.bin.part.etag"]);
    let server = Server::start(|_, request| part(request, &file()).with("etag", "\"one\""));
    get(&server.url("f.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap();
    assert_eq!(server.requests().iter().map(Request::start).collect::<Vec<_>>(), [123_456]);
    assert!(fs::read(&target).unwrap() == file());
    assert_eq!(names(folder.path()), ["f.bin"]);
}

#[test]
fn halves_of_different_files_are_never_joined() {
    // The server honours If-Range: the file has changed, so it sends all of it.
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f.bin");
    let server = Server::start(|number, request| match number {
        0 => Answer::new("200 OK", &vec![7; 900_000]).with("etag", "\"old\"").cut(300_000),
        _ => {
            assert_eq!(request.header("if-range"), Some("\"old\""));
            Answer::new("200 OK", &file()).with("etag", "\"new\"")
        }
    });
    get(&server.url("f.bin"), &target, None).unwrap();
    assert!(fs::read(&target).unwrap() == file());

    // This server does not: only the digest shows the change, and the file is downloaded once more.
    let target = folder.path().join("g.bin");
    let server = Server::start(|number, request| match number {
        0 => Answer::new("200 OK", &vec![7; 900_000]).cut(300_000),
        _ => part(request, &file()),
    });
    get(&server.url("g.bin"), &target, Some(Digest::Sha256Start(SHA256))).unwrap();
    assert!(fs::read(&target).unwrap() == file());
    assert_eq!(server.requests().iter().map(Request::start).collect::<Vec<_>>(), [0, 300_000, 0]);

    // This server does not support ranges.
    let target = folder.path().join("h.bin");
    let server = Server::start(|number, _| {
        let answer = Answer::new("200 OK", &file());
        if number == 0 { answer.cut(300_000) } else { answer }
    });
    get(&server.url("h.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap();
    assert!(fs::read(&target).unwrap() == file());
    assert_eq!(names(folder.path()), ["f.bin", "g.bin", "h.bin"]);
}

#[test]
fn a_wrong_file_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f.bin");
    let server = Server::start(|_, request| part(request, b"something else"));
    let error = get(&server.url("f.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap_err();
    assert!(error.message().contains("f.bin: unexpected content"), "{error}");
    assert!(error.message().contains(SHA1), "{error}");
    assert!(error.message().contains("the SHA-1 is "), "{error}");
    assert_eq!(names(folder.path()), Vec::<String>::new());
    assert_eq!(server.requests().len(), 1, "one request");
}

#[test]
fn refusals_are_reported_and_temporary_errors_retried() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("f.bin");
    for (status, message, requests) in [
        ("404 Not Found", "the server responded with status 404", 1),
        ("403 Forbidden", "the server responded with status 403", 1),
        ("500 Internal Server Error", "the server responded with status 500", 4),
    ] {
        let server = Server::start(move |_, _| Answer::new(status, b""));
        let error = get(&server.url("f.bin"), &target, None).unwrap_err();
        assert!(error.message().ends_with(message) && error.hint_text().is_some(), "{error}");
        assert_eq!(server.requests().len(), requests, "{status}");
    }
    let server = Server::start(|number, request| match number {
        0 | 1 => Answer::new("502 Bad Gateway", b""),
        2 => Answer::new("302 Found", b"").with("location", "/moved/f.bin"),
        _ => part(request, &file()),
    });
    get(&server.url("f.bin"), &target, Some(Digest::Sha1(SHA1))).unwrap();
    assert_eq!(server.requests().last().unwrap().path(), "/moved/f.bin");
    // Nothing listens on this port.
    let closed = { format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()) };
    let error = get(&format!("{closed}/f.bin"), &folder.path().join("g.bin"), None).unwrap_err();
    assert!(error.message().starts_with("cannot reach http://127.0.0.1:"), "{error}");
    assert!(error.hint_text().unwrap().contains("HTTPS_PROXY"));
}

fn archive(folder: &Path, entries: &[(&str, &[u8])]) -> PathBuf {
    let path = folder.join("archive.zip");
    let mut archive = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in entries {
        archive.start_file(*name, SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}

#[test]
fn an_archive_becomes_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let entries: [(&str, &[u8]); 4] = [
        ("hotdog/train/a/1.png", b"one"),
        ("hotdog/test/b/2.png", b"two"),
        ("__MACOSX/x", b"no"),
        ("hotdog/.DS_Store", b"no"),
    ];
    let path = archive(folder.path(), &entries);
    let target = folder.path().join("data/hotdog");
    assert_eq!(unpack(&path, &target, Limits::default()).unwrap(), 2);
    assert_eq!(fs::read(target.join("train/a/1.png")).unwrap(), b"one");
    assert_eq!(fs::read(target.join("test/b/2.png")).unwrap(), b"two");
    assert_eq!(
        (names(&target), names(&folder.path().join("data"))),
        (vec!["test".into(), "train".into()], vec!["hotdog".to_string()])
    );
    let error = unpack(&path, &target, Limits::default()).unwrap_err();
    assert!(error.message().ends_with("already exists"), "{error}");
    let flat = archive(folder.path(), &[("a/1", b"one"), ("b/2", b"two")]);
    unpack(&flat, &folder.path().join("flat"), Limits::default()).unwrap();
    assert_eq!(names(&folder.path().join("flat")), ["a", "b"]);
}

#[test]
fn hostile_archives_leave_nothing_behind() {
    let refused = |path: &Path, limits: Limits, expected: &str| {
        let place = tempfile::tempdir().unwrap();
        let inside = place.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let error = unpack(path, &inside.join("data"), limits).unwrap_err();
        assert!(error.message().contains(expected), "{expected}: {error}");
        assert_eq!(names(&inside), Vec::<String>::new(), "{expected}");
        assert_eq!(names(place.path()), ["inside"], "{expected}");
    };
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let all = Limits::default();
    for (name, expected) in [
        ("../../evil", "leads out of its folder"),
        ("a/../../evil", "leads out of its folder"),
        ("/etc/evil", "is an absolute path"),
        ("a\\..\\evil", "contains a character"),
        ("c:evil", "contains a character"),
    ] {
        refused(&archive(place, &[("good", b"x"), (name, b"y")]), all, expected);
    }
    refused(&archive(place, &[("a/Name", b"x"), ("a/name", b"y")]), all, "occurs twice");
    refused(
        &archive(place, &[("zeros", &vec![0; 3_000_000])]),
        Limits { bytes: 2_999_999, ..all },
        "more than 2999999 bytes when unpacked",
    );
    refused(
        &archive(place, &[("a", b""), ("b", b""), ("c", b"")]),
        Limits { entries: 2, ..all },
        "3 entries, expected at most 2",
    );
    refused(&archive(place, &[]), all, "the archive contains no files");

    let path = place.join("link.zip");
    let mut writer = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    writer.add_symlink("link", "/etc", SimpleFileOptions::default()).unwrap();
    writer.start_file("link/evil", SimpleFileOptions::default()).unwrap();
    writer.finish().unwrap();
    refused(&path, all, "is a link");

    let path = archive(place, &[("a/picture", &file())]);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&path, all, "the archive is damaged");
    let mut damaged = bytes.clone();
    damaged[5000] ^= 0xff;
    fs::write(&path, &damaged).unwrap();
    refused(&path, all, "the archive is damaged");
    // The encryption flag, in both headers of the entry.
    let mut encrypted = bytes;
    encrypted[6] |= 1;
    let central = encrypted.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    encrypted[central + 8] |= 1;
    fs::write(&path, &encrypted).unwrap();
    refused(&path, all, "the archive is damaged");
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model that serves its file itself.
fn hub_server() -> Server {
    Server::start(|_, request| {
        let error = |status, code: &str| Answer::new(status, b"").with("x-error-code", code);
        let is_ours =
            |revision: &str| request.path() == format!("/timm/resnet18.tv_in1k/resolve/{revision}/model.safetensors");
        match request.path() {
            _ if is_ours("main") || is_ours("v2") || is_ours(COMMIT) => {
                part(request, &file()).with("x-repo-commit", COMMIT).with("etag", format!("\"{SHA256}\""))
            }
            "/old/name/resolve/main/model.safetensors" => Answer::new("307 Temporary Redirect", b"")
                .with("location", "/timm/resnet18.tv_in1k/resolve/main/model.safetensors"),
            path if path.starts_with("/timm/resnet18.tv_in1k/") => error("404 Not Found", "RevisionNotFound"),
            path if path.starts_with("/no/weights/") => error("404 Not Found", "EntryNotFound"),
            path if path.starts_with("/meta/gated/") => match request.header("authorization") {
                Some("Bearer secret") => {
                    part(request, &file()).with("x-repo-commit", COMMIT).with("etag", format!("\"{SHA256}\""))
                }
                Some(_) => Answer::new("403 Forbidden", b""),
                None => Answer::new("401 Unauthorized", b""),
            },
            _ => error("404 Not Found", "RepoNotFound"),
        }
    })
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.address.clone(), cache: cache.to_path_buf(), token: None, offline: false }
}

fn ask(hub: &Hub, name: &str) -> Result<PathBuf> {
    hub.get(&HubName::parse(name).unwrap(), |_, _| {})
}

#[test]
fn the_hubs_cache_is_filled_as_its_own_programs_fill_it() {
    let cache = tempfile::tempdir().unwrap();
    let server = hub_server();
    let hub = hub(&server, cache.path());
    let path = ask(&hub, "timm/resnet18.tv_in1k").unwrap();
    let folder = cache.path().join("models--timm--resnet18.tv_in1k");
    assert_eq!(path, folder.join("snapshots").join(COMMIT).join("model.safetensors"));
    assert!(fs::read(&path).unwrap() == file());
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(names(&folder.join("blobs")), [SHA256]);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(SHA256));
    let requests = server.requests().len();
    assert_eq!(requests, 2, "the metadata and the file");

    // From now on it sends no request, whether by name or by commit, online or offline.
    let offline = Hub { offline: true, ..hub.clone() };
    for name in ["timm/resnet18.tv_in1k".to_string(), format!("timm/resnet18.tv_in1k@{COMMIT}")] {
        assert_eq!(ask(&hub, &name).unwrap(), path);
        assert_eq!(ask(&offline, &name).unwrap(), path);
    }
    assert_eq!(server.requests().len(), requests);
    // Another name of the same commit needs a metadata request, but no download.
    assert_eq!(ask(&hub, "timm/resnet18.tv_in1k@v2").unwrap(), path);
    assert_eq!(server.requests().len(), requests + 1);
    assert!(ask(&hub, "old/name").is_ok(), "a renamed model");
}

#[test]
fn refusals_of_the_hub_are_reported() {
    let cache = tempfile::tempdir().unwrap();
    let server = hub_server();
    let hub = hub(&server, cache.path());
    for (name, message) in [
        ("nobody/nothing", "nobody/nothing: no such model on the Hub"),
        ("timm/resnet18.tv_in1k@v9", "timm/resnet18.tv_in1k: no revision \"v9\""),
        ("no/weights", "no/weights: no file model.safetensors"),
        ("meta/gated", "meta/gated: the Hub responded with status 401: the model is private, gated, or does not exist"),
    ] {
        let error = ask(&hub, name).unwrap_err();
        assert_eq!(error.message(), message);
    }
    let offline = Hub { offline: true, ..hub.clone() };
    let before = server.requests().len();
    let error = ask(&offline, "timm/resnet18.tv_in1k").unwrap_err();
    assert!(error.message().ends_with("and HF_HUB_OFFLINE is set"), "{error}");
    assert_eq!(server.requests().len(), before);
    let wrong = Hub { token: Some("wrong".into()), ..hub.clone() };
    assert!(ask(&wrong, "meta/gated").unwrap_err().message().contains("responded with status 403"));
    let right = Hub { token: Some("secret".into()), ..hub };
    ask(&right, "meta/gated").unwrap();
    let lost = Hub { endpoint: "http://127.0.0.1:9".into(), ..right };
    let error = ask(&lost, "timm/resnet18.tv_in1k").unwrap_err();
    assert!(error.message().starts_with("cannot reach http://127.0.0.1:9/"), "{error}");
}

#[test]
fn a_token_goes_to_its_server_only() {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = Server::start(|_, request| part(request, &file()));
    let location = elsewhere.url("blob");
    let server = Server::start(move |_, _| {
        Answer::new("302 Found", b"")
            .with("location", location.clone())
            .with("x-repo-commit", COMMIT)
            .with("x-linked-etag", format!("\"{SHA256}\""))
    });
    let hub = Hub { token: Some("secret".into()), ..hub(&server, cache.path()) };
    assert!(fs::read(ask(&hub, "a/b").unwrap()).unwrap() == file());
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer secret")));
    assert_eq!(elsewhere.requests().len(), 1);
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

/// Text from a server must not become a path.
#[test]
fn a_hostile_hub_writes_nothing_outside_its_folder() {
    for (commit, tag) in [("../../../../evil", SHA256), (COMMIT, "../../../evil"), ("", SHA256), (COMMIT, "")] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(move |_, request| {
            part(request, b"x").with("x-repo-commit", commit).with("etag", format!("\"{tag}\""))
        });
        let error = ask(&hub(&server, cache.path()), "a/b").unwrap_err();
        assert!(error.message().contains("without the file's commit and tag"), "{error}");
        assert_eq!(names(cache.path()), Vec::<String>::new());
    }
}

struct Outcome {
    status: i32,
    stdout: String,
    stderr: String,
}

fn retune(folder: &Path, line: &str, variables: &[(&str, &str)]) -> Outcome {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_retune"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("CUDA_VISIBLE_DEVICES", "")
        .timeout(Duration::from_secs(60));
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome { status: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn the_command_checks_the_files_of_a_mirror() {
    let place = tempfile::tempdir().unwrap();
    let server = Server::start(|_, request| part(request, b"not these weights"));
    let mirror = [("RETUNE_FETCH_BASE", server.address.as_str())];
    let outcome = retune(place.path(), "fetch resnet18", &mirror);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    assert!(outcome.stderr.contains("expected f37072fd\nhint: the download was discarded"), "{}", outcome.stderr);
    assert_eq!(server.requests()[0].path(), "/resnet18-f37072fd.pth");
    assert_eq!(names(place.path()), Vec::<String>::new(), "no empty folder remains");
    fs::create_dir(place.path().join("kept")).unwrap();
    let outcome = retune(place.path(), "fetch hotdog --out kept/new/../new/inner", &mirror);
    assert_eq!(outcome.status, 1);
    assert_eq!(names(&place.path().join("kept")), Vec::<String>::new());
    assert!(outcome.stderr.contains("expected fba480ffa8aa7e0febbb511d181409f899b9baa5"), "{}", outcome.stderr);
    // An existing file of that name with different content is neither used nor removed.
    fs::create_dir(place.path().join("weights")).unwrap();
    fs::write(place.path().join("weights/resnet18-f37072fd.pth"), "mine").unwrap();
    let outcome = retune(place.path(), "fetch resnet18", &mirror);
    assert!(
        outcome.status == 1 && outcome.stderr.ends_with("hint: remove it and run the command again\n"),
        "{}",
        outcome.stderr
    );
    assert_eq!(fs::read(place.path().join("weights/resnet18-f37072fd.pth")).unwrap(), b"mine");
    let outcome = retune(place.path(), "fetch resnet19", &mirror);
    assert_eq!(outcome.status, 2);
}

#[test]
fn weights_by_name_come_from_the_hub_then_from_the_cache() {
    let place = tempfile::tempdir().unwrap();
    let draw = "demo --only-draw --source-per-class 2 --target-per-class 4 --out drawn";
    assert_eq!(retune(place.path(), draw, &[]).status, 0);
    let small = "--width 4 --image-size 33 --batch-size 4 --epochs 1 --no-report --device cpu";
    let scratch = format!("train drawn/pictures/source --from-scratch {small} --out base");
    assert_eq!(retune(place.path(), &scratch, &[]).status, 0);
    let model = fs::read(place.path().join("base/model.safetensors")).unwrap();
    let server = Server::start(move |_, request| {
        part(request, &model).with("x-repo-commit", COMMIT).with("etag", "\"abcdef0123456789\"")
    });
    let cache = place.path().join("hub");
    let online = [("HF_ENDPOINT", server.address.as_str()), ("HF_HOME", cache.to_str().unwrap())];
    let train =
        "train drawn/pictures/target --weights somebody/narrow --batch-size 4 --epochs 1 --no-report --device cpu";
    let outcome = retune(place.path(), &format!("{train} --out one"), &online);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("downloading somebody/narrow from http://127.0.0.1:"), "{}", outcome.stderr);
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_HOME", cache.to_str().unwrap())];
    let outcome = retune(place.path(), &format!("{train} --out two"), &offline);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    let read = |run: &str| fs::read(place.path().join(run).join("model.safetensors")).unwrap();
    assert!(read("one") == read("two"));
    let outcome = retune(place.path(), "predict somebody/narrow drawn/pictures/target/test/hotdog/0000.jpg", &offline);
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    let mut picked = String::new();
    fs::File::open(place.path().join("one/config.json")).unwrap().read_to_string(&mut picked).unwrap();
    assert!(picked.contains("\"weights\": \"somebody/narrow\""), "{picked}");
}
