// The client and the page of `gateway --demo` in a real browser, against real gateways: make test-browser.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { readFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Browser, Cluster, Gateway, Wire, chromium } from "./browser_support.mjs";

const BUNDLE = readFileSync(new URL("../dist/trunkline.iife.js", import.meta.url));
/** How long anything may take that is to happen, on a busy machine. */
const PATIENCE_MS = 30_000;

let browser, pages, origin;
const gateways = new Set();

before(async () => {
  browser = await chromium.launch();
  // A site of its own: its pages come from another origin than the gateway.
  pages = createServer((request, response) => {
    const script = request.url === "/trunkline.js";
    response.writeHead(200, { "Content-Type": script ? "text/javascript" : "text/html" });
    response.end(script ? BUNDLE : "<!doctype html><title>a page</title><script src=/trunkline.js></script>");
  });
  await new Promise((done) => pages.listen(0, "127.0.0.1", done));
  origin = `http://127.0.0.1:${pages.address().port}`;
});

after(async () => {
  await browser?.close();
  pages?.close();
  await Promise.all([...gateways].map((gateway) => gateway.stop()));
});

async function start(...flags) {
  const gateway = await Gateway.start("--ws-origin", origin, ...flags);
  gateways.add(gateway);
  return gateway;
}

/** A tab with a client in it, `window.client`, that is logged in; what comes is kept in `window.got`, each state in `window.states`. */
async function tab(url, user, options = {}, context = undefined) {
  context ??= await browser.newContext();
  const page = await context.newPage();
  await page.goto(origin);
  if (options.token) await page.exposeFunction("getToken", options.token);
  const { token, connect = true, ...rest } = options;
  await page.evaluate(
    async ({ url, user, rest, hasToken, connect }) => {
      const more = hasToken ? { token: () => window.getToken() } : {};
      const backoff = { minMs: 50, maxMs: 500 };
      Object.assign(window, { got: [], states: [], errors: [] });
      window.client = new trunkline.Client({ url, user, backoff, ...rest, ...more });
      client.on("state", (state) => states.push(state));
      client.on("error", (error) => errors.push(String(error)));
      (async () => {
        for await (const { from, body } of client) got.push([Number(from), new TextDecoder().decode(body)]);
      })().catch((error) => (window.ended = [error.name, error.reason]));
      if (connect) await client.connect();
    },
    { url, user, rest, hasToken: !!token, connect },
  );
  return page;
}

const send = (page, to, text) => page.evaluate(([to, text]) => client.send(to, text, { ack: true }), [to, text]);
const has = (page, expression, argument) => page.waitForFunction(expression, argument, { timeout: PATIENCE_MS });
const gets = (page, text) => has(page, (text) => got.some(([, body]) => body === text), text);
const isIn = (page, state) => has(page, (state) => client.state === state, state);

test("two tabs talk, and the fate of a message is told", async () => {
  const gateway = await start();
  const [one, two] = [await tab(gateway.ws, 1), await tab(gateway.ws, 2)];
  for (const text of ["hello", "grüße 👋", "x".repeat(60_000)]) {
    assert.equal(await send(one, 2, text), "delivered");
    await gets(two, text);
  }
  assert.equal(await send(two, 1, "back"), "delivered");
  await gets(one, "back");
  assert.equal(await send(one, 99, "nobody"), "offline");
  await one.context().close();
  await two.context().close();
});

test("tabs talk over TLS and come back after a restart, and a browser that does not trust the certificate stays away", async () => {
  const folder = mkdtempSync(join(tmpdir(), "trunkline-browser-"));
  execFileSync(process.env.TRUNKLINE_GATEWAY, ["dev-cert", "--out", folder], { stdio: "ignore" });
  const flags = ["--tls-cert", join(folder, "dev-cert.pem"), "--tls-key", join(folder, "dev-key.pem")];
  const gateway = await start(...flags);
  const url = gateway.ws.replace("ws:", "wss:");
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  const [one, two] = [await tab(url, 1, {}, context), await tab(url, 2, {}, context)];
  const talk = async (text) => {
    assert.equal(await send(one, 2, text), "delivered");
    await gets(two, text);
  };
  for (const text of ["hello", "x".repeat(60_000)]) await talk(text);
  const stranger = await tab(url, 3, { connect: false });
  await stranger.evaluate(() => void client.connect().catch(() => {}));
  await has(stranger, () => states.includes("waiting"));
  assert.equal(await stranger.evaluate(() => states.includes("open")), false);
  await gateway.stop();
  await start(...flags, "--listen", `127.0.0.1:${gateway.port}`);
  for (const page of [one, two]) await isIn(page, "open");
  await talk("all are back");
  await context.close();
  await stranger.context().close();
  rmSync(folder, { recursive: true });
});

test("a page of another origin is refused, and the browser tells it no more than that", async () => {
  const gateway = await Gateway.start();
  gateways.add(gateway);
  const page = await tab(gateway.ws, 1, { connect: false });
  await page.evaluate(() => void client.connect().catch(() => {}));
  await has(page, () => states.includes("waiting"));
  assert.equal(await page.evaluate(() => states.includes("open")), false);
  await page.context().close();
});

test("two tabs with one device name end with one", async () => {
  const gateway = await start();
  const context = await browser.newContext();
  const first = await tab(gateway.ws, 5, { device: "tab" }, context);
  const second = await tab(gateway.ws, 5, { device: "tab" }, context);
  await isIn(first, "ended");
  assert.deepEqual(await first.evaluate(() => window.ended), ["ByeError", 8]);
  const again = first.evaluate(() => client.connect().then(() => "open", (error) => error.reason));
  assert.equal(await again, 8, "it does not come back by itself, nor when it is asked to");
  await first.waitForTimeout(1_500);
  assert.deepEqual(await second.evaluate(() => states), ["connecting", "open"]);
  await context.close();
});

test("a network that is cut and comes back loses nothing that has a fate", async () => {
  const gateway = await start("--heartbeat-secs-min", "1");
  const wire = await Wire.to(gateway.port);
  const cut = await tab(`ws://127.0.0.1:${wire.port}/ws`, 1, { heartbeatSecs: 1 });
  const other = await tab(gateway.ws, 2);
  assert.equal(await send(cut, 2, "before"), "delivered");
  await cut.context().setOffline(true);
  wire.cut();
  await has(cut, () => client.state !== "open");
  const fate = cut.evaluate(() => client.send(2, "meanwhile", { ack: true }));
  wire.mend();
  // With the longest wait still ahead, the event of the browser is what brings it back.
  await cut.context().setOffline(false);
  await isIn(cut, "open");
  assert.equal(await fate, "delivered");
  await gets(other, "meanwhile");
  assert.equal(await send(other, 1, "welcome back"), "delivered");
  await gets(cut, "welcome back");
  await cut.context().close();
  await other.context().close();
  wire.close();
});

test("a network that swallows everything is noticed", async () => {
  const gateway = await start("--heartbeat-secs-min", "1");
  const wire = await Wire.to(gateway.port);
  const page = await tab(`ws://127.0.0.1:${wire.port}/ws`, 1, { heartbeatSecs: 1 });
  wire.swallow();
  await has(page, () => client.state !== "open");
  wire.mend();
  await isIn(page, "open");
  await page.context().close();
  wire.close();
});

test("a node that drains sends its clients to the node that takes over, and they go there", async () => {
  const cluster = await Cluster.start(origin);
  try {
    const { first, second } = cluster;
    const pages = [];
    for (let user = 1; user <= 6; user++) pages.push(await tab(first.ws, user));
    assert.equal((await first.post("/v1/node/drain")).status, 202);
    for (const page of pages) {
      // Told where to go, and neither sent away from there nor made to try twice.
      await has(page, () => states.length > 3 && client.state === "open");
      assert.deepEqual(await page.evaluate(() => states), ["connecting", "open", "waiting", "connecting", "open"]);
    }
    assert.equal((await second.json("/v1/node")).sessions, pages.length);
    assert.equal(await send(pages[0], 6, "there"), "delivered");
    await gets(pages[5], "there");
    for (const page of pages) await page.context().close();
  } finally {
    await cluster.stop();
  }
});

test("a token that ends is renewed within the session, and one that is refused ends it", async () => {
  const folder = mkdtempSync(join(tmpdir(), "trunkline-browser-"));
  const secret = "0123456789abcdef0123456789abcdef";
  writeFileSync(join(folder, "secret"), secret);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const jwt = (user, secs, key = secret) => {
    const body = `${part({ alg: "HS256" })}.${part({ sub: String(user), exp: Math.floor(Date.now() / 1_000) + secs })}`;
    return `${body}.${createHmac("sha256", key).update(body).digest("base64url")}`;
  };
  const gateway = await start("--auth", "jwt", "--jwt-hs256-secret-file", join(folder, "secret"));
  let calls = 0;
  const page = await tab(gateway.ws, 1, { token: async () => (calls++, jwt(1, 4)) });
  await page.waitForTimeout(10_000);
  assert.deepEqual(await page.evaluate(() => states), ["connecting", "open"], "one session, over several tokens");
  assert.ok(calls >= 3, `the token was asked for ${calls} times`);

  let asked = 0;
  const refused = await tab(gateway.ws, 2, { token: async () => (asked++, jwt(2, 60, "x".repeat(32))), connect: false });
  const end = refused.evaluate(() => client.connect().then(() => "open", (error) => error.name));
  assert.equal(await end, "UnauthorizedError");
  assert.equal(asked, 2, "another token was tried, once");
  await page.context().close();
  await refused.context().close();
  rmSync(folder, { recursive: true });
});

test("a hidden tab, whose timers run once a minute, is held", async (context) => {
  const gateway = await start("--heartbeat-secs-min", "1");
  const minutes = Number(process.env.TRUNKLINE_HIDDEN_MINUTES ?? 3);
  const hidden = await Browser.start();
  try {
    const page = await hidden.open(origin);
    const login = `
      window.states = []; window.ticks = 0; window.got = 0; setInterval(() => ticks++, 1000);
      window.client = new trunkline.Client({ url: ${JSON.stringify(gateway.ws)}, user: 1, heartbeatSecs: 5 });
      client.on("state", (state) => states.push(state));
      (async () => { for await (const _ of client) got++; })();
      client.connect().then(() => client.state)`;
    assert.equal(await page.evaluate(login), "open");
    await hidden.open("about:blank");
    assert.equal(await page.evaluate("document.visibilityState"), "hidden");
    const ticks = await page.evaluate("ticks");
    const other = await tab(gateway.ws, 2);
    for (let sent = 1; sent <= minutes; sent++) {
      await other.waitForTimeout(60_000);
      assert.equal(await send(other, 1, "are you there?"), "delivered");
    }
    const ran = (await page.evaluate("ticks")) - ticks;
    assert.ok(ran < 30 + 5 * minutes, `the browser ran the page's timer of a second ${ran} times: that page was not hidden`);
    assert.equal(await page.evaluate("got"), minutes);
    context.diagnostic(`${minutes} minutes, in which the page's timer of a second ran ${ran} times`);
    assert.deepEqual(await page.evaluate("states"), ["connecting", "open"], "no heartbeat was missed");
    await other.context().close();
  } finally {
    await hidden.stop();
  }
});

test("the demo: everybody is in a group whose messages are kept, or else in a live room", async () => {
  const folder = mkdtempSync(join(tmpdir(), "trunkline-browser-"));
  for (const flags of [["--data-dir", folder], []]) {
    const gateway = await start("--demo", ...flags);
    const enter = async (user) => {
      const page = await (await browser.newContext()).newPage();
      await page.goto(`${gateway.http}/demo`);
      await has(page, () => document.getElementById("user").value !== "");
      await page.fill("#user", user);
      await page.click("#enter");
      await page.click("#list button[data-id=everybody]");
      return page;
    };
    const say = async (page, text, fate) => {
      await page.fill("#text", text);
      await page.press("#text", "Enter");
      await has(page, (fate) => [...document.querySelectorAll(".mine .good")].at(-1)?.textContent === fate, fate);
    };
    const [one, two] = [await enter("1"), await enter("2")];
    const fate = flags.length ? "✓ stored" : "✓ accepted";
    await say(one, "<b>hello all</b>", fate);
    await has(two, () => document.querySelector(".message p")?.textContent === "<b>hello all</b>");
    assert.equal(await two.textContent(".message .sender"), "User 1");
    await say(two, "hello one", fate);
    await has(one, () => document.querySelectorAll(".message p").length === 2);
    // Who comes later sees what was said, where it is kept.
    const three = await enter("3");
    if (flags.length) await has(three, () => document.querySelectorAll(".message p").length === 2);
    else assert.equal(await three.locator(".message").count(), 0);
    for (const page of [one, two, three]) await page.context().close();
  }
  rmSync(folder, { recursive: true, force: true });
});

test("the demo: who types faster than the page loads is logged in as what he typed", async () => {
  const gateway = await start("--demo");
  const page = await (await browser.newContext()).newPage();
  let answer;
  const held = new Promise((resolve) => (answer = resolve));
  await page.route("**/demo/config.json", async (route) => {
    await held;
    await route.continue();
  });
  await page.goto(`http://127.0.0.1:${gateway.httpPort}/demo`);
  await page.fill("#user", "55");
  await page.click("#enter");
  answer();
  await page.waitForSelector("#connection[data-state=open]");
  assert.match(await page.textContent("#me"), /\b55$/);
  await page.context().close();
});

test("the demo: two tabs talk, see each other come and go, and the newer one of two with one name stays", async () => {
  const gateway = await start("--demo");
  for (const host of ["127.0.0.1", "localhost"]) {
    const open = async (context) => {
      const page = await (context ?? (await browser.newContext())).newPage();
      const faults = [];
      page.on("console", (line) => line.type() === "error" && faults.push(line.text()));
      page.on("pageerror", (error) => faults.push(String(error)));
      await page.goto(`http://${host}:${gateway.httpPort}/demo`);
      await has(page, () => document.getElementById("user").value !== "");
      return { page, faults };
    };
    const enter = async ({ page }) => {
      await page.click("#enter");
      await page.waitForSelector("#connection[data-state=open]");
    };
    const one = await open();
    assert.equal(await one.page.inputValue("#user"), "1", "the first id that is free is offered");
    await enter(one);
    const two = await open();
    assert.equal(await two.page.inputValue("#user"), "2");
    await enter(two);
    await two.page.waitForSelector("#list button[data-id='1']");
    await two.page.click("#list button[data-id='1']");
    await two.page.fill("#text", "<b>hello</b>");
    await two.page.press("#text", "Enter");
    await has(two.page, () => document.querySelector(".mine .good")?.textContent === "✓ delivered");
    await has(one.page, () => document.querySelector(".message p")?.textContent === "<b>hello</b>");
    await two.page.click("#leave");
    await has(one.page, () => document.getElementById("talk-presence").textContent === "offline");
    await one.page.fill("#text", "gone?");
    await one.page.press("#text", "Enter");
    await has(one.page, () => document.querySelector(".mine .bad")?.textContent === "not delivered: offline");

    // A copy of a tab has the name of its device too.
    const copy = await open(one.page.context());
    await copy.page.evaluate((device) => sessionStorage.setItem("device", device), await one.page.evaluate(() => sessionStorage.device));
    await copy.page.fill("#user", "1");
    await enter(copy);
    await one.page.waitForSelector("#connection[data-state=ended]");
    await one.page.waitForSelector("#banner:not([hidden])");
    assert.deepEqual([...one.faults, ...two.faults, ...copy.faults], []);
    await one.page.context().close();
    await two.page.context().close();
  }
});
