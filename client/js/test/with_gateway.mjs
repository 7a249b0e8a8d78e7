// The client against a gateway: node with_gateway.mjs ws://HOST:PORT/ws. Says how far it is, line by line, so that the test that runs it can
// drain the node in between.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createRequire } from "node:module";
import { WebSocket } from "ws";
import { ByeError, Client } from "../dist/index.js";

const [, , url] = process.argv;
const byeEarly = { minMs: 10, maxMs: 200 };
const make = (user, device, more) => new Client({ url, user, device, WebSocket, backoff: byeEarly, ...more });
const next = async (client) => (await client[Symbol.asyncIterator]().next()).value;
const reaches = async (client, wanted) => {
  while (client.state !== wanted) await new Promise((done) => setTimeout(done, 5));
};

assert.equal(typeof createRequire(import.meta.url)("../dist/index.cjs").Client, "function", "CJS has it too");

const phone = make(7n, "phone");
const laptop = make(7n, "laptop");
const friend = make(8, "", { debug: process.env.DEBUG && console.error });
await Promise.all([phone, laptop, friend].map((client) => client.connect()));
for (const size of [0, 100, 200, 60_000]) {
  const body = Uint8Array.from({ length: size }, (_, at) => at % 251);
  const fate = friend.send(7n, body, { ack: true });
  for (const device of [phone, laptop]) {
    const message = await next(device);
    assert.deepEqual([message.from, message.self, message.body], [8n, false, body]);
  }
  assert.equal(await fate, "delivered");
}
await laptop.send(7n, "to the user's other devices");
assert.deepEqual(new TextDecoder().decode((await next(phone)).body), "to the user's other devices");
assert.equal(await friend.send(99n, "x", { ack: true }), "offline");

// A newer login of the same device ends the older for good.
const older = make(9n, "tab");
await older.connect();
const newer = make(9n, "tab");
await newer.connect();
await reaches(older, "ended");
await assert.rejects(older.connect(), (error) => error instanceof ByeError && error.reason === 8);
await newer.close();
console.log("talked");

// The node is drained now, and taken back.
await Promise.all([phone, laptop, friend].map((client) => reaches(client, "waiting")));
console.log("drained");
await once(process.stdin, "data");
await Promise.all([phone, laptop, friend].map((client) => reaches(client, "open")));
const fate = friend.send(7n, "all are back", { ack: true });
const [first, second] = await Promise.all([next(phone), next(laptop)]);
assert.deepEqual([first.id, new TextDecoder().decode(second.body)], [second.id, "all are back"]);
assert.equal(await fate, "delivered");
await Promise.all([phone, laptop, friend].map((client) => client.close()));
console.log("closed");
process.exit(0);
