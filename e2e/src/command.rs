//! Runs other programs: bounded in time, with failures that show the whole command and what it said.
//! It never retries and never interprets the output.

use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output of a success; otherwise an error with command, status and everything that it said.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let (out, err) = (last_lines(&self.stdout), last_lines(&self.stderr));
        bail!(
            "`{}` failed, {}\n  stderr: {}\n  stdout: {}",
            self.command,
            self.status,
            err.trim(),
            out.trim()
        );
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n          ")
}

/// A program that may still run; it is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

/// Starts `program`. `input` is written to its standard input, which is then closed.
pub fn start(
    program: &PathBuf,
    args: &[&str],
    environment: &[(String, String)],
    input: Option<Vec<u8>>,
) -> Result<Running> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let command =
        std::iter::once(name.as_ref()).chain(args.iter().copied()).map(quoted).collect::<Vec<_>>().join(" ");
    let mut child = Command::new(program)
        .args(args)
        .envs(environment.iter().map(|(k, v)| (k, v)))
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{command}` could not be started (program {})", program.display()))?;
    if let (Some(bytes), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that ends without reading its input is no error here: its exit status tells.
        std::thread::spawn(move || drop(pipe.write_all(&bytes)));
    }
    let (stdout, stderr) = (child.stdout.take().map(collect), child.stderr.take().map(collect));
    Ok(Running { command, child, stdout, stderr })
}

fn quoted(argument: &str) -> String {
    let shown: String = argument.chars().take(300).collect();
    if shown.contains([' ', '\n', '"']) || shown.is_empty() { format!("'{shown}'") } else { shown }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output; what came until then is what there is.
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Waits for the end, at most for `patience`; a program that takes longer is killed and an error.
    pub fn wait(mut self, patience: Duration) -> Result<Ended> {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                drop(self.child.kill());
                drop(self.child.wait());
                let (out, err) = (self.output(), self.errors());
                bail!(
                    "`{}` did not end within {patience:?}\n  stderr: {}\n  stdout: {}",
                    self.command,
                    last_lines(&err),
                    last_lines(&out)
                );
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        Ok(Ended { command: self.command.clone(), status, stdout: self.output(), stderr: self.errors() })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn output(&mut self) -> String {
        self.stdout.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }

    fn errors(&mut self) -> String {
        self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: Option<&str>, patience: u64) -> Result<Ended> {
        start(
            &"/bin/sh".into(),
            &["-c", script],
            &[("GREETING".into(), "hello".into())],
            input.map(|i| i.as_bytes().to_vec()),
        )?
        .wait(Duration::from_millis(patience))
    }

    #[test]
    fn output_input_and_environment_pass() {
        let ended = sh("cat; echo $GREETING", Some("in "), 5000).unwrap();
        assert_eq!(ended.success().unwrap(), "in hello\n");
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let message = sh("echo broken >&2; exit 3", None, 5000).unwrap().success().unwrap_err().to_string();
        assert!(
            message.contains("sh -c 'echo broken")
                && message.contains("stderr: broken")
                && message.contains('3'),
            "{message}"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let began = Instant::now();
        let message = sh("echo before; exec sleep 60", None, 200).unwrap_err().to_string();
        assert!(
            began.elapsed() < Duration::from_secs(10)
                && message.contains("did not end")
                && message.contains("before"),
            "{message}"
        );
    }
}
