//! One error type for the library. Every message names the thing, what was expected and what was found.

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, grouped by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// A request is longer than there is room for.
    #[error("{message}")]
    TooLong {
        /// What is too short for it.
        limit_of: Limit,
        /// Tokens of the request.
        found: usize,
        /// Tokens that there is room for.
        limit: usize,
        /// Both in words.
        message: String,
    },
    /// The request needs a model that was not opened.
    #[error("{message}")]
    MissingModel {
        /// `policy` or `reward`.
        model: &'static str,
        /// What needs it.
        message: String,
    },
    /// A device cannot run the model as it is asked to.
    #[error("{message}")]
    Unsupported {
        /// What is not supported.
        message: String,
        /// What would help.
        remedies: Vec<Remedy>,
    },
    /// The models do not fit the memory.
    #[error("{message}")]
    OutOfMemory {
        /// What is needed and what is there.
        message: String,
        /// What would help.
        remedies: Vec<Remedy>,
    },
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
    /// The device answers nothing any more; the process has to open it again.
    #[error("{0}")]
    DeviceLost(String),
    /// The engine has ended before the request did.
    #[error("the engine has ended")]
    EngineStopped,
    /// The backend or the engine failed in a way that is not the request's fault.
    #[error("{0}")]
    Backend(String),
}

/// What a request can be too long for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// The longest sequence that the models were opened for.
    Context,
    /// The longest segment that can be differentiated.
    GradientTokens,
    /// All blocks of keys and values.
    Memory,
}

/// A setting whose change would help. Faces name it in their own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Open the models for sequences of at most this many tokens.
    ContextTokens(u64),
    /// Leave room for shorter segments in the gradient.
    FewerGradientTokens,
    /// Leave room for longer segments in the gradient.
    MoreGradientTokens,
    /// Lower the threshold of the uncertainty, which makes segments shorter.
    LowerThreshold,
    /// Let the models use a larger share of the device's memory.
    MoreMemory,
    /// Ask for a 16-bit storage type, which rounds the weights.
    StorageType,
    /// Use the CPU.
    Cpu,
    /// Name the tensor of the reward model's head.
    RewardHead,
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

    /// A segment of `found` tokens where at most `limit` can be differentiated.
    pub(crate) fn gradient_too_long(found: usize, limit: usize) -> Self {
        let message = format!(
            "a segment of {found} tokens is longer than the {limit} tokens that the gradient has room for; leave room for \
             longer ones, or lower the entropy threshold for shorter ones"
        );
        Error::TooLong { limit_of: Limit::GradientTokens, found, limit, message }
    }

    /// The same error of one of several things: names it before the message.
    pub fn within(self, name: &str) -> Self {
        let named = |message: String| format!("{name}: {message}");
        match self {
            Error::Invalid(message) => Error::Invalid(named(message)),
            Error::TooLong { limit_of, found, limit, message } => {
                Error::TooLong { limit_of, found, limit, message: named(message) }
            }
            Error::MissingModel { model, message } => Error::MissingModel { model, message: named(message) },
            other => other,
        }
    }

    /// Settings whose change would help, if any.
    pub fn remedies(&self) -> &[Remedy] {
        match self {
            Error::Unsupported { remedies, .. } | Error::OutOfMemory { remedies, .. } => remedies,
            Error::TooLong { limit_of: Limit::GradientTokens, .. } => {
                &[Remedy::MoreGradientTokens, Remedy::LowerThreshold]
            }
            _ => &[],
        }
    }

    /// Whether the request, its options or the files were at fault, rather than the backend.
    pub fn is_invalid_input(&self) -> bool {
        match self {
            Error::Io { .. } | Error::File { .. } | Error::Invalid(_) | Error::TooLong { .. } => true,
            Error::MissingModel { .. } | Error::Unsupported { .. } | Error::OutOfMemory { .. } => true,
            Error::NonFinite { .. } | Error::DeviceLost(_) | Error::EngineStopped | Error::Backend(_) => false,
        }
    }
}
