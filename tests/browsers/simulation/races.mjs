/**
 * Races of the client library, one test for each cause, in an order that the test controls.
 *
 * `Arena` is a room with pages. `ForeignClient` follows PROTOCOL.md alone, and does only what a test tells it.
 *
 *     node --test tests/browsers/simulation/races.mjs
 *
 * With `TRACE=1`, a failing test prints everything that happened.
 */

import assert from "node:assert/strict";
import { test } from "node:test";

import * as library from "../../../src/web/noroshi.js";
import { SERVER_URL, createWorld } from "./browser.mjs";
import { WebSocket } from "./server.mjs";
import { MediaStream, MediaStreamTrack, RTCPeerConnection } from "./webrtc.mjs";

/** @typedef {import("./clock.mjs").Page} Page */

/** A member of a room that uses the library. */
class Member {
  /** @type {any} */
  room = null;
  /** @type {any} */
  failure = null;
  /** Events as text. @type {string[]} */
  events = [];
  /** @type {string[]} */
  messages = [];
  /** Tracks that `track` events brought and that are not muted. @type {Set<any>} */
  tracks = new Set();

  /** @param {Arena} arena @param {Page} page */
  constructor(arena, page) {
    this.arena = arena;
    this.page = page;
  }

  /** @param {any} room */
  listen(room) {
    this.room = room;
    for (const type of ["peer", "open", "left", "online", "offline", "closed", "error", "reconnecting"]) {
      room.addEventListener(type, (/** @type {any} */ event) => {
        const { peer, reason, code, error } = event;
        const words = [type, peer?.id, reason, type === "closed" ? code : undefined, error?.code ?? error?.message];
        const text = words.filter((word) => word !== undefined).join(" ");
        this.events.push(text);
        this.arena.world.trace(this.page.name, () => `event ${text}`);
      });
    }
    room.addEventListener("message", (/** @type {any} */ { data }) => this.messages.push(data));
    room.addEventListener("track", (/** @type {any} */ { track }) => {
      this.tracks.add(track);
      track.addEventListener("mute", () => this.tracks.delete(track));
    });
  }

  /** @param {string} id */
  peer(id) {
    return this.room?.peers.get(id);
  }

  /** @param {string} id */
  pc(id) {
    return this.peer(id)?.pc;
  }

  /** The number of tracks of connections that are not closed. */
  get trackCount() {
    return [...this.tracks].filter(({ readyState }) => readyState === "live").length;
  }

  /** @param {string} type */
  count(type) {
    return this.events.filter((event) => event.split(" ")[0] === type).length;
  }

  /** @param {() => any} action */
  run(action) {
    return this.page.run(action);
  }

  /** Shares a new track. @param {"audio" | "video"} [kind] */
  async share(kind = "video") {
    return /** @type {Promise<any>} */ (this.run(() => this.room.share(new MediaStreamTrack(kind))));
  }
}

class Arena {
  /** @param {{seed?: number, servers?: number}} [options] */
  constructor({ seed = 1, servers = 1 } = {}) {
    this.world = createWorld(seed, { isTraced: Boolean(process.env.TRACE), serverCount: servers });
    this.world.bugs.rollbackOfFirstOffer = true;
  }

  get server() {
    return this.world.service.servers[0];
  }

  /** Begins to enter. @param {string} id @param {{flow?: "join" | "connect", browser?: "chromium" | "firefox"}} [how]
   *  @param {object} [options] */
  async begin(id, { flow = "join", browser = "chromium" } = {}, options = {}) {
    const page = this.world.openPage(id, browser);
    const member = new Member(this, page);
    await page.run(() => {
      library[flow](SERVER_URL, { id, ...options }).then(
        (room) => member.listen(room),
        (error) => {
          member.failure = error;
        },
      );
    });
    return member;
  }

  /** Enters the room. @param {Parameters<Arena["begin"]>} options */
  async enter(...options) {
    const member = await this.begin(...options);
    await this.until(() => member.room, 20_000);
    return member;
  }

  /** Enters with two members, which connect. @param {Parameters<Arena["begin"]>[1]} [how] @param {object} [options] */
  async enterTwo(how, options) {
    const a = await this.enter("A", how, options);
    const b = await this.enter("B", how, options);
    await this.until(() => isConnected(a, b));
    return [a, b];
  }

  /** Waits for a condition in virtual time. @param {() => unknown} condition @param {number} [ms] */
  async until(condition, ms = 5_000) {
    const { world } = this;
    const isThere = await world.run(ms, () => Boolean(condition()));
    if (!isThere) {
      console.log(world.lines.join("\n"));
    }
    assert.ok(isThere, `not within ${ms} ms: ${condition}`);
  }

  /** @param {number} ms */
  async run(ms) {
    await this.world.run(ms);
  }

  /** Checks that nothing has failed unnoticed, and that leaving leaves nothing. @param {Member[]} members */
  async finish(...members) {
    assert.deepEqual(this.world.problems, []);
    for (const { room, page } of members) {
      await page.run(() => room.leave());
    }
    await this.world.run(5_000);
    for (const { page } of members) {
      assert.equal(page.timerCount, 0, `timers of ${page.name}`);
    }
    const open = [...this.world.network.connections].filter(({ page }) => members.some((it) => it.page === page));
    assert.equal(open.length, 0, "open connections");
    assert.deepEqual(this.world.problems, []);
  }
}

/** @param {Member} a @param {Member} b */
function isConnected(a, b) {
  const [there, back] = [a.peer(b.page.name), b.peer(a.page.name)];
  const isGood = (/** @type {any} */ peer) =>
    peer?.alive && !peer.away && peer.state === "connected" && peer.pc.signalingState === "stable";
  return isGood(there) && isGood(back) && there.pc.mate === back.pc;
}

/** A client that knows PROTOCOL.md only. */
class ForeignClient {
  /** Messages of the server, except for candidates. @type {any[]} */
  received = [];
  /** @type {string[]} */
  messages = [];
  /** @type {any} */
  pc = null;
  /** @type {any} */
  channel = null;
  /** @type {any} */
  socket = null;
  /** Whether it sends its candidates. */
  isTrickling = true;
  /** Whether each offer has another session id. */
  changesSession = false;
  /** Whether offers of the other side are answered at once. */
  answersOffers = true;

  /** @param {Arena} arena @param {string} id @param {string} [target] */
  constructor(arena, id, target) {
    this.arena = arena;
    this.id = id;
    this.target = target;
    this.page = arena.world.openPage(id);
  }

  /** Opens the WebSocket and sends a first message. @param {"join" | "connect"} type */
  async enter(type) {
    await this.page.run(() => {
      this.socket = new WebSocket(SERVER_URL);
      this.socket.onopen = () => this.send({ type });
      this.socket.onmessage = (/** @type {any} */ { data }) => this.#onMessage(JSON.parse(data));
    });
    await this.arena.until(() => this.received.length > 0);
  }

  /** @param {object} message */
  send(message) {
    this.socket.send(JSON.stringify({ id: this.id, ...message }));
  }

  /** @param {any} message */
  #onMessage(message) {
    if (message.type !== "candidate") {
      this.received.push(message);
    }
    if (message.type === "offer" && message.sdp && this.answersOffers) {
      this.target = message.target_id;
      this.answer(JSON.parse(message.sdp));
    } else if (message.type === "answer") {
      this.target = message.id;
      this.pc.setRemoteDescription(JSON.parse(message.sdp)).catch(() => {});
    } else if (message.type === "candidate" && this.pc?.remoteDescription) {
      this.pc.addIceCandidate(JSON.parse(message.candidate)).catch(() => {});
    }
  }

  /** Creates the connection, with the message channel. */
  open() {
    this.pc = new RTCPeerConnection();
    this.channel = this.pc.createDataChannel("any", { negotiated: true, id: 0 });
    this.channel.onmessage = (/** @type {any} */ { data }) => this.messages.push(data);
    this.pc.onicecandidate = (/** @type {any} */ { candidate }) => {
      if (candidate && this.isTrickling) {
        this.send({ type: "candidateAdd", target_id: this.target, candidate });
      }
    };
  }

  async offer() {
    await this.pc.setLocalDescription();
    this.sendDescription(this.pc.localDescription);
  }

  /** @param {any} offer */
  async answer(offer) {
    if (!this.pc) {
      this.open();
    }
    await this.pc.setRemoteDescription(offer);
    await this.pc.setLocalDescription();
    this.sendDescription(this.pc.localDescription);
  }

  /** @param {any} description */
  sendDescription({ type, sdp }) {
    const session = `${1 + this.arena.world.random.integer()}`;
    const text = this.changesSession ? sdp.replace(/^(o=\S+) \d+/m, `$1 ${session}`) : sdp;
    this.send({ type, target_id: this.target, sdp: { type, sdp: text } });
  }

  /** @param {string} type */
  count(type) {
    return this.received.filter((message) => message.type === type).length;
  }

  get isOpen() {
    return this.channel?.readyState === "open";
  }
}

/** Returns the descriptions that a member sends through the server. @param {Arena} arena @param {string} id */
function recordDescriptions(arena, id) {
  /** @type {any[]} */
  const sent = [];
  arena.server.filter = (sender, message, pass) => {
    if (sender === id && message.sdp) {
      sent.push(message.sdp);
    }
    pass();
  };
  return sent;
}

// ---- Causes 1 to 6 of the review ----

test("cause 1: an answer that arrives while an offer is being set at the polite side is no error", async () => {
  const arena = new Arena();
  const a = await arena.enter("A");
  const b = new ForeignClient(arena, "B", "A");
  await b.page.run(() => b.open());
  await b.enter("join");
  await b.page.run(() => b.offer());
  await arena.until(() => a.peer("B")?.alive && b.isOpen && b.pc.signalingState === "stable");
  await arena.run(1_000);
  const { pc } = a.peer("B");

  // Both offer. A is polite. B sends its offer, and right after it an answer to A's offer.
  b.answersOffers = false;
  const offers = b.count("offer");
  await a.share();
  await arena.until(() => b.count("offer") > offers);
  const offerOfA = JSON.parse(b.received.findLast(({ type }) => type === "offer").sdp);
  const answer = b.pc.localDescription.sdp;
  await b.page.run(() => {
    b.pc.addTrack(new MediaStreamTrack("audio"), new MediaStream());
    b.offer();
  });
  await arena.until(() => b.pc.signalingState === "have-local-offer");
  await b.page.run(() => b.sendDescription({ type: "answer", sdp: answer.replace("a=setup:actpass", "a=setup:active") }));
  assert.equal(pc.signalingState, "have-local-offer");
  assert.ok(offerOfA.sdp.includes("m=video"));
  b.answersOffers = true;
  const answers = b.count("answer");
  await arena.until(() => b.count("answer") > answers && b.pc.signalingState === "stable");
  await arena.until(() => pc.signalingState === "stable" && pc.getTransceivers().length === 2);
  await arena.until(() => b.pc.getTransceivers().length === 2 && a.trackCount === 1);
  assert.equal(a.count("error"), 0);
  assert.equal(a.pc("B"), pc, "the connection is not replaced");
  await arena.finish(a);
});

test("cause 2: a second offer that arrives while the first is being set is answered after it", async () => {
  const arena = new Arena({ seed: 2 });
  const a = await arena.enter("A");
  const b = new ForeignClient(arena, "B", "A");
  await b.page.run(() => b.open());
  await b.enter("join");
  await b.page.run(() => b.offer());
  await arena.until(() => a.peer("B")?.alive && b.isOpen && b.pc.signalingState === "stable");
  await arena.run(1_000);
  const { pc } = a.peer("B");
  const before = b.received.length;
  await b.page.run(async () => {
    b.pc.addTrack(new MediaStreamTrack("audio"), new MediaStream());
    await b.pc.setLocalDescription();
    const first = b.pc.localDescription;
    b.pc.addTrack(new MediaStreamTrack("video"), new MediaStream());
    await b.pc.setLocalDescription();
    b.sendDescription(first);
    b.sendDescription(b.pc.localDescription);
  });
  await arena.run(2_000);
  const descriptions = b.received.slice(before).map(({ type }) => type);
  assert.deepEqual(descriptions, ["answer", "answer"]);
  assert.equal(pc.signalingState, "stable");
  assert.equal(a.trackCount, 2);
  assert.equal(a.count("error"), 0);
  assert.equal(a.pc("B"), pc);
  await arena.finish(a);
});

for (const isReloaded of ["A", "B"]) {
  test(`cause 3: an offer for the predecessor of a new connection is not taken (${isReloaded} is reloaded)`, async () => {
    const arena = new Arena({ seed: 3 });
    const [a, b] = await arena.enterTwo();
    const [reloaded, other] = isReloaded === "A" ? [a, b] : [b, a];
    // ICE fails, and the other side says an offer for a restart, which is late.
    /** @type {(() => void)[]} */
    const late = [];
    arena.server.filter = (sender, message, pass) => {
      if (sender === other.page.name && message.type === "offer") {
        late.push(pass);
      } else if (sender === reloaded.page.name && message.sdp) {
        // The reloaded page must not renegotiate before.
      } else {
        pass();
      }
    };
    arena.world.network.setPath(a.page, b.page, false);
    await arena.until(() => late.length > 0, 45_000);
    reloaded.page.close({ isAbrupt: true });
    arena.world.network.setPath(a.page, b.page, true);
    const again = await arena.begin(isReloaded);
    await arena.until(() => again.peer(other.page.name)?.pc.signalingState === "have-local-offer", 8_000);
    // The late offer arrives first, then the first offer of the new page.
    arena.server.filter = null;
    for (const pass of late) {
      pass();
    }
    await arena.until(() => isConnected(again, other), 15_000);
    assert.equal(arena.world.network.firstRollbackCount, 0);
    assert.deepEqual([again.count("error"), other.count("error")], [0, 0]);
    await arena.run(5_000);
    assert.ok(isConnected(again, other));
    await arena.finish(again, other);
  });
}

for (const [first, second] of [
  ["chromium", "firefox"],
  ["firefox", "chromium"],
  ["chromium", "chromium"],
]) {
  test(`cause 4: nobody rolls back a first offer (A ${first}, B ${second})`, async () => {
    let glares = 0;
    for (let delay = 2_000; delay <= 4_000; delay += 100) {
      const arena = new Arena({ seed: delay });
      const a = await arena.begin("A", { browser: /** @type {any} */ (first) });
      await arena.until(() => a.room);
      await a.share("audio");
      await a.share("video");
      // The first offer of B, which has joined last, arrives so late that A offers too.
      let isFirst = true;
      /** @type {Set<string>} */
      const senders = new Set();
      arena.server.filter = (sender, message, pass) => {
        if (message.type === "offer" && message.sdp.to === undefined) {
          senders.add(sender);
        }
        if (sender === "B" && message.type === "offer" && isFirst) {
          isFirst = false;
          arena.world.schedule(null, delay, pass);
        } else {
          pass();
        }
      };
      const b = await arena.begin("B", { browser: /** @type {any} */ (second) });
      await arena.until(() => b.room);
      await b.share("audio");
      await b.share("video");
      await arena.until(() => isConnected(a, b) && a.trackCount === 2 && b.trackCount === 2, 15_000);
      glares += senders.size === 2 ? 1 : 0;
      assert.equal(arena.world.network.firstRollbackCount, 0);
      assert.deepEqual([a.count("error"), b.count("error")], [0, 0], `delay ${delay}`);
      await arena.finish(a, b);
    }
    assert.ok(glares >= 5, `${glares} glares`);
  });
}

test("cause 4: the first offer of a client with media is not rolled back against, but answered anew", async () => {
  const arena = new Arena({ seed: 4 });
  // The foreign client is impolite: the library yields, with a new connection.
  const b = new ForeignClient(arena, "B", "A");
  b.answersOffers = false;
  await b.enter("join");
  const a = await arena.begin("A");
  await arena.until(() => b.count("offer") === 1, 8_000);
  await b.page.run(() => {
    b.open();
    b.pc.addTransceiver("audio");
    b.pc.addTransceiver("video");
    b.offer();
  });
  await arena.until(() => a.peer("B")?.alive && b.isOpen, 8_000);
  assert.equal(arena.world.network.firstRollbackCount, 0);
  assert.equal(a.count("error"), 0);
  await arena.finish(a);
});

test("cause 5: failures of a connection that is alive are repaired without growing pauses", async () => {
  const arena = new Arena({ seed: 5 });
  const [a, b] = await arena.enterTwo();
  const peer = a.peer("B");
  for (let round = 1; round <= 8; round += 1) {
    let hasFailed = false;
    arena.world.faults.operation = (pc, name) => {
      if (hasFailed || pc.page !== a.page || name !== "setLocalDescription") {
        return undefined;
      }
      hasFailed = true;
      return new DOMException("injected", "OperationError");
    };
    await a.share();
    await arena.until(() => hasFailed);
    await arena.until(() => isConnected(a, b) && b.trackCount === round, 4_000);
    assert.equal(a.peer("B"), peer, "the Peer stays");
    await arena.run(20_000);
  }
  assert.deepEqual([a.count("left"), b.count("left")], [0, 0]);
  await arena.finish(a, b);
});

test("cause 6: a peer that waits for a first offer begins itself, if the other side believes to be connected", async () => {
  const arena = new Arena({ seed: 6 });
  const [a, b] = await arena.enterTwo();
  // A loses its server. The page of B crashes and returns. A, which returns last, still sees its old connection.
  arena.server.filter = null;
  for (const socket of [...arena.world.network.sockets]) {
    if (socket.page === a.page) {
      socket.cut();
    }
  }
  arena.world.network.setServerPath(a.page, false);
  b.page.close({ isAbrupt: true });
  const again = await arena.begin("B");
  arena.world.network.setServerPath(a.page, true);
  await arena.until(() => again.room && a.room.online, 10_000);
  await arena.until(() => isConnected(a, again), 6_000);
  await arena.finish(a, again);
});

// ---- Media ----

test("session descriptions do not grow over a hundred shares", async () => {
  const arena = new Arena({ seed: 7 });
  const [a, b] = await arena.enterTwo();
  const lines = () => a.pc("B").localDescription.sdp.match(/^m=/gm).length;
  for (let round = 0; round < 100; round += 1) {
    const shares = [await a.share("audio"), await b.share("video")];
    await arena.until(() => isConnected(a, b) && a.trackCount === 1 && b.trackCount === 1);
    for (const [index, member] of [a, b].entries()) {
      await member.run(() => shares[index].stop());
    }
    await arena.until(() => isConnected(a, b) && a.trackCount === 0 && b.trackCount === 0);
  }
  assert.ok(lines() <= 3, `${lines()} m-sections`);
  assert.deepEqual([a.count("error"), b.count("error")], [0, 0]);
  await arena.finish(a, b);
});

test("shares are sent again over a new connection, and replaced tracks too", async () => {
  const arena = new Arena({ seed: 8 });
  const [a, b] = await arena.enterTwo();
  const share = await a.share("audio");
  await arena.until(() => b.trackCount === 1);
  const track = new MediaStreamTrack("audio");
  await a.run(() => share.replace(track));
  await arena.run(500);
  assert.equal(b.trackCount, 1);
  // The application closes the connection.
  await a.run(() => a.pc("B").close());
  await arena.until(() => isConnected(a, b), 20_000);
  await arena.until(() => a.pc("B").getSenders().some((/** @type {any} */ sender) => sender.track === track));
  await arena.until(() => b.trackCount === 1);
  assert.deepEqual([a.count("left"), b.count("left")], [0, 0]);
  await arena.finish(a, b);
});

// ---- Clients that follow PROTOCOL.md alone ----

test("a client whose offers have a new session id each time keeps its connection", async () => {
  const arena = new Arena({ seed: 9 });
  const a = await arena.enter("A");
  const b = new ForeignClient(arena, "B", "A");
  b.changesSession = true;
  await b.page.run(() => b.open());
  await b.enter("join");
  await b.page.run(() => b.offer());
  await arena.until(() => a.peer("B")?.alive && b.isOpen);
  const peer = a.peer("B");
  const { pc } = peer;
  for (let round = 1; round <= 3; round += 1) {
    await b.page.run(() => {
      b.pc.addTrack(new MediaStreamTrack("audio"), new MediaStream());
      b.offer();
    });
    await arena.until(() => a.trackCount === round && b.pc.signalingState === "stable");
  }
  await b.page.run(() => {
    b.pc.restartIce();
    b.offer();
  });
  await arena.until(() => b.pc.signalingState === "stable");
  await arena.run(2_000);
  assert.equal(a.peer("B"), peer);
  assert.equal(a.pc("B"), pc);
  await arena.finish(a);
});

test("a new connection of such a client replaces the old one", async () => {
  const arena = new Arena({ seed: 10 });
  const a = await arena.enter("A");
  const b = new ForeignClient(arena, "B", "A");
  await b.page.run(() => b.open());
  await b.enter("join");
  await b.page.run(() => b.offer());
  await arena.until(() => a.peer("B")?.alive && b.isOpen);
  const { pc } = a.peer("B");
  await b.page.run(() => {
    b.pc.close();
    b.open();
    b.offer();
  });
  await arena.until(() => a.peer("B")?.alive && b.isOpen && a.pc("B") !== pc);
  await arena.finish(a);
});

for (const isForeignFirst of [true, false]) {
  for (const id of ["0", "Z"]) {
    test(`a client with data only connects (${isForeignFirst ? "it is there first" : "it joins"}, id ${id})`, async () => {
      const arena = new Arena({ seed: 11 });
      const foreign = new ForeignClient(arena, id, "M");
      let member;
      if (isForeignFirst) {
        await foreign.enter("join");
        member = await arena.enter("M");
      } else {
        member = await arena.enter("M");
        await foreign.page.run(() => foreign.open());
        await foreign.enter("join");
        await foreign.page.run(() => foreign.offer());
      }
      const a = member;
      await arena.until(() => a.peer(id)?.alive && foreign.isOpen && a.count("open") === 1);
      await a.run(() => a.room.send("one"));
      await foreign.page.run(() => foreign.channel.send("two"));
      await arena.until(() => foreign.messages.includes("one") && a.messages.includes("two"));
      // Media is negotiated through the server.
      await a.share();
      await arena.until(() => foreign.pc.getTransceivers()[0]?.currentDirection === "recvonly");
      assert.equal(a.count("error"), 0);
      await arena.finish(a);
    });
  }
}

// ---- Pairs ----

test("in a pair, a partner whose page is frozen is left within 35 s, and another one is found", async () => {
  const arena = new Arena({ seed: 12 });
  const a = await arena.enter("A", { flow: "connect" });
  const b = await arena.begin("B", { flow: "connect" });
  // B freezes when it has answered.
  arena.server.filter = (sender, message, pass) => {
    if (sender === "B" && message.type === "answer") {
      b.page.freeze();
    }
    pass();
  };
  await arena.until(() => b.page.isFrozen);
  const c = await arena.enter("C", { flow: "connect" });
  await arena.until(() => isConnected(a, c), 35_000);
  assert.ok(a.events.includes("left B lost"), a.events.join());
  // The page continues, and waits for another partner.
  b.page.thaw();
  await arena.run(10_000);
  assert.ok(isConnected(a, c));
  assert.equal(b.room.peers.size, 0);
  const d = await arena.enter("D", { flow: "connect" });
  await arena.until(() => isConnected(b, d), 35_000);
  await arena.finish(a, b, c, d);
});

test("in a pair, a candidate may contain a separator, and bad ones end nothing", async () => {
  const arena = new Arena({ seed: 13 });
  const foreign = new ForeignClient(arena, "F");
  await foreign.enter("connect");
  await foreign.page.run(() => {
    foreign.open();
    foreign.isTrickling = false;
    foreign.offer();
  });
  await arena.run(500);
  // The offer has no candidates. They are stored, behind bad ones. Those of the library are lost.
  const candidates = foreign.pc.localDescription.sdp.match(/^a=candidate.*$/gm).map((/** @type {string} */ line) => line.slice(2).trim());
  assert.ok(candidates.length > 0);
  await foreign.page.run(() => {
    for (const candidate of ["a|b", "{|}\"|[", "", ...candidates]) {
      foreign.send({ type: "candidateAdd", candidate: { candidate, sdpMid: "0", sdpMLineIndex: 0 } });
    }
    foreign.send({ type: "candidateAdd", candidate: null });
    foreign.send({ type: "candidateAdd", candidate: "a|b" });
    foreign.send({ type: "candidateAdd", candidate: 7 });
  });
  arena.server.filter = (sender, message, pass) => {
    if (sender !== "A" || message.type !== "candidateAdd") {
      if (message.type === "answer") {
        message.sdp.sdp = message.sdp.sdp.replace(/^a=candidate.*\r\n/gm, "");
      }
      pass();
    }
  };
  await arena.run(300);
  const a = await arena.enter("A", { flow: "connect" });
  await arena.until(() => a.peer("F")?.alive && foreign.isOpen);
  assert.equal(a.count("error"), 0);
  await arena.finish(a);
});

test("TURN credentials are renewed in pairs and in meshes", async () => {
  for (const flow of /** @type {const} */ (["connect", "join"])) {
    const arena = new Arena({ seed: 14 });
    arena.world.service.iceServers = () => [
      { urls: ["turn:turn.example"], username: `${Math.floor(arena.world.elapsed / 1_000)}`, credential: "x" },
    ];
    const [a, b] = await arena.enterTwo({ flow }, { iceServers: [{ urls: "stun:own.example" }] });
    const time = () => Number(a.pc("B").getConfiguration().iceServers[1].username);
    assert.equal(a.pc("B").getConfiguration().iceServers[0].urls, "stun:own.example");
    assert.ok(time() < 10);
    await arena.run(11 * 3_600_000);
    assert.ok(time() > 9 * 3_600, `${flow}: credentials of ${time()} s`);
    assert.ok(isConnected(a, b));
    assert.deepEqual([a.count("offline"), b.count("offline")], [0, 0]);
    await arena.finish(a, b);
  }
});

test("in a pair, the partner that is back is not away", async () => {
  const arena = new Arena({ seed: 15 });
  const [a, b] = await arena.enterTwo({ flow: "connect" });
  const peer = a.peer("B");
  for (let round = 0; round < 20; round += 1) {
    const cutMember = round % 2 === 0 ? a : b;
    for (const socket of [...arena.world.network.sockets]) {
      if (socket.page === cutMember.page) {
        socket.cut({ serverNotices: round % 4 < 2 });
      }
    }
    await arena.run(9_000);
    assert.ok(isConnected(a, b), `round ${round}`);
  }
  assert.equal(a.peer("B"), peer);
  await arena.finish(a, b);
});

test("in a pair, a reloaded page finds its partner again, even if that was offline meanwhile", async () => {
  for (const isAbrupt of [true, false]) {
    const arena = new Arena({ seed: 16 });
    const [a, b] = await arena.enterTwo({ flow: "connect" });
    arena.world.network.setServerPath(a.page, false);
    for (const socket of [...arena.world.network.sockets]) {
      if (socket.page === a.page) {
        socket.cut();
      }
    }
    await arena.run(500);
    b.page.close({ isAbrupt });
    const again = await arena.enter("B", { flow: "connect" });
    arena.world.network.setServerPath(a.page, true);
    await arena.until(() => isConnected(a, again), 30_000);
    assert.equal(a.room.peers.size, 1);
    await arena.finish(a, again);
  }
});

// ---- The application closes connections, and rooms end ----

test("a connection that the application has closed does not keep the room offline, and is begun anew", async () => {
  const arena = new Arena({ seed: 17 });
  arena.world.service.iceServers = () => [{ urls: "turn:turn.example", username: `${arena.world.now}`, credential: "x" }];
  const [a, b] = await arena.enterTwo();
  await a.run(() => a.pc("B").close());
  for (const socket of [...arena.world.network.sockets]) {
    if (socket.page === a.page) {
      socket.cut();
    }
  }
  await arena.until(() => a.count("offline") === 1 && a.room.online);
  await arena.until(() => isConnected(a, b), 20_000);
  await arena.finish(a, b);
});

test("leave() closes everything after the id has gone to another connection", async () => {
  const arena = new Arena({ seed: 18 });
  const [a, b] = await arena.enterTwo();
  await a.share();
  await arena.until(() => b.trackCount === 1);
  for (const socket of [...arena.world.network.sockets]) {
    if (socket.page === a.page) {
      socket.closeFromServer(4000);
    }
  }
  await arena.until(() => a.room.state === "closed");
  /** @type {any} */
  let end;
  await a.run(() => a.room.closed.then((/** @type {any} */ result) => (end = result)));
  assert.equal(end.code, "replaced");
  assert.ok(a.peer("B")?.alive, "peers stay connected until leave()");
  const { pc } = a.peer("B");
  await a.run(() => a.room.leave());
  assert.equal(pc.connectionState, "closed");
  await arena.until(() => b.room.peers.size === 0);
  await arena.finish(a, b);
});

test("entering ends with the timeout, or with the signal, and leaves nothing", async () => {
  const arena = new Arena({ seed: 19 });
  arena.server.filter = () => {};
  const late = await arena.begin("A", {}, { timeout: 3_000 });
  await arena.run(2_900);
  assert.equal(late.failure, null);
  await arena.run(200);
  assert.equal(late.failure?.code, "unreachable");
  const controller = new AbortController();
  const aborted = await arena.begin("B", {}, { signal: controller.signal });
  await arena.run(1_000);
  const reason = new Error("enough");
  await aborted.run(() => controller.abort(reason));
  assert.equal(aborted.failure, reason);
  await arena.run(5_000);
  assert.deepEqual([late.page.timerCount, aborted.page.timerCount], [0, 0]);
  assert.equal(arena.world.network.sockets.size, 0);
  assert.deepEqual(arena.world.problems, []);
});

test("refusals of the server reject with their code", async () => {
  for (const [status, code] of /** @type {const} */ ([[401, "unauthorized"], [403, "forbidden"], [429, "refused"]])) {
    const arena = new Arena({ seed: 20 });
    arena.world.service.refuse = () => ({ status, text: "a reason\n" });
    const a = await arena.begin("A", {}, { token: "x" });
    await arena.until(() => a.failure, 20_000);
    assert.equal(a.failure.code, code);
    assert.equal(a.page.timerCount, 0);
  }
  const arena = new Arena({ seed: 21 });
  arena.server.stop();
  const a = await arena.begin("A");
  await arena.until(() => a.failure, 25_000);
  assert.equal(a.failure.code, "unreachable");
});

// ---- Interruptions ----

test("a room of five: one that loses the server for a minute disturbs nobody else", async () => {
  const arena = new Arena({ seed: 22 });
  const members = [];
  for (const id of ["A", "B", "C", "D", "E"]) {
    members.push(await arena.enter(id));
  }
  const all = () => members.every((a) => members.every((b) => a === b || isConnected(a, b)));
  await arena.until(all, 10_000);
  const pcs = members.map(({ room }) => [...room.peers.values()].map(({ pc }) => pc));
  const e = members[4];
  arena.world.network.setServerPath(e.page, false);
  await arena.run(60_000);
  assert.ok(members.slice(0, 4).every((member) => member.peer("E").alive && member.peer("E").away));
  assert.ok(!e.room.online);
  arena.world.network.setServerPath(e.page, true);
  await arena.until(all, 15_000);
  await arena.run(30_000);
  assert.ok(all());
  assert.deepEqual(members.map((member) => member.count("offline")), [0, 0, 0, 0, 1]);
  assert.deepEqual(members.map(({ room }) => [...room.peers.values()].map(({ pc }) => pc)), pcs);
  await arena.finish(...members);
});

test("members at two servers find each other again", async () => {
  const arena = new Arena({ seed: 23, servers: 2 });
  const members = [];
  for (const id of ["A", "B", "C"]) {
    members.push(await arena.enter(id));
  }
  const all = () => members.every((a) => members.every((b) => a === b || isConnected(a, b)));
  await arena.until(all, 10_000);
  // C reconnects, and reaches another server for a while.
  arena.world.service.routes.set("C", 1);
  for (const socket of [...arena.world.network.sockets]) {
    if (socket.page.name === "C") {
      socket.cut();
    }
  }
  await arena.run(3_000);
  assert.ok(members[0].peer("C").away && members[2].peer("A").away);
  arena.world.service.routes.clear();
  await arena.until(all, 20_000);
  assert.deepEqual(members.map((member) => member.count("offline")), [0, 0, 2]);
  await arena.finish(...members);
});

test("room.send reaches a peer that is interrupted for a moment", async () => {
  const arena = new Arena({ seed: 24 });
  const [a, b] = await arena.enterTwo();
  arena.world.network.setPath(a.page, b.page, false);
  await arena.until(() => a.peer("B").state === "interrupted", 7_000);
  const reached = await a.run(() => a.room.send("one"));
  assert.equal(reached.length, 1);
  arena.world.network.setPath(a.page, b.page, true);
  await arena.until(() => b.messages.includes("one"));
  await arena.until(() => isConnected(a, b));
  assert.deepEqual([a.count("reconnecting"), b.count("reconnecting")], [0, 0]);
  await arena.finish(a, b);
});

test("an interrupted connection is kept, a long one is repaired, and one whose DTLS has failed is begun anew", async () => {
  const arena = new Arena({ seed: 25 });
  const [a, b] = await arena.enterTwo();
  const pcs = [a.pc("B"), b.pc("A")];
  const peers = [a.peer("B"), b.peer("A")];
  for (const time of [12_000, 70_000]) {
    arena.world.network.setPath(a.page, b.page, false);
    await arena.run(time);
    assert.ok(!isConnected(a, b));
    arena.world.network.setPath(a.page, b.page, true);
    await arena.until(() => isConnected(a, b), 60_000);
    if (time === 12_000) {
      assert.deepEqual([a.pc("B"), b.pc("A")], pcs);
    }
    assert.deepEqual([a.peer("B"), b.peer("A")], peers);
  }
  await a.run(() => a.pc("B").failDtls());
  await b.run(() => b.pc("A").failDtls());
  await arena.until(() => isConnected(a, b), 35_000);
  assert.deepEqual([a.peer("B"), b.peer("A")], peers);
  await arena.finish(a, b);
});

test("a failed operation keeps the Peer, and tells no listener that somebody left", async () => {
  const arena = new Arena({ seed: 26 });
  const [a, b] = await arena.enterTwo();
  const peers = [a.peer("B"), b.peer("A")];
  const before = [...a.events, ...b.events].length;
  let failures = 0;
  arena.world.faults.operation = (pc, name) => {
    if (pc.page !== a.page || name !== "setLocalDescription" || failures === 3) {
      return undefined;
    }
    failures += 1;
    return new DOMException("injected", "OperationError");
  };
  await a.share();
  await arena.until(() => failures === 3 && isConnected(a, b) && b.trackCount === 1, 30_000);
  assert.deepEqual([a.peer("B"), b.peer("A")], peers);
  const later = [...a.events, ...b.events].slice(0).length - before;
  assert.ok(later > 0);
  assert.deepEqual([a.count("left"), b.count("left"), a.count("peer"), b.count("peer")], [0, 0, 1, 1]);
  assert.equal(a.count("error"), 3);
  await arena.finish(a, b);
});

test("listeners that are added late miss nothing", async () => {
  const arena = new Arena({ seed: 27 });
  const a = await arena.enter("A");
  const page = arena.world.openPage("B");
  /** @type {any} */
  let room;
  await page.run(() => library.join(SERVER_URL, { id: "B" }).then((it) => (room = it)));
  await arena.until(() => room && a.peer("B")?.alive && a.count("open") === 1);
  await a.run(() => a.room.send("one"));
  await a.share();
  await arena.run(2_000);
  /** @type {string[]} */
  const events = [];
  await page.run(() => {
    for (const type of ["peer", "open", "message", "track"]) {
      room.addEventListener(type, () => events.push(type));
    }
  });
  assert.deepEqual(events, ["peer", "open", "message", "track"]);
  await page.run(() => room.leave());
  await arena.finish(a);
});

test("messages of the server that are repeated, reordered or malformed end nothing", async () => {
  const arena = new Arena({ seed: 28 });
  const [a, b] = await arena.enterTwo();
  const sent = recordDescriptions(arena, "B");
  const foreign = new ForeignClient(arena, "X", "A");
  foreign.answersOffers = false;
  await foreign.enter("join");
  await foreign.page.run(() => {
    for (const sdp of [null, 7, "x", {}, [], { type: "offer" }, { type: "answer", sdp: "v=0" }, { type: "rollback", sdp: "" }]) {
      foreign.send({ type: "offer", target_id: "A", sdp });
      foreign.send({ type: "answer", target_id: "A", sdp });
    }
    foreign.send({ type: "offer", target_id: "A", sdp: { type: "offer", sdp: "v=0", from: "x.1", seq: "1", to: {} } });
    foreign.send({ type: "candidateAdd", target_id: "A", candidates: [null, 1, "a|b", {}, { candidate: 7, from: 1 }] });
  });
  await arena.run(3_000);
  assert.ok(isConnected(a, b));
  assert.deepEqual(a.events.filter((event) => event.includes(" B")), ["peer B", "open B"]);
  assert.deepEqual(sent, []);
  await arena.finish(a, b);
});

// ---- What each part of the connection ids and of the control channel prevents ----

test("descriptions of both sides at the same time are never rolled back over the control channel", async () => {
  const arena = new Arena({ seed: 29 });
  const [a, b] = await arena.enterTwo();
  for (let round = 1; round <= 20; round += 1) {
    await Promise.all([a.share("audio"), b.share("video")]);
    await arena.until(() => isConnected(a, b) && a.trackCount === round && b.trackCount === round);
  }
  assert.equal(arena.world.network.rollbackCount, 0);
  assert.deepEqual([a.count("error"), b.count("error")], [0, 0]);
  await arena.finish(a, b);
});

test("late descriptions of an earlier connection of the same page are ignored", async () => {
  const arena = new Arena({ seed: 30 });
  /** @type {(() => void)[]} */
  const deliveries = [];
  arena.server.filter = (sender, message, pass) => {
    if (message.sdp) {
      deliveries.push(pass);
    }
    pass();
  };
  const [a, b] = await arena.enterTwo();
  const early = deliveries.splice(0);
  assert.ok(early.length >= 2);
  const { pc } = a.peer("B");
  await a.run(() => a.pc("B").close());
  await arena.until(() => isConnected(a, b) && a.pc("B") !== pc, 20_000);
  const pcs = [a.pc("B"), b.pc("A")];
  early.forEach((deliver) => deliver());
  await arena.run(15_000);
  assert.ok(isConnected(a, b));
  assert.deepEqual([a.pc("B"), b.pc("A")], pcs);
  await arena.finish(a, b);
});

test("a page that is back is recognized, although it counts its connections from 1 again", async () => {
  const arena = new Arena({ seed: 31 });
  const [a, b] = await arena.enterTwo();
  for (let round = 0; round < 3; round += 1) {
    const { pc } = a.peer("B");
    await a.run(() => a.pc("B").close());
    await arena.until(() => isConnected(a, b) && a.pc("B") !== pc, 20_000);
  }
  b.page.close({ isAbrupt: true });
  const again = await arena.begin("B");
  // The server needs 5 s to notice that the old page is gone. ICE needs 20 s or more.
  await arena.until(() => isConnected(a, again), 7_000);
  assert.ok(a.events.includes("left B replaced") || a.events.includes("left B lost"), a.events.join());
  await arena.finish(a, again);
});

test("a peer that leaves says so itself, when the server cannot", async () => {
  const arena = new Arena({ seed: 32 });
  const [a, b] = await arena.enterTwo();
  arena.world.network.sentBeforeClose = 1;
  arena.world.network.setServerPath(a.page, false);
  await b.run(() => b.room.leave());
  await arena.until(() => a.events.includes("left B left"), 1_000);
  arena.world.network.setServerPath(a.page, true);
  await arena.finish(a, b);
});

// ---- Bounded recovery ----

test("in a pair, a partner whose page has crashed is left when neither the server nor ICE sees it", async () => {
  const arena = new Arena({ seed: 33 });
  const [a, b] = await arena.enterTwo({ flow: "connect" });
  b.page.close({ isAbrupt: true });
  const again = await arena.begin("B", { flow: "connect" });
  // 5 s until the server gives the id to the page that is back, and 3 s until its partner is left. ICE needs 15 s or more.
  await arena.until(() => isConnected(a, again), 9_500);
  assert.ok(a.events.includes("left B lost"), a.events.join());
  await arena.finish(a, again);
});

test("in a pair, a page that no longer knows its partner tells it", async () => {
  const arena = new Arena({ seed: 34 });
  const a = await arena.enter("A", { flow: "connect" });
  const foreign = new ForeignClient(arena, "F", "A");
  foreign.answersOffers = false;
  /** @type {any[]} */
  const refusals = [];
  arena.server.filter = (sender, message, pass) => {
    if (sender === "A" && message.candidate?.bye) {
      refusals.push(message);
    }
    pass();
  };
  // The foreign client registers, and does not ask for a partner.
  await foreign.page.run(() => {
    foreign.socket = new WebSocket(SERVER_URL);
    foreign.socket.onopen = () => {
      foreign.send({ type: "leave" });
      foreign.send({ type: "candidateAdd", target_id: "A", candidate: { check: true, from: "f.7", to: "other.3" } });
    };
  });
  await arena.until(() => refusals.length > 0);
  await arena.run(1_000);
  assert.deepEqual(refusals, [{ type: "candidateAdd", id: "A", target_id: "F", candidate: { bye: true, to: "f.7" } }]);
  await arena.finish(a);
});

test("two peers that have answered offers which the other gave up begin again at once", async () => {
  for (const [id, begins] of /** @type {const} */ ([["Z", true], ["B", false]])) {
    const arena = new Arena({ seed: 35 });
    const member = await arena.enter(id);
    const foreign = new ForeignClient(arena, "M", id);
    foreign.answersOffers = false;
    await foreign.page.run(() => foreign.open());
    await foreign.enter("join");
    const sent = recordDescriptions(arena, id);
    await foreign.page.run(() => foreign.pc.setLocalDescription());
    await arena.until(() => foreign.pc.localDescription);
    const { sdp } = foreign.pc.localDescription;
    await foreign.page.run(() => foreign.send({ type: "offer", target_id: id, sdp: { type: "offer", sdp, from: "m.1", seq: 1 } }));
    await arena.until(() => sent.length > 0);
    const [answer] = sent.splice(0);
    assert.deepEqual([answer.type, answer.to], ["answer", "m.1"]);
    // A later connection of the foreign client has answered an offer of an earlier connection of the member.
    const to = answer.from.replace(/\d+$/, "0");
    const crossed = { type: "answer", sdp: answer.sdp, from: "m.2", to, seq: 1, offer: 1 };
    await foreign.page.run(() => foreign.send({ type: "answer", target_id: id, sdp: crossed }));
    await arena.run(1_500);
    // Only the impolite peer, whose id is greater, begins.
    const offers = sent.filter(({ type }) => type === "offer");
    assert.equal(offers.length > 0, begins, `${id}: ${JSON.stringify(sent)}`);
    await arena.finish(member);
  }
});

test("a peer that answers an offer of an earlier connection gets the present one", async () => {
  const arena = new Arena({ seed: 36 });
  const a = await arena.enter("A");
  const foreign = new ForeignClient(arena, "M", "A");
  foreign.answersOffers = false;
  await foreign.enter("join");
  const sent = recordDescriptions(arena, "A");
  const late = { type: "answer", sdp: "v=0\r\n", from: "m.1", to: "a.1", seq: 1, offer: 1 };
  await foreign.page.run(() => foreign.send({ type: "answer", target_id: "A", sdp: late }));
  await arena.until(() => sent.length > 0, 500);
  assert.equal(sent[0].type, "offer");
  await arena.finish(a);
});

test("after a refused description, descriptions of about its size are not sent", async () => {
  const arena = new Arena({ seed: 37 });
  const LIMIT = 16_000;
  const pad = (/** @type {any} */ description) =>
    description && { type: description.type, sdp: `${description.sdp}a=x:${"x".repeat(LIMIT)}\r\n` };
  class Verbose extends RTCPeerConnection {
    get localDescription() {
      return pad(super.localDescription);
    }
    get currentLocalDescription() {
      return pad(super.currentLocalDescription);
    }
  }
  const a = await arena.enter("A", {}, { RTCPeerConnection: Verbose });
  /** @type {number[]} */
  const refusedSizes = [];
  arena.server.filter = (sender, message, pass) => {
    const size = JSON.stringify(message).length;
    if (size < LIMIT) {
      pass();
      return;
    }
    refusedSizes.push(size);
    for (const socket of [...arena.world.network.sockets]) {
      if (socket.page.name === sender) {
        socket.closeFromServer(1009);
      }
    }
  };
  const b = await arena.enter("B");
  await arena.until(() => a.count("error") === 1 && a.room.online, 20_000);
  const c = await arena.enter("C");
  await arena.until(() => isConnected(b, c), 20_000);
  await arena.until(() => a.count("error") === 2 && a.room.online, 20_000);
  await arena.run(60_000);
  assert.equal(refusedSizes.length, 1, refusedSizes.join());
  assert.deepEqual([a.count("error"), a.count("offline")], [2, 1]);
  await arena.finish(a, b, c);
});
