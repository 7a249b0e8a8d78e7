// Groups and a gateway with a store that is killed: node with_groups.mjs GATEWAY FOLDER. A member has each message once and in order, and a live room is joined again.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { Client } from "../dist/index.js";
import { Groups } from "../dist/groups.js";

const [, , program, folder] = process.argv;
const GROUP = 77n;
const ROOM = (1n << 63n) + 5n;
/** On its way when the gateway is killed: no more than it looks back for what is sent again. */
const BATCH = 40;
const BATCHES = 3;

let port = 0;

async function start() {
  const often = ["--group-sends-per-sec", "0", "--group-member-sends-per-sec", "0"];
  const flags = ["--shards", "2", "--data-dir", folder, "--http", "127.0.0.1:0", ...often];
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

let gateway = await start();
process.on("exit", () => gateway.kill("SIGKILL"));
const kill = async () => {
  const ended = once(gateway, "exit");
  gateway.kill("SIGKILL");
  await ended;
};

async function login(user, positions = "") {
  const client = new Client({ url: `ws://127.0.0.1:${port}/ws`, user, WebSocket, backoff: { minMs: 10, maxMs: 200 } });
  const groups = new Groups(client, { positions });
  groups.on("lost", (_group, error) => console.error(error));
  await client.connect();
  return { client, groups, messages: groups[Symbol.asyncIterator]() };
}

/** The texts of the next messages of a group. */
async function take({ messages }, group, count) {
  const texts = [];
  while (texts.length < count) {
    const { value } = await messages.next();
    if (value.group === group) texts.push(new TextDecoder().decode(value.body));
  }
  return texts;
}

const [sender, stays, away] = [await login(1), await login(2), await login(3)];
for (const { groups } of [sender, stays, away]) {
  await groups.join(GROUP);
  await groups.join(ROOM);
}
const { positions } = away.groups;
assert.equal(positions, "77:0");
await away.client.close();

const all = Array.from({ length: BATCH * BATCHES }, (_, at) => `message ${at}`);
for (let batch = 0; batch < BATCHES; batch++) {
  const fates = all.slice(batch * BATCH, (batch + 1) * BATCH).map((body) => sender.groups.send(GROUP, body, { ack: true }));
  await kill();
  gateway = await start();
  assert.deepEqual(await Promise.all(fates), fates.map(() => "stored"));
}
assert.deepEqual(await take(stays, GROUP, all.length), all);

// The other comes back as a later page, and the gateway is killed while it is at it.
const back = await login(3, positions);
const got = await take(back, GROUP, 50);
await kill();
gateway = await start();
got.push(...(await take(back, GROUP, all.length - 50)));
assert.deepEqual(got, all);

// What is said in a room waits until the room is joined again.
assert.equal(await stays.groups.send(ROOM, "back", { ack: true }), "accepted");
assert.equal(await sender.groups.send(ROOM, "after", { ack: true }), "accepted");
assert.equal((await take(stays, ROOM, 1)).length, 1);
// It may have had everything before the kill, and not be back yet.
while (back.client.state !== "open") await new Promise((done) => setTimeout(done, 5));
const kept = [];
for (let after = 0n, complete = false; !complete; ) {
  const page = await back.groups.history(GROUP, { after, limit: 64 });
  kept.push(...page.messages.map(({ body }) => new TextDecoder().decode(body)));
  ({ next: after, complete } = page);
}
assert.deepEqual(kept, all);
await Promise.all([back, sender, stays].map(({ client }) => client.close()));
await kill();
console.log("all well");
process.exit(0);
