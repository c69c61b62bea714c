/** Tests of the simulation itself: the rules of the server, and the connections of the browser. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

import { World } from "./clock.mjs";
import { Rooms } from "./rooms.mjs";
import { Service } from "./server.mjs";
import { MediaStream, MediaStreamTrack, RTCPeerConnection } from "./webrtc.mjs";

const TRANSCRIPTS = new URL("../../transcripts/ours/", import.meta.url);

/** Transcripts about white space in JSON, which the simulation does not keep. */
const OMITTED = ["byte_for_byte.txt", "candidates_are_stored.txt", "candidates_array.txt"];

/** Plays a transcript against the rules. @param {string} name */
async function play(name) {
  const text = readFileSync(new URL(name, TRANSCRIPTS), "utf8");
  const world = new World(1);
  /** @type {Map<string, {client: any, received: any[], isSilent: boolean}>} */
  const peers = new Map();
  const rooms = new Rooms({
    world,
    send: ({ connection }, message) => connection.isSilent || connection.received.push(message),
    close: ({ connection }, code) => connection.isSilent || connection.received.push(code),
    ping: (client) => client.connection.isSilent || world.schedule(null, 1, () => rooms.onAlive(client)),
  });
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) {
      continue;
    }
    const [, peer, verb, rest = ""] = /** @type {RegExpExecArray} */ (/^(\S+) (\S+) ?(.*)$/.exec(line));
    const at = `${name}: ${line}`;
    const state = peers.get(peer) ?? { client: null, received: [], isSilent: false };
    peers.set(peer, state);
    if (verb === "+") {
      state.client = rooms.onConnect(rest, state);
    } else if (verb === ">") {
      if (state.client.claimants) {
        rooms.onAlive(state.client);
      }
      rooms.onMessage(state.client, rest);
    } else if (verb === "-" || verb === "-!") {
      rooms.onDisconnect(state.client);
    } else if (verb === "!") {
      state.isSilent = true;
    } else if (verb === "~") {
      await world.run(Number(rest) * 1000);
    } else if (verb === "<") {
      assert.deepEqual(withoutText(state.received.shift()), withoutText(JSON.parse(rest)), at);
    } else if (verb === "<0") {
      assert.deepEqual(state.received, [], at);
    } else if (verb === "x") {
      assert.ok(rest.split("|").includes(String(state.received.shift())), at);
    } else {
      assert.fail(`${at}: unknown verb`);
    }
    await world.run(5);
  }
  for (const [peer, { received }] of peers) {
    assert.deepEqual(received, [], `${name}: ${peer} received more than is listed`);
  }
}

/** @param {any} message */
const withoutText = (message) => (message?.type === "error" ? { ...message, message: "*" } : message);

for (const name of readdirSync(TRANSCRIPTS)) {
  const text = readFileSync(new URL(name, TRANSCRIPTS), "utf8");
  if (OMITTED.includes(name) || /^# flags:/m.test(text) || / >b | <= /.test(text)) {
    continue;
  }
  test(`transcript ${name} passes against the rules of the simulation`, () => play(name));
}

/** One side of perfect negotiation (W3C WebRTC, section 10.7), as in the specification. */
class Negotiator {
  isMakingOffer = false;
  isIgnoringOffer = false;
  isSettingAnswer = false;
  /** @type {unknown[]} */
  errors = [];
  /** @type {Set<any>} */
  received = new Set();

  /** @param {import("./clock.mjs").Page} page @param {boolean} isPolite */
  constructor(page, isPolite) {
    this.page = page;
    this.isPolite = isPolite;
    this.pc = new RTCPeerConnection();
    this.channel = this.pc.createDataChannel("test", { negotiated: true, id: 0 });
    /** @type {Negotiator} */
    this.other = this;
    this.pc.onnegotiationneeded = async () => {
      try {
        this.isMakingOffer = true;
        await this.pc.setLocalDescription();
        this.#send({ description: this.pc.localDescription });
      } catch (error) {
        this.errors.push(error);
      } finally {
        this.isMakingOffer = false;
      }
    };
    this.pc.onicecandidate = ({ candidate }) => this.#send({ candidate });
    this.pc.ontrack = ({ track }) => {
      this.received.add(track);
      track.onmute = () => this.received.delete(track);
    };
  }

  /** @param {any} message */
  #send(message) {
    const { world } = this.page;
    const text = JSON.stringify(message);
    this.lastArrival = Math.max(this.lastArrival ?? 0, world.now + world.random.between(1, 60));
    world.scheduleAt(this.other.page, this.lastArrival, () => this.other.receive(JSON.parse(text)));
  }

  /** @param {any} message */
  async receive({ description, candidate }) {
    const { pc } = this;
    try {
      if (description) {
        const isReady =
          !this.isMakingOffer && (pc.signalingState === "stable" || this.isSettingAnswer);
        const isCollision = description.type === "offer" && !isReady;
        this.isIgnoringOffer = !this.isPolite && isCollision;
        if (this.isIgnoringOffer) {
          return;
        }
        this.isSettingAnswer = description.type === "answer";
        await pc.setRemoteDescription(description);
        this.isSettingAnswer = false;
        if (description.type === "offer") {
          await pc.setLocalDescription();
          this.#send({ description: pc.localDescription });
        }
      } else {
        await pc.addIceCandidate(candidate).catch((/** @type {unknown} */ error) => {
          if (!this.isIgnoringOffer) {
            throw error;
          }
        });
      }
    } catch (error) {
      this.errors.push(error);
    }
  }

  /** Adds a track, or removes one. */
  change() {
    const { random } = this.page.world;
    const senders = this.pc.getSenders().filter(({ track }) => track);
    if (senders.length > 0 && random.chance(0.5)) {
      this.pc.removeTrack(random.pick(senders));
    } else {
      this.pc.addTrack(new MediaStreamTrack(random.pick(["audio", "video"])), new MediaStream());
    }
  }

  get sentTracks() {
    return this.pc.getSenders().filter(({ track }) => track).length;
  }
}

/** @param {number} seed */
async function negotiate(seed) {
  const world = new World(seed);
  const [a, b] = ["A", "B"].map((name) => world.openPage(name, world.scenario.pick(["chromium", "firefox"])));
  /** @type {Negotiator[]} */
  const sides = [];
  for (const page of [a, b]) {
    await page.run(() => {
      sides.push(new Negotiator(page, page === a));
    });
  }
  sides[0].other = sides[1];
  sides[1].other = sides[0];
  for (let change = 0; change < 20; change += 1) {
    const side = world.scenario.pick(sides);
    world.schedule(side.page, world.scenario.between(0, 2_000), () => side.change());
  }
  await world.run(2_000);
  const isDone = () =>
    sides.every(
      (side) =>
        side.pc.signalingState === "stable" &&
        side.pc.connectionState === "connected" &&
        side.channel.readyState === "open" &&
        side.received.size === side.other.sentTracks,
    );
  assert.ok(await world.run(5_000, isDone), `seed ${seed} does not settle`);
  assert.deepEqual(sides.map(({ errors }) => errors.map(String)), [[], []], `seed ${seed}`);
  assert.deepEqual(world.problems, [], `seed ${seed}`);
  const { rollbackCount } = world.network;
  for (const side of sides) {
    await side.page.run(() => side.pc.close());
  }
  return rollbackCount;
}

test("perfect negotiation settles after thousands of glares", async () => {
  let rollbacks = 0;
  for (let seed = 1; seed <= 400; seed += 1) {
    rollbacks += await negotiate(seed);
  }
  assert.ok(rollbacks > 1_000, `only ${rollbacks} rollbacks`);
});

/** Returns two connections of data channels, which exchange descriptions when they are told to.
 *  @param {number} seed @param {Partial<World["bugs"]>} [bugs] */
async function openTwo(seed, bugs = {}) {
  const world = new World(seed);
  Object.assign(world.bugs, bugs);
  const pages = ["A", "B"].map((name) => world.openPage(name));
  /** @type {RTCPeerConnection[]} */
  const pcs = [];
  for (const page of pages) {
    await page.run(() => {
      const pc = new RTCPeerConnection();
      pc.createDataChannel("test", { negotiated: true, id: 0 });
      pcs.push(pc);
    });
  }
  const [a, b] = pcs;
  /** Runs an asynchronous function of a page to its end. @type {<T>(page: number, action: () => Promise<T>) => Promise<T>} */
  const run = async (page, action) => {
    /** @type {any} */
    let result;
    let isSettled = false;
    await pages[page].run(() => {
      result = action();
      result.then(
        () => (isSettled = true),
        () => (isSettled = true),
      );
    });
    await world.run(60_000, () => isSettled);
    return result;
  };
  const exchange = async () => {
    await run(0, () => a.setLocalDescription());
    await world.run(300);
    await run(1, () => b.setRemoteDescription(a.localDescription));
    await run(1, () => b.setLocalDescription());
    await world.run(300);
    await run(0, () => a.setRemoteDescription(b.localDescription));
  };
  return { world, pages, a, b, run, exchange };
}

test("descriptions that do not belong together never connect", async () => {
  const { world, a, b, run } = await openTwo(1);
  await run(0, () => a.setLocalDescription());
  await world.run(300);
  await run(1, () => b.setRemoteDescription(a.localDescription));
  await run(1, () => b.setLocalDescription());
  await world.run(300);
  // A takes the answer of a third connection to another offer.
  const { answer } = await openOtherTwo(world);
  await run(0, () => a.setRemoteDescription(answer));
  assert.deepEqual([a.signalingState, b.signalingState], ["stable", "stable"]);
  await world.run(14_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["connecting", "connecting"]);
  await world.run(17_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["failed", "failed"]);
});

/** Returns the answer of two other connections of a run. @param {World} world */
async function openOtherTwo(world) {
  const offer = await openOffer(world);
  const page = world.openPage("D");
  /** @type {any} */
  let pc;
  await page.run(async () => {
    pc = new RTCPeerConnection();
    pc.createDataChannel("test", { negotiated: true, id: 0 });
    await pc.setRemoteDescription(offer);
    await pc.setLocalDescription();
  });
  await world.run(500);
  return { answer: pc.localDescription };
}

test("ICE is disconnected, then failed without a path, and a restart repairs it", async () => {
  const { world, pages, a, b, exchange } = await openTwo(3);
  await exchange();
  assert.ok(await world.run(2_000, () => b.channels.get(0)?.readyState === "open"));
  assert.ok(await world.run(2_000, () => a.channels.get(0)?.readyState === "open"));
  /** @type {string[]} */
  const received = [];
  b.channels.get(0).onmessage = ({ data }) => received.push(data);
  world.network.setPath(pages[0], pages[1], false);
  await pages[0].run(() => a.channels.get(0)?.send("one"));
  await world.run(4_000);
  assert.deepEqual([a.connectionState, received.length], ["connected", 0]);
  await world.run(2_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["disconnected", "disconnected"]);
  await world.run(25_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["failed", "failed"]);
  world.network.setPath(pages[0], pages[1], true);
  await world.run(60_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["failed", "failed"]);
  await pages[0].run(() => a.restartIce());
  await exchange();
  await world.run(2_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["connected", "connected"]);
  assert.deepEqual(received, ["one"]);
});

test("a closed connection closes the channels of the other side, and then its ICE fails", async () => {
  const { world, pages, a, b, exchange } = await openTwo(4);
  await exchange();
  await world.run(2_000);
  const channel = b.channels.get(0);
  await pages[0].run(() => a.close());
  assert.equal(channel?.readyState, "open");
  await world.run(100);
  assert.equal(channel?.readyState, "closed");
  assert.equal(b.connectionState, "connected");
  await world.run(40_000);
  assert.equal(b.connectionState, "failed");
});

test("a handshake of DTLS that fails is not repaired by an ICE restart", async () => {
  const { world, pages, a, b, exchange } = await openTwo(5);
  world.faults.dtls = () => true;
  await exchange();
  await world.run(2_000);
  world.faults = {};
  assert.deepEqual([a.connectionState, b.connectionState], ["failed", "failed"]);
  await pages[0].run(() => a.restartIce());
  await exchange();
  await world.run(60_000);
  assert.deepEqual([a.connectionState, b.connectionState], ["failed", "failed"]);
  assert.equal(a.iceConnectionState, "connected");
});

test("an answer after a rollback is an InvalidStateError", async () => {
  const { a, b, run, world } = await openTwo(6);
  await run(0, () => a.setLocalDescription());
  await run(1, () => b.setRemoteDescription(a.localDescription));
  await run(1, () => b.setLocalDescription());
  const answer = b.localDescription;
  const other = await openOffer(world);
  await run(0, () => a.setRemoteDescription(other));
  await assert.rejects(
    run(0, () => a.setRemoteDescription(answer)),
    { name: "InvalidStateError" },
  );
});

/** Returns an offer of a third connection. @param {World} world */
async function openOffer(world) {
  const page = world.openPage("C");
  /** @type {any} */
  let pc;
  await page.run(() => {
    pc = new RTCPeerConnection();
    pc.createDataChannel("test", { negotiated: true, id: 0 });
    pc.setLocalDescription();
  });
  await world.run(200);
  return pc.localDescription;
}

test("the bug of Chromium: no offer after the rollback of a first offer with media", async () => {
  for (const isThere of [true, false]) {
    const { a, run, world } = await openTwo(7, { rollbackOfFirstOffer: isThere });
    await run(0, async () => a.addTransceiver("audio"));
    await run(0, () => a.setLocalDescription());
    const other = await openOffer(world);
    await run(0, () => a.setRemoteDescription(other));
    await run(0, () => a.setLocalDescription());
    const offer = run(0, () => a.setLocalDescription());
    if (isThere) {
      await assert.rejects(offer, { name: "OperationError" });
    } else {
      await offer;
    }
  }
});

test("candidates of unknown sections and fragments are refused", async () => {
  const { a, b, run } = await openTwo(8);
  const candidate = "candidate:1 1 udp 1 192.0.2.1 1 typ host";
  await assert.rejects(run(1, () => b.addIceCandidate({ candidate, sdpMid: "0" })), { name: "InvalidStateError" });
  await run(0, () => a.setLocalDescription());
  await run(1, () => b.setRemoteDescription(a.localDescription));
  await run(1, () => b.addIceCandidate({ candidate, sdpMid: "0" }));
  await assert.rejects(run(1, () => b.addIceCandidate({ candidate, sdpMid: "7" })), { name: "OperationError" });
  await assert.rejects(run(1, () => b.addIceCandidate({ candidate, sdpMid: "0", usernameFragment: "x" })), {
    name: "OperationError",
  });
  await assert.rejects(run(1, () => b.addIceCandidate({ candidate: "x", sdpMid: "0" })), { name: "OperationError" });
  await assert.rejects(run(1, () => b.addIceCandidate({ candidate })), { name: "TypeError" });
});

test("equal seeds give equal runs", async () => {
  const traces = [];
  for (let run = 0; run < 2; run += 1) {
    const world = new World(9, { isTraced: true });
    new Service(world);
    const page = world.openPage("A");
    await page.run(() => {
      const pc = new RTCPeerConnection();
      pc.createDataChannel("test", { negotiated: true, id: 0 });
      pc.onnegotiationneeded = () => pc.setLocalDescription();
      setTimeout(() => pc.close(), 1_000 * Math.random());
    });
    await world.run(5_000);
    traces.push(world.lines);
  }
  assert.deepEqual(traces[0], traces[1]);
  assert.ok(traces[0].length > 4);
});
