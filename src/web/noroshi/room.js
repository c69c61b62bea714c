/// <reference lib="esnext.disposable" preserve="true" />
/**
 * A room: its peers, and the events of the application.
 *
 *     Signaling (the server) ──► Room ──► PeerSession, one for each peer ──► Connection, Transfer, Senders
 */

import { NoroshiError } from "./errors.js";
import { BufferedEventTarget } from "./events.js";
import { connectionId, randomId } from "./identity.js";
import { Shares } from "./media.js";
import { Peer } from "./peer.js";
import { DATA_LENGTH_MAX, PeerSession } from "./peer_session.js";
import { parseJson, splitCandidates } from "./sdp.js";
import { Signaling, pauseBefore } from "./signaling.js";
import { RECEIVE_BYTES_MAX } from "./transfer.js";

// All times are in milliseconds.

/** The default of `timeout`. */
const ENTERING_MAX = 20_000;
/** The interval of new TURN credentials. Those of the server last 12 h. */
const CREDENTIALS_INTERVAL = 3_600_000;
/** The pause after `rate_limited`: the server refills the rate limit of a silent peer within 2 s. */
const RATE_LIMITED_PAUSE = 2_500;
/** In a pair, the library leaves a partner that is not connected for so long, and asks for another one. */
const PARTNER_GIVE_UP = 30_000;
/** The same for a partner that the server does not see either. Browsers report a lost connection after about 5 s. */
const AWAY_PARTNER_GIVE_UP = 3_000;
/** Attempts to return to an id, or to a place in the room, that the server may still hold for the old connection. */
const RETURNS_MAX = 5;
/** The time after which a connected peer that the server does not see is looked for at another server. */
const SEARCH_DELAY = 5_000;

/**
 * @typedef {import("./errors.js").ErrorCode} ErrorCode
 * @typedef {import("./peer.js").Json} Json
 * @typedef {import("./peer.js").Data} Data
 * @typedef {import("./share.js").Share} Share
 */

/**
 * Why a peer is disconnected: it has left, its connection was lost, or another page has its id now.
 *
 * @typedef {"left" | "lost" | "replaced"} LeftReason
 */

/**
 * The options of `join` and `connect`, besides the fields of RTCConfiguration.
 *
 * @typedef {object} RoomOptions
 * @property {string} [id] 1 to 128 bytes of UTF-8; a random one if missing
 * @property {string | (() => string | Promise<string>)} [token] if the server requires one. A function is called before
 *   each attempt to connect, so that it can return a fresh token after hours
 * @property {Json} [data] metadata of the local peer (user info, presence): `peer.data` at the others. At most 16 KiB of JSON
 * @property {AbortSignal} [signal] leaves the room when it is aborted, also before the room is entered
 * @property {number} [timeout] milliseconds until entering fails with `unreachable`; 20000 if missing
 * @property {number} [receiveBytesMax] the largest message that is accepted from a peer, and the largest sum
 *   of the messages that it sends with `write` at the same time; 256 MiB if missing
 * @property {new (configuration?: any) => any} [RTCPeerConnection] an implementation, where there is no global one
 * @property {new (url: string) => any} [WebSocket] an implementation, where there is no global one
 */

/**
 * @typedef {RTCConfiguration & RoomOptions} Options
 */

/**
 * The fields of each type of event.
 *
 * @typedef {{
 *   peer: { peer: Peer },
 *   open: { peer: Peer },
 *   message: { peer: Peer, data: any, reliable: boolean },
 *   progress: { peer: Peer, received: number, size: number, name?: string },
 *   track: { peer: Peer, track: MediaStreamTrack, streams: readonly MediaStream[], name: string | undefined },
 *   data: { peer: Peer, data: any },
 *   state: { peer: Peer },
 *   reconnecting: { peer: Peer },
 *   left: { peer: Peer, reason: LeftReason },
 *   offline: { code: number, retryIn: number },
 *   online: {},
 *   closed: { code: ErrorCode, message: string },
 *   error: { error: NoroshiError, peer?: Peer },
 * }} RoomEvents
 */

/**
 * @typedef {"entering" | "online" | "offline" | "closed"} RoomState
 */

/** Older browsers have no such symbol. @type {typeof Symbol.asyncDispose} */
const asyncDispose = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");

/**
 * A room that was entered, with the other peers in it. `join` and `connect` return it.
 *
 * @extends {BufferedEventTarget<RoomEvents>}
 */
export class Room extends BufferedEventTarget {
  #id;
  #url;
  /** @type {"join" | "connect"} */
  #flow;
  /** @type {RoomState} */
  #state = "entering";
  /** The ICE servers of the application. @type {RTCIceServer[]} */
  #iceServers;
  /** The configuration of each connection, with the ICE servers of the server. @type {RTCConfiguration} */
  #configuration;
  /** @type {typeof globalThis.RTCPeerConnection} */
  #RTCPeerConnection;
  #receiveBytesMax;
  /** @type {Json | undefined} */
  #data;
  /** @type {Signaling} */
  #signaling;
  /** Named peers. @type {Map<string, PeerSession>} */
  #sessions = new Map();
  /** The same for the application. @type {Map<string, Peer>} */
  #peers = new Map();
  /** In a pair: the peer that will answer the local offer. @type {PeerSession | undefined} */
  #unnamed;
  #shares = new Shares();
  /** The random name of this Room in the ids of its connections. */
  #instance = randomId();
  #connections = 0;
  #wasEntered = false;
  /** Whether the server has refused the registration on this WebSocket. */
  #isRefused = false;
  /** Refusals of the id, or of the place in the room, since the room was last online. */
  #returns = 0;
  /** Whether another server was looked for since the server last saw a peer come or go. */
  #hasSearched = false;
  /** @type {{ resolve: (room: Room) => void, reject: (reason: unknown) => void }} */
  #entering;
  /** @type {(end: { code: ErrorCode, message: string }) => void} */
  #resolveClosed;
  /** @type {any} */
  #enteringTimer;
  /** @type {any} */
  #credentialsTimer;
  /** @type {any} */
  #searchTimer;
  /** @type {any} */
  #rateLimitTimer;
  /** @type {AbortSignal | undefined} */
  #signal;
  #onAbort = () => this.#abort();

  /**
   * Resolves when the room is closed: after `leave()` with the code `left`, else with the code of the error.
   *
   * @readonly
   * @type {Promise<{ code: ErrorCode, message: string }>}
   */
  closed;

  /**
   * Resolves when the room is entered. The functions `join` and `connect` return it.
   *
   * @type {Promise<Room>}
   * @internal
   */
  entered;

  /**
   * @param {string | URL} url
   * @param {"join" | "connect"} flow
   * @param {Options} options
   * @internal
   */
  constructor(url, flow, options) {
    super();
    const { id, token, data, signal, timeout, receiveBytesMax, RTCPeerConnection, WebSocket, ...configuration } =
      options;
    this.#id = id ?? randomId();
    this.#url = webSocketUrl(url);
    this.#flow = flow;
    this.#data = data;
    assertData(data);
    this.#receiveBytesMax = receiveBytesMax ?? RECEIVE_BYTES_MAX;
    this.#iceServers = configuration.iceServers ?? [];
    this.#configuration = { bundlePolicy: "max-bundle", ...configuration, iceServers: this.#iceServers };
    this.#RTCPeerConnection = /** @type {typeof globalThis.RTCPeerConnection} */ (
      RTCPeerConnection ?? globalThis.RTCPeerConnection
    );
    const WebSocketClass = /** @type {typeof globalThis.WebSocket} */ (WebSocket ?? globalThis.WebSocket);
    if (!this.#RTCPeerConnection || !WebSocketClass) {
      throw new TypeError("there is no RTCPeerConnection or WebSocket here: pass implementations in the options");
    }
    // Throws now if the configuration is invalid, and not when a peer joins.
    new this.#RTCPeerConnection(this.#configuration).close();
    this.#signal = signal;
    this.#entering = /** @type {any} */ (undefined);
    this.#resolveClosed = /** @type {any} */ (undefined);
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.entered = new Promise((resolve, reject) => {
      this.#entering = { resolve, reject };
    });
    this.#signaling = new Signaling({
      url: this.#url,
      token,
      WebSocket: WebSocketClass,
      events: {
        onOpen: () => this.#register(),
        onMessage: (message) => this.#onMessage(message),
        onLost: (loss) => this.#onOffline(loss),
        onRefused: (error) => this.#close(error.code, error.message, error),
        onTooBig: (size, context) => this.#onTooBig(size, context),
        onPageHidden: () => this.leave(),
        onPageCached: () => this.#dropAll(),
      },
    });
    if (signal?.aborted) {
      this.#abort();
      return;
    }
    signal?.addEventListener("abort", this.#onAbort);
    const enteringTime = timeout ?? ENTERING_MAX;
    this.#enteringTimer = setTimeout(() => this.#onEnteringTimeout(enteringTime), enteringTime);
    this.#signaling.start();
  }

  // ---- The application ----

  /** The id of the local peer. @type {string} */
  get id() {
    return this.#id;
  }

  /** The WebSocket URL of the room. @type {string} */
  get url() {
    return this.#url;
  }

  /**
   * - `entering`
   * - `online`: connected to the server
   * - `offline`: the library reconnects to the server; connected peers stay connected
   * - `closed`: left, or closed after an error
   *
   * @type {RoomState}
   */
  get state() {
    return this.#state;
  }

  /** Whether there is a connection to the server. @type {boolean} */
  get online() {
    return this.#state === "online";
  }

  /** The other peers by id. @type {ReadonlyMap<string, Peer>} */
  get peers() {
    return this.#peers;
  }

  /** The metadata that the others get as `peer.data`. @type {Json | undefined} */
  get data() {
    return this.#data;
  }

  /**
   * Sends one message to every peer, or to some. A failure is an `error` event with that peer.
   *
   * @param {Data} data as for `peer.send`
   * @param {{ to?: Peer | Iterable<Peer> }} [options]
   * @returns {Peer[]} the peers that it was sent to: those whose channel is open
   */
  send(data, { to } = {}) {
    const reached = [];
    for (const peer of receivers(to) ?? this.#peers.values()) {
      if (!peer.alive) {
        continue;
      }
      try {
        peer.send(data);
        reached.push(peer);
      } catch (error) {
        this.#emit("error", { peer, error });
      }
    }
    return reached;
  }

  /**
   * Sends media to every peer that is or will be in the room, or to some peers, until `stop()` of the result.
   *
   * @param {MediaStream | MediaStreamTrack} source
   * @param {{ to?: Peer | Iterable<Peer>, name?: string }} [options] the peers get `name` with each track, for example
   *   `"screen"`
   * @returns {Share}
   */
  share(source, { to, name } = {}) {
    return this.#shares.add(
      source,
      { receivers: receivers(to), name },
      {
        onChanged: () => this.#forEachSession((session) => session.updateMedia()),
        onReplaced: (sharedTrack) => this.#forEachSession((session) => session.replaceTrack(sharedTrack)),
      },
    );
  }

  /**
   * Replaces the metadata that the others get as `peer.data`.
   *
   * @param {Json} data
   */
  setData(data) {
    assertData(data);
    this.#data = data;
    this.#forEachSession((session) => session.connection.sendControl({ type: "data", data }));
  }

  /**
   * Returns all messages, as an alternative to listening to `message`. It ends when the room is closed.
   *
   * @param {{ signal?: AbortSignal }} [options] the iteration ends when the signal is aborted
   * @returns {AsyncGenerator<{ peer: Peer, data: any, reliable: boolean }, void, undefined>}
   */
  async *messages({ signal } = {}) {
    /** @type {{ peer: Peer, data: any, reliable: boolean }[]} */
    const queue = [];
    let isOver = this.#state === "closed";
    let wake = () => {};
    const onMessage = (/** @type {RoomEvents["message"]} */ { peer, data, reliable }) => {
      queue.push({ peer, data, reliable });
      wake();
    };
    const onEnd = () => {
      isOver = true;
      wake();
    };
    this.addEventListener("message", onMessage);
    this.closed.then(onEnd);
    signal?.addEventListener("abort", onEnd);
    try {
      while (!signal?.aborted) {
        const next = queue.shift();
        if (next) {
          yield next;
        } else if (isOver) {
          return;
        } else {
          await new Promise((resolve) => {
            wake = () => resolve(undefined);
          });
        }
      }
    } finally {
      this.removeEventListener("message", onMessage);
      signal?.removeEventListener("abort", onEnd);
    }
  }

  /** Leaves the room: closes every connection, at any time. */
  leave() {
    this.#close("left", "the room was left");
    for (const session of this.#allSessions()) {
      this.#remove(session);
    }
    this.#shares.clear();
  }

  /** Leaves the room at the end of a block: `await using room = await join(…)`. */
  async [asyncDispose]() {
    this.leave();
  }

  #abort() {
    this.#close("left", "the signal was aborted", this.#signal?.reason ?? new DOMException("aborted", "AbortError"));
    this.leave();
  }

  /**
   * Closes the room, and the connection to the server. After an error, connected peers stay connected until `leave()`.
   *
   * @param {ErrorCode} code
   * @param {string} message
   * @param {unknown} [error]
   */
  #close(code, message, error) {
    if (this.#state === "closed") {
      return;
    }
    const wasEntered = this.#wasEntered;
    this.#state = "closed";
    this.#signal?.removeEventListener("abort", this.#onAbort);
    clearTimeout(this.#enteringTimer);
    clearTimeout(this.#searchTimer);
    clearTimeout(this.#rateLimitTimer);
    clearInterval(this.#credentialsTimer);
    this.#signaling.close();
    if (code !== "left") {
      this.#forEachSession((session) => this.#setPresent(session, false));
    }
    this.#entering.reject(error ?? new NoroshiError("left", "the room was left before it was entered"));
    // A rejection that nobody waits for is not an error.
    this.entered.catch(() => {});
    this.#resolveClosed({ code, message });
    if (wasEntered && code !== "left") {
      this.#emit("error", { error });
    }
    this.#emit("closed", { code, message });
  }

  /** @param {number} timeout */
  #onEnteringTimeout(timeout) {
    if (!this.#wasEntered) {
      const text = `${this.#url} did not let us in within ${timeout} ms`;
      this.#close("unreachable", text, new NoroshiError("unreachable", text));
    }
  }

  // ---- The server ----

  /** @param {object} message @param {PeerSession} [session] */
  #send(message, session) {
    return this.#signaling.send({ id: this.#id, ...message }, session);
  }

  /** Registers the id on a new WebSocket. */
  #register() {
    this.#isRefused = false;
    if (this.#flow === "join") {
      this.#send({ type: "join" });
      return;
    }
    // A peer that has a partner asks for no other, but must be addressable: any message registers the id, and the answer
    // to the second one tells that it was accepted.
    this.#send({ type: "leave" });
    this.#requestCredentials();
  }

  #requestCredentials() {
    if (this.#flow === "join") {
      this.#send({ type: "join" });
    } else {
      this.#send({ type: "ping", iceServers: true });
    }
  }

  /** @param {any} message */
  #onMessage(message) {
    if (Array.isArray(message.iceServers)) {
      this.#setIceServers(message.iceServers);
    }
    switch (message.type) {
      case "joined":
        this.#onEntered(Array.isArray(message.peers) ? message.peers : []);
        break;
      case "pong":
        this.#onPong();
        break;
      case "error":
        this.#onServerError(message);
        break;
      case "peerJoined":
        this.#onPeerJoined(message.id);
        break;
      case "peerLeft":
        this.#onPeerLeft(message.id);
        break;
      case "offer":
        this.#onOffer(message);
        break;
      case "answer":
        this.#onAnswer(message);
        break;
      case "candidate":
        this.#onCandidate(message);
        break;
      default:
      // A later server knows it.
    }
  }

  /** @param {RTCIceServer[]} iceServers of the server */
  #setIceServers(iceServers) {
    this.#configuration.iceServers = [...this.#iceServers, ...iceServers];
    for (const session of this.#allSessions()) {
      session.connection.setConfiguration(this.#configuration);
    }
  }

  #onPong() {
    if (this.#flow === "connect" && !this.online && !this.#isRefused) {
      this.#onEntered([...this.#sessions.keys()]);
    }
  }

  /**
   * The server has accepted the registration: keeps connected peers, and connects to all others.
   *
   * @param {string[]} ids the other peers of the room
   */
  #onEntered(ids) {
    this.#signaling.confirm();
    const wasOnline = this.online;
    this.#state = "online";
    this.#returns = 0;
    if (!this.#wasEntered) {
      this.#wasEntered = true;
      clearTimeout(this.#enteringTimer);
      this.#credentialsTimer = setInterval(() => this.#requestCredentials(), CREDENTIALS_INTERVAL);
      this.#entering.resolve(this);
    }
    if (!wasOnline) {
      this.#emit("online", {});
      this.#sayPresence(true);
    }
    this.#forEachSession((session) => this.#setPresent(session, ids.includes(session.id)));
    for (const id of ids) {
      // The peer that joins offers.
      const session = this.#sessions.get(id) ?? this.#add(id);
      session.beginIfWaiting();
    }
    this.#connectIfAlone();
  }

  /** @param {{ code: number, retryIn: number }} loss */
  #onOffline(loss) {
    this.#state = "offline";
    clearTimeout(this.#searchTimer);
    this.#searchTimer = undefined;
    this.#sayPresence(false);
    if (this.#unnamed) {
      // The server drops the offer with the connection.
      this.#remove(this.#unnamed);
    }
    this.#emit("offline", loss);
  }

  /** Tells connected peers whether a server sees this peer. @param {boolean} online */
  #sayPresence(online) {
    this.#forEachSession((session) => session.connection.sendControl({ type: "presence", online }));
  }

  /** @param {string} id */
  #onPeerJoined(id) {
    this.#hasSearched = false;
    const session = this.#sessions.get(id);
    if (session) {
      this.#setPresent(session, true);
    } else {
      this.#add(id).awaitOffer();
    }
  }

  /** @param {string} id */
  #onPeerLeft(id) {
    this.#hasSearched = false;
    const session = this.#sessions.get(id);
    if (session) {
      this.#setPresent(session, false);
    }
  }

  /** @param {any} message */
  #onOffer({ id, target_id: owner, sdp }) {
    if (id !== undefined) {
      this.#onDescription(id, parseJson(sdp));
      return;
    }
    // The server pairs this peer with another one.
    for (const session of this.#allSessions()) {
      this.#drop(session, "lost");
    }
    if (sdp === undefined) {
      this.#unnamed = this.#createSession("");
      this.#unnamed.begin();
      return;
    }
    this.#add(owner);
    this.#onDescription(owner, parseJson(sdp));
  }

  /** @param {any} message */
  #onAnswer({ id, sdp }) {
    const description = parseJson(sdp);
    const hasIds = description?.from !== undefined;
    const isForOther = hasIds && description.to !== this.#unnamed?.connection.id;
    if (this.#unnamed && isForOther) {
      // An earlier partner repeats its answer, and the server has paired this peer with it again.
      this.#refusePartner(id, description.from);
      this.#remove(this.#unnamed);
      this.#send({ type: "leave" });
      this.#connectIfAlone();
      return;
    }
    if (this.#unnamed && !this.#sessions.has(id)) {
      const session = this.#unnamed;
      this.#unnamed = undefined;
      session.id = id;
      this.#publish(session);
    }
    this.#onDescription(id, description);
  }

  /** @param {string} id @param {any} description */
  #onDescription(id, description) {
    const isOfKnownType = description?.type === "offer" || description?.type === "answer";
    if (!isOfKnownType || typeof description.sdp !== "string" || typeof id !== "string") {
      return;
    }
    let session = this.#sessions.get(id);
    if (session?.isFromOtherInstance(description)) {
      this.#giveUp(session, "replaced");
      session = undefined;
      if (this.#flow === "join" && description.type === "answer") {
        // It answers an offer to the page that was there before.
        this.#add(id).begin();
        return;
      }
    }
    if (!session && this.#flow === "connect" && description.from !== undefined) {
      this.#refusePartner(id, description.from);
      return;
    }
    if (!session && description.type === "offer") {
      session = this.#add(id);
    }
    if (session) {
      this.#see(session);
      session.receiveDescription(description);
    }
  }

  /**
   * In a pair: a peer takes this one for its partner, but the local page was reloaded or has given it up, and could not
   * tell it.
   *
   * @param {string} id
   * @param {unknown} connection the peer's id of its connection
   */
  #refusePartner(id, connection) {
    this.#send({ type: "candidateAdd", target_id: id, candidate: { bye: true, to: connection } });
  }

  /** @param {any} message */
  #onCandidate({ id, candidate }) {
    if (typeof candidate !== "string") {
      return;
    }
    const candidates = splitCandidates(candidate);
    const session = this.#sessions.get(id);
    if (!session) {
      const sender = candidates.map((/** @type {any} */ value) => value?.from).find((from) => from !== undefined);
      if (this.#flow === "connect" && sender !== undefined) {
        this.#refusePartner(id, sender);
      }
      return;
    }
    this.#see(session);
    for (const value of candidates) {
      session.receiveCandidate(value);
    }
  }

  /** A message of the peer has come through the server. @param {PeerSession} session */
  #see(session) {
    if (session.isAway) {
      this.#setPresent(session, true);
    }
  }

  /** @param {any} message */
  #onServerError({ code, message, target_id: target }) {
    const session = this.#sessions.get(target ?? "");
    switch (code) {
      case "unknown_type":
        // A server that does not know `ping`.
        this.#onPong();
        break;
      case "peer_busy":
        if (session) {
          this.#resendLater([session], pauseBefore(0));
        }
        break;
      case "rate_limited":
        this.#resendLater(this.#allSessions(), RATE_LIMITED_PAUSE);
        break;
      case "unknown_peer":
        if (session) {
          this.#setPresent(session, false);
        }
        break;
      case "offer_taken":
      case "not_offerer":
        // The server has put this peer back into the queue of the room.
        for (const each of this.#allSessions()) {
          if (!each.isAlive) {
            this.#drop(each, "lost");
          }
        }
        break;
      case "id_taken":
      case "room_full":
        this.#onPlaceTaken(new NoroshiError(code, message));
        break;
      default:
        this.#onOtherServerError(new NoroshiError(code, message));
    }
  }

  /** @param {NoroshiError} error */
  #onPlaceTaken(error) {
    this.#isRefused = true;
    this.#returns += 1;
    if (this.#wasEntered && this.#returns <= RETURNS_MAX) {
      // The server may still hold the id for the old connection.
      this.#signaling.retry();
    } else {
      this.#close(error.code, error.message, error);
    }
  }

  /** @param {NoroshiError} error */
  #onOtherServerError(error) {
    if (this.#wasEntered) {
      this.#emit("error", { error });
    } else {
      this.#close(error.code, error.message, error);
    }
  }

  /**
   * Holds messages to peers back, and sends later what they may have missed.
   *
   * @param {PeerSession[]} sessions
   * @param {number} pause
   */
  #resendLater(sessions, pause) {
    for (const session of sessions) {
      session.isHeld = true;
    }
    clearTimeout(this.#rateLimitTimer);
    this.#rateLimitTimer = setTimeout(() => {
      if (!this.online) {
        this.#requestRegistration();
      }
      for (const session of this.#allSessions()) {
        session.resend();
      }
      this.#connectIfAlone();
    }, pause);
  }

  /** The registration itself was refused by the rate limit. */
  #requestRegistration() {
    if (this.#signaling.isOpen) {
      this.#register();
    }
  }

  /** @param {number} size @param {unknown} context */
  #onTooBig(size, context) {
    if (context instanceof PeerSession && !context.isDropped) {
      context.onTooBig(size);
    }
  }

  // ---- Peers ----

  /** @returns {PeerSession[]} */
  #allSessions() {
    const sessions = [...this.#sessions.values()];
    return this.#unnamed ? [...sessions, this.#unnamed] : sessions;
  }

  /** @param {(session: PeerSession) => void} action */
  #forEachSession(action) {
    for (const session of [...this.#sessions.values()]) {
      action(session);
    }
  }

  /** @param {string} id */
  #createSession(id) {
    return new PeerSession(id, {
      id: this.#id,
      isOnline: () => this.online,
      nextConnectionId: () => {
        this.#connections += 1;
        return connectionId(this.#instance, this.#connections);
      },
      configuration: () => this.#configuration,
      RTCPeerConnection: this.#RTCPeerConnection,
      receiveBytesMax: this.#receiveBytesMax,
      giveUpTime: this.#flow === "connect" ? PARTNER_GIVE_UP : undefined,
      awayGiveUpTime: this.#flow === "connect" ? AWAY_PARTNER_GIVE_UP : undefined,
      hello: () => ({ type: "hello", data: this.#data, online: this.online }),
      sharedTracks: (session) => this.#shares.tracksFor(session.publicPeer),
      signal: (session, type, content) => this.#forward(session, type, content),
      emit: (session, type, fields, bytes) => this.#emitOfPeer(session, type, fields, bytes),
      drop: (session, reason) => this.#giveUp(session, reason),
      onPresence: (session) => this.#onPresence(session),
    });
  }

  /** Adds a named peer. @param {string} id */
  #add(id) {
    const session = this.#createSession(id);
    this.#publish(session);
    return session;
  }

  /** @param {PeerSession} session that has a name now */
  #publish(session) {
    session.publicPeer = new Peer(session);
    this.#sessions.set(session.id, session);
    this.#peers.set(session.id, session.publicPeer);
    this.#emit("peer", { peer: session.publicPeer });
  }

  /** Sends a message to a peer through the server. Messages are not queued: what was missed is sent again later.
   *  @param {PeerSession} session @param {string} type @param {object} content */
  #forward(session, type, content) {
    if (!this.online || session.isHeld) {
      return;
    }
    const field = type === "candidateAdd" ? "candidate" : "sdp";
    const target = session.id ? { target_id: session.id } : {};
    this.#send({ type, ...target, [field]: content }, session);
  }

  /** Sets whether the server sees a peer. One that is not connected either has left.
   *  @param {PeerSession} session @param {boolean} isPresent */
  #setPresent(session, isPresent) {
    if (!isPresent && !session.isAlive) {
      this.#drop(session, session.departureReason);
      this.#connectIfAlone();
      return;
    }
    session.isAway = !isPresent;
    if (isPresent) {
      session.onOnline();
    } else if (this.#flow === "connect") {
      // The server does not tell when a partner is back, and it may be back already.
      session.connection.sendControl({ type: "askPresence" });
    } else {
      this.#scheduleSearch();
    }
    session.reportState();
  }

  /** A connected peer tells whether a server sees it. @param {PeerSession} session */
  #onPresence(session) {
    if (session.isAway && session.saysOnline) {
      if (this.#flow === "connect") {
        // The server does not tell that a partner is back.
        this.#setPresent(session, true);
      } else {
        this.#scheduleSearch();
      }
    }
  }

  /**
   * Looks for peers that have a direct connection to this one and are connected to a server, but not to the server of this
   * peer: then this peer may have reached another server than they. Who misses most of its peers connects again, once.
   */
  #scheduleSearch() {
    if (this.#searchTimer !== undefined || this.#flow === "connect" || !this.online) {
      return;
    }
    this.#searchTimer = setTimeout(
      () => {
        this.#searchTimer = undefined;
        const sessions = [...this.#sessions.values()];
        const isElsewhere = (/** @type {PeerSession} */ session) =>
          session.isAway && session.saysOnline && session.connection.isConnected;
        const missing = sessions.filter(isElsewhere);
        const isMajority = missing.length * 2 > sessions.length;
        if (this.online && isMajority && !this.#hasSearched) {
          this.#hasSearched = true;
          this.#signaling.reconnect();
        }
      },
      SEARCH_DELAY + pauseBefore(2),
    );
  }

  /** Ends a peer that cannot be reached, or that has left. The server may still take this peer for its partner.
   *  @param {PeerSession} session @param {LeftReason} reason */
  #giveUp(session, reason) {
    this.#drop(session, reason);
    if (this.#flow === "connect" && this.online) {
      this.#send({ type: "leave" });
      this.#connectIfAlone();
    }
  }

  /** The page stops running. Chromium reports this for closed pages, too, so that others must not wait for it. */
  #dropAll() {
    for (const session of this.#allSessions()) {
      this.#drop(session, "lost");
    }
  }

  /** Ends a peer. @param {PeerSession} session @param {LeftReason} reason */
  #drop(session, reason) {
    if (session.isDropped) {
      return;
    }
    const peer = session.publicPeer;
    this.#remove(session);
    if (peer) {
      this.#emit("left", { peer, reason });
    }
  }

  /** @param {PeerSession} session */
  #remove(session) {
    session.close();
    if (this.#unnamed === session) {
      this.#unnamed = undefined;
    }
    if (this.#sessions.get(session.id) === session) {
      this.#sessions.delete(session.id);
      this.#peers.delete(session.id);
    }
  }

  /** In a pair: asks for a partner. */
  #connectIfAlone() {
    if (this.#flow === "connect" && this.online && this.#allSessions().length === 0) {
      this.#send({ type: "connect" });
    }
  }

  /** @param {PeerSession} session @param {string} type @param {object} [fields] @param {number} [bytes] */
  #emitOfPeer(session, type, fields, bytes) {
    // A peer that is not named yet is unknown to the application.
    if (session.publicPeer) {
      this.#emit(/** @type {any} */ (type), { peer: session.publicPeer, ...fields }, bytes);
    }
  }

  /**
   * @template {keyof RoomEvents} K
   * @param {K} type
   * @param {object} fields
   * @param {number} [bytes]
   */
  #emit(type, fields, bytes) {
    BufferedEventTarget.emit(this, type, fields, bytes);
  }
}

/**
 * @param {Peer | Iterable<Peer> | undefined} to
 * @returns {Set<Peer> | undefined}
 */
function receivers(to) {
  if (to === undefined) {
    return undefined;
  }
  return new Set(to instanceof Peer ? [to] : to);
}

/** @param {unknown} data */
function assertData(data) {
  const text = JSON.stringify(data) ?? "";
  if (text.length > DATA_LENGTH_MAX) {
    throw new NoroshiError("too_big", `${text.length} characters of data; ${DATA_LENGTH_MAX} are possible`);
  }
}

/** @param {string | URL} url */
function webSocketUrl(url) {
  const absolute = new URL(url, globalThis.location?.href);
  absolute.hash = "";
  absolute.protocol = absolute.protocol.replace(/^http/, "ws");
  if (absolute.protocol !== "ws:" && absolute.protocol !== "wss:") {
    throw new TypeError(`${url} is no WebSocket URL: it begins with wss: or ws:`);
  }
  return absolute.href;
}
