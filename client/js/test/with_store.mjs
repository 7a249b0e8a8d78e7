// The client and a gateway with a store that is killed: node with_store.mjs GATEWAY FOLDER. Each message is handed over once and in order.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { Client } from "../dist/index.js";

const [, , program, folder] = process.argv;
/** On its way when the gateway is killed: no more than it looks back for what is sent again. */
const BATCH = 40;
const BATCHES = 4;

let port = 0;

async function start() {
  const flags = ["--shards", "2", "--data-dir", folder, "--store-after-ms", "300", "--http", "127.0.0.1:0"];
  const child = spawn(program, [...flags, "--listen", `127.0.0.1:${port}`], { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface({ input: child.stdout })) {
    const listening = /^listening on .*:(\d+)$/.exec(line);
    if (listening) {
      port = Number(listening[1]);
      return child;
    }
  }
  throw new Error("the gateway does not start");
}

async function kill(child) {
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

const make = (user, device, more) =>
  new Client({ url: `ws://127.0.0.1:${port}/ws`, user, device, WebSocket, backoff: { minMs: 10, maxMs: 200 }, ...more });
const text = ({ body }) => new TextDecoder().decode(body);
const caughtUp = (client) => new Promise((done) => client.on("caughtUp", done));

let gateway = await start();
process.on("exit", () => gateway.kill("SIGKILL"));
const restart = async () => {
  await kill(gateway);
  gateway = await start();
};

// Two devices are known, and away.
let resume;
for (const device of ["desk", "phone"]) {
  const client = make(2, device);
  const end = caughtUp(client);
  await client.connect();
  await end;
  resume = client.resume;
  await client.close();
}

// Each batch but the last is on its way when the gateway is killed.
const sender = make(1, "");
await sender.connect();
const all = Array.from({ length: BATCH * BATCHES }, (_, at) => `message ${at}`);
for (let batch = 0; batch < BATCHES; batch++) {
  const fates = all.slice(batch * BATCH, (batch + 1) * BATCH).map((body) => sender.send(2, body, { ack: true }));
  if (batch + 1 < BATCHES) await restart();
  assert.deepEqual(await Promise.all(fates), fates.map(() => "stored"));
}
await restart();

// The phone comes back, and the gateway is killed while it is at its backlog.
const phone = make(2, "phone", { resume, window: 32 });
const end = caughtUp(phone);
await phone.connect();
assert.deepEqual(phone.session, { registered: true, resumed: true, pending: all.length, truncated: false });
const messages = phone[Symbol.asyncIterator]();
const got = [];
while (got.length < all.length) {
  if (got.length === 50) await restart();
  got.push(text((await messages.next()).value));
}
assert.deepEqual(got, all);
await end;

// The desk has not got them, so they are all held.
while (phone.state !== "open") await new Promise((done) => setTimeout(done, 5));
const held = [];
for (let after = 0n, complete = false; !complete; ) {
  const page = await phone.history({ after, limit: 64 });
  held.push(...page.messages.map(text));
  ({ next: after, complete } = page);
}
assert.deepEqual(held, all);
const fate = sender.send(2, "live", { ack: true });
const live = (await messages.next()).value;
assert.deepEqual([text(live), live.replay, await fate], ["live", false, "delivered"]);
await Promise.all([phone, sender].map((client) => client.close()));
await kill(gateway);
console.log("all well");
process.exit(0);
