// Measures noroshi beside the signaling server of GStreamer, gst-plugin-webrtc-signalling 0.15.4: memory, and CPU time of the
// server (from /proc).
//
//     cargo build --release && node scripts/gstreamer.mjs [ROUNDS]
//
// Needs Linux, Rust, Node.js, npm, the registries of crates and of npm, and 3,000 open files (ulimit -n). The first run builds the
// other server, which takes a minute. The servers run in turn, ROUNDS times each, and log errors only.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PRODUCERS = 2000;
const SESSIONS = 500;
const CAMERAS = 10;
const VIEWERS = 100;
const rounds = Number(process.argv[2] ?? 3);

// What webrtcsink and a browser send for one video, by number and size.
const OFFER = "x".repeat(1200);
const ANSWER = "x".repeat(1000);
const CANDIDATE = "x".repeat(110);
const CANDIDATES = 6;

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const installed = join(root, "target/gstreamer");
execFileSync("cargo", ["install", "--quiet", "--locked", "--root", installed, "gst-plugin-webrtc-signalling@0.15.4"]);
const home = mkdtempSync(join(tmpdir(), "noroshi-gstreamer-"));
execFileSync("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", home, "ws@8"]);
const { WebSocket } = createRequire(join(home, "index.js"))("ws");

const servers = {
  noroshi: port => spawn(
    process.env.NOROSHI ?? join(root, "target/release/noroshi"),
    ["--listen", `127.0.0.1:${port}`, "--gstreamer", "--max-rate", "0", "--log", "error"],
    { stdio: "ignore" },
  ),
  original: port => spawn(
    join(installed, "bin/gst-webrtc-signalling-server"),
    ["--host", "127.0.0.1", "--port", port],
    { stdio: "ignore", env: { ...process.env, WEBRTCSINK_SIGNALLING_SERVER_LOG: "error" } },
  ),
};

const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

function freePort() {
  return new Promise(resolve => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Returns the CPU time of all threads of a process, in microseconds. Threads that have ended are not counted. */
function cpuTime(pid) {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const nanoseconds = tasks.map(task => Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8").split(" ")[0]));
  return nanoseconds.reduce((sum, time) => sum + time, 0) / 1000;
}

/** Returns the resident memory of a process, in bytes. */
function memory(pid) {
  return 1024 * Number(readFileSync(`/proc/${pid}/status`, "utf8").match(/VmRSS:\s+(\d+)/)[1]);
}

/** A client. Requests are answered in their order. */
class Peer {
  static open(url) {
    return new Promise((resolve, reject) => {
      const peer = new Peer();
      peer.waiting = {};
      peer.onSignal = () => {};
      peer.socket = new WebSocket(url, { perMessageDeflate: false });
      peer.socket.on("error", reject);
      peer.socket.on("message", text => {
        const message = JSON.parse(text);
        if (message.type === "welcome") {
          peer.id = message.peerId;
          resolve(peer);
        } else if (message.type === "startSession" || message.type === "peer") {
          peer.onSignal(message);
        } else {
          peer.waiting[message.type]?.shift()?.(message);
        }
      });
    });
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  /** Sends a message and waits for the next message of this type. */
  request(message, answer) {
    return new Promise(resolve => {
      (this.waiting[answer] ??= []).push(resolve);
      this.send(message);
    });
  }

  /** Registers as a producer, which makes an offer for each session. */
  produce() {
    this.send({ type: "setPeerStatus", roles: ["producer"], meta: { name: "camera" }, peerId: this.id });
    this.onSignal = message => {
      const { sessionId } = message;
      if (message.type === "startSession") {
        this.send({ type: "peer", sessionId, sdp: { type: "offer", sdp: OFFER } });
        this.sendCandidates(sessionId);
      }
    };
  }

  sendCandidates(sessionId) {
    for (let sent = 0; sent < CANDIDATES; sent++) {
      this.send({ type: "peer", sessionId, ice: { candidate: CANDIDATE, sdpMLineIndex: 0 } });
    }
  }

  /** Answers offers. Calls `onReady` when a session has all candidates. */
  consume(onReady) {
    const missing = new Map();
    this.onSignal = ({ sessionId, sdp, ice }) => {
      if (sdp) {
        missing.set(sessionId, CANDIDATES);
        this.send({ type: "peer", sessionId, sdp: { type: "answer", sdp: ANSWER } });
        this.sendCandidates(sessionId);
      }
      if (ice) {
        missing.set(sessionId, missing.get(sessionId) - 1);
        if (missing.get(sessionId) === 0) {
          missing.delete(sessionId);
          onReady(sessionId);
        }
      }
    };
  }
}

async function openAll(url, count) {
  const peers = [];
  while (peers.length < count) {
    peers.push(...await Promise.all(Array.from({ length: Math.min(50, count - peers.length) }, () => Peer.open(url))));
  }
  return peers;
}

/** Plays a producer again and again, one session at a time. */
async function startSessions(producer, consumer, count) {
  for (let started = 0; started < count; started++) {
    await new Promise(resolve => {
      consumer.consume(sessionId => {
        consumer.send({ type: "endSession", sessionId });
        resolve();
      });
      consumer.send({ type: "startSession", peerId: producer.id });
    });
  }
  await consumer.request({ type: "list" }, "list");
}

/** Starts a server and waits until it answers and is idle. */
async function started(start) {
  const port = await freePort();
  const server = start(port);
  const url = `ws://127.0.0.1:${port}/`;
  for (;;) {
    await sleep(300);
    if (await Peer.open(url).then(peer => peer.socket.close(), () => true) === undefined) break;
  }
  await sleep(1000);
  return { server, url };
}

async function measure(start) {
  const { server, url } = await started(start);
  const { pid } = server;
  const result = { "memory at start, MB": memory(pid) / 1e6 };

  let before = memory(pid);
  let began = cpuTime(pid);
  const producers = await openAll(url, PRODUCERS);
  for (const producer of producers) producer.produce();
  // The server answers after it has handled the earlier messages of a connection.
  await Promise.all(producers.map(producer => producer.request({ type: "listConsumers" }, "listConsumers")));
  result["connect and register a producer, µs"] = (cpuTime(pid) - began) / PRODUCERS;
  await sleep(1000);
  result["memory of an idle producer, bytes"] = (memory(pid) - before) / PRODUCERS;
  for (const producer of producers) producer.socket.terminate();
  await sleep(1000);

  const producer = await Peer.open(url);
  const consumer = await Peer.open(url);
  producer.produce();
  await producer.request({ type: "list" }, "list");
  await startSessions(producer, consumer, SESSIONS / 10);
  began = cpuTime(pid);
  const startedAt = performance.now();
  await startSessions(producer, consumer, SESSIONS);
  result["session: start, offer, answer, 12 candidates, end, µs"] = (cpuTime(pid) - began) / SESSIONS;
  result["time until both sides of a session have everything, ms"] = (performance.now() - startedAt) / SESSIONS;
  producer.socket.terminate();
  consumer.socket.terminate();
  server.kill("SIGKILL");
  return result;
}

/** Measures a server with viewers that each play all cameras, as listeners, like gstwebrtc-api. */
async function measureViewers(start) {
  const { server, url } = await started(start);
  const { pid } = server;
  const result = {};
  const began = cpuTime(pid);
  const cameras = await openAll(url, CAMERAS);
  for (const camera of cameras) camera.produce();
  await Promise.all(cameras.map(camera => camera.request({ type: "list" }, "list")));
  const viewers = await openAll(url, VIEWERS);
  let missing = VIEWERS * CAMERAS;
  await new Promise(resolve => {
    for (const viewer of viewers) {
      viewer.consume(() => {
        if (--missing === 0) resolve();
      });
      (async () => {
        await viewer.request({ type: "setPeerStatus", roles: ["listener"], meta: null }, "peerStatusChanged");
        viewer.send({ type: "listConsumers" });
        const { producers } = await viewer.request({ type: "list" }, "list");
        for (const { id } of producers) viewer.send({ type: "startSession", peerId: id });
      })();
    }
  });
  await sleep(1000);
  result[`CPU time until ${VIEWERS} viewers play ${CAMERAS} cameras each, ms`] = (cpuTime(pid) - began) / 1000;
  result["memory then, MB"] = memory(pid) / 1e6;
  server.kill("SIGKILL");
  for (const peer of [...cameras, ...viewers]) peer.socket.terminate();
  return result;
}

try {
  const results = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, start] of Object.entries(servers)) {
      for (const [what, value] of Object.entries({ ...await measure(start), ...await measureViewers(start) })) {
        ((results[what] ??= {})[name] ??= []).push(value);
      }
    }
  }
  const digits = value => value < 100 ? value.toFixed(1) : Math.round(value).toString();
  const range = values => [Math.min(...values), Math.max(...values)].map(digits).join(" to ");
  console.log("| | noroshi | gst-plugin-webrtc-signalling 0.15.4 |\n|---|---|---|");
  for (const [what, { noroshi, original }] of Object.entries(results)) {
    console.log(`| ${what} | ${range(noroshi)} | ${range(original)} |`);
  }
} finally {
  rmSync(home, { recursive: true });
}
process.exit();
