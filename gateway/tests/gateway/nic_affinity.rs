//! `tuning/nic-affinity.sh` on made-up trees: what it would write, and that it writes only when asked to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A made-up /sys and /proc with a card of so many queues.
struct Card(PathBuf);

impl Card {
    fn new(receive: usize, send: usize, cpus: usize) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nic-{}-{number}", std::process::id());
        let card = Card(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        card.file("sys/devices/system/cpu/online", &format!("0-{}\n", cpus - 1));
        card.file("proc/sys/net/core/rps_sock_flow_entries", "0\n");
        let mut interrupts = "  CPU0\n 30: 5 PCI-MSI 0-edge eth0-config\n 31: 5 PCI-MSI 0-edge nvme0q1\n".to_owned();
        for queue in 0..receive {
            interrupts += &format!(" {}: 5 PCI-MSI 0-edge eth0-TxRx-{queue}\n", 40 + queue);
            card.file(&format!("proc/irq/{}/smp_affinity_list", 40 + queue), "0\n");
            card.file(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus"), "00000000\n");
            card.file(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_flow_cnt"), "0\n");
        }
        for queue in 0..send {
            card.file(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus"), "0\n");
        }
        card.file("proc/interrupts", &interrupts);
        card.file("proc/irq/31/smp_affinity_list", "0\n");
        card
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write a file");
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).expect("read a file").trim().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning/nic-affinity.sh");
        Command::new("bash").arg(script).arg("--sys").arg(&self.0).args(arguments).output().expect("run bash")
    }

    fn apply(&self, arguments: &[&str]) {
        let output = self.run(&[&["--apply"], arguments, &["eth0"]].concat());
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

#[test]
fn nothing_is_written_without_apply() {
    let card = Card::new(2, 2, 4);
    let output = card.run(&["eth0"]);
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && said.contains("would set"), "{said}");
    assert!(said.contains("nothing was written"), "{said}");
    assert_eq!(card.text("proc/irq/41/smp_affinity_list"), "0");
    assert_eq!(card.text("sys/class/net/eth0/queues/rx-0/rps_cpus"), "00000000");
}

#[test]
fn as_many_queues_as_cpus_need_no_steering() {
    let card = Card::new(4, 4, 4);
    card.file("sys/class/net/eth0/queues/rx-2/rps_cpus", "f\n");
    card.apply(&[]);
    for queue in 0..4 {
        assert_eq!(card.text(&format!("proc/irq/{}/smp_affinity_list", 40 + queue)), queue.to_string());
        assert_eq!(card.text(&format!("sys/class/net/eth0/queues/rx-{queue}/rps_cpus")).trim_matches('0'), "");
        assert_eq!(card.text(&format!("sys/class/net/eth0/queues/tx-{queue}/xps_cpus")), format!("{:x}", 1 << queue));
    }
    assert_eq!(card.text("proc/irq/31/smp_affinity_list"), "0");
    assert_eq!(card.text("proc/sys/net/core/rps_sock_flow_entries"), "0");
}

#[test]
fn fewer_queues_than_cpus_are_steered_by_software() {
    let card = Card::new(2, 2, 8);
    card.apply(&["--flows", "100000"]);
    assert_eq!(card.text("proc/irq/41/smp_affinity_list"), "1");
    assert_eq!(card.text("sys/class/net/eth0/queues/rx-1/rps_cpus"), "ff");
    assert_eq!(card.text("proc/sys/net/core/rps_sock_flow_entries"), "131072");
    assert_eq!(card.text("sys/class/net/eth0/queues/rx-1/rps_flow_cnt"), "65536");
    assert_eq!(card.text("sys/class/net/eth0/queues/tx-0/xps_cpus"), "55");
    assert_eq!(card.text("sys/class/net/eth0/queues/tx-1/xps_cpus"), "aa");
}

#[test]
fn only_the_cpus_that_were_named_are_used() {
    let card = Card::new(2, 1, 8);
    card.apply(&["--cpus", "2,33-34"]);
    assert_eq!(card.text("proc/irq/40/smp_affinity_list"), "2");
    assert_eq!(card.text("proc/irq/41/smp_affinity_list"), "33");
    assert_eq!(card.text("sys/class/net/eth0/queues/rx-0/rps_cpus"), "6,00000004");
}

#[test]
fn bad_usage_is_status_2_and_says_what_is_wrong() {
    let card = Card::new(1, 1, 2);
    for (arguments, part) in [
        (&["--cpus", "some", "eth0"][..], "some"),
        (&["--no-such", "eth0"], "--no-such"),
        (&["--flows", "0", "eth0"], "--flows"),
        (&[], "name an interface"),
    ] {
        let output = card.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{output:?}");
    }
    assert_eq!(card.run(&["eth9"]).status.code(), Some(1));
}
