/**
 * CRC32C (Castagnoli) of header and data digests, RFC 7143 section 13.1.
 *
 * A faster one may be injected where the processor has instructions for it; this is the portable one.
 */

/**
 * CRC32C of `bytes`, going on from the CRC of what comes before them: `crc32c(b, crc32c(a))` is the CRC of a followed by b. An
 * unsigned 32-bit number; the wire has its bytes in little-endian order.
 */
export type Crc32c = (bytes: Uint8Array, previous?: number) => number;

const POLYNOMIAL = 0x82f63b78;
const TABLES = makeTables();

/** Portable CRC32C, eight bytes a step ("slicing by 8"). */
export function crc32c(bytes: Uint8Array, previous = 0): number {
  const t = TABLES;
  const length = bytes.length;
  let crc = ~previous;
  let i = 0;
  for (const end = length - 7; i < end; i += 8) {
    const low =
      crc ^
      ((bytes[i] as number) |
        ((bytes[i + 1] as number) << 8) |
        ((bytes[i + 2] as number) << 16) |
        ((bytes[i + 3] as number) << 24));
    crc =
      (t[0x700 | (low & 0xff)] as number) ^
      (t[0x600 | ((low >>> 8) & 0xff)] as number) ^
      (t[0x500 | ((low >>> 16) & 0xff)] as number) ^
      (t[0x400 | (low >>> 24)] as number) ^
      (t[0x300 | (bytes[i + 4] as number)] as number) ^
      (t[0x200 | (bytes[i + 5] as number)] as number) ^
      (t[0x100 | (bytes[i + 6] as number)] as number) ^
      (t[bytes[i + 7] as number] as number);
  }
  for (; i < length; i++) crc = (crc >>> 8) ^ (t[(crc ^ (bytes[i] as number)) & 0xff] as number);
  return ~crc >>> 0;
}

/** Table k at 256 * k: the CRC of a byte followed by k zero bytes. */
function makeTables(): Int32Array {
  const tables = new Int32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    tables[byte] = crc;
  }
  for (let i = 256; i < tables.length; i++) {
    const before = tables[i - 256] as number;
    tables[i] = (before >>> 8) ^ (tables[before & 0xff] as number);
  }
  return tables;
}
