//! What is unencrypted behind `STARTTLS` is nobody's.

use drover_wire::nbd::{ServerHandshake, Step};

/// A client's flags and its options, without payload.
fn client(options: &[u32]) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    for option in options {
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
    }
    bytes
}

/// Somebody on the way adds a list of the exports to what the client sends: it must not be answered to the client as if
/// the client had asked for it within TLS.
#[test]
pub fn what_is_added_unencrypted_is_not_answered() {
    const STARTTLS: u32 = 5;
    const LIST: u32 = 3;
    let mut machine = ServerHandshake::new(true);
    machine.receive(&client(&[STARTTLS, LIST]));
    if machine.poll() == Ok(Step::StartTls) {
        machine.secured();
        assert_ne!(machine.poll(), Ok(Step::List));
    }
}
