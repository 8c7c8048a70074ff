/** Unpacking of deflate streams, wherever it is done. */

import zlib from 'node:zlib';
import { promisifyLater } from './promisify-later.ts';

/**
 * - `raw-start`: bare deflate (RFC 1951), over when the output is full, whatever follows; the end may be missing
 * - `raw`: bare deflate, all of it
 * - `zlib`: with header and checksum (RFC 1950), all of it
 */
export type DeflateForm = 'raw-start' | 'raw' | 'zlib';

/**
 * Unpacks a stream, up to 15 window bits, into `output`, outside the event loop. Both arrays are its own until it is done.
 *
 * @returns bytes of output; undefined for what is no such stream, ends too early or holds more than the output
 */
export type Inflate = (form: DeflateForm, input: Uint8Array, output: Uint8Array) => Promise<number | undefined>;

const inflateRaw = promisifyLater<[zlib.InputType, zlib.ZlibOptions], Buffer>(() => zlib.inflateRaw);
const inflateZlib = promisifyLater<[zlib.InputType, zlib.ZlibOptions], Buffer>(() => zlib.inflate);

/** Memory for an output: with whatever was there before, for all of it is written or thrown away. */
export function outputOf(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.allocUnsafeSlow(length).buffer);
}

/** With what Node has: a new state and buffers for each stream. */
export const inflatePlain: Inflate = async (form, input, output) => {
  const partial = form === 'raw-start';
  const options: zlib.ZlibOptions = {
    windowBits: 15,
    chunkSize: Math.max(output.length, 64),
    maxOutputLength: output.length,
    ...(partial ? { finishFlush: zlib.constants.Z_SYNC_FLUSH } : {}),
  };
  try {
    const bytes = await (form === 'zlib' ? inflateZlib : inflateRaw)(input, options);
    output.set(bytes);
    return bytes.length;
  } catch (error) {
    const { code } = error as { code?: unknown };
    const broken = typeof code === 'string' && code.startsWith('Z_') && code !== 'Z_MEM_ERROR';
    if (!broken && code !== 'ERR_BUFFER_TOO_LARGE') throw error;
    // Perhaps only behind what is wanted.
    return partial ? inflateStart(input, output) : undefined;
  }
};

/** The first bytes of a stream that holds more. */
function inflateStart(input: Uint8Array, output: Uint8Array): Promise<number | undefined> {
  return new Promise((resolve) => {
    // A chunk is all of the output: it comes before anybody looks at what is behind it.
    const chunkSize = Math.max(output.length, 64);
    const stream = zlib.createInflateRaw({ windowBits: 15, chunkSize, finishFlush: zlib.constants.Z_SYNC_FLUSH });
    let done = 0;
    stream.on('data', (chunk: Buffer) => {
      const take = Math.min(chunk.length, output.length - done);
      output.set(chunk.subarray(0, take), done);
      done += take;
      if (done < output.length) return;
      stream.destroy();
      resolve(done);
    });
    stream.on('end', () => resolve(done));
    stream.on('error', () => resolve(undefined));
    stream.end(input);
  });
}
