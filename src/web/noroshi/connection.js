/**
 * One RTCPeerConnection to one remote peer, and its negotiation.
 *
 * Every operation on the RTCPeerConnection goes through one queue, so that `signalingState` is true when it is looked at.
 * Inside the queue, negotiation is perfect negotiation (W3C WebRTC section 10.7).
 *
 * A connection has a random id. Offers, answers and candidates carry `from` (the sender's connection), `to` (the
 * receiver's, as far as it is known) and `seq` (descriptions of one connection are numbered from 1); an answer carries
 * `offer`, the number of the offer that it answers. Messages for another connection, and those that were received before,
 * are recognized by comparing these values.
 *
 * As soon as the peers are connected, they negotiate over the control channel, which is ordered and reliable. There, only
 * one of them offers at a time: the impolite peer whenever it needs to, and the polite peer when the impolite one has
 * granted it the turn. So no offer has to be rolled back, which is the least tested path of every browser. The server
 * forwards the first offer and answer, and those of an ICE restart after the connection has failed.
 *
 *     signalingState of the first negotiation, and the messages:
 *
 *       offering side                                 answering side
 *       begin()            stable                     stable
 *                          have-local-offer  ─offer─► have-remote-offer
 *                          stable          ◄─answer── stable
 *                     ICE and DTLS connect, the channels open
 *       later              negotiation over the control channel
 */

import { candidatesOf, isOtherConnection, parseJson } from "./sdp.js";

/** The ids of the data channels, which both sides open (`negotiated: true`). */
const MESSAGES_CHANNEL = 0;
const CONTROL_CHANNEL = 1;
const UNRELIABLE_CHANNEL = 2;

/** The size of one control frame in characters; longer messages are sent in several frames. */
const CONTROL_FRAME_MAX = 16_000;
/** The size of one control message in characters: a description with some hundred media sections. */
const CONTROL_MESSAGE_MAX = 1 << 20;
/** The first character of a control frame: whether the message continues in the next frame. */
const FRAME_CONTINUES = "+";
const FRAME_ENDS = ".";

/** The pending local offer is repeated at most once in this time (milliseconds), whatever arrives. */
const RESEND_PAUSE = 300;

/**
 * A description as it is sent. Clients that follow the protocol document alone send `type` and `sdp` only.
 *
 * @typedef {{ type: RTCSdpType, sdp: string, from?: string, to?: string, seq?: number, offer?: number,
 *   names?: Record<string, string> }} Description `names`: the names of what the sender shares, by `mid`
 *
 * @typedef {object} ConnectionEvents
 * @property {(type: "offer" | "answer" | "candidateAdd", content: object) => void} onSignal a message for the server to forward
 * @property {(message: any) => void} onControl a message of the control channel that is not about negotiation
 * @property {() => void} onState one of the states may have changed
 * @property {() => void} onOpen the message channel is open
 * @property {() => void} onControlOpen
 * @property {() => void} onClosed the message channel was closed by the remote peer
 * @property {(track: MediaStreamTrack, streams: readonly MediaStream[], name: string | undefined) => void} onTrack
 * @property {() => Record<string, string>} shareNames the names of the local shares, by `mid`
 * @property {(data: string | ArrayBuffer, isReliable: boolean) => void} onMessage
 * @property {(error: unknown) => void} onFailure an operation has failed
 */

export class Connection {
  /** @type {RTCPeerConnection} */
  pc;
  /** @type {RTCDataChannel} */
  messages;
  /** @type {RTCDataChannel} */
  control;
  /** @type {RTCDataChannel} */
  unreliable;
  /** The local id of this connection. @type {string} */
  id;
  /** The remote peer's id of it, as soon as it is known. @type {string | undefined} */
  remoteId;
  /** Whether the remote peer follows the protocol document alone. */
  isForeign = false;
  /** Whether this side has made, or is going to make, the first offer. */
  hasBegun = false;
  /** Whether a description of the remote peer has been accepted. */
  hasRemoteDescription = false;
  isClosed = false;
  /** Is aborted when the connection is closed. */
  closing = new AbortController();
  #isPolite;
  #events;
  /** The end of the queue of operations. @type {Promise<void>} */
  #queue = Promise.resolve();
  /** The number of the last local description. */
  #localSeq = 0;
  /** The numbers of the last local offer, of the last local answer, and of the offer that it answers. */
  #offerSeq = 0;
  #answerSeq = 0;
  #answeredSeq = 0;
  /** The number of the last description of the remote peer that was accepted. */
  #remoteSeq = 0;
  /** The last offer of a peer that does not number its descriptions. */
  #lastRemoteOffer = "";
  /** Whether the local side needs a negotiation that it has not begun. */
  #isNegotiationWanted = false;
  /** The turn to offer over the control channel. At the polite peer: whether it was requested, and whether it was granted. */
  #isTurnRequested = false;
  #hasTurn = false;
  /** At the impolite peer: whether the polite one waits for it, and whether it has it. */
  #isTurnAwaited = false;
  #isTurnGranted = false;
  /** Whether the local description is being set, and not yet sent. */
  #isDescribing = false;
  #lastResend = -Infinity;
  /** The names of what the peer shares, by `mid`. @type {Record<string, string>} */
  #remoteNames = {};
  /** The beginning of a control message that continues. */
  #partialControl = "";

  /**
   * @param {object} options
   * @param {string} options.id
   * @param {() => boolean} options.isPolite
   * @param {RTCConfiguration} options.configuration
   * @param {typeof globalThis.RTCPeerConnection} options.RTCPeerConnection
   * @param {ConnectionEvents} options.events
   */
  constructor({ id, isPolite, configuration, RTCPeerConnection, events }) {
    this.id = id;
    this.#isPolite = isPolite;
    this.#events = events;
    this.pc = new RTCPeerConnection(configuration);
    this.messages = this.#createChannel("noroshi", MESSAGES_CHANNEL);
    this.control = this.#createChannel("noroshi-control", CONTROL_CHANNEL);
    const lossy = { ordered: false, maxRetransmits: 0 };
    this.unreliable = this.#createChannel("noroshi-unreliable", UNRELIABLE_CHANNEL, lossy);
    this.#listen();
  }

  /**
   * @param {string} label
   * @param {number} id
   * @param {RTCDataChannelInit} [reliability]
   */
  #createChannel(label, id, reliability) {
    const channel = this.pc.createDataChannel(label, { negotiated: true, id, ...reliability });
    channel.binaryType = "arraybuffer";
    return channel;
  }

  #listen() {
    const events = this.#events;
    this.pc.onnegotiationneeded = () => this.#onNegotiationNeeded();
    this.pc.onicecandidate = ({ candidate }) => this.#onLocalCandidate(candidate);
    this.pc.ontrack = ({ track, streams, transceiver }) => {
      events.onTrack(track, streams, this.#remoteName(transceiver.mid));
    };
    this.pc.onconnectionstatechange = () => this.#onConnectionState();
    this.pc.onsignalingstatechange = () => events.onState();
    this.messages.onopen = () => events.onOpen();
    this.messages.onclose = () => {
      if (!this.isClosed) {
        events.onClosed();
      }
    };
    this.messages.onmessage = ({ data }) => events.onMessage(withoutView(data), true);
    this.unreliable.onmessage = ({ data }) => events.onMessage(withoutView(data), false);
    this.control.onopen = () => {
      events.onControlOpen();
      this.#onConnectionState();
    };
    this.control.onmessage = ({ data }) => this.#onControlFrame(data);
  }

  // ---- State ----

  /** Whether messages can be sent. A connection that is interrupted delivers them later. */
  get isAlive() {
    const isOver = ["failed", "closed"].includes(this.pc.connectionState);
    return !this.isClosed && this.messages.readyState === "open" && !isOver;
  }

  get isConnected() {
    return this.isAlive && this.pc.connectionState === "connected";
  }

  /** Whether nothing is left to be done: the peers are connected, and every change is negotiated. */
  get isSettled() {
    return this.isConnected && this.pc.signalingState === "stable" && !this.#isNegotiationWanted;
  }

  /** How many descriptions of both sides were set: the progress of negotiations. */
  get descriptions() {
    return this.#localSeq + this.#remoteSeq;
  }

  /** Whether the first local offer is not answered yet. */
  get isFirstOfferPending() {
    return this.hasBegun && !this.hasRemoteDescription;
  }

  /** Whether the control channel can be used for negotiation. */
  get #hasControl() {
    const isOpen = this.control.readyState === "open";
    return isOpen && !this.isForeign && this.pc.connectionState === "connected";
  }

  close() {
    this.isClosed = true;
    this.pc.onnegotiationneeded = null;
    this.pc.onicecandidate = null;
    this.pc.ontrack = null;
    this.pc.onconnectionstatechange = null;
    this.pc.onsignalingstatechange = null;
    for (const channel of [this.messages, this.control, this.unreliable]) {
      channel.onmessage = null;
    }
    this.pc.close();
    this.closing.abort();
  }

  /** @param {RTCConfiguration} configuration with fresh credentials for TURN servers */
  setConfiguration(configuration) {
    try {
      this.pc.setConfiguration(configuration);
    } catch {
      // The application has closed the connection.
    }
  }

  #onConnectionState() {
    this.#events.onState();
    // A negotiation may have waited for this state.
    this.#enqueueContinuation();
  }

  // ---- The queue ----

  /**
   * Runs an operation after all earlier ones. A negotiation that is wanted follows it, if it can begin: the browser does not
   * tell again that one is needed.
   *
   * @param {() => Promise<void>} operation
   */
  #enqueue(operation) {
    const run = async () => {
      if (this.isClosed) {
        return;
      }
      await operation();
      await this.#continueNegotiation();
      if (!this.isClosed) {
        this.#events.onState();
      }
    };
    this.#queue = this.#queue.then(run).catch((error) => {
      if (!this.isClosed && this.pc.signalingState !== "closed") {
        this.#events.onFailure(error);
      }
    });
    return this.#queue;
  }

  /** Begins the negotiation that is wanted, if it can begin now. */
  #enqueueContinuation() {
    this.#enqueue(async () => {});
  }

  #requestNegotiation() {
    this.#isNegotiationWanted = true;
    this.#enqueueContinuation();
  }

  /**
   * Runs a change of the application or of the shared media in the queue.
   *
   * @param {() => void | Promise<void>} change
   */
  run(change) {
    return this.#enqueue(async () => change());
  }

  // ---- Local offers ----

  /** Makes the first offer. */
  begin() {
    this.hasBegun = true;
    this.#requestNegotiation();
  }

  #onNegotiationNeeded() {
    // A side that waits for the first offer adds its changes to the answer, or offers after it.
    if (!this.hasBegun && !this.hasRemoteDescription) {
      return;
    }
    this.#requestNegotiation();
    this.#events.onState();
  }

  /** Negotiates again, after a failure. */
  renegotiate() {
    this.#requestNegotiation();
  }

  /** Restarts ICE: the peers look for a new path. */
  restartIce() {
    this.#enqueue(async () => {
      this.pc.restartIce();
      this.#isNegotiationWanted = true;
    });
  }

  /** Begins the negotiation that one of the sides waits for, if it can begin now. */
  async #continueNegotiation() {
    if (this.isClosed || this.pc.signalingState !== "stable" || this.#isControlExpected) {
      return;
    }
    if (this.#hasControl) {
      this.#passTurn();
      if (!this.#mayOffer()) {
        return;
      }
    }
    if (this.#isNegotiationWanted && (this.hasBegun || this.hasRemoteDescription)) {
      await this.#makeOffer();
    }
  }

  /** Whether the control channel will probably open soon: later negotiations wait for it. */
  get #isControlExpected() {
    if (!this.hasRemoteDescription || this.isForeign) {
      return false;
    }
    const { connectionState } = this.pc;
    const isConnecting = connectionState === "new" || connectionState === "connecting";
    return isConnecting || (connectionState === "connected" && this.control.readyState === "connecting");
  }

  async #makeOffer() {
    try {
      await this.#setLocalDescription();
    } finally {
      // After a failure, the owner decides whether to try again.
      this.#isNegotiationWanted = false;
    }
    this.#hasTurn = false;
    this.#isTurnRequested = false;
    this.#localSeq += 1;
    this.#offerSeq = this.#localSeq;
    this.#sendOffer();
  }

  /** Some implementations report candidates before they resolve the promise. Such candidates are in the description. */
  async #setLocalDescription() {
    this.#isDescribing = true;
    try {
      await this.pc.setLocalDescription();
    } finally {
      this.#isDescribing = false;
    }
  }

  // ---- Turns ----

  /** The impolite peer: grants the turn that the polite one waits for. */
  #passTurn() {
    if (this.#isTurnAwaited && !this.#isPolite()) {
      this.#isTurnAwaited = false;
      this.#isTurnGranted = true;
      this.sendControl({ type: "grantTurn" });
    }
  }

  /** Whether the local side may offer now. The polite peer asks for its turn if it needs it. */
  #mayOffer() {
    if (!this.#isPolite()) {
      return !this.#isTurnGranted;
    }
    if (this.#isNegotiationWanted && !this.#hasTurn && !this.#isTurnRequested) {
      this.#isTurnRequested = true;
      this.sendControl({ type: "requestTurn" });
    }
    return this.#hasTurn;
  }

  // ---- Descriptions of the remote peer ----

  /**
   * Returns whether an offer without connection ids is of another RTCPeerConnection than the present one.
   *
   * @param {Description} offer
   */
  isForeignReplacement(offer) {
    const known = this.pc.remoteDescription;
    return known !== null && isOtherConnection(known.sdp, offer.sdp);
  }

  /** @param {Description} offer */
  receiveOffer(offer) {
    this.#bind(offer);
    return this.#enqueue(() => this.#handleOffer(offer));
  }

  /** @param {Description} answer */
  receiveAnswer(answer) {
    this.#bind(answer);
    return this.#enqueue(() => this.#handleAnswer(answer));
  }

  /** @param {Description} description */
  #bind(description) {
    this.remoteId = description.from;
    this.isForeign = description.from === undefined;
  }

  /** @param {Description} offer */
  async #handleOffer(offer) {
    if (this.#isRepeated(offer)) {
      // It may have more candidates than before. The peer has not received the answer, and perhaps not the next offer.
      await this.#addCandidates(candidatesOf(offer.sdp));
      this.#sendAnswer();
      this.#repeatOffer();
      return;
    }
    if (offer.seq !== undefined && offer.seq < this.#remoteSeq) {
      return;
    }
    const isCollision = this.pc.signalingState !== "stable";
    if (isCollision && !this.#isPolite()) {
      this.#repeatOffer();
      return;
    }
    const { type, sdp } = offer;
    this.#remoteNames = offer.names ?? {};
    await this.pc.setRemoteDescription({ type, sdp });
    this.hasRemoteDescription = true;
    this.#remoteSeq = offer.seq ?? 0;
    this.#lastRemoteOffer = sdp;
    await this.#setLocalDescription();
    this.#isTurnGranted = false;
    this.#localSeq += 1;
    this.#answerSeq = this.#localSeq;
    this.#answeredSeq = this.#remoteSeq;
    this.#sendAnswer();
  }

  /** @param {Description} offer */
  #isRepeated(offer) {
    if (offer.seq === undefined) {
      return offer.sdp === this.#lastRemoteOffer;
    }
    return offer.seq === this.#answeredSeq;
  }

  /** @param {Description} answer */
  async #handleAnswer(answer) {
    const isPending = this.pc.signalingState === "have-local-offer";
    const isForOffer = answer.offer === undefined || answer.offer === this.#offerSeq;
    if (!isForOffer) {
      return;
    }
    if (!isPending) {
      // It was received before, but perhaps without all of its candidates.
      await this.#addCandidates(candidatesOf(answer.sdp));
      return;
    }
    const { type, sdp } = answer;
    this.#remoteNames = answer.names ?? {};
    await this.pc.setRemoteDescription({ type, sdp });
    this.hasRemoteDescription = true;
    this.#remoteSeq = Math.max(this.#remoteSeq, answer.seq ?? 0);
  }

  /** @param {RTCIceCandidateInit} candidate */
  receiveCandidate(candidate) {
    return this.#enqueue(() => this.#addCandidates([candidate]));
  }

  /** @param {RTCIceCandidateInit[]} candidates */
  async #addCandidates(candidates) {
    for (const candidate of candidates) {
      try {
        await this.pc.addIceCandidate(candidate);
      } catch {
        // It belongs to an offer that was ignored, or its syntax is unknown. Other candidates may work.
      }
    }
  }

  // ---- Sending ----

  /** Sends again what the peer may have missed: a connection that is not established needs it. */
  resend() {
    return this.#enqueue(async () => {
      const { signalingState, currentLocalDescription } = this.pc;
      this.#lastResend = -Infinity;
      if (signalingState === "have-local-offer") {
        this.#repeatOffer();
      } else if (signalingState === "stable" && currentLocalDescription?.type === "answer" && !this.isConnected) {
        this.#sendAnswer();
      } else if (signalingState === "stable" && this.remoteId !== undefined && !this.isConnected) {
        // Nothing is missing, unless the peer no longer has its side of the connection. Then it answers.
        this.#send("candidateAdd", { check: true, from: this.id, to: this.remoteId });
      }
    });
  }

  /** Repeats the pending local offer, if there is one, but not more often than once in a while. */
  #repeatOffer() {
    const now = performance.now();
    if (this.pc.signalingState === "have-local-offer" && now - this.#lastResend >= RESEND_PAUSE) {
      this.#lastResend = now;
      this.#sendOffer();
    }
  }

  #sendOffer() {
    const { sdp } = /** @type {RTCSessionDescription} */ (this.pc.localDescription);
    const ids = { from: this.id, to: this.remoteId, seq: this.#offerSeq };
    this.#send("offer", { type: "offer", sdp, ...ids, names: this.#shareNames() });
  }

  /** Sends the last local answer. While a local offer is pending, it is the current and not the pending description. */
  #sendAnswer() {
    const { currentLocalDescription } = this.pc;
    if (currentLocalDescription?.type !== "answer") {
      return;
    }
    const { sdp } = currentLocalDescription;
    const ids = { from: this.id, to: this.remoteId, seq: this.#answerSeq, offer: this.#answeredSeq || undefined };
    this.#send("answer", { type: "answer", sdp, ...ids, names: this.#shareNames() });
  }

  /** The names of the local shares, or undefined if nothing has a name. */
  #shareNames() {
    const names = this.#events.shareNames();
    return Object.keys(names).length > 0 ? names : undefined;
  }

  /** The name of what the peer shares with a transceiver. @param {string | null} mid */
  #remoteName(mid) {
    const name = Object.hasOwn(this.#remoteNames, mid ?? "") ? this.#remoteNames[mid ?? ""] : undefined;
    return typeof name === "string" ? name : undefined;
  }

  /** @param {RTCIceCandidate | null} candidate */
  #onLocalCandidate(candidate) {
    if (candidate && !this.#isDescribing) {
      const fields = candidate.toJSON ? candidate.toJSON() : candidate;
      this.#send("candidateAdd", { ...fields, from: this.id, to: this.remoteId });
    }
  }

  /**
   * @param {"offer" | "answer" | "candidateAdd"} type
   * @param {object} content
   */
  #send(type, content) {
    if (this.#hasControl) {
      this.sendControl({ type, content });
    } else {
      this.#events.onSignal(type, content);
    }
  }

  // ---- The control channel ----

  /** @param {object} message */
  sendControl(message) {
    if (this.control.readyState !== "open" || this.isForeign) {
      return;
    }
    const text = JSON.stringify(message);
    try {
      for (let start = 0; start < text.length; start += CONTROL_FRAME_MAX) {
        const end = start + CONTROL_FRAME_MAX;
        const mark = end < text.length ? FRAME_CONTINUES : FRAME_ENDS;
        this.control.send(mark + text.slice(start, end));
      }
    } catch (error) {
      this.#events.onFailure(error);
    }
  }

  /** @param {unknown} frame */
  #onControlFrame(frame) {
    if (typeof frame !== "string" || this.isClosed) {
      return;
    }
    this.#partialControl += frame.slice(1);
    if (this.#partialControl.length > CONTROL_MESSAGE_MAX) {
      this.#partialControl = "";
      return;
    }
    if (frame[0] === FRAME_CONTINUES) {
      return;
    }
    const message = parseJson(this.#partialControl);
    this.#partialControl = "";
    if (typeof message === "object" && message !== null) {
      this.#onControl(message);
    }
  }

  /** @param {any} message */
  #onControl(message) {
    switch (message.type) {
      case "offer":
        this.#enqueue(() => this.#handleOffer(message.content));
        break;
      case "answer":
        this.#enqueue(() => this.#handleAnswer(message.content));
        break;
      case "candidateAdd":
        this.receiveCandidate(message.content);
        break;
      case "requestTurn":
        this.#isTurnAwaited = true;
        this.#enqueueContinuation();
        break;
      case "grantTurn":
        this.#hasTurn = true;
        this.#requestNegotiation();
        break;
      default:
        this.#events.onControl(message);
    }
  }
}

/**
 * Returns an ArrayBuffer for the Buffer that implementations for Node deliver instead.
 *
 * @param {string | ArrayBuffer | ArrayBufferView} data
 * @returns {string | ArrayBuffer}
 */
function withoutView(data) {
  if (!ArrayBuffer.isView(data)) {
    return data;
  }
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice().buffer;
}
