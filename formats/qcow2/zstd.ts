import { ImageError } from '../core/errors.ts';

/** The zstd library as functions of bytes. */
export interface Zstd {
  /**
   * Decompresses until `output` is full or the input ends.
   *
   * @returns bytes of output; undefined for what is no such stream
   */
  decompress(input: Uint8Array, output: Uint8Array): number | undefined;
  /** One frame. */
  compress(input: Uint8Array): Uint8Array;
}

/** A stream may not ask for a larger window than 32 MiB: a cluster has 2 MiB at most. */
const MAX_WINDOW_LOG = 25;

let loading: Promise<Zstd> | undefined;

/**
 * The zstd library, loaded when the first zstd cluster is met: most images have none.
 *
 * @throws {ImageError} UNSUPPORTED when it is not installed
 */
export function loadZstd(): Promise<Zstd> {
  loading ??= load();
  return loading;
}

async function load(): Promise<Zstd> {
  let binding: typeof import('zstd-napi/binding.js');
  try {
    binding = await import('zstd-napi/binding.js');
    binding = (binding as { default?: typeof binding }).default ?? binding;
  } catch (error) {
    throw new ImageError('UNSUPPORTED', 'clusters compressed with zstd need the package zstd-napi', { cause: error });
  }
  const decoder = new binding.DCtx();
  decoder.setParameter(binding.DParameter.windowLogMax, MAX_WINDOW_LOG);
  const encoder = new binding.CCtx();
  return {
    decompress(input, output) {
      decoder.reset(binding.ResetDirective.sessionOnly);
      let done = 0;
      let read = 0;
      try {
        // One or more frames; what follows the cluster's last byte is none of ours.
        while (done < output.length) {
          const [, written, consumed] = decoder.decompressStream(output.subarray(done), input.subarray(read));
          if (written === 0 && consumed === 0) break;
          done += written;
          read += consumed;
        }
      } catch {
        return undefined;
      }
      return done;
    },
    compress(input) {
      const output = new Uint8Array(binding.compressBound(input.length));
      return output.subarray(0, encoder.compress2(output, input));
    },
  };
}
