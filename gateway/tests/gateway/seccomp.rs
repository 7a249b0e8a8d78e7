//! A filter of system calls, as containers and systemd set one: what it takes from the gateway is named at start.

use crate::support::gateway::gateway_command;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::process::Output;

/// Numbers of system calls, the same on every 64-bit architecture.
const IO_URING_SETUP: i64 = 425;
const IO_URING_ENTER: i64 = 426;
const IO_URING_REGISTER: i64 = 427;

/// What the gateway says when these calls fail with EPERM. The filter is the thread's, and what it starts inherits it.
fn gateway_without(calls: &[i64]) -> Output {
    const EPERM: u32 = 1;
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture with such filters");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    let thread = std::thread::spawn(move || {
        apply_filter(&program).expect("set the filter");
        let mut command = gateway_command();
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"]);
        command.output().expect("run the gateway")
    });
    thread.join().expect("it runs")
}

#[test]
fn each_call_that_is_denied_is_a_refusal_that_names_the_filter() {
    for calls in [&[IO_URING_SETUP][..], &[IO_URING_ENTER], &[IO_URING_REGISTER], &[IO_URING_SETUP, IO_URING_ENTER]] {
        let output = gateway_without(calls);
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{calls:?}: {} {said}", output.status);
        assert!(!said.contains("panicked"), "{said}");
        let last = said.lines().last().expect("a word");
        assert!(last.starts_with("gateway: io_uring"), "{calls:?}: {said}");
        if calls == [IO_URING_ENTER] {
            for part in ["seccomp", "io_uring_enter", "Docker", "SystemCallFilter"] {
                assert!(last.contains(part), "no {part} in {last}");
            }
        }
    }
}
