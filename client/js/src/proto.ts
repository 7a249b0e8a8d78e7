/** The few protobuf messages that a client writes and reads. */

const text = new TextEncoder();
const utf8 = new TextDecoder();

/** What is said at LOGIN. */
export interface Login {
  user: bigint;
  token: string;
  device: string;
  deviceClass: string;
  agent: string;
  resume: Uint8Array;
  lastStamp: bigint;
  heartbeatSecs: number;
  window: number;
  ephemeral: boolean;
}

export interface LoginOk {
  session: bigint;
  node: string;
  heartbeatSecs: number;
  resume: Uint8Array;
  resumed: boolean;
  pending: number;
  floor: bigint;
  last: bigint;
  truncated: boolean;
  expiresMs: number;
}

export interface SyncOk {
  next: bigint;
  complete: boolean;
  truncated: boolean;
  floor: bigint;
  last: bigint;
}

export interface Bye {
  reconnectAfterMs: number;
  redirect: string;
  text: string;
}

/** Numbers of fields and their values, those that are the default left out. */
export function encode(fields: [number, bigint | number | string | Uint8Array][]): Uint8Array {
  const out: number[] = [];
  const varint = (value: bigint) => {
    for (; value > 127n; value >>= 7n) out.push(Number(value & 127n) | 128);
    out.push(Number(value));
  };
  for (const [field, value] of fields) {
    if (typeof value === "string" || value instanceof Uint8Array) {
      const bytes = typeof value === "string" ? text.encode(value) : value;
      if (!bytes.length) continue;
      varint(BigInt(field * 8 + 2));
      varint(BigInt(bytes.length));
      for (const byte of bytes) out.push(byte);
    } else if (BigInt(value) !== 0n) {
      varint(BigInt(field * 8));
      varint(BigInt(value));
    }
  }
  return Uint8Array.from(out);
}

/** Values by the number of their field, the last of each. Fields of a fixed size are passed over. Throws a RangeError at what is no protobuf. */
export function decode(bytes: Uint8Array): Map<number, bigint | Uint8Array> {
  const fields = new Map<number, bigint | Uint8Array>();
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = bytes[at++];
      if (byte === undefined) break;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asUintN(64, value);
    }
    throw new RangeError("a number that does not end");
  };
  while (at < bytes.length) {
    const key = Number(varint());
    const [field, type] = [Math.floor(key / 8), key % 8];
    if (type === 0) fields.set(field, varint());
    else if (type === 1) at += 8;
    else if (type === 5) at += 4;
    else if (type === 2) {
      const end = Number(varint()) + at;
      if (end > bytes.length) throw new RangeError("a field that does not end");
      fields.set(field, bytes.subarray(at, end));
      at = end;
    } else throw new RangeError(`a field of type ${type}`);
  }
  return fields;
}

const number = (value: bigint | Uint8Array | undefined) => (typeof value === "bigint" ? value : 0n);
const string = (value: bigint | Uint8Array | undefined) => (value instanceof Uint8Array ? utf8.decode(value) : "");

const bytes = (value: bigint | Uint8Array | undefined) => (value instanceof Uint8Array ? value.slice() : new Uint8Array());

export function encodeSync(after: bigint, sinceMs: number, limit: number, group: bigint): Uint8Array {
  return encode([
    [1, after],
    [2, sinceMs],
    [3, limit],
    [4, group],
  ]);
}

export function decodeSyncOk(body: Uint8Array): SyncOk {
  const fields = decode(body);
  return {
    next: number(fields.get(1)),
    complete: number(fields.get(2)) !== 0n,
    truncated: number(fields.get(3)) !== 0n,
    floor: number(fields.get(5)),
    last: number(fields.get(6)),
  };
}

export function encodeLogin(login: Login): Uint8Array {
  return encode([
    [1, 1],
    [2, login.user],
    [3, login.token],
    [4, login.device],
    [5, login.deviceClass],
    [6, login.agent],
    [7, login.resume],
    [8, login.lastStamp],
    [9, login.heartbeatSecs],
    [10, login.window],
    [11, Number(login.ephemeral)],
  ]);
}

export function decodeLoginOk(body: Uint8Array): LoginOk {
  const fields = decode(body);
  return {
    session: number(fields.get(1)),
    node: string(fields.get(2)),
    heartbeatSecs: Number(number(fields.get(4))),
    resume: bytes(fields.get(6)),
    resumed: number(fields.get(7)) !== 0n,
    pending: Number(number(fields.get(9))),
    floor: number(fields.get(10)),
    last: number(fields.get(11)),
    truncated: number(fields.get(12)) !== 0n,
    expiresMs: Number(number(fields.get(13))),
  };
}

export function decodeBye(body: Uint8Array): Bye {
  const fields = decode(body);
  return {
    reconnectAfterMs: Number(number(fields.get(1))),
    redirect: string(fields.get(2)),
    text: string(fields.get(3)),
  };
}
