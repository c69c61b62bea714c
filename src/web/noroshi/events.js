/**
 * An EventTarget whose events wait for their first listener.
 */

/** Events of one type that wait for a listener. Later ones are dropped: nobody seems to be interested in them. */
const WAITING_EVENTS_MAX = 1000;
/** Bytes of messages that wait for a listener. */
const WAITING_BYTES_MAX = 1 << 20;

/**
 * @template {Record<string, object>} Events the fields of each type of event
 */
export class BufferedEventTarget extends EventTarget {
  /** In the order in which they happened. @type {{ event: Event, bytes: number }[]} */
  #waiting = [];
  /** @type {Set<string>} */
  #typesWithListener = new Set();
  #isDeliveryScheduled = false;

  /**
   * Adds a listener. Events of this type that happened before the first listener are delivered soon afterwards.
   *
   * @template {keyof Events & string} K
   * @param {K} type
   * @param {((event: Event & Events[K]) => void) | { handleEvent(event: Event & Events[K]): void } | null} listener
   * @param {AddEventListenerOptions | boolean} [options]
   */
  addEventListener(type, listener, options) {
    super.addEventListener(type, /** @type {any} */ (listener), options);
    if (listener && !this.#typesWithListener.has(type)) {
      this.#typesWithListener.add(type);
      this.#scheduleDelivery();
    }
  }

  /**
   * Removes a listener.
   *
   * @template {keyof Events & string} K
   * @param {K} type
   * @param {((event: Event & Events[K]) => void) | { handleEvent(event: Event & Events[K]): void } | null} listener
   * @param {EventListenerOptions | boolean} [options]
   */
  removeEventListener(type, listener, options) {
    super.removeEventListener(type, /** @type {any} */ (listener), options);
  }

  /**
   * Returns the next event of a type.
   *
   * @template {keyof Events & string} K
   * @param {K} type
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {Promise<Event & Events[K]>} is rejected with the reason of the signal
   */
  once(type, { signal } = {}) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const onEvent = (/** @type {Event & Events[K]} */ event) => {
        signal?.removeEventListener("abort", onAbort);
        resolve(event);
      };
      const onAbort = () => {
        this.removeEventListener(type, onEvent);
        reject(signal?.reason);
      };
      this.addEventListener(type, onEvent, { once: true });
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  /**
   * @param {BufferedEventTarget<any>} target
   * @param {string} type
   * @param {object} fields
   * @param {number} bytes the size of a message
   * @internal
   */
  static emit(target, type, fields, bytes = 0) {
    target.#emit(type, fields, bytes);
  }

  /**
   * @param {string} type
   * @param {object} fields
   * @param {number} bytes
   */
  #emit(type, fields, bytes) {
    const event = Object.assign(new Event(type), fields);
    const hasListener = this.#typesWithListener.has(type);
    if (hasListener && !this.#isDeliveryScheduled) {
      this.dispatchEvent(event);
      return;
    }
    const isLimited = !hasListener;
    if (isLimited && !this.#hasRoom(type, bytes)) {
      return;
    }
    this.#waiting.push({ event, bytes });
  }

  /**
   * @param {string} type
   * @param {number} bytes
   */
  #hasRoom(type, bytes) {
    const sameType = this.#waiting.filter(({ event }) => event.type === type);
    const waitingBytes = sameType.reduce((sum, waiting) => sum + waiting.bytes, 0);
    return sameType.length < WAITING_EVENTS_MAX && waitingBytes + bytes <= WAITING_BYTES_MAX;
  }

  /** Delivers in a microtask, so that listeners of several types that are added together get the events in order. */
  #scheduleDelivery() {
    if (this.#isDeliveryScheduled || this.#waiting.length === 0) {
      return;
    }
    this.#isDeliveryScheduled = true;
    queueMicrotask(() => {
      while (true) {
        const index = this.#waiting.findIndex(({ event }) => this.#typesWithListener.has(event.type));
        if (index < 0) {
          break;
        }
        const [{ event }] = /** @type {[{ event: Event, bytes: number }]} */ (this.#waiting.splice(index, 1));
        this.dispatchEvent(event);
      }
      this.#isDeliveryScheduled = false;
    });
  }
}
