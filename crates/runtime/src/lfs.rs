//! Pointers of git-LFS: the few lines of text that a clone without git-LFS holds in place of a large file.

/// What to do about a pointer.
pub const ADVICE: &str = "a git-LFS pointer, not the file itself: `git lfs pull` in its repository fetches that";

/// Whether these are the bytes of a pointer.
pub fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;

    #[test]
    fn a_pointer_is_named_as_such() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
        assert!(is_pointer(pointer));
        assert!(Model::from_bytes(pointer).unwrap_err().to_string().contains("git lfs pull"));
        assert!(Model::verify(pointer)[0].contains("git-LFS pointer"));
        assert!(!is_pointer(b"BRIQ"));
    }
}
