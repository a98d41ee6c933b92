//! The interface's description: made from the handlers and types themselves, and completed by what holds for all of
//! them, so that no handler has to repeat it.

use utoipa::OpenApi;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, PathItem, Ref, RefOr, Required, Response, ResponseBuilder};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Drover",
        description = "Block volumes on storage nodes, and their live migration. Long work is a resource that is watched. \
            A POST may carry an Idempotency-Key; a change may carry If-Match with an ETag as answered before.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "nodes"), (name = "volumes"), (name = "snapshots"), (name = "tenants"), (name = "exports"), (name = "migrations"),
        (name = "leases"), (name = "events"), (name = "service")
    )
)]
pub struct Description;

const TOKEN: &str = "token";

/// Resources with an ETag.
const VERSIONED: [&str; 6] = ["Node", "Drain", "Volume", "Tenant", "Export", "Migration"];

/// The description as it is served at `/v1/openapi.json` and checked in beside this crate.
pub fn openapi() -> utoipa::openapi::OpenApi {
    crate::routes::described().description
}

/// Adds to every operation what all of its kind have in common: a unique id, the token, errors, headers.
pub fn complete(description: &mut utoipa::openapi::OpenApi) {
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    description.components.get_or_insert_default().add_security_scheme(TOKEN, token);
    for (path, item) in &mut description.paths.paths {
        let PathItem { get, put, post, delete, patch, .. } = item;
        let is_post = post.is_some();
        for (operation, posts) in [(get, false), (put, false), (post, is_post), (delete, false), (patch, false)] {
            if let Some(operation) = operation {
                complete_operation(path, operation, posts);
            }
        }
    }
}

fn complete_operation(path: &str, operation: &mut Operation, posts: bool) {
    let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
    let name = operation.operation_id.take().unwrap_or_default();
    operation.operation_id = Some(format!("{tag}_{name}"));
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            describe(status, response);
        }
    }
    let takes_something = operation.parameters.is_some() || operation.request_body.is_some() || posts;
    let mut errors = vec![("default", "why it was not carried out")];
    if path.starts_with("/v1/") || path == "/metrics" {
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])]);
        errors.push(("401", "the token is missing or wrong"));
    }
    if takes_something {
        errors.push(("400", "the request is not what this path takes"));
    }
    for (status, text) in errors {
        operation.responses.responses.entry(status.into()).or_insert_with(|| RefOr::T(error(text)));
    }
    // A plan changes nothing, so it may as well be made twice.
    if posts && path != "/v1/migrations/plan" {
        let text = "Chosen by the client: the same request under the same key is carried out once. Kept for a day.";
        parameter(operation, "Idempotency-Key", text);
    }
    if operation.responses.responses.contains_key("412") {
        parameter(
            operation,
            "If-Match",
            "The resource's ETag as answered before: if it changed since, nothing is done.",
        );
    }
}

fn error(text: &str) -> Response {
    let content = Content::new(Some(Ref::from_schema_name("ApiError")));
    ResponseBuilder::new().description(text).content("application/json", content).build()
}

/// Every response has a description, and says which headers come with it.
fn describe(status: &str, response: &mut Response) {
    if response.description.is_empty() {
        response.description = match status {
            "201" => "made",
            "204" => "done",
            "404" => "it, or what it names, is not there",
            "409" => "the present state excludes it",
            "412" => "it changed since its ETag was read",
            status if status.starts_with('2') => "as asked",
            _ => "why it was not carried out",
        }
        .into();
    }
    let schema = response.content.get("application/json").and_then(|content| match content {
        RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. }) => schema.ref_location.rsplit('/').next(),
        _ => None,
    });
    let header = match schema {
        Some(schema) if VERSIONED.contains(&schema) => ("ETag", "version of the resource, for If-Match"),
        Some(schema) if schema.starts_with("Page_") => ("Link", "the next page, where there is one (RFC 8288)"),
        _ => return,
    };
    let text = ObjectBuilder::new().schema_type(Type::String);
    let described = HeaderBuilder::new().schema(Some(text)).description(Some(header.1)).build();
    response.headers.insert(header.0.into(), RefOr::T(described));
}

fn parameter(operation: &mut Operation, name: &str, text: &str) {
    let schema = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(255));
    let header = ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(text))
        .schema(Some(schema));
    operation.parameters.get_or_insert_default().push(RefOr::T(header.build()));
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use std::collections::BTreeSet;

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

    #[test]
    fn every_operation_has_an_id_of_its_own_the_token_and_errors() {
        let description: Value = serde_json::to_value(super::openapi()).unwrap();
        let open = ["/healthz", "/readyz"];
        let mut ids = BTreeSet::new();
        for (path, item) in description["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let what = format!("{method} {path}");
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{what} is named {id}, as another is");
                assert_eq!(operation["security"].is_array(), !open.contains(&path.as_str()), "{what}");
                let responses = operation["responses"].as_object().unwrap();
                assert!(responses.contains_key("default"), "{what}");
                for (status, response) in responses {
                    assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{what} {status}");
                }
                let headers: Vec<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "header")
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                let is_change = method == "post" && path != "/v1/migrations/plan";
                assert_eq!(headers.contains(&"Idempotency-Key"), is_change, "{what}: {headers:?}");
            }
        }
        assert!(ids.len() >= 30, "{ids:?}");
        assert!(description["components"]["securitySchemes"]["token"].is_object());
    }
}
