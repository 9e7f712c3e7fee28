//! Output files that appear whole or not at all.

use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file to be written when its content is known; known to be writable from the start.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
}

impl Output {
    /// Makes sure that `path` can be written, so that an hour's work does not end in a misspelt directory. Leaves nothing
    /// behind and does not touch a file that is there.
    pub(super) fn check(path: &Path) -> Result<Self> {
        let output = Output { path: path.canonicalize().unwrap_or_else(|_| path.to_path_buf()) };
        let error = |e| Error::io(path, e);
        match std::fs::metadata(&output.path) {
            Ok(found) if found.is_dir() => return Err(Error::file(path, "is a directory")),
            Ok(_) => drop(OpenOptions::new().append(true).open(&output.path).map_err(error)?),
            Err(_) => {}
        }
        if output.replaced() {
            let temporary = output.temporary();
            File::create(&temporary).map_err(error)?;
            std::fs::remove_file(&temporary).map_err(error)?;
        }
        Ok(output)
    }

    /// Writes the content to a file beside it and moves that into place.
    pub(super) fn write(&self, content: &[u8]) -> Result<()> {
        let target = if self.replaced() { self.temporary() } else { self.path.clone() };
        let result = File::create(&target)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| if target == self.path { Ok(()) } else { std::fs::rename(&target, &self.path) });
        result.map_err(|e| {
            if target != self.path {
                let _ = std::fs::remove_file(&target);
            }
            Error::io(&self.path, e)
        })
    }

    /// Whether the path is a regular file or none yet. Pipes and devices are written in place.
    fn replaced(&self) -> bool {
        std::fs::metadata(&self.path).map_or(true, |found| found.is_file())
    }

    fn temporary(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{}.part", std::process::id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.json");
        let output = Output::check(&path).expect("writable");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
        output.write(b"one").expect("written");
        Output::check(&path).expect("writable").write(b"two").expect("written");
        assert_eq!(std::fs::read(&path).expect("content"), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1);
        for bad in [dir.path().join("no/such.json"), dir.path().to_path_buf()] {
            let message = Output::check(&bad).expect_err("refused").to_string();
            assert!(message.contains(&*bad.to_string_lossy()), "{message}");
        }
    }

    #[test]
    fn devices_are_written_in_place() {
        Output::check(Path::new("/dev/null")).expect("writable").write(b"x").expect("written");
    }
}
