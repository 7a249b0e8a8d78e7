export * from "./full.js";
export * from "./inbox.js";
