#!/usr/bin/env node
// Builds the npm package of the client library: noroshi-VERSION.tgz, in target/dist or in the directory that is given.
// It needs npm, which installs TypeScript for the declarations (.d.ts).
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const TYPESCRIPT = "typescript@7";
const root = resolve(import.meta.dirname, "..");
const dist = resolve(process.argv[2] ?? join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "dist"));
/** The modules with public classes and types. Declarations of the others are not needed. */
const PUBLIC_MODULES = ["errors", "events", "peer", "room", "share"];
/** Classes that the library creates, and not the application. */
const CREATED_BY_LIBRARY = /^(export declare class (?:Peer|Room|Share) .*\{)$/m;
const INTERNAL_NAME = /\b(Connection|PeerSession|PeerHost|Senders|SharedTrack|Shares|Signaling|Transfer|emit)\b/;

function run(program, args, cwd) {
  execFileSync(program, args, { cwd, stdio: ["ignore", "ignore", "inherit"] });
}

function cargoVersion() {
  const text = readFileSync(join(root, "Cargo.toml"), "utf8");
  return /^version = "(.*)"$/m.exec(text)[1];
}

/** Writes the declarations of all modules into a directory. */
function declareTypes(directory) {
  run("npm", ["install", "--silent", "--no-audit", "--no-fund", "--prefix", ".", TYPESCRIPT], directory);
  const flags =
    "--allowJs --checkJs --strict --declaration --emitDeclarationOnly --stripInternal --target esnext --module esnext " +
    "--moduleResolution bundler --lib esnext,dom,dom.iterable,dom.asynciterable --outDir types";
  const source = join(root, "src/web/noroshi.js");
  run("node_modules/.bin/tsc", [...flags.split(" "), "--types", "", source], directory);
  return join(directory, "types");
}

/** Returns a declaration without what is for readers of the sources only: the comment at the top of the module, and the
 *  `@typedef` comments, which TypeScript repeats behind their types. */
function publicDeclaration(text) {
  const withoutHeader = text.replace(/^\/\*\*[^]*?\*\/\n/, "");
  const withoutTypedefs = withoutHeader.replace(/^\/\*\*(?:(?!\*\/)[^])*@typedef[^]*?\*\/\n/gm, "");
  const withReference = withoutTypedefs.replace(' preserve="true"', "");
  const declaration = withReference.replace(CREATED_BY_LIBRARY, "$1\n    private constructor();");
  const internal = INTERNAL_NAME.exec(declaration);
  if (internal) {
    throw new Error(`a declaration names ${internal[0]}, which is internal:\n${declaration}`);
  }
  return declaration;
}

const work = mkdtempSync(join(tmpdir(), "noroshi-npm-package-"));
try {
  const types = declareTypes(work);
  const home = join(work, "package");
  mkdirSync(join(home, "noroshi"), { recursive: true });
  cpSync(join(root, "src/web/noroshi.js"), join(home, "noroshi.js"));
  for (const name of readdirSync(join(root, "src/web/noroshi"))) {
    cpSync(join(root, "src/web/noroshi", name), join(home, "noroshi", name));
  }
  for (const module of ["noroshi", ...PUBLIC_MODULES.map((name) => `noroshi/${name}`)]) {
    const declaration = publicDeclaration(readFileSync(join(types, `${module}.d.ts`), "utf8"));
    writeFileSync(join(home, `${module}.d.ts`), declaration);
  }
  cpSync(join(root, "LICENSE"), join(home, "LICENSE"));
  cpSync(join(root, "src/web/README.md"), join(home, "README.md"));
  const manifest = {
    name: "noroshi",
    version: cargoVersion(),
    description: "WebRTC rooms and pairs in browsers: data channels, media, files, reconnecting",
    keywords: ["webrtc", "signaling", "p2p", "peer-to-peer", "mesh", "data-channel", "video-call"],
    license: "MIT",
    type: "module",
    exports: {
      ".": { types: "./noroshi.d.ts", default: "./noroshi.js" },
      "./package.json": "./package.json",
    },
    types: "./noroshi.d.ts",
    sideEffects: false,
    files: ["noroshi.js", "noroshi.d.ts", "noroshi"],
  };
  writeFileSync(join(home, "package.json"), `${JSON.stringify(manifest, undefined, 2)}\n`);
  mkdirSync(dist, { recursive: true });
  run("npm", ["pack", "--silent", "--pack-destination", dist], home);
} finally {
  rmSync(work, { recursive: true });
}
