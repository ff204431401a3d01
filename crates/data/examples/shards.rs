//! Writes generated images into tar shards: `cargo run -p briquette-data --example shards -- FOLDER TRAIN TEST`, with the numbers of training and
//! test images, makes `FOLDER` the set `shards:FOLDER`. The images are those of `glyphs`, as PNG files `train/00000.tar/DIGIT/NUMBER.png`.
//!
//! `cargo xtask shards` trains on such sets and shows that their size takes no memory.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Write};
use std::path::Path;

use briquette_data::{Dataset, GlyphCounts, Locations, open};
use image::{GrayImage, ImageFormat};

/// Images in an archive.
const EACH: usize = 5000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, train, test] = &arguments[..] else { return Err("usage: shards FOLDER TRAIN TEST".into()) };
    let glyphs = GlyphCounts { train: train.parse()?, test: test.parse()? };
    if Path::new(folder).exists() {
        return Err(format!("{folder} is there already; remove it, or name another folder").into());
    }
    let set = open("glyphs", &Locations { glyphs, ..Locations::from_env(None) })?;
    // A folder of this name is whole: who is interrupted leaves another, which the next call takes away.
    let unfinished = Path::new(folder).with_added_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    for (split, images) in [("train", &set.train), ("test", &set.test)] {
        write(&unfinished.join(split), images)?;
    }
    Ok(fs::rename(unfinished, folder)?)
}

fn write(folder: &Path, images: &Dataset) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let [_, height, width] = images.shape;
    for (number, first) in (0..images.len()).step_by(EACH).enumerate() {
        let mut archive = tar::Builder::new(BufWriter::new(File::create(folder.join(format!("{number:05}.tar")))?));
        for i in first..images.len().min(first + EACH) {
            let mut png = Vec::new();
            let image = GrayImage::from_raw(width as u32, height as u32, images.pixel(i)?).ok_or("glyphs are grey")?;
            image.write_to(&mut Cursor::new(&mut png), ImageFormat::Png)?;
            let mut header = tar::Header::new_ustar();
            header.set_size(png.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{}/{i:07}.png", images.label(i)), &png[..])?;
        }
        archive.into_inner()?.flush()?;
    }
    Ok(())
}
