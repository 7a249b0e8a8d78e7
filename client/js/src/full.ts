export * from "./index.js";
export * from "./groups.js";
