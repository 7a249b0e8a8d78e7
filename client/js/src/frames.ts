/** Frames as PROTOCOL.md gives them: a header of 8 or 32 bytes, big-endian, and a body. */

export const Kind = {
  LOGIN: 0x01,
  PING: 0x02,
  SEND: 0x03,
  GROUP_SEND: 0x04,
  CALL: 0x05,
  ACK: 0x06,
  SYNC: 0x07,
  GROUP_JOIN: 0x08,
  GROUP_LEAVE: 0x09,
  WATCH: 0x0a,
  UNWATCH: 0x0b,
  MARK: 0x0d,
  RENEW: 0x0e,
  LOGOUT: 0x0f,
  LOGIN_OK: 0x81,
  PONG: 0x82,
  DELIVER: 0x83,
  GROUP_DELIVER: 0x84,
  REPLY: 0x85,
  SENT: 0x86,
  PUSH: 0x87,
  BYE: 0x88,
  SYNC_OK: 0x89,
  PRESENCE: 0x8a,
  GROUP_OK: 0x8b,
  HEADS: 0x8c,
  ERROR: 0x8f,
} as const;

/** SEND: to be answered with SENT. DELIVER: to be answered with ACK. */
export const FLAG_ACK = 0x01;
/** SEND: never to a store. */
export const FLAG_NO_STORE = 0x02;
/** ACK: of this message and of all that came before it on the connection. */
export const FLAG_CUMULATIVE = 0x01;
/** DELIVER: sent before. */
export const FLAG_AGAIN = 0x02;
/** DELIVER: from the store. */
export const FLAG_REPLAY = 0x04;
/** SEND: this id was sent before. */
export const FLAG_RETRY = 0x04;
/** CALL: it may be carried out more than once. */
export const FLAG_SAFE = 0x01;
/** REPLY: another one follows. */
export const FLAG_MORE = 0x01;
/** What service n pushes comes from user SERVICE_USERS + n. */
export const SERVICE_USERS = (1n << 64n) - 65_536n;
/** DELIVER: the user's own message, sent from another of its devices. */
export const FLAG_SELF = 0x08;

const SHORT = 8;
const LONG = 32;

export interface Frame {
  kind: number;
  flags: number;
  aux: number;
  id: bigint;
  peer: bigint;
  stamp: bigint;
  body: Uint8Array;
}

/** A frame of a kind with the short header. */
export function short(kind: number, aux = 0, body: Uint8Array = new Uint8Array()): Uint8Array {
  return put(kind, 0, aux, SHORT, body).bytes;
}

/** A frame of a kind with the long header. */
export function long(kind: number, flags: number, id: bigint, peer: bigint, stamp: bigint, body?: Uint8Array, aux = 0): Uint8Array {
  const { bytes, view } = put(kind, flags, aux, LONG, body ?? new Uint8Array());
  view.setBigUint64(8, id);
  view.setBigUint64(16, peer);
  view.setBigUint64(24, stamp);
  return bytes;
}

function put(kind: number, flags: number, aux: number, header: number, body: Uint8Array) {
  const bytes = new Uint8Array(header + body.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length);
  view.setUint8(4, kind);
  view.setUint8(5, flags);
  view.setUint16(6, aux);
  bytes.set(body, header);
  return { bytes, view };
}

/** Whether frames of this kind have the short header; kinds that nobody knows are skipped, so theirs does not matter. */
function isShort(kind: number): boolean {
  return kind === Kind.LOGIN_OK || kind === Kind.PONG || kind === Kind.BYE || kind === Kind.SYNC_OK || kind === Kind.PRESENCE || kind === Kind.HEADS;
}

/** The frames of one message, which holds whole ones only. Throws a RangeError where it does not. */
export function* frames(message: ArrayBuffer): Generator<Frame> {
  const view = new DataView(message);
  for (let at = 0; at < message.byteLength; ) {
    const length = view.getUint32(at);
    const kind = view.getUint8(at + 4);
    const header = isShort(kind) ? SHORT : LONG;
    if (length < SHORT || length > message.byteLength - at) throw new RangeError(`a frame of ${length} bytes`);
    const long = header === LONG && length >= LONG;
    const field = (offset: number) => (long ? view.getBigUint64(at + offset) : 0n);
    yield {
      kind,
      flags: view.getUint8(at + 5),
      aux: view.getUint16(at + 6),
      id: field(8),
      peer: field(16),
      stamp: field(24),
      body: new Uint8Array(message, at + Math.min(header, length), length - Math.min(header, length)),
    };
    at += length;
  }
}
