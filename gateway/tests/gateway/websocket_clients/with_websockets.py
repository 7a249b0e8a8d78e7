"""Through the library websockets: python with_websockets.py ws://HOST:PORT/ws.

Says "talked", and then how it was sent away.
"""

import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from frames import BYE, LOGOUT, PING, PONG, Session, follow, short, talk

sockets = []


def open_socket(url=sys.argv[1]):
    socket = connect(url, subprotocols=["trunkline.v1"], max_size=2**20, proxy=None)
    assert socket.subprotocol == "trunkline.v1"
    sockets.append(socket)
    return socket.send, socket.recv


def closed(socket):
    try:
        socket.recv()
    except ConnectionClosed as end:
        return end.rcvd.code
    raise AssertionError("a message behind the last one")


first, second = talk(open_socket)
# A Ping of the library, and a message in fragments. LOGOUT goes whole: the library ends a message in fragments with an
# empty one, and the gateway, which reads frames and not messages, might have said goodbye before it.
assert sockets[0].ping().wait(20)
third = Session(*open_socket(), device="third")
ping = short(PING, aux=5)
third.send([ping[:3], ping[3:]])
assert third.expect(PONG)[2] == 5
third.send(short(LOGOUT))
assert closed(sockets[2]) == 1000
print("talked", flush=True)
for session, socket in ((first, sockets[0]), (second, sockets[1])):
    bye = session.expect(BYE)
    print("bye", bye[2], closed(socket), flush=True)
follow(bye, open_socket)
