import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { IoVec } from '../../../formats/core/iov.ts';
import { KiB, MiB } from '../../../formats/core/units.ts';
import type { Image } from '../../../formats/index.ts';
import { type BenchOptions, benchImage } from '../../../src/convert/bench.ts';
import { cli } from '../../support/cli.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

/** An image that answers later, and takes notes. */
class NotingImage {
  readonly path = 'noting';
  readonly size = 1 * MiB;
  readonly offsets: number[] = [];
  readonly flushes: { readonly sent: number; readonly busy: number }[] = [];
  busy = 0;
  busiest = 0;
  failAt = -1;

  tryReadv(): boolean {
    return false;
  }

  tryWritev(): boolean {
    return false;
  }

  async readv(offset: number, iov: IoVec): Promise<void> {
    assert.ok(offset + iov.byteLength <= this.size);
    this.offsets.push(offset);
    this.busiest = Math.max(this.busiest, ++this.busy);
    await new Promise((resolve) => setImmediate(resolve));
    this.busy--;
    if (this.offsets.length === this.failAt) throw new Error('broken');
  }

  writev(offset: number, iov: IoVec): Promise<void> {
    return this.readv(offset, iov);
  }

  async flush(): Promise<void> {
    this.flushes.push({ sent: this.offsets.length, busy: this.busy });
  }
}

function bench(image: NotingImage, options: Partial<BenchOptions> = {}) {
  const plain = { count: 100, depth: 8, bufferSize: 4 * KiB, step: 4 * KiB, offset: 0 };
  return benchImage(image as unknown as Image, { ...plain, ...options });
}

test('requests go from offset to offset, as many at a time as is said, and begin again behind the last that fits', async () => {
  const image = new NotingImage();
  const offset = 1 * MiB - 40 * KiB;
  const { requests, latencies } = await bench(image, { offset, step: 16 * KiB, count: 7 });
  assert.equal(requests, 7);
  const [a, b, c] = [offset, offset + 16 * KiB, offset + 32 * KiB];
  assert.deepEqual(image.offsets, [a, b, c, a, b, c, a]);
  assert.equal(image.busiest, 7);
  assert.ok(latencies.p50 <= latencies.p95 && latencies.p95 <= latencies.p99 && latencies.p99 <= latencies.max);
  const other = new NotingImage();
  await bench(other, { depth: 3 });
  assert.equal(other.busiest, 3);
});

test('a flush comes after every so many writes, with nothing in flight unless that is not wanted', async () => {
  const image = new NotingImage();
  await bench(image, { pattern: 1, flushEvery: 25 });
  assert.equal(image.flushes.length, 4);
  assert.ok(image.flushes.every(({ busy }) => busy === 0));
  const other = new NotingImage();
  await bench(other, { pattern: 1, flushEvery: 25, drain: false });
  assert.equal(other.flushes.length, 4);
  assert.ok(other.flushes.some(({ busy }) => busy > 0));
});

test('a request that fails ends the run with its error, when the others have ended', async () => {
  const image = new NotingImage();
  image.failAt = 20;
  await assert.rejects(bench(image), /broken/);
  assert.equal(image.busy, 0);
  assert.ok(image.offsets.length < 100);
});

test('a flush that fails ends the run with its error, also when nobody else waits for it', async () => {
  const image = new NotingImage();
  image.flush = () => Promise.reject(new Error('full'));
  for (const depth of [1, 8]) await assert.rejects(bench(image, { depth, pattern: 1, flushEvery: 5 }), /full/);
});

test('bench writes its pattern and nothing else, and reading changes nothing', async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.raw');
  await writeFile(path, Buffer.alloc(MiB, 1));
  const args = ['-f', 'raw', '-d', '4', '-s', '4k', '-S', '8k', '-o', '64k', '-c', '3'];
  const read = await cli('bench', ...args, path);
  assert.match(
    read.stdout,
    /^Sending 3 read requests, 4096 bytes each, 4 in parallel \(starting at offset 65536, step size 8192\)\nRun completed in \d+\.\d{3} seconds\.\n/,
  );
  assert.deepEqual(await readFile(path), Buffer.alloc(MiB, 1));
  const write = await cli('bench', '-w', '--pattern', '0x41', '--json', ...args, path);
  assert.equal(JSON.parse(write.stdout).requests, 3, write.stderr);
  const expected = Buffer.alloc(MiB, 1);
  for (const at of [64, 72, 80]) expected.fill(0x41, at * KiB, (at + 4) * KiB);
  assert.deepEqual(await readFile(path), expected);
});

test('bench refuses what would have no effect, or does not fit', async (t) => {
  const path = join(await temporaryDirectory(t), 'disk.raw');
  await writeFile(path, Buffer.alloc(MiB, 1));
  for (const args of [
    ['--pattern', '1'],
    ['--flush-interval', '5'],
    ['-w', '--no-drain'],
    ['-d', '0'],
    ['-s', '0'],
    ['-w', '-U'],
  ]) {
    assert.equal((await cli('bench', '-f', 'raw', ...args, path)).status, 2, args.join(' '));
  }
  const { status, stderr } = await cli('bench', '-f', 'raw', '-o', '1M', path);
  assert.equal(status, 1);
  assert.match(stderr, /do not fit into 1048576 \(OUT_OF_RANGE\)/);
});
