//! Figures for Prometheus, in its text format (version 0.0.4). Names are the glossary's, units last.

use crate::Control;
use drover_types::{Health, Phase, Tenant, Volume, WorkloadUsage};
use std::fmt::Write;

struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        match labels.as_slice() {
            [] => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Control {
    pub fn metrics(&self) -> String {
        let mut text = Text(String::new());
        text.metric("drover_control_ready", "gauge", "Whether the control plane's store answers.");
        text.sample("drover_control_ready", &[], self.is_ready().into());
        text.metric("drover_event_last_id", "counter", "Id of the newest event.");
        text.sample("drover_event_last_id", &[], self.ledger.state().last_event());
        self.node_metrics(&mut text);
        self.volume_metrics(&mut text);
        self.tenant_metrics(&mut text);
        self.export_metrics(&mut text);
        self.migration_metrics(&mut text);
        text.0
    }

    fn node_metrics(&self, text: &mut Text) {
        let nodes: Vec<_> = self.list_nodes().into_iter().map(|node| node.value).collect();
        text.metric("drover_node_up", "gauge", "Whether the node spoke to the control plane a moment ago.");
        for node in &nodes {
            text.sample("drover_node_up", &[("node", &node.name)], (node.health == Health::Up).into());
        }
        text.metric("drover_node_cordoned", "gauge", "Whether the node takes nothing new.");
        for node in &nodes {
            text.sample("drover_node_cordoned", &[("node", &node.name)], node.cordon.is_some().into());
        }
        text.metric("drover_tier_bytes", "gauge", "Bytes of a tier by what they are: total, used, held, reserved.");
        for tier in nodes.iter().flat_map(|node| &node.tiers) {
            let parts = [
                ("total", tier.total_bytes),
                ("used", tier.used_bytes),
                ("held", tier.held_bytes),
                ("reserved", tier.reserved_bytes),
            ];
            for (kind, bytes) in parts {
                let labels =
                    [("node", tier.node.as_str()), ("tier", &tier.name), ("class", &tier.class), ("kind", kind)];
                text.sample("drover_tier_bytes", &labels, bytes);
            }
        }
        text.metric("drover_tier_poisoned", "gauge", "Whether a sync of the tier failed.");
        for tier in nodes.iter().flat_map(|node| &node.tiers) {
            text.sample("drover_tier_poisoned", &[("node", &tier.node), ("tier", &tier.name)], tier.poisoned.into());
        }
    }

    fn volume_metrics(&self, text: &mut Text) {
        let volumes: Vec<_> = self.list_volumes(None).into_iter().map(|volume| volume.value).collect();
        text.metric("drover_volume_used_bytes", "gauge", "Slots of the volume times their size.");
        for volume in &volumes {
            if let Some(used) = volume.used_bytes {
                text.sample("drover_volume_used_bytes", &[("volume", &volume.name)], used);
            }
        }
        text.metric("drover_volume_valid_bytes", "gauge", "Blocks of the volume that hold data.");
        for volume in &volumes {
            if let Some(valid) = volume.valid_bytes {
                text.sample("drover_volume_valid_bytes", &[("volume", &volume.name)], valid);
            }
        }
        text.metric(
            "drover_volume_indexed_bytes",
            "gauge",
            "Regions of the volume whose content its node finds by digest.",
        );
        for volume in &volumes {
            if let Some(indexed) = volume.indexed_bytes {
                text.sample("drover_volume_indexed_bytes", &[("volume", &volume.name)], indexed);
            }
        }
        text.metric("drover_volume_remote_bytes", "gauge", "Blocks that the holder has yet to fetch.");
        for volume in &volumes {
            text.sample("drover_volume_remote_bytes", &[("volume", &volume.name)], volume.remote_bytes.unwrap_or(0));
        }
        text.metric("drover_volume_merge_left_bytes", "gauge", "What deleted snapshots still hold.");
        for volume in &volumes {
            let left = volume.merge.map_or(0, |merge| merge.bytes_left);
            text.sample("drover_volume_merge_left_bytes", &[("volume", &volume.name)], left);
        }
        text.metric("drover_volume_poisoned", "gauge", "Whether the volume has to be reopened.");
        for volume in &volumes {
            text.sample("drover_volume_poisoned", &[("volume", &volume.name)], volume.poisoned.into());
        }
        let mut limited = |name: &str, help: &str, value: fn(&Volume) -> Option<u64>| {
            text.metric(name, "counter", help);
            for volume in &volumes {
                if let Some(value) = value(volume) {
                    text.sample(name, &[("volume", &volume.name)], value);
                }
            }
        };
        let requests = "Requests that waited for the volume's limits.";
        limited("drover_volume_limited_requests", requests, |volume| volume.limited_requests);
        let waited = "What they waited in all, since its holder's start.";
        limited("drover_volume_limited_milliseconds", waited, |volume| volume.limited_ms);
        text.metric("drover_lease_epoch", "gauge", "Epoch of the volume's lease, by its holder.");
        for volume in &volumes {
            let labels = [("volume", volume.name.as_str()), ("holder", &volume.holder)];
            text.sample("drover_lease_epoch", &labels, volume.epoch);
        }
    }

    fn tenant_metrics(&self, text: &mut Text) {
        let tenants = self.list_tenants();
        let mut gauge = |name: &str, help: &str, value: fn(&Tenant) -> Option<u64>| {
            text.metric(name, "gauge", help);
            for tenant in &tenants {
                if let Some(value) = value(tenant) {
                    text.sample(name, &[("tenant", &tenant.name)], value);
                }
            }
        };
        let provisioned = "Sizes of the tenant's volumes.";
        gauge("drover_tenant_provisioned_bytes", provisioned, |tenant| Some(tenant.provisioned_bytes));
        gauge("drover_tenant_volumes", "The tenant's volumes.", |tenant| Some(tenant.volumes));
        let quota = "The most that they may be.";
        gauge("drover_tenant_quota_bytes", quota, |tenant| tenant.quota.provisioned_bytes);
        gauge("drover_tenant_quota_volumes", "The most that there may be.", |tenant| tenant.quota.volumes);
    }

    /// By node, export and workload. They begin again with each start of the node.
    fn export_metrics(&self, text: &mut Text) {
        let exports: Vec<_> = self.list_exports().into_iter().map(|export| export.value).collect();
        let mut metric = |name: &str, kind: &str, help: &str, value: fn(&WorkloadUsage) -> u64| {
            text.metric(name, kind, help);
            for (export, usage) in
                exports.iter().flat_map(|export| export.usage.iter().map(move |usage| (export, usage)))
            {
                let workload = usage.workload.as_deref().unwrap_or_default();
                let labels = [
                    ("node", export.node.as_str()),
                    ("export", &export.name),
                    ("volume", &export.volume_name),
                    ("workload", workload),
                ];
                text.sample(name, &labels, value(usage));
            }
        };
        metric("drover_export_connections", "gauge", "Open connections.", |usage| usage.connections);
        metric("drover_export_read_requests", "counter", "Reads served.", |usage| usage.read_requests);
        metric("drover_export_read_bytes", "counter", "Bytes read.", |usage| usage.read_bytes);
        metric("drover_export_write_requests", "counter", "Writes served.", |usage| usage.write_requests);
        metric("drover_export_written_bytes", "counter", "Bytes written.", |usage| usage.written_bytes);
    }

    fn migration_metrics(&self, text: &mut Text) {
        let state = self.ledger.state();
        text.metric("drover_migration_count", "gauge", "Migrations that are remembered, by phase.");
        for phase in Phase::ALL {
            let count = state.migrations.values().filter(|kept| kept.record.phase() == phase).count();
            text.sample("drover_migration_count", &[("phase", phase.name())], count as u64);
        }
        drop(state);
        let active: Vec<_> =
            self.list_migrations(None).unwrap_or_default().into_iter().map(|migration| migration.value).collect();
        let active = active.iter().filter(|migration| !migration.phase.is_final());
        text.metric("drover_migration_left_bytes", "gauge", "Bytes that have yet to arrive.");
        for migration in active {
            text.sample("drover_migration_left_bytes", &[("volume", &migration.volume_name)], migration.bytes_left);
        }
    }
}
