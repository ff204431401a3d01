use std::{fs, io::Cursor};

use super::*;
use crate::{Augment, Dataset, Loader, Outline, Splits};
use image::{GrayImage, ImageBuffer, ImageFormat, Luma, LumaA, Pixel, Rgb, RgbImage, Rgba};
use tempfile::TempDir;

fn at(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().expect("folder")).expect("created");
    path
}

fn grey_file(dir: &TempDir, name: &str, [width, height]: [u32; 2], value: u8) {
    GrayImage::from_pixel(width, height, Luma([value])).save(at(dir, name)).expect("saved");
}

/// Classes ant and cat of grey 3x2 images, whose pixels all have the same value.
fn toy() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary folder");
    let files =
        [("train/cat/0.png", 1), ("train/cat/1.PNG", 2), ("train/ant/0.png", 3), ("test/ant/0.png", 4), ("test/cat/0.png", 5)];
    files.iter().for_each(|(name, value)| grey_file(&dir, name, [3, 2], *value));
    fs::write(dir.path().join("train/ant/notes.txt"), "no image").expect("written");
    dir
}

fn splits(path: &Path) -> Result<Splits, Error> {
    list(path)?.splits()
}

fn outline(path: &Path) -> Result<Outline, Error> {
    list(path)?.outline()
}

fn refusal(dir: &TempDir) -> String {
    let error = splits(dir.path()).expect_err("broken").to_string();
    assert!(outline(dir.path()).is_err() || error.contains("cut short") || error.contains("corrupt"), "{error}");
    error
}

/// The only training pixel, once a file of two equal pixels has been saved as `name`.
fn read_back(name: &str, save: impl Fn(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("temporary folder");
    ["train", "test"].iter().for_each(|split| save(&at(&dir, &format!("{split}/a/{name}"))));
    let train = splits(dir.path()).expect("whole").train;
    train.pixel(0).expect("whole").into_iter().step_by(train.shape[1] * train.shape[2]).collect()
}

fn png<P>(pixel: P) -> Vec<u8>
where
    P: Pixel + image::PixelWithColorType,
    [P::Subpixel]: image::EncodableLayout,
{
    read_back("0.png", |path| ImageBuffer::from_pixel(2, 1, pixel).save(path).expect("saved"))
}

#[test]
fn classes_in_order_of_name_and_images_in_turn() {
    let dir = toy();
    let set = crate::open(&format!("folder:{}", dir.path().display()), &crate::Locations::from_env(None)).expect("whole");
    assert_eq!((&set.classes, set.train.shape), (&vec!["ant".to_owned(), "cat".to_owned()], [1, 2, 3]));
    assert_eq!(
        (0..3).map(|i| (set.train.label(i), set.train.pixel(i).expect("whole")[0])).collect::<Vec<_>>(),
        [(0, 3), (1, 1), (1, 2)]
    );
    assert_eq!((set.test.len(), set.test.pixel(0).expect("whole")[5]), (2, 4));
    assert_eq!(outline(dir.path()).expect("whole"), set.outline());
}

#[test]
fn subfolders_belong_to_their_class() {
    let dir = toy();
    grey_file(&dir, "train/ant/more/1.png", [3, 2], 6);
    let train = splits(dir.path()).expect("whole").train;
    assert_eq!(
        (0..4).map(|i| (train.label(i), train.pixel(i).expect("whole")[0])).collect::<Vec<_>>(),
        [(0, 3), (1, 1), (0, 6), (1, 2)]
    );
}

#[test]
fn what_begins_with_a_dot_is_skipped() {
    let dir = toy();
    for name in ["train/.ipynb_checkpoints/0-checkpoint.png", "train/.DS_Store", "train/cat/._0.png", "test/ant/.thumbs/0.png"] {
        fs::write(at(&dir, name), "what some program keeps for itself").expect("written");
    }
    let set = splits(dir.path()).expect("whole");
    assert_eq!((set.classes, set.train.len(), set.test.len()), (vec!["ant".to_owned(), "cat".to_owned()], 3, 2));
}

#[test]
fn an_empty_class_is_named() {
    let dir = toy();
    fs::write(at(&dir, "train/bird/.DS_Store"), "no image").expect("written");
    let error = refusal(&dir);
    assert!(error.contains("train/bird: no .png, .jpg or .jpeg in this class"), "{error}");
    grey_file(&dir, "train/bird/0.png", [3, 2], 1);
    fs::create_dir_all(dir.path().join("test/bird")).expect("created");
    let error = refusal(&dir);
    assert!(error.contains("test/bird: no .png, .jpg or .jpeg in this class"), "{error}");
}

#[test]
fn both_splits_have_the_same_classes() {
    for (only, lacks) in [("test", "train"), ("train", "test")] {
        let dir = toy();
        grey_file(&dir, &format!("{only}/dog/0.png"), [3, 2], 1);
        let error = refusal(&dir);
        assert!(error.contains(&format!("{only}/dog: {lacks}/ has no such class")), "{error}");
    }
}

#[test]
fn one_image_in_colour_makes_all_of_them_colour() {
    let dir = toy();
    RgbImage::from_pixel(3, 2, Rgb([1, 2, 3])).save(at(&dir, "test/cat/1.png")).expect("saved");
    let set = splits(dir.path()).expect("whole");
    assert_eq!((set.train.shape, set.test.shape), ([3, 2, 3], [3, 2, 3]));
    assert_eq!(set.train.pixel(0).expect("whole"), [3; 18], "the grey picture in three planes");
    assert_eq!(set.test.pixel(2).expect("whole"), [[1; 6], [2; 6], [3; 6]].concat());
}

#[test]
fn every_kind_of_image_is_read_as_pil_converts_it() {
    assert_eq!(png(Rgb([1_u8, 2, 3])), [1, 2, 3]);
    assert_eq!(png(Rgba([200_u8, 100, 50, 0])), [200, 100, 50], "alpha is dropped, not blended");
    assert_eq!(png(LumaA([200_u8, 128])), [200]);
    // PIL 13 takes the high byte of 16 bits; a conversion that rounds would give 1, 129, 255.
    assert_eq!(png(Rgb([0x00ff_u16, 0x80ff, 0xff80])), [0, 128, 255]);
    assert_eq!(png(Rgba([0x00ff_u16, 0x80ff, 0xff80, 9])), [0, 128, 255]);
    assert_eq!(png(LumaA([0x80ff_u16, 9])), [128]);
    assert_eq!(png(Luma([0x80ff_u16])), [128], "PIL would cut off at 255");
}

#[test]
fn inks_become_red_green_and_blue() {
    // `Image.new("CMYK", (8, 8), (10, 100, 200, 30)).save(quality=95)` by PIL 13, which reads it as 216, 137, 49.
    let pixel = read_back("0.JPG", |path| fs::write(path, include_bytes!("cmyk.jpg")).expect("written"));
    assert!(pixel.iter().zip([216_u8, 137, 49]).all(|(found, pil)| found.abs_diff(pil) <= 1), "{pixel:?}");
}

#[test]
fn palettes_become_their_colours() {
    // Two pixels of a palette of two colours, the second half transparent, without compression.
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [&kind[..], data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
    };
    let header = [&2_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &[8, 3, 0, 0, 0]].concat();
    let deflated = [0x78, 0x01, 1, 3, 0, 0xfc, 0xff, 0, 1, 1, 0, 7, 0, 3];
    let file = [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"PLTE", &[1, 2, 3, 40, 50, 60]),
        chunk(b"tRNS", &[255, 128]),
        chunk(b"IDAT", &deflated),
        chunk(b"IEND", &[]),
    ];
    assert_eq!(read_back("0.png", |path| fs::write(path, file.concat()).expect("written")), [40, 50, 60]);
}

/// CRC-32 of PNG, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let noise = RgbImage::from_fn(width, height, |x, y| Rgb([(x * 37 + y * 91) as u8, (x * y * 13) as u8, (x * 7) as u8]));
    noise.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).expect("encoded");
    bytes
}

#[test]
fn the_rotation_in_a_file_s_metadata_is_not_applied() {
    let mut bytes = jpeg(16, 8);
    // "Exif", a TIFF header, and one entry: orientation 6, a quarter turn.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    bytes.splice(2..2, exif.iter().copied());
    let dir = tempfile::tempdir().expect("temporary folder");
    ["train/a/0.jpg", "test/a/0.jpg"].iter().for_each(|name| fs::write(at(&dir, name), &bytes).expect("written"));
    assert_eq!(splits(dir.path()).expect("whole").train.shape, [3, 8, 16]);
}

#[test]
fn files_that_are_cut_short_are_refused_by_name() {
    let whole = jpeg(32, 32);
    for left in [whole.len() - 1, whole.len() - 2, whole.len() - 40, whole.len() / 2 + 200] {
        let dir = toy();
        RgbImage::from_pixel(32, 32, Rgb([9; 3])).save(at(&dir, "train/ant/0.png")).expect("saved");
        for name in ["train/cat/0.png", "train/cat/1.PNG", "test/ant/0.png", "test/cat/0.png"] {
            grey_file(&dir, name, [32, 32], 1);
        }
        fs::write(at(&dir, "train/ant/1.JPEG"), &whole).expect("written");
        assert_eq!(splits(dir.path()).expect("whole").train.len(), 4);
        fs::write(at(&dir, "train/ant/1.JPEG"), &whole[..left]).expect("written");
        let error = refusal(&dir);
        assert!(error.contains("train/ant/1.JPEG: the file is cut short"), "{left} of {}: {error}", whole.len());
    }
    let dir = toy();
    let file = at(&dir, "train/cat/0.png");
    let bytes = fs::read(&file).expect("read");
    fs::write(&file, &bytes[..bytes.len() - 20]).expect("written");
    let error = splits(dir.path()).expect_err("cut").to_string();
    assert!(error.contains("train/cat/0.png: "), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = toy();
    grey_file(&dir, "test/cat/0.png", [2, 2], 1);
    let error = refusal(&dir);
    assert!(error.contains("test/cat/0.png: 2x2 pixels where ") && error.contains("has 3x2; bring all"), "{error}");
    fs::write(dir.path().join("test/cat/0.png"), "no image").expect("written");
    assert!(refusal(&dir).contains("test/cat/0.png: "));
    fs::write(dir.path().join("test/cat/0.png"), "version https://git-lfs.github.com/spec/v1\nsize 9\n").expect("written");
    assert!(refusal(&dir).contains("test/cat/0.png: a git-LFS pointer"));

    let dir = toy();
    fs::write(at(&dir, "train/cat/2.webp"), "an image that would be left out").expect("written");
    assert!(refusal(&dir).contains("train/cat/2.webp: only .png, .jpg and .jpeg are read"));
    let dir = toy();
    grey_file(&dir, "train/3.png", [3, 2], 1);
    assert!(refusal(&dir).contains("train/3.png: lies beside the class folders"));

    let empty = tempfile::tempdir().expect("temporary folder");
    let error = refusal(&empty);
    assert!(error.contains("train: there is no such folder; `folder:PATH` takes the images of each class from"), "{error}");
    ["train", "test"].iter().for_each(|name| fs::create_dir_all(empty.path().join(name)).expect("created"));
    assert!(refusal(&empty).contains("one folder for each class"));
}

#[test]
fn a_header_that_promises_more_than_memory_holds_is_refused() {
    let dir = toy();
    let mut bytes = fs::read(at(&dir, "train/ant/0.png")).expect("read");
    bytes[16..24].copy_from_slice(&[5000_u32.to_be_bytes(), 5000_u32.to_be_bytes()].concat());
    let checksum = crc(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&checksum);
    fs::write(at(&dir, "train/ant/0.png"), bytes).expect("written");
    let error = refusal(&dir);
    assert!(error.contains("train/ant/0.png: 5000x5000 pixels; no more than 16777216 are read"), "{error}");
}

/// The same images with their pixels in memory.
fn in_memory(set: &Dataset) -> Dataset {
    let pixels = (0..set.len()).flat_map(|i| set.pixel(i).expect("whole")).collect();
    let labels = (0..set.len()).map(|i| set.label(i)).collect();
    Dataset::from_memory(set.name.clone(), set.shape, set.classes, pixels, labels).expect("consistent")
}

#[test]
fn an_indexed_set_gives_the_batches_of_one_in_memory() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for i in 0..23 {
        fs::write(at(&dir, &format!("train/{}/{i}.jpg", i % 3)), jpeg(8, 16)).expect("written");
        RgbImage::from_fn(8, 16, |x, y| Rgb([(x * i) as u8, (y * i * 3) as u8, i as u8]))
            .save(at(&dir, &format!("test/{}/{i}.png", i % 3)))
            .expect("saved");
    }
    let set = splits(dir.path()).expect("whole");
    for indexed in [&set.train, &set.test] {
        let memory = in_memory(indexed);
        assert_eq!(indexed.statistics().expect("whole"), memory.statistics().expect("memory"));
        let batches = |set: &Dataset, workers| {
            let augment = Augment { pad_crop: 2, flip: true };
            Loader::train(set, 5, augment, 3, workers).collect::<Result<Vec<_>, _>>().expect("whole")
        };
        let whole = batches(&memory, 1);
        for workers in [0, 1, 2, 5] {
            assert_eq!(batches(indexed, workers), whole);
        }
        let (halves, others) = (indexed.split(7, 4), memory.split(7, 4));
        assert_eq!(batches(&halves.0, 2), batches(&others.0, 1));
        assert_eq!(batches(&halves.1, 2), batches(&others.1, 1));
        assert_eq!(
            batches(indexed, 3)[2..],
            Loader::train(indexed, 5, Augment { pad_crop: 2, flip: true }, 3, 3)
                .starting_at(2)
                .map(|batch| batch.expect("whole"))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_vanishes_or_changes_once_it_is_indexed_is_named_when_it_is_read() {
    let dir = toy();
    let set = splits(dir.path()).expect("whole");
    let error = |set: &Dataset| Loader::ordered(set, 2).find_map(Result::err).expect("an image is gone").to_string();
    grey_file(&dir, "train/cat/0.png", [2, 2], 1);
    assert!(error(&set.train).contains("train/cat/0.png: no longer the image that was indexed"), "{}", error(&set.train));
    RgbImage::from_pixel(3, 2, Rgb([9; 3])).save(at(&dir, "train/cat/0.png")).expect("saved");
    assert!(error(&set.train).contains("train/cat/0.png: no longer the image that was indexed"));
    fs::write(at(&dir, "train/cat/0.png"), []).expect("written");
    assert!(error(&set.train).contains("train/cat/0.png: "));
    fs::remove_file(at(&dir, "train/cat/0.png")).expect("removed");
    assert!(error(&set.train).contains("train/cat/0.png: "));
    assert!(set.normalization().expect_err("gone").to_string().contains("train/cat/0.png: "));
    assert_eq!(Loader::ordered(&set.test, 2).filter(Result::is_ok).count(), 1);
}

#[test]
fn what_only_a_decoder_sees_is_named_when_the_image_is_read() {
    let dir = toy();
    let mut bytes = fs::read(at(&dir, "train/ant/0.png")).expect("read");
    // In the compressed pixels, whose checksum no longer holds.
    let data = bytes.windows(4).position(|name| name == b"IDAT").expect("pixels");
    bytes[data + 6] ^= 0xff;
    fs::write(at(&dir, "train/ant/0.png"), bytes).expect("written");
    let set = splits(dir.path()).expect("headers and ends are there");
    let error = set.normalization().expect_err("broken").to_string();
    assert!(error.contains("train/ant/0.png: "), "{error}");
}

#[test]
fn a_longer_header_than_a_plan_reads_at_first_is_read_after_all() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut bytes = jpeg(16, 8);
    let comment = [&[0xff, 0xfe, 0xff, 0xff][..], &[b'x'; 0xfffd]].concat();
    (0..3).for_each(|_| drop(bytes.splice(2..2, comment.iter().copied())));
    ["train/a/0.jpg", "test/a/0.jpg"].iter().for_each(|name| fs::write(at(&dir, name), &bytes).expect("written"));
    assert_eq!(outline(dir.path()).expect("whole").shape, [3, 8, 16]);
    assert_eq!(splits(dir.path()).expect("whole").train.pixel(0).expect("whole").len(), 3 * 8 * 16);
}

#[test]
fn of_several_files_that_are_broken_the_first_of_the_set_is_named_on_any_number_of_threads() {
    let dir = toy();
    // The longer a file, the later a thread is done with it.
    let mut long = jpeg(16, 8);
    long.truncate(long.len() - 2);
    long.resize(4 << 20, 0);
    fs::write(at(&dir, "train/ant/0.png"), long).expect("written");
    (2..200).for_each(|i| fs::write(at(&dir, &format!("train/cat/{i:03}.png")), "no image").expect("written"));
    for threads in [1, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let error = pool.install(|| splits(dir.path())).expect_err("broken").to_string();
        assert!(error.contains("train/ant/0.png: the file is cut short"), "{threads} threads: {error}");
    }
}

#[cfg(unix)]
#[test]
fn links_and_pipes_lead_nowhere_for_ever() {
    use std::os::unix::fs::symlink;

    let dir = toy();
    let more = tempfile::tempdir().expect("temporary folder");
    grey_file(&more, "b.png", [3, 2], 9);
    symlink(more.path(), at(&dir, "train/ant/linked")).expect("a link");
    assert_eq!(splits(dir.path()).expect("a link to a folder is a folder").train.len(), 4);
    for links in
        [&[("..", "train/ant/up")][..], &[("../ant", "train/ant/self")], &[("../ant", "train/cat/a"), ("../cat", "train/ant/c")]]
    {
        links.iter().for_each(|(to, name)| symlink(to, at(&dir, name)).expect("a link"));
        let error = refusal(&dir);
        assert!(error.contains("a link back to a folder that it lies in"), "{links:?}: {error}");
        links.iter().for_each(|(_, name)| fs::remove_file(at(&dir, name)).expect("removed"));
    }
    assert!(std::process::Command::new("mkfifo").arg(at(&dir, "train/ant/pipe.png")).status().expect("a pipe").success());
    assert!(refusal(&dir).contains("train/ant/pipe.png: neither a file nor a folder"));
}
