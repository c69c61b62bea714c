/**
 * One remote peer: its connections, one after the other, and the timers that replace them.
 *
 * The first description of a peer has no `to`. It is for a connection that waits for it, or begins a new one. In a glare
 * of first offers, the impolite peer ignores the other's offer, and the polite one takes a new RTCPeerConnection and
 * answers on that: nobody rolls back a first offer.
 *
 *                     begin(), or an offer                     channels open
 *       (added) ──────────────────────────────► connecting ───────────────────► connected
 *                                                  ▲    ▲                        │      ▲
 *                             renew: after 7 s     │    │  the peer has begun    │      │ ICE finds a path again,
 *                             without success,     │    │  a new connection,     │      │ or restarts
 *                             a failure, or a      │    │  or closed this one    ▼      │
 *                             closed channel       └────┴──────────────────── interrupted
 *
 * A connection that does not settle within 7 s, while both are online, is replaced: no state waits for ever.
 */

import { Connection } from "./connection.js";
import { NoroshiError } from "./errors.js";
import { parseConnectionId } from "./identity.js";
import { Senders } from "./media.js";
import { pauseBefore } from "./signaling.js";
import { Transfer } from "./transfer.js";

// All times are in milliseconds.

/** The time in which a connection must be established, and a negotiation completed. It grows with each attempt. */
const SETTLING_MAX = 7_000;
const SETTLING_GROWTH = 1.5;
const SETTLING_LONGEST = 60_000;
/** After a failure of ICE, the polite peer lets the impolite one restart it first. */
const POLITE_RESTART_DELAY = 2_000;
/** A failed operation of a connection is tried again. Another one within this time replaces the connection. */
const FAILURES_FORGOTTEN_AFTER = 10_000;
/** The time in which the first offer of a peer arrives that joins the room. */
const FIRST_OFFER_MAX = 3_000;
/** The time between repetitions of what a peer may have missed. */
const REPETITION_INTERVAL = 3_000;
/** The time for the first message of the control channel. It has the metadata of the peer, and comes before `open`. */
const HELLO_MAX = 2_000;
/** Messages that arrive before the first message of the control channel wait for it. More than these do not wait. */
const EARLY_MESSAGES_MAX = 1000;
const EARLY_BYTES_MAX = 1 << 20;
/** The length of a peer's data in characters of JSON. */
export const DATA_LENGTH_MAX = 16_384;

/**
 * @typedef {import("./connection.js").Description} Description
 * @typedef {import("./peer.js").PeerState} PeerState
 * @typedef {import("./room.js").LeftReason} LeftReason
 *
 * What a room provides to the sessions of its peers.
 *
 * @typedef {object} PeerHost
 * @property {string} id the id of the local peer
 * @property {() => boolean} isOnline
 * @property {() => string} nextConnectionId
 * @property {() => RTCConfiguration} configuration
 * @property {typeof RTCPeerConnection} RTCPeerConnection
 * @property {number} receiveBytesMax
 * @property {number | undefined} giveUpTime a peer that is not connected for so long is given up (pairs)
 * @property {number | undefined} awayGiveUpTime the same for a peer that the server does not see either (pairs)
 * @property {() => object} hello the first message of the control channel
 * @property {(peer: PeerSession) => import("./media.js").SharedTrack[]} sharedTracks
 * @property {(peer: PeerSession, type: string, content: object) => void} signal sends through the server
 * @property {(peer: PeerSession, type: string, fields?: object, bytes?: number) => void} emit
 * @property {(peer: PeerSession, reason: LeftReason) => void} drop
 * @property {(peer: PeerSession) => void} onPresence the peer says whether the server sees it
 */

export class PeerSession {
  /** Empty until a peer answers the local offer (`connect`). @type {string} */
  id;
  /** @type {Connection} */
  connection;
  /** @type {Transfer} */
  transfer = /** @type {any} */ (undefined);
  /** The metadata of the peer. @type {any} */
  data;
  /** Whether the server no longer sees the peer. */
  isAway = false;
  /** Whether the peer says, over the control channel, that it is connected to a server. */
  saysOnline = false;
  /** Whether messages to the server about this peer are held back, because they will be sent again soon. */
  isHeld = false;
  isDropped = false;
  /** The public object of the application. @type {any} */
  publicPeer;
  #host;
  /** @type {Senders} */
  #senders = /** @type {any} */ (undefined);
  /** The instance that speaks for the peer: another one is another page. @type {string | undefined} */
  #remoteInstance;
  /** The greatest number of a connection of that instance. */
  #remoteNumber = 0;
  /** Connections that replaced others since the last one was settled. */
  #attempts = 0;
  /** Failed operations of the present connection, and when the last one was. */
  #failures = 0;
  #lastFailure = -Infinity;
  /** Whether the connection is replaced as soon as that is possible. */
  #isRenewalDue = false;
  #hasHello = false;
  #isOpen = false;
  #wasEverOpen = false;
  #isReconnecting = false;
  /** Whether the peer has ended the connection, and not the network. */
  #wasEndedByPeer = false;
  #hasReportedTooBig = false;
  /** @type {{ data: any, isReliable: boolean, bytes: number }[]} */
  #earlyMessages = [];
  /** @type {any} */
  #settlingTimer;
  /** @type {any} */
  #giveUpTimer;
  /** Runs while the server does not see the peer, and it is not connected either. @type {any} */
  #awayTimer;
  /** @type {any} */
  #restartTimer;
  /** @type {any} */
  #renewalTimer;
  /** @type {any} */
  #firstOfferTimer;
  /** @type {any} */
  #repeatTimer;
  /** @type {any} */
  #helloTimer;
  /** What `state` was last emitted for. */
  #reportedState = "";

  /**
   * @param {string} id
   * @param {PeerHost} host
   */
  constructor(id, host) {
    this.id = id;
    this.#host = host;
    this.connection = this.#createConnection();
  }

  // ---- Connections ----

  #createConnection() {
    const connection = new Connection({
      id: this.#host.nextConnectionId(),
      isPolite: () => this.#isPolite,
      configuration: this.#host.configuration(),
      RTCPeerConnection: this.#host.RTCPeerConnection,
      events: {
        onSignal: (type, content) => this.#ifCurrent(connection, () => this.#host.signal(this, type, content)),
        onControl: (message) => this.#ifCurrent(connection, () => this.#onControl(message)),
        onState: () => this.#ifCurrent(connection, () => this.#onState()),
        onOpen: () => this.#ifCurrent(connection, () => this.#onChannelOpen()),
        onControlOpen: () => this.#ifCurrent(connection, () => connection.sendControl(this.#host.hello())),
        onClosed: () => this.#ifCurrent(connection, () => this.#onChannelClosed()),
        onTrack: (track, streams, name) =>
          this.#ifCurrent(connection, () => this.#host.emit(this, "track", { track, streams, name })),
        shareNames: () => this.#senders.names,
        onMessage: (data, isReliable) => this.#ifCurrent(connection, () => this.#onChannelMessage(data, isReliable)),
        onFailure: (error) => this.#ifCurrent(connection, () => this.#onFailure(error)),
      },
    });
    this.transfer = new Transfer(connection, this.#host.receiveBytesMax, {
      onMessage: (data, bytes) => this.#ifCurrent(connection, () => this.#onMessage(data, true, bytes)),
      onProgress: (progress) => this.#ifCurrent(connection, () => this.#host.emit(this, "progress", progress)),
    });
    this.#senders = new Senders(connection.pc);
    return connection;
  }

  /** @param {Connection} connection @param {() => void} action */
  #ifCurrent(connection, action) {
    if (connection === this.connection && !this.isDropped) {
      action();
    }
  }

  /** Returns a timer for an action on the present connection, which is skipped if another one has replaced it.
   *  @param {number} time @param {() => void} action */
  #later(time, action) {
    const { connection } = this;
    return setTimeout(() => this.#ifCurrent(connection, action), time);
  }

  /** Whether the server would forward a message to the peer. */
  get #canSignal() {
    return this.#host.isOnline() && !this.isAway;
  }

  /** Makes the first offer. */
  begin() {
    this.connection.begin();
    this.#onState();
  }

  /**
   * Repeats what the peer may have missed until the connection is established. Messages are lost if the peer's WebSocket is
   * dead and the server has not noticed that. In a pair nobody tells when a partner is back, or has another one: it answers
   * that. Clients that follow the protocol document alone are spared: they may take an offer for another one.
   */
  #startRepeating() {
    if (this.#repeatTimer !== undefined || this.#remoteInstance === undefined) {
      return;
    }
    this.#repeatTimer = setTimeout(() => {
      this.#repeatTimer = undefined;
      if (this.isDropped || this.connection.isConnected) {
        return;
      }
      if (this.#canSignal) {
        this.connection.resend();
      }
      this.#startRepeating();
    }, REPETITION_INTERVAL);
  }

  /** Makes the first offer, if both sides may be waiting for the other's. */
  beginIfWaiting() {
    if (!this.connection.hasBegun && this.connection.remoteId === undefined && !this.connection.hasRemoteDescription) {
      this.begin();
    }
  }

  /** Waits for the first offer, or begins if none comes: the peer may believe that it is connected already. */
  awaitOffer() {
    this.#onState();
    this.#firstOfferTimer = this.#later(FIRST_OFFER_MAX, () => {
      if (this.#canSignal) {
        this.beginIfWaiting();
      }
    });
  }

  /** Replaces the connection by a new one, which waits for an offer. */
  #replaceConnection() {
    this.#clearTimers();
    this.connection.close();
    this.#failures = 0;
    this.#isRenewalDue = false;
    this.#hasHello = false;
    this.#isOpen = false;
    this.#earlyMessages = [];
    this.#wasEndedByPeer = false;
    this.connection = this.#createConnection();
    if (this.#wasEverOpen && !this.#isReconnecting) {
      this.#isReconnecting = true;
      this.#host.emit(this, "reconnecting");
    }
    this.#onState();
  }

  /** Replaces the connection, and makes the first offer of the new one. */
  renew() {
    this.#attempts += 1;
    this.#replaceConnection();
    this.begin();
  }

  /** Replaces the connection after a pause, unless it recovers or is replaced until then. */
  #scheduleRenewal() {
    clearTimeout(this.#renewalTimer);
    this.#renewalTimer = this.#later(pauseBefore(this.#attempts), () => {
      if (this.#canSignal) {
        this.renew();
      } else {
        // `onOnline` continues.
        this.#isRenewalDue = true;
      }
    });
  }

  /** Ends the session. */
  close() {
    this.isDropped = true;
    this.#clearTimers();
    clearTimeout(this.#giveUpTimer);
    clearTimeout(this.#awayTimer);
    clearTimeout(this.#repeatTimer);
    this.connection.sendControl({ type: "bye" });
    this.connection.close();
  }

  #clearTimers() {
    clearTimeout(this.#settlingTimer);
    clearTimeout(this.#restartTimer);
    clearTimeout(this.#renewalTimer);
    clearTimeout(this.#firstOfferTimer);
    clearTimeout(this.#helloTimer);
    this.#settlingTimer = undefined;
    this.#restartTimer = undefined;
  }

  // ---- State ----

  get isAlive() {
    return this.#isOpen && this.connection.isAlive;
  }

  /** @returns {PeerState} */
  get state() {
    if (this.isDropped) {
      return "closed";
    }
    if (this.isAlive && this.connection.pc.connectionState === "connected") {
      return "connected";
    }
    if (this.connection.pc.connectionState === "failed" || this.#attempts > 1) {
      return "failed";
    }
    return this.#wasEverOpen ? "interrupted" : "connecting";
  }

  /** Something about the connection has changed. */
  #onState() {
    const { connection } = this;
    if (connection.isConnected) {
      clearTimeout(this.#giveUpTimer);
      this.#giveUpTimer = undefined;
      clearTimeout(this.#repeatTimer);
      this.#repeatTimer = undefined;
    } else {
      this.#startGiveUpTimer();
      this.#startRepeating();
    }
    if (connection.isSettled) {
      this.#attempts = 0;
      clearTimeout(this.#settlingTimer);
      this.#settlingTimer = undefined;
    } else {
      this.#startSettlingTimer();
    }
    if (connection.pc.connectionState === "failed") {
      this.#onIceFailed();
    } else {
      clearTimeout(this.#restartTimer);
      this.#restartTimer = undefined;
    }
    this.#tryOpen();
    this.reportState();
  }

  /** Emits `state`, if it has changed. */
  reportState() {
    this.#updateAwayTimer();
    const current = `${this.state} ${this.isAway} ${this.connection.pc.connectionState}`;
    if (current !== this.#reportedState && !this.isDropped) {
      this.#reportedState = current;
      this.#host.emit(this, "state");
    }
  }

  /** Replaces a connection that does not settle in time. */
  #startSettlingTimer() {
    if (this.#settlingTimer !== undefined || !this.id) {
      return;
    }
    const time = Math.min(SETTLING_MAX * SETTLING_GROWTH ** this.#attempts, SETTLING_LONGEST);
    const { descriptions } = this.connection;
    this.#settlingTimer = this.#later(time, () => {
      this.#settlingTimer = undefined;
      this.#onNotSettled(descriptions);
    });
  }

  /** @param {number} descriptionsBefore how many descriptions of the connection were set when the time began */
  #onNotSettled(descriptionsBefore) {
    const { connection } = this;
    if (connection.isSettled) {
      return;
    }
    if (connection.isConnected && connection.descriptions > descriptionsBefore) {
      // One negotiation follows another, or a slow network delivers them late.
      this.#startSettlingTimer();
      return;
    }
    if (!this.#canSignal) {
      // Nothing can be negotiated now. The time begins when it can: see `onOnline` and `setPresent`.
      return;
    }
    if (connection.pc.connectionState === "disconnected") {
      // ICE may still find a path by itself. A restart looks for others.
      connection.resend();
      connection.restartIce();
      this.#startSettlingTimer();
      return;
    }
    this.renew();
  }

  /** In a pair, a partner that cannot be reached prevents the pairing with another one. */
  #startGiveUpTimer() {
    const { giveUpTime } = this.#host;
    if (giveUpTime === undefined || this.#giveUpTimer !== undefined || !this.id) {
      return;
    }
    this.#giveUpTimer = setTimeout(() => {
      this.#giveUpTimer = undefined;
      if (this.isDropped || this.connection.isConnected) {
        return;
      }
      if (this.#host.isOnline()) {
        this.#host.drop(this, "lost");
      } else {
        this.#startGiveUpTimer();
      }
    }, giveUpTime);
  }

  /** In a pair, nothing tells when a partner returns that has left the server, and no ICE restart reaches it. Without a
   *  direct connection only ICE itself could bring it back. */
  #updateAwayTimer() {
    const { awayGiveUpTime } = this.#host;
    const isUnreachable = this.isAway && !this.connection.isConnected && !this.isDropped;
    if (awayGiveUpTime === undefined || !isUnreachable) {
      clearTimeout(this.#awayTimer);
      this.#awayTimer = undefined;
      return;
    }
    if (this.#awayTimer === undefined) {
      this.#awayTimer = setTimeout(() => this.#host.drop(this, "lost"), awayGiveUpTime);
    }
  }

  /** Why the peer is disconnected, if it is disconnected now. @returns {LeftReason} */
  get departureReason() {
    return this.#wasEndedByPeer || !this.#wasEverOpen ? "left" : "lost";
  }

  #onIceFailed() {
    if (this.isAway) {
      this.#host.drop(this, "lost");
      return;
    }
    // Once for each failure. If that does not help, the connection does not settle, and is replaced.
    if (!this.#host.isOnline() || this.#restartTimer !== undefined) {
      return;
    }
    const { connection } = this;
    const delay = this.#isPolite ? POLITE_RESTART_DELAY : 0;
    this.#restartTimer = this.#later(delay, () => {
      if (connection.pc.connectionState === "failed") {
        connection.resend();
        connection.restartIce();
      }
    });
  }

  /** The server is there again, and sees the peer, or its server does. */
  onOnline() {
    this.isHeld = false;
    if (this.#isRenewalDue) {
      this.renew();
      return;
    }
    if (!this.connection.isConnected) {
      this.connection.resend();
      if (this.connection.pc.connectionState === "failed") {
        clearTimeout(this.#restartTimer);
        this.#restartTimer = undefined;
        this.#onIceFailed();
      }
    }
    if (!this.connection.isSettled) {
      this.#startSettlingTimer();
    }
  }

  /** Messages to the peer were refused or lost, and are sent again now. */
  resend() {
    this.isHeld = false;
    if (!this.connection.isConnected) {
      this.connection.resend();
    }
  }

  // ---- Messages of the server ----

  /** Returns whether a description comes from another page than the known one.
   *  @param {Description} description */
  isFromOtherInstance(description) {
    const sender = parseConnectionId(description.from);
    return this.#remoteInstance !== undefined && sender?.instance !== this.#remoteInstance;
  }

  /** @param {Description} description */
  receiveDescription(description) {
    const sender = parseConnectionId(description.from);
    if (!sender) {
      this.#receiveForeign(description);
      return;
    }
    if (sender.number < this.#remoteNumber) {
      // The peer has given up that connection.
      return;
    }
    this.#remoteInstance = sender.instance;
    this.#remoteNumber = sender.number;
    if (description.type === "answer") {
      this.#receiveAnswer(description);
    } else {
      this.#receiveOffer(description);
    }
  }

  /** @param {Description} answer */
  #receiveAnswer(answer) {
    const { connection } = this;
    const isOfOtherConnection = connection.remoteId !== undefined && connection.remoteId !== answer.from;
    if (answer.to !== connection.id) {
      // The peer believes that an earlier local connection is the present one.
      if (connection.remoteId === undefined) {
        this.#offerAgain();
      } else if (isOfOtherConnection && !this.#isPolite) {
        // Both have answered an offer of a connection that the other one has given up. One of them begins again.
        this.#scheduleRenewal();
      }
      return;
    }
    if (isOfOtherConnection) {
      // A later connection of the peer has answered an offer that an earlier one had answered.
      this.#scheduleRenewal();
      return;
    }
    connection.receiveAnswer(answer);
  }

  /** @param {Description} offer */
  #receiveOffer(offer) {
    const { connection } = this;
    if (offer.to === undefined) {
      this.#receiveFirstOffer(offer);
      return;
    }
    if (offer.to === connection.id && offer.from === connection.remoteId) {
      connection.receiveOffer(offer);
      return;
    }
    // It is for an earlier local connection, or the answer to the first local offer was lost.
    this.#offerAgain();
  }

  /** The peer has not got the offer of the present connection. */
  #offerAgain() {
    if (this.connection.hasBegun) {
      this.connection.resend();
    } else {
      this.begin();
    }
  }

  /** @param {Description} offer */
  #receiveFirstOffer(offer) {
    const { connection } = this;
    const isKnown = connection.remoteId === offer.from && connection.remoteId !== undefined;
    const isWaiting = !connection.hasBegun && connection.remoteId === undefined;
    if (isKnown || isWaiting) {
      connection.receiveOffer(offer);
      return;
    }
    if (connection.isFirstOfferPending && connection.remoteId === undefined && !this.#isPolite) {
      connection.resend();
      return;
    }
    this.#replaceConnection();
    this.connection.receiveOffer(offer);
  }

  get #isPolite() {
    return this.#host.id < this.id;
  }

  /** A client that follows the protocol document alone. @param {Description} description */
  #receiveForeign(description) {
    const { connection } = this;
    if (description.type === "answer") {
      connection.receiveAnswer(description);
      return;
    }
    const isReplacement = connection.hasRemoteDescription && connection.isForeignReplacement(description);
    const isFirstGlare = connection.isFirstOfferPending;
    if (isFirstGlare && !this.#isPolite) {
      connection.resend();
      return;
    }
    if (isReplacement || isFirstGlare) {
      this.#replaceConnection();
    }
    this.connection.receiveOffer(description);
  }

  /** @param {any} candidate */
  receiveCandidate(candidate) {
    if (typeof candidate !== "object" || candidate === null) {
      return;
    }
    if (candidate.bye === true) {
      if (candidate.to === this.connection.id) {
        this.#host.drop(this, "left");
      }
      return;
    }
    if (candidate.check === true) {
      if (candidate.to !== this.connection.id) {
        this.#offerAgain();
      }
      return;
    }
    const { from, to, ...init } = candidate;
    const isForeign = from === undefined;
    const isForUs = to === undefined || to === this.connection.id;
    if (isForeign || (from === this.connection.remoteId && isForUs)) {
      this.connection.receiveCandidate(init);
    }
  }

  // ---- Channels ----

  #onChannelOpen() {
    this.#helloTimer = this.#later(HELLO_MAX, () => {
      this.#hasHello = true;
      this.#onState();
    });
    this.#onState();
  }

  /** Emits `open`, when messages can be sent and the peer has said who it is. */
  #tryOpen() {
    const isReady = this.connection.messages.readyState === "open" && (this.#hasHello || this.connection.isForeign);
    if (this.#isOpen || !isReady || !this.id) {
      return;
    }
    this.#isOpen = true;
    this.#wasEverOpen = true;
    this.#isReconnecting = false;
    this.#hasReportedTooBig = false;
    clearTimeout(this.#helloTimer);
    this.reportState();
    this.#host.emit(this, "open");
    this.updateMedia();
    const messages = this.#earlyMessages;
    this.#earlyMessages = [];
    for (const { data, isReliable, bytes } of messages) {
      this.#emitMessage(data, isReliable, bytes);
    }
  }

  #onChannelClosed() {
    this.#isOpen = false;
    // A lost network closes no channel.
    this.#wasEndedByPeer = this.connection.pc.connectionState === "connected";
    if (this.isAway) {
      this.#host.drop(this, this.departureReason);
    } else {
      // The server sees the peer: one side replaces the connection.
      this.#scheduleRenewal();
    }
    this.reportState();
  }

  /** @param {string | ArrayBuffer} data @param {boolean} isReliable */
  #onChannelMessage(data, isReliable) {
    if (isReliable) {
      this.transfer.receive(data);
    } else {
      this.#onMessage(data, false, 0);
    }
  }

  /** @param {any} data @param {boolean} isReliable @param {number} bytes */
  #onMessage(data, isReliable, bytes) {
    if (this.#isOpen) {
      this.#emitMessage(data, isReliable, bytes);
      return;
    }
    this.#earlyMessages.push({ data, isReliable, bytes });
    const waiting = this.#earlyMessages.reduce((sum, message) => sum + message.bytes, 0);
    if (waiting > EARLY_BYTES_MAX || this.#earlyMessages.length > EARLY_MESSAGES_MAX) {
      this.#hasHello = true;
      this.#onState();
    }
  }

  /** @param {any} data @param {boolean} isReliable @param {number} bytes */
  #emitMessage(data, isReliable, bytes) {
    this.#host.emit(this, "message", { data, reliable: isReliable }, bytes);
  }

  /** @param {any} message of the control channel */
  #onControl(message) {
    switch (message.type) {
      case "hello":
        this.#hasHello = true;
        this.#setData(message.data, true);
        this.#setSaysOnline(message.online);
        this.#onState();
        break;
      case "data":
        this.#setData(message.data, false);
        break;
      case "presence":
        this.#setSaysOnline(message.online);
        break;
      case "askPresence":
        this.connection.sendControl({ type: "presence", online: this.#host.isOnline() });
        break;
      case "bye":
        this.#host.drop(this, "left");
        break;
      default:
      // A later version of the library knows it.
    }
  }

  /** @param {any} data @param {boolean} isFirst whether it comes with the first message of a connection */
  #setData(data, isFirst) {
    const text = JSON.stringify(data);
    const isUnchanged = text === JSON.stringify(this.data);
    if (isUnchanged || (text?.length ?? 0) > DATA_LENGTH_MAX) {
      return;
    }
    this.data = data;
    if (!isFirst || this.#wasEverOpen) {
      this.#host.emit(this, "data", { data });
    }
  }

  /** @param {unknown} isOnline */
  #setSaysOnline(isOnline) {
    this.saysOnline = isOnline === true;
    this.#host.onPresence(this);
  }

  /** Sends what the room shares now. */
  updateMedia() {
    if (this.#isOpen) {
      const senders = this.#senders;
      this.connection.run(() => senders.update(this.#host.sharedTracks(this)));
    }
  }

  /** @param {import("./media.js").SharedTrack} sharedTrack */
  replaceTrack(sharedTrack) {
    const senders = this.#senders;
    this.connection.run(() => senders.replace(sharedTrack));
  }

  // ---- Failures ----

  /** An operation on the RTCPeerConnection has failed. @param {unknown} cause */
  #onFailure(cause) {
    const text = cause instanceof Error ? cause.message : String(cause);
    const error = new NoroshiError("connection_failed", text, cause);
    this.#host.emit(this, "error", { error });
    const now = performance.now();
    if (now - this.#lastFailure > FAILURES_FORGOTTEN_AFTER) {
      this.#failures = 0;
    }
    this.#lastFailure = now;
    this.#failures += 1;
    const { connection } = this;
    const canRetry = this.#failures === 1 && connection.isConnected && connection.pc.signalingState === "stable";
    if (!canRetry) {
      this.#scheduleRenewal();
      return;
    }
    this.#renewalTimer = this.#later(pauseBefore(0), () => {
      // The operation may have been one of the shared media.
      this.updateMedia();
      connection.renegotiate();
    });
  }

  /** A message about the peer is too large for the server. @param {number} size */
  onTooBig(size) {
    if (!this.#hasReportedTooBig) {
      this.#hasReportedTooBig = true;
      const error = new NoroshiError("too_big", `${size} bytes are too many for the server (--max-message)`);
      this.#host.emit(this, "error", { error });
    }
    if (this.connection.hasRemoteDescription && !this.connection.isForeign) {
      // The next connection begins with a small offer, without media, and negotiates the rest over its control channel.
      this.#scheduleRenewal();
    }
  }
}
