"""Through the library wsproto, which leaves the socket to its caller: python with_wsproto.py ws://HOST:PORT/ws.

Says "talked", and then how it was sent away.
"""

import socket
import sys
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request

from frames import BYE, LOGOUT, Session, follow, short, talk

sockets = []


class Socket:
    def __init__(self, url):
        place = urlsplit(url)
        self.stream = socket.create_connection((place.hostname, place.port), timeout=20)
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.pieces = []
        self.put(Request(host=place.netloc, target=place.path, subprotocols=["trunkline.v1"]))
        accepted = self.event()
        assert isinstance(accepted, AcceptConnection), accepted
        assert accepted.subprotocol == "trunkline.v1", accepted

    def put(self, event):
        self.stream.sendall(self.protocol.send(event))

    def event(self):
        while not self.pieces:
            data = self.stream.recv(65_536)
            self.protocol.receive_data(data or None)
            self.pieces.extend(self.protocol.events())
        return self.pieces.pop(0)

    def send(self, message):
        self.put(BytesMessage(data=message))

    def receive(self):
        message, whole = b"", False
        while not whole:
            piece = self.event()
            assert isinstance(piece, BytesMessage), piece
            message, whole = message + bytes(piece.data), piece.message_finished
        return message


def open_socket(url=sys.argv[1]):
    sockets.append(Socket(url))
    return sockets[-1].send, sockets[-1].receive


def closed(socket):
    end = socket.event()
    assert isinstance(end, CloseConnection), end
    return int(end.code)


first, second = talk(open_socket)
sockets[0].put(Ping(payload=b"are you there?"))
pong = sockets[0].event()
assert isinstance(pong, Pong) and pong.payload == b"are you there?", pong
third = Session(*open_socket(), device="third")
third.send(short(LOGOUT))
assert closed(sockets[2]) == 1000
print("talked", flush=True)
for session, sent_away in ((first, sockets[0]), (second, sockets[1])):
    bye = session.expect(BYE)
    print("bye", bye[2], closed(sent_away), flush=True)
follow(bye, open_socket)
