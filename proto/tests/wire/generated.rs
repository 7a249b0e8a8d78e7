//! The code of the control messages is that of their description.

use std::fs;
use std::path::Path;

/// `make docs` sets it: the code is written, not compared.
const WRITE: &str = "TRUNKLINE_WRITE_DOCS";

/// protox is a compiler written in Rust, so no `protoc` has to be installed.
#[test]
fn the_code_of_the_control_messages_is_made_of_their_description() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile([root.join("proto/trunkline.proto")], [root.join("proto")]).expect("a description");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let made = prost_build::Config::new()
        .out_dir(folder)
        // They carry secrets; src/control.rs prints them without.
        .skip_debug([".trunkline.v1.Login", ".trunkline.v1.LoginOk", ".trunkline.v1.Serve", ".trunkline.v1.Invite"])
        .compile_fds(files)
        .and_then(|()| fs::read_to_string(folder.join("trunkline.v1.rs")))
        .expect("code");
    let path = root.join("src/trunkline.v1.rs");
    if fs::read_to_string(&path).is_ok_and(|text| text == made) {
        return;
    }
    assert!(std::env::var_os(WRITE).is_some(), "src/trunkline.v1.rs is not current: run `make docs`");
    fs::write(&path, made).expect("write the code");
}
