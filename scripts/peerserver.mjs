// Measures noroshi beside PeerServer (npm `peer`), in turn on one machine: memory, and CPU time of the server.
//
//     cargo build --release && node scripts/peerserver.mjs [ROUNDS]
//
// It installs `peer` into a temporary directory, starts both servers and a client with raw WebSockets, and prints one line for
// each figure and round. CPU time is that of all threads of the server (/proc/PID/task/*/schedstat); the client runs in another
// process.

import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PEERS = 2000;
const MESSAGES = 20_000;
const IN_FLIGHT = 16;
// The size of a candidate that a browser sends.
const PAYLOAD = { candidate: "x".repeat(200), type: "data", connectionId: "dc_0123456789a" };

const rounds = Number(process.argv[2] ?? 3);
const root = dirname(dirname(fileURLToPath(import.meta.url)));
const home = mkdtempSync(join(tmpdir(), "peerserver-"));
process.on("exit", () => rmSync(home, { recursive: true, force: true }));
execFileSync("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", home, "peer@1.0.2"]);
const { WebSocket } = createRequire(join(home, "node_modules/peer/package.json"))("ws");

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const servers = {
    noroshi: (port) => [
        join(root, "target/release/noroshi"),
        ["--listen", `127.0.0.1:${port}`, "--peerjs=/", "--max-rate", "0", "--log", "warn"],
    ],
    PeerServer: (port) => [
        process.execPath,
        [join(home, "node_modules/peer/dist/bin/peerjs.js"), "--port", port, "--concurrent_limit", "100000"],
    ],
};

/** Returns the resident memory of a process in bytes. */
function memory(pid) {
    return 1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))[1]);
}

/** Returns the CPU time of a process in microseconds. */
function cpu(pid) {
    const threads = readdirSync(`/proc/${pid}/task`);
    const times = threads.map((id) => Number(readFileSync(`/proc/${pid}/task/${id}/schedstat`, "utf8").split(" ")[0]));
    return times.reduce((sum, time) => sum + time, 0) / 1000;
}

function connect(port, id) {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/peerjs?key=peerjs&id=${id}&token=t-${id}`, {
        perMessageDeflate: false,
    });
    return new Promise((resolve, reject) => {
        socket.once("error", reject);
        socket.once("message", () => resolve(socket));
    });
}

/** Sends messages from one peer to another with this many in flight. */
function relay(from, to, count, inFlight) {
    const message = JSON.stringify({ type: "CANDIDATE", payload: PAYLOAD, dst: "b" });
    let sent = 0;
    let received = 0;
    return new Promise((resolve) => {
        const send = () => {
            sent += 1;
            from.send(message);
        };
        to.on("message", () => {
            received += 1;
            if (received === count) {
                to.removeAllListeners("message");
                resolve();
            } else if (sent < count) {
                send();
            }
        });
        for (let i = 0; i < inFlight; i += 1) {
            send();
        }
    });
}

async function measure(name, port) {
    const [program, args] = servers[name](port);
    const server = spawn(program, args, { stdio: "ignore" });
    try {
        for (;;) {
            try {
                (await fetch(`http://127.0.0.1:${port}/peerjs/id`)).body?.cancel();
                break;
            } catch {
                await pause(50);
            }
        }
        await pause(1000);
        const { pid } = server;
        const atStart = memory(pid);
        const cpuBefore = cpu(pid);
        const peers = [];
        for (let i = 0; i < PEERS; i += 100) {
            peers.push(...(await Promise.all(Array.from({ length: 100 }, (_, n) => connect(port, `p${i + n}`)))));
        }
        const registered = cpu(pid);
        await pause(1000);
        const idle = memory(pid);
        peers.forEach((peer) => peer.terminate());
        await pause(1000);

        const [a, b] = [await connect(port, "a"), await connect(port, "b")];
        const costs = [];
        for (const inFlight of [1, IN_FLIGHT]) {
            await relay(a, b, MESSAGES / 10, inFlight);
            const before = cpu(pid);
            await relay(a, b, MESSAGES, inFlight);
            costs.push((cpu(pid) - before) / MESSAGES);
        }
        a.terminate();
        b.terminate();
        const figures = {
            "memory at start, MB": (atStart / 1e6).toFixed(1),
            "memory of an idle peer, bytes": Math.round((idle - atStart) / PEERS),
            "registering, µs": ((registered - cpuBefore) / PEERS).toFixed(0),
            "a message, one at a time, µs": costs[0].toFixed(1),
            [`a message, ${IN_FLIGHT} in flight, µs`]: costs[1].toFixed(1),
        };
        for (const [figure, value] of Object.entries(figures)) {
            console.log(`${name} | ${figure} | ${value}`);
        }
    } finally {
        server.kill("SIGKILL");
    }
}

let port = 20_000 + (process.pid % 10_000);
for (let round = 0; round < rounds; round += 1) {
    for (const name of Object.keys(servers)) {
        await measure(name, port);
        port += 1;
    }
}
