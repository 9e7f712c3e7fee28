//! One error type for the library. Every message names the thing, what was expected and what was found.

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, grouped by what the user can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// A file was read, but its content cannot be used.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A request, an option or a pair of models cannot be used as given.
    #[error("{0}")]
    Invalid(String),
    /// A logit, reward or gradient was NaN or infinite. The request ends; its state is not reused.
    #[error("{what} of the {model} model is not finite at position {position}; the weights are damaged or overflow")]
    NonFinite {
        /// `logit`, `reward` or `reward gradient`.
        what: &'static str,
        /// `policy` or `reward`.
        model: &'static str,
        /// Position in the sequence, counted from 0.
        position: usize,
    },
    /// The backend failed in a way that is not the request's fault.
    #[error("{0}")]
    Backend(String),
}

impl Error {
    /// Wraps an I/O error with the file it belongs to.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A file whose content cannot be used.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// An unusable request or option.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::Invalid(message.into())
    }

    /// Exit code of the command line: 2 for what the user gave, 3 for numbers that are not finite, 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Io { .. } | Error::File { .. } | Error::Invalid(_) => 2,
            Error::NonFinite { .. } => 3,
            Error::Backend(_) => 1,
        }
    }
}
