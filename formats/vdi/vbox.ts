import { ImageError } from '../core/errors.ts';
import { MiB } from '../core/units.ts';

/** A disk image in a machine's media registry. Ids are lower-case text without braces. */
export interface VboxDisk {
  readonly uuid: string;
  /** As written: relative to the folder of the .vbox file, or absolute. */
  readonly location: string;
  readonly format: string;
  readonly type: string | undefined;
  /** Differencing images that stand on this one. */
  readonly children: readonly VboxDisk[];
}

export interface VboxSnapshot {
  readonly uuid: string;
  readonly name: string;
  /** ISO 8601, as written. */
  readonly timeStamp: string;
  readonly description: string;
  /** Disks as they were frozen by this snapshot. */
  readonly disks: readonly string[];
  readonly children: readonly VboxSnapshot[];
}

export interface VboxMachine {
  readonly uuid: string;
  readonly name: string;
  /** Relative to the folder of the .vbox file. */
  readonly snapshotFolder: string;
  readonly currentSnapshot: string | undefined;
  readonly disks: readonly VboxDisk[];
  readonly snapshots: readonly VboxSnapshot[];
  /** Disks that the machine runs on: the active leaves. */
  readonly attached: readonly string[];
}

export const MAX_VBOX_SIZE = 16 * MiB;
const MAX_NESTING = 1024;
const MAX_ELEMENTS = 100_000;

/** One element with its attributes and children, in document order, as the parser gives it. */
type Node = Record<string, unknown>;

/**
 * Reads a machine's settings file (.vbox, or VirtualBox.xml from before version 4.0): what it says of disks and snapshots.
 *
 * @throws {ImageError} BAD_MAGIC, BAD_HEADER, TOO_LARGE
 */
export async function parseVbox(text: string, path: string): Promise<VboxMachine> {
  if (text.length > MAX_VBOX_SIZE) throw new ImageError('TOO_LARGE', `larger than ${MAX_VBOX_SIZE} bytes`, { path });
  checkShape(text, path);
  // Loaded when it is needed: few who open an image have a machine's settings to read.
  const { XMLParser } = await import('fast-xml-parser');
  let document: Node[];
  try {
    document = new XMLParser({
      preserveOrder: true,
      ignoreAttributes: false,
      attributeNamePrefix: '',
      parseAttributeValue: false,
      parseTagValue: false,
      // Names hold the five entities of XML and character references, decoded below; a DTD's own are refused above.
      processEntities: false,
      removeNSPrefix: true,
    }).parse(text) as Node[];
  } catch (error) {
    throw new ImageError('BAD_HEADER', `is no well-formed XML: ${String(error)}`, { path, cause: error });
  }
  const root = document.find((node) => tagOf(node) === 'VirtualBox');
  const machine =
    root === undefined ? undefined : childrenOf(root).find((node) => ['Machine', 'Global'].includes(tagOf(node)));
  if (machine === undefined) throw new ImageError('BAD_MAGIC', 'is no settings file of VirtualBox', { path });
  return {
    uuid: uuidOf(machine, 'uuid'),
    name: attribute(machine, 'name') ?? '',
    snapshotFolder: attribute(machine, 'snapshotFolder') ?? 'Snapshots',
    currentSnapshot:
      attribute(machine, 'currentSnapshot') === undefined ? undefined : uuidOf(machine, 'currentSnapshot'),
    disks: children(machine, 'MediaRegistry')
      .flatMap((node) => children(node, 'HardDisks'))
      .flatMap(disksOf),
    snapshots: children(machine, 'Snapshot').map(snapshotOf),
    attached: attachedDisks(machine),
  };
}

/** Bounds what the parser would recurse into, and refuses what lets a document grow while it is read. */
function checkShape(text: string, path: string): void {
  if (/<!(DOCTYPE|ENTITY)/i.test(text)) throw new ImageError('UNSUPPORTED', 'has a document type definition', { path });
  let depth = 0;
  let elements = 0;
  for (const [, close, empty] of text.matchAll(/<(\/?)[A-Za-z_][^<>]*?(\/?)>/g)) {
    if (close === '/') depth--;
    else {
      elements++;
      if (empty !== '/') depth++;
    }
    if (depth > MAX_NESTING || elements > MAX_ELEMENTS)
      throw new ImageError('TOO_LARGE', `nests deeper than ${MAX_NESTING} or has over ${MAX_ELEMENTS} elements`, {
        path,
      });
  }
}

function tagOf(node: Node): string {
  return Object.keys(node).find((key) => key !== ':@') ?? '';
}

function childrenOf(node: Node): Node[] {
  const value = node[tagOf(node)];
  return Array.isArray(value) ? (value as Node[]) : [];
}

function children(node: Node, tag: string): Node[] {
  return childrenOf(node).filter((child) => tagOf(child) === tag);
}

function attribute(node: Node, name: string): string | undefined {
  const value = (node[':@'] as Record<string, unknown> | undefined)?.[name];
  return typeof value === 'string' ? decode(value) : undefined;
}

const ENTITIES: Readonly<Record<string, string>> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" };

function decode(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|(amp|lt|gt|quot|apos));/gi, (all, decimal, hex, name) => {
    if (name !== undefined) return ENTITIES[name] ?? all;
    const code = decimal !== undefined ? Number(decimal) : Number.parseInt(hex, 16);
    return code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
}

function uuidOf(node: Node, name: string): string {
  return (attribute(node, name) ?? '').replace(/^\{(.*)\}$/, '$1').toLowerCase();
}

function disksOf(node: Node): VboxDisk[] {
  return children(node, 'HardDisk').map((disk) => ({
    uuid: uuidOf(disk, 'uuid'),
    location: attribute(disk, 'location') ?? '',
    format: attribute(disk, 'format') ?? '',
    type: attribute(disk, 'type'),
    children: disksOf(disk),
  }));
}

function snapshotOf(node: Node): VboxSnapshot {
  const text = children(node, 'Description')
    .flatMap(childrenOf)
    .map((part) => part['#text']);
  return {
    uuid: uuidOf(node, 'uuid'),
    name: attribute(node, 'name') ?? '',
    timeStamp: attribute(node, 'timeStamp') ?? '',
    description: decode(text.filter((part) => typeof part === 'string').join('')),
    disks: attachedDisks(node),
    children: children(node, 'Snapshots')
      .flatMap((list) => children(list, 'Snapshot'))
      .map(snapshotOf),
  };
}

/** Hard disks that the element's own storage controllers hold; where those are has changed with versions. */
function attachedDisks(node: Node): string[] {
  const controllers = [node, ...children(node, 'Hardware')].flatMap((place) => children(place, 'StorageControllers'));
  return controllers
    .flatMap((place) => children(place, 'StorageController'))
    .flatMap((controller) => children(controller, 'AttachedDevice'))
    .filter((device) => attribute(device, 'type') === 'HardDisk')
    .flatMap((device) => children(device, 'Image'))
    .map((image) => uuidOf(image, 'uuid'));
}

/** The disk of an id, wherever it stands in the tree. */
export function findDisk(disks: readonly VboxDisk[], uuid: string): VboxDisk | undefined {
  for (const disk of disks) {
    const found = disk.uuid === uuid ? disk : findDisk(disk.children, uuid);
    if (found !== undefined) return found;
  }
  return undefined;
}
