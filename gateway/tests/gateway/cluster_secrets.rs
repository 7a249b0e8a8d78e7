//! The secret of a cluster is changed while its nodes run: each node proves one and accepts two.

use crate::cluster_support::Fleet;
use crate::support::client::Client;
use crate::support::scratch::ScratchFile;
use crate::support::wait_for;
use rustix::process::Signal;

const OLD: &str = "the old secret of this cluster";
const NEW: &str = "the new secret of this cluster";

/// The files of a node: the secret it proves, and the one that it accepts beside it.
struct Files([ScratchFile; 2]);

impl Files {
    fn write(&self, secrets: [&str; 2]) {
        for (file, secret) in self.0.iter().zip(secrets) {
            std::fs::write(file.path(), secret).expect("write a secret");
        }
    }
}

/// Has a node read its secrets again, and waits until it says that it has.
fn reload(fleet: &Fleet, at: usize) {
    let ends = |log: &str| log.matches("more need a restart").count();
    let before = ends(&fleet.node(at).log());
    fleet.node(at).signal(Signal::HUP);
    wait_for("the reload is done", || (ends(&fleet.node(at).log()) > before).then_some(()));
    let log = fleet.node(at).log();
    assert!(!log.contains(OLD) && !log.contains(NEW), "a secret is in the log");
}

/// Links are what they were: none was lost, and users on all nodes reach each other.
fn check(fleet: &Fleet, clients: &mut [(u64, Client)], reconnects: u64) {
    assert_eq!(fleet.sum("trunkline_mesh_reconnects_total", &[]), reconnects, "a link was lost");
    for from in 0..clients.len() {
        let to = (from + 1) % clients.len();
        let (low, high) = clients.split_at_mut(from.max(to));
        let (one, other) = (&mut low[from.min(to)], &mut high[0]);
        let (sender, receiver) = if from < to { (one, other) } else { (other, one) };
        sender.1.exchange(&mut receiver.1, receiver.0, b"still here");
    }
}

#[test]
fn a_secret_is_changed_while_all_nodes_run_and_no_link_is_lost() {
    let names = ["a", "b", "c"];
    let files: Vec<Files> =
        names.iter().map(|_| Files(["first", "second"].map(|name| ScratchFile::new(name, OLD)))).collect();
    let mut fleet = Fleet::start_with(&names, |at| {
        let flags = files[at].0.iter().flat_map(|file| ["--cluster-secret-file".to_owned(), file.path().to_owned()]);
        flags.collect()
    });
    let mut clients: Vec<(u64, Client)> =
        (1..=6).map(|user| (user, Client::login(fleet.node(user as usize % 3), user))).collect();
    let reconnects = fleet.sum("trunkline_mesh_reconnects_total", &[]);
    for secrets in [[OLD, NEW], [NEW, OLD], [NEW, NEW]] {
        for (at, files) in files.iter().enumerate() {
            files.write(secrets);
            reload(&fleet, at);
            check(&fleet, &mut clients, reconnects);
        }
    }
    drop(clients);
    // Links that are made in the middle of a change, too: back again, and at each step another node restarts while the
    // others are a step behind.
    for (step, secrets) in [[NEW, OLD], [OLD, NEW], [OLD, OLD]].into_iter().enumerate() {
        files[step].write(secrets);
        let mut node = fleet.nodes[step].take().expect("it runs");
        node.signal(Signal::TERM);
        node.wait_for_exit();
        fleet.start_node(step);
        fleet.wait_joined();
        for at in (0..names.len()).filter(|at| *at != step) {
            files[at].write(secrets);
            reload(&fleet, at);
        }
    }
    fleet.finish();
}
