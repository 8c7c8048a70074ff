/**
 * When keeping cold blocks compressed pays: hit rate and CPU per request, with and without, over clusters of a real
 * file system's content that a miss has to inflate, as in a compressed qcow2.
 */

import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { deflateRaw, inflateRaw } from 'node:zlib';
import { SharedBlockCache } from '../../formats/cache/block-cache.ts';
import { formatSize, KiB, MiB } from '../../formats/core/units.ts';
import { bench } from '../support/bench.ts';
import { Random } from '../support/random.ts';

const inflate = promisify(inflateRaw);
const deflate = promisify<Uint8Array, { level: number }, Buffer>(deflateRaw);
const CLUSTER = 64 * KiB;

/** Deflated clusters. */
type Content = readonly Uint8Array[];

/** Programs, libraries, documentation and locale data of this machine: what a guest's disk is full of. */
function systemClusters(count: number, random: Random): Uint8Array[] {
  const files: string[] = [];
  for (const folder of [
    '/usr/bin',
    '/usr/lib/x86_64-linux-gnu',
    '/usr/share',
    '/usr/lib',
    process.execPath.replace(/[^/]*$/, ''),
  ]) {
    try {
      for (const name of readdirSync(folder)) files.push(join(folder, name));
    } catch {
      // Not on this machine; node's own folder always is.
    }
  }
  const clusters: Uint8Array[] = [];
  for (const file of random.shuffle(files)) {
    if (clusters.length >= count) break;
    try {
      const { size } = statSync(file);
      if (size < CLUSTER || size > 128 * MiB) continue;
      const bytes = readFileSync(file);
      // At most 2 MiB of each, so that one large program is not all there is.
      for (let at = 0; at + CLUSTER <= Math.min(bytes.length, 2 * MiB); at += CLUSTER) {
        clusters.push(bytes.subarray(at, at + CLUSTER));
      }
    } catch {
      // A folder, or not readable.
    }
  }
  while (clusters.length < count) clusters.push(clusters[random.below(clusters.length)] as Uint8Array);
  return clusters.slice(0, count);
}

async function deflated(clusters: readonly Uint8Array[]): Promise<Content> {
  const content: Uint8Array[] = [];
  for (const cluster of clusters) content.push(await deflate(cluster, { level: 1 }));
  return content;
}

/** Ranks with probability proportional to 1 / rank^s, in a shuffled order. */
function zipf(count: number, requests: number, s: number, random: Random): Uint32Array {
  const cumulative = new Float64Array(count);
  let sum = 0;
  for (let rank = 0; rank < count; rank++) cumulative[rank] = sum += 1 / (rank + 1) ** s;
  const order = random.shuffle(Array.from({ length: count }, (_, at) => at));
  return Uint32Array.from({ length: requests }, () => {
    const target = random.fraction() * sum;
    let low = 0;
    let high = count - 1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((cumulative[middle] as number) < target) low = middle + 1;
      else high = middle;
    }
    return order[low] as number;
  });
}

/** From one end to the other, over and over. */
function scan(count: number, requests: number): Uint32Array {
  return Uint32Array.from({ length: requests }, (_, at) => at % count);
}

interface Outcome {
  /** Of 100 requests. */
  readonly hitRate: number;
  readonly coldHitRate: number;
  /** Of all threads, per request. */
  readonly cpuUs: number;
  readonly compressions: number;
}

/** Plays the requests against a cache; the first half only warms it up. */
async function play(content: Content, requests: Uint32Array, budget: number, coldShare: number): Promise<Outcome> {
  const cache = new SharedBlockCache(budget, { coldShare });
  const space = cache.space(content.length);
  const half = requests.length >>> 1;
  let before = cache.stats;
  let cpu = process.cpuUsage();
  for (let at = 0; at < requests.length; at++) {
    if (at === half) {
      before = cache.stats;
      cpu = process.cpuUsage();
    }
    const number = requests[at] as number;
    if (space.get(number) === undefined) space.set(number, await inflate(content[number] as Uint8Array));
    // Requests arrive over time: hits in a row leave room for other events, too.
    else if (at % 8 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  const used = process.cpuUsage(cpu);
  const { hits, coldHits, compressions } = cache.stats;
  space.release();
  const count = requests.length - half;
  return {
    hitRate: ((hits - before.hits) / count) * 100,
    coldHitRate: ((coldHits - before.coldHits) / count) * 100,
    cpuUs: (used.user + used.system) / count,
    compressions: (compressions - before.compressions) / count,
  };
}

bench('cache/cold-tier', async (b) => {
  const random = new Random(b.seed);
  const count = b.pick(64, 2048);
  const requests = b.pick(200, 8_000);
  const size = count * CLUSTER;
  const shares = b.pick([0, 0.5], [0, 0.25, 0.5]);
  const system = await deflated(systemClusters(count, random));
  const noise = await deflated(Array.from({ length: count }, () => random.bytes(CLUSTER)));
  const workloads: [string, Content, Uint32Array, number][] = [
    ['zipf 0.8', system, zipf(count, requests, 0.8, random), 0.25],
    ['zipf 0.8', system, zipf(count, requests, 0.8, random), 0.5],
    ['zipf 1.1', system, zipf(count, requests, 1.1, random), 0.25],
    ['uniform', system, zipf(count, requests, 0, random), 0.5],
    ['scan', system, scan(count, requests), 0.25],
    ['scan', system, scan(count, requests), 0.8],
    ['zipf 0.8, random bytes', noise, zipf(count, requests, 0.8, random), 0.25],
  ];
  await play(system, scan(count, Math.min(requests, count * 2)), size / 8, 0.5); // loads lz4, compiles the code
  const rows: (string | number)[][] = [];
  for (const [name, content, sequence, part] of workloads) {
    const outcomes: Outcome[] = [];
    for (const share of shares) outcomes.push(await play(content, sequence, Math.floor(size * part), share));
    const [without] = outcomes as [Outcome];
    outcomes.forEach((outcome, at) => {
      const gain = outcome.hitRate - without.hitRate;
      const cheaper = outcome.cpuUs < without.cpuUs * 0.97;
      const verdict = gain > 1 && cheaper ? 'pays' : gain > 1 ? 'pays if a miss costs more' : 'does not pay';
      rows.push([
        name,
        formatSize(size * part),
        `${(shares[at] as number) * 100} %`,
        outcome.hitRate.toFixed(1),
        outcome.coldHitRate.toFixed(1),
        outcome.compressions.toFixed(2),
        outcome.cpuUs.toFixed(0),
        at === 0 ? '' : verdict,
      ]);
    });
  }
  const columns = [
    'workload',
    'budget',
    'cold share',
    'hit %',
    'cold hit %',
    'lz4/request',
    'CPU µs/request',
    'cold tier',
  ];
  b.table(`Requests for 64 KiB clusters out of ${formatSize(size)}, a miss inflates`, columns, rows);
});
