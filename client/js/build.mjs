// Builds dist: ESM, CJS, one file for a script element, and types; fails where the bundle is larger than it may be.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const GZIP_BYTES_MAX = 7 * 1024;

const common = { entryPoints: ["src/index.ts"], bundle: true, minify: true, target: "es2022", legalComments: "none" };
await build({ ...common, format: "esm", outfile: "dist/index.js" });
await build({ ...common, format: "cjs", outfile: "dist/index.cjs" });
await build({ ...common, format: "iife", globalName: "trunkline", outfile: "dist/trunkline.iife.js" });
execFileSync("node_modules/.bin/tsc", ["--project", "."], { stdio: "inherit" });
for (const file of ["dist/index.js", "dist/index.cjs", "dist/trunkline.iife.js"]) {
  const bytes = gzipSync(readFileSync(file), { level: 9 }).length;
  console.log(`${file}: ${bytes} bytes with gzip -9`);
  if (bytes > GZIP_BYTES_MAX) throw new Error(`${file} may have ${GZIP_BYTES_MAX} bytes at most`);
}
