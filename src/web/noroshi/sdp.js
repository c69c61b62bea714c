/**
 * What the library reads in session descriptions (SDP, RFC 8866). It never changes them.
 */

/**
 * Returns the values of all lines with a prefix, without repetitions and sorted.
 *
 * @param {string} sdp
 * @param {string} prefix
 */
function lineValues(sdp, prefix) {
  const lines = sdp.split(/\r?\n/).filter((line) => line.startsWith(prefix));
  const values = lines.map((line) => line.slice(prefix.length));
  return [...new Set(values)].sort().join();
}

/**
 * Returns the session id of the origin line (RFC 8866 section 5.2).
 *
 * @param {string} sdp
 */
function sessionId(sdp) {
  return /^o=\S+ (\S+)/m.exec(sdp)?.[1];
}

/**
 * Returns whether two descriptions of one peer come from different RTCPeerConnections.
 *
 * Some implementations write another session id into each offer, and an ICE restart changes the ICE credentials. Only a
 * new RTCPeerConnection changes these and the fingerprint of its DTLS certificate at the same time.
 *
 * @param {string} before
 * @param {string} after
 */
export function isOtherConnection(before, after) {
  const isOther = (/** @type {string} */ prefix) => lineValues(before, prefix) !== lineValues(after, prefix);
  return sessionId(before) !== sessionId(after) && isOther("a=ice-ufrag:") && isOther("a=fingerprint:");
}

/**
 * Returns the candidates that a description contains.
 *
 * @param {string} sdp
 * @returns {RTCIceCandidateInit[]}
 */
export function candidatesOf(sdp) {
  const candidates = [];
  for (const section of sdp.split(/^m=/m).slice(1)) {
    const sdpMid = /^a=mid:(\S+)/m.exec(section)?.[1];
    const usernameFragment = /^a=ice-ufrag:(\S+)/m.exec(section)?.[1];
    for (const match of section.matchAll(/^a=(candidate:.*?)\r?$/gm)) {
      candidates.push({ candidate: match[1], sdpMid, usernameFragment });
    }
  }
  return candidates;
}

/**
 * Splits stored candidates, which the server joins with `|`. A candidate may itself contain that character, so that the
 * text is parsed: each separator is outside of strings and brackets.
 *
 * @param {string} text
 * @returns {unknown[]} the parsed values; text that is not JSON is skipped
 */
export function splitCandidates(text) {
  const values = [];
  let start = 0;
  let depth = 0;
  let isInString = false;
  for (let index = 0; index <= text.length; index += 1) {
    const character = text[index];
    if (isInString && character === "\\") {
      index += 1;
    } else if (character === '"') {
      isInString = !isInString;
    } else if (!isInString && (character === "{" || character === "[")) {
      depth += 1;
    } else if (!isInString && (character === "}" || character === "]")) {
      depth -= 1;
    }
    const isEnd = index >= text.length || (character === "|" && !isInString && depth === 0);
    if (isEnd) {
      values.push(parseJson(text.slice(start, index)));
      start = index + 1;
    }
  }
  return values.filter((value) => value !== undefined);
}

/**
 * Returns the value of a JSON text, or undefined if it is not one.
 *
 * @param {unknown} text
 * @returns {any}
 */
export function parseJson(text) {
  try {
    return JSON.parse(/** @type {string} */ (text));
  } catch {
    return undefined;
  }
}
