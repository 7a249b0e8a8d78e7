/** One connection of a worker to the services' port, from SERVE to its end. What keeps several of them, and makes them again, is the service. */

import { connect, type Socket } from "node:net";
import { nextTick } from "node:process";
import { connect as connectTls } from "node:tls";
import { NotConnectedError, TrunklineError } from "./errors.js";
import { FLAG_ACK, FLAG_NO_STORE, Kind, long, short, type Frame } from "./frames.js";
import { fateOf, type Fate } from "./outstanding.js";
import { decodeBye } from "./proto.js";
import { FLAG_MORE, FLAG_NOT_BEGUN, FrameReader, HEADER_LONG, ServiceKind, decodeServeOk, encodeServe, type Serve, type ServeOk } from "./service_frames.js";

/** Time for a connection and for SERVE_OK. */
const START_MS = 10_000;
/** How long a link waits for the gateway to close it, behind LOGOUT. */
const CLOSE_MS = 2_000;
/** How much longer than what a worker may send a REQUEST can be. */
const HEAD_BYTES_MAX = 1_024;
/** Longest frame before the gateway has said what it sends. */
const FIRST_BYTES_MAX = 1 << 20;
/** Number of the PING behind WINDOW 0; those that keep the link alive have 0. */
const DRAIN_PING = 1;
const TIMED_OUT = 24;

/** The gateway ended a link with BYE, or did not let it in. */
export class RefusedError extends TrunklineError {
  override name = "RefusedError";
  constructor(
    /** Reason, as in PROTOCOL.md: 6 key, 12 draining, 14 too many links, 20 name or services cannot be so. */
    code: number,
    text: string,
    /** Milliseconds after which the gateway wants to be asked again; 0 where it says none. */
    readonly afterMs: number,
  ) {
    super(text || `the gateway refused with ${code}`, code);
  }
}

/** The link broke before the fate of the push was known: it may have been delivered. */
export class FateUnknownError extends TrunklineError {
  override name = "FateUnknownError";
}

/** A push without a fate. */
export interface Push {
  id: bigint;
  user: bigint;
  settle: (fate: Fate) => void;
  fail: (error: Error) => void;
}

/** Where the services' port of a gateway is. */
export interface Address {
  host: string;
  port: number;
  /** Over TLS; `ca`: certificates (PEM) of whom to trust, in place of those that Node trusts. */
  tls?: { ca?: string | string[] };
}

/** What a link tells of. */
export interface Owner {
  /**
   * A request that has to be answered: with `answer`, unless `cancelled` says that nobody waits for it any more. A RangeError that it throws says that it is no request, and ends the
   * link.
   */
  requested(link: Link, frame: Frame): void;
  cancelled(link: Link, id: bigint): void;
}

export class Link {
  /** SERVE_OK; rejects where the gateway has not let it in. */
  readonly opened: Promise<ServeOk>;
  /** Resolves when it is over, with what ended it; undefined where it was drained or closed. */
  readonly ended: Promise<Error | undefined>;
  /** Requests that are to be answered on this link. */
  readonly #open = new Set<bigint>();
  readonly #pushes = new Map<string, Push>();
  readonly #socket: Socket;
  readonly #reader = new FrameReader(FIRST_BYTES_MAX);
  readonly #owner: Owner;
  #state: "opening" | "open" | "leaving" | "ended" = "opening";
  #bodyMax = 0;
  #corked = false;
  #heardMs = Date.now();
  #pingedMs = Date.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #drains = false;
  /** Behind the PONG to the PING of a drain no request comes. */
  #drained = false;
  #hasRoom: (() => void)[] = [];
  #onOpened!: { resolve: (ok: ServeOk) => void; reject: (error: Error) => void };
  #onEnded!: (error: Error | undefined) => void;

  constructor(address: Address, serve: Serve, owner: Owner) {
    this.#owner = owner;
    this.opened = new Promise((resolve, reject) => (this.#onOpened = { resolve, reject }));
    this.ended = new Promise((resolve) => (this.#onEnded = resolve));
    // Whoever waits for its end alone need not hear of it twice.
    this.opened.catch(() => {});
    const socket = (this.#socket = dial(address, () => this.#state === "opening" && this.#write(short(ServiceKind.SERVE, 0, encodeServe(serve)))));
    socket.on("data", (piece) => this.#onData(piece));
    socket.on("drain", () => this.#wake());
    socket.on("error", (error) => this.#end(new NotConnectedError(`the connection to the gateway: ${error.message}`)));
    socket.on("end", () => this.#end(this.#isLeaving() ? undefined : new NotConnectedError("the gateway has closed the connection")));
    socket.on("close", () => this.#end(this.#isLeaving() ? undefined : new NotConnectedError("the connection has ended")));
    this.#timer = setTimeout(() => this.#end(new NotConnectedError(`no answer in ${START_MS / 1_000} s`)), START_MS);
  }

  get isOpen(): boolean {
    return this.#state === "open";
  }

  /** Longest body of an answer or a push. */
  get bodyMax(): number {
    return this.#bodyMax;
  }

  /** Bytes that wait in the socket. */
  get waitingBytes(): number {
    return this.#socket.writableLength;
  }

  /** Whether a request is still to be answered here. */
  has(id: bigint): boolean {
    return this.#open.has(id);
  }

  /** Requests that the gateway may send at once. */
  setWindow(window: number): void {
    if (this.isOpen && !this.#drains) this.#write(short(ServiceKind.WINDOW, window));
  }

  /** Answers a request; with `more` another part follows. False where nobody waits for it any more. The body fits: `bodyMax`. */
  answer(id: bigint, status: number, body: Uint8Array, { more = false, notBegun = false } = {}): boolean {
    if (!this.#open.has(id)) return false;
    this.#write(long(ServiceKind.ANSWER, (more ? FLAG_MORE : 0) | (notBegun ? FLAG_NOT_BEGUN : 0), id, 0n, 0n, body, status));
    if (!more) this.forget(id);
    return true;
  }

  /** Leaves a request unanswered. */
  forget(id: bigint): void {
    this.#open.delete(id);
    this.#leaveIfDone();
  }

  /** Resolves when the socket takes more, or is gone. */
  async room(): Promise<void> {
    if (this.isOpen && this.#socket.writableNeedDrain) await new Promise<void>((resolve) => this.#hasRoom.push(resolve));
  }

  /** Sends a push. One with ACK is settled with its fate, or fails with the link. The body fits: `bodyMax`. */
  push(service: number, id: bigint, user: bigint, body: Uint8Array, noStore: boolean, waits?: Push): void {
    if (waits) this.#pushes.set(`${id} ${user}`, waits);
    this.#write(long(ServiceKind.PUSH_TO, (waits ? FLAG_ACK : 0) | (noStore ? FLAG_NO_STORE : 0), id, user, 0n, body, service));
  }

  /** Whether a push of this id to this user has no fate yet. */
  hasPush(id: bigint, user: bigint): boolean {
    return this.#pushes.has(`${id} ${user}`);
  }

  /** Takes no more requests; leaves when those it has are answered and all pushes have their fate. */
  drain(): void {
    if (this.#state === "opening") return this.close();
    if (!this.isOpen || this.#drains) return;
    this.#write(short(ServiceKind.WINDOW, 0));
    this.#write(short(Kind.PING, DRAIN_PING));
    this.#drains = true;
  }

  /** Ends it at once. */
  close(): void {
    this.#end(undefined);
  }

  #isLeaving(): boolean {
    return this.#state === "leaving";
  }

  /** What is written in one go leaves in one go. */
  #write(frame: Uint8Array): void {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      nextTick(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    this.#socket.write(frame);
  }

  #wake(): void {
    for (const resolve of this.#hasRoom.splice(0)) resolve();
  }

  #onData(piece: Uint8Array): void {
    this.#heardMs = Date.now();
    try {
      this.#reader.push(piece);
      for (let frame = this.#reader.next(); frame; frame = this.#reader.next()) {
        if (this.#state === "ended") return;
        this.#onFrame(frame);
      }
    } catch (error) {
      this.#end(new TrunklineError(`what came is no frame of a gateway: ${error instanceof Error ? error.message : String(error)}`));
    }
  }

  #onFrame(frame: Frame): void {
    if (frame.kind === Kind.BYE) {
      const { text, reconnectAfterMs } = decodeBye(frame.body);
      return this.#end(this.#isLeaving() ? undefined : new RefusedError(frame.aux, text, reconnectAfterMs));
    }
    if (this.#state === "opening") return this.#onFirst(frame);
    switch (frame.kind) {
      case ServiceKind.REQUEST:
        // One that comes behind LOGOUT was sent before the gateway had read WINDOW 0, which cannot be.
        if (!this.isOpen) return;
        this.#open.add(frame.id);
        return this.#owner.requested(this, frame);
      case ServiceKind.CANCEL:
        if (this.#open.has(frame.id)) this.#owner.cancelled(this, frame.id);
        return this.forget(frame.id);
      case ServiceKind.PUSHED:
        this.#takePush(frame)?.settle(fateOf(frame.aux));
        return this.#leaveIfDone();
      case Kind.ERROR:
        this.#takePush(frame)?.fail(new TrunklineError(`error ${frame.aux}: ${new TextDecoder().decode(frame.body)}`, frame.aux));
        return this.#leaveIfDone();
      case Kind.PONG:
        if (frame.aux !== DRAIN_PING) return;
        this.#drained = true;
        return this.#leaveIfDone();
    }
  }

  #onFirst(frame: Frame): void {
    if (frame.kind !== ServiceKind.SERVE_OK) throw new RangeError(`SERVE was answered with kind ${frame.kind}`);
    const ok = decodeServeOk(frame.body);
    this.#bodyMax = Math.max(0, ok.maxFrame - HEADER_LONG);
    this.#reader.bytesMax = ok.maxFrame + HEAD_BYTES_MAX;
    this.#state = "open";
    clearTimeout(this.#timer);
    this.#keepAlive(Math.max(1, ok.heartbeatSecs) * 1_000);
    this.#onOpened.resolve(ok);
  }

  #takePush({ id, peer }: Frame): Push | undefined {
    const name = `${id} ${peer}`;
    const push = this.#pushes.get(name);
    this.#pushes.delete(name);
    return push;
  }

  /** A PING each heartbeat; the end where nothing was heard for two. */
  #keepAlive(heartbeatMs: number): void {
    this.#timer = setTimeout(() => {
      if (!this.isOpen) return;
      const now = Date.now();
      if (now - this.#heardMs > 2 * heartbeatMs) return this.#end(new NotConnectedError("nothing was heard for two heartbeats", TIMED_OUT));
      if (now - this.#pingedMs >= heartbeatMs) {
        this.#pingedMs = now;
        this.#write(short(Kind.PING));
      }
      this.#keepAlive(heartbeatMs);
    }, heartbeatMs / 2);
  }

  #leaveIfDone(): void {
    if (!this.isOpen || !this.#drained || this.#open.size || this.#pushes.size) return;
    this.#state = "leaving";
    clearTimeout(this.#timer);
    this.#write(short(Kind.LOGOUT));
    // The gateway closes: a socket that is destroyed with something unread may lose what was written last.
    this.#socket.end();
    this.#timer = setTimeout(() => this.#end(undefined), CLOSE_MS);
  }

  #end(error: Error | undefined): void {
    if (this.#state === "ended") return;
    this.#state = "ended";
    clearTimeout(this.#timer);
    this.#socket.destroy();
    this.#open.clear();
    this.#wake();
    this.#onOpened.reject(error ?? new NotConnectedError("the link was closed"));
    for (const push of this.#pushes.values()) push.fail(new FateUnknownError("the connection broke before the fate of the push was known"));
    this.#pushes.clear();
    this.#onEnded(error);
  }
}

/** A connection; `opened` is called once it can be written to, and its certificate was found good. */
function dial({ host, port, tls }: Address, opened: () => void): Socket {
  if (!tls) return connect({ host, port, noDelay: true }).on("connect", opened);
  const socket = connectTls({ host, port, ca: tls.ca, ALPNProtocols: ["trunkline/1"] });
  socket.setNoDelay(true);
  return socket.on("secureConnect", opened);
}
