/** Ids and bodies as they are given. */

/** A user or a message: a bigint, a safe integer, or decimal digits. */
export type Id = bigint | number | string;

export function toId(id: Id): bigint {
  if (typeof id === "number" && !Number.isSafeInteger(id)) throw new TypeError(`${id} is no safe integer`);
  const value = BigInt(id);
  if (value < 0n || value >= 1n << 64n) throw new RangeError(`${value} is no 64-bit number`);
  return value;
}

export const toBytes = (body: Uint8Array | string) => (typeof body === "string" ? new TextEncoder().encode(body) : body);
