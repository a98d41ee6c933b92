//! Why a command failed: what happened, the cause, what to do about it, and the exit code.

use drover_types::{ApiError, ErrorCode};
use serde::Serialize;
use std::fmt;

/// Exit codes; `drover help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It was tried and failed, or was refused for another reason than those below.
    Failed = 1,
    /// The arguments or settings are wrong; nothing was done.
    Usage = 2,
    /// The control plane or another server cannot be reached.
    Unreachable = 3,
    NotFound = 4,
    /// The present state excludes it.
    Conflict = 5,
    /// Whether it was carried out is unknown.
    Unknown = 6,
}

impl Exit {
    /// The code of an error that no server named.
    fn code(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Unreachable => "unreachable",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unknown => "outcome_unknown",
        }
    }
}

/// What `drover --help` says about exit codes.
pub const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong arguments or settings (nothing was done), \
3 the control plane, a node or another server cannot be reached, 4 not found, 5 the present state excludes it, 6 the outcome is unknown";

#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The server's code, else one by what went wrong here.
    pub code: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip)]
    pub exit: Exit,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit.code().into(), message: message.into(), cause: None, hint: None, exit }
    }
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let exit = match (error.code, error.code.status()) {
            (ErrorCode::OutcomeUnknown, _) => Exit::Unknown,
            (_, 404) => Exit::NotFound,
            (_, 409 | 412) => Exit::Conflict,
            (_, 400) => Exit::Usage,
            (_, 503) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        Self { code: error.code.to_string(), message: error.message, cause: error.cause, hint: error.hint, exit }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(cause) = &self.cause {
            write!(f, "\n  cause: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        write!(f, "\n  code: {}", self.code)
    }
}

impl std::error::Error for Failure {}

/// Adds what was being done to an error of the system.
pub trait Context<T> {
    fn or_fail(self, message: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn or_fail(self, message: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::failed(message()).cause(error))
    }
}
