//! How the program fails: one sentence and an exit code. It never prints.

use std::fmt::Display;
use std::process::ExitCode;

use kalshi_feed::StartError;

/// Why the job was not done. Exit code 2 for what the caller gave, 1 for what happened then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Bad usage or configuration: nothing was begun.
    #[error("{0}")]
    Usage(String),
    /// The job could not be done.
    #[error("{0}")]
    Job(String),
    /// Whoever read our output has left; there is nobody to tell.
    #[error("the reader of the output left")]
    ReaderLeft,
}

impl Failure {
    /// Bad usage or configuration.
    pub(crate) fn usage(what: impl Display) -> Self {
        Self::Usage(what.to_string())
    }

    /// The job could not be done.
    pub(crate) fn job(what: impl Display) -> Self {
        Self::Job(what.to_string())
    }

    /// The exit code that goes with it.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Job(_) | Self::ReaderLeft => ExitCode::from(1),
        }
    }
}

impl From<kalshi_feed::ConfigError> for Failure {
    fn from(error: kalshi_feed::ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Cancelled => Self::job("stopped before the connections were live"),
            other => Self::job(other),
        }
    }
}

impl From<kalshi_feed::MessagesError> for Failure {
    fn from(error: kalshi_feed::MessagesError) -> Self {
        Self::job(error)
    }
}

/// What went wrong with the engine's threads: bugs, never the exchange's doing.
pub(crate) fn threads(
    report: &kalshi_feed::StopReport,
    roster: &crate::roster::Roster,
) -> Vec<String> {
    let mut wrong = Vec::new();
    if !report.stuck.is_empty() {
        wrong.push(format!("threads did not end in time: {}", report.stuck.join(", ")));
    }
    if !report.panicked.is_empty() {
        wrong.push(format!("threads ended by a bug: {}", report.panicked.join(", ")));
    } else if let Some(thread) = roster.thread_lost() {
        wrong.push(format!("a thread ended by a bug: {thread}"));
    }
    wrong
}
