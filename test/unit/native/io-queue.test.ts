import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { IoVec } from '../../../formats/core/iov.ts';
import { native } from '../../../src/native/binding.ts';
import { systemError } from '../../../src/native/errno.ts';
import { IoQueue } from '../../../src/native/io-queue.ts';
import { registerMemory } from '../../../src/native/memory.ts';
import { requireAddon } from '../../support/addon.ts';
import { built } from '../../support/built.ts';
import { PROJECT_ROOT, run, runOk } from '../../support/process.ts';
import { randomFor } from '../../support/random.ts';
import { temporaryFile } from '../../support/temporary.ts';

const skip = requireAddon();

function makeQueue(t: TestContext, threads = 4): IoQueue {
  const queue = new IoQueue({ threads });
  t.after(() => queue.close());
  return queue;
}

async function makeFile(t: TestContext, bytes = new Uint8Array(0)): Promise<{ fd: number; path: string }> {
  const path = await temporaryFile(t, 'file', bytes);
  const fd = openSync(path, 'r+');
  t.after(() => closeSync(fd));
  return { fd, path };
}

test('10,000 mixed requests at once come back right, each once', { skip }, async (t) => {
  const random = randomFor(t);
  const queue = makeQueue(t);
  const cells = 512;
  const cell = 4096;
  const { fd } = await makeFile(t, new Uint8Array(cells * cell));
  const { operations } = queue;
  // What each cell holds; requests on one cell follow each other, those on different cells do not wait.
  const model = new Uint8Array(cells);
  const last: Promise<void>[] = Array.from({ length: cells }, () => Promise.resolve());
  const registered = random.bytes(64 * cell);
  registerMemory(registered);
  let completions = 0;

  const step = async (index: number): Promise<void> => {
    const at = index * cell;
    const what = random.below(20);
    if (what < 9) {
      const iov = new IoVec();
      const slot = random.below(60);
      if (random.chance(0.5)) iov.append(registered.subarray(slot * cell, (slot + 1) * cell)).append(new Uint8Array(0));
      else for (let left = cell; left > 0; ) left -= append(iov, Math.min(left, random.between(1, 2000)));
      // The registered memory may be in use by other reads: only private memory has a known content.
      const isPrivate = iov.count > 1;
      assert.equal(await queue.readv(fd, at, iov), cell);
      if (isPrivate) assert.ok(iov.contiguous().every((byte) => byte === model[index]));
    } else if (what < 15) {
      const value = random.below(256);
      assert.equal(await queue.writev(fd, at, IoVec.of(new Uint8Array(cell).fill(value))), cell);
      model[index] = value;
    } else if (what < 17) {
      const result = await queue.range(operations.punchHole, fd, at, cell);
      if (result === 0) model[index] = 0;
    } else if (what < 18) {
      assert.ok((await queue.range(operations.seekData, fd, at, 0)) >= -6);
    } else if (what < 19) {
      assert.equal(await queue.range(operations.seekHole, -1, at, 0), -9);
    } else if (index % 16 === 0) {
      assert.equal(await queue.range(operations.dataSync, fd, 0, 0), 0);
    }
    completions++;
  };
  const all: Promise<void>[] = [];
  for (let i = 0; i < 10_000; i++) {
    const index = random.below(cells);
    const next = (last[index] as Promise<void>).then(() => step(index));
    last[index] = next;
    all.push(next);
  }
  await Promise.all(all);
  assert.equal(completions, 10_000);
  assert.equal(queue.inFlight, 0);
  for (let index = 0; index < cells; index++) {
    const memory = new Uint8Array(cell);
    await queue.readv(fd, index * cell, IoVec.of(memory));
    assert.ok(
      memory.every((byte) => byte === model[index]),
      `cell ${index}`,
    );
  }
});

function append(iov: IoVec, length: number): number {
  iov.append(new Uint8Array(length));
  return length;
}

test('requests of one tick complete whatever their number, more than a batch and more than a completion block', {
  skip,
}, async (t) => {
  const queue = makeQueue(t, 2);
  const { fd } = await makeFile(t, new Uint8Array(4096).fill(3));
  const memories = Array.from({ length: 5000 }, () => new Uint8Array(100));
  const results = await Promise.all(memories.map((memory) => queue.readv(fd, 0, IoVec.of(memory))));
  assert.ok(results.every((result) => result === 100));
  assert.ok(memories.every((memory) => memory[99] === 3));
});

test('errors are negative errnos that have the names of the system', { skip }, async (t) => {
  const queue = makeQueue(t);
  const result = await queue.writev(12345, 0, IoVec.of(new Uint8Array(1)));
  assert.equal(systemError(result, 'pwritev').code, 'EBADF');
  assert.equal(systemError(result, 'pwritev').message, 'EBADF: bad file descriptor, pwritev');
});

test('a read at the end of the file gives the bytes that there are', { skip }, async (t) => {
  const queue = makeQueue(t);
  const { fd } = await makeFile(t, new Uint8Array(10));
  assert.equal(await queue.readv(fd, 4, IoVec.of(new Uint8Array(4)).append(new Uint8Array(90))), 6);
  assert.equal(await queue.readv(fd, 10, IoVec.of(new Uint8Array(4))), 0);
});

test('the kernel copies between files, whole or as far as the source goes, and what it refuses is read and written', {
  skip,
}, async (t) => {
  const queue = makeQueue(t);
  const bytes = new Uint8Array(randomFor(t).bytes(700_001));
  const source = await makeFile(t, bytes);
  const appended = await makeFile(t);
  const target = openSync(appended.path, 'a'); // copy_file_range does not append
  t.after(() => closeSync(target));
  const plain = await makeFile(t, new Uint8Array(3));
  const { copyRange } = queue.operations;
  assert.equal(await queue.copy(copyRange, source.fd, 1, plain.fd, 3, 1_000_000), 700_000);
  assert.deepEqual(readFileSync(plain.path).subarray(3), Buffer.from(bytes.subarray(1)));
  assert.equal(await queue.copy(copyRange, source.fd, 5, target, 0, 600_000), 600_000);
  assert.deepEqual(readFileSync(appended.path), Buffer.from(bytes.subarray(5, 600_005)));
});

test('a segment outside its memory is refused before anything is submitted', { skip }, async (t) => {
  const queue = makeQueue(t);
  const iov = IoVec.of(new Uint8Array(10), 5, 6);
  await assert.rejects(queue.readv(0, 0, iov), RangeError);
  await assert.rejects(queue.readv(0, 0, IoVec.of(new Uint8Array(10), -1, 6)), RangeError);
  assert.equal(queue.inFlight, 0);
});

test('slow operations leave a thread to reads', { skip }, async (t) => {
  const queue = makeQueue(t, 2);
  const { fd } = await makeFile(t, new Uint8Array(4096));
  const order: string[] = [];
  const syncs = Array.from({ length: 20 }, () =>
    queue.range(queue.operations.dataSync, fd, 0, 0).then(() => order.push('sync')),
  );
  const read = queue.readv(fd, 0, IoVec.of(new Uint8Array(10))).then(() => order.push('read'));
  await Promise.all([...syncs, read]);
  assert.ok(order.indexOf('read') < 19, 'the read came after all syncs');
});

test('the number of threads can be changed while requests run', { skip }, async (t) => {
  const queue = makeQueue(t, 1);
  const { fd } = await makeFile(t, new Uint8Array(4096));
  for (const threads of [8, 2, 1, 3]) {
    const reads = Array.from({ length: 100 }, () => queue.readv(fd, 0, IoVec.of(new Uint8Array(16))));
    queue.setThreads(threads);
    assert.equal(queue.threads, threads);
    assert.ok((await Promise.all(reads)).every((result) => result === 16));
  }
  assert.throws(() => queue.setThreads(0), RangeError);
  assert.throws(() => new IoQueue({ threads: 1.5 }), RangeError);
});

test('close waits for what is in flight, and later requests reject', { skip }, async (t) => {
  const queue = new IoQueue({ threads: 2 });
  const { fd, path } = await makeFile(t);
  const writes = Array.from({ length: 50 }, (_, i) => queue.writev(fd, i, IoVec.of(Uint8Array.of(i + 1))));
  await Promise.all([queue.close(), queue.close()]);
  assert.deepEqual(await Promise.all(writes), new Array(50).fill(1));
  assert.deepEqual(
    [...readFileSync(path)],
    Array.from({ length: 50 }, (_, i) => i + 1),
  );
  await assert.rejects(queue.readv(fd, 0, IoVec.of(new Uint8Array(1))), TypeError);
});

test('an operation tells its clock how long it took before its promise resolves', { skip }, async (t) => {
  const queue = makeQueue(t);
  const { fd } = await makeFile(t);
  const noted: number[] = [];
  await queue.writev(fd, 0, IoVec.of(new Uint8Array(1 << 20)), { note: (us) => noted.push(us) });
  assert.equal(noted.length, 1);
  assert.ok((noted[0] as number) > 0 && (noted[0] as number) < 10e6);
});

/** A program that uses the queue, run by a process of its own. */
function program(body: string): string[] {
  const script = `
    import { openSync } from 'node:fs';
    import { IoVec } from '${built('formats/core/iov.js')}';
    import { IoQueue } from '${built('src/native/io-queue.js')}';
    const fd = openSync(process.argv[1], 'r+');
    const queue = new IoQueue();
    const write = (i) => queue.writev(fd, i * 65536, IoVec.of(new Uint8Array(65536).fill(i + 1)));
    ${body}`;
  return ['--input-type=module', '-e', script];
}

test('a process ends when nothing is in flight, and not before', { skip }, async (t) => {
  const { path } = await makeFile(t);
  const output = await runOk(process.execPath, [
    ...program(`write(0).then(() => { console.log('written'); return write(1); }).then((n) => console.log(n));`),
    path,
  ]);
  assert.equal(output, 'written\n65536\n');
});

test('a process may exit with writes on their way: none of them had completed', { skip }, async (t) => {
  const { path } = await makeFile(t);
  for (let i = 0; i < 5; i++) {
    const result = await run(process.execPath, [
      ...program(`for (let i = 0; i < 100; i++) write(i); queueMicrotask(() => process.exit(3));`),
      path,
    ]);
    assert.equal(result.status, 3, result.stderr);
    assert.equal(result.stderr, '');
  }
});

test('an exception in a completion is an uncaught exception, not a crash', { skip }, async (t) => {
  const { path } = await makeFile(t);
  const result = await run(process.execPath, [
    ...program(`
      process.on('uncaughtException', (error) => { console.log(error.message); });
      queue.writev(fd, 0, IoVec.of(new Uint8Array(1)), { note() { throw new Error('from the clock'); } });
      setTimeout(() => process.exit(0), 200);`),
    path,
  ]);
  assert.equal(result.stdout, 'from the clock\n');
  assert.equal(result.status, 0, result.stderr);
});

test('a worker thread has a queue of its own, and may end with requests in flight', { skip }, async (t) => {
  const { path, fd } = await makeFile(t);
  writeSync(fd, new Uint8Array(4096));
  for (const how of ['return', 'process.exit()'] as const) {
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads');
       const { openSync } = require('node:fs');
       const binding = require(workerData.addon);
       const completions = new Float64Array(30);
       const queue = binding.queueCreate(2, completions, () => {});
       const memory = new Uint8Array(4096);
       const file = openSync(workerData.path, 'r+');
       const words = new Float64Array(10 * 200);
       for (let i = 0; i < 200; i++)
         words.set([binding.operations.write, i, file, 0, 0, -1, 0, 1, binding.addressOf(memory), 4096], i * 10);
       binding.queueSubmit(queue, words, words.length);
       if (workerData.how !== 'return') process.exit();`,
      { eval: true, workerData: { addon: `${PROJECT_ROOT}native/build/Release/lunette.node`, path, how } },
    );
    const [code] = (await new Promise((resolve, reject) => {
      worker.once('error', reject);
      worker.once('exit', (...args) => resolve(args));
    })) as [number];
    assert.equal(code, 0);
  }
});

test('collecting queues that nobody closed leaves nothing running', { skip }, async (t) => {
  const { path } = await makeFile(t);
  const output = await runOk(process.execPath, [
    '--expose-gc',
    ...program(`
      const { readdirSync } = await import('node:fs');
      const threads = () => readdirSync('/proc/self/task').length;
      const before = threads();
      const binding = (await import('${built('src/native/binding.js')}')).native;
      for (let i = 0; i < 5; i++) binding.queueCreate(4, new Float64Array(30), () => {});
      for (let i = 0; i < 50 && threads() > before; i++) { gc(); await new Promise((resolve) => setTimeout(resolve, 20)); }
      console.log(threads() - before); await queue.close();`),
    path,
  ]);
  assert.equal(output, '0\n');
});

test('memory of a request in flight is not collected, though its user lets go of it', { skip }, async (t) => {
  const { path } = await makeFile(t, new Uint8Array(100));
  const output = await runOk(process.execPath, [
    '--expose-gc',
    ...program(`
      const held = () => { gc(); return process.memoryUsage().arrayBuffers > (64 << 20); };
      const submit = () => {
        const iov = new IoVec().append(new Uint8Array(64 << 20)).append(new Uint8Array(64 << 20));
        const reading = queue.readv(fd, 0, iov);
        iov.clear();
        return reading;
      };
      const reading = submit();
      console.log(held() && process.memoryUsage().arrayBuffers > (128 << 20));
      console.log(await reading);
      // The collector sweeps array buffers on a thread of its own: it may take a moment until they no longer count.
      const until = Date.now() + 20_000;
      while (held() && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 5));
      console.log(held());`),
    path,
  ]);
  assert.equal(output, 'true\n100\nfalse\n');
});

test('a batch that ends within a request is refused whole', { skip }, () => {
  const binding = native as NonNullable<typeof native>;
  const queue = binding.queueCreate(1, new Float64Array(30), () => {});
  const words = new Float64Array([0, 0, -1, 0, 0, -1, 0, 5, 0, 0]);
  assert.throws(() => binding.queueSubmit(queue, words, 10), RangeError);
  assert.throws(() => binding.queueSubmit(queue, words, 11), RangeError);
  assert.throws(() => binding.queueSubmit(queue, words, 3), RangeError);
  words[7] = 2 ** 40;
  assert.throws(() => binding.queueSubmit(queue, words, 10), RangeError);
  binding.queueClose(queue);
  assert.throws(() => binding.queueSubmit(queue, words, 0), TypeError);
});
