use super::*;

fn text(folder: &Path, change: impl Fn(String) -> String) -> String {
    let place = folder.display();
    change(format!(
        r#"
id = "node-1"
control = "127.0.0.1:7601"
meta = "{place}/meta"
checkpoint = "{place}/second"

[listen]
admin = "127.0.0.1:7611"
peer = "127.0.0.1:7612"
nbd_unix = "{place}/nbd.sock"

[[tier]]
name = "fast"
class = "nvme"
path = "{place}"
size = "1GiB"
"#
    ))
}

#[test]
fn a_good_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = NodeConfig::parse(&text(folder.path(), |text| text)).unwrap();
    assert_eq!(config.id.as_str(), "node-1");
    assert_eq!(config.tiers.len(), 1);
    assert_eq!(config.tiers[0].device, folder.path().join("fast.slots"));
    assert_eq!(config.tiers[0].size_bytes, 1 << 30);
    assert!(!config.tiers[0].overwrite);
    let overwrites = NodeConfig::parse(&text(folder.path(), |text| text + "overwrite = true\n")).unwrap();
    assert!(overwrites.tiers[0].overwrite);
    assert!(!config.tiers[0].sparse, "room that is promised is there");
    let sparse = NodeConfig::parse(&text(folder.path(), |text| text + "sparse = true\n")).unwrap();
    assert!(sparse.tiers[0].sparse && sparse.tiers[0].discards);
    assert!(!config.tiers[0].discards, "room that is promised stays");
    assert_eq!(config.secret, [0; 32]);
    assert!((1..=SHARDS_MAX).contains(&config.shards), "one for each processor");
    let text = text(folder.path(), |text| text.replace("\nmeta", "\nshards = 3\nmeta"));
    assert_eq!(NodeConfig::parse(&text).unwrap().shards, 3);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "checking must change nothing");
}

#[test]
fn each_mistake_is_named_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to, key) in [
        ("node-1", "Node 1", "id"),
        ("127.0.0.1:7601", "127.0.0.1", "control"),
        ("127.0.0.1:7601", "127.0.0.1:0", "control"),
        ("\"127.0.0.1:7612\"", "\"0.0.0.0:7612\"", "listen.peer"),
        ("\"127.0.0.1:7612\"", "\"10.0.0.1:7612\"", "listen.peer"),
        ("/nbd.sock", "/none/nbd.sock", "listen.nbd_unix"),
        ("/second", "/meta/second", "checkpoint"),
        ("\"nvme\"", "\"tape\"", "tier[0].class"),
        ("\"1GiB\"", "\"1G\"", "tier[0].size"),
        ("\"1GiB\"", "\"4096\"", "tier[0].size"),
        ("\nname = \"fast\"", "\nname = \"../x\"", "tier[0].name"),
        ("\nsize", "\ndiscard = true\nsize", "tier[0].discard"),
        ("\nmeta", "\nshards = 0\nmeta", "shards"),
        ("\nmeta", "\nshards = 65\nmeta", "shards"),
        ("[listen]", "[tls]\ncert = \"/none\"\nkey = \"/none\"\nca = \"/none\"\n[listen]", "tls"),
    ] {
        let text = text(folder.path(), |text| text.replace(from, to));
        let error = NodeConfig::parse(&text).expect_err(to);
        assert!(error.problems.iter().any(|problem| problem.key == key), "{from} → {to}: {error}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path(), |text| text.replace("node-1", "-").replace("1GiB", "much").replace("7611", "port"));
    assert_eq!(NodeConfig::parse(&text).unwrap_err().problems.len(), 3);
}

#[test]
fn an_unknown_key_is_refused_and_the_known_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path(), |text| text.replace("checkpoint", "chekpoint"));
    let error = NodeConfig::parse(&text).unwrap_err().to_string();
    assert!(error.contains("chekpoint") && error.contains("`checkpoint`"), "{error}");
}

#[test]
fn two_tiers_do_not_share_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path(), |text| {
        let tier = text[text.find("[[tier]]").unwrap()..].to_owned();
        text + &tier
    });
    assert!(NodeConfig::parse(&text).unwrap_err().to_string().contains("twice"));
}

#[test]
fn a_secret_opens_other_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let text = text(folder.path(), |text| {
        format!("secret = \"{}\"\n{}", file.display(), text.replace("127.0.0.1:76", "10.0.0.1:76"))
    });
    assert!(NodeConfig::parse(&text).unwrap_err().to_string().contains("secret"));
    std::fs::write(&file, "short").unwrap();
    assert!(NodeConfig::parse(&text).unwrap_err().to_string().contains("16"));
    std::fs::write(&file, "long enough to be one\n").unwrap();
    assert_eq!(NodeConfig::parse(&text).unwrap().secret, *blake3::hash(b"long enough to be one").as_bytes());
}
