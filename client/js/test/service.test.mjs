// Workers, against a services' port of which the test is the gateway.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { afterEach, beforeEach, test } from "node:test";
import { FullError as ClientsFullError } from "../dist/index.js";
import { ClosedError, FateUnknownError, FullError, NotBegunError, NotConnectedError, RefusedError, Service, StatusError, TrunklineError } from "../dist/service.js";
import { bye, long, short } from "./fake.mjs";
import { FakeGateway, head, kind, serveOk } from "./fake_gateway.mjs";

const text = (body) => new TextDecoder().decode(body);
const early = { minMs: 1, maxMs: 5 };
const turn = () => new Promise((done) => setImmediate(done));
const until = async (look) => {
  while (!look()) await turn();
};
const request = (id, body = "", { service = 7, user = 42n, flags = 0, callId = 5n } = {}) =>
  long(kind.REQUEST, { flags, aux: service, id, peer: user, stamp: callId, body: Buffer.from(body) });

let gateway, worker, errors;
beforeEach(async () => (gateway = await FakeGateway.start()));
afterEach(async () => {
  await worker?.close();
  worker = undefined;
  await gateway.stop();
});

/** A worker that has not been started. */
function make(handler, options = {}, serve = {}) {
  worker = new Service({ address: gateway.address, name: "w1", backoff: early, heads: false, ...options }).serve(7, handler, serve);
  errors = [];
  worker.on("error", (error) => errors.push(error));
  return worker;
}

/** A worker with one link. */
async function start(handler, options = {}, ok = {}) {
  const started = make(handler, options).start();
  const link = await gateway.link(serveOk(ok));
  await started;
  return link;
}

test("SERVE says who it is and what it serves, and links for all shards have exactly the window together", async () => {
  make(() => {}, { token: async () => "key", window: 7, heads: true }, { weight: 5, backup: true }).serve(300, () => {});
  const started = worker.start();
  const first = await gateway.link(serveOk({ shards: 3, node: "a" }));
  // name, token, two offers, shard 1, window 1, heads
  const offers = [0x22, 6, 8, 7, 16, 5, 24, 1, 0x22, 5, 8, 0xac, 2, 16, 1];
  assert.deepEqual([...first.serve.body], [8, 1, 0x12, 2, ...Buffer.from("w1"), 0x1a, 3, ...Buffer.from("key"), ...offers, 0x28, 1, 0x30, 1, 0x38, 1]);
  await started;
  assert.equal(worker.node, "a");
  const others = [await gateway.link(serveOk({ shards: 3 })), await gateway.link(serveOk({ shards: 3 }))];
  const windows = [await first.next(kind.WINDOW), await others[0].next(kind.WINDOW), await others[1].next(kind.WINDOW)].map(({ aux }) => aux);
  assert.deepEqual(windows, [3, 2, 2]);
  await until(() => worker.links === 3);
});

test("no more links than calls that it works on at a time", async () => {
  const link = await start(() => {}, { window: 1 }, { shards: 8 });
  assert.equal((await link.next(kind.WINDOW)).aux, 1);
  await link.settle();
  assert.equal(worker.links, 1);
});

test("a request is the same however its bytes come, and an answer what the handler makes of it", async () => {
  const seen = [];
  const link = await start((it) => {
    seen.push([it.service, it.user, it.id, it.isAgain, it.noReply, it.head, it.body.length]);
    const said = text(it.body);
    if (said === "bytes") return Uint8Array.of(1, 2);
    if (said === "status") return { status: 300, body: "mine" };
    if (said === "thrown") throw new StatusError(301, "thrown");
    if (said === "none") throw new NotBegunError("later");
    if (said === "nothing") return undefined;
    return `${it.user} ${said}`;
  });
  const bodies = ["bytes", "status", "thrown", "none", "nothing", "x".repeat(300)];
  const answers = [[0, 0, "\x01\x02"], [300, 0, "mine"], [301, 0, "thrown"], [0, 2, ""], [0, 0, ""], [0, 0, `42 ${bodies[5]}`]];
  const whole = Buffer.concat(bodies.map((body, at) => request(BigInt(at), body, { flags: at % 4 === 3 ? 3 : 0 })));
  // All in one piece; byte by byte; and cut in two at each place of the first three.
  const three = 3 * 32 + 5 + 6 + 6;
  const cuts = [[], Array.from({ length: whole.length - 1 }, (_, at) => at + 1), ...Array.from({ length: three }, (_, at) => [at + 1])];
  for (const cut of cuts) {
    for (const [at, from] of [0, ...cut].entries()) {
      link.socket.write(whole.subarray(from, cut[at]));
      // What is written at once may come at once.
      if (cut.length === 1) await turn();
    }
    const got = new Map();
    for (const _ of bodies) {
      const { id, aux, flags, text } = await link.next(kind.ANSWER);
      got.set(Number(id), [aux, flags, text]);
    }
    assert.deepEqual(answers.map((_, at) => got.get(at)), answers);
  }
  assert.equal(seen.length, bodies.length * cuts.length);
  assert.deepEqual(seen[0], [7, 42n, 5n, false, false, undefined, 5]);
  assert.deepEqual(seen[3], [7, 42n, 5n, true, true, undefined, 4]);
  assert.deepEqual(errors, []);
});

test("a service that is not served, and frames that nobody knows, harm nothing", async () => {
  const link = await start(() => "yes");
  link.send(short(0xef, 1, [1, 2, 3]), long(0xee, { id: 3n }), request(1n, "", { service: 8 }), request(2n));
  const [other, own] = [await link.next(kind.ANSWER), await link.next(kind.ANSWER)];
  assert.deepEqual([other.id, other.flags, own.id, own.text], [1n, 2, 2n, "yes"]);
});

test("an answer may have parts, each with MORE, until nobody waits for them", async () => {
  let last;
  const link = await start(async (it) => {
    for (const part of ["a", "b"]) assert.equal(await it.part(part), true);
    if (text(it.body) === "cancelled") {
      await until(() => it.signal.aborted);
      last = await it.part("c");
    }
    return "end";
  });
  link.send(request(1n));
  const parts = [await link.next(kind.ANSWER), await link.next(kind.ANSWER), await link.next(kind.ANSWER)];
  assert.deepEqual(parts.map(({ id, flags, text }) => [id, flags, text]), [[1n, 1, "a"], [1n, 1, "b"], [1n, 0, "end"]]);
  link.send(request(2n, "cancelled"));
  await link.next(kind.ANSWER);
  await link.next(kind.ANSWER);
  link.send(long(kind.CANCEL, { id: 2n }));
  await until(() => last !== undefined);
  assert.equal(last, false);
  await link.settle();
  assert.deepEqual(link.frames.filter((frame) => frame.kind === kind.ANSWER), []);
});

test("a handler that throws, and an answer that cannot be one, are told of and not answered", async () => {
  const link = await start(
    (it) => {
      const said = text(it.body);
      if (said === "throw") throw new Error("out of paper");
      if (said === "status") return { status: 5, body: "" };
      if (said === "part") return it.part("x".repeat(200));
      if (said === "long status") throw new StatusError(256, "x".repeat(200));
      return "x".repeat(200);
    },
    {},
    { maxFrame: 100 },
  );
  for (const [at, body] of ["throw", "status", "part", "long status", "long"].entries()) {
    link.send(request(BigInt(at), body));
    await until(() => errors.length === at + 1);
  }
  assert.deepEqual(errors.map((error) => [error.name, /out of paper|status 5|200 bytes/.exec(error.message)?.[0]]), [
    ["Error", "out of paper"],
    ["RangeError", "status 5"],
    ["RangeError", "200 bytes"],
    ["RangeError", "200 bytes"],
    ["RangeError", "200 bytes"],
  ]);
  await link.settle();
  assert.deepEqual([worker.running, link.frames.filter((frame) => frame.kind === kind.ANSWER)], [0, []]);
  assert.throws(() => new StatusError(14), RangeError);
});

test("a request is aborted by CANCEL, and when its time is over", async () => {
  const why = [];
  const link = await start(
    (it) => new Promise((done) => it.signal.addEventListener("abort", () => (why.push([it.signal.reason.code, it.head.device, it.head.session, it.head.timeoutMs]), done("late")))),
    { heads: true },
  );
  link.send(request(1n, head(60_000), { flags: 4 }), request(2n, head(10), { flags: 4 }), long(kind.CANCEL, { id: 1n }), long(kind.CANCEL, { id: 9n }));
  // Whose time is over may still be waited for, by a clock of the gateway.
  assert.equal((await link.next(kind.ANSWER)).id, 2n);
  assert.deepEqual(why, [[0, "phone", 300n, 60_000], [24, "phone", 300n, 10]]);
  await link.settle();
  assert.deepEqual([worker.running, errors, link.frames.filter((frame) => frame.kind === kind.ANSWER)], [0, [], []]);
});

test("handlers that go on although they are cancelled do not become more and more", async () => {
  let end;
  const ended = new Promise((done) => (end = done));
  const link = await start(() => ended, { window: 2 });
  for (let id = 1n; id <= 6n; id += 1n) link.send(request(id), long(kind.CANCEL, { id }));
  await link.settle();
  assert.equal(worker.running, 4);
  link.send(request(7n));
  const refused = await link.next(kind.ANSWER);
  assert.deepEqual([refused.id, refused.flags], [5n, 2], "the fifth, which was refused before its CANCEL came");
  end("done");
  await until(() => worker.running === 0);
  link.send(request(8n));
  await until(() => link.frames.some((frame) => frame.id === 8n && frame.flags === 0));
});

test("a push ends in its fate, in an error of the gateway, or in nobody knowing", async () => {
  const link = await start(() => {});
  const ask = async (answer) => {
    const fate = worker.push(7, 42n, "news", { noStore: true, id: 9n });
    const { flags, aux, id, peer, text } = await link.next(kind.PUSH_TO);
    assert.deepEqual([flags, aux, id, peer, text], [3, 7, 9n, 42n, "news"]);
    link.send(answer);
    return fate;
  };
  for (const [outcome, fate] of ["delivered", "stored", "offline", "overloaded", "denied", "inbox-full"].entries()) {
    assert.equal(await ask(long(kind.PUSHED, { aux: outcome, id: 9n, peer: 42n })), fate);
  }
  await assert.rejects(ask(long(kind.ERROR, { aux: 20, id: 9n, peer: 42n, body: Buffer.from("no") })), (error) => error instanceof TrunklineError && error.code === 20);
  assert.equal(await worker.push(7, 42n, "x", { ack: false }), undefined);
  assert.equal((await link.next(kind.PUSH_TO)).flags, 0);
  // Those of one id to two users are two.
  const both = [worker.push(7, 1n, "", { id: 5n }), worker.push(7, 2n, "", { id: 5n })];
  await assert.rejects(worker.push(7, 1n, "", { id: 5n }), /waits for its fate already/);
  link.send(long(kind.PUSHED, { aux: 2, id: 5n, peer: 2n }), long(kind.PUSHED, { aux: 0, id: 5n, peer: 1n }));
  assert.deepEqual(await Promise.all(both), ["delivered", "offline"]);
  const lost = worker.push(7, 42n, "");
  link.socket.destroy();
  await assert.rejects(lost, FateUnknownError);
});

test("a push that cannot be sent is refused at once", async () => {
  const link = await start(() => {}, { outstanding: { count: 2, bytes: 20 } }, { maxFrame: 100 });
  for (const [service, user, options] of [[0, 1], [65_536, 1], [7, 0], [7, 1n << 64n], [7, (1n << 64n) - 65_536n], [7, 1, { id: 0 }]]) {
    await assert.rejects(worker.push(service, user, "", options), RangeError);
  }
  await assert.rejects(worker.push(7, 1n, "x".repeat(69)), RangeError);
  const waiting = [worker.push(7, 1n, "0123456789"), assert.rejects(worker.push(7, 1n, "0123456789a"), FullError)];
  waiting.push(worker.push(7, 2n, "0123456789"));
  await assert.rejects(worker.push(7, 3n, ""), ClientsFullError);
  assert.equal(new Set([(await link.next(kind.PUSH_TO)).id, (await link.next(kind.PUSH_TO)).id]).size, 2);
  const ends = Promise.allSettled(waiting);
  link.socket.destroy();
  assert.deepEqual((await ends).map(({ reason }) => reason?.name), ["FateUnknownError", undefined, "FateUnknownError"]);
  await assert.rejects(worker.push(7, 1n, ""), NotConnectedError);
  await worker.close();
  await assert.rejects(worker.push(7, 1n, ""), ClosedError);
});

test("start says why it cannot, and may be called again", async () => {
  make(() => {});
  const refuses = async (answer) => {
    const started = worker.start();
    const link = await gateway.link(answer);
    return [await started.then(assert.fail, (error) => error), link];
  };
  const [refused] = await refuses(bye(6, { text: "no such key" }));
  assert.deepEqual([refused instanceof RefusedError, refused.code, refused.message], [true, 6, "no such key"]);
  for (const nonsense of [short(0xa0, 0, [0x12, 200]), short(kind.PONG), Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n"), Buffer.from([0, 0, 0, 7, 0xa0, 0, 0, 0])]) {
    const [error, link] = await refuses(nonsense);
    assert.match(error.message, /no frame of a gateway/);
    await link.closed;
  }
  const started = worker.start();
  (await gateway.link(null)).socket.end();
  await assert.rejects(started, NotConnectedError);
  const again = worker.start();
  await assert.rejects(worker.start(), /started already/);
  await gateway.link();
  await again;
  assert.throws(() => worker.serve(8, () => {}), /before start/);
  await worker.close();
  await assert.rejects(worker.start(), ClosedError);
  const { address } = gateway;
  await gateway.stop();
  await assert.rejects(new Service({ address, name: "w" }).serve(7, () => {}).start(), NotConnectedError);
});

test("what cannot be so is refused where it is said", () => {
  for (const address of ["", "host", "host:0", "host:65536", "::1:7", "http://a:1", "[::1]", "tls://a", "tls://a/b:1"]) assert.throws(() => new Service({ address, name: "w" }), RangeError);
  assert.throws(() => new Service({ address: "a:1", name: "w", ca: "PEM" }), RangeError);
  for (const window of [0, 65_536, 1.5]) assert.throws(() => new Service({ address: "a:1", name: "w", window }), RangeError);
  const subject = new Service({ address: "[::1]:7791", name: "w" }).serve(7, () => {});
  for (const service of [0, 65_536, 1.5]) assert.throws(() => subject.serve(service, () => {}), RangeError);
  for (const weight of [0, 65_536]) assert.throws(() => subject.serve(8, () => {}, { weight }), RangeError);
  assert.throws(() => subject.serve(7, () => {}), /a handler already/);
});

test("a link that breaks is made again, whatever broke it", async () => {
  let link = await start(() => "yes");
  const breaks = [
    (it) => it.socket.destroy(),
    (it) => it.socket.end(),
    (it) => it.send(bye(12, { afterMs: 1 })),
    (it) => it.send(Buffer.from([0, 0x20, 0, 0, 0xa1, 0, 0, 0])),
    (it) => it.send(short(kind.REQUEST, 7)),
    (it) => it.send(request(1n, Buffer.from([0, 200, 1]), { flags: 4 })),
    (it) => it.send(request(1n, Buffer.from([1]), { flags: 4 })),
  ];
  for (const breakIt of breaks) {
    breakIt(link);
    await link.closed;
    link = await gateway.link();
    link.send(request(1n));
    assert.equal((await link.next(kind.ANSWER)).text, "yes");
  }
  assert.deepEqual(errors.map(({ name, code }) => [name, code]), [
    ["NotConnectedError", 0],
    ["NotConnectedError", 0],
    ["RefusedError", 12],
    ...Array(4).fill(["TrunklineError", 0]),
  ]);
});

test("a gateway that comes back with another number of shards gets as many links", async () => {
  const started = make(() => "yes", { window: 6 }).start();
  let first = await gateway.link(serveOk({ shards: 3 }));
  await started;
  const [second, third] = [await gateway.link(serveOk({ shards: 3 })), await gateway.link(serveOk({ shards: 3 }))];
  await until(() => worker.links === 3);
  first.socket.destroy();
  first = await gateway.link(serveOk({ shards: 2 }));
  assert.equal((await first.next(kind.WINDOW)).aux, 3);
  // The one for the third shard leaves like a worker that drains.
  while ((await third.next(kind.WINDOW)).aux !== 0);
  assert.equal((await third.next(kind.PING)).aux, 1);
  third.send(short(kind.PONG, 1));
  await third.next(kind.LOGOUT);
  third.socket.end();
  while ((await second.next(kind.WINDOW)).aux !== 3);
  await until(() => worker.links === 2);
  first.socket.destroy();
  await gateway.link(serveOk({ shards: 3 }));
  await gateway.link(serveOk({ shards: 3 }));
  await until(() => worker.links === 3);
});

test("what runs when its link breaks goes on, and its answer finds nobody", async () => {
  let end;
  const link = await start(() => new Promise((done) => (end = done)));
  link.send(request(1n));
  await until(() => end);
  link.socket.destroy();
  const next = await gateway.link();
  assert.equal(worker.running, 1);
  end("late");
  await until(() => worker.running === 0);
  await next.settle();
  assert.deepEqual(next.frames.filter((frame) => frame.kind === kind.ANSWER), []);
});

test("a drain answers what was begun, waits for fates, and says LOGOUT behind them", async () => {
  let end;
  const link = await start(() => new Promise((done) => (end = done)));
  link.send(request(1n));
  await until(() => end);
  const fate = worker.push(7, 1n, "last");
  const drained = worker.drain();
  assert.equal(worker.drain(), drained);
  await assert.rejects(worker.start(), ClosedError);
  while ((await link.next(kind.WINDOW)).aux !== 0);
  assert.equal((await link.next(kind.PING)).aux, 1);
  // What was on its way is served too.
  const first = end;
  link.send(request(2n), short(kind.PONG, 1));
  await until(() => end !== first);
  first("one");
  assert.equal((await link.next(kind.ANSWER)).text, "one");
  end("two");
  assert.equal((await link.next(kind.ANSWER)).text, "two");
  const { id } = await link.next(kind.PUSH_TO);
  assert.deepEqual(link.frames.filter((frame) => frame.kind === kind.LOGOUT), []);
  link.send(long(kind.PUSHED, { aux: 1, id, peer: 1n }));
  await link.next(kind.LOGOUT);
  link.socket.end();
  assert.deepEqual([await drained, await fate, errors], [0, "stored", []]);
});

test("a drain ends in its time, and says what was left", async () => {
  let signal;
  const link = await start((it) => ((signal = it.signal), new Promise(() => {})));
  link.send(request(1n), request(2n));
  await until(() => worker.running === 2);
  assert.equal(await worker.drain({ timeoutMs: 5 }), 2);
  assert.ok(signal.aborted);
  await link.closed;
  await assert.rejects(worker.push(7, 1n, ""), ClosedError);
});

test("a worker that drains while there is no gateway ends, and so does one that starts", async () => {
  const link = await start(() => {}, { backoff: { minMs: 60_000, maxMs: 60_000 } });
  link.socket.destroy();
  await until(() => errors.length);
  assert.equal(await worker.drain(), 0);
  await gateway.stop();
  gateway = await FakeGateway.start();
  const started = make(() => {}).start();
  await gateway.link(null);
  assert.equal(await worker.drain(), 0);
  await assert.rejects(started, TrunklineError);
});

test("silence ends a link: before SERVE_OK after 10 s, then after two heartbeats", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  make(() => {});
  const started = worker.start();
  await gateway.link(null);
  t.mock.timers.tick(10_000);
  await assert.rejects(started, /no answer in 10 s/);
  const again = worker.start();
  const link = await gateway.link(serveOk({ heartbeatSecs: 2 }));
  await again;
  const second = async () => {
    t.mock.timers.tick(1_000);
    await turn();
  };
  for (let at = 0; at < 10; at += 1) {
    await second();
    if (at % 2) {
      assert.equal((await link.next(kind.PING)).aux, 0);
      link.send(short(kind.PONG));
      await link.settle();
    }
  }
  assert.deepEqual(errors, []);
  for (let at = 0; at < 5; at += 1) await second();
  await link.closed;
  await until(() => errors.length);
  assert.deepEqual([errors[0].message, errors[0].code], ["nothing was heard for two heartbeats", 24]);
});

test("a listener that throws ends no link", async (t) => {
  const thrown = [];
  const link = await start(() => "yes");
  t.mock.method(globalThis, "queueMicrotask", (run) => thrown.push(run));
  worker.on("links", () => {
    throw new Error("the listener's");
  });
  link.socket.destroy();
  const next = await gateway.link();
  next.send(request(1n));
  assert.equal((await next.next(kind.ANSWER)).text, "yes");
  assert.throws(thrown[0], /the listener's/);
});

test("CJS has it too, with the same errors as the client's", () => {
  const require = createRequire(import.meta.url);
  const [service, client] = [require("../dist/service.cjs"), require("../dist/index.cjs")];
  assert.equal(typeof service.Service, "function");
  assert.equal(service.FullError, client.FullError);
  assert.equal(FullError, ClientsFullError);
});
