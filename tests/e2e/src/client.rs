//! Just enough NBD (export name handshake, simple replies, one request at a time), so that what tests see does not
//! depend on the code under test.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Bytes of every read and write.
pub const BLOCK: usize = 4096;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;

/// Longer than a node holds requests before it fails them: what takes longer hangs.
const HANG: Duration = Duration::from_secs(90);

/// A connection to an export. Results: the outer error is the connection's, the inner number the server's answer.
pub struct Client {
    stream: UnixStream,
    cookie: u64,
}

impl Client {
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HANG))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
            return Err(io::Error::other("the server is not a newstyle NBD server"));
        }
        // Client flags: fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        let mut option = b"IHAVEOPT".to_vec();
        option.extend(1u32.to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        stream.write_all(&option)?;
        let mut terms = [0; 10];
        stream.read_exact(&mut terms)?;
        Ok(Self { stream, cookie: 0 })
    }

    /// The error number, 0 for none.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        let request = self.request(WRITE, offset, data.len() as u32);
        self.stream.write_all(&[&request[..], data].concat())?;
        self.answer()
    }

    /// The block, or the error number.
    pub fn read(&mut self, offset: u64) -> io::Result<Result<[u8; BLOCK], u32>> {
        let request = self.request(READ, offset, BLOCK as u32);
        self.stream.write_all(&request)?;
        let error = self.answer()?;
        if error != 0 {
            return Ok(Err(error));
        }
        let mut block = [0; BLOCK];
        self.stream.read_exact(&mut block)?;
        Ok(Ok(block))
    }

    /// The error number, 0 for none.
    pub fn flush(&mut self) -> io::Result<u32> {
        let request = self.request(FLUSH, 0, 0);
        self.stream.write_all(&request)?;
        self.answer()
    }

    /// The error number, 0 for none.
    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<u32> {
        let request = self.request(TRIM, offset, len);
        self.stream.write_all(&request)?;
        self.answer()
    }

    fn request(&mut self, command: u16, offset: u64, len: u32) -> [u8; 28] {
        self.cookie += 1;
        let mut bytes = [0; 28];
        bytes[0..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// The error number of a simple reply.
    fn answer(&mut self) -> io::Result<u32> {
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        let field = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().expect("four bytes"));
        let got = u64::from_be_bytes(reply[8..16].try_into().expect("eight bytes"));
        if field(0) != 0x6744_6698 || got != self.cookie {
            return Err(io::Error::other("what came is not the reply"));
        }
        Ok(field(4))
    }
}
