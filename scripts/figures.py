#!/usr/bin/env python3
"""Writes the figures of README.md and docs/figures.md from benches/results, so that each number has one source.

A block between `<!-- figures: NAME -->` and `<!-- end of figures -->` is replaced. With --check nothing is written: it ends with status
1 if a document says something else than the results do, or if a result was measured with other arguments than the scripts have today.
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches/results"
DOCUMENTS = ["README.md", "docs/figures.md"]
BLOCK = re.compile(r"(<!-- figures: ([a-z-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
CONFIDENCE_MIN = 0.95
NONE = "–"
MISSING = "Not measured yet.\n"


def result(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def command(report):
    """What was typed, without the file it was written to."""
    # Where a program lies is of that machine alone.
    words = [Path(word).name if word.startswith("/") else word for word in report.get("command", [])[1:]]
    if words:
        at = words.index("--json") if "--json" in words else len(words)
        return " ".join(["bench"] + words[:at] + words[at + 2 :])
    # Reports of earlier versions have the arguments only.
    given = report["arguments"]
    flags = ["conns", "window", "shards", "rounds", "secs", "runs", "nodes"]
    words = [report["bench"]]
    for flag in flags:
        value = given.get(flag)
        if value in (None, 1) and flag in ("shards", "nodes"):
            continue
        if value is not None:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    words += [f"--{flag}" for flag in ("ack", "within", "across", "guests", "exchange") if given.get(flag)]
    return "bench " + " ".join(words)


def one_core_only(fanout):
    """Said of results from when the load of `bench fanout` had one core; those name no idle cores."""
    if "idle_cores" in json.dumps(fanout["gateway"]):
        return ""
    return " All of the load was on one of the cores when this was measured, which was the bench's fault."


def code(report):
    return f"`{command(report)}`"


def number(value):
    """Three digits that count, thousands apart."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def interval(values):
    """Order statistics with the median between them, and how probable that is; as `Median` of the bench does it."""
    values = sorted(values)
    count = len(values)
    fewer, best = 0.0, None
    for k in range(1, (count + 1) // 2 + 1):
        fewer += math.comb(count, k - 1) * 0.5**count
        confidence = max(0.0, 1 - 2 * fewer)
        if k > 1 and confidence < CONFIDENCE_MIN:
            break
        best = (values[k - 1], values[count - k], confidence)
    return best


def ratio(values):
    if not values:
        return NONE
    low, high, confidence = interval(values)
    if confidence == 0:
        return f"{statistics.median(values):.2f}"
    return f"{statistics.median(values):.2f} ({low:.2f} to {high:.2f}, {confidence:.0%})".replace("%)", " %)")


def bounded(told):
    """A ratio as a report of the bench has it."""
    if not told:
        return NONE
    if told["confidence"] == 0:
        return f"{told['median']:.2f}"
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f}, {told['confidence']:.0%})".replace("%)", " %)")


def note(report, servers, own):
    """Command, versions of others, and who was left out or broke."""
    others = [server for server in servers if not server["name"].startswith(own)]
    skipped = [f"{name} was not there" for name, _ in report.get("skipped", [])]
    return "\n" + "; ".join([code(report)] + others_of(others) + skipped) + ".\n"


def others_of(servers):
    named = lambda server: server["version"] if server["name"] in server["version"] else f"{server['name']}: {server['version']}"
    versions = [named(server) for server in servers if server["rounds"]]
    return versions + [f"{server['name']} is left out: {server['failed']}" for server in servers if server.get("failed")]


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows if row]) + "\n"


# Messages


def case_of(report, name):
    return next((case for case in report["cases"] if case["name"] == name), None)


def cpu(case):
    return [round["cpu_us_per_message"] for round in case["rounds"]]


def saturation(case):
    server = statistics.median(round["cpu_cores"] for round in case["rounds"])
    bench = [round["bench_cores"] for round in case["rounds"] if "bench_cores" in round]
    return f"{server:.2f} + {statistics.median(bench):.2f}" if bench else f"{server:.2f}"


def pairs_row(label, name, base="floor", case="gateway"):
    report = result(name)
    base, case = report and case_of(report, base), report and case_of(report, case)
    if not base or not case:
        return None
    both = list(zip(cpu(case), cpu(base)))
    return [
        label,
        f"{number(statistics.median(cpu(base)))} µs",
        f"{number(statistics.median(cpu(case)))} µs",
        ratio([mine / theirs for mine, theirs in both]),
        f"{saturation(base)}; {saturation(case)}",
        code(report),
    ]


MESSAGE_HEAD = ["CPU for a message", "beside", "it", "ratio (interval)", "cores: server + bench, of both", "command"]


def messages_few():
    return [
        pairs_row("100 connections, 1 in flight each, over the floor", "pairs-100-w1"),
        pairs_row("5,000 connections, over the floor", "pairs-5000-w1"),
        pairs_row("100 connections, 32 in flight each, over the floor", "pairs-100-w32"),
        pairs_row("with ACK and SENT, 1 in flight, over the floor", "pairs-100-w1-ack"),
        pairs_row("across two nodes, both counted, over within one", "cluster-pairs-w1", "local", "across"),
    ]


def messages_all():
    within, across = "gateway, within a shard", "gateway, across shards"
    websocket, tls, wss = "gateway, WebSocket", "gateway, TLS", "gateway, WebSocket over TLS"
    return messages_few() + [
        pairs_row("the same, 32 in flight", "cluster-pairs-w32", "local", "across"),
        pairs_row("the same with ACK, 1 in flight", "cluster-pairs-w1-ack", "local", "across"),
        pairs_row("to a guest of the sender's node, over within a node, 32 in flight", "cluster-pairs-guests", "local", "guests of one node"),
        pairs_row("to a guest of another node, over the same", "cluster-pairs-guests", "local", "guests of two nodes"),
        pairs_row("server held to a share of a core, 1 in flight", "pairs-100-w1-saturation"),
        pairs_row("the same, 32 in flight", "pairs-100-w32-saturation"),
        pairs_row("across two shards, over within one, 1 in flight", "pairs-2shards-w1", within, across),
        pairs_row("the same, 32 in flight", "pairs-2shards-w32", within, across),
        pairs_row("WebSocket, over the floor of the same bytes, 1 in flight", "pairs-transports-w1", "floor, WebSocket", websocket),
        pairs_row("WebSocket, over native, 1 in flight", "pairs-transports-w1", "gateway", websocket),
        pairs_row("TLS, over native", "pairs-transports-w1", "gateway", tls),
        pairs_row("WebSocket over TLS, over native", "pairs-transports-w1", "gateway", wss),
        pairs_row("WebSocket, over native, 32 in flight", "pairs-transports-w32", "gateway", websocket),
        pairs_row("TLS, over native", "pairs-transports-w32", "gateway", tls),
        pairs_row("WebSocket over TLS, over native", "pairs-transports-w32", "gateway", wss),
    ]


# Idle connections


def idle_row(label, name, field):
    report = result(name)
    runs = [run for run in (report or {"runs": []})["runs"] if run.get(field)]
    if not runs:
        return None
    held = [run[field] for run in runs]
    median = lambda of: statistics.median(of(footprint) for footprint in held)
    whole = [footprint["user_with_start"] for footprint in held if "user_with_start" in footprint]
    together = [footprint["user_rss"] + footprint["kernel"]["in_use"] for footprint in held]
    bare = [run["plain"]["accepted"]["in_use"] for run in runs]
    return [
        label,
        f"{median(lambda footprint: footprint['user_rss']):,.0f} B",
        f"{statistics.median(whole):,.0f} B" if whole else NONE,
        f"{statistics.median(together):,.0f} B",
        f"{statistics.median(bare):,.0f} B",
        ratio([mine / least for mine, least in zip(together, bare)]),
        code(report),
    ]


def hold_row(label, name):
    report = result(name)
    if not report:
        return None
    memory = report["memory"]
    whole = memory.get("user_with_start", memory["rss_bytes"] / max(report["held_to_the_end"], 1))
    return [
        label,
        f"{memory['user_rss']:,.0f} B",
        f"{whole:,.0f} B",
        f"{memory['together']:,.0f} B",
        NONE,
        NONE,
        code(report),
    ]


IDLE_HEAD = ["an idle logged-in connection", "process", "with what was there at the start", "with the kernel", "accepted socket alone", "ratio (interval)", "command"]


def idle_few():
    return [
        idle_row("15,000 of them", "idle-15000", "gateway"),
        hold_row("a million in one process, held for 5 minutes", "hold-1000000"),
        hold_row("a million WebSockets over TLS, held for a minute", "hold-wss-1000000"),
    ]


def idle_all():
    return [
        idle_row("15,000 of them", "idle-15000", "gateway"),
        idle_row("15,000 in another run", "idle-transports", "gateway"),
        idle_row("as WebSockets", "idle-transports", "websocket"),
        idle_row("over TLS, AES-128-GCM", "idle-transports", "tls"),
        idle_row("as WebSockets over TLS, AES-128-GCM", "idle-transports", "wss"),
        idle_row("ChaCha20-Poly1305", "idle-wss-chacha20", "wss"),
        idle_row("AES-256-GCM", "idle-wss-aes256", "wss"),
        idle_row("40,000 on 4 shards under a limit of 20,000 descriptors", "idle-40000", "gateway"),
        hold_row("100,000 in one process", "hold-100000"),
        hold_row("333,333", "hold-333333"),
        hold_row("a million, held for 5 minutes with 30 s heartbeats", "hold-1000000"),
        hold_row("100,000 WebSockets in one process", "hold-ws-100000"),
        hold_row("100,000 WebSockets over TLS in one process", "hold-wss-100000"),
        hold_row("with AES-256-GCM", "hold-wss-aes256-100000"),
        hold_row("with ChaCha20-Poly1305", "hold-wss-chacha20-100000"),
        hold_row("a million WebSockets over TLS, held for a minute", "hold-wss-1000000"),
    ]


# Handshakes


def handshake_rows():
    rows = []
    for name in ("handshakes", "handshakes-nodes"):
        report = result(name)
        for case in (report or {"cases": []})["cases"]:
            figures = (case["per_second"], case["server_cpu_us"], case["per_second_and_core"], case["bench_cpu_us"])
            rows.append([case["name"], f"{figures[0]:,.0f}", f"{figures[1]:,.0f} µs", f"{figures[2]:,.0f}", f"{figures[3]:,.0f} µs", code(report)])
    return rows


HANDSHAKE_HEAD = ["logins over TLS: accept, handshake, LOGIN, end", "a second", "CPU of the gateway for one", "a second and core of that", "CPU of the bench", "command"]


def handshakes():
    rows = handshake_rows()
    return table(HANDSHAKE_HEAD, rows) + handshake_note() if rows else "Not measured yet.\n"


def handshake_note():
    report = result("handshakes")
    if not report:
        return ""
    others, flood = report["others"], report.get("flood")
    paced = others["paced"]["messages"]
    note = (
        f"\nOthers' p99 beside {others['paced_per_second']:,.0f} handshakes a second: {ms(paced['p99_us'])}, and {ms(others['before']['messages']['p99_us'])} before. "
    )
    if not flood:
        return note + "\n"
    return note + (
        f"Beside {flood['connections']:,} ClientHellos that go no further, sent within {flood['seconds']:.1f} s: {ms(flood['others']['messages']['p99_us'])}; "
        f"{flood['evicted']:,} of them gave way to later ones, and memory grew by {flood['peak_bytes_each']:,.0f} B for each at its peak.\n"
    )


# Fan-out


def fanout_row(label, name):
    report = result(name)
    if not report:
        return None
    middle = lambda field: statistics.median(one[field] for one in report["gateway"])
    base = [one["cpu_us"] for one in report["floor"]]
    return [
        label,
        f"{number(statistics.median(base))} µs" if base else NONE,
        f"{number(middle('cpu_us'))} µs",
        ratio([mine["cpu_us"] / theirs for mine, theirs in zip(report["gateway"], base)]),
        f"{1e6 / middle('cpu_us'):,.0f}",
        f"{middle('first_ms'):.1f} ms, {middle('last_ms'):,.0f} ms",
        *[fanout_other(report, name) for name in FANOUT_OTHERS],
        f"{middle('server_cores'):.2f} + {middle('bench_cores'):.2f}",
        code(report),
    ]


def fanout_other(report, name):
    other = next((other for other in report.get("others", []) if other["name"] == name), None)
    if not other or not other["rounds"]:
        return NONE
    spent = statistics.median(one["cpu_us"] for one in other["rounds"])
    return f"{number(spent)} µs; {bounded(other['over_gateway'])}; {bounded(other['over_floor'])}"


def fanout_note():
    """Which versions of others they were, of the first run that has some."""
    reports = (result(f"fanout-{name}") for name in ("15000", "15000-burst4", "15000-burst16", "100000", "100000-burst4", "1000000"))
    others = next((report["others"] for report in reports if report and report.get("others")), [])
    return f"\n{'; '.join(others_of(others))}.\n" if others else ""


def fanout():
    rows = [
        fanout_row("15,000 in a room, one message at a time", "fanout-15000"),
        fanout_row("4 at a time", "fanout-15000-burst4"),
        fanout_row("16 at a time", "fanout-15000-burst16"),
        fanout_row("100,000 in a room, one at a time", "fanout-100000"),
        fanout_row("4 at a time", "fanout-100000-burst4"),
        fanout_row("a million in a room, one at a time", "fanout-1000000"),
    ]
    tables = [table(FANOUT_HEAD, rows) + fanout_note()] if any(rows) else []
    return "\n".join(tables + [part for part in (fanout_nodes(), fanout_slow()) if part]) or MISSING


def fanout_nodes():
    """A room over several nodes, beside one node with all of it."""
    report = result("fanout-15000-nodes")
    if not report:
        return ""
    nodes, copies = report["arguments"]["nodes"], report["copies"]
    row = lambda label, rounds, over: [
        label,
        *[f"{number(statistics.median(one['cpu_us'] for one in rounds))} µs", over],
        "{:.1f} ms, {:,.0f} ms".format(*[statistics.median(one[field] for one in rounds) for field in ("first_ms", "last_ms")]),
        " + ".join(f"{statistics.median(one[field] for one in rounds):.2f}" for field in ("server_cores", "bench_cores")),
    ]
    rows = [row("one node", report["one"], NONE), row(f"{nodes} nodes, all counted", report["several"], bounded(report["over_one"]))]
    return (
        table([f"{report['arguments']['members']:,} in a room", "CPU for a delivery", "over one node (interval)", "first, last member", "cores: servers + bench"], rows)
        + f"\n{copies['messages']:,} messages, {copies['sent']:,} copies between nodes, {copies['received']:,} of which came: one for each link and message. {code(report)}.\n"
    )


def fanout_slow():
    """Members of a group who stop reading, and what the others notice."""
    report = result("fanout-10000-slow")
    if not report:
        return ""
    rounds = report["rounds"]
    middle = lambda of: statistics.median(of(one) for one in rounds)
    row = lambda label, which, over: [
        label,
        *[ms(middle(lambda one: one[which]["latency"][field])) for field in ("p50_us", "p99_us", "max_us")],
        over,
        f"{number(middle(lambda one: one[which]['cpu_us']))} µs",
    ]
    rows = [row("everybody reads", "without", NONE), row(f"{report['slow']:,} do not", "with", bounded(report["p99_ratio"]))]
    total = lambda field: sum(one[field] for one in rounds)
    return (
        table([f"{report['arguments']['members']:,} in a group, those who read", "p50", "p99", "max", "p99 over that before (interval)", "CPU for a delivery"], rows)
        + f"\n{total('dropped'):,} copies found no room and were counted; the slow members fetched what they had missed with {total('pages'):,} pages, each message once and "
        f"in order, and had everything {ms(middle(lambda one: one['caught_up_ms'] * 1e3))} after they read again. {code(report)}.\n"
    )


FANOUT_OTHERS = ["nats-server", "redis-server", "mosquitto"]
FANOUT_HEAD = ["", "CPU for a raw send", "CPU for a delivery", "ratio (interval)", "deliveries a second and core", "first, last member",
               "nats-server: CPU for a delivery; over the gateway's; over the raw send's", "redis-server", "mosquitto",
               "cores: server + bench", "command"]


# Calls


CALLS_HEAD = ["a call and its answer", "CPU of the server in between", "over the floor (interval)",
              "of the gateway with a worker, over it", "calls a second", "p50, p99", "cores: server + bench"]


def calls_row(case, ratios):
    rounds = case["rounds"]
    if not rounds:
        return None
    middle = lambda of: statistics.median(of(round) for round in rounds)
    return [
        case["name"] if case["name"] == "floor" else f"{case['name']}: {case['what']}",
        f"{number(middle(lambda round: round['cpu_us_per_message']))} µs",
        bounded(ratios.get((case["name"], "floor"))),
        bounded(ratios.get(("gateway, worker", case["name"]))) if case["name"] != "floor" else NONE,
        f"{middle(lambda round: round['rate']):,.0f}",
        f"{ms(middle(lambda round: round['latency']['p50_us']))}, {ms(middle(lambda round: round['latency_corrected']['p99_us']))}",
        f"{middle(lambda round: round['cores']):.2f} + {middle(lambda round: round['bench_cores']):.2f}",
    ]


def calls():
    report = result("calls")
    if not report:
        return MISSING
    ratios = {(one["case"], one["over"]): one for one in report["ratios"]}
    rows = [calls_row(case, ratios) for case in report["cases"]]
    return table(CALLS_HEAD, rows) + note(report, report["cases"], ("floor", "gateway"))


# Pushes


PUSH_HEAD = ["", "CPU of the gateway for one", "over a message (interval)", "of that its services thread", "a second and services core",
             "a second, all on one core", "p50, p99", "cores: server + bench"]


def push_row(case, ratios):
    rounds = case["rounds"]
    if not rounds:
        return None
    middle = lambda of: statistics.median(of(round) for round in rounds)
    told = [round for round in rounds if "services_cpu_us" in round]
    return [
        f"{case['name']}: {case['what']}",
        f"{number(middle(lambda round: round['cpu_us']))} µs",
        bounded(ratios.get(case["name"])),
        f"{number(middle(lambda round: round['services_cpu_us']))} µs" if told else NONE,
        f"{middle(lambda round: round['per_second_and_services_core']):,.0f}" if told else NONE,
        f"{middle(lambda round: round['rate']):,.0f}",
        f"{ms(middle(lambda round: round['latency']['p50_us']))}, {ms(middle(lambda round: round['latency_corrected']['p99_us']))}",
        f"{middle(lambda round: round['cores']):.2f} + {middle(lambda round: round['bench_cores']):.2f}",
    ]


def cast_note(report):
    casts = next((case["casts"] for case in report["cases"] if case.get("casts")), None)
    if not casts:
        return ""
    middle = lambda field: statistics.median(cast[field] for cast in casts)
    return (
        f"One push to all, {plural(len(casts), 'time')}: {middle('sessions'):,.0f} sessions of {report['arguments']['users']:,} each time, "
        f"{middle('per_second'):,.0f} a second with {middle('per_second_max'):,.0f} allowed, the first after {middle('first_ms'):.1f} ms and "
        f"the last after {middle('last_ms'):,.0f} ms; {number(middle('cpu_us'))} µs of CPU for each ({code(report)}).\n"
    )


def push():
    report = result("push")
    all_of_them = [found for found in (report, result("push-all"), result("push-1000000")) if found]
    if not all_of_them:
        return MISSING
    text = ""
    if report:
        ratios = {one["case"]: one for one in report["ratios"]}
        text = table(PUSH_HEAD, [push_row(case, ratios) for case in report["cases"]])
        text += f"\n{report['arguments']['users']:,} users who are there; {code(report)}.\n"
    casts = [cast_note(found) for found in all_of_them]
    return text + "".join(f"\n{cast}" for cast in casts if cast)


# Watches


WATCH_HEAD = ["", "states told a second", "memory of a watch: tables, process", "told: who has come, p50, p99", "who has gone, 10 s of waiting in it",
              "last state of who is in; out: p99", "all true after", "changes of one user told to one: most; allowed", "memory at its peak, over that before",
              "cores: server + bench", "command"]


def plural(count, what):
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def watch_row(name):
    report = result(name)
    if not report:
        return None
    given, told, memory = report["arguments"], report["told"], report["memory"]
    both = lambda lag: f"{ms(lag['p50_us'])}, {ms(lag['p99_us'])}" if lag["count"] else NONE
    late = lambda lag: ms(lag["p99_us"]) if lag["count"] else NONE
    return [
        f"{given['watches']:,} watches of {given['users']:,} users on {plural(report['shards'], 'shard')}, {report['changes_per_second']:,.0f} changes a second",
        f"{told['states_per_second']:,.0f}",
        f"{memory['tables_per_watch']:.1f} B, {memory['rss_per_watch']:.1f} B",
        both(report["lag_online"]),
        both(report["lag_offline"]),
        f"{late(report['last_online'])}; {late(report['last_offline'])}",
        f"{report['all_true_secs']:.1f} s",
        f"{told['most_of_one']}; {told['most_of_one_allowed']}",
        f"{memory['peak_ratio']:.2f}",
        f"{report['cores']:.2f} + {report['bench_cores']:.2f}",
        code(report),
    ]


def watch():
    rows = [watch_row(name) for name in ("watch-100000", "watch-1000000", "watch-1000000-users-100000")]
    return table(WATCH_HEAD, rows) if any(rows) else MISSING


# What is kept for users who are away


def kept(server, in_flight=None):
    """The measurements of one server with so many in flight, or of the burst."""
    return [round for round in server["rounds"] if (round["burst"] if in_flight is None else not round["burst"] and round["in_flight"] == in_flight)]


def kept_cells(rounds):
    if not rounds:
        return [NONE, NONE]
    middle = lambda field: statistics.median(round[field] for round in rounds)
    return [f"{middle('rate'):,.0f}", f"{middle('cpu_us_per_message'):.2f} µs"]


def waited(rounds):
    if not rounds:
        return NONE
    of = lambda field, which: statistics.median(round[field][which] for round in rounds) / 1e3
    return f"{of('latency', 'p50_us'):,.2f} ms, {of('latency_corrected', 'p99_us'):,.2f} ms"


def store_rows():
    rows = []
    for name in ("store", "store-million", "store-redis"):
        report = result(name)
        for server in (report or {"servers": []})["servers"]:
            if not server["rounds"]:
                continue
            disk = [round["disk_bytes_per_message"] for round in kept(server, 256) if round["disk_bytes_per_message"] is not None]
            cells = kept_cells(kept(server)) + kept_cells(kept(server, 256)) + [waited(kept(server, 256)), waited(kept(server, 1))]
            cells.append(f"{statistics.median(disk):,.0f} B" if disk and server["what"].find("memory of") < 0 else NONE)
            burst = f", a burst of {report['arguments']['burst']:,}" if name == "store-million" else ""
            rows.append([f"{server['name']}: {server['what']}{burst}"] + cells)
    return rows


STORE_HEAD = ["", "burst: kept a second", "CPU for one", "256 in flight: kept a second", "CPU for one", "p50, p99", "1 in flight: p50, p99", "written for one of 256"]


def store_note():
    report = result("store")
    if not report:
        return ""
    servers = {server["name"]: server for server in report["servers"]}
    own = servers.get("trunkline")
    notes = []
    if own and "floor" in servers:
        both = list(zip(kept(own, 256), kept(servers["floor"], 256)))
        over = lambda field: ratio([mine["latency"][field] / least["latency"][field] for mine, least in both])
        notes.append(f"with 256 in flight over the floor: p50 {over('p50_us')}, p99 {over('p99_us')}")
    for name, server in servers.items():
        both = list(zip(kept(own, 256), kept(server, 256))) if own and name not in ("trunkline", "floor") else []
        if both:
            notes.append(f"kept a second with 256 in flight over {name}: {ratio([mine['rate'] / theirs['rate'] for mine, theirs in both])}")
    versions = [f"{name}: {server['version']}" for name, server in servers.items() if name not in ("trunkline", "floor")]
    skipped = [f"{name} is left out: {why}" for name, why in report["skipped"]]
    return "\n" + "; ".join([code(report)] + notes + versions + skipped) + ".\n"


def replay_rows():
    rows = []
    for name, what in (("replay", ""), ("replay-restart", ", the gateway started again before they come")):
        report = result(name)
        if not report:
            continue
        middle = lambda field: statistics.median(round[field] for round in report["rounds"])
        given = report["arguments"]
        rows.append([
            f"{given['users']:,} users take {given['messages']:,} messages each{what}: a second; a second and core; all have all after",
            f"{middle('rate'):,.0f}; {middle('per_second_and_core'):,.0f}; {middle('seconds'):.1f} s",
            code(report),
        ])
    for name in ("storm-50000", "storm-200000"):
        report, plain = result(f"{name}-backlog"), result(name)
        if not report or not plain:
            continue
        backlog, during = report["backlog"], report["during"]["messages"]
        times = backlog["seconds_until_all"] / plain["seconds_until_back"]
        rows += [
            [f"{report['cut']:,} clients come back to {report['arguments']['backlog']} messages each: all have all after, over the storm without",
             f"{backlog['seconds_until_all']:.1f} s; {times:.2f} ×", code(report)],
            [f"{report['control']:,} others meanwhile: p99, max", f"{ms(during['p99_us'])}, {ms(during['max_us'])}", "the same"],
        ]
    return rows


def store():
    rows, more = store_rows(), replay_rows()
    if not rows and not more:
        return "Not measured yet.\n"
    return (table(STORE_HEAD, rows) + store_note() if rows else "") + ("\n" + table(["", "", "command"], more) if more else "")


# Situations


def ms(micros):
    return f"{micros / 1e3:,.1f} ms"


def million_rows():
    report, steps, storm = result("hold-1000000"), result("hold-1000000-three-steps"), result("storm-200000")
    rows = []
    if report:
        held, ramp = report["held"]["messages"], report["ramp"]
        lost = f"{report['held_to_the_end']:,} at the end, {report['lost']} lost"
        rows += [
            ["a million clients in one process, 5 minutes", lost, code(report)],
            ["their logins a second, median of the ramp, LOGIN along with the SYN", f"{ramp['rate_median']:,.0f}", "the same"],
            ["CPU for one of them, server + bench", f"{ramp['server_cpu_us']:.1f} + {ramp['bench_cpu_us']:.1f} µs", "the same"],
            [f"{report['rate']:,.0f} messages a second among {report['control']:,} of them: p50, p99, max", ", ".join(ms(held[field]) for field in ("p50_us", "p99_us", "max_us")), "the same"],
            ["idle CPU of one, per second", f"{report['idle_cpu_us']:.2f} µs", "the same"],
            ["cores in use with heartbeats and messages, gateway alone", f"{report['spent']['cores']:.2f}", "the same"],
        ]
    if steps:
        rows.append(["logins a second after three steps of TCP, median of the ramp", f"{steps['ramp']['rate_median']:,.0f}", code(steps)])
    if storm:
        during = storm["during"]["messages"]
        rows += [
            [f"{storm['cut']:,} clients cut off at once, all logged in again", f"{storm['seconds_until_back']:.1f} s; memory {storm['memory_peak_ratio']:.2f} ×", code(storm)],
            [f"{storm['control']:,} others meanwhile, {storm['rate']:,.0f} messages a second: p99, max", f"{ms(during['p99_us'])}, {ms(during['max_us'])}", "the same"],
        ]
    return rows


def situation_rows():
    rows = []
    for name, what in (("cluster-logins", "with presence in Redis"), ("alone-logins", "without")):
        report = result(name)
        if report:
            ramp = report["ramp"]
            rows.append([f"logins a second at a node {what}; CPU of the server for one", f"{ramp['rate_mean']:,.0f}; {ramp['server_cpu_us']:.1f} µs", code(report)])
    slow = result("slow-400")
    if slow:
        rows.append([f"p99 of the others while {slow['slow']} of {slow['arguments']['conns']} clients read nothing, over that before", f"{slow['p99_ratio']:.2f}", code(slow)])
    return million_rows() + rows


def rate_rows():
    report = result("rate-10000")
    if not report:
        return []
    rows = []
    for step in report["steps"]:
        latency = step["messages"]
        in_time = f"{step['in_time_share']:.1%}".replace("%", " %") if "in_time_share" in step else NONE
        figures = [ms(latency[field]) for field in ("p50_us", "p99_us", "p999_us", "max_us")]
        cores = f"{step['cores']:.2f} + {step['bench_cores']:.2f}"
        rows.append([f"{step['rate']:,.0f}", in_time, *figures, cores, code(report)])
    return rows


RATE_HEAD = ["messages a second, 10,000 clients", "there in time", "p50", "p99", "p99.9", "max", "cores: server + bench", "command"]


# Other servers


def peer_rows():
    report = result("vs")
    if not report:
        return []
    base = report["servers"][0]
    of = lambda server, window, field: [round[field] for round in server["rounds"] if round["window"] == window]
    rows = []
    for server in report["servers"]:
        idle = server.get("idle")
        if not server["rounds"]:
            continue
        is_own = server["name"].startswith(("floor", "trunkline"))
        cells = [server["name"] if is_own else f"{server['name']}: {server['what']}"]
        cores = []
        for window in report["arguments"]["window"]:
            times, least = of(server, window, "cpu_us_per_message"), of(base, window, "cpu_us_per_message")
            if not times:
                cells += [NONE, NONE]
                continue
            cells.append(f"{number(statistics.median(times))} µs")
            cells.append(ratio([mine / theirs for mine, theirs in zip(times, least)]))
            both = zip(of(server, window, "cores"), of(server, window, "bench_cores"))
            cores.append(" + ".join(f"{statistics.median(side):.2f}" for side in zip(*both)))
        cells.append("; ".join(cores))
        latencies = [round.get("latency_corrected", round["latency"])["p99_us"] for round in server["rounds"] if round["window"] == 1]
        cells.append(ms(statistics.median(latencies)) if latencies else NONE)
        if idle:
            cells += [f"{idle['user']:,.0f} B", f"{idle['user'] + idle['kernel']:,.0f} B", f"{idle['logins_per_second']:,.0f}"]
        else:
            cells += [NONE, NONE, NONE]
        rows.append(cells)
    return rows


PEER_HEAD = ["", "CPU for a message, 1 in flight", "over the floor", "32 in flight", "over the floor", "cores: server + bench, of both", "p99, 1 in flight", "idle connection: process", "with the kernel", "logins/s"]


def peer_note():
    report = result("vs")
    if not report:
        return ""
    peers = [server for server in report["servers"] if server["what"] and not server["name"].startswith(("floor", "trunkline"))]
    versions = others_of([{**server, "name": server["name"].split(",")[0]} for server in peers])
    return f"\n{code(report)}; {'; '.join(dict.fromkeys(versions))}.\n"


# Where it loses


def times(name, base, case):
    """How many times of a case's CPU another one takes."""
    report = result(name)
    base, case = report and case_of(report, base), report and case_of(report, case)
    return statistics.median([mine / theirs for mine, theirs in zip(cpu(case), cpu(base))]) if base and case else None


def losses():
    """What costs more than its aim, or more than something else, with the numbers of the runs. What is within its aim is left out."""
    lines = []
    websocket = times("pairs-transports-w32", "gateway", "gateway, WebSocket")
    if websocket and websocket > 1.1:
        lines.append(f"**WebSockets at 32 in flight** cost {websocket:.2f} × native frames; the aim is 1.10.")
    pushes = (result("push") or {"ratios": []})["ratios"]
    if pushes:
        low, high = min(one["low"] for one in pushes), max(one["high"] for one in pushes)
    if pushes and high > 0.65:
        lines.append(f"**Pushes** of a worker cost {low:.1f} to {high:.1f} × a message between clients; the aim is 0.65. Most of either is the send, which is the same.")
    nodes = times("cluster-pairs-w32", "local", "across")
    if nodes and nodes > 1.5:
        lines.append(
            f"**Across nodes in batches.** With 32 in flight a message to another node costs both nodes together {nodes:.2f} × what it costs within one; the aim is 1.5. It is a second way "
            "through the kernel, and a record that is encoded, decoded and routed on each side; the sealing of the links is a twentieth of it (`--gateway-arg=--mesh-encryption=off`)."
        )
    million, few = result("fanout-1000000"), result("fanout-15000")
    if million and few:
        middle = lambda report, field: statistics.median(one[field] for one in report["gateway"])
    if million and few and middle(million, "last_ms") > 5_000:
        lines.append(
            f"**A message to a million** reaches the last one after {middle(million, 'last_ms') / 1e3:.1f} s; the aim is 5 s. Sockets of both ends are cold in the processor's caches by then, so a "
            f"delivery costs {middle(million, 'cpu_us') / middle(few, 'cpu_us'):.1f} × what it does in a room of 15,000."
            + one_core_only(million)
        )
    held = result("pairs-100-w32-saturation")
    over = times("pairs-100-w32-saturation", "floor", "gateway")
    if over:
        lines.append(
            f"**A server that is not full.** Held to {held['arguments']['saturation']:g} of a core with 32 in flight, floor and gateway alike, a message costs the gateway {over:.1f} × what it costs the "
            "floor: it takes fewer at a time, and a turn of a shard has more to do than that of the echo."
        )
    hold = result("hold-1000000")
    if hold:
        pongs = hold["idle_pongs"]
        lines.append(
            f"**A million heartbeats**, {pongs['pongs']['count'] / pongs['seconds']:,.0f} a second, and {hold['rate']:,.0f} messages keep {hold['spent']['cores']:.2f} of a core busy in the gateway alone. Of "
            "fewer clients each costs more, since fewer share its wake-ups."
        )
    if len(machines()) > 1:
        lines.append("**Runs of several machines.** The first lines of this page say which runs are of another machine than most; they are not to be held against the others.")
    return "".join(f"- {line}\n" for line in lines) or MISSING


# The scripts


def runs_of_scripts():
    """By the name of a result: the arguments with which scripts/bench.sh and those it calls would measure it."""
    environment = {name: value for name, value in os.environ.items() if name != "NATS_SERVER"}
    told = subprocess.run(
        [ROOT / "scripts/bench.sh"], env=environment | {"BENCH_DRY_RUN": "1"}, check=True, capture_output=True, text=True
    )
    runs = {}
    for line in told.stdout.splitlines():
        name, *arguments = line.split("\t")
        if name in runs:
            sys.exit(f"the scripts write {name}.json twice: `{' '.join(runs[name])}` and `{' '.join(arguments)}`")
        runs[name] = arguments
    return runs


def stale(runs, reports):
    """A sentence for each result that was measured with other arguments than the scripts have, or that none of them makes."""
    faults = []
    for name, report in sorted(reports.items()):
        stored = command(report)
        if name not in runs:
            faults.append(f"benches/results/{name}.json: no script makes it; it was measured with `{stored}`")
            continue
        cores = str(report.get("machine", {}).get("cores", "?"))
        today = " ".join(["bench"] + [word.replace("{cores}", cores) for word in runs[name]])
        if today != stored:
            faults.append(f"benches/results/{name}.json: it was measured with `{stored}`, and the scripts have `{today}`")
    return faults


def machine_of(report):
    told = report.get("machine", {})
    return f"{told.get('cores', '?')} cores ({told.get('cpu', '?')}), Linux {told.get('kernel', '?')}, {told.get('memory_mib', 0) / 1024:.0f} GiB"


def machines():
    """The runs of each machine."""
    runs = {}
    for path in sorted(RESULTS.glob("*.json")):
        runs.setdefault(machine_of(json.loads(path.read_text())), []).append(path.stem)
    return runs


def machine():
    """The machine of most runs, and which runs are of another one: their figures are not to be held against the others."""
    runs = machines()
    most, *others = sorted(runs, key=lambda machine: -len(runs[machine])) or ["?"]
    told = [f"On {most}."] + [f"On {machine}: {', '.join(f'`{name}`' for name in runs[machine])}." for machine in others]
    return " ".join(told) + "\n"


def blocks():
    return {
        "few": table(MESSAGE_HEAD, messages_few()) + "\n" + table(IDLE_HEAD, idle_few()) + "\n" + table(["", "", "command"], million_rows()),
        "machine": machine(),
        "messages": table(MESSAGE_HEAD, messages_all()),
        "idle": table(IDLE_HEAD, idle_all()),
        "handshakes": handshakes(),
        "fanout": fanout(),
        "calls": calls(),
        "push": push(),
        "watch": watch(),
        "store": store(),
        "situations": table(["", "", "command"], situation_rows()),
        "rate": table(RATE_HEAD, rate_rows()),
        "losses": losses(),
        "peers": table(PEER_HEAD, peer_rows()) + peer_note(),
    }


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit("usage: figures.py [--check]")
    known, differ = blocks(), []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        unknown = [block for _, block, _ in BLOCK.findall(text) if block not in known]
        if unknown:
            sys.exit(f"{name}: there are no figures named {', '.join(unknown)}; there are {', '.join(known)}")
        written = BLOCK.sub(lambda found: found[1] + known[found[2]] + found[3], text)
        if written != text and not check:
            path.write_text(written)
        if written != text:
            differ.append(name)
    faults = stale(runs_of_scripts(), {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}) if check else []
    if check and differ:
        faults.append(f"{', '.join(differ)}: not what benches/results says; scripts/figures.py writes it")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
