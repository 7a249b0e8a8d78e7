// What the tests in a browser start: gateways, a network that can be cut, and a browser whose tabs are hidden like those of a person.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const need = (name) => {
  if (!process.env[name]) throw new Error(`${name} is not set: these tests are run by make test-browser`);
  return process.env[name];
};
const CHROMIUM = need("TRUNKLINE_CHROMIUM");
const GATEWAY = need("TRUNKLINE_GATEWAY");
const require = createRequire(join(need("TRUNKLINE_BROWSER_MODULES"), "x.js"));
const playwright = require("playwright-core");
const { WebSocket } = require("ws");

/** Chromium's own sandbox needs rights that a container or root does not give; all it opens here are pages of this test. */
const ARGS = ["--no-sandbox"];

export const chromium = { launch: () => playwright.chromium.launch({ executablePath: CHROMIUM, args: ARGS }) };

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(what, look) {
  for (let tries = 0; tries < 600; tries++) {
    const seen = await look().catch(() => undefined);
    if (seen) return seen;
    await sleep(50);
  }
  throw new Error(`in vain: ${what}`);
}

async function end(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGTERM");
  await Promise.race([once(child, "exit"), sleep(15_000).then(() => child.kill("SIGKILL"))]);
}

/** A gateway of its own on free ports. */
export class Gateway {
  static async start(...flags) {
    const common = ["--http", "127.0.0.1:0", "--shards", "2", "--memory-max", "512MiB", "--drain-secs", "0", "--log", "warn"];
    if (!flags.includes("--listen")) common.push("--listen", "127.0.0.1:0");
    const child = spawn(GATEWAY, [...common, ...flags], { stdio: ["ignore", "pipe", "inherit"] });
    const gateway = new Gateway();
    gateway.child = child;
    for await (const line of createInterface({ input: child.stdout })) {
      const [, what, port] = /^(listening|http) on 127\.0\.0\.1:(\d+)/.exec(line) ?? [];
      if (what === "listening") gateway.port = Number(port);
      if (what === "http") gateway.httpPort = Number(port);
      if (line.startsWith("next:")) break;
    }
    if (!gateway.httpPort) throw new Error("the gateway did not start");
    // Whatever else it says is not to fill the pipe.
    child.stdout.resume();
    return gateway;
  }

  get ws() {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  get http() {
    return `http://127.0.0.1:${this.httpPort}`;
  }

  post(path) {
    return fetch(this.http + path, { method: "POST" });
  }

  async json(path) {
    return (await fetch(this.http + path)).json();
  }

  stop() {
    return end(this.child);
  }
}

async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

/** Two gateways that share a Redis Cluster of one server. */
export class Cluster {
  static async start(origin) {
    const cluster = new Cluster();
    cluster.folder = mkdtempSync(join(tmpdir(), "trunkline-browser-"));
    const [port, bus] = [await freePort(), await freePort()];
    const flags = ["--port", port, "--cluster-enabled", "yes", "--cluster-port", bus, "--bind", "127.0.0.1", "--dir", cluster.folder];
    cluster.redis = spawn("redis-server", [...flags.map(String), "--save", "", "--appendonly", "no"], { stdio: "ignore" });
    const cli = async (...command) => {
      const child = spawn("redis-cli", ["-p", String(port), ...command], { stdio: ["ignore", "pipe", "ignore"] });
      let said = "";
      for await (const some of child.stdout) said += some;
      return said;
    };
    await until("Redis answers", async () => (await cli("ping")).startsWith("PONG"));
    await cli("cluster", "addslotsrange", "0", "16383");
    await until("the slots are served", async () => (await cli("cluster", "info")).includes("cluster_state:ok"));
    const secret = join(cluster.folder, "secret");
    writeFileSync(secret, "0123456789abcdef0123456789abcdef", { mode: 0o600 });
    const node = async (name) => {
      // Other nodes and clients are told these, so they are chosen before the start.
      const [listen, mesh] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
      const joins = ["--redis", `redis-cluster://127.0.0.1:${port}`, "--cluster-secret-file", secret, "--mesh", mesh];
      return Gateway.start("--ws-origin", origin, "--node", name, "--listen", listen, ...joins);
    };
    cluster.first = await node("first");
    cluster.second = await node("second");
    const isWhole = async (gateway) => (await gateway.json("/v1/nodes")).nodes.filter((one) => one.reachable !== false).length === 2;
    for (const gateway of [cluster.first, cluster.second]) await until("both nodes know each other", () => isWhole(gateway));
    return cluster;
  }

  async stop() {
    await Promise.all([this.first, this.second].map((gateway) => gateway?.stop()));
    await end(this.redis);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A network between a page and a gateway. */
export class Wire {
  static async to(port) {
    const wire = new Wire();
    wire.pairs = new Set();
    wire.state = "whole";
    wire.server = createServer((near) => {
      if (wire.state === "cut") return near.destroy();
      const far = connect(port, "127.0.0.1");
      const pair = { near, far };
      wire.pairs.add(pair);
      for (const [from, to] of [[near, far], [far, near]]) {
        from.on("data", (bytes) => wire.state !== "swallows" && to.write(bytes));
        from.on("error", () => {});
        from.on("close", () => (to.destroy(), wire.pairs.delete(pair)));
      }
    });
    await new Promise((done) => wire.server.listen(0, "127.0.0.1", done));
    wire.port = wire.server.address().port;
    return wire;
  }

  cut() {
    this.state = "cut";
    for (const { near } of this.pairs) near.destroy();
  }

  /** Nothing passes any more, and nobody is told. */
  swallow() {
    this.state = "swallows";
  }

  mend() {
    for (const { near } of this.pairs) near.destroy();
    this.state = "whole";
  }

  close() {
    this.cut();
    this.server.close();
  }
}

/** A browser as a person has it: playwright keeps its pages from being hidden, and their timers from being slowed down. */
export class Browser {
  static async start() {
    const browser = new Browser();
    browser.folder = mkdtempSync(join(tmpdir(), "trunkline-chromium-"));
    const flags = [
      ...ARGS,
      "--headless=new",
      "--remote-debugging-port=0",
      `--user-data-dir=${browser.folder}`,
      "--no-first-run",
      // Timers of a hidden page are slowed down to one a minute after 5 minutes; here after 10 s.
      "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/10",
    ];
    browser.child = spawn(CHROMIUM, [...flags, "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
    let url;
    for await (const line of createInterface({ input: browser.child.stderr })) {
      url = /DevTools listening on (ws:\S+)/.exec(line)?.[1];
      if (url) break;
    }
    browser.child.stderr.resume();
    browser.socket = new WebSocket(url);
    await once(browser.socket, "open");
    browser.asked = new Map();
    browser.socket.on("message", (text) => {
      const { id, result, error } = JSON.parse(text);
      const asker = browser.asked.get(id);
      browser.asked.delete(id);
      if (error) asker?.reject(new Error(error.message));
      else asker?.resolve(result);
    });
    browser.next = 0;
    return browser;
  }

  ask(method, params = {}, sessionId = undefined) {
    const id = ++this.next;
    this.socket.send(JSON.stringify({ id, method, params, sessionId }));
    return new Promise((resolve, reject) => this.asked.set(id, { resolve, reject }));
  }

  /** Opens a tab in front of the others. */
  async open(url) {
    const { targetId } = await this.ask("Target.createTarget", { url });
    await this.ask("Target.activateTarget", { targetId });
    const { sessionId } = await this.ask("Target.attachToTarget", { targetId, flatten: true });
    const evaluate = async (expression) => {
      const { result, exceptionDetails } = await this.ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true }, sessionId);
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
      return result.value;
    };
    await until(`${url} is loaded`, () => evaluate(`document.readyState === "complete" && location.href.startsWith("${url}")`));
    return { evaluate };
  }

  async stop() {
    this.socket?.close();
    await end(this.child);
    rmSync(this.folder, { recursive: true, force: true });
  }
}
