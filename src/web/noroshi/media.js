/**
 * Media that a room shares with its peers.
 *
 * A shared track has one transceiver in each connection. A transceiver whose track is no longer shared is used again for
 * the next track of its kind, because a session description keeps every transceiver for ever.
 */

import { Share } from "./share.js";

/**
 * A track that is shared, the streams that it belongs to, and the name of the share. The track may be replaced.
 * @typedef {{ track: MediaStreamTrack, streams: MediaStream[], name: string | undefined }} SharedTrack
 */

/**
 * All shares of a room.
 */
export class Shares {
  /** The shared tracks of each share, and the peers that they are for: everybody if undefined.
   *  @type {Map<Share, { sharedTracks: SharedTrack[], receivers: Set<object> | undefined }>} */
  #entries = new Map();

  /**
   * @param {MediaStream | MediaStreamTrack} source
   * @param {{ receivers: Set<object> | undefined, name: string | undefined }} options
   * @param {{ onChanged: () => void, onReplaced: (sharedTrack: SharedTrack) => void }} events
   */
  add(source, { receivers, name }, { onChanged, onReplaced }) {
    const isStream = "getTracks" in source;
    const tracks = isStream ? source.getTracks() : [source];
    const streams = isStream ? [source] : [new MediaStream([source])];
    const sharedTracks = tracks.map((track) => ({ track, streams, name }));
    const share = new Share(sharedTracks, onReplaced, () => {
      if (this.#entries.delete(share)) {
        onChanged();
      }
    });
    this.#entries.set(share, { sharedTracks, receivers });
    onChanged();
    return share;
  }

  clear() {
    this.#entries.clear();
  }

  /** Returns the tracks for a peer. @param {object} peer @returns {SharedTrack[]} */
  tracksFor(peer) {
    const entries = [...this.#entries.values()];
    const ofPeer = entries.filter(({ receivers }) => !receivers || receivers.has(peer));
    return ofPeer.flatMap(({ sharedTracks }) => sharedTracks);
  }
}

/**
 * The transceivers of the shared tracks in one connection.
 */
export class Senders {
  #pc;
  /** @type {Map<SharedTrack, RTCRtpTransceiver>} */
  #transceivers = new Map();
  /** Transceivers whose track is no longer shared. @type {Set<RTCRtpTransceiver>} */
  #released = new Set();

  /** @param {RTCPeerConnection} pc */
  constructor(pc) {
    this.#pc = pc;
  }

  /** The names of the shares by the `mid` of their transceivers, for the peer. @returns {Record<string, string>} */
  get names() {
    /** @type {Record<string, string>} */
    const names = {};
    for (const [{ name }, { mid }] of this.#transceivers) {
      if (name !== undefined && mid !== null) {
        names[mid] = name;
      }
    }
    return names;
  }

  /**
   * Sends these tracks and no others. The browser reports whether that needs a negotiation.
   *
   * @param {SharedTrack[]} sharedTracks
   */
  async update(sharedTracks) {
    for (const [sharedTrack, transceiver] of this.#transceivers) {
      if (!sharedTracks.includes(sharedTrack)) {
        await this.#release(transceiver);
        this.#transceivers.delete(sharedTrack);
      }
    }
    for (const sharedTrack of sharedTracks) {
      const transceiver = this.#transceivers.get(sharedTrack);
      if (!transceiver) {
        this.#transceivers.set(sharedTrack, await this.#acquire(sharedTrack));
      } else if (transceiver.sender.track !== sharedTrack.track) {
        await transceiver.sender.replaceTrack(sharedTrack.track);
      }
    }
  }

  /** @param {SharedTrack} sharedTrack its track was replaced */
  async replace(sharedTrack) {
    await this.#transceivers.get(sharedTrack)?.sender.replaceTrack(sharedTrack.track);
  }

  /** @param {RTCRtpTransceiver} transceiver */
  async #release(transceiver) {
    await transceiver.sender.replaceTrack(null);
    setSending(transceiver, false);
    this.#released.add(transceiver);
  }

  /** @param {SharedTrack} sharedTrack */
  async #acquire({ track, streams }) {
    const free = [...this.#released].find((transceiver) => this.#isFree(transceiver, track.kind));
    if (!free) {
      return this.#add(track, streams);
    }
    this.#released.delete(free);
    await free.sender.replaceTrack(track);
    free.sender.setStreams?.(...streams);
    setSending(free, true);
    return free;
  }

  /**
   * Takes a transceiver that has never sent, for example one of a track that is received, or adds one. The application may
   * do the same at any time, so that this must not be interrupted, as `replaceTrack` would be.
   *
   * @param {MediaStreamTrack} track
   * @param {MediaStream[]} streams
   */
  #add(track, streams) {
    if (this.#pc.getSenders().some((sender) => sender.track === track)) {
      // `addTrack` sends a track only once.
      return this.#pc.addTransceiver(track, { direction: "sendrecv", streams });
    }
    const added = this.#pc.addTrack(track, ...streams);
    const transceiver = this.#pc.getTransceivers().find(({ sender }) => sender === added);
    return /** @type {RTCRtpTransceiver} */ (transceiver);
  }

  /** @param {RTCRtpTransceiver} transceiver @param {string} kind */
  #isFree(transceiver, kind) {
    const isOfKind = transceiver.receiver.track.kind === kind;
    return isOfKind && transceiver.sender.track === null && transceiver.direction !== "stopped";
  }
}

/** @param {RTCRtpTransceiver} transceiver @param {boolean} isSending */
function setSending(transceiver, isSending) {
  transceiver.direction = isSending ? "sendrecv" : "recvonly";
}
