//! NBD: handshake and requests.
