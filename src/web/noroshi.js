/**
 * The client library of noroshi: browsers find each other through its signaling server, then connect directly.
 *
 * README.md beside this file documents it. The modules, from the application to the network:
 *
 *     noroshi.js       join, connect
 *     room.js          Room: who is in the room, and the events
 *     peer.js          Peer: another peer, for the application
 *     peer_session.js  the connections to one peer, one after the other
 *     connection.js    one RTCPeerConnection and its negotiation
 *     media.js         shared tracks and their transceivers
 *     share.js         Share: what the application holds of a shared track
 *     transfer.js      messages of any kind and size over a data channel
 *     signaling.js     the connection to the server
 *     events.js, errors.js, identity.js, sdp.js
 */

import { NoroshiError } from "./noroshi/errors.js";
import { Peer } from "./noroshi/peer.js";
import { Room } from "./noroshi/room.js";

/**
 * @typedef {import("./noroshi/room.js").Options} Options
 * @typedef {import("./noroshi/room.js").RoomEvents} RoomEvents
 * @typedef {import("./noroshi/room.js").RoomState} RoomState
 * @typedef {import("./noroshi/room.js").LeftReason} LeftReason
 * @typedef {import("./noroshi/errors.js").ErrorCode} ErrorCode
 * @typedef {import("./noroshi/share.js").Share} Share
 * @typedef {import("./noroshi/peer.js").PeerStats} PeerStats
 * @typedef {import("./noroshi/peer.js").PeerState} PeerState
 * @typedef {import("./noroshi/peer.js").WriteOptions} WriteOptions
 * @typedef {import("./noroshi/peer.js").Json} Json
 * @typedef {import("./noroshi/peer.js").Data} Data
 */

/**
 * Joins the mesh of a room: every peer connects to every other.
 *
 * @param {string | URL} url `wss://HOST/ws/ROOM`
 * @param {Options} [options]
 * @returns {Promise<Room>} is rejected with a NoroshiError, or with the reason of `options.signal`
 */
export async function join(url, options = {}) {
  return new Room(url, "join", options).entered;
}

/**
 * Random one-to-one pairing: is paired with one other peer that calls `connect`. When that peer has left, with the next
 * one.
 *
 * @param {string | URL} url `wss://HOST/ws/ROOM`
 * @param {Options} [options]
 * @returns {Promise<Room>} is rejected like that of `join`
 */
export async function connect(url, options = {}) {
  return new Room(url, "connect", options).entered;
}

export { NoroshiError, Peer, Room };
