//! Where a path leads: through symbolic links, and to the same file as another one.

use std::io::Result;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Links that are followed before a path is left as it is.
const MOST_LINKS: usize = 40;

/// The file that a path names, behind symbolic links, whether it is there yet or not. A link is a way to write somewhere else, so
/// what replaces a file must replace this one.
pub fn behind_links(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    // Pipes of this process (`/dev/stdout`) are there and have no path.
    if path.exists() {
        return path.to_path_buf();
    }
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let Ok(next) = std::fs::read_link(&target) else { break };
        target = target.parent().unwrap_or(Path::new("")).join(next);
    }
    let parent = match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new(".").canonicalize(),
        Some(parent) => parent.canonicalize(),
        None => return target,
    };
    match (parent, target.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => target,
    }
}

/// Whether two paths lead to one file: by name, by a symbolic link or by a hard one. Devices and pipes may be read and written
/// at the same time, so they are no file in this sense.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), Err(_)) => behind_links(one) == behind_links(other),
        _ => false,
    }
}

/// Writes content into `beside` and moves it to `path`, which is then the old file or the new one, whole, with the mode of the old
/// one. `path` must be [behind links](behind_links).
///
/// # Errors
/// The content cannot be written; `path` is then as it was.
pub fn replace(path: &Path, beside: &Path, content: &[u8]) -> Result<()> {
    if beside.is_symlink() {
        std::fs::remove_file(beside)?;
    }
    let written = std::fs::write(beside, content).and_then(|()| {
        if let Ok(old) = std::fs::metadata(path) {
            std::fs::set_permissions(beside, old.permissions())?;
        }
        std::fs::rename(beside, path)
    });
    if written.is_err() && beside.is_file() {
        // The first error counts: an error of the clean-up is dropped.
        let _ = std::fs::remove_file(beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn one_file_by_many_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("real"), "x").unwrap();
        std::fs::write(at("other"), "x").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("link", at("twice")).unwrap();
        std::fs::hard_link(at("real"), at("hard")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        for name in ["real", "link", "twice", "hard", "folder/../real"] {
            assert!(is_same_file(&at(name), &at("real")) && is_same_file(&at("real"), &at(name)), "{name}");
        }
        assert!(!is_same_file(&at("other"), &at("real")) && !is_same_file(&at("new"), &at("real")));
        assert_eq!(behind_links(&at("twice")), behind_links(&at("real")));
        // Files that are not there yet.
        symlink("folder/new", at("dangling")).unwrap();
        assert!(is_same_file(&at("dangling"), &at("folder/new")) && is_same_file(&at("new"), &at("folder/../new")));
        assert!(!is_same_file(&at("new"), &at("newer")));
        symlink("round", at("round")).unwrap();
        assert!(!is_same_file(&at("round"), &at("real")));
        assert!(!is_same_file(Path::new("/dev/null"), Path::new("/dev/null")));
    }

    #[test]
    fn what_is_replaced_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, beside) = (dir.path().join("real"), dir.path().join("part"));
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        replace(&path, &beside, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::create_dir(&beside).unwrap();
        assert!(replace(&path, &beside, b"newer").is_err() && beside.is_dir());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }
}
