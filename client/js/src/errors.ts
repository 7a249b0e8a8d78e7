/** What can become of a call. */

/** The common ancestor of all errors of this library. */
export class TrunklineError extends Error {
  override name = "TrunklineError";
  constructor(
    text: string,
    /** Number of the gateway's error, as in PROTOCOL.md; 0 where it has none. */
    readonly code = 0,
  ) {
    super(text);
  }
}

/** The credentials are not accepted, or the token callback says so by throwing it. Final: the client does not come back by itself. */
export class UnauthorizedError extends TrunklineError {
  override name = "UnauthorizedError";
}

/** The client was closed, or ended for good. */
export class ClosedError extends TrunklineError {
  override name = "ClosedError";
}

/** The server said BYE with a reason after which a client does not come back by itself. */
export class ByeError extends ClosedError {
  override name = "ByeError";
  constructor(
    /** Reason, as in PROTOCOL.md: 7 version, 8 replaced by a newer login, 15 kicked. */
    readonly reason: number,
    text: string,
  ) {
    super(text || `the server ended the session with reason ${reason}`);
  }
}

/** There is no session at the moment, and the message has no ACK to wait for one. */
export class NotConnectedError extends TrunklineError {
  override name = "NotConnectedError";
}

/** As much waits as may wait: acknowledged messages, or bytes in the socket. */
export class FullError extends TrunklineError {
  override name = "FullError";
}

/** A call has no answer of its service. */
export class CallError extends TrunklineError {
  override name = "CallError";
  /** `code` as in PROTOCOL.md: 11 too many calls, 14 overloaded, 17 unknown service, 18 unavailable, 24 timed out, 25 outcome unknown. */
  constructor(code: number, text: string) {
    super(text || `the call ended with ${code}`, code);
  }

  /** The service may have carried it out all the same. */
  get mayBeDone(): boolean {
    return this.code === 24 || this.code === 25;
  }
}
