/**
 * Messages of any kind and size over a data channel.
 *
 * Strings and bytes that fit into one message are sent as they are, so that clients without this library understand them.
 * Everything else has a frame of the library around it:
 *
 *     text frame      U+0001, then one JSON object:
 *                       {"json": VALUE}                                            a JSON value
 *                       {"begin": STREAM, "kind": K, "size": BYTES, …}             a message in pieces begins
 *                       {"abort": STREAM, "by": "sender" | "receiver", "code"?: C} it will not be completed
 *     binary frame    01 6E 72 73, then STREAM (32 bits, big endian), then bytes: a piece
 *
 * The few strings and bytes that begin like a frame are sent in pieces.
 */

import { NoroshiError } from "./errors.js";
import { parseJson } from "./sdp.js";

const FRAME_CHARACTER = "\u0001";
const PIECE_MAGIC = [0x01, 0x6e, 0x72, 0x73];
/** The bytes before the payload of a piece. */
const PIECE_HEADER_BYTES = 8;
/** The bytes of one frame with a piece: what every browser can receive. */
const PIECE_BYTES_MAX = 65_536;
/** The least payload of a piece that is not the last: smaller ones would need more memory than they carry. */
const PIECE_BYTES_MIN = 1024;
/** Messages in pieces that one peer may send at the same time. */
const STREAMS_MAX = 64;
/** The default of `receiveBytesMax`. */
export const RECEIVE_BYTES_MAX = 256 << 20;
/** `write` waits while so many bytes are not sent yet. At 16 MB, browsers close the channel. */
const BUFFERED_BYTES_MAX = 1 << 20;
/** An unreliable message fits into a few packets: it is lost if one of them is lost. */
export const UNRELIABLE_BYTES_MAX = 16_384;
/** Unreliable messages are not sent while so many bytes wait: late ones are useless. */
const UNRELIABLE_BUFFERED_BYTES_MAX = 65_536;

/**
 * @typedef {import("./peer.js").WriteOptions} WriteOptions
 *
 * @typedef {object} IncomingStream a message of which pieces have arrived
 * @property {string} kind
 * @property {number} size
 * @property {number} received
 * @property {Uint8Array<ArrayBuffer>[]} pieces
 * @property {string} name
 * @property {string} mime
 * @property {number} lastModified
 *
 * @typedef {object} Source what is sent in pieces
 * @property {string} kind
 * @property {number} size
 * @property {(start: number, end: number) => Promise<Uint8Array> | Uint8Array} read
 * @property {object} fields
 *
 * @typedef {object} TransferEvents
 * @property {(data: any, bytes: number) => void} onMessage
 * @property {(progress: { received: number, size: number, name?: string }) => void} onProgress
 */

/**
 * @param {unknown} data
 * @returns {Uint8Array<ArrayBuffer> | undefined} the bytes, without a copy
 */
function bytesOf(data) {
  if (data instanceof ArrayBuffer) {
    return new Uint8Array(data);
  }
  if (ArrayBuffer.isView(data)) {
    return new Uint8Array(/** @type {ArrayBuffer} */ (data.buffer), data.byteOffset, data.byteLength);
  }
  return undefined;
}

/** @param {string} text */
function encode(text) {
  return new TextEncoder().encode(text);
}

/** @param {unknown} data */
function isBlob(data) {
  return typeof Blob !== "undefined" && data instanceof Blob;
}

/** @param {unknown} value */
function toJson(value) {
  const text = JSON.stringify(value);
  if (text === undefined) {
    throw new TypeError("what is sent is a string, an ArrayBuffer, a view of one, a Blob or a JSON value");
  }
  return text;
}

/** @param {Uint8Array} bytes */
function beginsLikeAPiece(bytes) {
  return bytes.length >= PIECE_MAGIC.length && PIECE_MAGIC.every((byte, index) => bytes[index] === byte);
}

/** @param {number} bytes @param {number} max */
function tooBig(bytes, max) {
  return new NoroshiError("too_big", `${bytes} bytes in one message; ${max} are possible. Use peer.write()`);
}

export class Transfer {
  #connection;
  #events;
  #receiveBytesMax;
  /** The number of the last message in pieces that was begun here. */
  #lastStream = 0;
  /** Outgoing messages in pieces that are not complete. @type {Map<number, AbortController>} */
  #outgoing = new Map();
  /** @type {Map<number, IncomingStream>} */
  #incoming = new Map();

  /**
   * @param {import("./connection.js").Connection} connection
   * @param {number} receiveBytesMax
   * @param {TransferEvents} events
   */
  constructor(connection, receiveBytesMax, events) {
    this.#connection = connection;
    this.#receiveBytesMax = receiveBytesMax;
    this.#events = events;
  }

  get #channel() {
    return this.#connection.messages;
  }

  /** Chromium leaves a channel `open` for a while when its connection is closed while messages are buffered. */
  get #isOpen() {
    return !this.#connection.isClosed && this.#channel.readyState === "open";
  }

  /** The largest message of the channel in bytes. */
  get maxMessageSize() {
    return this.#connection.pc.sctp?.maxMessageSize || 65_536;
  }

  // ---- Sending ----

  /**
   * Sends one message now.
   *
   * @param {unknown} data
   */
  send(data) {
    if (isBlob(data)) {
      throw new TypeError("a Blob or File is read asynchronously: use await peer.write(…)");
    }
    this.#assertOpen();
    const frame = this.#frameOf(data);
    const size = typeof frame === "string" ? encode(frame).length : frame.byteLength;
    if (size > this.maxMessageSize) {
      throw tooBig(size, this.maxMessageSize);
    }
    if (this.#needsPieces(frame, data)) {
      this.#sendInPieces(frame);
      return;
    }
    this.#channel.send(/** @type {any} */ (frame));
  }

  /**
   * Returns what is sent for a message that is not in pieces.
   *
   * @param {unknown} data
   * @returns {string | Uint8Array<ArrayBuffer>}
   */
  #frameOf(data) {
    if (typeof data === "string") {
      return data;
    }
    const bytes = bytesOf(data);
    if (bytes) {
      return bytes;
    }
    const text = toJson(data);
    return this.#connection.isForeign ? text : `${FRAME_CHARACTER}{"json":${text}}`;
  }

  /** Whether a message would be taken for a frame of the library.
   *  @param {string | Uint8Array} frame @param {unknown} data */
  #needsPieces(frame, data) {
    if (this.#connection.isForeign) {
      return false;
    }
    if (typeof frame === "string") {
      return typeof data === "string" && data.startsWith(FRAME_CHARACTER);
    }
    return beginsLikeAPiece(frame);
  }

  /** Sends a short message in pieces, without waiting. @param {string | Uint8Array<ArrayBuffer>} frame */
  #sendInPieces(frame) {
    const kind = typeof frame === "string" ? "text" : "binary";
    const bytes = typeof frame === "string" ? encode(frame) : frame;
    const stream = this.#begin({ kind, size: bytes.length });
    for (const piece of pieceRanges(bytes.length)) {
      this.#sendPiece(stream, bytes.subarray(piece.start, piece.end));
    }
  }

  /**
   * Sends a message of any size, in pieces, and waits while much is buffered.
   *
   * @param {unknown} data
   * @param {WriteOptions} options
   */
  async write(data, { signal, onprogress } = {}) {
    signal?.throwIfAborted();
    await this.drained(BUFFERED_BYTES_MAX, { signal });
    this.#assertOpen();
    const source = this.#sourceOf(data);
    const isWhole = source.kind !== "file" && source.kind !== "blob" && source.size <= PIECE_BYTES_MIN * 16;
    if (isWhole) {
      this.send(data);
      onprogress?.({ sent: source.size, size: source.size });
      return;
    }
    if (this.#connection.isForeign) {
      this.#writeToForeign(data, source.size);
      onprogress?.({ sent: source.size, size: source.size });
      return;
    }
    await this.#writePieces(source, signal, onprogress);
  }

  /** A client without this library gets one message, if it fits. @param {unknown} data @param {number} size */
  #writeToForeign(data, size) {
    if (size > this.maxMessageSize || isBlob(data)) {
      throw new NoroshiError("too_big", "a client without this library receives no messages in pieces");
    }
    this.send(data);
  }

  /**
   * @param {unknown} data
   * @returns {Source}
   */
  #sourceOf(data) {
    if (isBlob(data)) {
      const blob = /** @type {Blob} */ (data);
      const isFile = typeof File !== "undefined" && blob instanceof File;
      const fields = isFile ? { name: blob.name, lastModified: blob.lastModified } : {};
      return {
        kind: isFile ? "file" : "blob",
        size: blob.size,
        read: async (start, end) => new Uint8Array(await blob.slice(start, end).arrayBuffer()),
        fields: { mime: blob.type, ...fields },
      };
    }
    const bytes = bytesOf(data) ?? encode(typeof data === "string" ? data : toJson(data));
    let kind = "json";
    if (typeof data === "string") {
      kind = "text";
    } else if (bytesOf(data)) {
      kind = "binary";
    }
    return { kind, size: bytes.length, read: (start, end) => bytes.subarray(start, end), fields: {} };
  }

  /**
   * @param {Source} source
   * @param {AbortSignal | undefined} signal
   * @param {WriteOptions["onprogress"]} onprogress
   */
  async #writePieces(source, signal, onprogress) {
    const { kind, size, fields } = source;
    const stream = this.#begin({ kind, size, ...fields });
    const refused = new AbortController();
    this.#outgoing.set(stream, refused);
    try {
      for (const { start, end } of pieceRanges(size)) {
        const piece = await source.read(start, end);
        await this.drained(BUFFERED_BYTES_MAX, { signal });
        signal?.throwIfAborted();
        refused.signal.throwIfAborted();
        this.#assertOpen();
        this.#sendPiece(stream, piece);
        onprogress?.({ sent: end, size });
      }
    } catch (error) {
      if (!refused.signal.aborted && this.#isOpen) {
        this.#sendFrame({ abort: stream, by: "sender" });
      }
      throw error;
    } finally {
      this.#outgoing.delete(stream);
    }
  }

  #assertOpen() {
    if (!this.#isOpen) {
      throw new NoroshiError("not_open", "the peer is not connected: await its open event");
    }
  }

  /** @param {object} fields */
  #begin(fields) {
    this.#lastStream = (this.#lastStream + 1) >>> 0;
    this.#sendFrame({ begin: this.#lastStream, ...fields });
    return this.#lastStream;
  }

  /** @param {object} frame */
  #sendFrame(frame) {
    this.#channel.send(FRAME_CHARACTER + JSON.stringify(frame));
  }

  /** @param {number} stream @param {Uint8Array} piece */
  #sendPiece(stream, piece) {
    const frame = new Uint8Array(PIECE_HEADER_BYTES + piece.length);
    frame.set(PIECE_MAGIC);
    new DataView(frame.buffer).setUint32(PIECE_MAGIC.length, stream);
    frame.set(piece, PIECE_HEADER_BYTES);
    this.#channel.send(frame);
  }

  /**
   * Resolves when at most `bytes` bytes are not sent yet, or the channel is closed.
   *
   * @param {number} bytes
   * @param {{ signal?: AbortSignal }} [options]
   */
  async drained(bytes, { signal } = {}) {
    const channel = this.#channel;
    while (this.#isOpen && channel.bufferedAmount > bytes) {
      signal?.throwIfAborted();
      // The lowest threshold of all callers; each looks again.
      channel.bufferedAmountLowThreshold = bytes;
      await nextEvent(channel, ["bufferedamountlow", "close"], [signal, this.#connection.closing.signal]);
    }
    signal?.throwIfAborted();
  }

  /**
   * @param {unknown} data
   * @returns {boolean} whether it was sent
   */
  sendUnreliable(data) {
    const channel = this.#connection.unreliable;
    const frame = typeof data === "string" ? encode(data) : bytesOf(data);
    if (frame === undefined) {
      throw new TypeError("an unreliable message is a string, an ArrayBuffer or a view of one");
    }
    if (frame.length > UNRELIABLE_BYTES_MAX) {
      throw new NoroshiError("too_big", `${frame.length} bytes; ${UNRELIABLE_BYTES_MAX} are possible unreliably`);
    }
    const isCongested = channel.bufferedAmount > UNRELIABLE_BUFFERED_BYTES_MAX;
    if (channel.readyState !== "open" || isCongested || this.#connection.isForeign) {
      return false;
    }
    channel.send(typeof data === "string" ? data : /** @type {any} */ (frame));
    return true;
  }

  // ---- Receiving ----

  /** @param {string | ArrayBuffer} frame */
  receive(frame) {
    if (typeof frame === "string") {
      const isOurs = frame.startsWith(FRAME_CHARACTER) && !this.#connection.isForeign;
      if (isOurs) {
        this.#receiveFrame(parseJson(frame.slice(FRAME_CHARACTER.length)), frame.length);
      } else {
        this.#events.onMessage(frame, frame.length);
      }
      return;
    }
    const bytes = new Uint8Array(frame);
    if (!this.#connection.isForeign && bytes.length >= PIECE_HEADER_BYTES && beginsLikeAPiece(bytes)) {
      this.#receivePiece(bytes);
    } else {
      this.#events.onMessage(frame, bytes.length);
    }
  }

  /** @param {any} frame @param {number} bytes */
  #receiveFrame(frame, bytes) {
    if (typeof frame !== "object" || frame === null) {
      return;
    }
    if ("json" in frame) {
      this.#events.onMessage(frame.json, bytes);
    } else if (Number.isInteger(frame.begin)) {
      this.#beginStream(frame);
    } else if (Number.isInteger(frame.abort)) {
      this.#abortStream(frame);
    }
  }

  /** @param {any} frame */
  #beginStream({ begin, kind, size, name, mime, lastModified }) {
    const isValid = Number.isSafeInteger(size) && size >= 0 && !this.#incoming.has(begin);
    let announced = size;
    for (const stream of this.#incoming.values()) {
      announced += stream.size;
    }
    if (!isValid || announced > this.#receiveBytesMax || this.#incoming.size >= STREAMS_MAX) {
      this.#sendFrame({ abort: begin, by: "receiver", code: "too_big" });
      return;
    }
    this.#incoming.set(begin, {
      kind: String(kind),
      size,
      received: 0,
      pieces: [],
      name: String(name ?? ""),
      mime: String(mime ?? ""),
      lastModified: Number(lastModified) || 0,
    });
    if (size === 0) {
      this.#completeStream(begin);
    }
  }

  /** @param {any} frame */
  #abortStream({ abort, by, code }) {
    if (by === "sender") {
      this.#incoming.delete(abort);
      return;
    }
    const isTooBig = code === "too_big";
    const text = isTooBig ? "the peer does not receive messages of this size" : "the peer has refused the message";
    this.#outgoing.get(abort)?.abort(new NoroshiError(isTooBig ? "too_big" : "aborted", text));
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes */
  #receivePiece(bytes) {
    const id = new DataView(bytes.buffer, bytes.byteOffset).getUint32(PIECE_MAGIC.length);
    const stream = this.#incoming.get(id);
    if (!stream) {
      return;
    }
    const piece = bytes.subarray(PIECE_HEADER_BYTES);
    const received = stream.received + piece.length;
    const isTooSmall = piece.length < PIECE_BYTES_MIN && received < stream.size;
    if (received > stream.size || isTooSmall) {
      this.#incoming.delete(id);
      this.#sendFrame({ abort: id, by: "receiver" });
      return;
    }
    stream.received = received;
    stream.pieces.push(piece);
    const { size, name } = stream;
    this.#events.onProgress(name ? { received, size, name } : { received, size });
    if (received === size) {
      this.#completeStream(id);
    }
  }

  /** @param {number} id */
  #completeStream(id) {
    const stream = /** @type {IncomingStream} */ (this.#incoming.get(id));
    this.#incoming.delete(id);
    const data = assemble(stream);
    if (data !== undefined) {
      this.#events.onMessage(data, stream.size);
    }
  }
}

/** @param {IncomingStream} stream */
function assemble({ kind, size, pieces, name, mime, lastModified }) {
  if (kind === "file" && typeof File !== "undefined") {
    return new File(pieces, name, { type: mime, lastModified });
  }
  if (kind === "file" || kind === "blob") {
    return new Blob(pieces, { type: mime });
  }
  const bytes = new Uint8Array(size);
  let offset = 0;
  for (const piece of pieces) {
    bytes.set(piece, offset);
    offset += piece.length;
  }
  if (kind === "text") {
    return new TextDecoder().decode(bytes);
  }
  if (kind === "json") {
    return parseJson(new TextDecoder().decode(bytes));
  }
  return bytes.buffer;
}

/** Returns the ranges of the pieces of a message. @param {number} size */
function* pieceRanges(size) {
  const payload = PIECE_BYTES_MAX - PIECE_HEADER_BYTES;
  for (let start = 0; start < size; start += payload) {
    yield { start, end: Math.min(start + payload, size) };
  }
}

/**
 * Resolves at the next of several events, or when one of the signals is aborted.
 *
 * @param {EventTarget} target
 * @param {string[]} types
 * @param {(AbortSignal | undefined)[]} signals
 */
function nextEvent(target, types, signals) {
  return new Promise((resolve) => {
    const finished = new AbortController();
    const finish = () => {
      finished.abort();
      resolve(undefined);
    };
    const options = { once: true, signal: finished.signal };
    for (const type of types) {
      target.addEventListener(type, finish, options);
    }
    for (const signal of signals) {
      if (signal?.aborted) {
        finish();
        return;
      }
      signal?.addEventListener("abort", finish, options);
    }
  });
}
