//! Compiles the control messages. protox is a compiler written in Rust, so no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/trunkline.proto");
    let files = protox::compile(["proto/trunkline.proto"], ["proto"])?;
    prost_build::Config::new()
        // They carry secrets; src/control.rs prints them without.
        .skip_debug([".trunkline.v1.Login", ".trunkline.v1.LoginOk", ".trunkline.v1.Serve", ".trunkline.v1.Invite"])
        .compile_fds(files)?;
    Ok(())
}
