/** HEADS: the one message with fields of a fixed size, and with a repeated one. */

export interface Head {
  group: bigint;
  stamp: bigint;
  read: bigint;
  seq: bigint;
}

/** Throws a RangeError at what is no protobuf. */
export function decodeHeads(body: Uint8Array): Head[] {
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  let at = 0;
  const varint = () => {
    for (let value = 0n, shift = 0n; shift < 70n; shift += 7n) {
      const byte = view.getUint8(at++);
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return BigInt.asUintN(64, value);
    }
    throw new RangeError("a number that does not end");
  };
  const skip = (type: number): bigint => {
    let value = 0n;
    if (type === 0) value = varint();
    else if (type === 1) {
      value = view.getBigUint64(at, true);
      at += 8;
    } else if (type === 2) at += Number(varint());
    else if (type === 5) at += 4;
    else throw new RangeError(`a field of type ${type}`);
    if (at > body.length) throw new RangeError("a field that does not end");
    return value;
  };
  const heads: Head[] = [];
  while (at < body.length) {
    const key = Number(varint());
    if (key !== 10) {
      skip(key % 8);
      continue;
    }
    const end = Number(varint()) + at;
    if (end > body.length) throw new RangeError("a field that does not end");
    const fields: bigint[] = [];
    while (at < end) {
      const inner = Number(varint());
      fields[Math.floor(inner / 8)] = skip(inner % 8);
    }
    const [, group = 0n, stamp = 0n, read = 0n, seq = 0n] = fields;
    heads.push({ group, stamp, read, seq });
  }
  return heads;
}
