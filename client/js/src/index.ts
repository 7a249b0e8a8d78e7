export { Client, type Id, type Message, type Options, type Page, type Session, type State, type Token, type WebSocketLike } from "./client.js";
export { type Reply } from "./calls.js";
export { ByeError, CallError, ClosedError, FullError, NotConnectedError, TrunklineError, UnauthorizedError } from "./errors.js";
export { type Fate, type SendOptions, type Unsettled } from "./outstanding.js";
