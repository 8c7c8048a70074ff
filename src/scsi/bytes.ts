/** Big-endian numbers in CDBs and parameter data: fixed offsets on the bytes, nothing allocated, no bigint. */

export function read16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] as number) << 8) | (bytes[at + 1] as number);
}

export function read24(bytes: Uint8Array, at: number): number {
  return ((bytes[at] as number) << 16) | ((bytes[at + 1] as number) << 8) | (bytes[at + 2] as number);
}

export function read32(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) << 24) |
      ((bytes[at + 1] as number) << 16) |
      ((bytes[at + 2] as number) << 8) |
      (bytes[at + 3] as number)) >>>
    0
  );
}

/** A 64-bit field. 2^53 and more read as Infinity, so that every upper bound refuses them. */
export function read64(bytes: Uint8Array, at: number): number {
  const high = read32(bytes, at);
  return high >= 0x200000 ? Number.POSITIVE_INFINITY : high * 0x100000000 + read32(bytes, at + 4);
}

export function write16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function write24(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 16;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value;
}

export function write32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}

export function write64(bytes: Uint8Array, at: number, value: number): void {
  write32(bytes, at, Math.floor(value / 0x100000000));
  write32(bytes, at + 4, value % 0x100000000);
}

/** Writes text as ASCII, padded with blanks or cut to `length`. */
export function writeText(bytes: Uint8Array, at: number, length: number, text: string): void {
  for (let i = 0; i < length; i++) {
    const code = i < text.length ? text.charCodeAt(i) : 0x20;
    bytes[at + i] = code >= 0x20 && code < 0x7f ? code : 0x3f;
  }
}
