/**
 * Commands of a TCMU ring served from an image: a process that plays the kernel fills the ring, this one serves it with the real device,
 * SCSI and image code. tcmu-runner cannot be put beside it: it serves a kernel only, and in a virtual machine under emulation wakeups
 * hide what either costs.
 */

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { KiB, MiB } from '../../formats/core/units.ts';
import type { ImageHost } from '../../formats/index.ts';
import { createHost } from '../../src/open/host.ts';
import { ScsiDevice } from '../../src/scsi/device.ts';
import { TcmuDevice } from '../../src/tcmu/device.ts';
import { requireAddon } from '../support/addon.ts';
import { type Bench, bench, median } from '../support/bench.ts';
import { MockTcmu } from '../support/mock-tcmu.ts';
import { runOk } from '../support/process.ts';
import { requires } from '../support/requires.ts';
import { requiresCompiler } from '../support/sanitized.ts';
import { makeNexus } from '../support/scsi.ts';
import { temporaryDirectory } from '../support/temporary.ts';

interface Load {
  readonly name: string;
  readonly bytes: number;
  readonly depth: number;
  readonly writes?: boolean;
  /** Share of the operations that a full run makes. */
  readonly share: number;
  /** What is aimed at: commands per second, and CPU in µs for each. */
  readonly aim?: { readonly perSecond: number; readonly cpuUs: number; readonly p99Us: number };
}

const LOADS: readonly Load[] = [
  {
    name: '4 KiB random read, depth 32',
    bytes: 4 * KiB,
    depth: 32,
    share: 1,
    aim: { perSecond: 150_000, cpuUs: 6, p99Us: 1000 },
  },
  { name: '4 KiB random read, depth 1', bytes: 4 * KiB, depth: 1, share: 0.1 },
  { name: '64 KiB random read, depth 8', bytes: 64 * KiB, depth: 8, share: 0.2 },
  { name: '4 KiB random write, depth 32', bytes: 4 * KiB, depth: 32, share: 0.5, writes: true },
  { name: '1 MiB random read, depth 4', bytes: MiB, depth: 4, share: 0.02 },
  { name: '1 MiB random write, depth 4', bytes: MiB, depth: 4, share: 0.02, writes: true },
];

bench(
  'tcmu/ring',
  async (b) => {
    const size = b.pick(4 * MiB, 512 * MiB);
    const folder = await temporaryDirectory(b);
    const raw = join(folder, 'disk.raw');
    const qcow2 = join(folder, 'disk.qcow2');
    const handle = await open(raw, 'w');
    for (let at = 0; at < size; at += 4 * MiB) await handle.write(randomBytes(4 * MiB));
    await handle.close();
    await runOk('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2], { timeoutMs: 300_000 });
    const rows: (string | number)[][] = [];
    for (const [path, format] of [
      [qcow2, 'qcow2'],
      [raw, 'raw'],
    ] as const) {
      rows.push(...(await measure(b, path, format, size)));
    }
    b.table('ring → SCSI → image, one process', ['', 'commands/s', 'CPU µs each', 'p99 µs', 'aim'], rows);
  },
  () => requireAddon() || requiresCompiler() || requires.qemuImg(),
);

/** Commands whose memory is looked at. */
const MANY = 10_000_000;

bench(
  'tcmu/steady',
  async (b) => {
    const host = createHost();
    b.after(() => host.close());
    const { image, kernel, close } = await qcow2Device(
      b,
      host,
      join(await temporaryDirectory(b), 'disk.qcow2'),
      64 * MiB,
    );
    const load = { depth: 32, bytes: 4 * KiB, span: image.size, seed: b.seed };
    // What grows with the first commands stays: slots, compiled code.
    await kernel.bench({ ...load, operations: b.pick(200, MANY / 10) });
    const before = anonymousBytes();
    const operations = b.pick(2000, MANY);
    const { seconds, done, failed, p99Us } = await kernel.bench({ ...load, operations });
    const grown = anonymousBytes() - before;
    await close();
    if (failed > 0 || done !== operations) throw new Error(`${failed} failed, ${done} of ${operations} done`);
    b.table(
      'memory over many commands',
      ['', 'commands', 'commands/s', 'p99 µs', 'RssAnon grew, MiB', 'aim'],
      [['4 KiB random read, depth 32', done, Math.round(done / seconds), p99Us, (grown / MiB).toFixed(1), 'no growth']],
    );
    if (!b.smoke && grown > 16 * MiB) throw new Error(`memory grew by ${grown} bytes`);
  },
  () => requireAddon() || requiresCompiler() || requires.qemuImg(),
);

bench(
  'tcmu/64-devices',
  async (b) => {
    const folder = await temporaryDirectory(b);
    const host = createHost();
    b.after(() => host.close());
    const before = anonymousBytes();
    const devices: Awaited<ReturnType<typeof qcow2Device>>[] = [];
    const count = b.pick(2, 64);
    for (let i = 0; i < count; i++) devices.push(await qcow2Device(b, host, join(folder, `${i}.qcow2`), 16 * MiB, MiB));
    for (const { kernel, image } of devices) {
      await kernel.bench({ operations: b.pick(50, 5000), depth: 16, bytes: 4 * KiB, span: image.size, seed: b.seed });
    }
    const all = anonymousBytes();
    for (const { close } of devices) await close();
    b.table(
      'RssAnon of one process with devices at work (rings, caches of the kernel apart)',
      ['', 'MiB', 'aim'],
      [
        [`the process with ${count} devices`, (all / MiB).toFixed(1), 'under 150'],
        ['of it for each device', ((all - before) / MiB / count).toFixed(2), ''],
      ],
    );
    if (!b.smoke && all > 150 * MiB) throw new Error(`${all} bytes are more than 150 MiB`);
  },
  () => requireAddon() || requiresCompiler() || requires.qemuImg(),
);

/** Anonymous memory of this process, bytes: what it took for itself. */
function anonymousBytes(): number {
  globalThis.gc?.();
  const [, kilobytes = '0'] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? [];
  return Number(kilobytes) * KiB;
}

/** A qcow2 image that is full, on a ring of its own. All images are opened by one host, as in the daemon. */
async function qcow2Device(b: Bench, host: ImageHost, path: string, size: number, regionSize = 16 * MiB) {
  await runOk('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', path, String(size)]);
  const image = await host.open(path, { format: 'qcow2' });
  const kernel = await MockTcmu.start(b, { regionSize, ringSize: 256 * KiB });
  const server = new ScsiDevice({ ports: [] });
  server.addUnit(0, { image, identity: path });
  const { memoryFd, eventFd, kickFd } = kernel;
  const device = new TcmuDevice({
    ...{ memoryFd, eventFd, kickFd, regionSize },
    server,
    nexus: makeNexus(),
    onBroken: (reason) => b.print(reason),
    onGone: () => undefined,
  });
  device.start();
  const close = async (): Promise<void> => {
    await device.close();
    await image.close();
  };
  return { image, kernel, close };
}

async function measure(b: Bench, path: string, format: string, size: number): Promise<(string | number)[][]> {
  const host = createHost();
  const image = await host.open(path, { format });
  const kernel = await MockTcmu.start(b, { regionSize: 64 * MiB, ringSize: MiB });
  const server = new ScsiDevice({ ports: [] });
  server.addUnit(0, { image, identity: 'bench' });
  const { memoryFd, eventFd, kickFd, regionSize } = kernel;
  const device = new TcmuDevice({
    memoryFd,
    eventFd,
    kickFd,
    regionSize,
    server,
    nexus: makeNexus(),
    onBroken: (reason) => b.print(reason),
    onGone: () => undefined,
  });
  device.start();
  const rows: (string | number)[][] = [];
  try {
    for (const { name, bytes, depth, writes, share, aim } of LOADS) {
      const operations = Math.ceil(b.pick(200, 400_000) * share);
      const load = { operations, depth, bytes, span: size, seed: b.seed, ...(writes === true ? { writes } : {}) };
      // Warm: page cache, tables, compiled code.
      await kernel.bench({ ...load, operations: Math.ceil(operations / 4) });
      const rates: number[] = [];
      const costs: number[] = [];
      const tails: number[] = [];
      for (let round = 0; round < b.pick(1, 5); round++) {
        const before = process.cpuUsage();
        const { seconds, done, failed, p99Us } = await kernel.bench(load);
        const { user, system } = process.cpuUsage(before);
        if (failed > 0 || done !== operations)
          throw new Error(`${name}: ${failed} failed, ${done} of ${operations} done`);
        rates.push(done / seconds);
        costs.push((user + system) / done);
        tails.push(p99Us);
      }
      const [rate, cost] = [median(rates), median(costs)];
      const verdict =
        aim === undefined || b.smoke || format !== 'qcow2'
          ? ''
          : `${aim.perSecond}/s, ${aim.cpuUs} µs, p99 ${aim.p99Us} µs`;
      rows.push([`${format}: ${name}`, Math.round(rate), cost.toFixed(2), median(tails), verdict]);
    }
  } finally {
    await device.close();
    await image.close();
    await host.close();
  }
  return rows;
}
