/** Sizes in bytes, and how people write them. */

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

/** The largest offset or size that the program handles: beyond it a number is no longer exact. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

const SUFFIXES = ['', 'k', 'M', 'G', 'T', 'P', 'E'];

const SIZE = /^(\d+(?:\.\d*)?|\.\d+)\s*([bkmgtpe]?)(?:i?b)?$/i;

/** What is wrong with a text that parseSize does not take. */
export function sizeProblem(text: string): string {
  if (SIZE.test(text.trim())) return 'That is more than lunette counts: sizes are below 8 PiB.';
  return 'A size is a number of bytes, or one with k, M, G, T or P: 64M.';
}

/**
 * Reads a size as qemu-img takes it: bytes, or a number (also a decimal fraction) with k, M, G, T, P or E for powers of 1024.
 *
 * @returns bytes, rounded up; undefined when it is no size or too large to be exact
 */
export function parseSize(text: string): number | undefined {
  const match = SIZE.exec(text.trim());
  if (match === null) return undefined;
  const unit = (match[2] ?? '').toLowerCase();
  const exponent = unit === '' || unit === 'b' ? 0 : SUFFIXES.findIndex((suffix) => suffix.toLowerCase() === unit);
  const size = Math.ceil(Number(match[1]) * 1024 ** exponent);
  return Number.isSafeInteger(size) ? size : undefined;
}

/** Bytes for people: `2 GiB`, `1.5 MiB`, `512 B`; three significant digits. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < SUFFIXES.length - 1) {
    value /= 1024;
    unit++;
  }
  const scale = value >= 100 ? 1 : value >= 10 ? 10 : value >= 1 ? 100 : 1000;
  const digits = Number.isInteger(value) ? value : roundToEven(value * scale) / scale;
  const suffix = SUFFIXES[unit] ?? '';
  return unit === 0 ? `${digits} B` : `${digits} ${suffix.toUpperCase()}iB`;
}

/** As printf rounds, and so qemu-img: what is halfway goes to the even neighbour. */
function roundToEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** `value` rounded down to a multiple of `unit` (any unit, exact below 2^53). */
export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

/** `value` rounded up to a multiple of `unit`. */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value - rest + unit;
}

/** How many units cover `value`. */
export function divideUp(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

/** 0x-prefixed lower-case hexadecimal. */
export function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
