/**
 * The connection to the signaling server: opens a WebSocket, notices when it is dead, and opens the next one.
 *
 * It knows neither rooms nor WebRTC. Its owner registers in `onOpen`, and calls `confirm` when the server has accepted
 * that.
 *
 *                   start()
 *     idle ────────────────────────► connecting ──── WebSocket opens ───► open ─── confirm() ──► confirmed
 *                                     ▲      │                             │                        │
 *                      pause is over  │      │ refused, or no answer       │ closed, or silent      │
 *                                     │      ▼                             ▼                        ▼
 *                                    waiting ◄──────────────────────────────────────────────────────┘
 *
 *     The page enters the back/forward cache: asleep, until it comes back. close(), or a final refusal: closed.
 */

import { NoroshiError } from "./errors.js";
import { parseJson } from "./sdp.js";

// All times are in milliseconds.

/** The first pause between attempts to connect. It doubles with each attempt. */
const PAUSE_MIN = 500;
/** The longest pause before the random factor of 0.5 to 1.5: a server that returns is noticed within 2.5 s. */
const PAUSE_MAX = 1_500;
/** The pause after the server closed the connection because of `--max-rate`. */
const PAUSE_RATE_LIMITED = 10_000;
/** The time from an attempt to its confirmation. The server may need 5 s to check that the id is free. */
const CONNECTING_MAX = 15_000;
/** Browsers cannot send WebSocket pings, and notice a lost network late or never: a silent server is sent a ping. */
const SILENCE_MAX = 25_000;
/** The time for an answer to that ping, and for the answer to an HTTP request. */
const ANSWER_MAX = 5_000;
/** Until it is known that health checks work here, one attempt in so many opens a WebSocket without one. */
const ATTEMPTS_PER_UNCHECKED_ATTEMPT = 4;

/** The close codes that the library handles (PROTOCOL.md, "Close codes"). */
const CLOSE_TOO_BIG = 1009;
/** After a message that was too large, messages of at least this part of its size are taken for too large, too. The
 *  descriptions of one session differ by a few per cent, so without it each description that is a little smaller would
 *  cost the WebSocket. */
const TOO_BIG_PART = 7 / 8;
const CLOSE_RATE_LIMITED = 1008;
const CLOSE_REPLACED = 4000;

/**
 * Returns a random pause before an attempt.
 *
 * @param {number} attempt 0 for the first
 */
export function pauseBefore(attempt) {
  const longest = Math.min(PAUSE_MIN * 2 ** attempt, PAUSE_MAX);
  return longest * (0.5 + Math.random());
}

/**
 * @typedef {object} SignalingEvents
 * @property {() => void} onOpen the WebSocket is open: register now
 * @property {(message: any) => void} onMessage
 * @property {(loss: { code: number, retryIn: number }) => void} onLost a confirmed connection is lost: the close code, or 0
 *   if the server did not answer or the page was suspended, and the time until the next attempt
 * @property {(error: NoroshiError) => void} onRefused the server refuses the connection for good
 * @property {(size: number, context: unknown) => void} onTooBig a message was too large for the server
 * @property {() => void} onPageHidden the page is closed
 * @property {() => void} onPageCached the page enters the back/forward cache, and may come back
 */

export class Signaling {
  #url;
  #token;
  #WebSocket;
  #events;
  /** @type {"idle" | "connecting" | "open" | "confirmed" | "waiting" | "asleep" | "closed"} */
  #state = "idle";
  /** @type {WebSocket | undefined} */
  #socket;
  /** The current attempt. An asynchronous step compares it, because another attempt may have begun meanwhile. */
  #attempt = 0;
  /** Failed attempts since the last confirmation. */
  #failures = 0;
  #wasEverConfirmed = false;
  /** Whether `/healthz` can be requested from this page: a Content-Security-Policy may forbid it. @type {boolean | undefined} */
  #canCheckHealth;
  /** The one timer: for the end of a pause, of an attempt, of silence, or for an answer. @type {any} */
  #timer;
  /** Whether the server was asked for a sign of life. */
  #isProbing = false;
  /** The largest message since the WebSocket was opened. @type {{ size: number, context: unknown }} */
  #largest = { size: 0, context: undefined };
  /** Messages of this size or more are taken for too large for the server. */
  #tooBigSize = Infinity;
  #pageListeners = new AbortController();

  /**
   * @param {object} options
   * @param {string} options.url
   * @param {string | (() => string | Promise<string>) | undefined} options.token
   * @param {typeof globalThis.WebSocket} options.WebSocket
   * @param {SignalingEvents} options.events
   */
  constructor({ url, token, WebSocket, events }) {
    this.#url = url;
    this.#token = token;
    this.#WebSocket = WebSocket;
    this.#events = events;
  }

  get isOpen() {
    return this.#state === "open" || this.#state === "confirmed";
  }

  start() {
    this.#addPageListeners();
    this.#connect();
  }

  /** The server has accepted the registration. */
  confirm() {
    this.#state = "confirmed";
    this.#failures = 0;
    this.#wasEverConfirmed = true;
    this.#awaitMessage();
    if (this.#canCheckHealth === undefined) {
      this.#learnWhetherHealthCanBeChecked();
    }
  }

  /**
   * Sends a message.
   *
   * @param {object} message
   * @param {unknown} [context] is passed to `onTooBig` if this message is too large for the server
   * @returns {boolean} whether the message was given to the WebSocket
   */
  send(message, context) {
    if (!this.isOpen || !this.#socket || this.#socket.readyState !== 1) {
      return false;
    }
    const text = JSON.stringify(message);
    const size = text.length;
    if (size >= this.#tooBigSize) {
      this.#events.onTooBig(size, context);
      return false;
    }
    if (size > this.#largest.size) {
      this.#largest = { size, context };
    }
    this.#socket.send(text);
    return true;
  }

  /** Connects again at once, because another server may be needed. */
  reconnect() {
    if (this.isOpen) {
      this.#onLost(0);
    }
  }

  /** Connects again after a short pause, because the registration was refused but may succeed later. */
  retry() {
    this.#failures = 0;
    this.#onLost(0);
  }

  close() {
    this.#state = "closed";
    this.#attempt += 1;
    clearTimeout(this.#timer);
    this.#pageListeners.abort();
    this.#discardSocket();
  }

  // ---- Attempts to connect ----

  async #connect() {
    this.#discardSocket();
    this.#state = "connecting";
    this.#attempt += 1;
    const attempt = this.#attempt;
    this.#setTimer(CONNECTING_MAX, () => this.#onAttemptFailed(0, false));
    const isServerThere = await this.#isServerThere();
    if (attempt !== this.#attempt) {
      return;
    }
    if (!isServerThere) {
      this.#onAttemptFailed(0, false);
      return;
    }
    let address = this.#url;
    try {
      address = await this.#authorizedUrl();
    } catch (error) {
      if (attempt === this.#attempt) {
        this.#onTokenError(error);
      }
      return;
    }
    if (attempt === this.#attempt) {
      this.#openSocket(address);
    }
  }

  /** Firefox delays WebSockets after failures for up to a minute, but it does not delay requests. So after a failure, a
   *  WebSocket is opened when a health check has succeeded. */
  async #isServerThere() {
    const isUnchecked = this.#canCheckHealth === undefined && this.#failures % ATTEMPTS_PER_UNCHECKED_ATTEMPT === 0;
    if (this.#failures === 0 || this.#canCheckHealth === false || isUnchecked) {
      return true;
    }
    return this.#answers("/healthz");
  }

  async #learnWhetherHealthCanBeChecked() {
    this.#canCheckHealth = false;
    this.#canCheckHealth = await this.#answers("/healthz");
  }

  /** Browsers cannot set headers of a WebSocket, so the token is in the query. */
  async #authorizedUrl() {
    if (this.#token === undefined) {
      return this.#url;
    }
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    const url = new URL(this.#url);
    url.searchParams.set("token", token);
    return url.href;
  }

  /** @param {string} address */
  #openSocket(address) {
    let socket;
    try {
      socket = new this.#WebSocket(address);
    } catch (error) {
      // For example a `ws:` URL in a page from `https:`.
      this.#end(new NoroshiError("refused", `the browser does not open ${this.#url}: ${error}`, error));
      return;
    }
    let wasOpen = false;
    this.#socket = socket;
    this.#largest = { size: 0, context: undefined };
    this.#isProbing = false;
    socket.onopen = () => {
      wasOpen = true;
      this.#state = "open";
      this.#events.onOpen();
    };
    socket.onmessage = ({ data }) => this.#onData(data);
    socket.onerror = () => {
      // A close event follows.
    };
    socket.onclose = ({ code }) => {
      if (wasOpen) {
        this.#onLost(code);
      } else {
        this.#onRefused(address);
      }
    };
  }

  /** Closes the WebSocket and ignores its further events. */
  #discardSocket() {
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) {
      return;
    }
    socket.onopen = null;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
  }

  // ---- Failures ----

  /** The function that returns a token has failed. @param {unknown} error */
  #onTokenError(error) {
    if (this.#wasEverConfirmed) {
      this.#onAttemptFailed(0, false);
      return;
    }
    const text = error instanceof Error ? error.message : String(error);
    this.#end(new NoroshiError("unauthorized", `the function \`token\` failed: ${text}`, error));
  }

  /** The WebSocket was closed before it opened. @param {string} address */
  async #onRefused(address) {
    const needsReason = !this.#wasEverConfirmed || this.#token !== undefined;
    if (!needsReason) {
      this.#onAttemptFailed(0, false);
      return;
    }
    const attempt = this.#attempt;
    const reason = await this.#diagnose(address);
    if (attempt !== this.#attempt) {
      return;
    }
    const isFinal = reason.code === "unauthorized" || reason.code === "forbidden";
    if (isFinal || !this.#wasEverConfirmed) {
      this.#end(reason);
    } else {
      this.#onAttemptFailed(0, false);
    }
  }

  /** An open WebSocket is closed, or does not answer. @param {number} code the close code, or 0 */
  #onLost(code) {
    if (code === CLOSE_REPLACED) {
      this.#end(new NoroshiError("replaced", "the id has gone to another connection"));
      return;
    }
    if (code === CLOSE_TOO_BIG) {
      this.#tooBigSize = this.#largest.size * TOO_BIG_PART;
    }
    const { size, context } = this.#largest;
    const wasConfirmed = this.#state === "confirmed";
    this.#onAttemptFailed(code, wasConfirmed);
    if (code === CLOSE_TOO_BIG) {
      this.#events.onTooBig(size, context);
    }
  }

  /**
   * Waits and connects again. An attempt that takes too long before the first confirmation is final.
   *
   * @param {number} code
   * @param {boolean} wasConfirmed
   */
  #onAttemptFailed(code, wasConfirmed) {
    this.#attempt += 1;
    this.#discardSocket();
    if (!this.#wasEverConfirmed && code === 0 && this.#state === "connecting") {
      this.#end(new NoroshiError("unreachable", `${this.#url} does not answer`));
      return;
    }
    const pause = code === CLOSE_RATE_LIMITED ? PAUSE_RATE_LIMITED : pauseBefore(this.#failures);
    this.#failures += 1;
    this.#state = "waiting";
    this.#setTimer(pause, () => this.#connect());
    if (wasConfirmed) {
      this.#events.onLost({ code, retryIn: Math.round(pause) });
    }
  }

  /** @param {NoroshiError} error */
  #end(error) {
    this.close();
    this.#events.onRefused(error);
  }

  /**
   * Finds out why the WebSocket was refused. A browser does not tell, but it shows the response to a plain request of the
   * same URL to pages of allowed origins, or at least whether a server answers.
   *
   * @param {string} address
   */
  async #diagnose(address) {
    const response = await this.#fetch(address, {}).catch(() => undefined);
    const text = response ? await response.text().catch(() => "") : "";
    const reason = text.trim();
    if (response?.status === 401) {
      return new NoroshiError("unauthorized", reason);
    }
    if (response?.status === 403) {
      return new NoroshiError("forbidden", reason);
    }
    if (response) {
      return new NoroshiError("refused", `${this.#url} does not let us in: ${response.status} ${reason}`);
    }
    if (await this.#answers("/healthz")) {
      return new NoroshiError("refused", `${this.#url} does not let us in; the log of the server has the reason`);
    }
    return new NoroshiError("unreachable", `${this.#url} cannot be reached`);
  }

  /** Returns whether anything answers a request. @param {string} path */
  async #answers(path) {
    try {
      await this.#fetch(path, { mode: "no-cors" });
      return true;
    } catch {
      return false;
    }
  }

  /**
   * @param {string} path a path of the server, or a URL
   * @param {RequestInit} options
   */
  async #fetch(path, options) {
    const url = new URL(path, this.#url);
    url.protocol = url.protocol.replace("ws", "http");
    return fetch(url, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_MAX), ...options });
  }

  // ---- Signs of life ----

  /** @param {unknown} data */
  #onData(data) {
    const message = parseJson(data);
    if (typeof message !== "object" || message === null) {
      return;
    }
    // Servers before this message answer it with an error.
    const isPong = message.type === "pong" || message.code === "unknown_type";
    if (isPong || message.code === "rate_limited") {
      this.#isProbing = false;
    }
    if (this.#state === "confirmed") {
      this.#awaitMessage();
    }
    this.#events.onMessage(message);
  }

  /** Waits for the next message. A message that was sent before the ping is no answer, but may delay the answer. */
  #awaitMessage() {
    if (this.#isProbing) {
      this.#setTimer(ANSWER_MAX, () => this.#onLost(0));
    } else {
      this.#setTimer(SILENCE_MAX, () => this.#probe());
    }
  }

  #probe() {
    this.send({ type: "ping" });
    this.#isProbing = true;
    this.#awaitMessage();
  }

  /** Something has happened to the network or to the page: is the server still there? */
  #check() {
    if (this.#state === "confirmed") {
      this.#probe();
    } else if (this.#state === "waiting") {
      this.#connect();
    }
  }

  /** The browser has a network again. An attempt that began without one may wait for a long time. */
  #onNetwork() {
    if (this.#state === "connecting" && this.#wasEverConfirmed) {
      this.#connect();
    } else {
      this.#check();
    }
  }

  // ---- The page ----

  /** In a worker or in Node there is no page. */
  #addPageListeners() {
    const { signal } = this.#pageListeners;
    const target = "addEventListener" in globalThis ? globalThis : undefined;
    const page = globalThis.document;
    target?.addEventListener("online", () => this.#onNetwork(), { signal });
    page?.addEventListener("visibilitychange", () => this.#onVisibilityChange(), { signal });
    target?.addEventListener("pagehide", (event) => this.#onPageHide(/** @type {any} */ (event)), { signal });
    target?.addEventListener("pageshow", (event) => this.#onPageShow(/** @type {any} */ (event)), { signal });
  }

  #onVisibilityChange() {
    if (!document.hidden) {
      this.#check();
    }
  }

  /** Others must not wait for a page that is closed, nor for one in the back/forward cache, which may come back.
   *  @param {PageTransitionEvent} event */
  #onPageHide({ persisted }) {
    if (!persisted) {
      this.#events.onPageHidden();
      return;
    }
    const wasConfirmed = this.#state === "confirmed";
    this.#events.onPageCached();
    this.#attempt += 1;
    clearTimeout(this.#timer);
    this.#discardSocket();
    this.#state = "asleep";
    if (wasConfirmed) {
      this.#events.onLost({ code: 0, retryIn: 0 });
    }
  }

  /** @param {PageTransitionEvent} event */
  #onPageShow({ persisted }) {
    if (persisted && this.#state === "asleep") {
      this.#connect();
    } else if (persisted) {
      this.#check();
    }
  }

  /**
   * @param {number} ms
   * @param {() => void} action
   */
  #setTimer(ms, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, ms);
  }
}
