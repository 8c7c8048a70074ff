import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import { alignUp } from '../core/units.ts';
import type { Storage } from '../storage/storage.ts';
import { EXTENSION, encodeExtensions, type Qcow2Extension } from './extensions.ts';
import { HEADER_V2, parseHeader } from './header.ts';

const SECTOR = 512;
const MAX_BACKING_NAME = 1023;
/** An extension that nobody knows, there only while the header is being written: what it covers is passed over. */
const DETOUR = 0x4c4e4454;

export type Extension = Pick<Qcow2Extension, 'type' | 'data'>;

/** What changes in the first cluster; whatever is not named stays as it is. */
export interface HeaderChange {
  /** Fixed fields, in the first sector; not those of the backing file's name. */
  readonly fields?: ((view: DataView) => void) | undefined;
  /** Length of the fixed fields. */
  readonly headerLength?: number | undefined;
  readonly extensions?: ((list: readonly Extension[]) => readonly Extension[]) | undefined;
  /** Name of the backing file as it stands in the image; null for none. */
  readonly backingFile?: string | null | undefined;
}

/** What changing the header asks of the writer. Both calls are durable when they return; when they fail writing has stopped. */
export interface HeaderHost {
  readonly storage: Storage;
  readonly clusterSize: number;
  switchHeader(change: (view: DataView) => void): Promise<void>;
  /** Writes one sector of the first cluster. */
  switchSector(offset: number, bytes: Uint8Array): Promise<void>;
  sync(): Promise<void>;
}

/** Everything behind the fixed fields: extensions, then the backing file's name. */
interface Tail {
  readonly bytes: Uint8Array;
  /** Where the name is in `bytes`. */
  readonly nameAt: number;
  readonly nameLength: number;
}

/**
 * Changes the header with its extensions and the backing file's name, in steps of which each writes one sector that matters: at every
 * moment the file holds the header of before or the one of after, whole. What takes more than a sector is first written behind the present
 * header; one write of the first sector leads there, and another one back when the final place is written.
 *
 * @throws {ImageError} TOO_LARGE when it does not fit into the first cluster; nothing has changed then
 */
export async function rewriteHeader(host: HeaderHost, change: HeaderChange): Promise<void> {
  const { storage, clusterSize } = host;
  const old = new Uint8Array(clusterSize);
  const inFile = Math.min(clusterSize, storage.size);
  await storage.readv(0, IoVec.of(old, 0, inFile));
  const parsed = parseHeader(new DataView(old.buffer, 0, inFile));
  const present = parsed.extensions.list.filter(({ type }) => type !== DETOUR);
  const list = change.extensions === undefined ? present : change.extensions(present);
  const start = change.headerLength ?? parsed.headerLength;
  const name = nameBytes(change, old, parsed.backingFileOffset, parsed.backingFileSize);
  const oldEnd = Math.max(
    parsed.headerLength,
    ...parsed.extensions.list.map(({ at, data }) => alignUp(at + data.length, 8) + 8),
    parsed.backingFileOffset === 0 ? 0 : parsed.backingFileOffset + parsed.backingFileSize,
  );
  const plan = layOut(list, name, { start, oldEnd, clusterSize });
  const { tail } = plan;

  const final = old.slice();
  final.fill(0, start, SECTOR);
  final.set(tail.bytes, start);
  const end = start + tail.bytes.length;
  const changed: number[] = [];
  for (let at = SECTOR; at < end; at += SECTOR) {
    if (Buffer.compare(final.subarray(at, at + SECTOR), old.subarray(at, at + SECTOR)) !== 0) changed.push(at);
  }
  const enter = (view: DataView): void => {
    change.fields?.(view);
    new Uint8Array(view.buffer, view.byteOffset, SECTOR).set(final.subarray(start, SECTOR), start);
    writeName(view, tail, start);
  };
  if (changed.length === 0) return host.switchHeader(enter);
  const sameHead =
    change.fields === undefined &&
    start === parsed.headerLength &&
    Buffer.compare(final.subarray(start, SECTOR), old.subarray(start, SECTOR)) === 0 &&
    (tail.nameLength === 0 ? parsed.backingFileOffset === 0 : parsed.backingFileOffset === start + tail.nameAt) &&
    parsed.backingFileSize === tail.nameLength;
  const [only] = changed;
  if (sameHead && changed.length === 1 && only !== undefined) {
    return host.switchSector(only, final.subarray(only, only + SECTOR));
  }

  const { detour } = plan;
  if (detour === undefined) throw tooLarge(storage);
  await storage.writev(detour, IoVec.of(tail.bytes));
  await host.sync();
  await host.switchHeader((view) => {
    change.fields?.(view);
    view.setUint32(start, DETOUR);
    view.setUint32(start + 4, detour - start - 8);
    writeName(view, tail, detour);
  });
  try {
    await storage.writev(SECTOR, IoVec.of(final, SECTOR, alignUp(end, SECTOR) - SECTOR));
    await host.sync();
    await host.switchHeader((view) => {
      new Uint8Array(view.buffer, view.byteOffset, SECTOR).set(final.subarray(start, SECTOR), start);
      writeName(view, tail, start);
    });
  } catch (error) {
    // The new header is in force, by its detour.
    if (!(error instanceof LunetteError)) throw error;
  }
}

/** Lays the tail out; where there is no room, without the table of feature names, which is a courtesy. */
function layOut(
  list: readonly Extension[],
  name: Uint8Array,
  place: { readonly start: number; readonly oldEnd: number; readonly clusterSize: number },
): { readonly tail: Tail; readonly detour: number | undefined } {
  const { start, oldEnd, clusterSize } = place;
  for (const extensions of [list, list.filter(({ type }) => type !== EXTENSION.FEATURE_NAMES)]) {
    const encoded = encodeExtensions(extensions);
    const bytes = new Uint8Array(encoded.length + name.length);
    bytes.set(encoded);
    bytes.set(name, encoded.length);
    const end = start + bytes.length;
    const tail = { bytes, nameAt: encoded.length, nameLength: name.length };
    if (end <= SECTOR) return { tail, detour: undefined };
    const detour = alignUp(Math.max(oldEnd, end), SECTOR);
    if (end <= clusterSize && start + 8 <= SECTOR && detour + bytes.length <= clusterSize) return { tail, detour };
  }
  throw tooLarge();
}

function nameBytes(change: HeaderChange, old: Uint8Array, offset: number, size: number): Uint8Array {
  if (change.backingFile === undefined) return offset === 0 ? new Uint8Array() : old.slice(offset, offset + size);
  const bytes = new TextEncoder().encode(change.backingFile ?? '');
  if (bytes.length > MAX_BACKING_NAME) {
    throw new ImageError('TOO_LARGE', `a backing file name of ${bytes.length} bytes is too long`);
  }
  return bytes;
}

function writeName(view: DataView, tail: Tail, at: number): void {
  HEADER_V2.write(view, {
    backingFileOffset: tail.nameLength === 0 ? 0 : at + tail.nameAt,
    backingFileSize: tail.nameLength,
  });
}

function tooLarge(storage?: Storage): ImageError {
  return new ImageError('TOO_LARGE', 'the first cluster has no room for what the header would say', {
    path: storage?.path,
  });
}

/** An extension replaced where it is, added at the end, or (undefined) left out. */
export function withExtension(
  list: readonly Extension[],
  type: number,
  data: Uint8Array | undefined,
): readonly Extension[] {
  if (data === undefined) return list.filter((each) => each.type !== type);
  if (!list.some((each) => each.type === type)) return [...list, { type, data }];
  return list.map((each) => (each.type === type ? { type, data } : each));
}
