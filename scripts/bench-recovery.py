#!/usr/bin/env python3
"""How long a gateway with --data-dir takes from its start until it serves, killed before with so much in its folder.

A gateway is filled with messages for users who are away, each answered with SENT 1, and killed. Then it is started and
killed again some times; the time is from before its process is made until /readyz is 200. What the last one says of its
messages has to be what was answered for. Prints one object of JSON.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

# No folder of compiled modules in the source tree.
sys.dont_write_bytecode = True
from native_client import PATIENCE_S, SEND, SENT, WITH_ACK, Wrong, login

IN_FLIGHT = 2_000
USERS = 4_096
GOAL_S = 3.0


class Gateway:
    """One process."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder

    async def __aenter__(self):
        command = [self.arguments.gateway, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--shards", "2"]
        command += ["--connections-max", "1000", "--data-dir", self.folder, "--store-bytes-max", "64GiB"]
        command += ["--inbox-messages-max", "10000000", "--inbox-bytes-max", "3GiB"]
        pipe = asyncio.subprocess.PIPE
        began = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
        self.port = await self.port_of(r"listening on 127\.0\.0\.1:(\d+)")
        self.http = await self.port_of(r"http on 127\.0\.0\.1:(\d+)")
        while (await self.get("/readyz"))[0] != 200:
            await asyncio.sleep(0.002)
        self.ready_s = time.monotonic() - began
        return self

    async def __aexit__(self, *_):
        self.process.kill()
        await self.process.wait()

    async def port_of(self, beginning):
        while line := await self.process.stdout.readline():
            if found := re.match(beginning, line.decode()):
                return int(found[1])
        raise Wrong(f"the gateway ended with status {await self.process.wait()} as it started")

    async def get(self, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode(errors="replace")

    async def gauges(self):
        _, text = await self.get("/metrics")
        return {name: int(float(value)) for name, value in re.findall(r"^trunkline_store_(\w+) (\S+)$", text, re.M)}


async def fill(port, messages, payload):
    """Sends messages, and waits until each is answered as stored."""
    connection, _ = await login(port, 1, "sender", f11=1)
    answered = 0

    def on_frame(frame):
        nonlocal answered
        if frame.kind == SENT:
            if frame.aux != 1:
                raise Wrong(f"message {frame.id} ended with SENT {frame.aux}")
            answered += 1

    connection.on_frame = on_frame
    for number in range(1, messages + 1):
        body = struct.pack(">Q", number) + payload
        connection.send(SEND, number, 1_000 + number % USERS, 0, flags=WITH_ACK, body=body)
        if number - answered >= IN_FLIGHT:
            # Half of them, so that this process sleeps seldom.
            await connection.until("answers", lambda: number - answered <= IN_FLIGHT // 2)
    await connection.until("the last answers", lambda: answered == messages)


async def run(arguments, folder):
    payload = os.urandom(arguments.payload - 8)
    messages = arguments.bytes // arguments.payload
    async with Gateway(arguments, folder) as gateway:
        began = time.monotonic()
        await fill(gateway.port, messages, payload)
        fill_s = time.monotonic() - began
    ready_s = []
    for _ in range(arguments.starts):
        async with Gateway(arguments, folder) as gateway:
            ready_s.append(round(gateway.ready_s, 4))
            gauges = await gateway.gauges()
    if gauges["messages"] != messages:
        raise Wrong(f"{gauges['messages']} messages are there, and {messages} were answered with SENT 1")
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "scenario": "recovery",
        "messages": messages,
        "payload_bytes": arguments.payload,
        "folder_bytes": on_disk,
        "log_bytes": gauges["log_bytes"],
        "table_bytes": gauges["table_bytes"],
        "fill_s": round(fill_s, 2),
        "ready_s": ready_s,
        "ready_s_median": round(statistics.median(ready_s), 4),
        "goal_s": GOAL_S,
        "is_met": max(ready_s) <= GOAL_S,
    }


def main():
    parser = argparse.ArgumentParser(description="Time until a gateway that was killed serves again.")
    parser.add_argument("gateway", type=Path)
    parser.add_argument("--bytes", type=int, default=1 << 30, help="of payloads in the folder")
    parser.add_argument("--payload", type=int, default=4_096, help="bytes of each message")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the store is made, on the disk to be measured")
    arguments = parser.parse_args()
    if arguments.payload < 8 or arguments.bytes < arguments.payload or arguments.starts < 1:
        parser.error("messages of 8 bytes at least, one of them, and one start")
    folder = Path(tempfile.mkdtemp(prefix="recovery-", dir=arguments.folder))
    try:
        result = asyncio.run(run(arguments, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=2))
    return 0 if result["is_met"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench-recovery: interrupted")
