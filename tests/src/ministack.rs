//! `ministack`, an AWS that runs on this machine.

use std::path::Path;
use std::process::Command;

/// The command that serves it on loopback. It unpacks functions into the temporary directory, where two of it
/// would delete each other's; it starts no containers, and listens nowhere else.
#[must_use]
pub fn serve(program: &Path, port: u16, temporary: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["ministack.app:app", "--bind", &format!("127.0.0.1:{port}")])
        .env("TMPDIR", temporary)
        .env("GATEWAY_PORT", port.to_string())
        .env("MINISTACK_HOST", "127.0.0.1")
        .env("DOCKER_HOST", "unix:///nonexistent.sock")
        .env("IOT_MTLS_ENABLED", "0")
        .env("SFTP_ENABLED", "0");
    command
}
