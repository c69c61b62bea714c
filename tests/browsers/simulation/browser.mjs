/** Everything that a page with the library needs, in virtual time. */

import { World } from "./clock.mjs";
import { Service, WebSocket, fetch } from "./server.mjs";
import {
  MediaStream,
  MediaStreamTrack,
  RTCIceCandidate,
  RTCPeerConnection,
  RTCSessionDescription,
} from "./webrtc.mjs";

export const SERVER_URL = "wss://signaling.example/ws/tea";

/** Begins a run. Its global functions replace those of the last one.
 *  @param {number} seed @param {{isTraced?: boolean, serverCount?: number}} [options] */
export function createWorld(seed, { isTraced = false, serverCount = 1 } = {}) {
  Object.assign(globalThis, {
    fetch,
    WebSocket,
    MediaStream,
    MediaStreamTrack,
    RTCIceCandidate,
    RTCPeerConnection,
    RTCSessionDescription,
  });
  const world = new World(seed, { isTraced });
  new Service(world, serverCount);
  return world;
}
