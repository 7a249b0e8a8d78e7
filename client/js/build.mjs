// Builds dist: ESM, CJS, files for a script element, and types; fails where a bundle is larger than it may be. Groups, presence and inbox are entries of their own, and share
// nothing with the client that a page without them would have to load; the inbox is in no file for a script element. The service module is for Node, and in no file for pages.

import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** What a page has that wants no groups, and what groups and presence add. */
const GZIP_BYTES_MAX = 7 * 1024;
const GROUPS_GZIP_BYTES_MAX = 4 * 1024;
const PRESENCE_GZIP_BYTES_MAX = 1024;

const common = { bundle: true, minify: true, target: "es2022", legalComments: "none" };
const entries = { entryPoints: { index: "src/index.ts", groups: "src/groups.ts", presence: "src/presence.ts", inbox: "src/inbox.ts" }, outdir: "dist" };
// The client and its parts exist once, whichever entry they are imported from.
rmSync("dist", { recursive: true, force: true });
await build({ ...common, ...entries, format: "esm", splitting: true, chunkNames: "part-[hash]" });
const onlyIndex = { ...common, entryPoints: ["src/index.ts"], write: false, format: "esm" };
const [index] = (await build(onlyIndex)).outputFiles;
await build({ ...common, entryPoints: ["src/cjs.ts"], format: "cjs", outfile: "dist/index.cjs" });
await build({ ...common, entryPoints: ["src/index.ts"], format: "iife", globalName: "trunkline", outfile: "dist/trunkline.iife.js" });
await build({ ...common, entryPoints: ["src/full.ts"], format: "iife", globalName: "trunkline", outfile: "dist/trunkline.full.iife.js" });
for (const [format, extension] of [["esm", "js"], ["cjs", "cjs"]]) {
  // The classes of errors exist once: those of the client.
  const errors = { name: "errors", setup: (it) => it.onResolve({ filter: /^\.\/errors\.js$/ }, () => ({ path: `./index.${extension}`, external: true })) };
  await build({ ...common, entryPoints: ["src/service.ts"], platform: "node", plugins: [errors], format, outfile: `dist/service.${extension}` });
}
execFileSync("node_modules/.bin/tsc", ["--project", "."], { stdio: "inherit" });
// For TypeScript a module of types is ESM or CJS as the code is that it stands for: who requires the package gets types of CJS.
for (const file of readdirSync("dist/types")) {
  const types = readFileSync(`dist/types/${file}`, "utf8");
  writeFileSync(`dist/types/${file.replace(/\.d\.ts$/, ".d.cts")}`, types.replaceAll(/"(\.\/[a-z_]+)\.js"/g, '"$1.cjs"'));
}
for (const [name, contents, max] of [
  ["the client as ESM", index.contents, GZIP_BYTES_MAX],
  ["dist/trunkline.iife.js", readFileSync("dist/trunkline.iife.js"), GZIP_BYTES_MAX],
  ["dist/trunkline.full.iife.js", readFileSync("dist/trunkline.full.iife.js"), GZIP_BYTES_MAX + GROUPS_GZIP_BYTES_MAX + PRESENCE_GZIP_BYTES_MAX],
]) {
  const bytes = gzipSync(contents, { level: 9 }).length;
  console.log(`${name}: ${bytes} bytes with gzip -9`);
  if (bytes > max) throw new Error(`${name} may have ${max} bytes at most`);
}
