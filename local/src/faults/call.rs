//! A call to the proxy: what it asks for, and which function makes it.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::http::request::Parts;

use super::fault::Fault;

/// The program of a function.
const PROGRAM: &str = "bootstrap";

/// A call, as far as the weather cares.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) head: Parts,
    pub(super) body: Bytes,
    pub(super) peer: SocketAddr,
    /// Which function asks, or `registry` for the client of the registry that functions share; nothing for
    /// others.
    pub(super) caller: Option<String>,
    /// Such as `PutEvents`, or `PUT manifests`.
    pub(super) operation: String,
    /// What all tries of it have in common.
    pub(super) identity: String,
    /// Whether it is a call of the SDK.
    pub(super) is_sdk: bool,
}

impl Call {
    pub(super) fn new(head: Parts, body: Bytes, peer: SocketAddr) -> Self {
        let text =
            |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let agent = text("user-agent");
        let is_sdk = agent.contains("aws-sdk-rust");
        let app = agent.split("app/").nth(1).and_then(|app| app.split([' ', '#']).next());
        let caller = match agent {
            "stoker" => Some("registry"),
            _ if is_sdk => Some(app.unwrap_or("a function")),
            _ => None,
        };
        let operation = match text("x-amz-target").rsplit_once('.') {
            Some((_, operation)) => operation.to_owned(),
            None => format!("{} {}", head.method, kind_of(head.uri.path())),
        };
        let identity = match text("amz-sdk-invocation-id") {
            "" => format!("{} {}", head.method, head.uri.path()),
            id => id.to_owned(),
        };
        Self { caller: caller.map(str::to_owned), operation, identity, is_sdk, head, body, peer }
    }

    pub(super) fn is_for_codebuild(&self) -> bool {
        let target = self.head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
        target.is_some_and(|target| target.starts_with("CodeBuild_"))
    }

    /// Whether something can be done to it before anybody knows its answer.
    pub(super) fn can(&self, fault: Fault) -> bool {
        match fault {
            Fault::TimedOut => self.is_sdk,
            Fault::Partial => self.is_batch(),
            Fault::PutTwice | Fault::PutLate => self.operation == "PutEvents",
            Fault::Stale | Fault::EventLost | Fault::EventDoubled | Fault::EventLate => false,
            _ => true,
        }
    }

    /// Whether it can be done in part.
    pub(super) fn is_batch(&self) -> bool {
        matches!(self.operation.as_str(), "PutEvents" | "BatchDeleteImage")
    }

    /// What tells a read from others.
    pub(super) fn question(&self) -> (String, Bytes) {
        (self.operation.clone(), self.body.clone())
    }

    /// Whether AWS may answer it as things were a moment ago.
    pub(super) fn is_read(&self) -> bool {
        const READS: [&str; 4] =
            ["BatchGetBuilds", "ListBuildsForProject", "BatchGetImage", "DescribeImages"];
        READS.contains(&self.operation.as_str())
    }
}

/// The kind of thing that a path of the registry is about.
fn kind_of(path: &str) -> &str {
    ["manifests", "uploads", "blobs"]
        .into_iter()
        .find(|kind| path.contains(&format!("/{kind}/")))
        .unwrap_or("/")
}

/// The process of a function that has this end of a connection to the proxy.
pub(super) fn process_of(peer: SocketAddr, proxy: SocketAddr) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = socket_of(&table, peer.port(), proxy.port())?;
    let wanted = format!("socket:[{socket}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let program = std::fs::read_link(process.path().join("exe")).unwrap_or_default();
        if program.file_name().is_none_or(|name| name != PROGRAM) {
            continue;
        }
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut files = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if files.any(|file| file.to_str() == Some(&wanted)) {
            return Some(id);
        }
    }
    None
}

/// The number of the socket that connects two ports of `127.0.0.1`, in the kernel's table.
fn socket_of(table: &str, from: u16, to: u16) -> Option<&str> {
    let [from, to] = [from, to].map(|port| format!("0100007F:{port:04X}"));
    table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find_map(|fields| {
        let is_wanted = fields.get(1..3).is_some_and(|ends| ends == [&from, &to]);
        is_wanted.then(|| fields.get(9).copied()).flatten()
    })
}

#[cfg(test)]
pub(super) mod tests {
    use axum::extract::Request;

    use super::*;

    /// How a function introduces itself.
    pub(crate) const AGENT: &str = "aws-sdk-rust/1.3 os/linux lang/rust/1.90 app/start-build";

    pub(crate) fn call(target: &str, agent: &str, id: &str) -> Call {
        let request = Request::builder()
            .header("user-agent", agent)
            .header("x-amz-target", target)
            .header("amz-sdk-invocation-id", id);
        let (head, ()) = request.body(()).unwrap().into_parts();
        Call::new(head, Bytes::from_static(b"{}"), SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    #[test]
    fn calls_are_told_apart() {
        let it = call("AWSEvents.PutEvents", AGENT, "a");
        assert_eq!((it.caller.as_deref(), it.operation.as_str()), (Some("start-build"), "PutEvents"));
        assert!(!it.is_for_codebuild());
        assert!(call("CodeBuild_20161006.StartBuild", AGENT, "a").is_for_codebuild());
        assert_eq!(call("AWSEvents.PutEvents", "curl", "a").caller, None);
        assert_eq!(kind_of("/v2/stoker/app/blobs/uploads/x"), "uploads");
        assert_eq!(kind_of("/v2/stoker/app/manifests/x"), "manifests");
    }

    #[test]
    fn sockets_are_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st queues timer retrnsmt uid timeout inode\n   \
                     0: 0100007F:1F90 0100007F:C350 01 0:0 0:0 0 0 0 12345 1 0\n";
        assert_eq!(socket_of(table, 8080, 50000), Some("12345"));
        assert_eq!(socket_of(table, 8080, 50001), None);
        assert_eq!(socket_of(table, 50000, 8080), None);
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(process_of(here(1), here(2)), None);
    }
}
