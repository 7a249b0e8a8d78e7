#!/usr/bin/env python3
"""Power cuts below a gateway with --data-dir: what it has answered for is there. Needs root and /dev/fuse.

The store lies on a file system that loses what was not synced (powerfs.py). Senders go on all the time. The seed picks
a change of the file system at which the power is cut: the gateway is killed, what was not synced is gone or there by
the seed, and the gateway starts again on what is left, sometimes to be cut off while it starts. After the last cut the
recipients log in.

Senders send to users who are away, to users who come by and acknowledge, and to a group each. What was not answered is
sent again with RETRY and the same id, before anything new. Then each message that was answered with SENT 1 has to be
there as it was sent: once and in the order of its sender for users who are away and in groups, at least once for users
who come by. The others may be there or not, and not twice either.

A run can be repeated as far as time allows: the seed decides when the power is cut and what that leaves; the order in
which threads write is their own. Before the run itself, a file system that answers fsync without doing it has to make
the test find losses.
"""

import argparse
import asyncio
import collections
import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

# No folder of compiled modules in the source tree.
sys.dont_write_bytecode = True
from native_client import (
    ACK,
    BYE,
    CUMULATIVE,
    DELIVER,
    ERROR,
    GROUP_DELIVER,
    GROUP_JOIN,
    GROUP_OK,
    GROUP_SEND,
    PATIENCE_S,
    RETRY,
    SEND,
    SENT,
    SYNC,
    SYNC_OK,
    WITH_ACK,
    Ended,
    Wrong,
    fields_of,
    login,
    protobuf,
)
from powerfs import libc

SENDERS = 4
# Together no more than a gateway finds again in one inbox after a restart: 256.
IN_FLIGHT = 60
AWAY = range(1_000, 1_024)
# Half of these users acknowledge one message after the other, the others what came with one ACK.
COME_BY = range(2_000, 2_008)
GROUPS = range(3_000, 3_000 + SENDERS)
GROUP_MEMBERS = {group: group + 1_000 for group in GROUPS}
# Beside the head of 16 bytes. Most messages are short; tables are to be written all the same.
PAYLOAD_BYTES_MAX = 3_000
FILLER = random.Random(0).randbytes(1 << 16)
WINDOW = 1_024
# If no change of the kind that is waited for comes in this time, the power is cut all the same.
KIND_S = 3
AGAIN_S = 0.05

CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 1 << 14, 1 << 18, 2


def payload(sender, number):
    """Any message can be made again, so that nobody has to keep it."""
    dice = (sender * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) >> 16
    length = (dice % PAYLOAD_BYTES_MAX) * (dice >> 20 & 3) // 3
    return struct.pack(">2Q", sender, number) + FILLER[dice >> 24 & 0x7FFF :][:length]


class Books:
    """What was sent, what was answered, and what came."""

    def __init__(self):
        # Where a message goes to, as (kind, peer), by sender and id.
        self.sent = {}
        # In which life of the gateway it was answered with SENT 1.
        self.stored = {}
        # Answered with SENT 0: a device has acknowledged it.
        self.delivered = set()
        # Refused at some time, so that it may have been overtaken.
        self.refused = set()
        self.again = 0
        # What users who come by have got, over all their visits.
        self.came_by = {user: collections.Counter() for user in COME_BY}
        # Groups whose two members have been told that they are.
        self.joined = set()
        self.faults = collections.Counter()

    def fault(self, text):
        self.faults[text] += 1

    def settled(self):
        return len(self.stored) + len(self.delivered)

    def came(self, where, frame):
        """Who sent a message that came, and its id, if it is what was sent."""
        body, sender = frame.body, frame.peer
        if frame.kind == GROUP_DELIVER:
            sender, body = struct.unpack_from(">Q", body)[0], body[8:]
        if self.sent.get((sender, frame.id)) != where:
            self.fault("a message came that was never sent there")
        elif body != payload(sender, frame.id):
            self.fault("a message came with another payload than it was sent with")
        return sender, frame.id


class Sender:
    """Sends without an end, from one life of the gateway to the next."""

    def __init__(self, user, books, dice):
        self.user, self.books, self.dice = user, books, dice
        self.group = GROUPS[user % SENDERS]
        self.next_id = 1
        # What is not answered, oldest first.
        self.open = {}

    def offer(self, connection, number, again):
        kind, peer = self.books.sent[self.user, number]
        flags = WITH_ACK | (RETRY if again else 0)
        connection.send(kind, number, peer, 0, flags=flags, body=payload(self.user, number))

    def new(self, connection):
        number = self.next_id
        self.next_id += 1
        roll = self.dice.random()
        if roll < 0.6:
            where = (SEND, self.dice.choice(AWAY))
        elif roll < 0.8:
            where = (SEND, self.dice.choice(COME_BY))
        else:
            where = (GROUP_SEND, self.group)
        self.books.sent[self.user, number] = where
        self.open[number] = True
        self.offer(connection, number, False)

    def on_sent(self, connection, life, frame):
        key = (self.user, frame.id)
        if frame.kind == ERROR or frame.kind == BYE:
            raise Wrong(f"user {self.user} was told {frame}")
        if frame.kind != SENT or frame.id not in self.open:
            return
        if frame.aux in (0, 1):
            del self.open[frame.id]
            if frame.aux == 1:
                self.books.stored[key] = life
            else:
                self.books.delivered.add(key)
        elif frame.aux == 3:
            self.books.refused.add(key)
            loop = asyncio.get_running_loop()
            loop.call_later(AGAIN_S, lambda: connection.ended or self.offer(connection, frame.id, True))
        elif frame.aux == 4 and self.books.sent[key][0] == GROUP_SEND:
            self.books.fault("a member of a group is none any more")
            # Both join once more in the next life. This message is not sent again.
            self.books.joined.discard(self.group)
            del self.open[frame.id]
        else:
            raise Wrong(f"user {self.user} was told SENT {frame.aux} of a message to {self.books.sent[key]}")

    async def live(self, port, life, last, barrier, failed):
        """Until the gateway ends; in its last life until all that was sent before is answered."""
        connection, _ = await login(port, self.user, "sender", f11=1)
        if self.group not in self.books.joined:
            member, _ = await login(port, GROUP_MEMBERS[self.group], "member", f11=1)
            for joining in (member, connection):
                joining.send(GROUP_JOIN, 1, self.group, 0)
                await joining.next(GROUP_OK)
            member.transport.close()
            # From now on they are never to join again.
            self.books.joined.add(self.group)

        def on_frame(frame):
            try:
                self.on_sent(connection, life, frame)
            except Wrong as wrong:
                failed(wrong)

        connection.on_frame = on_frame
        for number in list(self.open):
            self.books.again += 1
            self.offer(connection, number, True)
        await connection.until("answers to what was sent again", lambda: not self.open)
        await barrier.passed(connection)
        while not last:
            while len(self.open) < IN_FLIGHT:
                self.new(connection)
            await connection.until("an answer", lambda: len(self.open) < IN_FLIGHT)


class Barrier:
    """Lets nobody send anything new before all have got answers to what was sent before the cut.

    A gateway that has started anew looks for what is sent again among the last messages of an inbox.
    """

    def __init__(self, count):
        self.count = count
        self.here = []
        self.open = asyncio.Event()

    async def passed(self, connection):
        self.here.append(connection)
        if len(self.here) == self.count:
            self.open.set()
            for waits in self.here:
                waits.news.set()
        await connection.until("answers to what others sent again", self.open.is_set)


async def come_by(port, user, books):
    """Takes what waits for a user, acknowledges it, and goes."""
    connection, told = await login(port, user, "phone", f10=256)
    if told.get(12):
        books.fault("a user who comes by was told that messages are gone")
    last = None
    while (frame := await connection.next(DELIVER, SYNC_OK)).kind == DELIVER:
        books.came_by[user][books.came((SEND, user), frame)] += 1
        last = frame
        if user % 2:
            connection.send(ACK, frame.id, frame.peer, frame.stamp)
        elif not connection.frames:
            connection.send(ACK, frame.id, frame.peer, frame.stamp, flags=CUMULATIVE)
    if last and user % 2 == 0:
        connection.send(ACK, last.id, last.peer, last.stamp, flags=CUMULATIVE)
    connection.transport.close()
    return last


async def inbox_of(port, user, books):
    """All that waits for a user who was away, in the order in which it came."""
    connection, told = await login(port, user, "late", f10=WINDOW)
    if told.get(12):
        books.fault("a user who was away was told that messages are gone")
    got = []
    while (frame := await connection.next(DELIVER, SYNC_OK)).kind == DELIVER:
        got.append(books.came((SEND, user), frame))
        if len(got) % (WINDOW // 4) == 0:
            connection.send(ACK, frame.id, frame.peer, frame.stamp, flags=CUMULATIVE)
    connection.transport.close()
    return got


async def log_of(port, group, books):
    """All that a group has, for a member who was away."""
    connection, _ = await login(port, GROUP_MEMBERS[group], "member", f11=1)
    got, after, whole = [], 0, False
    while not whole:
        connection.send(SYNC, body=protobuf(f1=after, f3=1_000, f4=group))
        while (frame := await connection.next(GROUP_DELIVER, SYNC_OK)).kind == GROUP_DELIVER:
            got.append(books.came((GROUP_SEND, group), frame))
        page = fields_of(frame.body)
        if page.get(3):
            books.fault("a member of a group was told that messages are gone")
        after, whole = page.get(1, 0), page.get(2, 0)
    connection.transport.close()
    return got


def judge(books, where, got):
    """A log that has each message once, and in order: how many answered messages are lost."""
    seen = collections.Counter(got)
    if twice := sum(count - 1 for count in seen.values()):
        books.faults["messages that came twice"] += twice
    last = collections.Counter()
    for sender, number in got:
        if (sender, number) in books.refused:
            continue
        if number < last[sender]:
            books.fault("a message came behind a later one of its sender")
        last[sender] = max(last[sender], number)
    return lost(books, where, seen)


def lost(books, where, seen):
    answered = [key for key in books.stored if books.sent[key] == where]
    return [(where, key, books.stored[key]) for key in answered if key not in seen]


class Plan:
    """When the power is cut in one life of the gateway."""

    KINDS = ["rename", "create,unlink", "fsyncdir", "setattr,mkdir,create", "fsync", "write"]

    def __init__(self, dice, messages):
        way = dice.random()
        # As it starts; among whatever is written below load; at an operation that comes seldom.
        self.at_start = way < 0.2
        self.messages = dice.randrange(messages + 1)
        self.changes = dice.randrange(16 if self.at_start else 24)
        self.kinds = "any"
        if way > 0.6:
            self.kinds, self.changes = dice.choice(self.KINDS), dice.randrange(3)

    def order(self):
        return f"arm {self.changes} {self.kinds}\n".encode()


class Run:
    def __init__(self, arguments, lie, cuts, messages):
        self.arguments, self.lie, self.cuts = arguments, lie, cuts
        self.share = max(messages // cuts, 1)
        self.books = Books()
        self.kept = {"files": [0, 0], "folders": [0, 0]}
        self.at = collections.Counter()
        self.done = collections.Counter()
        self.losses = []

    async def line(self, process, beginning):
        """The next line that begins so. None if the process ends before."""
        while line := await process.stdout.readline():
            if found := re.match(beginning, line.decode()):
                return found
        return None

    @contextlib.asynccontextmanager
    async def mounted(self, life):
        command = [sys.executable, Path(__file__).with_name("powerfs.py"), self.disk, self.place]
        command += [f"{self.arguments.seed}/{life}", *([self.lie] if self.lie else [])]
        pipe = asyncio.subprocess.PIPE
        disk = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        try:
            if not await asyncio.wait_for(self.line(disk, "mounted"), PATIENCE_S):
                sys.exit("test-power-cut: the file system could not be mounted")
            yield disk
        finally:
            with contextlib.suppress(OSError):
                libc("umount2", os.fsencode(self.place), MNT_DETACH)
            try:
                await asyncio.wait_for(disk.wait(), PATIENCE_S)
            except asyncio.TimeoutError:
                disk.kill()
                await disk.wait()

    async def gateway(self):
        command = [self.arguments.gateway, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "2"]
        command += ["--connections-max", "1000", "--data-dir", self.place / "made" / "data"]
        # Tables are written, and merged, as often as can be.
        command += ["--store-recent-bytes-max", "4MiB", "--inbox-messages-max", "1000000", "--inbox-bytes-max", "1GiB"]
        command += ["--group-sends-per-sec", "0", "--group-member-sends-per-sec", "1000000"]
        command += ["--group-messages-max", "1000000"]
        with open(self.log, "ab") as log:
            pipe = asyncio.subprocess.PIPE
            return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=log)

    async def life(self, life):
        """From one start of the gateway to a cut, or to the end if it is the last one."""
        last = life == self.cuts
        plan = Plan(random.Random(f"{self.arguments.seed}/{life}/plan"), self.share)
        async with self.mounted(life) as disk:
            if plan.at_start and not last:
                disk.stdin.write(plan.order())
            gateway = await self.gateway()
            tasks = []
            try:
                cut = asyncio.create_task(self.line(disk, r"cut (\w+)"))
                load = asyncio.create_task(self.load(life, gateway, disk, plan, last))
                tasks = [cut, load]
                if last:
                    await load
                    gateway.send_signal(signal.SIGTERM)
                    await asyncio.wait_for(gateway.wait(), PATIENCE_S)
                    await self.check()
                    return
                await asyncio.wait({cut, load}, return_when=asyncio.FIRST_COMPLETED)
                if not cut.done():
                    # It never ends well before the cut.
                    await load
                self.at[(await cut)[1]] += 1
                gateway.kill()
                # A thread that waits for the file system ends only when it is answered, and does nothing more then.
                disk.stdin.write(b"killed\n")
                await gateway.wait()
                with contextlib.suppress(Ended):
                    await asyncio.wait_for(load, PATIENCE_S)
                left = await asyncio.wait_for(self.line(disk, r"left (.*)"), PATIENCE_S)
                told = json.loads(left[1])
                self.done.update(told.pop("done"))
                for of, counts in told.items():
                    self.kept[of] = [sum(pair) for pair in zip(self.kept[of], counts)]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if gateway.returncode is None:
                    gateway.kill()
                    with contextlib.suppress(OSError, ConnectionError):
                        disk.stdin.write(b"now\nkilled\n")
                    await gateway.wait()

    async def load(self, life, gateway, disk, plan, last):
        """All that clients do in one life. Raises Ended with the gateway's."""
        found = await self.line(gateway, r"listening on 127\.0\.0\.1:(\d+)")
        if found is None:
            status = await gateway.wait()
            if status != -signal.SIGKILL:
                raise Wrong(f"the gateway ended with status {status} as it started")
            raise Ended
        port = int(found[1])
        drain = asyncio.create_task(self.line(gateway, "never"))
        failure = asyncio.get_running_loop().create_future()
        failed = lambda wrong: failure.done() or failure.set_exception(wrong)
        barrier = Barrier(SENDERS)
        senders = [asyncio.create_task(sender.live(port, life, last, barrier, failed)) for sender in self.senders]
        visits = asyncio.create_task(self.visits(port, life))
        order = asyncio.create_task(self.order(disk, plan, barrier, last))
        tasks = [drain, failure, *senders, visits, order]
        try:
            pending = set(tasks)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if drain in done:
                    status = await gateway.wait()
                    if status != -signal.SIGKILL:
                        raise Wrong(f"the gateway ended with status {status}")
                    # What it had sent before has been read by the time a connection ends.
                    await asyncio.wait([*senders], timeout=PATIENCE_S)
                    raise Ended
                if order in done and last:
                    break
        except Ended:
            # Answers that the others still have to read count.
            await asyncio.wait([*senders], timeout=PATIENCE_S)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if last:
            await self.final(port)

    async def visits(self, port, life):
        dice = random.Random(f"{self.arguments.seed}/{life}/visits")
        while True:
            await come_by(port, dice.choice(COME_BY), self.books)
            await asyncio.sleep(dice.random() * 0.2)

    async def order(self, disk, plan, barrier, last):
        """Orders the cut as soon as so many messages are answered; in the last life it waits for all answers."""
        await barrier.open.wait()
        if last or plan.at_start:
            return
        goal = self.books.settled() + plan.messages
        while self.books.settled() < goal:
            await asyncio.sleep(0.005)
        disk.stdin.write(plan.order())
        await asyncio.sleep(KIND_S)
        disk.stdin.write(b"now\n")

    async def final(self, port):
        books = self.books
        for user in AWAY:
            self.losses += judge(books, (SEND, user), await inbox_of(port, user, books))
        for group in GROUPS:
            got = await log_of(port, group, books) if group in books.joined else []
            self.losses += judge(books, (GROUP_SEND, group), got)
        for user in COME_BY:
            while await come_by(port, user, books):
                pass
            self.losses += lost(books, (SEND, user), books.came_by[user])

    async def check(self):
        """What the gateway itself says of its files."""
        command = [self.arguments.gateway, "store", "check", "--data-dir", self.place / "made" / "data"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        if process.returncode:
            self.books.fault(f"gateway store check: {said.decode().strip()}")

    async def run(self, folder):
        self.disk, self.place, self.log = folder / "disk", folder / "mounted", folder / "log"
        self.disk.mkdir()
        self.place.mkdir()
        seed = self.arguments.seed
        self.senders = [Sender(user, self.books, random.Random(f"{seed}/{user}")) for user in range(1, SENDERS + 1)]
        begun = told = time.monotonic()
        for life in range(self.cuts + 1):
            try:
                await self.life(life)
            except Wrong as wrong:
                self.books.fault(f"behind cut {life}: {wrong}")
                break
            if time.monotonic() - told > 5:
                told = time.monotonic()
                spent = told - begun
                cuts, stored = min(life + 1, self.cuts), len(self.books.stored)
                print(f"  {cuts} of {self.cuts} cuts, {stored:,} messages, {spent:.0f} s", flush=True)
        return time.monotonic() - begun

    def report(self, took):
        books, (files, folders) = self.books, self.kept.values()
        at = ", ".join(f"{kind} {count}" for kind, count in self.at.most_common())
        done = ", ".join(f"{kind} {count:,}" for kind, count in self.done.most_common())
        print(f"  {sum(self.at.values())} cuts in {took:.0f} s (at {at}; of {done})")
        print(
            f"  not synced: {files[1]:,} writes, of which {files[0]:,} were on the disk whole, and {folders[1]:,} "
            f"changes of folders, of which {folders[0]:,} were"
        )
        print(
            f"  messages: {len(books.stored):,} answered with SENT 1, {len(books.delivered):,} with SENT 0, "
            f"{books.again:,} sent again, {len(books.refused):,} refused at first"
        )
        print(f"  {len(self.losses):,} lost, {sum(books.faults.values()):,} other faults", flush=True)


def run(arguments, lie, cuts, messages):
    """One run; gives it, and the end of what the gateway logged."""
    made = Run(arguments, lie, cuts, messages)
    folder = Path(tempfile.mkdtemp(prefix="power-cut-"))
    try:
        took = asyncio.run(made.run(folder))
        log = made.log.read_text(errors="replace")[-4_000:] if made.log.exists() else ""
    finally:
        with contextlib.suppress(OSError):
            libc("umount2", os.fsencode(folder / "mounted"), MNT_DETACH)
        if arguments.keep and not lie:
            print(f"what was on the disk, and the gateway's log, are in {folder}")
        else:
            shutil.rmtree(folder)
    made.report(took)
    return made, log


def main():
    parser = argparse.ArgumentParser(description="Power cuts below a gateway with --data-dir.")
    parser.add_argument("gateway", type=Path)
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--messages", type=int, default=40_000, help="that are answered in all, about")
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000 % 1_000_000_000)
    lie = "fsync of these does nothing, and the test has to fail"
    parser.add_argument("--lie", choices=["files", "folders", "all"], help=lie)
    parser.add_argument("--no-self-check", action="store_true", help="leave out the short runs that have to fail")
    parser.add_argument("--keep", action="store_true", help="leave the disk and the gateway's log where they are")
    arguments = parser.parse_args()
    if arguments.cuts < 1 or arguments.messages < arguments.cuts:
        parser.error("one cut at least, and as many messages")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        sys.exit("test-power-cut: this mounts a file system: it needs root, and /dev/fuse (modprobe fuse)")
    # Mounts here are nobody else's, and end with the last process of this test.
    libc("unshare", CLONE_NEWNS)
    libc("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    # The clean-up of Ctrl-C, for whoever ends this otherwise, in the background too, where a shell has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    print(f"seed {arguments.seed}", flush=True)
    repeat = f"--seed {arguments.seed} --cuts {arguments.cuts} --messages {arguments.messages}"
    if not arguments.lie and not arguments.no_self_check:
        for lie in ("files", "folders"):
            print(f"self-check: fsync of {lie} does nothing")
            made, log = run(arguments, lie, 5, 2_500)
            if not made.losses:
                print(f"FAULT: no loss was found although fsync of {lie} did nothing ({repeat})\n{log}")
                return 1
    made, log = run(arguments, arguments.lie, arguments.cuts, arguments.messages)
    for (kind, peer), (sender, number), life in made.losses[:10]:
        whom = f"{'group' if kind == GROUP_SEND else 'user'} {peer}"
        print(f"LOST: message {number} of user {sender} to {whom}, answered with SENT 1 before cut {life + 1}")
    for fault, count in made.books.faults.most_common():
        print(f"FAULT: {fault} ({count} times)")
    if made.losses or made.books.faults:
        print(f"to repeat it: {repeat}\n{log}")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("test-power-cut: interrupted")
