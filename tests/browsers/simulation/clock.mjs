/**
 * Virtual time, seeded randomness, and pages whose code runs in both.
 *
 * `World` holds everything that one run of the simulation needs. Its clock jumps from task to task. Every task belongs to a
 * page, or to nobody: the network and the server. While a task and the microtasks that it causes run, its page is the
 * current one, so that timers and connections which they create belong to the same page. A page can be frozen (its tasks
 * wait) or closed (its tasks are dropped), as in a browser.
 *
 * Equal seeds give equal runs: the time, `Math.random` and `crypto.getRandomValues` come from the seed.
 */

import { setMaxListeners } from "node:events";

import { Network } from "./network.mjs";

/** Real functions, which are replaced below. */
const { setImmediate } = globalThis;

/** The time at which every run begins, in milliseconds since 1970. */
const START = 1_700_000_000_000;

/** Tasks in one run. More of them are a loop that never ends. */
const TASKS_MAX = 2_000_000;

/** A small pseudorandom number generator (sfc32). */
export class Random {
  #a;
  #b;
  #c;
  #counter = 1;

  /** @param {number} seed @param {number} [stream] generators of equal seeds and different streams are independent */
  constructor(seed, stream = 0) {
    this.#a = seed | 0;
    this.#b = Math.floor(seed / 2 ** 32) | 0;
    this.#c = stream | 0;
    for (let round = 0; round < 12; round += 1) {
      this.integer();
    }
  }

  /** Returns 32 random bits. */
  integer() {
    const sum = (this.#a + this.#b + this.#counter) | 0;
    this.#counter = (this.#counter + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    return sum >>> 0;
  }

  /** Returns a number from 0 to 1, without 1. */
  next() {
    return this.integer() / 2 ** 32;
  }

  /** @param {number} min @param {number} max */
  between(min, max) {
    return min + this.next() * (max - min);
  }

  /** @param {number} probability */
  chance(probability) {
    return this.next() < probability;
  }

  /** Returns a whole number below `count`. @param {number} count */
  below(count) {
    return Math.floor(this.next() * count);
  }

  /** @template T @param {readonly T[]} list @returns {T} */
  pick(list) {
    return list[this.below(list.length)];
  }
}

/** The tasks of a run, ordered by time, and then in the order in which they were scheduled. */
class Tasks {
  /** A binary heap. @type {Task[]} */
  #heap = [];

  get first() {
    return this.#heap[0];
  }

  /** @param {Task} task */
  add(task) {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(task);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(task, heap[parent])) {
        break;
      }
      heap[index] = heap[parent];
      index = parent;
    }
    heap[index] = task;
  }

  takeFirst() {
    const heap = this.#heap;
    const [first] = heap;
    const last = /** @type {Task} */ (heap.pop());
    if (heap.length === 0) {
      return first;
    }
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) {
        break;
      }
      if (child + 1 < heap.length && isBefore(heap[child + 1], heap[child])) {
        child += 1;
      }
      if (!isBefore(heap[child], last)) {
        break;
      }
      heap[index] = heap[child];
      index = child;
    }
    heap[index] = last;
    return first;
  }

  [Symbol.iterator]() {
    return this.#heap[Symbol.iterator]();
  }
}

/** @typedef {{time: number, order: number, page: Page | null, action: (() => void) | null, isTimer: boolean}} Task
 *    A canceled task has no action. A timer is a task that the code of a page has set. */

/** @type {(task: Task, other: Task) => boolean} */
const isBefore = (task, other) =>
  task.time < other.time || (task.time === other.time && task.order < other.order);

/** A page in a browser. */
export class Page extends EventTarget {
  isFrozen = false;
  isClosed = false;
  /** Tasks that wait while the page is frozen. @type {Task[]} */
  waiting = [];
  /** Everything that is closed with the page. @type {Set<{onPageClose: (isAbrupt: boolean) => void}>} */
  resources = new Set();
  /** What `document` is for this page. */
  document = Object.assign(new EventTarget(), { hidden: false, visibilityState: "visible" });

  /** @param {World} world @param {string} name @param {"chromium" | "firefox"} browser */
  constructor(world, name, browser) {
    super();
    this.world = world;
    this.name = name;
    this.browser = browser;
  }

  /** Runs code of this page, and the microtasks that it causes. Returns its result, unless that is a promise, which would
   *  wait for the clock.
   *  @template T @param {() => T} action @returns {Promise<T | undefined>} */
  async run(action) {
    await drained();
    this.world.page = this;
    let result;
    try {
      result = action();
    } finally {
      await drained();
      this.world.page = null;
    }
    return result instanceof Promise ? undefined : result;
  }

  freeze() {
    this.isFrozen = true;
  }

  thaw() {
    this.isFrozen = false;
    const tasks = this.waiting;
    this.waiting = [];
    for (const task of tasks) {
      task.time = this.world.now;
      this.world.add(task);
    }
  }

  /** Closes the page. If it is abrupt, no connection says so.
   *  @param {{isAbrupt?: boolean}} [options] */
  close({ isAbrupt = false } = {}) {
    if (this.isClosed) {
      return;
    }
    for (const resource of [...this.resources]) {
      resource.onPageClose(isAbrupt);
    }
    this.resources.clear();
    this.isClosed = true;
  }

  /** Returns the number of timers that the code of this page has set. */
  get timerCount() {
    let count = 0;
    for (const task of [...this.world.tasks, ...this.waiting]) {
      if (task.isTimer && task.action && task.page === this) {
        count += 1;
      }
    }
    return count;
  }
}

/** One run of the simulation. */
export class World {
  /** The current time in milliseconds since 1970. */
  now = START;
  tasks = new Tasks();
  /** The page whose code runs. @type {Page | null} */
  page = null;
  /** Errors that no code has handled. @type {string[]} */
  problems = [];
  /** The lines of the trace, if there is one. @type {string[]} */
  lines = [];
  /** Tasks that ran. */
  taskCount = 0;
  #order = 0;
  /** Timers by id. @type {Map<number, Task>} */
  timers = new Map();
  #timerId = 0;

  /** @param {number} seed @param {{isTraced?: boolean}} [options] */
  constructor(seed, { isTraced = false } = {}) {
    this.seed = seed;
    this.isTraced = isTraced;
    /** What the network and the browsers do. */
    this.random = new Random(seed, 1);
    /** What the code of the pages draws. */
    this.pageRandom = new Random(seed, 2);
    /** What the scenario does. */
    this.scenario = new Random(seed, 3);
    this.network = new Network(this);
    /** Injected failures. `operation` returns the error of an operation that fails, `dtls` whether a handshake fails.
     *  @type {{
     *    operation?: (pc: import("./webrtc.mjs").RTCPeerConnection, name: string) => Error | undefined,
     *    dtls?: (pc: import("./webrtc.mjs").RTCPeerConnection) => boolean,
     *  }} */
    this.faults = {};
    /** Bugs of browsers. `rollbackOfFirstOffer`: a Chromium that has rolled back its first offer with media cannot make
     *  an offer again (webrtc:503013383). */
    this.bugs = { rollbackOfFirstOffer: false };
    install();
    current = this;
  }

  /** Opens a page. @param {string} name @param {"chromium" | "firefox"} [browser] */
  openPage(name, browser = "chromium") {
    return new Page(this, name, browser);
  }

  /** Milliseconds since the start. */
  get elapsed() {
    return this.now - START;
  }

  /** Adds a line to the trace. @param {string | undefined} name @param {() => string} text */
  trace(name, text) {
    if (this.isTraced) {
      const time = (this.elapsed / 1000).toFixed(4).padStart(9);
      this.lines.push(`${time} ${(name ?? "-").padEnd(6)} ${text()}`);
    }
  }

  /** Runs an action later. @param {Page | null} page @param {number} delay in milliseconds @param {() => void} action */
  schedule(page, delay, action, isTimer = false) {
    return this.scheduleAt(page, this.now + Math.max(delay, 0), action, isTimer);
  }

  /** Runs an action at a time. Actions of the same time run in the order in which they were scheduled.
   *  @param {Page | null} page @param {number} time @param {() => void} action */
  scheduleAt(page, time, action, isTimer = false) {
    this.#order += 1;
    const task = { time, order: this.#order, page, action, isTimer };
    this.tasks.add(task);
    return task;
  }

  /** @param {Task | null | undefined} task */
  cancel(task) {
    if (task) {
      task.action = null;
    }
  }

  /** Adds a task again, after those of the same time. @param {Task} task */
  add(task) {
    this.#order += 1;
    task.order = this.#order;
    this.tasks.add(task);
  }

  /** Resolves after a time, in a task of the page. @param {Page | null} page @param {number} ms @returns {Promise<void>} */
  delay(page, ms) {
    return new Promise((resolve) => {
      this.schedule(page, ms, resolve);
    });
  }

  /** Runs until the condition holds, at most `ms` milliseconds. Returns whether it holds; without a condition, true.
   *  @param {number} ms @param {() => boolean} [isDone] */
  async run(ms, isDone) {
    const deadline = this.now + ms;
    await drained();
    this.page = null;
    if (isDone?.()) {
      return true;
    }
    while (this.tasks.first && this.tasks.first.time <= deadline) {
      const task = this.tasks.takeFirst();
      const { page, action } = task;
      if (!action || page?.isClosed) {
        continue;
      }
      if (page?.isFrozen) {
        page.waiting.push(task);
        continue;
      }
      this.now = Math.max(this.now, task.time);
      this.taskCount += 1;
      if (this.taskCount > TASKS_MAX) {
        throw new Error(`more than ${TASKS_MAX} tasks: something never ends`);
      }
      this.page = page;
      task.action = null;
      try {
        action();
      } catch (error) {
        this.report(error);
      }
      await drained();
      this.page = null;
      if (isDone?.()) {
        return true;
      }
    }
    this.now = deadline;
    return !isDone;
  }

  /** Records an error that no code has handled. @param {unknown} error */
  report(error) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    this.problems.push(`${this.page?.name ?? "-"}: ${text}`);
    this.trace(this.page?.name, () => `UNHANDLED ${text}`);
  }

  /** @param {number} delay @param {() => void} action */
  setTimer(delay, action) {
    this.#timerId += 1;
    const id = this.#timerId;
    const task = this.schedule(
      this.page,
      delay,
      () => {
        this.timers.delete(id);
        action();
      },
      true,
    );
    this.timers.set(id, task);
    return id;
  }

  /** @param {number | undefined} id */
  clearTimer(id) {
    this.cancel(this.timers.get(/** @type {number} */ (id)));
    this.timers.delete(/** @type {number} */ (id));
  }

  /** @param {number} interval @param {() => void} action */
  setRepeatingTimer(interval, action) {
    const period = Math.max(interval, 1);
    const id = this.setTimer(period, () => this.#repeat(id, period, action));
    return id;
  }

  /** @param {number} id @param {number} period @param {() => void} action */
  #repeat(id, period, action) {
    const again = () => this.#repeat(id, period, action);
    this.timers.set(id, this.schedule(this.page, period, again, true));
    action();
  }
}

/** The run that uses the global functions. @type {World} */
let current;

/** Returns the run that uses the global functions. */
export const currentWorld = () => current;

/** Resolves when all microtasks are done. @returns {Promise<void>} */
const drained = () => new Promise((resolve) => setImmediate(resolve));

let isInstalled = false;

/** Replaces the global functions that depend on time, chance or the page. */
function install() {
  if (isInstalled) {
    return;
  }
  isInstalled = true;
  // The objects of a large room listen to one signal.
  setMaxListeners(0);
  replace(globalThis, {
    setTimeout: (/** @type {(...values: unknown[]) => void} */ action, delay = 0, ...values) =>
      current.setTimer(Number(delay) || 0, () => action(...values)),
    clearTimeout: (/** @type {number} */ id) => current.clearTimer(id),
    setInterval: (/** @type {(...values: unknown[]) => void} */ action, delay = 0, ...values) =>
      current.setRepeatingTimer(Number(delay) || 0, () => action(...values)),
    clearInterval: (/** @type {number} */ id) => current.clearTimer(id),
    addEventListener: (/** @type {[string, any, any]} */ ...values) =>
      current.page?.addEventListener(...values),
    removeEventListener: (/** @type {[string, any, any]} */ ...values) =>
      current.page?.removeEventListener(...values),
    location: new URL("https://app.example/"),
    navigator: { onLine: true, userAgent: "simulation" },
  });
  Object.defineProperty(globalThis, "document", {
    get: () => current.page?.document,
    configurable: true,
  });
  replace(Date, { now: () => Math.floor(current.now) });
  replace(performance, { now: () => current.elapsed });
  replace(Math, { random: () => current.pageRandom.next() });
  replace(crypto, {
    getRandomValues: (/** @type {ArrayBufferView} */ view) => {
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      for (let index = 0; index < bytes.length; index += 1) {
        bytes[index] = current.pageRandom.below(256);
      }
      return view;
    },
    randomUUID: () => {
      const digits = Array.from({ length: 32 }, () => current.pageRandom.below(16).toString(16));
      return digits.join("").replace(/(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
    },
  });
  replace(AbortSignal, {
    timeout: (/** @type {number} */ ms) => {
      const controller = new AbortController();
      // A browser does not keep this timer for the page, so that it is no timer of the page.
      current.schedule(current.page, ms, () =>
        controller.abort(new DOMException("the time is over", "TimeoutError")),
      );
      return controller.signal;
    },
  });
  process.on("unhandledRejection", (reason) => current.report(reason));
  process.on("uncaughtException", (error) => current.report(error));
}

/** @param {object} target @param {Record<string, unknown>} properties */
function replace(target, properties) {
  for (const [name, value] of Object.entries(properties)) {
    Object.defineProperty(target, name, { value, configurable: true, writable: true });
  }
}
