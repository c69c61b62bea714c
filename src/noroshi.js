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
 *     error   {error}                 an Error with the `code` of the protocol, or `replaced`
 */

/** @typedef {RTCConfiguration & {id?: string}} Options `id`: 1 to 128 bytes of UTF-8; a random one if missing */

// In ms. A pause doubles with each attempt, and is jittered. After `rate_limited`, the server forgives who is silent
// for 2 s. Its TURN credentials last 12 h.
const PAUSE_MIN = 500, PAUSE_MAX = 15_000, PAUSE_RATE = 2_500, RENEW_EVERY = 3_600_000;
const RETURNS_MAX = 5; // Attempts to come back to an id, or a place, that our own dead connection may hold.

const pause = (attempt) => Math.min(PAUSE_MIN * 2 ** attempt, PAUSE_MAX) * (0.5 + Math.random());
const failure = (code, message) => Object.assign(new Error(message), { code });
// crypto.randomUUID is for https and localhost only.
const randomId = () => [...crypto.getRandomValues(new Uint32Array(4))].map((n) => n.toString(36)).join("");
/** The line of an SDP that names its RTCPeerConnection and counts its versions (RFC 8866 section 5.2). */
const origin = (description) => /^o=.*/m.exec(description?.sdp)?.[0];
const session = (description) => origin(description)?.split(" ")[1];

/** Joins the mesh of a room: everybody is connected to everybody. Fails with a `code` of the protocol or `unreachable`.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const join = async (url, options) => new Room(url, "join", options).entered;

/** Is paired with whoever else connects, one at a time: when that one is gone, the next is looked for.
 *  @type {(url: string, options?: Options) => Promise<Room>} */
export const connect = async (url, options) => new Room(url, "connect", options).entered;

/** Somebody else in the room, and the connection to it, by perfect negotiation (W3C WebRTC, section 10.7). */
class Peer {
  /** @type {RTCDataChannel=} */ channel;
  /** Whether the server has lost sight of it, and only the connection lives. */ away = false;
  attempt = 0; stale = false; // Something that we said was refused.
  #room; #making = false; #settling = false;

  constructor(id, room, options) {
    /** @type {string} Empty until somebody answers our offer (`connect`). */ this.id = id;
    const pc = this.pc = new RTCPeerConnection(options);
    this.#room = room;
    pc.onnegotiationneeded = async () => {
      this.#making = true;
      await pc.setLocalDescription().then(() => this.#describe(), () => {}); // It may be closed.
      this.#making = false;
    };
    pc.onicecandidate = ({ candidate }) => candidate && room._say(this, { type: "candidateAdd", candidate });
    pc.ontrack = ({ track, streams }) => room._tell(this, "track", { track, streams });
    pc.onconnectionstatechange = () => room._tell(this, "state");
  }

  /** Whether it can be sent to. */
  get alive() { return this.channel?.readyState === "open" && !/disc|fail|closed/.test(this.pc.connectionState); }
  /** @param {string | Blob | ArrayBuffer | ArrayBufferView} data */
  send(data) { this.channel.send(data); }

  /** Opens the channel, as the other side does. This makes an offer, unless one is being answered. In glare, Chrome
   *  cannot yield with its first audio to a first video, or the reverse (since 148): the offer has both beforehand. */
  begin(kinds = ["audio", "video"]) {
    for (const kind of kinds) this.pc.addTransceiver(kind, { direction: "recvonly" });
    const channel = this.channel = this.pc.createDataChannel("noroshi", { negotiated: true, id: 0 });
    channel.binaryType = "arraybuffer";
    channel.onmessage = ({ data }) => this.#room._tell(this, "message", { data });
    channel.onopen = channel.onclose = ({ type }) => this.#room._tell(this, type);
  }

  async receive(type, content) {
    const { pc } = this, isStable = pc.signalingState === "stable";
    if (type === "candidate") return pc.addIceCandidate(content).catch(() => {}); // Of an offer that was ignored.
    const isLate = isStable || content?.to && content.to !== origin(pc.localDescription);
    const collides = this.#making || !isStable && !this.#settling;
    if (type === "answer" ? isLate : collides && this.#room.id > this.id) return; // The lesser id is polite.
    this.#settling = type === "answer";
    await pc.setRemoteDescription(content).finally(() => this.#settling = false);
    if (type === "answer") return;
    if (!this.channel) this.begin([]);
    await pc.setLocalDescription();
    this.#describe();
  }

  /** Says what we offer or answer, and which description of theirs we know. */
  #describe() {
    const { type, sdp } = this.pc.localDescription;
    this.#room._say(this, { type, sdp: { type, sdp, to: origin(this.pc.remoteDescription) } });
  }

  /** Says again what may be lost. Nothing waits in queues: a description has all candidates so far, and may be heard
   *  twice. */
  resend() {
    if (!this.stale && this.pc.signalingState !== "have-local-offer") return;
    this.stale = false;
    if (this.pc.localDescription) this.#describe();
  }
}

/** A room that we are in. Its events are listed at the top. */
class Room extends EventTarget {
  /** @type {Map<string, Peer>} */ peers = new Map();
  /** Whether the server is there. */ online = false;
  #url; #flow; #iceServers; #options; #ws; #timer; #settle; #attempt = 0; #wasIn = false; #isOver = false;

  constructor(url, flow, { id = randomId(), iceServers = [], ...options } = {}) {
    super();
    /** @type {string} */ this.id = id;
    options = { bundlePolicy: "max-bundle", ...options, iceServers };
    [this.#url, this.#flow, this.#iceServers, this.#options] = [url, flow, iceServers, options];
    this.entered = new Promise((resolve, reject) => this.#settle = { resolve, reject });
    this.#open();
    this.#timer = setInterval(() => flow === "join" && this.#send({ type: flow }), RENEW_EVERY);
    addEventListener("pagehide", ({ persisted }) => persisted || this.leave()); // Else they see it after 5 s only.
  }

  /** Says something to all who can hear it. */
  send(data) { this.peers.forEach((peer) => peer.alive && peer.send(data)); }
  /** Leaves for good. */
  leave() { this.#end(); }

  #end(error) {
    [this.#isOver, this.online] = [true, false];
    clearInterval(this.#timer);
    this.#ws.close();
    this.peers.forEach((peer) => error ? this.#see(peer, false) : this.#drop(peer));
    this.#settle.reject(error);
    if (error) this.#emit("error", { error });
  }

  #open() {
    const ws = this.#ws = new WebSocket(this.#url);
    ws.onopen = () => {
      if (this.#flow === "connect") this.#arrive([]);
      // Whoever has a partner wants no other, but to be addressable: any message registers the id.
      this.#send({ type: this.#flow === "connect" && this.peers.size ? "leave" : this.#flow });
    };
    ws.onmessage = ({ data }) => this.#isOver || this.#hear(JSON.parse(data));
    ws.onclose = ({ code }) => {
      if (this.#isOver) return;
      if (code === 4000) return this.#end(failure("replaced", "the id has gone to another connection"));
      if (!this.#wasIn) return this.#end(failure("unreachable", `${this.#url} cannot be reached`));
      if (this.online) this.#emit("offline", this.online = false);
      const attempt = code === 1008 || code === 1009 ? 9 : this.#attempt++; // We said too much.
      setTimeout(() => this.#isOver || this.#open(), pause(attempt));
    };
  }

  #hear({ type, id, target_id, peers, sdp, candidate, iceServers, code, message }) {
    if (iceServers) this.#options.iceServers = [...this.#iceServers, ...iceServers];
    if (iceServers) this.peers.forEach(({ pc }) => pc.setConfiguration(this.#options));
    if (type === "error") return this.#refused(failure(code, message), this.peers.get(target_id ?? ""));
    this.#attempt = 0;
    let peer = this.peers.get(id);
    if (type === "joined") this.#arrive(peers);
    if (type === "peerLeft") this.#see(peer, false);
    if (type === "peerJoined") peer?.alive ? this.#see(peer, true) : this.#add(id);
    if (type === "answer" && this.peers.has("")) peer = this.#name(this.peers.get(""), id);
    if (type === "offer") {
      if (!id) this.peers.forEach((other) => this.#drop(other)); // The server itself pairs us.
      if (!sdp) return this.#add("").begin();
      const [known, now] = [peer?.pc.remoteDescription, JSON.parse(sdp)].map(session);
      if (!id || known && known !== now) peer = this.#add(id ?? target_id); // That page was loaded anew.
    }
    for (const text of sdp ? [sdp] : candidate?.split("|") ?? []) {
      peer?.receive(type, JSON.parse(text)).catch((error) => this._tell(peer, "error", { error }));
    }
  }

  #refused(error, peer) {
    const { code } = error, isTaken = code === "id_taken" || code === "room_full";
    if (code === "peer_busy" && peer) this.#retry(peer, 0);
    else if (code === "rate_limited") {
      this.peers.forEach((each) => this.#retry(each, PAUSE_RATE));
      setTimeout(() => this.peers.size || this.#send({ type: this.#flow }), PAUSE_RATE);
    } else if (code === "unknown_peer") this.#see(peer, false);
    else if (code === "offer_taken" || code === "not_offerer") this.#drop(peer);
    else if (isTaken && this.#wasIn && this.#attempt < RETURNS_MAX) this.#ws.close(); // And comes back.
    else if (isTaken || !this.#wasIn) this.#end(error);
    else this.#emit("error", { error });
  }

  /** On a new connection to the server, who is alive stays, and all else begins anew. */
  #arrive(ids) {
    if (!this.online) {
      this.online = this.#wasIn = true;
      this.peers.forEach((peer) => this.#see(peer, ids.includes(peer.id)));
      this.#settle.resolve(this);
      this.#emit("online");
    }
    // Later, so that whoever waits for `join` has its listeners.
    setTimeout(() => ids.forEach((id) => this.peers.has(id) || this.#add(id).begin()));
  }

  #add(id) {
    this.#drop(this.peers.get(id));
    return this.#name(new Peer(id, this, this.#options), id);
  }

  #name(peer, id) {
    this.peers.delete(peer.id);
    this.peers.set(peer.id = id, peer);
    if (id) this.#emit("peer", { peer });
    return peer;
  }

  #drop(peer) {
    if (!peer || !this.#has(peer)) return;
    peer.pc.close();
    this.peers.delete(peer.id);
    if (peer.id) this.#emit("left", { peer });
    if (this.#flow === "connect" && !this.peers.size) this.#send({ type: "connect" });
  }

  /** The server sees a peer, or sees it no more. Whoever is not alive is dropped. */
  #see(peer, isHere) {
    if (!peer?.alive) return this.#drop(peer);
    peer.away = !isHere;
    if (isHere) peer.resend();
    this.#emit("state", { peer });
  }

  /** @package Something happened to a peer. */
  _tell(peer, type, fields) {
    if (!this.#has(peer)) return;
    if (type !== "close") this.#emit(type, { peer, ...fields });
    if (peer.alive) peer.attempt = 0;
    else if (peer.away) this.#drop(peer);
    else if (type === "close") this.#later(peer, 0, () => { // It is here, but its side of the connection is closed.
      if (this.#flow === "connect") this.#send({ type: "leave" });
      this.#drop(peer);
      if (this.#flow === "join" && this.online) this.#add(peer.id).begin();
    });
    else if (peer.pc.connectionState === "failed") this.#later(peer, 0, () => peer.pc.restartIce());
  }

  /** @package Says something to a peer, unless it will be said again. */
  _say(peer, message) {
    if (this.#has(peer) && this.online && !peer.stale) this.#send({ target_id: peer.id, ...message });
  }

  #has(peer) { return this.peers.get(peer.id) === peer; }
  #emit(type, fields) { this.dispatchEvent(Object.assign(new Event(type), fields)); }
  #send(message) { if (this.#ws.readyState === 1) this.#ws.send(JSON.stringify({ id: this.id, ...message })); }
  #later(peer, ms, act) { setTimeout(() => this.#has(peer) && act(), ms + pause(peer.attempt++)); }
  #retry(peer, ms) { if (!peer.stale) this.#later(peer, ms, () => peer.resend()); peer.stale = true; }
}
