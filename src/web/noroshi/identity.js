/**
 * Identifiers: ids of peers, and ids of connections.
 *
 * The id of a connection is `INSTANCE.NUMBER`: the random name of one Room, and the number of the connection in it.
 * Another instance is another page, for example after a reload. A greater number is a later connection.
 */

/** Returns a random text of about 26 letters and digits. `crypto.randomUUID` exists on https and localhost only. */
export function randomId() {
  const numbers = crypto.getRandomValues(new Uint32Array(4));
  return [...numbers].map((number) => number.toString(36)).join("");
}

/**
 * @param {string} instance
 * @param {number} number
 */
export function connectionId(instance, number) {
  return `${instance}.${number}`;
}

/**
 * Returns the parts of a connection's id, or undefined if the value is none.
 *
 * @param {unknown} id
 */
export function parseConnectionId(id) {
  if (typeof id !== "string") {
    return undefined;
  }
  const match = /^([0-9a-z]{1,64})\.([0-9]{1,15})$/.exec(id);
  if (!match) {
    return undefined;
  }
  return { instance: /** @type {string} */ (match[1]), number: Number(match[2]) };
}
