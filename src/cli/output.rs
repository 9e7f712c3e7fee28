//! Output files that are complete or absent.

use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file that is checked to be writable early and written once its content is known.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// A pipe or device, which is written in place and stays open from the start: a pipe's reader takes closing for the
    /// end.
    in_place: Option<File>,
}

impl Output {
    /// Checks that `path` can be written, so that a long run does not fail at its end because of a misspelt path. Leaves
    /// nothing behind and does not touch an existing file.
    pub(super) fn check(path: &Path) -> Result<Self> {
        let mut output = Output { path: path.canonicalize().unwrap_or_else(|_| path.to_path_buf()), in_place: None };
        let error = |e| Error::io(path, e);
        if let Ok(found) = std::fs::metadata(&output.path) {
            if found.is_dir() {
                return Err(Error::file(path, "is a directory"));
            }
            let file = OpenOptions::new().append(true).open(&output.path).map_err(error)?;
            output.in_place = (!found.is_file()).then_some(file);
        }
        if output.in_place.is_none() {
            let temporary = output.temporary();
            File::create(&temporary).map_err(error)?;
            std::fs::remove_file(&temporary).map_err(error)?;
        }
        Ok(output)
    }

    /// Writes the content to a temporary file in the same directory and renames it.
    pub(super) fn write(self, content: &[u8]) -> Result<()> {
        if let Some(mut file) = self.in_place {
            return file.write_all(content).map_err(|e| Error::io(&self.path, e));
        }
        let temporary = self.temporary();
        let result = File::create(&temporary)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        result.map_err(|e| {
            let _ = std::fs::remove_file(&temporary);
            Error::io(&self.path, e)
        })
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
