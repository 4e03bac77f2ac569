//! The floor of this machine: a program beside this one that passes bytes on and does nothing else.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Hop, Wire};

pub(super) fn command(hop: &Hop<'_>) -> Result<Command> {
    let program =
        std::env::current_exe().context("where this program is")?.with_file_name("weft-bench-relay");
    let mut command = Command::new(program);
    command.args(["--listen", &hop.listen.to_string(), "--next", &hop.next.to_string()]);
    for (wire, flag) in [(hop.accepts, "--accepts-sealed"), (hop.calls, "--calls-sealed")] {
        if wire == Wire::Mtls {
            command.arg(flag);
        }
    }
    Ok(command)
}
