import { createHash } from 'node:crypto';
import { deflate, type InputType, type ZlibOptions } from 'node:zlib';
import { LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { promisifyLater } from '../core/promisify-later.ts';
import { alignDown, alignUp, divideUp, MiB } from '../core/units.ts';
import { setU32LE } from '../core/words.ts';
import { ABSENT, ExtentBuffer, ZERO } from '../image/extent.ts';
import type { Image } from '../image/image.ts';
import type { Storage } from '../storage/storage.ts';
import { encodeHosted, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINE_TEST, SECTOR } from './header.ts';
import { type AdapterType, descriptorText, isUsableCid } from './write-descriptor.ts';

const deflateAsync = promisifyLater<[InputType, ZlibOptions], Buffer>(() => deflate);

const GRAIN = 64 * 1024;
const GRAIN_SECTORS = GRAIN / SECTOR;
const TABLE_ENTRIES = 512;
const TABLE_BYTES = 4 * TABLE_ENTRIES;
const DESCRIPTOR_AT = 1;
const DESCRIPTOR_SECTORS = 20;
const OVERHEAD = 128;
const MARKER_SIZE = 12;
const MARKER_END = 0;
const MARKER_TABLE = 1;
const MARKER_DIRECTORY = 2;
const MARKER_FOOTER = 3;
/** Bytes read from the source at once. */
const READ_SIZE = 1 * MiB;
/** Grains that are being compressed or wait for their turn in the file: bounds memory. */
const IN_FLIGHT = 64;
const WRITE_SIZE = 1 * MiB;
const ZEROS = Buffer.alloc(GRAIN);

/** What is read of a disk to write it. */
export type StreamSource = Pick<Image, 'size' | 'map' | 'tryReadv' | 'readv'>;

export interface StreamOptions {
  readonly adapterType?: AdapterType;
  readonly hwVersion?: string;
  readonly toolsVersion?: string;
  /** Name in the descriptor's extent line. Default: that of the target. */
  readonly name?: string;
  /** 1 to 9. Default: 6. */
  readonly level?: number;
  /**
   * 32 hexadecimal digits that stand for the content. Then the target is written from its start to its end, as pipes want it. Default: a digest of
   * what is written, which is entered at the end.
   */
  readonly contentId?: string;
  /** Called in the order of the disk with what was read; what is between reads as zeros. @returns when that may go on, if not at once */
  readonly observe?: ((offset: number, bytes: Uint8Array) => Promise<void> | undefined) | undefined;
  /** Called with the guest bytes that are done. */
  readonly progress?: ((done: number) => void) | undefined;
}

/** What is written to: with `contentId` each write begins where the last one ended. */
export type StreamTarget = Pick<Storage, 'path' | 'resize' | 'writev' | 'sync'>;

/**
 * Writes a disk as streamOptimized, in VMware's own form: version 3, grains in the order of the disk, each table behind its grains,
 * directory, footer and end marker. Grains are compressed on libuv's pool and written in their order; grains of zeros are left out.
 *
 * The same disk and options give the same bytes: the content id is a digest of the content.
 *
 * @param target empty, writable
 */
export async function writeStreamOptimized(
  source: StreamSource,
  target: StreamTarget,
  options: StreamOptions = {},
): Promise<void> {
  const size = source.size;
  if (size === 0 || size % SECTOR !== 0)
    throw new LunetteError('INVALID', `VMDK disks are whole sectors: ${size} is no multiple of 512`, {
      path: target.path,
    });
  await target.resize(0);
  const writer = new StreamWriter(target, size, options);
  if (options.contentId !== undefined) await writer.begin(options.contentId);
  const pending: Promise<PackedGrain>[] = [];
  const drain = async (left: number): Promise<void> => {
    while (pending.length > left) await writer.grain(await (pending.shift() as Promise<PackedGrain>));
  };
  try {
    for await (const { offset, bytes } of dataOf(source)) {
      await options.observe?.(offset, bytes);
      for (let at = 0; at < bytes.length; at += GRAIN) {
        const grain = bytes.subarray(at, Math.min(at + GRAIN, bytes.length));
        if (grain.equals(ZEROS.subarray(0, grain.length))) continue;
        pending.push(pack((offset + at) / GRAIN, grain, options.level ?? 6));
      }
      await drain(IN_FLIGHT);
      options.progress?.(offset + bytes.length);
    }
    await drain(0);
  } finally {
    await Promise.allSettled(pending);
  }
  await writer.end();
  options.progress?.(size);
}

interface PackedGrain {
  readonly index: number;
  readonly data: Uint8Array;
}

async function pack(index: number, grain: Buffer, level: number): Promise<PackedGrain> {
  // The last grain is a whole one too: readers want as many bytes.
  const whole = grain.length === GRAIN ? grain : Buffer.concat([grain], GRAIN);
  return { index, data: await deflateAsync(whole, { level }) };
}

/** The parts of a disk that may hold something else than zeros, in order, in pieces that start at a grain. */
async function* dataOf(source: StreamSource): AsyncGenerator<{ offset: number; bytes: Buffer }> {
  const extents = new ExtentBuffer();
  /** Grains before it have been read. */
  let done = 0;
  for (let at = 0; at < source.size; at = extents.end) {
    await source.map(at, source.size - at, extents);
    for (let i = 0; i < extents.count; i++) {
      if (extents.kinds[i] === ZERO || extents.kinds[i] === ABSENT) continue;
      const start = extents.offsets[i] as number;
      const end = Math.min(source.size, alignUp(start + (extents.lengths[i] as number), GRAIN));
      for (let offset = Math.max(done, alignDown(start, GRAIN)); offset < end; offset += READ_SIZE) {
        const bytes = Buffer.allocUnsafe(Math.min(READ_SIZE, end - offset));
        const list = IoVec.of(bytes);
        if (!source.tryReadv(offset, list)) await source.readv(offset, list);
        yield { offset, bytes };
      }
      done = Math.max(done, end);
    }
  }
}

class StreamWriter {
  readonly #target: StreamTarget;
  readonly #size: number;
  readonly #options: StreamOptions;
  readonly #directory: Uint8Array;
  readonly #hash = createHash('md5');
  #table = new Uint8Array(TABLE_BYTES);
  #tableIndex = 0;
  #tableUsed = false;
  /** Bytes in the file, with what waits to be written. */
  #position = OVERHEAD * SECTOR;
  #buffered = new IoVec();

  constructor(target: StreamTarget, size: number, options: StreamOptions) {
    this.#target = target;
    this.#size = size;
    this.#options = options;
    this.#directory = new Uint8Array(4 * divideUp(size, GRAIN * TABLE_ENTRIES));
  }

  async grain({ index, data }: PackedGrain): Promise<void> {
    const table = Math.floor(index / TABLE_ENTRIES);
    if (table !== this.#tableIndex) {
      await this.#finishTable();
      this.#tableIndex = table;
    }
    const sector = this.#position / SECTOR;
    if (sector > 0xffffffff - 2 * GRAIN_SECTORS)
      throw new LunetteError('TOO_LARGE', 'a stream ends below 2 TiB: its sectors have numbers of 32 bits', {
        path: this.#target.path,
      });
    setU32LE(this.#table, 4 * (index % TABLE_ENTRIES), sector);
    this.#tableUsed = true;
    const item = new Uint8Array(alignUp(MARKER_SIZE + data.length, SECTOR));
    const lba = index * GRAIN_SECTORS;
    setU32LE(item, 0, lba % 2 ** 32);
    setU32LE(item, 4, Math.floor(lba / 2 ** 32));
    setU32LE(item, 8, data.length);
    item.set(data, MARKER_SIZE);
    this.#hash.update(item);
    await this.#put(item);
  }

  /** What stands before the grains, when the content's id is known. */
  async begin(contentId: string): Promise<void> {
    const front = new Uint8Array(OVERHEAD * SECTOR);
    front.set(this.#header('at-end'));
    front.set(this.#descriptor(contentId), DESCRIPTOR_AT * SECTOR);
    await this.#target.writev(0, IoVec.of(front));
  }

  async end(): Promise<void> {
    await this.#finishTable();
    await this.#marker(MARKER_DIRECTORY, divideUp(this.#directory.length, SECTOR));
    const gdOffset = this.#position / SECTOR;
    await this.#put(padded(this.#directory));
    await this.#marker(MARKER_FOOTER, 1);
    await this.#put(this.#header(gdOffset));
    await this.#marker(MARKER_END, 0);
    await this.#writeBuffered();
    if (this.#options.contentId !== undefined) return this.#target.sync();
    await this.#target.writev(DESCRIPTOR_AT * SECTOR, IoVec.of(this.#descriptor(this.#hash.digest('hex'))));
    await this.#target.sync();
    // The header last: what was cut off before is no image yet.
    await this.#target.writev(0, IoVec.of(this.#header('at-end')));
    await this.#target.sync();
  }

  /** The table of the grains before, behind them; none when there were none. */
  async #finishTable(): Promise<void> {
    if (!this.#tableUsed) return;
    await this.#marker(MARKER_TABLE, TABLE_BYTES / SECTOR);
    setU32LE(this.#directory, 4 * this.#tableIndex, this.#position / SECTOR);
    await this.#put(this.#table);
    this.#table = new Uint8Array(TABLE_BYTES);
    this.#tableUsed = false;
  }

  #marker(type: number, sectors: number): Promise<void> {
    const marker = new Uint8Array(SECTOR);
    setU32LE(marker, 0, sectors);
    setU32LE(marker, 12, type);
    return this.#put(marker);
  }

  #header(gdOffset: number | 'at-end'): Uint8Array {
    return encodeHosted({
      version: 3,
      flags: FLAG_NEWLINE_TEST | FLAG_COMPRESSED | FLAG_MARKERS,
      capacity: this.#size / SECTOR,
      grainSize: GRAIN_SECTORS,
      descriptorOffset: DESCRIPTOR_AT,
      descriptorSize: DESCRIPTOR_SECTORS,
      numGTEsPerGT: TABLE_ENTRIES,
      rgdOffset: 0,
      gdOffset,
      overHead: OVERHEAD,
      compressAlgorithm: 1,
    });
  }

  #descriptor(contentId: string): Uint8Array {
    let longContentId = contentId;
    if (!isUsableCid(Number.parseInt(longContentId.slice(-8), 16)))
      longContentId = `${longContentId.slice(0, 24)}00000001`;
    const name = this.#options.name ?? this.#target.path.replace(/^.*\//, '');
    const text = descriptorText({
      ...this.#options,
      createType: 'streamOptimized',
      version: 1,
      size: this.#size,
      extents: [`RW ${this.#size / SECTOR} SPARSE "${name}"`],
      longContentId,
      uuid: uuidFrom(longContentId, 'image'),
      modification: uuidFrom(longContentId, 'modification'),
    });
    const all = new Uint8Array(DESCRIPTOR_SECTORS * SECTOR);
    const bytes = new TextEncoder().encode(text);
    if (bytes.length > all.length)
      throw new LunetteError('TOO_LARGE', 'the descriptor does not fit: the name is too long', {
        path: this.#target.path,
      });
    all.set(bytes);
    return all;
  }

  async #put(bytes: Uint8Array): Promise<void> {
    this.#buffered.append(bytes);
    this.#position += bytes.length;
    if (this.#buffered.byteLength >= WRITE_SIZE) await this.#writeBuffered();
  }

  async #writeBuffered(): Promise<void> {
    const list = this.#buffered;
    this.#buffered = new IoVec();
    if (list.byteLength > 0) await this.#target.writev(this.#position - list.byteLength, list);
  }
}

function padded(bytes: Uint8Array): Uint8Array {
  const all = new Uint8Array(alignUp(bytes.length, SECTOR));
  all.set(bytes);
  return all;
}

/** VirtualBox's ids, from the content: the same input gives the same file. */
function uuidFrom(content: string, what: string): string {
  const hex = createHash('md5').update(`${content} ${what}`).digest('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20)}`;
}
