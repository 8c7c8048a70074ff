import { createHash, webcrypto } from 'node:crypto';
import { LunetteError } from '../../formats/core/errors.ts';
import { divideUp, MiB } from '../../formats/core/units.ts';
import { isZero } from '../io/native.ts';
import { ChunkMemory } from './chunk-memory.ts';
import { type DiskSource, listOf, readDisk } from './disk.ts';
import { type Chunk, ChunkJoiner, dataRuns } from './runs.ts';
import { StreamChecksum } from './stream-checksum.ts';

export type ChecksumAlgorithm = 'blk-sha256' | 'sha256';

export interface ChecksumOptions {
  readonly signal?: AbortSignal | undefined;
  readonly progress?: ((done: number) => void) | undefined;
}

const BLOCK = 1 * MiB;
const FAN_OUT = 256;
/** Blocks that are being hashed, or read, at the same time. */
const PARALLEL = 16;
/** What goes in front of the bytes that are hashed, so that a node cannot be taken for a block. */
const NODE = 1;
const ROOT = 2;

/**
 * The checksum of what a guest sees of a disk: the same for the same content in whatever format.
 *
 * `sha256` is that of the whole stream. `blk-sha256` is the tree of docs/checksum.md: what is a hole, or zeros, is not hashed, and the
 * rest is hashed on all cores.
 *
 * @returns 64 hexadecimal digits
 */
export function checksumDisk(
  disk: DiskSource,
  algorithm: ChecksumAlgorithm,
  options: ChecksumOptions = {},
): Promise<string> {
  return algorithm === 'sha256' ? streamChecksum(disk, options) : blockChecksum(disk, options);
}

async function streamChecksum(disk: DiskSource, options: ChecksumOptions): Promise<string> {
  const checksum = new StreamChecksum(options.signal);
  await forEachBlock(disk, options, async (offset, bytes) => checksum.update(offset, bytes));
  return checksum.finish(disk.size);
}

async function blockChecksum(disk: DiskSource, options: ChecksumOptions): Promise<string> {
  const tree = new BlockTree(divideUp(disk.size, BLOCK));
  await forEachBlock(disk, options, async (offset, bytes, buffer) => {
    if (isZero(bytes, 0, bytes.length)) return;
    // The last block is filled up with zeros; its real length is in the root.
    if (bytes.length < BLOCK) buffer.fill(0, bytes.length, BLOCK);
    tree.set(offset / BLOCK, new Uint8Array(await webcrypto.subtle.digest('SHA-256', buffer.subarray(0, BLOCK))));
  });
  return tree.root(disk.size);
}

/** Hashes of blocks by number; those of zeros are not kept. */
class BlockTree {
  readonly #blocks: number;
  /** Of one level, by index: of blocks first, then of the nodes above. */
  #level = new Map<number, Uint8Array>();

  constructor(blocks: number) {
    this.#blocks = blocks;
  }

  set(block: number, digest: Uint8Array): void {
    this.#level.set(block, digest);
  }

  root(size: number): string {
    let zero: Uint8Array = createHash('sha256').update(new Uint8Array(BLOCK)).digest();
    for (let count = this.#blocks; count > 1; count = divideUp(count, FAN_OUT)) {
      const above = new Map<number, Uint8Array>();
      for (const parent of new Set([...this.#level.keys()].map((index) => Math.floor(index / FAN_OUT)))) {
        above.set(
          parent,
          nodeDigest((i) => this.#level.get(parent * FAN_OUT + i) ?? zero),
        );
      }
      const below = zero;
      zero = nodeDigest(() => below);
      this.#level = above;
    }
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(size));
    const top = this.#level.get(0) ?? zero;
    return createHash('sha256').update(Uint8Array.of(ROOT)).update(length).update(top).digest('hex');
  }
}

function nodeDigest(child: (index: number) => Uint8Array): Uint8Array {
  const hash = createHash('sha256').update(Uint8Array.of(NODE));
  for (let i = 0; i < FAN_OUT; i++) hash.update(child(i));
  return hash.digest();
}

/**
 * Calls back with the blocks that may hold something. The calls begin in the order of the disk, and several run at once; `buffer` holds a
 * whole block.
 */
async function forEachBlock(
  disk: DiskSource,
  options: ChecksumOptions,
  act: (offset: number, bytes: Uint8Array, buffer: Uint8Array) => Promise<void>,
): Promise<void> {
  const memory = new ChunkMemory(BLOCK, 2 * PARALLEL * BLOCK);
  const reads: { offset: number; length: number; buffer: Uint8Array; reading: Promise<void> | undefined }[] = [];
  const acts: Promise<void>[] = [];
  const next = async (): Promise<void> => {
    const first = reads.shift();
    if (first === undefined) return;
    const { offset, length, buffer, reading } = first;
    if (reading !== undefined) await reading;
    const work = act(offset, buffer.subarray(0, length), buffer).finally(() => {
      memory.release(buffer);
      options.progress?.(offset + length);
    });
    work.catch(() => undefined);
    acts.push(work);
    if (acts.length > PARALLEL) await acts.shift();
  };
  const begin = async ({ offset, length }: Chunk): Promise<void> => {
    if (options.signal?.aborted === true) throw new LunetteError('ABORTED', 'interrupted', { path: disk.path });
    const buffer = await memory.acquire();
    const reading = readDisk(disk, offset, listOf(buffer, length));
    reading?.catch(() => undefined); // next() hears of it
    reads.push({ offset, length, buffer, reading });
    if (reading === undefined || reads.length >= PARALLEL) await next();
  };
  const joiner = new ChunkJoiner(BLOCK);
  try {
    for await (const { offset, length } of dataRuns(disk, { unit: BLOCK })) {
      for (const chunk of joiner.add(offset, length)) await begin(chunk);
    }
    for (const chunk of joiner.end()) await begin(chunk);
    while (reads.length > 0) await next();
    await Promise.all(acts);
  } finally {
    await Promise.allSettled([...acts, ...reads.map(({ reading }) => reading)]);
  }
}
