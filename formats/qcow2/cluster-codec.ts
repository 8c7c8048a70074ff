import { promisify } from 'node:util';
import zlib from 'node:zlib';
import { ImageError } from '../core/errors.ts';
import { type Inflate, inflatePlain, outputOf } from '../core/inflate.ts';
import type { EncodedUnit } from '../image/layer.ts';
import type { CompressionType } from './header.ts';
import { loadZstd } from './zstd.ts';

/** What QEMU's decoder takes: a window of 4 KiB, no header. */
const WINDOW_BITS = 12;
const MEMORY_LEVEL = 9;

const deflateRaw = promisify<zlib.InputType, zlib.ZlibOptions, Buffer>(zlib.deflateRaw);

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
  inflate: Inflate = inflatePlain,
): Promise<Uint8Array> {
  try {
    if (type === 'zstd') {
      const output = (await loadZstd()).decompress(input, size);
      if (output.length === size) return output;
    } else {
      const output = outputOf(size);
      const done = await inflate('raw-start', input, output);
      if (done === undefined) throw new ImageError('CORRUPT', 'a compressed cluster is no valid zlib stream');
      if (done === size) return output;
    }
  } catch (error) {
    if (error instanceof ImageError) throw error;
    throw new ImageError('CORRUPT', `a compressed cluster is no valid ${type} stream`, { cause: error });
  }
  throw new ImageError('CORRUPT', `a compressed cluster holds less than a cluster of ${type} data`);
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
