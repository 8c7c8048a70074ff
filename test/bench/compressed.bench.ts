/**
 * A compressed qcow2 image read all over through `lunette export --transport nbd` beside qemu-nbd, with a cache that holds a sixteenth of it: nearly
 * every read unpacks a cluster and drives another one out. What that does to memory and to the event loop is the point.
 */

import { copyFile, open } from 'node:fs/promises';
import { join } from 'node:path';
import { KiB, MiB } from '../../formats/core/units.ts';
import { bench, median } from '../support/bench.ts';
import { applyFio, type FioResult } from '../support/fio.ts';
import { loopDelay, scrape } from '../support/metrics.ts';
import { startNbdExport, startQemuNbd } from '../support/nbd.ts';
import { freePort } from '../support/ports.ts';
import { peakResidentBytes, residentBytes } from '../support/process-usage.ts';
import { qemu } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { requires } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';

const CACHE = 16 * MiB;
const CLUSTER = 64 * KiB;

/** Content that shrinks to about half, no cluster like another. */
async function halfRandom(path: string, size: number, seed: number): Promise<void> {
  const random = new Random(seed);
  const handle = await open(path, 'w');
  for (let at = 0; at < size; at += CLUSTER) {
    const bytes = random.bytes(CLUSTER);
    for (let i = 0; i < CLUSTER; i++) bytes[i] = (bytes[i] as number) & 15;
    await handle.write(bytes);
  }
  await handle.close();
}

const LOAD = { kind: 'randread', block: CLUSTER, depth: 16 } as const;

bench(
  'memory/compressed-churn',
  async (b) => {
    const size = b.pick(4 * MiB, 256 * MiB);
    const folder = await temporaryDirectory(b);
    const raw = join(folder, 'disk.raw');
    const path = join(folder, 'disk.qcow2');
    const other = join(folder, 'other.qcow2');
    await halfRandom(raw, size, b.seed);
    await qemu.convert(raw, path, '-f', 'raw', '-O', 'qcow2', '-c');
    await copyFile(path, other); // neither waits for the other's lock
    const port = await freePort();
    const args = ['--socket', '', '--cache', String(CACHE), '--metrics', `127.0.0.1:${port}`];
    const ours = await startNbdExport(b, path, { args });
    const theirs = await startQemuNbd(b, other, 'qcow2');
    await scrape(port); // loads what metrics need
    const idle = residentBytes(ours.process.pid);
    const results = {
      ours: [] as FioResult[],
      theirs: [] as FioResult[],
    };
    const delays: number[] = [];
    const resident: number[] = [];
    for (let round = 0; round < b.pick(1, 5); round++) {
      await scrape(port); // a scrape begins a new window
      results.ours.push(await applyFio(LOAD, ours, size, b.pick(1, 3)));
      resident.push(residentBytes(ours.process.pid));
      delays.push(loopDelay(await scrape(port)));
      results.theirs.push(await applyFio(LOAD, theirs, size, b.pick(1, 3)));
    }
    const of = (who: keyof typeof results, key: 'iops' | 'cpuUs'): number =>
      median(results[who].map((result) => result[key]));
    const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`;
    const allowed = CACHE + 64e6;
    b.table(
      `Clusters of 64 KiB unpacked at random, ${size / MiB} MiB, cache ${CACHE / MiB} MiB: medians`,
      ['', 'lunette', 'qemu-nbd', 'aim'],
      [
        ['clusters per second', of('ours', 'iops').toFixed(0), of('theirs', 'iops').toFixed(0), ''],
        [
          'server CPU per cluster',
          `${of('ours', 'cpuUs').toFixed(0)} µs`,
          `${of('theirs', 'cpuUs').toFixed(0)} µs`,
          '',
        ],
        ['resident over idle', megabytes(median(resident) - idle), '', `≤ ${megabytes(allowed)}`],
        ['the most over idle', megabytes(peakResidentBytes(ours.process.pid) - idle), '', ''],
        ['loop delay p99', `${(median(delays) * 1000).toFixed(1)} ms`, '', '< 20 ms'],
      ],
    );
  },
  () => requires.fio() || requires.qemuNbd() || requires.linux(),
);
