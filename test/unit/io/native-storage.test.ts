import assert from 'node:assert/strict';
import { readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { MemoryStorage } from '../../../formats/storage/memory.ts';
import { type NativeStorage, openNativeStorage, WritePace } from '../../../src/io/native-storage.ts';
import { directoryFacts } from '../../../src/native/facts.ts';
import { IoQueue } from '../../../src/native/io-queue.ts';
import { requireAddon } from '../../support/addon.ts';
import { memoryFolder } from '../../support/memory-folder.ts';
import { mountMade } from '../../support/mounts.ts';
import { run, runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { cannotRun, findProgram, requires } from '../../support/requires.ts';
import { temporaryFile } from '../../support/temporary.ts';

const skip = requireAddon();
const facts = skip === false ? directoryFacts(tmpdir()) : undefined;

/** What this machine's file systems decide is no requirement: skipped without being a failure in CI. */
function only(holds: boolean, reason: string): string | false {
  return holds ? false : reason;
}

async function opened(t: TestContext, bytes: Uint8Array, queue?: IoQueue): Promise<NativeStorage> {
  const path = await temporaryFile(t, 'disk', bytes);
  const storage = await openNativeStorage(path, { readOnly: false, ...(queue === undefined ? {} : { queue }) });
  t.after(() => storage.close());
  return storage;
}

test('cached data is read on the event loop', {
  skip: skip || only(facts?.reads !== 'pool', 'no cached reads here'),
}, async (t) => {
  const storage = await opened(t, new Uint8Array(1 << 20).fill(7));
  const memory = new Uint8Array(1 << 20);
  assert.equal(storage.tryReadv(0, IoVec.of(memory)), true);
  assert.ok(memory.every((byte) => byte === 7));
  // Past the end, partly and wholly.
  assert.equal(storage.tryReadv((1 << 20) - 10, IoVec.of(memory, 0, 20)), true);
  assert.deepEqual(memory.subarray(0, 20), new Uint8Array(20).fill(7, 0, 10));
  assert.equal(storage.tryReadv(5 << 20, IoVec.of(memory, 0, 20)), true);
  assert.deepEqual(memory.subarray(0, 20), new Uint8Array(20));
});

test('data that is not cached is left to the pool', {
  skip:
    skip || only(facts?.reads === 'cached', 'no cached reads here') || only(findProgram('dd') !== undefined, 'no dd'),
}, async (t) => {
  const notCached = async (): Promise<NativeStorage> => {
    const storage = await opened(t, new Uint8Array(8 << 20).fill(7));
    await storage.sync();
    // dd's way to say POSIX_FADV_DONTNEED.
    await runOk('dd', [`of=${storage.path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0']);
    return storage;
  };
  const storage = await notCached();
  const memory = new Uint8Array(4096);
  const misses = Array.from({ length: 64 }, (_, i) => storage.tryReadv(i * 131_072, IoVec.of(memory))).filter(
    (hit) => !hit,
  );
  assert.ok(misses.length > 32, `${misses.length} of 64 missed`);
  // What the pool has read is cached now, and what lies behind it is not: a longer read stops in the middle. In a file of its own, for the kernel
  // reads on, behind each read that misses.
  const other = await notCached();
  await other.readv(0, IoVec.of(memory));
  assert.equal(other.tryReadv(0, IoVec.of(memory)), true);
  const much = new Uint8Array(8 << 20);
  assert.equal(other.tryReadv(0, IoVec.of(much)), false);
  await other.readv(0, IoVec.of(much));
  assert.equal(much.indexOf(0), -1);
});

test('small writes of whole pages are made on the event loop, past the end as well, others are not', {
  skip: skip || only(facts?.fileSystem === 'ext4', 'the rule is for file systems like ext4'),
}, async (t) => {
  const storage = await opened(t, new Uint8Array(1 << 20));
  const write = (offset: number, length: number): boolean =>
    storage.tryWritev(offset, IoVec.of(new Uint8Array(length).fill(1)));
  // A write on a busy machine may be slow, and is followed by a pause: what is refused below must be refused in any case.
  assert.equal(write(0, 4096), true);
  for (const [offset, length] of [
    [0, 128 * 1024],
    [512, 4096],
    [0, 512],
    [1 << 20, 128 * 1024],
    [(1 << 20) - 512, 4096],
  ] as const) {
    assert.equal(write(offset, length), false, `${length} at ${offset}`);
  }
  assert.equal(storage.size, 1 << 20);
  assert.equal((await readFile(storage.path)).indexOf(0), 4096);
  if (!write(1 << 20, 4096)) return; // in the pause after a slow one
  assert.equal(storage.size, (1 << 20) + 4096);
  assert.deepEqual((await readFile(storage.path)).subarray(1 << 20), Buffer.from(new Uint8Array(4096).fill(1)));
});

test('a slow write stops writes on the event loop until 32 quick ones have passed', () => {
  const pace = new WritePace();
  assert.equal(pace.isQuick, true);
  pace.note(999);
  assert.equal(pace.isQuick, true);
  pace.note(1000);
  for (let i = 0; i < 31; i++) pace.note(10);
  assert.equal(pace.isQuick, false);
  pace.note(10);
  assert.equal(pace.isQuick, true);
});

/** A queue whose fdatasync fails once, as after a lost write. */
class FailingQueue extends IoQueue {
  syncs = 0;
  override range(operation: number, fd: number, offset: number, length: number): Promise<number> {
    if (operation !== this.operations.dataSync) return super.range(operation, fd, offset, length);
    return this.syncs++ === 0 ? Promise.resolve(-5) : super.range(operation, fd, offset, length);
  }
}

test('a failed sync is final: later syncs fail, too', { skip }, async (t) => {
  const queue = new FailingQueue({ threads: 1 });
  const storage = await opened(t, new Uint8Array(10), queue);
  const error = { code: 'IO', errno: 'EIO', path: storage.path };
  await assert.rejects(storage.sync(), error);
  await assert.rejects(storage.sync(), error);
  assert.equal(queue.syncs, 1);
  await storage.close();
  await queue.close();
});

test('copyFrom copies between files, grows the target, and stops where the source ends', { skip }, async (t) => {
  const random = randomFor(t);
  const bytes = random.bytes(300_001);
  const source = await opened(t, bytes);
  const target = await opened(t, new Uint8Array(10));
  for (const [from, to, length] of [
    [0, 0, 262_144],
    [262_144, 262_144, 100_000],
    [17, 500_000, 1000],
  ] as const) {
    const done = await target.copyFrom(source, from, to, length);
    const expected = Math.min(length, bytes.length - from);
    // Some file systems cannot: then nothing is copied, and that is said.
    assert.ok(done === expected || done === 0, `copied ${done}`);
    if (done === 0) continue;
    const back = new Uint8Array(done);
    await target.readv(to, IoVec.of(back));
    assert.deepEqual(back, bytes.subarray(from, from + done));
    assert.ok(target.size >= to + done);
  }
  assert.equal(await target.copyFrom(new MemoryStorage({ bytes }), 0, 0, 100), 0);
});

test('discard and zeroing with unmap give space back; zeroing without keeps it', {
  skip: skip || only(facts?.punchesHoles === true && facts.zeroesRanges, 'no holes here'),
}, async (t) => {
  const size = 1 << 20;
  const storage = await opened(t, new Uint8Array(size).fill(1));
  await storage.sync();
  const allocated = async (): Promise<number> => (await stat(storage.path)).blocks * 512;
  const full = await allocated();
  assert.equal(await storage.writeZeroes(0, 262_144, false), true);
  assert.equal(await allocated(), full);
  assert.equal(await storage.writeZeroes(0, 262_144, true), true);
  assert.equal(await allocated(), full - 262_144);
  assert.equal(await storage.discard(262_144, 262_144), true);
  assert.equal(await allocated(), full - 524_288);
  assert.equal(await storage.discard(size - 4096, 1 << 30), true);
  assert.equal((await stat(storage.path)).size, size);
  // Past the end the file grows, as it does when zeros are written.
  assert.equal(await storage.writeZeroes(size, 8192, true), true);
  assert.equal(await storage.writeZeroes(size + 8192, 8192, false), true);
  assert.equal((await stat(storage.path)).size, size + 16_384);
  assert.equal(storage.size, size + 16_384);
});

test('in memory, writes up to 1 MiB and reads are made on the event loop', {
  skip: skip || only(memoryFolder !== undefined, 'no tmpfs'),
}, async (t) => {
  const path = join(memoryFolder as string, `lunette-test-${process.pid}-${Date.now()}`);
  await writeFile(path, '');
  await truncate(path, 4 << 20);
  t.after(() => runOk('rm', ['-f', path]));
  const storage = await openNativeStorage(path, { readOnly: false });
  t.after(() => storage.close());
  const bytes = new Uint8Array(1 << 20).fill(3);
  assert.equal(storage.tryWritev(12_345, IoVec.of(bytes)), true);
  const back = new Uint8Array(1 << 20);
  assert.equal(storage.tryReadv(12_345, IoVec.of(back)), true);
  assert.deepEqual(back, bytes);
  assert.equal(storage.tryWritev((4 << 20) - 10, IoVec.of(bytes, 0, 128 * 1024)), false);
  assert.equal(storage.tryWritev((4 << 20) - 10, IoVec.of(bytes, 0, 11)), true);
  assert.equal(storage.size, (4 << 20) + 1);
});

for (const [make, name, noWaitWrites] of [
  ['mkfs.xfs', 'xfs', true],
  ['mkfs.btrfs', 'btrfs', undefined],
] as const) {
  test(`on ${name} copies share blocks, the holder of a lock is found, writes that would not wait are made now`, {
    skip,
  }, async (t) => {
    const folder = await mountMade(t, make);
    if (folder === undefined) return cannotRun(t, `${name} cannot be made or mounted here`);
    const here = directoryFacts(folder);
    assert.equal(here?.fileSystem, name);
    if (noWaitWrites !== undefined) assert.equal(here.noWaitWrites, noWaitWrites);
    const path = join(folder, 'a');
    await writeFile(path, new Uint8Array(1 << 20).fill(1));
    const source = await openNativeStorage(path, { readOnly: false });
    t.after(() => source.close());
    // btrfs knows the flag and mostly says that it would wait.
    if (noWaitWrites === true) {
      // A write that has to change the modification time would wait for a transaction: once a tick of the clock.
      let done = false;
      for (let i = 0; i < 100 && !done; i++) {
        await source.writev(100, IoVec.of(new Uint8Array(100).fill(3)));
        done = source.tryWritev(100, IoVec.of(new Uint8Array(100).fill(2)));
      }
      assert.ok(done, 'no write was made on the event loop');
      assert.deepEqual((await readFile(path)).subarray(99, 201), Buffer.alloc(102, 1).fill(2, 1, 101));
    }
    await writeFile(join(folder, 'b'), '');
    const target = await openNativeStorage(join(folder, 'b'), { readOnly: false });
    t.after(() => target.close());
    await source.sync();
    assert.equal(await target.copyFrom(source, 0, 0, 1 << 20), 1 << 20);
    assert.ok((await readFile(join(folder, 'b'))).equals(await readFile(path)), 'the copy differs');
    if (findProgram('filefrag') !== undefined) {
      assert.match(await runOk('filefrag', ['-v', join(folder, 'b')]), /shared/);
    }
    // Locks are found by what the descriptor is: btrfs shows another device in /proc/locks than stat does.
    await source.lock('write');
    const second = await openNativeStorage(path, { readOnly: true });
    t.after(() => second.close());
    await assert.rejects(second.lock('read'), {
      code: 'LOCKED',
      message: /this program has it open already, which writes it/,
    });
  });
}

test('a block device has its size, zeroes and discards, and cannot be resized', {
  skip: skip || requires.root() || requires.that(findProgram('losetup') !== undefined, 'no losetup'),
}, async (t) => {
  const image = await temporaryFile(t, 'device', new Uint8Array(4 << 20).fill(1));
  const made = await run('losetup', ['--find', '--show', image]);
  if (made.status !== 0) return cannotRun(t, `no loop device: ${made.stderr}`);
  const device = made.stdout.trim();
  t.after(() => runOk('losetup', ['-d', device]));
  const storage = await openNativeStorage(device, { readOnly: false });
  t.after(() => storage.close());
  assert.equal(storage.size, 4 << 20);
  assert.equal(storage.growsZeroed, false);
  assert.match(storage.id, /^block:\d+:\d+$/);
  const read = async (offset: number, length: number): Promise<Uint8Array> => {
    const memory = new Uint8Array(length);
    if (!storage.tryReadv(offset, IoVec.of(memory))) await storage.readv(offset, IoVec.of(memory));
    return memory;
  };
  assert.equal(await storage.writeZeroes(0, 65_536, false), true);
  assert.equal(await storage.writeZeroes(131_072, 65_536, true), true);
  assert.equal(await storage.writeZeroes(100, 100, true), false);
  assert.equal(await storage.discard(1_000_001, 10), true);
  assert.equal(await storage.discard(2 << 20, 65_536), true);
  const head = await read(0, 262_144);
  for (const [from, to, value] of [
    [0, 65_536, 0],
    [65_536, 131_072, 1],
    [131_072, 196_608, 0],
    [196_608, 262_144, 1],
  ] as const) {
    assert.ok(
      head.subarray(from, to).every((byte) => byte === value),
      `${from} to ${to}`,
    );
  }
  await storage.writev(100, IoVec.of(new Uint8Array(10).fill(9)));
  assert.deepEqual(await read(99, 12), Uint8Array.of(0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0));
  await assert.rejects(storage.writev(4 << 20, IoVec.of(new Uint8Array(512))), { code: 'NO_SPACE' });
  await assert.rejects(storage.resize(1 << 20), { code: 'INVALID' });
  assert.equal(await storage.nextHole(0), storage.size);
  await storage.sync();
  await storage.lock('write');
  const second = await openNativeStorage(device, { readOnly: false });
  t.after(() => second.close());
  assert.equal(second.id, storage.id);
  await assert.rejects(second.lock('write'), { code: 'LOCKED' });
});

test('copyFrom leaves zeros out when told to, in units counted from its start, and writes all else', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  for (const unit of [512, 4096, 1 << 20]) {
    const bytes = random.bytes(3_000_000);
    for (let at = 0; at < bytes.length; at += 512) if (random.chance(0.6)) bytes.fill(0, at, at + 512);
    bytes.fill(0, 1 << 20, (2 << 20) + 1000);
    const source = await opened(t, bytes);
    const target = await opened(t, new Uint8Array(bytes.length));
    const from = random.below(2000);
    const length = bytes.length - from - random.below(2000);
    // Marks show what was written: left out are whole units of zeros, and only they.
    const marks = new Uint8Array(bytes.length).fill(0xee);
    await target.writev(0, IoVec.of(marks));
    assert.equal(await target.copyFrom(source, from, 5, length, unit), length);
    const back = await readFile(target.path);
    for (let at = 0; at < length; at += unit) {
      const end = Math.min(length, at + unit);
      const wanted = bytes.subarray(from + at, from + end);
      const zero = wanted.every((byte) => byte === 0);
      const found = back.subarray(5 + at, 5 + end);
      assert.ok(found.equals(zero ? marks.subarray(at, end) : wanted), `unit ${unit} at ${at}`);
    }
    assert.equal(back.length, bytes.length);
    assert.ok(back.subarray(0, 5).every((byte) => byte === 0xee));
  }
});

test('zeroUnits says of each unit whether it is zeros, and of what is behind the end that it is', {
  skip,
}, async (t) => {
  const random = randomFor(t);
  const bytes = new Uint8Array(1_000_000);
  for (let i = 0; i < 30; i++) bytes[random.below(bytes.length)] = 1;
  const storage = await opened(t, bytes);
  for (const unit of [512, 1000, 4096, 65_536, 300_000]) {
    const offset = random.below(3000);
    const length = bytes.length + 10_000 - offset;
    const out = new Uint8Array(Math.ceil(length / unit)).fill(9);
    assert.equal(await storage.zeroUnits(offset, length, unit, out), true);
    const expected = Array.from(out, (_, i) => {
      const start = offset + i * unit;
      return bytes.subarray(start, Math.min(start + unit, offset + length)).every((byte) => byte === 0) ? 1 : 0;
    });
    assert.deepEqual([...out], expected, `unit ${unit}`);
  }
  await assert.rejects(storage.zeroUnits(0, 4096, 512, new Uint8Array(7)), { code: 'INVALID' });
});

test('compareWith counts the equal bytes before a difference; what is behind an end is zeros', { skip }, async (t) => {
  const random = randomFor(t);
  const bytes = random.bytes(700_000);
  bytes.fill(0, 600_000);
  const one = await opened(t, bytes);
  const same = await opened(t, bytes.slice(0, 600_000));
  assert.equal(await one.compareWith(same, 5, 5, 1_000_000), 1_000_000);
  for (let i = 0; i < 20; i++) {
    const at = random.below(600_000);
    const changed = bytes.slice();
    changed[at] = (changed[at] as number) ^ 1;
    const offset = random.below(at + 1);
    assert.equal(await one.compareWith(await opened(t, changed), offset, offset, bytes.length - offset), at - offset);
  }
  assert.equal(await one.compareWith(null, 0, 600_000, 500_000), 500_000);
  const marked = new Uint8Array(500_000);
  marked[333_333] = 1;
  assert.equal(await (await opened(t, marked)).compareWith(null, 0, 11, 499_000), 333_322);
  assert.equal(one.canCompare(new MemoryStorage()), false);
});
