//! Between nodes and the control plane, and from people to it.

use drover_base::{Epoch, InstanceId, NodeId, VolumeId};
use drover_types as types;
use drover_wire::admin::{ControlReply, ControlRequest, NodeReply, NodeRequest};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = postcard::from_bytes::<T>(bytes) {
        let encoded = postcard::to_stdvec(&value).expect("plain data always encodes");
        assert_eq!(postcard::from_bytes::<T>(&encoded).as_ref(), Ok(&value));
    }
}

/// The first byte chooses which side's it is.
pub fn messages(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => message::<NodeRequest>(rest),
        1 => message::<NodeReply>(rest),
        2 => message::<ControlRequest>(rest),
        _ => message::<ControlReply>(rest),
    }
}

fn body<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let encoded = serde_json::to_vec(&value).expect("plain data always encodes");
        assert_eq!(serde_json::from_slice::<T>(&encoded).expect("it reads back"), value);
    }
}

/// The first byte chooses of which request.
pub fn bodies(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => body::<types::CreateVolume>(rest),
        1 => body::<types::CreateExport>(rest),
        2 => body::<types::CreateSnapshot>(rest),
        3 => body::<types::CreateGroupSnapshot>(rest),
        4 => body::<types::MigrationOptions>(rest),
        5 => body::<types::PlanRequest>(rest),
        _ => body::<types::ApiError>(rest),
    }
}

pub fn message_seeds() -> Vec<Vec<u8>> {
    let node = NodeId::new("node-1").expect("a name");
    let sealed = |kind: u8, value: Vec<u8>| [vec![kind], value].concat();
    let encode = |value: &ControlRequest| postcard::to_stdvec(value).expect("plain data always encodes");
    let asked = |value: &NodeRequest| postcard::to_stdvec(value).expect("plain data always encodes");
    vec![
        sealed(0, asked(&NodeRequest::Status)),
        sealed(0, asked(&NodeRequest::Reopen { volume: VolumeId(7) })),
        sealed(0, asked(&NodeRequest::RemoveExport { name: "disk".into() })),
        sealed(2, encode(&ControlRequest::Lookup { volume: VolumeId(1 << 60) })),
        sealed(
            2,
            encode(&ControlRequest::Renew {
                node: node.clone(),
                instance: InstanceId(u64::MAX),
                leases: vec![(VolumeId(1), Epoch(2)); 3],
            }),
        ),
        sealed(2, encode(&ControlRequest::Event { node, kind: "k".into(), volume: None, text: "text".into() })),
        sealed(3, postcard::to_stdvec(&ControlReply::Done).expect("plain data always encodes")),
        // A list of more than there is memory for.
        sealed(2, vec![1, 6, b'n', b'o', b'd', b'e', b'-', b'1', 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
    ]
}

pub fn body_seeds() -> Vec<Vec<u8>> {
    let json = |kind: u8, text: &str| [&[kind][..], text.as_bytes()].concat();
    vec![
        json(0, r#"{"name":"disk","size_bytes":1073741824,"node":"node-1"}"#),
        json(1, r#"{"volume":"disk","node":"node-1","name":"disk","workload":"vm"}"#),
        json(2, r#"{"name":"before"}"#),
        json(3, r#"{"name":"all","volumes":["a","b"]}"#),
        json(4, r#"{"throttle_bytes_per_s":1,"cutover":"manual","retention_ms":100}"#),
        json(5, r#"{"volume":"disk","destination":"node-2"}"#),
        json(6, r#"{"code":"not_found","message":"no such volume"}"#),
        json(0, &format!("{}1{}", "[".repeat(200), "]".repeat(200))),
    ]
}
