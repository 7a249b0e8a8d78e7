/** What goes over the services' port beside the frames that clients have as well: kinds, flags, and frames out of a stream of bytes. */

import { Kind, type Frame } from "./frames.js";
import { decode, encode } from "./proto.js";

export const ServiceKind = {
  SERVE: 0x20,
  ANSWER: 0x21,
  PUSH_TO: 0x22,
  WINDOW: 0x23,
  SERVE_OK: 0xa0,
  REQUEST: 0xa1,
  CANCEL: 0xa2,
  PUSHED: 0xa3,
} as const;

/** ANSWER: another part follows. */
export const FLAG_MORE = 0x01;
/** ANSWER: nothing was done, and nothing will be. */
export const FLAG_NOT_BEGUN = 0x02;
/** REQUEST: another worker may have carried it out. */
export const FLAG_AGAIN = 0x01;
/** REQUEST: the caller wants no answer; the gateway does. */
export const FLAG_NO_REPLY = 0x02;
/** REQUEST: the body begins with a `CallHead`. */
export const FLAG_HEAD = 0x04;

/** Bytes in front of the body of ANSWER and PUSH_TO. */
export const HEADER_LONG = 32;
const HEADER_SHORT = 8;

/** What a worker says of itself. */
export interface Serve {
  name: string;
  token: string;
  offers: { service: number; weight: number; backup: boolean }[];
  /** Counted from 1. */
  shard: number;
  window: number;
  heads: boolean;
}

export interface ServeOk {
  node: string;
  shards: number;
  heartbeatSecs: number;
  maxFrame: number;
}

/** Who calls, and how long the caller still waits. */
export interface CallHead {
  device: string;
  deviceClass: string;
  session: bigint;
  /** Milliseconds that the gateway waited for the answer from when it sent the request. */
  timeoutMs: number;
  /** As of W3C Trace Context; empty where the caller has given none. */
  traceparent: string;
  /** `peer` of the CALL, 0 where it has none. */
  routingKey: bigint;
}

const utf8 = new TextDecoder();
const number = (value: bigint | Uint8Array | undefined) => (typeof value === "bigint" ? value : 0n);
const string = (value: bigint | Uint8Array | undefined) => (value instanceof Uint8Array ? utf8.decode(value) : "");

export function encodeServe({ name, token, offers, shard, window, heads }: Serve): Uint8Array {
  return encode([
    [1, 1],
    [2, name],
    [3, token],
    ...offers.map(({ service, weight, backup }): [number, Uint8Array] => [
      4,
      encode([
        [1, service],
        [2, weight],
        [3, Number(backup)],
      ]),
    ]),
    [5, shard],
    [6, window],
    [7, Number(heads)],
  ]);
}

export function decodeServeOk(body: Uint8Array): ServeOk {
  const fields = decode(body);
  return {
    node: string(fields.get(2)),
    shards: Number(number(fields.get(4))),
    heartbeatSecs: Number(number(fields.get(5))),
    maxFrame: Number(number(fields.get(6))),
  };
}

/** The head of a REQUEST and what stands behind it. Throws a RangeError where it does not end. */
export function splitHead(body: Uint8Array): { head: CallHead; payload: Uint8Array } {
  const end = body.length < 2 ? Infinity : 2 + ((body[0]! << 8) | body[1]!);
  if (end > body.length) throw new RangeError("a head that does not end");
  const fields = decode(body.subarray(2, end));
  return {
    head: {
      device: string(fields.get(1)),
      deviceClass: string(fields.get(2)),
      session: number(fields.get(3)),
      timeoutMs: Number(number(fields.get(4))),
      traceparent: string(fields.get(5)),
      routingKey: number(fields.get(6)),
    },
    payload: body.subarray(end),
  };
}

function isShort(kind: number): boolean {
  return kind === ServiceKind.SERVE_OK || kind === Kind.PONG || kind === Kind.BYE;
}

/** Whether a worker looks at frames of this kind; others are passed over by their length. */
function isKnown(kind: number): boolean {
  return isShort(kind) || kind === Kind.ERROR || (kind >= ServiceKind.REQUEST && kind <= ServiceKind.PUSHED);
}

/** Frames out of the pieces that a stream comes in. It holds less than one frame when `next` has returned undefined. */
export class FrameReader {
  #pieces: Uint8Array[] = [];
  #held = 0;

  /** The longest frame that the other side may send. */
  constructor(public bytesMax: number) {}

  push(piece: Uint8Array): void {
    this.#pieces.push(piece);
    this.#held += piece.length;
  }

  /** The next frame that is whole; its body is a view. Throws a RangeError at what is no frame, after which nothing more is to be read. */
  next(): Frame | undefined {
    for (;;) {
      if (this.#held < HEADER_SHORT) return undefined;
      let bytes = this.#front(HEADER_SHORT);
      const length = viewOf(bytes).getUint32(0);
      const kind = bytes[4]!;
      if (length < HEADER_SHORT || length > this.bytesMax) throw new RangeError(`a frame of ${length} bytes`);
      if (this.#held < length) return undefined;
      bytes = this.#front(length);
      this.#take(length);
      if (!isKnown(kind)) continue;
      const header = isShort(kind) ? HEADER_SHORT : HEADER_LONG;
      if (length < header) throw new RangeError(`a frame of kind ${kind} with ${length} bytes`);
      const view = viewOf(bytes);
      const field = (offset: number) => (header === HEADER_LONG ? view.getBigUint64(offset) : 0n);
      return {
        kind,
        flags: bytes[5]!,
        aux: view.getUint16(6),
        id: field(8),
        peer: field(16),
        stamp: field(24),
        body: bytes.subarray(header, length),
      };
    }
  }

  /** The first piece, which has so many bytes at least: joined with those behind it where it is shorter, so that each byte is copied a few times at most. */
  #front(length: number): Uint8Array {
    const first = this.#pieces[0]!;
    if (first.length >= length) return first;
    const joined = new Uint8Array(this.#held);
    let at = 0;
    for (const piece of this.#pieces) {
      joined.set(piece, at);
      at += piece.length;
    }
    this.#pieces = [joined];
    return joined;
  }

  #take(length: number): void {
    const first = this.#pieces[0]!;
    this.#held -= length;
    if (first.length === length) this.#pieces.shift();
    else this.#pieces[0] = first.subarray(length);
  }
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
