import { readdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { ImageError } from '../../formats/core/errors.ts';
import {
  parseVbox,
  parseVmsd,
  parseVmxDisks,
  type VboxDisk,
  type VboxMachine,
  type VboxSnapshot,
  type VmsdFile,
} from '../../formats/index.ts';

/** A snapshot of a machine whose disks are chains of files: taking one freezes the files, and new ones go on. */
export interface MachineSnapshot {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  /** Milliseconds since 1970; undefined when the file does not say. */
  readonly takenMs: number | undefined;
  /** The machine runs on this one. */
  readonly current: boolean;
  /** Absolute paths of the files that hold the disks as they were. */
  readonly files: readonly string[];
  readonly children: readonly MachineSnapshot[];
}

/** What the settings of a VMware or VirtualBox machine say of its snapshots. */
export interface Machine {
  /** The file that says so: .vmsd, .vmx or .vbox. */
  readonly path: string;
  readonly program: 'VMware' | 'VirtualBox';
  readonly name: string;
  readonly snapshots: readonly MachineSnapshot[];
  /** Files that it writes to now; empty when the settings do not say. */
  readonly liveFiles: readonly string[];
}

const MAX_SETTINGS = 16 * 1024 * 1024;
const MAX_FILES = 256;
const MAX_DEPTH = 1024;

/**
 * Finds the machine that an image belongs to: settings in its folder, or in the one above (VirtualBox keeps snapshots in a folder of
 * their own), that name the image. A path of settings is taken as it is.
 *
 * @returns undefined when there is none that names it
 * @throws {ImageError} when `file` is a settings file that cannot be read
 */
export async function findMachine(file: string): Promise<Machine | undefined> {
  const own = path.resolve(file);
  if (isSettings(own)) return readMachine(own);
  for (const folder of [path.dirname(own), path.dirname(path.dirname(own))]) {
    const names = (await readdir(folder).catch(() => [])).filter(isSettings).sort();
    for (const name of names.slice(0, MAX_FILES)) {
      const machine = await readMachine(path.join(folder, name)).catch((error: unknown) => {
        // A settings file that cannot be read is one fewer place to look.
        if (error instanceof ImageError) return undefined;
        throw error;
      });
      if (machine !== undefined && filesOf(machine).has(own)) return machine;
    }
  }
  return undefined;
}

/** Whether a name is that of a machine's settings. */
export function isSettings(name: string): boolean {
  return /\.(vmsd|vmx|vbox)$/i.test(name);
}

/** All files that the settings name. */
function filesOf(machine: Machine): Set<string> {
  const files = new Set(machine.liveFiles);
  for (const snapshot of flatSnapshots(machine.snapshots)) for (const file of snapshot.files) files.add(file);
  return files;
}

/** All snapshots, each behind the one that it was taken on. */
export function flatSnapshots(snapshots: readonly MachineSnapshot[]): MachineSnapshot[] {
  return snapshots.flatMap((snapshot) => [snapshot, ...flatSnapshots(snapshot.children)]);
}

async function readMachine(file: string): Promise<Machine> {
  if (/\.vbox$/i.test(file)) {
    const text = (await readSettings(file)).toString('utf8');
    return fromVbox(await parseVbox(text, file), file);
  }
  const base = file.replace(/\.(vmsd|vmx)$/i, '');
  const vmsd = await readSettings(`${base}.vmsd`).catch(() => undefined);
  const vmx = await readSettings(`${base}.vmx`).catch(() => undefined);
  if (vmsd === undefined && vmx === undefined) await readSettings(file); // says why
  return fromVmware(
    vmsd === undefined ? { current: undefined, snapshots: [] } : parseVmsd(vmsd, `${base}.vmsd`),
    vmx === undefined ? [] : parseVmxDisks(vmx, `${base}.vmx`).map(({ fileName }) => fileName),
    file,
  );
}

async function readSettings(file: string): Promise<Buffer> {
  // Anything but a file could be read for ever.
  const stats = await stat(file).catch((cause: unknown) => {
    throw new ImageError('NOT_FOUND', 'there is no such file', { path: file, cause });
  });
  if (!stats.isFile() || stats.size > MAX_SETTINGS) {
    throw new ImageError('TOO_LARGE', `is no file of at most ${MAX_SETTINGS} bytes`, { path: file });
  }
  return readFile(file);
}

function fromVmware(vmsd: VmsdFile, disks: readonly string[], file: string): Machine {
  const folder = path.dirname(file);
  const known = new Set(vmsd.snapshots.map(({ uid }) => uid));
  const children = (parent: string | undefined, depth: number): MachineSnapshot[] =>
    vmsd.snapshots
      .filter((each) => {
        const above = each.parent !== undefined && known.has(each.parent) ? each.parent : undefined;
        return above === parent;
      })
      .map((each) => ({
        id: each.uid,
        name: each.name,
        description: each.description,
        takenMs: each.createdMs,
        current: each.uid === vmsd.current,
        files: each.disks.map(({ fileName }) => path.resolve(folder, fileName)),
        children: depth < MAX_DEPTH ? children(each.uid, depth + 1) : [],
      }));
  return {
    path: file,
    program: 'VMware',
    name: path.basename(file).replace(/\.\w+$/, ''),
    snapshots: children(undefined, 0),
    liveFiles: disks.map((name) => path.resolve(folder, name)),
  };
}

function fromVbox(machine: VboxMachine, file: string): Machine {
  const folder = path.dirname(file);
  const locations = new Map<string, string>();
  const collect = (disks: readonly VboxDisk[]): void => {
    for (const { uuid, location, children } of disks) {
      locations.set(uuid, path.resolve(folder, location.replaceAll('\\', '/')));
      collect(children);
    }
  };
  collect(machine.disks);
  const filesOf = (uuids: readonly string[]): string[] =>
    uuids.flatMap((uuid) => {
      const location = locations.get(uuid);
      return location === undefined ? [] : [location];
    });
  const snapshotsOf = (list: readonly VboxSnapshot[]): MachineSnapshot[] =>
    list.map((each) => {
      const takenMs = Date.parse(each.timeStamp);
      return {
        id: each.uuid,
        name: each.name,
        description: each.description,
        takenMs: Number.isNaN(takenMs) ? undefined : takenMs,
        current: each.uuid === machine.currentSnapshot,
        files: filesOf(each.disks),
        children: snapshotsOf(each.children),
      };
    });
  return {
    path: file,
    program: 'VirtualBox',
    name: machine.name,
    snapshots: snapshotsOf(machine.snapshots),
    liveFiles: filesOf(machine.attached),
  };
}
