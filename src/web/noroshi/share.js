/**
 * What the application holds of media that it shares.
 */

/**
 * Media that is shared. `room.share` returns it.
 */
export class Share {
  /** @type {import("./media.js").SharedTrack[]} */
  #sharedTracks;
  #onReplaced;
  #onStopped;

  /**
   * @param {import("./media.js").SharedTrack[]} sharedTracks
   * @param {(sharedTrack: import("./media.js").SharedTrack) => void} onReplaced
   * @param {() => void} onStopped
   * @internal
   */
  constructor(sharedTracks, onReplaced, onStopped) {
    this.#sharedTracks = sharedTracks;
    this.#onReplaced = onReplaced;
    this.#onStopped = onStopped;
  }

  /** The tracks that are shared now. @type {MediaStreamTrack[]} */
  get tracks() {
    return this.#sharedTracks.map(({ track }) => track);
  }

  /**
   * Replaces the shared track of the same kind, without a negotiation: for example another camera.
   *
   * @param {MediaStreamTrack} track
   */
  replace(track) {
    const sharedTrack = this.#sharedTracks.find((shared) => shared.track.kind === track.kind);
    if (!sharedTrack) {
      throw new TypeError(`no track of the kind ${track.kind} is shared here`);
    }
    sharedTrack.track = track;
    this.#onReplaced(sharedTrack);
  }

  /** Ends the sharing. The tracks themselves, and so the camera, go on until `track.stop()`. */
  stop() {
    this.#onStopped();
  }
}
