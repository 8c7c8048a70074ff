import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IoVec } from '../../../formats/core/iov.ts';
import { Arena, CHUNK_SIZE, type Chunk, ChunkPool, ChunkShare } from '../../../src/wire/chunk-pool.ts';
import { type Batch, Output } from '../../../src/wire/output.ts';

function setUp(): { pool: ChunkPool; share: ChunkShare; output: Output; batches: Batch[] } {
  const pool = new ChunkPool(8 * CHUNK_SIZE);
  const share = new ChunkShare(pool, 4 * CHUNK_SIZE);
  const batches: Batch[] = [];
  const output = new Output(share, { write: (batch) => void batches.push(batch) });
  return { pool, share, output, batches };
}

/** Puts text at the tail and queues it. */
function say(output: Output, text: string): void {
  output.ensure(text.length).memory.set(Buffer.from(text), output.at);
  output.commit(text.length);
}

function textOf(batch: Batch): string[] {
  return Array.from({ length: batch.count }, (_, i) => Buffer.from(batch.piece(i)).toString());
}

test('what is queued in one tick goes out as one piece', () => {
  const { output, batches } = setUp();
  say(output, 'one ');
  say(output, 'two');
  output.flush();
  output.flush();
  assert.equal(batches.length, 1);
  assert.deepEqual(textOf(batches[0] as Batch), ['one two']);
  assert.deepEqual([output.queued, output.pending, output.sent], [7, 0, 0]);
  batches[0]?.taken();
  assert.deepEqual([output.queued, output.sent], [0, 7]);
});

test('bytes that were set aside go out when they are pushed, not before', () => {
  const { output, batches, pool } = setUp();
  output.ensure(4).memory.set(Buffer.from('late'), output.at);
  const start = output.at;
  const chunk: Chunk = output.setAside(4);
  say(output, 'early');
  output.flush();
  assert.deepEqual(textOf(batches[0] as Batch), ['early']);
  batches[0]?.taken();
  assert.equal(pool.used, CHUNK_SIZE, 'the late bytes still hold their chunk');
  output.push(chunk, start, start + 4);
  output.flush();
  assert.deepEqual(textOf(batches[1] as Batch), ['late']);
  batches[1]?.taken();
  assert.equal(pool.used, 0);
});

test('pieces in neighbouring places are one piece, in whichever way they were queued', () => {
  const { output, batches, pool } = setUp();
  say(output, 'ab');
  output.ensure(2).memory.set(Buffer.from('cd'), output.at);
  const start = output.at;
  const chunk = output.setAside(2);
  output.push(chunk, start, start + 2);
  say(output, 'ef');
  output.flush();
  assert.deepEqual(textOf(batches[0] as Batch), ['abcdef']);
  batches[0]?.taken();
  assert.equal(pool.used, 0);
});

test('a full chunk is followed by another, and both come back', () => {
  const { output, batches, pool } = setUp();
  output.ensure(CHUNK_SIZE - 10);
  output.commit(CHUNK_SIZE - 10);
  say(output, 'more than ten bytes');
  output.flush();
  assert.deepEqual([batches[0]?.count, batches[0]?.bytes], [2, CHUNK_SIZE + 9]);
  assert.equal(pool.used, 2 * CHUNK_SIZE);
  batches[0]?.taken();
  assert.equal(pool.used, 0);
});

test('a closed output keeps nothing', () => {
  const { output, batches, pool } = setUp();
  say(output, 'sent');
  output.flush();
  say(output, 'queued');
  const chunk = output.ensure(4) && output.setAside(4);
  output.close();
  say(output, 'afterwards');
  output.push(chunk, 0, 4);
  output.flush();
  assert.equal(batches.length, 1);
  batches[0]?.taken();
  assert.equal(pool.used, 0);
  assert.equal(output.queued, 0);
});

test('an arena hands out pieces that do not overlap until they are released', () => {
  const { share, pool } = setUp();
  const arena = new Arena(share);
  const held: Chunk[] = [];
  const iov = new IoVec();
  arena.allocate(100, iov, held);
  arena.allocate(CHUNK_SIZE, iov, held);
  arena.allocate(5, iov, held);
  assert.equal(iov.byteLength, 105 + CHUNK_SIZE);
  iov.fill(0, 100, 1);
  iov.fill(100, CHUNK_SIZE, 2);
  iov.fill(100 + CHUNK_SIZE, 5, 3);
  const all = iov.contiguous();
  assert.ok(all.subarray(0, 100).every((byte) => byte === 1));
  assert.ok(all.subarray(100, 100 + CHUNK_SIZE).every((byte) => byte === 2));
  for (const chunk of held) chunk.release();
  arena.trim();
  assert.equal(pool.used, 0);
});

test('a share is bounded by its own limit and by that of all', () => {
  const { share, pool } = setUp();
  assert.equal(share.allows(4 * CHUNK_SIZE), true);
  assert.equal(share.allows(4 * CHUNK_SIZE + 1), false);
  const other = new ChunkShare(pool, 100 * CHUNK_SIZE);
  for (let i = 0; i < 6; i++) other.take();
  assert.equal(share.allows(2 * CHUNK_SIZE), true);
  assert.equal(share.allows(3 * CHUNK_SIZE), false);
});
