//! Compiles proto/ to Rust types, without protoc.

use std::error::Error;

use prost_build::Config;
use protox::prost_reflect::{Cardinality, DescriptorPool, EnumDescriptor, Kind};

/// Each names its imports itself, but all of them are listed so that cargo watches them.
const PROTOS: [&str; 8] = [
    "proto/fown.proto",
    "proto/task.proto",
    "proto/files.proto",
    "proto/tty.proto",
    "proto/mem.proto",
    "proto/ipc.proto",
    "proto/inventory.proto",
    "proto/own.proto",
];

/// Writes the types of proto/ to `OUT_DIR/_.rs`: the files have no package, as CRIU's have none.
///
/// Every type is `Serialize`, for the view of a single file; bytes and enumerations are shown as text, see
/// `image::text`.
pub fn build() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let mut config = Config::new();
    config.type_attribute(".", "#[derive(serde::Serialize)]");
    let pool = DescriptorPool::from_file_descriptor_set(descriptors.clone())?;
    for field in pool.all_messages().flat_map(|message| message.fields().collect::<Vec<_>>()) {
        let path = field.full_name();
        if matches!(field.kind(), Kind::Bytes) {
            let shape = match field.cardinality() {
                Cardinality::Optional => "optional",
                Cardinality::Required => "required",
                Cardinality::Repeated => "repeated",
            };
            config.field_attribute(path, format!("#[serde(serialize_with = \"crate::image::text::{shape}\")]"));
        }
        if let Kind::Enum(values) = field.kind() {
            let shape = if field.cardinality() == Cardinality::Optional { "optional_enum" } else { "required_enum" };
            let name = rust_name(&values);
            config.field_attribute(
                path,
                format!("#[serde(serialize_with = \"crate::image::text::{shape}::<{name}, _>\")]"),
            );
        }
        if matches!(field.cardinality(), Cardinality::Optional) {
            config.field_attribute(path, "#[serde(skip_serializing_if = \"Option::is_none\")]");
        }
    }
    config.compile_fds(descriptors)?;
    Ok(())
}

/// The path of an enumeration's Rust type in the generated module.
fn rust_name(values: &EnumDescriptor) -> String {
    let upper = |word: &str| word.get(..1).map_or(String::new(), str::to_uppercase) + word.get(1..).unwrap_or("");
    let name: String = values.name().split('_').map(upper).collect();
    match values.parent_message() {
        Some(message) => format!("{}::{name}", message.name()),
        None => name,
    }
}
