//! The stub as a process of its own: it can stay when who started it has ended, and it does not
//! share an event loop with what is measured.

use std::path::Path;

use anyhow::bail;
use tokio::process::Command;

use crate::{
    place,
    process::Process,
    server::{self, Life},
    stub::{Behaviour, calls_at, client},
};

/// Starts one on a free port; its process and where it is reached. Only for who runs as
/// `longshore-dev`, for that is the program that is started.
pub(crate) async fn start(log: &Path, life: Life) -> anyhow::Result<(Process, String)> {
    let port = place::free_port()?;
    let bind = format!("127.0.0.1:{port}");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["stub", "--bind", &bind]);
    let process = server::spawn(command, log, life)?;
    let url = format!("http://{bind}");
    server::until_ready("the stub", process, &[log], || async { calls_at(&url).await.map(drop) })
        .await?;
    Ok((process, url))
}

/// How its service under `/{service}/…` behaves from now on.
pub(crate) async fn behave(
    stub_url: &str,
    service: &str,
    behaviour: &Behaviour,
) -> anyhow::Result<()> {
    let sent = client()?
        .put(format!("{stub_url}/_control/{service}"))
        .header("content-type", "application/json")
        .body(serde_json::to_string(behaviour)?)
        .send()
        .await?;
    if !sent.status().is_success() {
        bail!("the stub did not take the behaviour: {}", sent.text().await?);
    }
    Ok(())
}
