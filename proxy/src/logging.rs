//! The proxy's own log: JSON lines on standard output, with a level that can change while it runs. Access log lines
//! are not made here.

use std::sync::{Mutex, PoisonError};

use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, fmt, reload};

/// Why a filter was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// Not a filter.
    #[error("`{0}` is not a log filter such as info, or weft_proxy=debug,warn: {1}")]
    Filter(String, String),
    /// The subscriber is gone.
    #[error("the log level cannot be changed")]
    Reload(#[from] reload::Error),
    /// A second start.
    #[error("logging was already started")]
    Start(#[from] TryInitError),
}

/// Changes the filter of the running process.
#[derive(Debug)]
pub struct LogLevel {
    handle: reload::Handle<Targets, Registry>,
    text: Mutex<String>,
}

/// Starts logging for the process.
pub fn start(filter: &str) -> Result<LogLevel, LevelError> {
    let (layer, level) = reloadable(filter)?;
    let lines = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
    tracing_subscriber::registry().with(layer).with(lines).try_init()?;
    Ok(level)
}

/// The filter as a layer, and the means to change it.
pub fn reloadable(filter: &str) -> Result<(reload::Layer<Targets, Registry>, LogLevel), LevelError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    Ok((layer, LogLevel { handle, text: Mutex::new(filter.to_owned()) }))
}

impl LogLevel {
    /// The filter as it was given last.
    #[must_use]
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force. A bad one changes nothing.
    pub fn set(&self, filter: &str) -> Result<(), LevelError> {
        let filter = filter.trim();
        self.handle.reload(parse(filter)?)?;
        filter.clone_into(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

// `Targets`, not `EnvFilter`: levels by module are enough, and need no engine of regular expressions in memory.
pub(crate) fn parse(filter: &str) -> Result<Targets, LevelError> {
    let bad = |why: String| LevelError::Filter(filter.to_owned(), why);
    let parts: Vec<&str> = filter.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    // A misspelled level would be taken as the name of a module, and everything else be switched off.
    let word = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric());
    if let Some(part) = parts.iter().find(|part| word(part) && part.parse::<LevelFilter>().is_err()) {
        return Err(bad(format!("`{part}` is no level: off, error, warn, info, debug or trace")));
    }
    if parts.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    parts.join(",").parse().map_err(|error: ParseError| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked_before_they_are_taken() {
        for good in [
            "info",
            "debug",
            "weft_proxy=debug,warn",
            "weft_proxy::control=trace,info",
            "off",
            "info, weft_proxy=debug,",
        ] {
            assert!(parse(good).is_ok(), "{good} was refused");
        }
        for bad in ["", "loud", "debugg", "weft_proxy=loud", ",,", " ", "info, verbose"] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
    }
}
