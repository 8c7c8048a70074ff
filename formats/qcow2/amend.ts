import { ImageError, LunetteError } from '../core/errors.ts';
import type { ChainImage } from '../image/chain.ts';
import type { Storage } from '../storage/storage.ts';
import { checkQcow2 } from './check.ts';
import { rewidenRefcounts } from './check-repair.ts';
import { readHeader } from './driver.ts';
import { EXTENSION, featureNameTable } from './extensions.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, listBits } from './features.ts';
import { HEADER_V2, HEADER_V3, type Qcow2Header } from './header.ts';
import { type HeaderHost, rewriteHeader, withExtension } from './header-rewrite.ts';
import { HeaderSector } from './header-sector.ts';
import { Qcow2Layer } from './layer.ts';
import { checkResize } from './resize.ts';
import type { Qcow2Snapshot } from './snapshot.ts';

/** Length of the fixed fields that version 3 has here. */
const V3_LENGTH = 112;

/** What can be changed of an image that exists; what is left out stays. */
export interface AmendQcow2Options {
  readonly version?: 2 | 3 | undefined;
  readonly lazyRefcounts?: boolean | undefined;
  /** 1 to 64, a power of two. */
  readonly refcountBits?: number | undefined;
  /** Another name for the external data file. */
  readonly dataFile?: string | undefined;
  /** Can be taken away only. */
  readonly dataFileRaw?: boolean | undefined;
  /** Must be what they are: rebasing changes them. */
  readonly backingFile?: string | undefined;
  readonly backingFormat?: string | undefined;
}

/** What an image shall become, with its size: see checkAmendQcow2. */
export interface CheckAmendOptions extends AmendQcow2Options {
  /** Guest bytes that it gets with ChainImage.resize before it is amended, or afterwards where it gets version 3. */
  readonly size?: number | undefined;
}

/** What an image shall become. */
interface Plan {
  readonly version: 2 | 3;
  readonly refcountBits: number;
  readonly lazyRefcounts: boolean;
  readonly dataFile: string | undefined;
  readonly dataFileRaw: boolean;
}

/**
 * Changes options of a qcow2 image that is open for writing. Each step happens as a whole or not at all, and leaves a valid image; afterwards the image
 * takes no more writes: it is to be opened again.
 *
 * @throws {LunetteError} UNSUPPORTED, INVALID naming what cannot be; TOO_LARGE when refcounts do not fit the new width; CORRUPT
 */
export async function amendQcow2(image: ChainImage, options: AmendQcow2Options): Promise<void> {
  const top = qcow2LayerOf(image);
  const { storage } = top;
  // Before the image is made ready to be written: what is refused has not touched it.
  const plan = checkPlan(storage, await readHeader(storage), top.snapshots, options);
  await image.restructure(() => top.amend(plan.version, () => amend(storage, plan)));
}

/**
 * Refuses what amendQcow2 would refuse, also of an image that is to be resized beside: nothing is touched yet.
 *
 * @returns whether the image is to be amended first: only the new version may have the new size
 * @throws {LunetteError} as amendQcow2 and ChainImage.resize
 */
export async function checkAmendQcow2(image: ChainImage, options: CheckAmendOptions): Promise<boolean> {
  const { storage, snapshots } = qcow2LayerOf(image);
  const header = await readHeader(storage);
  const { geometry } = header;
  const { size = header.size } = options;
  const plan = checkPlan(storage, { ...header, size }, snapshots, options);
  const upgrade = plan.version > geometry.version;
  if (size !== header.size) {
    checkResize({
      from: header.size,
      to: size,
      hasSnapshots: snapshots.length > 0,
      geometry: upgrade ? { ...geometry, version: plan.version } : geometry,
      shrink: false,
      path: storage.path,
    });
  }
  return upgrade;
}

function qcow2LayerOf(image: ChainImage): Qcow2Layer {
  const [top] = image.layers;
  if (top instanceof Qcow2Layer) return top;
  throw new ImageError('UNSUPPORTED', `options of ${image.format} images cannot be amended`, { path: image.path });
}

/** Refuses what cannot be before anything is changed. */
function checkPlan(
  storage: Storage,
  header: Qcow2Header,
  snapshots: readonly Qcow2Snapshot[],
  options: AmendQcow2Options,
): Plan {
  const { geometry } = header;
  const refuse = (code: 'UNSUPPORTED' | 'INVALID', why: string, help?: string): never => {
    throw new LunetteError(code, why, { path: storage.path, help });
  };
  const rebase = 'Use rebase to give the image another backing file.';
  if (options.backingFile !== undefined && options.backingFile !== (header.backingFile ?? '')) {
    refuse('UNSUPPORTED', 'the backing file cannot be amended', rebase);
  }
  if (options.backingFormat !== undefined && options.backingFormat !== (header.backingFormat ?? '')) {
    refuse('UNSUPPORTED', 'the backing format cannot be amended', rebase);
  }
  const wasRaw = (header.autoclearFeatures.low & AUTOCLEAR.DATA_FILE_RAW) !== 0;
  const external = (header.incompatibleFeatures.low & INCOMPATIBLE.DATA_FILE) !== 0;
  if (options.dataFileRaw === true && !wasRaw) {
    refuse(
      'UNSUPPORTED',
      'data_file_raw cannot be set of an image that exists: the data file may not be what a guest sees',
    );
  }
  if (options.dataFile !== undefined && !external) {
    refuse('UNSUPPORTED', 'data_file can only be amended for an image that has an external data file');
  }
  const version = options.version ?? geometry.version;
  const refcountBits = options.refcountBits ?? geometry.refcountBits;
  if (!Number.isInteger(Math.log2(refcountBits)) || refcountBits < 1 || refcountBits > 64) {
    refuse('INVALID', `refcount_bits are 1 to 64, a power of two, not ${refcountBits}`);
  }
  const wasLazy = geometry.version > 2 && (header.compatibleFeatures.low & COMPATIBLE.LAZY_REFCOUNTS) !== 0;
  const lazyRefcounts = options.lazyRefcounts ?? (version === 2 ? false : wasLazy);
  if (version === 2) {
    if (lazyRefcounts) refuse('INVALID', 'lazy_refcounts need compat 1.1');
    if (refcountBits !== 16) refuse('INVALID', 'compat 0.10 has refcount_bits of 16: amend them too');
    if (geometry.version > 2) refuseDowngrade(header, snapshots, (why) => refuse('UNSUPPORTED', why));
  }
  const dataFileRaw = options.dataFileRaw ?? wasRaw;
  return { version, refcountBits, lazyRefcounts, dataFile: options.dataFile, dataFileRaw };
}

function refuseDowngrade(
  header: Qcow2Header,
  snapshots: readonly Qcow2Snapshot[],
  refuse: (why: string) => never,
): void {
  const names = { 2: 'an external data file', 3: 'compression type but zlib', 4: 'extended L2 entries' };
  const { high, low } = header.incompatibleFeatures;
  const kept = listBits({ high, low: low & ~(INCOMPATIBLE.DIRTY | INCOMPATIBLE.CORRUPT) });
  if (kept.length > 0) {
    const what = kept.map((bit) => (names as Record<number, string>)[bit] ?? `incompatible feature ${bit}`).join(', ');
    refuse(`compat 0.10 has no ${what}`);
  }
  if (header.extensions.bitmaps !== undefined) refuse('compat 0.10 has no dirty bitmaps: remove them first');
  if (header.cryptMethod === 2) refuse('compat 0.10 has no LUKS encryption');
  const other = snapshots.find(({ diskSize }) => diskSize !== undefined && diskSize !== header.size);
  if (other !== undefined) {
    refuse(`snapshot ${other.id} has a disk of another size, which compat 0.10 cannot say`);
  }
}

/** Everything after the layer has written all it had. The header is read anew for each step: the one before has changed it. */
async function amend(storage: Storage, plan: Plan): Promise<void> {
  const before = await readHeader(storage);
  if (plan.version === 3 && before.geometry.version === 2) await toVersion3(storage);
  if (plan.version === 3) await setFields(storage, plan);
  if (plan.refcountBits !== before.geometry.refcountBits) {
    const { corruptions, checkErrors } = await checkQcow2(storage);
    if (corruptions + checkErrors > 0) {
      throw new ImageError('CORRUPT', 'the image has errors: its refcounts cannot be made anew', {
        path: storage.path,
        help: 'Repair it with a check first.',
      });
    }
    await rewidenRefcounts(storage, Math.log2(plan.refcountBits));
  }
  if (plan.version === 2 && before.geometry.version > 2) await toVersion2(storage);
}

async function hostOf(storage: Storage): Promise<HeaderHost> {
  const sector = await HeaderSector.load(storage);
  const { clusterSize } = (await readHeader(storage)).geometry;
  const sync = () => storage.sync();
  return {
    storage,
    clusterSize,
    sync,
    switchHeader: async (change) => {
      await sector.update(change);
      await sync();
    },
    switchSector: () => Promise.reject(new LunetteError('INTERNAL', 'amending changes fields of the header')),
  };
}

async function toVersion3(storage: Storage): Promise<void> {
  const none = { high: 0, low: 0 };
  await rewriteHeader(await hostOf(storage), {
    headerLength: V3_LENGTH,
    fields: (view) => {
      HEADER_V3.write(view, {
        version: 3,
        incompatibleFeatures: none,
        compatibleFeatures: none,
        autoclearFeatures: none,
        refcountOrder: 4,
        headerLength: V3_LENGTH,
      });
      for (let at = HEADER_V3.size; at < V3_LENGTH; at++) view.setUint8(at, 0);
    },
    extensions: (list) => withExtension(list, EXTENSION.FEATURE_NAMES, featureNameTable().data),
  });
}

async function toVersion2(storage: Storage): Promise<void> {
  await rewriteHeader(await hostOf(storage), {
    headerLength: HEADER_V2.size,
    fields: (view) => HEADER_V2.write(view, { version: 2 }),
    extensions: (list) => withExtension(list, EXTENSION.FEATURE_NAMES, undefined),
  });
}

async function setFields(storage: Storage, plan: Plan): Promise<void> {
  const name = plan.dataFile;
  await rewriteHeader(await hostOf(storage), {
    fields: (view) => {
      const compatible = HEADER_V3.fields.compatibleFeatures.read(view, 80, false);
      const autoclear = HEADER_V3.fields.autoclearFeatures.read(view, 88, false);
      const lazy = COMPATIBLE.LAZY_REFCOUNTS;
      const raw = AUTOCLEAR.DATA_FILE_RAW;
      HEADER_V3.write(view, {
        compatibleFeatures: {
          high: compatible.high,
          low: (plan.lazyRefcounts ? compatible.low | lazy : compatible.low & ~lazy) >>> 0,
        },
        autoclearFeatures: {
          high: autoclear.high,
          low: (plan.dataFileRaw ? autoclear.low : autoclear.low & ~raw) >>> 0,
        },
      });
    },
    extensions: (list) =>
      name === undefined ? list : withExtension(list, EXTENSION.DATA_FILE, new TextEncoder().encode(name)),
  });
}
