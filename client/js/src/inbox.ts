/** Messages that are acknowledged when the work on them is done, for programs that may be killed: `new Inbox(client)`. */

import { EXTEND, messageOf, type Client, type Message, type Port } from "./client.js";
import { FullError } from "./errors.js";
import { FLAG_ACK, FLAG_REPLAY, Kind, SERVICE_USERS, long, type Frame } from "./frames.js";

/** Messages that were acknowledged, and whose ids are remembered to know one that comes again. */
const DONE_MAX = 4_096;

/**
 * Takes the messages of a client in its place. One with ACK is acknowledged when the next one is asked for: what a program is at when it is killed, and what it has not taken, comes to the
 * next one, also where its sender has heard of nothing yet. A program that must not work on a message twice remembers `from` and `id` along with what it did.
 */
export class Inbox {
  #port: Port;
  #queue: Message[] = [];
  #taker: { resolve: (message: Message | undefined) => void; reject: (error: Error) => void } | undefined;
  /** What is not acknowledged: the stamp of the latest copy, by sender and id. */
  #open = new Map<string, bigint>();
  #done = new Set<string>();
  /** What has REPLAY is of the backlog, and not of a page that was asked for. */
  #isBacklog = false;
  #end: Error | undefined;

  /** To be made before the client connects. `history` of the client is for later than `caughtUp`. */
  constructor(client: Client) {
    this.#port = client[EXTEND]({
      loginStamp: (lastStamp) => lastStamp,
      opened: () => {
        this.#isBacklog = true;
      },
      lost: (error) => this.#onLost(error),
      frame: (frame) => this.#onFrame(frame),
    });
  }

  /** Messages as they come, each once. It ends with the client, and throws what that ended with. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    for (;;) {
      const message = this.#queue.shift() ?? (await this.#next());
      if (!message) return;
      yield message;
      // Whoever asks for the next is done with this one.
      this.#settle(message);
    }
  }

  #next(): Promise<Message | undefined> {
    if (this.#end) return this.#end.name === "ClosedError" ? Promise.resolve(undefined) : Promise.reject(this.#end);
    return new Promise((resolve, reject) => (this.#taker = { resolve, reject }));
  }

  #onLost(error?: Error): void {
    if (!error) return;
    this.#end = error;
    const taker = this.#taker;
    this.#taker = undefined;
    if (error.name === "ClosedError") taker?.resolve(undefined);
    else taker?.reject(error);
  }

  #onFrame(frame: Frame): boolean {
    const { kind, aux, flags, id, stamp } = frame;
    if (kind === Kind.SYNC_OK && !aux) this.#isBacklog = false;
    if (kind !== Kind.DELIVER && kind !== Kind.PUSH) return false;
    if (flags & FLAG_REPLAY && !this.#isBacklog) return false;
    const peer = kind === Kind.PUSH ? SERVICE_USERS + BigInt(aux) : frame.peer;
    const name = `${peer} ${id}`;
    const isOpen = this.#open.has(name);
    if (flags & FLAG_ACK && this.#done.has(name)) {
      this.#acknowledge(id, peer, stamp);
      return true;
    }
    // It ends the connection; what was not acknowledged comes again.
    if (!isOpen && this.#queue.length >= this.#port.inboxMax) throw new FullError("nobody takes the messages that come");
    if (flags & FLAG_ACK) this.#open.set(name, stamp);
    if (!isOpen) this.#hand(messageOf({ ...frame, peer }));
    return true;
  }

  #hand(message: Message): void {
    const taker = this.#taker;
    this.#taker = undefined;
    if (taker) taker.resolve(message);
    else this.#queue.push(message);
  }

  #settle({ from, id }: Message): void {
    const name = `${from} ${id}`;
    const stamp = this.#open.get(name);
    if (stamp === undefined) return;
    this.#open.delete(name);
    this.#done.add(name);
    const oldest = this.#done.values().next();
    if (this.#done.size > DONE_MAX && !oldest.done) this.#done.delete(oldest.value);
    this.#acknowledge(id, from, stamp);
  }

  #acknowledge(id: bigint, peer: bigint, stamp: bigint): void {
    try {
      this.#port.write(long(Kind.ACK, 0, id, peer, stamp));
    } catch {
      // There is no session, or no room: it comes again, and is known.
    }
  }
}
