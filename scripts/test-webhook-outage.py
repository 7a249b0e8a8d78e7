#!/usr/bin/env python3
"""A receiver of webhooks that is down for minutes, and a gateway that is killed meanwhile.

Senders send to users who are away, and users come and go, all the time. The receiver is there for a while; then it
refuses connections, answers 503, or takes requests and never answers, each in turn, and comes back in the end. What it
has been told then is held against what happened.

With a store (the first run) the gateway is killed twice in the outage, and started again. Each message that was
answered with SENT 1 has to have its message.stored, those to one user in the order in which they were stored, and no
events.gap comes. Without a store (the second run) less may wait than happens: what was told and what events.gap counts
have to be exactly what happened, type by type.

The seed decides who sends to whom, who comes when, and when the gateway is killed.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import hmac
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

# No folder of compiled modules in the source tree.
sys.dont_write_bytecode = True
from native_client import PATIENCE_S, RETRY, SEND, SENT, WITH_ACK, Ended, Wrong, login

SENDERS = range(1, 5)
AWAY = range(1_000, 1_064)
COME_AND_GO = range(2_000, 2_016)
# The longest pause of a gateway between two tries, and some more.
BACKOFF_S = 300 + 60
# What the receiver does while it is down, in turn.
FAULTS = ("refuse", "503", "hang")
TYPES_TOLD = ("message.sent", "message.stored", "session.login", "session.logout")


class Receiver:
    """Takes batches of events, or fails as it is told to."""

    def __init__(self, secret):
        self.secret = base64.b64decode(secret.removeprefix("whsec_"))
        self.events, self.seen, self.again = [], {}, 0
        self.faults = collections.Counter()
        self.server, self.port, self.mode = None, 0, "refuse"
        self.tries = collections.Counter()
        self.connections = set()

    async def become(self, mode):
        """Up, or failing in one of the ways."""
        self.mode = mode
        if mode == "refuse":
            if self.server:
                self.server.close()
                self.server = None
            for writer in list(self.connections):
                writer.close()
        elif self.server is None:
            self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, reuse_address=True)
            self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader, writer):
        self.connections.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = dict(re.findall(rb"(?m)^([A-Za-z-]+): *(.*?)\r$", head))
                fields = {name.decode().lower(): value.decode() for name, value in fields.items()}
                body = await reader.readexactly(int(fields["content-length"]))
                self.tries[self.mode] += 1
                if self.mode == "hang":
                    await asyncio.sleep(3_600)
                status = b"204 No Content" if self.mode == "up" else b"503 Service Unavailable"
                if self.mode == "up":
                    self.take(fields, body)
                writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    def take(self, fields, body):
        signed = f"{fields['webhook-id']}.{fields['webhook-timestamp']}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.digest(self.secret, signed, hashlib.sha256)).decode()
        if wanted not in fields["webhook-signature"].split(" "):
            self.faults["a batch with a signature that is wrong"] += 1
        for event in json.loads(body):
            key = event["source"], event["id"]
            if key not in self.seen:
                self.seen[key] = event
                self.events.append(event)
            elif self.seen[key] == event:
                self.again += 1
            else:
                self.faults["two events with one id"] += 1


class Books:
    """What happened, as clients have seen it."""

    def __init__(self):
        # To whom a message went, by sender and id; and those answered with SENT 1.
        self.sent, self.stored = {}, set()
        self.retried = 0
        self.logins = 0


class Run:
    def __init__(self, arguments, kept):
        self.arguments, self.kept = arguments, kept
        self.books = Books()
        self.dice = random.Random(f"{arguments.seed}/{kept}")
        self.process = self.port = self.http = None
        self.kills = 0
        self.ending = asyncio.Event()

    async def start(self):
        """Starts the gateway, on what it has kept."""
        command = [self.arguments.gateway, "--listen", f"127.0.0.1:{self.port or 0}", "--http", "127.0.0.1:0"]
        command += ["--shards", "2", "--connections-max", "1000", "--log", "warn"]
        secret = self.folder / "hook.key"
        url = f"http://127.0.0.1:{self.receiver.port}/hook"
        command += ["--webhook", f"{url},secret_file={secret},events=user.* session.* message.*,timeout_ms=2000"]
        if self.kept:
            command += ["--data-dir", self.folder / "data"]
        else:
            command += ["--webhook-bytes-max", "1MiB"]
        with open(self.folder / "log", "ab") as log:
            pipe = asyncio.subprocess.PIPE
            self.process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=log)
        while self.http is None or self.port is None:
            line = (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).decode()
            if not line:
                raise Wrong(f"the gateway ended as it started: status {await self.process.wait()}")
            if found := re.match(r"listening on 127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if found := re.search(r"http on 127\.0\.0\.1:(\d+)", line):
                self.http = int(found[1])
        self.rest = asyncio.create_task(self.process.stdout.read())

    async def kill(self):
        self.kills += 1
        self.process.kill()
        await self.process.wait()
        self.http = None
        await self.start()

    async def send(self, user):
        """A sender, from one life of the gateway to the next."""
        dice = random.Random(f"{self.arguments.seed}/{user}")
        number, open_ids = 0, {}
        while not self.ending.is_set() or open_ids:
            try:
                connection, _ = await login(self.port, user, "sender", f11=1)
                self.books.logins += 1
            except Ended:
                await asyncio.sleep(0.2)
                continue
            for again in open_ids:
                self.books.retried += 1
                connection.send(SEND, again, open_ids[again], 0, flags=WITH_ACK | RETRY, body=b"again")
            try:
                while not self.ending.is_set() or open_ids:
                    if not self.ending.is_set() and len(open_ids) < 64:
                        number += 1
                        to = open_ids[number] = self.books.sent[user, number] = dice.choice(AWAY)
                        connection.send(SEND, number, to, 0, flags=WITH_ACK, body=b"a message")
                    await asyncio.sleep(1 / self.arguments.rate)
                    if connection.ended:
                        raise Ended
                    while connection.frames:
                        frame = connection.frames.popleft()
                        if frame.kind != SENT or frame.aux not in (1, 2):
                            raise Wrong(f"user {user} was told {frame}")
                        if open_ids.pop(frame.id, None) and frame.aux == 1:
                            self.books.stored.add((user, frame.id))
            except Ended:
                continue
            connection.transport.close()

    async def come_and_go(self, user):
        dice = random.Random(f"{self.arguments.seed}/{user}")
        while not self.ending.is_set():
            with contextlib.suppress(Ended):
                connection, _ = await login(self.port, user, "phone", f11=1)
                self.books.logins += 1
                # Longer than the three seconds after which a user is offline, or shorter.
                await asyncio.sleep(dice.random() * 4)
                connection.transport.close()
            await asyncio.sleep(dice.random() * 8)

    async def outage(self, receiver):
        """The receiver's day."""
        secs, step = self.arguments.secs, 0
        begun = told = time.monotonic()
        kills = sorted(self.dice.uniform(0.1, 0.9) * secs for _ in range(2 if self.kept else 0))
        await receiver.become("up")
        await asyncio.sleep(5)
        begun = time.monotonic()
        while (spent := time.monotonic() - begun) < secs:
            # Each fault lasts for a ninth, so that all of them meet all lengths of a pause.
            if spent >= step * secs / 9:
                await receiver.become(FAULTS[step % len(FAULTS)])
                step += 1
            if kills and spent >= kills[0]:
                kills.pop(0)
                await self.kill()
            if time.monotonic() - told > 15:
                told = time.monotonic()
                print(f"  down for {spent:.0f} of {secs} s, {len(self.books.sent):,} messages", flush=True)
            await asyncio.sleep(0.1)
        await receiver.become("up")

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=PATIENCE_S) as answer:
            lines = re.findall(r"(?m)^(trunkline_\w+(?:\{[^}]*\})?) ([0-9.]+)$", answer.read().decode())
        return {name: float(value) for name, value in lines}

    async def drained(self):
        """Until nothing waits any more. Lanes come back at different times."""
        deadline = time.monotonic() + BACKOFF_S
        while True:
            metrics = await asyncio.to_thread(self.metrics)
            waiting = "trunkline_webhook_events_waiting"
            waiting = sum(value for name, value in metrics.items() if name.startswith(waiting))
            if not waiting:
                return metrics
            if time.monotonic() > deadline:
                raise Wrong(f"{waiting:.0f} events still wait {BACKOFF_S} s after the receiver came back")
            await asyncio.sleep(1)

    async def run(self, folder):
        self.folder = folder
        secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
        (folder / "hook.key").write_text(secret + "\n")
        (folder / "hook.key").chmod(0o600)
        receiver = self.receiver = Receiver(secret)
        # It gets a port of its own, which the gateway has to know.
        await receiver.become("up")
        await self.start()
        tasks = [asyncio.create_task(self.send(user)) for user in SENDERS]
        tasks += [asyncio.create_task(self.come_and_go(user)) for user in COME_AND_GO]
        outage = asyncio.create_task(self.outage(receiver))
        try:
            done, _ = await asyncio.wait([outage, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if outage not in done:
                raise Wrong("a client ended before the outage did")
            self.ending.set()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
            # The last users are offline after three seconds.
            await asyncio.sleep(5)
            metrics = await self.drained()
            self.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self.process.wait(), PATIENCE_S)
        finally:
            for task in [outage, *tasks]:
                task.cancel()
            await asyncio.gather(outage, *tasks, return_exceptions=True)
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            await receiver.become("refuse")
        return self.judge(receiver, metrics)

    def judge(self, receiver, metrics):
        """What is wrong, as lines."""
        books, faults = self.books, receiver.faults
        told = collections.Counter(event["type"] for event in receiver.events)
        gaps = collections.Counter()
        for event in receiver.events:
            if event["type"] == "events.gap":
                gaps[event["data"]["type"]] += int(event["data"]["count"])
        kept = "with a store" if self.kept else "without a store"
        print(f"  {kept}: {len(books.sent):,} messages, {len(books.stored):,} answered with SENT 1, {self.kills} kills")
        print(f"  tries while it was down: {dict(receiver.tries)}; {receiver.again:,} events came again as they were")
        print("  told: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(told.items())))
        if gaps:
            print("  counted in events.gap: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(gaps.items())))
        stored = [event for event in receiver.events if event["type"] == "message.stored"]
        if self.kept:
            have = {(int(event["data"]["from"]), int(event["data"]["id"])) for event in stored}
            faults["a message answered with SENT 1 without its message.stored"] += len(books.stored - have)
            faults["an event of a gap, though there is a store"] += sum(gaps.values())
        else:
            # Nothing was killed, so this node has counted all that happened.
            events = {name: count for name, count in metrics.items() if "_events_total{" in name}
            counted = lambda kind: sum(count for name, count in events.items() if f'type="{kind}"' in name)
            happened = {kind: counted(kind) for kind in TYPES_TOLD}
            for kind, count in happened.items():
                if told[kind] + gaps[kind] != count:
                    fault = f"{kind}: {count:.0f} happened, {told[kind]} were told, {gaps[kind]} counted as missing"
                    faults[fault] += 1
            for kind, count in (("message.sent", len(books.sent)), ("session.login", books.logins)):
                if happened[kind] != count:
                    faults[f"{kind}: clients have seen {count}, the gateway has counted {happened[kind]:.0f}"] += 1
            if not gaps:
                faults["nothing was ever missing: make the outage longer"] += 1
        self.judge_order(receiver.events, faults)
        return [f"{fault} ({count})" for fault, count in faults.items() if count]

    def judge_order(self, events, faults):
        """A user's events come in the order in which they happened."""
        position, seen, gone, last = collections.Counter(), set(), set(), {}
        changes = collections.Counter()
        for event in events:
            data, kind = event["data"], event["type"]
            if kind == "message.stored":
                message = data["from"], data["id"]
                if message not in seen:
                    seen.add(message)
                    behind = int(data["position"]) < position[data["to"]]
                    faults["a message.stored behind that of a later message"] += behind
                    position[data["to"]] = int(data["position"])
            elif kind == "session.logout":
                gone.add((event["source"], data["session"]))
            elif kind == "session.login":
                faults["a session.login behind its session.logout"] += (event["source"], data["session"]) in gone
            elif kind in ("user.online", "user.offline"):
                changes[data["user"]] += last.get(data["user"]) == kind
                last[data["user"]] = kind
        if not self.kept:
            # What is missing may have been in between.
            return
        # After a kill nobody tells that a user went.
        for count in changes.values():
            faults["a user.online or user.offline twice in a row"] += max(count - self.kills, 0)


def main():
    parser = argparse.ArgumentParser(description="A receiver of webhooks that is down, and a gateway that is killed.")
    parser.add_argument("gateway", type=Path)
    parser.add_argument("--secs", type=int, default=600, help="for which the receiver is down, in each of the two runs")
    parser.add_argument("--rate", type=int, default=20, help="messages a second of each of four senders")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000 % 1_000_000_000)
    parser.add_argument("--only", choices=["kept", "memory"], help="one of the two runs")
    arguments = parser.parse_args()
    if arguments.secs < 30 or not 1 <= arguments.rate <= 1_000:
        parser.error("an outage of 30 s at least, and 1 to 1,000 messages a second")
    print(f"seed {arguments.seed}", flush=True)
    status = 0
    for kept in [True, False]:
        if arguments.only and (arguments.only == "kept") != kept:
            continue
        folder = Path(tempfile.mkdtemp(prefix="webhook-outage-"))
        try:
            faults = asyncio.run(Run(arguments, kept).run(folder))
        except Wrong as wrong:
            faults = [str(wrong)]
        for fault in faults:
            print(f"FAULT: {fault}")
        if faults:
            status = 1
            print((folder / "log").read_text(errors="replace")[-4_000:])
            print(f"to repeat it: --seed {arguments.seed} --secs {arguments.secs} --rate {arguments.rate}")
        shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
