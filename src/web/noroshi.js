/**
 * The client library of noroshi: browsers find each other through its signaling, then talk directly.
 *
 * The events of a room, and what they carry:
 *     peer    {peer}                  somebody came, and is being connected to
 *     open    {peer}                  can be sent to
 *     message {peer, data}            said something: a string or an ArrayBuffer
 *     track   {peer, track, streams}  shows something: `peer.pc.addTrack(…)` over there, at any time
 *     state   {peer}                  `peer.pc.connectionState` or `peer.away` may have changed
 *     left    {peer}                  is gone
 *     offline, online                 the server is lost, and is back; who is connected stays connected
 *     error   {error, peer?}          an Error. With a peer: something failed between it and us, and is tried again,
 *                                     unless its `code` is `too_big`. Without: a `code` of the protocol, or `replaced`
 */

/** @typedef {RTCConfiguration & {id?: string, token?: string | (() => string | Promise<string>)}} Options
 *    `id`: 1 to 128 bytes of UTF-8; a random one if missing. `token`: where the server wants one. A function is asked
 *    before each attempt to connect, so that it can return a fresh one after hours. */
/** @typedef {Error & {code?: string}} Failure */
/** @typedef {{
 *    peer: {peer: Peer}, open: {peer: Peer}, message: {peer: Peer, data: string | ArrayBuffer},
 *    track: {peer: Peer, track: MediaStreamTrack, streams: readonly MediaStream[]}, state: {peer: Peer},
 *    left: {peer: Peer}, offline: {}, online: {}, error: {error: Failure, peer?: Peer},
 *  }} Events */

// In ms. A pause doubles with each attempt, and is jittered. After `rate_limited`, the server forgives who is silent
// for 2 s. It may take 5 s to find out whether our id is free. Its TURN credentials last 12 h.
const PAUSE_MIN = 500, PAUSE_MAX = 15_000, PAUSE_RATE = 2_500, OPENING_MAX = 15_000, RENEW_EVERY = 3_600_000;
// Browsers cannot ping, and notice late or never that a network is gone: who is silent for so long is asked something.
const SILENCE_MAX = 25_000, ANSWER_MAX = 5_000;
const RETURNS_MAX = 5; // Attempts to come back to an id, or a place, that our own dead connection may hold.
const SEARCHES_MAX = 3; // New connections to the server, to find a peer that lives and that it does not see.

const pause = (/** @type {number} */ attempt) => Math.min(PAUSE_MIN * 2 ** attempt, PAUSE_MAX) * (0.5 + Math.random());
/** @type {(code: string, message: string) => Failure} */
const failure = (code, message) => Object.assign(new Error(message), { code });
// crypto.randomUUID is for https and localhost only.
const randomId = () => [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(36)).join("");
/** The line of an SDP that names its RTCPeerConnection and counts its versions (RFC 8866 section 5.2).
 *  @param {{sdp?: string} | null | undefined} description */
const origin = (description) => /^o=.*/m.exec(description?.sdp ?? "")?.[0];
// What is left of that line after a browser has rewritten it.
const session = (/** @type {string=} */ line) => line?.split(" ")[1];
const version = (/** @type {string=} */ line) => line?.split(" ").slice(1, 3).join(" ");

/** Joins the mesh of a room: everybody is connected to everybody. Fails with a `code`: one of the protocol; `unauthorized`
 *  or `forbidden`, if the token is not good, or not for this room; `refused`, if there is a server that does not let us in
 *  for another reason, or does not let us know; `unreachable`, if there is none.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const join = async (url, options) => new Room(url, "join", options).entered;

/** Is paired with whoever else connects, one at a time: when that one is gone, the next is looked for. Fails like `join`.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const connect = async (url, options) => new Room(url, "connect", options).entered;

/** Somebody else in the room, and the connection to it, by perfect negotiation (W3C WebRTC, section 10.7). */
export class Peer {
  /** @type {RTCDataChannel=} */ channel;
  /** Whether the server has lost sight of it, and only the connection lives. */ away = false;
  attempt = 0; isUnheard = false; isHeld = false; // Something may not have arrived; it will be said again soon.
  /** @type {Room} */ #room;
  #making = false; #settling = false; // An offer of ours is being made, or an answer to it set.
  /** Which version of theirs is being answered. @type {string=} */ #answering = "";

  /** @param {string} id @param {Room} room @param {RTCConfiguration} options */
  constructor(id, room, options) {
    /** Empty until somebody answers our offer (`connect`). */ this.id = id;
    const pc = this.pc = new RTCPeerConnection(options);
    this.#room = room;
    // Who has no channel yet awaits the first offer, and may add to its answer.
    pc.onnegotiationneeded = () => this.channel && room._try(this, this.#offer());
    pc.onicecandidate = ({ candidate }) => candidate && room._say(this, { type: "candidateAdd", candidate });
    pc.ontrack = ({ track, streams }) => room._tell(this, "track", { track, streams });
    pc.onconnectionstatechange = () => room._tell(this, "state");
  }

  /** Whether it can be sent to. */
  get alive() { return this.channel?.readyState === "open" && !/disc|fail|closed/.test(this.pc.connectionState); }
  /** Bytes that wait to go out. Await `drained()` before they are many: at 16 MB, browsers close the channel. */
  get bufferedAmount() { return this.channel?.bufferedAmount ?? 0; }
  /** Bytes of one message, at most: 64 KiB or more, by what both browsers can. */
  get maxMessageSize() { return this.pc.sctp?.maxMessageSize ?? 65_536; }

  /** @param {string | ArrayBuffer | ArrayBufferView<ArrayBuffer>} data of at most `maxMessageSize` bytes */
  send(data) {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data).length : data?.byteLength;
    if (bytes === undefined) throw new TypeError("what is sent is a string, an ArrayBuffer or a view of one");
    if (this.channel?.readyState !== "open") throw failure("not_open", `${this.id} is not connected: await its open event`);
    if (bytes > this.maxMessageSize) throw failure("too_big", `${bytes} bytes in one message; ${this.maxMessageSize} are possible`);
    this.channel.send(/** @type {any} */ (data));
  }

  /** Resolves when at most so many bytes wait to go out, or the channel is closed. */
  async drained(bytes = 0) {
    const { channel } = this;
    while (channel?.readyState === "open" && channel.bufferedAmount > bytes) {
      channel.bufferedAmountLowThreshold = bytes; // Each time: there may be others who wait, for another one.
      await new Promise((resolve) => {
        for (const type of ["bufferedamountlow", "close"]) channel.addEventListener(type, resolve, { once: true });
      });
    }
  }

  /** Opens the channel, as the other side does. This makes an offer, unless one is being answered. In glare, Chrome
   *  cannot yield with its first audio to a first video, or the reverse (since 148): the offer has both beforehand. */
  begin(kinds = ["audio", "video"]) {
    for (const kind of kinds) this.pc.addTransceiver(kind, { direction: "recvonly" });
    const channel = this.channel = this.pc.createDataChannel("noroshi", { negotiated: true, id: 0 });
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => this.#room._tell(this, "message", { data });
    channel.onopen = channel.onclose = ({ type }) => this.#room._tell(this, type);
  }

  async #offer() {
    this.#making = true;
    await this.pc.setLocalDescription().finally(() => this.#making = false);
    this.#describe();
  }

  /** @param {string} type @param {string} text JSON of a description or a candidate */
  async receive(type, text) {
    const { pc } = this, content = JSON.parse(text), state = pc.signalingState;
    if (type === "candidate") return this.#addCandidate(content);
    const { localDescription: ours, currentRemoteDescription: theirs } = pc, said = version(origin(content));
    const collides = this.#making || state !== "stable" && !this.#settling;
    if (type === "answer") {
      const isLate = ours?.type !== "offer" || content.to && version(content.to) !== version(origin(ours));
      if (isLate) return this.#insist();
      const isAwaited = state === "have-local-offer" && !this.#settling;
      if (!isAwaited) return this.#addCandidates(content.sdp); // Heard before, but perhaps not all that came with it.
      this.#settling = true;
      return pc.setRemoteDescription(content).finally(() => this.#settling = false);
    }
    if (said === this.#answering) return this.#addCandidates(content.sdp); // Heard before, too.
    if (theirs && version(origin(theirs)) === said) {
      await this.#addCandidates(content.sdp); // They have not our answer yet, or want that one and no other.
      this.#describe(pc.currentLocalDescription, theirs);
      return this.#insist();
    }
    if (collides && this.#room.id > this.id) return this.#insist(); // The lesser id is polite.
    this.#answering = said;
    await pc.setRemoteDescription(content);
    if (!this.channel) this.begin([]);
    await pc.setLocalDescription();
    this.#answering = "";
    this.#describe();
  }

  /** @param {RTCIceCandidateInit} candidate */
  #addCandidate(candidate) { return this.pc.addIceCandidate(candidate).catch(() => {}); } // Of an offer that was ignored.

  /** Those of a description that is set already. @param {string} sdp */
  async #addCandidates(sdp) {
    for (const section of sdp.split(/^m=/m).slice(1)) {
      const [sdpMid, usernameFragment] = ["mid", "ice-ufrag"].map((name) => RegExp(`^a=${name}:(\\S+)`, "m").exec(section)?.[1]);
      for (const [, candidate] of section.matchAll(/^a=(candidate:.*)/gm)) {
        await this.#addCandidate({ candidate, sdpMid, usernameFragment });
      }
    }
  }

  /** Says what we offer or answer, and which description of theirs we know. */
  #describe(ours = this.pc.localDescription, theirs = this.pc.remoteDescription) {
    const { type, sdp } = /** @type {RTCSessionDescription} */ (ours);
    this.#room._say(this, { type, sdp: { type, sdp, to: origin(theirs) } });
  }

  /** Says again what we offer, to whoever shows that it may not have heard it. */
  #insist() { if (this.pc.signalingState === "have-local-offer") this.#describe(); }

  /** Says again what may be lost, as an answer always may. Nothing waits in queues: a description has all candidates so
   *  far, and may be heard twice. */
  resend(isSure = this.isUnheard) {
    const { signalingState, localDescription } = this.pc;
    this.isUnheard = this.isHeld = false;
    if (!localDescription || signalingState === "have-remote-offer") return;
    if (isSure || signalingState !== "stable" || localDescription.type === "answer") this.#describe();
  }
}

/** A room that we are in. Its events are listed at the top. */
export class Room extends EventTarget {
  /** @type {Map<string, Peer>} */ peers = new Map();
  /** Whether the server is there. */ online = false;
  /** @type {string} */ #url;
  /** The same, with a token. @type {string} */ #address;
  /** @type {Options["token"]} */ #token;
  /** @type {"join" | "connect"} */ #flow;
  /** @type {RTCIceServer[]} */ #iceServers;
  /** @type {RTCConfiguration} */ #options;
  /** @type {WebSocket} */ #ws = /** @type {any} */ (undefined);
  /** @type {{resolve: (room: Room) => void, reject: (error?: Failure) => void}} */ #settle = /** @type {any} */ (undefined);
  /** For what is awaited of the server: one thing at a time. @type {number=} */ #timer;
  #renewal; #listeners = new AbortController();
  #attempt = 0; #openings = 0; #wasOpened = false; #wasIn = false; #isOver = false; #isAsleep = false; #isAsking = false;
  /** The largest message since the WebSocket opened. @type {{size: number, peer?: Peer}} */ #largest = { size: 0 };
  /** What is as large as this is too large for the server. */ #sizeMax = Infinity;

  /** @param {string} url @param {"join" | "connect"} flow @param {Options} [options] */
  constructor(url, flow, { id = randomId(), token, iceServers = [], ...options } = {}) {
    super();
    this.id = id;
    options = { bundlePolicy: "max-bundle", ...options };
    [this.#url, this.#address, this.#token, this.#flow] = [url, url, token, flow];
    [this.#iceServers, this.#options] = [iceServers, { ...options, iceServers }];
    new RTCPeerConnection(this.#options).close(); // Throws now, and not when somebody comes, if they are wrong.
    /** @type {Promise<Room>} */
    this.entered = new Promise((resolve, reject) => this.#settle = { resolve, reject });
    this.#open().catch((error) => this.#end(error)); // The URL is none.
    this.#renewal = setInterval(() => flow === "join" && this.#send({ type: flow }), RENEW_EVERY);
    const { signal } = this.#listeners; // Which ends with us: nothing global shall hold a room that was left.
    addEventListener("online", () => this.#ask(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.#ask(), { signal });
    // A page may come back as it was. Others must not wait for it, nor take 5 s to see that it is gone for good.
    addEventListener("pagehide", ({ persisted }) => persisted ? this.#sleep() : this.leave(), { signal });
    addEventListener("pageshow", ({ persisted }) => persisted && this.#wake(), { signal });
  }

  /** @template {keyof Events} K @param {K} type @param {(event: Event & Events[K]) => void} listener
   *  @param {AddEventListenerOptions | boolean} [options] */
  addEventListener(type, listener, options) { super.addEventListener(type, /** @type {any} */ (listener), options); }

  /** Says something to all who can hear it. What fails is an `error` with that peer. @param {Parameters<Peer["send"]>[0]} data */
  send(data) {
    for (const peer of this.peers.values()) {
      try { if (peer.alive) peer.send(data); } catch (error) { this.#emit("error", { peer, error }); }
    }
  }
  /** Leaves for good. */
  leave() { this.#end(); }

  /** @param {Failure} [error] */
  #end(error) {
    if (this.#isOver) return;
    [this.#isOver, this.online] = [true, false];
    clearInterval(this.#renewal);
    clearTimeout(this.#timer);
    this.#listeners.abort();
    this.#ws?.close();
    this.peers.forEach((peer) => error ? this.#see(peer, false) : this.#drop(peer));
    this.#settle.reject(error ?? failure("left", "the room was left before it was entered"));
    if (error) this.#emit("error", { error });
  }

  // ---- The server ----

  async #open() {
    this.#hangUp();
    const opening = ++this.#openings;
    if (this.#token) {
      try { await this.#authorize(); } catch (error) { return this.#failed(/** @type {Failure} */ (error)); }
      if (this.#isOver || this.#isAsleep || opening !== this.#openings) return;
    }
    const ws = this.#ws = new WebSocket(this.#address);
    [this.#largest, this.#wasOpened, this.#isAsking] = [{ size: 0 }, false, false];
    this.#after(OPENING_MAX, () => this.#lose());
    ws.onopen = () => {
      this.#wasOpened = true;
      this.#flow === "join" ? this.#send({ type: "join" }) : this.#probe(); // Any message registers our id.
    };
    ws.onmessage = ({ data }) => this.#isOver || this.#hear(JSON.parse(data));
    ws.onclose = ({ code }) => this.#lost(code);
  }

  /** Where we connect to, with a token that is good now: browsers cannot set headers. */
  async #authorize() {
    const url = new URL(this.#url, location.href);
    url.searchParams.set("token", typeof this.#token === "function" ? await this.#token() : this.#token ?? "");
    this.#address = url.href;
  }

  /** @param {number} [code] */
  async #lost(code) {
    if (this.#isOver) return;
    clearTimeout(this.#timer);
    if (!this.#wasIn && this.#isAsleep) return; // It goes on when we wake up.
    if (code === 4000) return this.#end(failure("replaced", "the id has gone to another connection"));
    if (this.online) this.#emit("offline", {}, this.online = false);
    if (code === 1009) this.#tooBig(this.#largest.peer, this.#sizeMax = this.#largest.size);
    const opening = this.#openings, isWorthAsking = !this.#wasIn || this.#token && !this.#wasOpened;
    const why = isWorthAsking ? await this.#diagnose() : undefined;
    if (opening === this.#openings) this.#failed(why, code);
  }

  /** @param {Failure} [why] @param {number} [code] */
  #failed(why, code) {
    if (this.#isOver) return;
    if (why && (!this.#wasIn || why.code === "unauthorized" || why.code === "forbidden")) this.#end(why);
    else if (!this.#isAsleep) this.#after(pause(code === 1008 ? 9 : this.#attempt++), () => this.#open()); // 1008: too much.
  }

  /** Why we could not come in. A browser does not say how an upgrade was refused, but it may show what a plain request is
   *  answered, or whether somebody is there at all. */
  async #diagnose() {
    const options = { cache: /** @type {const} */ ("no-store"), signal: AbortSignal.timeout(ANSWER_MAX) };
    const http = (/** @type {string} */ path) => {
      const url = new URL(path, new URL(this.#address, location.href));
      url.protocol = url.protocol.replace("ws", "http");
      return url;
    };
    const answer = await fetch(http(""), options).catch(() => undefined);
    const code = { 401: "unauthorized", 403: "forbidden" }[answer?.status ?? 0];
    if (answer && code) return failure(code, (await answer.text()).trim());
    const isThere = answer || await fetch(http("/healthz"), { ...options, mode: "no-cors" }).then(() => true, () => false);
    return isThere ? failure("refused", `${this.#url} does not let us in`) : failure("unreachable", `${this.#url} cannot be reached`);
  }

  /** Begins anew with the server, which does not answer, or may be another one. */
  #lose() { this.#hangUp(); this.#lost(); }

  /** Whatever becomes of the WebSocket, we hear nothing of it any more. */
  #hangUp() {
    if (!this.#ws) return;
    this.#ws.onopen = this.#ws.onmessage = this.#ws.onclose = null;
    this.#ws.close();
  }

  /** Expects a liveness signal from the server, or connects again at once. */
  #ask() {
    if (this.#isOver || this.#isAsleep) return;
    if (this.#ws?.readyState !== WebSocket.OPEN) return this.#open();
    this.#probe();
    this.#isAsking = true;
    this.#await();
  }

  /** Until something is heard. What was on its way when we asked is no answer, but there may be much of it. */
  #await() {
    if (this.#isAsking) this.#after(ANSWER_MAX, () => this.#lose());
    else this.#after(SILENCE_MAX, () => this.#ask());
  }

  /** Says what is answered at once, and changes nothing: we name ourselves, who are nobody else. Joining again would
   *  bring new TURN credentials, after which the next negotiation gathers all candidates anew. */
  #probe() { this.#send({ type: "candidateAdd", target_id: this.id, candidate: null }); }

  #sleep() { this.#isAsleep = true; this.#lose(); }
  #wake() { this.#isAsleep = false; this.#ask(); }
  /** @param {number} ms @param {() => void} act */
  #after(ms, act) { clearTimeout(this.#timer); this.#timer = setTimeout(act, ms); }

  /** @param {any} message */
  #hear({ type, id, target_id, peers, sdp, candidate, iceServers, code, message }) {
    const isProbe = code === "unknown_peer" && target_id === this.id;
    if (isProbe || code === "rate_limited") this.#isAsking = false;
    this.#await();
    if (iceServers) this.#options.iceServers = [...this.#iceServers, ...iceServers];
    if (iceServers) this.peers.forEach(({ pc }) => pc.setConfiguration(this.#options));
    if (type === "error" && !isProbe) return this.#refused(failure(code, message), this.peers.get(target_id ?? ""));
    this.#attempt = 0;
    if (isProbe && this.#flow === "join") return; // The server is there.
    if (isProbe || type === "joined") return this.#arrive(peers ?? []);
    if (type !== "peerLeft" && this.peers.get(id)?.away) this.#see(this.peers.get(id), true);
    let peer = this.peers.get(id);
    if (type === "peerLeft") this.#see(peer, false);
    if (type === "peerJoined") peer?.alive ? this.#see(peer, true) : peer = this.#add(id);
    if (type === "answer" && this.peers.has("")) peer = this.#name(/** @type {Peer} */ (this.peers.get("")), id);
    if (type === "offer") {
      if (!id) this.peers.forEach((other) => this.#drop(other)); // The server itself pairs us.
      if (!sdp) return this.#add("").begin();
      const [known, now] = [peer?.pc.remoteDescription, JSON.parse(sdp)].map((it) => session(origin(it)));
      const isAnew = known && known !== now; // That page was loaded anew, or it began anew with us.
      if (!id || isAnew || !peer && this.#flow === "join") peer = this.#add(id ?? target_id);
    }
    for (const text of sdp ? [sdp] : candidate?.split("|") ?? []) {
      if (peer) this._try(peer, peer.receive(type, text));
    }
  }

  /** @param {Failure} error @param {Peer} [peer] */
  #refused(error, peer) {
    const { code } = error, isTaken = code === "id_taken" || code === "room_full";
    if (code === "peer_busy" && peer) this.#retry(peer, 0);
    else if (code === "rate_limited") {
      this.peers.forEach((each) => this.#retry(each, PAUSE_RATE));
      setTimeout(() => this.peers.size || this.#send({ type: this.#flow }), PAUSE_RATE);
    } else if (code === "unknown_peer") {
      if (peer) peer.isUnheard = true;
      this.#see(peer, false);
    } else if (code === "offer_taken" || code === "not_offerer") this.#drop(peer);
    else if (isTaken && this.#wasIn && this.#attempt < RETURNS_MAX) this.#ws.close(); // And comes back.
    else if (isTaken || !this.#wasIn) this.#end(error);
    else this.#emit("error", { error });
  }

  // ---- The peers ----

  /** On a new connection to the server, who is alive stays, and all else begins anew. @param {string[]} ids */
  #arrive(ids) {
    if (!this.online) {
      this.online = this.#wasIn = true;
      // Whoever has a partner wants no other, but to be addressable.
      if (this.#flow === "connect" && !this.peers.size) this.#send({ type: "connect" });
      for (const peer of this.peers.values()) {
        // In a pair nobody tells who is here: we say something again, and hear whether it is; and it hears that we are.
        if (this.#flow === "connect") peer.isUnheard = true;
        this.#see(peer, this.#flow === "connect" || ids.includes(peer.id));
      }
      this.#settle.resolve(this);
      this.#emit("online");
    }
    // Later, so that whoever waits for `join` has its listeners.
    setTimeout(() => ids.forEach((id) => this.#isOver || this.peers.has(id) || this.#add(id).begin()));
  }

  /** @param {string} id */
  #add(id) {
    this.#drop(this.peers.get(id));
    return this.#name(new Peer(id, this, this.#options), id);
  }

  /** @param {Peer} peer @param {string} id */
  #name(peer, id) {
    this.peers.delete(peer.id);
    this.peers.set(peer.id = id, peer);
    if (id) this.#emit("peer", { peer });
    return peer;
  }

  /** @param {Peer} [peer] */
  #drop(peer) {
    if (!peer || !this.#has(peer)) return;
    peer.pc.close();
    this.peers.delete(peer.id);
    peer.channel?.dispatchEvent(new Event("close")); // Browsers tell it only of what the other side closes.
    if (peer.id) this.#emit("left", { peer });
    if (this.#flow === "connect" && !this.peers.size) this.#send({ type: "connect" });
  }

  /** Begins anew with somebody who is here. @param {Peer} peer */
  #renew(peer) {
    if (this.#flow === "connect") this.#send({ type: "leave" });
    this.#drop(peer);
    if (this.#flow === "connect" || !this.online) return;
    const anew = this.#add(peer.id);
    anew.attempt = peer.attempt;
    anew.begin();
  }

  /** The server sees a peer, or sees it no more. Whoever is not alive is dropped. @param {Peer | undefined} peer @param {boolean} isHere */
  #see(peer, isHere) {
    if (!peer?.alive) return this.#drop(peer);
    const wasAway = peer.away;
    peer.away = !isHere;
    if (isHere) peer.resend();
    else if (!wasAway) this.#search(peer);
    this.#emit("state", { peer });
  }

  /** A peer that lives comes back to the server by itself. If it does not, it may be we who are on another server than
   *  it is. @param {Peer} peer */
  #search(peer, times = 0) {
    setTimeout(() => {
      if (this.#isOver || !this.#has(peer) || !peer.away) return;
      if (this.#flow === "connect") peer.resend(true); // Nobody else tells us that it is back.
      if (this.online && times > 0 && times <= SEARCHES_MAX) this.#lose();
      this.#search(peer, times + 1);
    }, pause(times + 3));
  }

  /** @package Something happened to a peer. @param {Peer} peer @param {string} type @param {object} [fields] */
  _tell(peer, type, fields) {
    if (!this.#has(peer)) return;
    if (type !== "close") this.#emit(type, { peer, ...fields });
    if (peer.alive) peer.attempt = 0;
    else if (peer.away) this.#drop(peer);
    else if (type === "close") this.#later(peer, 0, () => this.#renew(peer)); // It is here, but its side is closed.
    else if (peer.pc.connectionState === "failed") this.#later(peer, 0, () => peer.pc.restartIce());
  }

  /** @package What fails between a peer and us, unless we have closed the connection, is told, and begins anew.
   *  @param {Peer} peer @param {Promise<unknown>} work */
  _try(peer, work) {
    work.catch((error) => {
      if (!this.#has(peer) || peer.pc.signalingState === "closed") return;
      this.#emit("error", { peer, error });
      this.#later(peer, 0, () => this.#renew(peer));
    });
  }

  /** @package Says something to a peer, unless it will be said again. @param {Peer} peer @param {object} message */
  _say(peer, message) {
    if (!this.#has(peer)) return;
    if (this.online && !peer.isHeld) this.#send({ target_id: peer.id, ...message }, peer);
    else peer.isUnheard = true;
  }

  /** @param {Peer | undefined} peer @param {number} size */
  #tooBig(peer, size) {
    if (peer && this.#has(peer)) this.#emit("error", { peer, error: failure("too_big", `${size} bytes are too many for the server`) });
  }

  /** @param {Peer} peer */
  #has(peer) { return this.peers.get(peer.id) === peer; }
  /** @param {string} type @param {object} [fields] @param {unknown} [_] */
  #emit(type, fields, _) { this.dispatchEvent(Object.assign(new Event(type), fields)); }
  /** @param {object} message @param {Peer} [peer] */
  #send(message, peer) {
    const text = JSON.stringify({ id: this.id, ...message }), size = text.length;
    if (this.#ws?.readyState !== WebSocket.OPEN) return;
    if (size >= this.#sizeMax) return this.#tooBig(peer, size);
    if (size > this.#largest.size) this.#largest = { size, peer };
    this.#ws.send(text);
  }
  /** @param {Peer} peer @param {number} ms @param {() => void} act */
  #later(peer, ms, act) { setTimeout(() => this.#has(peer) && act(), ms + pause(peer.attempt++)); }
  /** @param {Peer} peer @param {number} ms */
  #retry(peer, ms) {
    if (!peer.isHeld) this.#later(peer, ms, () => peer.resend());
    peer.isUnheard = peer.isHeld = true;
  }
}
