//! Tenants and their quotas.

use crate::arguments::Tenant as Command;
use crate::client::{Client, escape};
use crate::failure::Failure;
use crate::output::{Output, or_dash, table};
use drover_base::text::show_bytes;
use drover_types::{ChangeTenant, Quota, Tenant};

pub async fn run(client: &Client, output: Output, command: Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let tenants: Vec<Tenant> = client.list("/v1/tenants").await?;
            output.show(&tenants, |tenants| show(tenants))
        }
        Command::Show { name } => {
            let tenant: Tenant = client.get(&path(&name)).await?;
            output.show(&tenant, |tenant| show(std::slice::from_ref(tenant)))
        }
        Command::Set { name, bytes, volumes, none: _ } => {
            let change = ChangeTenant { quota: Quota { provisioned_bytes: bytes, volumes } };
            let tenant: Tenant = client.patch(&path(&name), &change).await?;
            output.show(&tenant, |tenant| show(std::slice::from_ref(tenant)))
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/tenants/{}", escape(name))
}

fn show(tenants: &[Tenant]) -> String {
    let rows = tenants.iter().map(|tenant| {
        [
            tenant.name.clone(),
            tenant.volumes.to_string(),
            or_dash(tenant.quota.volumes.map(|volumes| volumes.to_string())),
            show_bytes(tenant.provisioned_bytes),
            or_dash(tenant.quota.provisioned_bytes.map(show_bytes)),
        ]
    });
    table(["TENANT", "VOLUMES", "AT MOST", "SIZES", "AT MOST"], rows)
}
