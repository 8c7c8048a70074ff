import { LunetteError } from '../../formats/core/errors.ts';
import { alignUp, divideUp, KiB, MiB } from '../../formats/core/units.ts';
import { type CreateValues, encryptionHeaderBytes } from '../../formats/index.ts';
import type { DiskSource } from './disk.ts';
import { dataRuns } from './runs.ts';

/** What a new image will take, bytes of its files. */
export interface Measure {
  /** With the data that there is now, zeros in it counted as data. */
  readonly required: number;
  /** Once everything has been written to. */
  readonly fullyAllocated: number;
}

export interface MeasureTarget {
  readonly format: string;
  /** Every option that has a value, as readCreateValues gives them. */
  readonly values: CreateValues;
  /** The new image stands on another one: all of its clusters may be needed. */
  readonly backing?: boolean | undefined;
}

/**
 * What converting a disk would take.
 *
 * @param disk of the size that the format makes of it; undefined with `size`: an empty one
 * @throws {LunetteError} UNSUPPORTED where that depends on how the data compresses
 */
export async function measureDisk(disk: DiskSource | number, target: MeasureTarget): Promise<Measure> {
  const size = typeof disk === 'number' ? disk : disk.size;
  const source = typeof disk === 'number' ? undefined : disk;
  const { format, values, backing = false } = target;
  switch (format) {
    case 'raw':
      return { required: size, fullyAllocated: size };
    case 'qcow2':
      return measureQcow2(size, source, values, backing);
    case 'vdi':
      return measureVdi(size, source, values);
    case 'vmdk':
      return measureVmdk(size, source, values);
    default:
      throw new LunetteError('UNSUPPORTED', `what ${format} images take cannot be said`);
  }
}

async function measureQcow2(
  size: number,
  source: DiskSource | undefined,
  values: CreateValues,
  backing: boolean,
): Promise<Measure> {
  const cluster = values.cluster_size as number;
  const extended = values.extended_l2 === true;
  const perTable = cluster / (extended ? 16 : 8);
  const clusters = divideUp(size, cluster);
  const l1 = divideUp(divideUp(clusters, perTable) * 8, cluster);
  const refcountBits = values.refcount_bits as number;
  const preallocated = values.preallocation !== undefined && values.preallocation !== 'off';
  // Behind everything, and not in the refcounts of QEMU's figure.
  const encryption = alignUp(encryptionHeaderBytes(values), cluster);
  // QEMU's figure counts the tables of the whole disk.
  const all = divideUp(clusters * (extended ? 16 : 8), cluster);
  const fullyAllocated = withRefcounts(1 + l1 + all + clusters, cluster, refcountBits) * cluster + encryption;
  if (preallocated) return { required: fullyAllocated, fullyAllocated };
  const whole = { units: clusters, groups: all };
  const nothing = { units: 0, groups: 0 };
  const used = backing ? whole : source === undefined ? nothing : await countUnits(source, cluster, perTable);
  const required = withGrowingTable(1 + l1 + used.groups + used.units, cluster, refcountBits) * cluster + encryption;
  return { required, fullyAllocated: Math.max(required, fullyAllocated) };
}

/** Clusters with the refcount structures that count them, which count themselves. */
function withRefcounts(clusters: number, cluster: number, bits: number): number {
  const perBlock = (cluster * 8) / bits;
  let table = 1;
  let blocks = 1;
  for (;;) {
    const total = clusters + table + blocks;
    const needed = divideUp(total, perBlock);
    const needsTable = Math.max(1, divideUp(needed * 8, cluster));
    if (needed <= blocks && needsTable <= table) return total;
    blocks = Math.max(blocks, needed);
    table = Math.max(table, needsTable);
  }
}

/** The same where the refcount table begins with a cluster and moves when it is full, as the writer's does: its old places stay in the file. */
function withGrowingTable(clusters: number, cluster: number, bits: number): number {
  const perBlock = (cluster * 8) / bits;
  let tables = 1;
  let entries = cluster / 8;
  let blocks = 1;
  for (;;) {
    const total = clusters + tables + blocks;
    const needed = divideUp(total, perBlock);
    if (needed <= blocks) return total;
    blocks++;
    if (blocks <= entries) continue;
    const table = divideUp(Math.max(entries + 1, Math.ceil(entries * 1.5)) * 8, cluster);
    tables += table;
    entries = (table * cluster) / 8;
  }
}

const VDI_MAP = 1 * MiB;

async function measureVdi(size: number, source: DiskSource | undefined, values: CreateValues): Promise<Measure> {
  const block = (values.block_size as number | undefined) ?? MiB;
  const blocks = divideUp(size, block);
  const data = alignUp(VDI_MAP + 4 * blocks, MiB);
  const fullyAllocated = data + blocks * block;
  if (values.static === true) return { required: fullyAllocated, fullyAllocated };
  const { units } = source === undefined ? { units: 0 } : await countUnits(source, block, 1);
  return { required: data + units * block, fullyAllocated };
}

const SECTOR = 512;
/** Header and the room for the descriptor. */
const VMDK_START = 21;
const TABLE_ENTRIES = 512;
const SPLIT = 2047 * MiB;
/** A descriptor in a file of its own takes less. */
const DESCRIPTOR = 4 * KiB;

async function measureVmdk(size: number, source: DiskSource | undefined, values: CreateValues): Promise<Measure> {
  const grain = values.grain_size as number;
  const type = values.subformat as string;
  if (type === 'streamOptimized') {
    throw new LunetteError('UNSUPPORTED', 'what a streamOptimized disk takes depends on how the data compresses');
  }
  if (/flat$|^vmfs$/i.test(type)) return { required: size + DESCRIPTOR, fullyAllocated: size + DESCRIPTOR };
  if (type === 'vmfsSparse') {
    // Grains are sectors, tables cover 2 MiB.
    const directory = (4 + divideUp(4 * divideUp(size, 2 * MiB), SECTOR)) * SECTOR + DESCRIPTOR;
    const { units, groups } = source === undefined ? { units: 0, groups: 0 } : await countUnits(source, SECTOR, 4096);
    const table = 4 * 4096;
    return {
      required: directory + units * SECTOR + groups * table,
      fullyAllocated: directory + size + divideUp(size, 2 * MiB) * table,
    };
  }
  const parts = type === 'twoGbMaxExtentSparse' ? divideUp(size, SPLIT) : 1;
  let overhead = parts > 1 || type === 'twoGbMaxExtentSparse' ? DESCRIPTOR : 0;
  for (let i = 0; i < parts; i++) {
    const length = parts === 1 ? size : Math.min(SPLIT, size - i * SPLIT);
    const tables = divideUp(divideUp(length, grain), TABLE_ENTRIES);
    const copy = divideUp(4 * tables, SECTOR) + 4 * tables;
    overhead += alignUp(VMDK_START + 2 * copy, grain / SECTOR) * SECTOR;
  }
  const { units } = source === undefined ? { units: 0 } : await countUnits(source, grain, 1);
  return { required: overhead + units * grain, fullyAllocated: overhead + alignUp(size, grain) };
}

/** Units of a disk that hold data, and groups of `perGroup` units that have one of them. */
async function countUnits(
  disk: DiskSource,
  unit: number,
  perGroup: number,
): Promise<{ units: number; groups: number }> {
  let units = 0;
  let groups = 0;
  let lastGroup = -1;
  for await (const { offset, length } of dataRuns(disk, { unit })) {
    const first = offset / unit;
    const end = divideUp(offset + length, unit);
    units += end - first;
    const firstGroup = Math.max(Math.floor(first / perGroup), lastGroup + 1);
    const endGroup = Math.floor((end - 1) / perGroup) + 1;
    if (endGroup > firstGroup) groups += endGroup - firstGroup;
    lastGroup = Math.max(lastGroup, endGroup - 1);
  }
  return { units, groups };
}
