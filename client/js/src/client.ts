/** A session that outlives its connections. */

import { Backoff } from "./backoff.js";
import { ByeError, ClosedError, FullError, NotConnectedError, TrunklineError, UnauthorizedError } from "./errors.js";
import { FLAG_ACK, FLAG_RETRY, FLAG_SELF, Kind, frames, long, short, type Frame } from "./frames.js";
import { Outstanding, fateOf, type Fate, type Message as Waiting } from "./outstanding.js";
import { decodeBye, decodeLoginOk, encodeLogin, type Bye } from "./proto.js";

/** A user or a message: a bigint, a safe integer, or decimal digits. */
export type Id = bigint | number | string;

/** The part of a browser's WebSocket that is used, so that another may take its place. */
export interface WebSocketLike {
  binaryType: string;
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: Uint8Array): void;
  close(code?: number, reason?: string): void;
}

export type Token = string | (() => Promise<string>);

export interface Options {
  /** Where the gateway is: `wss://chat.example.com/ws`. */
  url: string;
  /** Who logs in; not 0. */
  user: Id;
  /** The token, or a function that gets one: it is called for each login, and again before the token ends, but never twice at a time. */
  token?: Token;
  /** Name of this device, at most 64 bytes; give each tab one of its own, since a login replaces the one before of the same name. */
  device?: string;
  deviceClass?: string;
  agent?: string;
  /** Wish for the time between heartbeats, seconds; the server decides. */
  heartbeatSecs?: number;
  /** In place of the global WebSocket: that of the package `ws`, in Node below 22. */
  WebSocket?: new (url: string, protocols: string[]) => WebSocketLike;
  /** Bounds of the time until it comes back, milliseconds. */
  backoff?: { minMs: number; maxMs: number };
  /** Messages with ACK whose fate is not known, and their bytes: at most so many. */
  outstanding?: { count: number; bytes: number };
  /** Bytes that may wait in the socket. */
  bufferedBytesMax?: number;
  /** Received messages that nobody has taken: at most so many; then the connection ends, and what was not acknowledged comes again. */
  inboxMax?: number;
  /** Hears of each frame and each step, in words. */
  debug?: (line: string) => void;
}

/** A message to this user. */
export interface Message {
  from: bigint;
  id: bigint;
  /** Its position in the inbox. */
  stamp: bigint;
  body: Uint8Array;
  /** The user's own, sent from another device. */
  self: boolean;
}

/** `ended` is for good. */
export type State = "idle" | "connecting" | "open" | "waiting" | "ended";

interface Events {
  state: (state: State) => void;
  error: (error: Error) => void;
}

const SUBPROTOCOL = "trunkline.v1";
/** The longest delay that timers take. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Messages whose id is remembered, to know one that comes again. */
const SEEN_MAX = 1024;
const BYE_UNAUTHORIZED = 6;
/** After these a client does not come back by itself: version, replaced, kicked. 6 is looked at apart. */
const BYE_FINAL = [7, 8, 15];

export function toId(id: Id): bigint {
  if (typeof id === "number" && !Number.isSafeInteger(id)) throw new TypeError(`${id} is no safe integer`);
  const value = BigInt(id);
  if (value < 0n || value >= 1n << 64n) throw new RangeError(`${value} is no 64-bit number`);
  return value;
}

export class Client {
  #options: Options;
  #user: bigint;
  #url: string;
  #state: State = "idle";
  #end: Error | undefined;
  #socket: WebSocketLike | undefined;
  #bye: { reason: number; bye: Bye } | undefined;
  #backoff: Backoff;
  #outstanding: Outstanding;
  #nextId = BigInt(Date.now()) << 20n;
  #token: Promise<string> | undefined;
  /** The last token was refused, and another has not been tried. */
  #refused = false;
  #heartbeatMs = 0;
  #heardMs = 0;
  #wroteMs = 0;
  /** When the PING was written that nothing has been heard since; 0 where there is none. */
  #pingMs = 0;
  #timers = new Set<ReturnType<typeof setTimeout>>();
  #comeBack: ReturnType<typeof setTimeout> | undefined;
  #inbox: Message[] = [];
  #taker: { resolve: (result: IteratorResult<Message>) => void; reject: (error: Error) => void } | undefined;
  #seen = new Set<string>();
  #opened: { resolve: () => void; reject: (error: Error) => void; promise: Promise<void> } | undefined;
  #listeners: { [name in keyof Events]: Set<Events[name]> } = { state: new Set(), error: new Set() };
  #stir = () => this.#onStir();

  constructor(options: Options) {
    this.#options = options;
    this.#user = toId(options.user);
    if (this.#user === 0n) throw new RangeError("user 0 does not exist");
    this.#url = options.url;
    const { minMs, maxMs } = options.backoff ?? { minMs: 500, maxMs: 30_000 };
    this.#backoff = new Backoff(minMs, maxMs, Math.random);
    const { count, bytes } = options.outstanding ?? { count: 1_000, bytes: 4 << 20 };
    this.#outstanding = new Outstanding(count, bytes);
  }

  get state(): State {
    return this.#state;
  }

  /** Logs in, and comes back by itself from then on. Resolves with the first session; rejects when there will be none. */
  connect(): Promise<void> {
    if (this.#state === "ended") return Promise.reject(this.#end ?? new ClosedError("the client was closed"));
    if (this.#state === "open") return Promise.resolve();
    if (!this.#opened) {
      let resolve!: () => void, reject!: (error: Error) => void;
      const promise = new Promise<void>((done, failed) => ([resolve, reject] = [done, failed]));
      this.#opened = { resolve, reject, promise };
    }
    if (this.#state === "idle") {
      globalThis.addEventListener?.("online", this.#stir);
      globalThis.document?.addEventListener("visibilitychange", this.#stir);
      void this.#dial();
    }
    return this.#opened.promise;
  }

  /** Sends a message. With `ack` its fate comes, over as many connections as it takes; without, it is sent once or not at all. */
  send(to: Id, body: Uint8Array | string, options: { ack: true }): Promise<Fate>;
  send(to: Id, body: Uint8Array | string, options?: { ack?: false }): Promise<undefined>;
  async send(to: Id, body: Uint8Array | string, options?: { ack?: boolean }): Promise<Fate | undefined> {
    if (this.#state === "ended") throw this.#end ?? new ClosedError("the client was closed");
    const peer = toId(to);
    const bytes = typeof body === "string" ? new TextEncoder().encode(body) : body;
    const id = ++this.#nextId;
    if (options?.ack) {
      const { message, fate } = this.#outstanding.add(id, peer, bytes);
      if (this.#state === "open") this.#sendWaiting(message);
      return fate;
    }
    if (this.#state !== "open") throw new NotConnectedError("there is no session at the moment");
    if (!this.#hasRoom()) throw new FullError("too much waits in the socket");
    this.#write(long(Kind.SEND, 0, id, peer, 0n, bytes));
    return undefined;
  }

  /** Messages as they come, each once; one with ACK is acknowledged when it is kept for the taker. It ends with the client, and throws what that ended with. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    for (;;) {
      const message = this.#inbox.shift();
      if (message) {
        yield message;
        continue;
      }
      if (this.#state === "ended") {
        if (this.#end) throw this.#end;
        return;
      }
      const next = await new Promise<IteratorResult<Message>>((resolve, reject) => (this.#taker = { resolve, reject }));
      if (next.done) return;
      yield next.value;
    }
  }

  on<Name extends keyof Events>(name: Name, listener: Events[Name]): () => void {
    this.#listeners[name].add(listener);
    return () => void this.#listeners[name].delete(listener);
  }

  /** Logs out, for good. What has no fate by then fails. */
  async close(): Promise<void> {
    if (this.#state === "ended") return;
    if (this.#state === "open") this.#write(short(Kind.LOGOUT));
    this.#finish(undefined);
  }

  #debug(line: string): void {
    this.#options.debug?.(line);
  }

  #setState(state: State): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#debug(`state ${state}`);
    for (const listener of this.#listeners.state) listener(state);
  }

  /** Runs something later, unless the connection is another by then. */
  #later(ms: number, run: () => void): void {
    const timer = setTimeout(() => (this.#timers.delete(timer), run()), Math.min(ms, TIMER_MS_MAX));
    this.#timers.add(timer);
  }

  #clearTimers(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  /** One call at a time, whoever needs the token. */
  #getToken(): Promise<string> {
    const { token = "" } = this.#options;
    if (typeof token === "string") return Promise.resolve(token);
    this.#token ??= token().finally(() => (this.#token = undefined));
    return this.#token;
  }

  async #dial(): Promise<void> {
    this.#setState("connecting");
    let token: string;
    try {
      token = await this.#getToken();
    } catch (error) {
      if (error instanceof UnauthorizedError) return this.#finish(error);
      this.#report(error instanceof Error ? error : new TrunklineError(String(error)));
      return this.#wait(this.#backoff.next());
    }
    if (this.#state !== "connecting") return;
    const Socket = this.#options.WebSocket ?? (globalThis.WebSocket as unknown as Options["WebSocket"]);
    if (!Socket) return this.#finish(new TrunklineError("there is no WebSocket here: give one, as of the package ws"));
    let socket: WebSocketLike;
    try {
      socket = new Socket(this.#url, [SUBPROTOCOL]);
    } catch (error) {
      return this.#finish(new TrunklineError(`no connection to ${this.#url}: ${String(error)}`));
    }
    this.#debug(`dial ${this.#url}`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#bye = undefined;
    this.#pingMs = 0;
    this.#later(30_000, () => this.#abandon("no session within 30 s"));
    const mine = () => this.#socket === socket;
    socket.onopen = () => mine() && this.#write(short(Kind.LOGIN, 0, this.#login(token)));
    socket.onmessage = (event: { data: unknown }) => mine() && this.#onMessage(event.data);
    socket.onerror = () => this.#debug("the socket reports an error");
    socket.onclose = (event: { code: number }) => mine() && this.#onClose(event.code);
  }

  #login(token: string): Uint8Array {
    const { device = "", deviceClass = "", agent = "trunkline-js/0.1", heartbeatSecs = 0 } = this.#options;
    return encodeLogin({ user: this.#user, token, device, deviceClass, agent, heartbeatSecs });
  }

  #onMessage(data: unknown): void {
    this.#heardMs = Date.now();
    this.#pingMs = 0;
    try {
      if (!(data instanceof ArrayBuffer)) throw new RangeError("a message of text");
      for (const frame of frames(data)) this.#onFrame(frame);
    } catch (error) {
      this.#report(new TrunklineError(`what came is no frame: ${String(error)}`));
      this.#abandon("what came is no frame");
    }
  }

  #onFrame(frame: Frame): void {
    this.#debug(`< kind 0x${frame.kind.toString(16)} aux ${frame.aux} id ${frame.id} of ${frame.body.length} bytes`);
    switch (frame.kind) {
      case Kind.LOGIN_OK:
        return this.#onLoginOk(frame);
      case Kind.DELIVER:
        return this.#onDeliver(frame);
      case Kind.SENT:
        return this.#outstanding.take(frame.id)?.settle(fateOf(frame.aux));
      case Kind.BYE:
        this.#bye = { reason: frame.aux, bye: decodeBye(frame.body) };
        return;
      case Kind.ERROR: {
        const error = new TrunklineError(`error ${frame.aux}: ${new TextDecoder().decode(frame.body)}`);
        const message = this.#outstanding.take(frame.id);
        return message ? message.fail(error) : this.#report(error);
      }
    }
  }

  #onLoginOk({ body }: Frame): void {
    const { heartbeatSecs, expiresMs } = decodeLoginOk(body);
    this.#clearTimers();
    this.#refused = false;
    this.#heartbeatMs = heartbeatSecs * 1_000;
    this.#keepAlive();
    if (expiresMs && typeof this.#options.token === "function") this.#renewBefore(expiresMs);
    // Also the answer to RENEW.
    if (this.#state === "open") return;
    this.#backoff.reset();
    this.#setState("open");
    this.#opened?.resolve();
    this.#opened = undefined;
    for (const message of this.#outstanding.all()) this.#sendWaiting(message);
  }

  #onDeliver({ flags, id, peer, stamp, body }: Frame): void {
    const name = `${peer} ${id}`;
    const again = this.#seen.has(name);
    if (flags & FLAG_ACK && (again || this.#inbox.length < this.#inboxMax())) {
      this.#write(long(Kind.ACK, 0, id, peer, stamp));
    }
    if (again) return;
    if (this.#inbox.length >= this.#inboxMax()) {
      this.#report(new FullError("nobody takes the messages that come"));
      return this.#abandon("nobody takes the messages that come");
    }
    this.#remember(name);
    const message = { from: peer, id, stamp, body: body.slice(), self: (flags & FLAG_SELF) !== 0 };
    const taker = this.#taker;
    this.#taker = undefined;
    if (taker) taker.resolve({ value: message, done: false });
    else this.#inbox.push(message);
  }

  /** A set keeps the order in which things were added, so the first is the oldest. */
  #remember(name: string): void {
    this.#seen.add(name);
    const oldest = this.#seen.values().next();
    if (this.#seen.size > SEEN_MAX && !oldest.done) this.#seen.delete(oldest.value);
  }

  #inboxMax(): number {
    return this.#options.inboxMax ?? 10_000;
  }

  #sendWaiting(message: Waiting): void {
    if (!this.#hasRoom()) return this.#later(50, () => this.#state === "open" && this.#sendWaiting(message));
    const flags = FLAG_ACK | (message.sent ? FLAG_RETRY : 0);
    message.sent = true;
    this.#write(long(Kind.SEND, flags, message.id, message.to, 0n, message.body));
  }

  #hasRoom(): boolean {
    return (this.#socket?.bufferedAmount ?? 0) < (this.#options.bufferedBytesMax ?? 1 << 20);
  }

  #write(frame: Uint8Array): void {
    this.#wroteMs = Date.now();
    this.#debug(`> kind 0x${frame[4]!.toString(16)} of ${frame.length} bytes`);
    this.#socket?.send(frame);
  }

  /**
   * A PING where nothing was said or heard for half a heartbeat; the end where none was answered for one and a half, so that nothing was heard for two.
   * The silence before the PING does not count: browsers run the timers of a hidden page once a minute.
   */
  #keepAlive(): void {
    if (!this.#heartbeatMs) return;
    this.#later(this.#heartbeatMs / 2, () => {
      const now = Date.now();
      if (this.#pingMs && now - this.#pingMs >= 1.5 * this.#heartbeatMs) {
        return this.#abandon("nothing was heard for two heartbeats");
      }
      if (now - Math.min(this.#wroteMs, this.#heardMs) >= this.#heartbeatMs / 2) this.#ping();
      this.#keepAlive();
    });
  }

  #ping(): void {
    this.#pingMs ||= Date.now();
    this.#write(short(Kind.PING));
  }

  /** Gets a new token when nine tenths of the time of this one have passed. */
  #renewBefore(expiresMs: number): void {
    const left = expiresMs - Date.now();
    this.#later(Math.max(left * 0.9, left - 60_000, 1_000), async () => {
      const socket = this.#socket;
      try {
        const token = await this.#getToken();
        if (this.#socket === socket && this.#state === "open") this.#write(short(Kind.RENEW, 0, this.#login(token)));
      } catch (error) {
        // The session lasts until its token ends; then a login will ask again.
        this.#report(error instanceof Error ? error : new TrunklineError(String(error)));
      }
    });
  }

  /** Leaves a connection that is of no use any more, without waiting for its end. */
  #abandon(why: string): void {
    this.#debug(why);
    const socket = this.#socket;
    this.#drop();
    socket?.close();
    this.#wait(this.#backoff.next());
  }

  #drop(): void {
    this.#clearTimers();
    this.#socket = undefined;
  }

  #onClose(code: number): void {
    this.#debug(`closed with ${code}`);
    this.#drop();
    const { reason, bye } = this.#bye ?? { reason: code - 4_000, bye: undefined };
    if (BYE_FINAL.includes(reason)) return this.#finish(new ByeError(reason, bye?.text ?? ""));
    if (reason === BYE_UNAUTHORIZED) {
      // Another token may do, once.
      if (typeof this.#options.token !== "function" || this.#refused) {
        return this.#finish(new UnauthorizedError(bye?.text || "the credentials were not accepted"));
      }
      this.#refused = true;
    }
    if (bye?.redirect) this.#redirect(bye.redirect);
    this.#wait(bye?.redirect ? 0 : (bye?.reconnectAfterMs || this.#backoff.next()));
  }

  /** Another node has the user: the same way, to its host. */
  #redirect(address: string): void {
    try {
      const url = new URL(this.#url);
      url.host = address;
      this.#url = url.href;
    } catch {
      this.#debug(`no address: ${address}`);
    }
  }

  #wait(ms: number): void {
    if (this.#state === "ended") return;
    this.#setState("waiting");
    this.#debug(`comes back in ${Math.round(ms)} ms`);
    this.#comeBack = setTimeout(() => this.#state === "waiting" && void this.#dial(), ms);
  }

  /** The network is back, or somebody looks: no need to wait any longer. */
  #onStir(): void {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (this.#state === "waiting") {
      clearTimeout(this.#comeBack);
      void this.#dial();
    } else if (this.#state === "open") {
      this.#ping();
    }
  }

  #report(error: Error): void {
    this.#debug(String(error));
    for (const listener of this.#listeners.error) listener(error);
  }

  #finish(error: Error | undefined): void {
    if (this.#state === "ended") return;
    const socket = this.#socket;
    this.#drop();
    clearTimeout(this.#comeBack);
    this.#end = error;
    this.#setState("ended");
    socket?.close(1000);
    globalThis.removeEventListener?.("online", this.#stir);
    globalThis.document?.removeEventListener("visibilitychange", this.#stir);
    const told = error ?? new ClosedError("the client was closed");
    this.#outstanding.fail(told);
    this.#opened?.promise.catch(() => {});
    this.#opened?.reject(told);
    const taker = this.#taker;
    this.#taker = undefined;
    if (error) taker?.reject(error);
    else taker?.resolve({ value: undefined, done: true });
  }
}
