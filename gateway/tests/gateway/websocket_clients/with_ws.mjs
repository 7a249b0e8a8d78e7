// Through the library ws: node with_ws.mjs ws://HOST:PORT/ws. Says "talked", and then how it was sent away.

import assert from "node:assert/strict";
import { WebSocket } from "ws";

const LOGIN = 0x01, SEND = 0x03, ACK = 0x06, LOGOUT = 0x0f;
const LOGIN_OK = 0x81, DELIVER = 0x83, SENT = 0x86, BYE = 0x88;

function short(kind, body = Buffer.alloc(0)) {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(8 + body.length, 0);
  head[4] = kind;
  return Buffer.concat([head, body]);
}

function long(kind, { flags = 0, id = 0n, peer = 0n, stamp = 0n, body = Buffer.alloc(0) }) {
  const head = Buffer.alloc(32);
  head.writeUInt32BE(32 + body.length, 0);
  head[4] = kind;
  head[5] = flags;
  [id, peer, stamp].forEach((field, at) => head.writeBigUInt64BE(field, 8 + 8 * at));
  return Buffer.concat([head, body]);
}

/** One connection: frames come out one by one, then how it was closed. */
class Session {
  #frames = [];
  #waiting = [];

  constructor(device, url = process.argv[2]) {
    this.socket = new WebSocket(url, ["trunkline.v1"], { perMessageDeflate: true });
    this.closed = new Promise((done) => this.socket.on("close", done));
    this.socket.on("message", (message, binary) => {
      assert(binary, "messages are binary");
      for (let at = 0; at < message.length; ) {
        const length = message.readUInt32BE(at);
        assert(length >= 8 && length <= message.length - at, "a message holds whole frames");
        this.#take(message.subarray(at, (at += length)));
      }
    });
    const name = Buffer.from(device);
    this.socket.on("open", () => {
      assert.equal(this.socket.protocol, "trunkline.v1");
      assert.equal(this.socket.extensions, "", "no extension is accepted");
      this.socket.send(short(LOGIN, Buffer.concat([Buffer.from([0x08, 1, 0x10, 7, 0x22, name.length]), name])));
    });
  }

  #take(frame) {
    const next = this.#waiting.shift();
    if (next) next(frame);
    else this.#frames.push(frame);
  }

  async expect(kind) {
    const frame = this.#frames.shift() ?? (await new Promise((done) => this.#waiting.push(done)));
    assert.equal(frame[4], kind);
    return frame;
  }
}

/** One session sends to the other, and hears what became of it. */
async function talk(first, second) {
  for (const size of [0, 100, 200, 60_000]) {
    const body = Buffer.from(Array.from({ length: size }, (_, at) => at % 251));
    first.socket.send(long(SEND, { flags: 1, id: BigInt(size + 1), peer: 7n, body }));
    const deliver = await second.expect(DELIVER);
    assert.deepEqual(deliver.subarray(32), body);
    const [id, peer, stamp] = [8, 16, 24].map((at) => deliver.readBigUInt64BE(at));
    assert.deepEqual([id, peer], [BigInt(size + 1), 7n]);
    second.socket.send(long(ACK, { id, peer, stamp }));
    const sent = await first.expect(SENT);
    assert.deepEqual([sent.readUInt16BE(6), sent.readBigUInt64BE(8)], [0, id]);
  }
}

/** Until a user's home takes messages: while nodes come and go it may say for a moment that it cannot (3). */
async function settle(session) {
  for (let id = 1_000_000n; ; id++) {
    session.socket.send(long(SEND, { flags: 1, id, peer: 7n }));
    const sent = await session.expect(SENT);
    if (sent.readUInt16BE(6) !== 3) return;
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** Where a BYE sends its client to; empty if nowhere in particular. Before the address there may be a number. */
function redirect(bye) {
  let at = 8;
  if (bye[at] === 0x08) {
    at++;
    while (bye[at] & 0x80) at++;
    at++;
  }
  return bye[at] === 0x12 ? bye.toString("utf8", at + 2, at + 2 + bye[at + 1]) : "";
}

const [first, second, third] = ["first", "second", "third"].map((device) => new Session(device));
for (const session of [first, second, third]) await session.expect(LOGIN_OK);
third.socket.send(short(LOGOUT).subarray(0, 3), { fin: false });
third.socket.send(short(LOGOUT).subarray(3), { fin: true });
assert.equal(await third.closed, 1000);
await talk(first, second);
const pong = new Promise((done) => first.socket.once("pong", done));
first.socket.ping("are you there?");
assert.equal((await pong).toString(), "are you there?");
console.log("talked");
let bye;
for (const session of [first, second]) {
  bye = await session.expect(BYE);
  console.log("bye", bye.readUInt16BE(6), await session.closed);
}
const there = redirect(bye);
if (there) {
  const sessions = [];
  for (const device of ["first", "second"]) {
    sessions.push(new Session(device, `ws://${there}/ws`));
    await sessions.at(-1).expect(LOGIN_OK);
    if (device === "first") await settle(sessions[0]);
  }
  await talk(...sessions);
  console.log("talked there");
  sessions.forEach((session) => session.socket.close());
}
