#!/usr/bin/env python3
"""Gives the same calls to the same servers by nginx and by the gateway, and shows side by side what becomes of them.

test-nginx-parity.py GATEWAY: both run on loopback, with one upstream or service for each case; servers of this script
answer, fail, or hold a call, and write down who was asked. Ends with status 1 where something differs that should not.
"""

import contextlib
import http.client
import http.server
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

GATEWAY = sys.argv[1]
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
PATIENCE_S = 30
LOGIN, CALL, LOGIN_OK, REPLY = 0x01, 0x05, 0x81, 0x85
SERVE, ANSWER, SERVE_OK, REQUEST = 0x20, 0x21, 0xA0, 0xA1
# The service that workers serve; those of the cases count from 7 on.
WORKERS = 900
SAFE = 0x01
FAIL_TIMEOUT_S = 2
# nginx counts in whole seconds, and a period has to be over: so one of 2 s ends between 2 and 3 s after a failure.
SURELY_OUT_S, SURELY_OVER_S = 1.0, 3.5
SLOW_START_S = 4
# How long it is looked whether a server is given a call for which there is no room.
NOBODY_S = 0.3
TIMEOUT_S = 1


def until(what, look):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        time.sleep(0.005)
    raise AssertionError(f"in vain: {what}")


def free_ports(count):
    with contextlib.ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]


class Server:
    """An upstream server, which behaves as it is told."""

    def __init__(self, name, log):
        self.name, self.log, self.behaviour, self.port, self.listener = name, log, "answer", 0, None
        self.released = threading.Event()
        self.start()

    def start(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                behaviour = server.behaviour
                server.log.append(server.name)
                self.close_connection = True
                if behaviour == "hang":
                    # Longer than either of them waits.
                    time.sleep(TIMEOUT_S + 1)
                if behaviour == "hold":
                    server.released.wait(PATIENCE_S)
                if behaviour in ("break", "hang"):
                    return
                self.send_response(503 if behaviour == "503" else 200)
                self.send_header("Content-Length", "1")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(server.name.encode())

            do_GET = do_POST

            def log_message(self, *_):
                pass

        class Listener(http.server.ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_):
                """Whoever asked has gone: a case of time-outs."""

        self.listener = Listener(("127.0.0.1", self.port), Handler)
        self.port = self.listener.server_address[1]
        threading.Thread(target=self.listener.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        """Connections are refused until `start`."""
        self.listener.shutdown()
        self.listener.server_close()


@contextlib.contextmanager
def running(command, **options):
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


class Case:
    """One upstream of nginx and one service of the gateway with the same servers."""

    all = []
    # Where nginx listens.
    port = 0

    def __init__(self, policy, servers, options=None, nginx_policy="", timeout_s=PATIENCE_S):
        """`options`: what is said of each server, as nginx writes it. `timeout_s`: how long an answer may take."""
        self.number, self.policy, self.nginx_policy = 7 + len(Case.all), policy, nginx_policy
        self.timeout_s = timeout_s
        self.servers, self.options = servers, options or [""] * len(servers)
        Case.all.append(self)

    def nginx(self):
        policy = f"{self.nginx_policy};" if self.nginx_policy else ""
        servers = zip(self.servers, self.options)
        servers = "".join(f" server 127.0.0.1:{server.port} {options};" for server, options in servers)
        return (f"upstream case{self.number} {{ {policy}{servers} }}\n"
                f"server {{ listen 127.0.0.1:{Case.port}; server_name case{self.number}; "
                f"location / {{ proxy_read_timeout {self.timeout_s}s; proxy_pass http://case{self.number}; }} }}\n")

    def gateway(self):
        said = [f"{self.number}:case{self.number}", "transport=http", f"policy={self.policy}", "key=peer"]
        said += ["keepalive_secs=0", "queue=0", f"call_timeout_ms={self.timeout_s * 1000}"]
        for server, options in zip(self.servers, self.options):
            # The same words, but for the names of periods: fail_timeout=2s is fail_timeout_secs=2.
            words = re.sub(r"(\w+)=(\d+)s\b", r"\1_secs=\2", options)
            said.append(f"server=http://127.0.0.1:{server.port}/ {words}".strip())
        return ",".join(said)


class Workers:
    """The service of workers, where a case is asked for."""

    number = WORKERS


class Nginx:
    def __init__(self, folder, stack):
        [Case.port] = free_ports(1)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        # One process, as one balancer: workers without a `zone` would each have their own.
        self.config = (f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/nginx.log;\n"
                       f"events {{}}\nhttp {{\naccess_log off;\n{paths}keepalive_requests 100000;\n"
                       f"proxy_next_upstream error timeout http_503;\nproxy_next_upstream_tries 0;\n"
                       f"proxy_connect_timeout 1s;\nHTTP}}\n")
        self.file = Path(folder) / "nginx.conf"
        self.log = Path(folder) / "nginx.log"
        self.file.write_text(self.config.replace("HTTP", "".join(case.nginx() for case in Case.all)))
        stack.enter_context(running([NGINX, "-e", str(self.log), "-c", str(self.file)]))
        until("nginx listens", lambda: socket.create_connection(("127.0.0.1", Case.port), timeout=1).close() is None)
        self.connection = http.client.HTTPConnection("127.0.0.1", Case.port, timeout=PATIENCE_S)

    def refuses(self, case, words):
        """Whether it does not take a configuration, and says so with these words."""
        other = Path(self.file).with_name("other.conf")
        other.write_text(self.config.replace("HTTP", case.nginx()))
        judged = subprocess.run([NGINX, "-t", "-e", str(self.log), "-c", str(other)], capture_output=True, text=True)
        return judged.returncode != 0 and words in judged.stderr

    def begin(self, case, key=1, safe=False, connection=None):
        connection = connection or self.connection
        method = "GET" if safe else "POST"
        connection.request(method, f"/?key={key}", None if safe else b"x", {"Host": f"case{case.number}"})
        return connection

    def end(self, connection):
        response = connection.getresponse()
        response.read()
        return {200: "ok", 502: "none or lost", 503: "refused", 504: "time-out"}[response.status]

    def call(self, case, **how):
        return self.end(self.begin(case, **how))

    def held(self, case):
        return self.begin(case, connection=http.client.HTTPConnection("127.0.0.1", Case.port, timeout=PATIENCE_S))


class Link:
    """A connection to the gateway, of a client or a worker."""

    def __init__(self, port, kind, body, answer):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(struct.pack(">IBBH", 8 + len(body), kind, 0, 0) + body)
        got, *_ = self.frame()
        assert got == answer, f"kind 0x{got:x} in answer to kind 0x{kind:x}"

    def read(self, length):
        got = b""
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            if not piece:
                raise ConnectionError("the gateway has closed the connection")
            got += piece
        return got

    def frame(self):
        """Kind, `aux`, and `id` where the frame has one."""
        length, kind, _, aux = struct.unpack(">IBBH", self.read(8))
        rest = self.read(length - 8)
        return kind, aux, struct.unpack(">Q", rest[:8])[0] if kind in (REPLY, REQUEST) else 0


class Gateway:
    def __init__(self, folder, stack):
        port, api, self.services = free_ports(3)
        command = [GATEWAY, "--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{api}", "--shards", "1"]
        command += ["--services-listen", f"127.0.0.1:{self.services}"]
        command += ["--memory-max", "512MiB", "--drain-secs", "0", "--log", "error"]
        for case in Case.all:
            command += ["--service", case.gateway()]
        stack.enter_context(running(command, stdout=subprocess.DEVNULL))

        def ready():
            with urllib.request.urlopen(f"http://127.0.0.1:{api}/readyz") as answer:
                return b'"ready":true' in answer.read()
        until("the gateway is ready", ready)
        self.link = Link(port, LOGIN, bytes([0x08, 1, 0x10, 1]), LOGIN_OK)
        self.calls, self.replies = 0, {}

    def begin(self, case, key=1, safe=False):
        self.calls += 1
        head = struct.pack(">IBBHQQQ", 33, CALL, SAFE if safe else 0, case.number, self.calls, key, 0)
        self.link.socket.sendall(head + b"x")
        return self.calls

    def end(self, call):
        while call not in self.replies:
            kind, status, answered = self.link.frame()
            if kind == REPLY:
                self.replies[answered] = status
        return {0: "ok", 14: "refused", 18: "none or lost", 25: "none or lost", 24: "time-out"}[self.replies.pop(call)]

    def call(self, case, **how):
        return self.end(self.begin(case, **how))

    held = begin

    def serve(self, name, weight, log):
        """A worker, which writes down that it was asked."""
        offer = bytes([0x08, WORKERS & 127 | 128, WORKERS >> 7, 0x10, weight])
        body = bytes([0x08, 1, 0x12, len(name), *name.encode(), 0x22, len(offer), *offer, 0x28, 1])
        link = Link(self.services, SERVE, body, SERVE_OK)

        def work():
            with contextlib.suppress(OSError):
                while True:
                    kind, _, call = link.frame()
                    if kind == REQUEST:
                        log.append(name)
                        link.socket.sendall(struct.pack(">IBBHQQQ", 32, ANSWER, 0, 0, call, 0, 0))
        threading.Thread(target=work, daemon=True).start()


class Table:
    """What was compared, a line each as it is known."""

    WIDTHS = (45, 34, 34)

    def __init__(self):
        self.rows, self.faults = 0, 0
        self.line("feature", "nginx", "gateway", "same?")

    def line(self, *cells):
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, self.WIDTHS)), cells[-1]]), flush=True)

    def row(self, feature, nginx, gateway, is_so, verdict, otherwise):
        self.rows += 1
        self.faults += not is_so
        self.line(feature, nginx, gateway, verdict if is_so else otherwise)

    def compare(self, feature, nginx, gateway, show=str, wanted=None):
        """Both are to be the same; and, where nginx documents what it is to be, that."""
        is_same = nginx == gateway and wanted in (None, nginx)
        self.row(feature, show(nginx), show(gateway), is_same, "same", "DIFFERS")

    def differ(self, feature, nginx, gateway, why, is_so):
        """They are to differ, for a reason."""
        self.row(feature, nginx, gateway, is_so, f"no: {why}", "NOT AS IT SHOULD BE")


def short(picks):
    """What fits into a column: the shortest part that repeats, else the beginning."""
    picks = "".join(picks)
    for length in range(1, len(picks) // 2 + 1):
        if picks == (picks[:length] * (len(picks) // length + 1))[:len(picks)]:
            times = f"× {len(picks) // length}" if len(picks) % length == 0 else "…"
            return f"{picks[:length]} {times}"
    return picks if len(picks) <= 24 else f"{picks[:23]}…"


def outcomes(told):
    """Whom each call was given to, and what its caller was told."""
    return ", ".join(f"{asked or '-'}: {what}" for asked, what in told)


class Trial:
    """The servers, and the same calls through both programs."""

    def __init__(self):
        self.log = []
        self.servers = [Server(name, self.log) for name in "abcd"]
        self.both = []

    def asked(self, who, case, **how):
        """The servers that one call was given to, and what its caller was told."""
        self.log.clear()
        told = who.call(case, **how)
        return "".join(self.log), told

    def picks(self, case, calls, keys=None, **how):
        """The same calls through both, one after the other in turn: the servers that each asked."""
        picks = {who: [] for who in self.both}
        for at in range(calls):
            for who in self.both:
                key = keys[at] if keys else 1
                picks[who].append(self.asked(who, case, key=key, **how)[0])
        return [picks[who] for who in self.both]

    def outcomes(self, case, calls, **how):
        """The same, with what the callers were told."""
        return [[self.asked(who, case, **how) for _ in range(calls)] for who in self.both]

    def all_answer(self):
        for server in self.servers:
            server.behaviour = "answer"

    def held(self, case, calls, takes=None):
        """Calls that are all under way at a time: whom each was given to, and what came of it. `takes`: of how many."""
        given = []
        for who in self.both:
            # Both in turn, since a server that holds calls does so for both.
            for server in self.servers:
                server.released.clear()
                server.behaviour = "hold"
            self.log.clear()
            open_calls, seen = [], []
            for _ in range(calls):
                before = len(self.log)
                call = who.held(case)
                open_calls.append(call)
                # One that nobody takes is never seen by a server.
                end = time.monotonic() + (NOBODY_S if len(seen) == takes else PATIENCE_S)
                while len(self.log) == before and time.monotonic() < end:
                    time.sleep(0.001)
                seen.append(self.log[-1] if len(self.log) > before else "-")
            for server in self.servers:
                server.released.set()
            told = [who.end(call) for call in open_calls]
            given.append((seen, ["ok" if it == "ok" else "not" for it in told]))
        self.all_answer()
        return given


def prepare(trial):
    """All cases, since both programs read their configuration once."""
    a, b, c, d = trial.servers
    failing = f"max_fails=3 fail_timeout={FAIL_TIMEOUT_S}s"
    once = f"max_fails=1 fail_timeout={FAIL_TIMEOUT_S}s"
    rising = [f"weight={weight}" for weight in (1, 2, 3, 4)]
    rr, hashing = "weighted-round-robin", "hash $arg_key consistent"
    return {
        "5:1:1": Case(rr, [a, b, c], ["weight=5", "weight=1", "weight=1"]),
        "1:2:3:4": Case(rr, [a, b, c, d], rising),
        "hash consistent": Case("consistent-hash", [a, b, c, d], nginx_policy=hashing),
        "hash consistent, 1:2:3:4": Case("consistent-hash", [a, b, c, d], [f"{it} {once}" for it in rising], hashing),
        "least_conn": Case("least-conn", [a, b, c], rising[:3], "least_conn"),
        "max_conns": Case(rr, [a, b], ["max_conns=2"] * 2),
        "max_fails": Case(rr, [a, b], [f"weight=6 {failing}", f"weight=3 {failing}"]),
        "max_fails=0": Case(rr, [a, b], ["max_fails=0"] * 2),
        "old": Case(rr, [a, b], [failing] * 2),
        "time-out": Case(rr, [a, b], [once] * 2, timeout_s=TIMEOUT_S),
        "503": Case(rr, [a, b], [failing] * 2),
        "503, once": Case(rr, [a, b], [once] * 2),
        "refused": Case(rr, [a, b, c], [once] * 3),
        "backup": Case(rr, [a, b, c], [once, once, "backup"]),
        "down": Case(rr, [a, b, c], ["weight=2", "down", "weight=1"]),
        "all": Case(rr, [a, b], [once] * 2),
        "alone": Case(rr, [a], [once]),
    }


def balancing(trial, table, cases):
    d = trial.servers[3]
    shares = lambda picks: [picks.count(name) for name in "abcd"]
    colons = lambda counts: ":".join(map(str, counts))
    nginx, gateway = trial.picks(cases["5:1:1"], 70)
    table.compare("weights 5:1:1", nginx, gateway, short, list("aabacaa" * 10))
    for name, weight in (("a", 5), ("b", 1), ("c", 1)):
        trial.both[1].serve(name, weight, trial.log)
    workers = [trial.asked(trial.both[1], Workers)[0] for _ in range(70)]
    table.compare("... over workers of the gateway", nginx, workers, short)
    nginx, gateway = trial.picks(cases["1:2:3:4"], 1000)
    table.compare("weights 1:2:3:4", nginx, gateway, short)
    table.compare("... of 1,000 calls", shares(nginx), shares(gateway), colons, [100, 200, 300, 400])
    keys = [key * 7919 + 1 for key in range(500)]
    for name in ("hash consistent", "hash consistent, 1:2:3:4"):
        nginx, gateway = trial.picks(cases[name], len(keys), keys)
        table.compare(f"{name}: owners of 500 keys", nginx, gateway, short)
        table.compare("... how many each has", shares(nginx), shares(gateway), colons)
    before = gateway
    d.stop()
    nginx, gateway = trial.picks(cases["hash consistent, 1:2:3:4"], len(keys), keys)
    d.start()
    table.compare("... with d gone", nginx, gateway, short)
    moved = [sum(old not in ("d", new) for old, new in zip(before, picks)) for picks in (nginx, gateway)]
    table.compare("... keys of others that moved", *moved, wanted=0)
    table.compare("down: b", *trial.picks(cases["down"], 12), short, list("aca" * 4))
    held = [seen for seen, _ in trial.held(cases["least_conn"], 12)]
    table.compare("least_conn 1:2:3, 12 calls at once", *held, short)
    held = trial.held(cases["max_conns"], 5, takes=4)
    table.compare("max_conns=2 at each of two, 5 calls", *held, lambda it: f"{''.join(it[0])}, {it[1].count('ok')} ok")


def failures(trial, table, cases):
    a, b = trial.servers[:2]

    def phase(what, calls):
        """`max_fails` and `fail_timeout`, from the first failure until the server is back."""
        table.compare(what, *trial.picks(cases["max_fails"], calls), short)

    a.behaviour = "break"
    phase("max_fails=3, 6:3: until three have failed", 8)
    time.sleep(SURELY_OUT_S)
    phase("... not within fail_timeout", 6)
    time.sleep(SURELY_OVER_S)
    phase("... then one call tries it, in vain", 6)
    a.behaviour = "answer"
    time.sleep(SURELY_OUT_S)
    phase("... again not within fail_timeout", 6)
    time.sleep(SURELY_OVER_S)
    phase("... until one succeeds: weights as before", 45)

    a.behaviour = "break"
    table.compare("max_fails=0: stays", *trial.picks(cases["max_fails=0"], 12), short)
    table.compare("one server alone stays, max_fails=1", *trial.picks(cases["alone"], 4), short)
    told = trial.outcomes(cases["max_fails=0"], 2)
    table.compare("a call whose connection breaks", *told, outcomes)
    a.behaviour = "hang"
    table.compare("a time-out is a failure, max_fails=1", *trial.outcomes(cases["time-out"], 3), outcomes)
    a.behaviour = "503"
    table.compare("503 to GET, or to a call that is SAFE", *trial.outcomes(cases["503"], 2, safe=True), outcomes)
    table.compare("503 to POST, or to any other call", *trial.outcomes(cases["503"], 2), outcomes)
    nginx, gateway = trial.picks(cases["503, once"], 6)
    is_so = nginx == list("ababab") and gateway == list("abbbbb")
    why = "by design, 503 is one whatever was asked"
    table.differ("... as a failure, max_fails=1", short(nginx), short(gateway), why, is_so)
    a.behaviour = "answer"

    a.stop()
    table.compare("a connection refused: the next server", *trial.outcomes(cases["refused"], 3), outcomes)
    table.compare("backup c, a gone: not while b is there", *trial.outcomes(cases["backup"], 3), outcomes)
    b.stop()
    table.compare("... b gone as well", *trial.outcomes(cases["backup"], 3), outcomes)
    table.compare("all have failed", *trial.outcomes(cases["all"], 2), outcomes)
    a.start()
    b.start()
    time.sleep(SURELY_OVER_S)
    table.compare("... and are back", *trial.picks(cases["all"], 4), short)
    table.compare("backup: a and b are back", *trial.picks(cases["backup"], 6), short)

    # Two failures, then a third when they are older than fail_timeout, with no success in between.
    a.behaviour = "break"
    trial.picks(cases["old"], 4)
    time.sleep(SURELY_OVER_S)
    trial.picks(cases["old"], 2)
    a.behaviour = "answer"
    nginx, gateway = trial.picks(cases["old"], 4)
    is_so, why = "a" not in nginx and gateway.count("a") == 2, "as documented, those within fail_timeout count"
    table.differ("a third failure when two are older", short(nginx), short(gateway), why, is_so)


def not_in_nginx(trial, table, slow, fresh, hashed_backup):
    """What the free nginx does not have. slow_start is in the commercial one: its documentation is to hold."""
    nginx, gateway = trial.both
    a = trial.servers[0]
    refused = nginx.refuses(hashed_backup, "balancing method does not support parameter")
    table.differ("backup with hash", "not in it" if refused else "takes it", "takes it", "by design", refused)
    refused = nginx.refuses(slow, 'invalid parameter "slow_start')
    nothing = "not in it" if refused else "takes it"
    call = lambda case: trial.asked(gateway, case)[0]
    picks = "".join(call(fresh) for _ in range(8))
    is_so = refused and picks == "abababab"
    table.differ("slow_start: not at the start", nothing, short(picks), "as documented", is_so)

    # After a failure the weight climbs from 0 to its full value: the share of calls at each moment, summed up.
    a.behaviour = "break"
    until("a has failed", lambda: call(slow) == "a")
    a.behaviour = "answer"
    until("a is back", lambda: call(slow) == "a")
    back, expected, picked = time.monotonic(), [0.0] * 3, [0] * 3
    while (climbed := (time.monotonic() - back) / SLOW_START_S) < 1:
        # Against another of the same weight, which has all of it.
        expected[int(3 * climbed)] += climbed / (1 + climbed)
        picked[int(3 * climbed)] += call(slow) == "a"
        time.sleep(0.01)
    after = "".join(call(slow) for _ in range(20))
    is_so = all(abs(sum(picked[:at]) - sum(expected[:at])) <= 2 for at in (1, 2, 3)) and after.count("a") == 10
    why = "as documented, by which " + ":".join(f"{count:.1f}" for count in expected)
    table.differ("... calls of a in each third of it", nothing, ":".join(map(str, picked)), why, is_so)


def main():
    if NGINX is None:
        sys.exit("test-nginx-parity: please install nginx")
    with tempfile.TemporaryDirectory(prefix="trunkline-nginx-parity-") as folder, contextlib.ExitStack() as stack:
        trial = Trial()
        a, b, *_ = trial.servers
        cases = prepare(trial)
        nginx = Nginx(folder, stack)
        # Only the gateway takes these.
        rr, climbs = "weighted-round-robin", f"weight=10 max_fails=1 fail_timeout=1s slow_start={SLOW_START_S}s"
        slow, fresh = Case(rr, [a, b], [climbs] * 2), Case(rr, [a, b], ["slow_start=3600s"] * 2)
        hashed_backup = Case("consistent-hash", [a, b], ["", "backup"], "hash $arg_key consistent")
        trial.both = [nginx, Gateway(folder, stack)]
        for program in ([NGINX, "-v"], [GATEWAY, "--version"]):
            said = subprocess.run(program, capture_output=True, text=True, check=True)
            print((said.stdout + said.stderr).strip())
        table = Table()
        balancing(trial, table, cases)
        failures(trial, table, cases)
        not_in_nginx(trial, table, slow, fresh, hashed_backup)
        if table.faults:
            sys.exit(f"{table.faults} of {table.rows} are not as they should be")


if __name__ == "__main__":
    main()
