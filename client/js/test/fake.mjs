// A WebSocket of which a test is the other end.

const SHORT = new Set([0x01, 0x02, 0x07, 0x0a, 0x0b, 0x0e, 0x0f]);

export class FakeSocket {
  static all = [];
  bufferedAmount = 0;
  written = [];
  closed = false;

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    FakeSocket.all.push(this);
    queueMicrotask(() => this.onopen?.({}));
  }

  send(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const kind = bytes[4];
    const frame = { kind, flags: bytes[5], aux: view.getUint16(6), body: bytes.subarray(SHORT.has(kind) ? 8 : 32) };
    if (!SHORT.has(kind)) {
      frame.id = view.getBigUint64(8);
      frame.peer = view.getBigUint64(16);
      frame.stamp = view.getBigUint64(24);
    }
    this.written.push(frame);
  }

  close() {
    this.closed = true;
  }

  /** The frames come in one message. */
  receive(...frames) {
    this.onmessage?.({ data: new Uint8Array(Buffer.concat(frames)).buffer });
  }

  end(code = 1006) {
    this.onclose?.({ code });
  }

  kinds() {
    return this.written.map((frame) => frame.kind);
  }
}

export function short(kind, aux = 0, body = []) {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(8 + body.length, 0);
  head[4] = kind;
  head.writeUInt16BE(aux, 6);
  return Buffer.concat([head, Buffer.from(body)]);
}

export function long(kind, { flags = 0, aux = 0, id = 0n, peer = 0n, stamp = 0n, body = [] } = {}) {
  const head = Buffer.alloc(32);
  head.writeUInt32BE(32 + body.length, 0);
  head[4] = kind;
  head[5] = flags;
  head.writeUInt16BE(aux, 6);
  [id, peer, stamp].forEach((field, at) => head.writeBigUInt64BE(field, 8 + 8 * at));
  return Buffer.concat([head, Buffer.from(body)]);
}

/** LOGIN_OK with a heartbeat of 30 s: session 1, heartbeat_secs 30. */
export const LOGIN_OK = short(0x81, 0, [0x08, 1, 0x20, 30]);

/** The same for a device that the gateway keeps messages for: with a ticket, and what else is said of the inbox. */
export const loginOk = (...fields) => short(0x81, 0, [0x08, 1, 0x20, 30, 0x32, 3, ..."tkt", ...fields].map((it) => (typeof it === "string" ? it.charCodeAt(0) : it)));

/** SYNC_OK: the end of a page at a position, or of the backlog (aux 0). */
export const syncOk = (aux, { next = 0, complete = false, truncated = false, floor = 0 } = {}) =>
  short(0x89, aux, [0x08, next, 0x10, +complete, 0x18, +truncated, 0x28, floor]);

/** A BYE with a text, and a redirect or a time. */
export function bye(reason, { afterMs = 0, redirect = "", text = "" } = {}) {
  const body = [];
  if (afterMs) body.push(0x08, (afterMs & 127) | 128, afterMs >> 7);
  if (redirect) body.push(0x12, redirect.length, ...Buffer.from(redirect));
  if (text) body.push(0x1a, text.length, ...Buffer.from(text));
  return short(0x88, reason, body);
}
