//! The writer that the other tests trust sees what is wrong.

use drover_e2e::{Area, Cluster, Layout, OnLoss, Writer};

#[test]
fn two_writers_of_one_area_see_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let layout = Layout { nodes: 1, tier_size: "256MiB", ..Layout::two_nodes(folder.path()) };
    let mut cluster = Cluster::start(&layout);
    cluster.create_volume("v", 16 << 20, 0);
    let area = Area { offset: 0, blocks: 16 };
    let writers = [1, 2].map(|seed| Writer::start(&cluster.socket(0), "v", area, OnLoss::Fail, seed));
    // Returns once a writer has ended by what it saw.
    writers[0].wait_flushes(10_000);
    let seen: Vec<String> = writers.into_iter().flat_map(|writer| writer.stop().faults).collect();
    assert!(seen.iter().any(|fault| fault.contains("was answered")), "{seen:?}");

    let alone = Writer::start(&cluster.socket(0), "v", Area { offset: 8 << 20, blocks: 16 }, OnLoss::Fail, 3);
    alone.wait_flushes(1);
    cluster.nodes[0].kill();
    alone.wait_flushes(10_000);
    let seen = alone.stop().faults;
    assert!(seen.iter().any(|fault| fault.contains("the connection was lost")), "{seen:?}");
}
