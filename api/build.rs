//! Compiles proto/weft.proto in pure Rust (protox), so that no protoc is needed.
fn main() {
    println!("cargo:rerun-if-changed=proto/weft.proto");
    let files = match protox::compile(["proto/weft.proto"], ["proto"]) {
        Ok(files) => files,
        Err(error) => panic!("proto/weft.proto does not compile: {error:?}"),
    };
    if let Err(error) = tonic_prost_build::configure().bytes(".").compile_fds(files) {
        panic!("cannot write the generated code: {error}");
    }
}
