/**
 * Lying servers against the client side of NBD: whatever comes, cut anywhere, nothing but ProtocolError is thrown, memory stays bounded, and a
 * read that succeeds holds what the server said, all of it.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LunetteError, ProtocolError } from '../../formats/core/errors.ts';
import { IoVec } from '../../formats/core/iov.ts';
import { type ByteStream, negotiate } from '../../src/nbd/client-handshake.ts';
import type { ReplyMode } from '../../src/nbd/protocol.ts';
import { type Pending, ReplyReader } from '../../src/nbd/reply-reader.ts';
import { chunk, simpleReply, u32, u64 } from '../support/nbd-endpoint.ts';
import { exportInfo, FLAGS, HELLO, honestOption, optionReply } from '../support/nbd-scripted-server.ts';
import { type Random, randomFor } from '../support/random.ts';

const STREAMS = 20_000;
const HANDSHAKES = 5_000;
const NUMBERS = [0, 1, 2, 7, 8, 9, 12, 255, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff];
/** What one connection may make us hold beside the memory of requests. */
const BOUND = 3 << 20;

/** A chunk of a reply in the form that was agreed. */
function piece(mode: ReplyMode, type: number, payload: Uint8Array, cookie: number, done: boolean): Buffer {
  if (mode !== 2) return chunk(type, payload, { cookie, done });
  const head = [u32(0x6e8a278c), Buffer.from([0, done ? 1 : 0, type >> 8, type & 255]), u64(cookie), u64(0)];
  return Buffer.concat([...head, u64(payload.length), payload]);
}

/** What an honest server answers, in pieces and in any order. */
function answer(random: Random, mode: ReplyMode, { type, offset, length }: Pending, cookie: number): Buffer[] {
  if (type === 7) {
    const half = Math.ceil(length / 2);
    const extended = mode === 2;
    const pairs = [
      [half, 0],
      [length, 3],
    ].map(([size = 0, flags = 0]) => Buffer.concat(extended ? [u64(size), u64(flags)] : [u32(size), u32(flags)]));
    const payload = Buffer.concat([u32(1), ...(extended ? [u32(2)] : []), ...pairs]);
    return [piece(mode, extended ? 6 : 5, payload, cookie, true)];
  }
  if (type !== 0) return [mode === 2 ? piece(mode, 0, Buffer.alloc(0), cookie, true) : simpleReply(cookie)];
  const bytes = Buffer.alloc(length, cookie & 255 || 1);
  if (mode === 0) return [Buffer.concat([simpleReply(cookie), bytes])];
  const parts: Buffer[] = [];
  for (let at = 0; at < length; ) {
    const size = Math.min(length - at, 1 + random.below(length));
    parts.push(piece(mode, 1, Buffer.concat([u64(offset + at), bytes.subarray(0, size)]), cookie, false));
    at += size;
  }
  for (let i = parts.length - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [parts[i], parts[other]] = [parts[other] as Buffer, parts[i] as Buffer];
  }
  return [...parts, piece(mode, 0, Buffer.alloc(0), cookie, true)];
}

function damage(bytes: Buffer, random: Random): Buffer {
  if (bytes.length === 0) return bytes;
  for (let i = random.below(4); i > 0; i--) {
    const at = random.below(bytes.length);
    if (random.chance(0.5)) bytes[at] = random.below(256);
    else if (at + 4 <= bytes.length) bytes.writeUInt32BE(random.pick(NUMBERS), at);
  }
  return random.chance(0.1) ? bytes.subarray(0, random.below(bytes.length)) : bytes;
}

test(`${STREAMS} damaged streams of replies: only protocol errors, bounded memory, no read that lacks a part`, async (t) => {
  const random = randomFor(t);
  let [refused, answered] = [0, 0];
  for (let i = 0; i < STREAMS; i++) {
    const mode = random.below(3) as ReplyMode;
    const pending = new Map<number, Pending>();
    const parts: Buffer[] = [];
    for (let cookie = 1 + random.below(5); cookie > 0; cookie--) {
      const type = random.pick(mode === 0 ? [0, 0, 3] : [0, 0, 1, 3, 7]);
      const length = type === 3 ? 0 : 1 + random.below(5000);
      const iov = type === 0 ? IoVec.of(Buffer.alloc(length)) : undefined;
      const request: Pending = {
        type,
        offset: random.below(2) * 2 ** 40,
        length,
        iov,
        received: 0,
        parts: undefined,
        error: undefined,
        descriptors: [],
        resolve: () => {
          answered++;
          // Not one byte is still what it was before.
          if (iov !== undefined && !damaged) assert.ok(!iov.contiguous().includes(0));
          if (type === 0) assert.equal(request.received, length);
        },
        reject: (error) => assert.ok(error instanceof LunetteError),
      };
      pending.set(cookie, request);
      parts.push(...answer(random, mode, request, cookie));
    }
    const damaged = random.chance(0.7);
    const bytes = damaged ? damage(Buffer.concat(parts), random) : Buffer.concat(parts);
    const reader = new ReplyReader(pending, mode, 1);
    const before = process.memoryUsage().arrayBuffers;
    try {
      for (let at = 0; at < bytes.length; ) {
        const step = random.chance(0.5) ? bytes.length : 1 + random.below(40);
        reader.receive(bytes.subarray(at, at + step));
        at += step;
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      assert.ok(damaged, `an honest server was refused: ${error.message}`);
      refused++;
    }
    if (i % 100 === 0) assert.ok(process.memoryUsage().arrayBuffers - before < BOUND);
    if (!damaged) assert.equal(pending.size, 0);
  }
  assert.ok(refused > STREAMS / 10 && answered > STREAMS, `${refused} refused, ${answered} answered`);
});

/** A server that has said all it ever will. */
class Said implements ByteStream {
  /** Asked for more than it has been given. */
  longest = 0;
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  async read(length: number): Promise<Buffer> {
    this.longest = Math.max(this.longest, length);
    this.#at += length;
    if (this.#at > this.#bytes.length) throw new LunetteError('DISCONNECTED', 'the end');
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  write(): void {}

  async startTls(): Promise<void> {}
}

test(`${HANDSHAKES} damaged negotiations end in words, with no more waited for than an answer may have`, async (t) => {
  const random = randomFor(t);
  let agreed = 0;
  for (let i = 0; i < HANDSHAKES; i++) {
    const blocks = Buffer.concat([Buffer.from([0, 3]), u32(1), u32(4096), u32(32 << 20)]);
    const said = [
      HELLO,
      random.chance(0.5) ? optionReply(11, 1) : Buffer.concat([honestOption(11), honestOption(8)]),
      honestOption(10),
      optionReply(7, 3, exportInfo(2 ** random.below(50), FLAGS)),
      optionReply(7, 3, blocks),
      optionReply(7, 1),
    ];
    const stream = new Said(damage(Buffer.concat(said), random));
    try {
      const { size, minBlock, maxPayload } = await negotiate(stream, 'disk', false);
      assert.ok(Number.isSafeInteger(size) && size >= 0);
      assert.ok(minBlock >= 1 && minBlock <= 65536 && maxPayload >= minBlock && maxPayload % minBlock === 0);
      agreed++;
    } catch (error) {
      assert.ok(error instanceof LunetteError, String(error));
    }
    assert.ok(stream.longest <= 64 * 1024);
  }
  assert.ok(agreed > HANDSHAKES / 10 && agreed < HANDSHAKES, `${agreed} agreed`);
});
