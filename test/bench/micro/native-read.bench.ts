/** What a file operation costs above its system call: on the event loop through the addon, by Node's own calls, and on the pool. */

import { closeSync, openSync, read, readSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { IoVec } from '../../../formats/core/iov.ts';
import { openFileStorage } from '../../../formats/storage/file.ts';
import { openNativeStorage } from '../../../src/io/native-storage.ts';
import { READ_CACHED, READ_MEMORY, type TransferMode, transferNow, WRITE } from '../../../src/native/direct-io.ts';
import { IoQueue } from '../../../src/native/io-queue.ts';
import { registerMemory } from '../../../src/native/memory.ts';
import { requireAddon } from '../../support/addon.ts';
import { type Bench, bench, median } from '../../support/bench.ts';
import { memoryFolder } from '../../support/memory-folder.ts';
import { Random } from '../../support/random.ts';

const addon = () => requireAddon();
const FILE = 64 * 1024 * 1024;

/** Nanoseconds of CPU per call: the median of some rounds, the first of which warms up. These calls do not wait, and CPU is steady on busy machines. */
function perCall(b: Bench, calls: number, body: (i: number) => void): number {
  const rounds: number[] = [];
  const n = b.pick(Math.min(calls, 20), calls);
  for (let round = 0; round < b.pick(2, 6); round++) {
    const before = process.cpuUsage();
    for (let i = 0; i < n; i++) body(i);
    const { user, system } = process.cpuUsage(before);
    if (round > 0) rounds.push(((user + system) * 1000) / n);
  }
  return median(rounds);
}

async function makeFile(b: Bench, folder: string): Promise<string> {
  const made = await mkdtemp(join(folder, 'lunette-bench-'));
  b.after(() => rm(made, { recursive: true, force: true }));
  const path = join(made, 'file');
  writeFileSync(path, new Random(b.seed).bytes(b.pick(1 << 20, FILE)));
  return path;
}

function offsets(b: Bench, size: number): number[] {
  const random = new Random(b.seed);
  const blocks = Math.floor((b.pick(1 << 20, FILE) - size) / 4096);
  return Array.from({ length: 1024 }, () => random.below(blocks + 1) * 4096);
}

bench(
  'native/read-now',
  async (b) => {
    for (const [place, folder] of [
      ['disk, cached', tmpdir()],
      ['memory', memoryFolder],
    ] as const) {
      if (folder === undefined) continue;
      const path = await makeFile(b, folder);
      const fd = openSync(path, 'r+');
      b.after(() => closeSync(fd));
      const mode: TransferMode = folder === memoryFolder ? READ_MEMORY : READ_CACHED;
      const plain = new Uint8Array(1 << 20);
      const registered = new Uint8Array(1 << 20);
      registerMemory(registered);
      const at = offsets(b, 1 << 20);
      const at4 = offsets(b, 4096);
      const four = IoVec.of(registered, 0, 4096);
      const sixteen = new IoVec();
      for (let i = 0; i < 16; i++) sixteen.append(registered, i * 8192, 4096);
      const storage = await openNativeStorage(path, { readOnly: false });
      b.after(() => storage.close());
      const ns = (value: number): string => `${value.toFixed(0)} ns`;
      const rows: [string, string][] = [
        // A descriptor that is none: the system call returns at once, what is left is the way there and back.
        ['no work (EBADF), 4 KiB', ns(perCall(b, 200_000, () => transferNow(mode, -1, 0, four)))],
        ['4 KiB, known memory', ns(perCall(b, 100_000, (i) => transferNow(mode, fd, at4[i & 1023] as number, four)))],
        [
          '4 KiB, other memory',
          ns(perCall(b, 100_000, (i) => transferNow(mode, fd, at4[i & 1023] as number, IoVec.of(plain, 0, 4096)))),
        ],
        ['4 KiB, storage.tryReadv', ns(perCall(b, 100_000, (i) => storage.tryReadv(at4[i & 1023] as number, four)))],
        ['4 KiB, fs.readSync', ns(perCall(b, 100_000, (i) => readSync(fd, plain, 0, 4096, at4[i & 1023] as number)))],
        [
          '64 KiB in 16 segments',
          ns(perCall(b, 20_000, (i) => transferNow(mode, fd, at[i & 1023] as number, sixteen))),
        ],
        ['1 MiB', ns(perCall(b, 1000, (i) => transferNow(mode, fd, at[i & 1023] as number, IoVec.of(registered))))],
        ['write 4 KiB', ns(perCall(b, 20_000, (i) => transferNow(WRITE, fd, at4[i & 1023] as number, four)))],
        ['write 64 KiB', ns(perCall(b, 2000, (i) => transferNow(WRITE, fd, at[i & 1023] as number, sixteen)))],
        [
          'write 1 MiB',
          ns(perCall(b, 100, (i) => transferNow(WRITE, fd, at[i & 1023] as number, IoVec.of(registered)))),
        ],
      ];
      b.table(`CPU per call, ${place}`, ['', 'time'], rows);
    }
  },
  addon,
);

bench(
  'native/read-pool',
  async (b) => {
    const path = await makeFile(b, tmpdir());
    const fd = openSync(path, 'r');
    b.after(() => closeSync(fd));
    const queue = new IoQueue();
    b.after(() => queue.close());
    const fallback = await openFileStorage(path, { readOnly: true });
    b.after(() => fallback.close());
    const at = offsets(b, 4096);
    const rows: string[][] = [];
    for (const depth of [1, 32]) {
      const ways: Record<string, (memory: Uint8Array, iov: IoVec, offset: number) => Promise<unknown>> = {
        'I/O queue': (_memory, iov, offset) => queue.readv(fd, offset, iov),
        'fs.read': (memory, _iov, offset) =>
          new Promise((resolve) => {
            read(fd, memory, 0, 4096, offset, resolve);
          }),
        'FileStorage.readv': (_memory, iov, offset) => fallback.readv(offset, iov),
      };
      for (const [name, way] of Object.entries(ways)) {
        const total = b.pick(200, depth === 1 ? 20_000 : 100_000);
        const times: number[] = [];
        const cpu: number[] = [];
        for (let round = 0; round < b.pick(1, 4); round++) {
          let left = total;
          const before = process.cpuUsage();
          const start = process.hrtime.bigint();
          await Promise.all(
            Array.from({ length: depth }, async () => {
              const memory = new Uint8Array(4096);
              const iov = IoVec.of(memory);
              while (left-- > 0) await way(memory, iov, at[left & 1023] as number);
            }),
          );
          times.push(Number(process.hrtime.bigint() - start) / total / 1000);
          const used = process.cpuUsage(before);
          cpu.push((used.user + used.system) / total);
        }
        rows.push([`${name}, depth ${depth}`, `${median(times).toFixed(2)} µs`, `${median(cpu).toFixed(2)} µs`]);
      }
    }
    b.table('4 KiB reads of cached data on threads', ['', 'per read', 'CPU'], rows);
  },
  addon,
);
