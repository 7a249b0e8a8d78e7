/** The other side of calls, for Node: a worker that serves what clients call, and pushes to users. */

import { Backoff } from "./backoff.js";
import { ClosedError, FullError, NotConnectedError, TrunklineError } from "./errors.js";
import { SERVICE_USERS, type Frame } from "./frames.js";
import { toBytes, toId, type Id } from "./ids.js";
import { type Fate } from "./outstanding.js";
import { FLAG_AGAIN, FLAG_HEAD, FLAG_NO_REPLY, splitHead, type CallHead } from "./service_frames.js";
import { FateUnknownError, Link, RefusedError, type Address, type Push } from "./service_link.js";

export { ClosedError, FullError, NotConnectedError, TrunklineError } from "./errors.js";
export { type Fate } from "./outstanding.js";
export { type CallHead } from "./service_frames.js";
export { FateUnknownError, RefusedError } from "./service_link.js";

/** Links of one worker. */
const LINKS_MAX = 16;
/** Calls that a worker works on at a time, unless it says otherwise, and at most. */
const WINDOW = 256;
const WINDOW_MAX = 65_535;
/** Bytes of pushes without ACK that may wait in the socket of a link. */
const UNACKED_BYTES_MAX = 1 << 20;
/** A link that lasted as long as this was a good one. */
const BACKOFF_MS = { minMs: 100, maxMs: 5_000 };
/** The longest that a gateway can send a worker away for. */
const AFTER_MS_MAX = 60_000;
const DRAIN_MS = 30_000;
const TIMER_MS_MAX = 2 ** 31 - 1;
const STATUS_MIN = 256;
const STATUS_MAX = 65_535;
const TIMED_OUT = 24;

export interface ServiceOptions {
  /** The services' port of a gateway: `127.0.0.1:7791`, `[::1]:7791`; over TLS `tls://services.internal:7791`. */
  address: string;
  /** For an address over TLS: certificates (PEM) of those who sign for gateways, in place of those whom Node trusts. */
  ca?: string | string[];
  /** Name of this worker, 1 to 64 letters, digits, `.`, `_`, `-`; workers of one service have each their own. */
  name: string;
  /** An API key with the scope `serve:<service>` of each service, or a function that gets it, for each link. Needed where the gateway has a keys file. */
  token?: string | (() => string | Promise<string>);
  /** Calls that are worked on at a time, 1 to 65,535, over all services and links; 256 unless it is said. */
  window?: number;
  /** Requests tell device, session, time left and trace (`request.head`), and `request.signal` ends with the time left. True unless it is said. */
  heads?: boolean;
  /** Bounds of the time until a link that broke is made again, milliseconds. */
  backoff?: { minMs: number; maxMs: number };
  /** Pushes whose fate is not known, and their bytes: at most so many; 1,000 and 4 MiB unless it is said. */
  outstanding?: { count: number; bytes: number };
}

export interface ServeOptions {
  /** This worker's share of the calls against the other workers'; 1 unless it is said. */
  weight?: number;
  /** It is called only while no other worker can be. */
  backup?: boolean;
}

/** A call of a client. */
export interface Request {
  readonly service: number;
  /** Who calls. */
  readonly user: bigint;
  /** The caller's own id for it. With the user it names the call wherever it is sent again. */
  readonly id: bigint;
  readonly body: Uint8Array;
  /** Another worker may have carried it out. */
  readonly isAgain: boolean;
  /** Nobody waits for the answer. */
  readonly noReply: boolean;
  /** Where `heads` is not false. */
  readonly head: CallHead | undefined;
  /** Aborted when nobody waits for the answer any more: the caller is gone, or its time is over. What a handler does then is up to it. */
  readonly signal: AbortSignal;
  /** A part of the answer that comes before the last one, which is what the handler returns. Resolves when more can be written; false where nobody waits for it any more. */
  part(body: Uint8Array | string): Promise<boolean>;
}

/** What a handler answers: a body, with status 0; or a status of the service's own, 256 to 65,535, and a body; or nothing in it. */
export type Answer = Uint8Array | string | void | { status: number; body?: Uint8Array | string };

export type Handler = (request: Request) => Answer | Promise<Answer>;

/** Thrown by a handler: nothing was begun, and another worker may have the call. The gateway counts it as a failure of this worker. */
export class NotBegunError extends TrunklineError {
  override name = "NotBegunError";
}

/** Thrown by a handler: the caller gets this status and body. */
export class StatusError extends TrunklineError {
  override name = "StatusError";
  constructor(
    /** 256 to 65,535. */
    readonly status: number,
    readonly body: Uint8Array | string = "",
  ) {
    super(`status ${status}`);
    judgeStatus(status);
  }
}

export interface PushOptions {
  /** False: pushed once at most, and nothing is heard of it. */
  ack?: boolean;
  /** Not kept for somebody who is offline. */
  noStore?: boolean;
  /** An id of one's own, not 0: who gets a push again under the same id knows it. */
  id?: Id;
}

interface Events {
  /** A link that broke or could not be made, a handler that threw, an answer that was too long. Without a listener it goes to `console.error`. */
  error: (error: Error) => void;
  /** So many links are connected now. */
  links: (count: number) => void;
}

interface Served {
  handler: Handler;
  weight: number;
  backup: boolean;
}

/** A request with its handler. */
interface Running {
  link: Link;
  abort: AbortController;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** What keeps one link: made again whenever it breaks. */
interface Place {
  shard: number;
  link: Link | undefined;
  /** It is to end: the worker drains, or the gateway has fewer shards than before. */
  leaves: AbortController;
  done: Promise<void>;
}

export class Service {
  readonly #options: ServiceOptions;
  readonly #address: Address;
  readonly #window: number;
  readonly #served = new Map<number, Served>();
  readonly #listeners: { [name in keyof Events]: Set<Events[name]> } = { error: new Set(), links: new Set() };
  #state: "idle" | "starting" | "open" | "draining" | "ended" = "idle";
  /** By shard, counted from 1. */
  #places = new Map<number, Place>();
  #shards = 1;
  #node = "";
  #first: Link | undefined;
  /** Handlers that have not ended, by their request, among them those that nobody waits for. */
  #running = new Set<Running>();
  #byId = new Map<Link, Map<bigint, Running>>();
  #nextId = BigInt(Date.now()) << 20n;
  #pushes = 0;
  #pushedBytes = 0;
  #drain: Promise<number> | undefined;

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#address = addressOf(options.address, options.ca);
    this.#window = options.window ?? WINDOW;
    if (!Number.isInteger(this.#window) || this.#window < 1 || this.#window > WINDOW_MAX) throw new RangeError(`a window of ${this.#window}: 1 to ${WINDOW_MAX}`);
  }

  /** Name of the gateway's node; empty before `start`. */
  get node(): string {
    return this.#node;
  }

  /** Links that are connected. */
  get links(): number {
    return this.#openLinks().length;
  }

  /** Handlers that have not ended. */
  get running(): number {
    return this.#running.size;
  }

  on<Name extends keyof Events>(name: Name, listener: Events[Name]): () => void {
    this.#listeners[name].add(listener);
    return () => void this.#listeners[name].delete(listener);
  }

  /**
   * Serves calls of a service, 1 to 65,535; to be said before `start`. The handler runs for each call, `window` of them at a time. A `StatusError` that it throws is an answer; after
   * any other error nobody knows what was done, so nothing is answered, and the caller hears from the gateway that its time is over.
   */
  serve(service: number, handler: Handler, { weight = 1, backup = false }: ServeOptions = {}): this {
    if (this.#state !== "idle") throw new TrunklineError("to be said before start");
    judgeService(service);
    if (!Number.isInteger(weight) || weight < 1 || weight > 65_535) throw new RangeError(`a weight of ${weight}: 1 to 65,535`);
    if (this.#served.has(service)) throw new TrunklineError(`service ${service} has a handler already`);
    this.#served.set(service, { handler, weight, backup });
    return this;
  }

  /**
   * Connects, with a link for each shard of the gateway, 16 and `window` at most, and comes back by itself from then on. The first attempt is made once, so that a wrong address or key
   * is seen: it rejects with NotConnectedError or RefusedError, and may be called again.
   */
  async start(): Promise<void> {
    if (this.#state === "ended" || this.#state === "draining") throw new ClosedError("the worker has ended");
    if (this.#state !== "idle") throw new TrunklineError("it has been started already");
    if (!this.#served.size) throw new TrunklineError("it serves nothing: call serve first");
    this.#state = "starting";
    try {
      // It says how many links there are to be; one call at a time until then, so that all of them together have no more than the window.
      this.#first = await this.#connect(1, 1);
      const { shards, node } = await this.#first.opened;
      if (this.#state !== "starting") throw new ClosedError("the worker has ended");
      this.#node = node;
      this.#state = "open";
      this.#spread(shards);
    } catch (error) {
      this.#first?.close();
      this.#first = undefined;
      if (this.#state === "starting") this.#state = "idle";
      throw error;
    }
  }

  /**
   * Pushes to a user, and waits for the fate: at least once. `service` is one that this worker serves. It fails with NotConnectedError where there is no link, with FullError where as
   * much waits as may, and with FateUnknownError where the link broke: the user may have got it. Pushes to one user keep their order while no link breaks.
   */
  push(service: number, user: Id, body: Uint8Array | string, options: PushOptions & { ack: false }): Promise<undefined>;
  push(service: number, user: Id, body: Uint8Array | string, options?: PushOptions): Promise<Fate>;
  async push(service: number, user: Id, body: Uint8Array | string, { ack = true, noStore = false, id }: PushOptions = {}): Promise<Fate | undefined> {
    judgeService(service);
    const to = toId(user);
    if (to === 0n || to >= SERVICE_USERS) throw new RangeError(`${to} is no user`);
    const name = id === undefined ? ++this.#nextId : toId(id);
    if (name === 0n) throw new RangeError("no push has the id 0");
    const bytes = toBytes(body);
    if (this.#state === "ended") throw new ClosedError("the worker has ended");
    const links = this.#openLinks();
    const link = links[Number(to % BigInt(links.length || 1))];
    if (!link) throw new NotConnectedError("there is no connection to the gateway at the moment");
    if (bytes.length > link.bodyMax) throw new RangeError(`${bytes.length} bytes: a push may have ${link.bodyMax} at this gateway`);
    if (!ack) {
      if (link.waitingBytes > UNACKED_BYTES_MAX) throw new FullError("too much waits in the socket");
      link.push(service, name, to, bytes, noStore);
      return undefined;
    }
    const { count, bytes: bytesMax } = this.#options.outstanding ?? { count: 1_000, bytes: 4 << 20 };
    if (this.#pushes >= count || this.#pushedBytes + bytes.length > bytesMax) {
      throw new FullError(`${this.#pushes} pushes of ${this.#pushedBytes} bytes wait for their fate, which is the limit (outstanding)`);
    }
    if (link.hasPush(name, to)) throw new TrunklineError(`push ${name} to ${to} waits for its fate already`);
    this.#pushes += 1;
    this.#pushedBytes += bytes.length;
    try {
      return await new Promise<Fate>((settle, fail) => link.push(service, name, to, bytes, noStore, { id: name, user: to, settle, fail } satisfies Push));
    } finally {
      this.#pushes -= 1;
      this.#pushedBytes -= bytes.length;
    }
  }

  /**
   * Takes no new calls, answers those it has, waits for the fate of its pushes, and ends: none is lost. After `timeoutMs` (30 s) what is still under way is left, and its signal aborted.
   * Resolves with how many calls that were.
   */
  drain({ timeoutMs = DRAIN_MS }: { timeoutMs?: number } = {}): Promise<number> {
    this.#drain ??= this.#drainAll(timeoutMs);
    return this.#drain;
  }

  /** Ends at once. Calls under way are lost, and their callers hear so. */
  async close(): Promise<void> {
    this.#cut();
    await Promise.all([...this.#places.values()].map(({ done }) => done));
  }

  async #drainAll(timeoutMs: number): Promise<number> {
    if (this.#state === "ended") return 0;
    this.#state = "draining";
    this.#first?.close();
    const places = [...this.#places.values()];
    for (const place of places) this.#leave(place);
    let late: ReturnType<typeof setTimeout> | undefined;
    const over = new Promise<void>((resolve) => (late = setTimeout(resolve, Math.min(timeoutMs, TIMER_MS_MAX))));
    await Promise.race([Promise.all(places.map(({ done }) => done)), over]);
    clearTimeout(late);
    const left = [...this.#byId.values()].reduce((sum, requests) => sum + requests.size, 0);
    await this.close();
    return left;
  }

  #cut(): void {
    if (this.#state === "ended") return;
    this.#state = "ended";
    this.#first?.close();
    for (const { abort } of this.#running) abort.abort(new ClosedError("the worker has ended"));
    for (const place of this.#places.values()) {
      place.leaves.abort();
      place.link?.close();
    }
  }

  #leave(place: Place): void {
    place.leaves.abort();
    place.link?.drain();
  }

  /** A gateway with so many shards: as many links, with the window divided among them. */
  #spread(shards: number): void {
    this.#shards = Math.min(Math.max(shards, 1), LINKS_MAX, this.#window);
    for (const place of this.#places.values()) {
      if (place.shard > this.#shards) this.#leave(place);
      else place.link?.setWindow(this.#windowOf(place.shard));
    }
    for (let shard = 1; shard <= this.#shards; shard += 1) if (!this.#places.has(shard)) this.#add(shard);
  }

  #windowOf(shard: number): number {
    return Math.floor(this.#window / this.#shards) + Number(shard <= this.#window % this.#shards);
  }

  #add(shard: number): void {
    const place: Place = { shard, link: undefined, leaves: new AbortController(), done: Promise.resolve() };
    this.#places.set(shard, place);
    place.done = this.#keep(place).finally(() => {
      if (this.#places.get(shard) === place) this.#places.delete(shard);
      // The gateway may have got its shards back meanwhile.
      if (this.#state === "open" && shard <= this.#shards) this.#add(shard);
    });
  }

  async #keep(place: Place): Promise<void> {
    const { minMs, maxMs } = this.#options.backoff ?? BACKOFF_MS;
    const backoff = new Backoff(minMs, maxMs, Math.random);
    while (!place.leaves.signal.aborted) {
      const beganMs = Date.now();
      let waitMs = 0;
      try {
        const error = await this.#serveLink(place);
        if (Date.now() - beganMs > maxMs) backoff.reset();
        if (error) throw error;
      } catch (error) {
        if (place.leaves.signal.aborted) return;
        this.#report(error);
        if (error instanceof RefusedError) waitMs = Math.min(error.afterMs, AFTER_MS_MAX);
      }
      await sleep(waitMs || backoff.next(), place.leaves.signal);
    }
  }

  /** One link, until it ends. */
  async #serveLink(place: Place): Promise<Error | undefined> {
    const { shard } = place;
    const first = shard === 1 ? this.#first : undefined;
    this.#first = undefined;
    const link = first ?? (await this.#connect(shard, this.#windowOf(shard)));
    place.link = link;
    try {
      const { shards, node } = await link.opened;
      this.#node = node;
      // It may have been told to leave while it was on its way.
      if (place.leaves.signal.aborted) link.drain();
      // The number of shards may be another one by now, with this or another gateway behind the address.
      else if (shard === 1) this.#spread(shards);
      else link.setWindow(this.#windowOf(shard));
      this.#tell("links", this.links);
      return await link.ended;
    } finally {
      place.link = undefined;
      this.#byId.delete(link);
      this.#tell("links", this.links);
    }
  }

  async #connect(shard: number, window: number): Promise<Link> {
    const { name, token = "", heads = true } = this.#options;
    const key = typeof token === "string" ? token : await token();
    const offers = [...this.#served].map(([service, { weight, backup }]) => ({ service, weight, backup }));
    if (this.#state === "ended") throw new ClosedError("the worker has ended");
    return new Link(this.#address, { name, token: key, offers, shard, window, heads }, { requested: (link, frame) => this.#requested(link, frame), cancelled: (link, id) => this.#cancelled(link, id) });
  }

  /** In the order of their shards. */
  #openLinks(): Link[] {
    const links: Link[] = [];
    for (let shard = 1; shard <= LINKS_MAX; shard += 1) {
      const link = this.#places.get(shard)?.link;
      if (link?.isOpen) links.push(link);
    }
    return links;
  }

  #requested(link: Link, frame: Frame): void {
    const served = this.#served.get(frame.aux);
    // Handlers that go on although nobody waits for them have no place in the window any more, but they are not to become more and more.
    if (!served || this.#running.size >= 2 * this.#window) return void link.answer(frame.id, 0, new Uint8Array(), { notBegun: true });
    const { head, payload } = frame.flags & FLAG_HEAD ? splitHead(frame.body) : { head: undefined, payload: frame.body };
    const running: Running = { link, abort: new AbortController(), timer: undefined };
    this.#running.add(running);
    const requests = this.#byId.get(link) ?? new Map<bigint, Running>();
    this.#byId.set(link, requests.set(frame.id, running));
    if (head?.timeoutMs) {
      const over = () => running.abort.abort(new TrunklineError("the time of the call is over", TIMED_OUT));
      running.timer = setTimeout(over, Math.min(head.timeoutMs, TIMER_MS_MAX));
    }
    const request: Request = {
      service: frame.aux,
      user: frame.peer,
      id: frame.stamp,
      body: new Uint8Array(payload),
      isAgain: (frame.flags & FLAG_AGAIN) !== 0,
      noReply: (frame.flags & FLAG_NO_REPLY) !== 0,
      head,
      signal: running.abort.signal,
      part: (body) => this.#part(link, frame.id, body),
    };
    void this.#run(served.handler, request, frame.id, running);
  }

  async #run(handler: Handler, request: Request, id: bigint, running: Running): Promise<void> {
    const { link } = running;
    try {
      this.#answer(link, id, await handler(request));
    } catch (error) {
      if (error instanceof NotBegunError) link.answer(id, 0, new Uint8Array(), { notBegun: true });
      else if (error instanceof StatusError) this.#answerOr(link, id, error);
      else {
        // The call is left to the gateway's clock, which tells the truth: nobody knows what was done.
        if (link.has(id) && !running.abort.signal.aborted) this.#report(error);
        link.forget(id);
      }
    } finally {
      clearTimeout(running.timer);
      this.#running.delete(running);
      this.#byId.get(link)?.delete(id);
    }
  }

  #answerOr(link: Link, id: bigint, answer: { status: number; body: Uint8Array | string }): void {
    try {
      this.#answer(link, id, answer);
    } catch (error) {
      this.#report(error);
      link.forget(id);
    }
  }

  #answer(link: Link, id: bigint, answer: Answer): void {
    if (!link.has(id)) return;
    const isBody = typeof answer === "string" || answer instanceof Uint8Array;
    const { status, body = "" } = isBody ? { status: 0, body: answer } : (answer ?? { status: 0 });
    if (status !== 0) judgeStatus(status);
    link.answer(id, status, this.#fitting(link, body));
  }

  async #part(link: Link, id: bigint, body: Uint8Array | string): Promise<boolean> {
    if (!link.has(id)) return false;
    link.answer(id, 0, this.#fitting(link, body), { more: true });
    await link.room();
    return link.has(id);
  }

  #fitting(link: Link, body: Uint8Array | string): Uint8Array {
    const bytes = toBytes(body);
    if (bytes.length > link.bodyMax) throw new RangeError(`${bytes.length} bytes: an answer, or a part of it, may have ${link.bodyMax} at this gateway`);
    return bytes;
  }

  #cancelled(link: Link, id: bigint): void {
    const requests = this.#byId.get(link);
    const running = requests?.get(id);
    requests?.delete(id);
    running?.abort.abort(new TrunklineError("nobody waits for the answer any more"));
  }

  #tell<Name extends keyof Events>(name: Name, ...what: Parameters<Events[Name]>): void {
    for (const listener of this.#listeners[name]) {
      try {
        (listener as (...what: unknown[]) => void)(...what);
      } catch (error) {
        // It is the application's, and must not end the link that tells it something.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  #report(thrown: unknown): void {
    const error = thrown instanceof Error ? thrown : new TrunklineError(String(thrown));
    if (this.#listeners.error.size) this.#tell("error", error);
    else console.error(error);
  }
}

function judgeService(service: number): void {
  if (!Number.isInteger(service) || service < 1 || service > 65_535) throw new RangeError(`${service} is no service`);
}

function judgeStatus(status: number): void {
  if (!Number.isInteger(status) || status < STATUS_MIN || status > STATUS_MAX) throw new RangeError(`status ${status}: ${STATUS_MIN} to ${STATUS_MAX} are a service's own`);
}

function addressOf(address: string, ca: string | string[] | undefined): Address {
  const [, overTls, bracketed, plain, digits] = /^(tls:\/\/)?(?:\[([^\]]+)\]|([^:[\]/]+)):(\d{1,5})$/.exec(address) ?? [];
  const [host, port] = [bracketed ?? plain, Number(digits)];
  if (!host || !(port >= 1 && port <= 65_535)) throw new RangeError(`${address} is no address: HOST:PORT or tls://HOST:PORT, with an IPv6 address in brackets`);
  if (!overTls && ca !== undefined) throw new RangeError(`ca is for an address over TLS: tls://${address}`);
  return overTls ? { host, port, tls: ca === undefined ? {} : { ca } } : { host, port };
}

/** Until the time is over or it is to end. */
function sleep(ms: number, until: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (until.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      until.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    until.addEventListener("abort", done);
  });
}
