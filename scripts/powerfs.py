#!/usr/bin/env python3
"""A file system that loses what was not synced: a server of the FUSE protocol, without any library.

    powerfs.py FOLDER PLACE SEED [LIE]

FOLDER holds what is on the disk, PLACE is where that is mounted. All that is written stays in memory until fsync or
fdatasync of the file; which files a folder has, until fsync of the folder. When the power is cut, the seed decides what
of the rest is on the disk: nothing, all, what was written first, or some writes, sectors or pages and not those before
them. Then FOLDER is written anew. The seed decides only what file systems and disks are free to do; most do less.

LIE is which fsync is answered without doing anything: that of `files`, of `folders`, or of `all`.

Without a cut it can be a disk in trouble, too: `slow S` lets each fsync take S seconds from now on, in which all else
goes on; `fail NAME` lets all that writes fail with EIO, ENOSPC or EROFS, and what is read is there; `well` ends both.
Syncs that have begun take their time all the same.

Lines on standard input: `arm N KINDS` cuts the power N changes from now, counting those of KINDS alone (names of
operations with commas between them, or `any`); `now` cuts it at once; `killed` says that whoever used it is dead, and
lets it end. Lines on standard output: `mounted`; `cut` with the operation at which it was, when nothing is answered any
more; `left` with what became of what was not synced. When it is unmounted without a cut, all is written to FOLDER.
"""

import collections
import ctypes
import errno
import json
import os
import random
import select
import signal
import stat
import struct
import sys
import time
from pathlib import Path

SECTOR_BYTES = 512
PAGE_BYTES = 4096
WRITE_BYTES_MAX = 1 << 20
ROOT = 1
# Only the kernel changes anything here, so what it knows stays true.
VALID_S = 3600
MS_NOSUID, MS_NODEV = 2, 4
# A disk takes a while to sync. Other work goes on meanwhile, so that more is under way when the power is cut.
SYNC_S_MAX = 0.001

LIBC = ctypes.CDLL(None, use_errno=True)


def libc(name, *arguments):
    """A call of the C library; OSError if it fails."""
    if getattr(LIBC, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class File:
    """A file: how the process sees it, how it is on the disk, and what was written since the last sync."""

    def __init__(self, content=b""):
        self.mode = stat.S_IFREG | 0o600
        self.seen = bytearray(content)
        self.durable = bytearray(content)
        # Writes as (offset, bytes), and truncations as (size, None).
        self.pending = []

    def size(self):
        return len(self.seen)

    def change(self, offset, piece):
        put(self.seen, offset, piece)
        self.pending.append((offset, piece))

    def sync(self):
        for offset, piece in self.pending:
            put(self.durable, offset, piece)
        self.pending.clear()

    def cut(self, dice, way):
        """Leaves what is on the disk. Gives how many changes that were not synced are there whole, of how many."""
        way = way or dice.choice(["nothing", "all", "first", "writes", "sectors", "pages"])
        kept = 0
        first = dice.randrange(len(self.pending) + 1)
        for number, (offset, piece) in enumerate(self.pending):
            whole = way == "all" or way == "first" and number < first or way == "writes" and dice.random() < 0.5
            if whole or piece is None and way in ("sectors", "pages") and dice.random() < 0.5:
                put(self.durable, offset, piece)
                kept += 1
            elif piece is not None and (way in ("sectors", "pages") or way == "first" and number == first):
                torn_at = dice.randrange(len(piece) + 1)
                for at, part in parts(offset, piece, PAGE_BYTES if way == "pages" else SECTOR_BYTES):
                    if at + len(part) <= offset + torn_at if way == "first" else dice.random() < 0.5:
                        put(self.durable, at, part)
        # A size may be on the disk before what was written there.
        if way not in ("nothing", "all") and dice.random() < 0.25 and len(self.seen) > len(self.durable):
            put(self.durable, len(self.seen), None)
        unsynced = len(self.pending)
        self.pending.clear()
        self.seen = bytearray(self.durable)
        return kept, unsynced


class Folder:
    """A folder: which names it has, for the process and on the disk, and what has changed since the last sync."""

    def __init__(self):
        self.mode = stat.S_IFDIR | 0o700
        self.names = {}
        self.durable = {}
        # As (name that goes or None, name that comes or None, the file).
        self.pending = []

    def size(self):
        return 0

    def change(self, gone, come, node):
        rename(self.names, gone, come, node)
        self.pending.append((gone, come, node))

    def sync(self):
        self.durable = dict(self.names)
        self.pending.clear()

    def cut(self, dice, way):
        way = way or dice.choice(["nothing", "all", "first", "some"])
        kept = 0
        first = dice.randrange(len(self.pending) + 1)
        for number, change in enumerate(self.pending):
            if way == "all" or way == "first" and number < first or way == "some" and dice.random() < 0.5:
                rename(self.durable, *change)
                kept += 1
        unsynced = len(self.pending)
        self.pending.clear()
        self.names = dict(self.durable)
        return kept, unsynced


def put(content, offset, piece):
    """Writes a piece, or sets the size where there is none. What is between is zeros."""
    if piece is None:
        del content[offset:]
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if piece is not None:
        content[offset : offset + len(piece)] = piece


def rename(names, gone, come, node):
    # A journal has both halves of a rename or none.
    if gone is not None and names.get(gone) is node:
        del names[gone]
    if come is not None:
        names[come] = node


def parts(offset, piece, unit):
    """A write cut where the disk may tear it."""
    at = offset
    while at < offset + len(piece):
        end = min(at - at % unit + unit, offset + len(piece))
        yield at, piece[at - offset : end - offset]
        at = end


def load(path):
    if not path.is_dir():
        return File(path.read_bytes())
    folder = Folder()
    folder.names = {entry.name: load(entry) for entry in sorted(path.iterdir())}
    folder.durable = dict(folder.names)
    return folder


def save(folder, path):
    """Writes what is on the disk to a folder."""
    for entry in path.iterdir():
        known = folder.durable.get(entry.name)
        if not isinstance(known, File) and entry.is_file():
            entry.unlink()
        elif known is None:
            save(Folder(), entry)
            entry.rmdir()
    for name, node in folder.durable.items():
        if isinstance(node, Folder):
            (path / name).mkdir(exist_ok=True)
            save(node, path / name)
        else:
            (path / name).write_bytes(node.durable)


def all_nodes(folder, found=None):
    """All that has a name, or has one on the disk, in an order that depends on nothing else."""
    found = {id(folder): folder} if found is None else found
    changed = [(come or gone, node) for gone, come, node in folder.pending]
    for _, node in sorted([*folder.names.items(), *folder.durable.items(), *changed], key=lambda pair: pair[0]):
        if id(node) not in found:
            found[id(node)] = node
            if isinstance(node, Folder):
                all_nodes(node, found)
    return list(found.values())


class Refused(Exception):
    """An operation fails with this number."""


class Server:
    """Answers the kernel."""

    def __init__(self, root, dice, lie):
        self.root, self.dice, self.lie = root, dice, lie
        # Numbers are never given twice, so nothing has to be forgotten.
        self.nodes = {ROOT: root}
        self.numbers = {id(root): ROOT}
        self.listings = {}
        # Changes until the power is cut, and of which kinds.
        self.left = None
        self.kinds = None
        self.cut_at = None
        self.done = collections.Counter()
        self.killed = False
        # How long a sync takes, and what writing fails with; answers that are held back, each with when it is due.
        self.slow_s = 0.0
        self.failure = None
        self.late = []

    def number(self, node):
        if id(node) not in self.numbers:
            self.numbers[id(node)] = len(self.nodes) + 1
            self.nodes[len(self.nodes) + 1] = node
        return self.numbers[id(node)]

    def attributes(self, node):
        links = 2 if isinstance(node, Folder) else 1
        size = node.size()
        blocks = -(-size // SECTOR_BYTES)
        numbers = (0, 0, 0, node.mode, links, os.getuid(), os.getgid(), 0, PAGE_BYTES, 0)
        return struct.pack("<6Q10I", self.number(node), size, blocks, 0, 0, 0, *numbers)

    def entry(self, node):
        return struct.pack("<4Q2I", self.number(node), 0, VALID_S, VALID_S, 0, 0) + self.attributes(node)

    def arm(self, left, kinds):
        self.left, self.kinds = left, kinds

    def is_now(self, kind):
        """Whether the power is cut at this change."""
        if self.left is None or self.kinds is not None and kind not in self.kinds:
            return False
        self.left -= 1
        return self.left < 0

    # Each operation takes the node and what follows the header, and gives the answer.

    def init(self, _, rest):
        major, minor, readahead = struct.unpack_from("<3I", rest)
        big_writes, max_pages = 1 << 5, 1 << 22
        pages = WRITE_BYTES_MAX // PAGE_BYTES
        answer = (7, min(minor, 31), readahead, big_writes | max_pages, 16, 12, WRITE_BYTES_MAX, 1, pages, 0, 0, 0)
        assert major == 7, f"the kernel speaks version {major} of FUSE"
        return struct.pack("<4I2H2I2H2I24x", *answer)

    def lookup(self, node, rest):
        return self.entry(self.child(node, name_of(rest)))

    def child(self, folder, name):
        if name not in folder.names:
            raise Refused(errno.ENOENT)
        return folder.names[name]

    def getattr(self, node, _):
        return struct.pack("<Q2I", VALID_S, 0, 0) + self.attributes(node)

    def setattr(self, node, rest):
        valid, _, _, size = struct.unpack_from("<2I2Q", rest)
        if valid & 1 << 3:
            node.change(size, None)
        if valid & 1:
            (mode,) = struct.unpack_from("<I", rest, 68)
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        return self.getattr(node, rest)

    def mkdir(self, folder, rest):
        folder.change(None, name_of(rest[8:]), made := Folder())
        return self.entry(made)

    def create(self, folder, rest):
        made = File()
        made.mode = stat.S_IFREG | stat.S_IMODE(struct.unpack_from("<2I", rest)[1])
        folder.change(None, name_of(rest[16:]), made)
        return self.entry(made) + bytes(16)

    def unlink(self, folder, rest):
        name = name_of(rest)
        folder.change(name, None, self.child(folder, name))
        return b""

    def rmdir(self, folder, rest):
        name = name_of(rest)
        if self.child(folder, name).names:
            raise Refused(errno.ENOTEMPTY)
        return self.unlink(folder, rest)

    def rename(self, folder, rest, header=8):
        # Nobody here moves anything between folders, or exchanges two files.
        if self.nodes[struct.unpack_from("<Q", rest)[0]] is not folder or any(rest[8:header]):
            raise Refused(errno.EXDEV)
        old, new = (part.decode() for part in rest[header:].split(b"\0")[:2])
        folder.change(old, new, self.child(folder, old))
        return b""

    def rename2(self, folder, rest):
        return self.rename(folder, rest, 16)

    def open(self, *_):
        return bytes(16)

    def read(self, node, rest):
        offset, size = struct.unpack_from("<8xQI", rest)
        return bytes(node.seen[offset : offset + size])

    def write(self, node, rest):
        offset, size = struct.unpack_from("<8xQI", rest)
        node.change(offset, bytes(rest[40 : 40 + size]))
        return struct.pack("<2I", size, 0)

    def fsync(self, node, _):
        time.sleep(self.dice.random() * SYNC_S_MAX)
        if self.lie not in ("all", "files" if isinstance(node, File) else "folders"):
            node.sync()
        return b""

    def readdir(self, folder, rest):
        _, offset, size = struct.unpack_from("<2QI", rest)
        # A listing is as of its beginning, whatever is removed meanwhile.
        if offset == 0:
            self.listings[id(folder)] = list(folder.names.items())
        answer = b""
        for at, (name, node) in enumerate(self.listings[id(folder)][offset:], offset + 1):
            text = name.encode()
            kind = stat.S_IFMT(node.mode) >> 12
            entry = struct.pack("<2Q2I", self.number(node), at, len(text), kind) + text
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer

    def statfs(self, *_):
        return struct.pack("<5Q4I24x", 1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 20, PAGE_BYTES, 255, PAGE_BYTES, 0)

    def nothing(self, *_):
        return b""

    def answer(self, request):
        """The whole answer to a request; None if there is none, and from the moment on that the power is cut."""
        _, opcode, unique, number = struct.unpack_from("<2I2Q", request)
        if opcode not in OPERATIONS:
            # FORGET, INTERRUPT and BATCH_FORGET want no answer.
            return None if opcode in (2, 36, 42) else struct.pack("<IiQ", 16, -errno.ENOSYS, unique)
        kind, operation = OPERATIONS[opcode]
        if kind in CHANGES:
            self.done[kind] += 1
        cut = kind in CHANGES and self.is_now(kind)
        if cut:
            self.cut_at = kind
            # It may have been begun, unless it is a sync: that is done or not answered.
            if kind.startswith("fsync") or self.dice.random() < 0.5:
                return None
        try:
            if self.failure and kind in FAILS[self.failure]:
                raise Refused(self.failure)
            body = operation(self, self.nodes.get(number), request[40:])
            code = 0
        except Refused as refused:
            body, code = b"", -refused.args[0]
        if cut:
            return None
        answer = struct.pack("<IiQ", 16 + len(body), code, unique) + body
        if self.slow_s and kind.startswith("fsync"):
            self.late.append((time.monotonic() + self.slow_s, answer))
            return None
        return answer

    def take_due(self):
        """Answers that were held back long enough."""
        now = time.monotonic()
        due = [answer for at, answer in self.late if at <= now]
        self.late = [(at, answer) for at, answer in self.late if at > now]
        return due

    def wait_ms(self):
        """Until the next of them is due; None if there is none."""
        soonest = min((at for at, _ in self.late), default=None)
        return None if soonest is None else max(0, (soonest - time.monotonic()) * 1000 + 1)


def name_of(rest):
    return bytes(rest).split(b"\0", 1)[0].decode()


OPERATIONS = {
    1: ("lookup", Server.lookup),
    3: ("getattr", Server.getattr),
    4: ("setattr", Server.setattr),
    9: ("mkdir", Server.mkdir),
    10: ("unlink", Server.unlink),
    11: ("rmdir", Server.rmdir),
    12: ("rename", Server.rename),
    14: ("open", Server.open),
    15: ("read", Server.read),
    16: ("write", Server.write),
    17: ("statfs", Server.statfs),
    18: ("release", Server.nothing),
    20: ("fsync", Server.fsync),
    25: ("flush", Server.nothing),
    26: ("init", Server.init),
    27: ("opendir", Server.open),
    28: ("readdir", Server.readdir),
    29: ("releasedir", Server.nothing),
    30: ("fsyncdir", Server.fsync),
    35: ("create", Server.create),
    38: ("destroy", Server.nothing),
    45: ("rename", Server.rename2),
}
CHANGES = {"setattr", "mkdir", "unlink", "rmdir", "rename", "write", "fsync", "fsyncdir", "create"}
# What fails on a disk that is broken, full, or read-only.
FAILS = {
    errno.EIO: CHANGES,
    errno.ENOSPC: {"write", "mkdir", "create"},
    errno.EROFS: CHANGES - {"fsync", "fsyncdir"},
}


def mount(place):
    """The descriptor by which the kernel asks."""
    kernel = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    options = f"fd={kernel},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    libc("mount", b"powerfs", os.fsencode(place), b"fuse.powerfs", MS_NOSUID | MS_NODEV, options.encode())
    return kernel


def say(*words):
    print(*words, flush=True)


class Orders:
    """Lines on standard input, read without a buffer that hides them from poll."""

    def __init__(self):
        self.begun = b""

    def read(self):
        """Those that have come, or come next."""
        more = os.read(0, 4096)
        if not more:
            sys.exit("powerfs: whoever started it has ended")
        *whole, self.begun = (self.begun + more).split(b"\n")
        return [order.decode().split() for order in whole]


def serve(server, kernel, orders):
    """Until the power is cut, or the file system unmounted. True if it was cut."""
    poll = select.poll()
    poll.register(kernel, select.POLLIN)
    poll.register(0, select.POLLIN)
    buffer = bytearray(WRITE_BYTES_MAX + 2 * PAGE_BYTES)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(server.wait_ms())}
        for answer in server.take_due():
            reply(kernel, answer)
        if 0 in ready:
            for word, *rest in orders.read():
                if word == "arm":
                    server.arm(int(rest[0]), None if rest[1] == "any" else set(rest[1].split(",")))
                elif word == "now":
                    server.cut_at = "order"
                elif word == "killed":
                    server.killed = True
                elif word == "slow":
                    server.slow_s = float(rest[0])
                elif word == "fail":
                    server.failure = getattr(errno, rest[0])
                elif word == "well":
                    server.slow_s, server.failure = 0.0, None
        if server.cut_at:
            return True
        if kernel not in ready:
            continue
        try:
            length = os.readv(kernel, [buffer])
        except OSError as error:
            if error.errno == errno.ENODEV:
                return False
            # The kernel has taken the request back.
            if error.errno in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                continue
            raise
        answer = server.answer(bytes(memoryview(buffer)[:length]))
        if server.cut_at:
            return True
        if answer:
            reply(kernel, answer)


def reply(kernel, answer):
    try:
        os.write(kernel, answer)
    except OSError as error:
        # Nobody waits for it any more.
        if error.errno != errno.ENOENT:
            raise


def main():
    # Ctrl-C is for the one who started this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, place, seed, *lie = sys.argv[1:]
    dice = random.Random(seed)
    root = load(Path(folder))
    server = Server(root, dice, lie[0] if lie else None)
    kernel = mount(place)
    say("mounted")
    orders = Orders()
    if serve(server, kernel, orders):
        say("cut", server.cut_at)
        while not server.killed:
            server.killed = ["killed"] in orders.read()
        # What still waits fails now.
        os.close(kernel)
        # Most disks lose all or little at a time; each file for itself finds what only a mixture does.
        way = dice.choices([None, "nothing", "all"], [0.7, 0.25, 0.05])[0]
        told = {"files": [0, 0], "folders": [0, 0]}
        for node in all_nodes(root):
            kept, unsynced = node.cut(dice, way)
            of = told["files" if isinstance(node, File) else "folders"]
            of[0] += kept
            of[1] += unsynced
        save(root, Path(folder))
        say("left", json.dumps({**told, "done": server.done}))
    else:
        for node in all_nodes(root):
            node.sync()
        save(root, Path(folder))


if __name__ == "__main__":
    main()
