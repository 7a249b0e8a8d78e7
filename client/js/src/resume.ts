/** Where a device stands, as one string that can be kept: the highest stamp it has acknowledged, and the gateway's ticket. */

export interface Resume {
  token: Uint8Array;
  lastStamp: bigint;
}

export function packResume({ token, lastStamp }: Resume): string {
  return `${lastStamp}.${btoa(String.fromCharCode(...token))}`;
}

/** What is none says nothing: the gateway has the device's cursor. */
export function unpackResume(text = ""): Resume {
  try {
    const [stamp = "", ticket = ""] = text.split(".");
    const lastStamp = BigInt.asUintN(64, BigInt(stamp));
    return { lastStamp, token: Uint8Array.from(atob(ticket), (byte) => byte.charCodeAt(0)) };
  } catch {
    return { lastStamp: 0n, token: new Uint8Array() };
  }
}
