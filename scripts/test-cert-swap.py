#!/usr/bin/env python3
"""Certificates are exchanged below 10,000 clients over WSS. Arguments: the gateway, and the bench.

While the bench holds its clients with heartbeats and messages of a control group, the files are replaced by a pair that
does not belong together, by another good pair, and by the first again. The gateway has to refuse the first with the
reason, to show the others within a second of the change, and no connection may end; the bench fails if one does.
"""

import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

GATEWAY, BENCH = sys.argv[1:]
CLIENTS = 10_000
HOLD_S = 30
# The goal is a second, by this machine's clock and from the moment the files are there.
SHOWN_WITHIN_S = 1.0
PATIENCE_S = 120


def shown(port):
    """The certificate that a new connection is shown, as PEM."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as wrapped:
        return ssl.DER_cert_to_PEM_cert(wrapped.getpeercert(True)).split()


def metric(http, name):
    """The sum of all samples of a name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line))


def until(what, ready):
    begun = time.monotonic()
    while not ready():
        assert time.monotonic() - begun < PATIENCE_S, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.02)
    return time.monotonic() - begun


def swap(folder, cert, key):
    """Both files are replaced, each at once, as tools for certificates do it."""
    for name, text in (("cert", cert), ("key", key)):
        fresh = folder / f"{name}.new"
        fresh.write_text(text)
        fresh.rename(folder / f"{name}.pem")


def main():
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = []
        for which in ("first", "second"):
            (folder / which).mkdir()
            subprocess.run([GATEWAY, "dev-cert", "--out", folder / which], check=True, stdout=subprocess.DEVNULL)
            pairs.append(tuple((folder / which / f"dev-{kind}.pem").read_text() for kind in ("cert", "key")))
        first, second = pairs
        swap(folder, *first)
        command = [GATEWAY, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1"]
        command += ["--connections-max", "12000", "--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem"]
        log = open(folder / "log", "w+")
        gateway = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        load = None
        try:
            ports = {}
            for line in gateway.stdout:
                if found := re.match(r"(listening|http) on 127\.0\.0\.1:(\d+)", line):
                    ports[found[1]] = int(found[2])
                if len(ports) == 2:
                    break
            port, http = ports["listening"], ports["http"]
            bench = [BENCH, "hold", "--conns", str(CLIENTS), "--transport", "wss", "--secs", str(HOLD_S)]
            bench += ["--heartbeat", "5", "--gateway", f"127.0.0.1:{port}", "--gateway-pid", str(gateway.pid)]
            bench += ["--gateway-http", f"127.0.0.1:{http}"]
            load = subprocess.Popen(bench, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            until("all are in", lambda: metric(http, "trunkline_sessions") >= CLIENTS or load.poll() is not None)
            print(f"{CLIENTS:,} clients are in")

            said = lambda: (folder / "log").read_text()
            swap(folder, first[0], second[1])
            took = until("the pair is refused", lambda: "the key belongs to another certificate" in said())
            print(f"a pair that does not belong together was refused after {took:.2f} s")
            if shown(port) != first[0].split():
                faults.append("the old certificate is not shown while the pair is broken")
            for which, pair in (("second", second), ("first", first)):
                swap(folder, *pair)
                took = until(f"the {which} is shown", lambda: shown(port) == pair[0].split())
                print(f"the {which} certificate was shown {took:.2f} s after its files were there")
                if took > SHOWN_WITHIN_S:
                    faults.append(f"the {which} certificate was shown after {took:.2f} s only")
            still = metric(http, "trunkline_sessions")
            if still != CLIENTS or load.poll() is not None:
                faults.append(f"{still:.0f} of {CLIENTS} clients are in behind the changes")
            out, _ = load.communicate(timeout=PATIENCE_S)
            print(out)
            if load.returncode != 0:
                faults.append(f"bench hold ended with status {load.returncode}")
        finally:
            if load is not None and load.poll() is None:
                load.terminate()
                load.wait(30)
            gateway.terminate()
            gateway.wait(30)
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
