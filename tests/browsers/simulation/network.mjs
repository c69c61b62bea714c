/** The network between pages, and between pages and servers. */

/** @typedef {import("./clock.mjs").Page} Page */
/** @typedef {import("./webrtc.mjs").RTCPeerConnection} RTCPeerConnection */

export class Network {
  /** Bounds in milliseconds of the time that a message between two pages takes. @type {[number, number]} */
  peerLatency = [0.5, 40];
  /** The same between a page and a server. @type {[number, number]} */
  serverLatency = [0.5, 30];
  /** The share of lost messages of unreliable channels. */
  lossRate = 0.02;
  /** The probability that messages which were sent directly before the end of a connection arrive. */
  sentBeforeClose = 0.5;
  /** Open connections. @type {Set<RTCPeerConnection>} */
  connections = new Set();
  /** Connections by the username fragments of their descriptions. @type {Map<string, RTCPeerConnection>} */
  connectionsByFragment = new Map();
  connectionCount = 0;
  /** Rollbacks, and those of the first offer of a connection. */
  rollbackCount = 0;
  firstRollbackCount = 0;
  /** Pairs of pages without a path. @type {Set<string>} */
  #interrupted = new Set();
  /** WebSockets that a server has accepted. @type {Set<import("./server.mjs").Tcp>} */
  sockets = new Set();
  /** Pages whose packets to and from servers are lost, until the network is back. @type {Set<Page>} */
  #unreachable = new Set();

  /** @param {import("./clock.mjs").World} world */
  constructor(world) {
    this.world = world;
  }

  /** Whether packets pass between two pages. @param {Page} page @param {Page} other */
  hasPath(page, other) {
    return !page.isClosed && !other.isClosed && !this.#interrupted.has(pairKey(page, other));
  }

  /** @param {{name: string}} page @param {{name: string}} other @param {boolean} isThere */
  setPath(page, other, isThere) {
    this.world.trace("net", () => `path ${pairKey(page, other)} ${isThere ? "up" : "down"}`);
    if (isThere) {
      this.#interrupted.delete(pairKey(page, other));
    } else {
      this.#interrupted.add(pairKey(page, other));
    }
    for (const connection of [...this.connections]) {
      connection.onPathChange();
    }
  }

  /** Ends all interruptions. */
  restore() {
    this.#interrupted.clear();
    for (const connection of [...this.connections]) {
      connection.onPathChange();
    }
    for (const page of [...this.#unreachable]) {
      this.setServerPath(page, true);
    }
    for (const socket of [...this.sockets]) {
      socket.settle();
    }
  }

  evaluateAll() {
    for (const connection of [...this.connections]) {
      connection.evaluate();
    }
  }

  associateAll() {
    for (const connection of [...this.connections]) {
      connection.associate();
    }
  }

  /** Whether packets pass between a page and the servers. @param {Page} page */
  reachesServers(page) {
    return !this.#unreachable.has(page);
  }

  /** Loses all packets between a page and the servers, or no more. TCP sends them again.
   *  @param {Page} page @param {boolean} isReachable */
  setServerPath(page, isReachable) {
    this.world.trace("net", () => `servers ${isReachable ? "reachable" : "unreachable"} for ${page.name}`);
    if (isReachable) {
      this.#unreachable.delete(page);
    } else {
      this.#unreachable.add(page);
    }
    for (const socket of [...this.sockets]) {
      if (socket.page === page) {
        socket.onPathChange();
      }
    }
  }
}

/** @param {{name: string}} page @param {{name: string}} other */
function pairKey(page, other) {
  return page.name < other.name ? `${page.name} ${other.name}` : `${other.name} ${page.name}`;
}
