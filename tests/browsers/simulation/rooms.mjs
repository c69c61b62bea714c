/**
 * The rules of `src/protocols/noroshi/PROTOCOL.md` in memory: registration, pairing and meshes. It knows no sockets.
 *
 * The transcripts in `tests/transcripts/ours` are played against it (`fakes.test.mjs`).
 */

const HOLDERS_MAX = 64;
const CANDIDATES_MAX = 64;
const CANDIDATES_BYTES_MAX = 65_536;
/** Milliseconds without progress after which a room continues. */
const ROOM_TIMEOUT = 30_000;
/** Milliseconds in which the holder of a claimed id must respond. */
const PROBE_TIMEOUT = 5_000;

/** A connection of a client. */
export class Client {
  /** @type {string | null} */
  id = null;
  /** The id that was refused to this client. @type {string | null} */
  rejectedId = null;
  /** The client whose id this one claims. @type {Client | null} */
  claimed = null;
  /** Messages that wait for the end of a probe. @type {string[]} */
  backlog = [];
  /** Clients that claim our id, while we are probed. @type {{client: Client, text: string}[] | null} */
  claimants = null;
  /** The end of that probe. @type {import("./clock.mjs").Task | null} */
  probeEnd = null;
  /** @type {"idle" | "offerer" | "queued" | "holding" | "paired" | "joined"} */
  flow = "idle";
  /** @type {Client | null} */
  partner = null;
  /** The offer that we hold. @type {{offerer: Client, number: number} | null} */
  held = null;
  /** @type {{number: number, sdp: string, isDelivered: boolean} | null} */
  offer = null;
  lastNumber = 0;
  /** Everybody who holds an offer of ours, current or not. @type {Set<Client>} */
  holders = new Set();
  /** @type {string[]} */
  candidates = [];
  isOfferRejected = false;
  isGone = false;

  /** @param {Room} room @param {any} connection */
  constructor(room, connection) {
    this.room = room;
    this.connection = connection;
  }

  get currentHolders() {
    return [...this.holders].filter((it) => it.held?.number === this.offer?.number).length;
  }
}

class Room {
  /** @type {Set<Client>} */
  clients = new Set();
  /** @type {Map<string, Client>} */
  ids = new Map();
  /** @type {Set<Client>} */
  mesh = new Set();
  /** @type {Client[]} */
  queue = [];
  /** @type {Client | null} */
  offerer = null;
  hasProgressed = false;
  /** @type {import("./clock.mjs").Task | null} */
  deadline = null;
}

class Refusal {
  /** @param {string} code @param {string} message */
  constructor(code, message) {
    this.code = code;
    this.message = message;
  }
}

const TARGET_REQUIRED = new Refusal("bad_message", "target_id: expected an id");
const UNKNOWN_PEER = new Refusal("unknown_peer", "target_id: expected the id of another peer in this room");
const ID_TAKEN = new Refusal("id_taken", "id: a connected peer has this id");
const ID_MISMATCH = new Refusal("id_mismatch", "id: expected the id of this connection");

const TYPES = ["connect", "offer", "answer", "candidateAdd", "join", "leave"];

/** @param {unknown} id */
function isValidId(id) {
  return (
    typeof id === "string" &&
    id !== "" &&
    id.isWellFormed() &&
    Buffer.byteLength(id) <= 128 &&
    [...id].every((character) => character >= " " && character !== "\u007f")
  );
}

export class Rooms {
  /** @type {Map<string, Room>} */
  #rooms = new Map();

  /** @param {{
   *    world: import("./clock.mjs").World,
   *    send: (client: Client, message: object) => void,
   *    close: (client: Client, code: number) => void,
   *    ping: (client: Client) => void,
   *    meshPeersMax?: number,
   *    iceServers?: (id: string) => object[] | undefined,
   *  }} options `ping`: pings a client, and calls `onAlive` when something arrives from it */
  constructor({ world, send, close, ping, meshPeersMax = 64, iceServers = () => undefined }) {
    this.world = world;
    this.send = send;
    this.close = close;
    this.ping = ping;
    this.meshPeersMax = meshPeersMax;
    this.iceServers = iceServers;
  }

  /** @param {string} name @param {any} connection */
  onConnect(name, connection) {
    const room = this.#rooms.get(name) ?? new Room();
    this.#rooms.set(name, room);
    const client = new Client(room, connection);
    room.clients.add(client);
    return client;
  }

  /** @param {Client} client */
  onDisconnect(client) {
    if (client.isGone) {
      return;
    }
    client.isGone = true;
    this.#leaveFlow(client);
    this.#releaseId(client);
    client.room.clients.delete(client);
  }

  /** @param {Client} client @param {string} text */
  onMessage(client, text) {
    if (client.isGone) {
      return;
    }
    if (client.claimed) {
      client.backlog.push(text);
      return;
    }
    const message = parseObject(text);
    if (message?.type === "ping") {
      const isServed = message.iceServers === true && client.id !== null;
      const iceServers = isServed ? this.iceServers(/** @type {string} */ (client.id)) : undefined;
      this.send(client, iceServers ? { type: "pong", iceServers } : { type: "pong" });
      return;
    }
    const targetId = isValidId(message?.target_id) ? message.target_id : undefined;
    const refusal = this.#check(message);
    if (refusal) {
      this.#refuse(client, refusal, targetId);
      return;
    }
    const { id, type } = message;
    if (client.id === id) {
      this.#process(client, message, targetId);
      return;
    }
    if (client.id !== null) {
      this.#refuse(client, ID_MISMATCH, targetId);
      return;
    }
    if (client.rejectedId === id && type !== "connect" && type !== "join") {
      return;
    }
    const holder = client.room.ids.get(id);
    if (holder) {
      this.#claim(client, holder, text);
      return;
    }
    this.#register(client, id);
    this.#process(client, message, targetId);
  }

  /** Something has arrived from a client that is probed. @param {Client} client */
  onAlive(client) {
    const { id } = client;
    for (const { client: claimant, text } of this.#endProbe(client)) {
      this.#reject(claimant, /** @type {string} */ (id), parseObject(text));
      this.#readBacklog(claimant);
    }
  }

  // ---- Ids ----

  /** @param {any} message @returns {Refusal | undefined} */
  #check(message) {
    if (!message) {
      return new Refusal("bad_json", "expected a JSON object");
    }
    const { type, id, target_id: target, candidates } = message;
    if (typeof type !== "string") {
      return new Refusal("bad_message", "type: expected a string");
    }
    if (!TYPES.includes(type)) {
      return new Refusal("unknown_type", "type: unknown");
    }
    if (!isValidId(id)) {
      return new Refusal("bad_message", "id: expected a string of 1 to 128 bytes");
    }
    const isArray = Array.isArray(candidates);
    if (type === "candidateAdd" && (candidates ?? null) !== null) {
      if (!isArray || candidates.length < 1 || candidates.length > CANDIDATES_MAX) {
        return new Refusal("bad_message", "candidates: expected 1 to 64");
      }
    }
    const needsTarget = !["connect", "join", "leave"].includes(type);
    if (needsTarget && (target ?? "") !== "" && !isValidId(target)) {
      return new Refusal("bad_message", "target_id: expected a string of 1 to 128 bytes");
    }
    return undefined;
  }

  /** @param {Client} client @param {string} id */
  #register(client, id) {
    client.id = id;
    client.rejectedId = null;
    client.room.ids.set(id, client);
  }

  /** @param {Client} client @param {Client} holder @param {string} text */
  #claim(client, holder, text) {
    client.claimed = holder;
    if (!holder.claimants) {
      holder.claimants = [];
      holder.probeEnd = this.world.schedule(null, PROBE_TIMEOUT, () => this.#onSilent(holder));
      this.ping(holder);
    }
    holder.claimants.push({ client, text });
  }

  /** @param {Client} holder */
  #onSilent(holder) {
    if (holder.claimants?.length === 0) {
      this.#endProbe(holder);
      return;
    }
    this.close(holder, 4000);
    this.onDisconnect(holder);
  }

  /** @param {Client} holder */
  #endProbe(holder) {
    const claimants = holder.claimants ?? [];
    holder.claimants = null;
    this.world.cancel(holder.probeEnd);
    for (const { client } of claimants) {
      client.claimed = null;
    }
    return claimants;
  }

  /** @param {Client} client */
  #releaseId(client) {
    if (client.claimed) {
      const { claimed } = client;
      claimed.claimants = claimed.claimants?.filter((it) => it.client !== client) ?? null;
      return;
    }
    const { id } = client;
    if (id === null) {
      return;
    }
    client.room.ids.delete(id);
    const [first, ...others] = this.#endProbe(client);
    if (!first) {
      return;
    }
    this.#register(first.client, id);
    for (const other of others) {
      this.#reject(other.client, id, parseObject(other.text));
    }
    const message = parseObject(first.text);
    this.#process(first.client, message, isValidId(message.target_id) ? message.target_id : undefined);
    for (const { client: claimant } of [first, ...others]) {
      this.#readBacklog(claimant);
    }
  }

  /** @param {Client} client @param {string} id @param {any} message */
  #reject(client, id, message) {
    client.rejectedId = id;
    this.#refuse(client, ID_TAKEN, isValidId(message?.target_id) ? message.target_id : undefined);
  }

  /** @param {Client} client */
  #readBacklog(client) {
    const texts = client.backlog;
    client.backlog = [];
    for (const text of texts) {
      this.onMessage(client, text);
    }
  }

  // ---- Messages ----

  /** @param {Client} client @param {Refusal} refusal @param {string} [targetId] */
  #refuse(client, { code, message }, targetId) {
    this.send(client, { type: "error", code, message, ...(targetId !== undefined && { target_id: targetId }) });
  }

  /** @param {Client} client @param {any} message @param {string} [targetId] */
  #process(client, message, targetId) {
    const refusal = this.#handle(client, message, targetId);
    if (refusal) {
      this.#refuse(client, refusal, targetId);
    }
  }

  /** @param {Client} client @param {any} message @param {string} [targetId] @returns {Refusal | undefined} */
  #handle(client, { type, sdp = null, candidate = null, candidates }, targetId) {
    if (type === "connect") {
      this.#connect(client);
      return undefined;
    }
    if (type === "leave") {
      this.#leaveFlow(client);
      return undefined;
    }
    if (type === "join") {
      return this.#join(client);
    }
    const target = targetId === undefined ? undefined : client.room.ids.get(targetId);
    const isKnown = targetId === undefined || (target && target !== client);
    if (type === "candidateAdd") {
      const texts = (candidates ?? [candidate]).map((/** @type {unknown} */ it) => JSON.stringify(it));
      return this.#addCandidates(client, targetId, isKnown ? target : undefined, Boolean(isKnown), texts);
    }
    if (!isKnown) {
      return UNKNOWN_PEER;
    }
    const text = JSON.stringify(sdp);
    return type === "offer" ? this.#handleOffer(client, target, text) : this.#handleAnswer(client, target, text);
  }

  // ---- Meshes ----

  /** @param {Client} client */
  #join(client) {
    const { mesh } = client.room;
    if (client.flow !== "joined") {
      if (mesh.size >= this.meshPeersMax) {
        return new Refusal("room_full", "the mesh is full");
      }
      this.#leaveFlow(client);
      for (const other of mesh) {
        this.send(other, { type: "peerJoined", id: client.id });
      }
      mesh.add(client);
      client.flow = "joined";
    }
    const peers = [...mesh].filter((other) => other !== client).map(({ id }) => id);
    this.#sendWithServers(client, { type: "joined", id: client.id, peers });
    return undefined;
  }

  /** @param {Client} client @param {object} message */
  #sendWithServers(client, message) {
    const iceServers = this.iceServers(/** @type {string} */ (client.id));
    this.send(client, iceServers ? { ...message, iceServers } : message);
  }

  // ---- The queue ----

  /** @param {Client} client */
  #connect(client) {
    if (["offerer", "queued", "paired"].includes(client.flow) || this.#holdsCurrentOffer(client)) {
      return;
    }
    if (client.flow === "holding") {
      this.#releaseOffer(client);
    } else if (client.flow === "joined") {
      this.#leaveFlow(client);
    }
    this.#deliverOrEnqueue(client.room, [client], false);
    this.#advance(client.room);
  }

  /** @param {Client} client */
  #holdsCurrentOffer({ held }) {
    return held !== null && held.offerer.offer?.number === held.number;
  }

  /** @param {Room} room @param {Client[]} clients @param {boolean} isAtFront */
  #deliverOrEnqueue(room, clients, isAtFront) {
    for (const client of clients) {
      const isFree = room.queue.length === 0 && room.offerer?.offer && room.offerer.currentHolders < HOLDERS_MAX;
      if (isFree) {
        this.#deliverOffer(room, client);
      } else {
        room.queue[isAtFront ? "unshift" : "push"](client);
        client.flow = "queued";
      }
    }
  }

  /** Serves the queue of a room. @param {Room} room */
  #advance(room) {
    while (room.queue.length > 0) {
      const { offerer } = room;
      if (offerer && !(offerer.offer && offerer.currentHolders === 0)) {
        break;
      }
      const first = /** @type {Client} */ (room.queue.shift());
      if (offerer) {
        this.#deliverOffer(room, first);
      } else {
        room.offerer = first;
        room.hasProgressed = true;
        first.flow = "offerer";
        this.#sendWithServers(first, { type: "offer" });
      }
    }
    this.#updateDeadline(room);
  }

  /** @param {Room} room */
  #updateDeadline(room) {
    if (room.queue.length === 0 || room.hasProgressed) {
      this.world.cancel(room.deadline);
      room.deadline = null;
    }
    room.hasProgressed = false;
    if (room.queue.length > 0) {
      room.deadline ??= this.world.schedule(null, ROOM_TIMEOUT, () => this.#onRoomTimeout(room));
    }
  }

  /** @param {Room} room */
  #onRoomTimeout(room) {
    room.deadline = null;
    const { offerer } = room;
    if (offerer?.offer) {
      this.#deliverOffer(room, /** @type {Client} */ (room.queue.shift()));
    } else if (offerer) {
      room.offerer = null;
      room.queue.push(offerer);
      offerer.flow = "queued";
    }
    this.#advance(room);
  }

  // ---- Offers ----

  /** @param {Room} room @param {Client} client */
  #deliverOffer(room, client) {
    room.hasProgressed = true;
    const offerer = /** @type {Client} */ (room.offerer);
    const offer = /** @type {NonNullable<Client["offer"]>} */ (offerer.offer);
    offer.isDelivered = true;
    client.flow = "holding";
    client.held = { offerer, number: offer.number };
    offerer.holders.add(client);
    this.#sendWithServers(client, { type: "offer", sdp: offer.sdp, target_id: offerer.id });
  }

  /** @param {Client} client */
  #releaseOffer(client) {
    if (client.flow === "holding") {
      client.held?.offerer.holders.delete(client);
      client.held = null;
      client.flow = "idle";
    }
  }

  /** @param {Client} client @param {Client | undefined} target @param {string} sdp */
  #handleOffer(client, target, sdp) {
    const to = target ?? (client.flow === "paired" ? client.partner : null);
    if (!to) {
      return client.flow === "joined" ? TARGET_REQUIRED : this.#publishOffer(client, sdp);
    }
    this.send(to, { type: "offer", sdp, target_id: client.id, id: client.id });
    if (to.held?.offerer === client) {
      this.#releaseOffer(to);
      this.#advance(to.room);
    }
    return undefined;
  }

  /** @param {Client} client @param {string} sdp */
  #publishOffer(client, sdp) {
    const { room } = client;
    if (room.offerer && room.offerer !== client) {
      client.isOfferRejected = true;
      client.candidates = [];
      return new Refusal("not_offerer", "another peer is the offerer");
    }
    this.#releaseOffer(client);
    client.flow = "offerer";
    client.isOfferRejected = false;
    if (client.offer) {
      client.candidates = [];
    }
    client.lastNumber += 1;
    client.offer = { number: client.lastNumber, sdp, isDelivered: false };
    room.offerer = client;
    room.hasProgressed = true;
    this.#advance(room);
    return undefined;
  }

  // ---- Answers ----

  /** @param {Client} client @param {Client | undefined} target @param {string} sdp */
  #handleAnswer(client, target, sdp) {
    const to = target ?? client.held?.offerer ?? client.partner;
    if (!to) {
      return new Refusal("bad_message", "target_id: expected an id");
    }
    if (client.held?.offerer === to && !this.#holdsCurrentOffer(client)) {
      const targetId = target?.id ?? undefined;
      this.#refuse(client, new Refusal("offer_taken", "the offer was answered or replaced"), targetId);
      this.#connect(client);
      return undefined;
    }
    const isPairing = (client.flow === "idle" || client.flow === "holding") && to.offer !== null;
    this.send(to, { type: "answer", sdp, id: client.id });
    if (isPairing) {
      this.#pair(to, client);
    }
    return undefined;
  }

  /** @param {Client} offerer @param {Client} answerer */
  #pair(offerer, answerer) {
    this.#releaseOffer(answerer);
    const { room } = offerer;
    room.offerer = null;
    room.hasProgressed = true;
    offerer.offer = null;
    if (offerer.candidates.length > 0) {
      this.send(answerer, { type: "candidate", candidate: offerer.candidates.join("|"), id: offerer.id });
    }
    for (const [client, partner] of [
      [offerer, answerer],
      [answerer, offerer],
    ]) {
      client.flow = "paired";
      client.partner = partner;
      client.candidates = [];
    }
    this.#advance(room);
  }

  // ---- Candidates ----

  /** @param {Client} client @param {string | undefined} targetId @param {Client | undefined} target
   *  @param {boolean} isKnown @param {string[]} texts */
  #addCandidates(client, targetId, target, isKnown, texts) {
    if (!isKnown) {
      const isEarly = client.flow === "offerer" && !client.offer?.isDelivered && targetId !== client.id;
      return isEarly ? this.#storeCandidates(client, texts) : UNKNOWN_PEER;
    }
    let to = target ?? client.partner;
    if (!to && client.held) {
      if (!this.#holdsCurrentOffer(client)) {
        return undefined;
      }
      to = client.held.offerer;
    }
    if (to) {
      for (const candidate of texts) {
        this.send(to, { type: "candidate", candidate, id: client.id });
      }
      return undefined;
    }
    if (client.flow === "joined") {
      return TARGET_REQUIRED;
    }
    return client.isOfferRejected ? undefined : this.#storeCandidates(client, texts);
  }

  /** @param {Client} client @param {string[]} texts */
  #storeCandidates(client, texts) {
    const all = [...client.candidates, ...texts];
    const bytes = all.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    if (all.length > CANDIDATES_MAX || bytes > CANDIDATES_BYTES_MAX) {
      return new Refusal("too_many", "stored candidates: expected at most 64");
    }
    client.candidates = all;
    return undefined;
  }

  // ---- Leaving ----

  /** @param {Client} client */
  #leaveFlow(client) {
    const { room } = client;
    if (client.flow === "offerer") {
      room.offerer = null;
    } else if (client.flow === "queued") {
      room.queue = room.queue.filter((it) => it !== client);
      room.hasProgressed ||= room.queue.length === 0;
    } else if (client.flow === "holding") {
      this.#releaseOffer(client);
    } else if (client.partner) {
      client.partner.flow = "idle";
      client.partner.partner = null;
      this.send(client.partner, { type: "peerLeft", id: client.id });
      client.partner = null;
    } else if (client.flow === "joined") {
      room.mesh.delete(client);
      for (const other of room.mesh) {
        this.send(other, { type: "peerLeft", id: client.id });
      }
    }
    client.flow = "idle";
    this.#retractOffer(client);
    this.#advance(room);
  }

  /** Everybody who holds an offer of a leaving client connects again, ahead of the queue. @param {Client} client */
  #retractOffer(client) {
    const holders = [...client.holders];
    client.holders.clear();
    client.offer = null;
    client.candidates = [];
    client.isOfferRejected = false;
    for (const holder of holders) {
      holder.flow = "idle";
      holder.held = null;
      this.send(holder, { type: "peerLeft", id: client.id });
    }
    if (client.room.queue.length === 0) {
      this.#deliverOrEnqueue(client.room, holders, false);
    } else {
      this.#deliverOrEnqueue(client.room, holders.reverse(), true);
    }
  }
}

/** @param {string} text @returns {any} */
function parseObject(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
