// The page of `gateway --demo`: one conversation at a time, with somebody or with everybody, over the client of client/js.
"use strict";

(() => {
  const el = (id) => document.getElementById(id);
  const utf8 = { to: new TextEncoder(), from: new TextDecoder() };
  /** Ids of the first visitors, whose presence is asked for though nobody has named them. */
  const NEARBY = Array.from({ length: 8 }, (_, at) => String(at + 1));
  /** Messages kept of one conversation, and conversations in all: the page holds no more than somebody looks at. */
  const MESSAGES_MAX = 500;
  const PEOPLE_MAX = 100;
  /** Where everybody is: a group where the gateway keeps messages, else a live room. */
  const GROUP = 1n;
  const ROOM = (1n << 63n) + GROUP;
  /** The key of that conversation, which is no id of a user. */
  const EVERYBODY = "everybody";
  /** How far back it is shown when one comes. */
  const BACK_MS = 3_600_000;
  /** Errors after which the live room is tried: the user may not join by itself, or there are no groups here. */
  const NO_GROUP = [19, 21];
  const STATES = { idle: "not connected", connecting: "connecting…", open: "connected", waiting: "coming back…", ended: "ended" };
  const FATES = {
    sending: ["", "sending…"],
    delivered: ["good", "✓ delivered"],
    stored: ["good", "✓ stored"],
    accepted: ["good", "✓ accepted"],
    offline: ["bad", "not delivered: offline"],
    overloaded: ["bad", "not delivered: overloaded"],
    denied: ["bad", "not delivered: denied"],
    "inbox-full": ["bad", "not delivered: inbox full"],
    expired: ["bad", "not delivered: expired"],
  };

  let config, client, groups, presence, me;
  /** The group or room that everybody is in; undefined where this gateway has neither. */
  let everybody;
  /** Id → { messages, unread, online, devices }. */
  const people = new Map();
  let current;

  // ---- What is kept for the life of a tab. Where storage is refused, nothing is.

  const remembered = (key, value) => {
    try {
      if (value === undefined) return sessionStorage.getItem(key);
      sessionStorage.setItem(key, value);
    } catch {}
    return value ?? null;
  };

  /** A name of this tab's own, since a login replaces the one before of the same device. */
  const device = () => {
    const own = remembered("device");
    if (own) return own;
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    return remembered("device", "tab-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join(""));
  };

  // ---- People

  const person = (id) => {
    if (!people.has(id)) {
      if (people.size >= PEOPLE_MAX) people.delete([...people.keys()].find((other) => other !== current));
      people.set(id, { messages: [], unread: 0, online: undefined, devices: 0, named: false });
    }
    return people.get(id);
  };

  const nameOf = (id) => (id === EVERYBODY ? "Everybody" : id === me ? `User ${id} (you)` : `User ${id}`);

  const aboutEverybody = () => (everybody === ROOM ? "nothing is kept" : "messages are kept");

  const presenceOf = ({ online, devices }) => {
    if (online === undefined) return "presence not known";
    if (!online) return "offline";
    return devices > 1 ? `online, ${devices} devices` : "online";
  };

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };

  const dot = (online) => make("span", { className: online ? "dot online" : "dot" });

  const shownPeople = () =>
    [...people]
      .filter(([id, { named, online }]) => id !== EVERYBODY && (named || (online && id !== me)))
      .sort(([a], [b]) => (BigInt(a) < BigInt(b) ? -1 : 1));

  const lastOf = ({ messages }) => messages.at(-1)?.text.slice(0, 80);

  const aboutOf = (id, who) => (id === EVERYBODY ? aboutEverybody() : presenceOf(who));

  let drawn = "";
  const drawPeople = () => {
    const others = shownPeople();
    const shown = everybody ? [[EVERYBODY, person(EVERYBODY)], ...others] : others;
    // The list is made anew only where it differs, so that focus and a pointer on it are left alone.
    const now = JSON.stringify([current, shown.map(([id, who]) => [id, who.unread, aboutOf(id, who), lastOf(who)])]);
    if (now === drawn) return;
    drawn = now;
    const focused = document.activeElement?.dataset?.id;
    el("list").replaceChildren(
      ...shown.map(([id, who]) => {
        const face = make("span", { className: "face" });
        if (id === EVERYBODY) {
          face.append("#");
          face.classList.add("group");
        } else {
          face.append(id.slice(-3), dot(who.online));
          face.style.setProperty("--hue", String(Number((BigInt(id) * 137n) % 360n)));
        }
        face.setAttribute("aria-hidden", "true");
        const name = make("span", { className: "name" }, make("span", { textContent: nameOf(id) }));
        name.append(make("span", { className: "hint", textContent: [aboutOf(id, who), lastOf(who)].filter(Boolean).join(" · ") }));
        const button = make("button", { type: "button", onclick: () => open(id) }, face, name);
        button.dataset.id = id;
        if (who.unread) {
          const unread = make("span", { className: "unread", textContent: who.unread });
          unread.append(make("span", { className: "unseen", textContent: " unread" }));
          button.append(unread);
        }
        button.setAttribute("aria-current", String(id === current));
        return make("li", {}, button);
      }),
    );
    if (focused) el("list").querySelector(`[data-id="${focused}"]`)?.focus();
    el("nobody").hidden = others.length > 0;
    const unread = shown.reduce((sum, [, who]) => sum + who.unread, 0);
    document.title = unread ? `(${unread}) Trunkline demo` : "Trunkline demo";
    if (current) {
      el("talk-title").textContent = nameOf(current);
      const presence = aboutOf(current, person(current));
      if (el("talk-presence").textContent !== presence) el("talk-presence").textContent = presence;
    }
  };

  // ---- A conversation

  const drawMessage = (message) => {
    const { text, mine, at, from } = message;
    const time = make("time", { textContent: at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }), dateTime: at.toISOString() });
    message.fateNode = make("span");
    const about = make("small", {}, time);
    if (mine && message.fate) about.append(" · ", message.fateNode);
    showFate(message);
    const sender = from === undefined || mine ? [] : [make("small", { className: "sender", textContent: nameOf(from) })];
    return make("li", { className: mine ? "message mine" : "message" }, ...sender, make("p", { textContent: text }), about);
  };

  const showFate = (message) => {
    if (!message.fateNode || !message.fate) return;
    const [className, words] = FATES[message.fate] ?? ["bad", message.fate];
    Object.assign(message.fateNode, { className, textContent: words });
  };

  const drawEmpty = (words) => el("log").replaceChildren(make("li", { className: "empty", textContent: words }));

  /** What stands where no conversation is open; on a narrow screen it is not seen. */
  const close = () => {
    current = undefined;
    el("talk-title").textContent = "No conversation";
    el("talk-presence").textContent = "";
    el("compose").hidden = true;
    drawEmpty("Choose somebody, or open a second tab with another id: who writes to you appears here.");
    drawPeople();
  };

  const drawTalk = () => {
    const log = el("log");
    const { messages } = person(current);
    log.replaceChildren(...messages.map(drawMessage));
    if (!messages.length) {
      const own = current === me ? "What you write here reaches your other tabs with this id." : "No messages yet.";
      drawEmpty(current === EVERYBODY ? "What you write here reaches everybody who has this page open." : own);
    }
    log.scrollTop = log.scrollHeight;
  };

  const add = (id, message) => {
    const who = person(id);
    if (!who.named) watch(id);
    who.named = true;
    // Who writes is there.
    if (!message.mine) who.online = true;
    who.messages.push(message);
    if (who.messages.length > MESSAGES_MAX) who.messages.shift();
    if (id !== current && !current && isWide() && id !== EVERYBODY) return open(id, false);
    if (id !== current) {
      if (!message.mine) who.unread += 1;
    } else {
      const log = el("log");
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      log.querySelector(".empty")?.remove();
      log.append(drawMessage(message));
      if (log.childElementCount > MESSAGES_MAX) log.firstElementChild.remove();
      if (atEnd || message.mine) log.scrollTop = log.scrollHeight;
    }
    drawPeople();
  };

  const view = (name) => (document.body.dataset.view = name);

  const isWide = () => matchMedia("(min-width: 44.01rem)").matches;

  const open = (id, focus = true) => {
    current = id;
    const who = person(id);
    who.named = true;
    who.unread = 0;
    drawPeople();
    drawTalk();
    view("talk");
    el("compose").hidden = false;
    if (focus) el("text").focus();
    watch(id);
  };

  const send = async (text) => {
    const to = current;
    const message = { text, mine: true, at: new Date(), fate: "sending" };
    add(to, message);
    try {
      const fate = to === EVERYBODY ? groups.send(everybody, text, { ack: true }) : client.send(to, text, { ack: true });
      message.fate = await fate;
    } catch (error) {
      message.fate = `failed: ${error.message}`;
    }
    showFate(message);
  };

  // ---- Presence: who is watched is told of by the gateway, whenever it changes

  const watch = (id) => id !== EVERYBODY && presence?.watch(id);

  const showPresence = (users) => {
    for (const { user, online, deviceClasses } of users) {
      Object.assign(person(String(user)), { online, devices: online ? Math.max(1, deviceClasses.length) : 0 });
    }
    drawPeople();
  };

  /** Over the HTTP API, for who has not logged in yet. */
  const askOne = async (id) => {
    try {
      const answer = await fetch(`/v1/users/${id}`);
      if (!answer.ok) return undefined;
      return await answer.json();
    } catch {
      return undefined;
    }
  };

  // ---- The session

  const showState = (state) => {
    el("connection").dataset.state = state;
    el("state").textContent = STATES[state];
    if (!me) el("login-error").textContent = state === "waiting" ? "There is no connection yet; it is tried again." : "";
  };

  const banner = (text) => {
    el("banner").hidden = !text;
    el("banner-text").textContent = text ?? "";
  };

  const isId = (text) => /^[0-9]{1,20}$/.test(text) && BigInt(text) > 0n && BigInt(text) < 1n << 64n;
  const asId = (text) => (isId(text.trim()) ? String(BigInt(text.trim())) : undefined);

  const listen = async (mine) => {
    try {
      for await (const { from, body } of mine) {
        if (mine !== client) return;
        add(String(from), { text: utf8.from.decode(body), mine: false, at: new Date() });
      }
    } catch (error) {
      if (mine === client) banner(`The session is over: ${error.message}.`);
    }
  };

  /** What is said to everybody. Own messages come from other tabs, and with what was said before. */
  const listenToEverybody = async (mine) => {
    try {
      for await (const { from, body, timeMs, self } of mine) {
        if (mine !== groups) return;
        add(EVERYBODY, { text: utf8.from.decode(body), mine: self, from: String(from), at: new Date(timeMs) });
      }
    } catch {} // The other one has told of it.
  };

  /** Joins the group, or else the live room, or neither: that is up to the gateway. */
  const joinEverybody = async (mine, before) => {
    for (const id of [GROUP, ROOM]) {
      try {
        await mine.join(id);
        if (mine !== groups) return;
        everybody = id;
        if (id === GROUP && !before) mine.follow(id, BigInt(Date.now() - BACK_MS) << 20n);
        return drawPeople();
      } catch (error) {
        if (!NO_GROUP.includes(error.code)) return console.warn(error);
      }
    }
  };

  const login = async (user, token) => {
    const before = user === me ? groups?.positions : "";
    client?.close();
    const mine = new trunkline.Client({ url: config.url, user, token, device: device(), deviceClass: "web", agent: "trunkline-demo" });
    client = mine;
    const ours = new trunkline.Groups(mine, { positions: before });
    groups = ours;
    const watching = new trunkline.Presence(mine);
    presence = watching;
    let told;
    const known = new Promise((done) => (told = done));
    watching.on("presence", (users) => {
      if (watching === presence) showPresence(users);
      told();
    });
    watching.watch(...NEARBY, ...[...people].filter(([id, who]) => who.named && id !== EVERYBODY).map(([id]) => id));
    mine.on("state", (state) => mine === client && showState(state));
    mine.on("error", (error) => console.warn(error));
    banner();
    await mine.connect();
    if (mine !== client) return;
    me = user;
    remembered("user", user);
    el("me").textContent = `You are user ${user}`;
    el("welcome").hidden = true;
    el("chat").hidden = el("leave").hidden = false;
    if (!current) {
      close();
      view("people");
    }
    void listen(mine);
    void listenToEverybody(ours);
    void joinEverybody(ours, before);
    // A gateway that tells nobody of others says nothing.
    await Promise.race([known, new Promise((done) => setTimeout(done, 1_000))]);
    // The first one who is here is who one has come to talk to.
    const [first] = shownPeople();
    if (!current && first && isWide()) open(first[0]);
  };

  const leave = async () => {
    await client?.close();
    client = groups = presence = me = everybody = undefined;
    people.clear();
    close();
    banner();
    showState("idle");
    el("chat").hidden = el("leave").hidden = true;
    el("welcome").hidden = false;
    view("welcome");
    el("user").focus();
  };

  /** The first small id that is not online, or what this tab had before. */
  const suggest = async () => {
    const before = remembered("user");
    if (before) return before;
    for (const id of NEARBY) if (!(await askOne(id))?.online) return id;
    return String(crypto.getRandomValues(new Uint16Array(1))[0] + 9);
  };

  el("login").onsubmit = async (event) => {
    event.preventDefault();
    const user = asId(el("user").value);
    el("login-error").textContent = user ? "" : "An id is a whole number from 1 to 18446744073709551615.";
    if (!user) return;
    el("enter").disabled = true;
    try {
      // Whoever types fast is here before the page knows where to connect.
      if (!(await ready)) return;
      await login(user, el("token").value.trim());
    } catch (error) {
      el("login-error").textContent = error.message;
    } finally {
      el("enter").disabled = false;
    }
  };
  el("add").onsubmit = (event) => {
    event.preventDefault();
    const id = asId(el("peer").value);
    el("peer").setCustomValidity(id ? "" : "This is no id");
    el("peer").reportValidity();
    if (!id) return;
    el("peer").value = "";
    open(id);
  };
  el("peer").oninput = () => el("peer").setCustomValidity("");
  el("compose").onsubmit = (event) => {
    event.preventDefault();
    const text = el("text").value.trim();
    if (!text || !current) return;
    el("text").value = "";
    void send(text);
  };
  el("banner-button").onclick = () => login(me, el("token").value.trim()).catch((error) => banner(`${error.message}.`));
  el("leave").onclick = leave;
  el("back").onclick = () => {
    const id = current;
    close();
    view("people");
    el("list").querySelector(`[data-id="${id}"]`)?.focus();
  };

  close();
  /** Whether the gateway has said where to connect; if it has not, the page says so. */
  const ready = (async () => {
    try {
      config = await (await fetch("/demo/config.json")).json();
    } catch (error) {
      el("login-error").textContent = `The gateway does not answer: ${error.message}`;
      return false;
    }
    el("token-row").hidden = !config.token;
    return true;
  })();
  (async () => {
    if (!(await ready)) return;
    const id = await suggest();
    // Not over what somebody has typed meanwhile.
    if (el("user").value) return;
    el("user").value = id;
    el("user").select();
  })();
})();
