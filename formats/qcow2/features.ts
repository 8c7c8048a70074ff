import { type ErrorContext, ImageError } from '../core/errors.ts';
import type { Bits64 } from '../core/struct.ts';

/** Bits 0 to 31 of incompatible_features: an image with others cannot be opened. */
export const INCOMPATIBLE = {
  DIRTY: 1,
  CORRUPT: 2,
  DATA_FILE: 4,
  COMPRESSION_TYPE: 8,
  EXTENDED_L2: 16,
} as const;
const KNOWN_INCOMPATIBLE = 0x1f;

/** Bits of compatible_features: others are ignored. */
export const COMPATIBLE = { LAZY_REFCOUNTS: 1 } as const;

/** Bits of autoclear_features: a writer that does not know one clears it first. */
export const AUTOCLEAR = { BITMAPS: 1, DATA_FILE_RAW: 2 } as const;

/** One entry of the feature name table: which bit of which field is called what. */
export interface FeatureName {
  readonly type: 0 | 1 | 2;
  readonly bit: number;
  readonly name: string;
}

export const TYPE_INCOMPATIBLE = 0;
export const TYPE_COMPATIBLE = 1;
export const TYPE_AUTOCLEAR = 2;

/** The names that writers put into the feature name table. */
export const FEATURE_NAMES: readonly FeatureName[] = [
  { type: TYPE_INCOMPATIBLE, bit: 0, name: 'dirty bit' },
  { type: TYPE_INCOMPATIBLE, bit: 1, name: 'corrupt bit' },
  { type: TYPE_INCOMPATIBLE, bit: 2, name: 'external data file' },
  { type: TYPE_INCOMPATIBLE, bit: 3, name: 'compression type' },
  { type: TYPE_INCOMPATIBLE, bit: 4, name: 'extended L2 entries' },
  { type: TYPE_COMPATIBLE, bit: 0, name: 'lazy refcounts' },
  { type: TYPE_AUTOCLEAR, bit: 0, name: 'bitmaps' },
  { type: TYPE_AUTOCLEAR, bit: 1, name: 'raw external data' },
];

/**
 * Refuses an image with incompatible features that are not known, calling them what the image itself calls them.
 *
 * @throws {ImageError} UNSUPPORTED
 */
export function checkFeatures(header: { incompatibleFeatures: Bits64 }, names: readonly FeatureName[]): void {
  const { high, low } = header.incompatibleFeatures;
  const unknown = listBits({ high, low: low & ~KNOWN_INCOMPATIBLE });
  if (unknown.length === 0) return;
  const called = unknown.map((bit) => {
    const entry = names.find((name) => name.type === TYPE_INCOMPATIBLE && name.bit === bit);
    return entry === undefined || entry.name === '' ? `unknown incompatible feature bit ${bit}` : entry.name;
  });
  const context: ErrorContext = { field: 'incompatibleFeatures', offset: 72 };
  throw new ImageError('UNSUPPORTED', `qcow2 features that this program does not have: ${called.join(', ')}`, context);
}

/** Numbers of the bits that are set, lowest first. */
export function listBits(bits: Bits64): number[] {
  const result: number[] = [];
  for (let bit = 0; bit < 64; bit++) {
    const word = bit < 32 ? bits.low : bits.high;
    if (((word >>> (bit & 31)) & 1) !== 0) result.push(bit);
  }
  return result;
}
