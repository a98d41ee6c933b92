//! The interface's description, made from the handlers and types themselves.

use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Drover",
        description = "Block volumes on storage nodes, and their live migration. Long work is a resource that is watched. \
            A POST may carry an Idempotency-Key; a change may carry If-Match with an ETag as answered before.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "nodes"), (name = "volumes"), (name = "snapshots"), (name = "exports"), (name = "migrations"),
        (name = "leases"), (name = "events"), (name = "health")
    )
)]
pub struct Description;

/// The description as it is served at `/v1/openapi.json` and checked in beside this crate.
pub fn openapi() -> utoipa::openapi::OpenApi {
    crate::routes::described().1
}

#[cfg(test)]
mod tests {
    /// After a change: `DROVER_WRITE_OPENAPI=1 cargo test --release -p drover-server openapi`.
    #[test]
    fn openapi_json_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let made = super::openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("DROVER_WRITE_OPENAPI").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(made == kept, "api/server/openapi.json is not what the handlers say; write it anew");
    }
}
