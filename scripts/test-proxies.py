#!/usr/bin/env python3
"""Runs each configuration of docs/proxies.md in front of a gateway, at free addresses of loopback instead of its own.

Proxies reach the gateway from 127.0.0.2, which it trusts; clients are at 127.0.0.1, 127.0.0.11 and 127.0.0.12.
"""

import base64
import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GATEWAY = sys.argv[1]
PROXY = "127.0.0.2"
PATIENCE_S = 30
SIGN = b"\r\n\r\n\0\r\nQUIT\n"
LOGIN, LOGIN_OK, PING, PONG = 0x01, 0x81, 0x02, 0x82


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, look):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        time.sleep(0.05)
    raise AssertionError(f"in vain: {what}")


@contextlib.contextmanager
def running(command, **options):
    # In a session of its own, so that whatever it starts ends with it.
    child = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


class Gateway:
    def __init__(self, flags):
        self.port, self.http = free_port(), free_port()
        self.command = [GATEWAY, "--listen", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http}"]
        self.command += ["--shards", "2", "--memory-max", "512MiB", "--drain-secs", "0", "--log", "warn", *flags]

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}") as answer:
            return answer.read().decode()

    def metric(self, name, label=""):
        lines = [line for line in self.get("/metrics").splitlines() if re.match(name + r"[{ ]", line) and label in line]
        return sum(int(line.rsplit(" ", 1)[1]) for line in lines)


@contextlib.contextmanager
def gateway(*flags):
    node = Gateway(flags)
    with running(node.command, stdout=subprocess.DEVNULL):
        until("the gateway is ready", lambda: '"ready":true' in node.get("/readyz"))
        yield node


def login(user):
    body = bytes([0x08, 1, 0x10, user])
    return struct.pack(">IBBH", 8 + len(body), LOGIN, 0, 0) + body


class Client:
    """A client at an address of this host, over TLS if asked, native or through a WebSocket."""

    def __init__(self, port, tls=False, web=False, at="127.0.0.1", fields=()):
        self.web = web
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S, source_address=(at, 0))
        if tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket, server_hostname="chat.example.com")
        if web:
            key = base64.b64encode(os.urandom(16)).decode()
            host = f"chat.example.com:{port}"
            fields = [*fields, "Upgrade: websocket", "Connection: Upgrade"]
            fields += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
            fields += [f"Host: {host}", f"Origin: {'https' if tls else 'http'}://{host}"]
            self.socket.sendall(("GET /ws HTTP/1.1\r\n" + "\r\n".join(fields) + "\r\n\r\n").encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self.read(1)
            assert head.startswith(b"HTTP/1.1 101 "), head

    def read(self, length):
        got = b""
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            if not piece:
                raise ConnectionError("closed")
            got += piece
        return got

    def send(self, frame):
        if self.web:
            assert len(frame) < 126
            frame = bytes([0x82, 0x80 | len(frame), 0, 0, 0, 0]) + frame
        self.socket.sendall(frame)

    def frame(self):
        """The kind of the next frame."""
        if self.web:
            _, length = self.read(2)
            message = self.read(length if length < 126 else struct.unpack(">H", self.read(2))[0])
            return message[4]
        head = self.read(8)
        self.read(struct.unpack(">I", head[:4])[0] - 8)
        return head[4]

    def talks(self, user):
        self.send(login(user))
        assert self.frame() == LOGIN_OK
        self.send(struct.pack(">IBBH", 8, PING, 0, 7))
        assert self.frame() == PONG
        return self

    def is_closed(self):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return self.socket.recv(1) == b""
        return True


def blocks(language):
    """The fenced blocks of the page, in order."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", (ROOT / "docs/proxies.md").read_text())


class Proxies:
    """Starts a block of the page in front of a gateway; returns its port."""

    def __init__(self, folder, stack):
        self.folder, self.stack = Path(folder), stack
        pem = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        pem += ["-nodes", "-days", "2", "-subj", "/CN=chat.example.com"]
        pem += ["-keyout", f"{folder}/privkey.pem", "-out", f"{folder}/fullchain.pem"]
        subprocess.run(pem, check=True, capture_output=True)
        both = (self.folder / "fullchain.pem").read_text() + (self.folder / "privkey.pem").read_text()
        (self.folder / "site.pem").write_text(both)

    def start(self, name, text, node):
        port = free_port()
        text = text.replace("/etc/trunkline/", f"{self.folder}/").replace("10.0.0.5:7700", f"127.0.0.1:{node.port}")
        file = self.folder / f"{name}-{port}.conf"
        if name == "haproxy":
            text = re.sub(r"bind :\d+", f"bind 127.0.0.1:{port}", text)
            text = re.sub(r"(?m)^(    server .*)$", rf"\1 source {PROXY} inter 200ms fastinter 200ms", text)
            file.write_text(text)
            command = ["haproxy", "-db", "-q", "-f", str(file)]
        else:
            text = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", text)
            # Where the proxy connects from, beside where it connects to.
            text = re.sub(r"(?m)^( +)(proxy_pass .*)$", rf"\1\2\n\1proxy_bind {PROXY};", text)
            log = f"{self.folder}/nginx-{port}"
            head = f"daemon off;\nmaster_process off;\npid {log}.pid;\nerror_log {log}.log;\nevents {{}}\n"
            if text.startswith("stream"):
                head = f"load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n{head}"
            else:
                kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
                paths = "".join(f"    {kind}_temp_path {log}-{kind};\n" for kind in kinds)
                text = text.replace("http {\n", f"http {{\n    access_log off;\n{paths}", 1)
            file.write_text(head + text)
            command = ["nginx", "-e", f"{log}.log", "-c", str(file)]
        self.stack.enter_context(running(command))
        until(f"{name} listens", lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close() is None)
        return port


def ready(connect):
    """A client, once the proxy knows that the gateway is well."""
    def look():
        try:
            return connect()
        except (ConnectionError, AssertionError, ssl.SSLError):
            return None
    return until("the proxy lets a client through", look)


def each_client_is_told_apart(port, node, **how):
    """With two connections for each address allowed, two clients have two each, and a header of theirs is refused."""
    inside = [ready(lambda: Client(port, at="127.0.0.11", **how).talks(1))]
    inside += [Client(port, at="127.0.0.11", **how).talks(2)]
    third = None
    with contextlib.suppress(ConnectionError, AssertionError, ssl.SSLError):
        third = Client(port, at="127.0.0.11", **how)
        assert third.is_closed(), "a third connection of one address stays"
    inside += [Client(port, at="127.0.0.12", **how).talks(user) for user in (3, 4)]
    assert node.metric("trunkline_limit_hits_total", 'limit="address_connections"') >= 1
    assert node.metric("trunkline_proxy_headers_total") >= 5
    for client in inside:
        client.socket.close()


def made_up_headers_are_refused(port, node, tls):
    """Somebody behind the proxy says that they are somebody else."""
    v2 = SIGN + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1, 0x9C, 0x40, 0x1E, 0x14])
    for header in (b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 7700\r\n", v2):
        before = node.metric("trunkline_proxy_refused_total", 'reason="untrusted"')
        liar = Client(port, tls=tls)
        liar.socket.sendall(header + login(9))
        assert liar.is_closed(), header
        until("it is counted", lambda: node.metric("trunkline_proxy_refused_total", 'reason="untrusted"') == before + 1)
        # And straight to the node.
        direct = Client(node.port)
        direct.socket.sendall(header + login(9))
        assert direct.is_closed(), header
        until("it is counted", lambda: node.metric("trunkline_proxy_refused_total", 'reason="untrusted"') == before + 2)


def main():
    (tcp, web), (stream, stream_tls, site) = blocks("haproxy"), blocks("nginx")
    with tempfile.TemporaryDirectory(prefix="trunkline-proxies-") as folder, contextlib.ExitStack() as stack:
        proxies = Proxies(folder, stack)
        cases = [
            ("haproxy", "bytes, version 2", tcp, False, (False, True)),
            ("haproxy", "bytes, version 1", tcp.replace("send-proxy-v2", "send-proxy"), False, (False, True)),
            ("haproxy", "WebSocket over TLS", web, True, (True,)),
            ("nginx", "bytes, version 1", stream, False, (False, True)),
            ("nginx", "TLS", stream_tls, True, (False, True)),
        ]
        for name, what, text, tls, webs in cases:
            for is_web in webs:
                with gateway("--proxy-from", PROXY, "--address-connections-max", "2") as node:
                    port = proxies.start(name, text, node)
                    each_client_is_told_apart(port, node, tls=tls, web=is_web)
                    if not is_web:
                        made_up_headers_are_refused(port, node, tls)
                    missing = node.metric("trunkline_proxy_refused_total", 'reason="missing"')
                    assert missing == 0, f"{missing} checks or clients came without a header"
                print(f"ok: {name}, {what}, {'WebSocket' if is_web else 'native'}")
        with gateway("--forwarded-from", PROXY, "--address-connections-max", "2") as node:
            port = proxies.start("nginx", site, node)
            # What a client says of itself counts for nothing.
            made_up = ["X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9"]
            connect = lambda at, user: Client(port, tls=True, web=True, at=at, fields=made_up).talks(user)
            inside = [ready(lambda: connect("127.0.0.11", 1)), connect("127.0.0.11", 2), connect("127.0.0.12", 3)]
            with contextlib.suppress(ConnectionError, AssertionError):
                connect("127.0.0.11", 4)
                raise SystemExit("a third connection of one address stays")
            inside.append(connect("127.0.0.12", 5))
            assert node.metric("trunkline_requests_refused_total", 'reason="address"') == 1
            for client in inside:
                client.socket.close()
            print("ok: nginx, WebSocket of a site over TLS, each client told apart by X-Forwarded-For")
        with gateway("--proxy-from", PROXY) as node:
            port = proxies.start("nginx", site, node)
            with contextlib.suppress(ConnectionError, AssertionError):
                Client(port, tls=True, web=True)
                raise SystemExit("a proxy of --proxy-from got through without a header")
            assert node.metric("trunkline_proxy_refused_total", 'reason="missing"') >= 1
            print("ok: a trusted proxy without a header is refused")


main()
