export { Client, type Id, type Message, type Options, type Page, type Session, type State, type Token, type WebSocketLike } from "./client.js";
export { ByeError, ClosedError, FullError, NotConnectedError, TrunklineError, UnauthorizedError } from "./errors.js";
export { type Fate } from "./outstanding.js";
