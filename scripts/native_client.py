"""A client of native frames for the tests of these scripts: as little as a user, a sender and a service need."""

import asyncio
import collections
import struct

# Nothing here takes that long unless something is wrong, on however slow a machine.
PATIENCE_S = 60

LOGIN, SEND, GROUP_SEND, ACK, SYNC, GROUP_JOIN = 0x01, 0x03, 0x04, 0x06, 0x07, 0x08
LOGIN_OK, DELIVER, GROUP_DELIVER, SENT, BYE, SYNC_OK, GROUP_OK, ERROR = 0x81, 0x83, 0x84, 0x86, 0x88, 0x89, 0x8B, 0x8F
WITH_ACK, RETRY, CUMULATIVE = 0x01, 0x04, 0x01
SHORT_HEADS = {LOGIN_OK, BYE, SYNC_OK, 0x82, 0x8A, 0x8C}


def varint(value):
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def protobuf(**fields):
    """A message of numbers and strings; names are f1, f2 and so on."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:]) << 3
        if isinstance(value, str):
            out += varint(number | 2) + varint(len(value)) + value.encode()
        else:
            out += varint(number) + varint(value)
    return out


def fields_of(body):
    """Numbers and strings of a message, by the numbers of their fields."""
    at, found = 0, {}

    def read():
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(body):
        key = read()
        value = read()
        if key & 7 == 2:
            at, value = at + value, body[at : at + value]
        found[key >> 3] = value
    return found


Frame = collections.namedtuple("Frame", "kind flags aux id peer stamp body")


class Ended(Exception):
    """The connection has ended."""


class Wrong(Exception):
    """The gateway does what it must not."""


class Connection(asyncio.Protocol):
    """One session. Each frame goes to `on_frame`, which may be changed at any time."""

    def __init__(self):
        self.buffer = bytearray()
        self.frames = collections.deque()
        self.news = asyncio.Event()
        self.ended = False
        self.on_frame = self.frames.append

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        at = 0
        while len(self.buffer) - at >= 8:
            length, kind, flags, aux = struct.unpack_from(">IBBH", self.buffer, at)
            if len(self.buffer) - at < length:
                break
            head = (0, 0, 0) if kind in SHORT_HEADS else struct.unpack_from(">3Q", self.buffer, at + 8)
            body = bytes(self.buffer[at + (8 if kind in SHORT_HEADS else 32) : at + length])
            self.on_frame(Frame(kind, flags, aux, *head, body))
            at += length
        del self.buffer[:at]
        self.news.set()

    def connection_lost(self, _):
        self.ended = True
        self.news.set()

    def send(self, kind, *head, flags=0, aux=0, body=b""):
        head = struct.pack(">3Q", *head) if head else b""
        self.transport.write(struct.pack(">IBBH", 8 + len(head) + len(body), kind, flags, aux) + head + body)

    async def until(self, what, ready):
        """What `ready` gives, as soon as that is something."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        alarm = loop.call_at(deadline, self.news.set)
        try:
            while not (found := ready()):
                if self.ended:
                    raise Ended
                if loop.time() >= deadline:
                    raise Wrong(f"{what}: nothing came within {PATIENCE_S} s")
                self.news.clear()
                await self.news.wait()
        finally:
            alarm.cancel()
        return found

    async def next(self, *kinds):
        """The next frame of one of these kinds."""
        frame = await self.until(f"a frame of kind {kinds}", lambda: self.frames and self.frames.popleft())
        while frame.kind not in kinds:
            if frame.kind in (BYE, ERROR):
                raise Wrong(f"{frame} while one of kind {kinds} was waited for")
            frame = await self.until(f"a frame of kind {kinds}", lambda: self.frames and self.frames.popleft())
        return frame


async def login(port, user, device, **fields):
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    except OSError:
        raise Ended from None
    connection.send(LOGIN, body=protobuf(f1=1, f2=user, f4=device, **fields))
    return connection, fields_of((await connection.next(LOGIN_OK)).body)
