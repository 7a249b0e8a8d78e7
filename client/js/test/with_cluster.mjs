// The client in Node, Bun or Deno against a node that drains: with_cluster.mjs ws://HOST:PORT/ws. Says how far it is, line by line, so that the
// test that runs it can drain the node in between. The WebSocket is that of the runtime, where it has one.

import assert from "node:assert/strict";
import process from "node:process";
import { Client } from "../dist/index.js";

const WebSocket = globalThis.WebSocket ?? (await import("ws")).WebSocket;
const url = process.argv[2];

async function start(user, device) {
  const client = new Client({ url, user, device, WebSocket, backoff: { minMs: 10, maxMs: 200 } });
  client.opens = 0;
  client.on("state", (state) => {
    if (state === "open") client.opens++;
  });
  await client.connect();
  return client;
}

const next = async (client) => (await client[Symbol.asyncIterator]().next()).value;

/** A message of each size comes as it was sent, and its fate comes back. */
async function talk(from, to, user) {
  for (const size of [0, 100, 200, 60_000]) {
    const body = Uint8Array.from({ length: size }, (_, at) => at % 251);
    const fate = from.send(user, body, { ack: true });
    const message = await next(to);
    assert.deepEqual(new Uint8Array(message.body), body);
    assert.equal(await fate, "delivered");
  }
}

const phone = await start(7n, "phone");
const friend = await start(8n, "");
await talk(friend, phone, 7n);
await talk(phone, friend, 8n);
console.log("talked");

// The node is drained now: both are sent to the other one, and go there by themselves. While nodes come and go, a user's home may say for a
// moment that it cannot take a message.
const moment = (ms) => new Promise((done) => setTimeout(done, ms));
while (phone.opens < 2 || friend.opens < 2) await moment(5);
while ((await phone.send(7n, "", { ack: true })) === "overloaded") await moment(100);
while ((await friend.send(8n, "", { ack: true })) === "overloaded") await moment(100);
await talk(friend, phone, 7n);
await talk(phone, friend, 8n);
console.log("talked there");
await Promise.all([phone, friend].map((client) => client.close()));
process.exit(0);
