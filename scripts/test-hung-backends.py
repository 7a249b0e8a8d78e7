#!/usr/bin/env python3
"""Back-ends that accept and never answer, and what messages between clients feel of it. Arguments: the gateway, and the bench.

A gateway on one core, the only node of a cluster, has a service with an HTTP server and a webhook that is told of
every message. In half of the rounds both answer; in the others both take connections and say nothing. All the time
callers call at a rate that fills all connections and the queue of a server that hangs, and `bench rate` has clients
send to each other. Rounds alternate.

Looked at: the p99 of messages in rounds that hang against those that do not (the goal is a ratio of 1.1 at most), that
each call gets exactly one REPLY, one of 14 or 24 where the server hangs, that queue, bytes and memory stay within their
bounds, that the node stays ready with no shard stuck, and that it renews its lease with every beat. Needs redis-server.
"""

import argparse
import asyncio
import base64
import collections
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# No folder of compiled modules in the source tree.
sys.dont_write_bytecode = True
from native_client import PATIENCE_S, Ended, Wrong, login

CALL, REPLY, SERVICE = 0x05, 0x85, 7
CALLERS, CALLS_EACH = range(1_000_000, 1_000_064), 32
QUEUE, CONNECTIONS, CALL_TIMEOUT_MS, HOOK_TIMEOUT_MS = 1_024, 128, 2_000, 1_000
UPSTREAM_BYTES, HOOK_BYTES = 16 << 20, 4 << 20
# What else a gateway may grow by while it works: buffers of connections that come, tables that grow.
SLACK_BYTES = 64 << 20
DONE, OVERLOADED, TIMED_OUT = 0, 14, 24
LEASE_S = 5


class BackEnd(asyncio.Protocol):
    """One connection to a server that answers each request at once, with 200."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", self.buffer[: end + 2])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            self.buffer = self.buffer[whole:]
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


class HungBackEnd(asyncio.Protocol):
    """One that takes a connection, and neither reads nor answers."""

    # Nobody else has a connection that is not read, and what nobody has is closed.
    held = []

    def connection_made(self, transport):
        self.held.append(transport)
        transport.pause_reading()


async def serve(mode):
    """A back-end as a process of its own, so that it does not compete with the callers for an interpreter."""
    os.nice(10)
    # It never sees that a connection was given up, and keeps all.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    protocol = HungBackEnd if mode == "hung" else BackEnd
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=1_024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Callers:
    """Sessions that call the service at a rate, all together."""

    def __init__(self, port, rate):
        self.port, self.rate = port, rate
        self.sent, self.skipped, self.number = 0, 0, 0
        self.statuses, self.open = collections.Counter(), {}
        self.faults = collections.Counter()

    def take(self, user, frame):
        if frame.kind != REPLY:
            self.faults[f"a caller was told kind {frame.kind:#x} {frame.aux}"] += 1
        elif self.open.pop((user, frame.id), None) is None:
            self.faults["a REPLY to a call that had its own"] += 1
        else:
            self.statuses[frame.aux] += 1
            self.busy[user] -= 1

    async def log_in(self):
        self.busy, self.connections = dict.fromkeys(CALLERS, 0), {}
        for user in CALLERS:
            connection, _ = await login(self.port, user, "caller", f11=1)
            connection.on_frame = lambda frame, user=user: self.take(user, frame)
            self.connections[user] = connection

    async def call(self, ending):
        users, turn = list(CALLERS), 0
        due = time.monotonic()
        while not ending.is_set():
            await asyncio.sleep(0.01)
            while (due := due + 1 / self.rate) < time.monotonic():
                for _ in users:
                    user, turn = users[turn % len(users)], turn + 1
                    if self.busy[user] < CALLS_EACH:
                        break
                else:
                    self.skipped += 1
                    continue
                self.number += 1
                self.open[user, self.number] = True
                self.busy[user] += 1
                self.sent += 1
                self.connections[user].send(CALL, self.number, 0, 0, aux=SERVICE, body=b"one of those")
                if self.connections[user].ended:
                    raise Ended
            due -= 1 / self.rate

    async def answered(self):
        deadline = time.monotonic() + CALL_TIMEOUT_MS / 1_000 + PATIENCE_S
        while self.open and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self.open:
            self.faults["a call without a REPLY"] += len(self.open)


def free_ports(count):
    """Ports of this host that nobody has just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Redis:
    """A Redis Cluster of one server, in which the node has its lease."""

    def __init__(self):
        self.process = None

    async def start(self, folder):
        self.port, bus = free_ports(2)
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        command += ["--appendonly", "no", "--cluster-enabled", "yes", "--cluster-port", str(bus)]
        with open(folder / "redis.log", "wb") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        await self.until(b"PONG", "PING")
        await self.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        await self.until(b"cluster_state:ok", "CLUSTER", "INFO")

    async def ask(self, *words):
        command = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *words]
        asked = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return (await asked.communicate())[0]

    async def until(self, answer, *words):
        deadline = time.monotonic() + PATIENCE_S
        while answer not in await self.ask(*words):
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise Wrong(f"redis-server does not say {answer.decode()} to {' '.join(words)}")
            await asyncio.sleep(0.05)


class Round:
    def __init__(self, arguments, mode, folder):
        self.arguments, self.mode, self.folder = arguments, mode, folder
        self.faults = collections.Counter()
        self.most = collections.Counter()
        self.least_lease_s = LEASE_S

    async def start(self):
        await self.redis.start(self.folder)
        cores = sorted(os.sched_getaffinity(0))
        script, pipe = str(Path(__file__).resolve()), asyncio.subprocess.PIPE
        self.back_end = await asyncio.create_subprocess_exec(sys.executable, script, "--serve", self.mode, stdout=pipe)
        back = int(await asyncio.wait_for(self.back_end.stdout.readline(), PATIENCE_S))
        secret = self.folder / "hook.key"
        secret.write_text("whsec_" + base64.b64encode(os.urandom(32)).decode() + "\n")
        secret.chmod(0o600)
        service = f"{SERVICE}:slow,transport=http,server=http://127.0.0.1:{back}/calls max_conns={CONNECTIONS}"
        service += f",queue={QUEUE},call_timeout_ms={CALL_TIMEOUT_MS}"
        hook = f"http://127.0.0.1:{back}/hook,secret_file={secret},events=message.* session.*,timeout_ms={HOOK_TIMEOUT_MS}"
        command = [self.arguments.gateway, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"]
        command += ["--connections-max", "10000", "--service", service, "--webhook", hook, "--log", "warn"]
        cluster_secret = self.folder / "cluster.secret"
        cluster_secret.write_text(os.urandom(32).hex())
        cluster_secret.chmod(0o600)
        command += ["--node", "hung", "--redis", f"redis-cluster://127.0.0.1:{self.redis.port}"]
        command += ["--lease-secs", str(LEASE_S), "--advertise", "hung.example.org:7700"]
        command += ["--mesh", f"127.0.0.1:{free_ports(1)[0]}", "--cluster-secret-file", str(cluster_secret)]
        command += ["--upstream-bytes-max", str(UPSTREAM_BYTES), "--webhook-bytes-max", str(HOOK_BYTES)]
        # Shard and services thread share a core: that is where a back-end could be felt most.
        confine = lambda: os.sched_setaffinity(0, cores[:1])
        with open(self.folder / "log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=log, preexec_fn=confine)
        self.port = self.http = None
        while self.http is None or self.port is None:
            line = (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).decode()
            if not line:
                raise Wrong(f"the gateway ended as it started: status {await self.process.wait()}")
            if found := re.match(r"listening on 127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if found := re.match(r"http on 127\.0\.0\.1:(\d+)", line):
                self.http = int(found[1])
        self.rest = asyncio.create_task(self.process.stdout.read())
        deadline = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(self.is_ready):
            if time.monotonic() > deadline:
                raise Wrong("the node did not become ready")
            await asyncio.sleep(0.05)

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=PATIENCE_S) as answer:
            lines = re.findall(r"(?m)^(trunkline_\w+)(\{[^}]*\})? ([0-9.e+]+)$", answer.read().decode())
        sums = collections.Counter()
        for name, labels, value in lines:
            sums[name] += float(value)
            for label in re.findall(r'(?:outcome|end)="[^"]*"', labels):
                sums[f"{name} {label}"] += float(value)
        return sums

    def is_ready(self):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=PATIENCE_S).close()
            return True
        except OSError:
            return False

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())[1]) << 10

    async def look(self, ending):
        """What grows has bounds, at every moment."""
        bounds = {
            "trunkline_upstream_calls_waiting": QUEUE,
            "trunkline_upstream_requests_under_way": CONNECTIONS,
            "trunkline_upstream_bytes": UPSTREAM_BYTES,
            "trunkline_webhook_bytes": HOOK_BYTES,
            "trunkline_shards_stuck": 0,
            "trunkline_cluster_fenced": 0,
        }
        while not ending.is_set():
            metrics = await asyncio.to_thread(self.metrics)
            for name, most in bounds.items():
                self.most[name] = max(self.most[name], metrics[name])
                self.faults[f"{name} above {most:,}"] += metrics[name] > most
            self.most["rss"] = max(self.most["rss"], self.rss())
            self.least_lease_s = min(self.least_lease_s, metrics["trunkline_cluster_lease_seconds"])
            self.faults["the node was not ready"] += not await asyncio.to_thread(self.is_ready)
            await asyncio.sleep(0.5)

    async def bench(self):
        arguments, report = self.arguments, self.folder / "bench.json"
        command = [arguments.bench, "rate", "--conns", "200", "--rate", str(arguments.rate), "--secs", str(arguments.secs)]
        command += ["--gateway", f"127.0.0.1:{self.port}", "--gateway-pid", str(self.process.pid), "--json", report]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = await process.communicate()
        if process.returncode != 0:
            raise Wrong(f"the bench ended with status {process.returncode}:\n{said.decode(errors='replace')[-2_000:]}")
        [step] = json.loads(report.read_text())["steps"]
        return step["messages"]

    async def run(self):
        tasks, ending = [], asyncio.Event()
        self.process = self.back_end = None
        self.redis = Redis()
        try:
            await self.start()
            callers = Callers(self.port, self.arguments.calls)
            await callers.log_in()
            before = self.rss()
            tasks = [asyncio.create_task(callers.call(ending)), asyncio.create_task(self.look(ending))]
            # Until the queue is full, should it become so.
            await asyncio.sleep(CALL_TIMEOUT_MS / 1_000 + 1)
            latency = await self.bench()
            ending.set()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
            await callers.answered()
            metrics = self.metrics()
            self.judge(callers, metrics, before)
            self.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self.process.wait(), PATIENCE_S)
            return latency
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in (self.process, self.back_end, self.redis.process):
                if process and process.returncode is None:
                    process.kill()
                    await process.wait()

    def judge(self, callers, metrics, before):
        faults = self.faults
        faults.update(callers.faults)
        statuses, most = callers.statuses, self.most
        wanted = {OVERLOADED, TIMED_OUT} if self.mode == "hung" else {DONE}
        for status in statuses.keys() - wanted:
            faults[f"a call ended with status {status} while the server was {self.mode}"] += statuses[status]
        ended = {outcome: metrics[f'trunkline_calls_total outcome="{outcome}"'] for outcome in ("answered", "overloaded", "timed_out")}
        told = {"answered": statuses[DONE], "overloaded": statuses[OVERLOADED], "timed_out": statuses[TIMED_OUT]}
        faults[f"the gateway has counted {ended}, callers {told}"] += ended != told
        if self.mode == "hung":
            full = most["trunkline_upstream_calls_waiting"], most["trunkline_upstream_requests_under_way"]
            faults[f"the queue was never full: raise --calls (most {full})"] += full != (QUEUE, CONNECTIONS)
            faults["no call ended with its time-out"] += not statuses[TIMED_OUT]
            faults["the webhook was delivered something"] += metrics['trunkline_webhook_events_total end="delivered"'] > 0
        of_lease = lambda outcome: int(metrics[f'trunkline_cluster_renewals_total outcome="{outcome}"'])
        renewed, failed, missed = of_lease("renewed"), of_lease("failed"), of_lease("missed")
        faults["the lease was never renewed"] += renewed < 2
        faults["a renewal of the lease failed"] += failed
        faults["a renewal of the lease was missed"] += missed
        grown = most["rss"] - before
        faults[f"memory has grown by {grown >> 20} MiB"] += grown > UPSTREAM_BYTES + HOOK_BYTES + SLACK_BYTES
        print(f"  {callers.sent:,} calls: " + ", ".join(f"status {status} {count:,}" for status, count in sorted(statuses.items())))
        waiting = most["trunkline_upstream_calls_waiting"]
        print(f"  most at once: {waiting:.0f} calls waiting, {most['trunkline_webhook_bytes'] / 1024:.0f} KiB of events; "
              f"memory {before >> 20} MiB and {grown >> 20} more")
        print(f"  {renewed:,} renewals of the lease, {missed:,} missed, {failed:,} failed; "
              f"it had {self.least_lease_s:.1f} of {LEASE_S} s left at least")


def main():
    parser = argparse.ArgumentParser(description="Back-ends that hang, and what messages between clients feel of it.")
    parser.add_argument("gateway", type=Path, nargs="?")
    parser.add_argument("bench", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3, help="of each kind; the medians count")
    parser.add_argument("--secs", type=int, default=5, help="of a measurement")
    parser.add_argument("--rate", type=int, default=5_000, help="messages a second between clients")
    parser.add_argument("--calls", type=int, default=800, help="calls a second")
    parser.add_argument("--ratio-max", type=float, help="fail if the p99 grows by more than this factor")
    parser.add_argument("--serve", choices=["well", "hung"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return asyncio.run(serve(arguments.serve))
    if not shutil.which("redis-server") or not shutil.which("redis-cli"):
        parser.error("redis-server and redis-cli are needed: scripts/setup.sh")
    if not arguments.gateway or not arguments.bench:
        parser.error("say which gateway and which bench")
    if not (1 <= arguments.rounds <= 100 and 1 <= arguments.secs <= 600 and 1 <= arguments.calls <= 10_000):
        parser.error("1 to 100 rounds of 1 to 600 s, and 1 to 10,000 calls a second")
    status, p99 = 0, {"well": [], "hung": []}
    for number in range(2 * arguments.rounds):
        mode = ("well", "hung")[number % 2]
        with tempfile.TemporaryDirectory(prefix="hung-backends-") as name:
            this = Round(arguments, mode, Path(name))
            print(f"round {number // 2 + 1}, back-ends {mode}", flush=True)
            try:
                latency = asyncio.run(this.run())
                p99[mode].append(latency["p99_us"])
                print(f"  messages: p50 {latency['p50_us']:.0f} µs, p99 {latency['p99_us']:.0f} µs", flush=True)
            except (Wrong, Ended, TimeoutError) as wrong:
                this.faults[str(wrong) or type(wrong).__name__] += 1
            if faults := [f"{fault} ({count})" for fault, count in this.faults.items() if count]:
                status = 1
                print("\n".join(f"FAULT: {fault}" for fault in faults))
                print((Path(name) / "log").read_text(errors="replace")[-4_000:])
    if p99["well"] and p99["hung"]:
        well, hung = statistics.median(p99["well"]), statistics.median(p99["hung"])
        ratio = hung / well
        print(f"p99 of messages: {well:.0f} µs while back-ends answer, {hung:.0f} µs while they hang: {ratio:.2f} x (goal 1.10)")
        if arguments.ratio_max and ratio > arguments.ratio_max:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
