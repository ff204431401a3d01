use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use ureq::{Agent, http::header};

use crate::{
    Error, Locations,
    files::{Found, checked, find},
    manifest::{File, Manifest},
    open::Origin,
};

/// Brings the files of a set: what lies in the folders searched is checked, what is absent is downloaded into the cache folder
/// and checked. Returns the folder that holds them.
///
/// `progress` hears bytes done and bytes in all. An interrupted download goes on where it stopped; a damaged file in the cache
/// folder is fetched again, elsewhere it is an error.
pub fn get(name: &str, at: &Locations, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, Error> {
    let (Origin::Files(set) | Origin::Rotated(set) | Origin::Cluttered(set)) = Origin::of(name)? else {
        return Err(Error::Inconsistent { name: name.into(), what: "there is nothing to download".into() });
    };
    if let Ok(found) = find(&set, at) {
        let check = |file: &Found| file.read().map(drop);
        match found.iter().try_for_each(check) {
            Ok(()) => return Ok(found[0].folder.clone()),
            Err(error) if !found.iter().any(|file| at.cache.as_ref().is_some_and(|cache| file.folder.starts_with(cache))) => {
                return Err(error);
            }
            Err(_) => (),
        }
    }
    let cache = at.cache.as_ref().ok_or_else(|| Error::NoCache { set: set.name.clone() })?;
    fetch_all(&set, &cache.join(&set.name), &at.dirs, progress)
}

fn fetch_all(set: &Manifest, folder: &Path, dirs: &[PathBuf], progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, Error> {
    let needed: Vec<&File> = set.files.iter().filter(|file| !file.optional).collect();
    if let Some(file) = needed.iter().find(|file| file.urls.is_empty()) {
        return Err(Error::NotDownloadable { set: set.name.clone(), file: file.file.clone(), dirs: dirs.to_vec() });
    }
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let total = needed.iter().map(|file| file.bytes).sum();
    let mut before = 0;
    for file in needed {
        fetch(&set.name, file, folder, &mut |done| progress(before + done, total))?;
        before += file.bytes;
        progress(before, total);
    }
    Ok(folder.to_path_buf())
}

/// Brings one file into `folder`, trying each address in turn; what one of them delivered, the next goes on from.
fn fetch(set: &str, file: &File, folder: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), Error> {
    let whole = folder.join(&file.file);
    if checked(&whole, file.bytes, &file.sha256).is_ok() {
        return Ok(());
    }
    let part = folder.join(format!("{}.part", file.file));
    let mut attempts = Vec::new();
    for url in file.urls.iter().flat_map(|url| [url; TRIES]) {
        match transfer(url, &part, file.bytes, progress).and_then(|()| check(&part, file)) {
            Ok(()) => return fs::rename(&part, &whole).map_err(Error::io(whole)),
            Err(reason) => attempts.push(format!("{url}: {reason}")),
        }
    }
    attempts.dedup();
    Err(Error::Download { set: set.into(), file: file.file.clone(), attempts, into: folder.into() })
}

/// Attempts at each address: the second goes on after a cut connection.
const TRIES: usize = 2;

/// Checks a transferred file. A whole but wrong one is removed, so that the next attempt starts anew.
fn check(part: &Path, file: &File) -> Result<(), String> {
    checked(part, file.bytes, &file.sha256).map(drop).map_err(|error| {
        if !matches!(error, Error::Size { expected, found, .. } if found < expected) {
            let _ = fs::remove_file(part);
        }
        error.to_string()
    })
}

/// Appends to `part` what is lacking of `bytes`, or rewrites it if the server does not resume.
fn transfer(url: &str, part: &Path, bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<(), String> {
    let have = fs::metadata(part).map_or(0, |data| data.len());
    if have >= bytes {
        return Ok(());
    }
    let request = agent().get(url);
    let request = if have > 0 { request.header(header::RANGE, format!("bytes={have}-")) } else { request };
    let response = request.call().map_err(|error| error.to_string())?;
    let resumed = response.status() == 206;
    let mut done = if resumed { have } else { 0 };
    let mut file = OpenOptions::new();
    let file = if resumed { file.append(true) } else { file.write(true).truncate(true) };
    let mut file = file.create(true).open(part).map_err(|error| error.to_string())?;
    // One byte more than promised is enough to know that it is another file.
    let mut body = response.into_body().into_reader().take(bytes + 1 - done);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match body.read(&mut buffer).map_err(|error| format!("after {done} of {bytes} bytes: {error}"))? {
            0 => return Ok(()),
            n => {
                file.write_all(&buffer[..n]).map_err(|error| error.to_string())?;
                done += n as u64;
                progress(done);
            }
        }
    }
}

/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

fn agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .accept_encoding("identity")
        .user_agent(concat!("briquette/", env!("CARGO_PKG_VERSION")));
    config.build().new_agent()
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
