//! Where a node listens, and what becomes of the connections that arrive there.

use super::DaemonError;
use super::shards::Running;
use crate::config::NodeConfig;
use crate::nbd::{self, NbdAddress, NbdListener, ServerSettings};
use crate::{Exports, NodeSettings};
use drover_base::world::Listener;
use drover_base::{InstanceId, World};
use drover_runtime::SocketListener;
use drover_runtime::tls::{Role, Tls};
use drover_wire::admin::NodeAddress;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::watch;

/// Every address the node listens at.
pub(super) struct Bound {
    admin: SocketListener,
    peer: SocketListener,
    migration: Option<SocketListener>,
    nbd: Vec<NbdListener>,
}

impl Bound {
    pub async fn bind(config: &NodeConfig, tls: Option<&Arc<Tls>>) -> Result<Self, DaemonError> {
        let listen = async |address: &str, from: Role| {
            let bound = SocketListener::bind(address, tls.cloned(), from).await;
            bound.map_err(|error| DaemonError::Listen { address: address.into(), error })
        };
        let admin = listen(&config.listen.admin, Role::Control).await?;
        let peer = listen(&config.listen.peer, Role::Node).await?;
        let migration = match &config.listen.migration {
            Some(address) => Some(listen(address, Role::Node).await?),
            None => None,
        };
        let mut nbd = Vec::new();
        if let Some(path) = &config.listen.nbd_unix {
            nbd.push(bind_nbd(&NbdAddress::Unix(path.clone()), &path.display().to_string(), None).await?);
        }
        if let Some(address) = &config.listen.nbd_tcp {
            let (host, port) = address.rsplit_once(':').expect("checked with the settings");
            let port = port.parse().expect("checked with the settings");
            nbd.push(bind_nbd(&NbdAddress::Tcp { host: host.into(), port }, address, tls).await?);
        }
        Ok(Self { admin, peer, migration, nbd })
    }

    pub fn settings(&self, config: &NodeConfig, instance: InstanceId) -> NodeSettings {
        let told =
            |advertised: &Option<String>, bound: &SocketListener| advertised.clone().unwrap_or_else(|| bound.address());
        let peer = told(&config.advertise.peer, &self.peer);
        let migration = match &self.migration {
            Some(listener) => told(&config.advertise.migration, listener),
            None => peer.clone(),
        };
        let nbd_tcp = self.nbd.iter().find_map(|listener| match listener.address() {
            Ok(NbdAddress::Tcp { host, port }) => Some(format!("{host}:{port}")),
            _ => None,
        });
        NodeSettings {
            address: NodeAddress { node: config.id.clone(), peer, migration },
            admin: told(&config.advertise.admin, &self.admin),
            instance,
            secret: config.secret,
            control: Some(config.control.clone()),
            nbd_unix: config.listen.nbd_unix.as_ref().map(|path| path.display().to_string()),
            nbd_tcp: nbd_tcp.map(|bound| {
                let told = config.advertise.nbd_tcp.clone().unwrap_or(bound);
                if config.tls.is_some() { format!("tls:{told}") } else { told }
            }),
        }
    }

    /// Serves all of it in the background. The future completes when every client has been let go.
    pub fn serve(
        self,
        world: &World,
        running: &Running,
        exports: Exports,
        closed: &watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let admins = running.shards().accept_admins(world.clone(), self.admin);
        world.spawn(admins).detach();
        for peers in [Some(self.peer), self.migration].into_iter().flatten() {
            world.spawn(running.shards().accept_peers(world.clone(), peers)).detach();
        }
        let clients = self.nbd.into_iter().map(|listener| {
            let serve = running.serve_clients(exports.clone());
            let serving =
                nbd::run(listener, Rc::new(exports.clone()), closed.clone(), ServerSettings::default(), serve);
            tokio::task::spawn_local(serving)
        });
        let clients: Vec<_> = clients.collect();
        async move {
            for client in clients {
                // It ends by panic only, which ends the process.
                let _ = client.await;
            }
        }
    }
}

async fn bind_nbd(address: &NbdAddress, shown: &str, tls: Option<&Arc<Tls>>) -> Result<NbdListener, DaemonError> {
    NbdListener::bind(address, tls.cloned()).await.map_err(|error| DaemonError::Listen { address: shown.into(), error })
}
