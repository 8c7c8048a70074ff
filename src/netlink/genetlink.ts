/** Generic netlink messages, read: a header of four bytes, then attributes. In the machine's byte order, as all of netlink is. */

const HEADER = 4;
const ATTRIBUTE_HEADER = 4;
/** Without the flags for nesting and byte order. */
const TYPE_MASK = 0x3fff;

const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

export interface GenericMessage {
  readonly command: number;
  readonly version: number;
  /** By type; of a type that comes twice the first. */
  readonly attributes: ReadonlyMap<number, DataView>;
}

/** Undefined when it is too short for a header. Attributes that are cut off end the list. */
export function parseGenericMessage(bytes: Uint8Array): GenericMessage | undefined {
  if (bytes.length < HEADER) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const attributes = new Map<number, DataView>();
  for (let at = HEADER; at + ATTRIBUTE_HEADER <= bytes.length; ) {
    const length = view.getUint16(at, LITTLE_ENDIAN);
    if (length < ATTRIBUTE_HEADER || length > bytes.length - at) break;
    const type = view.getUint16(at + 2, LITTLE_ENDIAN) & TYPE_MASK;
    if (!attributes.has(type)) {
      attributes.set(
        type,
        new DataView(bytes.buffer, bytes.byteOffset + at + ATTRIBUTE_HEADER, length - ATTRIBUTE_HEADER),
      );
    }
    at += (length + 3) & ~3;
  }
  return { command: view.getUint8(0), version: view.getUint8(1), attributes };
}

/** Text up to its zero byte. */
export function textOf(value: DataView | undefined): string | undefined {
  if (value === undefined) return undefined;
  const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  const end = bytes.indexOf(0);
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end);
}

/** An unsigned number of 1, 4 or 8 bytes; undefined when it has another length or is above 2^53 − 1. */
export function numberOf(value: DataView | undefined): number | undefined {
  switch (value?.byteLength) {
    case 1:
      return value.getUint8(0);
    case 4:
      return value.getUint32(0, LITTLE_ENDIAN);
    case 8: {
      const number = Number(value.getBigUint64(0, LITTLE_ENDIAN));
      return Number.isSafeInteger(number) ? number : undefined;
    }
    default:
      return undefined;
  }
}
