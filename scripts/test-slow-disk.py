#!/usr/bin/env python3
"""A disk in trouble below a gateway with --data-dir: what must be stored is refused, counted and told of, and who is
online does not notice. Needs root and /dev/fuse.

The store lies on a file system (powerfs.py) whose syncs take five seconds each for a while, and whose writes then fail
as on a broken, a full and a read-only disk. All the time one sender writes to users who are away, and others exchange
messages with ACK with users who are online. Of each trouble it is checked that

- messages to users who are away get SENT 3, or SENT 1 late, and nothing else;
- refusals are counted, and /readyz is 200 and says what is wrong;
- of the time from SEND to SENT 0 of those who are online, p99 is at most twice what it was before, or one more turn of
  this script's own clock (--slack-ms) where that is longer;
- when the disk is well again messages are stored as before, /readyz says nothing, and what was refused and sent again
  with RETRY is there once.

At the end each message that was answered with SENT 1 is in its inbox, once and in order.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

# No folder of compiled modules in the source tree.
sys.dont_write_bytecode = True
from native_client import ACK, CUMULATIVE, DELIVER, PATIENCE_S, RETRY, SEND, SENT, SYNC_OK, WITH_ACK, Wrong, login
from powerfs import libc

CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 1 << 14, 1 << 18, 2
AWAY = range(1_000, 1_008)
PAIRS = 8
# Pauses between two messages of one sender.
ONLINE_PAUSE_S, AWAY_PAUSE_S = 0.005, 0.01
STALL_S = 5
AGAIN_S = 1.0


class Away:
    """Sends to users who are away; what is refused is sent again until it is stored."""

    def __init__(self, connection):
        self.connection = connection
        self.next_id = 1
        self.open = {}
        self.stored = []
        self.outcomes = collections.Counter()
        self.late_s = 0.0
        connection.on_frame = self.on_frame

    def offer(self, number, again):
        peer = AWAY[number % len(AWAY)]
        flags = WITH_ACK | (RETRY if again else 0)
        self.open[number] = time.monotonic()
        self.connection.send(SEND, number, peer, 0, flags=flags, body=struct.pack(">Q", number))

    def on_frame(self, frame):
        if frame.kind != SENT:
            return
        self.outcomes[frame.aux] += 1
        began = self.open.pop(frame.id)
        if frame.aux == 1:
            self.late_s = max(self.late_s, time.monotonic() - began)
            self.stored.append(frame.id)
        else:
            asyncio.get_running_loop().call_later(AGAIN_S, self.offer, frame.id, True)

    def take(self):
        """How messages ended since this was asked last, and how late the latest SENT 1 was."""
        outcomes, late_s = self.outcomes, self.late_s
        self.outcomes, self.late_s = collections.Counter(), 0.0
        return outcomes, late_s

    async def run(self):
        while True:
            self.offer(self.next_id, False)
            self.next_id += 1
            await asyncio.sleep(AWAY_PAUSE_S)


class Online:
    """Two users who are online, one of whom writes to the other."""

    def __init__(self, sender, recipient, peer):
        self.sender, self.recipient, self.peer = sender, recipient, peer
        self.began = {}
        self.took_s = []
        self.wrong = collections.Counter()
        sender.on_frame, recipient.on_frame = self.on_sent, self.on_deliver

    def on_deliver(self, frame):
        if frame.kind == DELIVER:
            self.recipient.send(ACK, frame.id, frame.peer, frame.stamp)

    def on_sent(self, frame):
        if frame.kind != SENT:
            return
        self.took_s.append(time.monotonic() - self.began.pop(frame.id))
        if frame.aux != 0:
            self.wrong[frame.aux] += 1

    def take(self):
        took_s, self.took_s = self.took_s, []
        return took_s

    async def run(self):
        number = 0
        while True:
            number += 1
            self.began[number] = time.monotonic()
            self.sender.send(SEND, number, self.peer, 0, flags=WITH_ACK, body=b"hello")
            await asyncio.sleep(ONLINE_PAUSE_S)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


class Run:
    def __init__(self, arguments):
        self.arguments = arguments
        self.faults = []
        self.rows = []
        self.calm_p99_s = None

    def expect(self, holds, text):
        if not holds:
            self.faults.append(text)

    async def line(self, process, beginning):
        while line := await process.stdout.readline():
            if found := re.match(beginning, line.decode()):
                return found
        return None

    def order(self, text):
        self.disk.stdin.write(f"{text}\n".encode())

    async def get(self, path):
        def ask():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=PATIENCE_S) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        return await asyncio.to_thread(ask)

    async def degraded(self):
        """What /readyz says is wrong. It serves all the same."""
        status, body = await self.get("/readyz")
        self.expect(status == 200, f"/readyz is {status}: {body}")
        return json.loads(body).get("degraded", []) if status == 200 else [body]

    async def counted(self):
        """All that counts messages that the store did not take."""
        _, text = await self.get("/metrics")
        names = (
            r'trunkline_store_refused_total\{reason="unavailable"\}',
            r'trunkline_limit_hits_total\{[^}]*limit="store_answer_time"[^}]*\}',
        )
        return sum(float(value) for name in names for value in re.findall(rf"^{name} (\S+)", text, re.M))

    async def until_degraded(self, wanted, within_s):
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if bool(await self.degraded()) == wanted:
                return True
            await asyncio.sleep(0.2)
        return False

    def take(self):
        """What happened since this was called last."""
        took_s = [took for pair in self.pairs for took in pair.take()]
        outcomes, late_s = self.away.take()
        return percentile(took_s, 0.5), percentile(took_s, 0.99), len(took_s), outcomes, late_s

    def row(self, name, taken):
        p50_s, p99_s, count, outcomes, late_s = taken
        self.rows.append((name, p50_s, p99_s, count, outcomes, late_s))
        told = ", ".join(f"SENT {outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
        print(
            f"  {name:<12} online: {count:>6,} messages, p50 {p50_s * 1e3:6.2f} ms, p99 {p99_s * 1e3:6.2f} ms; "
            f"away: {told or 'no answer'}, the latest SENT 1 after {late_s * 1e3:,.0f} ms",
            flush=True,
        )

    async def trouble(self, name, order, seconds, may_be_late):
        before = await self.counted()
        self.take()
        self.order(order)
        told = await self.until_degraded(True, STALL_S + PATIENCE_S / 4)
        self.expect(told, f"{name}: /readyz says nothing")
        await asyncio.sleep(seconds)
        taken = self.take()
        self.row(name, taken)
        _, p99_s, count, outcomes, _ = taken
        bound_s = max(2 * self.calm_p99_s, self.calm_p99_s + self.arguments.slack_ms / 1e3)
        self.expect(count > 0, f"{name}: no message between users who are online")
        self.expect(p99_s <= bound_s, f"{name}: p99 online is {p99_s * 1e3:.2f} ms, more than {bound_s * 1e3:.2f} ms")
        allowed = {1, 3} if may_be_late else {3, 5}
        # What was under way when it began may have been stored.
        strange = {outcome for outcome in outcomes if outcome not in allowed | {1}}
        self.expect(not strange, f"{name}: messages to users who are away end with SENT {strange}")
        self.expect(outcomes[3] + outcomes[5] > 0, f"{name}: nothing was refused")
        self.order("well")
        self.expect(await self.counted() > before, f"{name}: nothing was counted")
        well = await self.until_degraded(False, PATIENCE_S)
        self.expect(well, f"{name}: /readyz still says {await self.degraded()} when the disk is well")
        # What was refused is sent again within that time.
        await asyncio.sleep(AGAIN_S + STALL_S)
        self.take()
        await asyncio.sleep(2)
        taken = self.take()
        self.row("  well again", taken)
        outcomes = taken[3]
        self.expect(set(outcomes) == {1}, f"behind {name}: messages to users who are away end with {dict(outcomes)}")

    async def check(self, port):
        """Every message that was answered with SENT 1 is there, once; new ones of one sender in order."""
        expected = collections.defaultdict(set)
        for number in self.away.stored:
            expected[AWAY[number % len(AWAY)]].add(number)
        for user in AWAY:
            connection, _ = await login(port, user, "late", f10=1_024)
            got = []
            while (frame := await connection.next(DELIVER, SYNC_OK)).kind == DELIVER:
                got.append(struct.unpack(">Q", frame.body)[0])
                if len(got) % 256 == 0:
                    connection.send(ACK, frame.id, frame.peer, frame.stamp, flags=CUMULATIVE)
            connection.transport.close()
            self.expect(len(got) == len(set(got)), f"user {user} has {len(got) - len(set(got))} messages twice")
            missing = expected[user] - set(got)
            self.expect(not missing, f"user {user} lacks {len(missing)} messages that were answered with SENT 1")

    async def with_gateway(self, gateway):
        found = await self.line(gateway, r"listening on 127\.0\.0\.1:(\d+)")
        if not found:
            raise Wrong(f"the gateway ended with status {await gateway.wait()} as it started")
        port = int(found[1])
        self.http = int((await self.line(gateway, r"http on 127\.0\.0\.1:(\d+)"))[1])
        while not (await self.get("/readyz"))[0] == 200:
            await asyncio.sleep(0.05)
        self.away = Away((await login(port, 1, "sender", f11=1))[0])
        self.pairs = []
        for number in range(PAIRS):
            sender, _ = await login(port, 10 + number, "a", f11=1)
            recipient, _ = await login(port, 50 + number, "b")
            self.pairs.append(Online(sender, recipient, 50 + number))
        tasks = [asyncio.create_task(each.run()) for each in [self.away, *self.pairs]]
        try:
            await asyncio.sleep(2)
            self.take()
            await asyncio.sleep(self.arguments.secs)
            calm = self.take()
            self.row("calm", calm)
            self.calm_p99_s = calm[1]
            self.expect(set(calm[3]) == {1}, f"calm: messages to users who are away end with {dict(calm[3])}")
            secs = self.arguments.secs
            await self.trouble("slow", f"slow {STALL_S}", secs + 2 * STALL_S, True)
            for name, code in (("broken", "EIO"), ("full", "ENOSPC"), ("read-only", "EROFS")):
                await self.trouble(name, f"fail {code}", secs, False)
            for pair in self.pairs:
                self.expect(not pair.wrong, f"messages between users who are online end with {dict(pair.wrong)}")
            for task in tasks:
                task.cancel()
            await self.away.connection.until("answers to all that was sent", lambda: not self.away.open)
            await self.check(port)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, folder):
        disk, place = folder / "disk", folder / "mounted"
        disk.mkdir()
        place.mkdir()
        pipe = asyncio.subprocess.PIPE
        powerfs = [sys.executable, Path(__file__).with_name("powerfs.py"), disk, place, "1"]
        self.disk = await asyncio.create_subprocess_exec(*powerfs, stdin=pipe, stdout=pipe)
        try:
            if not await asyncio.wait_for(self.line(self.disk, "mounted"), PATIENCE_S):
                sys.exit("test-slow-disk: the file system could not be mounted")
            command = [self.arguments.gateway, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
            command += ["--shards", "2", "--connections-max", "1000", "--data-dir", place / "data"]
            command += ["--store-after-ms", "500", "--inbox-messages-max", "1000000", "--heartbeat-secs", "600"]
            with open(folder / "log", "ab") as log:
                gateway = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=log)
            try:
                await self.with_gateway(gateway)
                gateway.send_signal(signal.SIGTERM)
                status = await asyncio.wait_for(gateway.wait(), PATIENCE_S)
                self.expect(status == 0, f"the gateway ended with status {status}")
            finally:
                if gateway.returncode is None:
                    gateway.kill()
                    self.order("well")
                    await gateway.wait()
        finally:
            with contextlib.suppress(OSError):
                libc("umount2", os.fsencode(place), MNT_DETACH)
            try:
                await asyncio.wait_for(self.disk.wait(), PATIENCE_S)
            except asyncio.TimeoutError:
                self.disk.kill()
                await self.disk.wait()


def main():
    parser = argparse.ArgumentParser(description="A slow, broken, full and read-only disk below a gateway.")
    parser.add_argument("gateway", type=Path)
    parser.add_argument("--secs", type=float, default=8, help="that each part takes, and the slow one more")
    parser.add_argument("--slack-ms", type=float, default=2, help="that p99 of who is online may grow in any case")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        sys.exit("test-slow-disk: this mounts a file system: it needs root, and /dev/fuse (modprobe fuse)")
    # Mounts here are nobody else's, and end with the last process of this test.
    libc("unshare", CLONE_NEWNS)
    libc("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="slow-disk-"))
    made = Run(arguments)
    try:
        asyncio.run(made.run(folder))
        log = (folder / "log").read_text(errors="replace")[-4_000:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for fault in made.faults:
        print(f"FAULT: {fault}")
    if made.faults:
        print(log)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("test-slow-disk: interrupted")
