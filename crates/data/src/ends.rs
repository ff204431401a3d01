//! Whether an image is there to its end, told from its bytes piece by piece. Decoders fill with grey what a JPEG lacks, and let a PNG pass whose
//! last chunk is gone.

use image::ImageFormat;

/// Whether all pieces together are an image to its end.
pub(crate) fn is_whole<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut pieces = pieces.into_iter();
    let Some(first) = pieces.next() else { return false };
    let mut end = End::of(first);
    [first].into_iter().chain(pieces).for_each(|piece| end.read(piece));
    end.is_reached()
}

/// How far an image has been followed to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// In a JPEG between segments, or within coded data, where 0xff is followed by a stuffed zero or a restart marker.
    Coded {
        /// Whether the last byte was 0xff, with which markers begin.
        marked: bool,
    },
    /// Behind the marker of a segment, of whose length the first byte may have been read.
    Length(Option<u8>),
    /// Within a segment, of which so many bytes are left.
    Segment(u16),
    /// Within a PNG: the last four bytes.
    Png([u8; 4]),
    /// At the end; it is not looked for in other formats.
    Reached,
}

impl End {
    /// Of an image that begins so, of which nothing has been followed yet.
    pub(crate) fn of(beginning: &[u8]) -> Self {
        match image::guess_format(beginning) {
            // The first marker has no length.
            Ok(ImageFormat::Jpeg) => Self::Segment(2),
            Ok(ImageFormat::Png) => Self::Png([0; 4]),
            _ => Self::Reached,
        }
    }

    /// Goes on over the next bytes.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            *self = match *self {
                Self::Coded { marked: false } => Self::Coded { marked: byte == 0xff },
                Self::Coded { marked: true } => match byte {
                    0 | 1 | 0xd0..=0xd8 => Self::Coded { marked: false },
                    0xff => Self::Coded { marked: true },
                    0xd9 => Self::Reached,
                    _ => Self::Length(None),
                },
                Self::Length(None) => Self::Length(Some(byte)),
                // The length counts its own two bytes.
                Self::Length(Some(high)) => match u16::from_be_bytes([high, byte]) {
                    0..=2 => Self::Coded { marked: false },
                    length => Self::Segment(length - 2),
                },
                Self::Segment(0 | 1) => Self::Coded { marked: false },
                Self::Segment(left) => Self::Segment(left - 1),
                Self::Png([_, a, b, c]) if [a, b, c, byte] == *b"IEND" => Self::Reached,
                Self::Png([_, a, b, c]) => Self::Png([a, b, c, byte]),
                Self::Reached => return,
            };
        }
    }

    /// Whether the end has been met.
    pub(crate) fn is_reached(self) -> bool {
        matches!(self, Self::Reached)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{Rgb, RgbImage};

    use super::*;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        let noise = RgbImage::from_fn(24, 16, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y * 13) as u8, (x * 7) as u8]));
        noise.write_to(&mut Cursor::new(&mut bytes), format).expect("encoded");
        bytes
    }

    #[test]
    fn the_end_is_met_whatever_the_pieces_and_missed_wherever_the_cut_is() {
        for format in [ImageFormat::Jpeg, ImageFormat::Png] {
            let mut bytes = encoded(format);
            // Behind the name of a PNG's last chunk comes its checksum, which a decoder does without.
            let needed = bytes.len() - if format == ImageFormat::Png { 4 } else { 0 };
            for left in 16..bytes.len() {
                assert_eq!(is_whole([&bytes[..left]]), left >= needed, "{left} of {} in {format:?}", bytes.len());
            }
            bytes.extend([7; 40]);
            for size in [16, 17, 100, 1 << 20] {
                assert!(is_whole(bytes.chunks(size)), "{format:?} in pieces of {size}");
            }
        }
        assert!(!is_whole([]) && is_whole([&b"some other file"[..]]));
    }

    #[test]
    fn an_end_within_a_segment_is_none() {
        let comment = |text: &[u8]| [&[0xff, 0xd8, 0xff, 0xfe, 0, 2 + text.len() as u8], text].concat();
        let thumbnail = comment(&[0xff, 0xd9, 0xff, 0xd9]);
        assert!(!is_whole([&thumbnail[..]]) && is_whole([&thumbnail[..], &[0, 0xff, 0xff, 0xd9]]));
        // Lengths that do not count themselves lead nowhere.
        for length in [0, 1] {
            assert!(is_whole([&[0xff, 0xd8, 0xff, 0xe0, 0, length, 0xff, 0xd9][..]]));
        }
        // Stuffed zeros and restarts are coded data.
        assert!(!is_whole([&[0xff, 0xd8, 0xff, 0xda, 0, 2, 0xff, 0, 0xd9, 0xff, 0xd0, 0xd9][..]]));
    }
}
