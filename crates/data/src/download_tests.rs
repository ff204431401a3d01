use std::{
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    thread,
};

use tempfile::TempDir;

use super::*;
use crate::{files::sha256_of, manifest};

/// What the server does with one connection.
#[derive(Clone, Copy)]
enum Answer {
    /// Honours the range, if any.
    Serve,
    /// Promises everything and cuts the connection after so many bytes.
    CutAfter(usize),
    /// Ignores the range.
    Whole,
    /// Right length, wrong bytes.
    Garbage,
    NotFound,
}

/// Answers one connection after the other, then goes away; returns the address and the `Range` headers it saw.
fn server(content: &[u8], answers: &[Answer]) -> (String, thread::JoinHandle<Vec<Option<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("local port");
    let url = format!("http://{}/file", listener.local_addr().expect("bound"));
    let (content, answers) = (content.to_vec(), answers.to_vec());
    let serve = move || answers.iter().map(|&answer| respond(&listener.accept().expect("client").0, &content, answer)).collect();
    (url, thread::spawn(serve))
}

fn respond(mut stream: &TcpStream, content: &[u8], answer: Answer) -> Option<usize> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let start =
        lines.filter_map(|line| line.to_lowercase().strip_prefix("range: bytes=")?.trim_end_matches('-').parse().ok()).last();
    let from = start.unwrap_or(0);
    let head =
        |status: &str, length: usize| format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    let (head, body) = match answer {
        Answer::Serve if from > 0 => (head("206 Partial Content", content.len() - from), content[from..].to_vec()),
        Answer::Serve | Answer::Whole => (head("200 OK", content.len()), content.to_vec()),
        Answer::CutAfter(n) => (head("200 OK", content.len()), content[..n].to_vec()),
        Answer::Garbage => (head("200 OK", content.len()), vec![0; content.len()]),
        Answer::NotFound => (head("404 Not Found", 0), Vec::new()),
    };
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    start
}

fn content() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i % 251) as u8).collect()
}

fn set_of(urls: &[String]) -> Manifest {
    let mut set = manifest("cifar10").expect("known");
    let sha256 = sha256_of(&content());
    set.files =
        vec![File { file: "file.gz".into(), bytes: 200_000, sha256, urls: urls.to_vec(), optional: false, unpacked: Vec::new() }];
    set
}

fn run(urls: &[String], dir: &TempDir) -> Result<Vec<(u64, u64)>, Error> {
    let mut heard = Vec::new();
    fetch_all(&set_of(urls), &dir.path().join("set"), &[], &mut |done, total| heard.push((done, total)))?;
    assert_eq!(fs::read(dir.path().join("set/file.gz")).expect("renamed"), content());
    assert!(!dir.path().join("set/file.gz.part").exists());
    Ok(heard)
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folder")
}

#[test]
fn a_whole_file_is_fetched_once() {
    let (dir, (url, server)) = (folder(), server(&content(), &[Answer::Serve]));
    let heard = run(std::slice::from_ref(&url), &dir).expect("served");
    assert!(heard.is_sorted());
    assert_eq!(heard.last(), Some(&(200_000, 200_000)));
    assert_eq!(server.join().expect("no panic"), [None]);
    run(&[url], &dir).expect("there already: the server is gone");
}

#[test]
fn a_cut_connection_is_resumed() {
    let (url, server) = server(&content(), &[Answer::CutAfter(70_000), Answer::Serve]);
    run(&[url], &folder()).expect("resumed");
    assert_eq!(server.join().expect("no panic"), [None, Some(70_000)]);
}

#[test]
fn the_next_address_goes_on_after_a_failed_one() {
    let (dir, (first, _one)) = (folder(), server(&content(), &[Answer::CutAfter(50_000), Answer::NotFound]));
    let (second, two) = server(&content(), &[Answer::Serve]);
    run(&[first, second], &dir).expect("second address");
    assert_eq!(two.join().expect("no panic"), [Some(50_000)]);
}

#[test]
fn a_server_that_does_not_resume_is_read_from_the_start() {
    let dir = folder();
    fs::create_dir_all(dir.path().join("set")).expect("created");
    fs::write(dir.path().join("set/file.gz.part"), [9; 1000]).expect("written");
    let (url, server) = server(&content(), &[Answer::Whole]);
    run(&[url], &dir).expect("rewritten");
    assert_eq!(server.join().expect("no panic"), [Some(1000)]);
}

#[test]
fn a_damaged_part_is_thrown_away() {
    let dir = folder();
    fs::create_dir_all(dir.path().join("set")).expect("created");
    fs::write(dir.path().join("set/file.gz.part"), [9; 1000]).expect("written");
    let (url, server) = server(&content(), &[Answer::Serve, Answer::Serve]);
    run(&[url], &dir).expect("second try starts anew");
    assert_eq!(server.join().expect("no panic"), [Some(1000), None]);
}

#[test]
fn wrong_bytes_and_absent_files_are_reported() {
    let dir = folder();
    let (wrong, _one) = server(&content(), &[Answer::Garbage, Answer::Garbage]);
    let (absent, _two) = server(&content(), &[Answer::NotFound, Answer::NotFound]);
    let error = run(&[wrong, absent], &dir).expect_err("no good address");
    assert!(matches!(&error, Error::Download { attempts, .. } if attempts.len() == 2), "{error}");
    let text = error.to_string();
    assert!(text.contains("expected SHA-256") && text.contains("404"), "{text}");
    assert!(!dir.path().join("set/file.gz").exists());
}

#[test]
fn what_cannot_be_fetched_is_said() {
    let mut at = Locations { dirs: vec!["/data".into()], cache: None, offline: false, glyphs: crate::GlyphCounts::default() };
    assert!(matches!(get("mnist", &at, &mut |_, _| ()), Err(Error::NoCache { .. })));
    let dir = folder();
    at.cache = Some(dir.path().into());
    let error = get("cifar10-jpeg", &at, &mut |_, _| ()).expect_err("no address");
    assert!(matches!(error, Error::NotDownloadable { .. }) && error.to_string().contains("/data"));
    assert!(matches!(get("minst", &at, &mut |_, _| ()), Err(Error::UnknownSet { .. })));
    assert!(matches!(get("glyphs", &at, &mut |_, _| ()), Err(Error::Inconsistent { .. })));
}

#[test]
fn files_at_hand_are_checked() {
    let dir = folder();
    let set = manifest("cifar10-exact4000").expect("known");
    fs::write(dir.path().join(&set.files[0].file), "other").expect("written");
    let at = Locations { dirs: vec![dir.path().into()], cache: None, offline: false, glyphs: crate::GlyphCounts::default() };
    assert!(matches!(get(&set.name, &at, &mut |_, _| ()), Err(Error::Size { found: 5, .. })));
}
