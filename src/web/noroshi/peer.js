/**
 * Another peer of the room, as the application sees it. The object stays the same while the other page is in the
 * room, also when the library replaces the RTCPeerConnection.
 */

/**
 * A JSON value. A property that is `undefined` is left out.
 *
 * @typedef {null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json | undefined }} Json
 */

/**
 * What `send` accepts.
 *
 * @typedef {string | ArrayBuffer | ArrayBufferView | Json} Data
 */

/**
 * @typedef {"connecting" | "connected" | "interrupted" | "failed" | "closed"} PeerState
 */

/**
 * The options of `write`.
 *
 * @typedef {object} WriteOptions
 * @property {AbortSignal} [signal] ends the transfer: the receiver drops what it has of the message
 * @property {(progress: { sent: number, size: number }) => void} [onprogress] is called after each piece, with bytes
 */

/**
 * How the connection to a peer works at the moment.
 *
 * @typedef {object} PeerStats
 * @property {"direct" | "relay" | undefined} route through a TURN server or not; undefined while not connected
 * @property {string | undefined} local the type of the local candidate: `host`, `srflx`, `prflx` or `relay`
 * @property {string | undefined} remote the type of the remote candidate
 * @property {number | undefined} rtt the round-trip time in milliseconds
 * @property {number} sent bytes
 * @property {number} received bytes
 */

export class Peer {
  /** @type {import("./peer_session.js").PeerSession} */
  #session;

  /**
   * @param {import("./peer_session.js").PeerSession} session
   * @internal
   */
  constructor(session) {
    this.#session = session;
  }

  /** Its id. @type {string} */
  get id() {
    return this.#session.id;
  }

  /** The metadata of the peer: a JSON value or undefined, unchecked. It is there before `open`. @type {any} */
  get data() {
    return this.#session.data;
  }

  /**
   * - `connecting`: messages could not be sent yet
   * - `connected`
   * - `interrupted`: it was connected, and the library reconnects
   * - `failed`: attempts to connect have failed; further ones follow
   * - `closed`: the peer has left, or its connection is lost
   *
   * @type {PeerState}
   */
  get state() {
    return this.#session.state;
  }

  /** Whether messages can be sent to it. If the connection is interrupted, they are delivered if ICE recovers, and lost
   *  if `reconnecting` follows. */
  get alive() {
    return this.#session.isAlive;
  }

  /** Whether the server no longer sees the peer, and only the direct connection is left. */
  get away() {
    return this.#session.isAway;
  }

  /** The present connection. The library may replace it: see the event `reconnecting`. */
  get pc() {
    return this.#session.connection.pc;
  }

  /** Bytes that wait to be sent. At 16 MB, browsers close the channel: await `drained()` before. */
  get bufferedAmount() {
    return this.#session.connection.messages.bufferedAmount;
  }

  /** The largest message of `send` in bytes: 64 KiB or more, the smaller limit of both sides. */
  get maxMessageSize() {
    return this.#session.transfer.maxMessageSize;
  }

  /**
   * Sends one message, in order and reliably.
   *
   * @param {Data} data a string, an ArrayBuffer, a view of one, or another JSON value
   * @throws {import("./errors.js").NoroshiError} `not_open` before `open`, `too_big` above `maxMessageSize`
   */
  send(data) {
    this.#session.transfer.send(data);
  }

  /**
   * Sends one message that may be lost or arrive out of order: for positions in a game, for example.
   *
   * @param {string | ArrayBuffer | ArrayBufferView} data at most 16 KiB
   * @returns {boolean} false if it was not sent, because the channel is not open or congested
   */
  sendUnreliable(data) {
    return this.#session.transfer.sendUnreliable(data);
  }

  /**
   * Sends a message of any size, in pieces, as fast as the connection takes them. Other messages may arrive before it.
   *
   * @param {Data | Blob} data also a Blob or a File, which arrives as one
   * @param {WriteOptions} [options]
   * @returns {Promise<void>} when the last piece is buffered
   */
  write(data, options) {
    return this.#session.transfer.write(data, options);
  }

  /**
   * Resolves when at most `bytes` bytes are not sent yet, or the channel is closed.
   *
   * @param {number} [bytes]
   * @param {{ signal?: AbortSignal }} [options]
   */
  drained(bytes = 0, options) {
    return this.#session.transfer.drained(bytes, options);
  }

  /**
   * Reads how the connection works: its route, its round-trip time and its bytes.
   *
   * @returns {Promise<PeerStats>}
   */
  async stats() {
    return readStats(this.pc);
  }
}

/**
 * @param {RTCPeerConnection} pc
 * @returns {Promise<PeerStats>}
 */
async function readStats(pc) {
  /** @type {any[]} */
  const entries = [];
  // The connection may be closed.
  const report = await pc.getStats().catch(() => undefined);
  report?.forEach((/** @type {any} */ entry) => entries.push(entry));
  const ofType = (/** @type {string} */ type) => entries.filter((entry) => entry.type === type);
  const byId = (/** @type {string | undefined} */ id) => entries.find((entry) => entry.id === id);
  const selected = byId(ofType("transport")[0]?.selectedCandidatePairId);
  const pairs = ofType("candidate-pair");
  // Some implementations have no transport statistics.
  const pair = selected ?? pairs.find((entry) => entry.nominated && entry.state === "succeeded");
  // The peers may send over other pairs than the locally selected one.
  const total = (/** @type {string} */ field) => pairs.reduce((sum, entry) => sum + (entry[field] ?? 0), 0);
  const local = byId(pair?.localCandidateId)?.candidateType;
  const remote = byId(pair?.remoteCandidateId)?.candidateType;
  const isRelayed = local === "relay" || remote === "relay";
  const rtt = pair?.currentRoundTripTime;
  const isConnected = pc.connectionState === "connected" && pair !== undefined;
  return {
    route: isConnected ? (isRelayed ? "relay" : "direct") : undefined,
    local,
    remote,
    rtt: rtt === undefined ? undefined : rtt * 1000,
    sent: total("bytesSent"),
    received: total("bytesReceived"),
  };
}
