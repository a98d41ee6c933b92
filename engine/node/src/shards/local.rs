//! A node all of whose shards run on one thread, each with its own store over the same devices: in simulations.

use super::{Arrivals, Common, Shard, Shards};
use crate::membership::Office;
use crate::nbd::{BlockService, ExportName, Opened};
use crate::node::{Node, NodeSettings, NodeStorage, StartError, merge_status};
use drover_base::world::{Connection, Listener};
use drover_base::{LocalFuture, VolumeId, World};
use drover_store::home_shard;
use drover_wire::admin::NodeStatus;
use drover_wire::nbd::Refusal;
use std::{io, rc::Rc};

pub struct LocalNode {
    nodes: Vec<Rc<Node>>,
    shards: Rc<Shards<Connection>>,
    common: Common,
    world: World,
    settings: NodeSettings,
}

impl LocalNode {
    /// Takes its volumes up as recorded, listens, and registers with the control plane. `storages` are those of its
    /// shards, in their order.
    pub async fn start(
        settings: NodeSettings,
        world: World,
        common: Common,
        storages: Vec<NodeStorage>,
    ) -> Result<Rc<Self>, StartError> {
        let mut nodes = Vec::new();
        for storage in storages {
            nodes.push(Node::start(settings.clone(), world.clone(), storage).await?);
        }
        let shards =
            Shards::new(nodes.iter().map(|node| node.clone() as Rc<dyn Shard<Connection>>).collect(), settings.secret);
        shards.join(&world, &settings, &common);
        Ok(Rc::new(Self { nodes, shards, common, world, settings }))
    }

    /// Listens for the control plane and for other nodes, and serves both in the background.
    pub async fn serve(&self) -> io::Result<()> {
        let (net, address) = (&self.world.net, &self.settings.address);
        let admin = net.listen(&self.settings.admin).await?;
        let peer = net.listen(&address.peer).await?;
        let migration =
            if address.migration == address.peer { None } else { Some(net.listen(&address.migration).await?) };
        self.world.spawn(self.shards.clone().accept_admins(self.world.clone(), admin)).detach();
        for peers in [Some(peer), migration].into_iter().flatten() {
            self.world.spawn(self.shards.clone().accept_peers(self.world.clone(), peers)).detach();
        }
        Ok(())
    }

    /// Whether it may serve. It does in any case: here no name is given twice.
    pub fn office(&self) -> Office {
        self.common.office().borrow().clone()
    }

    pub fn status(&self) -> NodeStatus {
        merge_status(self.nodes.iter().map(|node| node.status()).collect()).expect("a node has a shard")
    }

    /// The shard of the volume.
    pub(crate) fn home(&self, volume: VolumeId) -> &Rc<Node> {
        &self.nodes[home_shard(volume, self.nodes.len() as u32) as usize]
    }

    /// What NBD serves.
    pub fn exports(self: &Rc<Self>) -> Rc<dyn BlockService> {
        Rc::new(Exports(self.clone()))
    }
}

struct Exports(Rc<LocalNode>);

impl BlockService for Exports {
    fn open(&self, name: &ExportName) -> LocalFuture<'_, Result<Opened, Refusal>> {
        let name = name.clone();
        Box::pin(async move {
            let export = self.0.common.exports.get(&name.export).ok_or(Refusal::Unknown)?;
            self.0.home(export.volume).exports().open(&name).await
        })
    }
}

impl Arrivals<Connection> for Box<dyn Listener> {
    async fn next(&mut self) -> io::Result<Connection> {
        self.accept().await
    }
}
