#!/usr/bin/env node
// Prints the size of the client library, and of two others, as bytes that a browser downloads: bundled and minified by
// esbuild, and compressed by gzip. It needs npm.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";

const root = resolve(import.meta.dirname, "..");
// `events` is a module of Node.js that simple-peer imports; in a browser, this package stands for it.
const PACKAGES = ["esbuild@0.28.2", "peerjs@1.5.5", "simple-peer@9.11.1", "events@3.3.0"];

const work = mkdtempSync(join(tmpdir(), "noroshi-size-"));
try {
  const install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", ...PACKAGES];
  execFileSync("npm", install, { cwd: work, stdio: ["ignore", "ignore", "inherit"] });
  const libraries = [
    ["noroshi.js", `export * from ${JSON.stringify(join(root, "src/web/noroshi.js"))};`],
    ["peerjs 1.5.5", 'export * from "peerjs";'],
    ["simple-peer 9.11.1", 'export { default } from "simple-peer";'],
  ];
  console.log("| library | minified | gzipped |");
  console.log("|---|---|---|");
  for (const [name, source] of libraries) {
    const flags = ["--bundle", "--minify", "--format=esm", "--platform=browser", "--define:global=globalThis"];
    const esbuild = join(work, "node_modules/.bin/esbuild");
    const bundle = execFileSync(esbuild, [...flags, "--log-level=error"], { cwd: work, input: source });
    const bytes = (size) => `${(size / 1000).toFixed(1)} KB`;
    console.log(`| ${name} | ${bytes(bundle.length)} | ${bytes(gzipSync(bundle, { level: 9 }).length)} |`);
  }
} finally {
  rmSync(work, { recursive: true });
}
