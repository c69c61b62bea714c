// Measures noroshi beside the signaling server of y-webrtc 10.3.0: memory, and CPU time of the server (from /proc).
//
//     cargo build --release && node scripts/ywebrtc.mjs [ROUNDS]
//
// Needs Linux, Node.js, npm with its registry, and 6,000 open files (ulimit -n). The servers run in turn, ROUNDS times each.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PEERS = 5000;
const PAIRS = 100;
const MESSAGES = 50_000;
const rounds = Number(process.argv[2] ?? 3);

const home = mkdtempSync(join(tmpdir(), "noroshi-ywebrtc-"));
execFileSync("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", home, "y-webrtc@10.3.0", "yjs@13.6.27"]);
const { WebSocket } = createRequire(join(home, "index.js"))("ws");

const servers = {
  noroshi: port => spawn(
    process.env.NOROSHI ?? "target/release/noroshi",
    ["--listen", `127.0.0.1:${port}`, "--y-webrtc", "--max-rate", "0", "--log", "error"],
    { stdio: "ignore" },
  ),
  original: port => spawn(
    process.execPath,
    [join(home, "node_modules/y-webrtc/bin/server.js")],
    { stdio: "ignore", env: { ...process.env, PORT: port, NODE_ENV: "production" } },
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

/** Returns the CPU time of all threads of a process, in microseconds. */
function cpuTime(pid) {
  const tasks = readdirSync(`/proc/${pid}/task`);
  const nanoseconds = tasks.map(task => Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8").split(" ")[0]));
  return nanoseconds.reduce((sum, time) => sum + time, 0) / 1000;
}

/** Returns the resident memory of a process, in bytes. */
function memory(pid) {
  return 1024 * Number(readFileSync(`/proc/${pid}/status`, "utf8").match(/VmRSS:\s+(\d+)/)[1]);
}

/** Opens a WebSocket that is subscribed to a topic. A pong shows that the server has handled the subscription. */
function subscribe(url, topic) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, { perMessageDeflate: false });
    socket.on("error", reject);
    socket.once("message", () => resolve(socket));
    socket.on("open", () => {
      socket.send(JSON.stringify({ type: "subscribe", topics: [topic] }));
      socket.send('{"type":"ping"}');
    });
  });
}

/** Publishes messages of 400 bytes in topics of two, with this many on their way in each topic. */
async function relay(pairs, inFlight) {
  let missing = MESSAGES;
  let left = MESSAGES;
  await new Promise(resolve => {
    for (const [topic, [publisher, other]] of pairs.entries()) {
      const message = JSON.stringify({ type: "publish", topic: `topic ${topic}`, data: "x".repeat(350) });
      const publish = () => {
        if (left-- > 0) publisher.send(message);
      };
      other.on("message", () => {
        publish();
        if (--missing === 0) resolve();
      });
      for (let sent = 0; sent < inFlight; sent++) publish();
    }
  });
  await sleep(200);
  for (const [, other] of pairs) other.removeAllListeners("message");
}

async function measure(start) {
  const port = await freePort();
  const server = start(port);
  const url = `ws://127.0.0.1:${port}/y-webrtc`;
  for (;;) {
    await sleep(300);
    if (await subscribe(url, "first").then(socket => socket.close(), () => true) === undefined) break;
  }
  await sleep(1000);
  const { pid } = server;
  const result = { "memory at start, MB": memory(pid) / 1e6 };

  let before = memory(pid);
  let began = cpuTime(pid);
  const sockets = [];
  for (let peer = 0; peer < PEERS; peer += 50) {
    const batch = Array.from({ length: 50 }, (_, index) => subscribe(url, `topic ${Math.floor((peer + index) / 2)}`));
    sockets.push(...await Promise.all(batch));
  }
  result["connect and subscribe, µs"] = (cpuTime(pid) - began) / PEERS;
  await sleep(1000);
  result["memory of an idle peer, bytes"] = (memory(pid) - before) / PEERS;

  const pairs = Array.from({ length: PAIRS }, (_, pair) => [sockets[2 * pair], sockets[2 * pair + 1]]);
  for (const inFlight of [1, 16]) {
    began = cpuTime(pid);
    await relay(pairs, inFlight);
    result[`message to two subscribers, ${inFlight} in flight, µs`] = (cpuTime(pid) - began) / MESSAGES;
  }
  server.kill("SIGKILL");
  for (const socket of sockets) socket.terminate();
  return result;
}

try {
  const results = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, start] of Object.entries(servers)) {
      for (const [what, value] of Object.entries(await measure(start))) {
        ((results[what] ??= {})[name] ??= []).push(value);
      }
    }
  }
  const digits = value => value < 100 ? value.toFixed(1) : Math.round(value).toString();
  const range = values => [Math.min(...values), Math.max(...values)].map(digits).join(" to ");
  console.log("| | noroshi | y-webrtc 10.3.0 |\n|---|---|---|");
  for (const [what, { noroshi, original }] of Object.entries(results)) {
    console.log(`| ${what} | ${range(noroshi)} | ${range(original)} |`);
  }
} finally {
  rmSync(home, { recursive: true });
}
process.exit();
