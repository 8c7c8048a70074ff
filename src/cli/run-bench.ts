import { LunetteError, UsageError } from '../../formats/core/errors.ts';
import { formatSize } from '../../formats/core/units.ts';
import { type BenchResult, benchImage } from '../convert/bench.ts';
import { createHost } from '../open/host.ts';
import { openDisk } from '../open/open-disk.ts';
import type { BenchCommandOptions } from './commands/bench.ts';
import type { CliContext } from './context.ts';
import { formatJson } from './qemu-json.ts';

const MOST_REQUESTS = 2 ** 31 - 1;
/** Of buffers, bytes: each request in flight has one. */
const MOST_MEMORY = 1024 * 1024 * 1024;

/** Sends requests to an image, and prints how long that took. */
export async function runBench(
  context: CliContext,
  name: string,
  options: BenchCommandOptions,
  json: boolean,
  warn: (message: string, path: string) => void,
): Promise<void> {
  const { bufferSize, offset, write = false, drain } = options;
  const count = wholeNumber(options.count, '-c', 1, MOST_REQUESTS);
  const depth = wholeNumber(options.depth, '-d', 1, MOST_REQUESTS);
  const pattern = wholeNumber(options.pattern, '--pattern', 0, 255);
  const step = options.stepSize ?? bufferSize;
  if (bufferSize < 1) throw new UsageError('USAGE', '-s 0: requests have at least one byte');
  if (bufferSize * Math.min(depth, count) > MOST_MEMORY) {
    throw new UsageError('USAGE', `-d ${depth} requests of ${formatSize(bufferSize)} at a time take too much memory`);
  }
  const flushEvery =
    options.flushInterval === undefined
      ? undefined
      : wholeNumber(options.flushInterval, '--flush-interval', 1, MOST_REQUESTS);
  if (!write && (flushEvery !== undefined || options.pattern !== '0')) {
    throw new UsageError(
      'USAGE',
      `${flushEvery === undefined ? '--pattern' : '--flush-interval'} is for writes: say -w`,
    );
  }
  if (!drain && flushEvery === undefined) throw new UsageError('USAGE', '--no-drain is for --flush-interval');
  if (flushEvery !== undefined && !drain && flushEvery < depth) {
    throw new UsageError(
      'USAGE',
      '--flush-interval cannot be smaller than the depth without waiting for the requests in flight',
    );
  }
  if (write && options.forceShare === true) throw new UsageError('USAGE', '-U is for reading: -w takes locks');
  const { format, snapshot, forceShare, strict, allow, allowAny, secretFile } = options;
  if (write && snapshot !== undefined) throw new UsageError('USAGE', 'a snapshot is not written to');
  const host = createHost({ allow, allowAny, secretFile, warn });
  const image = await openDisk(host, name, {
    format,
    snapshot,
    forceShare,
    strict,
    secretFile,
    readOnly: !write,
    warn,
  });
  const interrupted = new AbortController();
  const stopListening = context.interrupts.once(() => interrupted.abort());
  try {
    if (offset + bufferSize > image.size) {
      throw new LunetteError(
        'OUT_OF_RANGE',
        `requests of ${bufferSize} bytes from ${offset} on do not fit into ${image.size}`,
        {
          path: name,
        },
      );
    }
    if (!json) {
      context.stdout.write(
        `Sending ${count} ${write ? 'write' : 'read'} requests, ${bufferSize} bytes each, ${depth} in parallel ` +
          `(starting at offset ${offset}, step size ${step})\n`,
      );
      if (flushEvery !== undefined) {
        context.stdout.write(`Sending flush every ${drain ? '' : 'non-draining '}${flushEvery} requests\n`);
      }
    }
    const result = await benchImage(image, {
      count,
      depth,
      bufferSize,
      step,
      offset,
      pattern: write ? pattern : undefined,
      flushEvery,
      drain,
      signal: interrupted.signal,
    });
    context.stdout.write(json ? `${formatJson(members(result, bufferSize))}\n` : text(result, bufferSize));
  } finally {
    stopListening();
    if (write) await image.close();
    else await image.close().catch(() => undefined);
  }
}

function members({ seconds, requests, latencies }: BenchResult, size: number) {
  return {
    requests,
    seconds,
    'requests-per-second': requests / seconds,
    'bytes-per-second': (requests * size) / seconds,
    'latency-us': latencies,
  };
}

function text({ seconds, requests, latencies }: BenchResult, size: number): string {
  const perSecond = Math.round(requests / seconds);
  const { p50, p95, p99, max } = latencies;
  return (
    `Run completed in ${seconds.toFixed(3)} seconds.\n` +
    `${perSecond} requests a second, ${formatSize(Math.round((requests * size) / seconds))}/s; ` +
    `µs: median ${p50}, 95 % ${p95}, 99 % ${p99}, most ${max}\n`
  );
}

function wholeNumber(text: string, option: string, least: number, most: number): number {
  const value = /^(\d+|0x[0-9a-f]+)$/i.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new UsageError('USAGE', `${option} ${text}: a whole number from ${least} to ${most}`);
}
