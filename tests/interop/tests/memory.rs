//! All checks against an export in memory: what is wrong here is wrong in the protocol's part of a node.

use drover_interop::*;
use drover_node::nbd::{
    BlockExport, MemoryExport, MemoryService, NbdAddress, NbdListener, ServerSettings, run, serve_here,
};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// An export in memory, served by a thread of its own until it is dropped.
struct Served {
    uri: String,
    closing: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Served {
    fn unix(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start(size_bytes, NbdAddress::Unix(folder.path().join("nbd")), folder)
    }

    fn tcp(size_bytes: u64) -> Self {
        Self::start(size_bytes, NbdAddress::Tcp { host: "127.0.0.1".into(), port: 0 }, tempfile::tempdir().unwrap())
    }

    fn start(size_bytes: u64, address: NbdAddress, folder: tempfile::TempDir) -> Self {
        let (closing, closed) = watch::channel(false);
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = NbdListener::bind(&address, None).await.unwrap();
                sender.send(listener.address().unwrap()).unwrap();
                let export: Rc<dyn BlockExport> = MemoryExport::new("vol", size_bytes);
                let service = MemoryService::new([export]);
                run(listener, service.clone(), closed, ServerSettings::default(), serve_here(service)).await;
            });
        });
        let name = "vol".parse().unwrap();
        let uri = drover_node::nbd::NbdUri { address: receiver.recv().unwrap(), name, tls: None }.to_string();
        Self { uri, closing, thread: Some(thread), _folder: folder }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.closing.send_replace(true);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}

const SIZE: u64 = 48 << 20;

fn held<T>(check: Result<T, Failure>) -> T {
    check.unwrap_or_else(|failure| panic!("{failure}"))
}

#[test]
fn nbdinfo_understands_the_export() {
    held(check_nbdinfo(&Served::unix(SIZE).uri));
    held(check_nbdinfo(&Served::tcp(SIZE).uri));
}

#[test]
fn nbdcopy_copies_there_and_back() {
    held(check_nbdcopy(&Served::unix(SIZE).uri));
    held(check_nbdcopy(&Served::tcp(SIZE).uri));
    // A size that is no multiple of anything.
    held(check_nbdcopy(&Served::unix(9_999_999).uri));
}

#[test]
fn qemu_io_reads_its_patterns() {
    held(check_qemu_io(&Served::unix(SIZE).uri));
}

#[test]
fn qemu_img_converts_and_compares() {
    held(check_qemu_img(&Served::unix(SIZE).uri));
    held(check_qemu_img(&Served::tcp(SIZE).uri));
}

#[test]
fn fio_verifies_over_four_connections() {
    let served = Served::unix(SIZE);
    held(check_fio_verify(&served.uri, FioVerify { connections: 4, bytes_per_connection: SIZE / 4, seconds: None }));
    held(check_fio_verify(&served.uri, FioVerify { connections: 4, bytes_per_connection: SIZE / 4, seconds: Some(2) }));
}

#[test]
fn libnbd_finds_its_data_over_eight_connections() {
    held(check_aio_parallel(&Served::unix(AIO_PARALLEL_BYTES).uri));
    held(check_synch_parallel(&Served::unix(SYNCH_PARALLEL_BYTES).uri));
}
