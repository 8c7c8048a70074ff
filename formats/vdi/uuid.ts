import { randomBytes } from 'node:crypto';

/** An id as VDI headers hold it: 16 bytes, the first three fields little-endian. */
export type UuidBytes = Uint8Array;

/** Positions in the 16 bytes, in the order in which the text shows them. */
const TEXT_ORDER = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

export const NULL_UUID = '00000000-0000-0000-0000-000000000000';

/** Lower-case text with hyphens, without braces. */
export function uuidText(bytes: UuidBytes): string {
  const hex = TEXT_ORDER.map((at) => (bytes[at] as number).toString(16).padStart(2, '0')).join('');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/** Reads the text of an id, in braces or not. @returns undefined when it is none */
export function parseUuid(text: string): UuidBytes | undefined {
  const plain = text.trim().replace(/^\{(.*)\}$/, '$1');
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(plain)) return undefined;
  const hex = plain.replaceAll('-', '');
  const bytes = new Uint8Array(16);
  TEXT_ORDER.forEach((at, i) => {
    bytes[at] = Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  });
  return bytes;
}

/** A random id (version 4). */
export function randomUuid(): UuidBytes {
  const bytes = new Uint8Array(randomBytes(16));
  bytes[7] = ((bytes[7] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  return bytes;
}

export function isNullUuid(bytes: UuidBytes): boolean {
  return bytes.every((byte) => byte === 0);
}
