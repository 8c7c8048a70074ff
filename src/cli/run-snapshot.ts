import { ImageError, UsageError } from '../../formats/core/errors.ts';
import type { SnapshotReference } from '../../formats/image/layer.ts';
import { applySnapshot, type ChainImage, createSnapshot, deleteSnapshot, type ImageHost } from '../../formats/index.ts';
import {
  describeFiles,
  findMachine,
  fittingSnapshots,
  inspectFile,
  isSettings,
  type SelectBy,
  selectSnapshot,
} from '../inspect/index.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';
import { snapshotEntry } from './image-info.ts';
import { snapshotTable } from './info-text.ts';
import { type CommonOptions, type OutputOptions, wantsJson, warn } from './output.ts';
import { formatJson } from './qemu-json.ts';
import { chainMembers, machineMembers, renderChain, renderMachine } from './snapshot-text.ts';
import { widthOf } from './table.ts';

/** Options of all snapshot commands, as commander gives them. */
export interface SnapshotOptions extends CommonOptions, OutputOptions, HostOptions {
  readonly format?: string;
  readonly forceShare?: boolean;
  readonly parent?: string;
  readonly ignoreCid?: boolean;
  readonly id?: boolean;
  readonly name?: boolean;
}

/** What a command needs to look at an image. */
export interface Looking {
  readonly path: string;
  readonly host: ImageHost;
  readonly format: string | undefined;
  readonly forceShare: boolean;
  readonly notice: (message: string) => void;
}

/** Sets the stage for a command that looks at an image, and clears it. */
export async function looking<T>(
  context: CliContext,
  image: string,
  options: SnapshotOptions,
  act: (looking: Looking) => Promise<T>,
): Promise<T> {
  const { path } = parseImageName(image);
  const said = new Set<string>();
  // A file may be opened several times on the way.
  const sayOnce = (text: string): void => {
    if (said.has(text)) return;
    said.add(text);
    warn(context, options, text);
  };
  const host = createHost({ ...options, warn: (message, from) => sayOnce(`${from}: ${message}`) });
  try {
    return await act({
      path,
      host,
      format: options.format,
      forceShare: options.forceShare ?? false,
      notice: (message) => sayOnce(`${path}: ${message}`),
    });
  } catch (error) {
    throw explainFormat(error, options.format);
  } finally {
    await host.close().catch(() => undefined);
  }
}

/** Opens an image with what it stands on, for reading. */
export function openForReading(
  { host, path, format, forceShare }: Looking,
  options: SnapshotOptions,
): Promise<ChainImage> {
  const { parent, ignoreCid } = options;
  return host.open(path, { format, readOnly: true, lock: forceShare ? 'shared' : 'default', parent, ignoreCid });
}

export function selectBy(options: SnapshotOptions): SelectBy {
  if (options.id === true && options.name === true) {
    throw new UsageError('USAGE', '--id and --name contradict each other');
  }
  return options.id === true ? 'id' : options.name === true ? 'name' : undefined;
}

/** `snapshot list`. */
export async function runList(context: CliContext, image: string, options: SnapshotOptions): Promise<void> {
  const json = wantsJson(options);
  await looking(context, image, options, async (stage) => {
    const files = isSettings(stage.path) ? undefined : await inspectFile(stage.path, stage, async (file) => file.info);
    if (files?.format === 'qcow2' || files?.format === 'raw') {
      const snapshots = (files.snapshots ?? []).map(snapshotEntry);
      if (json) context.stdout.write(`${formatJson(snapshots)}\n`);
      else if (snapshots.length > 0) {
        context.stdout.write(`${['Snapshot list:', ...snapshotTable(snapshots)].join('\n')}\n`);
      }
      return;
    }
    await listFiles(context, stage, options, json);
  });
}

/** The files that are a machine's snapshots; without its settings, those that the disk stands on. */
async function listFiles(context: CliContext, stage: Looking, options: SnapshotOptions, json: boolean): Promise<void> {
  const machine = await findMachine(stage.path);
  if (machine !== undefined) {
    const members = machineMembers(machine);
    context.stdout.write(json ? jsonText(members) : renderMachine(machine, widthOf(context.stdout)));
    return;
  }
  await printChain(context, stage, options, json);
}

/** `snapshot tree`. */
export async function runTree(context: CliContext, image: string, options: SnapshotOptions): Promise<void> {
  const json = wantsJson(options);
  await looking(context, image, options, async (stage) => {
    const machine = isSettings(stage.path) ? await findMachine(stage.path) : undefined;
    if (machine !== undefined) {
      context.stdout.write(json ? jsonText(machineMembers(machine)) : renderMachine(machine, widthOf(context.stdout)));
    } else await printChain(context, stage, options, json);
  });
}

async function printChain(context: CliContext, stage: Looking, options: SnapshotOptions, json: boolean): Promise<void> {
  const disk = await openForReading(stage, options);
  try {
    const files = await describeFiles(disk);
    context.stdout.write(json ? jsonText({ files: chainMembers(files) }) : renderChain(files));
  } finally {
    await disk.close().catch(() => undefined);
  }
}

export function jsonText(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}

/** Opens an image for writing, changes its snapshots, closes it. */
async function changing<T>(
  context: CliContext,
  image: string,
  options: SnapshotOptions,
  act: (disk: ChainImage) => Promise<T>,
): Promise<T> {
  const { path } = parseImageName(image);
  if (options.forceShare === true) {
    throw new UsageError('USAGE', 'snapshots cannot be changed without locking the image', {
      help: 'Leave -U out. A running machine takes its own snapshots: savevm, or virsh snapshot-create.',
    });
  }
  return looking(context, image, options, async ({ host, format }) => {
    const { parent, ignoreCid } = options;
    const disk = await host.open(path, { format, parent, ignoreCid });
    let result: T;
    try {
      result = await act(disk);
    } catch (error) {
      await disk.close().catch(() => undefined);
      throw error;
    }
    await disk.close(); // what is not written by now would be lost
    return result;
  });
}

/** `snapshot create`, and `-c` of qemu-img, which prints nothing. */
export async function runCreate(
  context: CliContext,
  image: string,
  name: string,
  options: SnapshotOptions & { readonly silent?: boolean },
): Promise<void> {
  const json = wantsJson(options);
  const snapshot = await changing(context, image, options, (disk) => createSnapshot(disk, name));
  if (options.silent === true) return;
  if (json) context.stdout.write(`${formatJson(snapshotEntry(snapshot))}\n`);
  else if (options.quiet !== true) context.stdout.write(`snapshot ${snapshot.id} (${oneLine(name)})\n`);
}

export type SnapshotChange = 'apply' | 'delete';

const CHANGES = { apply: applySnapshot, delete: deleteSnapshot } as const;

/** `snapshot apply` and `snapshot delete`: what is ambiguous is refused. */
export async function runChange(
  context: CliContext,
  change: SnapshotChange,
  image: string,
  text: string,
  options: SnapshotOptions,
): Promise<void> {
  await changing(context, image, options, async (disk) => {
    const snapshot = selectSnapshot(await snapshotsOf(disk), text, selectBy(options), disk.path);
    await CHANGES[change](disk, { id: snapshot.id });
  });
}

/** `-a` and `-d` as qemu-img has them: `-a` takes an id before a name, `-d` names only, and the first of several. */
export async function runQemuChange(
  context: CliContext,
  change: SnapshotChange,
  image: string,
  text: string,
  options: SnapshotOptions,
): Promise<void> {
  await changing(context, image, options, async (disk) => {
    const snapshots = await snapshotsOf(disk);
    const byId = change === 'apply' ? snapshots.find(({ id }) => id === text) : undefined;
    const meant = byId ?? snapshots.find(({ name }) => name === text);
    const all = fittingSnapshots(snapshots, text, undefined);
    if (meant !== undefined && all.length > 1) {
      const list = all.map(({ id, name }) => `${id} (${name})`).join(', ');
      const word = change === 'apply' ? 'applied' : 'deleted';
      warn(
        context,
        options,
        `${disk.path}: ${JSON.stringify(text)} fits the snapshots ${list}; ${word} is ${meant.id} (${meant.name}), as qemu-img does. ` +
          `lunette snapshot ${change} takes --id and --name`,
      );
    }
    if (meant === undefined && change === 'delete' && all.length > 0) {
      throw new ImageError('NOT_FOUND', `there is no snapshot named ${JSON.stringify(text)}`, {
        path: disk.path,
        help: `-d takes names, as that of qemu-img. By its id: lunette snapshot delete --id IMAGE ${text}`,
      });
    }
    const reference: SnapshotReference =
      meant === undefined ? { name: text } : byId === undefined ? { name: text } : { id: text };
    await CHANGES[change](disk, reference);
  });
}

async function snapshotsOf(disk: ChainImage): Promise<readonly { readonly id: string; readonly name: string }[]> {
  const [top] = disk.layers;
  return (await top?.describe())?.snapshots ?? [];
}
