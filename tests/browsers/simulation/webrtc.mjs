/**
 * RTCPeerConnection in virtual time, as in W3C WebRTC, RFC 8829 (JSEP) and RFC 8445 (ICE), where a signaling library can
 * tell the difference.
 *
 * What is modeled: the operations chain, the signaling states, implicit rollback, the negotiation-needed flag, transceivers
 * and their association with m-sections, remote tracks and streams, SDP as text, ICE generations and candidates, the states
 * of ICE and DTLS, negotiated data channels with buffers. Two connections reach each other only if their current
 * descriptions belong together and a network path exists. No media flows.
 *
 * Every asynchronous step takes a random time. `world.faults.operation` may let an operation fail, and `world.bugs` has the
 * faults of real browsers.
 */

import { currentWorld } from "./clock.mjs";
import { OriginLine, candidateFragment, format, intersect, parse, reverse } from "./sdp.mjs";

/** Milliseconds. Random times are between two of them. */
const OPERATION = /** @type {const} */ ([0.2, 25]);
const GATHERING = /** @type {const} */ ([1, 120]);
const ICE_CHECKS = /** @type {const} */ ([10, 250]);
const DTLS_HANDSHAKE = /** @type {const} */ ([10, 120]);
const SCTP_HANDSHAKE = /** @type {const} */ ([5, 60]);
/** The bytes of a message that fits into one packet. */
const PACKET_BYTES_MAX = 1_200;
/** ICE without a path is `disconnected` after this time, and `failed` after the next one. */
const ICE_DISCONNECTED = /** @type {const} */ ([4_500, 5_500]);
const ICE_FAILED = /** @type {const} */ ([15_000, 22_000]);
/** ICE that never had a path has failed after this time. */
const ICE_NEVER_CONNECTED = /** @type {const} */ ([15_000, 30_000]);

/** Bytes of the largest message of a data channel, and of those that may wait in its buffer. */
const MESSAGE_BYTES_MAX = 262_144;
const BUFFER_BYTES_MAX = 16 << 20;
/** Bytes that a data channel sends in a millisecond. */
const BYTES_PER_MS = 20_000;

/** @type {(name: string, message: string) => DOMException} */
const failure = (name, message) => new DOMException(message, name);

/** Defines the properties `onTYPE` of a class of event targets.
 *  @param {{prototype: EventTarget}} target @param {string[]} types */
export function defineHandlers(target, types) {
  for (const type of types) {
    const key = Symbol(type);
    Object.defineProperty(target.prototype, `on${type}`, {
      get() {
        return this[key]?.handler ?? null;
      },
      set(handler) {
        if (!this[key]) {
          this[key] = { handler: null };
          this.addEventListener(type, (event) => this[key].handler?.call(this, event));
        }
        this[key].handler = handler;
      },
      configurable: true,
    });
  }
}

/** @param {EventTarget} target @param {string} type @param {object} [fields] */
export function dispatch(target, type, fields) {
  const event = new Event(type);
  if (fields) {
    Object.assign(event, fields);
  }
  target.dispatchEvent(event);
}

const randomText = (length) => {
  const { random } = currentWorld();
  let text = "";
  while (text.length < length) {
    text += random.integer().toString(36);
  }
  return text.slice(0, length);
};

// ---- Media ----

export class MediaStreamTrack extends EventTarget {
  readyState = "live";
  muted = false;
  enabled = true;
  label = "";

  /** @param {"audio" | "video"} kind */
  constructor(kind) {
    super();
    this.kind = kind;
    this.id = `track-${randomText(8)}`;
  }

  stop() {
    this.readyState = "ended";
  }

  clone() {
    return new MediaStreamTrack(this.kind);
  }

  getSettings() {
    return {};
  }
}
defineHandlers(MediaStreamTrack, ["mute", "unmute", "ended"]);

export class MediaStream extends EventTarget {
  /** @type {Set<MediaStreamTrack>} */
  #tracks = new Set();

  /** @param {MediaStream | MediaStreamTrack[]} [content] */
  constructor(content = []) {
    super();
    this.id = `stream-${randomText(8)}`;
    const tracks = content instanceof MediaStream ? content.getTracks() : content;
    for (const track of tracks) {
      this.#tracks.add(track);
    }
  }

  get active() {
    return this.getTracks().some((track) => track.readyState === "live");
  }

  getTracks() {
    return [...this.#tracks];
  }

  getAudioTracks() {
    return this.getTracks().filter((track) => track.kind === "audio");
  }

  getVideoTracks() {
    return this.getTracks().filter((track) => track.kind === "video");
  }

  /** @param {string} id */
  getTrackById(id) {
    return this.getTracks().find((track) => track.id === id) ?? null;
  }

  /** @param {MediaStreamTrack} track */
  addTrack(track) {
    this.#tracks.add(track);
  }

  /** @param {MediaStreamTrack} track */
  removeTrack(track) {
    this.#tracks.delete(track);
  }
}
defineHandlers(MediaStream, ["addtrack", "removetrack"]);

class RTCRtpSender {
  /** The ids of the streams of the track. @type {string[]} */
  streamIds = [];

  /** @param {RTCPeerConnection} pc @param {RTCRtpTransceiver} transceiver @param {MediaStreamTrack | null} track */
  constructor(pc, transceiver, track) {
    this.pc = pc;
    this.transceiver = transceiver;
    this.track = track;
    this.id = track?.id ?? `track-${randomText(8)}`;
    this.dtmf = null;
    this.parameters = { encodings: [{}], transactionId: "" };
  }

  /** @param {MediaStreamTrack | null} track */
  replaceTrack(track) {
    if (track && track.kind !== this.transceiver.receiver.track.kind) {
      return Promise.reject(new TypeError("replaceTrack: the track has another kind"));
    }
    return this.pc.chain(async () => {
      if (this.transceiver.isStopping) {
        throw failure("InvalidStateError", "replaceTrack: the transceiver is stopped");
      }
      await this.pc.operationTime("replaceTrack");
      if (this.transceiver.isStopping) {
        throw failure("InvalidStateError", "replaceTrack: the transceiver is stopped");
      }
      this.track = track;
    });
  }

  /** @param {MediaStream[]} streams */
  setStreams(...streams) {
    this.pc.checkOpen();
    this.streamIds = [...new Set(streams.map(({ id }) => id))];
    this.pc.updateNegotiationNeeded();
  }

  getParameters() {
    return structuredClone(this.parameters);
  }

  /** @param {object} parameters */
  async setParameters(parameters) {
    this.parameters = structuredClone(parameters);
  }

  async getStats() {
    return new Map();
  }
}

class RTCRtpReceiver {
  /** @type {MediaStream[]} */
  streams = [];

  /** @param {"audio" | "video"} kind */
  constructor(kind) {
    this.track = new MediaStreamTrack(kind);
    this.track.muted = true;
  }

  async getStats() {
    return new Map();
  }
}

export class RTCRtpTransceiver {
  /** @type {string | null} */
  mid = null;
  /** @type {string | null} */
  currentDirection = null;
  /** Whether `stop` was called, or the remote side has rejected the m-section. */
  isStopping = false;
  isStopped = false;
  /** The direction for which track events were fired. @type {string | null} */
  firedDirection = null;
  wasSending = false;
  #direction;

  /** @param {RTCPeerConnection} pc @param {"audio" | "video"} kind @param {MediaStreamTrack | null} track
   *  @param {string} direction @param {boolean} isOfAddTrack */
  constructor(pc, kind, track, direction, isOfAddTrack) {
    this.pc = pc;
    this.receiver = new RTCRtpReceiver(kind);
    this.sender = new RTCRtpSender(pc, this, track);
    this.#direction = direction;
    this.isOfAddTrack = isOfAddTrack;
  }

  get kind() {
    return this.receiver.track.kind;
  }

  get stopped() {
    return this.isStopped;
  }

  get direction() {
    return this.isStopping ? "stopped" : this.#direction;
  }

  set direction(direction) {
    if (this.isStopping) {
      throw failure("InvalidStateError", "direction: the transceiver is stopped");
    }
    if (direction !== this.#direction) {
      this.#direction = direction;
      this.pc.updateNegotiationNeeded();
    }
  }

  stop() {
    this.pc.checkOpen();
    if (!this.isStopping) {
      this.isStopping = true;
      this.sender.track = null;
      this.receiver.track.readyState = "ended";
      this.pc.updateNegotiationNeeded();
    }
  }

  setCodecPreferences() {}
}

// ---- Data channels ----

export class RTCDataChannel extends EventTarget {
  readyState = "connecting";
  bufferedAmount = 0;
  bufferedAmountLowThreshold = 0;
  binaryType = "arraybuffer";
  /** Messages that are not sent yet. @type {{data: string | Uint8Array, size: number}[]} */
  queue = [];
  isSending = false;
  /** When the last message arrives. */
  lastArrival = 0;

  /** @param {RTCPeerConnection} pc @param {string} label @param {RTCDataChannelInit} init */
  constructor(pc, label, init) {
    super();
    this.pc = pc;
    this.label = label;
    this.ordered = init.ordered ?? true;
    this.maxRetransmits = init.maxRetransmits ?? null;
    this.maxPacketLifeTime = init.maxPacketLifeTime ?? null;
    this.protocol = init.protocol ?? "";
    this.negotiated = init.negotiated ?? false;
    this.id = init.id ?? null;
  }

  get isReliable() {
    return this.maxRetransmits === null && this.maxPacketLifeTime === null;
  }

  /** @param {string | ArrayBuffer | ArrayBufferView} data */
  send(data) {
    if (this.readyState !== "open") {
      throw failure("InvalidStateError", `RTCDataChannel.readyState is ${this.readyState}, not open`);
    }
    const content = typeof data === "string" ? data : copyBytes(data);
    const size = typeof content === "string" ? Buffer.byteLength(content) : content.length;
    if (size > MESSAGE_BYTES_MAX) {
      throw new TypeError(`message of ${size} bytes: at most ${MESSAGE_BYTES_MAX} are possible`);
    }
    if (this.bufferedAmount + size > BUFFER_BYTES_MAX) {
      throw failure("OperationError", "RTCDataChannel send queue is full");
    }
    this.bufferedAmount += size;
    this.queue.push({ data: content, size });
    this.transmit();
  }

  close() {
    if (this.readyState === "closing" || this.readyState === "closed") {
      return;
    }
    this.readyState = "closing";
    const { world, page, mate } = this.pc;
    const other = mate?.channels.get(this.id);
    world.schedule(page, world.random.between(1, 60), () => this.onClosed());
    if (other) {
      // The other side hears of it after the messages that were sent before.
      const time = Math.max(other.lastArrival, world.now) + world.random.between(1, 60);
      world.scheduleAt(mate.page, time, () => other.onClosed());
    }
  }

  /** @param {boolean} [isFailure] */
  onClosed(isFailure = false) {
    if (this.readyState === "closed" || this.pc.isClosed) {
      return;
    }
    this.readyState = "closed";
    this.queue = [];
    this.pc.channels.delete(this.id);
    this.pc.trace(() => `channel ${this.id} closed`);
    if (isFailure && this.pc.page.browser === "chromium") {
      dispatch(this, "error", { error: failure("OperationError", "User-Initiated Abort, reason=Close called") });
    }
    dispatch(this, "close");
  }

  onOpen() {
    if (this.readyState === "connecting" && !this.pc.isClosed) {
      this.readyState = "open";
      this.pc.trace(() => `channel ${this.id} open`);
      dispatch(this, "open");
    }
  }

  /** Sends the next message, unless one is being sent or there is no path. */
  transmit() {
    const { pc } = this;
    const { world, mate } = pc;
    if (this.isSending || this.queue.length === 0 || !mate || pc.isClosed) {
      return;
    }
    if (this.isReliable && !world.network.hasPath(pc.page, mate.page)) {
      // `RTCPeerConnection.onPathChange` continues.
      return;
    }
    this.isSending = true;
    const [{ size }] = this.queue;
    // Sending does not depend on the page, but the page sees the buffer in its tasks.
    world.schedule(pc.page, world.random.between(0, 1) + size / BYTES_PER_MS, () => this.#onTransmitted());
  }

  #onTransmitted() {
    this.isSending = false;
    const { pc } = this;
    const { world, mate } = pc;
    const message = this.queue[0];
    if (pc.isClosed || !message || !mate) {
      return;
    }
    const hasPath = world.network.hasPath(pc.page, mate.page);
    if (!hasPath && this.isReliable) {
      return;
    }
    this.queue.shift();
    const before = this.bufferedAmount;
    this.bufferedAmount -= message.size;
    pc.bytesSent += message.size;
    const isLost = !this.isReliable && (!hasPath || world.random.chance(world.network.lossRate));
    if (!isLost) {
      this.#deliver(message);
    }
    this.transmit();
    if (before > this.bufferedAmountLowThreshold && this.bufferedAmount <= this.bufferedAmountLowThreshold) {
      dispatch(this, "bufferedamountlow");
    }
  }

  /** The connection is being closed. Browsers may have sent small messages that were passed to `send()` just before. */
  onConnectionClosing() {
    const { world, page, mate } = this.pc;
    const isSent = this.readyState === "open" && world.random.chance(world.network.sentBeforeClose);
    if (!isSent || !mate || !world.network.hasPath(page, mate.page)) {
      return;
    }
    for (const message of this.queue) {
      if (message.size > PACKET_BYTES_MAX) {
        return;
      }
      this.#deliver(message);
    }
  }

  /** @param {{data: string | Uint8Array, size: number}} message */
  #deliver({ data, size }) {
    const { world, mate } = this.pc;
    const [min, max] = world.network.peerLatency;
    let arrival = world.now + world.random.between(min, max);
    const receiver = mate.channels.get(this.id);
    if (!receiver) {
      return;
    }
    if (this.ordered) {
      arrival = Math.max(arrival, receiver.lastArrival);
      receiver.lastArrival = arrival;
    }
    world.scheduleAt(mate.page, arrival, () => {
      if (receiver.readyState !== "open" && receiver.readyState !== "connecting") {
        return;
      }
      // Messages may arrive before the task that opens the channel.
      receiver.onOpen();
      mate.bytesReceived += size;
      receiver.#onMessage(data);
    });
  }

  /** @param {string | Uint8Array} data */
  #onMessage(data) {
    if (typeof data === "string") {
      dispatch(this, "message", { data });
    } else if (this.binaryType === "blob") {
      dispatch(this, "message", { data: new Blob([data]) });
    } else {
      dispatch(this, "message", { data: data.buffer });
    }
  }
}
defineHandlers(RTCDataChannel, ["open", "message", "bufferedamountlow", "error", "closing", "close"]);

/** @param {ArrayBuffer | ArrayBufferView} data */
function copyBytes(data) {
  if (data instanceof ArrayBuffer) {
    return new Uint8Array(data.slice(0));
  }
  if (ArrayBuffer.isView(data)) {
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  }
  throw new TypeError("RTCDataChannel.send: expected a string, an ArrayBuffer or a view of one");
}

// ---- The connection ----

/** @typedef {import("./sdp.mjs").Description} Description */

export class RTCPeerConnection extends EventTarget {
  signalingState = "stable";
  iceGatheringState = "new";
  isClosed = false;

  /** The operations chain. @type {{operation: () => Promise<unknown>, resolve: Function, reject: Function}[]} */
  #operations = [];
  #updatesWhenChainIsEmpty = false;
  #isNegotiationNeeded = false;

  /** @type {RTCRtpTransceiver[]} */
  transceivers = [];
  /** The m-sections of the descriptions that are set, in their order.
   *  @type {{kind: string, mid: string, transceiver: RTCRtpTransceiver | null, isRejected: boolean}[]} */
  #sections = [];
  #nextMid = 0;
  /** What a rollback restores. @type {(() => void) | null} */
  #undo = null;

  /** @type {Description | null} */
  currentLocal = null;
  /** @type {Description | null} */
  pendingLocal = null;
  /** @type {Description | null} */
  currentRemote = null;
  /** @type {Description | null} */
  pendingRemote = null;
  /** The last result of `createOffer` and `createAnswer`. @type {Description | null} */
  #lastOffer = null;
  /** @type {Description | null} */
  #lastAnswer = null;

  /** Username fragments that the next offer must replace. @type {Set<string>} */
  #fragmentsToReplace = new Set();
  #hasNewServers = false;
  /** Candidates of this side, by username fragment. @type {Map<string, {text: string}[]>} */
  #localCandidates = new Map();
  /** Candidates of the other side, by username fragment. @type {Map<string, Set<string>>} */
  #remoteCandidates = new Map();
  /** ICE generations that may have a path, the newest one last.
   *  @type {{local: string, remote: string}[]} */
  #generations = [];
  #remoteFingerprint = "";
  ice = "new";
  dtls = "new";
  isAssociated = false;
  /** The other connection, once DTLS is connected. @type {RTCPeerConnection | null} */
  mate = null;
  /** The transition of ICE that is due. @type {import("./clock.mjs").Task | null} */
  #iceTask = null;
  /** Whether that transition leads to `connected`. */
  #isConnecting = false;
  #isDtlsDue = false;
  #isSctpDue = false;
  #lastConnectionState = "new";
  #lastIceState = "new";

  /** @type {Map<number, RTCDataChannel>} */
  channels = new Map();
  /** The streams of the other side by id. @type {Map<string, MediaStream>} */
  #remoteStreams = new Map();
  bytesSent = 0;
  bytesReceived = 0;
  /** Whether Chromium's bug with header extensions has happened. */
  isBroken = false;

  /** @param {RTCConfiguration} [configuration] */
  constructor(configuration = {}) {
    super();
    const world = currentWorld();
    const { page } = world;
    if (!page) {
      throw new Error("an RTCPeerConnection needs a page");
    }
    this.world = world;
    this.page = page;
    checkServers(configuration.iceServers);
    this.configuration = { bundlePolicy: "balanced", iceServers: [], ...configuration };
    world.network.connectionCount += 1;
    this.number = world.network.connectionCount;
    this.origin = OriginLine.random(world.random, page.browser);
    this.fingerprint = randomText(16);
    page.resources.add(this);
    world.network.connections.add(this);
    this.trace(() => "new");
  }

  /** @param {() => string} text */
  trace(text) {
    this.world.trace(this.page.name, () => `pc${this.number} ${text()}`);
  }

  // ---- The operations chain ----

  /** @template T @param {() => Promise<T>} operation @returns {Promise<T>} */
  chain(operation) {
    if (this.isClosed) {
      return Promise.reject(failure("InvalidStateError", "the connection is closed"));
    }
    return new Promise((resolve, reject) => {
      this.#operations.push({ operation, resolve, reject });
      if (this.#operations.length === 1) {
        this.#runOperation();
      }
    });
  }

  #runOperation() {
    const { operation, resolve, reject } = this.#operations[0];
    const settle = (/** @type {Function} */ how) => (/** @type {unknown} */ result) => {
      if (this.isClosed) {
        // W3C WebRTC: the promise is never settled.
        return;
      }
      how(result);
      this.#operations.shift();
      if (this.#operations.length > 0) {
        this.#runOperation();
      } else if (this.#updatesWhenChainIsEmpty) {
        this.#updatesWhenChainIsEmpty = false;
        this.updateNegotiationNeeded();
      }
    };
    operation().then(settle(resolve), settle(reject));
  }

  /** Waits as long as an operation takes, or fails. @param {string} name */
  async operationTime(name) {
    await this.world.delay(this.page, this.world.random.between(...OPERATION));
    const error = this.world.faults.operation?.(this, name);
    if (error) {
      this.trace(() => `${name} fails: ${error.message}`);
      throw error;
    }
  }

  checkOpen() {
    if (this.isClosed) {
      throw failure("InvalidStateError", "the connection is closed");
    }
  }

  // ---- Negotiation needed ----

  updateNegotiationNeeded() {
    if (this.#operations.length > 0) {
      this.#updatesWhenChainIsEmpty = true;
      return;
    }
    this.world.schedule(this.page, 0, () => {
      if (this.isClosed) {
        return;
      }
      if (this.#operations.length > 0) {
        this.#updatesWhenChainIsEmpty = true;
        return;
      }
      if (this.signalingState !== "stable") {
        return;
      }
      if (!this.#needsNegotiation()) {
        this.#isNegotiationNeeded = false;
        return;
      }
      if (!this.#isNegotiationNeeded) {
        this.#isNegotiationNeeded = true;
        this.trace(() => "negotiationneeded");
        dispatch(this, "negotiationneeded");
      }
    });
  }

  #needsNegotiation() {
    if (this.#fragmentsToReplace.size > 0) {
      return true;
    }
    if (this.channels.size > 0 && !this.#sections.some(({ kind }) => kind === "application")) {
      return true;
    }
    return this.transceivers.some((transceiver) => this.#transceiverNeedsNegotiation(transceiver));
  }

  /** @param {RTCRtpTransceiver} transceiver */
  #transceiverNeedsNegotiation(transceiver) {
    if (transceiver.isStopping) {
      // A stopped transceiver is removed from the list.
      return transceiver.mid !== null;
    }
    const index = this.#sections.findIndex((section) => section.transceiver === transceiver);
    const local = this.currentLocal?.sections[index];
    const remote = this.currentRemote?.sections[index];
    if (!local || !remote || !this.currentLocal) {
      return true;
    }
    const { direction, sender } = transceiver;
    if (direction.includes("send")) {
      const streams = local.streamIds ?? [];
      if (streams.length !== sender.streamIds.length || streams.some((id) => !sender.streamIds.includes(id))) {
        return true;
      }
    }
    if (this.currentLocal.type === "offer") {
      return direction !== local.direction && direction !== reverse(remote.direction);
    }
    return local.direction !== intersect(direction, reverse(remote.direction));
  }

  // ---- Descriptions ----

  get localDescription() {
    return this.pendingLocalDescription ?? this.currentLocalDescription;
  }

  get remoteDescription() {
    return this.pendingRemoteDescription ?? this.currentRemoteDescription;
  }

  get currentLocalDescription() {
    return this.#exportLocal(this.currentLocal);
  }

  get pendingLocalDescription() {
    return this.#exportLocal(this.pendingLocal);
  }

  get currentRemoteDescription() {
    return this.#exportRemote(this.currentRemote);
  }

  get pendingRemoteDescription() {
    return this.#exportRemote(this.pendingRemote);
  }

  /** @param {Description | null} description */
  #exportLocal(description) {
    if (!description) {
      return null;
    }
    const candidates = this.#localCandidates.get(description.fragment) ?? [];
    return exportDescription(description, candidates.map(({ text }) => text));
  }

  /** @param {Description | null} description */
  #exportRemote(description) {
    if (!description) {
      return null;
    }
    return exportDescription(description, [...(this.#remoteCandidates.get(description.fragment) ?? [])]);
  }

  createOffer() {
    return this.chain(async () => {
      await this.operationTime("createOffer");
      if (!["stable", "have-local-offer"].includes(this.signalingState)) {
        throw failure("InvalidStateError", `createOffer in ${this.signalingState}`);
      }
      const description = this.#makeOffer();
      return { type: "offer", sdp: format(description, []) };
    });
  }

  createAnswer() {
    return this.chain(async () => {
      await this.operationTime("createAnswer");
      if (this.signalingState !== "have-remote-offer") {
        throw failure("InvalidStateError", `createAnswer in ${this.signalingState}`);
      }
      const description = this.#makeAnswer();
      return { type: "answer", sdp: format(description, []) };
    });
  }

  /** @param {RTCLocalSessionDescriptionInit} [init] */
  setLocalDescription(init) {
    return this.chain(async () => {
      const isOffering = ["stable", "have-local-offer"].includes(this.signalingState);
      const type = init?.type ?? (isOffering ? "offer" : "answer");
      this.trace(() => `setLocalDescription(${type})`);
      await this.operationTime("setLocalDescription");
      if (type === "rollback") {
        this.#rollBack("have-local-offer");
        return;
      }
      this.#checkState(type === "offer" ? ["stable", "have-local-offer"] : ["have-remote-offer"], "local", type);
      const description = this.#localDescriptionToSet(type, init?.sdp);
      // Changes of the page between the creation and the end are for the next negotiation.
      await this.world.delay(this.page, this.world.random.between(...OPERATION));
      this.#checkState(type === "offer" ? ["stable", "have-local-offer"] : ["have-remote-offer"], "local", type);
      if (type === "offer") {
        this.#applyLocalOffer(description);
      } else {
        this.#applyLocalAnswer(description);
      }
    });
  }

  /** @param {string} type @param {string} [sdp] */
  #localDescriptionToSet(type, sdp) {
    if (!sdp) {
      return type === "offer" ? this.#makeOffer() : this.#makeAnswer();
    }
    const last = type === "offer" ? this.#lastOffer : this.#lastAnswer;
    if (!last || format(last, []) !== sdp) {
      throw failure("InvalidModificationError", "the SDP is not the one that was created last");
    }
    return last;
  }

  /** @param {RTCSessionDescriptionInit} init */
  setRemoteDescription(init) {
    const types = ["offer", "answer", "pranswer", "rollback"];
    if (!init || typeof init !== "object" || !types.includes(init.type)) {
      return Promise.reject(new TypeError(`setRemoteDescription: the type ${init?.type} is not valid`));
    }
    const { type } = init;
    const sdp = String(init.sdp ?? "");
    return this.chain(async () => {
      this.trace(() => `setRemoteDescription(${type} ${describeOrigin(sdp)})`);
      await this.operationTime("setRemoteDescription");
      if (type === "rollback") {
        this.#rollBack("have-remote-offer");
        return;
      }
      const description = parse(type, sdp);
      if (!description) {
        throw failure("OperationError", `Failed to parse SessionDescription: ${sdp.slice(0, 60)}`);
      }
      if (type === "answer") {
        this.#checkState(["have-local-offer"], "remote", type);
        this.#checkAnswer(description);
        this.#applyRemoteAnswer(description);
        return;
      }
      if (this.signalingState === "have-local-offer") {
        const isInTwoSteps = this.page.browser === "firefox";
        this.#rollBack("have-local-offer", isInTwoSteps);
        if (isInTwoSteps) {
          await this.world.delay(this.page, this.world.random.between(...OPERATION));
        }
      }
      this.#checkState(["stable", "have-remote-offer"], "remote", type);
      this.#checkOffer(description);
      this.#applyRemoteOffer(description);
    });
  }

  /** @param {string[]} states @param {string} side @param {string} type */
  #checkState(states, side, type) {
    if (!states.includes(this.signalingState)) {
      const message = `Cannot set ${side} ${type} in state ${this.signalingState}`;
      this.trace(() => message);
      throw failure("InvalidStateError", message);
    }
  }

  /** Checks that an answer belongs to our offer. @param {Description} answer */
  #checkAnswer(answer) {
    const offer = /** @type {Description} */ (this.pendingLocal);
    const isSame =
      answer.sections.length === offer.sections.length &&
      answer.sections.every((section, index) => section.mid === offer.sections[index].mid);
    if (!isSame) {
      throw failure("InvalidAccessError", "The order of m-lines in answer doesn't match order in offer");
    }
    const isRestarted = this.currentLocal && this.currentLocal.fragment !== offer.fragment;
    if (this.currentRemote && this.currentRemote.fragment !== answer.fragment && !isRestarted) {
      throw failure("OperationError", "Remote description has ICE restart but offer did not request ICE restart");
    }
  }

  /** Checks that an offer continues what was negotiated. @param {Description} offer */
  #checkOffer(offer) {
    const isContinued = this.#sections.every((section, index) => {
      const offered = offer.sections[index];
      return offered && (section.isRejected || (offered.mid === section.mid && offered.kind === section.kind));
    });
    if (!isContinued) {
      const message = "The order of m-lines in subsequent offer doesn't match order from previous offer/answer";
      throw failure("InvalidAccessError", message);
    }
  }

  /** @param {string} state */
  #setSignalingState(state) {
    const before = this.signalingState;
    this.signalingState = state;
    if (before !== state) {
      dispatch(this, "signalingstatechange");
    }
    if (state === "stable") {
      this.#isNegotiationNeeded = false;
      this.updateNegotiationNeeded();
    }
  }

  // ---- Offers ----

  #makeOffer() {
    if (this.isBroken) {
      throw failure("OperationError", "A BUNDLE group contains a codec collision for header extension id=6");
    }
    const sections = this.#sections.map((section) => this.#offerSection(section));
    for (const transceiver of this.transceivers) {
      if (transceiver.mid !== null || transceiver.isStopping) {
        continue;
      }
      const section = this.#offerSection({
        kind: transceiver.kind,
        mid: this.#newMid(sections),
        transceiver,
        isRejected: false,
      });
      const free = sections.findIndex((other) => other.isRejected && !other.transceiver);
      if (free === -1) {
        sections.push(section);
      } else {
        sections[free] = section;
      }
    }
    if (this.channels.size > 0 && !sections.some(({ kind }) => kind === "application")) {
      sections.push({ kind: "application", mid: this.#newMid(sections), transceiver: null, isRejected: false });
    }
    const { fragment, password } = this.#offeredCredentials();
    this.origin = this.origin.next();
    const { origin, fingerprint } = this;
    this.#lastOffer = { type: "offer", origin, fragment, password, fingerprint, setup: "actpass", sections };
    return this.#lastOffer;
  }

  /** @param {{kind: string, mid: string, transceiver: RTCRtpTransceiver | null, isRejected: boolean}} section */
  #offerSection({ kind, mid, transceiver, isRejected }) {
    if (!transceiver) {
      return { kind, mid, transceiver, isRejected };
    }
    if (transceiver.isStopping) {
      return { kind, mid, transceiver, isRejected: true };
    }
    return this.#mediaSection(mid, transceiver, transceiver.direction);
  }

  /** @param {string} mid @param {RTCRtpTransceiver} transceiver @param {string} direction */
  #mediaSection(mid, transceiver, direction) {
    const { sender, kind } = transceiver;
    // As in Chromium, an answer has the streams even if the offer does not receive them.
    const isSending = transceiver.direction.includes("send");
    const streamIds = isSending ? [...sender.streamIds] : [];
    const trackId = isSending ? sender.id : "";
    return { kind, mid, transceiver, isRejected: false, direction, streamIds, trackId };
  }

  /** @param {{mid: string}[]} sections */
  #newMid(sections) {
    const isUsed = (/** @type {string} */ mid) =>
      sections.some((section) => section.mid === mid) || this.transceivers.some((it) => it.mid === mid);
    while (isUsed(String(this.#nextMid))) {
      this.#nextMid += 1;
    }
    return String(this.#nextMid);
  }

  #offeredCredentials() {
    const isUsable = (/** @type {Description | null} */ description) =>
      description && !this.#fragmentsToReplace.has(description.fragment);
    if (this.#hasNewServers && this.currentLocal) {
      // Chromium gathers again with new servers in the next negotiation, which is an ICE restart.
      this.#hasNewServers = false;
      this.#fragmentsToReplace.add(this.currentLocal.fragment);
    }
    if (this.pendingLocal && isUsable(this.pendingLocal)) {
      return this.pendingLocal;
    }
    if (this.currentLocal && isUsable(this.currentLocal)) {
      return this.currentLocal;
    }
    return newCredentials();
  }

  /** @param {Description} offer */
  #applyLocalOffer(offer) {
    this.#undo ??= this.#snapshot();
    this.pendingLocal = offer;
    this.#sections = offer.sections.map(({ kind, mid, transceiver, isRejected }) => ({
      kind,
      mid,
      transceiver: transceiver ?? null,
      isRejected,
    }));
    for (const { transceiver, mid } of offer.sections) {
      if (transceiver) {
        transceiver.mid = mid;
      }
    }
    this.trace(() => `has local offer ${offer.origin.session}.${offer.origin.version} ${summary(offer)}`);
    this.#setSignalingState("have-local-offer");
    this.#gather(offer);
  }

  /** @param {Description} offer */
  #applyRemoteOffer(offer) {
    this.#undo ??= this.#snapshot();
    this.pendingRemote = offer;
    const events = new TrackEvents();
    offer.sections.forEach((section, index) => this.#associate(section, index, events));
    this.#collectCandidates(offer);
    this.trace(() => `has remote offer ${offer.origin.session}.${offer.origin.version} ${summary(offer)}`);
    this.#setSignalingState("have-remote-offer");
    events.dispatch(this);
  }

  /** Associates a section of a remote offer with a transceiver.
   *  @param {Description["sections"][0]} section @param {number} index @param {TrackEvents} events */
  #associate(section, index, events) {
    const { kind, mid } = section;
    const known = this.#sections[index];
    if (kind === "application") {
      this.#sections[index] = { kind, mid, transceiver: null, isRejected: section.isRejected };
      return;
    }
    let transceiver = known?.mid === mid ? known.transceiver : null;
    if (section.isRejected) {
      if (transceiver) {
        this.#stopRemotely(transceiver, events);
      }
      this.#sections[index] = { kind, mid, transceiver: null, isRejected: true };
      return;
    }
    if (!transceiver && section.direction !== "sendonly" && section.direction !== "inactive") {
      // RFC 8829 section 5.10: what `addTrack` created is used, if the offer can receive it.
      transceiver =
        this.transceivers.find(
          (it) => it.kind === kind && it.isOfAddTrack && it.mid === null && !it.isStopping,
        ) ?? null;
    }
    if (!transceiver) {
      transceiver = new RTCRtpTransceiver(this, /** @type {any} */ (kind), null, "recvonly", false);
      this.transceivers.push(transceiver);
    }
    transceiver.mid = mid;
    this.#sections[index] = { kind, mid, transceiver, isRejected: false };
    this.#setRemoteDirection(transceiver, reverse(section.direction), section, events);
  }

  /** @param {RTCRtpTransceiver} transceiver @param {TrackEvents} events */
  #stopRemotely(transceiver, events) {
    if (transceiver.firedDirection?.includes("recv")) {
      events.remove(transceiver);
    }
    transceiver.isStopping = true;
    transceiver.isStopped = true;
    transceiver.mid = null;
    transceiver.currentDirection = null;
    transceiver.receiver.track.readyState = "ended";
    this.transceivers = this.transceivers.filter((it) => it !== transceiver);
    events.end(transceiver.receiver.track);
  }

  /** Fires the events of a track that the other side sends from now on, or no more.
   *  @param {RTCRtpTransceiver} transceiver @param {string} direction from our point of view
   *  @param {Description["sections"][0]} section @param {TrackEvents} events */
  #setRemoteDirection(transceiver, direction, section, events) {
    const isReceiving = direction.includes("recv");
    const wasReceiving = transceiver.firedDirection?.includes("recv") ?? false;
    if (isReceiving) {
      events.setStreams(this.page, transceiver, section.streamIds ?? []);
      if (!wasReceiving) {
        events.add(transceiver);
      }
    } else if (wasReceiving) {
      events.remove(transceiver);
    }
    transceiver.firedDirection = direction;
  }

  // ---- Answers ----

  #makeAnswer() {
    const offer = /** @type {Description} */ (this.pendingRemote);
    const sections = offer.sections.map((offered, index) => {
      const { kind, mid } = offered;
      const { transceiver } = this.#sections[index];
      if (kind === "application") {
        return { kind, mid, transceiver: null, isRejected: offered.isRejected };
      }
      if (!transceiver || transceiver.isStopping) {
        return { kind, mid, transceiver, isRejected: true };
      }
      const direction = intersect(transceiver.direction, reverse(offered.direction));
      return this.#mediaSection(mid, transceiver, direction);
    });
    const isRestart = this.currentRemote && this.currentRemote.fragment !== offer.fragment;
    const credentials = this.currentLocal && !isRestart ? this.currentLocal : newCredentials();
    const { fragment, password } = credentials;
    this.origin = this.origin.next();
    const { origin, fingerprint } = this;
    this.#lastAnswer = { type: "answer", origin, fragment, password, fingerprint, setup: "active", sections };
    return this.#lastAnswer;
  }

  /** @param {Description} answer */
  #applyLocalAnswer(answer) {
    const offer = /** @type {Description} */ (this.pendingRemote);
    const events = new TrackEvents();
    answer.sections.forEach((section, index) => {
      const { transceiver } = section;
      if (!transceiver) {
        return;
      }
      if (section.isRejected) {
        this.#stopRemotely(transceiver, events);
        this.#sections[index] = { kind: section.kind, mid: section.mid, transceiver: null, isRejected: true };
        return;
      }
      this.#setCurrentDirection(transceiver, section.direction);
      if (!section.direction.includes("recv") && transceiver.firedDirection?.includes("recv")) {
        events.remove(transceiver);
        transceiver.firedDirection = section.direction;
      }
    });
    this.trace(() => `has local answer ${answer.origin.session}.${answer.origin.version} ${summary(answer)}`);
    this.#settleNegotiation(answer, offer);
    this.#setSignalingState("stable");
    events.dispatch(this);
    this.#gather(answer);
  }

  /** @param {Description} answer */
  #applyRemoteAnswer(answer) {
    const offer = /** @type {Description} */ (this.pendingLocal);
    const events = new TrackEvents();
    answer.sections.forEach((section, index) => {
      const { transceiver } = offer.sections[index];
      if (!transceiver) {
        return;
      }
      if (section.isRejected) {
        this.#stopRemotely(transceiver, events);
        this.#sections[index] = { kind: section.kind, mid: section.mid, transceiver: null, isRejected: true };
        return;
      }
      const direction = reverse(section.direction);
      this.#setCurrentDirection(transceiver, direction);
      this.#setRemoteDirection(transceiver, direction, section, events);
    });
    this.#collectCandidates(answer);
    this.trace(() => `has remote answer ${answer.origin.session}.${answer.origin.version} ${summary(answer)}`);
    this.#settleNegotiation(offer, answer);
    this.#setSignalingState("stable");
    events.dispatch(this);
  }

  /** @param {RTCRtpTransceiver} transceiver @param {string} direction */
  #setCurrentDirection(transceiver, direction) {
    transceiver.currentDirection = direction;
    transceiver.wasSending ||= direction.includes("send");
  }

  /** @param {Description} local @param {Description} remote */
  #settleNegotiation(local, remote) {
    this.currentLocal = local;
    this.currentRemote = remote;
    this.pendingLocal = null;
    this.pendingRemote = null;
    this.#lastOffer = null;
    this.#lastAnswer = null;
    this.#undo = null;
    if (!this.#fragmentsToReplace.has(local.fragment)) {
      this.#fragmentsToReplace.clear();
    }
    this.#remoteFingerprint = remote.fingerprint;
    const last = this.#generations.at(-1);
    if (last?.local !== local.fragment || last.remote !== remote.fragment) {
      // A connected path is kept until the new one is there.
      const kept = this.ice === "connected" && last ? [last] : [];
      this.#generations = [...kept, { local: local.fragment, remote: remote.fragment }];
      if (this.ice !== "connected") {
        this.#setIce("checking");
      }
    }
    this.world.network.evaluateAll();
    this.world.network.associateAll();
  }

  // ---- Rollback ----

  #snapshot() {
    const sections = this.#sections;
    const transceivers = this.transceivers.map((transceiver) => ({
      transceiver,
      mid: transceiver.mid,
      firedDirection: transceiver.firedDirection,
    }));
    this.#sections = [...sections];
    return () => {
      this.#sections = sections;
      const kept = transceivers.map(({ transceiver }) => transceiver);
      for (const transceiver of this.transceivers) {
        if (!kept.includes(transceiver)) {
          transceiver.mid = null;
        }
      }
      // What a remote offer created is removed, unless `addTrack` uses it.
      this.transceivers = this.transceivers.filter(
        (transceiver) => kept.includes(transceiver) || transceiver.isOfAddTrack || transceiver.sender.track,
      );
      for (const { transceiver, mid, firedDirection } of transceivers) {
        transceiver.mid = mid;
        transceiver.firedDirection = firedDirection;
      }
    };
  }

  /** @param {"have-local-offer" | "have-remote-offer"} state @param {boolean} [isVisible] whether it becomes stable */
  #rollBack(state, isVisible = true) {
    if (this.signalingState !== state) {
      throw failure("InvalidStateError", `Cannot roll back in state ${this.signalingState}`);
    }
    const isFirst = !this.currentLocal;
    const hasMedia = this.pendingLocal?.sections.some(({ kind }) => kind !== "application");
    if (this.world.bugs.rollbackOfFirstOffer && isFirst && hasMedia && this.page.browser === "chromium") {
      this.isBroken = true;
    }
    this.world.network.rollbackCount += 1;
    if (isFirst && state === "have-local-offer") {
      this.world.network.firstRollbackCount += 1;
    }
    this.pendingLocal = null;
    this.pendingRemote = null;
    this.#undo?.();
    this.#undo = null;
    this.trace(() => "rollback");
    if (isVisible) {
      this.#setSignalingState("stable");
    } else {
      this.signalingState = "stable";
      this.updateNegotiationNeeded();
    }
  }

  // ---- ICE ----

  /** @param {Description} description */
  #gather({ fragment, sections }) {
    if (this.#localCandidates.has(fragment) || sections.length === 0) {
      return;
    }
    const { world, page } = this;
    /** @type {{text: string}[]} */
    const gathered = [];
    this.#localCandidates.set(fragment, gathered);
    world.network.connectionsByFragment.set(fragment, this);
    this.iceGatheringState = "gathering";
    const count = 1 + world.random.below(3);
    const { mid } = sections[0];
    const times = Array.from({ length: count + 1 }, () => world.random.between(...GATHERING)).sort((a, b) => a - b);
    times.forEach((time, index) => {
      world.schedule(page, time, () => {
        const isUsed = [this.currentLocal, this.pendingLocal].some((it) => it?.fragment === fragment);
        if (this.isClosed || !isUsed) {
          return;
        }
        if (index === count) {
          this.iceGatheringState = "complete";
          dispatch(this, "icegatheringstatechange");
          dispatch(this, "icecandidate", { candidate: null });
          return;
        }
        const type = ["host", "srflx", "relay"][index];
        const text = `candidate:${index + 1} 1 udp ${2_122_260_223 - index} 192.0.2.${index + 1} ${50_000 + index} typ ${type} generation 0 ufrag ${fragment}`;
        gathered.push({ text });
        const candidate = new RTCIceCandidate({
          candidate: text,
          sdpMid: mid,
          sdpMLineIndex: 0,
          usernameFragment: fragment,
        });
        dispatch(this, "icecandidate", { candidate });
      });
    });
  }

  /** @param {Description} description */
  #collectCandidates(description) {
    for (const candidate of description.candidates ?? []) {
      this.#addRemoteCandidate(description.fragment, candidate);
    }
  }

  /** @param {string} fragment @param {string} candidate */
  #addRemoteCandidate(fragment, candidate) {
    const candidates = this.#remoteCandidates.get(fragment) ?? new Set();
    candidates.add(candidate);
    this.#remoteCandidates.set(fragment, candidates);
  }

  /** @param {RTCIceCandidateInit | null} [init] */
  addIceCandidate(init) {
    const { candidate = "", sdpMid, sdpMLineIndex, usernameFragment } = init ?? {};
    if (candidate && (sdpMid ?? null) === null && (sdpMLineIndex ?? null) === null) {
      return Promise.reject(new TypeError("addIceCandidate: sdpMid and sdpMLineIndex are missing"));
    }
    return this.chain(async () => {
      if (!this.currentRemote && !this.pendingRemote) {
        throw failure("InvalidStateError", "The remote description was null");
      }
      await this.world.delay(this.page, this.world.random.between(0, 2));
      const descriptions = [this.pendingRemote, this.currentRemote].filter((it) => it !== null);
      if (candidate === "") {
        return;
      }
      const fits = (/** @type {Description} */ { sections }) =>
        (sdpMid ?? null) === null
          ? (sdpMLineIndex ?? 0) < sections.length
          : sections.some(({ mid }) => mid === sdpMid);
      const fragment = usernameFragment ?? candidateFragment(candidate);
      const description = descriptions.find((it) => fits(it) && (!fragment || it.fragment === fragment));
      if (!description || !/^(a=)?candidate:\S+ \d /.test(candidate)) {
        throw failure("OperationError", `Error processing ICE candidate ${candidate.slice(0, 40)}`);
      }
      this.#addRemoteCandidate(description.fragment, candidate);
      this.world.network.evaluateAll();
    });
  }

  restartIce() {
    if (this.isClosed) {
      return;
    }
    this.trace(() => "restartIce");
    this.#fragmentsToReplace.clear();
    for (const description of [this.currentLocal, this.pendingLocal]) {
      if (description) {
        this.#fragmentsToReplace.add(description.fragment);
      }
    }
    this.updateNegotiationNeeded();
  }

  /** Returns the connection whose descriptions mirror ours, if a path to it exists. */
  #findMate() {
    if (this.isClosed || this.ice === "failed") {
      return null;
    }
    for (const { local, remote } of this.#generations) {
      const other = this.world.network.connectionsByFragment.get(remote);
      if (other && this.#mirrors(other, local, remote)) {
        return other;
      }
    }
    return null;
  }

  /** @param {RTCPeerConnection} other @param {string} local @param {string} remote */
  #mirrors(other, local, remote) {
    if (other.isClosed || other === this || other.ice === "failed") {
      return false;
    }
    const isMirrored = other.#generations.some((it) => it.local === remote && it.remote === local);
    const belongsTogether =
      this.#remoteFingerprint === other.fingerprint && other.#remoteFingerprint === this.fingerprint;
    const isFree = (this.mate ?? other) === other && (other.mate ?? this) === this;
    // One side that knows a candidate of the other is enough: the other one learns a peer-reflexive candidate.
    const hasCandidate = this.#remoteCandidates.has(remote) || other.#remoteCandidates.has(local);
    return (
      isMirrored &&
      belongsTogether &&
      isFree &&
      hasCandidate &&
      this.world.network.hasPath(this.page, other.page)
    );
  }

  /** Schedules the transition of ICE that follows from the descriptions and the network. */
  evaluate() {
    if (this.isClosed || this.#generations.length === 0) {
      return;
    }
    if (this.#findMate()) {
      if (this.ice === "connected") {
        this.#scheduleIce(null);
      } else if (!this.#isConnecting) {
        this.#scheduleIce(ICE_CHECKS, () => this.#onIceConnected());
        this.#isConnecting = true;
      }
      return;
    }
    if (this.#isConnecting) {
      this.#scheduleIce(null);
    }
    if (this.#iceTask) {
      return;
    }
    if (this.ice === "connected") {
      this.#scheduleIce(ICE_DISCONNECTED, () => this.#setIce("disconnected"));
    } else if (this.ice === "disconnected") {
      this.#scheduleIce(ICE_FAILED, () => this.#setIce("failed"));
    } else if (this.ice === "checking") {
      this.#scheduleIce(ICE_NEVER_CONNECTED, () => this.#setIce("failed"));
    }
  }

  /** @param {readonly [number, number] | null} time @param {() => void} [action] */
  #scheduleIce(time, action) {
    this.world.cancel(this.#iceTask);
    this.#iceTask = null;
    this.#isConnecting = false;
    if (time && action) {
      this.#iceTask = this.world.schedule(this.page, this.world.random.between(...time), () => {
        this.#iceTask = null;
        this.#isConnecting = false;
        action();
      });
    }
  }

  #onIceConnected() {
    if (this.#findMate()) {
      // Older generations end with the first check of the newest one that both sides have.
      this.#setIce("connected");
      this.world.network.associateAll();
    } else {
      this.evaluate();
    }
  }

  /** @param {string} state */
  #setIce(state) {
    if (this.ice === state || this.isClosed) {
      return;
    }
    this.trace(() => `ICE ${state}`);
    this.ice = state;
    if (state === "checking" || state === "failed") {
      this.#scheduleIce(null);
    }
    this.#dispatchStates();
    this.evaluate();
    if (state === "failed") {
      this.world.network.evaluateAll();
    }
  }

  get iceConnectionState() {
    return this.isClosed ? "closed" : this.ice;
  }

  get connectionState() {
    if (this.isClosed) {
      return "closed";
    }
    if (this.ice === "failed" || this.dtls === "failed") {
      return "failed";
    }
    if (this.ice === "disconnected" || this.ice === "new") {
      return this.ice;
    }
    return this.ice === "connected" && this.dtls === "connected" ? "connected" : "connecting";
  }

  #dispatchStates() {
    if (this.ice !== this.#lastIceState) {
      this.#lastIceState = this.ice;
      dispatch(this, "iceconnectionstatechange");
    }
    const { connectionState } = this;
    if (connectionState !== this.#lastConnectionState && !this.isClosed) {
      this.#lastConnectionState = connectionState;
      this.trace(() => `connection ${connectionState}`);
      dispatch(this, "connectionstatechange");
    }
  }

  // ---- DTLS and SCTP ----

  /** Begins the handshakes of DTLS and SCTP with the other side, when both are ready. */
  associate() {
    const { world } = this;
    const other = this.mate ?? (this.ice === "connected" ? this.#findMate() : null);
    if (!other || this.isClosed || other.isClosed) {
      return;
    }
    if (this.dtls === "new" && other.ice === "connected" && !this.#isDtlsDue) {
      this.#isDtlsDue = true;
      world.schedule(this.page, world.random.between(...DTLS_HANDSHAKE), () => this.#onDtls(other));
    }
    const isReady = (/** @type {RTCPeerConnection} */ pc) =>
      pc.dtls === "connected" && pc.hasChannelSection && !pc.isAssociated;
    if (isReady(this) && (isReady(other) || other.isAssociated) && !this.#isSctpDue) {
      this.#isSctpDue = true;
      world.schedule(this.page, world.random.between(...SCTP_HANDSHAKE), () => this.#onSctp());
    }
  }

  get hasChannelSection() {
    return this.currentLocal?.sections.some(({ kind, isRejected }) => kind === "application" && !isRejected);
  }

  /** @param {RTCPeerConnection} other */
  #onDtls(other) {
    if (this.isClosed || this.dtls !== "new") {
      return;
    }
    if (this.world.faults.dtls?.(this)) {
      this.dtls = "failed";
      this.world.schedule(other.page, this.world.random.between(...DTLS_HANDSHAKE), () => other.failDtls());
    } else {
      this.dtls = "connected";
      this.mate = other;
    }
    this.trace(() => `DTLS ${this.dtls}`);
    this.#dispatchStates();
    this.world.network.associateAll();
  }

  #onSctp() {
    if (this.isClosed || this.isAssociated) {
      return;
    }
    this.isAssociated = true;
    this.trace(() => "SCTP connected");
    for (const channel of [...this.channels.values()]) {
      channel.onOpen();
    }
    for (const channel of this.mate?.channels.values() ?? []) {
      channel.transmit();
    }
    this.world.network.associateAll();
  }

  /** Ends DTLS for good, as a failed handshake does. */
  failDtls() {
    if (this.isClosed) {
      return;
    }
    this.dtls = "failed";
    this.#dispatchStates();
  }

  /** The path to the other side is there, or not. */
  onPathChange() {
    this.evaluate();
    for (const channel of this.channels.values()) {
      channel.transmit();
    }
  }

  /** The other side was closed, and has said so. */
  onMateClosed() {
    if (this.isClosed) {
      return;
    }
    this.trace(() => "the other side is closed");
    for (const channel of [...this.channels.values()]) {
      channel.onClosed(true);
    }
  }

  // ---- Tracks ----

  getTransceivers() {
    return [...this.transceivers];
  }

  getSenders() {
    return this.transceivers.map(({ sender }) => sender);
  }

  getReceivers() {
    return this.transceivers.map(({ receiver }) => receiver);
  }

  /** @param {MediaStreamTrack} track @param {MediaStream[]} streams */
  addTrack(track, ...streams) {
    this.checkOpen();
    if (this.transceivers.some(({ sender }) => sender.track === track)) {
      throw failure("InvalidAccessError", "a sender of the connection has this track already");
    }
    const streamIds = [...new Set(streams.map(({ id }) => id))];
    let transceiver = this.transceivers.find(
      (it) => !it.sender.track && it.kind === track.kind && !it.isStopping && !it.wasSending,
    );
    if (transceiver) {
      transceiver.sender.track = track;
      transceiver.sender.id = track.id;
      transceiver.isOfAddTrack = true;
      if (transceiver.direction === "recvonly") {
        transceiver.direction = "sendrecv";
      } else if (transceiver.direction === "inactive") {
        transceiver.direction = "sendonly";
      }
    } else {
      transceiver = new RTCRtpTransceiver(this, track.kind, track, "sendrecv", true);
      this.transceivers.push(transceiver);
    }
    transceiver.sender.streamIds = streamIds;
    this.trace(() => `addTrack ${track.kind} ${track.id}`);
    this.updateNegotiationNeeded();
    return transceiver.sender;
  }

  /** @param {RTCRtpSender} sender */
  removeTrack(sender) {
    this.checkOpen();
    if (sender.pc !== this) {
      throw failure("InvalidAccessError", "the sender belongs to another connection");
    }
    const { transceiver } = sender;
    if (!this.transceivers.includes(transceiver) || !sender.track) {
      return;
    }
    this.trace(() => `removeTrack ${sender.track?.id}`);
    sender.track = null;
    if (transceiver.direction === "sendrecv") {
      transceiver.direction = "recvonly";
    } else if (transceiver.direction === "sendonly") {
      transceiver.direction = "inactive";
    }
    this.updateNegotiationNeeded();
  }

  /** @param {MediaStreamTrack | "audio" | "video"} trackOrKind
   *  @param {{direction?: string, streams?: MediaStream[]}} [init] */
  addTransceiver(trackOrKind, { direction = "sendrecv", streams = [] } = {}) {
    this.checkOpen();
    const track = typeof trackOrKind === "string" ? null : trackOrKind;
    const kind = track?.kind ?? trackOrKind;
    if (kind !== "audio" && kind !== "video") {
      throw new TypeError(`addTransceiver: the kind ${kind} is not valid`);
    }
    const transceiver = new RTCRtpTransceiver(this, kind, track, direction, false);
    transceiver.sender.streamIds = [...new Set(streams.map(({ id }) => id))];
    this.transceivers.push(transceiver);
    this.trace(() => `addTransceiver ${kind} ${track?.id ?? ""}`);
    this.updateNegotiationNeeded();
    return transceiver;
  }

  /** @param {string} id */
  remoteStream(id) {
    let stream = this.#remoteStreams.get(id);
    if (!stream) {
      stream = new MediaStream();
      stream.id = id;
      this.#remoteStreams.set(id, stream);
    }
    return stream;
  }

  // ---- The rest ----

  get sctp() {
    if (!this.hasChannelSection) {
      return null;
    }
    return { maxMessageSize: MESSAGE_BYTES_MAX, state: this.isAssociated ? "connected" : "connecting" };
  }

  /** @param {string} label @param {RTCDataChannelInit} [init] */
  createDataChannel(label, init = {}) {
    this.checkOpen();
    if (!init.negotiated || init.id === undefined) {
      throw new TypeError("the simulation has only negotiated channels");
    }
    if (this.channels.has(init.id)) {
      throw failure("OperationError", `the id ${init.id} is used`);
    }
    const channel = new RTCDataChannel(this, label, init);
    this.channels.set(init.id, channel);
    if (this.isAssociated) {
      this.world.schedule(this.page, 0, () => channel.onOpen());
    }
    this.updateNegotiationNeeded();
    return channel;
  }

  getConfiguration() {
    return structuredClone(this.configuration);
  }

  /** @param {RTCConfiguration} configuration */
  setConfiguration(configuration) {
    this.checkOpen();
    const bundlePolicy = configuration.bundlePolicy ?? "balanced";
    if (bundlePolicy !== this.configuration.bundlePolicy) {
      throw failure("InvalidModificationError", "bundlePolicy cannot be changed");
    }
    checkServers(configuration.iceServers);
    const { iceServers = [] } = configuration;
    if (JSON.stringify(iceServers) !== JSON.stringify(this.configuration.iceServers)) {
      this.#hasNewServers = this.page.browser === "chromium";
    }
    this.configuration = { ...this.configuration, ...configuration, iceServers };
  }

  async getStats() {
    await this.world.delay(this.page, this.world.random.between(0, 5));
    /** @type {Map<string, object>} */
    const report = new Map();
    const isConnected = this.mate && this.ice === "connected";
    const { bytesSent, bytesReceived } = this;
    report.set("T", {
      id: "T",
      type: "transport",
      bytesSent,
      bytesReceived,
      dtlsState: this.dtls,
      ...(isConnected && { selectedCandidatePairId: "P" }),
    });
    if (isConnected) {
      const candidateType = this.configuration.iceTransportPolicy === "relay" ? "relay" : "host";
      report.set("P", {
        id: "P",
        type: "candidate-pair",
        state: "succeeded",
        nominated: true,
        selected: true,
        localCandidateId: "L",
        remoteCandidateId: "R",
        currentRoundTripTime: 0.02,
        bytesSent,
        bytesReceived,
      });
      const candidate = { candidateType, protocol: "udp", address: "192.0.2.1", port: 50_000 };
      report.set("L", { id: "L", type: "local-candidate", ...candidate });
      report.set("R", { id: "R", type: "remote-candidate", ...candidate });
    }
    return report;
  }

  close() {
    this.#end(true);
  }

  /** @param {boolean} isAbrupt */
  onPageClose(isAbrupt) {
    this.#end(!isAbrupt);
  }

  /** @param {boolean} isTold whether the other side is told */
  #end(isTold) {
    if (this.isClosed) {
      return;
    }
    this.trace(() => "close");
    const { world, page, mate } = this;
    if (isTold) {
      for (const channel of this.channels.values()) {
        channel.onConnectionClosing();
      }
    }
    this.isClosed = true;
    this.signalingState = "closed";
    page.resources.delete(this);
    world.network.connections.delete(this);
    world.cancel(this.#iceTask);
    for (const transceiver of this.transceivers) {
      transceiver.isStopping = true;
      transceiver.isStopped = true;
      transceiver.currentDirection = null;
      transceiver.receiver.track.readyState = "ended";
    }
    for (const channel of this.channels.values()) {
      channel.readyState = "closed";
    }
    if (mate && isTold && world.network.hasPath(page, mate.page)) {
      const [min, max] = world.network.peerLatency;
      const lastArrival = Math.max(0, ...[...mate.channels.values()].map((channel) => channel.lastArrival));
      const time = Math.max(lastArrival, world.now) + world.random.between(min, max);
      world.scheduleAt(mate.page, time, () => mate.onMateClosed());
    }
    world.network.evaluateAll();
  }
}
defineHandlers(RTCPeerConnection, [
  "negotiationneeded",
  "icecandidate",
  "icecandidateerror",
  "icegatheringstatechange",
  "iceconnectionstatechange",
  "connectionstatechange",
  "signalingstatechange",
  "track",
  "datachannel",
]);

export class RTCIceCandidate {
  /** @param {RTCIceCandidateInit} init */
  constructor({ candidate = "", sdpMid = null, sdpMLineIndex = null, usernameFragment = null }) {
    this.candidate = candidate;
    this.sdpMid = sdpMid;
    this.sdpMLineIndex = sdpMLineIndex;
    this.usernameFragment = usernameFragment;
  }

  toJSON() {
    const { candidate, sdpMid, sdpMLineIndex, usernameFragment } = this;
    return { candidate, sdpMid, sdpMLineIndex, usernameFragment };
  }
}

export class RTCSessionDescription {
  /** @param {{type: RTCSdpType, sdp?: string}} init */
  constructor({ type, sdp = "" }) {
    this.type = type;
    this.sdp = sdp;
  }

  toJSON() {
    const { type, sdp } = this;
    return { type, sdp };
  }
}

/** The events of a description, which are fired when it is set completely. */
class TrackEvents {
  /** @type {(() => void)[]} */
  #removals = [];
  /** @type {RTCRtpTransceiver[]} */
  #additions = [];

  /** @param {import("./clock.mjs").Page} page @param {RTCRtpTransceiver} transceiver @param {string[]} streamIds */
  setStreams(page, { pc, receiver }, streamIds) {
    const streams = streamIds.map((id) => pc.remoteStream(id));
    for (const stream of receiver.streams) {
      if (!streams.includes(stream)) {
        this.#removeFromStream(stream, receiver.track);
      }
    }
    for (const stream of streams) {
      stream.addTrack(receiver.track);
    }
    receiver.streams = streams;
  }

  /** @param {MediaStream} stream @param {MediaStreamTrack} track */
  #removeFromStream(stream, track) {
    stream.removeTrack(track);
    this.#removals.push(() => dispatch(stream, "removetrack", { track }));
  }

  /** @param {RTCRtpTransceiver} transceiver */
  add(transceiver) {
    this.#additions.push(transceiver);
  }

  /** @param {RTCRtpTransceiver} transceiver */
  remove({ receiver }) {
    const { track } = receiver;
    for (const stream of receiver.streams) {
      this.#removeFromStream(stream, track);
    }
    receiver.streams = [];
    track.muted = true;
    this.#removals.push(() => dispatch(track, "mute"));
  }

  /** @param {MediaStreamTrack} track */
  end(track) {
    this.#removals.push(() => dispatch(track, "ended"));
  }

  /** @param {RTCPeerConnection} pc */
  dispatch(pc) {
    for (const removal of this.#removals) {
      removal();
    }
    for (const transceiver of this.#additions) {
      const { receiver } = transceiver;
      const { track } = receiver;
      pc.trace(() => `track ${track.kind} mid=${transceiver.mid}`);
      dispatch(pc, "track", { track, receiver, transceiver, streams: [...receiver.streams] });
      pc.world.schedule(pc.page, pc.world.random.between(5, 80), () => {
        if (transceiver.firedDirection?.includes("recv") && track.muted && !pc.isClosed) {
          track.muted = false;
          dispatch(track, "unmute");
        }
      });
    }
  }
}

const newCredentials = () => ({ fragment: randomText(4) + randomText(4), password: randomText(24) });

/** @param {Description} description @param {string[]} candidates */
function exportDescription(description, candidates) {
  // Descriptions are read more often than they change.
  if (description.exported?.count !== candidates.length) {
    const sdp = format(description, candidates);
    const exported = new RTCSessionDescription({ type: /** @type {any} */ (description.type), sdp });
    description.exported = { count: candidates.length, exported };
  }
  return description.exported.exported;
}

/** @param {string} sdp */
const describeOrigin = (sdp) => /^o=\S+ (\S+ \S+)/m.exec(sdp)?.[1].replace(" ", ".") ?? "?";

/** @param {Description} description */
const summary = ({ sections }) =>
  sections
    .map(({ kind, mid, direction, isRejected }) => `${mid}:${isRejected ? "rejected" : (direction ?? kind)}`)
    .join(" ");

/** @param {RTCIceServer[]} [servers] */
function checkServers(servers = []) {
  for (const { urls } of servers) {
    for (const url of [urls].flat()) {
      if (!/^(stun|stuns|turn|turns):/.test(url)) {
        throw failure("SyntaxError", `the URL ${url} of an ICE server is not valid`);
      }
    }
  }
}
