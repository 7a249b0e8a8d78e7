/** A session that outlives its connections. */

import { Backoff } from "./backoff.js";
import { Calls, type Reply } from "./calls.js";
import { ByeError, ClosedError, FullError, NotConnectedError, TrunklineError, UnauthorizedError } from "./errors.js";
import { FLAG_ACK, FLAG_AGAIN, FLAG_CUMULATIVE, FLAG_NO_STORE, FLAG_REPLAY, FLAG_RETRY, FLAG_SAFE, FLAG_SELF, Kind, SERVICE_USERS, frames, long, short, type Frame } from "./frames.js";
import { toBytes, toId, type Id } from "./ids.js";
import { Outstanding, fateOf, type Fate, type Message as Waiting, type SendOptions, type Unsettled } from "./outstanding.js";
import { Pages, type Question } from "./pages.js";
import { decodeBye, decodeLoginOk, decodeSyncOk, encodeLogin, encodeSync, type Bye, type SyncOk } from "./proto.js";
import { packResume, unpackResume, type Resume } from "./resume.js";

export { toBytes, toId, type Id } from "./ids.js";

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
  /** Who logs in. 0 with a token leaves it to the application that the gateway asks (its connect-time hook); a gateway that asks none refuses the login. */
  user: Id;
  /** The token, or a function that gets one: it is called for each login, and again before the token ends, but never twice at a time. */
  token?: Token;
  /** Name of this device, at most 64 bytes; give each tab one of its own, since a login replaces the one before of the same name. */
  device?: string;
  deviceClass?: string;
  agent?: string;
  /** The gateway keeps nothing for this device once it has gone. */
  ephemeral?: boolean;
  /** `client.resume` of an earlier client of the same user and device. */
  resume?: string;
  /** Messages of the backlog that may be on their way at a time; the gateway decides where it is left out. */
  window?: number;
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
  /** The service that has pushed it; then `from` is no user. */
  service?: number;
  id: bigint;
  /** Its position in the inbox. */
  stamp: bigint;
  body: Uint8Array;
  /** When the gateway took it, milliseconds since the epoch by its clock. */
  timeMs: number;
  /** The user's own, sent from another device. */
  self: boolean;
  /** It was kept by the gateway: what came while this device was away, or a message of `history`. It may come later than its place. */
  replay: boolean;
}

/** What the gateway said of the inbox at the last login. */
export interface Session {
  /** The gateway keeps messages with ACK for this device while it is away. */
  registered: boolean;
  /** It went on from where this client had got to; otherwise look for what is missing. */
  resumed: boolean;
  /** Messages that waited. */
  pending: number;
  /** Messages for this device are gone. */
  truncated: boolean;
}

/** A page of the inbox. Its messages are looked at, not delivered: none is acknowledged by it. */
export interface Page {
  /** By rising stamp. */
  messages: Message[];
  /** `after` of the next page. */
  next: bigint;
  /** Nothing is left behind this page. */
  complete: boolean;
  /** Messages behind the position or time asked for are gone. */
  truncated: boolean;
  /** Up to here the inbox holds nothing any more. */
  floor: bigint;
  /** Position of its newest message. */
  last: bigint;
}

/** `ended` is for good. */
export type State = "idle" | "connecting" | "open" | "waiting" | "ended";

interface Events {
  state: (state: State) => void;
  error: (error: Error) => void;
  /** All messages that waited for this device have come. Only where the gateway keeps messages for it. */
  caughtUp: () => void;
  /** A gap: messages up to this position are gone, and this device has not had them. */
  gap: (floor: bigint) => void;
}

const SUBPROTOCOL = "trunkline.v1";
/** Redirects in a row that are followed; the next one is not. */
const REDIRECTS_MAX = 5;
/** The longest delay that timers take. */
const TIMER_MS_MAX = 2 ** 31 - 1;
/** Messages whose id is remembered, to know one that comes again. */
const SEEN_MAX = 1024;
const BYE_UNAUTHORIZED = 6;
/** After these a client does not come back by itself: version, replaced, kicked, bad request. 6 is looked at apart. */
const BYE_FINAL = [7, 8, 15, 20];

/** Errors that can be the answer to SYNC; 19 to that of a group. */
const PAGE_REFUSALS = [3, 11, 14, 18, 19, 20, 21];

/** A part of the client that is a module of its own, so that it costs nothing where it is not imported. */
export interface Extension {
  /** The stamp for LOGIN. */
  loginStamp(lastStamp: bigint): bigint;
  /** There is a session. */
  opened(): void;
  /** There is none any more. `error`: and none will be. */
  lost(error?: Error): void;
  /** A frame has come; whether that was for it alone. */
  frame(frame: Frame): boolean;
}

/** What the client does for an extension. */
export interface Port {
  readonly inboxMax: number;
  idOf(id?: Id): bigint;
  /** Writes a frame. Throws where there is no session, or too much waits. */
  write(frame: Uint8Array): void;
  /** Keeps a message with ACK until its fate is known; `post` is to be called to send it, now and after each login. */
  keep(id: bigint, kind: number, to: bigint, body: Uint8Array, options: SendOptions): { message: Waiting; fate: Promise<Fate> };
  post(message: Waiting): void;
  /** The messages of this kind whose fate is not known. */
  waiting(kind: number): Waiting[];
  ask(question: Question): void;
}

/** For modules of this package. */
export const EXTEND = Symbol("extend");

export const messageOf = ({ flags, id, peer, stamp, body }: Frame): Message => ({
  from: peer,
  ...(peer >= SERVICE_USERS ? { service: Number(peer - SERVICE_USERS) } : {}),
  id,
  stamp,
  body: body.slice(),
  timeMs: Number(stamp >> 20n),
  self: (flags & FLAG_SELF) !== 0,
  replay: (flags & FLAG_REPLAY) !== 0,
});

export class Client {
  #options: Options;
  #user: bigint;
  #url: string;
  #state: State = "idle";
  #end: Error | undefined;
  #socket: WebSocketLike | undefined;
  #bye: { reason: number; bye: Bye } | undefined;
  #backoff: Backoff;
  /** Redirects that were followed one after the other. */
  #redirects = 0;
  #outstanding: Outstanding;
  /** What had no fate when the client ended. */
  #left: Unsettled[] | undefined;
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
  #resume: Resume;
  #session: Session = { registered: false, resumed: false, pending: 0, truncated: false };
  #caughtUp = false;
  #pages = new Pages();
  #calls = new Calls();
  #extensions: Extension[] = [];
  /** ACKs that are due when the frames that came together have been looked at. */
  #acks: Frame[] = [];
  /** One for all of them would be for others, too. */
  #acksApart = false;
  #opened: { resolve: () => void; reject: (error: Error) => void; promise: Promise<void> } | undefined;
  #listeners: { [name in keyof Events]: Set<Events[name]> } = { state: new Set(), error: new Set(), caughtUp: new Set(), gap: new Set() };
  #stir = () => this.#onStir();

  constructor(options: Options) {
    this.#options = options;
    this.#user = toId(options.user);
    if (this.#user === 0n && !options.token) throw new RangeError("user 0 needs a token");
    this.#url = options.url;
    this.#resume = unpackResume(options.resume);
    const { minMs, maxMs } = options.backoff ?? { minMs: 500, maxMs: 30_000 };
    this.#backoff = new Backoff(minMs, maxMs, Math.random);
    const { count, bytes } = options.outstanding ?? { count: 1_000, bytes: 4 << 20 };
    this.#outstanding = new Outstanding(count, bytes);
  }

  get state(): State {
    return this.#state;
  }

  /** What the gateway said of the inbox at the last login. */
  get session(): Session {
    return this.#session;
  }

  /**
   * Messages with ACK whose fate is not known, in the order in which they were sent; of a client that has ended, those that had none then. An application that keeps them over its own end
   * sends each again with its `id` and `retry`, and the gateway and the recipient know those that had arrived.
   */
  get unsettled(): Unsettled[] {
    return this.#left ?? this.#outstanding.unsettled();
  }

  /** Where this device stands: `resume` of a later client, which may be that of another page or process. It is a secret. */
  get resume(): string {
    return packResume(this.#resume);
  }

  /**
   * A page of what the gateway holds of this user's inbox, after a stamp or from a time on; the later of both counts. The next one is `{ after: page.next }`.
   * It fails with NotConnectedError where there is no session, or none any more, and with TrunklineError (21) where the gateway keeps nothing.
   */
  async history({ after = 0n, sinceMs = 0, limit = 0 }: { after?: Id; sinceMs?: number; limit?: number } = {}): Promise<Page> {
    if (this.#state !== "open") throw new NotConnectedError("there is no session at the moment");
    const position = toId(after);
    return new Promise<Page>((resolve, fail) => {
      const answer = ({ frames, end }: { frames: Frame[]; end: SyncOk }) => resolve({ messages: frames.map(messageOf), ...end });
      this.#pages.ask({ group: 0n, after: position, sinceMs, limit, answer, fail });
      this.#askForPage();
    });
  }

  /**
   * Logs in, and comes back by itself from then on. Resolves with the first session; rejects when there will be none. An address where nobody answers is tried for ever: the
   * event `error` tells of each attempt, and `close` ends it.
   */
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

  /**
   * Sends a message. With `ack` its fate comes, over as many connections as it takes; without, it is sent once or not at all. With `noStore` no gateway keeps it for
   * somebody who is offline. An `id` of your own, not 0, lets you tell it from others after a restart; `retry` says that it may have been sent before.
   */
  send(to: Id, body: Uint8Array | string, options: SendOptions & { ack: true }): Promise<Fate>;
  send(to: Id, body: Uint8Array | string, options?: { ack?: false; id?: Id }): Promise<undefined>;
  async send(to: Id, body: Uint8Array | string, options: SendOptions = {}): Promise<Fate | undefined> {
    if (this.#state === "ended") throw this.#end ?? new ClosedError("the client was closed");
    const peer = toId(to);
    if (peer === 0n) throw new RangeError("user 0 does not exist");
    const bytes = toBytes(body);
    const id = this.#idOf(options.id);
    if (options.ack) {
      const { message, fate } = this.#outstanding.add(id, Kind.SEND, peer, bytes, options);
      this.#post(message);
      return fate;
    }
    this.#writeOnce(long(Kind.SEND, 0, id, peer, 0n, bytes));
    return undefined;
  }

  /** The id that was given, or a new one. */
  #idOf(id?: Id): bigint {
    const given = id === undefined ? ++this.#nextId : toId(id);
    if (given === 0n) throw new RangeError("no message has the id 0");
    return given;
  }

  /** For what is sent once, or not at all. */
  #writeOnce(frame: Uint8Array): void {
    if (this.#state !== "open") throw new NotConnectedError("there is no session at the moment");
    if (!this.#hasRoom()) throw new FullError("too much waits in the socket");
    this.#write(frame);
  }

  #post(message: Waiting): void {
    if (this.#state === "open") this.#sendWaiting(message);
  }

  /** @internal */
  [EXTEND](extension: Extension): Port {
    if (this.#state !== "idle") throw new TrunklineError("to be given to a client before it connects");
    this.#extensions.push(extension);
    return {
      inboxMax: this.#inboxMax(),
      idOf: (id) => this.#idOf(id),
      write: (frame) => this.#writeOnce(frame),
      keep: (...message) => {
        if (this.#state === "ended") throw this.#end ?? new ClosedError("the client was closed");
        return this.#outstanding.add(...message);
      },
      post: (message) => this.#post(message),
      waiting: (kind) => this.#outstanding.all().filter((message) => message.kind === kind),
      ask: (question) => {
        if (this.#state !== "open") throw new NotConnectedError("there is no session at the moment");
        this.#pages.ask(question);
        this.#askForPage();
      },
    };
  }

  /**
   * Calls a service, 1 to 65,535, and waits for its answer. It fails with NotConnectedError where there is no session, and with CallError where the service has not
   * answered; that says whether the call may have been carried out. With `safe` it may be carried out more than once.
   */
  async call(service: number, body: Uint8Array | string = "", { safe = false }: { safe?: boolean } = {}): Promise<Reply> {
    if (!Number.isInteger(service) || service < 1 || service > 65_535) throw new RangeError(`${service} is no service`);
    if (this.#state !== "open") throw new NotConnectedError("there is no session at the moment");
    if (!this.#hasRoom()) throw new FullError("too much waits in the socket");
    const bytes = toBytes(body);
    const id = ++this.#nextId;
    const reply = this.#calls.add(id);
    this.#write(long(Kind.CALL, safe ? FLAG_SAFE : 0, id, 0n, 0n, bytes, service));
    return reply;
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

  /** Logs out, for good. What has no fate by then fails, and is in `unsettled`. */
  async close(): Promise<void> {
    if (this.#state === "ended") return;
    if (this.#state === "open") this.#write(short(Kind.LOGOUT));
    this.#finish(undefined);
  }

  #tell<Name extends keyof Events>(name: Name, ...what: Parameters<Events[Name]>): void {
    for (const listener of this.#listeners[name]) (listener as (...what: unknown[]) => void)(...what);
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
    if (!Socket) return this.#finish(new TrunklineError("no WebSocket here: give one, as of the package ws"));
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
    socket.onerror = () => this.#debug("the socket failed");
    socket.onclose = (event: { code: number }) => mine() && this.#onClose(event.code);
  }

  #login(token: string): Uint8Array {
    const { device = "", deviceClass = "", agent = "trunkline-js/0.1", heartbeatSecs = 0, window = 0, ephemeral = false } = this.#options;
    const { token: resume, lastStamp: highest } = this.#resume;
    const lastStamp = this.#extensions.reduce((stamp, it) => it.loginStamp(stamp), highest);
    return encodeLogin({ user: this.#user, token, device, deviceClass, agent, resume, lastStamp, heartbeatSecs, window, ephemeral });
  }

  #onMessage(data: unknown): void {
    this.#heardMs = Date.now();
    this.#pingMs = 0;
    try {
      if (!(data instanceof ArrayBuffer)) throw new RangeError("a message of text");
      for (const frame of frames(data)) this.#onFrame(frame);
      this.#acknowledge();
    } catch (error) {
      this.#report(new TrunklineError(`what came is no frame: ${String(error)}`));
      this.#abandon("what came is no frame");
    }
  }

  #onFrame(frame: Frame): void {
    this.#debug(`< kind 0x${frame.kind.toString(16)} aux ${frame.aux} id ${frame.id} of ${frame.body.length} bytes`);
    if (this.#extensions.some((it) => it.frame(frame))) return;
    switch (frame.kind) {
      case Kind.LOGIN_OK:
        return this.#onLoginOk(frame);
      case Kind.REPLY:
        return this.#calls.replied(frame);
      case Kind.PUSH:
        // From then on a service is a sender like others.
        return this.#onFrame({ ...frame, kind: Kind.DELIVER, peer: SERVICE_USERS + BigInt(frame.aux) });
      case Kind.DELIVER:
        if (this.#pages.isRunning()) this.#acksApart = true;
        return this.#pages.isRunning() && frame.flags & FLAG_REPLAY ? this.#pages.hold(frame) : this.#onDeliver(frame);
      case Kind.GROUP_DELIVER:
        return frame.flags & FLAG_REPLAY && this.#pages.isRunning(frame.peer) ? this.#pages.hold(frame) : undefined;
      case Kind.SYNC_OK:
        return this.#pages.isRunning() && !frame.aux ? this.#pages.hold(frame) : this.#onSyncOk(frame);
      case Kind.SENT:
        return this.#outstanding.take(frame.id)?.settle(fateOf(frame.aux));
      case Kind.BYE:
        this.#bye = { reason: frame.aux, bye: decodeBye(frame.body) };
        return;
      case Kind.ERROR: {
        const { id, peer, aux } = frame;
        const text = new TextDecoder().decode(frame.body);
        if (this.#calls.refused(id, aux, text)) return;
        const error = new TrunklineError(`error ${aux}: ${text}`, aux);
        const message = this.#outstanding.take(id);
        if (message) return message.fail(error);
        // That of a group names it, or is what any frame may be refused for; 20 and 21 are of something else.
        const held = !id && PAGE_REFUSALS.includes(aux) && (this.#pages.isRunning(peer) || (!peer && aux < 20)) && this.#pages.refused(error);
        return held ? this.#release(held) : this.#report(error);
      }
    }
  }

  #onLoginOk({ body }: Frame): void {
    const { heartbeatSecs, expiresMs, resume, resumed, pending, floor, truncated } = decodeLoginOk(body);
    this.#clearTimers();
    this.#refused = false;
    this.#heartbeatMs = heartbeatSecs * 1_000;
    this.#keepAlive();
    if (expiresMs && typeof this.#options.token === "function") this.#renewBefore(expiresMs);
    // Also the answer to RENEW.
    if (this.#state === "open") return;
    this.#backoff.reset();
    const registered = resume.length > 0;
    this.#session = { registered, resumed, pending, truncated };
    // A login that was answered without the store has none; then the one from before is kept.
    if (registered) this.#resume = { ...this.#resume, token: resume };
    this.#caughtUp = false;
    this.#acks = [];
    this.#setState("open");
    if (truncated) this.#tell("gap", floor);
    this.#opened?.resolve();
    this.#opened = undefined;
    for (const message of this.#outstanding.all()) if (message.kind === Kind.SEND) this.#sendWaiting(message);
    for (const it of this.#extensions) it.opened();
  }

  /** SYNC_OK: the end of the backlog, or of a page. */
  #onSyncOk({ aux, body }: Frame): void {
    const end = decodeSyncOk(body);
    if (aux) {
      this.#acksApart = true;
      return this.#release(this.#pages.over(aux, end));
    }
    if (end.truncated && (this.#caughtUp || !this.#session.truncated)) this.#tell("gap", end.floor);
    if (this.#caughtUp) return;
    this.#caughtUp = true;
    this.#tell("caughtUp");
  }

  /** What was held while a page was on its way, and is not of it. */
  #release(held: Frame[]): void {
    for (const frame of held) {
      // One before it may have ended the connection; then it comes again.
      if (this.#state !== "open") return;
      if (frame.kind === Kind.DELIVER) this.#onDeliver(frame);
      else this.#onSyncOk(frame);
    }
    this.#askForPage();
  }

  #askForPage(): void {
    const next = this.#pages.next();
    if (!next) return;
    const { group, after, sinceMs, limit } = next.question;
    this.#write(short(Kind.SYNC, next.aux, encodeSync(after, sinceMs, limit, group)));
  }

  /** The ACKs that are due: one for all, where the gateway has a cursor for this device; another may take it for one of a single message. */
  #acknowledge(): void {
    const [acks, apart] = [this.#acks, this.#acksApart || !this.#session.registered];
    this.#acks = [];
    this.#acksApart = false;
    const flags = apart || acks.length < 2 ? 0 : FLAG_CUMULATIVE;
    for (const { id, peer, stamp } of flags ? acks.slice(-1) : acks) this.#write(long(Kind.ACK, flags, id, peer, stamp));
  }

  #onDeliver(frame: Frame): void {
    const { flags, id, peer, stamp } = frame;
    const name = `${peer} ${id}`;
    const again = this.#seen.has(name);
    if (flags & FLAG_ACK && (again || this.#inbox.length < this.#inboxMax())) {
      this.#acks.push(frame);
      // Nobody can tell which copy an ACK for all before it would be of.
      if (flags & FLAG_AGAIN) this.#acksApart = true;
      if (stamp > this.#resume.lastStamp) this.#resume = { ...this.#resume, lastStamp: stamp };
    }
    if (again) return;
    if (this.#inbox.length >= this.#inboxMax()) {
      this.#acknowledge();
      this.#report(new FullError("nobody takes the messages that come"));
      return this.#abandon("nobody takes the messages that come");
    }
    this.#remember(name);
    const message = messageOf(frame);
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
    const flags = FLAG_ACK | (message.sent ? FLAG_RETRY : 0) | (message.noStore ? FLAG_NO_STORE : 0);
    message.sent = true;
    this.#write(long(message.kind, flags, message.id, message.to, 0n, message.body));
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
    this.#pages.end();
    this.#calls.end();
    for (const it of this.#extensions) it.lost();
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
    // Whoever waits for the first session should see that the address is wrong, or nobody there.
    if (this.#opened && !this.#bye) this.#report(new TrunklineError(`no session at ${this.#url}: closed with ${code}`));
    // Nodes that name each other must not have it go round without a pause.
    const to = this.#redirects < REDIRECTS_MAX && bye?.redirect;
    this.#redirects = to ? this.#redirects + 1 : 0;
    this.#wait(to ? 0 : bye?.reconnectAfterMs || this.#backoff.next(), to);
  }

  /** Comes back later. `to`: another node has the user, and is reached by the same way as this one. */
  #wait(ms: number, to?: string | false): void {
    if (this.#state === "ended") return;
    // A node that was named, and gives no session, may be gone for good.
    if (this.#state !== "open") this.#url = this.#options.url;
    try {
      const url = new URL(this.#url);
      url.host = to || url.host;
      this.#url = url.href;
    } catch {
      // An address without a host has none to change.
    }
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
    this.#left = this.#outstanding.unsettled();
    this.#outstanding.fail(told);
    for (const it of this.#extensions) it.lost(told);
    this.#opened?.promise.catch(() => {});
    this.#opened?.reject(told);
    const taker = this.#taker;
    this.#taker = undefined;
    if (error) taker?.reject(error);
    else taker?.resolve({ value: undefined, done: true });
  }
}
