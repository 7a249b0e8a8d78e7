/**
 * Groups and live rooms, for a client that wants them: `new Groups(client)`.
 *
 * Messages of a group have numbers on a connection, and positions (stamps) for ever. A number that is skipped, a position in HEADS that is further than what came, and
 * messages that nobody had room for make the group *behind*: its log is fetched from the last whole position, page by page, and what comes meanwhile is held, so that
 * the order stays. A live room has no log: there the number of missed messages is told.
 */

import { Backoff } from "./backoff.js";
import { EXTEND, toBytes, toId, type Client, type Extension, type Id, type Port } from "./client.js";
import { FullError, NotConnectedError, TrunklineError } from "./errors.js";
import { FLAG_REPLAY, FLAG_SELF, Kind, long, type Frame } from "./frames.js";
import type { Fate, Message as Waiting, SendOptions } from "./outstanding.js";
import { decodeHeads } from "./heads.js";
import type { SyncOk } from "./proto.js";

/** A message to a group or live room. */
export interface GroupMessage {
  group: bigint;
  from: bigint;
  id: bigint;
  /** Its position in the group, the same for every member. */
  stamp: bigint;
  body: Uint8Array;
  /** When the gateway took it, milliseconds since the epoch by its clock. */
  timeMs: number;
  /** The user's own: sent from another device, or by an earlier page. */
  self: boolean;
  /** It comes from the group's log: this client had missed it, or it is of `history`. */
  replay: boolean;
}

/** Where a group stands. */
export interface GroupHead {
  group: bigint;
  /** Position of its newest message. */
  stamp: bigint;
  /** Up to here the user has marked it as read; 0 where that is not known. */
  read: bigint;
}

/** A page of what the gateway holds of a group. */
export interface GroupPage {
  /** By rising stamp, the own ones included. */
  messages: GroupMessage[];
  /** `after` of the next page. */
  next: bigint;
  /** Nothing is left behind this page. */
  complete: boolean;
  /** Messages behind the position or time asked for are gone. */
  truncated: boolean;
  /** Up to here the group holds nothing any more. */
  floor: bigint;
  /** Position of its newest message. */
  last: bigint;
}

interface Events {
  /** Messages were not given to this session; `missed` is 0 where it is not known how many. Those of a group come next, in order, if they are kept; those of a live room are gone. */
  gap: (group: bigint, missed: number) => void;
  /** Messages up to this position are gone from a group's log, and this client has not had them. */
  truncated: (group: bigint, floor: bigint) => void;
  /** The user is in groups of which this client has no position: what comes from now on is told. `follow` fetches what lies behind an earlier one. */
  heads: (heads: GroupHead[]) => void;
  /** The client is not in this group or room any more, or its messages cannot be had. */
  lost: (group: bigint, error: TrunklineError) => void;
}

const ROOMS_FROM = 1n << 63n;
/** Groups and rooms that are kept account of; what comes of others is passed on as it comes. */
const GROUPS_MAX = 4_096;
/** Messages held over all groups that are behind. Those beyond are fetched in their turn. */
const HELD_MAX = 1_024;
/** Names of messages remembered, to know one that comes twice. */
const RECENT_MAX = 4_096;
/** Messages after which the first one of a connection is not doubted any more. */
const DOUBT_MAX = 256;
/** Joins and leaves under way, and positions of own messages of a group. */
const ASKS_MAX = 1_024;
const PAGE = 256;
const REFUSED_MS = 1_000;
const NUMBERS = 65_535;
const ACCEPTED = 6;
const STORED = 1;
/** Refusals of a page that may be otherwise in a while. */
const MAY_CHANGE = [11, 14, 18];
/** Attention that a gateway cannot give yet is asked for again, later each time up to a bound: for `open` and `close` so often in all, after a reconnect as long as the session lasts. Likewise a room that cannot be joined again yet. */
const LATER = 14;
const [AGAIN_MS_MIN, AGAIN_MS_MAX, TRIES_MAX] = [1_000, 30_000, 6];

/** Whether this is the id of a live room: 2^63 or above. */
export const isLiveRoom = (group: bigint) => group >= ROOMS_FROM;

interface Track {
  /** Up to here everything was told. */
  whole: bigint;
  /** Number and position of the last message on this connection. */
  number?: { value: number; at: bigint } | undefined;
  /** Positions of own messages since then, which do not come back; of those without ACK the count. */
  own: bigint[];
  unacked: number;
  /** The first message of a connection may have had others before it; then HEADS tells, and what lies behind `from` is fetched without what was told since. */
  doubt?: { from: bigint; told: Set<bigint> } | undefined;
  /** It is behind: the position that has to be reached. */
  behind?: bigint | undefined;
  cursor: bigint;
  held: GroupMessage[];
  /** The session is to get its messages however large it is. */
  open?: boolean;
}

interface Asked {
  group: bigint;
  leave: boolean;
  /** It is about attention alone. */
  open?: boolean | undefined;
  resolve: (stamp: bigint) => void;
  fail: (error: Error) => void;
}

const messageOf = ({ flags, id, peer, stamp, body }: Frame): GroupMessage => ({
  group: peer,
  from: new DataView(body.buffer, body.byteOffset).getBigUint64(0),
  id,
  stamp,
  body: body.slice(8),
  timeMs: Number(stamp >> 20n),
  self: (flags & FLAG_SELF) !== 0,
  replay: (flags & FLAG_REPLAY) !== 0,
});

// 0 stands for this user, whose id a client that the gateway tells who it is does not know.
const nameOf = ({ group, from, id, self }: GroupMessage) => `${group} ${self ? 0 : from} ${id}`;
const max = (one: bigint, other: bigint) => (one > other ? one : other);
const byStamp = (one: GroupMessage, other: GroupMessage) => (one.stamp < other.stamp ? -1 : one.stamp > other.stamp ? 1 : 0);

export class Groups {
  #port: Port;
  #tracks = new Map<bigint, Track>();
  #recent = new Set<string>();
  #asked = new Map<bigint, Asked>();
  #sent = new Set<bigint>();
  /** Positions up to which messages were taken. */
  #taken = new Map<bigint, bigint>();
  #due = new Set<bigint>();
  #pull: { group: bigint } | undefined;
  #held = 0;
  #isOpen = false;
  #end: Error | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The latest wish for attention for each group, while it is not answered; and those that wait to be told again. */
  #wishes = new Map<bigint, object>();
  #later = new Map<ReturnType<typeof setTimeout>, (error: Error) => void>();
  #againMs: number;
  #inbox: GroupMessage[] = [];
  #taker: { resolve: (result: IteratorResult<GroupMessage>) => void; reject: (error: Error) => void } | undefined;
  #listeners: { [name in keyof Events]: Set<Events[name]> } = { gap: new Set(), truncated: new Set(), heads: new Set(), lost: new Set() };
  /** Rooms that are being joined again; what is said in them waits. */
  #rejoining = new Set<bigint>();

  /** To be made before `client.connect()`, once for a client. `positions` are those of an earlier one. */
  constructor(client: Client, { positions = "", againMs = AGAIN_MS_MIN }: { positions?: string; againMs?: number } = {}) {
    this.#againMs = againMs;
    for (const [, group, stamp] of positions.matchAll(/(\d+):(\d+)/g)) {
      if (this.#tracks.size < GROUPS_MAX) this.#begin(BigInt(group!), BigInt(stamp!));
    }
    const extension: Extension = {
      loginStamp: (lastStamp) => [...this.#tracks].reduce((least, [group, { whole }]) => (!isLiveRoom(group) && whole < least ? whole : least), lastStamp),
      opened: () => this.#onOpened(),
      lost: (error) => this.#onLost(error),
      frame: (frame) => this.#onFrame(frame),
    };
    this.#port = client[EXTEND](extension);
  }

  /** Where the groups stand, for `positions` of a later page or process: what lies behind is fetched then. */
  get positions(): string {
    return [...this.#taken].map(([group, stamp]) => `${group}:${stamp}`).join();
  }

  /** Joins a group, or this session a live room (ids from 2^63 on). The position of its last message: what comes lies behind it. A room is joined again after a reconnect. */
  join(group: Id): Promise<bigint> {
    return this.#ask(group, false);
  }

  /** Leaves it: no message of it comes once this has resolved. */
  async leave(group: Id): Promise<void> {
    const peer = toGroup(group);
    // A session is in a room, and without one nobody is.
    if (isLiveRoom(peer)) this.#forget(peer);
    this.#wishes.delete(peer);
    if (this.#isOpen || !isLiveRoom(peer)) await this.#ask(peer, true);
  }

  /**
   * Opens a group whose messages are to come as they are sent, however large it is: in one with more members than the gateway is set to (10,000) a session is told otherwise
   * within 5 s that there are some, and fetches them then, after `gap`. It holds over reconnects, until `close` or `leave`, and changes nothing for a small group or a room.
   * A gateway that cannot say yet is asked for some seconds before it fails with TrunklineError (14).
   */
  async open(group: Id): Promise<void> {
    await this.#attend(toGroup(group), true, TRIES_MAX);
  }

  /** The opposite of `open`. */
  async close(group: Id): Promise<void> {
    await this.#attend(toGroup(group), false, TRIES_MAX);
  }

  /**
   * Sends to a group or room. With `ack` its fate comes, over as many connections as it takes: "stored", in a room or with `noStore` "accepted", "denied", "overloaded"; it
   * fails with TrunklineError (11) for more than a member may send in a second. Without, it is sent once or not at all. The own message does not come back.
   */
  send(group: Id, body: Uint8Array | string, options: SendOptions & { ack: true }): Promise<Fate>;
  send(group: Id, body: Uint8Array | string, options?: { ack?: false; id?: Id }): Promise<undefined>;
  async send(group: Id, body: Uint8Array | string, options: SendOptions = {}): Promise<Fate | undefined> {
    const peer = toGroup(group);
    const [id, bytes] = [this.#port.idOf(options.id), toBytes(body)];
    if (!options.ack) {
      this.#port.write(long(Kind.GROUP_SEND, 0, id, peer, 0n, bytes));
      const track = this.#tracks.get(peer);
      if (track) track.unacked++;
    }
    this.#remember(`${peer} 0 ${id}`);
    if (!options.ack) return undefined;
    const { message, fate } = this.#port.keep(id, Kind.GROUP_SEND, peer, bytes, options);
    if (this.#isOpen && !this.#rejoining.has(peer)) this.#post(message);
    return fate;
  }

  /** The user has read the group up to there. It never goes back, and nothing is answered. */
  mark(group: Id, stamp: Id): void {
    this.#port.write(long(Kind.MARK, 0, 0n, toGroup(group), toId(stamp)));
  }

  /** Fetches what a group has behind a position, as messages, and goes on from there. */
  follow(group: Id, after: Id): void {
    const peer = toGroup(group);
    if (isLiveRoom(peer)) throw new RangeError("nothing is kept of a live room");
    this.#begin(peer, toId(after));
    const track = this.#tracks.get(peer)!;
    track.doubt = undefined;
    this.#fallBehind(peer, track, 0n);
    track.cursor = track.whole;
    this.#forgetPage(peer);
    this.#next();
  }

  /** A page of what the gateway holds of a group, for looking back; the next one is `{ after: page.next }`. It fails with TrunklineError: 19 for one who is no member, 21 for a room. */
  async history(group: Id, { after = 0n, sinceMs = 0, limit = 0 }: { after?: Id; sinceMs?: number; limit?: number } = {}): Promise<GroupPage> {
    const [peer, position] = [toGroup(group), toId(after)];
    return new Promise<GroupPage>((resolve, fail) => {
      const answer = ({ frames, end }: { frames: Frame[]; end: SyncOk }) => resolve({ messages: frames.map(messageOf), ...end });
      this.#port.ask({ group: peer, after: position, sinceMs, limit, answer, fail });
    });
  }

  /** Messages as they come; those of a group each once and in order. It ends with the client, and throws what that ended with. */
  async *[Symbol.asyncIterator](): AsyncGenerator<GroupMessage, void, undefined> {
    for (;;) {
      let message = this.#inbox.shift();
      if (!message) {
        if (this.#end) {
          if (this.#end.name === "ClosedError") return;
          throw this.#end;
        }
        const next = await new Promise<IteratorResult<GroupMessage>>((resolve, reject) => (this.#taker = { resolve, reject }));
        if (next.done) return;
        message = next.value;
      }
      yield message;
      // Whoever asks for the next is done with this one.
      const { group, stamp } = message;
      const known = this.#taken.get(group);
      if (known !== undefined) this.#taken.set(group, max(known, stamp));
      if (this.#due.size) this.#next();
    }
  }

  on<Name extends keyof Events>(name: Name, listener: Events[Name]): () => void {
    this.#listeners[name].add(listener);
    return () => void this.#listeners[name].delete(listener);
  }

  #tell<Name extends keyof Events>(name: Name, ...what: Parameters<Events[Name]>): void {
    for (const listener of this.#listeners[name]) (listener as (...what: unknown[]) => void)(...what);
  }

  #ask(to: Id, leave: boolean, open?: boolean): Promise<bigint> {
    const group = toGroup(to);
    return new Promise((resolve, fail) => {
      if (this.#asked.size + this.#later.size >= ASKS_MAX) throw new FullError("too many joins and leaves are under way");
      if (!leave && isLiveRoom(group) && this.#tracks.size >= GROUPS_MAX) throw new FullError("in as many groups as can be");
      const id = this.#port.idOf();
      this.#port.write(long(leave ? Kind.GROUP_LEAVE : Kind.GROUP_JOIN, 0, id, group, 0n, undefined, open === undefined ? 0 : 1));
      this.#asked.set(id, { group, leave, open, resolve, fail });
    });
  }

  async #attend(group: bigint, open: boolean, triesMax: number): Promise<void> {
    if (isLiveRoom(group)) return;
    const wish = {};
    this.#wishes.set(group, wish);
    const backoff = this.#newBackoff();
    try {
      for (let tries = 1; ; tries++) {
        try {
          return void (await this.#ask(group, !open, open));
        } catch (error) {
          const isLater = error instanceof TrunklineError && error.code === LATER && tries < triesMax;
          // Another wish may have taken its place, before or meanwhile.
          if (!isLater || this.#wishes.get(group) !== wish) throw error;
          await this.#pause(backoff);
          if (this.#wishes.get(group) !== wish) throw error;
        }
      }
    } finally {
      if (this.#wishes.get(group) === wish) this.#wishes.delete(group);
    }
  }

  #newBackoff(): Backoff {
    return new Backoff(this.#againMs, AGAIN_MS_MAX, () => 0.5 + Math.random() / 2);
  }

  #pause(backoff: Backoff): Promise<void> {
    return new Promise((resolve, fail) => {
      const timer = setTimeout(() => (this.#later.delete(timer), resolve()), backoff.next());
      this.#later.set(timer, fail);
    });
  }

  // The session

  #onOpened(): void {
    this.#isOpen = true;
    for (const [group, track] of this.#tracks) {
      track.number = undefined;
      track.own = [];
      track.unacked = 0;
      if (isLiveRoom(group)) this.#rejoin(group, track);
      // Attention ends with a session. What it is refused for, HEADS tells.
      if (track.open) this.#attend(group, true, Infinity).catch(() => undefined);
    }
    for (const message of this.#port.waiting(Kind.GROUP_SEND)) if (!this.#rejoining.has(message.to)) this.#post(message);
    this.#next();
  }

  #rejoin(group: bigint, track: Track): void {
    this.#rejoining.add(group);
    const before = track.whole;
    const backoff = this.#newBackoff();
    const isWanted = () => this.#tracks.get(group) === track;
    const join = (): Promise<bigint | undefined> =>
      this.#ask(group, false).catch(async (error: Error) => {
        // Its home may just have ended, or they are too many at once.
        if (!(error instanceof TrunklineError && MAY_CHANGE.includes(error.code) && isWanted())) throw error;
        await this.#pause(backoff);
        return isWanted() ? join() : undefined;
      });
    join()
      .then(
        (stamp) => stamp !== undefined && stamp > before && this.#tell("gap", group, 0),
        (error: Error) => {
          if (error instanceof NotConnectedError || this.#end || !isWanted()) return;
          this.#forget(group);
          this.#tell("lost", group, error as TrunklineError);
        },
      )
      .finally(() => {
        if (!this.#isOpen || !this.#rejoining.delete(group)) return;
        for (const message of this.#port.waiting(Kind.GROUP_SEND)) if (message.to === group) this.#post(message);
      });
  }

  #post(message: Waiting): void {
    // One that was sent on an earlier connection may have its number there.
    if (!message.sent) this.#sent.add(message.id);
    this.#port.post(message);
  }

  #onLost(error?: Error): void {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#sent.clear();
    this.#rejoining.clear();
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    const later = [...this.#later];
    this.#later.clear();
    for (const [timer] of later) clearTimeout(timer);
    for (const fail of [...asked.map(({ fail }) => fail), ...later.map(([, fail]) => fail)]) fail(error ?? new NotConnectedError("the session ended before the answer"));
    if (!error) return;
    this.#end = error;
    const taker = this.#taker;
    this.#taker = undefined;
    if (error.name === "ClosedError") taker?.resolve({ value: undefined, done: true });
    else taker?.reject(error);
  }

  #onFrame(frame: Frame): boolean {
    const { kind, aux, id, peer, stamp, flags, body } = frame;
    switch (kind) {
      case Kind.GROUP_DELIVER:
        if (body.length < 8) throw new RangeError("a message to a group without its sender");
        if (flags & FLAG_REPLAY) return false;
        this.#onDeliver(messageOf(frame), aux);
        return true;
      case Kind.HEADS:
        this.#onHeads(body);
        return true;
      case Kind.SENT: {
        const track = this.#sent.delete(id) && this.#tracks.get(peer);
        if (track && (aux === STORED || aux === ACCEPTED)) {
          track.own.push(stamp);
          // The number of one that is forgotten looks like a gap, and is fetched.
          if (track.own.length > ASKS_MAX) track.own.shift();
        }
        return false;
      }
      case Kind.GROUP_OK:
      case Kind.ERROR: {
        this.#sent.delete(id);
        const asked = this.#asked.get(id);
        if (!asked || asked.group !== peer) return kind === Kind.GROUP_OK;
        this.#asked.delete(id);
        if (kind === Kind.ERROR) asked.fail(new TrunklineError(`error ${aux}: ${new TextDecoder().decode(body)}`, aux));
        else {
          if (asked.leave && asked.open === undefined) this.#forget(peer);
          else this.#joined(peer, stamp);
          const track = this.#tracks.get(peer);
          if (track && asked.open !== undefined) track.open = asked.open;
          asked.resolve(stamp);
        }
        return true;
      }
    }
    return false;
  }

  // What this client has of each group

  #begin(group: bigint, whole: bigint): void {
    const track = this.#tracks.get(group);
    if (track) track.whole = whole;
    else if (this.#tracks.size >= GROUPS_MAX) throw new FullError("in as many groups as can be");
    else this.#tracks.set(group, { whole, own: [], unacked: 0, cursor: 0n, held: [] });
    if (!isLiveRoom(group)) this.#taken.set(group, whole);
  }

  #forget(group: bigint): void {
    this.#held -= this.#tracks.get(group)?.held.length ?? 0;
    this.#tracks.delete(group);
    this.#taken.delete(group);
    this.#forgetPage(group);
  }

  #forgetPage(group: bigint): void {
    if (this.#pull?.group === group) this.#pull = undefined;
  }

  #joined(group: bigint, stamp: bigint): void {
    const track = this.#tracks.get(group);
    if (!track) {
      if (this.#tracks.size < GROUPS_MAX) this.#begin(group, stamp);
    } else if (isLiveRoom(group)) track.whole = stamp;
    else if (stamp > track.whole) {
      this.#fallBehind(group, track, stamp);
      this.#next();
    }
  }

  #fallBehind(group: bigint, track: Track, target: bigint): void {
    if (track.behind !== undefined) {
      track.behind = max(track.behind, target);
      return;
    }
    track.behind = target;
    track.cursor = track.doubt?.from ?? track.whole;
    this.#due.add(group);
  }

  /** A set keeps the order in which things were added, so the first is the oldest. Whether it is new. */
  #remember(name: string): boolean {
    if (this.#recent.has(name)) return false;
    this.#recent.add(name);
    if (this.#recent.size > RECENT_MAX) for (const oldest of this.#recent) return this.#recent.delete(oldest);
    return true;
  }

  /**
   * How many messages are missing before this number, or up to it where it is not that of a message; and notes it. Nothing where numbers do not tell.
   * What is of before was on its way when the gateway said how far the group is.
   */
  #count(track: Track, value: number, at: bigint, isMessage: boolean): number | undefined {
    const last = track.number;
    const takeOwn = () => {
      const later = track.own.filter((own) => own > at || (isMessage && own === at));
      const taken = track.own.length - later.length;
      track.own = later;
      return taken;
    };
    let step = last ? (value + NUMBERS - last.value) % NUMBERS : 0;
    if (last && (step === 0 || step > NUMBERS / 2) && at <= last.at) return 0;
    track.number = { value, at: last ? max(at, last.at) : at };
    if (!last) {
      takeOwn();
      return isMessage ? 0 : undefined;
    }
    if (step === 0 && !isMessage) return undefined;
    step ||= NUMBERS;
    return Math.max(0, step - takeOwn() - Number(isMessage));
  }

  /** Tells of a gap, apart from own messages whose numbers are not known. */
  #tellGap(group: bigint, track: Track, missed: number): void {
    const unacked = Math.min(missed, track.unacked);
    track.unacked -= unacked;
    if (missed > unacked) this.#tell("gap", group, missed - unacked);
  }

  #onDeliver(message: GroupMessage, number: number): void {
    const { group, stamp } = message;
    let track = this.#tracks.get(group);
    // One of a room was on its way when this client left.
    if (!track && isLiveRoom(group)) return;
    const isKnown = track !== undefined;
    if (!track && this.#tracks.size < GROUPS_MAX) {
      this.#begin(group, stamp - 1n);
      track = this.#tracks.get(group);
    }
    if (!track) {
      if (this.#remember(nameOf(message))) this.#give(message);
      return;
    }
    const isFirst = !track.number;
    const missed = (number && this.#count(track, number, stamp, true)) || 0;
    if (missed) this.#tellGap(group, track, missed);
    if (isLiveRoom(group)) track.whole = max(track.whole, stamp);
    else if (missed) this.#fallBehind(group, track, stamp);
    else if (isFirst && isKnown && track.behind === undefined) track.doubt ??= { from: track.whole, told: new Set() };
    const isNews = this.#remember(nameOf(message));
    if (track.behind === undefined) {
      track.whole = max(track.whole, stamp);
      track.doubt?.told.add(stamp);
      if (track.doubt && track.doubt.told.size > DOUBT_MAX) track.doubt = undefined;
      if (isNews) this.#give(message);
    } else if (isNews && this.#held < HELD_MAX) {
      this.#held++;
      track.held.push(message);
    } else if (isNews) {
      // A page will have it.
      track.behind = max(track.behind, stamp);
      this.#recent.delete(nameOf(message));
    }
    this.#next();
  }

  #onHeads(body: Uint8Array): void {
    const unknown: GroupHead[] = [];
    for (const { group, stamp, read, seq } of decodeHeads(body)) {
      const value = seq ? Number((seq - 1n) % BigInt(NUMBERS)) + 1 : 0;
      const track = this.#tracks.get(group);
      if (!track) {
        if (isLiveRoom(group)) continue;
        unknown.push({ group, stamp, read });
        if (this.#tracks.size >= GROUPS_MAX) continue;
        this.#begin(group, stamp);
        if (value) this.#tracks.get(group)!.number = { value, at: stamp };
        continue;
      }
      const missed = value ? this.#count(track, value, stamp, false) : undefined;
      if (!value) track.number = undefined;
      if (missed) this.#tellGap(group, track, missed);
      if (isLiveRoom(group)) track.whole = max(track.whole, stamp);
      else if (missed === 0 && !track.doubt) {
        if (track.behind === undefined) track.whole = max(track.whole, stamp);
      } else if (stamp > track.whole || track.doubt) this.#fallBehind(group, track, stamp);
    }
    if (unknown.length) this.#tell("heads", unknown);
    this.#next();
  }

  /** Hands a message over. One of a group that finds no room is fetched when there is some. */
  #give(message: GroupMessage): void {
    const { group, stamp } = message;
    const taker = this.#taker;
    this.#taker = undefined;
    if (taker) return taker.resolve({ value: message, done: false });
    if (this.#inbox.length < this.#port.inboxMax) return void this.#inbox.push(message);
    this.#recent.delete(nameOf(message));
    const track = this.#tracks.get(group);
    if (isLiveRoom(group) || !track) return this.#tell("gap", group, 1);
    if (track.whole >= stamp) track.whole = stamp - 1n;
    // What may be missing before it is still to be fetched.
    track.doubt?.told.delete(stamp);
    this.#fallBehind(group, track, 0n);
    if (track.cursor >= stamp) track.cursor = stamp - 1n;
    this.#forgetPage(group);
  }

  // Pages

  /** Asks for the next page of a group that is behind, if there is room for it. */
  #next(): void {
    if (!this.#isOpen || this.#pull || this.#timer) return;
    const room = this.#port.inboxMax - this.#inbox.length;
    for (const group of this.#due) {
      // It is asked again when a message is taken.
      if (room <= 0) return;
      this.#due.delete(group);
      const track = this.#tracks.get(group);
      if (track?.behind === undefined) continue;
      const [pull, target] = [{ group }, track.behind];
      this.#pull = pull;
      const answer = ({ frames, end }: { frames: Frame[]; end: SyncOk }) => this.#onPage(pull, target, frames.map(messageOf), end);
      try {
        this.#port.ask({ group, after: track.cursor, sinceMs: 0, limit: Math.min(PAGE, room), answer, fail: (error) => this.#onRefused(pull, error) });
      } catch (error) {
        this.#onRefused(pull, error as Error);
      }
      return;
    }
  }

  #onPage(pull: { group: bigint }, target: bigint, messages: GroupMessage[], end: SyncOk): void {
    const { group } = pull;
    const track = this.#tracks.get(group);
    const isStale = this.#pull !== pull;
    if (!isStale) this.#pull = undefined;
    if (track && isStale) this.#due.add(group);
    if (track && !isStale && track.behind !== undefined) {
      if (end.truncated) this.#tell("truncated", group, end.floor);
      const next = max(end.next, track.cursor);
      const isOver = end.complete && track.behind <= target;
      // Nothing has come of it; the rest is on its way to the log.
      if (!isOver && next === track.cursor) this.#wait();
      const news = messages.filter((message) => !track.doubt?.told.has(message.stamp) && this.#remember(nameOf(message)));
      const held = track.held.filter(({ stamp }) => isOver || stamp <= next);
      track.held = track.held.filter(({ stamp }) => !isOver && stamp > next);
      this.#held -= held.length;
      news.push(...held);
      news.sort(byStamp);
      track.cursor = next;
      track.whole = news.reduce((whole, { stamp }) => max(whole, stamp), max(track.whole, next));
      if (isOver) track.behind = track.doubt = undefined;
      else this.#due.add(group);
      for (const message of news) this.#give(message);
    }
    this.#next();
  }

  #onRefused(pull: { group: bigint }, error: Error): void {
    const { group } = pull;
    if (this.#pull === pull) this.#pull = undefined;
    const track = this.#tracks.get(group);
    if (!track) return;
    const code = error instanceof TrunklineError ? error.code : 0;
    if (!code || MAY_CHANGE.includes(code)) {
      this.#due.add(group);
      if (this.#isOpen) this.#wait();
      return;
    }
    const { held } = track;
    this.#forget(group);
    for (const message of held) this.#give(message);
    this.#tell("lost", group, error as TrunklineError);
    this.#next();
  }

  #wait(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#next();
    }, REFUSED_MS);
  }
}

function toGroup(group: Id): bigint {
  const id = toId(group);
  if (id === 0n) throw new RangeError("group 0 does not exist");
  return id;
}
