/**
 * Questions for pages of the inbox, or of a group: one at a time on a connection.
 *
 * The messages of a page look like those of the backlog, and both may come at the same time: what is replayed while a page is on its way is held until its SYNC_OK.
 * Then the page is what lies between the position asked for and the one that SYNC_OK names, each once; the rest, and what came twice, was the backlog.
 */

import { FullError, NotConnectedError } from "./errors.js";
import type { Frame } from "./frames.js";
import type { SyncOk } from "./proto.js";

/** Held frames at most: a page of the longest kind (1,000), and a backlog of as much as a device may owe (1,024) beside it. */
const HELD_MAX = 4_096;
/** Pages that may be waited for. */
const ASKED_MAX = 32;

export interface Question {
  /** 0 for the inbox. */
  group: bigint;
  after: bigint;
  sinceMs: number;
  limit: number;
  answer: (page: { frames: Frame[]; end: SyncOk }) => void;
  fail: (error: Error) => void;
}

export class Pages {
  #waiting: Question[] = [];
  #running: { question: Question; aux: number; held: Frame[] } | undefined;
  #aux = 0;

  ask(question: Question): void {
    if (this.#waiting.length >= ASKED_MAX) throw new FullError("too many pages are waited for");
    this.#waiting.push(question);
  }

  /** What is replayed of this group now, or of the inbox (0), has to be held. */
  isRunning(group = 0n): boolean {
    return this.#running?.question.group === group;
  }

  /** The next question and its number; none while one is on its way. */
  next(): { question: Question; aux: number } | undefined {
    if (this.#running) return undefined;
    const question = this.#waiting.shift();
    if (!question) return undefined;
    this.#aux = (this.#aux % 65_535) + 1;
    this.#running = { question, aux: this.#aux, held: [] };
    return this.#running;
  }

  /** A frame that came while a page is on its way: replayed, or the end of the backlog. Throws a RangeError where that is more than there can be. */
  hold(frame: Frame): void {
    const held = this.#running?.held;
    if (!held || held.length >= HELD_MAX) throw new RangeError("more was replayed than was asked for");
    // The bytes are the WebSocket's.
    held.push({ ...frame, body: frame.body.slice() });
  }

  /** SYNC_OK of a question: what was held and is not of the page, in the order in which it came. */
  over(aux: number, end: SyncOk): Frame[] {
    if (this.#running?.aux !== aux) return [];
    const { question, held } = this.#running;
    this.#running = undefined;
    const page = new Map<bigint, Frame>();
    const rest: Frame[] = [];
    for (const frame of held) {
      const { id, stamp } = frame;
      const inRange = question.after < stamp && stamp <= end.next && stamp >> 20n >= BigInt(question.sinceMs);
      if (id && inRange && !page.has(stamp)) page.set(stamp, frame);
      else rest.push(frame);
    }
    const frames = [...page.values()].sort((one, other) => (one.stamp < other.stamp ? -1 : 1));
    question.answer({ frames, end });
    return rest;
  }

  /** The question on its way is refused. Returns what was held; nothing where none is. */
  refused(error: Error): Frame[] | undefined {
    const running = this.#running;
    this.#running = undefined;
    running?.question.fail(error);
    return running?.held;
  }

  /** The connection is gone. */
  end(): void {
    const error = new NotConnectedError("the session ended before the page came");
    this.#running?.question.fail(error);
    for (const question of this.#waiting) question.fail(error);
    this.#running = undefined;
    this.#waiting = [];
  }
}
