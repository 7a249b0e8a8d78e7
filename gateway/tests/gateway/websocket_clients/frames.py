"""Native frames, as PROTOCOL.md gives them: what a client of any WebSocket library has to know of Trunkline."""

import struct
import time

LOGIN, PING, SEND, ACK, LOGOUT = 0x01, 0x02, 0x03, 0x06, 0x0F
LOGIN_OK, PONG, DELIVER, SENT, BYE = 0x81, 0x82, 0x83, 0x86, 0x88
FLAG_ACK = 0x01


def short(kind, aux=0, body=b""):
    return struct.pack(">IBBH", 8 + len(body), kind, 0, aux) + body


def long(kind, flags=0, id=0, peer=0, stamp=0, body=b""):
    return struct.pack(">IBBHQQQ", 32 + len(body), kind, flags, 0, id, peer, stamp) + body


def login(user, device):
    """LOGIN of version 1; user and the length of device are below 128."""
    name = device.encode()
    return short(LOGIN, body=bytes([0x08, 1, 0x10, user, 0x22, len(name)]) + name)


def frames(message):
    """The frames of one message: kind, flags, aux, id, peer, stamp, body. It holds whole ones only."""
    assert isinstance(message, bytes), "messages are binary"
    at = 0
    while at < len(message):
        length, kind, flags, aux = struct.unpack_from(">IBBH", message, at)
        assert 8 <= length <= len(message) - at, "a message holds whole frames"
        if kind in (LOGIN_OK, PONG, BYE):
            yield kind, flags, aux, 0, 0, 0, message[at + 8 : at + length]
        else:
            id, peer, stamp = struct.unpack_from(">QQQ", message, at + 8)
            yield kind, flags, aux, id, peer, stamp, message[at + 32 : at + length]
        at += length


class Session:
    """Logs in, sends a message with ACK to another device of its user and to itself from that; both know its fate."""

    def __init__(self, send, receive, device, user=7):
        self.send, self.receive, self.pending = send, receive, []
        send(login(user, device))
        self.expect(LOGIN_OK)

    def next(self):
        while not self.pending:
            self.pending.extend(frames(self.receive()))
        return self.pending.pop(0)

    def expect(self, kind):
        frame = self.next()
        assert frame[0] == kind, f"expected kind {kind:#x}, got {frame}"
        return frame


def talk(connect):
    """Two sessions of one library talk. `connect` gives a function that sends a message, and one that receives one."""
    first = Session(*connect(), device="first")
    second = Session(*connect(), device="second")
    for size in (0, 100, 200, 60_000):
        body = bytes(at % 251 for at in range(size))
        first.send(long(SEND, FLAG_ACK, id=size + 1, peer=7, body=body))
        _, flags, _, id, peer, stamp, got = second.expect(DELIVER)
        assert (id, peer, got) == (size + 1, 7, body)
        second.send(long(ACK, id=id, peer=peer, stamp=stamp))
        _, _, outcome, id, peer, _, _ = first.expect(SENT)
        assert (id, peer, outcome) == (size + 1, 7, 0)
    first.send(short(PING, aux=9))
    assert first.expect(PONG)[2] == 9
    return first, second


def redirect(bye):
    """Where a BYE sends its client to; empty if nowhere in particular. Its body is a number, and two strings."""
    body, at, found = bye[6], 0, {}
    while at < len(body):
        key, value, shift = body[at], 0, 0
        at += 1
        while True:
            byte = body[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        if key & 7 == 2:
            at, value = at + value, body[at : at + value].decode()
        found[key >> 3] = value
    return found.get(2, "")


def settle(session, user=7):
    """Returns when the user's home takes messages: while nodes come and go it may say for a moment that it cannot."""
    for id in range(1, 1_000):
        session.send(long(SEND, FLAG_ACK, id=1_000_000 + id, peer=user))
        if session.expect(SENT)[2] != 3:
            return
        time.sleep(0.1)
    raise AssertionError("it never takes messages")


def follow(bye, open_socket):
    """Talks at the node to which a BYE leads, if it leads to one."""
    if there := redirect(bye):
        connect = lambda: open_socket(f"ws://{there}/ws")
        settle(Session(*connect(), device="first"))
        talk(connect)
        print("talked there", flush=True)
