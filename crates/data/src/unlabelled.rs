use std::path::Path;

use crate::{Dataset, Error, files::there, folder, folder::entries, shards};

/// Images of no known class, of the shape `[channels, height, width]` of those that they come beside: all `.png`, `.jpg` and `.jpeg` below a folder, or, where it holds
/// `.tar` archives, all in these. They are in order of name, and each has the label 0 of one class, in the place of which [`Dataset::labelled`]
/// puts another one. Beside them comes a digest of all files, which tells whether the same images are there.
///
/// As in a data set with labels, each file is read once, to see its header and its end, and decoded when it is asked for.
///
/// # Errors
/// Names the folder that is not there or holds no image, and the file that is cut short, is of another size, in a format that is not read, or in colour
/// where the shape is grey. Grey images are taken for any shape.
///
/// ```
/// use briquette_data::{Dataset, unlabelled};
///
/// let folder = tempfile::tempdir().unwrap();
/// image::GrayImage::from_pixel(4, 2, image::Luma([9])).save(folder.path().join("a.png")).unwrap();
/// let (images, digest) = unlabelled(folder.path(), [1, 2, 4]).unwrap();
/// let labelled = Dataset::labelled("mine", &[images], 10, vec![7]).unwrap();
/// assert_eq!((labelled.label(0), labelled.pixel(0).unwrap()), (7, vec![9; 8]));
/// assert_eq!(digest.len(), 64);
/// ```
pub fn unlabelled(folder: &Path, shape: [usize; 3]) -> Result<(Dataset, String), Error> {
    there(folder, "images without labels are those below a folder, or in its .tar archives")?;
    let is_archive = |path: &Path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar"));
    match entries(folder)?.iter().any(|path| is_archive(path)) {
        true => shards::unlabelled(folder, shape),
        false => folder::unlabelled(folder, shape),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    use super::*;

    const SHAPE: [usize; 3] = [1, 2, 3];

    /// Grey 3x2 images in two folders.
    fn toy() -> TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        for (name, value) in [("b/1.png", 3), ("b/0.PNG", 2), ("a.png", 1), ("c/d/0.png", 4)] {
            grey(&dir, name, [3, 2], value);
        }
        fs::write(dir.path().join("notes.txt"), "no image").expect("written");
        dir
    }

    fn grey(dir: &TempDir, name: &str, [width, height]: [u32; 2], value: u8) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("folder")).expect("created");
        GrayImage::from_pixel(width, height, Luma([value])).save(path).expect("saved");
    }

    fn packed(dir: &TempDir) -> TempDir {
        let into = tempfile::tempdir().expect("temporary folder");
        let mut archive = tar::Builder::new(fs::File::create(into.path().join("all.tar")).expect("created"));
        archive.append_dir_all(".", dir.path()).expect("packed");
        archive.finish().expect("packed");
        into
    }

    fn values(set: &Dataset) -> Vec<u8> {
        (0..set.len()).map(|i| set.pixel(i).expect("whole")[0]).collect()
    }

    fn refused(dir: &TempDir, shape: [usize; 3]) -> String {
        unlabelled(dir.path(), shape).expect_err("faulty").to_string()
    }

    #[test]
    fn a_folder_and_its_archive_are_the_same_images_in_order_of_name() {
        let dir = toy();
        for dir in [&dir, &packed(&dir)] {
            let (set, _) = unlabelled(dir.path(), SHAPE).expect("whole");
            assert_eq!((values(&set), set.shape, set.classes), (vec![1, 2, 3, 4], SHAPE, 1));
        }
    }

    #[test]
    fn grey_images_stand_in_all_planes_and_colour_is_refused_where_the_data_are_grey() {
        let dir = toy();
        let (set, before) = unlabelled(dir.path(), [3, 2, 3]).expect("whole");
        assert_eq!(set.pixel(3).expect("whole"), [4; 18]);
        RgbImage::from_pixel(3, 2, Rgb([1, 2, 3])).save(dir.path().join("b/2.png")).expect("saved");
        let (set, after) = unlabelled(dir.path(), [3, 2, 3]).expect("whole");
        assert_eq!(values(&set), [1, 2, 3, 1, 4]);
        assert!(after != before && unlabelled(dir.path(), [3, 2, 3]).expect("whole").1 == after);
        let error = refused(&dir, SHAPE);
        assert!(error.ends_with("b/2.png: in colour where the data are grey; make the images grey"), "{error}");
        let error = refused(&toy(), [2, 2, 3]);
        assert!(error.ends_with("no image file has the data's 2 channels"), "{error}");
    }

    #[test]
    fn what_is_of_another_size_cut_short_or_no_image_is_named() {
        for dir in [toy(), packed(&toy())] {
            let error = refused(&dir, [1, 3, 2]);
            assert!(error.ends_with("a.png: 3x2 pixels where the data have 2x3; bring all images to one size"), "{error}");
        }
        let dir = toy();
        let path = dir.path().join("c/d/0.png");
        let bytes = fs::read(&path).expect("written");
        fs::write(&path, &bytes[..bytes.len() - 6]).expect("written");
        for dir in [&dir, &packed(&dir)] {
            let error = refused(dir, SHAPE);
            assert!(error.contains("c/d/0.png: the file is cut short"), "{error}");
        }
        grey(&dir, "b/9.png", [2, 2], 1);
        assert!(refused(&dir, SHAPE).contains("b/9.png: 2x2 pixels where "));
        fs::write(dir.path().join("b/0.bmp"), "a picture").expect("written");
        assert!(refused(&dir, SHAPE).contains("b/0.bmp: only .png, .jpg and .jpeg are read"));
    }

    #[test]
    fn an_empty_folder_and_none_at_all_are_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        assert!(refused(&dir, SHAPE).contains("no .png, .jpg or .jpeg in this folder"));
        assert!(refused(&packed(&dir), SHAPE).contains("no .png, .jpg or .jpeg in these archives"));
        let error = unlabelled(&dir.path().join("gone"), SHAPE).expect_err("not there").to_string();
        assert!(error.contains("there is no such folder; images without labels are those below a folder"), "{error}");
    }
}
