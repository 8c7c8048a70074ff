import { ImageError, LunetteError } from '../core/errors.ts';
import { IoVec } from '../core/iov.ts';
import type { FormatDriver, LayerOpenOptions } from '../driver.ts';
import type { Layer } from '../image/layer.ts';
import { LeaseBook } from '../image/lease.ts';
import type { Storage } from '../storage/storage.ts';
import { CRYPT_AES, CRYPT_NONE, openPayload } from './encryption.ts';
import { AUTOCLEAR, INCOMPATIBLE } from './features.ts';
import { announcedClusterSize, MAGIC, parseHeader, type Qcow2Header } from './header.ts';
import { Qcow2Layer } from './layer.ts';
import { PointerTable } from './pointer-table.ts';
import { Renewal } from './renewal.ts';
import { SliceCache } from './slices.ts';
import {
  checkSnapshotL1,
  findSnapshot,
  type Qcow2Snapshot,
  readSnapshotTable,
  type SnapshotTable,
} from './snapshot.ts';
import { Qcow2Writer } from './writer.ts';

const HEAD = 512;
const CERTAIN = 100;

/** QEMU's format, versions 2 and 3. Specification: docs/interop/qcow2 of QEMU. */
export const qcow2: FormatDriver = {
  name: 'qcow2',

  probe(head) {
    if (head.length < 8) return 0;
    return new DataView(head.buffer, head.byteOffset, head.length).getUint32(0) === MAGIC ? CERTAIN : 0;
  },

  async open(storage, options) {
    const opened: Storage[] = [storage];
    try {
      return await openLayer(storage, options, opened);
    } catch (error) {
      for (const each of opened.reverse()) await each.close().catch(() => undefined);
      if (error instanceof LunetteError) error.path ??= storage.path;
      throw error;
    }
  },
};

async function openLayer(storage: Storage, options: LayerOpenOptions, opened: Storage[]): Promise<Layer> {
  const { context } = options;
  const header = await readHeader(storage);
  const describeOnly = options.metadataOnly ?? false;
  const readOnly = options.readOnly || storage.readOnly || options.snapshot !== undefined || describeOnly;
  warnAbout(header, storage, options);
  if (!readOnly) refuseUnwritable(header, options);

  const snapshotTable = await readSnapshotTable(storage, header);
  const snapshot = options.snapshot === undefined ? undefined : findSnapshot(snapshotTable.snapshots, options.snapshot);
  const parts = {
    storage,
    header,
    snapshots: snapshotTable.snapshots,
    size: sizeOf(header, snapshot),
    cache: context.cache,
    inflate: context.inflate,
    unpack: context.unpack,
    readsOnce: context.readsOnce,
    leases: new LeaseBook(),
    live: snapshot === undefined,
    shared: options.shared ?? false,
  };
  if (describeOnly) {
    const payload = { storage, guestCipher: undefined };
    return new Qcow2Layer({ ...parts, dataStorage: storage, payload, tables: undefined, writer: undefined });
  }
  const l1 = await loadL1(storage, header, snapshot);
  const dataStorage = await openDataFile(storage, header, readOnly, options, opened);
  const slices = new SliceCache(storage, context.cache, header.geometry.sliceSize);
  const tables = { l1, slices };
  const payload = await openPayload(storage, dataStorage, header, options.secrets);
  const writer = readOnly
    ? undefined
    : await openWriter({
        storage,
        dataStorage,
        payload: payload.storage,
        header,
        snapshotTable,
        l1,
        slices,
        leases: parts.leases,
        options,
      });
  // A dirty image that is open for writing has been repaired.
  const now = writer === undefined ? header : { ...header, dirty: false };
  const renewal = parts.shared ? new Renewal({ storage, header, snapshot, ...tables }) : undefined;
  return new Qcow2Layer({ ...parts, header: now, dataStorage, payload, tables, writer, renewal });
}

/** Reads and checks the header: no more than the first cluster of the file. */
export async function readHeader(storage: Storage): Promise<Qcow2Header> {
  const head = await readStart(storage, HEAD);
  const clusterSize = announcedClusterSize(head);
  return parseHeader(clusterSize === HEAD ? head : await readStart(storage, clusterSize));
}

async function readStart(storage: Storage, length: number): Promise<DataView> {
  const bytes = new Uint8Array(Math.min(length, storage.size));
  if (bytes.length > 0) await storage.readv(0, IoVec.of(bytes));
  return new DataView(bytes.buffer);
}

function warnAbout(header: Qcow2Header, storage: Storage, options: LayerOpenOptions): void {
  const warnings = [...header.warnings];
  if (header.extensions.bitmaps !== undefined && (header.autoclearFeatures.low & AUTOCLEAR.BITMAPS) === 0) {
    warnings.push('a program without support for bitmaps has written to the image: its bitmaps are inconsistent');
  }
  for (const warning of warnings) {
    if (options.strict) throw new ImageError('CORRUPT', warning);
    options.context.warn(warning, storage);
  }
}

function refuseUnwritable(header: Qcow2Header, options: LayerOpenOptions): void {
  const refuse = (code: 'CORRUPT' | 'UNSUPPORTED', why: string, help: string): never => {
    throw new ImageError(code, why, { field: 'incompatibleFeatures', offset: 72, help });
  };
  if (header.corrupt) {
    refuse(
      'CORRUPT',
      'the image is marked corrupt and cannot be opened for writing',
      'Open it read-only, or repair it.',
    );
  }
  if (options.discardNoUnref === true && header.geometry.version === 2) {
    throw new ImageError('UNSUPPORTED', 'version 2 has no zero clusters: what is discarded cannot keep its place', {
      field: 'version',
      offset: 4,
      help: 'lunette amend -o compat=1.1 makes it version 3; or leave discard-no-unref out.',
    });
  }
  if (header.cryptMethod === CRYPT_AES) {
    throw new ImageError('UNSUPPORTED', 'images with the old AES encryption cannot be written: it is broken', {
      field: 'cryptMethod',
      offset: 32,
      help: 'Open it read-only, and convert it.',
    });
  }
  if (header.cryptMethod !== CRYPT_NONE && (header.autoclearFeatures.low & AUTOCLEAR.DATA_FILE_RAW) !== 0) {
    throw new ImageError('UNSUPPORTED', 'an encrypted image whose data file shall be raw cannot be written', {
      field: 'autoclearFeatures',
      offset: 88,
    });
  }
}

function sizeOf(header: Qcow2Header, snapshot: Qcow2Snapshot | undefined): number {
  const size = snapshot?.diskSize ?? header.size;
  if (!Number.isSafeInteger(size)) {
    throw new ImageError('TOO_LARGE', 'the disk of the snapshot is larger than 8 PiB', { offset: snapshot?.at });
  }
  return size - (size % 512);
}

async function loadL1(
  storage: Storage,
  header: Qcow2Header,
  snapshot: Qcow2Snapshot | undefined,
): Promise<PointerTable> {
  const { clusterSize } = header.geometry;
  if (snapshot !== undefined) checkSnapshotL1(snapshot, clusterSize);
  return PointerTable.load(storage, {
    name: 'L1 table',
    offset: snapshot?.l1TableOffset ?? header.l1TableOffset,
    entries: snapshot?.l1Size ?? header.l1Size,
    clusterSize,
  });
}

async function openDataFile(
  storage: Storage,
  header: Qcow2Header,
  readOnly: boolean,
  options: LayerOpenOptions,
  opened: Storage[],
): Promise<Storage> {
  if ((header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) === 0) return storage;
  const name = header.extensions.dataFile;
  if (name === undefined) {
    throw new ImageError('UNSUPPORTED', 'the image keeps its data in another file that it does not name', {
      field: 'dataFile',
      offset: header.headerLength,
    });
  }
  const data = await options.context.openReferenced(name, storage, 'data file', { readOnly });
  opened.push(data);
  return data;
}

async function openWriter(parts: {
  storage: Storage;
  dataStorage: Storage;
  payload: Storage;
  header: Qcow2Header;
  snapshotTable: SnapshotTable;
  l1: PointerTable;
  slices: SliceCache;
  leases: LeaseBook;
  options: LayerOpenOptions;
}): Promise<Qcow2Writer> {
  const { context } = parts.options;
  const { discardNoUnref } = parts.options;
  return Qcow2Writer.open({
    discardNoUnref,
    ...parts,
    cache: context.cache,
    warn: (message) => context.warn(message, parts.storage),
  });
}
