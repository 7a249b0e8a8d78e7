// Workers and a gateway: node with_service.mjs GATEWAY. Calls, parts, a caller that is gone, a deadline, pushes with their fates, a drain under load, a gateway that is killed and comes
// back, and keys.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { CallError, Client } from "../dist/index.js";
import { NotBegunError, NotConnectedError, RefusedError, Service, StatusError } from "../dist/service.js";

const [, , program] = process.argv;
setTimeout(() => (console.error("in vain"), process.exit(1)), 60_000).unref();
const early = { minMs: 10, maxMs: 100 };
const text = (body) => new TextDecoder().decode(body);
const until = async (look) => {
  while (!look()) await new Promise((done) => setTimeout(done, 5));
};

/** A gateway, once it says where it listens. */
async function start({ clients = 0, services = 0, more = [] } = {}) {
  const flags = ["--shards", "2", "--listen", `127.0.0.1:${clients}`, "--http", "127.0.0.1:0", "--services-listen", `127.0.0.1:${services}`];
  const child = spawn(program, [...flags, "--service", "7:echo,call_timeout_ms=1000", ...more], { stdio: ["ignore", "pipe", "inherit"] });
  process.on("exit", () => child.kill("SIGKILL"));
  const said = {};
  for await (const line of createInterface({ input: child.stdout })) {
    const [, what, port] = /^(listening|services) on .*:(\d+)$/.exec(line) ?? [];
    if (what) said[what] = Number(port);
    if (said.listening && said.services) return { child, clients: said.listening, services: said.services };
  }
  throw new Error("the gateway does not start");
}

const gateway = await start();
const address = `127.0.0.1:${gateway.services}`;
const client = new Client({ url: `ws://127.0.0.1:${gateway.clients}/ws`, user: 42n, device: "phone", WebSocket, backoff: early });
await client.connect();

let aborted;
const echo = (name) => async (request) => {
  const said = text(request.body);
  if (said === "hang") {
    aborted = request.signal;
    return new Promise(() => {});
  }
  if (said === "refuse") throw new NotBegunError("not now");
  if (said === "status") throw new StatusError(300, "mine");
  if (said === "parts") await request.part("one");
  return `${name} ${request.user} ${request.head.device} ${said}`;
};
const first = new Service({ address, name: "first", backoff: early }).serve(7, echo("first"));
await first.start();
await until(() => first.links === 2);
const call = async (body) => {
  for (;;) {
    try {
      return await client.call(7, body);
    } catch (error) {
      // The link of the caller's shard may be younger than the call.
      if (!(error instanceof CallError) || ![17, 18].includes(error.code)) throw error;
    }
  }
};
assert.equal(text((await call("hello")).body), "first 42 phone hello");
assert.deepEqual([(await call("status")).status, (await call("parts")).parts.map(text)], [300, ["one"]]);
await assert.rejects(call("refuse"), (error) => error.code === 14 && !error.mayBeDone);
await assert.rejects(call("hang"), (error) => error.code === 24 && error.mayBeDone);
await until(() => aborted.aborted);
// The caller goes before its answer.
const leaver = new Client({ url: `ws://127.0.0.1:${gateway.clients}/ws`, user: 43n, WebSocket });
await leaver.connect();
aborted = undefined;
leaver.call(7, "hang").catch(() => {});
await until(() => aborted);
await leaver.close();
await until(() => aborted.aborted);

const fate = first.push(7, 42n, "news");
const { value } = await client[Symbol.asyncIterator]().next();
assert.deepEqual([value.service, text(value.body), await fate], [7, "news", "delivered"]);
assert.equal(await first.push(7, 99n, "nobody"), "offline");

// A second worker takes over while the first one drains: no call is lost.
const second = new Service({ address, name: "second", backoff: early, window: 3 }).serve(7, echo("second"));
await second.start();
await until(() => second.links === 2);
const calls = [];
for (let at = 0; at < 400; at += 1) {
  calls.push(call(`${at}`));
  if (calls.length % 8 === 0) await Promise.all(calls.slice(-8));
  if (at === 200) calls.push(first.drain().then((left) => assert.equal(left, 0)));
}
const answers = (await Promise.all(calls)).filter(Boolean).map(({ body }) => text(body).split(" "));
assert.deepEqual(answers.map((words) => words[3]), Array.from({ length: 400 }, (_, at) => `${at}`));
assert.ok(answers.some(([name]) => name === "first") && answers.at(-1)[0] === "second");

// Killed, and back at the same ports.
const failures = [];
second.on("error", (error) => failures.push(error));
const killed = once(gateway.child, "exit");
gateway.child.kill("SIGKILL");
await killed;
await until(() => client.state !== "open" && second.links === 0);
const back = await start(gateway);
await until(() => client.state === "open" && second.links === 2);
assert.equal(text((await call("back")).body), "second 42 phone back");
assert.ok(failures.length > 0 && failures.every((error) => error.name === "NotConnectedError"));
await client.close();
assert.equal(await second.drain(), 0);
back.child.kill("SIGKILL");

// With a keys file only a key with the scope of the service is let in.
const folder = mkdtempSync(join(tmpdir(), "trunkline-service-"));
process.on("exit", () => rmSync(folder, { recursive: true }));
const printed = execFileSync(program, ["api-key", "echo", "--scope", "serve:7"], { encoding: "utf8" });
const [token] = /^tlk_\S+/m.exec(printed);
const file = join(folder, "keys.toml");
writeFileSync(file, printed.split("\n").find((line) => line.startsWith("echo = ")), { mode: 0o600 });
// A key crosses networks, so it goes over TLS.
execFileSync(program, ["dev-cert", "--out", folder]);
const [cert, certKey] = ["dev-cert.pem", "dev-key.pem"].map((name) => join(folder, name));
const tls = ["--tls-cert", cert, "--tls-key", certKey, "--services-tls-required"];
const guarded = await start({ more: ["--api-keys-file", file, ...tls] });
const ca = readFileSync(cert, "utf8");
const worker = (service, key, more = { address: `tls://localhost:${guarded.services}`, ca }) => new Service({ name: "w", token: key, ...more }).serve(service, () => {});
await assert.rejects(worker(7, token, { address: `127.0.0.1:${guarded.services}` }).start(), NotConnectedError);
await assert.rejects(worker(7, token, { address: `tls://localhost:${guarded.services}` }).start(), (error) => error instanceof NotConnectedError && /self-signed/.test(error.message));
for (const [service, key] of [[7, ""], [7, `${token}x`], [8, token]]) {
  await assert.rejects(worker(service, key).start(), (error) => error instanceof RefusedError && error.code === 6 && /key/.test(error.message));
}
const keyed = worker(7, async () => token);
await keyed.start();
assert.equal(await keyed.drain(), 0);
console.log("all well");
process.exit(0);
