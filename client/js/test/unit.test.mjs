// The client against a WebSocket of which the test is the other end. Tests are named after the property they prove.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { beforeEach, test } from "node:test";
import { ByeError, Client, ClosedError, FullError, NotConnectedError, UnauthorizedError } from "../dist/index.js";
import { FakeSocket, LOGIN_OK, bye, long, short } from "./fake.mjs";

const [LOGIN, PING, SEND, ACK, LOGOUT] = [0x01, 0x02, 0x03, 0x06, 0x0f];
const [DELIVER, SENT, ERROR] = [0x83, 0x86, 0x8f];

/** Lets everything that is due now happen. */
const settle = () => new Promise((done) => setTimeout(done, 5));

function client(more = {}) {
  const backoff = { minMs: 1, maxMs: 1 };
  return new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff, ...more });
}

/** A client with a session, and the socket it has it over. */
async function open(more) {
  const subject = client(more);
  const connected = subject.connect();
  await settle();
  FakeSocket.all.at(-1).receive(LOGIN_OK);
  await connected;
  return { subject, socket: FakeSocket.all.at(-1) };
}

async function again() {
  const before = FakeSocket.all.length;
  for (let tries = 0; tries < 400 && FakeSocket.all.length === before; tries++) await settle();
  await settle();
  return FakeSocket.all.at(-1);
}

beforeEach(() => (FakeSocket.all = []));

test("the demo of the gateway has the client of this source: npm run demo puts it there", () => {
  const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
  assert.equal(read("../../../gateway/src/http/demo/trunkline.js"), read("../dist/trunkline.full.iife.js"));
});

test("login is the first frame, with all that the options say", async () => {
  const subject = client({ token: "t0k", device: "tab", deviceClass: "web", agent: "x/1", heartbeatSecs: 300 });
  const connected = subject.connect();
  await settle();
  const [socket] = FakeSocket.all;
  assert.deepEqual(socket.protocols, ["trunkline.v1"]);
  const wanted = [0x08, 1, 0x10, 42, 0x1a, 3, ..."t0k", 0x22, 3, ..."tab", 0x2a, 3, ..."web", 0x32, 3, ..."x/1", 0x48, 0xac, 2];
  const bytes = wanted.map((item) => (typeof item === "string" ? item.charCodeAt(0) : item));
  assert.deepEqual([socket.kinds(), [...socket.written[0].body]], [[LOGIN], bytes]);
  assert.equal(subject.state, "connecting");
  socket.receive(LOGIN_OK);
  await connected;
  assert.equal(subject.state, "open");
  await subject.close();
});

test("user 0 is for who has a token by which the gateway is told who it is", async () => {
  assert.throws(() => client({ user: 0 }), RangeError);
  const subject = client({ user: 0, token: "t0k" });
  const connected = subject.connect();
  await settle();
  assert.deepEqual([...FakeSocket.all[0].written[0].body].slice(0, 4), [0x08, 1, 0x1a, 3], "no user is named");
  FakeSocket.all[0].receive(LOGIN_OK);
  await connected;
  await subject.close();
});

test("ids are 64-bit numbers in any of three forms", async () => {
  for (const user of [42, "42", 42n]) assert.doesNotThrow(() => client({ user }));
  for (const user of [0, -1, 1.5, 2 ** 53, "x", 1n << 64n]) assert.throws(() => client({ user }));
  const { subject, socket } = await open();
  await subject.send("18446744073709551615", "x");
  assert.equal(socket.written.at(-1).peer, (1n << 64n) - 1n);
  await assert.rejects(subject.send(2 ** 60, "x"), TypeError);
  await subject.close();
});

test("a message with ACK comes to its fate", async () => {
  const { subject, socket } = await open();
  const fates = ["delivered", "stored", "offline", "overloaded", "denied"];
  for (const [aux, wanted] of fates.entries()) {
    const fate = subject.send(7n, new Uint8Array([1, 2]), { ack: true });
    const { kind, flags, id, peer, body } = socket.written.at(-1);
    assert.deepEqual([kind, flags, peer, [...body]], [SEND, 1, 7n, [1, 2]]);
    socket.receive(long(SENT, { aux, id, peer }));
    assert.equal(await fate, wanted);
  }
  const refused = subject.send(7n, "x", { ack: true });
  socket.receive(long(ERROR, { aux: 20, id: socket.written.at(-1).id, body: [..."no"].map((c) => c.charCodeAt(0)) }));
  await assert.rejects(refused, /error 20: no/);
  await subject.close();
});

test("a message with ACK outlives its connection, one without does not", async () => {
  const subject = client();
  const early = subject.send(7n, "early", { ack: true });
  await assert.rejects(subject.send(7n, "x"), NotConnectedError);
  const connected = subject.connect();
  await settle();
  FakeSocket.all[0].receive(LOGIN_OK);
  await connected;
  const first = FakeSocket.all[0].written.at(-1);
  assert.deepEqual([first.kind, first.flags], [SEND, 1]);
  FakeSocket.all[0].end();
  assert.equal(subject.state, "waiting");
  const late = subject.send(8n, "late", { ack: true });
  const socket = await again();
  socket.receive(LOGIN_OK);
  const [, repeated, second] = socket.written;
  assert.deepEqual([repeated.id, repeated.flags, second.peer, second.flags], [first.id, 5, 8n, 1], "RETRY on what was sent before");
  socket.receive(long(SENT, { id: repeated.id }), long(SENT, { id: second.id, aux: 1 }));
  assert.deepEqual(await Promise.all([early, late]), ["delivered", "stored"]);
  await subject.close();
});

test("what had no fate is there at the end, and a later client sends it again under the same id", async () => {
  const { subject, socket } = await open();
  const settled = subject.send(7n, "a", { ack: true, id: 5n });
  socket.receive(long(SENT, { aux: 0, id: 5n, peer: 7n }));
  assert.equal(await settled, "delivered");
  const fates = [subject.send(7n, "b", { ack: true, id: "6" }), subject.send(8n, "c", { ack: true, noStore: true })];
  await assert.rejects(subject.send(9n, "d", { ack: true, id: 6 }), /6 waits for its fate/);
  await assert.rejects(subject.send(9n, "d", { ack: true, id: 0n }), RangeError);
  await subject.close();
  for (const fate of fates) await assert.rejects(fate, ClosedError);
  const left = subject.unsettled;
  assert.deepEqual(left.map(({ to, group, body, noStore }) => [to, group, String.fromCharCode(...body), noStore]), [[7n, false, "b", false], [8n, false, "c", true]]);
  assert.equal(left[0].id, 6n);
  const { subject: later, socket: another } = await open();
  for (const { id, to, body, noStore } of left) void later.send(to, body, { ack: true, id, noStore, retry: true }).catch(() => {});
  const [b, c] = another.written.filter(({ kind }) => kind === SEND);
  const [ACK_FLAG, NO_STORE, RETRY] = [1, 2, 4];
  assert.deepEqual([b.id, b.flags & (ACK_FLAG | RETRY), c.id, c.flags & NO_STORE], [6n, ACK_FLAG | RETRY, left[1].id, NO_STORE]);
  await later.close();
});

test("what waits is bounded in count and bytes, and what lies in the socket too", async () => {
  const subject = client({ outstanding: { count: 2, bytes: 100 } });
  const waiting = [subject.send(7n, new Uint8Array(60), { ack: true })];
  await assert.rejects(subject.send(7n, new Uint8Array(60), { ack: true }), FullError);
  waiting.push(subject.send(7n, "x", { ack: true }));
  await assert.rejects(subject.send(7n, "x", { ack: true }), FullError);
  await subject.close();
  for (const fate of waiting) await assert.rejects(fate, ClosedError);

  const { subject: other, socket } = await open({ bufferedBytesMax: 1000 });
  socket.bufferedAmount = 1000;
  await assert.rejects(other.send(7n, "x"), FullError);
  const fate = other.send(7n, "x", { ack: true });
  assert.ok(!socket.kinds().includes(SEND));
  socket.bufferedAmount = 0;
  while (!socket.kinds().includes(SEND)) await settle();
  socket.receive(long(SENT, { id: socket.written.at(-1).id }));
  assert.equal(await fate, "delivered");
  await other.close();
});

test("a message is acknowledged as often as it comes, and handed over once", async () => {
  const { subject, socket } = await open();
  const deliver = long(DELIVER, { flags: 1, id: 5n, peer: 7n, stamp: 99n, body: [1] });
  socket.receive(deliver, deliver, long(DELIVER, { flags: 8, id: 6n, peer: 42n, stamp: 100n }));
  const acks = socket.written.filter(({ kind }) => kind === ACK);
  assert.deepEqual(acks.map(({ id, peer, stamp }) => [id, peer, stamp]), Array(2).fill([5n, 7n, 99n]));
  const messages = subject[Symbol.asyncIterator]();
  const { value: first } = await messages.next();
  assert.deepEqual([first.from, first.id, first.stamp, [...first.body], first.self], [7n, 5n, 99n, [1], false]);
  assert.equal((await messages.next()).value.self, true);
  const next = messages.next();
  socket.receive(long(DELIVER, { id: 7n, peer: 7n }));
  assert.equal((await next).value.id, 7n);
  const last = messages.next();
  await subject.close();
  assert.equal((await last).done, true);
  assert.equal(socket.written.at(-1).kind, LOGOUT);
});

test("messages that nobody takes end the connection and come again", async () => {
  const errors = [];
  const { subject, socket } = await open({ inboxMax: 1 });
  subject.on("error", (error) => errors.push(error));
  const deliver = (id) => long(DELIVER, { flags: 1, id, peer: 7n });
  socket.receive(deliver(1n));
  socket.receive(deliver(2n));
  assert.equal(socket.written.filter(({ kind }) => kind === ACK).length, 1);
  assert.ok(errors[0] instanceof FullError && socket.closed && subject.state === "waiting");
  const next = await again();
  next.receive(LOGIN_OK);
  const messages = subject[Symbol.asyncIterator]();
  assert.equal((await messages.next()).value.id, 1n);
  next.receive(deliver(2n));
  assert.equal((await messages.next()).value.id, 2n);
  await subject.close();
});

test("some reasons are final, others are not", async () => {
  for (const reason of [7, 8, 15, 20]) {
    const { subject, socket } = await open();
    socket.receive(bye(reason, { text: "enough" }));
    socket.end(4000 + reason);
    assert.equal(subject.state, "ended");
    await assert.rejects(subject.connect(), (error) => error instanceof ByeError && error.reason === reason && error.message === "enough");
    await assert.rejects(subject.send(7n, "x", { ack: true }), ByeError);
    await assert.rejects(subject[Symbol.asyncIterator]().next(), ByeError);
  }
  // The code of the Close is enough where the BYE was lost.
  const { subject, socket } = await open();
  socket.end(4008);
  assert.equal(subject.state, "ended");
  for (const reason of [9, 10, 12, 13, 14, 16]) {
    const { subject, socket } = await open();
    socket.receive(bye(reason));
    socket.end(4000 + reason);
    assert.equal(subject.state, "waiting");
    (await again()).receive(LOGIN_OK);
    assert.equal(subject.state, "open");
    await subject.close();
  }
});

test("a redirect leads to another host, at once and by the same way", async () => {
  const { subject, socket } = await open({ url: "wss://a.example:444/chat/ws?x=1", backoff: { minMs: 60_000, maxMs: 60_000 } });
  socket.receive(bye(12, { redirect: "b.example:7700", afterMs: 9_000 }));
  socket.end(4012);
  const next = await again();
  assert.equal(next.url, "wss://b.example:7700/chat/ws?x=1");
  await subject.close();
});

test("where a node that was named gives no session, one is looked for at the address given", async () => {
  const url = "wss://a.example/ws";
  const { subject, socket } = await open({ url, backoff: { minMs: 1, maxMs: 1 } });
  socket.receive(bye(12, { redirect: "b.example:7700" }));
  socket.end(4012);
  const named = await again();
  named.receive(LOGIN_OK);
  // It had a session there, so it is tried there once more.
  named.end();
  const gone = await again();
  assert.equal(gone.url, "wss://b.example:7700/ws");
  gone.end();
  assert.equal((await again()).url, url);
  await subject.close();
});

test("nodes that name each other are not asked for ever without a pause", async () => {
  const url = "wss://a.example/ws";
  const { subject, socket } = await open({ url, backoff: { minMs: 60_000, maxMs: 60_000 } });
  let asked = socket;
  for (const redirect of ["b.example", "c.example", "b.example", "c.example", "b.example"]) {
    asked.receive(bye(13, { redirect }));
    asked.end(4013);
    asked = await again();
    assert.equal(asked.url, `wss://${redirect}/ws`);
  }
  asked.receive(bye(13, { redirect: "c.example", afterMs: 150 }));
  asked.end(4013);
  assert.equal((await again()).url, url, "the sixth is not followed");
  await subject.close();
});

test("the server says when to come back", async () => {
  const { subject, socket } = await open({ backoff: { minMs: 60_000, maxMs: 60_000 } });
  socket.receive(bye(12, { afterMs: 150 }));
  socket.end(4012);
  await again();
  assert.equal(subject.state, "connecting");
  await subject.close();
});

test("a token is fetched once at a time, and again when it is refused", async () => {
  let calls = 0;
  const token = async () => `token-${++calls}`;
  const subject = client({ token });
  const connected = subject.connect();
  await settle();
  const [socket] = FakeSocket.all;
  socket.receive(bye(6));
  socket.end(4006);
  const next = await again();
  assert.equal(calls, 2, "another may do");
  next.receive(bye(6, { text: "the token is unreadable" }));
  next.end(4006);
  await assert.rejects(connected, (error) => error instanceof UnauthorizedError && /unreadable/.test(error.message));
  assert.equal(subject.state, "ended");
});

test("a callback that finds nobody authorized is final, and one that fails is not", async () => {
  let failures = 0;
  const failing = client({
    token: async () => {
      if (++failures < 3) throw new Error("the network is down");
      throw new UnauthorizedError("signed out");
    },
  });
  const errors = [];
  failing.on("error", (error) => errors.push(error.message));
  await assert.rejects(failing.connect(), /signed out/);
  assert.deepEqual(errors, ["the network is down", "the network is down"]);
  assert.equal(FakeSocket.all.length, 0);
});

test("a fixed token that is refused is final", async () => {
  const subject = client({ token: "wrong" });
  const connected = subject.connect();
  await settle();
  FakeSocket.all[0].receive(bye(6));
  FakeSocket.all[0].end(4006);
  await assert.rejects(connected, UnauthorizedError);
});

test("bytes that are no frames end the connection, not the client", async () => {
  for (const bytes of [[0, 0, 0, 7, 0x82, 0, 0, 0], [0, 0, 0, 99, 0x82, 0, 0, 0], [1], [0, 0, 0, 8, 0x81, 0, 0]]) {
    const { subject, socket } = await open();
    socket.receive(Buffer.from(bytes));
    assert.ok(socket.closed && subject.state === "waiting", String(bytes));
    await subject.close();
  }
  const { subject, socket } = await open();
  socket.onmessage({ data: "text" });
  assert.ok(socket.closed);
  await subject.close();
});

test("frames of kinds that nobody knows are skipped", async () => {
  const { subject, socket } = await open();
  socket.receive(short(0x8c), long(0x84, { body: [1, 2, 3] }), short(0xff, 0, [1, 2]), long(DELIVER, { id: 1n, peer: 7n }));
  assert.equal((await subject[Symbol.asyncIterator]().next()).value.id, 1n);
  await subject.close();
});

test("a silent session is asked for a sign of life", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const subject = client();
  void subject.connect();
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  const [socket] = FakeSocket.all;
  socket.receive(LOGIN_OK);
  t.mock.timers.tick(15_000);
  assert.equal(socket.kinds().at(-1), PING);
  for (let half = 0; half < 3; half++) t.mock.timers.tick(15_000);
  assert.equal(subject.state, "waiting", "nothing was heard for two heartbeats");
  assert.ok(socket.closed);
  await subject.close();
});

test("a timer that comes late, as that of a hidden page, ends no session", async (t) => {
  let now = 1_000;
  t.mock.method(Date, "now", () => now);
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const subject = client();
  void subject.connect();
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  const [socket] = FakeSocket.all;
  socket.receive(LOGIN_OK);
  for (let times = 1; times <= 10; times++) {
    // The timer of half a heartbeat runs when three heartbeats are over.
    now += 90_000;
    t.mock.timers.tick(15_000);
    assert.equal(subject.state, "open", `after the timer ran ${times} times`);
    assert.equal(socket.kinds().filter((kind) => kind === PING).length, times);
    socket.receive(short(0x82));
  }
  await subject.close();
});

test("who sends and hears nothing is on a dead connection", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const subject = client();
  void subject.connect();
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  const [socket] = FakeSocket.all;
  socket.receive(LOGIN_OK);
  for (let second = 0; second < 75; second++) {
    await subject.send(7n, "x").catch(() => {});
    t.mock.timers.tick(1_000);
  }
  assert.ok(socket.closed && socket.kinds().includes(PING));
  await subject.close();
});
