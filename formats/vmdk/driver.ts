import { fstatSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import path from 'node:path';
import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { FormatDriver, LayerContext, LayerOpenOptions } from '../driver.ts';
import { settle } from '../image/chain-read.ts';
import type { ParentReference } from '../image/layer.ts';
import { LeaseBook } from '../image/lease.ts';
import { actualSize } from '../storage/actual-size.ts';
import type { Storage } from '../storage/storage.ts';
import { cidText, type ExtentLine, looksLikeDescriptor, MAX_DESCRIPTOR, NO_CID, VmdkDescriptor } from './descriptor.ts';
import type { VmdkExtent } from './extent.ts';
import { FlatExtent, ZeroExtent } from './flat.ts';
import { HOSTED_HEADER, MAGIC_COWD, MAGIC_HOSTED, parseHosted, SECTOR } from './header.ts';
import { type DescriptorPlace, type ExtentOutline, VmdkLayer, VmdkOutline } from './layer.ts';
import { magicOf, openSparse, readHead, readHosted } from './open-extent.ts';
import { isSeSparse, openSeSparse } from './sesparse.ts';
import { findChild } from './siblings.ts';

const HEAD = 4096;

/** Types that map a device or a part of one: the file says where on the host to write. */
const DEVICE_TYPES = new Set(
  [
    'fullDevice',
    'partitionedDevice',
    'vmfsRaw',
    'vmfsRDM',
    'vmfsRawDeviceMap',
    'vmfsRDMP',
    'vmfsPassthroughRawDeviceMap',
  ].map((name) => name.toLowerCase()),
);
const DEVICE_EXTENTS = new Set(['VMFSRDM', 'VMFSRAW']);

/** VMware's format. */
export const vmdk: FormatDriver = {
  name: 'vmdk',
  maxDepth: 64,
  probe(head) {
    const magic = magicOf(head);
    if (magic === MAGIC_HOSTED || magic === MAGIC_COWD || isSeSparse(head)) return 100;
    return looksLikeDescriptor(head) ? 100 : 0;
  },
  async open(storage, options) {
    try {
      if (options.snapshot !== undefined) {
        throw new LunetteError('NOT_FOUND', `a VMDK disk has no snapshots inside, so none called ${options.snapshot}`, {
          path: storage.path,
          help: 'The snapshots of VMware are disks of their own: name the one to open',
        });
      }
      return await openVmdk(storage, options);
    } catch (error) {
      await storage.close();
      if (error instanceof LunetteError) error.path ??= storage.path;
      throw error;
    }
  },
};

async function openVmdk(storage: Storage, options: LayerOpenOptions): Promise<VmdkLayer> {
  const place = await findDescriptor(storage);
  if (place === undefined) return openBareExtent(storage, options);
  const { descriptor } = place;
  const readOnly = options.readOnly || storage.readOnly;
  if (!(options.metadataOnly ?? false)) refuseDevices(descriptor, storage.path);
  if (!readOnly) await refuseWriting(descriptor, storage, options);
  const parent = await parentOf(descriptor, storage, options.context);
  const shared = { storage, place, parent, readOnly, leases: new LeaseBook() };
  if (options.metadataOnly === true && !place.embedded)
    return new VmdkOutline(
      { ...shared, readOnly: true, extents: [], files: [] },
      await lookAtExtents(place, options.context),
    );
  const files = new Map<string, Storage>();
  const extents: VmdkExtent[] = [];
  const how: ExtentOptions = {
    readOnly,
    hasParent: parent !== undefined,
    leases: shared.leases,
    context: options.context,
  };
  try {
    if (place.embedded) extents.push(await openOwnExtent(storage, descriptor, how));
    else for (const line of descriptor.extents) extents.push(await openExtent(line, place, files, how));
    if (extents.length === 0)
      throw new ImageError('BAD_HEADER', 'its descriptor has no extents', { path: storage.path });
    // A disk that has nothing to write to is one to read.
    const writes = !readOnly && extents.some((extent) => extent.writable);
    if (!readOnly && !writes) {
      throw new ImageError('READ_ONLY', `disks of type ${descriptor.createType} are read, not written`, {
        path: storage.path,
        help: 'Convert it to monolithicSparse to write to it',
      });
    }
    return new VmdkLayer({ ...shared, readOnly: !writes, extents, files: [...files.values()] });
  } catch (error) {
    for (const extent of extents) extent.release();
    await settle([...files.values()].map((file) => file.close()));
    throw error;
  }
}

/** What the files of extents say of themselves, as far as they may be looked at and are there. */
async function lookAtExtents(
  { descriptor, storage }: DescriptorPlace,
  context: LayerContext,
): Promise<ExtentOutline[]> {
  const seen: ExtentOutline[] = [];
  for (const { file, type } of descriptor.extents) {
    const opened =
      file === undefined
        ? undefined
        : await context.openReferenced(file, storage, 'extent', { readOnly: true }).catch(() => undefined);
    try {
      const grain = opened !== undefined && type === 'SPARSE' ? (await readHosted(opened)).header.grainSize : undefined;
      seen.push({
        ...(opened === undefined ? {} : await actualSize(opened)),
        ...(grain === undefined ? {} : { grain: grain * SECTOR }),
      });
    } catch {
      seen.push({}); // its header is damaged: a check says how
    } finally {
      await opened?.close();
    }
  }
  return seen;
}

/** The descriptor of a file, in it or the file itself; undefined for an extent without one. */
export async function findDescriptor(storage: Storage): Promise<DescriptorPlace | undefined> {
  const head = await readHead(storage, HEAD);
  const own = storage.path;
  const magic = magicOf(head);
  if (magic === MAGIC_COWD || isSeSparse(head)) return undefined;
  if (magic !== MAGIC_HOSTED) {
    if (!looksLikeDescriptor(head)) throw new ImageError('BAD_MAGIC', 'is no VMDK file', { path: own, offset: 0 });
    if (storage.size > MAX_DESCRIPTOR)
      throw new ImageError('TOO_LARGE', `its descriptor is larger than ${MAX_DESCRIPTOR} bytes`, { path: own });
    const text = await readHead(storage, MAX_DESCRIPTOR);
    const descriptor = new VmdkDescriptor(text, own);
    return { descriptor, storage, offset: 0, room: Number.POSITIVE_INFINITY, embedded: false };
  }
  const header = parseHosted(head.subarray(0, SECTOR), own);
  if (header.descriptorOffset === 0 || header.descriptorSize === 0) return undefined;
  const [offset, room] = [header.descriptorOffset * SECTOR, header.descriptorSize * SECTOR];
  const field = { path: own, field: 'descriptorOffset', offset: HOSTED_HEADER.fields.descriptorOffset.at };
  if (room > MAX_DESCRIPTOR) throw new ImageError('TOO_LARGE', `its descriptor has ${room} bytes`, field);
  if (offset < SECTOR || offset + room > storage.size)
    throw new ImageError('TRUNCATED', 'its descriptor is not inside the file', field);
  const text = new Uint8Array(room);
  await storage.readv(offset, IoVec.of(text));
  const descriptor = new VmdkDescriptor(text, own);
  // Without capacity the file holds nothing but the descriptor of other files.
  return { descriptor, storage, offset, room, embedded: header.capacity !== 0 };
}

async function parentOf(
  descriptor: VmdkDescriptor,
  storage: Storage,
  context: LayerContext,
): Promise<ParentReference | undefined> {
  const cid = descriptor.cid('parentCID');
  if (cid === NO_CID) return undefined;
  const hint = descriptor.get('parentFileNameHint');
  const path = hint === undefined ? undefined : await placeOfParent(hint, storage, context);
  return { path, format: undefined, expected: { CID: cidText(cid) } };
}

/**
 * Disks are copied with all their files, and then an absolute hint leads nowhere: the file of that name beside the disk is meant. Its
 * CID says whether it is the right one.
 */
async function placeOfParent(hint: string, storage: Storage, context: LayerContext): Promise<string> {
  const isWindows = /^[a-z]:[\\/]|\\/i.test(hint);
  if (!isWindows && (!path.isAbsolute(hint) || (await isFile(hint)))) return hint;
  const name = hint.split(/[\\/]/).at(-1) ?? '';
  if (name === '' || !(await isFile(storage.resolve(name)))) return hint;
  context.warn(`its parent ${hint} is not there: ${name} beside it is taken`, storage);
  return name;
}

async function isFile(file: string): Promise<boolean> {
  return (await stat(file).catch(() => undefined))?.isFile() ?? false;
}

function refuseDevices(descriptor: VmdkDescriptor, path: string): void {
  const type = descriptor.createType;
  const device = descriptor.extents.find((line) => DEVICE_EXTENTS.has(line.type));
  if (!DEVICE_TYPES.has(type.toLowerCase()) && device === undefined) return;
  throw new ImageError('UNSUPPORTED', `${type} maps a device of its host: what it stands for is not in its files`, {
    path,
    field: 'createType',
  });
}

/** What would become wrong by writing, unless the user insists. */
async function refuseWriting(descriptor: VmdkDescriptor, storage: Storage, options: LayerOpenOptions): Promise<void> {
  if (options.force === true) return;
  const child = await findChild(storage.path);
  if (child !== undefined) {
    throw new ImageError('LOCKED', `${child} stands on it: writing here would make that wrong`, {
      path: storage.path,
      help: 'Open that one, or this one read-only; --force writes all the same',
    });
  }
  const tracking = descriptor.get('changeTrackPath');
  if (tracking !== undefined) {
    throw new ImageError('UNSUPPORTED', `its changes are tracked in ${tracking}, which would not learn of ours`, {
      path: storage.path,
      field: 'changeTrackPath',
      help: 'The next incremental backup would be wrong; --force writes all the same',
    });
  }
}

interface ExtentOptions {
  readonly readOnly: boolean;
  readonly hasParent: boolean;
  readonly leases: LeaseBook;
  readonly context: LayerContext;
}

/** The extent in the file that holds the descriptor: whatever the descriptor calls it, as files get renamed. */
async function openOwnExtent(
  storage: Storage,
  descriptor: VmdkDescriptor,
  options: ExtentOptions,
): Promise<VmdkExtent> {
  const [line] = descriptor.extents;
  if (descriptor.extents.length > 1)
    throw new ImageError('UNSUPPORTED', 'it holds an extent and the descriptor of several', { path: storage.path });
  if (line?.access === 'NOACCESS') return new ZeroExtent(line.length, 'NOACCESS');
  const extent = await openSparse(storage, { ...options, writable: !options.readOnly && line?.access !== 'RDONLY' });
  if (line !== undefined && line.length !== extent.length) {
    options.context.warn(
      `its descriptor says ${line.length} bytes and its header ${extent.length}: the header is right`,
      storage,
    );
  }
  return extent;
}

async function openExtent(
  line: ExtentLine,
  place: DescriptorPlace,
  files: Map<string, Storage>,
  options: ExtentOptions,
): Promise<VmdkExtent> {
  if (line.type === 'ZERO' || line.access === 'NOACCESS' || line.file === undefined)
    return new ZeroExtent(line.length, line.access === 'NOACCESS' ? 'NOACCESS' : 'ZERO');
  const from = place.storage;
  const fail = (code: 'UNSUPPORTED' | 'TRUNCATED' | 'DENIED' | 'BAD_HEADER', why: string): never => {
    throw new ImageError(code, `line ${line.line} of its descriptor: ${why}`, { path: from.path });
  };
  const { type, length, offset, file } = line;
  const isFlat = type === 'FLAT' || type === 'VMFS';
  if (!isFlat && !['SPARSE', 'VMFSSPARSE', 'SESPARSE'].includes(type)) fail('UNSUPPORTED', `extents of type ${type}`);
  const sharing = place.descriptor.extents.filter((other) => other.file === file && other.access !== 'NOACCESS');
  if (!isFlat && sharing.length > 1) fail('BAD_HEADER', `${file} is the file of another extent as well`);
  const writable = !options.readOnly && line.access === 'RW';
  let storage = files.get(file);
  if (storage === undefined) {
    // Several flat extents may be parts of one file: it is open once, for what the most demanding of them does.
    const readOnly = options.readOnly || sharing.every((other) => other.access !== 'RW');
    storage = await options.context.openReferenced(file, from, 'extent', { readOnly });
    files.set(file, storage);
  }
  if (storage.fd !== null && !fstatSync(storage.fd).isFile()) fail('DENIED', `${storage.path} is no plain file`);
  if (isFlat) {
    if (offset + length > storage.size)
      fail('TRUNCATED', `${storage.path} has ${storage.size} bytes, the extent ends at ${offset + length}`);
    return new FlatExtent(storage, { offset, length, writable, type });
  }
  if (type === 'SESPARSE') return openSeSparse(storage, length, options.context.cache);
  return openSparse(storage, { ...options, length, writable });
}

/** An extent whose descriptor is another file: its bytes can be seen, but what it belongs to is not known. */
async function openBareExtent(storage: Storage, options: LayerOpenOptions): Promise<VmdkLayer> {
  if (!options.readOnly && !storage.readOnly) {
    throw new ImageError('UNSUPPORTED', 'is one extent of a disk: it is read, not written', {
      path: storage.path,
      help: 'Open the disk’s descriptor, a small .vmdk file of text beside it',
    });
  }
  const { context } = options;
  const leases = new LeaseBook();
  const head = await readHead(storage, HEAD);
  const extent = isSeSparse(head)
    ? await openSeSparse(storage, undefined, context.cache)
    : await openSparse(storage, { writable: false, hasParent: false, leases, context });
  return new VmdkLayer({
    storage,
    place: undefined,
    parent: undefined,
    extents: [extent],
    files: [],
    readOnly: true,
    leases,
  });
}
