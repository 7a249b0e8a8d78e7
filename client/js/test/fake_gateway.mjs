// A services' port of which a test is the gateway.

import { once } from "node:events";
import { createServer } from "node:net";
import { long, short } from "./fake.mjs";

export const kind = {
  PING: 0x02, LOGOUT: 0x0f, SERVE: 0x20, ANSWER: 0x21, PUSH_TO: 0x22, WINDOW: 0x23,
  PONG: 0x82, BYE: 0x88, ERROR: 0x8f, SERVE_OK: 0xa0, REQUEST: 0xa1, CANCEL: 0xa2, PUSHED: 0xa3,
};
const SHORT = [kind.PING, kind.LOGOUT, kind.SERVE, kind.WINDOW];

const varint = (value) => (value > 127 ? [(value & 127) | 128, ...varint(Math.floor(value / 128))] : [value]);

/** SERVE_OK of a node of so many shards. */
export const serveOk = ({ node = "n1", shards = 1, heartbeatSecs = 30, maxFrame = 65_536 } = {}) =>
  short(kind.SERVE_OK, 0, [0x12, node.length, ...Buffer.from(node), 0x20, ...varint(shards), 0x28, ...varint(heartbeatSecs), 0x30, ...varint(maxFrame)]);

/** A head with a device "phone", of session 300, with a time in milliseconds; to be put in front of a body. */
export const head = (timeoutMs) => {
  const fields = [0x0a, 5, ...Buffer.from("phone"), 0x18, ...varint(300), 0x20, ...varint(timeoutMs)];
  return Buffer.from([0, fields.length, ...fields]);
};

/** One link, from the gateway's side. */
class Link {
  frames = [];
  #waiting = [];
  #held = Buffer.alloc(0);

  constructor(socket) {
    this.socket = socket;
    this.closed = once(socket, "close");
    socket.setNoDelay(true);
    socket.on("error", () => {});
    socket.on("data", (piece) => this.#take(piece));
    socket.on("close", () => this.#look());
  }

  #take(piece) {
    this.#held = Buffer.concat([this.#held, piece]);
    while (this.#held.length >= 8 && this.#held.length >= this.#held.readUInt32BE(0)) {
      const bytes = this.#held.subarray(0, this.#held.readUInt32BE(0));
      this.#held = this.#held.subarray(bytes.length);
      const isShort = SHORT.includes(bytes[4]);
      const frame = { kind: bytes[4], flags: bytes[5], aux: bytes.readUInt16BE(6), body: bytes.subarray(isShort ? 8 : 32), text: bytes.toString("utf8", isShort ? 8 : 32) };
      if (!isShort) Object.assign(frame, { id: bytes.readBigUInt64BE(8), peer: bytes.readBigUInt64BE(16) });
      this.frames.push(frame);
    }
    this.#look();
  }

  #look() {
    this.#waiting = this.#waiting.filter(({ wanted, resolve, reject }) => {
      const at = this.frames.findIndex((frame) => frame.kind === wanted);
      if (at >= 0) resolve(this.frames.splice(at, 1)[0]);
      else if (this.socket.destroyed) reject(new Error(`the link ended before kind 0x${wanted.toString(16)}`));
      else return true;
    });
  }

  /** The next frame of this kind; those of others stay. */
  next(wanted) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ wanted, resolve, reject });
      this.#look();
    });
  }

  send(...frames) {
    this.socket.write(Buffer.concat(frames));
  }

  /** Resolves when the worker has seen all that was sent before: the answer to a request of a service that it does not serve is behind it. */
  async settle() {
    this.send(long(kind.REQUEST, { aux: 999, id: 0xfffn }));
    for (;;) {
      const answer = await this.next(kind.ANSWER);
      if (answer.id === 0xfffn) return;
      this.frames.push(answer);
    }
  }
}

export class FakeGateway {
  #server = createServer((socket) => this.#accepted(socket));
  #links = [];
  #takers = [];

  static async start(port = 0) {
    const gateway = new FakeGateway();
    gateway.#server.listen(port, "127.0.0.1");
    await once(gateway.#server, "listening");
    return gateway;
  }

  get port() {
    return this.#server.address().port;
  }

  get address() {
    return `127.0.0.1:${this.port}`;
  }

  #accepted(socket) {
    const link = new Link(socket);
    const taker = this.#takers.shift();
    if (taker) taker(link);
    else this.#links.push(link);
  }

  /** The next link that connects, behind its SERVE; it has been answered with this. */
  async link(answer = serveOk()) {
    const link = this.#links.shift() ?? (await new Promise((resolve) => this.#takers.push(resolve)));
    link.serve = await link.next(kind.SERVE);
    if (answer) link.send(answer);
    return link;
  }

  async stop() {
    this.#server.close();
  }
}
