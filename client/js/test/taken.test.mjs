// Messages that are acknowledged when the work on them is done. The test is the other end of the WebSocket.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { ByeError, Client } from "../dist/index.js";
import { Inbox } from "../dist/inbox.js";
import { FakeSocket, LOGIN_OK, bye, loginOk, long, syncOk } from "./fake.mjs";

const [ACK, DELIVER, PUSH] = [0x06, 0x83, 0x87];
const [FLAG_ACK, AGAIN, REPLAY] = [1, 2, 4];

const settle = () => new Promise((done) => setTimeout(done, 5));

async function open({ answer = loginOk(), ...more } = {}) {
  const subject = new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff: { minMs: 1, maxMs: 1 }, ...more });
  const inbox = new Inbox(subject)[Symbol.asyncIterator]();
  const connected = subject.connect();
  await settle();
  FakeSocket.all.at(-1).receive(answer);
  await connected;
  return { subject, inbox, socket: FakeSocket.all.at(-1) };
}

async function again() {
  const before = FakeSocket.all.length;
  for (let tries = 0; tries < 400 && FakeSocket.all.length === before; tries++) await settle();
  await settle();
  return FakeSocket.all.at(-1);
}

const message = (id, flags = FLAG_ACK) => long(DELIVER, { flags, id: BigInt(id), peer: 7n, stamp: BigInt(id) });
const acks = (socket) => socket.written.filter(({ kind }) => kind === ACK).map(({ id, flags }) => [Number(id), flags]);
const next = async (inbox) => Number((await inbox.next()).value.id);

beforeEach(() => (FakeSocket.all = []));

test("a message is acknowledged when the next one is asked for, and not before", async () => {
  const { subject, inbox, socket } = await open();
  socket.receive(message(20), message(21), message(22, 0), message(23));
  assert.equal(await next(inbox), 20);
  await settle();
  assert.deepEqual(acks(socket), []);
  assert.equal(await next(inbox), 21);
  assert.deepEqual(acks(socket), [[20, 0]]);
  assert.equal(await next(inbox), 22);
  assert.equal(await next(inbox), 23);
  assert.deepEqual(acks(socket), [[20, 0], [21, 0]], "one without ACK wants none");
  // One that comes while it is awaited.
  const awaited = next(inbox);
  await settle();
  assert.deepEqual(acks(socket).at(-1), [23, 0]);
  socket.receive(message(24));
  assert.equal(await awaited, 24);
  await inbox.return();
  assert.equal(acks(socket).length, 3, "whoever leaves is not done with it");
  await subject.close();
});

test("what comes again is known, and acknowledged when that is due", async () => {
  const { subject, inbox, socket } = await open();
  socket.receive(message(20), message(21));
  assert.equal(await next(inbox), 20);
  socket.receive(message(20, FLAG_ACK | AGAIN));
  assert.deepEqual(acks(socket), [], "it is being worked on");
  socket.end();
  const later = await again();
  later.receive(loginOk(), message(20, FLAG_ACK | REPLAY), message(21, FLAG_ACK | REPLAY), syncOk(0));
  assert.equal(await next(inbox), 21);
  later.receive(message(20, FLAG_ACK | AGAIN));
  assert.deepEqual(acks(later), [[20, 0], [20, 0]]);
  const awaited = next(inbox);
  later.receive(message(22));
  assert.equal(await awaited, 22, "each once");
  await subject.close();
});

test("an ACK for which there is no session is made up for when the message comes again", async () => {
  const { subject, inbox, socket } = await open();
  socket.receive(message(20));
  assert.equal(await next(inbox), 20);
  socket.end();
  const awaited = next(inbox);
  const later = await again();
  later.receive(LOGIN_OK, message(20, FLAG_ACK | AGAIN), message(21));
  assert.equal(await awaited, 21);
  assert.deepEqual(acks(later), [[20, 0]]);
  await subject.close();
});

test("a page of the history goes to who asked for it, and a push of a service comes as a message", async () => {
  const { subject, inbox, socket } = await open();
  socket.receive(syncOk(0));
  const page = subject.history();
  await settle();
  socket.receive(message(20, FLAG_ACK | REPLAY), syncOk(1, { next: 20, complete: true }));
  assert.deepEqual((await page).messages.map(({ id }) => Number(id)), [20]);
  socket.receive(long(PUSH, { flags: FLAG_ACK, aux: 9, id: 30n, stamp: 30n }));
  const { value } = await inbox.next();
  assert.deepEqual([value.service, Number(value.id)], [9, 30]);
  await subject.close();
});

test("what nobody takes ends the connection unacknowledged, and comes again", async () => {
  const { subject, inbox, socket } = await open({ inboxMax: 2 });
  const told = [];
  subject.on("error", (error) => told.push(error.message));
  socket.receive(message(20), message(21), message(22));
  assert.ok(socket.closed && told[0].includes("nobody takes the messages that come"), told);
  assert.deepEqual(acks(socket), []);
  assert.equal(await next(inbox), 20);
  const later = await again();
  later.receive(loginOk(), ...[20, 21, 22].map((id) => message(id, FLAG_ACK | REPLAY)), syncOk(0));
  assert.equal(await next(inbox), 21);
  assert.equal(await next(inbox), 22);
  assert.deepEqual(acks(later), [[20, 0], [21, 0]]);
  await subject.close();
});

test("it ends with the client: quietly when that was closed, and with the reason otherwise", async () => {
  const one = await open();
  const awaited = one.inbox.next();
  await settle();
  await one.subject.close();
  assert.deepEqual([(await awaited).done, (await one.inbox.next()).done], [true, true]);
  const other = await open();
  other.socket.receive(message(20), bye(8));
  other.socket.end(4008);
  assert.equal(await next(other.inbox), 20, "what has come can be taken");
  await assert.rejects(other.inbox.next(), ByeError);
});
