/** Calls to services that have had no last answer. */

import { CallError } from "./errors.js";
import { FLAG_MORE, type Frame } from "./frames.js";

/** The answer of a service. */
export interface Reply {
  /** 0, or what the service means by 256 and more. */
  status: number;
  /** The last part of the answer, and mostly the only one. */
  body: Uint8Array;
  /** The parts that came before it. */
  parts: Uint8Array[];
}

interface Open {
  parts: Uint8Array[];
  resolve: (reply: Reply) => void;
  fail: (error: CallError) => void;
}

/** Calls under way at once; the gateway allows 32 by default. */
const CALLS_MAX = 1_024;
const PARTS_MAX = 4_096;
const RATE_LIMITED = 11;
const OVERLOADED = 14;
const OUTCOME_UNKNOWN = 25;

export class Calls {
  #open = new Map<bigint, Open>();

  add(id: bigint): Promise<Reply> {
    if (this.#open.size >= CALLS_MAX) return Promise.reject(new CallError(RATE_LIMITED, "too many calls"));
    return new Promise((resolve, fail) => this.#open.set(id, { parts: [], resolve, fail }));
  }

  replied({ id, flags, aux, body }: Frame): void {
    const open = this.#open.get(id);
    if (!open) return;
    const more = (flags & FLAG_MORE) !== 0;
    if (more && open.parts.length < PARTS_MAX) return void open.parts.push(body.slice());
    this.#open.delete(id);
    if (more) return open.fail(new CallError(OVERLOADED, `more than ${PARTS_MAX} parts`));
    if (aux > 0 && aux < 256) return open.fail(new CallError(aux, new TextDecoder().decode(body)));
    open.resolve({ status: aux, body: body.slice(), parts: open.parts });
  }

  /** An ERROR; whether it was about a call. */
  refused(id: bigint, code: number, text: string): boolean {
    const open = this.#open.get(id);
    this.#open.delete(id);
    open?.fail(new CallError(code, text));
    return open !== undefined;
  }

  /** The connection has ended: whether these were carried out nobody knows. */
  end(): void {
    const all = [...this.#open.values()];
    this.#open.clear();
    for (const open of all) open.fail(new CallError(OUTCOME_UNKNOWN, "the connection broke before the answer"));
  }
}
