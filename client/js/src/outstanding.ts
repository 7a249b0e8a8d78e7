/** Messages with ACK whose fate is not known: sent, or waiting for a session. Bounded in count and bytes. */

import type { Id } from "./client.js";
import { FullError, TrunklineError } from "./errors.js";
import { Kind } from "./frames.js";

/** What became of a message with ACK. */
export type Fate =
  | "delivered"
  | "stored"
  | "offline"
  | "overloaded"
  | "denied"
  | "inbox-full"
  | "accepted"
  | "expired"
  | "unknown";

const FATES: Fate[] = ["delivered", "stored", "offline", "overloaded", "denied", "inbox-full", "accepted", "expired"];

export const fateOf = (outcome: number): Fate => FATES[outcome] ?? "unknown";

export interface SendOptions {
  /** Its fate is wanted. */
  ack?: boolean;
  /** No gateway keeps it for somebody who is offline. */
  noStore?: boolean;
  /** An id of one's own, not 0 and not that of another message of this user. */
  id?: Id;
  /** A message with this id may have been sent before, by an earlier page or process. */
  retry?: boolean;
}

/** A message without a fate: what `send` was given. */
export interface Unsettled {
  id: bigint;
  to: bigint;
  /** `to` is a group: to be sent by `Groups`. */
  group: boolean;
  body: Uint8Array;
  noStore: boolean;
}

export interface Message {
  id: bigint;
  /** SEND or GROUP_SEND. */
  kind: number;
  to: bigint;
  body: Uint8Array;
  /** Never to a store. */
  noStore: boolean;
  /** It was written to a socket before, whose fate is not known. */
  sent: boolean;
  settle: (fate: Fate) => void;
  fail: (error: Error) => void;
}

export class Outstanding {
  #messages = new Map<bigint, Message>();
  #bytes = 0;

  constructor(
    private readonly countMax: number,
    private readonly bytesMax: number,
  ) {}

  add(id: bigint, kind: number, to: bigint, body: Uint8Array, { noStore = false, retry = false }: SendOptions): { message: Message; fate: Promise<Fate> } {
    if (this.#messages.size >= this.countMax || this.#bytes + body.length > this.bytesMax) {
      throw new FullError(`${this.#messages.size} messages of ${this.#bytes} bytes wait for their fate, which is the limit (outstanding)`);
    }
    if (this.#messages.has(id)) throw new TrunklineError(`message ${id} waits for its fate already`);
    this.#bytes += body.length;
    let message!: Message;
    const fate = new Promise<Fate>((settle, fail) => (message = { id, kind, to, body, noStore, sent: retry, settle, fail }));
    this.#messages.set(id, message);
    return { message, fate };
  }

  take(id: bigint): Message | undefined {
    const message = this.#messages.get(id);
    if (message) {
      this.#messages.delete(id);
      this.#bytes -= message.body.length;
    }
    return message;
  }

  /** All of them, in the order in which they were sent. */
  all(): Message[] {
    return [...this.#messages.values()];
  }

  unsettled(): Unsettled[] {
    return this.all().map(({ id, to, kind, body, noStore }) => ({ id, to, group: kind === Kind.GROUP_SEND, body, noStore }));
  }

  fail(error: Error): void {
    for (const { id } of this.all()) this.take(id)?.fail(error);
  }
}
