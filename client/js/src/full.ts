export * from "./index.js";
export * from "./groups.js";
export * from "./presence.js";
