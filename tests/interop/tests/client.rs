//! Our client against other people's servers.

use bytes::Bytes;
use drover_interop::Failure;
use drover_node::nbd::{ClientError, NbdClient, NbdUri};
use std::{
    future::Future,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const SIZE: u64 = 16 << 20;

/// A server on a socket of its own, until it is dropped.
struct Server {
    child: Child,
    uri: NbdUri,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts `program`; its arguments are made from the socket's path.
    fn start(program: &str, export: &str, args: impl FnOnce(&PathBuf) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd");
        let child = Command::new(program)
            .args(args(&socket))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}", Failure::new(program, error)));
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display()).parse().unwrap();
        Self { child, uri, _folder: folder }
    }

    fn nbdkit(args: &[&str]) -> Self {
        Self::start("nbdkit", "", |socket| {
            let mut all = vec!["--foreground".into(), "--unix".into(), socket.display().to_string()];
            all.extend(args.iter().map(|arg| arg.to_string()));
            all
        })
    }

    /// Connects as soon as it listens.
    async fn client(&self) -> NbdClient {
        loop {
            match NbdClient::connect(&self.uri).await {
                Ok((client, driver)) => {
                    tokio::spawn(driver.run());
                    return client;
                }
                Err(ClientError::Connect(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run_test(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn data(len: usize) -> Bytes {
    (0..len).map(|at| (at / 7) as u8).collect()
}

/// Writes, reads, flushes, several at once.
async fn use_it(client: &NbdClient) {
    assert_eq!(client.size_bytes(), SIZE);
    let pieces = (0..8u64).map(|piece| async move {
        let data = data(1 << 20);
        client.write(piece << 20, data.clone(), false).await.unwrap();
        assert!(client.read(piece << 20, 1 << 20).await.unwrap() == data);
    });
    futures::future::join_all(pieces).await;
    client.flush().await.unwrap();
    client.write_zeroes(1 << 20, 1 << 20, true, false, false).await.unwrap();
    assert!(client.read(1 << 20, 1 << 20).await.unwrap().iter().all(|byte| *byte == 0));
    client.trim(2 << 20, 1 << 20, false).await.unwrap();
}

async fn walk(client: &NbdClient) -> Vec<(u64, bool)> {
    let mut at = 0;
    let mut map: Vec<(u64, bool)> = Vec::new();
    while at < SIZE {
        for (len, status) in client.block_status(at, SIZE - at).await.unwrap() {
            let len = len.min(SIZE - at);
            at += len;
            match map.last_mut() {
                Some(last) if last.1 == status.zero => last.0 += len,
                _ => map.push((len, status.zero)),
            }
        }
    }
    map
}

#[test]
fn nbdkit_is_read_and_written() {
    run_test(async {
        let server = Server::nbdkit(&["memory", "16M"]);
        let client = server.client().await;
        use_it(&client).await;
        assert!(client.has_block_status());
        let mib = 1 << 20;
        assert_eq!(walk(&client).await, [(mib, false), (2 * mib, true), (5 * mib, false), (8 * mib, true)]);
    });
}

/// Servers without structured replies, and those that only know how to name an export.
#[test]
fn older_servers_are_read_and_written() {
    run_test(async {
        for args in [&["--no-sr", "memory", "16M"][..], &["--mask-handshake=0", "memory", "16M"]] {
            let server = Server::nbdkit(args);
            let client = server.client().await;
            use_it(&client).await;
            let is_refused = matches!(client.block_status(0, 1).await, Err(ClientError::NotOffered(_)));
            assert_eq!(is_refused, !client.has_block_status());
        }
    });
}

#[test]
fn qemu_nbd_is_read_and_written() {
    run_test(async {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let server = Server::start("qemu-nbd", "vol", |socket| {
            let args = ["--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--export-name=vol"];
            let mut all: Vec<String> = args.map(String::from).to_vec();
            all.extend([format!("--socket={}", socket.display()), image.display().to_string()]);
            all
        });
        let client = server.client().await;
        use_it(&client).await;
        assert!(walk(&client).await.len() > 1);
    });
}

/// CVE-2022-0485: a read that failed must not become data of a copy.
#[test]
fn a_failed_read_is_an_error() {
    run_test(async {
        let folder = tempfile::tempdir().unwrap();
        let trigger = folder.path().join("fail");
        let file = format!("error-file={}", trigger.display());
        let args = ["--filter=error", "pattern", "16M", "error-pread=EIO", "error-rate=100%", &file];
        let server = Server::nbdkit(&args);
        let client = server.client().await;
        assert_eq!(client.read(8, 8).await.unwrap(), 8u64.to_be_bytes());
        std::fs::write(&trigger, []).unwrap();
        assert!(matches!(client.read(8, 8).await, Err(ClientError::Server { .. })));
        std::fs::remove_file(&trigger).unwrap();
        assert_eq!(client.read(8, 8).await.unwrap(), 8u64.to_be_bytes());
    });
}

#[test]
fn a_killed_server_ends_the_requests() {
    run_test(async {
        let mut server = Server::nbdkit(&["--filter=delay", "memory", "16M", "rdelay=60"]);
        let client = server.client().await;
        let reads = futures::future::join_all((0..4).map(|at| client.read(at, 1)));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.child.kill().unwrap();
        };
        let (reads, ()) = futures::future::join(reads, kill).await;
        assert!(reads.iter().all(|read| matches!(read, Err(ClientError::Ended(_)))), "{reads:?}");
    });
}
