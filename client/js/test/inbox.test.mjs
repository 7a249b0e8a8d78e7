// A gateway that keeps messages: what comes after a login, each once, and what can be looked up. The test is the other end of the WebSocket.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Client, NotConnectedError } from "../dist/index.js";
import { FakeSocket, LOGIN_OK, loginOk, long, short, syncOk } from "./fake.mjs";

const [SEND, ACK, SYNC, DELIVER, SENT, ERROR] = [0x03, 0x06, 0x07, 0x83, 0x86, 0x8f];
const [FLAG_ACK, CUMULATIVE, AGAIN, NO_STORE, RETRY, REPLAY] = [1, 1, 2, 2, 4, 4];

const settle = () => new Promise((done) => setTimeout(done, 5));

/** A client with a session, and the socket it has it over. */
async function open({ answer = loginOk(), ...more } = {}) {
  const subject = new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff: { minMs: 1, maxMs: 1 }, ...more });
  const connected = subject.connect();
  await settle();
  FakeSocket.all.at(-1).receive(answer);
  await connected;
  return { subject, socket: FakeSocket.all.at(-1) };
}

async function again() {
  const before = FakeSocket.all.length;
  for (let tries = 0; tries < 400 && FakeSocket.all.length === before; tries++) await settle();
  await settle();
  return FakeSocket.all.at(-1);
}

const live = (stamp) => long(DELIVER, { flags: FLAG_ACK, id: BigInt(stamp), peer: 7n, stamp: BigInt(stamp) });
const kept = (stamp) => long(DELIVER, { flags: FLAG_ACK | REPLAY, id: BigInt(stamp), peer: 7n, stamp: BigInt(stamp) });
const acks = (socket) => socket.written.filter(({ kind }) => kind === ACK).map(({ stamp, flags }) => [Number(stamp), flags]);
const syncs = (socket) => socket.written.filter(({ kind }) => kind === SYNC);

/** The stamps of what waits to be taken. */
async function taken(subject, count) {
  const messages = subject[Symbol.asyncIterator]();
  const stamps = [];
  for (let at = 0; at < count; at++) stamps.push(Number((await messages.next()).value.stamp));
  return stamps;
}

beforeEach(() => (FakeSocket.all = []));

test("what comes again is acknowledged alone, since nobody can tell which copy an ACK for all before it would be of", async () => {
  const { subject, socket } = await open();
  socket.receive(live(20), live(21));
  assert.deepEqual(acks(socket), [[21, CUMULATIVE]]);
  socket.receive(live(22), long(DELIVER, { flags: FLAG_ACK | AGAIN, id: 20n, peer: 7n, stamp: 20n }));
  assert.deepEqual(acks(socket).slice(1), [[22, 0], [20, 0]]);
  socket.receive(live(23), live(24));
  assert.deepEqual(acks(socket).slice(3), [[24, CUMULATIVE]]);
  await subject.close();
});

test("a login tells where the device stands, also that of a later client", async () => {
  const { subject, socket } = await open({ ephemeral: true, window: 64, resume: "9.YWI=" });
  // resume "ab", last_stamp 9, window 64, ephemeral.
  const body = socket.written[0].body;
  assert.deepEqual([...body].slice(-10), [0x3a, 2, 97, 98, 0x40, 9, 0x50, 64, 0x58, 1]);
  assert.deepEqual(subject.session, { registered: true, resumed: false, pending: 0, truncated: false });
  socket.receive(live(20));
  assert.equal(subject.resume, `20.${btoa("tkt")}`);
  socket.end();
  // The store does not answer in time: the ticket from before is kept.
  let next = await again();
  assert.ok(Buffer.from(next.written[0].body).includes(Buffer.from([0x3a, 3, ...Buffer.from("tkt"), 0x40, 20])));
  next.receive(LOGIN_OK);
  assert.deepEqual([subject.session.registered, subject.resume], [false, `20.${btoa("tkt")}`]);
  next.end();
  next = await again();
  next.receive(loginOk(0x38, 1, 0x48, 5));
  assert.deepEqual(subject.session, { registered: true, resumed: true, pending: 5, truncated: false });
  await subject.close();
  for (const resume of ["", "nonsense", "1.%", "x.YWI="]) assert.doesNotThrow(() => new Client({ url: "ws://a", user: 1, resume }));
});

test("a backlog is told from what comes now, and its end is told", async () => {
  const { subject, socket } = await open();
  let ends = 0;
  subject.on("caughtUp", () => ends++);
  socket.receive(kept(11), live(13), kept(12));
  assert.equal(ends, 0);
  socket.receive(syncOk(0, { next: 12, complete: true }));
  socket.receive(syncOk(0, { next: 12, complete: true }));
  assert.equal(ends, 1);
  const messages = subject[Symbol.asyncIterator]();
  for (const replay of [true, false, true]) assert.equal((await messages.next()).value.replay, replay);
  await subject.close();
});

test("each message is handed over once, however often the connection breaks", async () => {
  const { subject, socket } = await open();
  socket.receive(kept(1), kept(2));
  socket.end();
  const next = await again();
  next.receive(loginOk());
  next.receive(kept(1), kept(2), kept(3), syncOk(0));
  assert.deepEqual(acks(next), [[3, CUMULATIVE]]);
  assert.deepEqual(await taken(subject, 3), [1, 2, 3]);
  next.receive(live(4));
  assert.deepEqual(await taken(subject, 1), [4]);
  await subject.close();
});

test("one ACK is for all that came together, where the gateway has a cursor", async () => {
  const { subject, socket } = await open();
  socket.receive(live(1));
  socket.receive(live(2), live(3), live(4));
  assert.deepEqual(acks(socket), [[1, 0], [4, CUMULATIVE]]);
  await subject.close();
  const { subject: other, socket: plain } = await open({ answer: LOGIN_OK });
  plain.receive(live(2), live(3));
  assert.deepEqual(acks(plain), [[2, 0], [3, 0]]);
  await other.close();
});

test("a gap is told once", async () => {
  const { subject, socket } = await open();
  const gaps = [];
  subject.on("gap", (floor) => gaps.push(Number(floor)));
  socket.end();
  const next = await again();
  next.receive(loginOk(0x50, 7, 0x60, 1));
  next.receive(syncOk(0, { truncated: true, floor: 7 }));
  assert.deepEqual([gaps, subject.session.truncated], [[7], true]);
  next.receive(syncOk(0, { truncated: true, floor: 20 }));
  assert.deepEqual(gaps, [7, 20]);
  await subject.close();
});

test("history comes page by page beside the backlog, and is not acknowledged", async () => {
  const { subject, socket } = await open();
  const first = subject.history({ limit: 3 });
  const second = subject.history({ after: 6n, sinceMs: 0 });
  assert.deepEqual(syncs(socket).map(({ aux, body }) => [aux, ...body]), [[1, 0x18, 3]], "one at a time");
  socket.receive(kept(5), kept(6), kept(4), kept(5), kept(6), kept(7), live(50), syncOk(0));
  assert.deepEqual(acks(socket), [[50, 0]], "not for what may be of the backlog");
  socket.receive(syncOk(1, { next: 6 }));
  const page = await first;
  assert.deepEqual([page.messages.map(({ stamp }) => Number(stamp)), page.next, page.complete], [[4, 5, 6], 6n, false]);
  assert.deepEqual(acks(socket).slice(1), [[5, 0], [6, 0], [7, 0]]);
  assert.deepEqual(await taken(subject, 4), [50, 5, 6, 7]);
  assert.deepEqual(syncs(socket).map(({ aux, body }) => [aux, ...body])[1], [2, 0x08, 6]);
  socket.receive(syncOk(2, { next: 6, complete: true, truncated: true, floor: 8 }));
  const last = await second;
  assert.deepEqual([last.messages, last.complete, last.truncated, last.floor], [[], true, true, 8n]);
  await subject.close();
});

test("a page that does not come is an error", async () => {
  const { subject, socket } = await open();
  const [one, two] = [subject.history(), subject.history()];
  const errors = [];
  subject.on("error", (error) => errors.push(error));
  socket.receive(long(ERROR, { aux: 21 }));
  await assert.rejects(one, /error 21/);
  socket.end();
  await assert.rejects(two, NotConnectedError);
  await assert.rejects(subject.history(), NotConnectedError);
  assert.deepEqual(errors, []);
  (await again()).receive(loginOk());
  FakeSocket.all.at(-1).receive(long(ERROR, { aux: 21 }));
  assert.equal(errors.length, 1, "nothing was asked");
  await subject.close();
});

test("a gateway that replays without end is left", async () => {
  const { subject, socket } = await open();
  const page = subject.history();
  for (let stamp = 1; stamp < 10_000 && !socket.closed; stamp++) socket.receive(kept(stamp));
  assert.ok(socket.closed && subject.state === "waiting");
  await assert.rejects(page, NotConnectedError);
  await subject.close();
});

test("a message that must not be stored says so whenever it is sent", async () => {
  const { subject, socket } = await open();
  const fate = subject.send(7n, "typing", { ack: true, noStore: true });
  assert.equal(socket.written.at(-1).flags, FLAG_ACK | NO_STORE);
  socket.end();
  const next = await again();
  next.receive(loginOk());
  const { kind, flags, id } = next.written.at(-1);
  assert.deepEqual([kind, flags], [SEND, FLAG_ACK | NO_STORE | RETRY]);
  next.receive(long(SENT, { id, aux: 2 }));
  assert.equal(await fate, "offline");
  await subject.close();
});
