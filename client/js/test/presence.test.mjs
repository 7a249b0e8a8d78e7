// Who is online: what is asked, what is told, and what is asked again. The test is the other end of the WebSocket.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Client, NotConnectedError } from "../dist/index.js";
import { Groups } from "../dist/groups.js";
import { Presence, decodePresence, encodeWatch } from "../dist/presence.js";
import { FakeSocket, LOGIN_OK, short } from "./fake.mjs";

const [WATCH, UNWATCH, PRESENCE] = [0x0a, 0x0b, 0x8a];

const settle = () => new Promise((done) => setTimeout(done, 5));
const of = (socket, kind) => socket.written.filter((frame) => frame.kind === kind).map(({ body }) => [...body]);

async function open() {
  const client = new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff: { minMs: 1, maxMs: 1 } });
  const groups = new Groups(client);
  const presence = new Presence(client);
  const told = [];
  presence.on("presence", (users) => told.push(users));
  const connected = client.connect();
  await settle();
  FakeSocket.all.at(-1).receive(LOGIN_OK);
  await connected;
  return { client, groups, presence, told, socket: FakeSocket.all.at(-1) };
}

beforeEach(() => void (FakeSocket.all = []));

test("bodies are as PROTOCOL.md has them", () => {
  assert.deepEqual([...encodeWatch([1n, 300n, 2n], true)], [0x0a, 4, 1, 0xac, 2, 2, 0x10, 1]);
  assert.deepEqual([...encodeWatch([1n], false)], [0x0a, 1, 1]);
  assert.deepEqual([...encodeWatch([], false)], []);
  const body = Buffer.from("0a0e080110011a01611a0262632096010a0208020a0408032801", "hex");
  assert.deepEqual(decodePresence(body), [
    { user: 1n, online: true, deviceClasses: ["a", "bc"], sinceMs: 150 },
    { user: 2n, online: false, deviceClasses: [], sinceMs: 0 },
    { user: 3n, online: undefined, deviceClasses: [], sinceMs: 0 },
  ]);
  for (let cut = 1; cut < body.length; cut++) {
    if ([16, 20].includes(cut)) continue;
    assert.throws(() => decodePresence(body.subarray(0, cut)), RangeError, `cut at ${cut}`);
  }
});

test("what is watched is told, and watched again after a reconnect, until it is watched no more", async () => {
  const { client, presence, told, socket } = await open();
  presence.watch(1, 300n, "2");
  assert.deepEqual(of(socket, WATCH), [[0x0a, 4, 1, 0xac, 2, 2, 0x10, 1]]);
  socket.receive(short(PRESENCE, 0, [0x0a, 4, 8, 2, 0x10, 1]));
  assert.deepEqual(told, [[{ user: 2n, online: true, deviceClasses: [], sinceMs: 0 }]]);
  presence.unwatch(1);
  assert.deepEqual(of(socket, UNWATCH), [[0x0a, 1, 1]]);
  presence.ask(9);
  assert.deepEqual(of(socket, WATCH).at(-1), [0x0a, 1, 9], "once, and not again");
  socket.end();
  assert.throws(() => presence.ask(9), NotConnectedError);
  presence.watch(7);
  for (let tries = 0; tries < 400 && FakeSocket.all.length === 1; tries++) await settle();
  await settle();
  const next = FakeSocket.all.at(-1);
  next.receive(LOGIN_OK);
  assert.deepEqual(of(next, WATCH), [[0x0a, 4, 0xac, 2, 2, 7, 0x10, 1]]);
  presence.unwatch();
  assert.deepEqual(of(next, UNWATCH), [[]]);
  assert.throws(() => presence.watch(0), RangeError);
  client.close();
});

test("many users go in several frames", async () => {
  const { client, presence, socket } = await open();
  presence.watch(...Array.from({ length: 1_200 }, (_, index) => index + 1));
  assert.equal(of(socket, WATCH).length, 3);
  client.close();
});
