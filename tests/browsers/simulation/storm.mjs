/**
 * Storms: rooms of four and pairs under faults, with the client library, in virtual time.
 *
 * A seed is a scenario: tracks come and go, WebSockets are cut, messages are delayed, pages are reloaded and frozen, servers
 * restart, paths between pages are interrupted, operations of the browser fail. Then the faults stop, and the room must
 * become whole within a bounded time.
 *
 *     node tests/browsers/simulation/storm.mjs --seeds 1..10000 [--flow join|connect] [--trace] [--library PATH]
 *
 * Without `--flow`, each seed is played in both flows. `--trace` prints everything that happens.
 */

import { fileURLToPath, pathToFileURL } from "node:url";

import { SERVER_URL, createWorld } from "./browser.mjs";
import { MediaStream, MediaStreamTrack } from "./webrtc.mjs";

/** Milliseconds. */
const STORM = 8_000;
const PAUSE_BETWEEN_ACTS = /** @type {const} */ ([20, 400]);
/** Packets that are under way when the faults stop have arrived after this time. */
const LATENCY_MAX = 1_000;
/** The time in which the room becomes whole when the faults have stopped. The server may need 5 s of it to notice that a
 *  member's old connection is dead (PROTOCOL.md, "Ids"). */
const RECOVERY_MAX = 10_000;
/** The same after faults that take longer to notice: if paths between pages were interrupted, or pages crashed or froze, or
 *  operations of the browser failed; or if a dead connection of a member got its id, so that the server had to notice that twice. */
const LONG_RECOVERY_MAX = 16_000;
/** The room stays whole for this time. */
const QUIET = 3_000;
const MESSAGES_MAX = 2_000;
/** Bytes of the largest message in pieces. */
const LARGE_BYTES_MAX = 300_000;

const NAMES = ["A", "B", "C", "D"];

/** @typedef {import("./clock.mjs").Page} Page */
/** @typedef {import("./clock.mjs").World} World */

/** One member of the room, over the reloads of its page. */
class Member {
  /** @type {Page} */
  page = /** @type {any} */ (undefined);
  /** @type {any} */
  room = null;
  /** Shares of the present page, with their tracks. @type {Map<any, any[]>} */
  shares = new Map();
  /** Tracks that were added to connections without the library. @type {Map<any, Set<any>>} */
  rawTracks = new Map();
  /** Tracks that `track` events have brought, and that are not muted since then. @type {Set<any>} */
  receivedTracks = new Set();
  /** The number of the page, and of its last message. */
  incarnation = 0;
  messageCount = 0;
  /** The last message of each sender's page. @type {Map<string, number>} */
  lastMessages = new Map();
  /** Messages that were sent after the storm, as they arrived. @type {string[]} */
  finalMessages = [];
  /** The senders and sizes of messages in pieces. @type {string[]} */
  largeMessages = [];
  reconnections = 0;
  /** Whether the page is closed and will be opened again. */
  isAbsent = false;

  /** @param {Storm} storm @param {string} name */
  constructor(storm, name) {
    this.storm = storm;
    this.name = name;
    this.browser = /** @type {"chromium" | "firefox"} */ (storm.random.pick(["chromium", "firefox"]));
  }

  openPage() {
    this.page = this.storm.world.openPage(this.name, this.browser);
    this.room = null;
    this.shares = new Map();
    this.rawTracks = new Map();
    this.receivedTracks = new Set();
    this.lastMessages = new Map();
    this.finalMessages = [];
    this.largeMessages = [];
    this.incarnation += 1;
    this.messageCount = 0;
    this.isAbsent = false;
    const { page } = this;
    this.storm.world.schedule(page, 0, () => this.#enter(page));
  }

  /** @param {Page} page */
  async #enter(page) {
    const { storm } = this;
    for (;;) {
      try {
        const room = await storm.library[storm.flow](SERVER_URL, { id: this.name, data: { name: this.name } });
        this.room = room;
        this.#listen(room);
        if (storm.random.chance(0.5)) {
          this.share();
        }
        return;
      } catch (error) {
        if (!["unreachable", "refused", "id_taken"].includes(error?.code)) {
          storm.problems.push(`${this.name} cannot enter: ${error?.stack}`);
          return;
        }
      }
      // The server may be down, or it may have given the id to an earlier connection of ours that is dead.
      await storm.world.delay(page, 300);
    }
  }

  /** @param {any} room */
  #listen(room) {
    const { storm } = this;
    room.addEventListener("message", ({ peer, data }) => this.#onMessage(peer, data));
    room.addEventListener("error", ({ peer, error }) => {
      storm.errors.push(`${this.name}: error about ${peer?.id}: ${error?.code} ${error?.message}`);
      this.trace(() => `ERROR EVENT ${peer?.id} ${error?.code} ${error?.message}`);
    });
    room.addEventListener("track", ({ track }) => {
      this.receivedTracks.add(track);
      track.addEventListener("mute", () => this.receivedTracks.delete(track));
    });
    room.addEventListener("reconnecting", ({ peer }) => {
      this.reconnections += 1;
      this.trace(() => `event reconnecting ${peer.id}`);
    });
    for (const type of ["peer", "open"]) {
      room.addEventListener(type, ({ peer }) => this.trace(() => `event ${type} ${peer.id}`));
    }
    room.addEventListener("state", ({ peer }) =>
      this.trace(() => `event state ${peer.id} ${peer.state}${peer.away ? " away" : ""}`),
    );
    room.addEventListener("left", ({ peer, reason }) => this.trace(() => `event left ${peer.id} ${reason}`));
    for (const type of ["online", "offline", "closed"]) {
      room.addEventListener(type, ({ code }) => this.trace(() => `event ${type} ${code ?? ""}`));
    }
  }

  /** @param {any} peer @param {any} data */
  #onMessage(peer, data) {
    if (data instanceof ArrayBuffer) {
      this.#onLargeMessage(peer, new Uint8Array(data));
      return;
    }
    const [sender, incarnation, number] = String(data).split(":");
    if (number === "final") {
      this.finalMessages.push(sender);
      return;
    }
    const key = `${sender}:${incarnation}`;
    const last = this.lastMessages.get(key) ?? 0;
    if (sender !== peer.id || Number(number) <= last) {
      this.storm.problems.push(`${this.name} received ${data} of ${peer.id} after number ${last}`);
    }
    this.lastMessages.set(key, Number(number));
  }

  /** @param {any} peer @param {Uint8Array} bytes */
  #onLargeMessage(peer, bytes) {
    const number = bytes.length;
    if (bytes.some((byte, index) => byte !== (number + index) % 251)) {
      this.storm.problems.push(`${this.name} received ${number} bytes of ${peer.id} that are not what was sent`);
    }
    this.largeMessages.push(`${peer.id} ${number}`);
  }

  /** @param {() => string} text */
  trace(text) {
    this.storm.world.trace(this.name, text);
  }

  // ---- Acts, which run in a task of the page ----

  #newTrack() {
    return new MediaStreamTrack(this.storm.random.pick(["audio", "video"]));
  }

  share() {
    const count = this.storm.random.chance(0.3) ? 2 : 1;
    const tracks = Array.from({ length: count }, () => this.#newTrack());
    const source = count === 2 || this.storm.random.chance(0.5) ? new MediaStream(tracks) : tracks[0];
    this.trace(() => `ACT share ${tracks.map(({ id, kind }) => `${kind} ${id}`)}`);
    this.shares.set(this.room.share(source), tracks);
  }

  stopShare() {
    const [share] = this.shares.keys();
    if (share) {
      this.trace(() => `ACT stop share ${share.tracks.map((/** @type {any} */ { id }) => id)}`);
      share.stop();
      this.shares.delete(share);
    }
  }

  replaceShare() {
    const share = this.storm.random.pick([...this.shares.keys()]);
    const tracks = this.shares.get(share);
    if (!tracks) {
      return;
    }
    const track = this.#newTrack();
    const index = tracks.findIndex(({ kind }) => kind === track.kind);
    if (index !== -1) {
      this.trace(() => `ACT replace ${tracks[index].id} by ${track.id}`);
      share.replace(track);
      tracks[index] = track;
    }
  }

  /** Adds a track to one connection without the library, or removes one. */
  toggleRawTrack() {
    const peer = this.storm.random.pick([...this.room.peers.values()]);
    if (!peer || peer.pc.signalingState === "closed") {
      return;
    }
    const { pc } = peer;
    const tracks = this.rawTracks.get(pc) ?? new Set();
    this.rawTracks.set(pc, tracks);
    const [track] = tracks;
    if (track && this.storm.random.chance(0.6)) {
      this.trace(() => `ACT removeTrack ${track.id} for ${peer.id}`);
      const sender = pc.getSenders().find((/** @type {any} */ it) => it.track === track);
      if (!sender) {
        this.storm.problems.push(`${this.name}: the library has taken the sender of ${track.id}`);
        return;
      }
      pc.removeTrack(sender);
      tracks.delete(track);
    } else if (tracks.size < 2) {
      const added = this.#newTrack();
      this.trace(() => `ACT addTrack ${added.kind} ${added.id} for ${peer.id}`);
      pc.addTrack(added, new MediaStream([added]));
      tracks.add(added);
    }
  }

  say() {
    if (this.messageCount < MESSAGES_MAX) {
      this.messageCount += 1;
      this.room.send(`${this.name}:${this.incarnation}:${this.messageCount}`);
    }
  }

  /** Sends a message in pieces, which may be interrupted. */
  write() {
    const peer = this.storm.random.pick([...this.room.peers.values()]);
    if (peer?.alive) {
      const size = 1 + this.storm.random.below(LARGE_BYTES_MAX);
      this.trace(() => `ACT write ${size} bytes to ${peer.id}`);
      this.writeBytes(peer, size).catch(() => this.trace(() => `write of ${size} bytes is interrupted`));
    }
  }

  /** @param {any} peer @param {number} size @returns {Promise<void>} */
  async writeBytes(peer, size) {
    await peer.write(Uint8Array.from({ length: size }, (_, index) => (size + index) % 251));
  }

  setData() {
    this.room.setData({ name: this.name, number: this.storm.random.below(1_000) });
  }
}

export class Storm {
  /** What must not happen. @type {string[]} */
  problems = [];
  /** Events of the type `error`. @type {string[]} */
  errors = [];
  /** @type {Member[]} */
  members = [];
  /** Messages in pieces that were sent after the storm. Each has another size.
   *  @type {{sender: Member, receiver: string, size: number}[]} */
  finalWrites = [];
  /** Whether a page has crashed: its connections are not closed, but lost. */
  hasCrashed = false;
  /** The time from the end of the faults until the room was whole. @type {number | undefined} */
  recoveryTime = undefined;

  /** @param {any} library @param {"join" | "connect"} flow @param {number} seed @param {boolean} [isTraced] */
  constructor(library, flow, seed, isTraced = false) {
    this.library = library;
    this.flow = flow;
    this.seed = seed;
    this.world = createWorld(seed, { isTraced, serverCount: 2 });
    this.world.bugs.rollbackOfFirstOffer = true;
    this.random = this.world.scenario;
    const { random } = this;
    this.hasOutages = random.chance(0.2);
    this.hasFailures = random.chance(0.2);
    this.hasTwoServers = random.chance(0.15);
    this.hasFreezes = random.chance(0.2);
    this.hasRawTracks = random.chance(0.6);
    this.hasLargeMessages = random.chance(0.15);
    this.isSlow = random.chance(0.2);
    const count = flow === "join" || random.chance(0.3) ? 4 : 2;
    this.members = NAMES.slice(0, count).map((name) => new Member(this, name));
  }

  /** Plays the scenario. Returns what went wrong. */
  async play() {
    const { world, random } = this;
    const features = { ...this, library: undefined, world: undefined, random: undefined, members: undefined };
    world.trace("storm", () => `seed ${this.seed} ${JSON.stringify(features)}`);
    if (this.isSlow) {
      world.network.serverLatency = [20, 400];
      world.network.peerLatency = [20, 300];
    }
    for (const member of this.members) {
      world.schedule(null, random.between(0, 1_000), () => member.openPage());
    }
    let time = random.between(0, 2_000);
    while (time < STORM) {
      world.schedule(null, time, () => this.#act());
      time += random.between(...PAUSE_BETWEEN_ACTS);
    }
    if (this.hasFailures) {
      world.faults.operation = (pc, name) => this.#fail(name);
      world.faults.dtls = () => random.chance(0.05);
    }
    await world.run(STORM);
    this.#stopFaults();
    await this.#recover();
    if (this.problems.length === 0) {
      await this.#leave();
    }
    this.problems.push(...world.problems);
    if (!this.hasFailures) {
      this.problems.push(...this.errors);
    }
    const { firstRollbackCount } = world.network;
    if (firstRollbackCount > 0) {
      this.problems.push(`${firstRollbackCount} first offers were rolled back`);
    }
    return this.problems;
  }

  /** @param {string} name @returns {Error | undefined} */
  #fail(name) {
    return this.random.chance(0.01) ? new DOMException(`injected failure of ${name}`, "OperationError") : undefined;
  }

  // ---- The storm ----

  #act() {
    const member = this.random.pick(this.members);
    const isIn = member.room?.state === "online" || member.room?.state === "offline";
    if (isIn && this.random.chance(0.7)) {
      this.#actInPage(member);
    } else {
      this.#disturb(member);
    }
  }

  /** @param {Member} member */
  #actInPage(member) {
    const acts = ["share", "stopShare", "replaceShare", "say", "say", "setData"];
    if (this.hasRawTracks) {
      acts.push("toggleRawTrack");
    }
    if (this.hasLargeMessages) {
      acts.push("write");
    }
    const act = /** @type {"share"} */ (this.random.pick(acts));
    const { room } = member;
    this.world.schedule(member.page, 0, () => member.room === room && room.state !== "closed" && member[act]());
  }

  /** @param {Member} member */
  #disturb(member) {
    const { random, world } = this;
    const { network } = world;
    const { page } = member;
    const disturbances = ["cut", "cut", "blackHole", "delay", "reload", "restart"];
    if (this.hasOutages) {
      disturbances.push("outage", "outage");
    }
    if (this.hasTwoServers) {
      disturbances.push("route", "route");
    }
    if (this.hasFreezes) {
      disturbances.push("freeze", "freeze");
    }
    const disturbance = random.pick(disturbances);
    world.trace("storm", () => `ACT ${disturbance} ${member.name}`);
    switch (disturbance) {
      case "cut":
        for (const socket of [...network.sockets]) {
          if (socket.page === page) {
            const clientNotices = random.chance(0.9);
            socket.cut({ clientNotices, serverNotices: !clientNotices || random.chance(0.7) });
          }
        }
        break;
      case "blackHole":
        if (page) {
          network.setServerPath(page, false);
          world.schedule(null, random.between(100, 3_000), () => network.setServerPath(page, true));
        }
        break;
      case "delay":
        network.serverLatency = [10, random.between(50, 900)];
        world.schedule(null, random.between(100, 1_500), () => {
          network.serverLatency = this.isSlow ? [20, 400] : [0.5, 30];
        });
        break;
      case "reload":
        this.#reload(member);
        break;
      case "restart":
        this.#restartServer();
        break;
      case "outage":
        this.#interruptPath(member);
        break;
      case "route":
        world.service.routes.set(member.name, random.below(2));
        break;
      case "freeze":
        if (page && !page.isFrozen) {
          page.freeze();
          world.schedule(null, random.between(100, 4_000), () => page.thaw());
        }
        break;
      default:
        throw new Error(disturbance);
    }
  }

  /** @param {Member} member */
  #reload(member) {
    const { page } = member;
    if (!page || member.isAbsent) {
      return;
    }
    const { random } = this;
    member.isAbsent = true;
    const how = random.pick(["leave", "close", "crash"]);
    const pause = random.between(20, 1_000);
    this.world.trace("storm", () => `${how} ${member.name} for ${pause.toFixed()} ms`);
    if (how === "leave" && !page.isFrozen) {
      this.world.schedule(page, 0, () => member.room?.leave());
      this.world.schedule(null, pause / 2, () => page.close());
    } else {
      page.close({ isAbrupt: how === "crash" });
    }
    this.hasCrashed ||= how === "crash";
    member.room = null;
    this.world.schedule(null, pause, () => member.openPage());
  }

  #restartServer() {
    const server = this.random.pick(this.world.service.servers);
    if (server.isUp) {
      server.stop({ code: this.random.pick([undefined, 1001]) });
      this.world.schedule(null, this.random.between(20, 2_000), () => server.start());
    }
  }

  /** @param {Member} member */
  #interruptPath(member) {
    const other = this.random.pick(this.members);
    if (other === member) {
      return;
    }
    const { network } = this.world;
    // The path belongs to the places, and not to the pages.
    const names = [{ name: member.name }, { name: other.name }];
    network.setPath(names[0], names[1], false);
    this.world.schedule(null, this.random.between(200, 9_000), () => network.setPath(names[0], names[1], true));
  }

  #stopFaults() {
    const { world } = this;
    world.trace("storm", () => "THE FAULTS STOP");
    world.faults = {};
    world.network.restore();
    for (const member of this.members) {
      if (member.page?.isFrozen) {
        member.page.thaw();
      }
    }
    const { servers, routes } = world.service;
    routes.clear();
    for (const server of servers) {
      if (!server.isUp) {
        server.start();
      }
    }
    // The second server is drained: rooms are at the first one again.
    servers[1].stop({ code: 1001 });
    world.network.serverLatency = [0.5, 30];
    world.network.peerLatency = [0.5, 40];
  }

  // ---- Afterwards ----

  async #recover() {
    const { world } = this;
    const claimsBefore = world.service.rejectedClaims;
    const hasHardFaults = this.hasOutages || this.hasCrashed || this.hasFreezes || this.hasFailures;
    /** @type {string[]} */
    let missing = [];
    await world.run(LATENCY_MAX);
    const limit = () => {
      const isProbedTwice = world.service.rejectedClaims > claimsBefore;
      return hasHardFaults || isProbedTwice ? LONG_RECOVERY_MAX : RECOVERY_MAX;
    };
    for (let time = LATENCY_MAX; time < limit(); time += 100) {
      await world.run(100);
      missing = this.#missing();
      if (missing.length === 0) {
        break;
      }
    }
    if (missing.length > 0) {
      this.problems.push(`not whole after ${limit()} ms:`, ...missing);
      return;
    }
    world.trace("storm", () => "WHOLE");
    this.recoveryTime = world.elapsed - STORM;
    const reconnections = this.members.map((member) => member.reconnections).join();
    for (const member of this.members) {
      world.schedule(member.page, 0, () => {
        const reached = member.room.send(`${member.name}:${member.incarnation}:final`);
        if (reached.length !== member.room.peers.size) {
          this.problems.push(`${member.name} reaches ${reached.length} of ${member.room.peers.size}`);
        }
      });
    }
    if (this.hasLargeMessages) {
      this.#writeToAll();
    }
    await world.run(QUIET);
    missing = this.#missing();
    if (missing.length > 0) {
      this.problems.push("no longer whole:", ...missing);
    }
    if (reconnections !== this.members.map((member) => member.reconnections).join()) {
      this.problems.push("a connection was begun anew after the room was whole");
    }
    for (const member of this.members) {
      const expected = [...member.room.peers.keys()].sort().join();
      const received = [...member.finalMessages].sort().join();
      if (received !== expected) {
        this.problems.push(`${member.name} received messages of [${received}] instead of [${expected}]`);
      }
    }
    for (const { sender, receiver, size } of this.finalWrites) {
      const received = this.members.find(({ name }) => name === receiver)?.largeMessages ?? [];
      const count = received.filter((text) => text === `${sender.name} ${size}`).length;
      if (count !== 1) {
        this.problems.push(`${receiver} received ${size} bytes of ${sender.name} ${count} times`);
      }
    }
  }

  /** Every member sends a message in pieces to every peer. */
  #writeToAll() {
    for (const sender of this.members) {
      for (const peer of sender.room.peers.values()) {
        const size = LARGE_BYTES_MAX + 1 + this.finalWrites.length;
        this.finalWrites.push({ sender, receiver: peer.id, size });
        this.world.schedule(sender.page, 0, () => sender.writeBytes(peer, size));
      }
    }
  }

  /** Returns what is not as it should be. */
  #missing() {
    /** @type {string[]} */
    const missing = [];
    for (const member of this.members) {
      const { name, room } = member;
      if (!room?.online) {
        missing.push(`${name} is ${room?.state ?? "not in the room"}`);
        continue;
      }
      const count = this.flow === "join" ? this.members.length - 1 : 1;
      if (room.peers.size !== count) {
        missing.push(`${name} has the peers [${[...room.peers.keys()]}]`);
      }
      for (const peer of room.peers.values()) {
        missing.push(...this.#missingOfPeer(member, peer));
      }
    }
    return missing;
  }

  /** @param {Member} member @param {any} peer */
  #missingOfPeer(member, peer) {
    const at = `${member.name} → ${peer.id}`;
    const { pc } = peer;
    const other = this.members.find(({ name }) => name === peer.id);
    const otherPc = other?.room?.peers.get(member.name)?.pc;
    if (!peer.alive || peer.away || peer.state !== "connected") {
      return [`${at} alive=${peer.alive} away=${peer.away} state=${peer.state}`];
    }
    if (pc.signalingState !== "stable" || pc.connectionState !== "connected") {
      return [`${at} is ${pc.signalingState}, ${pc.connectionState}`];
    }
    if (!other || !otherPc || pc.mate !== otherPc) {
      return [`${at} has no counterpart`];
    }
    if (peer.data?.name !== peer.id) {
      return [`${at} has the data ${JSON.stringify(peer.data)}`];
    }
    return this.#wrongTracks(at, member, other, pc, otherPc);
  }

  /** @param {string} at @param {Member} member @param {Member} other @param {any} pc @param {any} otherPc */
  #wrongTracks(at, member, other, pc, otherPc) {
    const raw = member.rawTracks.get(pc) ?? new Set();
    const expected = [...[...member.shares.values()].flat(), ...raw].map(({ id }) => id).sort();
    const sending = pc.getTransceivers().filter((/** @type {any} */ it) => it.sender.track);
    const sent = sending.map((/** @type {any} */ { sender }) => sender.track.id).sort();
    if (sent.join() !== expected.join()) {
      return [`${at} sends [${sent}] instead of [${expected}]`];
    }
    const missing = [];
    for (const transceiver of sending) {
      const { mid, currentDirection } = transceiver;
      const counterpart = otherPc.getTransceivers().find((/** @type {any} */ it) => it.mid === mid);
      if (!currentDirection?.includes("send") || !counterpart?.currentDirection?.includes("recv")) {
        missing.push(`${at} ${transceiver.sender.track.id} is not received: mid=${mid} ${currentDirection}`);
      } else if (!other.receivedTracks.has(counterpart.receiver.track)) {
        missing.push(`${at} ${transceiver.sender.track.id}: ${other.name} had no track event`);
      }
    }
    for (const counterpart of otherPc.getTransceivers()) {
      const isReceiving = counterpart.currentDirection?.includes("recv");
      if (isReceiving && !sending.some((/** @type {any} */ { mid }) => mid === counterpart.mid)) {
        missing.push(`${at} mid=${counterpart.mid} is received, but nothing is sent`);
      }
    }
    return missing;
  }

  async #leave() {
    const { world } = this;
    for (const { room, page } of this.members) {
      world.schedule(page, 0, () => room.leave());
    }
    await world.run(1);
    for (const { name, page, room } of this.members) {
      if (page.timerCount > 0) {
        this.problems.push(`${name} has ${page.timerCount} timers after leaving`);
      }
      if (room.peers.size > 0 || room.state !== "closed") {
        this.problems.push(`${name} has left, but is ${room.state} with ${room.peers.size} peers`);
      }
    }
    const { connections, sockets } = world.network;
    if (connections.size > 0) {
      this.problems.push(`${[...connections].map(({ page, number }) => `${page.name} pc${number}`)} are open`);
    }
    await world.run(5_000);
    const open = [...sockets].filter(({ page, isOverForClient }) => !page.isClosed && !isOverForClient);
    if (open.length > 0) {
      this.problems.push(`WebSockets of ${open.map(({ page }) => page.name)} are open`);
    }
    for (const { name, page } of this.members) {
      if (page.timerCount > 0) {
        this.problems.push(`${name} has ${page.timerCount} timers long after leaving`);
      }
    }
  }
}

/** Plays storms and prints the failures. Returns the number of failed ones.
 *  @param {{library: any, first: number, last: number, flows: ("join" | "connect")[], isTraced: boolean}} options */
export async function playStorms({ library, first, last, flows, isTraced }) {
  let count = 0;
  let failed = 0;
  /** @type {number[]} */
  const recoveryTimes = [];
  for (let seed = first; seed <= last; seed += 1) {
    for (const flow of flows) {
      const storm = new Storm(library, flow, seed, isTraced);
      const problems = await storm.play();
      count += 1;
      if (storm.recoveryTime !== undefined) {
        recoveryTimes.push(storm.recoveryTime);
      }
      if (isTraced) {
        console.log(storm.world.lines.join("\n"));
      }
      if (problems.length > 0) {
        failed += 1;
        console.log(`FAILED --flow ${flow} --seeds ${seed}..${seed}\n    ${problems.slice(0, 12).join("\n    ")}`);
      }
    }
  }
  recoveryTimes.sort((a, b) => a - b);
  const quantiles = [0.5, 0.9, 0.99, 0.999, 1].map((share) => {
    const index = Math.ceil(share * recoveryTimes.length) - 1;
    return `${100 * share} %: ${((recoveryTimes[index] ?? 0) / 1000).toFixed(1)} s`;
  });
  console.log(`whole after the faults: ${quantiles.join(", ")}`);
  console.log(`${count} storms, ${failed} failed`);
  return failed;
}

/** @param {string[]} values */
function parseArguments(values) {
  const options = { seeds: "1..100", flow: "", library: "../../../src/web/noroshi.js", isTraced: false };
  for (let index = 0; index < values.length; index += 1) {
    const value = values[index + 1];
    switch (values[index]) {
      case "--trace":
        options.isTraced = true;
        continue;
      case "--seeds":
        options.seeds = value;
        break;
      case "--flow":
        options.flow = value;
        break;
      case "--library":
        options.library = pathToFileURL(value).href;
        break;
      default:
        throw new Error(`unknown argument ${values[index]}`);
    }
    index += 1;
  }
  return options;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { seeds, flow, library, isTraced } = parseArguments(process.argv.slice(2));
  const [first, last = first] = seeds.split("..").map(Number);
  const flows = /** @type {("join" | "connect")[]} */ (flow ? [flow] : ["join", "connect"]);
  const failed = await playStorms({ library: await import(library), first, last, flows, isTraced });
  process.exitCode = failed === 0 ? 0 : 1;
}
