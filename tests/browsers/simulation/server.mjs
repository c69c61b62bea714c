/**
 * WebSocket and fetch in virtual time, and the servers that they reach.
 *
 * A `Service` is what a URL names: one or several servers (nodes), of which each page reaches one. The rules of the protocol
 * are in `rooms.mjs`. Here are connections: latency, lost packets, resets, half-open connections, restarts.
 */

import { currentWorld } from "./clock.mjs";
import { Rooms } from "./rooms.mjs";
import { defineHandlers, dispatch } from "./webrtc.mjs";

/** Milliseconds. */
const PING_INTERVAL = 25_000;
/** A browser does not wait longer for the answer to its Close frame. */
const CLOSING_MAX = 3_000;
const CLOSE_ABNORMAL = 1006;

/** Bytes of the largest message of a client. */
const MESSAGE_BYTES_MAX = 65_536;

/** @typedef {import("./clock.mjs").Page} Page */
/** @typedef {import("./clock.mjs").World} World */
/** @typedef {import("./rooms.mjs").Client} Client */

/** The two directions of a TCP connection. */
const UP = 0;
const DOWN = 1;

/** A TCP connection with a WebSocket, seen from both sides. */
export class Tcp {
  /** Packets that have not been delivered, in their order, by direction.
   *  @type {{action: () => void, hasArrived: boolean}[][]} */
  #packets = [[], []];
  /** When the last packet of a direction arrives. */
  #lastArrivals = [0, 0];
  /** Whether the connection is over for a side: [client, server]. */
  #isOver = [false, false];
  /** @type {Client | null} */
  client = null;
  /** When the server closes a connection that it hears nothing from. @type {import("./clock.mjs").Task | null} */
  #silenceTask = null;

  /** @param {World} world @param {WebSocket} socket @param {Server} server */
  constructor(world, socket, server) {
    this.world = world;
    this.socket = socket;
    this.page = socket.page;
    this.server = server;
    world.network.sockets.add(this);
  }

  get isOverForClient() {
    return this.#isOver[0];
  }

  get isOverForServer() {
    return this.#isOver[1];
  }

  get #hasPath() {
    return this.world.network.reachesServers(this.page);
  }

  /** Runs an action at the other side when a packet arrives there. @param {number} direction @param {() => void} action */
  transmit(direction, action) {
    const packet = { action, hasArrived: false };
    this.#packets[direction].push(packet);
    this.#scheduleArrival(direction, [packet]);
  }

  /** @param {number} direction @param {{hasArrived: boolean}[]} packets */
  #scheduleArrival(direction, packets) {
    if (!this.#hasPath) {
      // TCP sends them again when the path is back.
      return;
    }
    const { world } = this;
    const [min, max] = world.network.serverLatency;
    const arrival = Math.max(world.now + world.random.between(min, max), this.#lastArrivals[direction]);
    this.#lastArrivals[direction] = arrival;
    world.scheduleAt(direction === UP ? null : this.page, arrival, () => {
      if (this.#hasPath) {
        for (const packet of packets) {
          packet.hasArrived = true;
        }
        this.#deliver(direction);
      }
    });
  }

  /** Delivers what has arrived, in the order in which it was sent. @param {number} direction */
  #deliver(direction) {
    const packets = this.#packets[direction];
    while (packets[0]?.hasArrived) {
      const { action } = packets[0];
      packets.shift();
      if (!this.#isOver[direction === UP ? 1 : 0]) {
        action();
      }
    }
  }

  /** The path between the page and the servers is back, or lost. */
  onPathChange() {
    if (!this.#hasPath) {
      this.#awaitSilence();
      return;
    }
    this.world.cancel(this.#silenceTask);
    for (const direction of [UP, DOWN]) {
      this.#scheduleArrival(direction, [...this.#packets[direction]]);
    }
    if (this.client?.claimants) {
      this.ping();
    }
  }

  #awaitSilence() {
    this.world.cancel(this.#silenceTask);
    const time = this.world.random.between(PING_INTERVAL, 2 * PING_INTERVAL);
    this.#silenceTask = this.world.schedule(null, time, () => this.closeFromServer(4001));
  }

  /** Pings the client. Browsers answer, even if the page is frozen. */
  ping() {
    this.transmitToNetwork(() => this.transmit(UP, () => this.client && this.server.rooms.onAlive(this.client)));
  }

  /** As `transmit` to the client, but its page need not run. @param {() => void} action */
  transmitToNetwork(action) {
    if (this.#hasPath && !this.#isOver[0]) {
      const [min, max] = this.world.network.serverLatency;
      this.world.schedule(null, this.world.random.between(min, max), () => !this.#isOver[0] && action());
    }
  }

  /** The server sends a Close frame, and forgets the connection. @param {number} code */
  closeFromServer(code) {
    if (this.#isOver[1]) {
      return;
    }
    this.world.trace("server", () => `closes ${this.page.name} with ${code}`);
    this.transmit(DOWN, () => this.endAtClient(code));
    this.endAtServer();
  }

  /** Ends the connection, as a proxy or a router does. A side that does not notice learns it later: the client when the end
   *  arrives, or when it sends, and the server from its pings.
   *  @param {{clientNotices?: boolean, serverNotices?: boolean}} [options] */
  cut({ clientNotices = true, serverNotices = true } = {}) {
    const { world } = this;
    if (this.#isOver[0]) {
      return;
    }
    world.trace("net", () => `cut ${this.page.name} client=${clientNotices} server=${serverNotices}`);
    const delay = clientNotices ? world.random.between(0, 20) : world.random.between(500, 3_000);
    world.schedule(this.page, delay, () => this.endAtClient(CLOSE_ABNORMAL));
    if (serverNotices) {
      world.schedule(null, world.random.between(0, 20), () => this.endAtServer());
    } else {
      this.#awaitSilence();
    }
    // Nothing passes any more.
    if (!clientNotices) {
      this.#isOver[1] = true;
    } else {
      this.#isOver[0] = true;
    }
  }

  /** Lets a client that has not noticed the end learn it now. */
  settle() {
    if (this.#isOver[1] && !this.#isOver[0] && this.#hasPath) {
      this.world.schedule(this.page, 0, () => this.endAtClient(CLOSE_ABNORMAL));
    }
  }

  /** @param {number} code */
  endAtClient(code) {
    this.#isOver[0] = true;
    this.#forgetIfOver();
    this.socket.onEnd(code);
  }

  endAtServer() {
    this.#isOver[1] = true;
    this.world.cancel(this.#silenceTask);
    this.#forgetIfOver();
    this.#leaveServer();
  }

  #leaveServer() {
    const { client } = this;
    if (client) {
      this.world.schedule(null, 0, () => this.server.rooms.onDisconnect(client));
    }
    this.server.sockets.delete(this);
  }

  #forgetIfOver() {
    if (this.#isOver[0] && this.#isOver[1]) {
      this.world.network.sockets.delete(this);
    }
  }

  /** The page closes the WebSocket. @param {number} [code] */
  closeFromClient(code = 1005) {
    this.transmit(UP, () => {
      this.transmit(DOWN, () => this.endAtClient(code));
      this.endAtServer();
    });
  }

  /** The page has gone. @param {boolean} isAbrupt */
  onPageClose(isAbrupt) {
    if (isAbrupt) {
      // Nothing tells the server.
      this.#isOver[0] = true;
      this.#awaitSilence();
    } else {
      this.transmit(UP, () => this.endAtServer());
      this.#isOver[0] = true;
    }
  }

  /** A message of the page arrives. @param {string} text */
  sendFromClient(text) {
    if (this.#isOver[1] && !this.#isOver[0]) {
      // The server does not know this connection any more, and answers with a reset.
      this.world.schedule(this.page, this.world.random.between(1, 60), () => this.endAtClient(CLOSE_ABNORMAL));
      return;
    }
    this.transmit(UP, () => this.server.onMessage(this, text));
  }
}

/** One server. */
export class Server {
  isUp = true;
  /** @type {Set<Tcp>} */
  sockets = new Set();
  /** Messages of a client in a second, if they are limited. */
  rateMax = Infinity;
  /** The number of `offer`, `answer` and other messages from clients by type. @type {Map<string, number>} */
  counts = new Map();
  /** Decides about each message of a client, in tests of message orders: `pass` lets it pass, now or later.
   *  @type {((sender: string, message: any, pass: () => void) => void) | null} */
  filter = null;
  /** Credits by connection. @type {WeakMap<Tcp, {credits: number, at: number}>} */
  #credits = new WeakMap();

  /** @param {Service} service @param {string} name */
  constructor(service, name) {
    this.service = service;
    this.world = service.world;
    this.name = name;
    this.rooms = this.#createRooms();
  }

  #createRooms() {
    return new Rooms({
      world: this.world,
      send: ({ connection }, message) => connection.server.#send(connection, message),
      close: ({ connection }, code) => connection.closeFromServer(code),
      ping: ({ connection }) => connection.ping(),
      meshPeersMax: this.service.meshPeersMax,
      iceServers: (id) => this.service.iceServers?.(id),
    });
  }

  /** @param {Tcp} tcp @param {any} message */
  #send(tcp, message) {
    if (message.code === "id_taken") {
      this.service.rejectedClaims += 1;
    }
    if (tcp.isOverForServer) {
      return;
    }
    const text = JSON.stringify(message);
    this.world.trace(tcp.page.name, () => `<- ${shorten(message)}`);
    tcp.transmit(DOWN, () => tcp.socket.onText(text));
  }

  /** @param {Tcp} tcp @param {string} text */
  onMessage(tcp, text) {
    const { client } = tcp;
    if (!client || client.isGone) {
      return;
    }
    if (Buffer.byteLength(text) > MESSAGE_BYTES_MAX) {
      tcp.closeFromServer(1009);
      return;
    }
    if (client.claimants) {
      this.rooms.onAlive(client);
    }
    if (!this.#charge(tcp)) {
      return;
    }
    if (!this.filter) {
      this.#process(tcp, text);
      return;
    }
    this.filter(tcp.page.name, JSON.parse(text), () => this.#process(tcp, text));
  }

  /** @param {Tcp} tcp @param {string} text */
  #process(tcp, text) {
    if (tcp.client) {
      const type = /"type":"(\w+)"/.exec(text)?.[1] ?? "?";
      this.counts.set(type, (this.counts.get(type) ?? 0) + 1);
      this.rooms.onMessage(tcp.client, text);
    }
  }

  /** Takes the credits of a message, or refuses it. @param {Tcp} tcp */
  #charge(tcp) {
    if (this.rateMax === Infinity) {
      return true;
    }
    const { now } = this.world;
    const account = this.#credits.get(tcp) ?? { credits: 2 * this.rateMax, at: now };
    const refill = ((now - account.at) * this.rateMax) / 1000;
    const credits = Math.min(account.credits + refill, 2 * this.rateMax);
    const isEnough = credits >= 1;
    this.#credits.set(tcp, { credits: isEnough ? credits - 1 : credits, at: now });
    if (!isEnough) {
      this.#send(tcp, { type: "error", code: "rate_limited", message: "the rate limit is exceeded" });
    }
    return isEnough;
  }

  /** @param {Tcp} tcp @param {string} room */
  accept(tcp, room) {
    tcp.client = this.rooms.onConnect(room, tcp);
    this.sockets.add(tcp);
  }

  /** Ends all connections and forgets all rooms. @param {{code?: number}} [options] a code, if the server says why */
  stop({ code } = {}) {
    this.world.trace("server", () => `${this.name} stops`);
    this.isUp = false;
    for (const tcp of [...this.sockets]) {
      if (code) {
        tcp.closeFromServer(code);
      } else {
        tcp.cut();
      }
    }
    this.sockets.clear();
  }

  start() {
    if (this.isUp) {
      return;
    }
    this.world.trace("server", () => `${this.name} starts`);
    this.rooms = this.#createRooms();
    this.isUp = true;
  }
}

/** The servers behind a URL. */
export class Service {
  meshPeersMax = 64;
  /** The ICE servers that a client is sent. @type {((id: string) => object[]) | null} */
  iceServers = null;
  /** The response to a request that is not allowed. @type {((url: URL) => {status: number, text: string} | undefined) | null} */
  refuse = null;
  /** The server that a page reaches, if it is not the first one. @type {Map<string, number>} */
  routes = new Map();
  /** The number of claims of ids that were rejected. */
  rejectedClaims = 0;

  /** @param {World} world @param {number} [count] servers */
  constructor(world, count = 1) {
    this.world = world;
    world.service = this;
    this.servers = Array.from({ length: count }, (_, index) => new Server(this, `server${index + 1}`));
  }

  /** @param {Page} page */
  serverOf(page) {
    return this.servers[this.routes.get(page.name) ?? 0];
  }
}

export class WebSocket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  CONNECTING = 0;
  OPEN = 1;
  CLOSING = 2;
  CLOSED = 3;
  readyState = 0;
  bufferedAmount = 0;
  binaryType = "blob";
  protocol = "";
  extensions = "";
  /** @type {Tcp | null} */
  #tcp = null;

  /** @param {string | URL} url */
  constructor(url) {
    super();
    const address = new URL(url, "https://app.example/");
    if (!/^(wss?|https?):$/.test(address.protocol)) {
      throw new DOMException(`the scheme of ${url} is not ws or wss`, "SyntaxError");
    }
    this.url = address.href;
    const world = currentWorld();
    const { page } = world;
    if (!page) {
      throw new Error("a WebSocket needs a page");
    }
    this.world = world;
    this.page = page;
    page.resources.add(this);
    world.trace(page.name, () => `opens ${this.url}`);
    this.#connect(address);
  }

  /** @param {URL} address */
  #connect(address) {
    const { world, page } = this;
    const [min, max] = world.network.serverLatency;
    world.schedule(page, 2 * world.random.between(min, max), () => {
      if (this.readyState !== 0) {
        return;
      }
      if (!world.network.reachesServers(page)) {
        // TCP tries again.
        world.schedule(page, 500, () => this.#connect(address));
        return;
      }
      const server = world.service.serverOf(page);
      if (!server.isUp || world.service.refuse?.(address)) {
        this.onEnd(CLOSE_ABNORMAL);
        return;
      }
      const tcp = new Tcp(world, this, server);
      this.#tcp = tcp;
      server.accept(tcp, address.pathname.replace(/^\/ws\/?/, ""));
      this.readyState = 1;
      world.trace(page.name, () => `open at ${server.name}`);
      dispatch(this, "open");
    });
  }

  /** @param {string} data */
  send(data) {
    if (this.readyState === 0) {
      throw new DOMException("Still in CONNECTING state.", "InvalidStateError");
    }
    if (this.readyState !== 1) {
      return;
    }
    this.world.trace(this.page.name, () => `-> ${shorten(JSON.parse(data))}`);
    this.#tcp?.sendFromClient(data);
  }

  /** @param {number} [code] */
  close(code) {
    if (this.readyState >= 2) {
      return;
    }
    const { world, page } = this;
    this.readyState = 2;
    if (!this.#tcp) {
      world.schedule(page, 0, () => this.onEnd(CLOSE_ABNORMAL));
      return;
    }
    this.#tcp.closeFromClient(code);
    world.schedule(page, CLOSING_MAX, () => {
      this.#tcp?.endAtClient(CLOSE_ABNORMAL);
    });
  }

  /** @param {string} text */
  onText(text) {
    if (this.readyState === 1) {
      dispatch(this, "message", { data: text });
    }
  }

  /** @param {number} code */
  onEnd(code) {
    if (this.readyState === 3) {
      return;
    }
    this.readyState = 3;
    this.page.resources.delete(this);
    this.world.trace(this.page.name, () => `WebSocket closed ${code}`);
    if (code === CLOSE_ABNORMAL) {
      dispatch(this, "error");
    }
    dispatch(this, "close", { code, reason: "", wasClean: code !== CLOSE_ABNORMAL });
  }

  /** @param {boolean} isAbrupt */
  onPageClose(isAbrupt) {
    this.readyState = 3;
    this.#tcp?.onPageClose(isAbrupt);
  }
}
defineHandlers(WebSocket, ["open", "message", "error", "close"]);

/** Answers plain requests: 200 for /healthz, and for the URL of a WebSocket why it is refused.
 *  @param {string | URL} input @param {{signal?: AbortSignal}} [options] */
export async function fetch(input, { signal } = {}) {
  const world = currentWorld();
  const { page, service } = world;
  const url = new URL(input, "https://app.example/");
  const [min, max] = world.network.serverLatency;
  /** @type {Promise<never>} */
  const aborted = new Promise((_, reject) => {
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  const response = (async () => {
    await world.delay(page, 2 * world.random.between(min, max));
    while (page && !world.network.reachesServers(page)) {
      await world.delay(page, 500);
    }
    if (page && !service.serverOf(page).isUp) {
      throw new TypeError("Failed to fetch");
    }
    const refusal = url.pathname === "/healthz" ? { status: 200, text: "ok" } : service.refuse?.(url);
    const { status, text } = refusal ?? { status: 426, text: "expected an upgrade to WebSocket" };
    return { status, ok: status === 200, text: async () => text };
  })();
  return Promise.race([response, aborted]);
}

/** @param {any} message */
function shorten(message) {
  const { id, type, target_id: target, sdp, candidate, candidates, ...rest } = message;
  const parts = [type];
  if (id !== undefined) {
    parts.push(`id=${id}`);
  }
  if (target !== undefined) {
    parts.push(`target=${target}`);
  }
  if (sdp !== undefined) {
    const text = typeof sdp === "string" ? sdp : JSON.stringify(sdp);
    const origin = /o=\S+ (\d+) (\d+) IN/.exec(text);
    parts.push(origin ? `sdp=${origin[1]}.${origin[2]} (${text.length})` : `sdp=${text.slice(0, 40)}`);
    const { sdp: _, ...others } = typeof sdp === "object" && sdp ? sdp : (parseJson(sdp) ?? {});
    parts.push(JSON.stringify(others));
  }
  if (candidate !== undefined || candidates !== undefined) {
    parts.push("candidate");
  }
  if (Object.keys(rest).length > 0) {
    parts.push(JSON.stringify(rest).slice(0, 200));
  }
  return parts.join(" ");
}

/** @param {unknown} text */
function parseJson(text) {
  try {
    return JSON.parse(String(text));
  } catch {
    return undefined;
  }
}
