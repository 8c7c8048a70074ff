import { ImageError } from '../core/errors.ts';
import { MiB } from '../core/units.ts';

/** A disk as a snapshot froze it. */
export interface VmsdDisk {
  /** Descriptor, relative to the folder of the .vmsd file, or absolute. */
  readonly fileName: string;
  /** Where the machine has it: `scsi0:0`. */
  readonly node: string;
}

export interface VmsdSnapshot {
  readonly uid: string;
  /** Undefined for the first in its line. */
  readonly parent: string | undefined;
  readonly name: string;
  readonly description: string;
  /** The saved state of the machine (.vmsn). */
  readonly fileName: string;
  /** Milliseconds since 1970; undefined when the file does not say. */
  readonly createdMs: number | undefined;
  readonly disks: readonly VmsdDisk[];
}

export interface VmsdFile {
  /** Uid of the snapshot that the machine runs on; undefined when there is none. */
  readonly current: string | undefined;
  readonly snapshots: readonly VmsdSnapshot[];
}

export interface VmxDisk {
  readonly node: string;
  readonly fileName: string;
}

const MAX_SIZE = 4 * MiB;
const MAX_SNAPSHOTS = 4096;
const MAX_DISKS = 256;

/**
 * Reads a machine's list of snapshots (.vmsd).
 *
 * @throws {ImageError} TOO_LARGE
 */
export function parseVmsd(bytes: Uint8Array, path: string): VmsdFile {
  const values = parseSettings(bytes, path, '.encoding');
  const count = Math.min(countOf(values.get('snapshot.numsnapshots')), MAX_SNAPSHOTS);
  const snapshots: VmsdSnapshot[] = [];
  // Numbers may have gaps, and the count may be behind: what is there counts.
  for (let i = 0, missing = 0; (i < count || missing < 8) && i < MAX_SNAPSHOTS; i++) {
    const get = (key: string): string | undefined => values.get(`snapshot${i}.${key}`);
    const uid = get('uid');
    if (uid === undefined) {
      missing++;
      continue;
    }
    const disks: VmsdDisk[] = [];
    for (let disk = 0; disk < Math.min(countOf(get('numdisks')), MAX_DISKS); disk++) {
      const prefix = `disk${disk}.`;
      const fileName = get(`${prefix}filename`);
      if (fileName !== undefined) disks.push({ fileName, node: get(`${prefix}node`) ?? '' });
    }
    const parent = get('parent');
    snapshots.push({
      uid,
      parent: parent === undefined || parent === '' || parent === '0' ? undefined : parent,
      name: get('displayname') ?? '',
      description: get('description') ?? '',
      fileName: get('filename') ?? '',
      createdMs: timeOf(get('createtimehigh'), get('createtimelow')),
      disks,
    });
  }
  const current = values.get('snapshot.current');
  return { current: snapshots.some(({ uid }) => uid === current) ? current : undefined, snapshots };
}

/** The disks that a machine runs on, from its settings (.vmx): the active leaves. */
export function parseVmxDisks(bytes: Uint8Array, path: string): VmxDisk[] {
  const disks: VmxDisk[] = [];
  const values = parseSettings(bytes, path, '.encoding');
  for (const [key, fileName] of values) {
    const node = /^((?:scsi|sata|ide|nvme)\d+:\d+)\.filename$/.exec(key)?.[1];
    if (node === undefined || !/\.vmdk$/i.test(fileName)) continue;
    if (values.get(`${node}.present`)?.toLowerCase() !== 'false') disks.push({ node, fileName });
  }
  return disks;
}

/** Lines `key = "value"`; keys in lower case. */
function parseSettings(bytes: Uint8Array, path: string, encodingKey: string): Map<string, string> {
  if (bytes.length > MAX_SIZE) throw new ImageError('TOO_LARGE', `larger than ${MAX_SIZE} bytes`, { path });
  const plain = Buffer.from(bytes).toString('latin1');
  const encoding = settingsOf(plain).get(encodingKey) ?? 'UTF-8';
  let text = plain;
  try {
    text = new TextDecoder(encoding).decode(bytes);
  } catch {
    // An encoding that is not known here: one character per byte.
  }
  return settingsOf(text);
}

function settingsOf(text: string): Map<string, string> {
  const values = new Map<string, string>();
  for (const line of text.split(/\r?\n/)) {
    const match = /^\s*([^#=\s][^=]*?)\s*=\s*"(.*)"\s*$/.exec(line);
    if (match !== null) values.set((match[1] as string).toLowerCase(), unescaped(match[2] as string));
  }
  return values;
}

/** VMware writes characters that would end a line or a value as `|` and two hexadecimal digits. */
function unescaped(value: string): string {
  return value.replace(/\|([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

function countOf(value: string | undefined): number {
  return value !== undefined && /^\d{1,6}$/.test(value) ? Number(value) : 0;
}

/** Microseconds since 1970 in two halves, both written as signed decimals. */
function timeOf(high: string | undefined, low: string | undefined): number | undefined {
  if (high === undefined || low === undefined || !/^-?\d{1,10}$/.test(high) || !/^-?\d{1,10}$/.test(low))
    return undefined;
  const microseconds = Number(high) * 2 ** 32 + (Number(low) >>> 0);
  return Math.floor(microseconds / 1000);
}
