#!/usr/bin/env python3
"""Whether `scripts/figures.py --check` finds results that the scripts would not make. Measures nothing."""

import re
import sys
import unittest

# Nothing is left beside the scripts.
sys.dont_write_bytecode = True
import figures


def report(arguments, cores=2):
    command = ["target/release/bench", *arguments.split(), "--json", "benches/results/some.json"]
    return {"command": command, "machine": {"cores": cores}}


RUNS = {"pairs": ["pairs", "--window", "1"], "hold": ["hold", "--shared-cores", "{cores}"]}


class Stale(unittest.TestCase):
    def test_a_result_of_the_scripts_is_right(self):
        self.assertEqual(figures.stale(RUNS, {"pairs": report("pairs --window 1")}), [])

    def test_cores_are_those_of_the_machine_that_was_measured(self):
        self.assertEqual(figures.stale(RUNS, {"hold": report("hold --shared-cores 8", cores=8)}), [])
        self.assertEqual(len(figures.stale(RUNS, {"hold": report("hold --shared-cores 8")})), 1)

    def test_both_commands_of_a_result_with_other_arguments_are_named(self):
        (fault,) = figures.stale(RUNS, {"pairs": report("pairs --window 32")})
        for part in ("pairs.json", "`bench pairs --window 32`", "`bench pairs --window 1`"):
            self.assertIn(part, fault)

    def test_one_argument_more_or_less_is_another_command(self):
        for arguments in ("pairs", "pairs --window 1 --ack", "pairs --window 1 1"):
            self.assertEqual(len(figures.stale(RUNS, {"pairs": report(arguments)})), 1, arguments)

    def test_a_result_that_no_script_makes_is_named(self):
        (fault,) = figures.stale(RUNS, {"pairs-old": report("pairs --window 1")})
        self.assertIn("pairs-old.json: no script makes it", fault)

    def test_a_run_that_was_not_measured_yet_is_no_fault(self):
        self.assertEqual(figures.stale(RUNS, {}), [])

    def test_a_result_without_its_command_is_judged_by_its_arguments(self):
        old = {"bench": "pairs", "arguments": {"window": 1}}
        self.assertEqual(figures.stale(RUNS, {"pairs": old}), [])


class Scripts(unittest.TestCase):
    def test_a_dry_run_tells_of_every_script(self):
        runs = figures.runs_of_scripts()
        self.assertEqual(runs["vs"][0], "vs")
        self.assertEqual(runs["cluster-rate"][:3], ["rate", "--nodes", "3"])
        self.assertEqual(runs["hold-wss-aes256-100000"][1:5], ["--transport", "wss", "--tls-cipher", "aes256"])
        self.assertIn("{cores}", runs["hold-1000000"])
        # Each is a run of a program, not of a shell: nothing of a variable is left.
        for name, arguments in runs.items():
            self.assertFalse([word for word in [name, *arguments] if "$" in word or " " in word or not word], name)

    def test_nothing_that_a_table_shows_is_made_by_no_script(self):
        runs, text = figures.runs_of_scripts(), (figures.ROOT / "scripts/figures.py").read_text()
        shown = set(re.findall(r'"((?:pairs|idle|rate|slow|hold|fanout|cluster|storm|watch|push|store|replay)-[a-z0-9-]+)"', text))
        self.assertEqual(sorted(shown - set(runs)), [])


if __name__ == "__main__":
    unittest.main()
