//! Schemathesis against a served API: does it take what its document allows, refuse what it does not, and answer as it
//! says?

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Requests made up for each operation and phase. They are the same in each run: made deterministically, and nothing of
/// a run before is used.
const EXAMPLES: &str = "40";

/// Fails the test with what Schemathesis says if the API at `address` is not as its document has it. `flags` select
/// operations.
pub(crate) fn assert_conforms(address: SocketAddr, flags: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the workspace");
    let program = root.join("target/schemathesis/bin/schemathesis");
    assert!(program.exists(), "{} is not there: run scripts/setup.sh", program.display());
    let mut command = Command::new(program);
    command.args(["run", &format!("http://{address}/v1/openapi.json")]);
    command.args(["--max-examples", EXAMPLES, "--generation-deterministic"]);
    command.args([
        "--phases",
        "examples,coverage,fuzzing",
        "--workers",
        "1",
        "--continue-on-failure",
        "--no-color",
        "--warnings",
        "off",
    ]);
    // What a machine that is busy with something else could fail.
    command.args(["--suppress-health-check", "all", "--request-timeout", "60"]);
    let output = command.args(flags).current_dir(env!("CARGO_TARGET_TMPDIR")).output().expect("run Schemathesis");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    // Nothing is found wrong either where nothing was tried.
    assert!(said.contains("Test cases:") && said.contains(" passed"), "{said}");
}
