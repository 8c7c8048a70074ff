import zlib from 'node:zlib';
import { ImageError } from '../core/errors.ts';
import { type Inflate, inflatePlain, outputOf } from '../core/inflate.ts';
import { IoVec } from '../core/iov.ts';
import type { Packing } from '../core/pack.ts';
import { promisifyLater } from '../core/promisify-later.ts';
import { NO_STREAM, PLACE_WORDS, type Unpack } from '../core/unpack.ts';
import type { EncodedUnit } from '../image/layer.ts';
import type { CompressionType } from './header.ts';
import { loadZstd } from './zstd.ts';

/** What QEMU's decoder takes: a window of 4 KiB, no header. */
const WINDOW_BITS = 12;
const MEMORY_LEVEL = 9;

/**
 * How native code packs clusters; Node and zstd-napi do it at their defaults. zlib at its level 5: streams are 0.3 % longer than at QEMU's 6, in four fifths of the time. zstd at its default.
 */
export const PACKING: Readonly<Record<CompressionType, Packing>> = {
  zlib: { form: 'deflate', level: 5, windowBits: WINDOW_BITS },
  zstd: { form: 'zstd', level: 3, windowBits: 0 },
};

const deflateRaw = promisifyLater<[zlib.InputType, zlib.ZlibOptions], Buffer>(() => zlib.deflateRaw);

/**
 * The compression of an image's clusters as plain functions of bytes: for worker threads, which need nothing else of this program.
 *
 * @throws {ImageError} UNSUPPORTED when zstd is asked for and not installed
 */
export async function loadClusterEncoder(
  type: CompressionType,
  clusterSize: number,
): Promise<(bytes: Uint8Array) => EncodedUnit> {
  const options = deflateOptions(clusterSize);
  const zstd = type === 'zstd' ? await loadZstd() : undefined;
  return (bytes) => {
    const whole = padded(bytes, clusterSize);
    if (isZero(whole)) return null;
    return smaller(zstd === undefined ? zlib.deflateRawSync(whole, options) : zstd.compress(whole), whole);
  };
}

/**
 * Compresses one cluster on the thread pool of Node (zstd: in this tick).
 *
 * @param bytes a cluster, or less at the disk's end: zeros are added
 */
export async function encodeCluster(
  type: CompressionType,
  bytes: Uint8Array,
  clusterSize: number,
): Promise<EncodedUnit> {
  const whole = padded(bytes, clusterSize);
  if (isZero(whole)) return null;
  if (type === 'zstd') return smaller((await loadZstd()).compress(whole), whole);
  return smaller(await deflateRaw(whole, deflateOptions(clusterSize)), whole);
}

/**
 * Decompresses the first `size` bytes of a stream. Whatever follows them, or whether the stream goes on, does not matter: a cluster ends
 * when it is full.
 *
 * Raw deflate, up to 15 window bits (writers use 12; old tools did not), or zstd frames.
 *
 * @throws {ImageError} CORRUPT when the stream is broken or too short
 */
export async function decompress(
  type: CompressionType,
  input: Uint8Array,
  size: number,
  inflate?: Inflate,
  unpack?: Unpack,
): Promise<Uint8Array> {
  const output = outputOf(size);
  if (type === 'zlib' && input.length > 0) {
    fullCluster(type, (await (inflate ?? inflatePlain)('raw-start', input, output)) ?? NO_STREAM, size);
  } else {
    const places = Int32Array.of(0, input.length, 0);
    if (input.length > 0) await unpackClusters(type, input, places, IoVec.of(output), unpack);
    fullCluster(type, places[2] as number, size);
  }
  return output;
}

/**
 * Decompresses clusters whose streams lie in `packed`, as Unpack does: by `unpack` where it can, else by Node (zstd: in this tick).
 *
 * @throws {ImageError} UNSUPPORTED where there is no zstd
 */
export async function unpackClusters(
  type: CompressionType,
  packed: Uint8Array,
  places: Int32Array,
  outputs: IoVec,
  unpack?: Unpack,
): Promise<void> {
  if ((await unpack?.(type === 'zstd' ? 'zstd' : 'deflate', packed, places, outputs)) === true) return;
  const zstd = type === 'zstd' ? await loadZstd() : undefined;
  for (let i = 0; i < outputs.count; i++) {
    const at = places[PLACE_WORDS * i] as number;
    const input = packed.subarray(at, at + (places[PLACE_WORDS * i + 1] as number));
    const start = outputs.offsets[i] as number;
    const output = (outputs.memory[i] as Uint8Array).subarray(start, start + (outputs.lengths[i] as number));
    const done = zstd === undefined ? await inflatePlain('raw-start', input, output) : zstd.decompress(input, output);
    places[PLACE_WORDS * i + 2] = done ?? NO_STREAM;
  }
}

/** @param done what came of a stream, as in Unpack. @throws {ImageError} CORRUPT when that is not a whole cluster */
export function fullCluster(
  type: CompressionType,
  done: number,
  size: number,
  place: { path?: string; offset?: number } = {},
): void {
  if (done === size) return;
  if (done === NO_STREAM) throw new ImageError('CORRUPT', `a compressed cluster is no valid ${type} stream`, place);
  throw new ImageError('CORRUPT', `a compressed cluster holds less than a cluster of ${type} data`, place);
}

function deflateOptions(clusterSize: number): zlib.ZlibOptions {
  // Room for a stream that grows: the output comes in one piece.
  return { windowBits: WINDOW_BITS, memLevel: MEMORY_LEVEL, chunkSize: clusterSize + (clusterSize >>> 8) + 1024 };
}

function padded(bytes: Uint8Array, clusterSize: number): Uint8Array {
  if (bytes.length === clusterSize) return bytes;
  if (bytes.length > clusterSize) throw new RangeError(`${bytes.length} bytes are more than a cluster`);
  const whole = new Uint8Array(clusterSize);
  whole.set(bytes);
  return whole;
}

/** A copy of its own size: the encoder's output keeps a whole cluster of memory. */
function smaller(stream: Uint8Array, whole: Uint8Array): Uint8Array {
  return stream.length < whole.length ? new Uint8Array(stream) : whole;
}

const ZEROS = Buffer.alloc(64 * 1024);

function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROS.length) {
    const length = Math.min(ZEROS.length, bytes.length - at);
    if (ZEROS.compare(bytes, at, at + length, 0, length) !== 0) return false;
  }
  return true;
}
