import { ImageError } from '../core/errors.ts';
import { alignUp } from '../core/units.ts';
import { FEATURE_NAMES, type FeatureName } from './features.ts';

/** Types of header extensions. Specification: "Header extensions". */
export const EXTENSION = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  CRYPTO: 0x0537be77,
  DATA_FILE: 0x44415441,
} as const;

/** Most bytes of a backing file's format name. */
export const MAX_BACKING_FORMAT = 15;
const FEATURE_ENTRY = 48;
export const MAX_BITMAPS = 65535;
export const MAX_BITMAP_DIRECTORY = MAX_BITMAPS * 1024;

/** One extension as it is in the file: kept whole, so that a rewritten header loses nothing. */
export interface Qcow2Extension {
  readonly type: number;
  /** Where its data is in the file, bytes. */
  readonly at: number;
  readonly data: Uint8Array;
}

/** Where the directory of persistent dirty bitmaps is. */
export interface BitmapsReference {
  readonly at: number;
  readonly count: number;
  readonly directorySize: number;
  readonly directoryOffset: number;
}

export interface Qcow2Extensions {
  readonly list: readonly Qcow2Extension[];
  readonly backingFormat: string | undefined;
  readonly featureNames: readonly FeatureName[];
  readonly dataFile: string | undefined;
  readonly crypto: { readonly at: number; readonly offset: number; readonly length: number } | undefined;
  readonly bitmaps: BitmapsReference | undefined;
  readonly warnings: readonly string[];
}

/**
 * Reads the extensions in [start, end) of the first cluster. A missing end marker is no error: the area ends at the backing file's
 * name or with the cluster.
 *
 * @throws {ImageError} BAD_HEADER with the extension's offset
 */
export function parseExtensions(view: DataView, start: number, end: number): Qcow2Extensions {
  const list: Qcow2Extension[] = [];
  const warnings: string[] = [];
  let backingFormat: string | undefined;
  let featureNames: FeatureName[] = [];
  let dataFile: string | undefined;
  let crypto: Qcow2Extensions['crypto'];
  let bitmaps: BitmapsReference | undefined;
  for (let at = start; at + 8 <= end; ) {
    const type = view.getUint32(at);
    const length = view.getUint32(at + 4);
    if (type === EXTENSION.END) break;
    const dataAt = at + 8;
    if (length > end - dataAt) fail('headerExtension', at, `a header extension of ${length} bytes is too large`);
    const data = new Uint8Array(view.buffer, view.byteOffset + dataAt, length).slice();
    list.push({ type, at: dataAt, data });
    switch (type) {
      case EXTENSION.BACKING_FORMAT:
        if (length > MAX_BACKING_FORMAT)
          fail('backingFormat', at, `a backing format name of ${length} bytes is too long`);
        backingFormat = text(data);
        break;
      case EXTENSION.FEATURE_NAMES:
        featureNames = parseFeatureNames(data);
        break;
      case EXTENSION.DATA_FILE:
        dataFile = text(data);
        break;
      case EXTENSION.CRYPTO:
        if (length !== 16) fail('crypto', at, `an encryption header pointer has 16 bytes, not ${length}`);
        crypto = { at: dataAt, offset: getU64(data, 0), length: getU64(data, 8) };
        break;
      case EXTENSION.BITMAPS:
        bitmaps = parseBitmaps(data, at);
        break;
    }
    at = alignUp(dataAt + length, 8);
  }
  return { list, backingFormat, featureNames, dataFile, crypto, bitmaps, warnings };
}

function parseBitmaps(data: Uint8Array, at: number): BitmapsReference {
  if (data.length !== 24) fail('bitmaps', at, `the bitmaps extension has 24 bytes, not ${data.length}`);
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const count = view.getUint32(0);
  const directorySize = getU64(data, 8);
  const directoryOffset = getU64(data, 16);
  if (view.getUint32(4) !== 0) fail('bitmaps', at, 'a reserved field of the bitmaps extension is set');
  if (count === 0) fail('bitmaps', at, 'the bitmaps extension has no bitmaps');
  if (count > MAX_BITMAPS) fail('bitmaps', at, `${count} bitmaps are more than ${MAX_BITMAPS}`);
  if (directorySize > MAX_BITMAP_DIRECTORY)
    fail('bitmaps', at, `a bitmap directory of ${directorySize} bytes is too large`);
  return { at, count, directorySize, directoryOffset };
}

function parseFeatureNames(data: Uint8Array): FeatureName[] {
  const names: FeatureName[] = [];
  for (let at = 0; at + FEATURE_ENTRY <= data.length; at += FEATURE_ENTRY) {
    const type = data[at] as number;
    if (type > 2) continue;
    const name = data.subarray(at + 2, at + FEATURE_ENTRY);
    const end = name.indexOf(0);
    names.push({
      type: type as 0 | 1 | 2,
      bit: data[at + 1] as number,
      name: text(end < 0 ? name : name.subarray(0, end)),
    });
  }
  return names;
}

/** The feature name table that our own images carry. */
export function featureNameTable(): Qcow2Extension {
  const data = new Uint8Array(FEATURE_NAMES.length * FEATURE_ENTRY);
  FEATURE_NAMES.forEach((entry, i) => {
    data[i * FEATURE_ENTRY] = entry.type;
    data[i * FEATURE_ENTRY + 1] = entry.bit;
    data.set(Buffer.from(entry.name, 'latin1'), i * FEATURE_ENTRY + 2);
  });
  return { type: EXTENSION.FEATURE_NAMES, at: 0, data };
}

/** Bytes of the extension area, with the end marker. */
export function encodeExtensions(list: readonly Pick<Qcow2Extension, 'type' | 'data'>[]): Uint8Array {
  const size = list.reduce((sum, { data }) => sum + 8 + alignUp(data.length, 8), 8);
  const result = new Uint8Array(size);
  const view = new DataView(result.buffer);
  let at = 0;
  for (const { type, data } of list) {
    view.setUint32(at, type);
    view.setUint32(at + 4, data.length);
    result.set(data, at + 8);
    at += 8 + alignUp(data.length, 8);
  }
  return result;
}

function getU64(data: Uint8Array, at: number): number {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const high = view.getUint32(at);
  return high >= 0x200000 ? Number.POSITIVE_INFINITY : high * 0x100000000 + view.getUint32(at + 4);
}

function text(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8');
}

function fail(field: string, offset: number, why: string): never {
  throw new ImageError('BAD_HEADER', `qcow2 header: ${why}`, { field, offset });
}
