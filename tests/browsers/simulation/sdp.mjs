/** Session descriptions as text (RFC 8866), with the lines that signaling libraries read. */

/** @typedef {{
 *    kind: string, mid: string, isRejected: boolean, direction?: any, streamIds?: string[], trackId?: string,
 *    transceiver?: any,
 *  }} Section */
/** @typedef {{
 *    type: string, origin: OriginLine, fragment: string, password: string, fingerprint: string, setup: string,
 *    sections: Section[], candidates?: string[], exported?: {count: number, exported: any},
 *  }} Description */

/** The line that names a session and counts its descriptions. Browsers write it differently. */
export class OriginLine {
  /** @param {string} session @param {number} version @param {"chromium" | "firefox"} browser */
  constructor(session, version, browser) {
    this.session = session;
    this.version = version;
    this.browser = browser;
  }

  /** @param {import("./clock.mjs").Random} random @param {"chromium" | "firefox"} browser */
  static random(random, browser) {
    const digits = `${random.integer()}${random.integer()}`.replace(/^0+/, "1").slice(0, 18);
    return new OriginLine(digits, browser === "chromium" ? 1 : -1, browser);
  }

  next() {
    return new OriginLine(this.session, this.version + 1, this.browser);
  }

  toString() {
    return this.browser === "chromium"
      ? `o=- ${this.session} ${this.version} IN IP4 127.0.0.1`
      : `o=mozilla...THIS_IS_SDPARTA-99.0 ${this.session} ${this.version} IN IP4 0.0.0.0`;
  }
}

/** @type {Record<string, string>} */
const REVERSED = { sendrecv: "sendrecv", sendonly: "recvonly", recvonly: "sendonly", inactive: "inactive" };

/** Returns the direction from the point of view of the other side. @param {string} direction */
export const reverse = (direction) => REVERSED[direction];

/** @param {string} a @param {string} b */
export function intersect(a, b) {
  const isSending = a.includes("send") && b.includes("send");
  const isReceiving = a.includes("recv") && b.includes("recv");
  if (isSending) {
    return isReceiving ? "sendrecv" : "sendonly";
  }
  return isReceiving ? "recvonly" : "inactive";
}

/** @param {string} candidate */
export const candidateFragment = (candidate) => / ufrag (\S+)/.exec(candidate)?.[1];

const PROTOCOLS = /** @type {Record<string, string>} */ ({
  application: "UDP/DTLS/SCTP webrtc-datachannel",
  audio: "UDP/TLS/RTP/SAVPF 111",
  video: "UDP/TLS/RTP/SAVPF 96",
});

/** @param {Description} description @param {string[]} candidates */
export function format(description, candidates) {
  const { origin, fragment, password, fingerprint, setup, sections } = description;
  const mids = sections.filter(({ isRejected }) => !isRejected).map(({ mid }) => mid);
  let text = `v=0\r\n${origin}\r\ns=-\r\nt=0 0\r\na=group:BUNDLE ${mids.join(" ")}\r\n`;
  let isFirst = true;
  for (const section of sections) {
    text += `m=${section.kind} ${section.isRejected ? 0 : 9} ${PROTOCOLS[section.kind]}\r\nc=IN IP4 0.0.0.0\r\n`;
    if (isFirst && !section.isRejected) {
      isFirst = false;
      for (const candidate of candidates) {
        text += `a=${candidate.replace(/^a=/, "")}\r\n`;
      }
    }
    text += `a=ice-ufrag:${fragment}\r\na=ice-pwd:${password}\r\na=fingerprint:sha-256 ${fingerprint}\r\n`;
    text += `a=setup:${setup}\r\na=mid:${section.mid}\r\n`;
    if (section.kind === "application") {
      text += "a=sctp-port:5000\r\na=max-message-size:262144\r\n";
    } else {
      text += `a=${section.direction ?? "inactive"}\r\na=rtcp-mux\r\n`;
      const streamIds = section.streamIds ?? [];
      for (const streamId of streamIds) {
        text += `a=msid:${streamId} ${section.trackId}\r\n`;
      }
      if (streamIds.length === 0 && section.trackId) {
        text += `a=msid:- ${section.trackId}\r\n`;
      }
    }
  }
  return text;
}

/** Returns the description that a text contains, if it is one. @param {string} type @param {string} text
 *  @returns {Description | undefined} */
export function parse(type, text) {
  const [head, ...parts] = text.split(/^m=/m);
  const line = /^o=(\S+) (\d+) (\d+) IN /m.exec(head);
  if (!line || !head.startsWith("v=0") || parts.length === 0) {
    return undefined;
  }
  const origin = new OriginLine(line[2], Number(line[3]), line[1] === "-" ? "chromium" : "firefox");
  /** @type {string[]} */
  const candidates = [];
  /** @type {Record<string, string>} */
  const transport = {};
  const sections = [];
  for (const part of parts) {
    const lines = part.split("\r\n");
    const [kind, port] = lines[0].split(" ");
    /** @type {Section} */
    const section = { kind, mid: "", isRejected: port === "0", direction: "sendrecv", streamIds: [] };
    for (const attribute of lines) {
      const colon = attribute.indexOf(":");
      const name = colon === -1 ? attribute : attribute.slice(0, colon);
      const value = attribute.slice(colon + 1);
      if (name === "a=candidate") {
        candidates.push(attribute.slice(2));
      } else if (name === "a=mid") {
        section.mid = value;
      } else if (name === "a=msid" && !value.startsWith("-")) {
        section.streamIds?.push(value.split(" ")[0]);
      } else if (name.slice(2) in REVERSED) {
        section.direction = name.slice(2);
      } else if (name.startsWith("a=ice-") || name === "a=fingerprint" || name === "a=setup") {
        transport[name] ??= value;
      }
    }
    if (!(kind in PROTOCOLS)) {
      return undefined;
    }
    sections.push(section);
  }
  const fragment = transport["a=ice-ufrag"];
  const password = transport["a=ice-pwd"];
  const fingerprint = transport["a=fingerprint"]?.split(" ")[1];
  if (!fragment || !password || !fingerprint) {
    return undefined;
  }
  return { type, origin, fragment, password, fingerprint, setup: transport["a=setup"], sections, candidates };
}
