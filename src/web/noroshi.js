/**
 * The client library of noroshi: browsers find each other through its signaling, then connect directly.
 *
 * The events of a room, and their fields:
 *     peer    {peer}                  a peer joined, and is being connected to
 *     open    {peer}                  messages can be sent to it
 *     message {peer, data}            it sent a string or an ArrayBuffer
 *     track   {peer, track, streams}  it called `peer.pc.addTrack(…)`, at any time
 *     state   {peer}                  `peer.pc.connectionState` or `peer.away` may have changed
 *     left    {peer}                  it is gone
 *     offline, online                 the connection to the server is lost, and is back; connected peers stay connected
 *     error   {error, peer?}          an Error. With a peer: something failed between that peer and us, and is tried
 *                                     again, unless its `code` is `too_big`. Without a peer: its `code` is one of the
 *                                     protocol, or `replaced`
 */

/** @typedef {RTCConfiguration & {id?: string, token?: string | (() => string | Promise<string>)}} Options
 *    `id`: 1 to 128 bytes of UTF-8; a random one if missing. `token`: required if the server requires tokens. A
 *    function is called before each attempt to connect, so that it can return a fresh token after hours. */
/** @typedef {Error & {code?: string}} Failure */
/** @typedef {{
 *    peer: {peer: Peer}, open: {peer: Peer}, message: {peer: Peer, data: string | ArrayBuffer},
 *    track: {peer: Peer, track: MediaStreamTrack, streams: readonly MediaStream[]}, state: {peer: Peer},
 *    left: {peer: Peer}, offline: {}, online: {}, error: {error: Failure, peer?: Peer},
 *  }} Events */

// All times are in milliseconds.

/** The first pause between attempts. It doubles with each attempt. */
const PAUSE_MIN = 500;
const PAUSE_MAX = 15_000;
/** The pause after `rate_limited`: the server refills the rate limit of a silent peer within 2 s. */
const PAUSE_RATE_LIMITED = 2_500;
/** The maximum time from opening a WebSocket to `joined`. The server may need 5 s to check that our id is free. */
const OPENING_MAX = 15_000;
/** The interval of new TURN credentials. Those of the server last 12 h. */
const RENEW_EVERY = 3_600_000;
/** Browsers cannot send pings, and notice a lost network late or never: a silent server is probed after this time. */
const SILENCE_MAX = 25_000;
const ANSWER_MAX = 5_000;
/** Attempts to return to an id, or to a place in the room, that our own dead connection may hold. */
const RETURNS_MAX = 5;
/** New connections to the server, to find a connected peer that the server does not see. */
const SEARCHES_MAX = 3;

/** Returns the pause before an attempt, with jitter.
 *  @param {number} attempt */
const pause = (attempt) => {
  const longest = Math.min(PAUSE_MIN * 2 ** attempt, PAUSE_MAX);
  return longest * (0.5 + Math.random());
};

/** @type {(code: string, message: string) => Failure} */
const failure = (code, message) => Object.assign(new Error(message), { code });

/** crypto.randomUUID is available on https and localhost only. */
const randomId = () => {
  const numbers = crypto.getRandomValues(new Uint32Array(4));
  return [...numbers].map((number) => number.toString(36)).join("");
};

/** Returns the line of an SDP that identifies its RTCPeerConnection and counts its versions (RFC 8866 section 5.2).
 *  @param {{sdp?: string} | null | undefined} description */
const originLine = (description) => /^o=.*/m.exec(description?.sdp ?? "")?.[0];

/** The session id of that line. Browsers rewrite its other fields.
 *  @param {string=} line */
const sessionId = (line) => line?.split(" ")[1];

/** The session id and the version of that line.
 *  @param {string=} line */
const sessionVersion = (line) => line?.split(" ").slice(1, 3).join(" ");

/** Joins the mesh of a room: every peer connects to every other. Fails with a `code`: one of the protocol;
 *  `unauthorized` or `forbidden`, if the token is invalid, or not for this room; `refused`, if the server refuses us
 *  for another reason, or does not show the reason; `unreachable`, if no server answers.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const join = async (url, options) => new Room(url, "join", options).entered;

/** Is paired with one other peer that connects, and after that peer has left with the next. Fails like `join`.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const connect = async (url, options) => new Room(url, "connect", options).entered;

/** Another peer of the room, and the connection to it, by perfect negotiation (W3C WebRTC, section 10.7). */
export class Peer {
  /** @type {RTCDataChannel=} */
  channel;
  /** Whether the server no longer sees the peer, while the connection to it lives. */
  away = false;
  /** The number of failed attempts since the connection was alive. */
  attempt = 0;
  /** Whether the peer may have missed our last description. */
  isUnheard = false;
  /** Whether messages to the peer are held back, because our description will be sent again soon. */
  isHeld = false;
  /** @type {Room} */
  #room;
  /** Whether an offer of ours is being made. */
  #isMakingOffer = false;
  /** Whether an answer to our offer is being set. */
  #isSettingAnswer = false;
  /** The version of their offer that is being answered. @type {string=} */
  #answering = "";

  /** @param {string} id @param {Room} room @param {RTCConfiguration} options */
  constructor(id, room, options) {
    /** Empty until a peer answers our offer (`connect`). */
    this.id = id;
    this.pc = new RTCPeerConnection(options);
    this.#room = room;
    this.pc.onnegotiationneeded = () => {
      // Without a channel, this side waits for the first offer, and may add to its answer.
      if (this.channel) {
        room._renewOnFailure(this, this.#offer());
      }
    };
    this.pc.onicecandidate = ({ candidate }) => {
      if (candidate) {
        room._sendTo(this, { type: "candidateAdd", candidate });
      }
    };
    this.pc.ontrack = ({ track, streams }) => room._onPeerEvent(this, "track", { track, streams });
    this.pc.onconnectionstatechange = () => room._onPeerEvent(this, "state");
  }

  /** Whether messages can be sent to it. */
  get alive() {
    const isConnected = !["disconnected", "failed", "closed"].includes(this.pc.connectionState);
    return this.channel?.readyState === "open" && isConnected;
  }

  /** Bytes that are not sent yet. Await `drained()` before they are many: at 16 MB, browsers close the channel. */
  get bufferedAmount() {
    return this.channel?.bufferedAmount ?? 0;
  }

  /** The maximum size of a message in bytes: 64 KiB or more, as both browsers support. */
  get maxMessageSize() {
    return this.pc.sctp?.maxMessageSize ?? 65_536;
  }

  /** @param {string | ArrayBuffer | ArrayBufferView<ArrayBuffer>} data of at most `maxMessageSize` bytes */
  send(data) {
    const bytes =
      typeof data === "string" ? new TextEncoder().encode(data).length : data?.byteLength;
    if (bytes === undefined) {
      throw new TypeError("what is sent is a string, an ArrayBuffer or a view of one");
    }
    if (this.channel?.readyState !== "open") {
      throw failure("not_open", `${this.id} is not connected: await its open event`);
    }
    if (bytes > this.maxMessageSize) {
      throw failure(
        "too_big",
        `${bytes} bytes in one message; ${this.maxMessageSize} are possible`,
      );
    }
    this.channel.send(/** @type {any} */ (data));
  }

  /** Resolves when at most `bytes` bytes are not sent yet, or the channel is closed. */
  async drained(bytes = 0) {
    const channel = this.channel;
    while (channel?.readyState === "open" && channel.bufferedAmount > bytes) {
      // Each time: another call may wait for another threshold.
      channel.bufferedAmountLowThreshold = bytes;
      await new Promise((resolve) => {
        channel.addEventListener("bufferedamountlow", resolve, { once: true });
        channel.addEventListener("close", resolve, { once: true });
      });
    }
  }

  /** Opens the channel, as the other side does. This makes an offer, unless one is being answered. In glare, Chrome
   *  cannot yield with its first audio to a first video, or the reverse (since 148): the offer has both beforehand. */
  begin(kinds = ["audio", "video"]) {
    for (const kind of kinds) {
      this.pc.addTransceiver(kind, { direction: "recvonly" });
    }
    const channel = this.pc.createDataChannel("noroshi", { negotiated: true, id: 0 });
    this.channel = channel;
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => this.#room._onPeerEvent(this, "message", { data });
    channel.onopen = () => this.#room._onPeerEvent(this, "open");
    channel.onclose = () => this.#room._onPeerEvent(this, "close");
  }

  async #offer() {
    this.#isMakingOffer = true;
    try {
      await this.pc.setLocalDescription();
    } finally {
      this.#isMakingOffer = false;
    }
    this.#sendDescription();
  }

  /** @param {string} type @param {string} text JSON of a description or a candidate */
  async receive(type, text) {
    const content = JSON.parse(text);
    if (type === "candidate") {
      await this.#addCandidate(content);
    } else if (type === "answer") {
      await this.#receiveAnswer(content);
    } else {
      await this.#receiveOffer(content);
    }
  }

  /** @param {RTCSessionDescriptionInit & {sdp: string, to?: string}} answer */
  async #receiveAnswer(answer) {
    const local = this.pc.localDescription;
    const isForOtherOffer =
      answer.to && sessionVersion(answer.to) !== sessionVersion(originLine(local));
    if (local?.type !== "offer" || isForOtherOffer) {
      this.#resendOffer();
      return;
    }
    if (this.pc.signalingState !== "have-local-offer" || this.#isSettingAnswer) {
      // The answer was received before, but perhaps without all of its candidates.
      await this.#addCandidates(answer.sdp);
      return;
    }
    this.#isSettingAnswer = true;
    try {
      await this.pc.setRemoteDescription(answer);
    } finally {
      this.#isSettingAnswer = false;
    }
  }

  /** @param {RTCSessionDescriptionInit & {sdp: string}} offer */
  async #receiveOffer(offer) {
    const isStable = this.pc.signalingState === "stable" || this.#isSettingAnswer;
    const isGlare = this.#isMakingOffer || !isStable;
    const version = sessionVersion(originLine(offer));
    const remote = this.pc.currentRemoteDescription;
    if (version === this.#answering) {
      // The offer was received before, but perhaps without all of its candidates.
      await this.#addCandidates(offer.sdp);
      return;
    }
    if (remote && sessionVersion(originLine(remote)) === version) {
      await this.#addCandidates(offer.sdp);
      // The peer has not received our answer yet, or needs that one and no other.
      this.#sendDescription(this.pc.currentLocalDescription, remote);
      this.#resendOffer();
      return;
    }
    // The peer with the lesser id is polite.
    if (isGlare && this.#room.id > this.id) {
      this.#resendOffer();
      return;
    }
    this.#answering = version;
    await this.pc.setRemoteDescription(offer);
    if (!this.channel) {
      this.begin([]);
    }
    await this.pc.setLocalDescription();
    this.#answering = "";
    this.#sendDescription();
  }

  /** @param {RTCIceCandidateInit} candidate */
  async #addCandidate(candidate) {
    try {
      await this.pc.addIceCandidate(candidate);
    } catch {
      // The candidate belongs to an offer that was ignored.
    }
  }

  /** Adds the candidates of a description that is set already. @param {string} sdp */
  async #addCandidates(sdp) {
    for (const section of sdp.split(/^m=/m).slice(1)) {
      const sdpMid = /^a=mid:(\S+)/m.exec(section)?.[1];
      const usernameFragment = /^a=ice-ufrag:(\S+)/m.exec(section)?.[1];
      for (const match of section.matchAll(/^a=(candidate:.*)/gm)) {
        await this.#addCandidate({ candidate: match[1], sdpMid, usernameFragment });
      }
    }
  }

  /** Sends an offer or an answer, with the description of the peer that we know. */
  #sendDescription(local = this.pc.localDescription, remote = this.pc.remoteDescription) {
    const { type, sdp } = /** @type {RTCSessionDescription} */ (local);
    const description = { type, sdp, to: originLine(remote) };
    this.#room._sendTo(this, { type, sdp: description });
  }

  /** Sends our offer again, because the peer may not have received it. */
  #resendOffer() {
    if (this.pc.signalingState === "have-local-offer") {
      this.#sendDescription();
    }
  }

  /** Sends again what may be lost. An answer may always be lost. Messages are not queued: a description has all
   *  candidates that were gathered so far, and may be received twice. */
  resend(isSure = this.isUnheard) {
    const { signalingState, localDescription } = this.pc;
    this.isUnheard = false;
    this.isHeld = false;
    if (!localDescription || signalingState === "have-remote-offer") {
      return;
    }
    if (isSure || signalingState !== "stable" || localDescription.type === "answer") {
      this.#sendDescription();
    }
  }
}

/** A room that was entered. Its events are listed at the top. */
export class Room extends EventTarget {
  /** @type {Map<string, Peer>} */
  peers = new Map();
  /** Whether the server is connected. */
  online = false;
  /** @type {string} */
  #url;
  /** The URL with the token. @type {string} */
  #address;
  /** @type {Options["token"]} */
  #token;
  /** @type {"join" | "connect"} */
  #flow;
  /** The ICE servers of the caller. @type {RTCIceServer[]} */
  #iceServers;
  /** The configuration of each connection, with the ICE servers of the server. @type {RTCConfiguration} */
  #options;
  /** @type {WebSocket} */
  #ws = /** @type {any} */ (undefined);
  /** Settles `entered`. @type {{resolve: (room: Room) => void, reject: (error?: Failure) => void}} */
  #settle = /** @type {any} */ (undefined);
  /** The timer for what is expected from the server: one thing at a time. @type {number=} */
  #timer;
  #renewal;
  #listeners = new AbortController();
  /** The number of attempts to connect since the last message of the server. */
  #attempt = 0;
  /** The number of WebSockets that were begun. */
  #openings = 0;
  /** Whether the current WebSocket was opened. */
  #wasOpened = false;
  /** Whether the room was entered once. */
  #wasIn = false;
  #isOver = false;
  /** Whether the page is in the back/forward cache. */
  #isAsleep = false;
  /** Whether the server was probed and has not answered yet. */
  #isProbing = false;
  /** The largest message since the WebSocket opened. @type {{size: number, peer?: Peer}} */
  #largest = { size: 0 };
  /** A message of this size is too large for the server. */
  #sizeMax = Infinity;

  /** @param {string} url @param {"join" | "connect"} flow @param {Options} [options] */
  constructor(url, flow, { id = randomId(), token, iceServers = [], ...options } = {}) {
    super();
    this.id = id;
    this.#url = url;
    this.#address = url;
    this.#token = token;
    this.#flow = flow;
    this.#iceServers = iceServers;
    this.#options = { bundlePolicy: "max-bundle", ...options, iceServers };
    // Throws now if the options are invalid, and not when a peer joins.
    new RTCPeerConnection(this.#options).close();
    /** @type {Promise<Room>} */
    this.entered = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    // Fails if the URL is invalid.
    this.#open().catch((error) => this.#end(error));
    this.#renewal = setInterval(() => {
      if (flow === "join") {
        this.#send({ type: flow });
      }
    }, RENEW_EVERY);
    this.#addPageListeners();
  }

  #addPageListeners() {
    // The signal removes the listeners at the end: nothing global may keep a room that was left.
    const { signal } = this.#listeners;
    addEventListener("online", () => this.#checkServer(), { signal });
    document.addEventListener(
      "visibilitychange",
      () => {
        if (!document.hidden) {
          this.#checkServer();
        }
      },
      { signal },
    );
    // A page in the back/forward cache may come back. Other peers must not wait for it, nor for 5 s if it is closed.
    addEventListener(
      "pagehide",
      ({ persisted }) => {
        if (persisted) {
          this.#isAsleep = true;
          this.#reconnect();
        } else {
          this.leave();
        }
      },
      { signal },
    );
    addEventListener(
      "pageshow",
      ({ persisted }) => {
        if (persisted) {
          this.#isAsleep = false;
          this.#checkServer();
        }
      },
      { signal },
    );
  }

  /** @template {keyof Events} K @param {K} type @param {(event: Event & Events[K]) => void} listener
   *  @param {AddEventListenerOptions | boolean} [options] */
  addEventListener(type, listener, options) {
    super.addEventListener(type, /** @type {any} */ (listener), options);
  }

  /** Sends a message to all peers that are connected. A failure is an `error` event with that peer.
   *  @param {Parameters<Peer["send"]>[0]} data */
  send(data) {
    for (const peer of this.peers.values()) {
      try {
        if (peer.alive) {
          peer.send(data);
        }
      } catch (error) {
        this.#emit("error", { peer, error });
      }
    }
  }

  /** Leaves the room for good. */
  leave() {
    this.#end();
  }

  /** @param {Failure} [error] */
  #end(error) {
    if (this.#isOver) {
      return;
    }
    this.#isOver = true;
    this.online = false;
    clearInterval(this.#renewal);
    clearTimeout(this.#timer);
    this.#listeners.abort();
    this.#ws?.close();
    for (const peer of this.peers.values()) {
      if (error) {
        this.#setPresent(peer, false);
      } else {
        this.#drop(peer);
      }
    }
    this.#settle.reject(error ?? failure("left", "the room was left before it was entered"));
    if (error) {
      this.#emit("error", { error });
    }
  }

  // ---- The server ----

  async #open() {
    this.#closeSocket();
    this.#openings += 1;
    const opening = this.#openings;
    if (this.#token) {
      try {
        await this.#authorize();
      } catch (error) {
        this.#onConnectFailure(/** @type {Failure} */ (error));
        return;
      }
      if (this.#isOver || this.#isAsleep || opening !== this.#openings) {
        return;
      }
    }
    const ws = new WebSocket(this.#address);
    this.#ws = ws;
    this.#largest = { size: 0 };
    this.#wasOpened = false;
    this.#isProbing = false;
    this.#setTimer(OPENING_MAX, () => this.#reconnect());
    ws.onopen = () => {
      this.#wasOpened = true;
      if (this.#flow === "join") {
        this.#send({ type: "join" });
      } else {
        // Any message registers our id.
        this.#probe();
      }
    };
    ws.onmessage = ({ data }) => {
      if (!this.#isOver) {
        this.#onMessage(JSON.parse(data));
      }
    };
    ws.onclose = ({ code }) => this.#onClose(code);
  }

  /** Puts a fresh token into the address: browsers cannot set headers of a WebSocket. */
  async #authorize() {
    const url = new URL(this.#url, location.href);
    const token = typeof this.#token === "function" ? await this.#token() : (this.#token ?? "");
    url.searchParams.set("token", token);
    this.#address = url.href;
  }

  /** @param {number} [code] */
  async #onClose(code) {
    if (this.#isOver) {
      return;
    }
    clearTimeout(this.#timer);
    if (!this.#wasIn && this.#isAsleep) {
      // `pageshow` continues.
      return;
    }
    if (code === 4000) {
      this.#end(failure("replaced", "the id has gone to another connection"));
      return;
    }
    if (this.online) {
      this.online = false;
      this.#emit("offline");
    }
    if (code === 1009) {
      this.#sizeMax = this.#largest.size;
      this.#emitTooBig(this.#largest.peer, this.#sizeMax);
    }
    const opening = this.#openings;
    const needsReason = !this.#wasIn || (this.#token && !this.#wasOpened);
    const reason = needsReason ? await this.#diagnose() : undefined;
    if (opening === this.#openings) {
      this.#onConnectFailure(reason, code);
    }
  }

  /** @param {Failure} [reason] @param {number} [code] */
  #onConnectFailure(reason, code) {
    if (this.#isOver) {
      return;
    }
    if (reason && (!this.#wasIn || reason.code === "unauthorized" || reason.code === "forbidden")) {
      this.#end(reason);
      return;
    }
    if (this.#isAsleep) {
      return;
    }
    let attempt = 9;
    // 1008: we sent too much.
    if (code !== 1008) {
      attempt = this.#attempt;
      this.#attempt += 1;
    }
    this.#setTimer(pause(attempt), () => this.#open());
  }

  /** Finds out why the WebSocket was refused. A browser does not tell, but it may show the response to a plain request,
   *  or whether a server answers at all. */
  async #diagnose() {
    const options = {
      cache: /** @type {const} */ ("no-store"),
      signal: AbortSignal.timeout(ANSWER_MAX),
    };
    const httpUrl = (/** @type {string} */ path) => {
      const url = new URL(path, new URL(this.#address, location.href));
      url.protocol = url.protocol.replace("ws", "http");
      return url;
    };
    const response = await fetch(httpUrl(""), options).catch(() => undefined);
    if (response?.status === 401) {
      return failure("unauthorized", (await response.text()).trim());
    }
    if (response?.status === 403) {
      return failure("forbidden", (await response.text()).trim());
    }
    let isReachable = Boolean(response);
    if (!isReachable) {
      isReachable = await fetch(httpUrl("/healthz"), { ...options, mode: "no-cors" }).then(
        () => true,
        () => false,
      );
    }
    if (isReachable) {
      return failure("refused", `${this.#url} does not let us in`);
    }
    return failure("unreachable", `${this.#url} cannot be reached`);
  }

  /** Opens a new connection to the server, because it does not answer, or because another server may be needed. */
  #reconnect() {
    this.#closeSocket();
    this.#onClose();
  }

  /** Closes the WebSocket and ignores its further events. */
  #closeSocket() {
    if (!this.#ws) {
      return;
    }
    this.#ws.onopen = null;
    this.#ws.onmessage = null;
    this.#ws.onclose = null;
    this.#ws.close();
  }

  /** Expects a liveness signal from the server, or connects again at once. */
  #checkServer() {
    if (this.#isOver || this.#isAsleep) {
      return;
    }
    if (this.#ws?.readyState !== WebSocket.OPEN) {
      this.#open();
      return;
    }
    this.#probe();
    this.#isProbing = true;
    this.#awaitMessage();
  }

  /** Waits for the next message. A message that was sent before our probe is no answer, but may delay the answer. */
  #awaitMessage() {
    if (this.#isProbing) {
      this.#setTimer(ANSWER_MAX, () => this.#reconnect());
    } else {
      this.#setTimer(SILENCE_MAX, () => this.#checkServer());
    }
  }

  /** Sends a message that the server answers at once, with an error, and that changes nothing: it names ourselves as
   *  the target. To join again would bring new TURN credentials, after which the next negotiation gathers all
   *  candidates again. */
  #probe() {
    this.#send({ type: "candidateAdd", target_id: this.id, candidate: null });
  }

  /** @param {number} ms @param {() => void} action */
  #setTimer(ms, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, ms);
  }

  /** @param {any} message */
  #onMessage(message) {
    const { type, code } = message;
    const isProbe = code === "unknown_peer" && message.target_id === this.id;
    if (isProbe || code === "rate_limited") {
      this.#isProbing = false;
    }
    this.#awaitMessage();
    if (message.iceServers) {
      this.#options.iceServers = [...this.#iceServers, ...message.iceServers];
      for (const peer of this.peers.values()) {
        peer.pc.setConfiguration(this.#options);
      }
    }
    if (type === "error" && !isProbe) {
      this.#onError(failure(code, message.message), this.peers.get(message.target_id ?? ""));
      return;
    }
    this.#attempt = 0;
    if (isProbe && this.#flow === "join") {
      // The server is there.
      return;
    }
    if (isProbe || type === "joined") {
      this.#onEntered(message.peers ?? []);
      return;
    }
    this.#onPeerMessage(message);
  }

  /** @param {any} message */
  #onPeerMessage({ type, id, target_id, sdp, candidate }) {
    if (type !== "peerLeft" && this.peers.get(id)?.away) {
      this.#setPresent(this.peers.get(id), true);
    }
    let peer = this.peers.get(id);
    if (type === "peerLeft") {
      this.#setPresent(peer, false);
    }
    if (type === "peerJoined") {
      if (peer?.alive) {
        this.#setPresent(peer, true);
      } else {
        peer = this.#add(id);
      }
    }
    const unnamed = this.peers.get("");
    if (type === "answer" && unnamed) {
      peer = this.#setId(unnamed, id);
    }
    if (type === "offer") {
      if (!id) {
        // The server pairs us with another peer.
        for (const other of this.peers.values()) {
          this.#drop(other);
        }
      }
      if (!sdp) {
        this.#add("").begin();
        return;
      }
      const known = sessionId(originLine(peer?.pc.remoteDescription));
      const offered = sessionId(originLine(JSON.parse(sdp)));
      // The page of the peer was reloaded, or the peer created a new connection to us.
      const isNewConnection = known && known !== offered;
      if (!id || isNewConnection || (!peer && this.#flow === "join")) {
        peer = this.#add(id ?? target_id);
      }
    }
    const texts = sdp ? [sdp] : (candidate?.split("|") ?? []);
    for (const text of texts) {
      if (peer) {
        this._renewOnFailure(peer, peer.receive(type, text));
      }
    }
  }

  /** @param {Failure} error @param {Peer} [peer] */
  #onError(error, peer) {
    const { code } = error;
    const isTaken = code === "id_taken" || code === "room_full";
    if (code === "peer_busy" && peer) {
      this.#scheduleResend(peer, 0);
    } else if (code === "rate_limited") {
      for (const each of this.peers.values()) {
        this.#scheduleResend(each, PAUSE_RATE_LIMITED);
      }
      setTimeout(() => {
        if (this.peers.size === 0) {
          this.#send({ type: this.#flow });
        }
      }, PAUSE_RATE_LIMITED);
    } else if (code === "unknown_peer") {
      if (peer) {
        peer.isUnheard = true;
      }
      this.#setPresent(peer, false);
    } else if (code === "offer_taken" || code === "not_offerer") {
      this.#drop(peer);
    } else if (isTaken && this.#wasIn && this.#attempt < RETURNS_MAX) {
      // Connects again.
      this.#ws.close();
    } else if (isTaken || !this.#wasIn) {
      this.#end(error);
    } else {
      this.#emit("error", { error });
    }
  }

  // ---- The peers ----

  /** Keeps connected peers, on a new connection to the server, and connects to all others again.
   *  @param {string[]} ids */
  #onEntered(ids) {
    if (!this.online) {
      this.online = true;
      this.#wasIn = true;
      // A peer with a partner wants no other, but must be addressable.
      if (this.#flow === "connect" && this.peers.size === 0) {
        this.#send({ type: "connect" });
      }
      for (const peer of this.peers.values()) {
        // The server does not tell whether a partner is there: a message to it shows that, and tells it about us.
        if (this.#flow === "connect") {
          peer.isUnheard = true;
        }
        this.#setPresent(peer, this.#flow === "connect" || ids.includes(peer.id));
      }
      this.#settle.resolve(this);
      this.#emit("online");
    }
    // Later, so that the caller of `join` can add its listeners before.
    setTimeout(() => {
      for (const id of ids) {
        if (!this.#isOver && !this.peers.has(id)) {
          this.#add(id).begin();
        }
      }
    });
  }

  /** @param {string} id */
  #add(id) {
    this.#drop(this.peers.get(id));
    const peer = new Peer(id, this, this.#options);
    return this.#setId(peer, id);
  }

  /** @param {Peer} peer @param {string} id */
  #setId(peer, id) {
    this.peers.delete(peer.id);
    peer.id = id;
    this.peers.set(id, peer);
    if (id) {
      this.#emit("peer", { peer });
    }
    return peer;
  }

  /** @param {Peer} [peer] */
  #drop(peer) {
    if (!peer || !this.#has(peer)) {
      return;
    }
    peer.pc.close();
    this.peers.delete(peer.id);
    // Browsers emit it only if the other side closes.
    peer.channel?.dispatchEvent(new Event("close"));
    if (peer.id) {
      this.#emit("left", { peer });
    }
    if (this.#flow === "connect" && this.peers.size === 0) {
      this.#send({ type: "connect" });
    }
  }

  /** Creates a new connection to a peer that is present. @param {Peer} peer */
  #renew(peer) {
    if (this.#flow === "connect") {
      this.#send({ type: "leave" });
    }
    this.#drop(peer);
    if (this.#flow === "connect" || !this.online) {
      return;
    }
    const renewed = this.#add(peer.id);
    renewed.attempt = peer.attempt;
    renewed.begin();
  }

  /** Sets whether the server sees a peer. A peer that is not alive is dropped.
   *  @param {Peer | undefined} peer @param {boolean} isPresent */
  #setPresent(peer, isPresent) {
    if (!peer?.alive) {
      this.#drop(peer);
      return;
    }
    const wasAway = peer.away;
    peer.away = !isPresent;
    if (isPresent) {
      peer.resend();
    } else if (!wasAway) {
      this.#searchFor(peer);
    }
    this.#emit("state", { peer });
  }

  /** Looks for a peer that is alive, and that the server does not see. Such a peer returns to the server by itself. If
   *  it does not, we may be connected to another server than it is. @param {Peer} peer */
  #searchFor(peer, times = 0) {
    setTimeout(
      () => {
        if (this.#isOver || !this.#has(peer) || !peer.away) {
          return;
        }
        if (this.#flow === "connect") {
          // The server does not tell that a partner is back.
          peer.resend(true);
        }
        if (this.online && times > 0 && times <= SEARCHES_MAX) {
          this.#reconnect();
        }
        this.#searchFor(peer, times + 1);
      },
      pause(times + 3),
    );
  }

  /** @package Handles an event of a peer's connection.
   *  @param {Peer} peer @param {string} type @param {object} [fields] */
  _onPeerEvent(peer, type, fields) {
    if (!this.#has(peer)) {
      return;
    }
    if (type !== "close") {
      this.#emit(type, { peer, ...fields });
    }
    if (peer.alive) {
      peer.attempt = 0;
    } else if (peer.away) {
      this.#drop(peer);
    } else if (type === "close") {
      // The server sees the peer, but its side of the connection is closed.
      this.#schedule(peer, 0, () => this.#renew(peer));
    } else if (peer.pc.connectionState === "failed") {
      this.#schedule(peer, 0, () => peer.pc.restartIce());
    }
  }

  /** @package Emits an error and renews the connection if work with a peer fails, unless we have closed the connection.
   *  @param {Peer} peer @param {Promise<unknown>} work */
  _renewOnFailure(peer, work) {
    work.catch((error) => {
      if (!this.#has(peer) || peer.pc.signalingState === "closed") {
        return;
      }
      this.#emit("error", { peer, error });
      this.#schedule(peer, 0, () => this.#renew(peer));
    });
  }

  /** @package Sends a message to a peer, unless all will be sent again. @param {Peer} peer @param {object} message */
  _sendTo(peer, message) {
    if (!this.#has(peer)) {
      return;
    }
    if (this.online && !peer.isHeld) {
      this.#send({ target_id: peer.id, ...message }, peer);
    } else {
      peer.isUnheard = true;
    }
  }

  /** @param {Peer | undefined} peer @param {number} size */
  #emitTooBig(peer, size) {
    if (peer && this.#has(peer)) {
      const error = failure("too_big", `${size} bytes are too many for the server`);
      this.#emit("error", { peer, error });
    }
  }

  /** @param {Peer} peer */
  #has(peer) {
    return this.peers.get(peer.id) === peer;
  }

  /** @param {string} type @param {object} [fields] */
  #emit(type, fields) {
    const event = Object.assign(new Event(type), fields);
    this.dispatchEvent(event);
  }

  /** @param {object} message @param {Peer} [peer] */
  #send(message, peer) {
    if (this.#ws?.readyState !== WebSocket.OPEN) {
      return;
    }
    const text = JSON.stringify({ id: this.id, ...message });
    const size = text.length;
    if (size >= this.#sizeMax) {
      this.#emitTooBig(peer, size);
      return;
    }
    if (size > this.#largest.size) {
      this.#largest = { size, peer };
    }
    this.#ws.send(text);
  }

  /** Calls an action after a pause that grows with each attempt, unless the peer is gone by then.
   *  @param {Peer} peer @param {number} ms @param {() => void} action */
  #schedule(peer, ms, action) {
    const delay = ms + pause(peer.attempt);
    peer.attempt += 1;
    setTimeout(() => {
      if (this.#has(peer)) {
        action();
      }
    }, delay);
  }

  /** Holds back messages to a peer, and sends our description again later. @param {Peer} peer @param {number} ms */
  #scheduleResend(peer, ms) {
    if (!peer.isHeld) {
      this.#schedule(peer, ms, () => peer.resend());
    }
    peer.isUnheard = true;
    peer.isHeld = true;
  }
}
