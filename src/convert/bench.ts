import { LunetteError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import type { Image } from '../../formats/index.ts';
import { allocateAligned } from '../io/buffer-pool.ts';

export interface BenchOptions {
  /** Requests in all. */
  readonly count: number;
  /** Requests at the same time. */
  readonly depth: number;
  /** Bytes of each. */
  readonly bufferSize: number;
  /** Bytes from the start of one to the start of the next; behind the last that fits it goes on at `offset`. */
  readonly step: number;
  readonly offset: number;
  /** The byte that is written; undefined: requests read. */
  readonly pattern?: number | undefined;
  /** A flush after so many requests. */
  readonly flushEvery?: number | undefined;
  /** Before a flush all requests in flight end. Default true. */
  readonly drain?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface BenchResult {
  readonly seconds: number;
  readonly requests: number;
  /** Of the requests, microseconds. */
  readonly latencies: { readonly p50: number; readonly p95: number; readonly p99: number; readonly max: number };
}

/** Times of requests, in steps of a 16th of their magnitude: as many numbers for a thousand as for a billion. */
class Latencies {
  readonly #counts = new Uint32Array(16 * 64);
  #total = 0;
  #max = 0;

  add(us: number): void {
    this.#max = Math.max(this.#max, us);
    this.#total++;
    const exponent = us < 16 ? 0 : Math.floor(Math.log2(us)) - 3;
    const at = us < 16 ? Math.floor(us) : exponent * 16 + Math.floor(us / 2 ** exponent - 8);
    this.#counts[at] = (this.#counts[at] as number) + 1;
  }

  /** The time, rounded up to a step, that this share of the requests did not exceed. */
  #at(share: number): number {
    let seen = 0;
    for (let i = 0; i < this.#counts.length; i++) {
      seen += this.#counts[i] as number;
      if (seen < share * this.#total) continue;
      const end = i < 16 ? i + 1 : ((i % 16) + 9) * 2 ** Math.floor(i / 16);
      return Math.min(end, Math.ceil(this.#max));
    }
    return Math.ceil(this.#max);
  }

  summary(): BenchResult['latencies'] {
    return { p50: this.#at(0.5), p95: this.#at(0.95), p99: this.#at(0.99), max: Math.ceil(this.#max) };
  }
}

/**
 * Sends requests to an image, several at a time, one offset after the other and from the start again at its end.
 *
 * @throws {LunetteError} what the first failing request throws, when the others have ended; ABORTED
 */
export async function benchImage(image: Image, options: BenchOptions): Promise<BenchResult> {
  const { count, depth, bufferSize, step, offset, pattern, flushEvery, drain = true, signal } = options;
  const latencies = new Latencies();
  /** Requests that have been sent, and where the next one goes. */
  let sent = 0;
  let done = 0;
  let at = offset;
  let failure: unknown;
  let draining: Promise<void> | undefined;
  let inFlight = 0;
  let idle: (() => void) | undefined;

  const request = (list: IoVec): Promise<void> | undefined => {
    const where = at;
    at += step;
    if (at + bufferSize > image.size) at = offset;
    if (pattern === undefined) return image.tryReadv(where, list) ? undefined : image.readv(where, list);
    return image.tryWritev(where, list) ? undefined : image.writev(where, list);
  };
  const flush = async (): Promise<void> => {
    if (drain && inFlight > 0) {
      await new Promise<void>((resolve) => {
        idle = resolve;
      });
    }
    await image.flush();
  };
  const lane = async (): Promise<void> => {
    const memory = allocateAligned(bufferSize);
    if (pattern !== undefined) memory.fill(pattern);
    const list = IoVec.of(memory, 0, bufferSize);
    let atOnce = 0;
    while (sent < count && failure === undefined) {
      if (draining !== undefined) {
        await draining;
        continue;
      }
      if (signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: image.path });
      sent++;
      const start = performance.now();
      inFlight++;
      try {
        const work = request(list);
        if (work !== undefined) {
          await work;
          atOnce = 0;
        }
      } finally {
        inFlight--;
        if (inFlight === 0) idle?.();
      }
      latencies.add((performance.now() - start) * 1000);
      done++;
      // A flush that waits for others covers those, too.
      if (flushEvery !== undefined && done % flushEvery === 0 && draining === undefined) {
        const flushing = flush();
        if (drain) {
          draining = flushing.finally(() => {
            draining = undefined;
          });
          draining.catch(() => undefined); // this lane hears of it below, others only if they wait
        }
        await flushing;
      }
      // Signals come between ticks.
      if (++atOnce % 1024 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const begin = performance.now();
  await Promise.all(
    Array.from({ length: Math.min(depth, count) }, () =>
      lane().catch((error: unknown) => {
        failure ??= error;
      }),
    ),
  );
  if (failure !== undefined) throw failure;
  return { seconds: (performance.now() - begin) / 1000, requests: sent, latencies: latencies.summary() };
}
