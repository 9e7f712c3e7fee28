//! Output files that are complete or absent, and never an input.

use super::say;
use crate::batch::output::{Rows, recorded};
use crate::files::place::{behind_links, is_same_file, replace};
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files that a model's directory is read from, besides those that end in `.safetensors`.
const OF_MODEL: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "chat_template.jinja",
    "traces.json",
    "tokenizer_cases.json",
];

/// What a command reads and writes.
#[derive(Debug, Default)]
pub(super) struct Paths {
    inputs: Vec<PathBuf>,
    /// With the flags that name them.
    outputs: Vec<(&'static str, PathBuf)>,
}

impl Paths {
    /// With files that are read, or directories of models.
    pub(super) fn reading<'a>(mut self, paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        self.inputs.extend(paths.into_iter().cloned());
        self
    }

    /// With a file that a flag names, if it was given.
    pub(super) fn writing(mut self, flag: &'static str, path: Option<&Path>) -> Self {
        self.outputs.extend(path.map(|path| (flag, path.to_path_buf())));
        self
    }

    /// Checks, before anything is written, that nothing that is read is written over and that no file is written twice.
    ///
    /// # Errors
    /// An output is an input or another output, whatever it is called; or it is `-`, which is no file.
    pub(super) fn check(self) -> Result<()> {
        let inputs: Vec<PathBuf> = self.inputs.into_iter().flat_map(files_of).collect();
        for (index, (flag, path)) in self.outputs.iter().enumerate() {
            let shown = path.display();
            if path.as_os_str() == "-" {
                return Err(Error::invalid(format!(
                    "{flag} -: expected a file, found -, which stands for no file here; ./- is a file of that name"
                )));
            }
            if *flag == "--trace-events" {
                no_rows(path)?;
            }
            if let Some(input) = inputs.iter().find(|input| is_same_file(input, path)) {
                let same = if input == path { String::new() } else { format!(" ({})", input.display()) };
                return Err(Error::invalid(format!(
                    "{flag} {shown}: is an input of this command{same}; name another file, so that it is not written over"
                )));
            }
            if let Some((other, _)) = self.outputs[..index].iter().find(|(_, other)| is_same_file(other, path)) {
                return Err(Error::invalid(format!("{flag} {shown}: is what {other} writes, too; name another file")));
            }
        }
        Ok(())
    }
}

/// A file, or what is read of a directory: a model's files, or those of the goldens in it.
fn files_of(path: PathBuf) -> Vec<PathBuf> {
    let read = |entry: &PathBuf| {
        let name = entry.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".safetensors") || OF_MODEL.contains(&&*name)
    };
    match std::fs::read_dir(&path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(read).collect(),
        Err(_) => vec![path],
    }
}

/// Checks that a file which is to be written over holds no rows of a run.
fn no_rows(path: &Path) -> Result<()> {
    let of_run = recorded(path).is_some_and(|options| options.contains_key("ggro"));
    match of_run && path.exists() {
        true => Err(Error::file(path, "holds rows of a run, which would be written over; name another file")),
        false => Ok(()),
    }
}

/// Puts rows in order. A call that had nothing else to do loses nothing if it cannot: then that is said, and no failure.
pub(super) fn put_in_order(rows: Rows, nothing_else: bool) -> Result<()> {
    match rows.finish() {
        Err(error) if nothing_else => {
            say(&format!("note: {error}"));
            Ok(())
        }
        ended => ended,
    }
}

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
        no_rows(path)?;
        let mut output = Output { path: behind_links(path), in_place: None };
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
        replace(&self.path, &self.temporary(), content).map_err(|e| Error::io(&self.path, e))
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
    fn links_are_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        // To a file that is there, and to one that is not yet.
        std::fs::write(at("real"), "old").expect("written");
        for (link, target) in [("one", "real"), ("two", "new")] {
            std::os::unix::fs::symlink(target, at(link)).expect("a link");
            Output::check(&at(link)).expect("writable").write(b"x").expect("written");
            assert!(at(link).is_symlink(), "{link}");
            assert_eq!(std::fs::read(at(target)).expect("content"), b"x");
        }
    }

    #[test]
    fn inputs_are_not_written_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("in"), "old").expect("written");
        std::fs::hard_link(at("in"), at("hard")).expect("a link");
        std::fs::create_dir(at("model")).expect("a folder");
        std::fs::write(at("model/config.json"), "{}").expect("written");
        let check = |outputs: &[(&'static str, &str)]| {
            let inputs = [at("in"), at("model"), at("none")];
            let paths = Paths::default().reading(&inputs);
            let paths = outputs.iter().fold(paths, |paths, (flag, name)| paths.writing(flag, Some(&at(name))));
            paths.check().map_err(|e| e.to_string())
        };
        check(&[("--a", "out"), ("--b", "model/out"), ("--c", "elsewhere/none")]).expect("apart");
        for (outputs, part) in [
            (&[("--a", "in")][..], "--a"),
            (&[("--a", "out"), ("--b", "hard")], "is an input of this command ("),
            (&[("--a", "model/config.json")], "is an input"),
            (&[("--a", "model/../none")], "is an input"),
            (&[("--a", "out"), ("--b", "model/../out")], "is what --a writes"),
        ] {
            let message = check(outputs).expect_err("refused");
            assert!(message.contains(part), "{message}");
        }
        let stdout = Paths::default().writing("--output", Some(Path::new("-"))).check().expect_err("refused");
        assert!(stdout.to_string().contains("--output -"), "{stdout}");
    }

    #[test]
    fn devices_are_written_in_place() {
        Output::check(Path::new("/dev/null")).expect("writable").write(b"x").expect("written");
    }
}
