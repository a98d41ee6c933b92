//! What `drover volume attach --print` gives is used as it stands.

use crate::up::{Up, random_image};
use std::process::Command;

/// A document's elements, in order, with their attributes; panics where it is not well formed. Of XML it takes what a
/// disk of a domain consists of: elements, attributes, character data of white space.
fn elements(document: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (mut found, mut open) = (Vec::new(), Vec::new());
    let mut rest = document.trim();
    while !rest.is_empty() {
        let tag = rest.strip_prefix('<').unwrap_or_else(|| panic!("no element begins at {rest:?}"));
        let (tag, after) = tag.split_once('>').unwrap();
        rest = after.trim_start();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name.to_owned()), "an element ends that is not the last one open");
        } else {
            let (body, is_closed) = tag.strip_suffix('/').map_or((tag, false), |body| (body, true));
            let (name, attributes) = body.split_once(' ').unwrap_or((body, ""));
            found.push((name.to_owned(), self::attributes(attributes)));
            if !is_closed {
                open.push(name.to_owned());
            }
        }
        assert!(rest.is_empty() == open.is_empty(), "one element holds all the others");
    }
    found
}

fn attributes(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while !text.trim().is_empty() {
        let (name, value) = text.trim_start().split_once("='").unwrap();
        let (value, after) = value.split_once('\'').unwrap();
        assert!(!value.contains('<') && name.bytes().all(|byte| byte.is_ascii_lowercase()), "{name}={value}");
        let value = value.replace("&apos;", "'").replace("&lt;", "<").replace("&amp;", "&");
        found.push((name.to_owned(), value));
        text = after;
    }
    found
}

#[test]
fn what_attach_prints_is_taken_by_those_it_is_for() {
    const BYTES: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    // A name that has to be escaped by QEMU's rules and by XML's.
    let data = folder.path().join("o'neill,&co");
    let (source, back) = (folder.path().join("image"), folder.path().join("back"));
    let mut content = random_image(&source, BYTES, 4);
    let up = Up::start(&data, 1);
    up.json(&["import", source.to_str().unwrap(), "disk"]);
    let socket = data.canonicalize().unwrap().join("node-1/nbd.sock").display().to_string();

    // QEMU's own tools read and write through what is printed for it.
    let printed = up.text(&["volume", "attach", "disk", "--print", "qemu"]);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let ["-blockdev", disk, "-device", device] = words[..] else { panic!("{printed}") };
    assert!(device.starts_with("virtio-blk-pci,drive="), "{device}");
    let compared = Command::new("qemu-img")
        .args(["compare", "--image-opts", disk, &format!("driver=raw,file.filename={}", source.display())])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stderr));
    let write = ["-c", "write -P 7 4096 8192", "-c", "flush"];
    let written = Command::new("qemu-io").args(["--image-opts", disk]).args(write).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    content[4096..12_288].fill(7);
    up.json(&["export", "disk", back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == content);

    let disk = elements(&up.text(&["volume", "attach", "disk", "--print", "libvirt"]));
    let names: Vec<&str> = disk.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["disk", "driver", "source", "host", "reconnect", "target"]);
    let is_set = |element: usize, name: &str, value: &str| {
        disk[element].1.iter().any(|(known, is)| known == name && is == value)
    };
    assert!(is_set(2, "protocol", "nbd") && is_set(2, "name", "disk"), "{disk:?}");
    assert!(is_set(3, "transport", "unix") && is_set(3, "socket", &socket), "{disk:?}");

    let printed = up.text(&["volume", "attach", "disk", "--print", "nbd-client"]);
    let call = format!("nbd-client -unix {socket} /dev/nbd0 -name disk ");
    assert!(printed.starts_with(&call), "{printed}");
    // The same export every time, whatever is printed of it.
    let shown = up.json(&["volume", "show", "disk"]);
    assert_eq!(shown["exports"].as_array().unwrap().len(), 1);
    let uri = up.text(&["volume", "attach", "disk", "--print", "uri"]);
    assert_eq!(uri.trim(), shown["exports"][0]["uris"][0].as_str().unwrap());
    up.stop();
}
