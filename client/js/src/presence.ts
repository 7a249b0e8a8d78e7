/** Who is online, for a client that wants to know: `new Presence(client)`. */

import { EXTEND, toId, type Client, type Extension, type Id, type Port } from "./client.js";
import { NotConnectedError } from "./errors.js";
import { Kind, short, type Frame } from "./frames.js";

/** What is so of a user. */
export interface UserPresence {
  user: bigint;
  /** `undefined`: nobody can say at the moment. A user whom this one may not watch looks offline. */
  online: boolean | undefined;
  /** The class of each device that tells one. */
  deviceClasses: string[];
  /** Since when, milliseconds since the epoch by the gateway's clock; 0 where that is not known. */
  sinceMs: number;
}

interface Events {
  /** First of each user who is watched, then of those for whom it has changed, and of all again after a reconnect. */
  presence: (users: UserPresence[]) => void;
}

/** Users of one WATCH. */
const PER_FRAME = 500;
/** Users watched at most: as many as a gateway can be set to allow. */
const WATCHED_MAX = 10_000;

const utf8 = new TextDecoder();

/** Body of WATCH and UNWATCH. */
export function encodeWatch(users: bigint[], follow: boolean): Uint8Array {
  const ids: number[] = [];
  const varint = (out: number[], value: bigint) => {
    for (; value > 127n; value >>= 7n) out.push(Number(value & 127n) | 128);
    out.push(Number(value));
  };
  for (const user of users) varint(ids, user);
  const out: number[] = [];
  if (ids.length) {
    out.push(10);
    varint(out, BigInt(ids.length));
  }
  return Uint8Array.from([...out, ...ids, ...(follow ? [16, 1] : [])]);
}

/** The fields of a message, in order. Throws a RangeError at what is no protobuf. */
function* fieldsOf(bytes: Uint8Array): Generator<[field: number, value: bigint | Uint8Array]> {
  let at = 0;
  const varint = () => {
    for (let value = 0n, shift = 0n; shift < 70n; shift += 7n) {
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
    if (type === 0) yield [field, varint()];
    else if (type === 1) at += 8;
    else if (type === 5) at += 4;
    else if (type === 2) {
      const end = Number(varint()) + at;
      if (end > bytes.length) throw new RangeError("a field that does not end");
      yield [field, bytes.subarray(at, end)];
      at = end;
    } else throw new RangeError(`a field of type ${type}`);
  }
}

/** Throws a RangeError at what is no protobuf. */
export function decodePresence(body: Uint8Array): UserPresence[] {
  const users: UserPresence[] = [];
  for (const [field, state] of fieldsOf(body)) {
    if (field !== 1 || !(state instanceof Uint8Array)) continue;
    const told: UserPresence = { user: 0n, online: false, deviceClasses: [], sinceMs: 0 };
    let unknown = false;
    for (const [field, value] of fieldsOf(state)) {
      if (value instanceof Uint8Array) {
        if (field === 3) told.deviceClasses.push(utf8.decode(value));
      } else if (field === 1) told.user = value;
      else if (field === 2) told.online = value !== 0n;
      else if (field === 4) told.sinceMs = Number(value);
      else if (field === 5) unknown = value !== 0n;
    }
    if (unknown) told.online = undefined;
    users.push(told);
  }
  return users;
}

export class Presence {
  #port: Port;
  #watched = new Set<bigint>();
  #listeners = new Set<Events["presence"]>();
  #isOpen = false;

  /** To be made before the client connects. */
  constructor(client: Client) {
    const extension: Extension = {
      loginStamp: (lastStamp) => lastStamp,
      opened: () => {
        this.#isOpen = true;
        this.#say(Kind.WATCH, [...this.#watched], true);
      },
      lost: () => {
        this.#isOpen = false;
      },
      frame: (frame) => this.#onFrame(frame),
    };
    this.#port = client[EXTEND](extension);
  }

  /** Hears of users. Returns what ends it. */
  on(_event: "presence", listener: Events["presence"]): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Watches whether these users are online, now and after each reconnect. The gateway tells at once that one has come, that one has gone after ten seconds, and of nobody more
   * often than every five. It allows a session 1,000 users if it is not told otherwise.
   */
  watch(...users: Id[]): void {
    const ids = users.map(userOf);
    for (const user of ids) if (this.#watched.size < WATCHED_MAX) this.#watched.add(user);
    if (this.#isOpen) this.#say(Kind.WATCH, ids, true);
  }

  /** Asks once whether these users are online. Throws NotConnectedError where there is no session. */
  ask(...users: Id[]): void {
    if (!this.#isOpen) throw new NotConnectedError("there is no session at the moment");
    this.#say(Kind.WATCH, users.map(userOf), false);
  }

  /** Watches these users no more; without any, nobody. */
  unwatch(...users: Id[]): void {
    const ids = users.map(userOf);
    if (!ids.length) this.#watched.clear();
    for (const user of ids) this.#watched.delete(user);
    if (!this.#isOpen) return;
    if (!ids.length) this.#port.write(short(Kind.UNWATCH));
    this.#say(Kind.UNWATCH, ids, false);
  }

  #say(kind: number, users: bigint[], follow: boolean): void {
    for (let at = 0; at < users.length; at += PER_FRAME) this.#port.write(short(kind, 0, encodeWatch(users.slice(at, at + PER_FRAME), follow)));
  }

  #onFrame({ kind, body }: Frame): boolean {
    if (kind !== Kind.PRESENCE) return false;
    const users = decodePresence(body);
    if (users.length) for (const listener of this.#listeners) listener(users);
    return true;
  }
}

function userOf(id: Id): bigint {
  const user = toId(id);
  if (user === 0n) throw new RangeError("user 0 does not exist");
  return user;
}
