//! A look at an encoded image: at its header, or at all of its bytes, of which a piece at a time is held.

use std::{
    fs::File,
    io::{Cursor, Read, Take},
    path::PathBuf,
};

use image::{ColorType, ImageDecoder, ImageReader};
use sha2::{Digest, Sha256};

use super::Source;
use crate::{Error, ends::End, files::is_lfs_pointer};

/// What a look at an encoded image tells.
pub(super) struct Seen {
    /// Width and height.
    pub(super) size: [u32; 2],
    pub(super) colour: bool,
    /// SHA-256 of all bytes; zeros where the header alone was looked at.
    pub(super) digest: [u8; 32],
}

/// Bytes that are read at a time, and in which most headers end.
const PIECE: u64 = 64 << 10;

/// Longest header. Metadata may come first, and be long.
const LONGEST_HEADER: u64 = 16 << 20;

/// Longest file of an image that is read.
const LONGEST: u64 = 256 << 20;

/// Most pixels of an image that is read: 4096 by 4096. A header may promise more than any memory holds.
const LARGEST: u64 = 1 << 24;

/// Looks at the header of image `i`.
pub(super) fn header<S: Source>(source: &S, i: usize) -> Result<Seen, Error> {
    let (mut file, _) = opened(source, i)?;
    beginning(source, i, &mut file).map(|(seen, _)| seen)
}

/// Looks at image `i` from its first byte to its last, without decoding it.
pub(super) fn whole<S: Source>(source: &S, i: usize) -> Result<Seen, Error> {
    let (mut file, length) = opened(source, i)?;
    let (seen, mut piece) = beginning(source, i, &mut file)?;
    let (mut digest, mut end, mut read) = (Sha256::new(), End::of(&piece), 0);
    while !piece.is_empty() {
        digest.update(&piece);
        end.read(&piece);
        read += piece.len() as u64;
        piece.clear();
        (&mut file).take(PIECE).read_to_end(&mut piece).map_err(|error| Error::io(source.place(i))(error))?;
    }
    if read < length {
        return Err(shrunk(source.place(i), read, length));
    }
    if !end.is_reached() {
        return Err(cut_short(source.place(i)));
    }
    Ok(Seen { digest: digest.finalize().into(), ..seen })
}

/// All bytes of image `i`.
pub(super) fn all<S: Source>(source: &S, i: usize) -> Result<Vec<u8>, Error> {
    let (mut file, length) = opened(source, i)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| Error::io(source.place(i))(error))?;
    if (bytes.len() as u64) < length {
        return Err(shrunk(source.place(i), bytes.len() as u64, length));
    }
    Ok(bytes)
}

/// What is said of an image that ends before it should.
pub(super) fn cut_short(place: PathBuf) -> Error {
    Error::malformed(place, "the file is cut short: it does not reach the end of its image; fetch it again")
}

fn shrunk(place: PathBuf, read: u64, length: u64) -> Error {
    Error::malformed(place, format!("{read} of {length} bytes are left; the set changed while it was in use"))
}

/// Image `i` and its length, which no more can be read of.
fn opened<S: Source>(source: &S, i: usize) -> Result<(Take<File>, u64), Error> {
    let (file, length) = source.open(i)?;
    if length > LONGEST {
        return Err(Error::malformed(source.place(i), format!("more than {LONGEST} bytes; an image of this size is not read")));
    }
    Ok((file.take(length), length))
}

/// What the header says, and the bytes that were read for it.
fn beginning<S: Source>(source: &S, i: usize, file: &mut Take<File>) -> Result<(Seen, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    loop {
        let next = PIECE.max(bytes.len() as u64);
        let read = file.take(next).read_to_end(&mut bytes).map_err(|error| Error::io(source.place(i))(error))?;
        match seen(&bytes, || source.place(i)) {
            Err(_) if read as u64 == next && (bytes.len() as u64) < LONGEST_HEADER => {}
            seen => return seen.map(|seen| (seen, bytes)),
        }
    }
}

fn seen(bytes: &[u8], place: impl Fn() -> PathBuf) -> Result<Seen, Error> {
    if is_lfs_pointer(bytes) {
        return Err(Error::LfsPointer { path: place() });
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| Error::io(place())(error))?;
    let decoder = reader.into_decoder().map_err(|error| Error::malformed(place(), error.to_string()))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > LARGEST {
        return Err(Error::malformed(
            place(),
            format!("{width}x{height} pixels; no more than {LARGEST} are read, scale the images down"),
        ));
    }
    let grey = matches!(decoder.color_type(), ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16);
    Ok(Seen { size: [width, height], colour: !grey, digest: [0; 32] })
}
