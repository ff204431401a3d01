//! The members of a tar archive (POSIX.1-1988 `ustar`, POSIX.1-2001 `pax`, GNU's long names), found by their headers.
//!
//! What an archive says of itself is held against the length of its file. Links, sparse files and devices are refused by name: their bytes are
//! not those of an image that lies there.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use tar::{EntryType, Header};

/// Bytes that headers and contents come in.
const BLOCK: usize = 512;

/// Longest extended header that is read.
const LONGEST: u64 = 64 << 10;

/// Longest name, as of systems that a member could be unpacked on.
const LONGEST_NAME: usize = 4096;

/// A file or a folder in an archive.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path, without `.` and `..`.
    pub(super) path: PathBuf,
    /// Where the bytes of a file lie; a folder has none.
    pub(super) content: Option<Content>,
    /// Where the next member begins.
    pub(super) next: u64,
}

/// A run of bytes within an archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// The member whose headers begin at `start`; none at the end of the archive.
///
/// # Errors
/// The broken rule, to be said of the archive.
pub(super) fn member(file: &File, start: u64) -> Result<Option<Member>, String> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    // Where a header lies that is about the member behind it, and the name that one of these gives.
    let (mut pending, mut long): (Option<u64>, Option<Vec<u8>>) = (None, None);
    let mut at = start;
    loop {
        let block = bytes(file, length, at, BLOCK as u64).map_err(|_| {
            format!(
                "the archive is cut short: it ends at byte {length}, before the block of zeros that closes it; fetch it again"
            )
        })?;
        if block.iter().all(|byte| *byte == 0) {
            return match (pending, empty_from(file, at)) {
                (None, true) => Ok(None),
                (Some(header), _) => Err(format!(
                    "the extended header at byte {header} is of no member: the archive ends behind it, at byte {at}; fetch it again, or pack anew"
                )),
                (None, false) => Err(format!(
                    "there is more behind the archive's end at byte {at}, which would not be read; pack anew, or join archives with `tar --concatenate`"
                )),
            };
        }
        let header = Header::from_byte_slice(&block);
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(format!("no tar header at byte {at}: its checksum differs; the archive is damaged, or no tar"));
        }
        let name = long.as_deref().map_or_else(|| header.path_bytes().into_owned(), <[u8]>::to_vec);
        let called = String::from_utf8_lossy(&name[..name.len().min(LONGEST_NAME)]).escape_debug().to_string();
        let size = header.entry_size().map_err(|error| format!("'{called}': {error}"))?;
        let content = Content { start: at + BLOCK as u64, length: size };
        let next = size.checked_next_multiple_of(BLOCK as u64).and_then(|padded| padded.checked_add(content.start));
        let Some(next) = next.filter(|&next| next <= length) else {
            return Err(format!(
                "the archive is cut short: '{called}' asks for {size} bytes from byte {}, the file ends at byte {length}; fetch it again",
                content.start
            ));
        };
        let extended = |file| match size {
            0..=LONGEST => bytes(file, length, content.start, size),
            _ => Err(format!("a header of {size} bytes at byte {at}; no more than {LONGEST} are read")),
        };
        let folder = header.entry_type().is_dir() || name.ends_with(b"/");
        match header.entry_type() {
            EntryType::GNULongName | EntryType::XHeader => {
                let records = extended(file)?;
                let path = match header.entry_type().is_gnu_longname() {
                    true => Some(until_zero(records)),
                    false => path_of(&records).map_err(|what| format!("extended header at byte {at}: {what}"))?,
                };
                if long.is_some() && path.is_some() && long != path {
                    return Err(format!("the extended headers at bytes {start} and {at} give one member two names"));
                }
                (pending, long) = (Some(at), path.or(long));
            }
            EntryType::XGlobalHeader => {
                if path_of(&extended(file)?).map_err(|what| format!("extended header at byte {at}: {what}"))?.is_some() {
                    return Err(format!("the extended header at byte {at} gives one path to all members"));
                }
            }
            // Before ustar, a folder was an empty file whose name ends with a slash.
            EntryType::Directory | EntryType::Regular if folder && size == 0 => {
                return Ok(Some(Member { path: inner(&name)?, content: None, next }));
            }
            EntryType::Directory | EntryType::Regular if folder => {
                return Err(format!("'{called}' is a folder with {size} bytes of its own"));
            }
            EntryType::Regular => {
                let path = inner(&name)?;
                if path.as_os_str().is_empty() {
                    return Err(format!("the file at byte {at} has no name; pack anew"));
                }
                return Ok(Some(Member { path, content: Some(content), next }));
            }
            EntryType::Link | EntryType::Symlink | EntryType::GNULongLink => {
                return Err(format!("'{called}' is a link; pack the files themselves (`tar --dereference --hard-dereference`)"));
            }
            EntryType::GNUSparse => return Err(format!("'{called}' is stored as a sparse file; pack without `--sparse`")),
            other => {
                return Err(format!("'{called}' is of type {:?}; only files and folders are read", char::from(other.as_byte())));
            }
        }
        at = next;
    }
}

fn bytes(mut file: &File, length: u64, start: u64, count: u64) -> Result<Vec<u8>, String> {
    if start.checked_add(count).is_none_or(|end| end > length) {
        return Err(format!("{count} bytes at byte {start} reach beyond the end at byte {length}"));
    }
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(count).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 == count => Ok(bytes),
        Ok(read) => Err(format!("{read} of {count} bytes at byte {start} can be read")),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether nothing but zeros follows; archives are padded with them.
fn empty_from(mut file: &File, start: u64) -> bool {
    let mut buffer = vec![0; 64 << 10];
    if file.seek(SeekFrom::Start(start)).is_err() {
        return false;
    }
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return true,
            Ok(read) if buffer[..read].iter().all(|byte| *byte == 0) => {}
            _ => return false,
        }
    }
}

/// The sum of a header's bytes, those of the sum itself taken for blanks.
fn checksum(block: &[u8]) -> u32 {
    block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) }).sum()
}

fn until_zero(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    name
}

/// The `path` in an extended header, whose records are `LENGTH KEY=VALUE\n` with the length of all of it.
fn path_of(mut records: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut path = None;
    while !records.is_empty() {
        let blank = records.iter().position(|byte| *byte == b' ').ok_or("a record without its length")?;
        let length = std::str::from_utf8(&records[..blank]).ok().and_then(|text| text.parse::<usize>().ok());
        let record = length.filter(|&length| length > blank + 1).and_then(|length| records.split_at_checked(length));
        let (record, rest) = record.ok_or("a record whose length is not its own")?;
        let record = record[blank + 1..].strip_suffix(b"\n").ok_or("a record without an end of line")?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or("a record without a value")?;
        match &record[..equals] {
            b"path" => path = Some(record[equals + 1..].to_vec()),
            b"size" => return Err("a size of its own, as files of 8 GiB and more have; no image is as large".into()),
            key if key.starts_with(b"GNU.sparse.") => return Err("a sparse file; pack without `--sparse`".into()),
            _ => {}
        }
        records = rest;
    }
    Ok(path)
}

/// The path of a member below the folder that an archive would be unpacked into.
fn inner(name: &[u8]) -> Result<PathBuf, String> {
    if name.len() > LONGEST_NAME {
        return Err(format!("a name of {} bytes; no more than {LONGEST_NAME} are read", name.len()));
    }
    let called = String::from_utf8_lossy(name).escape_debug().to_string();
    let text = std::str::from_utf8(name).map_err(|_| format!("the name '{called}' is not UTF-8"))?;
    if text.contains('\0') {
        return Err(format!("the name '{called}' holds a zero, where systems end a name; pack anew"));
    }
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => {
                return Err(format!("'{called}' leads out of the archive; pack with names below the folder at hand"));
            }
        }
    }
    Ok(path)
}
