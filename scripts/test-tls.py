#!/usr/bin/env python3
"""What programs that nobody here wrote say of TLS on the port for clients. Arguments: the gateway, and sslyze.

Two gateways are looked at: one with a certificate of ECDSA and one with RSA, neither signed by anybody, which is the
one thing that may be found wanting: findings about the chain are left out.
"""

import concurrent.futures
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

GATEWAY, SSLYZE = sys.argv[1:]
PATIENCE_S = 900
REQUEST = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Of who signed a certificate, which is nobody here, and of names of hosts and headers of web sites.
OF_THE_CHAIN = {"cert_chain_of_trust", "cert_revocation", "cert_ocspRevoked", "cert_trust"}


@contextlib.contextmanager
def gateway(folder, names):
    """A gateway with that certificate; gives the ports of clients and of HTTP."""
    command = [GATEWAY, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "1", "--tls-required"]
    command += ["--tls-cert", folder / f"{names}-cert.pem", "--tls-key", folder / f"{names}-key.pem"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        ports = {}
        for line in child.stdout:
            if found := re.match(r"(listening|http) on 127\.0\.0\.1:(\d+)", line):
                ports[found[1]] = found[2]
            if len(ports) == 2:
                break
        yield ports["listening"], ports["http"]
    finally:
        child.terminate()
        child.wait(30)


def run(*command, **options):
    return subprocess.run(command, text=True, capture_output=True, timeout=PATIENCE_S, **options)


def testssl(port, folder, cert):
    report = folder / "testssl.json"
    report.unlink(missing_ok=True)
    options = ["--quiet", "--warnings", "off", "--color", "0", "--add-ca", cert, "--jsonfile", report]
    done = run("testssl", *options, f"127.0.0.1:{port}")
    findings = json.loads(report.read_text())
    scanned = {finding["id"] for finding in findings}
    assert {"TLS1_3", "heartbleed", "robot", "secure_client_renego"} & scanned, f"it ended early: {done.stdout[-2000:]}"
    grave = ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
    bad = [f for f in findings if f["severity"] in grave and f["id"] not in OF_THE_CHAIN]
    return [f"testssl.sh: {f['severity']}: {f['id']}: {f['finding']}" for f in bad]


def sslyze(port, folder, cert):
    done = run(SSLYZE, "--certinfo_ca_file", cert, f"127.0.0.1:{port}")
    assert "SCANS COMPLETED" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    # What it holds against the configuration that Mozilla calls intermediate.
    lines = done.stdout.splitlines()
    told = [line.strip() for line in lines if re.match(r" +\* \w+: ", line) and "." in line]
    faults = [line for line in told if "certificate_path_validation" not in line]
    vulnerable = [line.strip() for line in lines if re.search(r"\bVULNERABLE\b", line) and "OK" not in line]
    return [f"sslyze: {line}" for line in faults + vulnerable]


def typed(command, lines):
    """What a program says to lines that are typed to it with pauses between them."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    # Until the handshake is over.
    time.sleep(1.5)
    for line in lines:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(line)
            child.stdin.flush()
        time.sleep(1)
    try:
        return child.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return child.communicate()[0]


def updates(http):
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics") as metrics:
        text = metrics.read().decode()
    of = lambda by: int(re.search(rf'trunkline_tls_key_updates_total{{by="{by}",shard="0"}} (\d+)', text)[1])
    return of("peer"), of("node")


def key_updates(port, http, cert):
    """Each program changes its key twice, and asks for the gateway's once; then it is answered as ever."""
    openssl = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", cert, "-alpn", "http/1.1", "-tls1_3"]
    gnutls = ["gnutls-cli", "--inline-commands", "--x509cafile", cert, "--alpn", "http/1.1", "-p", port, "localhost"]
    faults = []
    programs = (("openssl", openssl, ["k\n", "K\n"]), ("gnutls-cli", gnutls, ["^rekey1^\n", "^rekey^\n"]))
    for name, command, keys in programs:
        before = updates(http)
        said = typed(command, [*keys, REQUEST])
        after = updates(http)
        peer, node = after[0] - before[0], after[1] - before[1]
        if (peer, node) != (2, 1) or "200 OK" not in said:
            faults.append(f"{name}: {peer} changes of its key and {node} of the gateway's, and it heard: {said[-500:]}")
    return faults


def certificate(folder, kind, key):
    cert = folder / f"{kind}-cert.pem"
    made = run(
        "openssl", "req", "-x509", *key, "-nodes", "-keyout", folder / f"{kind}-key.pem", "-out", cert, "-days", "90",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext", "keyUsage=digitalSignature", "-addext", "extendedKeyUsage=serverAuth",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return cert


def look(kind, key):
    """All that is found with a certificate of one kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cert = certificate(folder, kind, key)
        with gateway(folder, kind) as (port, http):
            found = key_updates(port, http, cert) + sslyze(port, folder, cert) + testssl(port, folder, cert)
    print(f"{kind}: testssl.sh, sslyze, changes of keys by OpenSSL and GnuTLS: {len(found)} faults", flush=True)
    return [f"{kind}: {fault}" for fault in found]


def main():
    kinds = {"ecdsa": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], "rsa": ["-newkey", "rsa:2048"]}
    with concurrent.futures.ThreadPoolExecutor() as threads:
        faults = [fault for found in threads.map(look, kinds.keys(), kinds.values()) for fault in found]
    for fault in faults:
        print(fault)
    sys.exit(bool(faults))


main()
