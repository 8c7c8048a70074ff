/** The only place that loads lz4-napi: lazily, because most runs never need it. Without it there is no cold tier. */

/** Compresses one block at a time. What `compress` gives is only for `decompress`: it carries its own length. */
export interface BlockCodec {
  /** Compresses away from the event loop. The input must not change meanwhile. */
  compress(bytes: Uint8Array): Promise<Uint8Array>;
  /** The inverse, at once: about 30 µs for 64 KiB. */
  decompress(bytes: Uint8Array): Uint8Array;
}

let loading: Promise<BlockCodec | undefined> | undefined;

/** Gives the codec, or undefined where lz4-napi is not installed or does not load. Loads it in the first call. */
export function loadLz4(): Promise<BlockCodec | undefined> {
  loading ??= import('lz4-napi').then(
    (lz4) => ({
      compress: (bytes: Uint8Array) => lz4.compress(bytes),
      decompress: (bytes: Uint8Array) => lz4.uncompressSync(bytes),
    }),
    () => undefined,
  );
  return loading;
}
