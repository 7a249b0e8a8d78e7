// Calls and pushes of services, against a WebSocket of which the test is the other end.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { CallError, Client, NotConnectedError } from "../dist/index.js";
import { FakeSocket, LOGIN_OK, long } from "./fake.mjs";

const [CALL, ACK, REPLY, PUSH, ERROR] = [0x05, 0x06, 0x85, 0x87, 0x8f];
const settle = () => new Promise((done) => setTimeout(done, 5));
const text = (body) => new TextDecoder().decode(body);

async function open() {
  const subject = new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff: { minMs: 1, maxMs: 1 } });
  const connected = subject.connect();
  await settle();
  const socket = FakeSocket.all.at(-1);
  socket.receive(LOGIN_OK);
  await connected;
  return { subject, socket };
}

beforeEach(() => (FakeSocket.all = []));

test("a call gets the answer of its id, in parts if it comes so", async () => {
  const { subject, socket } = await open();
  const [first, second] = [subject.call(7, "one"), subject.call(8, "two", { safe: true })];
  const [one, two] = socket.written.slice(-2);
  assert.deepEqual([one.kind, one.aux, one.flags, text(one.body)], [CALL, 7, 0, "one"]);
  assert.deepEqual([two.kind, two.aux, two.flags, text(two.body)], [CALL, 8, 1, "two"]);
  socket.receive(long(REPLY, { flags: 1, id: two.id, body: Buffer.from("part") }));
  socket.receive(long(REPLY, { aux: 300, id: two.id, body: Buffer.from("end") }));
  socket.receive(long(REPLY, { id: one.id, body: Buffer.from("done") }));
  const [a, b] = [await first, await second];
  assert.deepEqual([a.status, text(a.body), a.parts.length], [0, "done", 0]);
  assert.deepEqual([b.status, text(b.body), b.parts.map(text)], [300, "end", ["part"]]);
  await subject.close();
});

test("a call without an answer says whether it may have been carried out", async () => {
  const { subject, socket } = await open();
  const ends = async (code, frame) => {
    const call = subject.call(7);
    socket.receive(frame(socket.written.at(-1).id));
    const error = await call.then(assert.fail, (error) => error);
    assert.ok(error instanceof CallError);
    assert.deepEqual([error.code, error.mayBeDone], code);
  };
  await ends([17, false], (id) => long(REPLY, { aux: 17, id }));
  await ends([24, true], (id) => long(REPLY, { aux: 24, id }));
  await ends([21, false], (id) => long(ERROR, { aux: 21, id }));
  const call = subject.call(7);
  socket.end();
  await assert.rejects(call, (error) => error.code === 25 && error.mayBeDone);
  await assert.rejects(subject.call(7), NotConnectedError);
  await assert.rejects(subject.call(0), RangeError);
  await subject.close();
});

test("a push is a message of a service, and acknowledged like one of a user", async () => {
  const { subject, socket } = await open();
  socket.receive(long(PUSH, { flags: 1, aux: 7, id: 9n, stamp: 5n, body: Buffer.from("news") }));
  const { value } = await subject[Symbol.asyncIterator]().next();
  assert.deepEqual([value.service, value.id, text(value.body)], [7, 9n, "news"]);
  assert.deepEqual([socket.written.at(-1).kind, socket.written.at(-1).stamp], [ACK, 5n]);
  await subject.close();
});
