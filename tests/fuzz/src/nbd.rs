//! NBD: what a client may say to our server, and a server to our client.

use drover_wire::nbd::proto::REQUEST_HEADER_BYTES;
use drover_wire::nbd::{
    ClientHandshake, ClientStep, Command, Expected, ExportFacts, Incoming, Payload, Refusal, ReplyParser,
    RequestParser, ServerHandshake, Step, encode_disconnect, encode_request,
};

const SIZE_BYTES: u64 = 8 << 20;

fn facts(read_only: bool) -> ExportFacts {
    ExportFacts { name: "vol".into(), description: "a disk".into(), size_bytes: SIZE_BYTES, read_only }
}

/// The first byte says how the rest is served and how long the receives are.
pub fn server(bytes: &[u8]) {
    let Some((&mode, stream)) = bytes.split_first() else { return };
    let mut machine = ServerHandshake::new(mode & 1 != 0);
    let grain = if mode & 2 != 0 { 7 } else { 4096 };
    let mut pieces = stream.chunks(grain);
    loop {
        let step = machine.poll();
        machine.take_output();
        match step {
            Ok(Step::Receive) => match pieces.next() {
                Some(piece) => machine.receive(piece),
                None => return,
            },
            Ok(Step::List) => machine.listed(&[("vol".into(), "a disk".into())]),
            Ok(Step::Open(name)) => machine.opened(match name.export.as_str() {
                "vol" => Ok(facts(mode & 4 != 0)),
                _ => Err(Refusal::Unknown),
            }),
            Ok(Step::StartTls) => machine.secured(),
            Ok(Step::Serve(_, terms)) => {
                let rest = [machine.into_leftover(), pieces.flatten().copied().collect()].concat();
                return requests(RequestParser::new(terms), &rest);
            }
            Ok(Step::Close) | Err(_) => return,
        }
    }
}

fn requests(mut parser: RequestParser, stream: &[u8]) {
    let mut rest = stream;
    while let Ok(Some(incoming)) = parser.next(&mut rest) {
        match incoming {
            Incoming::Request { command, .. } => {
                check_command(&command);
                if let Command::Write { len, .. } = command {
                    rest = &rest[rest.len().min(len as usize)..];
                }
            }
            Incoming::Refused { .. } => {}
            Incoming::Disconnect => return,
        }
    }
}

/// What is handed on lies within the export, and is the request that its encoding says.
fn check_command(command: &Command) {
    let range = match *command {
        Command::Read { offset, len, .. }
        | Command::Write { offset, len, .. }
        | Command::Trim { offset, len, .. }
        | Command::Cache { offset, len }
        | Command::WriteZeroes { offset, len, .. }
        | Command::BlockStatus { offset, len, .. } => Some((offset, len)),
        Command::Flush => None,
    };
    if let Some((offset, len)) = range {
        assert!(offset.checked_add(len.into()).is_some_and(|end| end <= SIZE_BYTES), "{command:?}");
    }
    let header = encode_request(7, command);
    let terms =
        drover_wire::nbd::Terms { size_bytes: SIZE_BYTES, read_only: false, structured: true, block_status: true };
    let again = RequestParser::new(terms).next(&mut &header[..]);
    assert_eq!(again, Ok(Some(Incoming::Request { cookie: 7, command: *command })));
}

/// The first two bytes say what our client has asked for; the rest is what the server says.
pub fn client(bytes: &[u8]) {
    let Some((&[mode, asked], stream)) = bytes.split_first_chunk::<2>() else { return };
    if mode & 1 != 0 {
        let mut machine = ClientHandshake::new(&"vol".parse().expect("a name"), mode & 2 != 0);
        for piece in stream.chunks(if mode & 4 != 0 { 5 } else { 4096 }) {
            machine.receive(piece);
            match machine.poll() {
                Ok(ClientStep::Receive) => {}
                Ok(ClientStep::StartTls) => machine.secured(),
                Ok(ClientStep::Serve(terms)) => {
                    assert!(terms.block_bytes_min.is_power_of_two());
                    return replies(terms.structured, terms.context, asked, &machine.into_leftover());
                }
                Err(_) => return,
            }
            machine.take_output();
        }
        return;
    }
    replies(mode & 2 != 0, (mode & 4 != 0).then_some(1), asked, stream);
}

const READ_BYTES: u32 = 8192;

fn replies(structured: bool, context: Option<u32>, asked: u8, stream: &[u8]) {
    let mut parser = ReplyParser::new(structured, context);
    for cookie in 0..8 {
        parser.expect(
            cookie,
            match asked >> cookie & 1 {
                0 if cookie % 2 == 0 => Expected::Read { offset: cookie * 4096, len: READ_BYTES },
                0 => Expected::Plain,
                _ => Expected::Status { len: 1 << 20 },
            },
        );
    }
    let mut rest = stream;
    while let Ok(Some(answer)) = parser.next(&mut rest) {
        if let Ok(Payload::Data(data)) = answer.result {
            assert_eq!(data.len(), READ_BYTES as usize, "all of a read, or none");
        }
    }
}

fn option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn server_seeds() -> Vec<Vec<u8>> {
    let fixed = 3u32.to_be_bytes();
    let context = b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation";
    let go = option(7, b"\0\0\0\x03vol\0\x01\0\x03");
    let mut requests: Vec<u8> = [
        Command::Read { offset: 4096, len: 512, in_one: true },
        Command::Trim { offset: 0, len: 65536, fua: true },
        Command::WriteZeroes { offset: 1, len: 9, may_unmap: true, fast_only: true, fua: false },
        Command::BlockStatus { offset: 0, len: 1 << 20, one: false },
        Command::Cache { offset: 0, len: 1 },
        Command::Flush,
    ]
    .iter()
    .flat_map(|command| encode_request(1, command))
    .collect();
    requests.extend(encode_request(2, &Command::Write { offset: 8192, len: 3, fua: false }));
    requests.extend_from_slice(b"abc");
    requests.extend(encode_disconnect());
    assert_eq!(requests.len(), 8 * REQUEST_HEADER_BYTES + 3);
    let negotiated =
        [option(8, &[]), option(10, context), option(3, &[]), option(6, b"\0\0\0\x03vol\0\0"), go].concat();
    let begin = |mode: u8| [&[mode][..], &fixed].concat();
    vec![
        [begin(0), negotiated.clone(), requests.clone()].concat(),
        [begin(6), negotiated.clone(), requests.clone()].concat(),
        [begin(1), option(5, &[])].concat(),
        [begin(3), option(3, &[]), option(5, &[]), option(2, &[])].concat(),
        [&[0, 0, 0, 0, 0][..], &option(1, b"vol"), &requests].concat(),
        [begin(0), option(7, b"\0\0\0\xffvol\0\0")].concat(),
        [begin(0), option(2, &[])].concat(),
    ]
}

/// A structured reply's chunk.
fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub fn client_seeds() -> Vec<Vec<u8>> {
    let simple = |cookie: u64, errno: u32| {
        [&0x6744_6698u32.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes()].concat()
    };
    let mut data = 0u64.to_be_bytes().to_vec();
    data.extend(vec![7; 4096]);
    let hole = [&4096u64.to_be_bytes()[..], &4096u32.to_be_bytes()].concat();
    let status = [1u32, 4096, 0, 65536, 3].map(u32::to_be_bytes).concat();
    let failed = [&5u32.to_be_bytes()[..], &3u16.to_be_bytes(), b"why"].concat();
    let mut handshake = ServerHandshake::default();
    let mut said = Vec::new();
    handshake.receive(&server_seeds()[0][1..]);
    loop {
        match handshake.poll() {
            Ok(Step::List) => handshake.listed(&[("vol".into(), String::new())]),
            Ok(Step::Open(_)) => handshake.opened(Ok(facts(false))),
            _ => break,
        }
    }
    said.extend(handshake.take_output());
    vec![
        [vec![2 | 4, 0], chunk(0, 1, 0, &data), chunk(1, 2, 0, &hole), chunk(1, 0, 1, &[])].concat(),
        [vec![2 | 4, 0xff], chunk(1, 5, 2, &status), chunk(1, 0x8001, 3, &failed)].concat(),
        [vec![0, 0], simple(0, 0), vec![9; READ_BYTES as usize], simple(1, 0), simple(3, 5)].concat(),
        [vec![1, 0], said.clone()].concat(),
        [vec![1 | 4, 0], said].concat(),
        [vec![1 | 2, 0], b"NBDMAGICIHAVEOPT\0\x03\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0".to_vec()]
            .concat(),
    ]
}
