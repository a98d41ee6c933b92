//! Who is let in, and what an eavesdropper or somebody on the way can do.

use super::*;
use crate::{Detached, SocketListener, Workers, block_on, world};
use drover_base::world::{Connection, Listener, Message};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

/// An authority that lives as long as a test.
pub(crate) struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.path().join("ca.pem"), pem).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// A certificate with these names, valid or expired.
    pub fn issue(&self, names: &[&str], is_valid: bool) -> TlsFiles {
        let count = std::fs::read_dir(self.folder.path()).unwrap().count();
        let path = |what: &str| self.folder.path().join(format!("{count}-{what}.pem"));
        let files = TlsFiles { cert: path("cert"), key: path("key"), ca: self.folder.path().join("ca.pem") };
        self.write(&files, names, is_valid);
        files
    }

    fn write(&self, files: &TlsFiles, names: &[&str], is_valid: bool) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if !is_valid {
            params.not_after = (SystemTime::now() - Duration::from_secs(60)).into();
        }
        std::fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
    }
}

const NODE: [&str; 3] = ["127.0.0.1", "node.drover.internal", "node-1.node.drover.internal"];
const CLIENT: [&str; 2] = ["127.0.0.1", "client.drover.internal"];

fn tls(files: TlsFiles) -> Option<Arc<Tls>> {
    Some(Tls::load(files).unwrap())
}

fn message(len: usize) -> Message {
    let bytes: Vec<u8> = (0..len).map(|at| (at * 13 + len) as u8).collect();
    Message { head: b"head".as_slice().into(), body: bytes.into() }
}

/// A connection between a listener for `role` and who dials it; what each side found.
fn meet(
    listening: Option<Arc<Tls>>,
    role: Role,
    dialling: Option<Arc<Tls>>,
    then: impl AsyncFnOnce(&mut Connection, &mut Connection),
) -> (io::Result<()>, io::Result<()>) {
    let workers = Workers::start(1).unwrap();
    block_on(async {
        let listener = SocketListener::bind("127.0.0.1:0", listening, role).await.unwrap();
        let address = listener.address();
        let dialler = world(&workers, dialling);
        let (mut accepted, mut connected) = {
            let (accepted, connected) = tokio::join!(listener.incoming(), dialler.net.connect(&address));
            (accepted.unwrap().connection, connected.unwrap())
        };
        drop(connected.sender.send(message(3)));
        drop(accepted.sender.send(message(4)));
        let got = |received: io::Result<Option<Message>>, len| match received {
            Ok(Some(received)) if received == message(len) => Ok(()),
            Ok(other) => Err(io::Error::other(format!("{other:?}"))),
            Err(error) => Err(error),
        };
        let within = Duration::from_secs(5);
        let (at_listener, at_dialler) = tokio::join!(
            tokio::time::timeout(within, accepted.receiver.receive()),
            tokio::time::timeout(within, connected.receiver.receive()),
        );
        let stuck = |_| Err(io::Error::from(ErrorKind::TimedOut));
        let found = (
            at_listener.map_or_else(stuck, |received| got(received, 3)),
            at_dialler.map_or_else(stuck, |received| got(received, 4)),
        );
        if found.0.is_ok() && found.1.is_ok() {
            then(&mut accepted, &mut connected).await;
        }
        found
    })
    .unwrap()
}

#[test]
fn only_who_shows_a_good_certificate_of_the_role_is_heard() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let node = || tls(ours.issue(&NODE, true));
    type Case = (&'static str, Option<Arc<Tls>>, Option<Arc<Tls>>, bool);
    let cases: [Case; 9] = [
        ("both good", node(), node(), true),
        ("no TLS at all", None, None, true),
        ("the dialler's authority is another", node(), tls(theirs.issue(&NODE, true)), false),
        ("the dialler's has expired", node(), tls(ours.issue(&NODE, false)), false),
        ("the dialler is a client", node(), tls(ours.issue(&CLIENT, true)), false),
        ("the listener is a client", tls(ours.issue(&CLIENT, true)), node(), false),
        ("the listener is at another address", tls(ours.issue(&NODE[1..], true)), node(), false),
        ("only the listener has TLS", node(), None, false),
        ("only the dialler has TLS", None, node(), false),
    ];
    for (name, listening, dialling, is_heard) in cases {
        let (at_listener, at_dialler) = meet(listening, Role::Node, dialling, async |_, _| ());
        assert_eq!(at_listener.is_ok(), is_heard, "{name}: the listener: {at_listener:?}");
        assert_eq!(at_dialler.is_ok(), is_heard, "{name}: the dialler: {at_dialler:?}");
    }
    // The same good certificate, at a listener for another role.
    let (at_listener, at_dialler) = meet(node(), Role::Control, node(), async |_, _| ());
    assert!(at_listener.is_err() && at_dialler.is_err(), "{at_listener:?} {at_dialler:?}");
}

#[test]
fn a_node_proves_its_own_name_and_no_other() {
    let ours = Authority::new();
    let node = || tls(ours.issue(&NODE, true));
    let met = meet(node(), Role::Node, node(), async |accepted, connected| {
        for side in [accepted, connected] {
            assert!(side.receiver.may_be(&NodeId::new("node-1").unwrap()));
            assert!(!side.receiver.may_be(&NodeId::new("node-2").unwrap()));
        }
    });
    assert!(met.0.is_ok() && met.1.is_ok(), "{met:?}");
}

#[test]
fn large_messages_cross_in_both_directions_at_once_and_the_end_is_told() {
    let ours = Authority::new();
    let node = || tls(ours.issue(&NODE, true));
    let met = meet(node(), Role::Node, node(), async |accepted, connected| {
        for side in [&accepted, &connected] {
            for len in [0, 1, 70_000, 3 << 20, 5] {
                drop(side.sender.send(message(len)));
            }
        }
        for len in [0, 1, 70_000, 3 << 20, 5] {
            let (one, two) = tokio::join!(accepted.receiver.receive(), connected.receiver.receive());
            assert!(one.unwrap() == Some(message(len)) && two.unwrap() == Some(message(len)), "{len}");
        }
        // Its sender goes: what it sent has come, then the end by TLS.
        connected.sender = accepted.sender.clone();
        assert_eq!(accepted.receiver.receive().await.unwrap(), None);
    });
    assert!(met.0.is_ok() && met.1.is_ok(), "{met:?}");
}

/// The connection moves to another thread with its session, and with what has arrived.
#[test]
fn an_encrypted_connection_moves_to_another_thread() {
    let ours = Authority::new();
    let node = || tls(ours.issue(&NODE, true));
    let (sender, receiver) = std::sync::mpsc::channel::<Detached>();
    let home = std::thread::spawn(move || {
        let detached = receiver.recv().unwrap();
        block_on(async {
            let mut connection = detached.open().unwrap();
            for len in 1..10 {
                assert_eq!(connection.receiver.receive().await.unwrap(), Some(message(len)));
            }
            connection.sender.send(message(100_000)).await.unwrap();
            assert_eq!(connection.receiver.receive().await.unwrap(), None);
        })
        .unwrap();
    });
    let workers = Workers::start(1).unwrap();
    block_on(async {
        let listener = SocketListener::bind("127.0.0.1:0", node(), Role::Node).await.unwrap();
        let dialler = world(&workers, node());
        let address = listener.address();
        let (arrived, other) = tokio::join!(listener.incoming(), dialler.net.connect(&address));
        let (mut arrived, mut other) = (arrived.unwrap(), other.unwrap());
        for len in 0..10 {
            drop(other.sender.send(message(len)));
        }
        assert_eq!(arrived.connection.receiver.receive().await.unwrap(), Some(message(0)));
        sender.send(arrived.detach().unwrap()).unwrap();
        assert_eq!(other.receiver.receive().await.unwrap(), Some(message(100_000)));
        drop(other);
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .unwrap();
    home.join().unwrap();
}

/// Somebody on the way who closes the connection must not pass for the other side's end of it.
#[test]
fn a_connection_that_is_cut_is_an_error_and_not_an_end() {
    let ours = Authority::new();
    let node = || tls(ours.issue(&NODE, true));
    let workers = Workers::start(1).unwrap();
    block_on(async {
        let listener = SocketListener::bind("127.0.0.1:0", node(), Role::Node).await.unwrap();
        let to = listener.address();
        let between = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = between.local_addr().unwrap().to_string();
        let relay = std::thread::spawn(move || {
            let (mut near, far) = (between.accept().unwrap().0, std::net::TcpStream::connect(to).unwrap());
            let (mut far_reader, mut near_writer) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let back = std::thread::spawn(move || std::io::copy(&mut far_reader, &mut near_writer));
            // The handshake and one message, then nothing more of it: an orderly end of TCP.
            let mut bytes = [0; 4096];
            let mut passed = 0;
            while passed < 6000 {
                let count = near.read(&mut bytes).unwrap();
                (&far).write_all(&bytes[..count]).unwrap();
                passed += count;
            }
            far.shutdown(std::net::Shutdown::Write).unwrap();
            drop(back);
        });
        let dialler = world(&workers, node());
        let (arrived, other) = tokio::join!(listener.incoming(), dialler.net.connect(&address));
        let (mut arrived, other) = (arrived.unwrap(), other.unwrap());
        drop(other.sender.send(message(5)));
        drop(other.sender.send(message(20_000)));
        assert_eq!(arrived.connection.receiver.receive().await.unwrap(), Some(message(5)));
        let error = arrived.connection.receiver.receive().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        relay.join().unwrap();
    })
    .unwrap();
}

/// Certificates are renewed while daemons run; a file that is half written must not shut anybody out.
#[test]
fn certificates_that_change_count_for_the_next_connection() {
    let ours = Authority::new();
    let files = ours.issue(&NODE, false);
    let listening = tls(files.clone());
    let dial = || {
        let met = meet(listening.clone(), Role::Node, tls(ours.issue(&NODE, true)), async |_, _| ());
        met.0.is_ok() && met.1.is_ok()
    };
    assert!(!dial(), "it has expired");
    ours.write(&files, &NODE, true);
    assert!(dial(), "a new one is there");
    std::fs::write(&files.cert, "-----BEGIN CERT").unwrap();
    assert!(dial(), "the one before is used on");
}

#[test]
fn files_that_hold_no_certificates_are_told_by_name() {
    let ours = Authority::new();
    let good = ours.issue(&NODE, true);
    let none = good.cert.with_file_name("none");
    let other = ours.issue(&NODE, true);
    for (files, part) in [
        (TlsFiles { cert: none.clone(), ..good.clone() }, "none"),
        (TlsFiles { key: good.cert.clone(), ..good.clone() }, "no private key"),
        (TlsFiles { cert: good.key.clone(), ..good.clone() }, "no certificate"),
        (TlsFiles { key: other.key, ..good.clone() }, "cannot be used"),
        (TlsFiles { ca: good.key.clone(), ..good.clone() }, "no certificate"),
    ] {
        let error = Tls::load(files).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}
