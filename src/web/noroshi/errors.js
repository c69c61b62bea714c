/**
 * Errors of the client library.
 */

/**
 * Codes of the server (PROTOCOL.md, "Errors") and of the library.
 *
 * @typedef {"bad_json" | "bad_message" | "id_mismatch" | "id_taken" | "not_offerer" | "offer_taken" | "peer_busy"
 *   | "rate_limited" | "room_full" | "too_many" | "unknown_peer" | "unknown_type"} ServerErrorCode
 *
 * @typedef {"aborted" | "connection_failed" | "forbidden" | "left" | "not_open" | "refused" | "replaced" | "too_big"
 *   | "unauthorized" | "unreachable" | ServerErrorCode} ErrorCode
 */

/** An error with a code that programs can compare. */
export class NoroshiError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   * @param {unknown} [cause] for example a DOMException of the browser
   */
  constructor(code, message, cause) {
    super(message);
    this.name = "NoroshiError";
    /** @type {ErrorCode} */
    this.code = code;
    /** @type {unknown} */
    this.cause = cause;
  }
}
