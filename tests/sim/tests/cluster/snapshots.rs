//! Snapshots that are taken before the move, and what each shows, compared where the volume ends.

use crate::client::Clients;
use crate::world::{Cluster, VOLUME_NAME};
use drover_control::Control;
use drover_sim::runtime::Generator;
use drover_types::CreateSnapshot;
use std::{rc::Rc, time::Duration};

/// Taken at most: a seed moves all of them over a slow link.
const COUNT_MAX: u64 = 3;

const TRIES_MOST: u32 = 60;

/// By name, what each shows.
pub struct Snapshots(Vec<(String, Vec<u8>)>);

impl Snapshots {
    /// Before any other client works: of half of the seeds some, with writes and trims between them. Now and then the
    /// volume goes back to one, and what it stood on is deleted.
    pub async fn take(cluster: &Cluster, clients: &Clients, mut random: Generator) -> Self {
        let mut taken = Vec::new();
        if random.below(2) == 0 {
            return Self(taken);
        }
        for number in 0..random.between(1, COUNT_MAX) {
            clients.scribble(cluster, &mut random).await;
            let name = format!("s{number}");
            let request = CreateSnapshot { name: name.clone() };
            let made =
                cluster.command(|control| async move { control.create_snapshot(VOLUME_NAME, request, None).await });
            made.await.expect("it lives").expect("there is none of the name");
            taken.push((name, clients.content(cluster).await));
        }
        clients.scribble(cluster, &mut random).await;
        if taken.len() > 1 && random.below(2) == 0 {
            let (name, _) = taken.remove(0);
            roll_back(cluster, &name).await;
            let gone = name.clone();
            let deleted = cluster.command(|control| async move { control.delete_snapshot(VOLUME_NAME, &gone).await });
            deleted.await.expect("it lives").expect("it was taken");
            // What it showed is no client's: all of it is hidden.
            clients.trim_all(cluster).await;
            clients.scribble(cluster, &mut random).await;
        }
        Self(taken)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Goes back to each and compares; the clients have ended.
    pub async fn check(&self, cluster: &Cluster, clients: &Clients) {
        let seed = cluster.sim.seed();
        let listed = cluster.command(|control| async move { control.list_snapshots(VOLUME_NAME).await }).await;
        let listed = listed.expect("it lives").expect("the volume is there");
        let mut names: Vec<_> = listed.into_iter().map(|snapshot| snapshot.name).collect();
        let mut taken: Vec<_> = self.0.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        taken.sort();
        assert_eq!(names, taken, "seed {seed}: not the snapshots that were taken\n{}", cluster.told());
        for (name, shown) in &self.0 {
            roll_back(cluster, name).await;
            let now = clients.content(cluster).await;
            let differs = shown.iter().zip(&now).position(|(a, b)| a != b);
            assert_eq!(differs, None, "seed {seed}: snapshot {name} is not what it was\n{}", cluster.told());
        }
    }
}

async fn roll_back(cluster: &Cluster, name: &str) {
    let name = name.to_owned();
    for _ in 0..TRIES_MOST {
        let name = name.clone();
        let back =
            |control: Rc<Control>| async move { control.rollback_to_snapshot(VOLUME_NAME, &name, None, None).await };
        match cluster.command(back).await.expect("it lives") {
            Ok(_) => return,
            // Just started, or busy with another's end.
            Err(_) => cluster.sim.sleep(Duration::from_secs(1)).await,
        }
    }
    panic!("seed {}: nobody goes back to {name}\n{}", cluster.sim.seed(), cluster.told());
}
