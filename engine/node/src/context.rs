//! What the parts of a node share: who it is, the world, the store, the way to the control plane.

use crate::control_link::ControlLink;
use drover_base::{InstanceId, NodeId, World};
use drover_store::Store;
use drover_store::meta::Meta;
use drover_wire::admin::NodeAddress;
use std::rc::Rc;

pub(crate) struct Context {
    pub address: NodeAddress,
    /// This start of the node.
    pub instance: InstanceId,
    /// BLAKE3 of the cluster's secret; zeros where none is set.
    pub secret: [u8; 32],
    pub world: World,
    pub store: Rc<Store>,
    pub meta: Rc<dyn Meta>,
    pub control: Rc<ControlLink>,
}

impl Context {
    pub fn is_me(&self, node: &NodeId) -> bool {
        self.address.node == *node
    }
}
