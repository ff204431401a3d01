use std::{fs, io::Cursor};

use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::{Augment, Dataset, Loader, Outline, Splits, folder};

fn splits(path: &Path) -> Result<Splits, Error> {
    list(path)?.splits()
}

fn outline(path: &Path) -> Result<Outline, Error> {
    list(path)?.outline()
}

/// The bytes of a grey 3x2 image whose pixels all have this value.
fn png(value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    GrayImage::from_pixel(3, 2, Luma([value])).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).expect("encoded");
    bytes
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size as u64);
    header
}

/// An archive of these members.
fn packed<N: AsRef<str>>(members: &[(N, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, bytes) in members {
        let kind = if name.as_ref().ends_with('/') { EntryType::Directory } else { EntryType::Regular };
        archive.append_data(&mut header(kind, bytes.len()), name.as_ref(), &bytes[..]).expect("memory");
    }
    archive.into_inner().expect("memory")
}

/// A member as it stands, whatever it says of itself, without an archive's end.
fn member(name: &[u8], kind: u8, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = header(EntryType::new(kind), 0);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = [&header.as_bytes()[..], content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn ended(members: &[Vec<u8>]) -> Vec<u8> {
    [&members.concat()[..], &[0; 1024]].concat()
}

fn write(dir: &TempDir, name: &str, archive: &[u8]) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().expect("folder")).expect("created");
    fs::write(path, archive).expect("written");
}

/// Classes ant and cat in two archives and a test archive.
fn toy() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let notes = b"no image".to_vec();
    write(
        &dir,
        "train/1.tar",
        &packed(&[("./", vec![]), ("./ant/", vec![]), ("./ant/b.png", png(3)), ("./ant/notes.txt", notes)]),
    );
    write(&dir, "train/0.tar", &packed(&[("cat/b.png", png(2)), ("cat/._a.png", vec![0]), ("ant/a.png", png(1))]));
    write(&dir, "test/0.TAR", &packed(&[("cat/0.png", png(5)), ("ant/0.png", png(4))]));
    write(&dir, "train/index.json", b"{}");
    dir
}

fn pixels(set: &Dataset) -> Vec<(u16, u8)> {
    (0..set.len()).map(|i| (set.label(i), set.pixel(i).expect("whole")[0])).collect()
}

/// What is said of the toy set once this archive has taken the place of `train/0.tar`, or another file has come.
fn refusal(name: &str, archive: &[u8]) -> String {
    let dir = toy();
    write(&dir, name, archive);
    let [plan, run] = [outline(dir.path()).map(drop), splits(dir.path()).map(drop)].map(|result| result.expect_err("broken"));
    assert_eq!(plan.to_string(), run.to_string());
    run.to_string()
}

#[track_caller]
fn refused(archive: &[u8], expected: &str) {
    let error = refusal("train/0.tar", archive);
    assert!(error.contains("train/0.tar") && error.contains(expected), "{error}");
}

#[test]
fn classes_in_order_of_name_and_images_in_turn() {
    let dir = toy();
    let name = format!("shards:{}", dir.path().display());
    let set = crate::open(&name, &crate::Locations::from_env(None)).expect("whole");
    assert_eq!((&set.name, &set.classes, set.train.shape), (&name, &vec!["ant".to_owned(), "cat".to_owned()], [1, 2, 3]));
    assert_eq!((pixels(&set.train), pixels(&set.test)), (vec![(0, 1), (1, 2), (0, 3)], vec![(0, 4), (1, 5)]));
    assert_eq!(outline(dir.path()).expect("whole"), set.outline());
}

#[test]
fn a_folder_packed_into_shards_is_the_same_set() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for split in ["train", "test"] {
        let mut members: Vec<(String, Vec<u8>)> = Vec::new();
        for i in 0..30 {
            let mut bytes = Vec::new();
            let format = if i % 3 == 0 { ImageFormat::Jpeg } else { ImageFormat::Png };
            let picture = RgbImage::from_fn(9, 5, |_, _| Rgb(rng.random()));
            picture.write_to(&mut Cursor::new(&mut bytes), format).expect("encoded");
            let deeper = if i % 7 == 0 { "more/" } else { "" };
            members.push((format!("class {}/{deeper}{i}.{}", i % 4, if i % 3 == 0 { "JPG" } else { "png" }), bytes));
        }
        for (name, bytes) in &members {
            write(&dir, &format!("folder/{split}/{name}"), bytes);
        }
        // In any order, and spread over archives.
        let shards = [0, 1, 2].map(|shard| members.iter().rev().skip(shard).step_by(3).cloned().collect::<Vec<_>>());
        for (number, shard) in shards.iter().enumerate() {
            write(&dir, &format!("shards/{split}/{number}.tar"), &packed(shard));
        }
    }
    let unpacked = folder::list(&dir.path().join("folder")).and_then(Listed::splits).expect("whole");
    let shards = splits(&dir.path().join("shards")).expect("whole");
    assert_eq!((&shards.classes, &shards.sha256), (&unpacked.classes, &unpacked.sha256));
    assert_eq!(shards.normalization().expect("whole"), unpacked.normalization().expect("whole"));
    let batches = |set: &Dataset, workers| {
        let augment = Augment { pad_crop: 1, flip: true };
        Loader::train(set, 4, augment, 8, workers).collect::<Result<Vec<_>, _>>().expect("whole")
    };
    assert_eq!(batches(&shards.train, 3), batches(&unpacked.train, 1));
    assert_eq!(batches(&shards.test.take(13), 0), batches(&unpacked.test.take(13), 2));
}

#[test]
fn keys_have_their_classes_beside_them() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let text = |text: &str| text.as_bytes().to_vec();
    let one =
        [("7.png", png(7)), ("7.cls", text("1\n")), ("7.fine.cls", text("dog")), ("a/3.png", png(3)), ("a/3.cls", text("0"))];
    write(&dir, "train/0.tar", &packed(&one));
    write(&dir, "train/1.tar", &packed(&[("8.cls", text("1")), ("8.png", png(8))]));
    let test = [("0.png", png(1)), ("0.cls", text("0")), ("1.png", png(2)), ("1.cls", text("1"))];
    write(&dir, "test/0.tar", &packed(&test));
    let set = splits(dir.path()).expect("whole");
    assert_eq!((pixels(&set.train), pixels(&set.test)), (vec![(0, 3), (1, 7), (1, 8)], vec![(0, 1), (1, 2)]));
    assert_eq!(set.classes, ["0", "1"]);

    let refused = |members: &[(&str, Vec<u8>)], expected: &str| {
        write(&dir, "train/0.tar", &packed(members));
        let error = splits(dir.path()).expect_err("broken").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&[("7.png", png(7)), ("7.cls", text("0")), ("9.png", png(9))], "train/0.tar/9.png: no `KEY.cls` says its class");
    refused(
        &[("7.png", png(7)), ("7.jpg", png(7)), ("7.cls", text("0"))],
        "0.tar/7.png: no `KEY.cls` says its class, or another",
    );
    refused(&[("7.png", png(7)), ("7.cls", text("0")), ("9.cls", text("1"))], "0.tar/9.cls: says the class of no image");
    refused(&[("7.png", png(7)), ("7.cls", text("cat"))], "0.tar/7.cls: a class is a number below 65535, not 'cat'");
    refused(&[("7.png", png(7)), ("7.cls", text("65535"))], "a class is a number below 65535, not '65535'");
    refused(&[("7.png", png(7)), ("7.cls", text("0                           9"))], "a class is a number below 65535");
    refused(&[("7.png", png(7)), ("7.cls", text("3"))], "train/0: no .png, .jpg or .jpeg in this class");
    refused(
        &[("7.png", png(7)), ("7.cls", text("0")), ("3.png", png(1)), ("3.cls", text("2"))],
        "train/2: test/ has no such class",
    );
    write(&dir, "train/1.tar", &packed(&[("a/8.png", png(8))]));
    refused(&[("a/3.png", png(3))], "train: no member `KEY.cls` says a class, but in test/ some do");
}

#[test]
fn long_names_are_understood_and_other_extended_headers_passed_over() {
    let dir = toy();
    let long = format!("cat/{}/b.png", "x".repeat(300));
    let mut gnu = Builder::new(Vec::new());
    let mut head = Header::new_gnu();
    head.set_size(png(2).len() as u64);
    gnu.append_data(&mut head, &long, &png(2)[..]).expect("memory");
    let mut pax = Builder::new(Vec::new());
    pax.append_pax_extensions([("mtime", &b"1.25"[..]), ("path", long.as_bytes())]).expect("memory");
    pax.append_data(&mut header(EntryType::Regular, png(2).len()), "short", &png(2)[..]).expect("memory");
    let comment = b"52 comment=0123456789012345678901234567890123456789\n";
    let global =
        ended(&[member(b"pax_global_header", b'g', 52, comment), member(b"cat/b.png", b'0', png(2).len() as u64, &png(2))]);
    for archive in [gnu.into_inner().expect("memory"), pax.into_inner().expect("memory"), global] {
        write(&dir, "train/0.tar", &archive);
        let set = splits(dir.path()).expect("whole");
        assert_eq!(pixels(&set.train), [(0, 3), (1, 2)]);
    }
}

#[test]
fn archives_that_are_cut_short_are_refused_wherever_the_cut_is() {
    let archive = packed(&[("cat/b.png", png(2)), ("ant/a.png", png(1)), ("ant/c.png", png(1))]);
    let end = archive.len() - 1024;
    for left in (0..=end).step_by(64) {
        refused(&archive[..left], "cut short");
    }
    let dir = toy();
    write(&dir, "train/0.tar", &archive[..end + 512]);
    assert_eq!(splits(dir.path()).expect("one block of zeros ends an archive").train.len(), 4);
}

#[test]
fn what_an_archive_must_not_hold_is_refused_by_name() {
    let file = |name: &[u8]| member(name, b'0', png(1).len() as u64, &png(1));
    for (kind, expected) in [
        (b'1', "'cat/b.png' is a link; pack the files themselves"),
        (b'2', "'cat/b.png' is a link; pack the files themselves"),
        (b'K', "'cat/b.png' is a link; pack the files themselves"),
        (b'S', "'cat/b.png' is stored as a sparse file"),
        (b'3', "'cat/b.png' is of type '3'; only files and folders are read"),
        (b'z', "'cat/b.png' is of type 'z'"),
    ] {
        refused(&ended(&[member(b"cat/b.png", kind, 0, &[])]), expected);
    }
    refused(&ended(&[member(b"cat", b'5', 512, &[1; 512])]), "'cat' is a folder with 512 bytes of its own");
    refused(&ended(&[file(b"../cat/b.png")]), "'../cat/b.png' leads out of the archive");
    refused(&ended(&[file(b"/cat/b.png")]), "'/cat/b.png' leads out of the archive");
    refused(&ended(&[file(b"cat/\xff.png")]), "is not UTF-8");
    refused(&ended(&[file(b"cat/b.png"), file(b"cat/b.png")]), "0.tar has a member of this name, too");
    refused(&ended(&[file(b"b.png")]), "0.tar/b.png: lies beside the class folders");
    refused(&ended(&[file(b"cat/b.gif")]), "0.tar/cat/b.gif: only .png, .jpg and .jpeg are read");
    refused(&[ended(&[file(b"cat/b.png")]), ended(&[file(b"cat/c.png")])].concat(), "there is more behind the archive's end");
    refused(&[b'x'; 2048], "no tar header at byte 0");
    refused(&ended(&[file(b"cat/b.png"), vec![7; 512]]), "no tar header at byte 1024");
    let pointer = b"version https://git-lfs.github.com/spec/v1\nsize 9\n";
    refused(pointer, "a git-LFS pointer");
}

#[test]
fn sizes_and_headers_that_lie_are_refused() {
    for size in [1 << 20, 1 << 40, u64::MAX - 511, u64::MAX] {
        refused(&ended(&[member(b"cat/b.png", b'0', size, &png(1))]), "asks for ");
    }
    refused(&ended(&[member(b"long", b'L', 1 << 30, &[b'x'; 600])]), "asks for ");
    refused(&ended(&[member(b"long", b'L', 100_000, &[b'x'; 100_000])]), "a header of 100000 bytes");
    for (kind, content) in [(b'L', &b"cat/b.png"[..]), (b'x', b"18 path=cat/b.png\n"), (b'x', b"11 mtime=7\n")] {
        let header = || member(b"long", kind, content.len() as u64, content);
        refused(&ended(&[header()]), "the extended header at byte 0 is of no member: the archive ends behind it, at byte 1024");
        let behind = [member(b"cat/a.png", b'0', png(1).len() as u64, &png(1)), header()];
        refused(&ended(&behind), "the extended header at byte 1024 is of no member");
        refused(&behind.concat(), "the archive is cut short");
    }
    let two = [member(b"long", b'L', 9, b"cat/b.png"), member(b"pax", b'x', 18, b"18 path=cat/c.png\n")];
    refused(&ended(&two), "the extended headers at bytes 0 and 1024 give one member two names");
    let file = |long: &[u8]| [member(b"long", b'L', long.len() as u64, long), member(b"x", b'0', png(1).len() as u64, &png(1))];
    refused(&ended(&file(&[b'x'; 4097])), "a name of 4097 bytes; no more than 4096 are read");
    refused(&ended(&file(b"")), "the file at byte 512 has no name");
    refused(&ended(&file(b"./")), "'./' is a folder with");
    refused(&ended(&file(b"cat/\x1b[2Jb.gif/")), "'cat/\\u{1b}[2Jb.gif/' is a folder with");
    let zero = member(b"pax", b'x', 20, b"20 path=cat/b.png\0x\n");
    refused(&ended(&[zero, file(b"")[1].clone()]), "holds a zero, where systems end a name");
    for (records, expected) in [
        (&b"12 size=123\n"[..], "a size of its own"),
        (b"22 GNU.sparse.major=1\n", "a sparse file"),
        (b"99 path=a\n", "a record whose length is not its own"),
        (b"2 path=a\n", "a record whose length is not its own"),
        (b"18446744073709551616 path=a\n", "a record whose length is not its own"),
        (b"path=a\n", "a record without its length"),
        (b"9 path=a\0", "a record without an end of line"),
        (b"7 path\n", "a record without a value"),
    ] {
        refused(&ended(&[member(b"pax", b'x', records.len() as u64, records)]), expected);
        refused(&ended(&[member(b"pax", b'g', records.len() as u64, records)]), expected);
    }
    refused(&ended(&[member(b"pax", b'g', 10, b"10 path=a\n")]), "gives one path to all members");
}

#[test]
fn folders_of_other_things_are_refused() {
    assert!(refusal("train/2.tar.gz", b"").contains("train/2.tar.gz: a compressed archive has no offsets"));
    assert!(refusal("train/more/0.tar", b"").contains("train/more: a folder among the archives"));
    assert!(refusal("test/0.TAR", &packed(&[("cat/0.png", png(1))])).contains("test/ has no such class"));
    let both = packed(&[("cat/0.png", png(1)), ("ant/0.png", png(1)), ("dog/", vec![])]);
    assert!(refusal("test/0.TAR", &both).contains("test/dog: train/ has no such class"));
    let empty = packed(&[("cat/0.png", png(1)), ("dog/", vec![])]);
    assert!(refusal("train/0.tar", &empty).contains("train/dog: no .png, .jpg or .jpeg in this class"));
    let dir = tempfile::tempdir().expect("temporary folder");
    let error = splits(dir.path()).expect_err("empty").to_string();
    assert!(error.contains("train: there is no such folder; `shards:PATH` takes archives of images from"), "{error}");
    ["train", "test"].iter().for_each(|split| write(&dir, &format!("{split}/readme"), b""));
    assert!(splits(dir.path()).expect_err("empty").to_string().contains("train: no .tar in this folder"));
}

#[test]
fn images_that_are_not_whole_are_named_with_their_archive() {
    let dir = toy();
    let cut = png(2)[..png(2).len() - 12].to_vec();
    write(&dir, "train/0.tar", &packed(&[("cat/b.png", cut)]));
    let error = splits(dir.path()).expect_err("cut").to_string();
    assert!(error.contains("train/0.tar/cat/b.png: the file is cut short"), "{error}");
    let large = {
        let mut bytes = Vec::new();
        GrayImage::new(4, 4).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).expect("encoded");
        bytes
    };
    assert!(refusal("train/0.tar", &packed(&[("cat/b.png", large)])).contains("0.tar/cat/b.png: 4x4 pixels where "));
    assert!(refusal("train/0.tar", &packed(&[("cat/b.png", b"text".to_vec())])).contains("0.tar/cat/b.png: "));
}

#[test]
fn an_archive_that_vanishes_or_changes_once_it_is_indexed_is_named() {
    let dir = toy();
    let set = splits(dir.path()).expect("whole");
    let error = || Loader::ordered(&set.train, 2).find_map(Result::err).expect("an image is gone").to_string();
    let whole = fs::read(dir.path().join("train/0.tar")).expect("read");
    fs::write(dir.path().join("train/0.tar"), &whole[..530]).expect("written");
    assert!(error().contains("train/0.tar/(member at byte ") && error().contains("the set changed"), "{}", error());
    fs::remove_file(dir.path().join("train/0.tar")).expect("removed");
    assert!(error().contains("train/0.tar: "), "{}", error());
}

#[test]
fn no_archive_makes_the_reader_panic() {
    let members = [("./cat/", vec![]), ("./cat/b.png", png(2)), ("ant/a.png", png(1)), ("ant/a.cls", b"0".to_vec())];
    let mut archive = Builder::new(Vec::new());
    archive.append_pax_extensions([("path", &b"cat/long.png"[..])]).expect("memory");
    let whole = [archive.into_inner().expect("memory")[..1024].to_vec(), packed(&members)].concat();
    let dir = toy();
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    for _ in 0..600 {
        let mut bytes = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = rng.random(),
                _ => {
                    // A field of a header, whose checksum is made to hold again.
                    let block = at / 512 * 512;
                    let field = block + [0, 124, 135, 156, 345][rng.random_range(0..5)] + rng.random_range(0..2);
                    if let (true, Some(byte)) = (block + 512 <= bytes.len(), bytes.get_mut(field)) {
                        *byte = [b'0', b'7', b'x', b'L', b'5', 0, 0x80, 0xff][rng.random_range(0..8)];
                        let mut head = Header::from_byte_slice(&bytes[block..block + 512]).clone();
                        head.set_cksum();
                        bytes[block..block + 512].copy_from_slice(head.as_bytes());
                    }
                }
            }
        }
        write(&dir, "train/0.tar", &bytes);
        if let Ok(set) = splits(dir.path()) {
            Loader::ordered(&set.train, 2).for_each(drop);
        }
    }
}
