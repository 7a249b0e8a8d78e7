"""Through the library websocket-client: python with_websocket_client.py ws://HOST:PORT/ws.

Says "talked", and then how it was sent away.
"""

import struct
import sys

import websocket

from frames import BYE, LOGOUT, Session, follow, short, talk

sockets = []


def open_socket(url=sys.argv[1]):
    socket = websocket.create_connection(url, timeout=20, subprotocols=["trunkline.v1"])
    assert socket.getsubprotocol() == "trunkline.v1"
    sockets.append(socket)
    return socket.send_binary, receive_from(socket)


def receive_from(socket):
    def receive():
        opcode, data = socket.recv_data()
        assert opcode == websocket.ABNF.OPCODE_BINARY, opcode
        return data

    return receive


def closed(socket):
    opcode, data = socket.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE, opcode
    return struct.unpack(">H", data[:2])[0]


first, second = talk(open_socket)
sockets[0].ping(b"are you there?")
opcode, frame = sockets[0].recv_data_frame(control_frame=True)
assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"are you there?")
third = Session(*open_socket(), device="third")
third.send(short(LOGOUT))
assert closed(sockets[2]) == 1000
print("talked", flush=True)
for session, socket in ((first, sockets[0]), (second, sockets[1])):
    bye = session.expect(BYE)
    print("bye", bye[2], closed(socket), flush=True)
follow(bye, open_socket)
