//! Who held a volume under which epoch, from what the nodes logged.

use crate::Cluster;
use std::collections::BTreeMap;

/// No two nodes took the role of a volume's holder under the same epoch, in all of their lives.
pub fn assert_one_holder_per_epoch(cluster: &Cluster) {
    let mut holders = BTreeMap::new();
    for node in &cluster.nodes {
        for (volume, epoch) in node.log().lines().filter_map(held) {
            let first = holders.entry((volume.clone(), epoch.clone())).or_insert(&node.name);
            assert_eq!(**first, node.name, "two nodes held {volume} under epoch {epoch}");
        }
    }
    assert!(!holders.is_empty(), "no node logged that it holds anything");
}

/// Volume and epoch, if the line tells that the node became holder.
fn held(line: &str) -> Option<(String, String)> {
    let (_, facts) = line.split_once(" drover::seat: ")?;
    let fact = |name: &str| facts.split(' ').find_map(|word| word.strip_prefix(name)).map(String::from);
    (fact("role=")? == "Holder").then_some(())?;
    Some((fact("volume=")?, fact("epoch=")?))
}

#[cfg(test)]
mod tests {
    use super::held;

    #[test]
    fn a_role_is_read_from_the_log() {
        let line = "2026-01-01T00:00:00Z  INFO drover::seat: in office volume=vol-1 epoch=3 role=Holder";
        assert_eq!(held(line), Some(("vol-1".into(), "3".into())));
        assert_eq!(held(&line.replace("Holder", "Mirror")), None);
        assert_eq!(held("2026-01-01T00:00:00Z  INFO node: up"), None);
    }
}
