// Groups and live rooms: what is asked, what is told, each message once and in order. The test is the other end of the WebSocket.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Client, FullError, NotConnectedError, TrunklineError } from "../dist/index.js";
import { Groups, isLiveRoom } from "../dist/groups.js";
import { FakeSocket, LOGIN_OK, long, short } from "./fake.mjs";

const [GROUP_SEND, SYNC, JOIN, LEAVE, MARK] = [0x04, 0x07, 0x08, 0x09, 0x0d];
const [GROUP_DELIVER, SENT, SYNC_OK, GROUP_OK, HEADS, ERROR] = [0x84, 0x86, 0x89, 0x8b, 0x8c, 0x8f];
const [FLAG_ACK, NO_STORE, RETRY, REPLAY, SELF] = [1, 2, 4, 4, 8];
const GROUP = 77n;
const ROOM = (1n << 63n) + 5n;

const settle = () => new Promise((done) => setTimeout(done, 5));

/** A client with groups and a session, the socket it has it over, and what it was told. */
async function open({ positions = "", ...more } = {}) {
  const client = new Client({ url: "ws://a.example/ws", user: 42n, WebSocket: FakeSocket, backoff: { minMs: 1, maxMs: 1 }, ...more });
  const groups = new Groups(client, { positions, againMs: 2 });
  const told = [];
  for (const name of ["gap", "truncated", "lost"]) groups.on(name, (group, what) => told.push([name, group, what?.code ?? what]));
  groups.on("heads", (heads) => told.push(["heads", ...heads]));
  const connected = client.connect();
  await settle();
  FakeSocket.all.at(-1).receive(LOGIN_OK);
  await connected;
  return { client, groups, told, socket: FakeSocket.all.at(-1) };
}

/** The next connection, logged in. */
async function again() {
  const before = FakeSocket.all.length;
  for (let tries = 0; tries < 400 && FakeSocket.all.length === before; tries++) await settle();
  await settle();
  FakeSocket.all.at(-1).receive(LOGIN_OK);
  return FakeSocket.all.at(-1);
}

const of = (socket, kind) => socket.written.filter((frame) => frame.kind === kind);
const live = (group, number, stamp, { id = BigInt(stamp), from = 2, flags = 0 } = {}) =>
  long(GROUP_DELIVER, { aux: number, flags, id, peer: group, stamp: BigInt(stamp), body: [0, 0, 0, 0, 0, 0, 0, from, ..."text"].map((it) => (it.charCodeAt ? it.charCodeAt(0) : it)) });
const ok = (socket, stamp) => {
  const { id, peer } = socket.written.findLast(({ kind }) => kind === JOIN || kind === LEAVE);
  socket.receive(long(GROUP_OK, { id, peer, stamp: BigInt(stamp) }));
};
const fixed = (field, value) => {
  const bytes = Buffer.alloc(9, field * 8 + 1);
  bytes.writeBigUInt64LE(BigInt(value), 1);
  return bytes;
};
const heads = (group, stamp, seq) => {
  const head = Buffer.concat([fixed(1, group), fixed(2, stamp), fixed(3, 3), Buffer.from([0x20, seq])]);
  return short(HEADS, 0, [0x0a, head.length, ...head]);
};
/** The page that was asked for last, from this position on. */
const page = (socket, after, stamps, complete, { truncated = false, floor = 0 } = {}) => {
  const { aux, body } = of(socket, SYNC).at(-1);
  assert.deepEqual([...body].slice(0, after ? 2 : 0), after ? [0x08, after] : [], "asked for from there");
  const frames = stamps.map((stamp) => live(GROUP, 0, stamp, { flags: REPLAY }));
  const next = stamps.at(-1) ?? after;
  socket.receive(...frames, short(SYNC_OK, aux, [0x08, next, 0x10, +complete, 0x18, +truncated, 0x20, Number(GROUP), 0x28, floor]));
};
async function joined(groups, socket, group, stamp) {
  const done = groups.join(group);
  ok(socket, stamp);
  assert.equal(await done, BigInt(stamp));
}
async function taken(groups, count) {
  const messages = groups[Symbol.asyncIterator]();
  const stamps = [];
  for (let at = 0; at < count; at++) stamps.push(Number((await messages.next()).value.stamp));
  return stamps;
}

beforeEach(() => (FakeSocket.all = []));

test("a group is joined, read, marked and left", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, GROUP, 10);
  socket.receive(live(GROUP, 1, 11), live(GROUP, 2, 12, { flags: SELF }));
  const messages = groups[Symbol.asyncIterator]();
  const { value } = await messages.next();
  assert.deepEqual([value.group, value.from, value.id, value.stamp, value.self, value.replay], [GROUP, 2n, 11n, 11n, false, false]);
  assert.equal(new TextDecoder().decode(value.body), "text");
  assert.equal(groups.positions, "77:10", "it is not done with it");
  assert.equal((await messages.next()).value.self, true);
  assert.equal(groups.positions, "77:11");
  groups.mark(GROUP, value.stamp);
  assert.deepEqual([of(socket, MARK)[0].peer, of(socket, MARK)[0].stamp], [GROUP, 11n]);
  const left = groups.leave(GROUP);
  ok(socket, 12);
  await left;
  assert.deepEqual([groups.positions, told], ["", []]);
  const refused = groups.join(9);
  socket.receive(long(ERROR, { id: of(socket, JOIN).at(-1).id, peer: 9n, aux: 19 }));
  await assert.rejects(refused, (error) => error instanceof TrunklineError && error.code === 19);
  assert.throws(() => groups.mark(0, 1), RangeError);
  const broken = groups.join(9);
  socket.end();
  await assert.rejects(broken, NotConnectedError);
  await assert.rejects(groups.join(9), NotConnectedError);
  assert.ok(isLiveRoom(ROOM) && !isLiveRoom(GROUP));
  assert.throws(() => new Groups(client), TrunklineError);
  await client.close();
  assert.equal((await messages.next()).done, true);
});

test("a message to a group has a fate, over as many connections as it takes", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, GROUP, 10);
  for (const [aux, stamp, fate] of [[1, 12, "stored"], [6, 13, "accepted"], [4, 0, "denied"], [3, 0, "overloaded"]]) {
    const sent = groups.send(GROUP, "hello", { ack: true });
    const { id, peer, flags } = of(socket, GROUP_SEND).at(-1);
    assert.deepEqual([peer, flags], [GROUP, FLAG_ACK]);
    socket.receive(long(SENT, { id, peer, aux, stamp: BigInt(stamp) }));
    assert.equal(await sent, fate);
  }
  const limited = groups.send(GROUP, "hello", { ack: true });
  socket.receive(long(ERROR, { id: of(socket, GROUP_SEND).at(-1).id, peer: GROUP, aux: 11 }));
  await assert.rejects(limited, (error) => error.code === 11);
  // Two of them have numbers.
  socket.receive(live(GROUP, 1, 11), live(GROUP, 4, 14));
  assert.deepEqual([await taken(groups, 2), told, of(socket, SYNC)], [[11, 14], [], []]);
  await groups.send(GROUP, "once");
  assert.equal(of(socket, GROUP_SEND).at(-1).flags, 0);
  const typing = groups.send(GROUP, "typing", { ack: true, noStore: true });
  socket.end();
  const next = await again();
  const { id, peer, flags } = of(next, GROUP_SEND)[0];
  assert.equal(flags, FLAG_ACK | NO_STORE | RETRY);
  next.receive(long(SENT, { id, peer, aux: 6, stamp: 15n }));
  assert.equal(await typing, "accepted");
  await client.close();
  await assert.rejects(groups.send(GROUP, "x", { ack: true }));
});

test("a gap is told and filled in order, and what is gone from the log is told", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, GROUP, 10);
  socket.receive(live(GROUP, 1, 11), live(GROUP, 4, 14));
  page(socket, 10, [11, 12, 13], false);
  socket.receive(live(GROUP, 5, 15));
  page(socket, 13, [14], true);
  assert.deepEqual(await taken(groups, 5), [11, 12, 13, 14, 15]);
  socket.receive(heads(GROUP, 20, 10));
  page(socket, 15, [20], true, { truncated: true, floor: 19 });
  assert.deepEqual(await taken(groups, 1), [20]);
  assert.deepEqual(told, [["gap", GROUP, 2], ["gap", GROUP, 5], ["truncated", GROUP, 19n]]);
  // The first of a connection may have had others before it.
  socket.end();
  const next = await again();
  next.receive(live(GROUP, 9, 22), heads(GROUP, 22, 9));
  page(next, 20, [21, 22], true);
  assert.deepEqual(await taken(groups, 2), [22, 21]);
  await client.close();
});

test("what a group had while the connection was gone is fetched, also by a later page", async () => {
  const { client, groups, socket, told } = await open({ resume: "50." });
  await joined(groups, socket, GROUP, 10);
  socket.receive(live(GROUP, 1, 11));
  assert.deepEqual(await taken(groups, 1), [11]);
  socket.end();
  const next = await again();
  // last_stamp: where the group stands, and not the inbox.
  assert.ok(Buffer.from(next.written[0].body).includes(Buffer.from([0x40, 11])));
  next.receive(heads(GROUP, 13, 7));
  page(next, 10, [11, 12, 13], true);
  next.receive(live(GROUP, 8, 14));
  const messages = groups[Symbol.asyncIterator]();
  for (const stamp of [12n, 13n, 14n]) assert.equal((await messages.next()).value.stamp, stamp);
  void messages.next();
  await settle();
  const { positions } = groups;
  assert.deepEqual([positions, told], ["77:14", []]);
  await client.close();
  const later = await open({ positions });
  later.socket.receive(heads(GROUP, 15, 9));
  page(later.socket, 14, [15], true);
  assert.deepEqual(await taken(later.groups, 1), [15]);
  await later.client.close();
});

test("a group that is known from HEADS alone is told, and followed when that is wanted", async () => {
  const { client, groups, socket, told } = await open();
  socket.receive(heads(GROUP, 20, 5));
  assert.deepEqual(told, [["heads", { group: GROUP, stamp: 20n, read: 3n }]]);
  assert.deepEqual(of(socket, SYNC), []);
  groups.follow(GROUP, 17);
  page(socket, 17, [18, 20], true);
  socket.receive(live(GROUP, 6, 21));
  assert.deepEqual(await taken(groups, 3), [18, 20, 21]);
  await client.close();
});

test("history is looked at, one page at a time with those of the inbox", async () => {
  const { client, groups, socket } = await open();
  const inbox = client.history();
  const first = groups.history(GROUP, { after: 10, limit: 2 });
  assert.equal(of(socket, SYNC).length, 1);
  socket.receive(short(SYNC_OK, 1, [0x10, 1]));
  page(socket, 10, [11, 12], false);
  const { messages, next, complete } = await first;
  assert.deepEqual([(await inbox).complete, messages.map(({ stamp }) => stamp), next, complete], [true, [11n, 12n], 12n, false]);
  const refused = groups.history(GROUP);
  socket.receive(long(ERROR, { aux: 21 }), long(ERROR, { aux: 14, peer: 5n }), long(ERROR, { aux: 19, peer: GROUP }));
  await assert.rejects(refused, (error) => error.code === 19, "not by what WATCH is refused for, or another group");
  await client.close();
});

test("a live room is joined again before anything is said in it, and what is missed is counted", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, ROOM, 10);
  socket.receive(live(ROOM, 1, 11));
  assert.deepEqual([await taken(groups, 1), groups.positions], [[11], ""]);
  const fate = groups.send(ROOM, "hello", { ack: true });
  socket.end();
  const next = await again();
  assert.deepEqual([of(next, JOIN).length, of(next, GROUP_SEND).length], [1, 0]);
  ok(next, 15);
  await settle();
  const { id, peer } = of(next, GROUP_SEND)[0];
  next.receive(long(SENT, { id, peer, aux: 6, stamp: 16n }));
  assert.equal(await fate, "accepted");
  next.receive(live(ROOM, 7, 17), live(ROOM, 9, 19));
  assert.deepEqual(await taken(groups, 2), [17, 19]);
  assert.deepEqual(told, [["gap", ROOM, 0], ["gap", ROOM, 1]]);
  next.end();
  const last = await again();
  last.receive(long(ERROR, { id: of(last, JOIN)[0].id, peer: ROOM, aux: 22 }));
  await settle();
  assert.deepEqual(told.at(-1), ["lost", ROOM, 22]);
  await joined(groups, last, ROOM, 0);
  last.end();
  await groups.leave(ROOM);
  assert.deepEqual(of(await again(), JOIN), []);
  assert.throws(() => groups.follow(ROOM, 1), RangeError);
  await client.close();
});

test("a room that cannot be joined again yet is asked for again, unless it is left", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, ROOM, 10);
  await joined(groups, socket, ROOM + 1n, 10);
  socket.end();
  const next = await again();
  const joins = (room) => of(next, JOIN).filter(({ peer }) => peer === room);
  for (let at = 0; at < 3; at++) {
    for (let tries = 0; tries < 400 && joins(ROOM).length <= at; tries++) await settle();
    next.receive(long(ERROR, { id: joins(ROOM)[at].id, peer: ROOM, aux: at ? 14 : 11 }));
  }
  const fate = groups.send(ROOM, "hello", { ack: true });
  next.receive(long(ERROR, { id: joins(ROOM + 1n)[0].id, peer: ROOM + 1n, aux: 14 }));
  groups.leave(ROOM + 1n).catch(() => undefined);
  for (let tries = 0; tries < 400 && joins(ROOM).length <= 3; tries++) await settle();
  assert.deepEqual([of(next, GROUP_SEND).length, joins(ROOM + 1n).length], [0, 1]);
  next.receive(long(GROUP_OK, { id: joins(ROOM)[3].id, peer: ROOM, stamp: 15n }));
  await settle();
  const { id } = of(next, GROUP_SEND)[0];
  next.receive(long(SENT, { id, peer: ROOM, aux: 6, stamp: 16n }));
  assert.equal(await fate, "accepted");
  assert.deepEqual(told, [["gap", ROOM, 0]]);
  await client.close();
});

test("a refusal of a page is asked about again, or the end of the group", async () => {
  const { client, groups, socket, told } = await open({ positions: "77:10,nonsense,78:" });
  socket.receive(heads(GROUP, 13, 3));
  socket.receive(long(ERROR, { aux: 14 }));
  assert.equal(of(socket, SYNC).length, 1);
  await new Promise((done) => setTimeout(done, 1_100));
  assert.equal(of(socket, SYNC).length, 2);
  socket.receive(live(GROUP, 4, 14));
  socket.receive(long(ERROR, { aux: 19 }));
  assert.deepEqual(await taken(groups, 1), [14]);
  assert.deepEqual([told, groups.positions], [[["lost", GROUP, 19]], ""]);
  await client.close();
});

test("what nobody takes is bounded, and comes in its place when there is room", async () => {
  const { client, groups, socket, told } = await open({ inboxMax: 5 });
  await joined(groups, socket, GROUP, 0);
  for (let stamp = 1; stamp <= 20; stamp++) socket.receive(live(GROUP, stamp, stamp));
  assert.equal(of(socket, SYNC).length, 0, "there is no room");
  const got = [];
  const gateway = setInterval(() => {
    const asked = of(socket, SYNC).at(gateway.seen);
    if (!asked) return;
    gateway.seen++;
    const fields = new Map([0, 2, 4].map((at) => [asked.body[at], asked.body[at + 1]]));
    const [after, limit] = [fields.get(0x08) ?? 0, fields.get(0x18)];
    const stamps = Array.from({ length: 20 - after }, (_, at) => after + 1 + at).slice(0, limit);
    page(socket, after, stamps, (stamps.at(-1) ?? after) === 20);
  }, 1);
  gateway.seen = 0;
  for await (const { stamp } of groups) if (got.push(Number(stamp)) === 20) break;
  clearInterval(gateway);
  assert.deepEqual([got, told], [Array.from({ length: 20 }, (_, at) => at + 1), []]);
  await joined(groups, socket, ROOM, 0);
  for (let stamp = 1; stamp <= 7; stamp++) socket.receive(live(ROOM, stamp, stamp));
  assert.deepEqual(told, [["gap", ROOM, 1], ["gap", ROOM, 1]]);
  await client.close();
});

test("frames that are none end the connection, and joins are bounded", async () => {
  const { client, groups, socket } = await open();
  const joins = Array.from({ length: 1_025 }, () => groups.join(GROUP));
  await assert.rejects(joins.at(-1), FullError);
  const settled = Promise.allSettled(joins);
  for (const bad of [short(HEADS, 0, [0x0a, 5, 1]), long(GROUP_DELIVER, { peer: GROUP, body: [1, 2] })]) {
    const now = FakeSocket.all.at(-1);
    now.receive(bad);
    assert.ok(now.closed);
    await again();
  }
  assert.equal((await settled).filter(({ status }) => status === "rejected").length, 1_025);
  assert.ok(socket.closed);
  await client.close();
});

test("a group that is open is opened again after a reconnect, until it is closed", async () => {
  const { client, groups, socket, told } = await open();
  await joined(groups, socket, GROUP, 10);
  const opened = groups.open(GROUP);
  assert.equal(of(socket, JOIN).at(-1).aux, 1);
  ok(socket, 12);
  await opened;
  page(socket, 10, [11, 12], true);
  assert.deepEqual(await taken(groups, 2), [11, 12], "what was before it was opened is fetched");
  await groups.open(ROOM);
  assert.equal(of(socket, JOIN).length, 2, "a room is open");
  socket.end();
  const next = await again();
  await settle();
  assert.deepEqual(of(next, JOIN).map(({ peer, aux }) => [peer, aux]), [[GROUP, 1]]);
  ok(next, 12);
  const closed = groups.close(GROUP);
  assert.equal(of(next, LEAVE).at(-1).aux, 1);
  ok(next, 12);
  await closed;
  next.receive(live(GROUP, 9, 13));
  assert.deepEqual(await taken(groups, 1), [13], "it is a member still");
  next.end();
  const last = await again();
  await settle();
  assert.deepEqual([of(last, JOIN), told], [[], []]);
  await client.close();
});

test("a group that cannot be opened yet is asked for again, later each time", async () => {
  const { client, groups, socket } = await open();
  await joined(groups, socket, GROUP, 10);
  /** The next question for attention of this kind; the gateway cannot say yet. */
  const refused = async (of_, at) => {
    for (let tries = 0; tries < 400 && of(of_, JOIN).filter(({ aux }) => aux === 1).length <= at; tries++) await settle();
    const { id, peer } = of(of_, JOIN).filter(({ aux }) => aux === 1)[at];
    of_.receive(long(ERROR, { id, peer, aux: 14 }));
  };
  const opened = groups.open(GROUP);
  for (let at = 0; at < 2; at++) await refused(socket, at);
  for (let tries = 0; tries < 400 && of(socket, JOIN).length < 4; tries++) await settle();
  ok(socket, 10);
  await opened;
  socket.end();
  const next = await again();
  for (let at = 0; at < 7; at++) await refused(next, at);
  const closed = groups.close(GROUP);
  ok(next, 10);
  await closed;
  const before = next.written.length;
  for (let tries = 0; tries < 60; tries++) await settle();
  assert.equal(next.written.length, before, "it is closed: nobody asks again");
  const given = assert.rejects(groups.open(GROUP), ({ code }) => code === 14);
  for (let at = 7; at < 13; at++) await refused(next, at);
  await given;
  const lost = assert.rejects(groups.open(GROUP), NotConnectedError);
  await refused(next, 13);
  await settle();
  next.end();
  await lost;
  await client.close();
});
