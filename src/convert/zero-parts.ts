import { isZero } from '../io/native.ts';

export interface ZeroPart {
  readonly at: number;
  readonly length: number;
  readonly zero: boolean;
}

/**
 * Splits the first `length` bytes of a buffer into parts that are zeros, in whole units, and parts that hold something.
 *
 * @param unit 0: no zeros are looked for
 */
export function zeroParts(buffer: Uint8Array, length: number, unit: number): ZeroPart[] {
  if (unit === 0) return [{ at: 0, length, zero: false }];
  const parts: ZeroPart[] = [];
  let start = 0;
  let zero = unitIsZero(buffer, 0, Math.min(unit, length));
  for (let at = unit; at < length; at += unit) {
    const next = unitIsZero(buffer, at, Math.min(unit, length - at));
    if (next === zero) continue;
    parts.push({ at: start, length: at - start, zero });
    start = at;
    zero = next;
  }
  parts.push({ at: start, length: length - start, zero });
  return parts;
}

function unitIsZero(buffer: Uint8Array, at: number, length: number): boolean {
  // Most data shows it at once: no need to cross into native code for that.
  if (buffer[at] !== 0 || buffer[at + length - 1] !== 0 || buffer[at + (length >>> 1)] !== 0) return false;
  return isZero(buffer, at, length);
}

export interface EqualPart {
  readonly at: number;
  readonly length: number;
  readonly equal: boolean;
}

/** Splits the first `length` bytes of two buffers into parts that are equal, in whole units, and parts that are not. */
export function equalUnits(a: Uint8Array, b: Uint8Array, length: number, unit: number): EqualPart[] {
  const parts: EqualPart[] = [];
  const [one, other] = [asBuffer(a), asBuffer(b)];
  for (let at = 0; at < length; at += unit) {
    const end = Math.min(at + unit, length);
    const equal = one.compare(other, at, end, at, end) === 0;
    const last = parts[parts.length - 1];
    if (last !== undefined && last.equal === equal) {
      parts[parts.length - 1] = { at: last.at, length: end - last.at, equal };
    } else {
      parts.push({ at, length: end - at, equal });
    }
  }
  return parts;
}

/** The same bytes with Node's fast comparison. */
export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
