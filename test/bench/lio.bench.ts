/**
 * Our daemon and tcmu-runner behind a real kernel's target, in one run of the VM, with the same images and loads.
 *
 * Under emulation a wake-up costs more than anything that either does, so operations per second of reads say little about a machine; CPU for
 * each operation, wake-ups, and writes that allocate do. The machine has one processor: with two, what is measured is how soon the host
 * wakes the thread of the other.
 */

import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Bench, bench } from '../support/bench.ts';
import { PROJECT_ROOT, runOk } from '../support/process.ts';
import { Random } from '../support/random.ts';
import { requirePrograms } from '../support/requires.ts';
import { temporaryDirectory } from '../support/temporary.ts';
import { requiresVm, runVmJob } from '../support/vm.ts';

const DAEMONS = ['tcmu-runner', 'lunette'] as const;
/** Each load, and what comes before the first that is measured, of ours: V8 compiles while it runs. */
const SECONDS = 6;
const WARM_UP_SECONDS = 60;
/** Of /proc/PID/stat, per second. */
const CLOCK_TICKS = 100;

interface Figures {
  readonly perSecond: number;
  readonly bytesPerSecond: number;
  /** Of the daemon, for each operation, µs. */
  readonly cpuUs: number;
  /** Of the daemon's threads, for each operation. */
  readonly wakeups: number;
}

interface Load {
  readonly name: string;
  readonly what: string;
  readonly aim?: { readonly text: string; reached(ours: Figures, theirs: Figures): boolean };
}

/** On a new image. */
const ALLOCATING: readonly Load[] = [
  {
    name: 'allocating-4k',
    what: '4 KiB writes that allocate, depth 16',
    aim: { text: '8x the IOPS', reached: (ours, theirs) => ours.perSecond >= 8 * theirs.perSecond },
  },
  {
    name: 'allocating-64k',
    what: '64 KiB writes that allocate, depth 4',
    aim: { text: '0.2x the CPU', reached: (ours, theirs) => ours.cpuUs <= 0.2 * theirs.cpuUs },
  },
];

/** On an image whose clusters are all there. */
const ALLOCATED: readonly Load[] = [
  {
    name: 'read-4k',
    what: '4 KiB random reads, depth 16',
    aim: { text: '1.5x the CPU at most', reached: (ours, theirs) => ours.cpuUs <= 1.5 * theirs.cpuUs },
  },
  {
    name: 'batched-read-4k',
    what: '4 KiB random reads, 16 submitted, 8 completed at a time',
    aim: { text: '0.5 wake-ups', reached: (ours) => ours.wakeups < 0.5 },
  },
  { name: 'write-4k', what: '4 KiB random writes, depth 16' },
  { name: 'read-1m', what: '1 MiB sequential reads, depth 4' },
  { name: 'write-1m', what: '1 MiB sequential writes, depth 4' },
];

// Each takes a machine of its own for some minutes: see docs/testing.md.
for (const [name, loads] of Object.entries({ 'new-image': ALLOCATING, 'full-image': ALLOCATED })) {
  bench(
    `lio/beside-tcmu-runner/${name}`,
    (b) => besideTcmuRunner(b, loads),
    () => requiresVm() || requirePrograms(['tcmu-runner'], 'tcmu-runner'),
  );
}

async function besideTcmuRunner(b: Bench, loads: readonly Load[]): Promise<void> {
  const seed = await temporaryDirectory(b);
  const images = join(seed, 'images');
  await mkdir(images);
  const content = join(await temporaryDirectory(b), 'content.raw');
  await writeFile(content, new Random(b.seed).bytes(b.pick(1, 128) * 1024 * 1024));
  for (const daemon of DAEMONS) {
    await runOk('qemu-img', ['create', '-q', '-f', 'qcow2', join(images, `${daemon}-new.qcow2`), '4G']);
    await runOk('qemu-img', ['convert', '-O', 'qcow2', content, join(images, `${daemon}-full.qcow2`)]);
  }
  const job = join(PROJECT_ROOT, 'test/bench/vm/beside-tcmu-runner.sh');
  // Booting a machine for it in every run of the tests takes longer than all other benchmarks: the jobs of test/e2e/vm do so already.
  if (b.smoke) {
    await runOk('bash', ['-n', job]);
    return;
  }
  const names = loads.map(({ name }) => name).join(' ');
  await writeFile(join(seed, 'load'), `${SECONDS} ${WARM_UP_SECONDS} ${names}\n`);
  const { out } = await runVmJob(b, job, { seed, seconds: 600, cpus: 1 });
  const rows: (string | number)[][] = [];
  for (const { name, what, aim } of loads) {
    const [theirs, ours] = [await figuresOf(out, 'tcmu-runner', name), await figuresOf(out, 'lunette', name)];
    const verdict = aim === undefined ? '' : `${aim.text}: ${aim.reached(ours, theirs) ? 'yes' : 'no'}`;
    rows.push([what, ...columnsOf(theirs), ''], ['  lunette', ...columnsOf(ours), verdict]);
  }
  b.table('tcmu-runner’s qcow handler, then ours', ['', 'IOPS', 'MB/s', 'CPU µs each', 'wake-ups each', 'aim'], rows);
}

function columnsOf({ perSecond, bytesPerSecond, cpuUs, wakeups }: Figures): (string | number)[] {
  return [Math.round(perSecond), (bytesPerSecond / 1e6).toFixed(1), Math.round(cpuUs), wakeups.toFixed(2)];
}

/** What fio says, and the daemon's CPU and wake-ups meanwhile. */
async function figuresOf(out: string, daemon: string, load: string): Promise<Figures> {
  const text = await readFile(join(out, `${daemon}.${load}.json`), 'utf8');
  const { jobs } = JSON.parse(text.slice(text.indexOf('{'))) as { jobs: Record<'read' | 'write', Direction>[] };
  const [job] = jobs;
  if (job === undefined) throw new Error(`${daemon}.${load}.json has no job`);
  const { iops, bw_bytes, total_ios } = job.read.total_ios > 0 ? job.read : job.write;
  const [ticks = 0, wakeups = 0] = (await readFile(join(out, `${daemon}.${load}.cost`), 'utf8')).split(' ').map(Number);
  const each = Math.max(1, total_ios);
  return {
    perSecond: iops,
    bytesPerSecond: bw_bytes,
    cpuUs: ((ticks / CLOCK_TICKS) * 1e6) / each,
    wakeups: wakeups / each,
  };
}

interface Direction {
  readonly iops: number;
  readonly bw_bytes: number;
  readonly total_ios: number;
}
