/** Messages with ACK whose fate is not known: sent, or waiting for a session. Bounded in count and bytes. */

import { FullError } from "./errors.js";

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

  add(id: bigint, kind: number, to: bigint, body: Uint8Array, noStore: boolean): { message: Message; fate: Promise<Fate> } {
    if (this.#messages.size >= this.countMax || this.#bytes + body.length > this.bytesMax) {
      throw new FullError(`${this.#messages.size} messages of ${this.#bytes} bytes wait for their fate, which is the limit (outstanding)`);
    }
    this.#bytes += body.length;
    let message!: Message;
    const fate = new Promise<Fate>((settle, fail) => (message = { id, kind, to, body, noStore, sent: false, settle, fail }));
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

  fail(error: Error): void {
    for (const { id } of this.all()) this.take(id)?.fail(error);
  }
}
